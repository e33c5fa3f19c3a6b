"""A table in memory that keeps DynamoDB's rules: the oracle that the real forms are compared with.

It shares the seam's words with `windlass.table` and none of its code: a merge is one step under a lock, so the
stored item is simply looked at, where DynamoDB is told a condition and an expression. What DynamoDB refuses is
refused here: other key names or types, empty keys, numbers beyond 38 digits (after a sum, too), items over 400 KB,
floats, a batch with one key twice.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from windlass.core.contribution import Contribution
from windlass.table import ConflictingFlush, Item, ItemRefused, KeyAttribute, Merged, TableKeys, TableProblem, Throttled

ITEM_BYTES_MAX = 400 * 1024  # "Quotas in Amazon DynamoDB": names included
KEY_BYTES_MAX = {"partition": 2048, "sort": 1024}  # "Quotas in Amazon DynamoDB"
_DIGITS_MAX = 38

Fault = Callable[[str, Any], None]
"""Called with the operation ("merge" or "put") and its argument; whatever it raises reaches the caller."""


def _no_fault(_operation: str, _argument: Any) -> None:
    pass


class MemoryTable:
    """See `windlass.table.Table`. `before` may fail a write that then does nothing; `after` loses its answer."""

    def __init__(
        self, keys: TableKeys, *, name: str = "memory", before: Fault = _no_fault, after: Fault = _no_fault
    ) -> None:
        self.keys = keys
        self.name = name
        self.before = before
        self.after = after
        self.stored: dict[tuple[Any, ...], Item] = {}
        self._lock = threading.Lock()

    def check(self) -> None:
        """A table in memory is as it was made."""

    def merge(self, contribution: Contribution) -> Merged:
        """See Table."""
        self.before("merge", contribution)
        with self._lock:
            merged = self._merge(contribution)
        self.after("merge", contribution)
        return merged

    def put(self, items: Sequence[Item]) -> Mapping[int, Throttled]:
        """See Table."""
        self.before("put", items)
        keys = [self._checked_key(item) for item in items]
        if len(set(keys)) < len(keys):
            msg = f"table {self.name} refused a batch: it holds one key twice"
            raise ItemRefused(msg)
        for item in items:
            _check_item(item)
        with self._lock:
            self.stored.update(zip(keys, map(dict, items), strict=True))
        self.after("put", items)
        return {}

    def items(self) -> Iterator[Item]:
        """See Table."""
        with self._lock:
            items = [dict(item) for item in self.stored.values()]
        return iter(items)

    def _merge(self, row: Contribution) -> Merged:
        start, end, fence = row.window.start, row.window.end, "applied#" + row.source
        item: Item = {**row.key, "windowStart": start}
        key = self._checked_key(item)
        old = self.stored.get(key)
        if old is not None and self.keys.sort is None:
            stored_start = old.get("windowStart", "")
            if stored_start > start:
                return Merged.SUPERSEDED
            if stored_start < start:
                old = None
        if old is not None:
            mark = old.get(fence)
            if mark is not None and mark >= row.first:
                if mark >= row.through:
                    return Merged.ALREADY
                raise ConflictingFlush(
                    dict(zip(self.keys.names, key, strict=True)), row.source, mark, row.first, row.through
                )
            item = old.copy()
        item["windowEnd"] = end
        item[fence] = row.through
        item.update(row.plain)
        for name, value in row.add.items():
            item[name] = self._sum(item.get(name, 0), value)
        if row.least or row.most:
            self._extremes(item, row)
        if old is None or len(item) > len(old):
            _check_size(item)
        self.stored[key] = item
        return Merged.APPLIED

    def _sum(self, old: Any, new: Any) -> Any:
        if type(old) is int and type(new) is int:
            total = old + new
            if not -_SHORT < total < _SHORT:
                _check_number(total)
            return total
        assert type(new) in (int, Decimal), f"no number in DynamoDB: {new!r}"
        if type(old) not in (int, Decimal):
            msg = f"table {self.name} holds an item with a total that is not a number ({old!r})"
            raise TableProblem(msg)
        return _exact_sum(old, new)

    def _extremes(self, item: Item, row: Contribution) -> None:
        for name, value in row.least.items():
            _check_number(value)
            item[name] = min(value, item.get(name, value))
        for name, value in row.most.items():
            _check_number(value)
            item[name] = max(value, item.get(name, value))
        item["version"] = item.get("version", 0) + 1

    def _checked_key(self, item: Item) -> tuple[Any, ...]:
        """The key of an item, after DynamoDB's rules for keys."""
        partition, sort = self.keys.partition, self.keys.sort
        first = item.get(partition.name)
        if type(first) not in _KEY_TYPES[partition.type] or first == "":
            self._refuse_key(item, partition, first)
        if type(first) is str and len(first) * 4 > KEY_BYTES_MAX["partition"]:
            _check_key_size(first, "partition")
        if sort is None:
            return (first,)
        second = item.get(sort.name)
        if type(second) not in _KEY_TYPES[sort.type] or second == "":
            self._refuse_key(item, sort, second)
        if type(second) is str and len(second) * 4 > KEY_BYTES_MAX["sort"]:
            _check_key_size(second, "sort")
        return (first, second)

    def _refuse_key(self, item: Item, expected: KeyAttribute, found: Any) -> None:
        if found == "" and expected.type == "S":
            msg = f"table {self.name} refused an item: key attribute {expected.name} is empty"
            raise ItemRefused(msg)
        msg = f"table {self.name} has {self.keys}; found an item with {expected.name}={found!r} among {sorted(item)}"
        raise TableProblem(msg)


_KEY_TYPES: dict[str, tuple[type, ...]] = {"N": (int, Decimal), "S": (str,)}
_SHORT = 10**_DIGITS_MAX


def _check_key_size(text: str, role: str) -> None:
    length = len(text.encode())
    if length > KEY_BYTES_MAX[role]:
        msg = f"a {role} key has at most {KEY_BYTES_MAX[role]} bytes; found {length}"
        raise ItemRefused(msg)


def _exact_sum(old: Any, new: Any) -> Decimal:
    """Without any context: as whole numbers on the finer of the two grids."""
    (old_units, old_places), (new_units, new_places) = _units(old), _units(new)
    places = max(old_places, new_places)
    total = old_units * 10 ** (places - old_places) + new_units * 10 ** (places - new_places)
    _check_digits(total, places)
    return Decimal((int(total < 0), tuple(map(int, str(abs(total)))), -places))


def _units(value: int | Decimal) -> tuple[int, int]:
    """(units, places): value = units / 10**places."""
    if type(value) is int:
        return value, 0
    _check_finite(value)
    sign, digits, exponent = Decimal(value).as_tuple()
    assert isinstance(exponent, int)
    units = int("".join(map(str, digits))) * (-1 if sign else 1)
    return (units * 10**exponent, 0) if exponent > 0 else (units, -exponent)


def _check_finite(value: Any) -> None:
    if isinstance(value, Decimal) and not (value.is_finite() and -170 < value.adjusted() < 130):
        msg = f"DynamoDB holds 38 digits between 1E-130 and 1E+126; found {value}"
        raise ItemRefused(msg)


def _check_digits(units: int, places: int) -> None:
    text = str(abs(units))
    leading = len(text) - 1 - places  # the exponent of the first digit
    if units and (len(text.rstrip("0")) > _DIGITS_MAX or not -130 <= leading <= 125):
        msg = f"DynamoDB holds 38 digits between 1E-130 and 1E+126; found {units} / 10**{places}"
        raise ItemRefused(msg)


def _check_number(value: int | Decimal) -> None:
    if type(value) is int and -_SHORT < value < _SHORT:
        return
    _check_digits(*_units(value))


def _check_item(item: Item) -> None:
    for value in item.values():
        _check_value(value)
    _check_size(item)


def _check_value(value: Any) -> None:
    assert type(value) in (str, int, Decimal, bool, type(None), dict, list, tuple), f"no form in DynamoDB: {value!r}"
    if type(value) in (int, Decimal):
        _check_number(value)
    elif type(value) is dict:
        for part in value.values():
            _check_value(part)
    elif type(value) in (list, tuple):
        for part in value:
            _check_value(part)


def _check_size(item: Item) -> None:
    size = sum(len(name.encode()) + _size(value) for name, value in item.items())
    if size > ITEM_BYTES_MAX:
        msg = f"an item has at most {ITEM_BYTES_MAX} bytes; found about {size}"
        raise ItemRefused(msg)


def _size(value: Any) -> int:
    """As "DynamoDB item sizes and formats" counts; a number by its digits, at most 21 bytes."""
    kind = type(value)
    if kind is str:
        return len(value) if value.isascii() else len(value.encode())
    if kind is int or kind is Decimal:
        return min(len(str(value)) // 2 + 2, 21)
    if kind is dict:
        return 3 + sum(len(name.encode()) + _size(part) + 1 for name, part in value.items())
    if kind is list or kind is tuple:
        return 3 + sum(_size(part) + 1 for part in value)
    return 1
