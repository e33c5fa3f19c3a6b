"""What puts records into the stream: plain ones and KPL aggregates, clean and not, from hosts whose clocks differ.

Rules:
- Puts are spread over a few windows, and are thick around the ends of windows, where it matters.
- A KPL aggregate is packed by the shards that the producer knows of, which are old ones for a while after a reshard.
  Then some of its records lie outside the shard where it arrives; the KPL notices, and puts those again.
- An arrival is stamped by one of several hosts whose clocks differ, and now and then a little late.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from windlass.produce.aggregate import ShardMap, hash_of, packed
from windlass.produce.records import UserRecord
from windlass.sim.stream import Shard

if TYPE_CHECKING:
    from windlass.sim.world import World

RECORDS_SPAN_MS = 60_000
"""How long records come for a pipeline without windows."""


class Producers:
    """Everything that puts records into the stream of one world."""

    def __init__(self, world: "World", description: Any) -> None:
        self.finished = False
        self._world = world
        self._chance = world.chance
        self._pool = world.pool
        self._keep_all = description["aggregates"] == "keep_all"
        self._poison = [reason for reason in world.pool.unclean if reason != "too_large" or not world.windows]
        self._every_ms = world.every_ms or RECORDS_SPAN_MS // 4
        self._left = world.options.records
        self._map: ShardMap = world.stream.shard_map()
        self._again: list[UserRecord] = []
        self._straggled: set[str] = set()
        partitions = [f"id{number:07d}" for number in range(64 + 4 * world.options.shards)]
        self._partitions = [(key, hash_of(UserRecord(key, b""))) for key in partitions]
        skew = world.skew_ms if "clock_skew" in world.faults else 0
        draw = self._chance.of("hosts").random
        self._hosts = [0, 0] if not skew else [int((draw() - 0.5) * skew) for _ in range(3)]
        self._dirty = self._chance.pick("pool", (0.02, 0.05, 0.4)) if "poison" in world.faults else 0.0
        windows = 2 + int(draw() * 4)
        self.begin_ms = world.now_ms + int(draw() * self._every_ms)
        self.end_ms = self.begin_ms + windows * self._every_ms
        self._clean = self._of_keys(world.pool.clean)

    def _of_keys(self, clean: list[bytes]) -> list[bytes]:
        """A run draws from a part of the pool, so that some records come often."""
        draw = self._chance.of("pool").random
        size = min(len(clean), 20 + int(draw() * len(clean)))
        start = int(draw() * len(clean))
        return (clean + clean)[start : start + size]

    def start(self) -> None:
        """Plan the puts: spread over the time, and thick around the ends of windows."""
        draw = self._chance.of("times").random
        puts = max(2, min(self._left, self._chance.pick("times", (5, 15, 40, 40)) + self._left // 250))
        span_ms = self.end_ms - self.begin_ms
        times = []
        for _ in range(puts - 1):
            at_ms = self.begin_ms + int(draw() * span_ms)
            if draw() < 0.3:
                edge_ms = at_ms // self._every_ms * self._every_ms
                at_ms = max(self.begin_ms, edge_ms + int((draw() - 0.5) * 400))
            times.append(at_ms)
        times.sort()
        share = self._left / puts
        for number, at_ms in enumerate(times):
            self._world.at(at_ms, self._put, round(share * (number + 1)) - round(share * number))
        self._world.at(self.end_ms, self._last)
        for _ in range(int(draw() * 4)):
            self._world.at(self.begin_ms + int(draw() * span_ms), self.reshard)

    def _last(self) -> None:
        self._map = self._world.stream.shard_map()
        self._put(self._left)
        while self._again:
            self._put(0)
        self.end_ms = self._world.now_ms
        self.finished = True

    def _put(self, count: int) -> None:
        """One PutRecords, or what the KPL sends at once."""
        draw = self._chance.of("records").random
        count = min(count, self._left)
        self._left -= count
        again, self._again = self._again, []
        if "aggregated" in self._world.faults and draw() < 0.5:
            users = list(self._drawn(count))
            self._world.note("-", f"put {len(users)} records aggregated, {len(again)} again")
            self._put_packed([*again, *users], 2 + int(draw() * 40))
            return
        if again:
            self._put_packed(again, 10)
        self._world.note("-", f"put {count} records")
        for user in self._drawn(count):
            self._put_one(hash_of(user) if user.hash_key is None else user.hash_key, user.key, user.data, (user.data,))

    def _drawn(self, count: int) -> Iterator[UserRecord]:
        draw = self._chance.of("records").random
        clean, partitions, poison = self._clean, self._partitions, self._poison
        for _ in range(count):
            key, hash_key = partitions[int(draw() * len(partitions))]
            if draw() < self._dirty and poison:
                self._world.happened("poison")
                dirt = self._pool.unclean[poison[int(draw() * len(poison))]]
                data = dirt[int(draw() * len(dirt))]
            else:
                data = clean[int(draw() * len(clean))]
            yield UserRecord(key, data, hash_key)

    def _put_packed(self, users: list[UserRecord], records_max: int) -> None:
        for record in packed(users, self._map, records_max=records_max):
            hash_key = record.hash_key
            assert hash_key is not None
            if record.shard is None:
                self._put_one(hash_key, record.key, record.data, (record.data,))
                continue
            self._world.happened("aggregated")
            shard = self._put_one(hash_key, record.key, record.data, None, record.users)
            outside = (
                []
                if self._keep_all
                else [user for user in record.users if not shard.low <= hash_of(user) <= shard.high]
            )
            if outside:
                self._world.happened("straddling_carrier")
                self._again += outside

    def _put_one(
        self,
        hash_key: int,
        key: str,
        data: bytes,
        users: tuple[bytes, ...] | None,
        carried: Sequence[UserRecord] = (),
    ) -> Shard:
        world = self._world
        draw = self._chance.of("arrivals").random
        arrival_ms = world.now_ms + self._hosts[int(draw() * len(self._hosts))]
        if draw() < 0.08 and world.faults & {"out_of_order", "late"}:
            arrival_ms -= int(draw() * world.skew_ms / 2)
        target = world.stream.shard_of(hash_key)
        arrival_ms = self._stamp(target, arrival_ms)
        shard, place = world.stream.put(hash_key, key, data, arrival_ms, 1 + int(draw() * 10**12))
        if users is None:
            users = tuple(user.data for user in carried if self._keep_all or shard.low <= hash_of(user) <= shard.high)
        world.checker.arrived(shard, place, users)
        shard.latest_ms = max(shard.latest_ms, arrival_ms)
        return shard

    def _stamp(self, shard: Shard, arrival_ms: int) -> int:
        """The arrival as this run allows it, and its faults counted."""
        world = self._world
        latest_ms = shard.latest_ms
        if arrival_ms >= latest_ms:
            self._straggled.discard(shard.id)
            return arrival_ms
        start_ms = latest_ms // self._every_ms * self._every_ms
        if arrival_ms < start_ms:
            if "late" not in world.faults or (world.one_straggler and shard.id in self._straggled):
                arrival_ms = start_ms
            else:
                world.happened("late")
                self._straggled.add(shard.id)
        if arrival_ms >= start_ms:
            self._straggled.discard(shard.id)
        if arrival_ms < latest_ms:
            world.happened("out_of_order")
            if len(set(self._hosts)) > 1:
                world.happened("clock_skew")
        return arrival_ms

    def reshard(self) -> None:
        """Split a shard, or merge two; the producers' map of the shards is old from then on, for a while."""
        world, draw = self._world, self._chance.of("reshards").random
        split, at, merge = draw() < 0.6, draw(), draw()
        shards = world.stream.open
        if split and "shard_split" in world.faults:
            shard = shards[int(merge * len(shards))]
            width = shard.high - shard.low
            world.stream.split(shard, shard.low + 1 + int(at * 1000) * (width // 1001))
            world.happened("shard_split")
            world.note(shard.id, "shard split")
        elif not split and "shards_merged" in world.faults and len(shards) > 1:
            first = int(merge * (len(shards) - 1))
            world.stream.merge(shards[first], shards[first + 1])
            world.happened("shards_merged")
            world.note(shards[first].id, "shards merged")
        else:
            return
        world.at(world.now_ms + 500 + int(draw() * 15_000), self._learn)

    def _learn(self) -> None:
        self._map = self._world.stream.shard_map()
