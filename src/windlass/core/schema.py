"""A record declared as a class, compiled into a decoder: JSON, types and ranges in one pass of msgspec.

Rules of this file:
- What is declared is checked, whole; what is not declared is ignored, but must be JSON.
- The types are few, and each has one meaning that a reader in any language can repeat:
    int      a JSON number without fraction or exponent, within signed 64 bits
    float    a JSON number; its value is the decimal that its shortest text says, below 1E+126
    Decimal  a JSON number, taken digit by digit: at most 38 digits, as DynamoDB holds them
    bool, str, Literal of strings or whole numbers, and `| None` on each of them; and nested Record, which must be there
- With coerce, a string which without surrounding spaces and tabs is a JSON number is that number.
- Decoding answers a record or a `Fault`. It never raises because of bytes.
- The struct that msgspec decodes into is built here, not the declared class: that leaves room for what one
  pass cannot do (`_finish`), which costs nothing for records that need none of it.
"""

import json
import re
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation
from functools import cache, partial
from itertools import repeat
from math import isfinite, nextafter
from operator import attrgetter
from typing import Annotated, Any, Literal, Union, dataclass_transform, get_args, get_origin, get_type_hints

import msgspec

from windlass.core.rejected import Reason
from windlass.core.totals import DIGITS_MAX, EXACT, HEADROOM_DIGITS

INT_LOW, INT_HIGH = -(2**63), 2**63 - 1
LENGTH_END = 2**31  # more than a Kinesis record holds, and less than what msgspec counts
# DynamoDB's number range, "Supported data types and naming rules in Amazon DynamoDB".
MAGNITUDE_LOW, MAGNITUDE_END = Decimal("1E-130"), Decimal("1E+126")
_FLOAT_HIGH = nextafter(1e126, 0)


class DeclarationError(TypeError):
    """A declaration that cannot work, found when it is made. The message says what to do."""


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class _RecordType(msgspec.StructMeta):
    """JSON members have no order, so a field with a default may stand before one without."""

    def __new__(cls, *parts: Any, **options: Any) -> Any:
        return super().__new__(cls, *parts, **({"kw_only": True} | options))


class Record(msgspec.Struct, metaclass=_RecordType):
    """Base of your record types: `class Trip(Record): vendorId: int`.

    Field names are the JSON member names; `field(name="vendor_id")` renames one. Members that are not declared
    are ignored. Types are int (64 bits), float, Decimal, bool, str, Literal of strings or whole numbers, each also
    `| None` (null), and nested Records; a default lets a member be absent. Constraints are Range and Length.
    """


class Range(msgspec.Struct, frozen=True):
    """`Annotated[int, Range(0, 9)]`: both ends included; None leaves an end open. For int, float and Decimal."""

    low: Any = None
    high: Any = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            msg = "Range() without bounds says nothing: give a low, a high, or both"
            raise DeclarationError(msg)
        for bound in (self.low, self.high):
            if bound is not None and not (type(bound) is int or (type(bound) in (float, Decimal) and isfinite(bound))):
                msg = f"the bounds of a Range are finite numbers, or None for an open end; found {bound!r}"
                raise DeclarationError(msg)
        if self.low is not None and self.high is not None and self.low > self.high:
            msg = f"Range({self.low}, {self.high}) is empty: the low bound comes first"
            raise DeclarationError(msg)


class Length(msgspec.Struct, frozen=True):
    """`Annotated[str, Length(1, 36)]`: the number of characters, both ends included."""

    low: int = 0
    high: int | None = None

    def __post_init__(self) -> None:
        if not all(type(end) is int and end < LENGTH_END for end in (self.low, self.high or 0)):
            msg = f"a Length has whole numbers of characters, below 2**31; found {self}"
            raise DeclarationError(msg)
        if not 0 <= self.low <= (self.low if self.high is None else self.high):
            msg = f"{self} fits no text: the low bound comes first, and is 0 or more"
            raise DeclarationError(msg)


class Field(msgspec.Struct, frozen=True):
    """One declared field, flat: nested records are paths."""

    path: tuple[str, ...]  # JSON member names from the root
    attribute: str  # dotted Python names from the root
    type: str  # int, float, decimal, str, bool, choice, object
    nullable: bool
    required: bool
    default: Any = None
    low: Any = None
    high: Any = None
    min_length: int | None = None
    max_length: int | None = None
    choices: tuple[Any, ...] | None = None
    decimals: int | None = None  # the field is summed: decimals it may have
    stored: bool = False  # the field's value reaches DynamoDB as it is

    @property
    def name(self) -> str:
        """The path as it is written in declarations and messages."""
        return ".".join(self.path)


class Fault(msgspec.Struct, frozen=True):
    """Why bytes are not a record."""

    reason: Reason
    detail: str


# ── reading a declaration ───────────────────────────────────────────────────────────────────────────────────


def fields_of(record: type[Record]) -> list[Field]:
    """Every field of a record type, nested ones after their parent. Raises DeclarationError."""
    if not (isinstance(record, type) and issubclass(record, Record)):
        msg = f"a pipeline's record is a class derived from windlass.Record; found {record!r}"
        raise DeclarationError(msg)
    fields = list(_walk(record, (), "", ()))
    if not fields:
        msg = f"{record.__name__} declares no field: nothing could be keyed or summed"
        raise DeclarationError(msg)
    return fields


_TYPES: dict[Any, str] = {int: "int", float: "float", Decimal: "decimal", str: "str", bool: "bool"}
_NUMBERS = ("int", "float", "decimal")


def _walk(
    record: type[Record], path: tuple[str, ...], prefix: str, inside: tuple[type[Record], ...]
) -> Iterator[Field]:
    if record in inside:
        msg = f"{record.__name__} holds itself: a record is nested to a fixed depth, as its fields are flat paths"
        raise DeclarationError(msg)
    _check_options(record)
    try:
        hints = get_type_hints(record, include_extras=True)
    except (NameError, SyntaxError) as error:
        msg = f"{record.__name__}: an annotation names what is not there ({error}); define it before, in the module"
        raise DeclarationError(msg) from None
    for info in msgspec.structs.fields(record):
        where = f"{record.__name__}.{info.name}"
        base, notes, nullable = _unwrap(hints[info.name], where)
        required = info.default is msgspec.NODEFAULT and info.default_factory is msgspec.NODEFAULT
        field = Field(
            path=(*path, info.encode_name),
            attribute=prefix + info.name,
            type=_type_name(base, where),
            nullable=nullable,
            required=required,
            default=None if info.default is msgspec.NODEFAULT else info.default,
            choices=get_args(base) if get_origin(base) is Literal else None,
        )
        _check_default(field, info.default_factory, where)
        yield _constrain(field, notes, where)
        if field.type == "object":
            if nullable or not required:
                msg = f"{where}: a nested record must be there; make the fields inside it optional instead"
                raise DeclarationError(msg)
            yield from _walk(base, field.path, field.attribute + ".", (*inside, record))


def _check_options(record: type[Record]) -> None:
    """What msgspec can do for a struct besides, and Windlass does not do for a record, must not pass in silence."""
    config = record.__struct_config__
    options = {
        "array_like": (config.array_like, "a record is a JSON object"),
        "forbid_unknown_fields": (config.forbid_unknown_fields, "members that are not declared are ignored"),
        "tag": (config.tag is not None, "declare the member that tells types apart as a Literal field"),
        "__post_init__": (hasattr(record, "__post_init__"), "records are decoded without it; use Range and Length"),
    }
    for name, (is_set, instead) in options.items():
        if is_set:
            msg = f"{record.__name__} has {name}, which a record cannot have: {instead}"
            raise DeclarationError(msg)


_DEFAULTS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "decimal": (Decimal, int, float),
    "str": (str,),
    "bool": (bool,),
}


def _check_default(field: Field, factory: Any, where: str) -> None:
    """A default stands for a value of a clean record: another type, or no finite number, would fail at the flush."""
    if field.type == "object" or (field.default is None and factory is msgspec.NODEFAULT):
        return
    same = [choice for choice in field.choices or () if type(choice) is type(field.default)]
    fits = type(field.default) in _DEFAULTS.get(field.type, ()) or field.default in same
    if fits and field.type in _NUMBERS:
        fits = Decimal(repr(field.default) if type(field.default) is float else field.default).is_finite()
    if not fits:
        found = "a default_factory" if factory is not msgspec.NODEFAULT else repr(field.default)
        msg = f"{where}: its default is a plain value of its type, {field.type}, or None; found {found}"
        raise DeclarationError(msg)


def _unwrap(annotation: Any, where: str) -> tuple[Any, list[Any], bool]:
    notes: list[Any] = []
    nullable = False
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            notes += more
        elif get_origin(annotation) in (Union, types.UnionType):
            options = [option for option in get_args(annotation) if option is not type(None)]
            if len(options) != 1:
                msg = f"{where}: one type, or one type `| None`; found {annotation}"
                raise DeclarationError(msg)
            nullable = True
            annotation = options[0]
        else:
            return annotation, notes, nullable


def _type_name(base: Any, where: str) -> str:
    if base in _TYPES:
        return _TYPES[base]
    if get_origin(base) is Literal and all(map(_is_choice, get_args(base))):
        return "choice"
    if isinstance(base, type) and issubclass(base, Record):
        return "object"
    msg = (
        f"{where}: {base!r} is not a type that a record can declare. Use int, float, Decimal, str, bool, a Literal of "
        "strings or whole numbers of 64 bits, or a nested Record, or leave the field out: members that are not "
        "declared are ignored"
    )
    raise DeclarationError(msg)


def _is_choice(choice: Any) -> bool:
    return type(choice) is str or (type(choice) is int and INT_LOW <= choice <= INT_HIGH)


def _constrain(field: Field, notes: Sequence[Any], where: str) -> Field:
    for note in notes:
        if isinstance(note, Range):
            if field.type not in _NUMBERS:
                msg = f"{where}: Range is for numbers; this field is a {field.type}"
                raise DeclarationError(msg)
            low, high = _bound(note.low, field, where), _bound(note.high, field, where)
            low, high = _tighter(max, field.low, low), _tighter(min, field.high, high)
            if low is not None and high is not None and low > high:
                msg = f"{where}: its Ranges have no number in common"
                raise DeclarationError(msg)
            field = msgspec.structs.replace(field, low=low, high=high)
        elif isinstance(note, Length):
            if field.type != "str":
                msg = f"{where}: Length is for strings; this field is a {field.type}"
                raise DeclarationError(msg)
            field = msgspec.structs.replace(
                field,
                min_length=_tighter(max, field.min_length, note.low or None),
                max_length=_tighter(min, field.max_length, note.high),
            )
        else:
            msg = f"{where}: {note!r} is not a constraint Windlass knows: use Range or Length"
            raise DeclarationError(msg)
    return field


def _tighter(choose: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
    """Of two bounds, as an alias of an Annotated type brings them, the one that lets less pass. None is open."""
    return other if one is None else one if other is None else choose(one, other)


def _bound(bound: Any, field: Field, where: str) -> Any:
    """A Decimal field's bound is the decimal that was written: 0.1, not the binary float nearest to it."""
    if bound is None:
        return None
    if field.type == "decimal":
        return Decimal(str(bound))
    if field.type == "int" and not (bound == int(bound) and INT_LOW <= bound <= INT_HIGH):
        msg = f"{where}: the bounds of an int are whole numbers of 64 bits; found {bound}. None leaves an end open"
        raise DeclarationError(msg)
    if field.type == "float" and not -MAGNITUDE_END < bound < MAGNITUDE_END:
        msg = f"{where}: a float is between -1E+126 and 1E+126, as DynamoDB's numbers are; found the bound {bound}"
        raise DeclarationError(msg)
    return int(bound) if field.type == "int" else bound


# ── compiling it ────────────────────────────────────────────────────────────────────────────────────────────


class Schema:
    """Bytes in, records or faults out. The records are structs with the declared fields as attributes."""

    def __init__(self, name: str, fields: Sequence[Field], *, coerce: bool) -> None:
        self._decode = msgspec.json.Decoder(_struct(name, fields, (), coerce=coerce)).decode
        self._doubles = {f"`$.{field.name}`" for field in fields if field.type == "float"}
        finishes = [_finish_of(field, coerce=coerce) for field in fields]
        self._finishes = [finish for finish in finishes if finish is not None]

    def read(self, payloads: Sequence[bytes], *, all_ascii: bool = False) -> tuple[list[Any], list[int]]:
        """For each payload, in order, a record or a `Fault`; and the indexes of the faults, ascending.

        `all_ascii` says that the payloads are known to be, which spares a look at each.
        """
        if not all_ascii and not all(map(bytes.isascii, payloads)) and not _all_utf8(payloads):
            records = [self._read_one(payload) for payload in payloads]
            return records, _faults_in(records)
        # One C loop over clean records. An exception takes one record out of it, and the same iterator goes on.
        records = []
        faults = []
        decoded = map(self._decode, payloads)
        while True:
            try:
                records.extend(decoded)
                break
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                faults.append(len(records))
                records.append(self._fault(error))
        if self._finishes and self._finish(records, faults):
            faults = _faults_in(records)
        return records, faults

    def _read_one(self, payload: bytes) -> Any:
        if not _all_utf8([payload]):
            return Fault(Reason.NOT_UTF8, _utf8_detail(payload))
        try:
            records = [self._decode(payload)]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return self._fault(error)
        self._finish(records, [])
        return records[0]

    def _fault(self, error: Exception) -> Fault:
        """Msgspec says in its message what is wrong; the reasons are read from its first words."""
        text = str(error)
        if isinstance(error, RecursionError):
            return Fault(Reason.NOT_JSON, "nested too deeply")
        if not isinstance(error, msgspec.ValidationError):
            return Fault(Reason.NOT_JSON, text)
        words, _, at = text.partition(" - at ")
        if words == "Number out of range" and at not in self._doubles:
            # Beyond a double, in the place of something else; that it is none of those says more.
            return Fault(Reason.WRONG_TYPE if at else Reason.NOT_AN_OBJECT, f"Got a number - at {at or '`$`'}")
        if not at and words.startswith("Expected `object`"):
            return Fault(Reason.NOT_AN_OBJECT, text)
        for pattern, reason in _FAULT_WORDS:
            if pattern.search(words):
                return Fault(reason, text)
        return Fault(Reason.WRONG_TYPE, text)

    def _finish(self, records: list[Any], faults: Sequence[int]) -> bool:
        """Take the records through their last steps, in place; `faults` are not any more. Whether there are new ones.

        A field is finished in all records before the next field is; a record ends at its first fault.
        """
        new = False
        where: Sequence[int] = range(len(records))
        if faults:
            where = sorted(set(where).difference(faults))
        clean = [records[index] for index in where] if faults else records
        for finish in self._finishes:
            found = finish.apply(clean)
            if found:
                new = True
                for place, fault in found.items():
                    records[where[place]] = fault
                where = [index for place, index in enumerate(where) if place not in found]
                clean = [records[index] for index in where]
        return new


def _faults_in(records: Sequence[Any]) -> list[int]:
    return [index for index, record in enumerate(records) if type(record) is Fault]


def _all_utf8(payloads: Sequence[bytes]) -> bool:
    try:
        for payload in payloads:
            if not payload.isascii():
                payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _utf8_detail(payload: bytes) -> str:
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start}: {error.reason}"
    raise AssertionError(payload)


_FAULT_WORDS = [
    (re.compile(r"^Object missing required field"), Reason.MISSING_FIELD),
    (
        re.compile(r"^Expected `\w+(\|\w+)*` [<>]=|of length [<>]=|out of range|^Invalid enum value"),
        Reason.OUT_OF_RANGE,
    ),
]


def _struct(name: str, fields: Sequence[Field], parent: tuple[str, ...], *, coerce: bool) -> type[Any]:
    members: list[Any] = []
    for field in fields:
        if field.path[:-1] != parent:
            continue
        python_name = field.attribute.rpartition(".")[2]
        wire: Any = (
            _struct(python_name, fields, field.path, coerce=coerce)
            if field.type == "object"
            else _wire_type(field, coerce=coerce)
        )
        default = {} if field.required else {"default": _final_default(field)}
        members.append((python_name, wire, msgspec.field(name=field.path[-1], **default)))
    return msgspec.defstruct(name, members, kw_only=True, gc=False)


def _final_default(field: Field) -> Any:
    return _settled(field.default, field) if _is_exact(field) and field.default is not None else field.default


def _wire_type(field: Field, *, coerce: bool) -> Any:
    if _is_exact(field):
        return msgspec.Raw  # takes null too; `_reader` tells what it is
    wire: Any
    if field.type == "int":
        low = max(INT_LOW, INT_LOW if field.low is None else field.low)
        high = min(INT_HIGH, INT_HIGH if field.high is None else field.high)
        wire = Annotated[int, msgspec.Meta(ge=low, le=high)]
    elif field.type == "float":
        low = -_FLOAT_HIGH if field.low is None else float(field.low)
        high = _FLOAT_HIGH if field.high is None else float(field.high)
        wire = Annotated[float, msgspec.Meta(ge=low, le=high)]
    elif field.type == "str":
        wire = Annotated[str, msgspec.Meta(min_length=field.min_length, max_length=field.max_length)]
    elif field.type == "choice":
        assert field.choices
        wire = Literal[field.choices]
    else:
        wire = bool
    if coerce and _is_coerced(field):
        wire = wire | str
    return wire | None if field.nullable else wire


def check_defaults(record: str, fields: Sequence[Field]) -> None:
    """A default is counted like a value that came: one that could not have come raises DeclarationError."""
    for field in fields:
        value = field.default
        if value is None:
            continue
        fault = None
        if field.type == "int":
            fault = _number_in_text(str(value), field)
        elif field.type in _NUMBERS:
            fault = _number_in_text(str(value), field)
            if type(fault) is not Fault and (field.type == "decimal" or field.decimals is not None or field.stored):
                fault = _settled(value, field)
        elif field.type == "str":
            low, high = field.min_length or 0, field.max_length
            if len(value) < low or (high is not None and len(value) > high):
                fault = Fault(Reason.OUT_OF_RANGE, f"{len(value)} characters (declared {low} to {high})")
        if type(fault) is Fault:
            msg = f"{record}.{field.attribute}: the default {value!r} is none that a record could have: {fault.detail}"
            raise DeclarationError(msg)


# ── what one pass cannot do ─────────────────────────────────────────────────────────────────────────────────

_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_JSON_INT = re.compile(r"-?(0|[1-9][0-9]*)")


class _Finish(msgspec.Struct, frozen=True):
    """A field whose decoded values are text still, or JSON. Works on columns: each distinct text is read once."""

    owner: Callable[[Any], Any] | None  # from a record to the nested one that has the field
    name: str
    coerce: bool
    read: Callable[[str], Any]  # a value, or a Fault
    read_usual: Callable[[list[str]], dict[str, Any]] | None = None  # many numbers at once, or nothing of them

    def apply(self, records: Sequence[Any]) -> dict[int, Fault]:
        """Finish the field in each record, in place. The faults by index."""
        structs = list(map(self.owner, records)) if self.owner else records
        values = list(map(attrgetter(self.name), structs))
        kinds = set(map(type, values))
        if kinds == {msgspec.Raw}:
            values = list(map(str, values, repeat("utf-8")))
        elif msgspec.Raw in kinds:  # the others are the default
            values = [str(value, "utf-8") if type(value) is msgspec.Raw else value for value in values]
        elif str not in kinds:
            return {}
        finals = self._read_each([value for value in set(values) if type(value) is str])
        values = list(map(finals.get, values, values))  # what is no text stays
        for struct, value in zip(structs, values, strict=True):
            setattr(struct, self.name, value)
        if Fault in map(type, finals.values()):
            return {index: value for index, value in enumerate(values) if type(value) is Fault}
        return {}

    def _read_each(self, texts: list[str]) -> dict[str, Any]:
        finals: dict[str, Any] = {}
        if self.read_usual:
            together = "".join(texts)
            if "n" in together or '"' in together:  # null, and numbers in strings
                numbers = {text: number for text in texts if (number := self._number_of(text))}
                found = self.read_usual(list(numbers.values()))
                finals = {text: found[number] for text, number in numbers.items()} if found else {}
            else:
                finals = self.read_usual(texts)
        if len(finals) < len(texts):
            finals |= {text: self.read(text) for text in texts if text not in finals}
        return finals

    def _number_of(self, json_text: str) -> str:
        """The number that it is, or that it is with coerce; empty where it is none, or not plainly one."""
        if json_text[0] in _NUMBER_STARTS:
            return json_text
        number = _JSON_NUMBER.fullmatch(json_text[1:-1].strip(" \t")) if self.coerce and json_text[0] == '"' else None
        return number[0] if number else ""


def _finish_of(field: Field, *, coerce: bool) -> _Finish | None:
    parent, _, name = field.attribute.rpartition(".")
    owner = attrgetter(parent) if parent else None
    if _is_exact(field):
        return _Finish(owner, name, coerce, _reader(field, coerce=coerce), _usual_reader(field))
    if coerce and _is_coerced(field):
        return _Finish(owner, name, coerce, partial(_number_in_text, field=field))
    return None


def _is_exact(field: Field) -> bool:
    """Whether the value is to be a Decimal: then its JSON is read here, digit by digit."""
    return field.type == "decimal" or (field.type == "float" and (field.decimals is not None or field.stored))


def _is_coerced(field: Field) -> bool:
    """With coerce: numbers, and choices that are all numbers."""
    return field.type in _NUMBERS or {type(choice) for choice in field.choices or ()} == {int}


def _reader(field: Field, *, coerce: bool) -> Callable[[str], Any]:
    """From the JSON of an exact field's value to the value."""

    def read(json_text: str) -> Any:
        if json_text[0] in _NUMBER_STARTS:
            number = _number_in_text(json_text, field)
        elif json_text[0] == '"' and coerce:
            number = _number_in_text(json.loads(json_text), field)
        elif json_text == "null" and field.nullable:
            return None
        else:
            return Fault(Reason.WRONG_TYPE, f"Expected a number, got `{json_text[:40]}` - at `{_at(field)}`")
        return number if type(number) is Fault else _settled(number, field)

    return read


_NUMBER_STARTS = frozenset("-0123456789")
DOUBLE_DIGITS = 15
"""A decimal of so many digits is the shortest text of the double next to it, so it need not be taken there and back."""


def _usual_reader(field: Field) -> Callable[[list[str]], dict[str, Any]]:
    """The same for a column of usual numbers, in C loops. Nothing where one of them is unusual, or at fault."""
    quantum, low, high = _quantum(field.decimals), field.low, field.high

    def read(texts: list[str]) -> dict[str, Any]:
        if field.type == "float":
            together = "".join(texts)
            if max(map(len, texts), default=0) > DOUBLE_DIGITS or "e" in together or "E" in together:
                return {}
        try:
            numbers = list(map(Decimal, texts))  # a text is JSON: if Decimal takes it, then it is a number
            if texts and (low is not None or high is not None):
                compared: list[Any] = list(map(float, texts)) if field.type == "float" else numbers
                if (low is not None and min(compared) < low) or (high is not None and max(compared) > high):
                    return {}
            if quantum is not None:
                deque(map(_SUMMED.quantize, numbers, repeat(quantum)), maxlen=0)
            numbers = [EXACT.normalize(number) if number else _ZERO for number in numbers]
        except (Inexact, InvalidOperation):
            return {}
        return dict(zip(texts, numbers, strict=True)) if quantum is not None or all(map(_is_stored, numbers)) else {}

    return read


_ZERO = Decimal(0)
_SUMMED = Context(prec=DIGITS_MAX - HEADROOM_DIGITS, traps=[Inexact, InvalidOperation])
"""Quantizing in it raises where a number is off the grid, or too long to be summed."""


@cache
def _quantum(decimals: int | None) -> Decimal | None:
    """The grid that a summed field's values lie on."""
    return None if decimals is None else Decimal(1).scaleb(-decimals)


_SUMMED_ROOM = "; what is summed has at most {decimals} decimals and {whole_digits} digits before them (see decimals=)"


def _settled(value: Any, field: Field) -> Any:
    """As a Decimal that DynamoDB holds, and that sums exactly where it is summed; or a Fault."""
    number = value if type(value) is Decimal else Decimal(repr(value))
    if not number:
        return _ZERO
    room = "; DynamoDB holds 38 digits between 1E-130 and 1E+126"
    try:
        number = EXACT.normalize(number)
        if _is_stored(number):
            room = _SUMMED_ROOM
            quantum = _quantum(field.decimals)
            if quantum is not None:
                _SUMMED.quantize(number, quantum)
            return number
    except (Inexact, InvalidOperation):
        pass
    decimals = field.decimals or 0
    return _out_of_range(str(value), field, room.format(decimals=decimals, whole_digits=_SUMMED.prec - decimals))


def _is_stored(number: Decimal) -> bool:
    return not number or MAGNITUDE_LOW <= number.copy_abs() < MAGNITUDE_END


def _number_in_text(text: str, field: Field) -> Any:
    trimmed = text.strip(" \t")
    whole = field.type in ("int", "choice")
    pattern = _JSON_INT if whole else _JSON_NUMBER
    if not pattern.fullmatch(trimmed):
        kind = "int" if whole else field.type
        return Fault(
            Reason.WRONG_TYPE, f"Expected a number of type {kind}, got the text {text[:40]!r} - at `{_at(field)}`"
        )
    if field.type == "decimal":
        return _decimal(trimmed, field)
    if whole:
        # Longer texts are out of any range; Python itself refuses to convert very long ones.
        value: int | float = int(trimmed) if len(trimmed) < 40 else (INT_LOW - 1 if trimmed[0] == "-" else INT_HIGH + 1)
        low, high = (
            (INT_LOW if field.low is None else field.low),
            (INT_HIGH if field.high is None else field.high),
        )
        inside = max(low, INT_LOW) <= value <= min(high, INT_HIGH)
        if field.choices is not None:
            inside = value in field.choices
    else:
        value = float(trimmed)
        low, high = (
            (-_FLOAT_HIGH if field.low is None else field.low),
            (_FLOAT_HIGH if field.high is None else field.high),
        )
        inside = float(low) <= value <= float(high)
    return value if inside else _out_of_range(trimmed, field, "")


def _decimal(text: str, field: Field) -> Any:
    try:
        value = Decimal(text)
    except InvalidOperation:  # an exponent beyond what Decimal itself can hold
        return _out_of_range(text, field, "")
    if (field.low is not None and value < field.low) or (field.high is not None and value > field.high):
        return _out_of_range(text, field, "")
    return value


def _out_of_range(text: str, field: Field, room: str) -> Fault:
    bounds = "" if field.low is None and field.high is None else f" (declared {field.low} to {field.high})"
    return Fault(Reason.OUT_OF_RANGE, f"{text[:60]} is out of range{bounds}{room} - at `{_at(field)}`")


def _at(field: Field) -> str:
    return "$." + field.name
