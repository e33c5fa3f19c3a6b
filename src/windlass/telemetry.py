"""What a call did, as one log line and one EMF blob, through Powertools.

Metric names are few and have no dimension but the service: a dimension per key or shard would cost one CloudWatch
metric each. Namespace and service follow POWERTOOLS_METRICS_NAMESPACE and POWERTOOLS_SERVICE_NAME; the namespace is
"Windlass" where none is set.
"""

import os
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec


class Report(msgspec.Struct):
    """One invocation in numbers. Of a failed one only `failed` and the retry figures count: Lambda sends it again."""

    shard: str
    window: str = ""
    final: bool = False
    received: int = 0
    clean: int = 0
    late: int = 0
    duplicates: int = 0
    rejected: dict[str, int] = {}
    flushed_rows: int = 0
    skipped_flushes: int = 0
    superseded_rows: int = 0
    retry_rounds: int = 0
    throttled: int = 0
    state_bytes: int = 0
    failed: str = ""

    def is_notable(self) -> bool:
        """Whether the call wrote, refused, repeated or retried something, or closed a window."""
        return bool(
            self.final
            or self.rejected
            or self.late
            or self.duplicates
            or self.flushed_rows
            or self.skipped_flushes
            or self.superseded_rows
            or self.throttled
        )

    def metrics(self) -> dict[str, int]:
        """Metric names and values. Failed calls do not count records: the retry will."""
        seldom = {"RetryRounds": self.retry_rounds, "ThrottledWrites": self.throttled}
        if self.failed:
            return _above_zero(seldom) | {"FailedCalls": 1, self.failed: 1}
        seldom |= {
            "Late": self.late,
            "Duplicates": self.duplicates,
            "SkippedFlushes": self.skipped_flushes,
            "SupersededRows": self.superseded_rows,
        }
        seldom |= {f"Rejected_{reason}": count for reason, count in self.rejected.items()}
        return {
            "Received": self.received,
            "Clean": self.clean,
            "Rejected": sum(self.rejected.values()),
            "FlushedRows": self.flushed_rows,
            "StateBytes": self.state_bytes,
        } | _above_zero(seldom)


def _above_zero(counts: dict[str, int]) -> dict[str, int]:
    """What happened seldom and did not happen now is left out: each metric costs time in every call."""
    return {name: count for name, count in counts.items() if count}


class Telemetry(Protocol):
    """Where reports go."""

    def emit(self, report: Report) -> None:
        """Take one report. Never raises because of its values."""


class PowertoolsTelemetry:
    """Powertools' Logger and Metrics. Powertools is imported when the first one is made."""

    def __init__(self, service: str, environ: Mapping[str, str] = os.environ) -> None:
        from aws_lambda_powertools import Logger, Metrics
        from aws_lambda_powertools.metrics import MetricUnit

        service = environ.get("POWERTOOLS_SERVICE_NAME", service)
        namespace = environ.get("POWERTOOLS_METRICS_NAMESPACE", "Windlass")
        self._logger = Logger(service=service)
        self._metrics = Metrics(namespace=namespace, service=service)
        self._units: dict[str, Any] = {"StateBytes": MetricUnit.Bytes}
        self._count = MetricUnit.Count
        # Powertools collects metrics in one place; locally several shards call at once.
        self._lock = threading.Lock()

    def emit(self, report: Report) -> None:
        """One EMF blob on stdout, and one JSON log line: at level DEBUG where there was nothing but folding."""
        with self._lock:
            for name, value in report.metrics().items():
                self._metrics.add_metric(name=name, unit=self._units.get(name, self._count), value=value)
            self._metrics.flush_metrics()
            if report.failed:
                self._logger.error("call failed", extra=_told(report))
            elif report.is_notable():
                self._logger.info("call", extra=_told(report))
            else:
                self._logger.debug("call", extra={"received": report.received})


def _told(report: Report) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(report).items() if value}


class Kept:
    """Keeps reports in a list: for tests, the demo and the simulator."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def emit(self, report: Report) -> None:
        """Append it."""
        self.reports.append(report)
