"""Rehearse a handler on a stream and an event source mapping in memory, on a clock that you move by hand.

    world = Rehearsal(handler, window_s=30, shards=2)
    world.put(b'{"vendorId": 1, "passengerCount": 2}', key="a")
    world.advance(seconds=31)
    assert world.calls[-1].event["isFinalInvokeForWindow"]

The mapping is the one that `windlass local` runs (`windlass.local.mapping`): batches, tumbling windows, retries,
bisecting, partial batch answers, filters, checkpoints and resharding are its own. Only the stream, time and the
function's surroundings are made here. One thread; nothing sleeps; the same steps give the same calls.

Rules:
- Nothing runs but in `advance`, `settle` and `disable`. A shard is read once a second, as Lambda does, and again at
  once while there is more in it; so one second after a put the handler has been called, unless its batch is to wait.
- Everything due at an instant is done at that instant, shard after shard. A call takes no time, unless the handler
  waits through `sleep`; then it takes that long, and the other shards wait.
- A handler that raises is no error of the test: Lambda retries, and so does the rehearsal. `calls` has what it raised,
  and `settle` gives up with it.
- A quiet window closes as soon as it is over. Lambda takes longer; `assumed=Assumptions(grace_ms=120_000)` does too.
"""

import json
import random
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

import msgspec

from windlass.core.aggregate import HashRange
from windlass.core.rejected import Rejected
from windlass.core.window import Window
from windlass.handler import Seams
from windlass.local.mapping import (
    Answered,
    Checkpoint,
    Counters,
    Deliver,
    Delivered,
    Done,
    Failed,
    Failure,
    Fetch,
    Fetched,
    Invoke,
    ShardMapping,
    Stopped,
    Throttled,
    Wait,
)
from windlass.local.mapping_settings import TRIM_HORIZON, Assumptions, MappingSettings, Position
from windlass.local.poller import InProcess
from windlass.pipelines import Records, Windows
from windlass.produce.aggregate import carrier_bytes, hash_of
from windlass.produce.records import UserRecord
from windlass.quarantine import MemoryQuarantine, line_of
from windlass.shards import KnownShards
from windlass.sim.stream import MemoryStream, Shard
from windlass.sim.table import MemoryTable
from windlass.table import Item
from windlass.telemetry import Kept, Report
from windlass.verify import Verdict, verify

__all__ = ["Assumptions", "Call", "Handler", "NotSettled", "Place", "Rehearsal"]

STREAM_ARN = "arn:aws:kinesis:us-east-1:000000000000:stream/rehearsal"
FUNCTION_ARN = "arn:aws:lambda:us-east-1:000000000000:function:rehearsal"
ROLE_ARN = "arn:aws:iam::000000000000:role/rehearsal"
QUEUE_ARN = "arn:aws:sqs:us-east-1:000000000000:discarded"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
CLOSED_AT_ONCE = Assumptions(grace_ms=0)

Handler: TypeAlias = Callable[[dict[str, Any], Any], object]


class NotSettled(AssertionError):
    """Time went on and on, and not everything got processed. The handler's last error is the cause."""


class Place(NamedTuple):
    """Where a record has been put."""

    shard: str
    sequence: str


class Call(msgspec.Struct):
    """One call of the handler, as it was made and what came of it.

    `event` is a fresh copy: what the handler changed in its own does not show. `answer` is what Lambda reads of the
    answer, through JSON. `error` is what the handler raised. `trouble` says why the mapping did not take the call for a
    success, and is empty where it did: a raise, a throttle, no `state` in a windowed answer, batchItemFailures.
    """

    at_ms: int
    shard: str
    kind: str
    """plain (no windows), fold, early or final."""
    attempt: int
    event: dict[str, Any]
    window: Window | None = None
    answer: Any = None
    error: BaseException | None = None
    trouble: str = ""

    @property
    def failed(self) -> bool:
        """Whether some or all of it will be tried again, or was given up."""
        return bool(self.trouble)

    @property
    def data(self) -> list[bytes]:
        """The bytes of its records."""
        return [b64decode(record["kinesis"]["data"]) for record in self.event.get("Records", ())]


class Rehearsal:
    """A stream, an event source mapping and a handler, on one clock. See the module for the rules.

    `handler` is any callable of (event, context); or a `Windows` or `Records` pipeline, which gets a table and a
    quarantine in memory (`table`, `quarantine`), its own window, and ReportBatchItemFailures where it answers them.
    The other settings are the mapping's, with Lambda's names, ranges and defaults; `retries` and `record_age_s` are
    without limit as None. `start` is TRIM_HORIZON, LATEST or a time. `enabled=False` begins with `enable()`.

    Raises windlass.local.mapping_settings.InvalidRequest for settings that Lambda refuses.
    """

    def __init__(
        self,
        handler: Handler | Windows | Records,
        *,
        shards: int = 1,
        window_s: int | None = None,
        batch_size: int = 100,
        batching_window_s: int = 0,
        parallelization: int = 1,
        retries: int | None = None,
        record_age_s: int | None = None,
        bisect: bool = False,
        report_item_failures: bool | None = None,
        filters: Iterable[str | Mapping[str, Any]] = (),
        start: str | datetime = "TRIM_HORIZON",
        enabled: bool = True,
        timeout_s: int = 60,
        begin: datetime = BEGIN,
        seed: int = 0,
        assumed: Assumptions = CLOSED_AT_ONCE,
    ) -> None:
        self.now_ms = self._begin_ms = _ms(begin)
        self.stream = MemoryStream(shards)
        self.calls: list[Call] = []
        self.discarded: list[Failure] = []
        """Batches that were given up, as an on-failure destination is told of them."""
        self._pipeline = handler if isinstance(handler, Windows | Records) else None
        self._random = random.Random(seed)
        self._ranges: dict[str, HashRange] = {}
        self._kept = Kept()
        if self._pipeline is not None:
            self._table, self._quarantine = MemoryTable(self._pipeline.table_keys), MemoryQuarantine()
        plan = handler.plan if isinstance(handler, Windows) else None
        if window_s is None:
            window_s = plan.every_s if plan else 0
        if report_item_failures is None:
            report_item_failures = isinstance(handler, Records)
        request = {
            "EventSourceArn": STREAM_ARN,
            "TumblingWindowInSeconds": window_s,
            "BatchSize": batch_size,
            "MaximumBatchingWindowInSeconds": batching_window_s,
            "ParallelizationFactor": parallelization,
            "MaximumRetryAttempts": -1 if retries is None else retries,
            "MaximumRecordAgeInSeconds": -1 if record_age_s is None else record_age_s,
            "BisectBatchOnFunctionError": bisect,
            "FunctionResponseTypes": ["ReportBatchItemFailures"] if report_item_failures else [],
            "FilterCriteria": {"Filters": [{"Pattern": _text(pattern)} for pattern in filters]},
            "DestinationConfig": {"OnFailure": {"Destination": QUEUE_ARN}},
            "StartingPosition": start if isinstance(start, str) else "AT_TIMESTAMP",
            "StartingPositionTimestamp": None if isinstance(start, str) else start,
        }
        self.settings = MappingSettings.from_request(
            request,
            uuid="00000000-0000-4000-8000-000000000000",
            function_arn=FUNCTION_ARN,
            role_arn=ROLE_ARN,
            now_ms=self.now_ms,
            assumed=assumed,
        )
        function = handler.handler_on(self._seams) if isinstance(handler, Windows | Records) else handler
        self._function = _Function(self, function, timeout_s * 1000)
        self._machines: dict[str, ShardMapping] = {}
        self._saved: dict[str, Checkpoint] = {}
        self._finished: set[str] = set()
        self._latest: dict[str, int] = {}
        if enabled:
            self.enable()

    # -- the stream -------------------------------------------------------------------------------------------

    def put(
        self,
        data: bytes | str | Mapping[str, Any],
        key: str = "key",
        *,
        shard: str | None = None,
        arrival_ms: int | None = None,
    ) -> Place:
        """Put a record: bytes, text, or a mapping that becomes JSON, Decimals as numbers.

        Its shard follows from the partition key, or is named and open. It arrives now, or at `arrival_ms`: Kinesis'
        clocks differ, so a record may be stamped a little earlier than the one before it.
        """
        hash_key = hash_of(UserRecord(key, b"")) if shard is None else self._open_shard(shard).low
        at_ms = self.now_ms if arrival_ms is None else arrival_ms
        where, place = self.stream.put(hash_key, key, _bytes(data), at_ms, self._random.randint(1, 10**12))
        where.latest_ms = max(where.latest_ms, at_ms)
        return Place(where.id, where.records[place].sequence)

    def put_aggregate(
        self, data: Iterable[bytes | str | Mapping[str, Any]], key: str | None = None, *, shard: str | None = None
    ) -> Place:
        """Put several user records in one Kinesis record, as the KPL does.

        Without a key they belong to the shard that is named. With one they belong where it hashes to, which may be
        another shard: such a carrier the KPL makes after a split.
        """
        hash_key = None if shard is None or key is not None else self._open_shard(shard).low
        carrier = carrier_bytes([UserRecord(key or "key", _bytes(each), hash_key) for each in data])
        return self.put(carrier, key or "key", shard=shard)

    @property
    def shards(self) -> list[str]:
        """The open shards, by hash range."""
        return [shard.id for shard in self.stream.open]

    def split(self, shard: str | None = None, at: int | None = None) -> tuple[str, str]:
        """Split a shard, the first one if none is named, in the middle or at a hash key. Answers the children."""
        parent = self._shard(shard or self.shards[0])
        self.stream.split(parent, (parent.low + parent.high + 1) // 2 if at is None else at)
        low, high = parent.children
        self._note_range(low, high)
        return low, high

    def merge(self, left: str | None = None, right: str | None = None) -> str:
        """Merge two neighbours, the first two if none are named. Answers the child."""
        left, right = left or self.shards[0], right or self.shards[1]
        self.stream.merge(self._shard(left), self._shard(right))
        child = self._shard(left).children[0]
        self._note_range(child)
        return child

    def _shard(self, shard_id: str) -> Shard:
        if shard_id not in self.stream.shards:
            msg = f"there is no shard {shard_id!r}; there are {', '.join(self.stream.shards)}"
            raise ValueError(msg)
        return self.stream.shards[shard_id]

    def _open_shard(self, shard_id: str) -> Shard:
        shard = self._shard(shard_id)
        if shard.closed:
            msg = f"{shard_id} is closed: nothing can be put into it; open are {', '.join(self.shards)}"
            raise ValueError(msg)
        return shard

    def _note_range(self, *shard_ids: str) -> None:
        for shard_id in shard_ids:
            shard = self._shard(shard_id)
            self._ranges[shard_id] = HashRange(shard.low, shard.high)

    # -- time -------------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The time on the clock."""
        return datetime.fromtimestamp(self.now_ms / 1000, UTC)

    def advance(self, seconds: float = 0, *, minutes: float = 0) -> None:
        """Let time go on, and do all that becomes due meanwhile."""
        until_ms = self.now_ms + round((seconds + 60 * minutes) * 1000)
        while (wake_ms := self._run_due()) is not None and wake_ms <= until_ms:
            self.now_ms = max(self.now_ms, wake_ms)
        self.now_ms = max(self.now_ms, until_ms)

    def settle(self, *, within_s: float = 3600) -> None:
        """Let time go on until everything in the stream is processed and no window is open.

        Raises NotSettled when that takes longer on this clock, with what the handler raised last as its cause.
        """
        since_ms = self.now_ms
        while True:
            wake_ms = self._run_due()
            if self._machines and all(machine.is_settled(since_ms + 1) for machine in self._machines.values()):
                return
            if wake_ms is None or wake_ms > since_ms + within_s * 1000:
                raise self._not_settled(within_s) from next(
                    (call.error for call in reversed(self.calls) if call.error is not None), None
                )
            self.now_ms = max(self.now_ms, wake_ms)

    def _not_settled(self, within_s: float) -> NotSettled:
        if not self._machines:
            return NotSettled("the mapping is disabled: enable() it first")
        stuck = [
            f"{shard_id}: {machine.trouble or 'a window is open, or records wait for their batch'}"
            for shard_id, machine in self._machines.items()
            if not machine.is_settled(self.now_ms - 2 * self.settings.poll_ms)
        ]
        return NotSettled(
            f"after {within_s:g} s of the rehearsal's time not everything is processed. {'; '.join(stuck)}\n"
            f"The last calls:\n{self.timeline(10)}"
        )

    def sleep(self, seconds: float) -> None:
        """Give this to a handler in place of time.sleep: the call takes that long, and may run into its timeout."""
        self.now_ms += round(seconds * 1000)

    # -- trouble ----------------------------------------------------------------------------------------------

    def throttle(self, calls: int = 1) -> None:
        """The next calls do not reach the handler: Lambda is out of concurrency."""
        self._function.troubles += ["throttled"] * calls

    def lose_answers(self, calls: int = 1) -> None:
        """The next calls run to their end, and their answers get lost: Lambda takes them for failed."""
        self._function.troubles += ["lost"] * calls

    def disable(self) -> None:
        """Stop the mapping where it is, as an update does. Open windows will be replayed, with empty state."""
        for machine in self._machines.values():
            machine.stop()
        self._run_due()
        self._machines.clear()

    def enable(self) -> None:
        """Begin, or go on at the checkpoints."""
        first = not self._saved
        for shard in self.stream.shards.values():
            self._begin(shard, self.settings.start if first else TRIM_HORIZON)

    def restart(self) -> None:
        """disable() and enable()."""
        self.disable()
        self.enable()

    # -- what came of it --------------------------------------------------------------------------------------

    def calls_of(self, shard: str) -> list[Call]:
        """The calls with a shard's records, in order."""
        return [call for call in self.calls if call.shard == shard]

    @property
    def finals(self) -> list[Call]:
        """The calls that ended a window and succeeded."""
        return [call for call in self.calls if call.kind == "final" and not call.failed]

    def counters(self, shard: str) -> Counters:
        """What the mapping has counted of a shard since it was enabled. KeyError for one that is not being read."""
        return self._machines[shard].counters

    @property
    def table(self) -> MemoryTable:
        """The pipeline's table."""
        self._needs_pipeline("table")
        return self._table

    @property
    def quarantine(self) -> MemoryQuarantine:
        """The pipeline's quarantine."""
        self._needs_pipeline("quarantine")
        return self._quarantine

    @property
    def items(self) -> list[Item]:
        """The items of the pipeline's table."""
        return list(self.table.items())

    @property
    def rejected(self) -> list[Rejected]:
        """The records in the pipeline's quarantine."""
        return list(self.quarantine.read())

    @property
    def reports(self) -> list[Report]:
        """What the pipeline told its telemetry, a report per call."""
        self._needs_pipeline("telemetry")
        return self._kept.reports

    def verify(self) -> Verdict:
        """Compare the table with the stream read a second time, as `windlass verify` does.

        Raises AssertionError with the differences, CannotVerify for `Records`, which have no totals. The windows must
        be closed: settle() first.
        """
        self._needs_pipeline("table to verify")
        assert self._pipeline is not None
        ranges = {shard: (within.low, within.high) for shard, within in self._ranges.items()}
        records = [
            (shard.id, record.sequence, record.arrival_ms, record.data)
            for shard in self.stream.shards.values()
            for record in shard.records
        ]
        lines = [msgspec.structs.asdict(line_of(each)) for each in self.rejected]
        verdict = verify(self._pipeline.describe(), records, self.items, lines, ranges=ranges, in_turn=True)
        if not verdict.exact:
            differences = "\n".join(f"  {difference.text}" for difference in verdict.differences[:20])
            msg = f"the table is not exact, {verdict.differences_total} differences:\n{differences}"
            raise AssertionError(msg)
        return verdict

    def timeline(self, last: int = 50) -> str:
        """The last calls, a line each: when, of which shard, what for, and what came of it."""
        lines = [self._line(call) for call in self.calls[-last:]]
        if len(self.calls) > last:
            lines.insert(0, f"({len(self.calls) - last} earlier calls)")
        return "\n".join(lines) or "(no calls)"

    def _line(self, call: Call) -> str:
        at_s = (call.at_ms - self._begin_ms) / 1000
        window = f" {call.window.start[11:19]}-{call.window.end[11:19]}" if call.window else ""
        count = len(call.event.get("Records", ()))
        records = "1 record" if count == 1 else f"{count} records"
        again = f", attempt {call.attempt}" if call.attempt > 1 else ""
        return f"{at_s:+10.3f} s  {call.shard}  {call.kind}{window}  {records}{again}: {call.trouble or 'ok'}"

    def _needs_pipeline(self, what: str) -> None:
        if self._pipeline is None:
            msg = f"a plain handler has no {what} here; rehearse a Windows or Records pipeline instead of its handler"
            raise AttributeError(msg)

    # -- the driver -------------------------------------------------------------------------------------------

    def _seams(self) -> Seams:
        return Seams(
            self._table,
            self._quarantine,
            KnownShards(self._ranges),
            self._kept,
            sleep=self.sleep,
            random=self._random.random,
        )

    def _begin(self, shard: Shard, start: Position) -> ShardMapping | None:
        """The shard's machine, where it is due to begin."""
        due = shard.id not in self._finished and self._finished.issuperset(shard.parents)
        if not due or shard.id in self._machines:
            return None
        checkpoint = self._saved.setdefault(shard.id, Checkpoint(shard.id, start))
        self._latest.setdefault(shard.id, len(shard.records))
        jitter = random.Random(f"{self._random.random()} {shard.id}").random
        machine = self._machines[shard.id] = ShardMapping(self.settings, shard.id, jitter=jitter, checkpoint=checkpoint)
        return machine

    def _run_due(self) -> int | None:
        """Do all that is due now. Answers when more will be; None: never."""
        wakes: list[int] = []
        due = list(self._machines.values())
        while due:
            machine = due.pop(0)
            ended = self._pump(machine)
            if isinstance(ended, Wait) and ended.until_ms is not None:
                wakes.append(ended.until_ms)
            elif isinstance(ended, Done):
                self._finished.add(machine.shard_id)
                del self._machines[machine.shard_id]
                children = (self._begin(self._shard(child), TRIM_HORIZON) for child in ended.children)
                due += [child for child in children if child is not None]
        return min(wakes, default=None)

    def _pump(self, machine: ShardMapping) -> Wait | Done | Stopped:
        """Do what the machine asks for, until it waits."""
        while True:
            action = machine.next(self.now_ms)
            match action:
                case Fetch():
                    machine.tell(self._fetched(action), self.now_ms)
                case Invoke():
                    self._invoke(machine, action)
                case Deliver():
                    self.discarded.append(action.failure)
                    machine.tell(Delivered(action.lane), self.now_ms)
                case Checkpoint():
                    self._saved[machine.shard_id] = action
                case Wait(until_ms=until_ms) if until_ms is not None and until_ms <= self.now_ms:
                    continue
                case Wait() | Done() | Stopped():
                    return action

    def _invoke(self, machine: ShardMapping, invoke: Invoke) -> None:
        call = Call(
            at_ms=self.now_ms,
            shard=invoke.shard_id,
            kind=invoke.kind.value,
            attempt=invoke.attempt,
            event=invoke.event(),
            window=invoke.window,
        )
        self.calls.append(call)
        outcome = self._function(invoke, call)
        machine.tell(msgspec.structs.replace(outcome, lane=invoke.lane), self.now_ms)
        call.trouble = machine.trouble_of(invoke.lane)

    def _fetched(self, fetch: Fetch) -> Fetched:
        return self.stream.fetch(msgspec.structs.replace(fetch, position=self._resolved(fetch)), fetch.limit)

    def _resolved(self, fetch: Fetch) -> Position:
        """LATEST is where the shard ended when the mapping began with it; AT_TIMESTAMP, the first record since."""
        records = self.stream.shards[fetch.shard_id].records
        match fetch.position.kind:
            case "LATEST":
                place = self._latest[fetch.shard_id]
            case "AT_TIMESTAMP":
                since = (n for n, record in enumerate(records) if record.arrival_ms >= fetch.position.at_ms)
                place = next(since, len(records))
            case _:
                return fetch.position
        return Position("AFTER_SEQUENCE_NUMBER", records[place - 1].sequence) if place else TRIM_HORIZON


class _Function:
    """The handler inside its surroundings: what it raises is kept, and trouble that was asked for happens."""

    def __init__(self, world: Rehearsal, handler: Handler, timeout_ms: int) -> None:
        self.troubles: deque[str] = deque()
        self._world = world
        self._handler = handler
        self._timeout_ms = timeout_ms
        self._raised: BaseException | None = None
        self._number = 0
        self._invoker = InProcess(
            self._call, FUNCTION_ARN, timeout_ms=timeout_ms, now_ms=lambda: world.now_ms, new_id=self._new_id
        )

    def __call__(self, invoke: Invoke, call: Call) -> Answered | Failed | Throttled:
        """Run the handler once; `call` takes what it answers or raises."""
        trouble = self.troubles.popleft() if self.troubles else ""
        if trouble == "throttled":
            return Throttled("Rate Exceeded.")
        self._raised = None
        outcome = self._invoker(invoke)
        call.error = self._raised
        if self._world.now_ms - call.at_ms > self._timeout_ms:
            return Failed("Sandbox.Timedout", f"Task timed out after {self._timeout_ms / 1000:.2f} seconds")
        if trouble == "lost":
            return Failed("AnswerLost", "the answer got lost, as it was asked for")
        if isinstance(outcome, Answered):
            call.answer = json.loads(outcome.body)
        return outcome

    def _call(self, event: dict[str, Any], context: Any) -> object:
        try:
            return self._handler(event, context)
        except BaseException as error:
            self._raised = error
            raise

    def _new_id(self) -> str:
        self._number += 1
        return f"00000000-0000-4000-8000-{self._number:012d}"


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _text(pattern: str | Mapping[str, Any]) -> str:
    return pattern if isinstance(pattern, str) else json.dumps(pattern)


def _bytes(data: bytes | str | Mapping[str, Any]) -> bytes:
    if isinstance(data, bytes):
        return data
    return data.encode() if isinstance(data, str) else _encode(data)


_encode = msgspec.json.Encoder(decimal_format="number").encode
