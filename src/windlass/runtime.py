"""The function's runtime loop: an event's bytes go straight to the handler, without a dict per record in between.

Opt-in. The exec wrapper in the zip (AWS_LAMBDA_EXEC_WRAPPER=/var/task/windlass-runtime) starts this file in place of
Lambda's own Python runtime, with the same interpreter.

Rules of this file:
- It answers as Lambda's Python runtime does: the same results, error types and error bodies. A handler that is not a
  pipeline's gets its event as plain values, and its result goes out as JSON.
- It speaks HTTP itself, over one connection that stays open: requests here have one form each.
- A call that raises is reported and the next one begins; a module that cannot be imported is reported and ends the
  process, as Lambda expects.

Sources: AWS Lambda Developer Guide, "Using the Lambda runtime API for custom runtimes", "Modifying the runtime
environment", "Using the Lambda context object to retrieve Python function information".
"""

import importlib
import json
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

API = "/2018-06-01/runtime"

Headers = dict[str, str]
Function = Callable[[bytes, Any], bytes]
"""An event's bytes and a context in, the answer's bytes out."""


class Fault(Exception):
    """What the runtime finds wrong with the function, under Lambda's name for it."""

    def __init__(self, kind: str, message: str, trace: list[str] | None = None) -> None:
        super().__init__(message)
        self.kind, self.trace = kind, trace or []


# ── the Runtime API ─────────────────────────────────────────────────────────────────────────────────────────


class Host:
    """The Runtime API at `address` (host:port)."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._address = address

    def next(self) -> tuple[Headers, bytes]:
        """Wait for an event: its headers by lower-case name, and its bytes."""
        _, headers, body = self._ask("GET", "/invocation/next", b"")
        return headers, body

    def answer(self, request_id: str, body: bytes) -> None:
        """The result of a call. Raises Fault where Lambda does not take it: it is larger than 6 MB."""
        status, _, said = self._ask("POST", f"/invocation/{request_id}/response", body)
        if status == 413:
            message = f"Response payload size exceeded maximum allowed payload size: {said.decode(errors='replace')}"
            kind = "Function.ResponseSizeTooLarge"
            raise Fault(kind, message)

    def fail(self, path: str, error: Mapping[str, Any]) -> None:
        """What went wrong in a call, or before the first one."""
        head = f"Lambda-Runtime-Function-Error-Type: {error['errorType']}\r\n"
        self._ask("POST", path, json.dumps(error).encode(), head)

    def _ask(self, method: str, path: str, body: bytes, more: str = "") -> tuple[int, Headers, bytes]:
        head = f"{method} {API}{path} HTTP/1.1\r\nHost: {self._address}\r\nContent-Length: {len(body)}\r\n"
        kind = "Content-Type: application/json\r\n" if body else ""
        self._socket.sendall(f"{head}{kind}{more}\r\n".encode() + body)
        status = self._file.readline().split()
        if not status:
            msg = "the Runtime API closed the connection"
            raise ConnectionError(msg)
        headers: Headers = {}
        for line in iter(self._file.readline, b"\r\n"):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        return int(status[1]), headers, self._body(headers)

    def _body(self, headers: Headers) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self._file.read(int(headers.get("content-length", 0)))
        parts: list[bytes] = []
        while size := int(self._file.readline().partition(b";")[0], 16):
            parts.append(self._file.read(size))
            self._file.readline()
        while self._file.readline() not in (b"\r\n", b""):
            pass
        return b"".join(parts)


class Context:
    """The handler's second argument, with the attributes of Lambda's own."""

    def __init__(self, headers: Headers, environ: Mapping[str, str]) -> None:
        self.aws_request_id = headers.get("lambda-runtime-aws-request-id", "")
        self.invoked_function_arn = headers.get("lambda-runtime-invoked-function-arn", "")
        self.function_name = environ.get("AWS_LAMBDA_FUNCTION_NAME")
        self.function_version = environ.get("AWS_LAMBDA_FUNCTION_VERSION")
        self.memory_limit_in_mb = environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.log_group_name = environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
        self.log_stream_name = environ.get("AWS_LAMBDA_LOG_STREAM_NAME")
        self.tenant_id = headers.get("lambda-runtime-aws-tenant-id")
        self.client_context = None
        self.identity = None
        self._deadline_ms = int(headers.get("lambda-runtime-deadline-ms") or 0)

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda ends the process."""
        return max(0, self._deadline_ms - time.time_ns() // 1_000_000)

    def log(self, message: object) -> None:
        """Write to the function's log, as it is."""
        sys.stdout.write(str(message))


# ── the function ────────────────────────────────────────────────────────────────────────────────────────────


def load(handler: str) -> Function:
    """The function that Lambda's setting `module.name` means. Raises Fault."""
    module_name, dot, name = handler.rpartition(".")
    if not dot:
        kind = "Runtime.MalformedHandlerName"
        raise Fault(kind, f"Bad handler '{handler}': not enough values to unpack (expected 2, got 1)")
    try:
        module = importlib.import_module(module_name.replace("/", "."))
    except ImportError as error:
        kind = "Runtime.ImportModuleError"
        raise Fault(kind, f"Unable to import module '{module_name}': {error}") from error
    except SyntaxError as error:
        kind, trace = (
            "Runtime.UserCodeSyntaxError",
            [f'  File "{error.filename}" Line {error.lineno}\n    {error.text}'],
        )
        raise Fault(kind, f"Syntax error in module '{module_name}': {error}", trace) from error
    if not hasattr(module, name):
        kind = "Runtime.HandlerNotFound"
        raise Fault(kind, f"Handler '{name}' missing on module '{module_name}'")
    return function_of(getattr(module, name))


def function_of(handler: Any) -> Function:
    """A handler as a function of bytes: a pipeline's reads them itself, any other gets plain values."""
    from windlass.core.event import NotJson, read_event_bytes
    from windlass.handler import RecordsHandler, WindowsHandler

    if not isinstance(handler, RecordsHandler | WindowsHandler):
        return _plain_function(handler)
    import msgspec

    encode = msgspec.json.encode

    def call(event: bytes, context: Any) -> bytes:
        try:
            return encode(handler.answer(partial(read_event_bytes, event), context))
        except NotJson as error:
            raise _not_json(error) from None

    return call


def _plain_function(handler: Callable[[Any, Any], Any]) -> Function:
    def call(event: bytes, context: Any) -> bytes:
        try:
            plain = json.loads(event)
        except ValueError as error:
            raise _not_json(error) from None
        result = handler(plain, context)
        try:
            return json.dumps(result, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            kind = "Runtime.MarshalError"
            raise Fault(kind, f"Unable to marshal response: {error}") from None

    return call


def _not_json(error: ValueError) -> Fault:
    return Fault("Runtime.UnmarshalError", f"Unable to unmarshal input: {error}")


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────


def report_of(error: BaseException, request_id: str) -> dict[str, Any]:
    """The body of an error report: frames of this file left out at its start."""
    if isinstance(error, Fault):
        kind, trace = error.kind, error.trace
    else:
        kind, frames = type(error).__name__, traceback.extract_tb(error.__traceback__)
        while frames and (frames[0].filename == __file__ or "importlib" in frames[0].filename):
            del frames[0]
        trace = traceback.format_list(frames)
    return {"errorMessage": str(error), "errorType": kind, "requestId": request_id, "stackTrace": trace}


def log_report(report: Mapping[str, Any]) -> None:
    """One log event: carriage returns part its lines, no-break spaces indent them, as Lambda's own runtime has it."""
    lines = [f"[ERROR] {report['errorType']}: {report['errorMessage']}", "Traceback (most recent call last):"]
    for entry in report["stackTrace"]:
        for line in entry.splitlines():
            bare = line.lstrip(" ")
            lines.append("\u00a0" * (len(line) - len(bare)) + bare)
    sys.stdout.write("\r".join(lines) + "\n")
    sys.stdout.flush()


class _CallId(logging.Filter):
    """Gives log records the id of the call that they belong to."""

    current = ""

    def filter(self, record: logging.LogRecord) -> bool:
        record.aws_request_id = self.current
        return True


def set_up_logging(environ: Mapping[str, str]) -> _CallId:
    """The root logger writes Lambda's line format to standard output, from Lambda's level on."""
    call_id = _CallId()
    handler = logging.StreamHandler(sys.stdout)
    form = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s"
    formatter = logging.Formatter(form, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.addFilter(call_id)
    logging.getLogger().addHandler(handler)
    level = environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper().replace("TRACE", "DEBUG").replace("FATAL", "CRITICAL")
    if level:
        logging.getLogger().setLevel(level)
    return call_id


# ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────


def serve(
    host: Host, function: Function, call_id: _CallId | None = None, environ: Mapping[str, str] = os.environ
) -> None:
    """One call: wait for it, answer it or report what it raised."""
    headers, event = host.next()
    request_id = headers["lambda-runtime-aws-request-id"]
    if call_id:
        call_id.current = request_id
    os.environ["_X_AMZN_TRACE_ID"] = headers.get("lambda-runtime-trace-id", "")
    try:
        answer = function(event, Context(headers, environ))
    except Exception as error:  # noqa: BLE001 - whatever a function raises is its outcome
        _report(host, error, request_id)
        return
    try:
        host.answer(request_id, answer)
    except Fault as error:
        _report(host, error, request_id)


def _report(host: Host, error: Exception, request_id: str) -> None:
    report = report_of(error, request_id)
    log_report(report)
    host.fail(f"/invocation/{request_id}/error", report)


def find_modules(environ: Mapping[str, str]) -> None:
    """Put the task root first on the path, and what Lambda keeps for every function last."""
    root = environ.get("LAMBDA_TASK_ROOT", os.getcwd())  # noqa: PTH109
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    layers = [f"/opt/python/lib/{version}/site-packages", "/opt/python"]
    for place in (environ.get("LAMBDA_RUNTIME_DIR", ""), *layers):
        if place and place not in sys.path and os.path.isdir(place):  # noqa: PTH112
            sys.path.append(place)
    if root not in sys.path[:1]:
        sys.path.insert(0, root)


def main() -> None:
    """Serve until the host goes away."""
    find_modules(os.environ)
    host = Host(os.environ["AWS_LAMBDA_RUNTIME_API"])
    call_id = set_up_logging(os.environ)
    try:
        function = load(os.environ["_HANDLER"])
    except Exception as error:  # noqa: BLE001 - the user's module may raise anything
        report = report_of(error, "")
        log_report(report)
        host.fail("/init/error", report)
        sys.exit(1)
    while True:
        serve(host, function, call_id)


if __name__ == "__main__":
    main()
