"""The function's outside in the simulator: table and quarantine under faults, and the clock of one invocation.

Rules:
- One invocation runs at one instant of the world; its own clock only goes on when it sleeps between retries.
- What befalls it is planned before it begins (`Invocation`), and strikes when its turn comes: at a certain write, or
  where records are rejected. A plan that finds no such moment does nothing and is not counted.
- A call that times out does not stop: from then on its writes are told as done, and take effect later, one after the
  other, while the retry runs. That is a zombie, without a thread.
- Capacity is metered as DynamoDB's is: units that come back over time, for the table and for a key.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from windlass.core.contribution import Contribution
from windlass.core.rejected import Rejected
from windlass.quarantine import MemoryQuarantine, QuarantineProblem
from windlass.sim.table import MemoryTable
from windlass.table import Item, Merged, TableKeys, Throttled

TABLE_LIMIT = Throttled(("TableWriteProvisionedThroughputExceeded",))
KEY_LIMIT = Throttled(("TableWriteKeyRangeThroughputExceeded",))
"""ThrottlingReason, Amazon DynamoDB API Reference: the table's capacity, and a key range's."""


class Killed(BaseException):
    """The function's process is gone, in the middle of its code."""


class Unreachable(ConnectionError):
    """A service did not answer: nothing in it tells whether the request took effect."""


class Bucket(msgspec.Struct):
    """Write capacity: `units` now, `rate_per_s` coming back, up to `burst`, in force before `until_ms`."""

    units: float
    rate_per_s: float
    burst: float
    at_ms: float
    until_ms: float

    def takes(self, now_ms: float) -> bool:
        """Whether there is a unit for a write, which it then takes."""
        if now_ms >= self.until_ms:
            return True
        self.units = min(self.burst, self.units + (now_ms - self.at_ms) * self.rate_per_s / 1000)
        self.at_ms = now_ms
        if self.units < 1:
            return False
        self.units -= 1
        return True


class Invocation(msgspec.Struct):
    """One call of the function: what befalls it, and what it has done so far. Also the context that it is given."""

    now_ms: float
    deadline_ms: float
    mishap: str = ""
    at: int = 0
    """Which write, from 0, the mishap strikes."""
    quarantine_mishap: str = ""
    writes: int = 0
    struck: list[str] = []
    deferred: list[Any] = []
    zombie: bool = False
    throttled_by_table: int = 0
    throttled_by_key: int = 0

    def get_remaining_time_in_millis(self) -> int:
        """As Lambda's context has it."""
        return int(self.deadline_ms - self.now_ms)

    def sleep(self, seconds: float) -> None:
        """The function's own clock goes on."""
        self.now_ms += seconds * 1000

    def begin_write(self) -> bool:
        """A write begins. Answers whether it is a zombie's, to take effect later. May kill, or refuse it."""
        due = self.writes == self.at
        self.writes += 1
        if due and self.mishap in ("killed_before", "killed_during"):
            self.strike(self.mishap)
            raise Killed
        if due and self.mishap == "write_refused":
            self.strike(self.mishap)
            msg = "the table did not answer: connection refused"
            raise Unreachable(msg)
        if due and self.mishap == "timed_out":
            self.strike(self.mishap)
            self.zombie = True
        return self.zombie

    def end_write(self) -> None:
        """A write has taken effect; its answer may get lost."""
        if self.mishap == "write_unanswered" and self.writes == self.at + 1:
            self.strike(self.mishap)
            msg = "the table did not answer: read timeout"
            raise Unreachable(msg)

    def strike(self, fault: str) -> None:
        """Note that a fault has taken effect."""
        self.struck.append(fault)


class WorldTable(MemoryTable):
    """DynamoDB's table: rules by `MemoryTable`, trouble by the invocation under way. `watch` sees every merge."""

    def __init__(self, keys: TableKeys, watch: Callable[[Contribution, Item | None, Item], None]) -> None:
        super().__init__(keys, name="simulated")
        self.invocation = Invocation(0, 0)
        self.limit: Bucket | None = None
        self.hot: dict[Any, Bucket] = {}
        self._watch = watch

    def merge(self, contribution: Contribution) -> Merged:
        """As Table says, inside the invocation under way."""
        call = self.invocation
        if call.begin_write():
            call.deferred.append(contribution)
            return Merged.APPLIED
        throttled = self._throttled(contribution.key[self.keys.partition.name])
        if throttled is not None:
            raise throttled
        merged = self.apply(contribution)
        call.end_write()
        return merged

    def apply(self, contribution: Contribution) -> Merged:
        """The merge itself, for zombies too."""
        place: tuple[Any, ...] = (contribution.key[self.keys.partition.name],)
        if self.keys.sort is not None:
            place = (*place, contribution.window.start)
        before = self.stored.get(place)
        merged = super().merge(contribution)
        if merged is Merged.APPLIED:
            self._watch(contribution, before, self.stored[place])
        return merged

    def put(self, items: Sequence[Item]) -> Mapping[int, Throttled]:
        """As Table says: BatchWriteItem, inside the invocation under way."""
        call = self.invocation
        if call.begin_write():
            call.deferred.append(items)
            return {}
        refused = {}
        for index, item in enumerate(items):
            throttled = self._throttled(item[self.keys.partition.name])
            if throttled is not None:
                refused[index] = throttled
        self.apply_put([item for index, item in enumerate(items) if index not in refused])
        call.end_write()
        return refused

    def apply_put(self, items: Sequence[Item]) -> None:
        """The puts themselves, for zombies too."""
        if items:
            super().put(items)

    def _throttled(self, key: Any) -> Throttled | None:
        call = self.invocation
        if call.mishap == "hot_key" and call.writes == call.at + 1 and key not in self.hot:
            self.hot[key] = Bucket(0, 0.5, 1, call.now_ms, call.now_ms + 1_500)
        bucket = self.hot.get(key)
        if bucket is not None and not bucket.takes(call.now_ms):
            call.throttled_by_key += 1
            return KEY_LIMIT
        if self.limit is not None and not self.limit.takes(call.now_ms):
            call.throttled_by_table += 1
            return TABLE_LIMIT
        return None


class WorldQuarantine(MemoryQuarantine):
    """A quarantine in memory, under the trouble of the invocation under way. `watch` sees what is written."""

    def __init__(self, watch: Callable[[Sequence[Rejected]], None]) -> None:
        super().__init__()
        self.invocation = Invocation(0, 0)
        self._watch = watch

    def put(self, shard: str, rejected: Sequence[Rejected]) -> None:
        """As Quarantine says."""
        call = self.invocation
        mishap, call.quarantine_mishap = call.quarantine_mishap, ""
        if mishap == "quarantine_refused":
            call.strike(mishap)
            msg = "the quarantine cannot be written: connection refused"
            raise QuarantineProblem(msg)
        super().put(shard, rejected)
        self._watch(rejected)
        if mishap == "quarantine_unanswered":
            call.strike(mishap)
            msg = "the quarantine did not answer: read timeout"
            raise QuarantineProblem(msg)
