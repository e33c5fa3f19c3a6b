"""The event source mapping of one Kinesis shard, as a machine without I/O.

A `ShardMapping` holds what Lambda holds between a shard and a function: the records read and not yet
processed, the open tumbling window and its state, the retries of a failing batch, and the checkpoint. It has no
threads, clock, randomness or AWS client. A driver asks `next(now_ms)`, does the one action it is given, and
tells what came of it:

    action                          the driver                              and tells
    ------------------------------  --------------------------------------  -------------------------------------
    Fetch(position, limit)          reads the shard                         Fetched | FetchFailed
    Invoke(lane, payload, ...)      calls the function                      Answered | Failed | Throttled
    Deliver(lane, failure)          sends to the on-failure destination     Delivered | Undelivered
    Checkpoint(...)                 stores it; a later machine starts here  nothing
    Wait(until_ms)                  waits, or less long (None: for a tell)  nothing
    Done(children)                  starts the children                     nothing: the shard is finished
    Stopped()                       forgets the machine                     nothing: it was told to stop()

An answer may be told at once, by a single-threaded driver on a virtual clock, or later, from a pool: with
ParallelizationFactor > 1 several calls are under way, one per lane. Time never runs by itself: the same calls of
`next` and `tell` give the same actions, byte for byte.

**A mapping is stopped, changed and restarted in one way.** Disabling, updating and a crash all end a machine; its
last Checkpoint makes the next one, with the same settings or others. A retry count does not outlive its machine.

What a call came to is one of five verdicts:

    DONE        everything in it is processed
    PREFIX      batchItemFailures name a record after the first one: those before it are processed
    NOTHING     batchItemFailures name the first record: no progress
    FAILED      a function error (timeout included), an answer over 6 MB, an unusable batchItemFailures,
                or, with windows, no `state` object in the answer
    UNINVOKED   throttled, or not invoked at all: no fault of the batch

and the table AFTER says what follows (bisect = BisectBatchOnFunctionError, and two records or more to split):

    verdict    bisect  retries left  step
    ---------  ------  ------------  ----------------------------------------------------------------------------
    DONE         -          -        FINISH   the next batch
    PREFIX       -          -        SHORTEN  the rest is a batch of its own: its retry count starts again
    NOTHING      -         yes       RETRY    the same batch, after a pause; counted
    NOTHING      -         no        DISCARD
    FAILED      yes         -        SPLIT    first half, then second half; not counted
    FAILED      no         yes       RETRY    the same batch, after a pause; counted
    FAILED      no         no        DISCARD
    UNINVOKED    -          -        RETRY    the same batch, after a pause; not counted

DISCARD reports the batch to the on-failure destination, where there is one, and goes on behind it, whether
that delivery succeeds or not. Each failing call is followed by a pause that doubles with the failures in a row.
Records beyond MaximumRecordAgeInSeconds are discarded before a call, from its front only. A record whose event
cannot fit into 6 MB is discarded without a call. Meanwhile the shard, or with ParallelizationFactor the lane,
is blocked; other shards are not, nor other lanes until so much waits for the blocked one that nothing more is read.

With tumbling windows there are four kinds of call:

    kind    Records     when                                       on FINISH
    ------  ----------  -----------------------------------------  ------------------------------------------------
    PLAIN   a batch     (no windows)                               the checkpoint moves
    FOLD    a batch     a batch is due, or its window closes       the answer's state is kept
    EARLY   none        the kept state is over 1 MB                the state is {} again, in the same window
    FINAL   none        the window closes                          the window is gone; the checkpoint moves

A window closes when the shard's next record belongs to a later window, when the shard ends, or when the shard
is quiet: nothing came for the grace time after the window's end, and a read begun after that found nothing.
Records that the filter passes over neither open nor hold nor close a window (assumed). No window is
opened, and no call made, without a record. A window's records wait for nothing else once it closes, or once a
straggler whose own window is opened again (an option) stands behind them; that one does not close it.

    discarded in a FOLD      the window goes on without those records, state kept
    a FINAL or EARLY fails   its records, if it has any, are discarded as usual; the call itself is repeated
                             until it succeeds (assumed; an option discards it, state and all)
    stop() in a window       the checkpoint is before the window's first record: a replay with empty state
                             (assumed; an option keeps window and state in the checkpoint)

Lambda's own words on these: Lambda Developer Guide, "Using Kinesis ... tumbling windows" (aggregation and state,
early termination, final invocation), "Configuring partial batch response", "Retain discarded batch records",
"Parameters for Amazon Kinesis Data Streams event source mappings". What they leave open is in
`windlass.local.mapping_settings.Assumptions`.
"""

import binascii
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from hashlib import md5
from typing import Any, TypeAlias

import msgspec

from windlass.core.window import Window
from windlass.local.filters import Filter
from windlass.local.mapping_settings import (
    NOTHING_PROCESSED,
    PROBLEM,
    PROCESSED,
    MappingSettings,
    Position,
)
from windlass.local.mapping_settings import (
    STATE_BYTES_MAX as STATE_BYTES_MAX,
)

PAYLOAD_BYTES_MAX = 6 * 1024 * 1024
RESPONSE_BYTES_MAX = 6 * 1024 * 1024 + 100  # what the runtime accepts before Function.ResponseSizeTooLarge
READ_AHEAD_BYTES_MAX = 64 * 1024 * 1024

_NEVER_MS = -(2**63)
_FOREVER_MS = 2**63

# --- what goes in ----------------------------------------------------------------------------------------------


class StreamRecord(msgspec.Struct, frozen=True, gc=False):
    """A record as GetRecords gives it. `arrival_ms` is its approximate arrival, truncated to whole milliseconds."""

    sequence: str
    partition_key: str
    arrival_ms: int
    data: bytes


class Fetched(msgspec.Struct, frozen=True):
    """A read of the shard, in its order. `ended`: this was the last of a closed shard, and `children` follow it."""

    records: list[StreamRecord]
    behind_latest_ms: int = 0
    ended: bool = False
    children: tuple[str, ...] = ()


class FetchFailed(msgspec.Struct, frozen=True):
    """The shard could not be read (throttled, unreachable): the same read is tried again after a pause."""

    reason: str


class Answered(msgspec.Struct, frozen=True):
    """The function returned `body`, JSON as its runtime wrote it."""

    body: bytes = b"null"
    lane: int = 0
    request_id: str = ""


class Failed(msgspec.Struct, frozen=True):
    """A function error: the function raised, timed out, exited, or its answer could not be written as JSON."""

    error_type: str
    message: str = ""
    lane: int = 0
    request_id: str = ""


class Throttled(msgspec.Struct, frozen=True):
    """The function was not invoked: throttled, or Lambda could not start it."""

    reason: str = ""
    lane: int = 0


class Delivered(msgspec.Struct, frozen=True):
    """The destination has taken the failure record."""

    lane: int = 0


class Undelivered(msgspec.Struct, frozen=True):
    """The destination has refused the failure record; the mapping goes on."""

    reason: str = ""
    lane: int = 0


Outcome: TypeAlias = Fetched | FetchFailed | Answered | Failed | Throttled | Delivered | Undelivered

# --- what comes out --------------------------------------------------------------------------------------------


class Kind(Enum):
    """The kinds of call; the prologue's third table."""

    PLAIN = "plain"
    FOLD = "fold"
    EARLY = "early"
    FINAL = "final"


class Fetch(msgspec.Struct, frozen=True):
    """Read the shard from `position`, at most `limit` records."""

    shard_id: str
    position: Position
    limit: int


class Invoke(msgspec.Struct, frozen=True):
    """Call the function with `payload`, the event as compact JSON. `attempt` counts the calls of this batch from 1."""

    shard_id: str
    lane: int
    kind: Kind
    payload: bytes
    records: int
    attempt: int
    window: Window | None = None
    iterator_age_ms: int | None = None
    """The age of the last record at the moment of the call: Lambda's IteratorAge metric. None without records."""

    def event(self) -> dict[str, Any]:
        """The event as the function's runtime decodes it: a fresh object for every call."""
        event: dict[str, Any] = msgspec.json.decode(self.payload)
        return event


class Failure(msgspec.Struct, frozen=True):
    """A discarded batch, for the on-failure destination; `windlass.local.destination` writes it down."""

    shard_id: str
    condition: str  # RetryAttemptsExhausted | RecordAgeExceeded
    invokes: int
    records: int
    first_sequence: str
    last_sequence: str
    first_arrival_ms: int
    last_arrival_ms: int
    responded: bool
    function_error: str | None
    request_id: str
    payload: bytes
    """The event of the discarded records, for S3; empty for the other destinations."""


class Deliver(msgspec.Struct, frozen=True):
    """Send the failure record to the mapping's on-failure destination."""

    lane: int
    failure: Failure


class OpenWindow(msgspec.Struct, frozen=True):
    """A window that a stopped mapping will go on with, where `keep_window` says so. `state` is JSON text."""

    window: Window
    state: str


class Checkpoint(msgspec.Struct, frozen=True):
    """Where a later machine of this shard begins. It survives its own encoding (`msgspec.json`)."""

    shard_id: str
    position: Position
    ended: bool = False
    windows: tuple[OpenWindow, ...] = ()


class Wait(msgspec.Struct, frozen=True):
    """Nothing to do before `until_ms`; None: before an outcome is told."""

    until_ms: int | None


class Done(msgspec.Struct, frozen=True):
    """The shard was closed and everything in it is processed: its children may begin."""

    children: tuple[str, ...]


class Stopped(msgspec.Struct, frozen=True):
    """stop() was told, and no call is under way."""


Action: TypeAlias = Fetch | Invoke | Deliver | Checkpoint | Wait | Done | Stopped

# --- the rules -------------------------------------------------------------------------------------------------


class Verdict(Enum):
    """What a call came to."""

    DONE = auto()
    PREFIX = auto()
    NOTHING = auto()
    FAILED = auto()
    UNINVOKED = auto()


class Step(Enum):
    """What follows a call."""

    FINISH = auto()
    SHORTEN = auto()
    RETRY = auto()
    SPLIT = auto()
    DISCARD = auto()


_EITHER = (False, True)


def _table(*rows: tuple[Verdict, tuple[bool, ...], tuple[bool, ...], Step]) -> dict[tuple[Verdict, bool, bool], Step]:
    return {
        (verdict, bisect, left): step for verdict, bisects, lefts, step in rows for bisect in bisects for left in lefts
    }


# (verdict, to be bisected, retries left) -> step
AFTER = _table(
    (Verdict.DONE, _EITHER, _EITHER, Step.FINISH),
    (Verdict.PREFIX, _EITHER, _EITHER, Step.SHORTEN),
    (Verdict.NOTHING, _EITHER, (True,), Step.RETRY),
    (Verdict.NOTHING, _EITHER, (False,), Step.DISCARD),
    (Verdict.FAILED, (True,), _EITHER, Step.SPLIT),
    (Verdict.FAILED, (False,), (True,), Step.RETRY),
    (Verdict.FAILED, (False,), (False,), Step.DISCARD),
    (Verdict.UNINVOKED, _EITHER, _EITHER, Step.RETRY),
)
COUNTED = (Verdict.NOTHING, Verdict.FAILED)  # the verdicts that use up a retry

RETRIES_EXHAUSTED = "RetryAttemptsExhausted"
AGE_EXCEEDED = "RecordAgeExceeded"

# Which calls tell the function what: kind -> (isFinalInvokeForWindow, isWindowTerminatedEarly)
FLAGS = {Kind.FOLD: (False, False), Kind.EARLY: (False, True), Kind.FINAL: (True, False)}


@dataclass(slots=True)
class Counters:
    """What a shard has done so far. The names after EventCount's metrics count records, the others calls."""

    polled: int = 0
    filtered_out: int = 0
    invoked: int = 0
    failed_invoke: int = 0
    dropped: int = 0
    on_failure_delivered: int = 0
    invocations: int = 0
    errors: int = 0
    throttles: int = 0
    finals: int = 0
    earlies: int = 0
    stragglers: int = 0
    warnings: int = 0
    fetches: int = 0
    fetch_failures: int = 0
    destination_failures: int = 0
    iterator_age_ms: int = 0
    behind_latest_ms: int = 0


@dataclass(slots=True)
class _Record:
    """A record that waits: its place, its times, and its element of `Records`, written once."""

    sequence: str
    arrival_ms: int
    read_ms: int
    json: bytes


@dataclass(slots=True)
class _Call:
    """A batch on its way through the function."""

    kind: Kind
    records: list[_Record]
    retries: int = 0  # counted against MaximumRetryAttempts
    invokes: int = 0  # all calls of this batch
    request_id: str = ""
    repeated: bool = False


@dataclass(slots=True)
class _Open:
    """The window that a lane is in."""

    window: Window
    state: bytes  # compact JSON
    sequence: str  # of its first record, where a replay begins; empty when it came out of a checkpoint
    reopened: bool = False
    first: _Record | None = None
    last: _Record | None = None


@dataclass(slots=True)
class _Judgement:
    verdict: Verdict
    done: int = 0  # PREFIX: so many records are processed
    state: bytes | None = None  # what the answer says it is now
    error: str | None = None  # responseContext.functionError
    why: str = ""


class _Event:
    """Writes events: the shard's constant parts once, each record's element once."""

    def __init__(self, settings: MappingSettings, shard_id: str) -> None:
        self.shard_id = shard_id
        text = msgspec.json.encode
        self._element = (
            b'{"kinesis":{"kinesisSchemaVersion":"1.0","partitionKey":%%b,"sequenceNumber":"%%b","data":"%%b",'
            b'"approximateArrivalTimestamp":%%b},"eventSource":"aws:kinesis","eventVersion":"1.0",'
            b'"eventID":"%b:%%b","eventName":"aws:kinesis:record","invokeIdentityArn":%b,"awsRegion":%b,'
            b'"eventSourceARN":%b}'
        ) % (
            _literal(shard_id.encode()),
            _literal(text(settings.role_arn)),
            _literal(text(settings.region)),
            _literal(text(settings.event_source_arn)),
        )
        self._window = (
            b',"window":{"start":"%%b","end":"%%b"},"state":%%b,"shardId":%b,"eventSourceARN":%b,'
            b'"isFinalInvokeForWindow":%%b,"isWindowTerminatedEarly":%%b'
        ) % (_literal(text(shard_id)), _literal(text(settings.event_source_arn)))
        self._bare_bytes = len(self.payload([]))
        blank = _Open(Window(0, 1000), b"", "")
        self._bare_window_bytes = len(self.payload([], self.window(blank, (False, False))))

    def element(self, record: StreamRecord) -> bytes:
        """One element of `Records`. The arrival is in seconds, with the milliseconds as its fraction."""
        sequence = record.sequence.encode()
        return self._element % (
            msgspec.json.encode(record.partition_key),
            sequence,
            binascii.b2a_base64(record.data, newline=False),
            b"%a" % (record.arrival_ms / 1000),
            sequence,
        )

    def payload(self, records: list[_Record], window: bytes = b"") -> bytes:
        """The whole event. `window` is its further members, of a windowed call."""
        return b'{"Records":[%b]%b}' % (b",".join([record.json for record in records]), window)

    def window(self, open_: _Open, flags: tuple[bool, bool]) -> bytes:
        """The members that a tumbling window adds. `flags`: final, terminated early."""
        window = open_.window
        final, early = (b"true" if flag else b"false" for flag in flags)
        return self._window % (window.start.encode(), window.end.encode(), open_.state, final, early)

    def room(self, open_: _Open | None) -> int:
        """The bytes that an event has left for the elements of `Records`."""
        if open_ is None:
            return PAYLOAD_BYTES_MAX - self._bare_bytes
        return PAYLOAD_BYTES_MAX - self._bare_window_bytes - len(open_.state)


def _literal(text: bytes) -> bytes:
    return text.replace(b"%", b"%%")


class _Answer(msgspec.Struct):
    """The two members of a response that Lambda reads, still as text."""

    state: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    batchItemFailures: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _ItemFailure(msgspec.Struct):
    itemIdentifier: str


# Answers without an object that report no failure, as documented; any other is unusable (assumed).
_EMPTY_ANSWERS = (b"null", b"[]", b'""', b"")

# What msgspec raises for bytes that are not JSON, not UTF-8, or nested too deep.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_read_answer = msgspec.json.Decoder(_Answer).decode
_read_failures = msgspec.json.Decoder(list[_ItemFailure] | None).decode


# --- one lane --------------------------------------------------------------------------------------------------


class _Lane:
    """The records of one shard that are processed one call at a time, in order.

    A shard has one lane, or ParallelizationFactor of them, told apart by the hash of the partition key.
    """

    def __init__(
        self,
        number: int,
        settings: MappingSettings,
        event: _Event,
        counters: Counters,
        jitter: Callable[[], float],
    ) -> None:
        self.number = number
        self.moved = False  # the checkpoint may have moved
        self.trouble = ""  # what the last call came to, in words; empty: it succeeded
        self._settings = settings
        self._assumed = settings.assumed
        self._event = event
        self._counters = counters
        self._jitter = jitter
        self._pending: deque[_Record] = deque()
        self._work: deque[_Call] = deque()  # the call that is due or under way, then what it was split from
        self._windows: list[_Open] = []  # the open window; above it, one opened again for stragglers
        self._busy = False  # a call or a delivery is under way
        self._dropping = 0  # so many records of the first call are being delivered to the destination
        self._paused_until_ms = 0
        self._failures_in_row = 0
        self._returned_ms = 0
        self._activity_ms = 0
        self._successes = 0
        self.pending_bytes = 0

    # What it holds.

    def add(self, record: _Record) -> None:
        self._pending.append(record)
        self.pending_bytes += len(record.json)
        self._activity_ms = record.read_ms

    def restore(self, windows: Iterable[OpenWindow]) -> None:
        """Go on with windows that a checkpoint kept."""
        self._windows = [_Open(each.window, each.state.encode(), "") for each in windows]
        for open_ in self._windows[1:]:
            open_.reopened = True
        if self._windows:
            self._terminate_early()

    def kept_windows(self) -> tuple[OpenWindow, ...]:
        """The windows that go into the checkpoint, instead of being replayed."""
        return tuple(
            OpenWindow(each.window, each.state.decode())
            for each in self._windows
            if self._assumed.keep_window or not each.sequence
        )

    def unfinished(self) -> str | None:
        """The sequence number of the first record that a restart must read again; None: there is none."""
        if self._windows and self._windows[0].sequence and not self._assumed.keep_window:
            return self._windows[0].sequence
        for call in self._work:
            if call.records:
                return call.records[0].sequence
        return self._pending[0].sequence if self._pending else None

    @property
    def busy(self) -> bool:
        return self._busy

    @property
    def window(self) -> Window | None:
        return self._windows[-1].window if self._windows else None

    def is_idle(self) -> bool:
        return not (self._busy or self._work or self._pending or self._windows)

    def is_hungry(self) -> bool:
        return not self._work and len(self._pending) < self._settings.batch_size

    # When it acts.

    def quiet_ms(self) -> int | None:
        """From when the open window closes, if a read that begins then finds nothing; None: no window."""
        if not self._windows:
            return None
        last_ms = self._windows[-1].window.end_ms
        if self._assumed.grace_from == "last-activity":
            last_ms = max(last_ms, self._activity_ms)
        return last_ms + self._assumed.grace_ms

    def wake_ms(self) -> int | None:
        """When `due` is worth asking again; None: after an outcome, or more records."""
        if self._busy:
            return None
        if self._work:
            return self._paused_until_ms
        times = [self._deadline_ms()] if self._pending else []
        quiet_ms = self.quiet_ms()
        if quiet_ms is not None:
            times.append(quiet_ms)
        return max(self._paused_until_ms, min(times)) if times else None

    def _deadline_ms(self) -> int:
        """When the batching window is over. It starts with the first waiting record (assumed), and again when
        the previous call returns."""
        return max(self._pending[0].read_ms, self._returned_ms) + self._settings.batching_window_ms

    # Which call it makes.

    def due(self, now_ms: int, tip_ms: int, *, ending: bool) -> _Call | None:
        """The call to make now.

        `tip_ms` is when the last read began, if it found the end of what there is, else -1; `ending`: the shard
        is closed and read.
        """
        if self._busy or now_ms < self._paused_until_ms:
            return None
        if not self._work:
            if self._settings.window_ms or self._windows:
                self._form_windowed(now_ms, tip_ms, ending=ending)
            else:
                self._form_plain(now_ms, ending=ending)
        return self._work[0] if self._work else None

    def _form_plain(self, now_ms: int, *, ending: bool) -> None:
        if self._pending:
            count, full = self._run(None)
            if full or ending or now_ms >= self._deadline_ms():
                self._work.append(_Call(Kind.PLAIN, self._take(count)))

    def _form_windowed(self, now_ms: int, tip_ms: int, *, ending: bool) -> None:
        """The next call of the open window: its records as long as there are any, then its end."""
        # A kept window of a mapping that has no windows any more closes before the first read.
        assert self._settings.window_ms or not self._pending
        if not self._windows and not self._pending:
            return
        if not self._windows:
            self._open(self._pending[0])
        open_ = self._windows[-1]
        count, full = self._run(open_)
        if not count and self._is_straggler(open_):
            self._open(self._pending[0], reopened=True)
            open_ = self._windows[-1]
            count, full = self._run(open_)
        interrupted = not full and self._is_interrupted(open_, count)
        closing = not (full or interrupted) and self._closes(open_, count, tip_ms, ending=ending)
        if count and (full or closing or interrupted or now_ms >= self._deadline_ms()):
            final = closing and self._assumed.final_carries_records
            self._work.append(_Call(Kind.FINAL if final else Kind.FOLD, self._take(count)))
            open_.first = open_.first or self._work[0].records[0]
            open_.last = self._work[0].records[-1]
        elif closing:
            assert not count
            self._work.append(_Call(Kind.FINAL, []))

    def _closes(self, open_: _Open, count: int, tip_ms: int, *, ending: bool) -> bool:
        """Whether the window ends behind its first `count` pending records, all that are known of it."""
        if count < len(self._pending):
            return True  # a record of another window stands behind them
        quiet_ms = self.quiet_ms()
        assert quiet_ms is not None
        return ending or open_.reopened or not self._settings.window_ms or tip_ms >= quiet_ms

    def _is_interrupted(self, open_: _Open, count: int) -> bool:
        """Whether behind its first `count` pending records stands one whose own, earlier window is to be reopened."""
        if open_.reopened or count >= len(self._pending):
            return False
        return self._pending[count].arrival_ms < open_.window.start_ms

    def _is_straggler(self, open_: _Open) -> bool:
        """Whether the next record's window is to be opened again, above the open one."""
        return bool(self._pending) and not open_.reopened and self._pending[0].arrival_ms < open_.window.start_ms

    def _open(self, record: _Record, *, reopened: bool = False) -> None:
        window = Window.of(record.arrival_ms, self._settings.window_ms)
        self._windows.append(_Open(window, b"{}", record.sequence, reopened))

    def _run(self, open_: _Open | None) -> tuple[int, bool]:
        """How many records from the front make one batch, and whether they fill it."""
        low_ms, high_ms = self._span(open_)
        room = self._event.room(open_)
        count = 0
        for record in self._pending:
            if not low_ms <= record.arrival_ms < high_ms:
                return count, False
            room -= len(record.json) + (count > 0)
            if room < 0:
                return max(count, 1), True
            count += 1
            if count == self._settings.batch_size:
                return count, True
        return count, False

    def _span(self, open_: _Open | None) -> tuple[int, int]:
        """The arrivals that may join the next batch."""
        if open_ is None:
            return _NEVER_MS, _FOREVER_MS
        joins = self._assumed.straggler == "current" and not open_.reopened
        return (_NEVER_MS if joins else open_.window.start_ms), open_.window.end_ms

    def _take(self, count: int) -> list[_Record]:
        records = [self._pending.popleft() for _ in range(count)]
        self.pending_bytes -= sum(len(record.json) for record in records)
        return records

    # What it says.

    def payload(self, call: _Call, count: int | None = None) -> bytes:
        """The event of a call, or as much of it as has its first `count` records."""
        records = call.records[:count]
        if call.kind is Kind.PLAIN:
            return self._event.payload(records)
        return self._event.payload(records, self._event.window(self._windows[-1], self._flags(call)))

    def _flags(self, call: _Call) -> tuple[bool, bool]:
        """(isFinalInvokeForWindow, isWindowTerminatedEarly)"""
        final, early = FLAGS[call.kind]
        if early:
            return self._assumed.early_call == "extra-final", True
        return final, self._terminates(call)

    def _terminates(self, call: _Call) -> bool:
        """Whether a regular call takes the oversized state away."""
        next_ = self._assumed.early_call == "next"
        return next_ and call.kind is Kind.FOLD and self._is_oversized(self._windows[-1])

    def _is_oversized(self, open_: _Open) -> bool:
        return len(open_.state) > self._assumed.state_bytes_max

    def started(self, call: _Call, now_ms: int) -> int | None:
        """The call is under way. Returns the age of its last record."""
        self._busy = True
        call.invokes += 1
        counters = self._counters
        counters.invocations += 1
        counters.invoked += len(call.records)
        if self._windows:
            start_ms = self._windows[-1].window.start_ms
            counters.stragglers += sum(record.arrival_ms < start_ms for record in call.records)
        if not call.records:
            return None
        counters.iterator_age_ms = max(0, now_ms - call.records[-1].arrival_ms)
        return counters.iterator_age_ms

    def expired(self, call: _Call, now_ms: int) -> int:
        """How many records from the front of a call are past MaximumRecordAgeInSeconds."""
        age_ms_max = self._settings.record_age_ms_max
        if age_ms_max is None:
            return 0
        for count, record in enumerate(call.records):
            if now_ms - record.arrival_ms <= age_ms_max:
                return count
        return len(call.records)

    def fitting(self, call: _Call) -> int:
        """How many records from the front of a call fit into one payload; its state may have grown meanwhile."""
        room = self._event.room(None if call.kind is Kind.PLAIN else self._windows[-1])
        for count, record in enumerate(call.records):
            room -= len(record.json) + (count > 0)
            if room < 0:
                return count
        return len(call.records)

    # What follows.

    def told(self, outcome: Answered | Failed | Throttled, now_ms: int) -> Failure | None:
        """A call has come back. Returns what is to be delivered to the destination, if anything is."""
        assert self._busy, outcome
        self._busy = False
        self._returned_ms = now_ms
        call = self._work[0]
        if not isinstance(outcome, Throttled):
            call.request_id = outcome.request_id
        judgement = self._judge(call, outcome)
        self.trouble = judgement.why
        self._count(call, judgement)
        if judgement.verdict is Verdict.DONE and self._loses_answer(call):
            return None
        step = AFTER[judgement.verdict, self._splittable(call), self._has_retries(call)]
        if step is Step.DISCARD and not call.records and self._assumed.final_blocks:
            step = Step.RETRY  # the window's end is not a record that one may drop
        if judgement.state is not None:
            self._accept(call, judgement.state)
        match step:
            case Step.FINISH:
                self._finish(call)
            case Step.SHORTEN:
                self._shorten(call, judgement.done, now_ms)
            case Step.RETRY:
                call.retries += judgement.verdict in COUNTED
                self._pause(now_ms)
            case Step.SPLIT:
                self.split(len(call.records) // 2)
                self._pause(now_ms)
            case Step.DISCARD:
                report = self.discard(len(call.records), RETRIES_EXHAUSTED, error=judgement.error)
                if self._windows:
                    self._terminate_early()
                return report
        if self._windows:
            self._terminate_early()
        return None

    def _splittable(self, call: _Call) -> bool:
        allowed = self._settings.bisect and (call.kind is Kind.PLAIN or self._assumed.bisect_windows)
        return allowed and len(call.records) > 1

    def _has_retries(self, call: _Call) -> bool:
        return self._settings.retries_max is None or call.retries < self._settings.retries_max

    def _loses_answer(self, call: _Call) -> bool:
        """Fault injection: the function has run, and runs again as if it had not."""
        if call.repeated or not self._assumed.repeat_every:
            return False
        self._successes += 1
        call.repeated = self._successes % self._assumed.repeat_every == 0
        return call.repeated

    def _accept(self, call: _Call, state: bytes) -> None:
        """What the window's state is after an answer. An early or final call has taken it away."""
        gone = (call.kind in (Kind.EARLY, Kind.FINAL) and not call.records) or self._terminates(call)
        self._windows[-1].state = b"{}" if gone else state

    def _terminate_early(self) -> None:
        """State over the limit gets a call of its own, before anything else of the window."""
        open_ = self._windows[-1]
        if not self._is_oversized(open_) or (self._work and self._work[0].kind is Kind.EARLY):
            return
        # State that takes up the payload leaves no next call that it could travel in.
        if self._assumed.early_call != "next" or self._event.room(open_) < PAYLOAD_BYTES_MAX // 2:
            self._work.appendleft(_Call(Kind.EARLY, []))

    def _finish(self, call: _Call) -> None:
        self._work.popleft()
        self._failures_in_row = 0
        self.moved = True
        if call.kind is Kind.FINAL:
            self._windows.pop()

    def _shorten(self, call: _Call, done: int, now_ms: int) -> None:
        """The rest of a batch becomes a batch of its own, with all its retries (as recorded on AWS)."""
        self._work[0] = _Call(call.kind, call.records[done:], request_id=call.request_id)
        self._failures_in_row = 0
        self.moved = True
        self._pause(now_ms)

    def split(self, at: int) -> None:
        """Two calls for the first one. What ends a window stays with the second."""
        call = self._work.popleft()
        first = Kind.FOLD if call.kind is Kind.FINAL else call.kind
        self._work.appendleft(_Call(call.kind, call.records[at:], call.retries))
        self._work.appendleft(_Call(first, call.records[:at], call.retries))

    def _pause(self, now_ms: int) -> None:
        pause_ms = backoff_ms(self._settings, self._failures_in_row, self._jitter())
        self._failures_in_row += 1
        self._paused_until_ms = now_ms + pause_ms

    def discard(self, count: int, condition: str, *, error: str | None = None) -> Failure | None:
        """Give up the first call's first `count` records. Returns the failure to deliver, if there is where to."""
        self._dropping = count
        if not self._settings.on_failure_arn:
            self._counters.dropped += count
            self._drop()
            return None
        self._busy = True
        return self._failure(self._work[0], count, condition, error)

    def delivered(self, outcome: Delivered | Undelivered) -> None:
        """The destination has taken or refused the failure; either way the lane goes on behind it."""
        assert self._busy, outcome
        self._busy = False
        if isinstance(outcome, Delivered):
            self._counters.on_failure_delivered += self._dropping
        else:
            self._counters.destination_failures += 1
            self._counters.dropped += self._dropping
        self._drop()

    def _drop(self) -> None:
        call = self._work[0]
        call.records = call.records[self._dropping :]
        self.moved = True
        if call.records:
            return
        self._failures_in_row = 0
        self._paused_until_ms = 0
        if self._dropping and call.kind is Kind.FINAL:
            self._work[0] = _Call(Kind.FINAL, [])  # its records are given up, the end of the window is not
            return
        self._work.popleft()
        if call.kind is Kind.FINAL:
            self._windows.pop()
        elif call.kind is Kind.EARLY:
            self._windows[-1].state = b"{}"

    def _failure(self, call: _Call, count: int, condition: str, error: str | None) -> Failure:
        if call.records:
            first, last = call.records[0], call.records[count - 1]
        else:
            first, last = _bounds(self._windows[-1])
        return Failure(
            shard_id=self._event.shard_id,
            condition=condition,
            invokes=max(1, call.invokes),  # as recorded on AWS: 1 also for a batch that was never sent
            records=count,
            first_sequence=first.sequence,
            last_sequence=last.sequence,
            first_arrival_ms=first.arrival_ms,
            last_arrival_ms=last.arrival_ms,
            responded=condition == RETRIES_EXHAUSTED and call.invokes > 0,
            function_error=error,
            request_id=call.request_id,
            payload=self.payload(call, count) if _is_bucket(self._settings.on_failure_arn) else b"",
        )

    # What a call came to.

    def _judge(self, call: _Call, outcome: Answered | Failed | Throttled) -> _Judgement:
        if isinstance(outcome, Throttled):
            return _Judgement(Verdict.UNINVOKED, why=f"not invoked: {outcome.reason}")
        if isinstance(outcome, Failed):
            why = f"{outcome.error_type}: {outcome.message}"
            return _Judgement(Verdict.FAILED, error="Unhandled", why=why)
        if len(outcome.body) > RESPONSE_BYTES_MAX:
            why = f"Function.ResponseSizeTooLarge: {len(outcome.body)} bytes"
            return _Judgement(Verdict.FAILED, error="Unhandled", why=why)
        if call.kind is not Kind.PLAIN:
            return self._judge_windowed(call, outcome.body)
        if self._settings.report_item_failures:
            if outcome.body.strip() in _EMPTY_ANSWERS:
                return _Judgement(Verdict.DONE)
            return _judge_report(call.records, _answer(outcome.body))
        return _Judgement(Verdict.DONE)

    def _judge_windowed(self, call: _Call, body: bytes) -> _Judgement:
        answer = _answer(body)
        state = _state(answer)
        if isinstance(state, str):
            if self._assumed.final_needs_state or call.kind is Kind.FOLD or _has_state(answer):
                return _Judgement(Verdict.FAILED, why=state)
            self._counters.warnings += 1
            state = b"{}"
        if not self._settings.report_item_failures:
            return _Judgement(Verdict.DONE, state=state)
        judgement = _judge_report(call.records, answer)
        if judgement.verdict is Verdict.FAILED:
            return judgement
        if judgement.verdict is not Verdict.DONE and not self._assumed.partial_keeps_state:
            return _Judgement(Verdict.FAILED, why="batchItemFailures beside state")
        judgement.state = state
        return judgement

    def _count(self, call: _Call, judgement: _Judgement) -> None:
        counters = self._counters
        match judgement.verdict:
            case Verdict.UNINVOKED:
                counters.throttles += 1
                return
            case Verdict.FAILED:
                counters.errors += 1
            case Verdict.DONE if not call.repeated:
                counters.finals += call.kind is Kind.FINAL
                counters.earlies += call.kind is Kind.EARLY or (bool(self._windows) and self._terminates(call))
        if judgement.verdict is not Verdict.DONE:
            counters.failed_invoke += len(call.records) - judgement.done


def _is_bucket(arn: str) -> bool:
    return arn.split(":")[2:3] == ["s3"]


def _bounds(open_: _Open) -> tuple[_Record, _Record]:
    """The first and last record of a window; a window kept in a checkpoint does not know them any more."""
    unknown = _Record("", open_.window.start_ms, 0, b"")
    return open_.first or unknown, open_.last or unknown


def backoff_ms(settings: MappingSettings, failures: int, jitter: float) -> int:
    """The pause after one more failure: half of it fixed, half of it `jitter` (0 to 1). Lambda's is not known."""
    assumed = settings.assumed
    full_ms = min(assumed.backoff_ms << min(failures, 30), assumed.backoff_ms_max)
    return round(full_ms * (1 + jitter) / 2)


def _answer(body: bytes) -> _Answer | None:
    """The members of an answer; None: it is JSON, or not even that, but no object."""
    try:
        return _read_answer(body)
    except _UNREADABLE:
        return None


def _has_state(answer: _Answer | None) -> bool:
    return answer is not None and answer.state is not msgspec.UNSET


def _state(answer: _Answer | None) -> bytes | str:
    """The state of an answer as compact JSON, or as a sentence what is wrong with it."""
    if answer is None:
        return "a windowed function answers with an object that has state; the answer is not a JSON object"
    if isinstance(answer.state, msgspec.UnsetType):
        return "a windowed function answers with an object that has state; the answer has none"
    try:
        state = msgspec.json.format(bytes(answer.state), indent=-1)
        usable = isinstance(msgspec.json.decode(state), dict)
    except _UNREADABLE:
        usable = False
    if not usable:
        return f"state is a JSON object; found {bytes(answer.state)[:40]!r}"
    return state


def _judge_report(records: list[_Record], answer: _Answer | None) -> _Judgement:
    """What batchItemFailures say. One that names no record of the batch fails the whole of it."""
    if answer is None:
        return _Judgement(Verdict.FAILED, why="the answer is not a JSON object")
    if isinstance(answer.batchItemFailures, msgspec.UnsetType):
        return _Judgement(Verdict.DONE)
    try:
        failures = _read_failures(answer.batchItemFailures)
    except _UNREADABLE as error:
        return _Judgement(Verdict.FAILED, why=f"batchItemFailures: {error}")
    if not failures:
        return _Judgement(Verdict.DONE)
    places = {record.sequence: place for place, record in enumerate(records)}
    found = [places.get(failure.itemIdentifier, -1) for failure in failures]
    lowest = min(found)
    if lowest < 0:
        unknown = failures[found.index(-1)].itemIdentifier
        return _Judgement(Verdict.FAILED, why=f"batchItemFailures: {unknown!r} is not in the batch")
    why = f"batchItemFailures: {len(failures)} from {records[lowest].sequence}"
    return _Judgement(Verdict.PREFIX if lowest else Verdict.NOTHING, done=lowest, why=why)


# --- the machine -----------------------------------------------------------------------------------------------


class ShardMapping:
    """One shard's half of an event source mapping: see the prologue.

    `jitter` gives numbers from 0 to 1 for the pauses. `checkpoint` is where an earlier machine of this shard
    stopped, or `Checkpoint(shard_id, TRIM_HORIZON)` for the child of a finished shard; without one, the shard is
    read from the mapping's starting position.
    """

    def __init__(
        self,
        settings: MappingSettings,
        shard_id: str,
        *,
        jitter: Callable[[], float],
        checkpoint: Checkpoint | None = None,
    ) -> None:
        checkpoint = checkpoint or Checkpoint(shard_id, settings.start)
        assert checkpoint.shard_id == shard_id, checkpoint
        assert not checkpoint.ended, checkpoint
        self.settings = settings
        self.shard_id = shard_id
        self.counters = Counters()
        self.last_result = NOTHING_PROCESSED
        """LastProcessingResult, as the API shows it."""
        self._filter = Filter(settings.filters)
        self._event = _Event(settings, shard_id)
        self._jitter = jitter
        self._lanes = [
            _Lane(number, settings, self._event, self.counters, jitter) for number in range(settings.parallelization)
        ]
        self._lanes[0].restore(checkpoint.windows)
        self._position = checkpoint.position  # where the next read begins
        self._saved = checkpoint
        self._moved = False
        self._deliveries: deque[Deliver] = deque()
        self._fetching = False
        self._fetch_failures = 0
        self._begun_ms = 0  # when the last read began
        self._fetch_ms = 0  # when the next one may
        self._tip_ms = -1
        self._ended = False
        self._children: tuple[str, ...] = ()
        self._stopping = False

    # -- asked ------------------------------------------------------------------------------------------------

    def next(self, now_ms: int) -> Action:
        """The one thing to do now. What is under way is not asked for again."""
        if self._deliveries:
            return self._deliveries.popleft()
        if self._has_moved() and (moved := self.checkpoint()) != self._saved:
            self._saved = moved
            return moved
        if self._stopping:
            return Wait(None) if any(lane.busy for lane in self._lanes) else Stopped()
        for lane in self._lanes:
            action = self._call(lane, now_ms)
            if action is not None:
                return action
        if self._wants_records() and now_ms >= self._next_fetch_ms():
            return self._fetch(now_ms)
        if self._ended and self._is_idle():
            return self._end()
        return Wait(self._wake_ms(now_ms))

    def checkpoint(self) -> Checkpoint:
        """Where a restart would begin: at the first record that is not processed, or in a window to replay."""
        unfinished = [sequence for lane in self._lanes if (sequence := lane.unfinished()) is not None]
        position = self._position
        if unfinished:
            position = Position("AT_SEQUENCE_NUMBER", min(unfinished, key=int))
        windows = tuple(window for lane in self._lanes for window in lane.kept_windows())
        return Checkpoint(self.shard_id, position, windows=windows)

    def is_settled(self, since_ms: int) -> bool:
        """Whether everything that was in the shard at `since_ms` is processed, and no window is open.

        A read under way does not matter: what it brings came later.
        """
        return (self._ended or self._tip_ms >= since_ms) and not self._moved and self._has_no_work()

    @property
    def window(self) -> Window | None:
        """The open window."""
        return self._lanes[0].window

    @property
    def trouble(self) -> str:
        """What the last call that came back went wrong with, in words; empty: it succeeded."""
        return next((lane.trouble for lane in self._lanes if lane.trouble), "")

    def trouble_of(self, lane: int) -> str:
        """The same of one lane."""
        return self._lanes[lane].trouble

    @property
    def warnings(self) -> list[str]:
        """What the filter patterns ask for beyond what Lambda documents."""
        return self._filter.warnings

    # -- told -------------------------------------------------------------------------------------------------

    def tell(self, outcome: Outcome, now_ms: int) -> None:
        """What came of an action. Outcomes of calls and deliveries name their lane."""
        match outcome:
            case Fetched():
                self._fetched(outcome, now_ms)
            case FetchFailed():
                self._fetching = False
                self.counters.fetch_failures += 1
                self._fetch_ms = now_ms + backoff_ms(self.settings, self._fetch_failures, self._jitter())
                self._fetch_failures += 1
            case Delivered() | Undelivered():
                self._lanes[outcome.lane].delivered(outcome)
            case Answered() | Failed() | Throttled():
                lane = self._lanes[outcome.lane]
                failure = lane.told(outcome, now_ms)
                self.last_result = PROBLEM if lane.trouble else PROCESSED
                if failure is not None:
                    self._deliveries.append(Deliver(lane.number, failure))

    def stop(self) -> None:
        """Begin nothing new. Calls under way are awaited, and their checkpoint is still given out."""
        self._stopping = True

    # -- calls ------------------------------------------------------------------------------------------------

    def _call(self, lane: _Lane, now_ms: int) -> Invoke | Deliver | None:
        while (call := lane.due(now_ms, self._tip_ms, ending=self._ended)) is not None:
            failure: Failure | None
            if expired := lane.expired(call, now_ms):
                failure = lane.discard(expired, AGE_EXCEEDED)
            elif len(payload := lane.payload(call)) > PAYLOAD_BYTES_MAX and call.records:
                if fitting := lane.fitting(call):
                    lane.split(fitting)
                    continue
                failure = lane.discard(1, RETRIES_EXHAUSTED)
            else:
                return self._invoke(lane, call, payload, now_ms)
            if failure is not None:
                return Deliver(lane.number, failure)
        return None

    def _invoke(self, lane: _Lane, call: _Call, payload: bytes, now_ms: int) -> Invoke:
        age_ms = lane.started(call, now_ms)
        return Invoke(
            shard_id=self.shard_id,
            lane=lane.number,
            kind=call.kind,
            payload=payload,
            records=len(call.records),
            attempt=call.invokes,
            window=None if call.kind is Kind.PLAIN else lane.window,
            iterator_age_ms=age_ms,
        )

    # -- reads ------------------------------------------------------------------------------------------------

    def _wants_records(self) -> bool:
        buffered = sum(lane.pending_bytes for lane in self._lanes)
        return (
            not (self._fetching or self._ended)
            and buffered < READ_AHEAD_BYTES_MAX
            and any(lane.is_hungry() for lane in self._lanes)
        )

    def _next_fetch_ms(self) -> int:
        """The next read, brought forward to where a quiet window closes, but never beyond the permitted rate."""
        if self._fetch_failures:
            return self._fetch_ms
        quiet = [quiet_ms for lane in self._lanes if (quiet_ms := lane.quiet_ms()) is not None]
        return max(min([self._fetch_ms, *quiet]), self._begun_ms + self.settings.poll_ms_min)

    def _fetch(self, now_ms: int) -> Fetch:
        self._fetching = True
        self._begun_ms = now_ms
        self.counters.fetches += 1
        return Fetch(self.shard_id, self._position, self.settings.fetch_records_max)

    def _fetched(self, outcome: Fetched, now_ms: int) -> None:
        self._fetch_failures = 0
        self.counters.behind_latest_ms = outcome.behind_latest_ms
        more = outcome.behind_latest_ms > 0 or len(outcome.records) >= self.settings.fetch_records_max
        self._fetch_ms = self._begun_ms + (self.settings.poll_ms_min if more else self.settings.poll_ms)
        if outcome.records:
            self._read(outcome.records, now_ms)
        # After the records are taken in: another thread may ask is_settled() meanwhile.
        self._children = outcome.children
        self._ended = outcome.ended
        self._tip_ms = -1 if more else self._begun_ms
        self._fetching = False

    def _read(self, records: list[StreamRecord], now_ms: int) -> None:
        kept = records
        if self.settings.filters:
            kept = [record for record in records if self._keeps(record)]
        self.counters.polled += len(records)
        self.counters.filtered_out += len(records) - len(kept)
        element = self._event.element
        for record in kept:
            lane = self._lane_of(record.partition_key)
            lane.add(_Record(record.sequence, record.arrival_ms, now_ms, element(record)))
        # A first read fixes LATEST and the like to a place; records that are all filtered out move it.
        self._moved = self._moved or not self._position.sequence or not kept
        self._position = Position("AFTER_SEQUENCE_NUMBER", records[-1].sequence)

    def _keeps(self, record: StreamRecord) -> bool:
        return self._filter.keeps(
            data=record.data,
            partition_key=record.partition_key,
            sequence=record.sequence,
            arrival_ms=record.arrival_ms,
        )

    def _lane_of(self, partition_key: str) -> _Lane:
        """By the low bits of the key's hash: the high ones are what the shards are divided by."""
        if len(self._lanes) == 1:
            return self._lanes[0]
        digest = md5(partition_key.encode(), usedforsecurity=False).digest()
        return self._lanes[int.from_bytes(digest[8:]) % len(self._lanes)]

    # -- the end of things ------------------------------------------------------------------------------------

    def _is_idle(self) -> bool:
        return not self._fetching and self._has_no_work()

    def _has_no_work(self) -> bool:
        return not self._deliveries and all(lane.is_idle() for lane in self._lanes)

    def _has_moved(self) -> bool:
        moved = self._moved or any(lane.moved for lane in self._lanes)
        self._moved = False
        for lane in self._lanes:
            lane.moved = False
        return moved

    def _end(self) -> Checkpoint | Done:
        ended = Checkpoint(self.shard_id, self._position, ended=True)
        if self._saved == ended:
            return Done(self._children)
        self._saved = ended
        return ended

    def _wake_ms(self, now_ms: int) -> int | None:
        """When to ask again. A time that has passed without anything to do waits for a read."""
        times = [wake_ms for lane in self._lanes if (wake_ms := lane.wake_ms()) is not None and wake_ms > now_ms]
        if self._wants_records():
            times.append(self._next_fetch_ms())
        return min(times, default=None)
