"""Counts and measures over time, in memory: what a graph is drawn from.

Values fall into buckets of one second for an hour, and of one minute for a day; older ones are forgotten. A bucket
knows the count, sum, least and greatest of what fell into it, so any of these can be drawn, at any coarser step.
"""

import threading
from collections.abc import Iterable
from typing import NamedTuple

FINE_MS, FINE_BUCKETS = 1_000, 3_600
COARSE_MS, COARSE_BUCKETS = 60_000, 1_440


class Bucket(NamedTuple):
    """What fell into one stretch of time."""

    times: int
    total: float
    least: float
    greatest: float

    def joined(self, other: "Bucket") -> "Bucket":
        """Both stretches as one."""
        return Bucket(
            self.times + other.times,
            self.total + other.total,
            min(self.least, other.least),
            max(self.greatest, other.greatest),
        )


class Meter:
    """Holds the buckets. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fine: dict[int, dict[str, Bucket]] = {}
        self._coarse: dict[int, dict[str, Bucket]] = {}

    def add(self, at_ms: int, values: Iterable[tuple[str, float]]) -> None:
        """Note values by name, all of one moment."""
        with self._lock:
            fine = _bucket(self._fine, at_ms // FINE_MS, FINE_BUCKETS)
            coarse = _bucket(self._coarse, at_ms // COARSE_MS, COARSE_BUCKETS)
            for name, value in values:
                one = Bucket(1, value, value, value)
                for held in (fine, coarse):
                    held[name] = held[name].joined(one) if name in held else one

    def read(self, from_ms: int, to_ms: int, step_ms: int) -> list[dict[str, Bucket]]:
        """One dict of buckets per step in `[from_ms, to_ms)`; both ends and the step in whole seconds."""
        steps = [dict[str, Bucket]() for _ in range(from_ms, to_ms, step_ms)]
        with self._lock:
            held, unit_ms = (self._coarse, COARSE_MS) if step_ms >= COARSE_MS else (self._fine, FINE_MS)
            for index in range(-(-from_ms // unit_ms), -(-to_ms // unit_ms)):
                into = steps[(index * unit_ms - from_ms) // step_ms]
                for name, bucket in held.get(index, {}).items():
                    into[name] = into[name].joined(bucket) if name in into else bucket
        return steps


def _bucket(held: dict[int, dict[str, Bucket]], index: int, most: int) -> dict[str, Bucket]:
    if index not in held:
        held[index] = {}
        while len(held) > most:
            del held[next(iter(held))]
    return held[index]
