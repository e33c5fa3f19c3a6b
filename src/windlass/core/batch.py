"""The user records of one call, as columns: aggregates opened, late records and duplicates taken out.

Every step takes records out for one reason and leaves the rest in stream order, so that each user record ends in
exactly one place. The usual call (nothing late, nothing repeated) passes each step by a check in C, not by a loop.
"""

from itertools import repeat

import msgspec

from windlass.core.aggregate import CorruptAggregate, HashRange, deaggregate, is_aggregate
from windlass.core.event import Call
from windlass.core.position import position
from windlass.core.rejected import Reason, Rejected
from windlass.core.window import Window


class Batch(msgspec.Struct):
    """User records in columns of equal length, and what has been taken out of them so far."""

    shard: str
    sequences: list[str]
    subs: list[int]
    arrivals_s: list[float]
    payloads: list[bytes]
    in_order: bool  # the call's Kinesis records came in stream order, each once: so do the user records
    ascii: bool = False  # known to be so
    received: int = 0
    duplicates: int = 0
    rejected: list[Rejected] = []

    def position_at(self, index: int) -> str:
        """The position of a record of the columns."""
        return position(self.sequences[index], self.subs[index])

    def reject(self, index: int, reason: Reason, detail: str) -> None:
        """Note a record as rejected; `keep` takes it out of the columns."""
        self.rejected.append(
            Rejected(
                reason,
                detail,
                self.shard,
                self.position_at(index),
                round(self.arrivals_s[index] * 1000),
                self.payloads[index],
            )
        )

    def keep(self, indexes: list[int]) -> None:
        """Only these records stay, in the order given."""
        self.sequences = [self.sequences[index] for index in indexes]
        self.subs = [self.subs[index] for index in indexes]
        self.arrivals_s = [self.arrivals_s[index] for index in indexes]
        self.payloads = [self.payloads[index] for index in indexes]


def batch_of(call: Call, within: HashRange | None = None) -> Batch:
    """The user records of a call. Corrupt aggregates, and records outside `within`, are rejected."""
    if not call.aggregated:
        count = len(call.payloads)
        return Batch(
            call.shard, call.sequences, [0] * count, call.arrivals_s, call.payloads, call.in_order, call.ascii, count
        )
    batch = Batch(call.shard, [], [], [], [], call.in_order)
    outside: set[int] = set()
    corrupt: dict[int, str] = {}
    for sequence, arrival_s, payload in zip(call.sequences, call.arrivals_s, call.payloads, strict=True):
        start = len(batch.payloads)
        payloads = [payload]
        if is_aggregate(payload):
            carrier = deaggregate(payload, within)
            if isinstance(carrier, CorruptAggregate):
                corrupt[start] = carrier.detail
            else:
                payloads = carrier.payloads
                outside.update(start + place for place in carrier.outside)
        count = len(payloads)
        batch.payloads += payloads
        batch.sequences.extend(repeat(sequence, count))
        batch.subs.extend(range(count))
        batch.arrivals_s.extend(repeat(arrival_s, count))
    batch.received = len(batch.payloads)
    _reject_carried(batch, corrupt, outside)
    return batch


def _reject_carried(batch: Batch, corrupt: dict[int, str], outside: set[int]) -> None:
    if not (corrupt or outside):
        return
    stay = []
    for index in range(len(batch.payloads)):
        if index in corrupt:
            batch.reject(index, Reason.CORRUPT_AGGREGATE, corrupt[index])
        elif index in outside:
            batch.reject(index, Reason.WRONG_SHARD, "its hash key is outside the shard's range")
        else:
            stay.append(index)
    batch.keep(stay)


def drop_late(batch: Batch, call: Call, window: Window) -> None:
    """Reject what did not arrive in the window that it was delivered in."""
    start_s, end_s = window.start_ms / 1000, window.end_ms / 1000
    if start_s <= call.earliest_s and call.latest_s < end_s:
        return
    stay = []
    for index, arrival_s in enumerate(batch.arrivals_s):
        if start_s <= arrival_s < end_s:
            stay.append(index)
        else:
            batch.reject(index, Reason.LATE, "its arrival time is outside the window it was delivered in")
    batch.keep(stay)


def drop_duplicates(batch: Batch, through: str) -> None:
    """Count and take out what is at or before `through`, or at or before a record that came earlier in the batch."""
    if not batch.sequences or (batch.in_order and batch.position_at(0) > through):
        return
    stay = []
    for index in range(len(batch.sequences)):
        here = batch.position_at(index)
        if here > through:
            stay.append(index)
            through = here
        else:
            batch.duplicates += 1
    batch.keep(stay)


def drop_kept(batch: Batch, through: str) -> None:
    """Take back rejections at or before `through`: the answer that said so came after they were in quarantine.

    So the rejections of one call are all those between the first and the last of them, and an object that is named
    after these two is never replaced by a smaller one.
    """
    fresh = [record for record in batch.rejected if record.position > through]
    batch.duplicates += len(batch.rejected) - len(fresh)
    batch.rejected = fresh
