"""The HTTP door of the local endpoint: a small WSGI server for trusted clients of this machine.

Rules of this file:
- HTTP and HTTPS on one port: a connection whose first byte is a TLS handshake is HTTPS, as no HTTP method begins
  with that byte. The certificate is made when the first such connection comes.
- Connections stay open, and an answer leaves in one piece: a new connection for every call, or a header and a body
  sent apart (Nagle and a delayed ACK), cost more than the call.
- A thread per connection. A request is read whole before the application is called.
"""

import contextlib
import io
import logging
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

from moto.core.request import (
    PRESERVED_HEADER_NAMES_ENVIRON_KEY,
    environ_key_for_header,
    should_preserve_original_header_name,
)

from windlass.local.environment import Request, RequestReader

Environ: TypeAlias = dict[str, Any]
Application: TypeAlias = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

BODY_BYTES_MAX = 512 * 1024 * 1024
_TLS_HANDSHAKE = b"\x16"
_FIRST_BYTE_S = 30.0
_READ_BYTES = 256 * 1024
_ERROR = b'{"message":"the local endpoint failed; its terminal says how"}'

_logger = logging.getLogger(__name__)


class Server:
    """Serves one WSGI application. Raises OSError where the port is taken; port 0 takes a free one."""

    def __init__(self, host: str, port: int, app: Application, tls: Callable[[], ssl.SSLContext]) -> None:
        self._app = app
        self._tls = tls
        self._tls_context: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._ending = False
        self._listening = socket.create_server((host, port), backlog=128)
        self.host, self.port = self._listening.getsockname()[:2]
        self._thread = threading.Thread(target=self._accept, name="endpoint", daemon=True)

    def start(self) -> None:
        """Serve, on threads of its own."""
        self._thread.start()

    def end(self) -> None:
        """Take no more connections, and close those that are open."""
        self._ending = True
        if self._thread.is_alive():
            # Closing a listening socket does not wake who accepts on it.
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
                pass
            self._thread.join()
        self._listening.close()
        with self._lock:
            connections = tuple(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # too many open files, say: what there is goes on
                if self._ending:
                    return
                continue
            if self._ending:
                connection.close()
                return
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._connection, args=(connection,), name="connection", daemon=True).start()

    def _connection(self, connection: socket.socket) -> None:
        speaking = connection
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(_FIRST_BYTE_S)
            is_tls = connection.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE
            if is_tls:
                speaking = self._context().wrap_socket(connection, server_side=True)
            speaking.settimeout(None)
            self._talk(speaking, "https" if is_tls else "http")
        except (OSError, ValueError):
            pass  # gone, or not in a language of ours
        finally:
            with self._lock:
                self._open.discard(connection)
            speaking.close()
            connection.close()

    def _context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls_context is None:
                self._tls_context = self._tls()
            return self._tls_context

    def _talk(self, connection: socket.socket, scheme: str) -> None:
        reader = RequestReader(BODY_BYTES_MAX)
        while data := connection.recv(_READ_BYTES):
            for request in reader.feed(data):
                connection.sendall(self._answer(request, scheme))
                if request.headers.get("connection", "").lower() == "close":
                    return
            if reader.continue_due:
                reader.continue_due = False
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _answer(self, request: Request, scheme: str) -> bytes:
        told: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], _error: Any = None) -> None:
            told.append((status, headers))

        try:
            chunks = self._app(self._environ(request, scheme), start_response)
            body = b"".join(chunks)
            if hasattr(chunks, "close"):
                chunks.close()
            status, headers = told[-1]
        except Exception:  # what one request does must not end the endpoint
            _logger.exception("%s %s failed", request.method, request.path)
            status, headers, body = "500 Internal Server Error", [("Content-Type", "application/json")], _ERROR
        return _response(status, headers, body, has_body=request.method != "HEAD")

    def _environ(self, request: Request, scheme: str) -> Environ:
        path, _, query = request.path.partition("?")
        environ: Environ = {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": scheme,
            "wsgi.input": io.BytesIO(request.body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "SERVER_SOFTWARE": "windlass",
            "REQUEST_METHOD": request.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "REQUEST_URI": request.path,
            "RAW_URI": request.path,
            "REMOTE_ADDR": "127.0.0.1",
            "SERVER_NAME": self.host,
            "SERVER_PORT": str(self.port),
            "SERVER_PROTOCOL": "HTTP/1.1",
        }
        preserved = {}
        for name, value in request.headers.items():
            key = environ_key_for_header(name)
            if should_preserve_original_header_name(name):
                preserved[key] = name
            elif "_" in name:
                continue
            environ[key] = value
        environ[PRESERVED_HEADER_NAMES_ENVIRON_KEY] = preserved
        environ.pop("HTTP_TRANSFER_ENCODING", None)  # taken apart already
        environ["CONTENT_LENGTH"] = str(len(request.body))
        return environ


def _response(status: str, headers: list[tuple[str, str]], body: bytes, *, has_body: bool) -> bytes:
    """One HTTP response. A body's size is what it is, except where only the headers go."""
    code = int(status.split(" ", 1)[0])
    empty = code < 200 or code in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
    lines = [f"HTTP/1.1 {status if ' ' in status else f'{code} {_phrase(code)}'}"]
    size = str(len(body))
    for name, value in headers:
        lowered = name.lower()
        if lowered == "content-length":
            size = size if has_body else value
        elif lowered not in ("connection", "transfer-encoding"):
            lines.append(f"{name}: {value}")
    if not empty:
        lines.append(f"Content-Length: {size}")
    head = "\r\n".join(lines).encode("utf-8") + b"\r\n\r\n"
    return head + body if has_body and not empty else head


def _phrase(code: int) -> str:
    try:
        return HTTPStatus(code).phrase
    except ValueError:
        return "Unknown"
