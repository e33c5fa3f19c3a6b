"""The table and the quarantine held against what the stream itself says.

Every user record of the stream is counted once, by what the second reading says of it and what the quarantine does:

    second reading          quarantine        counted as       difference
    ──────────────────────  ────────────────  ───────────────  ─────────────────────────────────────────────
    clean                   is not there      clean            -
    clean                   late              late             -
    clean                   another reason    clean            wrongly quarantined
    not clean               a fault it has    rejected         -
    not clean               late              late             -
    not clean               another reason    rejected         wrong reason
    not clean               is not there      rejected         not quarantined
    disputed                is there / not    rejected/clean   -
    any                     with other bytes  as above         wrong bytes
    (not in the stream)     is there          -                not in the stream

Which records are late the second reading cannot tell by itself: that depends on the windows that they were delivered
in. Where those are known to follow arrival (`in_turn`), one is late only if one of a later window came before it in its
shard; else it is not late, which is a difference. What is not read at all (a corrupt carrier, a record that belongs to
another shard) is never late.

So clean + rejected + late = received, whatever was found. The clean ones make the expected items. A record of a carrier
that lies outside its shard's hash range is not clean (`wrong_shard`); ranges are given for the shards to be checked.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any, NamedTuple

from windlass.verify.carriers import is_carrier, open_carrier
from windlass.verify.records import EXACT, CannotVerify, Reading, Row

StreamRecord = tuple[str, str, int, bytes]
"""Shard id, sequence number, arrival in milliseconds UTC (truncated), bytes."""

Item = Mapping[str, Any]
"""An item of the table: str, int or Decimal by attribute."""

DIFFERENCES_MAX = 100


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it must be. `text` says it in words; the other parts are there where they apply."""

    kind: str
    text: str
    key: str | None = None
    window: str | None = None
    total: str | None = None
    expected: str | None = None
    found: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What the check found. `received = clean + rejected + late`; `reasons` splits `rejected`.

    `windows` and `items` are how many the table holds of those compared; `items_expected` how many it should hold.
    `expected` and `found` are totals by key, over all windows compared. `differences` holds the first ones of
    `differences_total`. `quarantine` says whether one was there to be checked.

    `exact` says that nothing differs; where `empty`, nothing was there that could have.
    """

    exact: bool
    received: int
    clean: int
    rejected: int
    reasons: dict[str, int]
    late: int
    windows: int
    items: int
    items_expected: int
    quarantine: bool
    expected: dict[str, dict[str, int | str]]
    found: dict[str, dict[str, int | str]]
    differences_total: int
    differences: tuple[Difference, ...]

    @property
    def empty(self) -> bool:
        """Neither a record nor an item was there to compare."""
        return not (self.received or self.items or self.differences_total)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: numbers that are not whole are text."""
        return asdict(self)


def verify(
    description: Mapping[str, Any],
    stream: Iterable[StreamRecord],
    items: Iterable[Item],
    quarantined: Iterable[Mapping[str, Any]] | None = None,
    *,
    from_ms: int | None = None,
    to_ms: int | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    in_turn: bool = False,
) -> Verdict:
    """Read everything, compare everything. Raises CannotVerify where the description is of no known shape.

    `quarantined` are records as the quarantine's NDJSON has them (reason, shard, sequence, sub, arrival_ms, and
    data as bytes); None where there is no quarantine. Only windows wholly inside `[from_ms, to_ms)` count.
    `ranges` are the hash keys, both ends included, of the shards whose carriers are checked for outsiders. The records
    of a shard come in order. `in_turn` says that the mapping delivered by arrival, as the local one does.
    """
    pipeline = _Pipeline(description)
    span = _Span(pipeline.every_ms, from_ms, to_ms)
    report = _Report()
    kept = _Kept(quarantined, span)
    if description.get("aggregates") == "keep_all":
        ranges = {}
    expected = _expect(pipeline, stream, kept, span, report, ranges or {}, in_turn=in_turn)
    if pipeline.latest:
        expected = _newest(expected)
    compared = _compare(pipeline, expected, items, span, report)
    kept.report_strangers(report)
    return Verdict(
        exact=report.total == 0,
        received=report.clean + report.late + sum(report.reasons.values()),
        clean=report.clean,
        rejected=sum(report.reasons.values()),
        reasons=dict(sorted(report.reasons.items())),
        late=report.late,
        windows=len({start_ms for _, start_ms in compared}),
        items=len(compared),
        items_expected=len(expected),
        quarantine=quarantined is not None,
        expected=_by_key(pipeline, expected),
        found=_by_key(pipeline, compared),
        differences_total=report.total,
        differences=tuple(report.differences),
    )


# ── the description ─────────────────────────────────────────────────────────────────────────────────────────


class _Column(NamedTuple):
    """One stored number: the attribute, how values come together, and the slot of its value (None counts records)."""

    attribute: str
    kind: str  # count, sum, min, max
    slot: int | None
    join: Callable[[Any, Any], Any]
    start: Any


Key = tuple[Any, ...]
Totals = list[Any]  # a number per column, None where min or max saw no value


class _Pipeline:
    """A description, ready to read records and items by."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        try:
            self._read(description)
        except (KeyError, TypeError, ValueError) as error:
            msg = f"the pipeline's description is not of the known shape: {type(error).__name__} {error}"
            raise CannotVerify(msg) from None

    def _read(self, description: Mapping[str, Any]) -> None:
        if description["kind"] != "windows":
            msg = f"only pipelines of windows have totals to verify; this one is of kind {description['kind']!r}"
            raise CannotVerify(msg)
        self.every_ms = int(description["every_s"]) * 1000
        self.latest = {"history": False, "latest": True}[description["layout"]]
        self.key_attribute: str = description["key_attribute"]
        self.key_number = {"N": True, "S": False}[description["key_type"]]
        key = [tuple(path) for path in description["key"]]
        self.key_parts = len(key)
        used = list(dict.fromkeys(key))
        for total in description["totals"]:
            if total["path"] is not None and tuple(total["path"]) not in used:
                used.append(tuple(total["path"]))
        self.reading = Reading(description["fields"], coerce=description["coerce"], key=key, used=used)
        types = {tuple(spec["path"]): spec["type"] for spec in description["fields"]}
        self.columns = [
            column
            for total in description["totals"]
            for column in _columns(total, used, types.get(tuple(total["path"] or ())))
        ]

    def key_of(self, parts: Key) -> Any:
        """The key as the table has it: a number, or text."""
        if self.key_parts == 1:
            return parts[0]
        return "#".join(_plain(part).replace("\\", "\\\\").replace("#", "\\#") for part in parts)

    def key_in(self, item: Item) -> Any:
        """The key of an item, or None where it has none of the right type."""
        value = item.get(self.key_attribute)
        fits = _is_number(value) if self.key_number else type(value) is str
        return value if fits else None


def _columns(total: Mapping[str, Any], used: list[Any], field_type: str | None) -> Iterator[_Column]:
    name, kind = total["name"], total["kind"]
    slot = None if total["path"] is None else used.index(tuple(total["path"]))
    add = operator.add if field_type == "int" else EXACT.add
    if kind == "count":
        yield _Column(name, "count", None, operator.add, 0)
    elif kind == "sum":
        yield _Column(name, "sum", slot, add, 0)
    elif kind == "mean":
        yield _Column(f"{name}#sum", "sum", slot, add, 0)
        yield _Column(f"{name}#count", "count", slot, operator.add, 0)
    elif kind in ("min", "max"):
        yield _Column(name, kind, slot, min if kind == "min" else max, None)
    else:
        msg = f"the total {name!r} is of kind {kind!r}, which this check does not know"
        raise CannotVerify(msg)


class _Span(NamedTuple):
    """Which windows are compared: those wholly inside `[from_ms, to_ms)`, None leaving an end open."""

    every_ms: int
    from_ms: int | None
    to_ms: int | None

    def start_of(self, arrival_ms: int) -> int | None:
        """The start of the window that a record arrived in, or None where that window is not compared."""
        start_ms = arrival_ms - arrival_ms % self.every_ms
        return start_ms if self.holds(start_ms) else None

    def holds(self, start_ms: int) -> bool:
        """Whether the window that begins there is compared."""
        after = self.from_ms is None or start_ms >= self.from_ms
        return after and (self.to_ms is None or start_ms + self.every_ms <= self.to_ms)


# ── counting ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Report:
    """What has been found so far."""

    clean: int = 0
    late: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    total: int = 0
    differences: list[Difference] = field(default_factory=list)

    def reject(self, reason: str) -> None:
        """Count a record as rejected, or as late."""
        if reason == "late":
            self.late += 1
        else:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def add(self, kind: str, text: str, **parts: str | None) -> None:
        """Note a difference; beyond a bound it is only counted."""
        self.total += 1
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(Difference(kind, text, **parts))


class _Entry(NamedTuple):
    reason: str
    digest: bytes


class _Kept:
    """The quarantine, by place. Entries are taken out as the stream names them; what is left has no record."""

    def __init__(self, quarantined: Iterable[Mapping[str, Any]] | None, span: _Span) -> None:
        self.checked = quarantined is not None
        self._by_carrier: dict[tuple[str, str], dict[int, _Entry]] = {}
        for line in quarantined or ():
            if span.start_of(line["arrival_ms"]) is not None:
                place = (line["shard"], _digits(line["sequence"]))
                entry = _Entry(str(line["reason"]), _digest(line["data"]))
                self._by_carrier.setdefault(place, {})[line["sub"]] = entry

    def take(self, shard: str, sequence: str) -> dict[int, _Entry]:
        """The entries of one Kinesis record, by sub. The caller takes out those it has met."""
        return self._by_carrier.get((shard, _digits(sequence)), _NOTHING)

    def report_strangers(self, report: _Report) -> None:
        """Whatever was not taken out is no record of the stream."""
        for (shard, sequence), entries in self._by_carrier.items():
            for sub, entry in entries.items():
                report.add(
                    "not_in_stream",
                    f"the quarantine has a record ({entry.reason}) at {shard} {sequence}.{sub} "
                    "that the stream does not hold, or holds no longer",
                )


_NOTHING: dict[int, _Entry] = {}


def _digits(sequence: str) -> str:
    return sequence.lstrip("0")


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _expect(
    pipeline: _Pipeline,
    stream: Iterable[StreamRecord],
    kept: _Kept,
    span: _Span,
    report: _Report,
    ranges: Mapping[str, tuple[int, int]],
    *,
    in_turn: bool,
) -> dict[tuple[Any, int], Totals]:
    """The totals by (key, window start) that the stream's clean records make."""
    groups: dict[tuple[Key, int], Totals] = {}
    read, columns, key_parts, every_ms = pipeline.reading.read, pipeline.columns, pipeline.key_parts, span.every_ms
    newest: dict[str, int] = {}
    for shard, sequence, arrival_ms, data in stream:
        may_be_late = not in_turn or arrival_ms // every_ms < newest.get(shard, 0)
        newest[shard] = max(newest.get(shard, 0), arrival_ms // every_ms)
        start_ms = span.start_of(arrival_ms)
        if start_ms is None:
            continue
        entries = kept.take(shard, sequence)
        for sub, (payload, fault) in enumerate(_user_records(data, ranges.get(shard))):
            row = fault or read(payload)
            if entries or isinstance(row, str):
                user = _UserRecord(f"{shard} {sequence}.{sub}", payload, row, not fault, may_be_late)
                reason = _left_out_as(user, entries.pop(sub, None) if entries else None, pipeline, kept, report)
                if reason:
                    report.reject(reason)
                    continue
            assert not isinstance(row, str)
            report.clean += 1
            values = row.values
            group = (tuple(values[:key_parts]), start_ms)
            totals = groups.get(group)
            if totals is None:
                totals = groups[group] = [column.start for column in columns]
            _add(totals, columns, values)
    return {(pipeline.key_of(parts), start_ms): totals for (parts, start_ms), totals in groups.items()}


def _user_records(data: bytes, within: tuple[int, int] | None) -> Iterable[tuple[bytes, str]]:
    """Payloads, each with the reason why it is not clean before it is even read, or with nothing."""
    if not is_carrier(data):
        return ((data, ""),)
    opened = open_carrier(data)
    if opened is None:
        return ((data, "corrupt_aggregate"),)
    if within is None:
        return [(payload, "") for payload, _ in opened]
    low, high = within
    return [(payload, "" if low <= hash_key <= high else "wrong_shard") for payload, hash_key in opened]


class _UserRecord(NamedTuple):
    """What the stream says of a user record. `is_read`: its carrier was whole, and it belongs to its shard."""

    place: str
    payload: bytes
    row: Row | str
    is_read: bool
    may_be_late: bool


def _left_out_as(
    user: _UserRecord, entry: _Entry | None, pipeline: _Pipeline, kept: _Kept, report: _Report
) -> str | None:
    """Why a record is not in the totals, by the table at the top of this file; None where it is. Notes differences."""
    place, payload, row = user.place, user.payload, user.row
    if entry is None:
        if not isinstance(row, str):
            return None
        if kept.checked:
            report.add("not_quarantined", f"the record at {place} is not clean ({row}) but not in the quarantine")
        return row
    if entry.digest != _digest(payload):
        report.add("wrong_bytes", f"the quarantine has other bytes for the record at {place} than the stream")
    if entry.reason == "late" and user.is_read:
        if not user.may_be_late:
            report.add("not_late", f"the record at {place} is in the quarantine as late, but came in its window's turn")
        return "late"
    if isinstance(row, str):
        if entry.reason != row and not (user.is_read and entry.reason in pipeline.reading.reasons(payload)):
            text = f"the record at {place} is {row} but in the quarantine as {entry.reason}: {payload[:80]!r}"
            report.add("wrong_reason", text)
        return entry.reason
    if row.disputed:
        return entry.reason
    text = f"the record at {place} is clean but in the quarantine as {entry.reason}: {payload[:80]!r}"
    report.add("wrongly_quarantined", text)
    return None


def _add(totals: Totals, columns: list[_Column], values: list[Any]) -> None:
    for place, (_, kind, slot, join, _) in enumerate(columns):
        value = 1 if slot is None else values[slot]
        if value is not None:
            old = totals[place]
            totals[place] = value if old is None else join(old, 1 if kind == "count" else value)


def _newest(expected: Mapping[tuple[Any, int], Totals]) -> dict[tuple[Any, int], Totals]:
    newest: dict[Any, int] = {}
    for key, start_ms in expected:
        newest[key] = max(start_ms, newest.get(key, start_ms))
    return {place: expected[place] for place in newest.items()}


# ── comparing ───────────────────────────────────────────────────────────────────────────────────────────────


def _compare(
    pipeline: _Pipeline,
    expected: dict[tuple[Any, int], Totals],
    items: Iterable[Item],
    span: _Span,
    report: _Report,
) -> dict[tuple[Any, int], Totals]:
    """Hold every item against what it should be. Answers the totals that the items of the span have.

    Where the table keeps the newest window only, keys that have moved on beyond the span leave `expected`.
    """
    found: dict[tuple[Any, int], Totals] = {}
    missing = dict(expected)
    moved_on: set[Any] = set()
    for item in items:
        key, start_ms = pipeline.key_in(item), _milliseconds(item.get("windowStart"))
        if key is None or start_ms is None:
            report.add("strange_item", f"the table holds an item that is none of this pipeline: {_shown(item)}")
            continue
        if not span.holds(start_ms):
            if pipeline.latest and _is_later(span, start_ms):
                moved_on.add(key)
            continue
        place = (key, start_ms)
        totals = [item.get(column.attribute) for column in pipeline.columns]
        if place not in missing:
            twice = " twice" if place in found else ""
            _report_item(report, "extra_item", f"is in the table{twice}, but no clean record makes it", place, span)
        else:
            _compare_item(pipeline, place, missing.pop(place), totals, item, span, report)
        found[place] = [total if _is_number(total) else None for total in totals]
    for place in [place for place in expected if place[0] in moved_on]:
        del expected[place]
        missing.pop(place, None)
    for place in missing:
        _report_item(report, "missing_item", "is not in the table", place, span)
    return found


def _is_later(span: _Span, start_ms: int) -> bool:
    return span.to_ms is not None and start_ms + span.every_ms > span.to_ms


def _compare_item(
    pipeline: _Pipeline,
    place: tuple[Any, int],
    expected: Totals,
    found: Totals,
    item: Item,
    span: _Span,
    report: _Report,
) -> None:
    end = _iso(place[1] + span.every_ms)
    if item.get("windowEnd") != end:
        text = f"has windowEnd {item.get('windowEnd')!r} instead of {end!r}"
        _report_item(report, "wrong_window", text, place, span, expected=end, found=_shown(item.get("windowEnd")))
    if pipeline.key_parts > 1:
        stored = tuple(item.get(name) for name in pipeline.key_attribute.split("#"))
        if None in stored or pipeline.key_of(stored) != place[0]:
            text = f"has the key's fields {_shown(stored)}, which do not make its key"
            _report_item(report, "wrong_key", text, place, span, expected=place[0], found=_shown(stored))
    for column, should, has in zip(pipeline.columns, expected, found, strict=True):
        if has is not None and not _is_number(has):
            text = f"has {column.attribute} = {_shown(has)}, which is not a number, instead of {_shown(should)}"
        elif has != should:
            text = f"has {column.attribute} = {_shown(has)} instead of {_shown(should)}"
        else:
            continue
        parts = {"total": column.attribute, "expected": _shown(should), "found": _shown(has)}
        _report_item(report, "wrong_total", text, place, span, **parts)


def _report_item(
    report: _Report, kind: str, text: str, place: tuple[Any, int], span: _Span, **parts: str | None
) -> None:
    key, window = _plain(place[0]), f"{_iso(place[1])} to {_iso(place[1] + span.every_ms)}"
    report.add(kind, f"the item of {key}, {window}, {text}", key=key, window=_iso(place[1]), **parts)


def _by_key(pipeline: _Pipeline, places: Mapping[tuple[Any, int], Totals]) -> dict[str, dict[str, int | str]]:
    """Totals over all windows, per key: sums and counts added up, the least and the greatest of the others."""
    by_key: dict[str, Totals] = {}
    for (key, _), totals in sorted(places.items(), key=lambda place: (type(place[0][0]) is str, place[0])):
        whole = by_key.setdefault(_plain(key), [column.start for column in pipeline.columns])
        for place, (column, total) in enumerate(zip(pipeline.columns, totals, strict=True)):
            if total is not None:
                join = EXACT.add if column.kind in ("sum", "count") else column.join
                whole[place] = total if whole[place] is None else join(whole[place], total)
    return {
        key: {
            column.attribute: _json_number(total)
            for column, total in zip(pipeline.columns, totals, strict=True)
            if total is not None
        }
        for key, totals in by_key.items()
    }


# ── values ──────────────────────────────────────────────────────────────────────────────────────────────────


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is Decimal and value.is_finite())


def _plain(value: Any) -> str:
    """A value as a key has it in text: numbers in full and without superfluous zeros."""
    if type(value) is Decimal:
        return format(value.normalize(EXACT), "f") if value else "0"
    return str(value)


def _json_number(value: Any) -> int | str:
    return int(value) if value == int(value) else _plain(value)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return _plain(value) if _is_number(value) else repr(value)[:200]


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _milliseconds(text: Any) -> int | None:
    """From a window's bound as the table has it, or None when it is not written that way."""
    try:
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except (TypeError, ValueError):
        return None
    ms = int(moment.timestamp()) * 1000
    return ms if _iso(ms) == text else None
