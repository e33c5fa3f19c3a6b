"""The console's door: a page, its answers, and one stream of events, on this machine alone.

Rules of this file:
- It listens on 127.0.0.1. A request must name that address, or localhost, with this port as its Host: a name that an
  outsider lets point here is refused, and with it the browser that followed it.
- A request from another origin is refused, whatever it asks. There are no CORS headers.
- What changes something is a POST of JSON with a header of ours, which no form can send.
- The page may load and connect to nothing but this server (Content-Security-Policy), and carries no inline script.
- Answers are data. Whatever came from a record goes to the page as text, and the page shows it as text.
"""

import functools
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from windlass.console.desk import RECORD_BYTES_MAX, Desk
from windlass.console.problem import ConsoleProblem
from windlass.console.source import Source, SourceProblem
from windlass.quarantine import QuarantineProblem

HOST = "127.0.0.1"
OUR_HEADER = "x-windlass"
TICK_S = 1.0
PAGE_ROWS_MAX = 500
_STATIC = Path(__file__).parent / "static"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Console:
    """Serves the page about one source, on a thread of its own. Port 0 takes a free one.

    with Console(source) as console:
        print(console.url)
    """

    def __init__(self, source: Source, *, port: int = 0) -> None:
        self._asked_port = port
        self.port = 0
        self.desk = Desk(source)
        self._closing = threading.Event()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Console":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.port}/"

    def start(self) -> None:
        """Serve. Raises ConsoleProblem where the port is taken."""
        try:
            listening = socket.create_server((HOST, self._asked_port))
        except OSError as error:
            msg = f"the console cannot listen on {HOST}:{self._asked_port}: {error.strerror}; choose another port"
            raise ConsoleProblem(msg) from None
        self.port = listening.getsockname()[1]
        config = uvicorn.Config(
            application(self.desk, self._closing),
            log_level="error",
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=2,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name="console-http", daemon=True
        )
        self.desk.start()
        self._thread.start()

    def close(self) -> None:
        """End it. Safe to repeat."""
        self._closing.set()
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(timeout=5)
            self._server = None
        self.desk.end()


def application(desk: Desk, closing: threading.Event) -> ASGIApp:
    """The ASGI application, guarded."""
    pages = Pages(desk, closing)
    routes = [
        Route("/", pages.index),
        Route("/api/pipeline", pages.pipeline),
        Route("/api/stream", pages.stream),
        Route("/api/chart", pages.chart),
        Route("/api/items", pages.items),
        Route("/api/keys", pages.keys),
        Route("/api/calls", pages.calls),
        Route("/api/series", pages.series),
        Route("/api/rejected", pages.rejected),
        Route("/api/failures", pages.failures),
        Route("/api/put", pages.put, methods=["POST"]),
        Route("/api/whereabouts", pages.whereabouts),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    return Guard(Starlette(routes=routes))


class Guard:
    """Lets in who is at home, and puts the page's rules on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refused = refusal(scope["method"], Headers(scope=scope), scope["server"][1])

        async def send_ruled(message: Message) -> None:
            if message["type"] == "http.response.start":
                ruled = {name for name, _ in _HEADERS}
                kept = [(name, value) for name, value in message["headers"] if name not in ruled]
                message = {**message, "headers": [*kept, *_HEADERS]}
            await send(message)

        app: ASGIApp = self._app if refused is None else PlainTextResponse(refused, 403)
        await app(scope, receive, send_ruled)


def refusal(method: str, headers: Headers, port: int) -> str | None:
    """Why a request is not let in; None where it is."""
    homes = {f"{HOST}:{port}", f"localhost:{port}"}
    host = headers.get("host", "")
    if host not in homes:
        return f"this console answers to {HOST}:{port} only; found the host {host[:100]!r}"
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return f"this console answers its own page only; found the origin {origin[:100]!r}"
    from_elsewhere = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
    # A link from elsewhere may open the page itself; it sends no Origin, and can read nothing.
    if from_elsewhere and not (method == "GET" and headers.get("sec-fetch-mode") == "navigate"):
        return "this console answers its own page only"
    if method in ("GET", "HEAD"):
        return None
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return "send JSON, as content type application/json"
    return None if headers.get(OUR_HEADER) else f"send the header {OUR_HEADER}"


class _Wanted(msgspec.Struct):
    """The body of a put."""

    partition_key: str
    data: str


Answer = Callable[["Pages", Request], Any]


def _told(answer: Answer) -> Callable[["Pages", Request], Awaitable[Response]]:
    """An answer as JSON, made on a thread: sources block. What cannot be read is an answer too: its `problem`."""

    @functools.wraps(answer)
    async def respond(pages: "Pages", request: Request) -> Response:
        pages.desk.looked()
        try:
            found = await anyio.to_thread.run_sync(answer, pages, request)
        except (SourceProblem, QuarantineProblem) as problem:
            return _json({"problem": str(problem)})
        return _json(found)

    return respond


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


class Pages:
    """The endpoints. Lists are asked for by `offset` and `limit`, and answered with their `total`."""

    def __init__(self, desk: Desk, closing: threading.Event) -> None:
        self.desk = desk
        self._closing = closing

    async def index(self, _: Request) -> Response:
        return FileResponse(_STATIC / "index.html")

    @_told
    def pipeline(self, _: Request) -> Any:
        return self.desk.pipeline()

    @_told
    def chart(self, request: Request) -> Any:
        asked = request.query_params
        top, span = _number(request, "top", 8, 32), _number(request, "span", 120, 5_000)
        return self.desk.chart(asked.get("total", ""), asked.getlist("key"), top, span)

    @_told
    def items(self, request: Request) -> Any:
        return self.desk.item_page(request.query_params.get("q", ""), *_stretch(request))

    @_told
    def keys(self, request: Request) -> Any:
        return self.desk.items.keys(request.query_params.get("q", ""), _number(request, "limit", 20, 100))

    @_told
    def calls(self, request: Request) -> Any:
        asked = request.query_params
        return self.desk.call_page(asked.get("q", ""), asked.get("only", ""), *_stretch(request))

    @_told
    def series(self, request: Request) -> Any:
        return self.desk.series(_number(request, "span_ms", 300_000, 86_400_000))

    @_told
    def rejected(self, request: Request) -> Any:
        asked = request.query_params
        return self.desk.rejected_page(asked.get("reason", ""), asked.get("q", ""), *_stretch(request))

    @_told
    def failures(self, _: Request) -> Any:
        return self.desk.source.failures()

    @_told
    def whereabouts(self, request: Request) -> Any:
        return self.desk.whereabouts(request.query_params.get("sequence", ""))

    async def put(self, request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > 8 * RECORD_BYTES_MAX:
                return _json({"problem": "a record has at most 1 MiB"}, 413)
        try:
            wanted = msgspec.json.decode(body, type=_Wanted)
        except msgspec.MsgspecError as error:
            return _json({"problem": f"send partition_key and data, both text: {error}"}, 400)
        self.desk.looked()
        try:
            found = await anyio.to_thread.run_sync(self.desk.put, wanted.partition_key, wanted.data.encode())
        except SourceProblem as problem:
            return _json({"problem": str(problem)})
        return _json(found)

    async def stream(self, _: Request) -> Response:
        """Server-sent events: one `tick` a second."""
        return StreamingResponse(self._ticks(), media_type="text/event-stream")

    async def _ticks(self) -> AsyncIterator[bytes]:
        yield b"retry: 1000\n\n"
        while not self._closing.is_set():
            self.desk.looked()
            tick = await anyio.to_thread.run_sync(self.desk.tick)
            yield b"event: tick\ndata: " + tick + b"\n\n"
            for _ in range(round(TICK_S / 0.1)):
                if self._closing.is_set():
                    return
                await anyio.sleep(0.1)


def _stretch(request: Request) -> tuple[int, int]:
    return _number(request, "offset", 0, 10**9), _number(request, "limit", 100, PAGE_ROWS_MAX)


def _number(request: Request, name: str, otherwise: int, most: int) -> int:
    """A whole number of the query, from 0 to `most`; `otherwise` where it is none."""
    text = request.query_params.get(name, "")
    return min(int(text), most) if text.isascii() and text.isdigit() and len(text) < 12 else otherwise
