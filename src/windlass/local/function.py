"""One Lambda function on this machine: its code, its settings, its execution environments.

Rules of this file:
- A call takes an idle environment, else a new one, else waits for one: what stands behind Lambda's door here is
  one machine. Only reserved concurrency throttles, as the function's owner asked for it.
- The function sees Lambda's environment variables and its own, and nothing of ours: no home folder, no
  credentials, no Python settings of whoever runs this program.
- Python functions run on the interpreter their runtime names where there is one, else on ours, and that is said.
- Code from a zip is unpacked read-only; a folder is taken as it is.

Sources: AWS Lambda Developer Guide, "Lambda quotas", "Working with Lambda environment variables", "Building a
custom runtime for AWS Lambda"; API reference, "Invoke".
"""

import functools
import importlib.util
import io
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import msgspec

from windlass.local.environment import (
    PAYLOAD_BYTES_MAX,
    Call,
    Ending,
    Environment,
    FunctionError,
    Launch,
    Limits,
    LogSink,
    Outcome,
    log_stream_name,
)

__all__ = [
    "PAYLOAD_BYTES_MAX",
    "RESERVED_VARIABLES",
    "BadCode",
    "Code",
    "Ending",
    "Function",
    "FunctionError",
    "LogSink",
    "Outcome",
    "Python",
    "Settings",
    "Throttled",
    "TooLarge",
    "can_run",
    "code_in",
    "python_for",
    "unpack",
]

UNPACKED_BYTES_MAX = 262_144_000

# Lambda sets these itself; CreateFunction refuses a function that wants to.
RESERVED_VARIABLES = frozenset(
    {
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
        "AWS_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_DEFAULT_REGION",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_LAMBDA_RUNTIME_API",
        "AWS_REGION",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "LAMBDA_RUNTIME_DIR",
        "LAMBDA_TASK_ROOT",
    }
)

_logger = logging.getLogger(__name__)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A function's configuration, in the words of CreateFunction.

    `variables` are the function's own; `platform` are those that this machine gives to every function
    (AWS_ENDPOINT_URL, credentials) and that the function's own win over.
    """

    name: str
    runtime: str
    handler: str = ""
    timeout_ms: int = 3_000
    memory_mb: int = 128
    variables: dict[str, str] = {}
    platform: dict[str, str] = {}
    region: str = "us-east-1"
    account: str = "123456789012"
    version: str = "$LATEST"
    log_group: str = ""
    reserved_concurrency: int | None = None
    environments_max: int = 10
    init_timeout_ms: int = 10_000

    @property
    def arn(self) -> str:
        """The function's unqualified ARN."""
        return f"arn:aws:lambda:{self.region}:{self.account}:function:{self.name}"


class Throttled(msgspec.Struct, frozen=True):
    """The Invoke API's TooManyRequestsException (HTTP 429). The function was not called."""

    reason: str = "ReservedFunctionConcurrentInvocationLimitExceeded"
    message: str = "Rate Exceeded."


class TooLarge(msgspec.Struct, frozen=True):
    """The Invoke API's RequestEntityTooLargeException (HTTP 413). The function was not called."""

    size: int

    @property
    def message(self) -> str:
        """As the Invoke API says it."""
        return f"Request must be smaller than {PAYLOAD_BYTES_MAX} bytes for the InvokeFunction operation"


# --- Code -------------------------------------------------------------------------------------------------


class Code(msgspec.Struct, frozen=True):
    """A folder to run as the task root. `owned`: made by `unpack`, and removed with the function."""

    folder: Path
    owned: bool = False


class BadCode(msgspec.Struct, frozen=True):
    """Code that cannot be run. `message` is Lambda's where it has one; `detail` says what was found."""

    message: str
    detail: str


def code_in(folder: Path) -> Code | BadCode:
    """A folder's code, as it is: later changes to it show in the next process."""
    if folder.is_dir():
        return Code(folder.resolve())
    return BadCode(f"{folder} is not a folder", "give the folder that holds the handler's module, or a zip")


def unpack(archive: bytes) -> Code | BadCode:
    """The code in a zip, in a new read-only folder."""
    folder = Path(tempfile.mkdtemp(prefix="windlass-task-")).resolve()
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
            bad = _unpack_into(zipped, folder)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        bad = _cannot_unzip(str(error))
    except BaseException:
        remove_tree(folder)
        raise
    if bad:
        remove_tree(folder)
        return bad
    _make_read_only(folder)
    return Code(folder, owned=True)


def _cannot_unzip(detail: str) -> BadCode:
    return BadCode("Could not unzip uploaded file. Please check your file, then try to upload again.", detail)


def _unpack_into(zipped: zipfile.ZipFile, folder: Path) -> BadCode | None:
    entries = zipped.infolist()
    size = sum(entry.file_size for entry in entries)
    if size >= UNPACKED_BYTES_MAX:
        return BadCode(f"Unzipped size must be smaller than {UNPACKED_BYTES_MAX} bytes", f"found {size} bytes")
    for entry in entries:
        if not _stays_inside(entry.filename):
            return _cannot_unzip(f"{entry.filename!r} would lie outside the task root")
    links = [entry for entry in entries if stat.S_ISLNK(entry.external_attr >> 16)]
    for entry in entries:
        if entry not in links:
            _write_entry(zipped, entry, folder)
    # Links come last, so that no file is written through one.
    for entry in links:
        bad = _write_link(zipped, entry, folder)
        if bad:
            return bad
    return None


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in name[:2])


def _write_entry(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    target = folder / entry.filename
    if entry.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # zipfile reads no more than the size in the directory, which was summed up before.
    with zipped.open(entry) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1024 * 1024)
    target.chmod(0o755 if (entry.external_attr >> 16) & 0o111 else 0o644)


def _write_link(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> BadCode | None:
    target = folder / entry.filename
    points_to = zipped.read(entry).decode("utf-8", "replace")
    if not (target.parent / points_to).resolve().is_relative_to(folder):
        return _cannot_unzip(f"the link {entry.filename!r} points outside the task root, to {points_to!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(points_to)
    return None


def _make_read_only(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o555)
        Path(parent).chmod(0o555)


def remove_tree(folder: Path) -> None:
    """Remove a folder that may be read-only."""
    for parent, _, _ in os.walk(folder):
        Path(parent).chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)


# --- Interpreters -----------------------------------------------------------------------------------------


class Python(msgspec.Struct, frozen=True):
    """An interpreter for functions. `has_client`: awslambdaric works in it; `has_boto3`: boto3 is there."""

    path: str
    version: str
    has_client: bool
    has_boto3: bool


_PROBE = """
import importlib.util, json, platform, sys
here = lambda name: importlib.util.find_spec(name) is not None
print(json.dumps({
    "path": sys.executable, "version": platform.python_version(),
    "has_client": here("awslambdaric") and here("runtime_client"), "has_boto3": here("boto3"),
}))
"""

# All of them plain Python, so that another interpreter can import ours.
_LENT = ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six", "urllib3")


def can_run(runtime: str) -> bool:
    """Whether functions of this runtime run here: `python3.x`, `provided`, `provided.al2`, `provided.al2023`."""
    return runtime.startswith(("python3.", "provided.")) or runtime == "provided"


def python_for(runtime: str) -> Python:
    """The interpreter for `python3.x`: the one of that version on PATH, else ours, with one warning per runtime."""
    return _python_for(runtime, os.environ.get("PATH", os.defpath))


@functools.cache
def _python_for(runtime: str, search_path: str) -> Python:
    ours = _our_python()
    if ours.version.startswith(runtime.removeprefix("python") + "."):
        return ours
    for folder in search_path.split(os.pathsep):
        found = _probe(shutil.which(runtime, path=folder))
        if found and found.version.startswith(runtime.removeprefix("python") + "."):
            return found
    _logger.warning(
        "%s is not on PATH: functions of that runtime run on Python %s (%s). Install %s to run them as Lambda does.",
        runtime, ours.version, ours.path, runtime,
    )  # fmt: skip
    return ours


def _our_python() -> Python:
    version = ".".join(map(str, sys.version_info[:3]))
    has_client = all(importlib.util.find_spec(name) for name in ("awslambdaric", "runtime_client"))
    return Python(sys.executable, version, has_client, importlib.util.find_spec("boto3") is not None)


def _probe(path: str | None) -> Python | None:
    """What an interpreter says of itself; None for one that does not run (a pyenv shim of no version, say)."""
    if path is None:
        return None
    try:
        told = subprocess.run(  # noqa: S603  (found on PATH under an interpreter's name)
            [path, "-c", _PROBE], capture_output=True, timeout=10, check=True, stdin=subprocess.DEVNULL
        )
        return msgspec.convert(json.loads(told.stdout), Python)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _lend(folder: Path) -> None:
    """Links to our boto3 and what it needs, for an interpreter that has none. Lambda's runtimes have it."""
    folder.mkdir()
    for name in _LENT:
        spec = importlib.util.find_spec(name)
        if spec and spec.origin:
            origin = Path(spec.origin)
            source = origin.parent if origin.name == "__init__.py" else origin
            (folder / source.name).symlink_to(source)


# --- The function -----------------------------------------------------------------------------------------


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _no_sink(timestamp_ms: int, log_stream: str, line: str) -> None:
    pass


def _remove_folders(folders: tuple[Path, ...], owner: int) -> None:
    if os.getpid() == owner:  # not in a fork of this program
        for folder in folders:
            remove_tree(folder)


class Function:
    """A function that can be called, from any number of threads.

    `log` gets every log line, on the thread of the call it belongs to. `now_ms` and `new_id` (32 hex digits) stamp
    lines and name log streams and requests. Raises ValueError for a runtime that cannot run here.
    """

    def __init__(
        self,
        settings: Settings,
        code: Code,
        *,
        log: LogSink = _no_sink,
        now_ms: Callable[[], int] = _wall_ms,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        python: Python | None = None,
    ) -> None:
        if not can_run(settings.runtime):
            msg = f"runtime {settings.runtime!r} cannot run here; python3.x and provided.* can"
            raise ValueError(msg)
        self.settings = settings
        self._code = code
        self._log = log
        self._now_ms = now_ms
        self._new_id = new_id
        self._work = Path(tempfile.mkdtemp(prefix="windlass-function-")).resolve()
        # Also when the program ends, or the function is dropped, without `close`.
        folders = (self._work, code.folder) if code.owned else (self._work,)
        self._remove_folders = weakref.finalize(self, _remove_folders, folders, os.getpid())
        self._python = self._choose_python(python)
        self._free = threading.Condition()
        self._idle: list[Environment] = []  # the last used is the next used
        self._environments: set[Environment] = set()
        self._calls = 0  # running or waiting for an environment
        self._closed = False

    def invoke(
        self,
        payload: bytes,
        *,
        request_id: str | None = None,
        function_arn: str | None = None,
        client_context: str | None = None,
        trace_id: str | None = None,
        timeout_ms: int | None = None,
    ) -> Outcome | Throttled | TooLarge:
        """Call the function and wait for what comes of it. An empty payload is `{}`, as at Lambda's door.

        Raises RuntimeError once the function is closed.
        """
        if len(payload) > PAYLOAD_BYTES_MAX:
            return TooLarge(len(payload))
        request_id = request_id or str(uuid.UUID(self._new_id()))
        call = Call(
            request_id=request_id,
            payload=payload or b"{}",
            timeout_ms=timeout_ms or self.settings.timeout_ms,
            function_arn=function_arn or self.settings.arn,
            trace_id=trace_id or _trace_id(request_id, self._now_ms()),
            client_context=client_context,
        )
        environment = self._take()
        if isinstance(environment, Throttled):
            return environment
        try:
            return environment.invoke(call)
        finally:
            self._give_back(environment)

    def close(self, *, drain: bool = False) -> None:
        """End every process of the function, with whatever these started, and remove its folders.

        Calls under way end as EXITED; with `drain` they are let finish (each has its timeout) and no new one begins.
        Safe to repeat.
        """
        with self._free:
            self._closed = True
            idle, self._idle = self._idle, []
            self._free.notify_all()
        for environment in idle:
            self._retire(environment)
        if not drain:
            for environment in tuple(self._environments):
                environment.kill()
        with self._free:
            while self._environments:
                self._free.wait()
        self._remove_folders()

    def _take(self) -> Environment | Throttled:
        with self._free:
            self._check_open()
            reserved = self.settings.reserved_concurrency
            if reserved is not None and self._calls >= reserved:
                return Throttled()
            self._calls += 1
            try:
                while not self._idle and len(self._environments) >= self.settings.environments_max:
                    self._free.wait()
                    self._check_open()
                if self._idle:
                    return self._idle.pop()
                environment = self._new_environment()
            except BaseException:
                self._calls -= 1
                raise
            self._environments.add(environment)
            return environment

    def _give_back(self, environment: Environment) -> None:
        with self._free:
            self._calls -= 1
            if not self._closed:
                self._idle.append(environment)
                self._free.notify()
                return
        self._retire(environment)

    def _retire(self, environment: Environment) -> None:
        environment.close()
        with self._free:
            self._environments.discard(environment)
            self._free.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            msg = f"the function {self.settings.name} is closed"
            raise RuntimeError(msg)

    def _new_environment(self) -> Environment:
        settings = self.settings
        temporary = self._work / f"tmp-{len(self._environments)}"
        temporary.mkdir(exist_ok=True)
        runtime = f"python:{self._python.version}" if self._python else settings.runtime
        return Environment(
            lambda api, stream: self._launch(api, stream, temporary),
            Limits(settings.memory_mb, settings.init_timeout_ms, settings.version, runtime),
            log=self._log,
            log_stream=log_stream_name(self._now_ms(), settings.version, self._new_id()),
            now_ms=self._now_ms,
        )

    def _choose_python(self, python: Python | None) -> Python | None:
        if not self.settings.runtime.startswith("python"):
            return None
        chosen = python or python_for(self.settings.runtime)
        if not chosen.has_boto3:
            _lend(self._work / "boto3")
        return chosen

    def _launch(self, api: str, log_stream: str, temporary: Path) -> Launch:
        root = str(self._code.folder)
        variables = _variables(self.settings, root, api, log_stream, temporary)
        if self._python is None:
            return Launch((str(self._code.folder / "bootstrap"),), root, variables)
        lent = [] if self._python.has_boto3 else [str(self._work / "boto3")]
        own = self.settings.variables.get("PYTHONPATH")
        variables["PYTHONPATH"] = os.pathsep.join([root, *([own] if own else []), *lent])
        command = (*_python_command(self._python), self.settings.handler)
        return Launch((*_wrapper(self.settings, root), *command), root, variables)


def _python_command(python: Python) -> tuple[str, ...]:
    if python.has_client:
        return (python.path, "-m", "awslambdaric")
    return (python.path, "-u", str(Path(__file__).with_name("runtime_loop.py")))


def _wrapper(settings: Settings, root: str) -> tuple[str, ...]:
    """The script that starts the runtime in its place, where the function names one ("Modifying the runtime
    environment"). Lambda's task root is /var/task; here it is the unpacked zip.
    """
    named = settings.variables.get("AWS_LAMBDA_EXEC_WRAPPER")
    return (f"{root}/{named.removeprefix('/var/task/')}" if named.startswith("/var/task/") else named,) if named else ()


def _trace_id(request_id: str, now_ms: int) -> str:
    digits = request_id.replace("-", "")
    return f"Root=1-{now_ms // 1000:08x}-{digits[:24]:0<24};Parent={digits[-16:]:0>16};Sampled=0"


def _variables(settings: Settings, root: str, api: str, log_stream: str, temporary: Path) -> dict[str, str]:
    """Everything the process sees: what the machine gives, the function's own over it, Lambda's over both."""
    given = {
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_SESSION_TOKEN": "local",
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "PATH": os.environ.get("PATH", os.defpath),
        "LD_LIBRARY_PATH": os.pathsep.join([root, f"{root}/lib", *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]),
        # Nobody's ~/.aws is read, and what a function leaves behind goes with it.
        "HOME": str(temporary),
        "TMPDIR": str(temporary),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    platforms = {
        "_HANDLER": settings.handler,
        "AWS_REGION": settings.region,
        "AWS_DEFAULT_REGION": settings.region,
        "AWS_LAMBDA_FUNCTION_NAME": settings.name,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(settings.memory_mb),
        "AWS_LAMBDA_FUNCTION_VERSION": settings.version,
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": settings.log_group or f"/aws/lambda/{settings.name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": log_stream,
        "AWS_LAMBDA_RUNTIME_API": api,
        "LAMBDA_TASK_ROOT": root,
        "LAMBDA_RUNTIME_DIR": str(Path(__file__).parent),
    }
    if settings.runtime.startswith("python"):
        platforms["AWS_EXECUTION_ENV"] = f"AWS_Lambda_{settings.runtime}"
    return {**given, **settings.platform, **settings.variables, **platforms}
