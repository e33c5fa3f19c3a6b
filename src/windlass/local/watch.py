"""Looking on while an event source mapping calls a function of this process: its calls, their log lines, figures.

    Poller ── Watch.invoker ──► InProcess ──► Watch.function ──► the handler ──► Watch.emit

A call, its report and its log lines belong together because all of it happens on one thread. The log lines are what
the deployed function would have written: START, whatever was logged, the report, a traceback, END and REPORT.
"""

import json
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from windlass.local.mapping import Answered, Failed, Invoke, Throttled
from windlass.local.meter import Meter
from windlass.local.poller import Invoker, wall_clock_ms
from windlass.telemetry import Kept, Report

CALLS_KEPT = 2_000
LINES_MAX = 200


class WatchedCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call that has ended. `first` and `last` are the sequence numbers of its records, "" without any."""

    number: int
    request_id: str
    shard_id: str
    kind: str
    window_start_ms: int | None
    window_end_ms: int | None
    records: int
    attempt: int
    started_ms: int
    duration_ms: float
    error_type: str
    error_message: str
    first: str
    last: str
    lines: tuple[str, ...]
    report: Report | None


class _Current(threading.local):
    """What the call of this thread has said so far; `lines` is None between calls."""

    lines: list[str] | None = None
    report: Report | None = None
    first = last = ""


class Watch(Kept):
    """Telemetry that keeps the reports, and the last calls around them. One for one mapping."""

    def __init__(
        self, *, now_ms: Callable[[], int] = wall_clock_ms, timer: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self.began_ms = now_ms()
        self.meter = Meter()
        self.calls: deque[WatchedCall] = deque(maxlen=CALLS_KEPT)
        self.called = 0
        self._now_ms = now_ms
        self._timer = timer
        self._current = _Current()
        self._lock = threading.Lock()
        self._put = 0

    # --- what it is put between ----------------------------------------------------------------------------------

    def function(self, handler: Callable[[Any, Any], object]) -> Callable[[dict[str, Any], Any], object]:
        """The handler, with what it logs and raises noted."""

        def watched(event: dict[str, Any], context: Any) -> object:
            records = event.get("Records") or ()
            if records:
                self._current.first = records[0]["kinesis"]["sequenceNumber"]
                self._current.last = records[-1]["kinesis"]["sequenceNumber"]
            try:
                return handler(event, context)
            except BaseException:
                self._say(*traceback.format_exc().rstrip().splitlines())
                raise

        return watched

    def invoker(self, invoke: Invoker) -> Invoker:
        """The function as the mapping calls it, with every call kept."""

        def watched(call: Invoke) -> Answered | Failed | Throttled:
            current = self._current
            current.lines, current.report, current.first, current.last = [], None, "", ""
            started_ms, began = self._now_ms(), self._timer()
            outcome = invoke(call)
            self._keep(call, outcome, started_ms, (self._timer() - began) * 1000)
            current.lines = None
            return outcome

        return watched

    def emit(self, report: Report) -> None:
        """Take one report, as telemetry does."""
        super().emit(report)
        self._current.report = report
        told = {name: value for name, value in msgspec.structs.asdict(report).items() if value}
        level = "ERROR" if report.failed else "INFO" if report.is_notable() else "DEBUG"
        self._say(json.dumps({"level": level, "message": "call failed" if report.failed else "call"} | told))

    def put(self, records: int) -> None:
        """So many records have been put into the stream altogether."""
        more, self._put = records - self._put, records
        if more > 0:
            self.meter.add(self._now_ms(), [("incoming", more)])

    def logged(self) -> logging.Handler:
        """A handler for Python's logging that notes what is logged during a call."""
        watch = self

        class ToLines(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                watch._say(*self.format(record).splitlines())

        handler = ToLines()
        handler.setFormatter(logging.Formatter("[%(levelname)s] %(name)s: %(message)s"))
        return handler

    # --- keeping -------------------------------------------------------------------------------------------------

    def _say(self, *lines: str) -> None:
        held = self._current.lines
        if held is not None and len(held) < LINES_MAX:
            held += lines

    def _keep(self, call: Invoke, outcome: Answered | Failed | Throttled, started_ms: int, duration_ms: float) -> None:
        current = self._current
        failed = outcome if isinstance(outcome, Failed) else None
        request_id = getattr(outcome, "request_id", "")
        error_type = failed.error_type if failed else ("Throttled" if isinstance(outcome, Throttled) else "")
        error_message = failed.message if failed else ""
        said = tuple(current.lines or ())
        if failed and not said:
            said = (f"[ERROR] {error_type}: {error_message}",)
        lines = (
            f"START RequestId: {request_id} Version: $LATEST",
            *said,
            f"END RequestId: {request_id}",
            f"REPORT RequestId: {request_id} Duration: {duration_ms:.2f} ms",
        )
        with self._lock:
            self.called += 1
            kept = WatchedCall(
                number=self.called,
                request_id=request_id,
                shard_id=call.shard_id,
                kind=call.kind.value,
                window_start_ms=call.window.start_ms if call.window else None,
                window_end_ms=call.window.end_ms if call.window else None,
                records=call.records,
                attempt=call.attempt,
                started_ms=started_ms,
                duration_ms=duration_ms,
                error_type=error_type,
                error_message=error_message,
                first=current.first,
                last=current.last,
                lines=lines,
                report=current.report,
            )
            self.calls.append(kept)
        self._measure(call, kept, throttled=isinstance(outcome, Throttled))

    def _measure(self, call: Invoke, kept: WatchedCall, *, throttled: bool) -> None:
        values: list[tuple[str, float]] = []
        if throttled:
            values.append(("throttles", 1))
        else:
            values += [("invocations", 1), ("errors", 1 if kept.error_type else 0), ("duration", kept.duration_ms)]
        if call.iterator_age_ms is not None:
            values.append(("iterator_age", call.iterator_age_ms))
        if kept.report is not None:
            values += figures(kept.report)
        self.meter.add(kept.started_ms + int(kept.duration_ms), values)


def figures(report: Report) -> list[tuple[str, float]]:
    """A report's figures under the meter's names. Failed calls do not count records: the retry will."""
    trouble: list[tuple[str, float]] = [
        ("retry_rounds", report.retry_rounds),
        ("throttled_writes", report.throttled),
    ]
    if report.failed:
        return trouble
    return [
        ("received", report.received),
        ("clean", report.clean),
        ("rejected", sum(report.rejected.values())),
        ("late", report.late),
        ("duplicates", report.duplicates),
        ("flushed_rows", report.flushed_rows),
        ("skipped_flushes", report.skipped_flushes),
        *trouble,
    ]
