"""Runs an event source mapping on threads: one loop per shard, against a real Kinesis endpoint.

    Poller ── discovers shards, parents before children ──► one _ShardLoop per shard
                                                             │ asks ShardMapping.next, does it, tells
                     Stream (reads a shard) ◄────────────────┤
                     Invoke → function    ◄──────────────────┤
                     Destination, Checkpoints ◄──────────────┘

A loop only ever touches its own machine, so a shard that fails or waits slows no other. With
ParallelizationFactor the calls of a shard run in a pool of that many threads. The rules of the mapping are in
`windlass.local.mapping`; here is only the driving.

Where a shard begins: at its checkpoint. Without one, the shards of the very first listing begin at the
mapping's starting position (LATEST: the time of that listing), and every shard that appears later at its
beginning, as nothing of it was missed.
"""

import asyncio
import json
import logging
import queue
import random
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import dropwhile
from pathlib import Path
from typing import Any, Protocol

import msgspec

from windlass.core.window import Window
from windlass.local.destination import Destination
from windlass.local.mapping import (
    Action,
    Answered,
    Checkpoint,
    Counters,
    Deliver,
    Delivered,
    Done,
    Failed,
    Fetch,
    Fetched,
    FetchFailed,
    Invoke,
    Outcome,
    ShardMapping,
    Stopped,
    StreamRecord,
    Throttled,
    Undelivered,
    Wait,
)
from windlass.local.mapping_settings import (
    LATEST,
    NOTHING_PROCESSED,
    PROBLEM,
    PROCESSED,
    TRIM_HORIZON,
    MappingSettings,
    Position,
    State,
    after,
)

log = logging.getLogger(__name__)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
SETTLE_POLL_S = 0.01


def wall_clock_ms() -> int:
    """The time, in milliseconds UTC."""
    return time.time_ns() // 1_000_000


# --- the stream ------------------------------------------------------------------------------------------------


class Shard(msgspec.Struct, frozen=True):
    """A shard as ListShards gives it. `closed`: it takes no more records. `starting`: no record comes before it."""

    shard_id: str
    parents: tuple[str, ...] = ()
    closed: bool = False
    starting: str = "0"

    def follows(self, ended: Checkpoint | None) -> bool:
        """Whether it begins behind the end of a shard of its id: that one's stream was deleted and made again."""
        return ended is not None and ended.ended and int(ended.position.sequence or self.starting) < int(self.starting)


class Stream(Protocol):
    """A Kinesis stream, to read. What it raises is told to the machine, which tries again."""

    def shards(self) -> list[Shard]: ...

    def fetch(self, fetch: Fetch) -> Fetched: ...


class PolledStream:
    """A stream read with GetRecords, from any endpoint that a boto3 Kinesis client points to.

    AWS says that a closed shard has been read by a missing NextShardIterator. Where an endpoint goes on giving
    iterators, a shard that ListShards called closed before a read, and that read found nothing, is read too.
    """

    def __init__(self, client: Any, stream_arn: str) -> None:
        self._client = client
        self._name = stream_arn.partition("/")[2].partition("/")[0]
        self._iterators: dict[str, tuple[Any, str]] = {}
        self._closed: frozenset[str] = frozenset()

    def shards(self) -> list[Shard]:
        return list_shards(self._client, self._name, self._note_closed)

    def _note_closed(self, shards: list[Shard]) -> None:
        self._closed = frozenset(shard.shard_id for shard in shards if shard.closed)

    def fetch(self, fetch: Fetch) -> Fetched:
        closed = fetch.shard_id in self._closed
        answer = self._client.get_records(ShardIterator=self._iterator(fetch), Limit=fetch.limit)
        records = _stream_records(answer["Records"], fetch.position)
        behind_ms = answer.get("MillisBehindLatest", 0)
        following = answer.get("NextShardIterator")
        if following is not None:
            position = fetch.position
            if records:
                position = Position("AFTER_SEQUENCE_NUMBER", records[-1].sequence)
            self._iterators[fetch.shard_id] = (position, following)
        return Fetched(
            records,
            behind_latest_ms=behind_ms,
            ended=following is None or (closed and not records and not behind_ms),
            children=tuple(child["ShardId"] for child in answer.get("ChildShards", ())),
        )

    def _iterator(self, fetch: Fetch) -> str:
        position, iterator = self._iterators.pop(fetch.shard_id, (None, ""))
        if position == fetch.position:
            return iterator
        request: dict[str, Any] = {
            "StreamName": self._name,
            "ShardId": fetch.shard_id,
            "ShardIteratorType": fetch.position.kind,
            **_place(fetch.position, "StartingSequenceNumber"),
        }
        got: str = self._client.get_shard_iterator(**request)["ShardIterator"]
        return got


class SubscribedStream:
    """A stream read through an enhanced fan-out consumer: Kinesis pushes, and a thread per shard takes it in.

    A read takes what has been pushed, or waits `wait_ms` for it. A subscription ends by itself after five minutes
    and is taken up again where it stopped; one that breaks raises, and the next read begins a new one. Give the
    mapping's settings a small `poll_ms`: a read that waits here costs nothing. Whoever made it closes it.

    Source: Kinesis API Reference, "SubscribeToShard" and "SubscribeToShardEvent".
    """

    def __init__(self, client: Any, consumer_arn: str, *, wait_ms: int = 200) -> None:
        self._client = client
        self._consumer_arn = consumer_arn
        self._wait_s = wait_ms / 1000
        self._subscriptions: dict[str, _Subscription] = {}

    def shards(self) -> list[Shard]:
        name = self._consumer_arn.partition("/")[2].partition("/")[0]
        return list_shards(self._client, name, lambda _: None)

    def fetch(self, fetch: Fetch) -> Fetched:
        subscription = self._subscriptions.get(fetch.shard_id)
        if subscription is None or subscription.position != fetch.position:
            if subscription is not None:
                subscription.close()
            subscription = _Subscription(self._client, self._consumer_arn, fetch)
            self._subscriptions[fetch.shard_id] = subscription
        try:
            return subscription.take(fetch.limit, self._wait_s)
        except Exception:
            del self._subscriptions[fetch.shard_id]
            raise

    def close(self) -> None:
        """Take in nothing more. The connections are given up with the next push."""
        for subscription in self._subscriptions.values():
            subscription.close()


class _Subscription:
    """What one shard pushes, in order. `position` is where its next record is expected."""

    def __init__(self, client: Any, consumer_arn: str, fetch: Fetch) -> None:
        self.position = fetch.position
        self._behind_ms = 1  # not known to be at the end before the first push says so
        self._client = client
        self._request = {"ConsumerARN": consumer_arn, "ShardId": fetch.shard_id}
        self._pushed: queue.Queue[dict[str, Any] | Exception] = queue.Queue(maxsize=16)
        self._closed = threading.Event()
        self._broken: Exception | None = None
        threading.Thread(target=self._pump, name=f"pushed-{fetch.shard_id}", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def take(self, limit: int, wait_s: float) -> Fetched:
        """What was pushed since, up to about `limit` records. Raises what broke the subscription."""
        if self._broken is not None:
            raise self._broken
        records: list[StreamRecord] = []
        ended, children = False, ()
        while len(records) < limit and not ended:
            try:
                pushed = self._pushed.get(timeout=0 if records else wait_s)
            except queue.Empty:
                break
            if isinstance(pushed, Exception):
                if not records:
                    raise pushed
                self._broken = pushed  # told by the next read, which may then begin a new subscription
                break
            records += _stream_records(pushed["Records"], TRIM_HORIZON if records else self.position)
            self._behind_ms = pushed.get("MillisBehindLatest", 0)
            ended = pushed.get("ContinuationSequenceNumber") is None
            children = tuple(child["ShardId"] for child in pushed.get("ChildShards") or ())
        if records:
            self.position = Position("AFTER_SEQUENCE_NUMBER", records[-1].sequence)
        return Fetched(records, behind_latest_ms=self._behind_ms, ended=ended, children=children)

    def _pump(self) -> None:
        position: Position | None = self.position
        try:
            while position is not None and not self._closed.is_set():
                position = self._pump_once(position)
        except Exception as error:  # noqa: BLE001  (it is raised where the shard is read)
            self._put(error)

    def _pump_once(self, position: Position) -> Position | None:
        """One subscription, five minutes at most. Returns where the next begins; None: the shard has ended."""
        starting = {"Type": position.kind, **_place(position, "SequenceNumber")}
        answer = self._client.subscribe_to_shard(**self._request, StartingPosition=starting)
        with closing(answer["EventStream"]) as pushes:
            for each in pushes:
                pushed = each["SubscribeToShardEvent"]
                self._put(pushed)
                continuation = pushed.get("ContinuationSequenceNumber")
                if continuation is None or self._closed.is_set():
                    return None
                position = Position("AFTER_SEQUENCE_NUMBER", continuation)
        return position

    def _put(self, pushed: dict[str, Any] | Exception) -> None:
        """Wait for room, as long as anybody reads."""
        while not self._closed.is_set():
            with suppress(queue.Full):
                self._pushed.put(pushed, timeout=0.2)
                return


def _place(position: Position, sequence: str) -> dict[str, Any]:
    """The members of a request that say where; `sequence` is what it calls the sequence number."""
    if position.kind == "AT_TIMESTAMP":
        return {"Timestamp": datetime.fromtimestamp(position.at_ms / 1000, UTC)}
    return {sequence: position.sequence} if position.sequence else {}


def list_shards(client: Any, name: str, note: Callable[[list[Shard]], None]) -> list[Shard]:
    """All shards of a stream, closed ones included. `note` hears of them too."""
    shards: list[Shard] = []
    request: dict[str, Any] = {"StreamName": name}
    while True:
        answer = client.list_shards(**request)
        shards += [_shard(each) for each in answer["Shards"]]
        if not answer.get("NextToken"):
            note(shards)
            return shards
        request = {"NextToken": answer["NextToken"]}


def _shard(listed: dict[str, Any]) -> Shard:
    parents = [listed.get("ParentShardId"), listed.get("AdjacentParentShardId")]
    numbers = listed["SequenceNumberRange"]
    return Shard(
        listed["ShardId"],
        tuple(parent for parent in parents if parent),
        "EndingSequenceNumber" in numbers,
        numbers["StartingSequenceNumber"],
    )


def _stream_records(given: list[dict[str, Any]], position: Position) -> list[StreamRecord]:
    """What is read from a position. From a time, an endpoint that takes whole seconds gives earlier records too."""
    records = map(_stream_record, given)
    return list(dropwhile(lambda record: record.arrival_ms < position.at_ms, records))


def _stream_record(record: dict[str, Any]) -> StreamRecord:
    return StreamRecord(
        record["SequenceNumber"],
        record["PartitionKey"],
        (record["ApproximateArrivalTimestamp"] - EPOCH) // MILLISECOND,
        record["Data"],
    )


# --- the function ----------------------------------------------------------------------------------------------


class Invoker(Protocol):
    """Runs the function once. Raises nothing: what went wrong is the outcome. The lane is filled in later."""

    def __call__(self, call: Invoke) -> Answered | Failed | Throttled: ...


class Context:
    """What Lambda hands a Python function beside the event."""

    function_version = "$LATEST"
    memory_limit_in_mb = "128"
    identity = None
    client_context = None

    def __init__(self, function_arn: str, request_id: str, deadline_ms: int, now_ms: Callable[[], int]) -> None:
        self.invoked_function_arn = function_arn
        self.function_name = function_arn.split(":")[6] if function_arn.count(":") >= 6 else function_arn
        self.aws_request_id = request_id
        self.log_group_name = f"/aws/lambda/{self.function_name}"
        self.log_stream_name = "local"
        self._deadline_ms = deadline_ms
        self._now_ms = now_ms

    def get_remaining_time_in_millis(self) -> int:
        return max(0, self._deadline_ms - self._now_ms())


# What a function may raise: Lambda reports it all. What a caller raises to end itself (Ctrl-C, a test) is not among it.
_RAISED = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError)


class InProcess:
    """Any callable of (event, context) as the mapping's function, with what Lambda's runtime does around it.

    A timeout is told to the function, by its context, but not enforced: a thread cannot be ended.
    """

    def __init__(
        self,
        function: Callable[[dict[str, Any], Any], object],
        function_arn: str,
        *,
        timeout_ms: int = 60_000,
        now_ms: Callable[[], int] = wall_clock_ms,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._function = function
        self._arn = function_arn
        self._timeout_ms = timeout_ms
        self._now_ms = now_ms
        self._new_id = new_id

    def __call__(self, call: Invoke) -> Answered | Failed:
        request_id = self._new_id()
        context = Context(self._arn, request_id, self._now_ms() + self._timeout_ms, self._now_ms)
        try:
            result = self._function(call.event(), context)
        except _RAISED as error:
            return Failed(type(error).__name__, str(error), request_id=request_id)
        try:
            body = json.dumps(result, ensure_ascii=False, default=_decimal).encode()
        except (TypeError, ValueError, RecursionError) as error:
            return Failed("Runtime.MarshalError", f"Unable to marshal response: {error}", request_id=request_id)
        return Answered(body, request_id=request_id)


def _decimal(value: object) -> object:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    msg = f"Object of type {type(value).__name__} is not JSON serializable"
    raise TypeError(msg)


# --- checkpoints -----------------------------------------------------------------------------------------------


class Checkpoints(Protocol):
    """Keeps the last checkpoint of every shard of one stream. `save` may be called from several threads."""

    def belong_to(self, stream_arn: str) -> None:
        """Say which stream it is. Raises ValueError where the checkpoints are of another."""

    def load(self) -> dict[str, Checkpoint]: ...

    def save(self, checkpoint: Checkpoint) -> None: ...


class MemoryCheckpoints:
    """Checkpoints that live as long as this object."""

    def __init__(self) -> None:
        self._held: dict[str, Checkpoint] = {}

    def belong_to(self, stream_arn: str) -> None:
        """Whoever made this object knows its stream."""

    def load(self) -> dict[str, Checkpoint]:
        return dict(self._held)

    def save(self, checkpoint: Checkpoint) -> None:
        self._held[checkpoint.shard_id] = checkpoint


class _Kept(msgspec.Struct, frozen=True):
    """What a file holds. `stream` is empty as long as it is not known."""

    stream: str
    checkpoints: list[Checkpoint]


class FileCheckpoints:
    """Checkpoints in one JSON file, replaced as a whole: a crash leaves the old one or the new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        kept = self._read()
        self._stream = kept.stream
        self._held = {checkpoint.shard_id: checkpoint for checkpoint in kept.checkpoints}

    def _read(self) -> _Kept:
        if not self._path.exists():
            return _Kept("", [])
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept | list[Checkpoint])
        except msgspec.DecodeError as error:
            msg = (
                f"{self._path} holds no checkpoints: {error}. "
                "Restore the file, or delete it to begin again at the starting position."
            )
            raise ValueError(msg) from None
        return _Kept("", kept) if isinstance(kept, list) else kept  # a list: of a version that named no stream

    def belong_to(self, stream_arn: str) -> None:
        if self._stream not in ("", stream_arn):
            msg = f"{self._path} holds the checkpoints of {self._stream}, not of {stream_arn}. Name another file."
            raise ValueError(msg)
        self._stream = stream_arn

    def load(self) -> dict[str, Checkpoint]:
        with self._lock:
            return dict(self._held)

    def save(self, checkpoint: Checkpoint) -> None:
        with self._lock:
            self._held[checkpoint.shard_id] = checkpoint
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside = self._path.with_name(self._path.name + ".new")
            kept = _Kept(self._stream, sorted(self._held.values(), key=lambda held: held.shard_id))
            beside.write_bytes(msgspec.json.encode(kept))
            beside.replace(self._path)


# --- one shard -------------------------------------------------------------------------------------------------


class Seams(msgspec.Struct, frozen=True):
    """What a loop reaches outside through."""

    stream: Stream
    invoke: Invoker
    deliver: Destination
    checkpoints: Checkpoints
    now_ms: Callable[[], int]
    observe: Callable[[Invoke, Outcome], None]


class _ShardLoop(threading.Thread):
    """One shard's machine and the thread that drives it."""

    def __init__(self, machine: ShardMapping, seams: Seams, finished: Callable[[], None]) -> None:
        super().__init__(name=f"mapping-{machine.shard_id}", daemon=True)
        self.machine = machine
        self.done = False
        self.error: BaseException | None = None
        self._seams = seams
        self._finished = finished
        self._inbox: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._stop_requested = False
        self._unread = ""
        self._step = threading.Lock()  # held while the machine thinks: nobody sees it in between
        factor = machine.settings.parallelization
        self._pool = ThreadPoolExecutor(factor) if factor > 1 else None

    def stop(self) -> None:
        self._stop_requested = True
        self._inbox.put(None)

    def is_settled(self, since_ms: int) -> bool:
        with self._step:
            return self.done or self.machine.is_settled(since_ms)

    def status(self) -> "ShardStatus":
        machine = self.machine
        with self._step:
            return ShardStatus(
                machine.shard_id,
                Counters(**{name: getattr(machine.counters, name) for name in Counters.__slots__}),
                machine.window,
                _in_words(self.error) if self.error else machine.trouble,
                self.done,
                self._unread,
            )

    def run(self) -> None:
        try:
            self._drive()
        except BaseException as error:
            self.error = error
            log.exception("the loop of %s has ended", self.machine.shard_id)
        finally:
            if self._pool is not None:
                self._pool.shutdown()
            self._finished()

    def _drive(self) -> None:
        seams = self._seams
        while True:
            match action := self._next():
                case Fetch():
                    self._tell(self._fetch(action))
                case Invoke() if self._pool is not None:
                    self._pool.submit(self._call_later, action)
                case Invoke():
                    self._tell(self._call(action))
                case Deliver():
                    self._tell(_on_lane(seams.deliver(action.failure), action.lane))
                case Checkpoint():
                    seams.checkpoints.save(action)
                case Wait():
                    self._wait(action.until_ms)
                case Done():
                    self.done = True
                    return
                case Stopped():
                    return

    def _next(self) -> Action:
        now_ms = self._seams.now_ms()
        with self._step:
            if self._stop_requested:
                self.machine.stop()
            return self.machine.next(now_ms)

    def _tell(self, outcome: Outcome) -> None:
        now_ms = self._seams.now_ms()
        with self._step:
            self.machine.tell(outcome, now_ms)

    def _wait(self, until_ms: int | None) -> None:
        """Until then, or until there is an outcome, or stop()."""
        if self._stop_requested and until_ms is not None:
            return
        seconds = None if until_ms is None else max(0.0, (until_ms - self._seams.now_ms()) / 1000)
        try:
            outcome = self._inbox.get(timeout=seconds)
        except queue.Empty:
            return
        if outcome is not None:
            self._tell(outcome)

    def _fetch(self, fetch: Fetch) -> Fetched | FetchFailed:
        try:
            fetched = self._seams.stream.fetch(fetch)
        except Exception as error:  # noqa: BLE001  (the machine tries again, whatever it was)
            log.warning("reading %s failed: %s", fetch.shard_id, error)
            self._unread = str(error)
            return FetchFailed(str(error))
        self._unread = ""
        return fetched

    def _call(self, call: Invoke) -> Outcome:
        outcome: Outcome
        try:
            outcome = _on_lane(self._seams.invoke(call), call.lane)
        except BaseException as error:  # noqa: BLE001  (an invoker raises nothing; one that does fails this call only)
            outcome = Failed(type(error).__name__, str(error), lane=call.lane)
        if isinstance(outcome, Failed):
            log.warning("%s: the function failed: %s: %s", call.shard_id, outcome.error_type, outcome.message)
        self._seams.observe(call, outcome)
        return outcome

    def _call_later(self, call: Invoke) -> None:
        outcome: Outcome
        try:
            outcome = self._call(call)
        except BaseException as error:  # noqa: BLE001  (an observer that raises must not hang us)
            outcome = Failed(type(error).__name__, str(error), lane=call.lane)
        self._inbox.put(outcome)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _on_lane(outcome: Any, lane: int) -> Any:
    return msgspec.structs.replace(outcome, lane=lane) if lane else outcome


# --- the mapping -----------------------------------------------------------------------------------------------


class ShardStatus(msgspec.Struct, frozen=True):
    """A shard now, for display. `done`: closed and processed to its end. `unread`: why the last read failed."""

    shard_id: str
    counters: Counters
    window: Window | None
    trouble: str
    done: bool
    unread: str = ""


def _no_destination(failure: Any) -> Delivered | Undelivered:
    return Undelivered(f"no destination is connected for {failure.condition}")


def _ignore(call: Invoke, outcome: Outcome) -> None:
    """Nobody watches."""


class Poller:
    """An event source mapping at work.

    `invoke` runs the function (`InProcess`, or whatever hosts it); `deliver` takes failures; `observe` hears of
    every call with its outcome, on the thread that made it. One seed decides all pauses.
    """

    def __init__(
        self,
        settings: MappingSettings,
        stream: Stream,
        invoke: Invoker,
        *,
        deliver: Destination | None = None,
        checkpoints: Checkpoints | None = None,
        now_ms: Callable[[], int] = wall_clock_ms,
        observe: Callable[[Invoke, Outcome], None] = _ignore,
        seed: int = 0,
        discover_ms: int = 1000,
    ) -> None:
        self.settings = settings
        self.state = State.CREATING
        self._checkpoints = checkpoints or MemoryCheckpoints()
        self._seams = Seams(stream, invoke, deliver or _no_destination, self._checkpoints, now_ms, observe)
        self._seed = seed
        self._discover_ms = discover_ms
        self._loops: dict[str, _ShardLoop] = {}
        self._ended: set[str] = set()
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._stopping = False
        self._supervisor = threading.Thread(target=self._supervise, name="mapping-shards", daemon=True)

    def start(self) -> None:
        """Begin. The first listing of the shards is made here, so what is wrong with the stream is raised here."""
        self._checkpoints.belong_to(self.settings.stream_arn)
        self._ended = {shard for shard, held in self._checkpoints.load().items() if held.ended}
        self._discover()
        self.state = after(self.state, "ready")
        self._supervisor.start()

    def stop(self) -> None:
        """End after the calls that are running. Their checkpoints are kept; an open window is replayed later.

        Raises what ended a loop unexpectedly, if anything did.
        """
        if self.state is State.ENABLED:
            self.state = State.DISABLING
        self._stopping = True
        self._wake.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        with self._lock:
            loops = list(self._loops.values())
        for loop in loops:
            loop.stop()
        for loop in loops:
            loop.join()
        self.state = State.DISABLED
        for loop in loops:
            if loop.error is not None:
                raise loop.error

    def settle(self, *, timeout_s: float | None = None) -> bool:
        """Wait until everything that is in the stream now is processed and no window is open.

        False when that takes longer than `timeout_s`, or a loop has ended with an error (`stop` raises it).
        """
        since_ms = self._seams.now_ms() + 1  # a read that began in this very millisecond may have missed a record
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not (self._is_settled(since_ms) and self._discover() == 0 and self._is_settled(since_ms)):
            if deadline is not None and time.monotonic() >= deadline:
                return False
            if self.broken:
                return False
            time.sleep(SETTLE_POLL_S)
        return True

    @property
    def broken(self) -> bool:
        """Whether a loop has ended with an error, which `stop` raises."""
        with self._lock:
            return any(loop.error is not None for loop in self._loops.values())

    @property
    def last_result(self) -> str:
        """LastProcessingResult over all shards; a loop that has ended with an error comes first."""
        with self._lock:
            loops = list(self._loops.values())
        for loop in loops:
            if loop.error is not None:
                return f"PROBLEM: {loop.machine.shard_id} is not read any more: {_in_words(loop.error)}"
        results = {loop.machine.last_result for loop in loops}
        return next((result for result in (PROBLEM, PROCESSED) if result in results), NOTHING_PROCESSED)

    def status(self) -> list[ShardStatus]:
        """Every shard that was begun, by its id."""
        with self._lock:
            loops = sorted(self._loops.items())
        return [loop.status() for _, loop in loops]

    def _is_settled(self, since_ms: int) -> bool:
        with self._lock:
            return all(loop.is_settled(since_ms) for loop in self._loops.values())

    def _supervise(self) -> None:
        while not self._stopping:
            self._wake.wait(self._discover_ms / 1000)
            self._wake.clear()
            if self._stopping:
                return
            try:
                self._discover()
            except Exception as error:  # noqa: BLE001  (the next listing may succeed)
                log.warning("listing the shards failed: %s", error)

    def _discover(self) -> int:
        """Begin the shards whose parents are done. Returns how many were begun or must still wait."""
        with self._lock:
            listed = self._seams.stream.shards()
            held = self._checkpoints.load()
            if not held:
                held = {shard.shard_id: Checkpoint(shard.shard_id, self._start()) for shard in listed}
                for checkpoint in held.values():
                    self._checkpoints.save(checkpoint)
            known = {shard.shard_id for shard in listed}
            self._ended |= {shard_id for shard_id, loop in self._loops.items() if loop.done}
            for shard in listed:
                begin = self._begins_again(shard, held.get(shard.shard_id))
                if begin is not None:
                    self._ended.discard(shard.shard_id)
                    self._loops.pop(shard.shard_id, None)
                    held[shard.shard_id] = Checkpoint(shard.shard_id, begin)
                    self._checkpoints.save(held[shard.shard_id])
            unbegun = [
                shard for shard in listed if shard.shard_id not in self._loops and shard.shard_id not in self._ended
            ]
            for shard in unbegun:
                if all(parent in self._ended or parent not in known for parent in shard.parents):
                    self._begin(held.get(shard.shard_id) or Checkpoint(shard.shard_id, TRIM_HORIZON))
            return len(unbegun)

    def _start(self) -> Position:
        """The starting position. LATEST is now, and stays that when a read fails or the mapping is restarted."""
        start = self.settings.start
        return Position("AT_TIMESTAMP", at_ms=self._seams.now_ms()) if start == LATEST else start

    def _begins_again(self, shard: Shard, held: Checkpoint | None) -> Position | None:
        """Where a shard that had ended is to be read from once more; None: nowhere."""
        if shard.follows(held):
            return TRIM_HORIZON
        # A crash may take the end of a shard back, of a stream in memory, and leave the checkpoint. A shard that
        # ended here is no such one: the listing may be older than its end.
        if held is not None and held.ended and not shard.closed and shard.shard_id not in self._loops:
            return held.position
        return None

    def _begin(self, checkpoint: Checkpoint) -> None:
        if self._stopping:
            return
        machine = ShardMapping(
            self.settings,
            checkpoint.shard_id,
            jitter=random.Random(f"{self._seed} {checkpoint.shard_id}").random,
            checkpoint=checkpoint,
        )
        loop = _ShardLoop(machine, self._seams, self._wake.set)
        self._loops[checkpoint.shard_id] = loop
        loop.start()
