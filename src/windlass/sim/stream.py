"""A Kinesis stream in memory: shards that split and merge, 56-digit sequence numbers, arrivals that run back a little.

Rules:
- A record goes to the open shard whose range its hash key is in, at the end of it.
- Sequence numbers rise within a shard and leave gaps. Two shards may use the same ones: nothing may tell records of
  different shards apart by them.
- An arrival is the putting host's clock, in whole milliseconds. Hosts differ, so arrivals within a shard run back.
- Splitting and merging closes the parents at once; a reader finds their end, and the children, behind the last record.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from windlass.core.aggregate import HashRange
from windlass.local.mapping import Fetch, Fetched, StreamRecord
from windlass.produce.aggregate import Shard as MappedShard
from windlass.produce.aggregate import ShardMap

HASH_KEYS = 2**128
_SEQUENCE_BASE = 49_590_338_271_490_256_608_559_692_538_361_571_095_921_575_989_136_588_898
"""56 digits, as Kinesis has given them since 2013."""


@dataclass
class Shard:
    """A shard and everything that was put into it."""

    id: str
    low: int
    high: int
    parents: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    sequence: int = _SEQUENCE_BASE
    records: list[StreamRecord] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    latest_ms: int = -1
    """The latest arrival so far."""

    @property
    def closed(self) -> bool:
        """It takes no more records."""
        return bool(self.children)


class MemoryStream:
    """The stream. `shards` holds every shard there ever was, by id."""

    def __init__(self, shards: int) -> None:
        self.shards: dict[str, Shard] = {}
        width = HASH_KEYS // shards
        for number in range(shards):
            high = HASH_KEYS - 1 if number == shards - 1 else (number + 1) * width - 1
            self._add(number * width, high)
        self._route()

    # -- written ----------------------------------------------------------------------------------------------

    def put(self, hash_key: int, partition_key: str, data: bytes, arrival_ms: int, gap: int) -> tuple[Shard, int]:
        """Append a record; `gap` (1 or more) is how far its sequence number lies behind the last. Answers where."""
        shard = self.shard_of(hash_key)
        shard.sequence += gap
        sequence = str(shard.sequence)
        place = len(shard.records)
        shard.records.append(StreamRecord(sequence, partition_key, arrival_ms, data))
        shard.places[sequence] = place
        return shard, place

    def shard_of(self, hash_key: int) -> Shard:
        """The open shard that takes a hash key."""
        return self.open[bisect_left(self._highs, hash_key)]

    def split(self, shard: Shard, at: int) -> None:
        """Two children; the second begins with hash key `at`."""
        assert shard.low < at <= shard.high, (shard.id, at)
        low = self._add(shard.low, at - 1, (shard.id,))
        high = self._add(at, shard.high, (shard.id,))
        shard.children = (low.id, high.id)
        self._route()

    def merge(self, left: Shard, right: Shard) -> None:
        """One child of two adjacent shards."""
        assert left.high + 1 == right.low, (left.id, right.id)
        child = self._add(left.low, right.high, (left.id, right.id))
        left.children = right.children = (child.id,)
        self._route()

    def shard_map(self) -> ShardMap:
        """What a producer learns when it asks now."""
        return ShardMap(MappedShard(shard.id, shard.low, shard.high) for shard in self.open)

    # -- read -------------------------------------------------------------------------------------------------

    def fetch(self, fetch: Fetch, limit: int) -> Fetched:
        """Up to `limit` records from the position on."""
        shard = self.shards[fetch.shard_id]
        start = self._place(shard, fetch)
        records = shard.records[start : start + limit]
        left = len(shard.records) - start - len(records)
        ended = shard.closed and not left
        return Fetched(records, 1000 if left else 0, ended=ended, children=shard.children if ended else ())

    def range_of(self, shard: Shard) -> HashRange | None:
        """The hash keys that aggregates in the shard may carry; None: it is as old as the stream."""
        return HashRange(shard.low, shard.high) if shard.parents else None

    # -- inside -----------------------------------------------------------------------------------------------

    def _add(self, low: int, high: int, parents: Sequence[str] = ()) -> Shard:
        shard = Shard(f"shardId-{len(self.shards):012d}", low, high, tuple(parents))
        self.shards[shard.id] = shard
        return shard

    def _route(self) -> None:
        self.open = sorted((shard for shard in self.shards.values() if not shard.closed), key=lambda each: each.low)
        self._highs = [shard.high for shard in self.open]

    def _place(self, shard: Shard, fetch: Fetch) -> int:
        position = fetch.position
        if position.kind == "TRIM_HORIZON":
            return 0
        place = shard.places[position.sequence]
        return place + 1 if position.kind == "AFTER_SEQUENCE_NUMBER" else place
