"""The totals that can be declared, and how each is made of columns.

A column is one number per key: read from a group of records, merged with what is already there, and written
under one attribute name. Columns of kind "add" may be written blindly; "least" and "most" need to see the old
value. A total that is computed from others (Mean) is stored as what it is computed from.

Sums are exact. Whole numbers are signed 64-bit values, so 10**19 of them fit DynamoDB's 38 digits; decimals
and floats lie on a grid of `decimals` places, with HEADROOM_DIGITS kept free: 10**9 records per key, window and
shard cannot overflow. What does not fit the grid is a rejected record, never a rounding, and never a final call
that fails.
"""

from collections.abc import Callable, Iterable, Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from functools import reduce
from operator import attrgetter
from typing import Any, Literal

import msgspec

from windlass.core.contribution import Number

DIGITS_MAX = 38  # "Supported data types and naming rules in Amazon DynamoDB": numbers have up to 38 digits
HEADROOM_DIGITS = 9
DECIMALS_DEFAULT = 18

EXACT = Context(prec=DIGITS_MAX, traps=[Inexact, InvalidOperation, Overflow])
"""Decimal arithmetic that raises instead of rounding."""


class Count(msgspec.Struct, frozen=True):
    """How many clean records there were."""


class Sum(msgspec.Struct, frozen=True):
    """The exact sum of a numeric field. Floats and Decimals of more than `decimals` places (0 to 28) are rejected."""

    field: str
    decimals: int = DECIMALS_DEFAULT


class Mean(msgspec.Struct, frozen=True):
    """The mean of a numeric field, stored as `<name>#sum`, exact as a Sum is, and `<name>#count`; readers divide."""

    field: str
    decimals: int = DECIMALS_DEFAULT


class Min(msgspec.Struct, frozen=True):
    """The smallest value of a numeric field."""

    field: str


class Max(msgspec.Struct, frozen=True):
    """The largest value of a numeric field."""

    field: str


Total = Count | Sum | Mean | Min | Max
Kind = Literal["add", "least", "most"]
Read = Callable[[Sequence[Any]], Number | None]


class Column(msgspec.Struct, frozen=True):
    """One stored number per key. `whole` says whether it is an int or a Decimal."""

    attribute: str
    kind: Kind
    whole: bool
    read: Read | None = None  # from a group of records; None where the column only merges

    @property
    def signature(self) -> str:
        """What the state says of the column, so that another declaration's state is recognised."""
        return f"{self.attribute}:{self.kind}:{'int' if self.whole else 'decimal'}"

    @classmethod
    def parse(cls, signature: str) -> "Column":
        """The column of a signature, able to merge and to be written, not to read records."""
        attribute, kind, number = signature.rsplit(":", 2)
        if kind not in _MERGE or number not in ("int", "decimal"):
            msg = f"not a column: {signature!r}"
            raise ValueError(msg)
        return cls(attribute, kind, number == "int")  # type: ignore[arg-type]

    def merge(self, old: Number | None, new: Number | None) -> Number | None:
        """Both together. None is the absence of a value, on either side."""
        if old is None or new is None:
            return new if old is None else old
        return _MERGE[self.kind](old, new)

    def to_text(self, value: Number | None) -> str | None:
        """As the state carries it: text, because JSON numbers beyond 2**53 do not survive every reader."""
        return None if value is None else str(value)

    def from_text(self, text: str | None) -> Number | None:
        """Back from the state."""
        if text is None:
            return None
        return int(text) if self.whole else Decimal(text)


def _add(old: Number, new: Number) -> Number:
    if type(old) is int and type(new) is int:
        return old + new
    return EXACT.add(old, new)


_MERGE: dict[str, Callable[[Number, Number], Number]] = {"add": _add, "least": min, "most": max}


def columns_of(name: str, total: Total, attribute: str, *, whole: bool, nullable: bool) -> list[Column]:
    """The columns of one declared total. `attribute` is the dotted name of its field on a decoded record."""
    values = _present(attribute) if nullable else _all(attribute)
    match total:
        case Count():
            return [Column(name, "add", whole=True, read=len)]
        case Sum():
            return [Column(name, "add", whole, _sum(values, whole=whole))]
        case Mean():
            return [
                Column(f"{name}#sum", "add", whole, _sum(values, whole=whole)),
                Column(f"{name}#count", "add", whole=True, read=_count(values, nullable=nullable)),
            ]
        case Min():
            return [Column(name, "least", whole, lambda group: min(values(group), default=None))]
        case Max():
            return [Column(name, "most", whole, lambda group: max(values(group), default=None))]


Values = Callable[[Sequence[Any]], Iterable[Any]]


def _all(attribute: str) -> Values:
    get = attrgetter(attribute) if attribute else None
    return lambda group: map(get, group) if get else ()


def _present(attribute: str) -> Values:
    get = attrgetter(attribute)
    return lambda group: [value for value in map(get, group) if value is not None]


def _count(values: Values, *, nullable: bool) -> Read:
    return (lambda group: len(list(values(group)))) if nullable else len


def _sum(values: Values, *, whole: bool) -> Read:
    if whole:
        return lambda group: sum(values(group))
    return lambda group: reduce(EXACT.add, values(group), Decimal(0))
