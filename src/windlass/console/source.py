"""The one seam that the console reads through, and the plain values that cross it.

Times are milliseconds UTC; a sequence number is Kinesis' own text; a position is `windlass.core.position`'s. What a
source cannot know is None, and the page says so instead of guessing.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from windlass.quarantine import Browsable


class SourceProblem(Exception):
    """Something cannot be read or put. One line: what is wrong, what was found, what to do."""


@contextmanager
def plainly(what: str, done: str) -> Iterator[None]:
    """AWS' errors as one line: `what` cannot be `done`."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        msg = f"{what} cannot be {done}: {' '.join(str(error).split())[:300]}"
        raise SourceProblem(msg) from None


class Setting(msgspec.Struct, frozen=True):
    """A setting in words, for display."""

    name: str
    value: str


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked at: its parts, by name, and their settings.

    `key_path` is where a record has its key, () where that is not known; `key_attribute` what the table calls it.
    `totals` are the attributes that hold totals. `examples` are records to put, by name.
    """

    title: str
    stream: str
    function: str
    table: str
    quarantine: str
    on_failure: str = ""
    endpoint: str = ""
    region: str = ""
    every_ms: int
    key_attribute: str
    key_path: tuple[str, ...] = ()
    totals: tuple[str, ...]
    keeps_windows: bool = True
    mapping: tuple[Setting, ...] = ()
    runtime: tuple[Setting, ...] = ()
    examples: Mapping[str, str] = {}


class ShardView(msgspec.Struct, frozen=True, kw_only=True):
    """A shard at this moment. `low` and `high` are its hash keys, both included, as shares of the whole, 0 to 1.

    `state`: reading, waiting (for its parents), blocked, done, or idle. `window` is the open one, `folded` the clean
    records in it so far, `state_bytes` the most that its state takes.
    """

    shard_id: str
    parents: tuple[str, ...]
    low: float
    high: float
    closed: bool
    state: str
    window: tuple[int, int] | None = None
    folded: int | None = None
    state_bytes: int | None = None
    polled: int | None = None
    behind_ms: int | None = None
    iterator_age_ms: int | None = None
    invocations: int | None = None
    errors: int | None = None
    trouble: str = ""


class CallView(msgspec.Struct, frozen=True, kw_only=True):
    """An invocation that has ended. `number` grows with every call that the source has seen."""

    number: int
    request_id: str
    started_ms: int
    duration_ms: float
    shard_id: str = ""
    kind: str = ""
    window: tuple[int, int] | None = None
    records: int | None = None
    attempt: int | None = None
    billed_ms: int | None = None
    memory_mb: int | None = None
    init_ms: float | None = None
    error_type: str = ""
    error_message: str = ""
    last: str = ""
    """The last record's sequence number, where it is known."""
    figures: Mapping[str, Any] = {}
    lines: tuple[str, ...] = ()


class Item(msgspec.Struct, frozen=True):
    """An item of the table. `shards` has the position that each shard's totals are applied through.

    `totals` are texts, exact as stored; `others` are the attributes that are none of all this.
    """

    key: str
    window_start_ms: int
    window_end_ms: int | None
    totals: Mapping[str, str]
    shards: Mapping[str, str]
    others: Mapping[str, str] = {}


class FailureView(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that was given up, and the message about it, or why that was not delivered."""

    at_ms: int
    shard_id: str
    condition: str
    records: int
    first: str
    last: str
    destination: str
    refused: str = ""
    error: str = ""


class Series(msgspec.Struct, frozen=True):
    """Figures over time: `values[name][i]` belongs to `[at_ms[i], at_ms[i] + step_ms)`. None: nothing was measured."""

    step_ms: int
    at_ms: list[int]
    values: dict[str, list[float | None]]


class Put(msgspec.Struct, frozen=True):
    """Where a record that was put has gone."""

    shard_id: str
    sequence: str
    at_ms: int


COUNTS = (
    "incoming",
    "invocations",
    "errors",
    "throttles",
    "received",
    "clean",
    "rejected",
    "late",
    "duplicates",
    "flushed_rows",
    "skipped_flushes",
    "retry_rounds",
    "throttled_writes",
)
"""The series that count: in a step without any, they are 0."""

MEASURES = ("duration_min", "duration_avg", "duration_max", "iterator_age")
"""The series that measure, in milliseconds: without a call, None."""


class Source(Protocol):
    """What the console reads. Called from several threads; every method may raise SourceProblem."""

    quarantine: Browsable
    items_pause_ms: int
    """The least pause between two readings of the table; a reading of a large one costs."""

    def now_ms(self) -> int: ...

    def pipeline(self) -> Pipeline: ...

    def shards(self) -> list[ShardView]: ...

    def items(self) -> Iterator[Item]:
        """Every item of the table, in no order."""

    def items_of(self, key: str, limit: int) -> list[Item]:
        """The newest items of one key."""

    def calls(self, limit: int) -> list[CallView]:
        """The last calls, newest first."""

    def series(self, from_ms: int, to_ms: int, step_ms: int) -> Series:
        """The COUNTS and MEASURES in `[from_ms, to_ms)`, in steps of at least `step_ms`."""

    def failures(self) -> list[FailureView] | None:
        """Batches that were given up, newest first; None where nobody can tell."""

    def put(self, partition_key: str, data: bytes) -> Put: ...
