"""Lambda's door: an event comes in, the core says what it comes to, the seams carry it out, the answer goes back.

The order of one call, and why:
1. Everything is folded first: what cannot be folded raises before anything is written.
2. Rejected records go to quarantine before the call answers, so that none is lost when Lambda checkpoints. They go
   before the flush: a flush that fails makes Lambda send the batch again, and the same records overwrite their copy.
3. Closed segments are flushed together; two of them that add to the same item do so one after the other.
4. The answer is the open segment as `state`, always an object; `{}` after a final or early call.
Whatever raises in between makes the call fail; Lambda keeps the batch, and the fence makes repeating it harmless.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec

from windlass.core.aggregate import HashRange
from windlass.core.event import Call, MalformedEvent, read_event
from windlass.core.pipeline import Aggregates, Counts, RecordsPlan, WindowsPlan
from windlass.delivery import (
    Delivery,
    DeliveryPolicy,
    NotDelivered,
    SomeThrottled,
    collapse,
    deliver,
    merging,
    putting,
)
from windlass.quarantine import Quarantine
from windlass.shards import Shards
from windlass.table import Merged, Table
from windlass.telemetry import Report, Telemetry

# What is left to a call whose context does not say, as when a test calls the handler by hand.
REMAINING_MS_UNKNOWN = 60_000

Remaining = Callable[[], int]


class Seams(msgspec.Struct):
    """Everything outside that a handler touches: table, quarantine, shards, reports, threads, time and chance."""

    table: Table
    quarantine: Quarantine
    shards: Shards
    telemetry: Telemetry
    executor: Executor | None = None  # None writes inline, one after the other
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random


Plan = TypeVar("Plan", WindowsPlan, RecordsPlan)


class _Handler(Generic[Plan]):
    """What both kinds of handler do alike: open the seams once, read the event, report."""

    def __init__(
        self, plan: Plan, open_seams: Callable[[], Seams], policy: DeliveryPolicy, aggregates: Aggregates
    ) -> None:
        self.plan: Plan = plan
        self._open_seams = open_seams
        self._policy = policy
        self._aggregates = aggregates
        self._seams: Seams | None = None
        self._opening = threading.Lock()

    @property
    def seams(self) -> Seams:
        """Opened by the first call: an import must not reach for AWS, or for settings that a test has not made."""
        if self._seams is None:
            with self._opening:
                if self._seams is None:
                    self._seams = self._open_seams()
        return self._seams

    def __call__(self, event: Mapping[str, Any], context: Any) -> dict[str, Any]:
        """One invocation, as Lambda makes it. Raises when Lambda is to send the batch again."""
        return self.answer(partial(read_event, event), context)

    def answer(self, read: Callable[[], Call], context: Any) -> dict[str, Any]:
        """The same, for an event in whatever form: `read` reads it."""
        seams = self.seams
        report = Report()
        remaining_ms = getattr(context, "get_remaining_time_in_millis", lambda: REMAINING_MS_UNKNOWN)
        try:
            call = read()
            report.shard, report.final = call.shard, call.final
            report.window = call.window.start if call.window else ""
            answer = self._answer(call, seams, report, remaining_ms)
        except Exception as error:
            report.failed = type(error).__name__
            seams.telemetry.emit(report)
            raise
        seams.telemetry.emit(report)
        return answer

    def _answer(self, call: Call, seams: Seams, report: Report, remaining_ms: Remaining) -> dict[str, Any]:
        raise NotImplementedError

    def _within(self, call: Call, seams: Seams) -> HashRange | None:
        if self._aggregates == "keep_all" or not call.aggregated:
            return None
        return seams.shards.within(call.stream_arn, call.shard)

    def _deliver(self, units: Any, send: Any, seams: Seams, report: Report, remaining_ms: Remaining) -> Delivery:
        try:
            delivery = deliver(
                units, send, policy=self._policy, remaining_ms=remaining_ms, sleep=seams.sleep, random=seams.random
            )
        except NotDelivered as error:
            report.retry_rounds = error.rounds - 1
            report.throttled = error.retried + len(error.throttled)
            raise
        report.retry_rounds = delivery.rounds - 1
        report.throttled = delivery.retried
        return delivery


class WindowsHandler(_Handler[WindowsPlan]):
    """The Lambda function of a `Windows` declaration."""

    def _answer(self, call: Call, seams: Seams, report: Report, remaining_ms: Remaining) -> dict[str, Any]:
        step = self.plan.run(call, self._within(call, seams))
        window = call.window
        assert window is not None
        if step.rejected:
            seams.quarantine.put(call.shard, step.rejected)
        if step.flush:
            rows = [
                row for segment in step.flush for row in self.plan.folder.contributions(segment, call.source, window)
            ]
            delivery = self._deliver(rows, merging(seams.table, seams.executor), seams, report, remaining_ms)
            report.flushed_rows = delivery.count(Merged.APPLIED)
            report.skipped_flushes = delivery.count(Merged.ALREADY)
            report.superseded_rows = delivery.count(Merged.SUPERSEDED)
        _count(report, step.counts)
        report.state_bytes = step.open.bytes_bound if step.open.rows else 0
        return {"state": self.plan.folder.encode(step.open)}


class RecordsHandler(_Handler[RecordsPlan]):
    """The Lambda function of a `Records` declaration."""

    def _answer(self, call: Call, seams: Seams, report: Report, remaining_ms: Remaining) -> dict[str, Any]:
        if call.window is not None:
            msg = (
                f"the event has a window, but {self.plan.name} is declared as Records, which keep no state: "
                "set TumblingWindowInSeconds=0 on the event source mapping, or declare Windows"
            )
            raise MalformedEvent(msg)
        step = self.plan.run(call, self._within(call, seams))
        if step.rejected:
            seams.quarantine.put(call.shard, step.rejected)
        keys = self.plan.key_attributes
        items, came_first = collapse(step.items, lambda item: tuple(item[name] for name in keys))
        try:
            delivery = self._deliver(items, putting(seams.table, seams.executor), seams, report, remaining_ms)
        except SomeThrottled as some:
            # The others are stored. Lambda goes on from the first record that is not, and puts are idempotent.
            first = step.sequences[min(came_first[index] for index in some.indexes)]
            _count(report, step.counts_before(first))
            report.flushed_rows = len(items) - len(some.throttled)
            return {"batchItemFailures": [{"itemIdentifier": first}]}
        _count(report, step.counts)
        report.flushed_rows = len(delivery.outcomes)
        return {"batchItemFailures": []}


def _count(report: Report, counts: Counts) -> None:
    report.received, report.clean, report.late = counts.received, counts.clean, counts.late
    report.duplicates, report.rejected = counts.duplicates, counts.rejected
