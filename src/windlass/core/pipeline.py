"""A declaration compiled, and one call of Lambda run through it: values in, values out.

    Call → user records → typed records | Rejected → segments | items → what the call answers

The two plans differ in their last step only. Nothing here writes; the handler does, in the order that the
answers ask for.
"""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal

import msgspec

from windlass.core.aggregate import HashRange
from windlass.core.batch import Batch, batch_of, drop_duplicates, drop_kept, drop_late
from windlass.core.event import Call, MalformedEvent
from windlass.core.fold import STATE_BYTES_MAX, Folder, KeyPart, Segment
from windlass.core.position import position
from windlass.core.rejected import Reason, Rejected
from windlass.core.schema import DeclarationError, Field, Record, Schema, check_defaults, fields_of
from windlass.core.totals import DIGITS_MAX, HEADROOM_DIGITS, Count, Mean, Sum, Total, columns_of

Aggregates = Literal["keep_insiders", "keep_all"]

KEY_LENGTH_MAX, SORT_KEY_LENGTH_MAX = 512, 256
"""Characters of a text key: 2,048 and 1,024 bytes are DynamoDB's limits, at four bytes a character."""

WINDOW_SECONDS_MAX = 900  # "Configuring Kinesis Data Streams windows": tumbling windows of up to 15 minutes
STATE_LIMIT_MAX = 1_000_000  # the same page: above 1 MB of state Lambda itself ends the window, at a batch's edge
COLUMNS_MAX = 250  # "Quotas in Amazon DynamoDB": an update expression has up to 4 KB, and 300 operators
_RESERVED = ("windowStart", "windowEnd", "version")


class Counts(msgspec.Struct):
    """Where the user records of a call went: received = clean + rejected + late + duplicates."""

    received: int = 0
    clean: int = 0
    late: int = 0
    duplicates: int = 0
    rejected: dict[str, int] = {}

    @classmethod
    def of(cls, batch: Batch, clean: int) -> "Counts":
        """The counts of a batch that has been through every step."""
        rejected: dict[str, int] = {}
        for record in batch.rejected:
            rejected[record.reason.value] = rejected.get(record.reason.value, 0) + 1
        late = rejected.pop(Reason.LATE.value, 0)
        counts = cls(batch.received, clean, late, batch.duplicates, rejected)
        assert counts.received == clean + late + sum(rejected.values()) + counts.duplicates, counts
        return counts


class Step(msgspec.Struct):
    """What one windowed call comes to: segments to flush now, and the segment that stays open as state."""

    flush: list[Segment]
    open: Segment
    rejected: list[Rejected]
    counts: Counts


class WindowsPlan(msgspec.Struct, frozen=True):
    """A `Windows` declaration, compiled."""

    name: str
    fields: tuple[Field, ...]
    schema: Schema
    folder: Folder
    every_s: int

    def run(self, call: Call, within: HashRange | None) -> Step:
        """One call. Raises MalformedEvent or UnknownState; never because of a record's bytes."""
        window = self._window(call)
        segment = self.folder.decode(call.state)
        flush = []
        if segment.columns is not self.folder.columns:
            # Written by a declaration with other totals, deployed before this one: settle it as it is.
            flush.append(segment)
            segment, through = self.folder.empty(), segment.through
        else:
            through = segment.through
        batch = batch_of(call, within)
        drop_late(batch, call, window)
        if batch.rejected:
            drop_kept(batch, through)
        drop_duplicates(batch, through)
        records = read_clean(self.schema, batch)
        closed, segment = self.folder.fold(segment, records, batch.position_at)
        flush += closed
        if (call.final or call.early) and segment.rows:
            flush.append(segment)
            segment = self.folder.empty()
        return Step(flush, segment, batch.rejected, Counts.of(batch, len(records)))

    def _window(self, call: Call) -> Any:
        if call.window is None:
            msg = (
                "the event has no window: set TumblingWindowInSeconds="
                f"{self.every_s} on the event source mapping, as {self.name} declares windows"
            )
            raise MalformedEvent(msg)
        seconds = (call.window.end_ms - call.window.start_ms) // 1000
        if seconds != self.every_s:
            msg = (
                f"the event's window is {seconds} s long, {self.name} declares {self.every_s} s: "
                "make the mapping's TumblingWindowInSeconds and the declaration equal"
            )
            raise MalformedEvent(msg)
        return call.window


class ItemStep(msgspec.Struct):
    """What one call of a `Records` pipeline comes to: items in stream order, and where each came from."""

    items: list[dict[str, Any]]
    sequences: list[str]
    rejected: list[Rejected]
    counts: Counts

    def counts_before(self, sequence: str) -> Counts:
        """Of the records before a Kinesis record, from which on Lambda sends all again."""
        place = position(sequence)
        clean = sum(position(each) < place for each in self.sequences)
        rejected: dict[str, int] = {}
        for record in self.rejected:
            if record.position < place:
                rejected[record.reason.value] = rejected.get(record.reason.value, 0) + 1
        return Counts(clean + sum(rejected.values()), clean, rejected=rejected)


class RecordsPlan(msgspec.Struct, frozen=True):
    """A `Records` declaration, compiled."""

    name: str
    fields: tuple[Field, ...]
    schema: Schema
    key: tuple[KeyPart, ...]  # empty: the position is the key

    def run(self, call: Call, within: HashRange | None) -> ItemStep:
        """One call. Raises MalformedEvent; never because of a record's bytes."""
        batch = batch_of(call, within)
        records = read_clean(self.schema, batch)
        items = [self._item(record, batch, index) for index, record in enumerate(records)]
        large = [index for index, item in enumerate(items) if item_bytes_bound(item) > ITEM_BYTES_MAX]
        if large:
            for index in large:
                batch.reject(index, Reason.TOO_LARGE, f"about {item_bytes_bound(items[index])} bytes as an item")
            stay = sorted(set(range(len(items))) - set(large))
            batch.keep(stay)
            items = [items[index] for index in stay]
        return ItemStep(items, batch.sequences, batch.rejected, Counts.of(batch, len(items)))

    def _item(self, record: Any, batch: Batch, index: int) -> dict[str, Any]:
        item = _plain(record)
        if not self.key:
            item |= {"shard": batch.shard, "position": batch.position_at(index)}
        for part in self.key:
            item[part.name] = attrgetter(part.name)(record)
        return item

    @property
    def key_attributes(self) -> tuple[str, ...]:
        """The table's key attributes: partition key, and sort key where there is one."""
        return tuple(part.name for part in self.key) or ("shard", "position")


ITEM_BYTES_MAX = 400 * 1024  # "Quotas in Amazon DynamoDB": item size


def item_bytes_bound(item: Mapping[str, Any]) -> int:
    """An upper bound of an item's size as DynamoDB counts it: names and values in UTF-8, 21 bytes a number."""
    total = 0
    for name, value in item.items():
        total += len(name.encode()) + 4
        if isinstance(value, str):
            total += len(value.encode())
        elif isinstance(value, Mapping):
            total += item_bytes_bound(value)
        else:
            total += 22
    return total


def _plain(record: Any) -> dict[str, Any]:
    item = msgspec.structs.asdict(record)
    return {
        name: _plain(value) if isinstance(value, msgspec.Struct) else value
        for name, value in item.items()
        if value is not None
    }


def read_clean(schema: Schema, batch: Batch) -> list[Any]:
    """The records of a batch that fit the schema; the others are rejected and taken out of it."""
    records, faults = schema.read(batch.payloads, all_ascii=batch.ascii)
    if not faults:
        return records
    for index in faults:
        batch.reject(index, records[index].reason, records[index].detail[:300])
    stay = sorted(set(range(len(records))).difference(faults))
    batch.keep(stay)
    return [records[index] for index in stay]


# ── compiling a declaration ─────────────────────────────────────────────────────────────────────────────────


def compile_windows(
    record: type[Record],
    *,
    key: str | Sequence[str],
    every_s: float,
    totals: Mapping[str, Total],
    coerce: bool = False,
    state_bytes_max: int = STATE_BYTES_MAX,
) -> WindowsPlan:
    """Raises DeclarationError with what to do when the declaration cannot work."""
    fields = {field.attribute: field for field in fields_of(record)}
    seconds = _whole_seconds(every_s)
    if not (type(state_bytes_max) is int and 1 <= state_bytes_max <= STATE_LIMIT_MAX):
        msg = (
            f"state_bytes_max is 1 to {STATE_LIMIT_MAX} bytes; found {state_bytes_max!r}. A larger state Lambda ends "
            "early, at the edge of a batch, where a replay would not end it again"
        )
        raise DeclarationError(msg)
    parts = _key_parts(record, fields, _key_names(key))
    _check_key_names(parts)
    _check_totals(record, fields, parts, totals)
    # Several are joined into one key, and an escape may double each character of a part.
    longest = KEY_LENGTH_MAX if len(parts) == 1 else KEY_LENGTH_MAX // (2 * len(parts))
    for part in parts:
        _limit_key(fields, part, longest)
    for total in totals.values():
        _mark_exact(fields, total)
    columns = tuple(column for name, total in totals.items() for column in _columns(fields, name, total))
    folder = Folder.of(parts, columns, state_bytes_max)
    check_defaults(record.__name__, tuple(fields.values()))
    schema = Schema(record.__name__, tuple(fields.values()), coerce=coerce)
    return WindowsPlan(record.__name__, tuple(fields.values()), schema, folder, seconds)


def compile_records(record: type[Record], *, key: str | Sequence[str] | None, coerce: bool = False) -> RecordsPlan:
    """Raises DeclarationError with what to do when the declaration cannot work."""
    fields = {field.attribute: field for field in fields_of(record)}
    names = [] if key is None else _key_names(key)
    if len(names) > 2:
        msg = f"a table has a partition key and at most one sort key; found {len(names)} key fields {names}"
        raise DeclarationError(msg)
    parts = _key_parts(record, fields, names) if names else ()
    for part, longest in zip(parts, (KEY_LENGTH_MAX, SORT_KEY_LENGTH_MAX), strict=False):
        _limit_key(fields, part, longest)
    if not parts and {"shard", "position"} & fields.keys():
        msg = f"{record.__name__} declares a field named shard or position, which the key by position uses: rename it"
        raise DeclarationError(msg)
    for name, field in fields.items():
        if field.type in ("float", "decimal"):
            fields[name] = msgspec.structs.replace(field, stored=True)
    check_defaults(record.__name__, tuple(fields.values()))
    schema = Schema(record.__name__, tuple(fields.values()), coerce=coerce)
    return RecordsPlan(record.__name__, tuple(fields.values()), schema, parts)


def _key_names(key: Any) -> list[Any]:
    return list(key) if isinstance(key, list | tuple) else [key]


def _whole_seconds(every_s: float) -> int:
    if every_s != int(every_s) or not 1 <= every_s <= WINDOW_SECONDS_MAX:
        msg = (
            f"a window is 1 to {WINDOW_SECONDS_MAX} whole seconds, as Lambda's tumbling windows are; "
            f"found {every_s!r:.20} s. For longer ones, sum the stored windows when reading"
        )
        raise DeclarationError(msg)
    return int(every_s)


def _key_parts(record: type[Record], fields: dict[str, Field], names: list[str]) -> tuple[KeyPart, ...]:
    if not names or not all(isinstance(name, str) for name in names):
        msg = f"a pipeline has a key: the name of a field, or of several; found {names}"
        raise DeclarationError(msg)
    if len(set(names)) != len(names):
        msg = f"a key names each field once; found {names}"
        raise DeclarationError(msg)
    return tuple(_key_part(_field(record, fields, name, "key"), name) for name in names)


def _key_part(field: Field, name: str) -> KeyPart:
    kind = field.type if field.type in ("int", "decimal", "str") else None
    if field.choices:
        types = {type(choice) for choice in field.choices}
        kind = "str" if types == {str} else "int" if types == {int} else None
    if kind is None:
        msg = f"key field {name} is a {field.type}: a key is made of int, Decimal or str fields, as DynamoDB's keys are"
        raise DeclarationError(msg)
    if field.nullable or not field.required:
        msg = (
            f"key field {name} may be null or absent: every record needs its key; declare it without a default and "
            "without None"
        )
        raise DeclarationError(msg)
    return KeyPart(name, kind)


def _field(record: type[Record], fields: dict[str, Field], name: str, role: str) -> Field:
    field = fields.get(name) if isinstance(name, str) else None
    if field is None:
        msg = f"{role} names {name!r}, which {record.__name__} does not declare; it declares {', '.join(fields)}"
        raise DeclarationError(msg)
    return field


def _check_key_names(parts: tuple[KeyPart, ...]) -> None:
    """A key's fields are attributes of the item, beside those that Windlass keeps there for itself."""
    for name in (*(part.name for part in parts), "#".join(part.name for part in parts)):
        if _is_reserved(name):
            msg = (
                f"key {name!r} is named like an attribute that Windlass writes to each item: "
                'declare the field under another name, like release: str = field(name="version")'
            )
            raise DeclarationError(msg)


def _is_reserved(attribute: str) -> bool:
    return attribute in _RESERVED or attribute.startswith("applied#")


def _check_totals(
    record: type[Record], fields: dict[str, Field], parts: tuple[KeyPart, ...], totals: Mapping[str, Total]
) -> None:
    if not totals:
        msg = 'a Windows pipeline has totals, like {"trips": Count()}'
        raise DeclarationError(msg)
    taken = {part.name: "the key" for part in parts} | dict.fromkeys(_RESERVED, "Windlass")
    taken["#".join(part.name for part in parts)] = "the key"
    reserved = dict(taken)
    for name, total in totals.items():
        if not isinstance(name, str):
            msg = f"a total has a name, the attribute that it is stored under; found {name!r}"
            raise DeclarationError(msg)
        if not isinstance(total, Total):
            msg = f"total {name!r} is {total!r}: use Count(), Sum, Mean, Min or Max"
            raise DeclarationError(msg)
        if not name or name in reserved or _is_reserved(name):
            msg = f"total {name!r} is named like an attribute of {reserved.get(name, 'Windlass')}: give it another name"
            raise DeclarationError(msg)
        _check_total(record, fields, name, total)
        for column in _columns(fields, name, total):
            if _is_reserved(column.attribute):
                msg = f"total {name!r} is stored as {column.attribute!r}, like an attribute of Windlass: rename it"
                raise DeclarationError(msg)
            if column.attribute in taken:
                msg = (
                    f"{taken[column.attribute]} and total {name!r} are both stored as {column.attribute!r}: rename one"
                )
                raise DeclarationError(msg)
            taken[column.attribute] = f"total {name!r}"
    if len(taken) > COLUMNS_MAX:
        msg = f"the totals make {len(taken)} attributes; DynamoDB updates at most {COLUMNS_MAX} at once: declare fewer"
        raise DeclarationError(msg)


def _check_total(record: type[Record], fields: dict[str, Field], name: str, total: Total) -> None:
    if isinstance(total, Count):
        return
    kind = type(total).__name__
    field = _field(record, fields, total.field, f"total {name!r}")
    if field.type not in ("int", "float", "decimal"):
        msg = f"total {name!r} is {kind}({total.field!r}), but {total.field} is a {field.type}: {kind} needs a number"
        raise DeclarationError(msg)
    if isinstance(total, Sum | Mean) and not (type(total.decimals) is int and 0 <= total.decimals <= 28):
        msg = f"total {name!r} keeps {total.decimals!r} decimals: 0 to 28 fit DynamoDB's 38 digits with room to sum"
        raise DeclarationError(msg)


def _columns(fields: dict[str, Field], name: str, total: Total) -> Any:
    if isinstance(total, Count):
        return columns_of(name, total, "", whole=True, nullable=False)
    field = fields[total.field]
    absent = field.nullable or (not field.required and field.default is None)
    return columns_of(name, total, field.attribute, whole=field.type == "int", nullable=absent)


def _limit_key(fields: dict[str, Field], part: KeyPart, longest: int) -> None:
    """DynamoDB refuses empty and long text keys, so such records are out of range from the start.

    Raises DeclarationError where the declaration itself lists such a key.
    """
    field = fields[part.name]
    for choice in field.choices or ():
        if type(choice) is str and not 1 <= len(choice) <= longest:
            msg = (
                f"key field {part.name} may be {choice[:40]!r}: DynamoDB takes keys of 1 to {longest} characters; "
                "leave that choice out, so that such records are rejected"
            )
            raise DeclarationError(msg)
    if field.type == "str":
        low, high = (
            max(1, field.min_length or 0),
            min(longest, longest if field.max_length is None else field.max_length),
        )
        if low > high:
            msg = f"key field {part.name} has a Length that no key can have: DynamoDB takes 1 to {longest} characters"
            raise DeclarationError(msg)
        fields[part.name] = msgspec.structs.replace(field, min_length=low, max_length=high)


def _mark_exact(fields: dict[str, Field], total: Total) -> None:
    if isinstance(total, Count) or fields[total.field].type == "int":
        return
    field = fields[total.field]
    if isinstance(total, Sum | Mean):
        decimals = min(total.decimals, total.decimals if field.decimals is None else field.decimals)
        limit = 10 ** (DIGITS_MAX - HEADROOM_DIGITS - decimals)
        if (field.low is not None and field.low >= limit) or (field.high is not None and field.high <= -limit):
            msg = (
                f"{total.field} has a Range of which nothing could be summed: with {decimals} decimals a value has at "
                f"most {len(str(limit)) - 1} digits before them; declare fewer, like Sum({total.field!r}, decimals=2)"
            )
            raise DeclarationError(msg)
        fields[total.field] = msgspec.structs.replace(field, decimals=decimals)
    else:
        fields[total.field] = msgspec.structs.replace(field, stored=True)
