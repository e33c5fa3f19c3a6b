"""Putting user records into a stream: paced, in batches, and every one of them accounted for.

Rules:

- A batch is one PutRecords: at most 500 entries and 5 MiB, data and partition keys counted; an entry has at most
  1 MiB. A larger entry is not sent; it counts as failed.
- Of a batch, only the refused entries are put again, in the order they had, after a wait drawn evenly from zero
  up to a bound that doubles (full jitter). What is still refused after the last attempt counts as failed. When
  that is the whole batch, the stream takes nothing any more: `StreamError`.
- Record number n is due at start + n / rate: a late put is followed by earlier ones, so the rate does not drift.
- A carrier that landed on another shard than it was packed for (the stream was resharded) is like the KPL's:
  what belongs to the shard it is on is stored, the other user records are put again, this time unpacked.
- A stop is obeyed between chunks: no record that was taken from the source is left unaccounted. At the end, and
  whenever an error leaves, taken = stored + failed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import Protocol

import msgspec

from windlass.produce.aggregate import (
    AGGREGATE_BYTES_MAX,
    KinesisRecord,
    Shard,
    ShardMap,
    hash_of,
    packed,
    plain,
)
from windlass.produce.records import UserRecord

CHUNK_S = 0.1
"""How much of the schedule goes out together; the KPL, too, waits this long before it closes an aggregate."""
CHUNK_RECORDS_MAX = 2_000
WAIT_S_MAX = 0.1
"""How long a stop may go unseen while nothing is due."""


class Stored(msgspec.Struct, frozen=True):
    """The stream has the entry, on this shard."""

    shard: str


class Refused(msgspec.Struct, frozen=True):
    """The stream does not have the entry; putting it again may help. `code` is the service's own."""

    code: str
    message: str = ""


class StreamError(Exception):
    """The stream cannot be put to; the text says why and what to do."""


class Stream(Protocol):
    """Where the records go."""

    def shards(self) -> Sequence[Shard]:
        """All known shards, closed ones too. StreamError where the stream cannot be read."""

    def put(self, entries: Sequence[KinesisRecord]) -> Sequence[Stored | Refused]:
        """One PutRecords: an answer per entry, in their order. StreamError where retrying is no use."""


class Limits(msgspec.Struct, frozen=True):
    """What one put may hold, and how often and after which waits it is tried.

    Below the service's own limits (API reference, PutRecords: 500 records, 10 MiB; a record up to the stream's
    maximum, 1 MiB unless it was raised), so that older endpoints take it, too.
    """

    entries_max: int = 500
    bytes_max: int = 5 * 1024 * 1024
    entry_bytes_max: int = 1024 * 1024
    attempts_max: int = 10
    backoff_base_s: float = 0.05
    backoff_cap_s: float = 2.0


LIMITS = Limits()


class Packing(msgspec.Struct, frozen=True):
    """How full an aggregate may get."""

    bytes_max: int = AGGREGATE_BYTES_MAX
    records_max: int | None = None


class Produced(msgspec.Struct, frozen=True):
    """What went out. `records` and `failed` count user records; their sum is what was taken from the source.

    `unclean` is the part of `records` that was spoiled on purpose, by kind; `failures` is `failed` by the service's
    error code. `retried` counts entries put again after a refusal, `misplaced` user records put again because their
    carrier landed on another shard than theirs. `data_bytes` are those of the stored entries, without keys.
    """

    records: int = 0
    kinesis_records: int = 0
    data_bytes: int = 0
    unclean: dict[str, int] = {}
    retried: int = 0
    misplaced: int = 0
    failed: int = 0
    failures: dict[str, int] = {}
    seconds: float = 0.0

    @property
    def clean(self) -> int:
        """The stored user records that were not spoiled."""
        return self.records - sum(self.unclean.values())


def produce(
    records: Iterable[UserRecord],
    stream: Stream,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
    rng: Random,
    rate: float | None = None,
    for_s: float | None = None,
    packing: Packing | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Produced], object] = lambda _: None,
    limits: Limits = LIMITS,
) -> Produced:
    """Put the records until they end or `should_stop` says so; what was put and what failed.

    `clock` is in seconds and never goes back; `rng` draws the waits between attempts. `rate` is user records
    a second, None for as fast as the stream takes them. `for_s` ends it that long after the first record was due:
    what the stream takes to answer before is not part of it. With a `packing`, records go out aggregated.
    `on_progress` gets the counts so far after every put, and before an error leaves: StreamError, or whatever
    `records` raise (what they gave before is put first).
    """
    start = clock()
    tally = _Tally()
    putter = _Putter(stream, limits, sleep, rng, tally, lambda: on_progress(tally.seen(clock() - start)))
    try:
        putter.shards = ShardMap(stream.shards())
        for chunk in _paced(iter(records), rate, for_s, clock, sleep, should_stop):
            tally.taken += len(chunk)
            putter.put_all(chunk, packing)
    except (StreamError, KeyboardInterrupt) as error:
        tally.fail(type(error).__name__, tally.taken - tally.stored - sum(tally.failures.values()))
        raise
    finally:
        putter.progress()
    assert tally.taken == tally.stored + sum(tally.failures.values()), "a record is unaccounted for"
    return tally.seen(clock() - start)


def batches(entries: Iterable[KinesisRecord], limits: Limits) -> Iterator[list[KinesisRecord]]:
    """The entries in order, cut where the next one would take a batch over a limit."""
    batch: list[KinesisRecord] = []
    batch_bytes = 0
    for entry in entries:
        full = len(batch) == limits.entries_max or batch_bytes + entry.put_bytes > limits.bytes_max
        if batch and full:
            yield batch
            batch, batch_bytes = [], 0
        batch.append(entry)
        batch_bytes += entry.put_bytes
    if batch:
        yield batch


def backoff_s(attempt: int, limits: Limits, rng: Random) -> float:
    """The wait before attempt number `attempt`, the first retry being 1: full jitter under a doubling bound."""
    return rng.uniform(0.0, min(limits.backoff_cap_s, limits.backoff_base_s * 2.0 ** (attempt - 1)))


def _paced(
    records: Iterator[UserRecord],
    rate: float | None,
    for_s: float | None,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
    should_stop: Callable[[], bool],
) -> Iterator[list[UserRecord]]:
    """The records in chunks, each when its first record is due."""
    size = CHUNK_RECORDS_MAX if rate is None else min(CHUNK_RECORDS_MAX, max(1, int(rate * CHUNK_S)))
    start, taken = clock(), 0
    while not should_stop() and (for_s is None or clock() < start + for_s):
        left_s = 0.0 if rate is None else start + taken / rate - clock()
        if left_s > 0:
            sleep(min(left_s, WAIT_S_MAX))
            continue
        chunk: list[UserRecord] = []
        try:
            for record in islice(records, size):
                chunk.append(record)  # noqa: PERF402 - what came before an error in the source must be kept
        finally:
            taken += len(chunk)
            if chunk:
                yield chunk
        if len(chunk) < size:
            return


class _Tally:
    """The counts while they grow."""

    def __init__(self) -> None:
        self.taken = self.stored = self.entries = self.data_bytes = self.retried = self.misplaced = 0
        self.unclean: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    def store(self, entry: KinesisRecord, users: Sequence[UserRecord]) -> None:
        self.stored += len(users)
        self.entries += 1
        self.data_bytes += len(entry.data)
        self.unclean.update(user.spoiled for user in users if user.spoiled)

    def fail(self, code: str, users: int) -> None:
        if users:
            self.failures[code] += users

    def seen(self, seconds: float) -> Produced:
        return Produced(
            records=self.stored,
            kinesis_records=self.entries,
            data_bytes=self.data_bytes,
            unclean=dict(sorted(self.unclean.items())),
            retried=self.retried,
            misplaced=self.misplaced,
            failed=sum(self.failures.values()),
            failures=dict(sorted(self.failures.items())),
            seconds=round(seconds, 3),
        )


class _Putter:
    """Puts chunks; holds the shard map, which a resharding makes old."""

    def __init__(
        self,
        stream: Stream,
        limits: Limits,
        sleep: Callable[[float], object],
        rng: Random,
        tally: _Tally,
        progress: Callable[[], object],
    ) -> None:
        self.shards = ShardMap(())
        self.progress = progress
        self._stream, self._limits, self._sleep, self._rng, self._tally = stream, limits, sleep, rng, tally

    def put_all(self, users: Sequence[UserRecord], packing: Packing | None) -> None:
        if packing is None:
            entries: Iterable[KinesisRecord] = map(plain, users)
        else:
            entries = packed(users, self.shards, bytes_max=packing.bytes_max, records_max=packing.records_max)
        for batch in batches(self._sendable(entries), self._limits):
            if misplaced := self._put(batch):
                self._put_outsiders(misplaced)
            self.progress()

    def _sendable(self, entries: Iterable[KinesisRecord]) -> Iterator[KinesisRecord]:
        for entry in entries:
            if entry.put_bytes > self._limits.entry_bytes_max:
                self._tally.fail("RecordTooLarge", len(entry.users))
            else:
                yield entry

    def _put(self, batch: list[KinesisRecord]) -> list[tuple[KinesisRecord, str]]:
        """Put a batch, retries and all; the carriers that landed elsewhere, each with the shard it is on."""
        left, misplaced = batch, []
        refused: list[tuple[KinesisRecord, Refused]] = []
        for attempt in range(self._limits.attempts_max):
            if attempt:
                self._tally.retried += len(left)
                self._sleep(backoff_s(attempt, self._limits, self._rng))
            refused = []
            for entry, said in zip(left, self._stream.put(left), strict=True):
                if isinstance(said, Refused):
                    refused.append((entry, said))
                elif entry.shard in (None, said.shard):
                    self._tally.store(entry, entry.users)
                else:
                    misplaced.append((entry, said.shard))
            left = [entry for entry, _ in refused]
            if not left:
                return misplaced
        self._give_up(refused, len(batch))
        return misplaced

    def _give_up(self, refused: list[tuple[KinesisRecord, Refused]], of: int) -> None:
        for entry, said in refused:
            self._tally.fail(said.code, len(entry.users))
        if len(refused) == of:
            last = refused[-1][1]
            msg = (
                f"the stream took nothing of a batch of {of} in {self._limits.attempts_max} attempts, the last "
                f"answer being {last.code} {last.message}; lower --rate, add shards, or see what ails the endpoint"
            )
            raise StreamError(msg)

    def _put_outsiders(self, misplaced: list[tuple[KinesisRecord, str]]) -> None:
        """Of each misplaced carrier, count what is where it belongs and put the rest again, unpacked."""
        self.shards = ShardMap(self._stream.shards())
        again: list[UserRecord] = []
        for entry, shard_id in misplaced:
            self._tally.store(entry, [user for user in entry.users if self._takes(shard_id, user)])
            again += [user for user in entry.users if not self._takes(shard_id, user)]
        self._tally.misplaced += len(again)
        for batch in batches(map(plain, again), self._limits):
            self._put(batch)

    def _takes(self, shard_id: str, user: UserRecord) -> bool:
        return shard_id in self.shards and self.shards[shard_id].takes(hash_of(user))
