"""AWS on this machine: one endpoint, where functions run and event source mappings poll.

    client ── HTTP(S) ──► Server ──► Cloud ──┬─► KinesisApi  the calls that carry records
                                             ├─► LambdaApi   the calls that make something run ──► Hosts, Mappings
                                             └─► moto        everything else

moto keeps the records of everything and answers what is not ours. Its state belongs to the process, so there is one
`Cloud` at a time in a process, and one account, `ACCOUNT`. moto's services are not made for threads: each is locked
while it answers.

    with Cloud(port=0) as cloud:
        kinesis = boto3.client("kinesis", endpoint_url=cloud.endpoint_url, ...)
"""

import io
import json
import logging
import re
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3
import msgspec
from botocore.config import Config
from moto.core import DEFAULT_ACCOUNT_ID as ACCOUNT
from moto.core.base_backend import BackendDict
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

from windlass.local import cbor, snapshot
from windlass.local.certificate import tls_context
from windlass.local.hooks import our_own
from windlass.local.hosts import FunctionState, Hosts
from windlass.local.kinesis_api import KinesisApi
from windlass.local.lambda_api import Answer, LambdaApi, request_of
from windlass.local.mapping_settings import Assumptions
from windlass.local.mappings import Mappings, MappingState, Seams, Sent
from windlass.local.monitor import Called, Monitor
from windlass.local.poller import wall_clock_ms
from windlass.local.server import Environ, Server
from windlass.local.stacks import our_stacks

__all__ = ["ACCOUNT", "REGION", "Cloud", "CloudProblem", "View"]

REGION = "us-east-1"
KEY = "local"  # any credentials do
_SCOPE = re.compile(r"Credential=[^/]*/\d+/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request")
_FLUSHED_FOR = ("logs", "monitoring")  # who asks these is to see what has happened until now
_UNLOCKED = ("sqs", "kinesis")  # a receive may wait for twenty seconds; streams are ours
_CHANGED_BY = ("lambda", "cloudformation")

_in_use = threading.Lock()
_logger = logging.getLogger(__name__)


class CloudProblem(Exception):
    """The endpoint cannot be started. One line: what is wrong, what was found, what to do."""


class View(msgspec.Struct, frozen=True):
    """What is going on, as plain values."""

    endpoint_url: str
    functions: list[FunctionState]
    mappings: list[MappingState]
    calls: tuple[Called, ...]
    failures: list[Sent]


def _quiet(_function: str, _line: str) -> None:
    pass


def _save(folder: Path) -> None:
    try:
        left_out = snapshot.save(folder)
    except OSError as error:
        _logger.error("nothing new is kept in %s: %s", folder, error.strerror)
        return
    if left_out:
        found = "; ".join(f"{service} ({why})" for service, why in left_out.items())
        _logger.error("%s has all but %s; what was there before may be in %s", folder, found, snapshot.EARLIER)


class Cloud:
    """A local AWS endpoint. Raises CloudProblem, at `start`, where it cannot be.

    `data`: a folder to keep everything in, see `windlass.local.snapshot` for how well. `echo` gets every log line of
    the functions. `assumed` and `poll_ms` are for every mapping made here.
    """

    def __init__(
        self,
        *,
        port: int = 4566,
        host: str = "127.0.0.1",
        data: Path | None = None,
        assumed: Assumptions | None = None,
        poll_ms: int | None = None,
        echo: Callable[[str, str], None] = _quiet,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._host = host
        self._asked_port = port
        self._data = data
        self._stack = ExitStack()
        self._locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server: Server | None = None
        self._monitor = Monitor(ACCOUNT, now_ms=now_ms, locked=self._locked, echo=echo)
        self._hosts = Hosts(ACCOUNT, self._monitor, self._platform)
        seams = Seams(self._hosts, self._monitor, self.client, now_ms, lambda: str(uuid.uuid4()))
        folder = data / "mappings" if data else None
        self._mappings = Mappings(ACCOUNT, seams, folder=folder, assumed=assumed, poll_ms=poll_ms)
        self._lambda = LambdaApi(ACCOUNT, self._hosts, self._mappings)
        self._kinesis = KinesisApi(ACCOUNT, self._note_put)

    # --- life --------------------------------------------------------------------------------------------------

    def __enter__(self) -> "Cloud":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Open the endpoint. Raises CloudProblem."""
        if not _in_use.acquire(blocking=False):
            msg = "this process has a local endpoint already; close that one first"
            raise CloudProblem(msg)
        self._stack.callback(_in_use.release)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        folder = self._data or Path(self._stack.enter_context(TemporaryDirectory(prefix="windlass-")))
        BackendDict.reset()
        self._stack.callback(BackendDict.reset)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(snapshot.locked(folder))
            self._server = Server(self._host, self._asked_port, self._answer, lambda: tls_context(folder))
        except snapshot.InUse as error:
            raise CloudProblem(str(error)) from None
        except OSError as error:
            raise CloudProblem(self._why_not(error, folder)) from None
        self._stack.enter_context(our_own(self._hosts, self._mappings))
        self._stack.enter_context(our_stacks())
        try:
            if self._data:
                snapshot.restore(self._data)
            self._mappings.restore()
        except ValueError as error:
            raise CloudProblem(str(error)) from None
        self._monitor.start(self._mappings.metrics)
        self._server.start()
        if self._data:
            self._stack.callback(_save, self._data)

    def _why_not(self, error: OSError, folder: Path) -> str:
        if error.filename:
            return f"the folder {folder} cannot be used: {error.strerror}. Choose another with --data."
        return (
            f"{self._host}:{self._asked_port} cannot be used: {error.strerror}. "
            "End what listens there, or choose another port with --port."
        )

    def close(self) -> None:
        """End it, with every process that it started. Safe to repeat."""
        if self._server is not None:
            server, self._server = self._server, None
            stopping = threading.Thread(target=self._mappings.close)
            stopping.start()
            self._hosts.close()
            stopping.join()
            self._monitor.end()
            server.end()
        self._stack.close()

    # --- for callers in this process -----------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None, "the endpoint is not open"
        port: int = self._server.port
        return port

    @property
    def endpoint_url(self) -> str:
        """For AWS_ENDPOINT_URL. The same address with https:// works as well."""
        return f"http://{self._host}:{self.port}"

    def client(self, service: str, region: str = REGION) -> Any:
        """A boto3 client of this endpoint."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint_url,
            region_name=region,
            aws_access_key_id=KEY,
            aws_secret_access_key=KEY,
            config=Config(proxies={}, s3={"addressing_style": "path"}),
        )

    def settle(self, *, timeout_s: float = 60.0) -> bool:
        """Wait until every mapping has processed what is in its stream and has no window open."""
        settled = self._mappings.settle(timeout_s=timeout_s)
        self._monitor.flush()
        return settled

    def view(self) -> View:
        """What is going on now."""
        return View(
            self.endpoint_url,
            self._hosts.state(),
            self._mappings.state(),
            self._monitor.recent(),
            self._mappings.sent(),
        )

    # --- a request -----------------------------------------------------------------------------------------------

    def _answer(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("CONTENT_TYPE", "").startswith(cbor.CONTENT_TYPE):
            return self._answer_cbor(environ, start_response)
        return self._answer_plain(environ, start_response)

    def _answer_cbor(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The same call in JSON, and its answer in CBOR."""
        try:
            body = cbor.to_json(environ["wsgi.input"].getvalue())
        except cbor.NotCbor as error:
            body = json.dumps({"__type": "SerializationException", "message": str(error)}).encode()
            start_response("400 Bad Request", [("Content-Type", cbor.CONTENT_TYPE)])
            return (cbor.from_json(body),)
        asked = {
            **environ,
            "wsgi.input": io.BytesIO(body),
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": "application/x-amz-json-1.1",
        }

        def told(status: str, headers: list[tuple[str, str]], _error: Any = None) -> None:
            kept = [(name, value) for name, value in headers if name.lower() not in ("content-type", "x-amz-crc32")]
            start_response(status, [*kept, ("Content-Type", cbor.CONTENT_TYPE)])

        return (cbor.from_json(b"".join(self._answer_plain(asked, told))),)

    def _answer_plain(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        scope = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
        region, service = (scope[1], scope[2]) if scope else (REGION, "")
        ours = self._ours(environ, region, service)
        if ours is not None:
            status, headers, body = ours
            headers.setdefault("x-amzn-RequestId", str(uuid.uuid4()))
            start_response(f"{status} {HTTPStatus(status).phrase}", list(headers.items()))
            return (body,)
        if service in _FLUSHED_FOR:
            self._monitor.flush()
        with self._locked(service):
            answer: Iterable[bytes] = list(self._moto(environ, start_response))
        if service in _CHANGED_BY and environ["REQUEST_METHOD"] != "GET":
            self._hosts.sweep()
        return answer

    def _ours(self, environ: Environ, region: str, service: str) -> Answer | None:
        if service == "kinesis" and "json" in environ.get("CONTENT_TYPE", ""):
            body = self._kinesis.answer(environ.get("HTTP_X_AMZ_TARGET", ""), region, environ["wsgi.input"].getvalue())
            return None if body is None else (200, {"Content-Type": "application/x-amz-json-1.1"}, body)
        if service == "lambda":
            request = request_of(environ, region, environ["wsgi.input"].getvalue())
            return None if request is None else self._lambda.answer(request)
        return None

    def _locked(self, service: str) -> AbstractContextManager[Any]:
        return nullcontext() if service in _UNLOCKED else self._locks[service]

    def _platform(self, region: str) -> dict[str, str]:
        """What a function sees beside its own variables."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url if self._server else "",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": KEY,
            "AWS_SESSION_TOKEN": KEY,
            "AWS_REGION": region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _note_put(self, stream: Any, records: int, size: int) -> None:
        self._monitor.put(stream.region, stream.stream_name, records, size)
