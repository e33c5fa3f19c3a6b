"""What a pipeline's description says of a record, read plainly with Python's own json and decimal.

Rules of this file:
- Bytes that begin with the KPL's magic are a carrier (`carriers.py`); all others are one user record.
- A clean record is UTF-8, JSON (without NaN, byte order mark or half a surrogate pair), an object, and every
  declared member of it is what the description says. Members that are not declared only have to be JSON.
- Two things RFC 8259 leaves open to a reader; where a record's fate hangs on one of them it is `disputed`, and the
  product's own decision stands. A member that is written twice counts as it stands last: disputed where only an
  earlier one is at fault. What is nested deeper than NESTED_MAX levels is not looked at: always disputed.
- A record may have several faults, and which of them a reader meets first is its own affair: `reasons` has them all.
- A value is what the totals and the key need: int, Decimal, str, bool, or None where there is none.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Context, Decimal, InvalidOperation
from math import isinf
from typing import Any, NamedTuple

NOT_UTF8, NOT_JSON, NOT_AN_OBJECT = "not_utf8", "not_json", "not_an_object"
MISSING_FIELD, WRONG_TYPE, OUT_OF_RANGE = "missing_field", "wrong_type", "out_of_range"
_JSON_REASONS = (NOT_JSON, NOT_AN_OBJECT, MISSING_FIELD, WRONG_TYPE, OUT_OF_RANGE)

NESTED_MAX = 100
"""Levels of objects and arrays that are looked at. How many a reader can take depends on its stack."""

EXACT = Context(prec=1000)
"""Wide enough for every number that a table can hold, so that nothing here rounds."""


class CannotVerify(Exception):
    """The check cannot be made. One line: what is wrong, what was found, what to do."""


class Row(NamedTuple):
    """A clean record: its value at each of the paths that were asked for, in order."""

    values: list[Any]
    disputed: bool = False


class _Unclean(Exception):
    """Leaves a record at its first fault, with the reason. It never leaves this file."""


Path = tuple[str, ...]
Check = Callable[[Any], Any]  # a JSON value → the value; raises _Unclean


class Reading:
    """How the records of one description are read. Raises CannotVerify where the description is of no known shape."""

    def __init__(self, fields: Sequence[Mapping[str, Any]], *, coerce: bool, key: list[Path], used: list[Path]) -> None:
        """`fields` and `coerce` as described; `key` the paths of the key, `used` those whose values `read` gives."""
        slots = {path: slot for slot, path in enumerate(used)}
        by_path = {tuple(field["path"]): {**field, "stored": tuple(field["path"]) in slots} for field in fields}
        for path in [*key, *used]:
            if path not in by_path:
                msg = f"the description uses the field {'.'.join(path)} without describing it"
                raise CannotVerify(msg)
        self._width = len(used)
        self._root = _members((), by_path, slots, key, coerce=coerce)

    def read(self, data: bytes) -> Row | str:
        """The values of a user record, or the reason why it is not clean."""
        values: list[Any] = [None] * self._width
        try:
            found, is_deep = _json(data)
            disputed = _fill(self._root, found, values, NOT_AN_OBJECT)
        except _Unclean as fault:
            return str(fault)
        return Row(values, disputed or is_deep)

    def reasons(self, data: bytes) -> set[str]:
        """Every reason that may be given for a user record which is not clean."""
        try:
            found, is_deep = _json(data)
        except _Unclean as fault:
            # A reader that checks values as it goes meets their faults before it sees that the text breaks off.
            return {NOT_UTF8} if str(fault) == NOT_UTF8 else {*_JSON_REASONS}
        return {*_faults(self._root, found, NOT_AN_OBJECT), *([NOT_JSON] if is_deep else [])}


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Number(str):
    """A JSON number with a fraction or an exponent, or a very long one: as it was written."""

    __slots__ = ()


class _Twice(dict[str, Any]):
    """An object in which a member is written twice: `earlier` are those that do not count."""

    earlier: list[tuple[str, Any]]


def _json(data: bytes) -> tuple[Any, bool]:
    """The value, and whether a part of it was left out as nested too deep."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _Unclean(NOT_UTF8) from None
    shallow = _shallow(text)
    try:
        value = _parse(shallow)
    except ValueError:
        raise _Unclean(NOT_JSON) from None
    if "\\u" in text and _has_half_pair(text):
        raise _Unclean(NOT_JSON)
    return value, shallow is not text


_STRINGS_AND_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}]', re.DOTALL)


def _shallow(text: str) -> str:
    """The text with null in the place of all that lies deeper than NESTED_MAX levels; itself where nothing does."""
    if text.count("[") + text.count("{") <= NESTED_MAX:
        return text
    depth, parts, since = 0, [], 0
    for token in _STRINGS_AND_BRACKETS.finditer(text):
        if token[0] in ("[", "{"):
            depth += 1
            if depth == NESTED_MAX + 1:
                parts.append(text[since : token.start()])
        elif token[0] in ("]", "}"):
            if depth == NESTED_MAX + 1:
                since = token.end()
            depth -= 1
    if not parts:
        return text
    ending = text[since:] if depth <= NESTED_MAX else ""  # else it breaks off within
    return "null".join([*parts, ending])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    last = {name: place for place, (name, _) in enumerate(pairs)}
    twice = _Twice(members)
    twice.earlier = [pair for place, pair in enumerate(pairs) if last[pair[0]] != place]
    return twice


def _whole(text: str) -> Any:
    return int(text) if len(text) < 40 else _Number(text)  # Python refuses to convert very long ones


def _refuse(constant: str) -> Any:
    msg = f"{constant} is not JSON"
    raise ValueError(msg)


_parse = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_Number, parse_int=_whole, parse_constant=_refuse
).decode


def _has_half_pair(text: str) -> bool:
    """Whether an escape names half of a surrogate pair alone. Backslashes stand in strings only."""
    low_due = -1  # where the low half has to begin, after a high one
    at = text.find("\\")
    while at >= 0:
        code = int(text[at + 2 : at + 6], 16) if text[at + 1] == "u" else 0
        is_low = 0xDC00 <= code <= 0xDFFF
        if is_low != (low_due == at) or low_due not in (-1, at):
            return True
        low_due = at + 6 if 0xD800 <= code <= 0xDBFF else -1
        at = text.find("\\", at + 2)
    return low_due >= 0


# ── objects ─────────────────────────────────────────────────────────────────────────────────────────────────

_ABSENT, _REQUIRED = object(), object()


class _Leaf(NamedTuple):
    name: str
    check: Check
    slot: int | None
    default: Any


class _Members(NamedTuple):
    leaves: list[_Leaf]
    nested: dict[str, "_Members"]


def _members(
    at: Path, by_path: Mapping[Path, Mapping[str, Any]], slots: Mapping[Path, int], key: list[Path], *, coerce: bool
) -> _Members:
    members = _Members([], {})
    for path, field in by_path.items():
        if path[:-1] != at:
            continue
        if field["type"] == "object":
            members.nested[path[-1]] = _members(path, by_path, slots, key, coerce=coerce)
            continue
        default = _REQUIRED if field["required"] else _default(field)
        check = _check(field, coerce=coerce, key_parts=len(key) if path in key else 0)
        members.leaves.append(_Leaf(path[-1], check, slots.get(path), default))
    return members


def _default(field: Mapping[str, Any]) -> Any:
    value = field.get("default")
    return Decimal(repr(value)) if type(value) is float else value


def _fill(members: _Members, found: Any, values: list[Any], otherwise: str) -> bool:
    """Check an object and put its values into their slots. Answers whether the record is disputed."""
    if not isinstance(found, dict):
        raise _Unclean(otherwise)
    for name, check, slot, default in members.leaves:
        value = found.get(name, _ABSENT)
        if value is not _ABSENT:
            value = check(value)
        elif default is _REQUIRED:
            raise _Unclean(MISSING_FIELD)
        else:
            value = default
        if slot is not None:
            values[slot] = value
    disputed = False
    for name, inner in members.nested.items():
        if name not in found:
            raise _Unclean(MISSING_FIELD)
        disputed |= _fill(inner, found[name], values, WRONG_TYPE)
    return disputed or (type(found) is _Twice and next(_faults(members, found, otherwise), None) is not None)


def _faults(members: _Members, found: Any, otherwise: str) -> Iterator[str]:
    """The reasons of all faults of an object, in members that are written twice as well."""
    if not isinstance(found, dict):
        yield otherwise
        return
    checks: dict[str, Check] = {leaf.name: leaf.check for leaf in members.leaves}
    required = [*members.nested, *(leaf.name for leaf in members.leaves if leaf.default is _REQUIRED)]
    if not found.keys() >= set(required):
        yield MISSING_FIELD
    for name, value in [*found.items(), *(found.earlier if type(found) is _Twice else ())]:
        if name in members.nested:
            yield from _faults(members.nested[name], value, WRONG_TYPE)
        elif name in checks:
            try:
                checks[name](value)
            except _Unclean as fault:
                yield str(fault)
                if _is_beyond_64_bits(value):
                    yield WRONG_TYPE  # to a reader for which it is a double then


# ── values ──────────────────────────────────────────────────────────────────────────────────────────────────

_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:(\.[0-9]+)?([eE][+-]?[0-9]+)?)")
_INT64 = range(-(2**63), 2**63)
# "Supported data types and naming rules in Amazon DynamoDB": 38 digits, 1E-130 to 9.99...E+125.
_DIGITS_MAX = 38
_LEAST, _END = Decimal("1E-130"), Decimal("1E+126")
_KEY_CHARACTERS_MAX = 512  # 2,048 bytes is DynamoDB's limit of a partition key


def _check(field: Mapping[str, Any], *, coerce: bool, key_parts: int) -> Check:
    make = _CHECKS.get(field["type"])
    if make is None:
        msg = f"the field {'.'.join(field['path'])} is described as {field['type']!r}, which this check does not know"
        raise CannotVerify(msg)
    check = make(field)
    if key_parts and field["type"] == "str":
        check = _key_text(check, key_parts)
    all_numbers = {type(choice) for choice in field.get("choices") or ()} == {int}
    if coerce and (field["type"] in ("int", "float", "decimal") or all_numbers):
        check = _coerced(check)
    return _or_null(check) if field["nullable"] else check


def _or_null(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _coerced(check: Check) -> Check:
    def read(value: Any) -> Any:
        if type(value) is not str:
            return check(value)
        text = value.strip(" \t")
        number = _JSON_NUMBER.fullmatch(text)
        if not number:
            raise _Unclean(WRONG_TYPE)
        return check(_Number(text) if number[1] or number[2] else _whole(text))

    return read


def _key_text(check: Check, key_parts: int) -> Check:
    longest = _KEY_CHARACTERS_MAX if key_parts == 1 else _KEY_CHARACTERS_MAX // (2 * key_parts)

    def read(value: Any) -> Any:
        if not 1 <= len(check(value)) <= longest:
            raise _Unclean(OUT_OF_RANGE)
        return value

    return read


def _bool(_: Mapping[str, Any]) -> Check:
    def read(value: Any) -> Any:
        if type(value) is not bool:
            raise _Unclean(WRONG_TYPE)
        return value

    return read


def _str(field: Mapping[str, Any]) -> Check:
    shortest, longest = field["min_length"] or 0, field["max_length"]

    def read(value: Any) -> Any:
        if type(value) is not str:
            raise _Unclean(WRONG_TYPE)
        if len(value) < shortest or (longest is not None and len(value) > longest):
            raise _Unclean(OUT_OF_RANGE)
        return value

    return read


def _choice(field: Mapping[str, Any]) -> Check:
    choices = frozenset(field["choices"])
    types = {type(choice) for choice in choices}

    def read(value: Any) -> Any:
        if type(value) not in types:
            raise _Unclean(OUT_OF_RANGE if int in types and _is_beyond_64_bits(value) else WRONG_TYPE)
        if value not in choices:
            raise _Unclean(OUT_OF_RANGE)
        return value

    return read


def _int(field: Mapping[str, Any]) -> Check:
    low = _INT64.start if field["low"] is None else field["low"]
    high = _INT64.stop - 1 if field["high"] is None else field["high"]

    def read(value: Any) -> Any:
        if type(value) is int:
            if low <= value <= high and value in _INT64:
                return value
            raise _Unclean(OUT_OF_RANGE)
        raise _Unclean(OUT_OF_RANGE if _is_beyond_64_bits(value) else WRONG_TYPE)

    return read


def _is_beyond_64_bits(value: Any) -> bool:
    """Whether a JSON value is a whole number that long."""
    is_very_long = type(value) is _Number and value.lstrip("-").isdigit()
    return is_very_long or (type(value) is int and value not in _INT64)


def _float(field: Mapping[str, Any]) -> Check:
    """A double; its value is the decimal that its shortest text says. Bounds are doubles too."""
    low = None if field["low"] is None else float(field["low"])
    high = None if field["high"] is None else float(field["high"])
    settled = _settled(field)

    def read(value: Any) -> Any:
        if type(value) not in (int, _Number):
            raise _Unclean(WRONG_TYPE)
        double = float(value)
        if isinf(double) or (low is not None and double < low) or (high is not None and double > high):
            raise _Unclean(OUT_OF_RANGE)
        return settled(Decimal(repr(double)))

    return read


def _decimal(field: Mapping[str, Any]) -> Check:
    """Digit by digit as it is written."""
    low = None if field["low"] is None else Decimal(str(field["low"]))
    high = None if field["high"] is None else Decimal(str(field["high"]))
    settled = _settled(field)

    def read(value: Any) -> Any:
        if type(value) not in (int, _Number):
            raise _Unclean(WRONG_TYPE)
        try:
            number = Decimal(value)
        except InvalidOperation:  # an exponent beyond all bounds
            raise _Unclean(OUT_OF_RANGE) from None
        if (low is not None and number < low) or (high is not None and number > high):
            raise _Unclean(OUT_OF_RANGE)
        return settled(number)

    return read


def _settled(field: Mapping[str, Any]) -> Callable[[Decimal], Decimal]:
    """As the table can hold it and as sums stay exact: in the least number of digits."""
    decimals = field["decimals"]
    limit = None if decimals is None else Decimal(f"1E{29 - decimals}")  # 38 digits, 9 of them kept free for sums
    least = _LEAST if field["stored"] or field["type"] == "decimal" else Decimal(0)

    def settle(number: Decimal) -> Decimal:
        if not number:
            return Decimal(0)
        magnitude = number.copy_abs()  # abs() would round to the 28 digits of the ambient context
        if not least <= magnitude < _END:
            raise _Unclean(OUT_OF_RANGE)
        _, digits, exponent = number.as_tuple()
        text = "".join(map(str, digits))
        significant = text.rstrip("0")
        assert isinstance(exponent, int)
        places = -(exponent + len(text) - len(significant))
        if len(significant) > _DIGITS_MAX:
            raise _Unclean(OUT_OF_RANGE)
        if limit is not None and (places > decimals or magnitude >= limit):
            raise _Unclean(OUT_OF_RANGE)
        return number

    return settle


_CHECKS: dict[str, Callable[[Mapping[str, Any]], Check]] = {
    "int": _int,
    "float": _float,
    "decimal": _decimal,
    "bool": _bool,
    "str": _str,
    "choice": _choice,
}
