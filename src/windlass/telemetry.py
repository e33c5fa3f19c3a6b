"""What a call did, as one log line and one EMF blob, through Powertools.

Metric names are few and have no dimension but the service: a dimension per key or shard would cost one CloudWatch
metric each. Namespace and service follow POWERTOOLS_METRICS_NAMESPACE and POWERTOOLS_SERVICE_NAME; the namespace is
"Windlass" where none is set.
"""

import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec


class Report(msgspec.Struct):
    """One invocation in numbers. Of a failed one only `failed` and the retry figures count: Lambda sends it again."""

    shard: str = ""
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
        from aws_lambda_powertools import Logger
        from aws_lambda_powertools.metrics import EphemeralMetrics

        service = environ.get("POWERTOOLS_SERVICE_NAME") or service
        namespace = environ.get("POWERTOOLS_METRICS_NAMESPACE") or "Windlass"
        self._logger = Logger(service=service)
        self._dimensions = {"service": service}
        # Powertools' Metrics are one for the whole process, and may be the user's.
        self._metrics = None if _metrics_disabled(environ) else EphemeralMetrics(namespace=namespace, service=service)
        self._blobs: dict[tuple[str, ...], dict[str, Any]] = {}

    def emit(self, report: Report) -> None:
        """One EMF blob on stdout, and one JSON log line: at level DEBUG where there was nothing but folding."""
        if self._metrics is not None:
            sys.stdout.write(msgspec.json.encode(self._blob(report.metrics())).decode() + "\n")
        if report.failed:
            self._logger.error("call failed", extra=_told(report))
        elif report.is_notable():
            self._logger.info("call", extra=_told(report))
        else:
            self._logger.debug("call", extra={"received": report.received})

    def _blob(self, metrics: Mapping[str, int]) -> dict[str, Any]:
        """In EMF. Powertools makes the first one of each set of names; the others are that with time and values anew.

        Its add_metric and flush_metrics would take many times as long, and collect in one place what several shards,
        which locally call at once, and several handlers have to say.
        """
        names = tuple(metrics)
        blob = self._blobs.get(names)
        if blob is None:
            told = {
                name: {"Unit": _UNITS.get(name, "Count"), "StorageResolution": 60, "Value": value}
                for name, value in metrics.items()
            }
            assert self._metrics is not None
            made: Any = self._metrics.serialize_metric_set(metrics=told, dimensions=self._dimensions, metadata={})
            blob = self._blobs[names] = made
        return {**blob, "_aws": {**blob["_aws"], "Timestamp": int(time.time() * 1000)}, **metrics}


_UNITS = {"StateBytes": "Bytes"}


def _metrics_disabled(environ: Mapping[str, str]) -> bool:
    """As Powertools has it: POWERTOOLS_METRICS_DISABLED says so, or, where that is not set, POWERTOOLS_DEV."""
    said = environ.get("POWERTOOLS_METRICS_DISABLED", environ.get("POWERTOOLS_DEV", ""))
    return said.lower() in ("1", "y", "yes", "t", "true", "on")


def _told(report: Report) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(report).items() if value}


class Kept:
    """Keeps reports in a list: for tests, the demo and the simulator."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def emit(self, report: Report) -> None:
        """Append it."""
        self.reports.append(report)
