"""What functions and mappings leave behind: log lines, metrics, and the last calls for whoever looks on.

Calls only append to lists here. What is gathered goes to moto's CloudWatch Logs and CloudWatch in one go: a few times
a second, and before either is asked, so that a reader never misses a call that has ended.

Metrics are Lambda's own (Lambda Developer Guide, "Types of metrics for Lambda functions"), those of mappings with
`EventCount`, the two of a stream's puts, and whatever a function's own lines carry in the embedded metric format
(CloudWatch User Guide, "Specification: Embedded metric format").
"""

import json
import logging
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

import msgspec
from moto.cloudwatch.models import cloudwatch_backends
from moto.logs.models import logs_backends

from windlass.local.function import Outcome, Settings

RECENT_MAX = 200
RECENT_LINES_MAX = 500
_FLUSH_S = 0.25
_EMBEDDED = '{"_aws":'

_logger = logging.getLogger(__name__)


class Called(msgspec.Struct, frozen=True, kw_only=True):
    """One call, as its log tells of it: times in milliseconds, `lines` from START to REPORT, of many the last."""

    function: str
    request_id: str
    started_ms: int
    ending: str
    duration_ms: float
    billed_ms: int
    init_duration_ms: float | None
    memory_used_mb: int
    error_type: str
    error_message: str
    lines: tuple[str, ...]


class _Line(msgspec.Struct, frozen=True):
    function: str
    region: str
    group: str
    stream: str
    at_ms: int
    text: str


class Metric(msgspec.Struct, frozen=True):
    """One value of one metric."""

    region: str
    namespace: str
    name: str
    value: float
    unit: str
    dimensions: tuple[tuple[str, str], ...]
    at_ms: int


class Monitor:
    """Gathers, and hands on. `echo` gets every log line with its function's name; `locked` guards moto's services."""

    def __init__(
        self,
        account: str,
        *,
        now_ms: Callable[[], int],
        locked: Callable[[str], AbstractContextManager[Any]],
        echo: Callable[[str, str], None],
    ) -> None:
        self._account = account
        self._now_ms = now_ms
        self._locked = locked
        self._echo = echo
        self._lock = threading.Lock()  # of what is gathered
        self._handing_on = threading.Lock()
        self._lines: list[_Line] = []
        self._metrics: list[Metric] = []
        self._puts: Counter[tuple[str, str, str]] = Counter()
        self._counted: Callable[[], Iterable[Metric]] = tuple
        self._recent: deque[Called] = deque(maxlen=RECENT_MAX)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self, counted: Callable[[], Iterable[Metric]]) -> None:
        """Begin to hand on. `counted` gives the metrics that have come together elsewhere since it was last asked."""
        self._counted = counted
        self._thread.start()

    def end(self) -> None:
        """Hand on the rest."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        self.flush()

    def sink(self, settings: Settings) -> Callable[[int, str, str], None]:
        """Where a function's host writes its log."""
        group = settings.log_group or f"/aws/lambda/{settings.name}"

        def write(at_ms: int, stream: str, text: str) -> None:
            line = _Line(settings.name, settings.region, group, stream, at_ms, text)
            metrics = embedded_metrics(text, settings.region, at_ms) if text.startswith(_EMBEDDED) else ()
            with self._lock:
                self._lines.append(line)
                self._metrics += metrics

        return write

    def called(self, settings: Settings, outcome: Outcome) -> None:
        """A call has ended."""
        error = outcome.error
        self._count(settings, "Invocations", 1, "Count")
        self._count(settings, "Errors", 1 if error else 0, "Count")
        self._count(settings, "Duration", outcome.duration_ms, "Milliseconds")
        called = Called(
            function=settings.name,
            request_id=outcome.request_id,
            started_ms=outcome.started_ms,
            ending=str(outcome.ending),
            duration_ms=outcome.duration_ms,
            billed_ms=outcome.billed_ms,
            init_duration_ms=outcome.init_duration_ms,
            memory_used_mb=outcome.memory_used_mb,
            error_type=error.type if error else "",
            error_message=error.message if error else "",
            lines=outcome.lines[-RECENT_LINES_MAX:],
        )
        with self._lock:
            self._recent.append(called)

    def throttled(self, settings: Settings) -> None:
        """A call was refused for the function's reserved concurrency."""
        self._count(settings, "Throttles", 1, "Count")

    def iterator_age(self, settings: Settings, age_ms: int) -> None:
        """How old the last record of a batch was when it went to the function."""
        self._count(settings, "IteratorAge", age_ms, "Milliseconds")

    def put(self, region: str, stream: str, records: int, size: int) -> None:
        """Records were put into a stream."""
        with self._lock:
            self._puts[region, stream, "IncomingRecords"] += records
            self._puts[region, stream, "IncomingBytes"] += size

    def recent(self) -> tuple[Called, ...]:
        """The last calls, oldest first."""
        with self._lock:
            return tuple(self._recent)

    def flush(self) -> None:
        """Hand on what has been gathered. When it is over, what another flush had taken is handed on too."""
        with self._handing_on:
            with self._lock:
                lines, self._lines = self._lines, []
                metrics, self._metrics = self._metrics, []
                puts, self._puts = self._puts, Counter()
            try:
                self._store_lines(lines)
                self._store_metrics([*metrics, *self._of_puts(puts), *self._counted()])
            except Exception:
                _logger.exception("log lines or metrics were lost")

    def _run(self) -> None:
        while not self._ending.wait(_FLUSH_S):
            self.flush()

    def _count(self, settings: Settings, name: str, value: float, unit: str) -> None:
        dimensions = (("FunctionName", settings.name),)
        metric = Metric(settings.region, "AWS/Lambda", name, value, unit, dimensions, self._now_ms())
        with self._lock:
            self._metrics.append(metric)

    def _of_puts(self, puts: Counter[tuple[str, str, str]]) -> list[Metric]:
        units = {"IncomingRecords": "Count", "IncomingBytes": "Bytes"}
        return [
            Metric(region, "AWS/Kinesis", name, value, units[name], (("StreamName", stream),), self._now_ms())
            for (region, stream, name), value in puts.items()
        ]

    def _store_lines(self, lines: Sequence[_Line]) -> None:
        places: dict[tuple[str, str, str], list[_Line]] = {}
        for line in lines:
            self._echo(line.function, line.text)
            places.setdefault((line.region, line.group, line.stream), []).append(line)
        with self._locked("logs"):
            for (region, group, stream), found in places.items():
                backend = logs_backends[self._account][region]
                backend.ensure_log_group(group)
                backend.ensure_log_stream(group, stream)
                found.sort(key=lambda line: line.at_ms)
                events = [{"timestamp": each.at_ms, "message": each.text} for each in found]
                backend.put_log_events(group, stream, events)

    def _store_metrics(self, metrics: Sequence[Metric]) -> None:
        if not metrics:
            return
        with self._locked("monitoring"):
            for metric in metrics:
                backend = cloudwatch_backends[self._account][metric.region]
                backend.put_metric_data(metric.namespace, [_datum(metric)])


def _datum(metric: Metric) -> dict[str, Any]:
    return {
        "MetricName": metric.name,
        "Value": metric.value,
        "Unit": metric.unit,
        "Dimensions": [{"Name": name, "Value": value} for name, value in metric.dimensions],
        # moto keeps times in UTC without saying so.
        "Timestamp": datetime.fromtimestamp(metric.at_ms / 1000, UTC).replace(tzinfo=None),
    }


def embedded_metrics(text: str, region: str, at_ms: int) -> list[Metric]:
    """The metrics that a log line carries in the embedded metric format; none where it is not in that format."""
    try:
        line = json.loads(text)
        head = line["_aws"]
        at_ms = int(head.get("Timestamp", at_ms))
        found = []
        for directive in head["CloudWatchMetrics"]:
            for names in directive.get("Dimensions") or [[]]:
                dimensions = tuple((name, str(line[name])) for name in names)
                for metric in directive["Metrics"]:
                    name, unit = metric["Name"], metric.get("Unit", "None")
                    values = line[name] if isinstance(line[name], list) else [line[name]]
                    found += [
                        Metric(region, directive["Namespace"], name, float(value), unit, dimensions, at_ms)
                        for value in values
                        if math.isfinite(value)
                    ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return found
