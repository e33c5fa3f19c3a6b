"""A Lambda runtime in plain Python, for where AWS's awslambdaric has no build (macOS, Windows, a bare interpreter).

Run as a script by the handler's own interpreter: `python -u runtime_loop.py module.function`.

Rules of this file:
- Standard library only, and no syntax newer than Python 3.8: it runs inside the function's process.
- It answers as awslambdaric does: the same error types, error bodies, log lines and JSON.
- Nothing of the folder it lies in can be imported by the function.

Source: AWS Lambda Developer Guide, "Using the Lambda runtime API for custom runtimes".
"""

# ruff: noqa: EM101, UP006, UP031, UP035, UP045

import os
import sys

if __name__ == "__main__" and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):  # noqa: PTH100, PTH120
    del sys.path[0]

import decimal
import importlib
import json
import logging
import socket
import time
import traceback
import uuid
from typing import Any, Callable, Dict, List, Optional, Tuple

API = "/2018-06-01/runtime"
# Runtimes from Python 3.12 on write text as it is; older ones escape what is not ASCII.
ASCII_RUNTIMES = tuple("AWS_Lambda_python3.%d" % minor for minor in range(6, 12))


class Fault(Exception):
    """What the runtime itself finds wrong with the function, under Lambda's name for it."""

    def __init__(self, kind: str, message: str, trace: Optional[List[str]] = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.trace = trace or []


class Host:
    """The Runtime API at `address` (host:port), over one connection that stays open."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._address = address

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Tuple[Tuple[str, str], ...] = (),
    ) -> Tuple[int, Dict[str, str], bytes]:
        """One exchange: status, headers by lower-case name, body. Raises ConnectionError when the host is gone."""
        lines = [f"{method} {API}{path} HTTP/1.1", f"Host: {self._address}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        self._socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        first = self._file.readline()
        if not first:
            msg = "the Runtime API closed the connection"
            raise ConnectionError(msg)
        answered: Dict[str, str] = {}
        for line in iter(self._file.readline, b"\r\n"):
            name, _, value = line.decode().partition(":")
            answered[name.strip().lower()] = value.strip()
        return int(first.split()[1]), answered, self._file.read(int(answered.get("content-length", 0)))


class Context:
    """The handler's second argument, with the attributes of Lambda's own."""

    def __init__(self, headers: Dict[str, str]) -> None:
        self.aws_request_id = headers.get("lambda-runtime-aws-request-id")
        self.invoked_function_arn = headers.get("lambda-runtime-invoked-function-arn")
        self.function_name = os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
        self.function_version = os.environ.get("AWS_LAMBDA_FUNCTION_VERSION")
        self.memory_limit_in_mb = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.log_group_name = os.environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
        self.log_stream_name = os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME")
        self.tenant_id = headers.get("lambda-runtime-aws-tenant-id")
        self.client_context = _client_context(headers.get("lambda-runtime-client-context"))
        self.identity = _identity(headers.get("lambda-runtime-cognito-identity"))
        self._deadline_ms = int(headers.get("lambda-runtime-deadline-ms") or 0)

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda ends the process."""
        return max(0, self._deadline_ms - int(time.time() * 1000))

    def log(self, message: object) -> None:
        """Write to the function's log, as it is."""
        sys.stdout.write(str(message))


class Named:
    """An object whose attributes are the given names, None where `values` has none."""

    def __init__(self, values: Dict[str, Any], names: Tuple[str, ...]) -> None:
        for name in names:
            setattr(self, name, values.get(name))


def _client_context(text: Optional[str]) -> Optional[Named]:
    if not text:
        return None
    try:
        values = json.loads(text)
    except ValueError as error:
        message = f"Unable to parse Client Context JSON: {error}"
        raise Fault("Runtime.LambdaContextUnmarshalError", message) from error
    context = Named(values, ("custom", "env", "client"))
    names = ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")
    context.client = Named(values["client"], names) if values.get("client") else None  # type: ignore[attr-defined]
    return context


def _identity(text: Optional[str]) -> Named:
    values = json.loads(text) if text else {}
    return Named(
        {
            "cognito_identity_id": values.get("cognitoIdentityId"),
            "cognito_identity_pool_id": values.get("cognitoIdentityPoolId"),
        },
        ("cognito_identity_id", "cognito_identity_pool_id"),
    )


def load(handler: str) -> Callable[[Any, Any], Any]:
    """The function named `module.function` or `folder/module.function`. Raises Fault."""
    module_name, dot, name = handler.rpartition(".")
    if not dot:
        raise Fault("Runtime.MalformedHandlerName", f"Bad handler '{handler}': it has no dot")
    if module_name.split(".")[0] in sys.builtin_module_names:
        message = f"Cannot use built-in module {module_name} as a handler module"
        raise Fault("Runtime.BuiltInModuleConflict", message)
    try:
        module = importlib.import_module(module_name.replace("/", "."))
    except ImportError as error:
        message = f"Unable to import module '{module_name}': {error}"
        raise Fault("Runtime.ImportModuleError", message) from error
    except SyntaxError as error:
        trace = [f'  File "{error.filename}" Line {error.lineno}\n    {error.text}']
        message = f"Syntax error in module '{module_name}': {error}"
        raise Fault("Runtime.UserCodeSyntaxError", message, trace) from error
    if not hasattr(module, name):
        raise Fault("Runtime.HandlerNotFound", f"Handler '{name}' missing on module '{module_name}'")
    return getattr(module, name)  # type: ignore[no-any-return]


def to_json(value: Any) -> str:
    """As awslambdaric writes it: decimals are numbers, NaN and infinities stay bare."""
    decimals: Dict[str, str] = {}

    def stand_in(other: Any) -> Any:
        if not isinstance(other, decimal.Decimal):
            message = f"Object of type {type(other).__name__} is not JSON serializable"
            raise TypeError(message)
        if other.is_nan():
            return float("nan")
        token = uuid.uuid4().hex
        decimals[f'"{token}"'] = str(other)
        return token

    ascii_only = os.environ.get("AWS_EXECUTION_ENV", "") in ASCII_RUNTIMES
    text = json.dumps(value, default=stand_in, ensure_ascii=ascii_only)
    for token, number in decimals.items():
        text = text.replace(token, number)
    return text


def error_body(kind: str, message: str, trace: List[str], request_id: str) -> Dict[str, Any]:
    """The body of an error report, keys in awslambdaric's order."""
    return {"errorMessage": message, "errorType": kind, "requestId": request_id, "stackTrace": trace}


def error_of(error: BaseException, request_id: str) -> Dict[str, Any]:
    """The error report of an exception: frames of this file left out at its start."""
    if isinstance(error, Fault):
        return error_body(error.kind, str(error), error.trace, request_id)
    frames = list(traceback.extract_tb(error.__traceback__))
    while frames and (frames[0].filename == __file__ or "importlib" in frames[0].filename):
        del frames[0]
    return error_body(type(error).__name__, str(error), traceback.format_list(frames), request_id)


def log_error(error: Dict[str, Any]) -> None:
    """One log event: lines parted by carriage returns, their indents by no-break spaces, as awslambdaric does."""
    lines = [f"[ERROR] {error['errorType']}: {error['errorMessage']}", "Traceback (most recent call last):"]
    for entry in error["stackTrace"]:
        for line in entry.splitlines():
            bare = line.lstrip(" ")
            lines.append("\u00a0" * (len(line) - len(bare)) + bare)
    sys.stdout.write("\r".join(lines) + "\n")


class _RequestId(logging.Filter):
    current = ""

    def filter(self, record: logging.LogRecord) -> bool:
        record.aws_request_id = _RequestId.current
        return True


def set_up_logging() -> None:
    """The root logger writes Lambda's line format to standard output."""
    logging.Formatter.converter = time.gmtime
    to_stdout = logging.StreamHandler(sys.stdout)
    form = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s"
    to_stdout.setFormatter(logging.Formatter(form, "%Y-%m-%dT%H:%M:%S"))
    to_stdout.addFilter(_RequestId())
    logging.getLogger().addHandler(to_stdout)
    level = os.environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper().replace("TRACE", "DEBUG")
    if level:
        logging.getLogger().setLevel(level)


def memory_header() -> Tuple[Tuple[str, str], ...]:
    """The peak memory of this process, where the host cannot read it from /proc by itself."""
    if sys.platform == "linux":
        return ()
    try:
        import resource
    except ImportError:
        return ()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return (("Windlass-Peak-Memory-Kib", str(peak // 1024 if sys.platform == "darwin" else peak)),)


def serve(host: Host, function: Callable[[Any, Any], Any]) -> None:
    """One invocation: ask for it, call the function, post what came of it."""
    _, headers, event = host.ask("GET", "/invocation/next")
    request_id = headers["lambda-runtime-aws-request-id"]
    _RequestId.current = request_id
    os.environ["_X_AMZN_TRACE_ID"] = headers.get("lambda-runtime-trace-id", "")
    try:
        result = function(_event(event), Context(headers))
        body = result if isinstance(result, bytes) else _marshal(result).encode()
    except Exception as error:  # noqa: BLE001  (whatever the function raises is its outcome)
        report = error_of(error, request_id)
        log_error(report)
        where, body = "error", to_json(report).encode()
    else:
        where = "response"
    status, _, answer = host.ask("POST", f"/invocation/{request_id}/{where}", body, memory_header())
    if status != 202:
        msg = f"Failed to post invocation {where}: {status} {answer!r}"
        raise RuntimeError(msg)


def _event(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise Fault("Runtime.UnmarshalError", f"Unable to unmarshal input: {error}") from error


def _marshal(result: Any) -> str:
    try:
        return to_json(result)
    except Exception as error:
        raise Fault("Runtime.MarshalError", f"Unable to marshal response: {error}") from error


def main(handler: str) -> None:
    """Serve until the host goes away. A function that cannot be loaded is reported, then exit status 1."""
    host = Host(os.environ["AWS_LAMBDA_RUNTIME_API"])
    set_up_logging()
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  (no pathlib: start-up time is the caller's)
    try:
        function = load(handler)
    except Exception as error:  # noqa: BLE001
        report = error_of(error, "")
        log_error(report)
        kind = (("Lambda-Runtime-Function-Error-Type", report["errorType"]),)
        host.ask("POST", "/init/error", to_json(report).encode(), kind)
        sys.exit(1)
    while True:
        serve(host, function)


if __name__ == "__main__":
    main(sys.argv[1])
