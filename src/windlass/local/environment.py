"""One execution environment of a Lambda function: its process, the Runtime API it speaks, what it writes.

Rules of this file:
- An environment has no thread of its own. The thread that invokes also serves the Runtime API, reads the
  function's output and watches time, memory and the process, in one loop (`_pump`) over one selector.
  Between calls nobody reads: the process waits, much as Lambda freezes it.
- The process leads a process group of its own. Whatever ends it ends the group, and a leader is reaped only
  after its group got the signal, so that its id cannot belong to anyone else by then.
- A process is replaced, an environment stays: its log stream and its folder for temporary files outlive a
  timeout or a crash. The first process is brought up in the init phase, with a limit of its own; a later one
  inside the call that needs it, on that call's time.
- Time here is real time (a process runs in no other): durations and deadlines are monotonic, and `now_ms` only
  stamps what others read.
- What a function does wrong is an `Outcome`. An exception out of here is ours, or the log sink's.

Sources: AWS Lambda Developer Guide, "Using the Lambda runtime API for custom runtimes", "Understanding the
Lambda execution environment lifecycle" (log lines, phases, reset), "Lambda quotas" (sizes).
"""

import atexit
import contextlib
import json
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from time import monotonic

import msgspec

LogSink = Callable[[int, str, str], None]
"""Receives (timestamp_ms, log stream, line without its newline), on the thread that invokes."""

PAYLOAD_BYTES_MAX = 6 * 1024 * 1024
RESPONSE_BYTES_MAX = PAYLOAD_BYTES_MAX + 100  # what the Runtime API takes, as its 413 says
TAIL_BYTES = 4096
LINE_BYTES_MAX = 256 * 1024  # a log event of CloudWatch Logs; a longer line becomes several
KEPT_BYTES_MAX = 1024 * 1024  # of memory, about, for the lines of one call

_LINE_OVERHEAD_BYTES = 64
_HEAD_BYTES_MAX = 2 * 1024 * 1024  # awslambdaric may send 1 MB of tracing in one header
_READ_BYTES = 64 * 1024
_SLICE_SECONDS = 0.05  # how often memory is looked at, and the process where there is no pidfd
_LAST_WORDS_SECONDS = 1.0  # for a runtime that is about to exit by itself to write why
_SEND_SECONDS = 10.0


class Ending(StrEnum):
    """How a call ended."""

    ANSWERED = "answered"
    FAILED = "failed"  # the function raised, or its result is not JSON
    TIMED_OUT = "timed_out"
    EXITED = "exited"  # by itself, by a signal, or for its memory
    INIT_FAILED = "init_failed"
    TOO_LARGE = "too_large"  # the response


class FunctionError(msgspec.Struct, frozen=True):
    """What Lambda reports as `FunctionError: Unhandled`, taken apart."""

    type: str
    message: str
    stack_trace: tuple[str, ...] = ()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a call.

    `payload` is what the Invoke API answers with: the function's result, or the JSON of its error. `lines` are the
    log lines of the call, without newlines; of very many only the newest, the log sink got them all.
    `init_duration_ms` is there where the call brought the environment up. `memory_used_mb` is the environment's
    peak so far; 0 where the machine does not tell.
    """

    request_id: str
    ending: Ending
    payload: bytes
    error: FunctionError | None
    started_ms: int
    duration_ms: float
    init_duration_ms: float | None
    billed_ms: int
    memory_used_mb: int
    log_stream: str
    lines: tuple[str, ...]

    @property
    def function_error(self) -> str | None:
        """The header X-Amz-Function-Error: `Unhandled`, or None."""
        return "Unhandled" if self.error else None

    @property
    def tail(self) -> bytes:
        """The last 4 KB of the log, as LogType Tail gives them (before base64)."""
        kept: list[str] = []
        size = 0
        for line in reversed(self.lines):
            kept.append(line)
            size += len(line) + 1
            if size >= TAIL_BYTES:
                break
        return "".join(f"{line}\n" for line in reversed(kept)).encode()[-TAIL_BYTES:]


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One event on its way to a function."""

    request_id: str
    payload: bytes
    timeout_ms: int
    function_arn: str
    trace_id: str
    client_context: str | None = None


class Launch(msgspec.Struct, frozen=True):
    """How to start a process: its command, its folder, all its environment variables."""

    command: tuple[str, ...]
    folder: str
    variables: dict[str, str]


class Limits(msgspec.Struct, frozen=True):
    """What an environment is held to, and what its log lines say of it."""

    memory_mb: int
    init_timeout_ms: int
    version: str
    runtime: str


# --- The platform's log lines -----------------------------------------------------------------------------


def start_line(request_id: str, version: str) -> str:
    """The line before the function's own."""
    return f"START RequestId: {request_id} Version: {version}"


def end_line(request_id: str) -> str:
    """The line after the function's own."""
    return f"END RequestId: {request_id}"


def report_line(outcome: Outcome, memory_mb: int) -> str:
    """The call's bill. `Status` is there when the call did not end with an answer of the function's own."""
    cells = [
        f"REPORT RequestId: {outcome.request_id}",
        f"Duration: {outcome.duration_ms:.2f} ms",
        f"Billed Duration: {outcome.billed_ms} ms",
        f"Memory Size: {memory_mb} MB",
        f"Max Memory Used: {outcome.memory_used_mb} MB",
    ]
    if outcome.init_duration_ms is not None:
        cells.append(f"Init Duration: {outcome.init_duration_ms:.2f} ms")
    if outcome.ending is Ending.TIMED_OUT:
        cells.append("Status: timeout")
    elif outcome.error and outcome.ending is not Ending.FAILED:
        outgrown = outcome.ending is Ending.EXITED and outcome.memory_used_mb >= memory_mb
        cells.append(f"Status: error\tError Type: {'Runtime.OutOfMemory' if outgrown else outcome.error.type}")
    return "\t".join(cells) + "\t"


def init_report_line(duration_ms: float, phase: str, fault: "Fault") -> str:
    """Written only when bringing a process up failed. `phase` is `init` or `invoke`."""
    line = f"INIT_REPORT Init Duration: {duration_ms:.2f} ms\tPhase: {phase}\t"
    if fault.ending is Ending.TIMED_OUT:
        return line + "Status: timeout"
    return line + f"Status: error\tError Type: {fault.error.type}"


def timeout_line(now_ms: int, request_id: str, timeout_ms: int) -> str:
    """What the log says of a call that took too long."""
    stamp = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{stamp} {request_id} {_timeout_text(timeout_ms)}"


def _timeout_text(timeout_ms: int) -> str:
    return f"Task timed out after {timeout_ms / 1000:.2f} seconds"


def exit_text(status: int) -> str:
    """Lambda's words for a process's end. `status` as in subprocess: negative for a signal."""
    if status == 0:
        return "Runtime exited without providing a reason"
    if status < 0:
        return f"Runtime exited with error: signal: {(signal.strsignal(-status) or str(-status)).lower()}"
    return f"Runtime exited with error: exit status {status}"


def log_stream_name(now_ms: int, version: str, unique: str) -> str:
    """`YYYY/MM/DD/[version]<32 hex>`."""
    return f"{datetime.fromtimestamp(now_ms / 1000, UTC):%Y/%m/%d}/[{version}]{unique}"


# --- Faults -----------------------------------------------------------------------------------------------


class Fault(msgspec.Struct, frozen=True):
    """How a call or a start went wrong, and the JSON that its caller gets."""

    ending: Ending
    error: FunctionError
    payload: bytes


def platform_fault(ending: Ending, kind: str, message: str) -> Fault:
    """A fault in the platform's own words, `errorType` first as Lambda writes those."""
    payload = json.dumps({"errorType": kind, "errorMessage": message}, separators=(",", ":")).encode()
    return Fault(ending, FunctionError(kind, message), payload)


def reported_fault(ending: Ending, body: bytes, kind: str | None) -> Fault:
    """A fault that the runtime posted: its body goes to the caller as it is."""
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        told = {}
    trace = told.get("stackTrace")
    error = FunctionError(
        str(told.get("errorType") or kind or "Runtime.Unknown"),
        str(told.get("errorMessage") or ""),
        tuple(str(entry) for entry in trace) if isinstance(trace, list) else (),
    )
    return Fault(ending, error, body)


def _timeout_fault(call: Call) -> Fault:
    message = f"RequestId: {call.request_id} Error: {_timeout_text(call.timeout_ms)}"
    return platform_fault(Ending.TIMED_OUT, "Sandbox.Timedout", message)


def _exit_fault(call: Call, status: int) -> Fault:
    message = f"RequestId: {call.request_id} Error: {exit_text(status)}"
    return platform_fault(Ending.EXITED, "Runtime.ExitError", message)


_TOO_LARGE = platform_fault(
    Ending.TOO_LARGE,
    "Function.ResponseSizeTooLarge",
    f"Response payload size exceeded maximum allowed payload size ({RESPONSE_BYTES_MAX} bytes).",
)


# --- HTTP, without its sockets ----------------------------------------------------------------------------


class Request(msgspec.Struct, frozen=True):
    """A request as read: header names in lower case; `size` counts the body even where `body` was dropped."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    size: int


class RequestReader:
    """Bytes in, requests out, wherever the bytes are cut. A body over `body_bytes_max` is counted, not kept.

    `continue_due` is set when a head asked for `100 Continue`; who sends that clears it.
    """

    def __init__(self, body_bytes_max: int) -> None:
        self.continue_due = False
        self._body_bytes_max = body_bytes_max
        self._buffer = bytearray()
        self._body = bytearray()
        self._size = 0
        self._left = 0
        self._head: tuple[str, str, dict[str, str]] | None = None
        self._step = self._read_head
        self._done: list[Request] = []

    def feed(self, data: bytes) -> list[Request]:
        """The requests that these bytes complete. Raises ValueError on what is not HTTP."""
        self._buffer += data
        while self._step():
            pass
        done, self._done = self._done, []
        return done

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _HEAD_BYTES_MAX:
                msg = f"a request head is at most {_HEAD_BYTES_MAX} bytes"
                raise ValueError(msg)
            return False
        first, *lines = self._buffer[:end].decode("utf-8", "replace").split("\r\n")
        del self._buffer[: end + 4]
        method, path, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (li.partition(":") for li in lines)}
        self._head = (method, path, headers)
        self.continue_due |= headers.get("expect", "").lower() == "100-continue"
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self._step = self._read_chunk_size
        else:
            self._left = _size(headers.get("content-length", "0"), 10)
            self._step = self._read_body
        return True

    def _read_body(self) -> bool:
        if not self._take():
            return False
        self._complete()
        return True

    def _read_chunk_size(self) -> bool:
        line = self._line()
        if line is None:
            return False
        self._left = _size(line.split(b";")[0].decode("latin-1"), 16)
        self._step = self._read_chunk if self._left else self._read_trailer
        return True

    def _read_chunk(self) -> bool:
        if not self._take():
            return False
        self._step = self._read_chunk_end
        return True

    def _read_chunk_end(self) -> bool:
        if self._line() is None:
            return False
        self._step = self._read_chunk_size
        return True

    def _read_trailer(self) -> bool:
        line = self._line()
        if line == b"":
            self._complete()
        return line is not None

    def _take(self) -> bool:
        """Move what is there of the `_left` bytes into the body; whether that was all of them."""
        part = bytes(self._buffer[: self._left])
        del self._buffer[: len(part)]
        self._left -= len(part)
        self._size += len(part)
        if self._size <= self._body_bytes_max:
            self._body += part
        else:
            self._body.clear()
        return self._left == 0

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _complete(self) -> None:
        assert self._head is not None
        self._done.append(Request(*self._head, bytes(self._body), self._size))
        self._head, self._size, self._step = None, 0, self._read_head
        self._body.clear()


def _size(text: str, base: int) -> int:
    size = int(text, base)
    if size < 0:
        msg = f"a body's size is not negative; found {text}"
        raise ValueError(msg)
    return size


_REASONS = {
    200: "OK",
    202: "Accepted",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    413: "Payload Too Large",
}


def response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """An HTTP response. Every one has a Content-Type: without it awslambdaric's client crashes."""
    lines = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _refusal(status: int, kind: str, message: str) -> bytes:
    return response(status, json.dumps({"errorMessage": message, "errorType": kind}).encode())


_OUT_OF_TURN = _refusal(403, "InvalidStateTransition", "an invocation is under way; answer it first")
_ACCEPTED = response(202, b'{"status":"OK"}\n')


# --- Output -----------------------------------------------------------------------------------------------


class _Log:
    """Cuts output into lines, hands each to the sink, and keeps the newest of the current call."""

    def __init__(self, sink: LogSink, stream: str, now_ms: Callable[[], int]) -> None:
        self.stream = stream
        self._sink = sink
        self._now_ms = now_ms
        self._partial = b""
        self._kept: deque[str] = deque()
        self._kept_bytes = 0

    def begin(self) -> None:
        self._kept.clear()
        self._kept_bytes = 0

    def lines(self) -> tuple[str, ...]:
        return tuple(self._kept)

    def write(self, line: str) -> None:
        """One event, even if it has several lines."""
        self._kept.append(line)
        self._kept_bytes += len(line) + _LINE_OVERHEAD_BYTES
        while self._kept_bytes > KEPT_BYTES_MAX:
            self._kept_bytes -= len(self._kept.popleft()) + _LINE_OVERHEAD_BYTES
        self._sink(self._now_ms(), self.stream, line)

    def feed(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._event(line)
        if len(self._partial) >= LINE_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """What has no newline yet is a line after all."""
        if self._partial:
            partial, self._partial = self._partial, b""
            self._event(partial)

    def _event(self, line: bytes) -> None:
        # awslambdaric parts the lines of one event by carriage returns.
        for start in range(0, len(line) or 1, LINE_BYTES_MAX):
            piece = line[start : start + LINE_BYTES_MAX]
            self.write(piece.decode("utf-8", "replace").rstrip("\r").replace("\r", "\n"))


# --- The process ------------------------------------------------------------------------------------------


class _Process:
    """A child that leads a group of its own, its output in one pipe. Raises OSError when it cannot start."""

    def __init__(self, launch: Launch) -> None:
        self.output_fd, write_fd = os.pipe()
        self.exit_fd: int | None = None
        self._reaped = False
        try:
            self._child = subprocess.Popen(  # noqa: S603  (running the user's function is the point)
                launch.command,
                cwd=launch.folder,
                env=launch.variables,
                stdin=subprocess.DEVNULL,
                stdout=write_fd,
                stderr=write_fd,
                start_new_session=True,
            )
        except BaseException:
            os.close(self.output_fd)
            raise
        finally:
            os.close(write_fd)
        os.set_blocking(self.output_fd, False)
        self.pid = self._child.pid
        self.owner = os.getpid()
        _living.add(self)
        if sys.platform == "linux" and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self.exit_fd = os.pidfd_open(self.pid)

    def has_exited(self) -> bool:
        """Whether the leader is gone. Does not reap it, where the platform can tell without."""
        if self._child.returncode is not None:
            return True
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return self._child.poll() is not None

    def read(self) -> bytes | None:
        """Some output; b"" at its end; None when there is none now."""
        try:
            return os.read(self.output_fd, _READ_BYTES)
        except BlockingIOError:
            return None

    def kill(self) -> None:
        """Signal the whole group. Safe to repeat, and from any thread."""
        if self._reaped:
            return  # the id may be another's by now
        for end in (os.killpg, os.kill):  # by its own id too: macOS refuses a group that has a zombie in it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """Kill, reap, close. The exit status, negative for a signal."""
        self.kill()
        self._reaped = True
        status = self._child.wait()
        _living.discard(self)
        os.close(self.output_fd)
        if self.exit_fd is not None:
            os.close(self.exit_fd)
        return status

    def peak_memory_mb(self) -> int | None:
        """The most memory the leader ever held, rounded up; None where the platform does not tell."""
        try:
            with open(f"/proc/{self.pid}/status", "rb", buffering=0) as file:  # noqa: PTH123  (per call: be quick)
                text = file.read(4096)
        except OSError:
            return None
        at = text.find(b"VmHWM:")
        return None if at < 0 else math.ceil(int(text[at + 6 :].split(None, 1)[0]) / 1024)


_living: set[_Process] = set()


@atexit.register
def _end_the_living() -> None:
    for process in tuple(_living):
        if process.owner == os.getpid():  # a fork of this program has no say over its parent's functions
            process.kill()


# --- The environment --------------------------------------------------------------------------------------


class _Connection:
    """A runtime's connection to this environment."""

    def __init__(self, accepted: socket.socket) -> None:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.settimeout(_SEND_SECONDS)
        self.socket = accepted
        self._reader = RequestReader(RESPONSE_BYTES_MAX)

    def receive(self) -> list[Request] | None:
        """The requests that have come; None when the other side is gone or speaks no HTTP."""
        try:
            data = self.socket.recv(_READ_BYTES)
            requests = self._reader.feed(data)
        except (OSError, ValueError):
            return None
        if not data:
            return None
        if self._reader.continue_due:
            self._reader.continue_due = False
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        return requests

    def send(self, data: bytes) -> None:
        """A runtime that went away meanwhile is noticed by its exit."""
        with contextlib.suppress(OSError):
            self.socket.sendall(data)


class Environment:
    """Serves one call at a time. `launch(api, log_stream)` says how to start a process for it."""

    def __init__(
        self,
        launch: Callable[[str, str], Launch],
        limits: Limits,
        *,
        log: LogSink,
        log_stream: str,
        now_ms: Callable[[], int],
    ) -> None:
        self._launch = launch
        self._limits = limits
        self._now_ms = now_ms
        self._log = _Log(log, log_stream, now_ms)
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self._listener.settimeout(0)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._connections: set[_Connection] = set()
        self._process: _Process | None = None
        self._fresh = True
        self._condemned = False
        self._exited = False
        self._over_memory = False
        self._next_look = 0.0
        self._memory_mb = 0
        self._told_memory_mb = 0  # by a runtime that measures itself, where we cannot
        self._parked: _Connection | None = None  # waits for the next event
        self._request_id: str | None = None  # the event that is out
        self._answer: bytes | Fault | None = None
        self._init_fault: Fault | None = None

    def invoke(self, call: Call) -> Outcome:
        """Serve one call. If it is interrupted by an exception, the process is ended first."""
        try:
            return self._invoke(call)
        except BaseException:
            self._reset()
            raise

    def kill(self) -> None:
        """End the process, now and whenever there is one again. From any thread: a call under way ends as EXITED."""
        self._condemned = True
        process = self._process
        if process:
            process.kill()

    def close(self) -> None:
        """End the process and free the port. Not while a call is under way."""
        self._reset()
        self._selector.close()
        self._listener.close()

    # A call, from start to report.

    def _invoke(self, call: Call) -> Outcome:
        self._log.begin()
        init_ms = self._first_init(call) if self._fresh else None
        started_ms, begun = self._now_ms(), monotonic()
        deadline = begun + call.timeout_ms / 1000
        fault = self._ready(call, deadline)
        self._log.write(start_line(call.request_id, self._limits.version))
        result = fault or self._exchange(call, deadline)
        self._drain()
        if isinstance(result, Fault) and result.ending is not Ending.FAILED:
            self._reset()
        outcome = self._outcome(call, result, started_ms, (monotonic() - begun) * 1000, init_ms)
        self._close_log(call, outcome)
        return msgspec.structs.replace(outcome, lines=self._log.lines())

    def _first_init(self, call: Call) -> float | None:
        """The init phase: the milliseconds it took, or None if it failed; then the call itself tries again."""
        self._fresh = False
        begun = monotonic()
        self._log.write(f"INIT_START Runtime Version: {self._limits.runtime}")
        fault = self._bring_up(call, begun + self._limits.init_timeout_ms / 1000)
        taken_ms = (monotonic() - begun) * 1000
        if fault is None:
            return taken_ms
        self._drain()
        self._log.write(init_report_line(taken_ms, "init", fault))
        self._reset()
        return None

    def _ready(self, call: Call, deadline: float) -> Fault | None:
        """Have a process that waits for an event: the one we have, or another if that one is gone."""
        if self._process:
            if self._pump(lambda: self._parked is not None, deadline):
                return None
            if not self._exited:
                return self._ended(call)
            self._drain()
            self._reset()
        begun = monotonic()
        fault = self._bring_up(call, deadline)
        if fault:
            self._drain()
            self._log.write(init_report_line((monotonic() - begun) * 1000, "invoke", fault))
        return fault

    def _bring_up(self, call: Call, deadline: float) -> Fault | None:
        """Start a process and wait until it asks for its first event."""
        address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        launch = self._launch(address, self._log.stream)
        try:
            self._process = _Process(launch)
        except (OSError, ValueError) as error:  # ValueError: a NUL in a variable
            return self._no_entry(call, launch, error)
        if self._condemned:
            self._process.kill()
        self._watch(self._process)
        self._pump(lambda: (self._parked or self._init_fault) is not None, deadline)
        if self._parked:
            return None
        if self._init_fault:
            self._pump(lambda: False, monotonic() + _LAST_WORDS_SECONDS)
        return self._init_fault or self._ended(call)

    def _no_entry(self, call: Call, launch: Launch, error: Exception) -> Fault:
        command = launch.command[0]
        if isinstance(error, FileNotFoundError) and not os.path.exists(command):  # noqa: PTH110
            text = f"Couldn't find valid bootstrap(s): [{command}]"
        else:
            text = f"fork/exec {command}: {(getattr(error, 'strerror', None) or str(error)).lower()}"
        message = f"RequestId: {call.request_id} Error: {text}"
        return platform_fault(Ending.INIT_FAILED, "Runtime.InvalidEntrypoint", message)

    def _exchange(self, call: Call, deadline: float) -> bytes | Fault:
        """Hand the event over and wait for what comes of it."""
        assert self._parked is not None
        parked, self._parked = self._parked, None
        self._request_id, self._answer = call.request_id, None
        left_ms = max(0, int((deadline - monotonic()) * 1000))
        parked.send(response(200, call.payload, event_headers(call, self._now_ms() + left_ms)))
        self._pump(lambda: self._answer is not None, deadline)
        self._request_id = None
        self._look_at_memory()
        if self._over_memory:
            return self._ended(call)
        if self._answer is _TOO_LARGE:
            # awslambdaric takes the refusal for a failure of its own and exits; its last words belong to this call.
            self._pump(lambda: self._parked is not None, monotonic() + _LAST_WORDS_SECONDS)
        return self._ended(call) if self._answer is None else self._answer

    def _ended(self, call: Call) -> Fault:
        """Why the process has nothing more to say."""
        if self._over_memory:
            return _exit_fault(call, -signal.SIGKILL)
        if not self._exited:
            return _timeout_fault(call)
        self._drain()
        return _exit_fault(call, self._reset())

    def _outcome(
        self, call: Call, result: bytes | Fault, started_ms: int, duration_ms: float, init_ms: float | None
    ) -> Outcome:
        fault = result if isinstance(result, Fault) else None
        return Outcome(
            request_id=call.request_id,
            ending=fault.ending if fault else Ending.ANSWERED,
            payload=result.payload if isinstance(result, Fault) else result,
            error=fault.error if fault else None,
            started_ms=started_ms,
            duration_ms=duration_ms,
            init_duration_ms=init_ms,
            billed_ms=math.ceil(duration_ms + (init_ms or 0)),
            memory_used_mb=min(self._memory_mb, self._limits.memory_mb),
            log_stream=self._log.stream,
            lines=(),
        )

    def _close_log(self, call: Call, outcome: Outcome) -> None:
        if outcome.ending is Ending.TIMED_OUT:
            self._log.write(timeout_line(self._now_ms(), call.request_id, call.timeout_ms))
        elif outcome.error and outcome.error.type in ("Runtime.ExitError", "Runtime.InvalidEntrypoint"):
            self._log.write(f"{outcome.error.message}\n{outcome.error.type}")
        self._log.write(end_line(call.request_id))
        self._log.write(report_line(outcome, self._limits.memory_mb))

    # The loop.

    def _pump(self, done: Callable[[], bool], deadline: float) -> bool:
        """Serve the process until `done`, its exit, or the deadline; whether it is `done`."""
        while not done():
            left = deadline - monotonic()
            if left <= 0 or self._exited or self._over_memory:
                return False
            self._serve(min(left, _SLICE_SECONDS))
        return True

    def _serve(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            key.data()
        now = monotonic()
        if now >= self._next_look:
            self._next_look = now + _SLICE_SECONDS
            self._look_at_memory()
            process = self._process
            if process and process.exit_fd is None and process.has_exited():
                self._note_exit()

    def _note_exit(self) -> None:
        """The process is gone; what it said before may still be on its way through the sockets."""
        process = self._process
        assert process is not None
        self._exited = True
        if process.exit_fd is not None:
            self._selector.unregister(process.exit_fd)
        for _ in range(64):
            events = self._selector.select(0)
            if not events:
                return
            for key, _ in events:
                key.data()

    def _look_at_memory(self) -> None:
        """Lambda ends a process that outgrows its memory. Linux tells us the peak; elsewhere a runtime may."""
        peak_mb = (self._process.peak_memory_mb() if self._process else None) or self._told_memory_mb
        self._memory_mb = max(self._memory_mb, peak_mb)
        self._over_memory |= peak_mb > self._limits.memory_mb

    def _drain(self) -> None:
        """The output that is in the pipe by now, ended as a line. Bounded: a child may go on writing."""
        for _ in range(KEPT_BYTES_MAX // _READ_BYTES):
            if not self._process or not self._read_output():
                break
        self._log.flush()

    def _read_output(self) -> bool:
        assert self._process is not None
        data = self._process.read()
        if data == b"":
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._process.output_fd)
        if data:
            self._log.feed(data)
        return bool(data)

    def _watch(self, process: _Process) -> None:
        self._selector.register(process.output_fd, selectors.EVENT_READ, self._read_output)
        if process.exit_fd is not None:
            self._selector.register(process.exit_fd, selectors.EVENT_READ, self._note_exit)

    def _reset(self) -> int:
        """End the process, if there is one, and forget what it had to do with us. Its exit status."""
        process, self._process = self._process, None
        status = 0
        if process:
            for fd in (process.output_fd, process.exit_fd):
                with contextlib.suppress(KeyError, ValueError):
                    if fd is not None:
                        self._selector.unregister(fd)
            status = process.end()
        for connection in tuple(self._connections):
            self._drop(connection)
        self._parked = self._request_id = self._answer = self._init_fault = None
        self._exited = self._over_memory = False
        self._told_memory_mb = 0
        return status

    # The Runtime API.

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return
        connection = _Connection(accepted)
        self._connections.add(connection)
        self._selector.register(accepted, selectors.EVENT_READ, lambda: self._receive(connection))

    def _receive(self, connection: _Connection) -> None:
        if connection not in self._connections:
            return  # dropped by an event of the same round
        requests = connection.receive()
        if requests is None:
            self._drop(connection)
            return
        for request in requests:
            self._route(connection, request)

    def _drop(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if self._parked is connection:
            self._parked = None

    def _route(self, connection: _Connection, request: Request) -> None:
        match (request.method, request.path.split("/")[1:]):
            case ("GET", ["2018-06-01", "runtime", "invocation", "next"]):
                self._on_next(connection)
            case ("POST", ["2018-06-01", "runtime", "invocation", request_id, "response" | "error" as what]):
                connection.send(self._on_result(request_id, what, request))
            case ("POST", ["2018-06-01", "runtime", "init", "error"]):
                connection.send(self._on_init_error(request))
            case _:
                connection.send(_refusal(404, "NotFound", f"there is no {request.method} {request.path}"))

    def _on_next(self, connection: _Connection) -> None:
        if self._request_id and self._answer is None:
            connection.send(_OUT_OF_TURN)
        else:
            self._parked = connection

    def _on_result(self, request_id: str, what: str, request: Request) -> bytes:
        if request_id != self._request_id or self._answer is not None:
            return _refusal(400, "InvalidRequestID", "Invalid request ID")
        self._told_memory_mb = math.ceil(int(request.headers.get("windlass-peak-memory-kib") or 0) / 1024)
        if request.size > RESPONSE_BYTES_MAX:
            self._answer = _TOO_LARGE
            text = f"Exceeded maximum allowed payload size ({RESPONSE_BYTES_MAX} bytes)."
            return _refusal(413, "RequestEntityTooLarge", text)
        kind = request.headers.get("lambda-runtime-function-error-type")
        is_error = what == "error"
        self._answer = reported_fault(Ending.FAILED, request.body, kind) if is_error else request.body
        return _ACCEPTED

    def _on_init_error(self, request: Request) -> bytes:
        if self._request_id:
            return _OUT_OF_TURN
        kind = request.headers.get("lambda-runtime-function-error-type")
        self._init_fault = reported_fault(Ending.INIT_FAILED, request.body, kind)
        return _ACCEPTED


def event_headers(call: Call, deadline_ms: int) -> dict[str, str]:
    """The headers of an event on its way to a runtime."""
    headers = {
        "Lambda-Runtime-Aws-Request-Id": call.request_id,
        "Lambda-Runtime-Deadline-Ms": str(deadline_ms),
        "Lambda-Runtime-Invoked-Function-Arn": call.function_arn,
        "Lambda-Runtime-Trace-Id": call.trace_id,
    }
    if call.client_context is not None:
        # A newline would end the header; in JSON it is a space.
        headers["Lambda-Runtime-Client-Context"] = " ".join(call.client_context.splitlines())
    return headers
