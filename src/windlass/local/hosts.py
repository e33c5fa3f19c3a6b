"""Functions come to life: for every Lambda function in moto's records, a host that runs it.

The record is the truth, whoever wrote it: the API, a CloudFormation stack, a test. A host is made when a function is
first called, and replaced when the record says something else by then; calls that are under way finish on the old
one. So nothing has to be told when a function is created, updated or deleted.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import msgspec
from moto.awslambda.exceptions import UnknownFunctionException
from moto.awslambda.models import lambda_backends

from windlass.local.function import BadCode, Ending, Function, Outcome, Settings, Throttled, TooLarge, can_run, unpack
from windlass.local.monitor import Monitor

ASYNC_RETRIES = 2  # Lambda Developer Guide, "How Lambda handles errors and retries with asynchronous invocation"
ASYNC_PAUSES_S = (60.0, 120.0)
_ASYNC_THREADS = 32

_logger = logging.getLogger(__name__)


class Unrunnable(msgspec.Struct, frozen=True):
    """A function whose record is there and that cannot run here. `message` says why."""

    message: str


Result: TypeAlias = Outcome | Throttled | TooLarge | Unrunnable


class FunctionState(msgspec.Struct, frozen=True):
    """A function, for display."""

    name: str
    arn: str
    runtime: str
    handler: str
    timeout_s: int
    memory_mb: int
    variables: dict[str, str]


class Hosts:
    """Runs the functions of one account. `platform(region)` gives the variables that every function sees."""

    def __init__(self, account: str, monitor: Monitor, platform: Callable[[str], dict[str, str]]) -> None:
        self._account = account
        self._monitor = monitor
        self._platform = platform
        self._lock = threading.Lock()
        self._hosts: dict[str, tuple[Any, Function]] = {}  # by the record's ARN: what it was made of, and it
        self._pool = ThreadPoolExecutor(_ASYNC_THREADS, thread_name_prefix="event")
        self._ending = threading.Event()

    def record(self, region: str, name: str, qualifier: str | None = None) -> Any | None:
        """moto's record of a function, by its name, its ARN or the ARN's end, each with a qualifier or without."""
        tail = name.rpartition("function:")[2]
        plain, _, named = tail.partition(":")
        try:
            return lambda_backends[self._account][region].get_function(plain, qualifier or named or None)
        except UnknownFunctionException:
            return None

    def call(self, record: Any, payload: bytes, *, arn: str = "", client_context: str | None = None) -> Result:
        """Call a function and wait for what comes of it. `arn` is what the caller named it by."""
        while True:
            host = self._host(record)
            if isinstance(host, Unrunnable):
                return host
            try:
                result = host.invoke(payload, function_arn=arn or None, client_context=client_context)
            except RuntimeError:
                if self._ending.is_set():
                    return Unrunnable("the local endpoint is ending")
                continue  # replaced in between: the record's present host takes it
            if self._ending.is_set() and isinstance(result, Outcome) and result.ending is Ending.EXITED:
                return Unrunnable("the local endpoint is ending")  # the process was ended by us: no fault of its own
            if isinstance(result, Outcome):
                self._monitor.called(host.settings, result)
            elif isinstance(result, Throttled):
                self._monitor.throttled(host.settings)
            return result

    def call_later(self, record: Any, payload: bytes, *, retries: int = ASYNC_RETRIES) -> None:
        """Call a function in the background, again after a minute or two where it fails."""
        self._pool.submit(self._call_until_done, record, payload, retries)

    def settings_of(self, record: Any) -> Settings:
        """A record as the settings of its host."""
        concurrency = record.reserved_concurrency
        return Settings(
            name=record.function_name,
            runtime=record.run_time or "",
            handler=record.handler or "",
            timeout_ms=int(record.timeout) * 1000,
            memory_mb=int(record.memory_size),
            variables={name: str(value) for name, value in (record.environment_vars or {}).items()},
            platform=self._platform(record.region),
            region=record.region,
            account=self._account,
            version=str(record.version),
            log_group=record.logs_group_name,
            reserved_concurrency=None if concurrency is None else int(concurrency),
        )

    def sweep(self) -> None:
        """Let go of functions that have been deleted."""
        with self._lock:
            gone = [arn for arn in self._hosts if self.record(arn.split(":")[3], arn) is None]
            hosts = [self._hosts.pop(arn)[1] for arn in gone]
        for host in hosts:
            _close_later(host)

    def state(self) -> list[FunctionState]:
        """All functions, by name."""
        records = [
            record for backend in list(lambda_backends[self._account].values()) for record in backend._lambdas.latest()
        ]
        return sorted((_state(record) for record in records), key=lambda state: (state.name, state.arn))

    def close(self) -> None:
        """End every process, calls under way included."""
        self._ending.set()
        with self._lock:
            hosts = [host for _, host in self._hosts.values()]
            self._hosts.clear()
        for host in hosts:
            host.close()
        self._pool.shutdown(cancel_futures=True)

    def _host(self, record: Any) -> Function | Unrunnable:
        settings = self.settings_of(record)
        made_of = (settings, record.code_sha_256)
        with self._lock:
            if self._ending.is_set():
                return Unrunnable("the local endpoint is ending")
            had = self._hosts.get(record.function_arn)
            if had and had[0] == made_of:
                return had[1]
            made = self._make(record, settings)
            if isinstance(made, Function):
                self._hosts[record.function_arn] = (made_of, made)
                if had:
                    _close_later(had[1])
            return made

    def _make(self, record: Any, settings: Settings) -> Function | Unrunnable:
        if not can_run(settings.runtime):
            return Unrunnable(f"runtime {settings.runtime!r} cannot run here; python3.x and provided.* can")
        code = unpack(getattr(record, "code_bytes", b""))
        if isinstance(code, BadCode):
            return Unrunnable(f"{code.message} ({code.detail})")
        if record.layers:
            _logger.warning("%s has layers, which are not mounted here: put what it needs into its zip", settings.name)
        return Function(settings, code, log=self._monitor.sink(settings))

    def _call_until_done(self, record: Any, payload: bytes, retries: int) -> None:
        for attempt in range(retries + 1):
            result = self.call(record, payload)
            if isinstance(result, Outcome) and not result.error:
                return
            if isinstance(result, TooLarge | Unrunnable):
                _logger.warning("an event for %s was dropped: %s", record.function_name, result.message)
                return
            if attempt < retries and self._ending.wait(ASYNC_PAUSES_S[min(attempt, len(ASYNC_PAUSES_S) - 1)]):
                return


def _close_later(host: Function) -> None:
    threading.Thread(target=host.close, kwargs={"drain": True}, name="draining", daemon=True).start()


def _state(record: Any) -> FunctionState:
    return FunctionState(
        record.function_name,
        record.function_arn,
        record.run_time or "",
        record.handler or "",
        int(record.timeout),
        int(record.memory_size),
        {name: str(value) for name, value in (record.environment_vars or {}).items()},
    )
