"""What the console has read so far, kept so that a question is answered without reading everything again.

A question is answered from memory. Each index is brought up to date by `refresh`, which reads the source; the next
refresh is due after a pause that grows with what the last one took, so that looking on never becomes the load.
"""

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from heapq import heappop, heappush, nlargest, nsmallest
from math import isfinite
from typing import Any

import msgspec

from windlass.console.source import Item
from windlass.core.position import split
from windlass.core.rejected import Reason, Rejected
from windlass.quarantine import Browsable

ITEMS_MAX = 300_000
"""Items in memory, the newest; a table may hold more. About 400 bytes each."""
RECENT_WINDOWS, LARGEST_KEPT = 12, 32
REJECTED_MAX = 20_000
OBJECTS_PER_REFRESH_MAX = 200


class Pace:
    """When a refresh is due: `least_ms` after the last, or `times` what the last one took, where that is longer."""

    def __init__(self, least_ms: int, times: int) -> None:
        self._least_ms = least_ms
        self._times = times
        self._due_ms = 0

    def is_due(self, now_ms: int) -> bool:
        return now_ms >= self._due_ms

    def done(self, began_ms: int, now_ms: int) -> None:
        self._due_ms = now_ms + max(self._least_ms, self._times * (now_ms - began_ms))


# --- items -------------------------------------------------------------------------------------------------------


class Page(msgspec.Struct, frozen=True):
    """A stretch of a longer list, from `offset` on. `total` is the list's length."""

    total: int
    offset: int
    rows: list[Any]


class _Held:
    """The items of one reading. They never change, so they are read without a lock; sums are made when first asked."""

    def __init__(self, items: list[Item], *, is_whole: bool) -> None:
        self.items = sorted(items, key=lambda item: (-item.window_start_ms, _natural(item.key)))
        self.is_whole = is_whole
        self.by_key: dict[str, list[Item]] = defaultdict(list)  # newest first
        for item in self.items:
            self.by_key[item.key].append(item)
        self.keys = sorted(self.by_key, key=_natural)
        self.starts = sorted({item.window_start_ms for item in self.items})
        self._sums: dict[str, dict[int, float]] = {}
        self._largest: dict[str, list[str]] = {}

    def sums(self, total: str) -> dict[int, float]:
        """A total over all keys, by the window's start."""
        if total not in self._sums:
            sums: dict[int, float] = defaultdict(float)
            for item in self.items:
                sums[item.window_start_ms] += _number(item, total)
            self._sums[total] = sums
        return self._sums[total]

    def largest(self, total: str) -> list[str]:
        """The keys with most of a total in the newest windows, the first of them first."""
        if total not in self._largest:
            recent = set(self.starts[-RECENT_WINDOWS:])
            sums: dict[str, float] = defaultdict(float)
            for item in self.items:
                if item.window_start_ms not in recent:
                    break  # newest first: what follows is older
                sums[item.key] += _number(item, total)
            self._largest[total] = nlargest(LARGEST_KEPT, sums, key=lambda key: sums[key])
        return self._largest[total]


def _natural(key: str) -> tuple[int, float, str]:
    """Numbers by value, before texts."""
    with suppress(ValueError):
        if isfinite(value := float(key)):  # "nan" is in no order
            return 0, value, key
    return 1, 0.0, key


class Items:
    """The table's items, newest windows first."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read
        self._held = _Held([], is_whole=True)
        self._print = 0
        self.revision = 0

    def refresh(self) -> None:
        """Read the table. Beyond ITEMS_MAX items only the newest windows are kept."""
        items: list[Item] = []
        is_whole = True
        for item in self._read():
            items.append(item)
            if len(items) >= 2 * ITEMS_MAX:
                items, is_whole = _newest(items), False
        if len(items) > ITEMS_MAX:
            items, is_whole = _newest(items), False
        seen = hash(tuple(hash((i.key, i.window_start_ms, *i.totals.values(), *i.shards.values())) for i in items))
        if seen != self._print:
            self._print = seen
            self._held = _Held(items, is_whole=is_whole)
            self.revision += 1

    @property
    def count(self) -> int:
        return len(self._held.items)

    @property
    def is_whole(self) -> bool:
        """Whether every item of the table is here."""
        return self._held.is_whole

    def page(self, text: str, offset: int, limit: int) -> Page:
        """Items whose key is `text`, or where no key is, contains it; all for ""."""
        held = self._held
        rows: Sequence[Item] = held.items
        if text in held.by_key:
            rows = held.by_key[text]
        elif text:
            rows = [item for item in held.items if text.lower() in item.key.lower()]
        return Page(len(rows), offset, list(rows[offset : offset + limit]))

    def keys(self, text: str, limit: int) -> Page:
        """Keys that contain `text`, in order."""
        keys = self._held.keys
        found = [key for key in keys if text.lower() in key.lower()] if text else keys
        return Page(len(found), 0, found[:limit])

    def chart(self, total: str, keys: Sequence[str], top: int, span: int) -> dict[str, Any]:
        """One total per window, for the keys named, or for the `top` keys with most of it; the last `span` windows.

        Beside them `sum`: that total over all keys. A window without an item is None.
        """
        held = self._held
        starts = held.starts[-span:]
        named = [key for key in keys if key in held.by_key]
        if not named:
            named = held.keys if len(held.keys) <= top else held.largest(total)[:top]
        place = {start: index for index, start in enumerate(starts)}
        sums = held.sums(total)
        series = []
        for key in named:
            values: list[float | None] = [None] * len(starts)
            for item in held.by_key[key]:
                index = place.get(item.window_start_ms)
                if index is None:
                    break
                values[index] = _number(item, total)
            series.append({"key": key, "values": values})
        return {"at_ms": starts, "series": series, "sum": [sums[start] for start in starts], "keys": len(held.keys)}

    def covering(self, shard_id: str, position: str, key: str | None, from_ms: int) -> Item | None:
        """The oldest item, of windows from `from_ms` on, that the shard's totals are applied to through `position`."""
        held = self._held
        rows = held.items if key is None else held.by_key.get(key, [])
        found = [item for item in _since(rows, from_ms) if item.shards.get(shard_id, "") >= position]
        return nsmallest(1, found, key=lambda item: item.window_start_ms)[0] if found else None


def _newest(items: list[Item]) -> list[Item]:
    return nlargest(ITEMS_MAX, items, key=lambda item: item.window_start_ms)


def _since(rows: Sequence[Item], from_ms: int) -> Sequence[Item]:
    return rows[: bisect_left(rows, 1 - from_ms, key=lambda item: -item.window_start_ms)]


def _number(item: Item, total: str) -> float:
    try:
        return float(item.totals[total])
    except (KeyError, ValueError):
        return 0.0


# --- rejected records --------------------------------------------------------------------------------------------


class ReasonCount(msgspec.Struct):
    """One reason, with how many records it has refused."""

    reason: str
    meaning: str
    count: int = 0
    first_ms: int = 0
    last_ms: int = 0


class RejectedRecords:
    """What is in quarantine: counts of all of it, and the newest records themselves."""

    def __init__(self, quarantine: Browsable) -> None:
        self._quarantine = quarantine
        self._lock = threading.Lock()
        self._read: set[str] = set()
        self._seen: set[tuple[str, str]] = set()
        self._kept: list[tuple[int, str, str, Rejected]] = []  # a heap, the oldest first
        self._newest: list[Rejected] | None = None
        self._reasons: dict[str, ReasonCount] = {}
        self._all_read = True
        self.revision = 0

    def refresh(self) -> None:
        """Read the objects that are new; of many only so many at a time, the newest first. Raises QuarantineProblem."""
        new = [name for name in self._quarantine.names() if name not in self._read]
        new.sort(key=lambda name: name.rpartition("/")[2], reverse=True)  # named after positions
        self._all_read = len(new) <= OBJECTS_PER_REFRESH_MAX
        for name in new[:OBJECTS_PER_REFRESH_MAX]:
            records = self._quarantine.read_object(name)
            with self._lock:
                self._read.add(name)
                for record in records:
                    self._take(record)
                self._newest = None
                self.revision += 1

    def _take(self, record: Rejected) -> None:
        identity = (record.shard, record.position)
        if identity in self._seen:
            return
        self._seen.add(identity)
        heappush(self._kept, (record.arrival_ms, *identity, record))
        if len(self._kept) > REJECTED_MAX:
            heappop(self._kept)
        reason = record.reason.value
        count = self._reasons.setdefault(reason, ReasonCount(reason, Reason(reason).meaning))
        count.count += 1
        count.first_ms = min(count.first_ms or record.arrival_ms, record.arrival_ms)
        count.last_ms = max(count.last_ms, record.arrival_ms)

    @property
    def count(self) -> int:
        return len(self._seen)

    @property
    def is_whole(self) -> bool:
        """Whether every record in quarantine is here."""
        return self._all_read and self.count == len(self._kept)

    def reasons(self) -> list[ReasonCount]:
        """The reasons, the most frequent first."""
        with self._lock:
            return sorted(map(msgspec.structs.replace, self._reasons.values()), key=lambda count: -count.count)

    def page(self, reason: str, text: str, offset: int, limit: int) -> Page:
        """Records of a reason, whose detail, shard or bytes contain `text`, newest first. "" for all."""
        rows = self._ordered()
        if reason:
            rows = [record for record in rows if record.reason.value == reason]
        if text:
            wanted = text.lower()
            rows = [record for record in rows if wanted in _searched(record)]
        return Page(len(rows), offset, rows[offset : offset + limit])

    def find(self, shard_id: str, sequence: str) -> Rejected | None:
        """The rejected record with that sequence number."""
        for record in self._ordered():
            if record.shard == shard_id and split(record.position)[0] == sequence:
                return record
        return None

    def _ordered(self) -> list[Rejected]:
        with self._lock:
            if self._newest is None:
                self._newest = sorted(
                    (kept[-1] for kept in self._kept), key=lambda record: (-record.arrival_ms, record.position)
                )
            return self._newest


def _searched(record: Rejected) -> str:
    return f"{record.detail}\n{record.shard}\n{record.data.decode('utf-8', 'backslashreplace')}".lower()
