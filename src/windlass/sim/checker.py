"""What must hold in a simulated run, checked after every step and at the end. No code is shared with the pipeline.

    invariant            checked                what it says
    ───────────────────  ─────────────────────  ────────────────────────────────────────────────────────────────
    exact                at the end             the totals of every key and window, or every item, are the oracle's
    accounted            at the end, and as     received = clean + rejected + late; nothing is in two places, nothing
                         records are rejected   is quarantined without cause
    never_too_much       after every merge      an item never counts more than has arrived of its key and window
    never_falls          after every merge      an item's counts never go down, minima never up, maxima never down
    no_conflict          after every write      no segment overlaps what its item has already (ConflictingFlush)
    state_within_limit   after every answer     the state is never above the pipeline's own limit
    never_blocked        after every call,      no call fails but for what was done to it; when the trouble is over,
                         and at the end         everything is processed

The oracle is `windlass.verify`, the second reading. What is late is the one thing that it cannot know from the stream
alone; here a record may be late only if one of a later window arrived before it in its shard.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from windlass.core.contribution import Contribution
from windlass.core.rejected import Rejected
from windlass.delivery import NotDelivered
from windlass.quarantine import QuarantineProblem
from windlass.sim.records import TOO_LARGE, reading_of
from windlass.sim.seams import Killed, Unreachable, WorldQuarantine, WorldTable
from windlass.sim.stream import MemoryStream, Shard
from windlass.table import ConflictingFlush, Item
from windlass.verify import verify
from windlass.verify.carriers import is_carrier, open_carrier
from windlass.verify.records import Row

TOO_LARGE_BYTES = 410_000
"""A record of that size makes an item beyond 400 KB; no smaller one is made near the limit."""

INVARIANTS = (
    "exact",
    "accounted",
    "never_too_much",
    "never_falls",
    "no_conflict",
    "state_within_limit",
    "never_blocked",
)
_DONE_TO_IT = (Killed, Unreachable, QuarantineProblem, NotDelivered)


class Violation(msgspec.Struct, frozen=True):
    """An invariant that did not hold: which, what was found, and at what time of the world."""

    invariant: str
    text: str
    at_ms: int


class Broken(BaseException):
    """Ends a run at its first violation. No handler may catch it."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(violation.text)
        self.violation = violation


class Toll(msgspec.Struct):
    """What a run got wrong, in records where the pipeline counts them, else in items."""

    lost: int = 0
    double_counted: int = 0


class Checker:
    """The invariants of one run. `now_ms` is set by the world as its time goes on."""

    def __init__(self, description: Mapping[str, Any], stream: MemoryStream) -> None:
        self.now_ms = 0
        self.received = 0
        self._description = description
        self._stream = stream
        self._windows = description["kind"] == "windows"
        self._keep_all = description["aggregates"] == "keep_all"
        self._every_ms = description.get("every_s", 0) * 1000
        self._key = [tuple(path) for path in description["key"]]
        self._reading = reading_of(description)
        self._read: dict[bytes, Row | str] = {}
        self._arrived: dict[tuple[Any, int], int] = {}
        self._may_be_late: set[tuple[str, str]] = set()
        totals = description.get("totals", ())
        self._count = next((total["name"] for total in totals if total["kind"] == "count"), None)
        self._rising = list(_rising(description)) if self._windows else []
        self._least = [total["name"] for total in totals if total["kind"] == "min"]
        self._most = [total["name"] for total in totals if total["kind"] == "max"]

    # -- after every step -------------------------------------------------------------------------------------

    def arrived(self, shard: Shard, place: int, users: Sequence[bytes]) -> None:
        """A Kinesis record has been put; `users` are its user records that belong to this shard."""
        self.received += len(users)
        if not self._windows:
            return
        record = shard.records[place]
        start_ms = record.arrival_ms // self._every_ms * self._every_ms
        if record.arrival_ms < shard.latest_ms // self._every_ms * self._every_ms:
            self._may_be_late.add((shard.id, record.sequence))
        for data in users:
            row = self._row(data)
            if not isinstance(row, str):
                at = (tuple(row.values[: len(self._key)]), start_ms)
                self._arrived[at] = self._arrived.get(at, 0) + 1

    def merged(self, row: Contribution, before: Item | None, after: Item) -> None:
        """A contribution has been applied."""
        if before is not None and before["windowStart"] == after["windowStart"]:
            self._check_direction(row, before, after)
        if self._count is not None:
            parts = tuple(row.plain.values()) or tuple(row.key.values())
            arrived = self._arrived.get((parts, row.window.start_ms), 0)
            if after.get(self._count, 0) > arrived:
                text = (
                    f"the item of {row.key} in {row.window.start} counts {after[self._count]} records, but "
                    f"{arrived} have arrived; {row.source} added {row.add.get(self._count)}"
                )
                self.fail("never_too_much", text)

    def _check_direction(self, row: Contribution, before: Item, after: Item) -> None:
        fell = [name for name in self._rising if after.get(name, 0) < before.get(name, 0)]
        fell += [name for name in self._most if name in before and after.get(name, before[name]) < before[name]]
        rose = [name for name in self._least if name in before and after.get(name, before[name]) > before[name]]
        gone = [name for name in before if name not in after]
        for name in (*fell, *rose, *gone):
            text = (
                f"{name} of the item of {row.key} in {row.window.start} went from {before.get(name)} to "
                f"{after.get(name)} when {row.source} was merged"
            )
            self.fail("never_falls", text)

    def rejected(self, records: Sequence[Rejected]) -> None:
        """Records have gone to quarantine."""
        for record in records:
            reason = record.reason.value
            if reason == "late":
                if (record.shard, _sequence(record.position)) not in self._may_be_late:
                    text = f"{record.shard} {record.position} is quarantined as late, but came in its window's turn"
                    self.fail("accounted", text)
            elif reason not in ("wrong_shard", "corrupt_aggregate"):
                said = self._row(record.data)
                if not self._is_due(said, reason, record.data):
                    found = said if isinstance(said, str) else "clean"
                    where = f"{record.shard} {record.position}"
                    text = f"{where} is quarantined as {reason}, but is {found}: {record.data[:120]!r}"
                    self.fail("accounted", text)

    def _is_due(self, said: Row | str, reason: str, data: bytes) -> bool:
        """Whether a record of which the second reading says so may be rejected for that reason."""
        if isinstance(said, str):
            return said == reason or (said != TOO_LARGE and reason in self._reading.reasons(data))
        return said.disputed

    def answered(self, state: bytes, rows: int, limit: int) -> None:
        """The function has answered with this state, of so many rows."""
        if len(state) > limit and rows > 1:
            self.fail("state_within_limit", f"the state has {len(state)} bytes, in {rows} rows; the limit is {limit}")

    def raised(self, error: BaseException, shard: str) -> None:
        """A call has failed with this error."""
        if isinstance(error, ConflictingFlush):
            self.fail("no_conflict", str(error))
        if not isinstance(error, _DONE_TO_IT):
            text = f"a call for {shard} failed of itself: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            self.fail("never_blocked", text)

    def fail(self, invariant: str, text: str) -> None:
        """End the run."""
        assert invariant in INVARIANTS, invariant
        raise Broken(Violation(invariant, text, self.now_ms))

    def _row(self, data: bytes) -> Row | str:
        row = self._read.get(data)
        if row is None:
            row = self._reading.read(data)
            if not self._windows and not isinstance(row, str) and len(data) > TOO_LARGE_BYTES:
                row = TOO_LARGE
            self._read[data] = row
        return row

    # -- at the end -------------------------------------------------------------------------------------------

    def ended(self, table: WorldTable, quarantine: WorldQuarantine, *, strict: bool) -> Violation | None:
        """The whole reckoning. `strict`: of several items of one key the last must have stayed (no zombies)."""
        if not self._windows:
            return _RecordsReckoning(self._description, self._stream, table, quarantine, strict=strict).verdict(self)
        verdict = verify(
            self._description,
            self._records(),
            table.items(),
            map(_line, quarantine.read()),
            ranges=self._ranges(),
            in_turn=True,
        )
        if verdict.exact and verdict.received == verdict.clean + verdict.rejected + verdict.late:
            return None
        first = verdict.differences[0]
        counted = first.kind in ("wrong_total", "missing_item", "extra_item", "wrong_window", "strange_item")
        text = f"{first.text} ({verdict.differences_total} differences in all)"
        return Violation("exact" if counted else "accounted", text, self.now_ms)

    def toll(self, table: WorldTable, quarantine: WorldQuarantine, *, settled: bool) -> Toll:
        """How many records are missing from the totals, and how many are in them twice."""
        toll = Toll()
        if self._count is None or not self._windows:
            return toll
        due = dict(self._arrived)
        for record in quarantine.read():
            row = self._row(record.data)
            if record.reason == "late" and not isinstance(row, str):
                due[tuple(row.values[: len(self._key)]), record.arrival_ms // self._every_ms * self._every_ms] -= 1
        if self._description["layout"] == "latest":
            newest: dict[Any, int] = {}
            for (key, start_ms), count in due.items():
                newest[key] = max(start_ms, newest.get(key, start_ms)) if count else newest.get(key, start_ms)
            due = {at: count for at, count in due.items() if newest[at[0]] == at[1]}
        for at, stored in self._stored(table, self._count).items():
            more = stored - due.pop(at, 0)
            toll.double_counted += max(0, more)
            toll.lost += max(0, -more) if settled else 0
        toll.lost += sum(due.values()) if settled else 0
        return toll

    def _stored(self, table: WorldTable, count: str) -> dict[tuple[Any, int], int]:
        names = self._description["key_attribute"].split("#")  # which are not always the JSON's names
        return {
            (
                tuple(item[name] for name in names),
                int(datetime.fromisoformat(item["windowStart"]).timestamp()) * 1000,
            ): item.get(count, 0)
            for item in table.items()
        }

    def _records(self) -> Iterator[tuple[str, str, int, bytes]]:
        for shard in self._stream.shards.values():
            for record in shard.records:
                yield shard.id, record.sequence, record.arrival_ms, record.data

    def _ranges(self) -> dict[str, tuple[int, int]]:
        if self._keep_all:
            return {}
        return {shard.id: (shard.low, shard.high) for shard in self._stream.shards.values() if shard.parents}


def _sequence(position: str) -> str:
    """The sequence number of a position, as the stream has it."""
    return position.partition(".")[0].lstrip("0")


def _line(record: Rejected) -> dict[str, Any]:
    """A quarantined record as the oracle takes it."""
    return {
        "reason": record.reason.value,
        "shard": record.shard,
        "sequence": _sequence(record.position),
        "sub": int(record.position.partition(".")[2]),
        "arrival_ms": record.arrival_ms,
        "data": record.data,
    }


def _rising(description: Mapping[str, Any]) -> Iterator[str]:
    """The attributes that can only grow: counts, and sums of what is never negative."""
    lows = {tuple(field["path"]): field["low"] for field in description["fields"]}
    for total in description["totals"]:
        never_negative = total["path"] is not None and (lows[tuple(total["path"])] or -1) >= 0
        if total["kind"] == "count" or (total["kind"] == "sum" and never_negative):
            yield total["name"]
        elif total["kind"] == "mean":
            yield f"{total['name']}#count"


class _RecordsReckoning:
    """What the table of a `Records` pipeline must hold: for every key one of the clean records put under it.

    Where no zombie wrote and one shard alone had the key, it is the last one; of shards side by side each last one
    will do, as DynamoDB keeps whichever came last.
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        stream: MemoryStream,
        table: WorldTable,
        quarantine: WorldQuarantine,
        *,
        strict: bool,
    ) -> None:
        self._stream = stream
        self._strict = strict
        self._keep_all = description["aggregates"] == "keep_all"
        self._names = tuple(description["key_attributes"])
        keys = [tuple(path) for path in description["key"]]
        paths = [tuple(field["path"]) for field in description["fields"] if field["type"] != "object"]
        used = list(dict.fromkeys([*keys, *paths]))
        self._key_slots = range(len(keys))
        self._in_order = [used.index(path) for path in paths]
        self._reading = reading_of(description)
        self._items = {tuple(item[name] for name in self._names): item for item in table.items()}
        self._kept = {(record.shard, record.position): record for record in quarantine.read()}

    def verdict(self, checker: Checker) -> Violation | None:
        """The first difference, or None."""
        candidates: dict[Any, list[list[Any]]] = {}
        for shard in self._stream.shards.values():
            last: dict[Any, list[list[Any]]] = {}
            for position, data, fault in self._users(shard):
                values = fault or self._values(data)
                record = self._kept.pop((shard.id, position), None)
                kept = record.reason.value if record else None
                if record and record.data != data:
                    text = f"{shard.id} {position} is in quarantine with other bytes"
                    return Violation("accounted", text, checker.now_ms)
                if isinstance(values, str):
                    if kept != values and (fault or kept not in self._reading.reasons(data)):
                        text = f"{shard.id} {position} is {values}, and in quarantine as {kept}"
                        return Violation("accounted", text, checker.now_ms)
                    continue
                if kept is not None:
                    text = f"{shard.id} {position} is clean, and in quarantine as {kept}"
                    return Violation("accounted", text, checker.now_ms)
                key = tuple(values[slot] for slot in self._key_slots) or (shard.id, position)
                last[key] = [values] if self._strict else [*last.get(key, ()), values]
            for key, found in last.items():
                candidates.setdefault(key, []).extend(found)
        text = self._difference(candidates)
        return Violation("exact", text, checker.now_ms) if text else None

    def _difference(self, candidates: dict[Any, list[list[Any]]]) -> str:
        if self._kept:
            return f"the quarantine holds records that the stream does not: {list(self._kept)[:3]}"
        for key, item in self._items.items():
            found = candidates.pop(key, None)
            if found is None:
                return f"the table holds {key}, which no clean record makes"
            leaves = list(_leaves({name: part for name, part in item.items() if name not in ("shard", "position")}))
            if not any(leaves[: len(values)] == values for values in map(self._stored, found)):
                return f"the item {key} holds {leaves}, which is none of {len(found)} records: {found[-1]}"
        if candidates:
            return f"{len(candidates)} items are not in the table, the first of them {next(iter(candidates))}"
        return ""

    def _stored(self, values: Sequence[Any]) -> list[Any]:
        """A record's values as its item holds them: in the order of the declaration, absent ones left out."""
        return [values[slot] for slot in self._in_order if values[slot] is not None]

    def _values(self, data: bytes) -> list[Any] | str:
        if len(data) > TOO_LARGE_BYTES:
            return TOO_LARGE
        row = self._reading.read(data)
        return row if isinstance(row, str) else row.values

    def _users(self, shard: Shard) -> Iterator[tuple[str, bytes, str]]:
        for record in shard.records:
            opened = open_carrier(record.data) if is_carrier(record.data) else ()
            sequence = f"{record.sequence:0>56}"
            if opened is None:
                yield f"{sequence}.000000", record.data, "corrupt_aggregate"
            elif not opened:
                yield f"{sequence}.000000", record.data, ""
            else:
                for sub, user in enumerate(opened):
                    inside = self._keep_all or not shard.parents or shard.low <= user.hash_key <= shard.high
                    yield f"{sequence}.{sub:06d}", user.data, "" if inside else "wrong_shard"


def _leaves(item: Mapping[str, Any]) -> Iterator[Any]:
    for value in item.values():
        if isinstance(value, dict):
            yield from _leaves(value)
        elif value is not None:
            yield value
