"""Records made from a declaration's own description: every constraint's edges, and dirt of every kind.

Rules:
- A record is made as a tree of JSON values, member by member, and written here, so that a number can stand in digits
  that no Python type keeps.
- Whether a record is clean is not decided here: everything that was made is read by the second reading
  (`windlass.verify`), and sorted by what that says. A value at an edge may fall on either side.
- A description from which no clean record comes is `NoCleanRecord`: nothing could be simulated with it.
- Where the description asks for nothing but what a taxi trip has, trips in the three dialects of the lab's producers
  are among the records.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import chain
from random import Random
from typing import Any

import msgspec

from windlass.produce.aggregate import carrier_bytes
from windlass.produce.dialects import DIALECTS
from windlass.produce.records import UserRecord
from windlass.produce.trips import trips
from windlass.produce.unclean import spoiled
from windlass.verify.records import Reading

CLEAN_MADE = 600
EDGES_MADE = 6
"""Records per edge of a field, as the other fields vary."""

CORRUPT_AGGREGATE, TOO_LARGE = "corrupt_aggregate", "too_large"

Path = tuple[str, ...]
Spec = Mapping[str, Any]


class NoCleanRecord(Exception):
    """No clean record can be made from a declaration. One line: what was tried, and why the last one failed."""


class Digits(str):
    """A JSON number, written as it is."""

    __slots__ = ()


class Pool(msgspec.Struct, frozen=True):
    """The bytes to draw user records from: clean ones, and the others by the reason why they are not."""

    clean: list[bytes]
    unclean: dict[str, list[bytes]]
    keys: int
    """How many different keys the clean ones have."""


def pool_of(description: Mapping[str, Any], keys: int) -> Pool:
    """The records for a description, with at most `keys` different keys. The same every time. Raises NoCleanRecord."""
    maker = _Maker(description, keys)
    clean: dict[bytes, Any] = {}
    unclean: dict[str, dict[bytes, None]] = {}
    reason = ""
    for data in maker.everything():
        row = maker.reading.read(data)
        if isinstance(row, str):
            reason = row
            unclean.setdefault(row, {})[data] = None
        elif not row.disputed:
            clean[data] = tuple(row.values[: len(maker.key)])
    if not clean:
        msg = (
            f"no clean record can be made from the declaration {description['record']} ({reason}): its constraints "
            "leave no value that can be stored and summed exactly; widen them"
        )
        raise NoCleanRecord(msg)
    for data in maker.broken_aggregates(list(clean)):
        unclean.setdefault(CORRUPT_AGGREGATE, {})[data] = None
    return Pool(list(clean), {reason: list(found) for reason, found in unclean.items()}, len(set(clean.values())))


def reading_of(description: Mapping[str, Any]) -> Reading:
    """The second reading of a description. Its rows hold the key's values first, then whatever else is stored."""
    key = [tuple(path) for path in description["key"]]
    if description["kind"] == "windows":
        joined = key  # into one, which leaves each part less room
        stored = [tuple(total["path"]) for total in description["totals"] if total["path"] is not None]
    else:
        joined = []
        stored = [tuple(field["path"]) for field in description["fields"] if field["type"] != "object"]
    used = list(dict.fromkeys([*key, *stored]))
    return Reading(description["fields"], coerce=description["coerce"], key=joined, used=used)


class _Maker:
    """Makes the records of one description, clean or not."""

    def __init__(self, description: Mapping[str, Any], keys: int) -> None:
        self._rng = Random("records")  # of its own: the pool is the same whatever the seed of a run
        self._fields: list[Spec] = [field for field in description["fields"] if field["type"] != "object"]
        self._nested: list[Path] = [
            tuple(field["path"]) for field in description["fields"] if field["type"] == "object"
        ]
        self._coerce: bool = description["coerce"]
        self.key = [tuple(path) for path in description["key"]]
        self.reading = reading_of(description)
        self._keys = self._draw_keys(keys) if self.key else [{}]

    def everything(self) -> Iterator[bytes]:
        """Clean records, edges, and dirt."""
        for _ in range(CLEAN_MADE):
            yield self._written(self._tree())
        yield from self._dialects()
        for spec in self._fields:
            for value in (*edges(spec), *wrong_types(coerce=self._coerce), _MISSING):
                for _ in range(EDGES_MADE):
                    yield self._written(self._tree({tuple(spec["path"]): value}))
        for path in self._nested:
            for value in (_MISSING, None, [], "x", 1):
                yield self._written(self._tree({path: value}))
        yield from self._not_objects()

    def broken_aggregates(self, clean: Sequence[bytes]) -> Iterator[bytes]:
        """Carriers of a clean record, broken in each of their parts, and a magic with nothing behind it."""
        for number in range(24):
            record = UserRecord(f"key-{number}", self._rng.choice(clean))
            yield spoiled(record, CORRUPT_AGGREGATE, self._rng).data
        whole = carrier_bytes([UserRecord("key", clean[0]), UserRecord("other", clean[-1])])
        yield whole[:4]
        yield whole[:20]
        yield whole[:-1]

    def _draw_keys(self, keys: int) -> list[dict[Path, Any]]:
        """Up to `keys` different clean keys: the edges of the key's fields among them."""
        specs = [spec for spec in self._fields if tuple(spec["path"]) in self.key]
        found: dict[Any, dict[Path, Any]] = {}
        drawn = ({tuple(spec["path"]): self._value(spec) for spec in specs} for _ in range(40 * keys + 100))
        for values in chain(self._alike_when_joined(specs), drawn):
            self._keys = [values]
            row = self.reading.read(self._written(self._tree()))
            if not isinstance(row, str):
                found.setdefault(tuple(row.values[: len(self.key)]), values)
            if len(found) == keys:
                break
        return list(found.values()) or [{}]

    def _alike_when_joined(self, specs: Sequence[Spec]) -> Iterator[dict[Path, Any]]:
        """Two keys that would be one if their parts were joined as they are."""
        texts = [tuple(spec["path"]) for spec in specs if spec["type"] == "str"]
        if len(texts) > 1:
            values = {tuple(spec["path"]): self._value(spec) for spec in specs}
            yield values | {texts[0]: "a#b", texts[1]: "c"}
            yield values | {texts[0]: "a", texts[1]: "b#c"}

    def _tree(self, changed: Mapping[Path, Any] | None = None) -> dict[str, Any]:
        """A record that is clean where nothing is `changed`, as nested members."""
        tree: dict[str, Any] = {}
        values = {tuple(spec["path"]): self._member(spec) for spec in self._fields}
        values |= self._rng.choice(self._keys)
        if self._rng.random() < 0.3:
            values[("undeclared",)] = self._rng.choice([None, 1.5, "…", [1, {"a": []}], {"vendorId": "x"}])
        for path in self._nested:
            _place(tree, path, {})
        for path, value in values.items():
            _place(tree, path, value)
        for path, value in (changed or {}).items():
            _place(tree, path, value)
        return tree

    def _member(self, spec: Spec) -> Any:
        if not spec["required"] and self._rng.random() < 0.25:
            return _MISSING
        if spec["nullable"] and self._rng.random() < 0.25:
            return None
        return self._value(spec)

    def _value(self, spec: Spec) -> Any:
        value = _VALUES[spec["type"]](spec, self._rng)
        if self._coerce and spec["type"] in _NUMBERS and self._rng.random() < 0.3:
            return self._rng.choice(("{}", " {}", "\t{} ")).format(_text(value))
        return value

    def _written(self, tree: Any) -> bytes:
        return _text(tree).encode("utf-8", "surrogatepass")

    def _dialects(self) -> Iterator[bytes]:
        """Trips of the lab's producers, under the keys that were drawn."""
        names = {path for spec in self._fields for path in spec["path"]}
        if not names <= _TRIP_NAMES or self._nested:
            return
        keys = [values.get(("vendorId",)) for values in self._keys]
        for trip, _ in zip(trips(self._rng), range(CLEAN_MADE), strict=False):
            vendor = self._rng.choice(keys)
            if type(vendor) is int:
                trip = msgspec.structs.replace(trip, vendor=vendor)
            yield DIALECTS["mixed"](trip, self._rng)

    def _not_objects(self) -> Iterator[bytes]:
        whole = self._written(self._tree())
        yield from (b"", b" ", b"null", b"42", b'"text"', b"[]", b"[" + whole + b"]", b"true")
        yield from (whole[:-1], whole + b",", whole + whole, b"{" + whole, whole.replace(b'"', b"'"), b"\x00" + whole)
        yield from (b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":01}', b"[" * 60 + b"]" * 60)
        yield from (b"\xff" + whole, whole[:-1] + b"\xe9}", b"\xff\xfe" + whole.decode().encode("utf-16-le"))
        yield b"\xef\xbb\xbf" + whole


_MISSING = object()
_NUMBERS = ("int", "float", "decimal")
_TRIP_NAMES = {
    "id", "vendorId", "pickupDate", "dropoffDate", "passengerCount", "pickupLongitude", "pickupLatitude",
    "dropoffLongitude", "dropoffLatitude", "storeAndFwdFlag", "gcDistance", "tripDuration", "googleDistance",
    "googleDuration",
}  # fmt: skip


def _place(tree: dict[str, Any], path: Path, value: Any) -> None:
    for name in path[:-1]:
        inner = tree.get(name)
        if not isinstance(inner, dict):
            return  # its parent was replaced on purpose
        tree = inner
    if value is _MISSING:
        tree.pop(path[-1], None)
    else:
        tree[path[-1]] = value


def _text(value: Any) -> str:
    """A value as JSON. Digits and Decimals stand as they are written."""
    if isinstance(value, Digits):
        return str(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{_text(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


# ── values ──────────────────────────────────────────────────────────────────────────────────────────────────

_INT_LOW, _INT_HIGH = -(2**63), 2**63 - 1


def _bounds(spec: Spec) -> tuple[int, int]:
    low = _INT_LOW if spec["low"] is None else max(_INT_LOW, spec["low"])
    high = _INT_HIGH if spec["high"] is None else min(_INT_HIGH, spec["high"])
    return low, high


def _int(spec: Spec, rng: Random) -> int:
    low, high = _bounds(spec)
    near = [value for value in (0, 1, 2, 3, low, low + 1, high, high - 1) if low <= value <= high]
    if not near or rng.random() < 0.6:
        start = min(max(low, -1000), high)
        return rng.randint(start, max(start, min(high, start + 3000)))
    return rng.choice(near)


def _float(spec: Spec, rng: Random) -> Any:
    low = -1000.0 if spec["low"] is None else float(spec["low"])
    high = max(low, 1000.0 if spec["high"] is None else float(spec["high"]))
    decimals = 6 if spec["decimals"] is None else min(6, spec["decimals"])
    drawn = round(rng.uniform(low, min(high, low + 2000.0)), decimals)
    return rng.choice((min(max(drawn, low), high), low, high, drawn, int(drawn)))


def _decimal(spec: Spec, rng: Random) -> Decimal:
    low = Decimal("-1000") if spec["low"] is None else Decimal(str(spec["low"]))
    high = Decimal("1000") if spec["high"] is None else Decimal(str(spec["high"]))
    high = max(low, high)
    decimals = 4 if spec["decimals"] is None else min(4, spec["decimals"])
    drawn = low + (min(high, low + 2000) - low) * Decimal(rng.randrange(10**6)) / 10**6
    return rng.choice((min(max(round(drawn, decimals), low), high), low, high))


_TEXTS = ("a", "Z9", "taxi", "ünï", "漢字", "😀", 'quote"back\\slash', "a#b", " ", "\u2028", "0", "-1")


def _str(spec: Spec, rng: Random) -> str:
    shortest = spec["min_length"] or 0
    longest = max(shortest, 24) if spec["max_length"] is None else spec["max_length"]
    length = rng.choice(
        (shortest, longest if longest < 600 else shortest, rng.randint(shortest, max(shortest, longest)))
    )
    return _of_length(rng.choice(_TEXTS), min(length, max(shortest, 600)))


def _of_length(text: str, length: int) -> str:
    return (text * (length // len(text) + 1))[:length]


_VALUES: dict[str, Callable[[Spec, Random], Any]] = {
    "int": _int,
    "float": _float,
    "decimal": _decimal,
    "str": _str,
    "bool": lambda _, rng: rng.random() < 0.5,
    "choice": lambda spec, rng: rng.choice(spec["choices"]),
}


# ── edges and dirt ──────────────────────────────────────────────────────────────────────────────────────────


def edges(spec: Spec) -> list[Any]:
    """The values at, and just beyond, every constraint of a field."""
    find = _EDGES.get(spec["type"])
    return find(spec) if find else []


def _int_edges(spec: Spec) -> list[Any]:
    low, high = _bounds(spec)
    return [low - 1, low, low + 1, high - 1, high, high + 1, 2**63, -(2**63) - 1, 10**30, Digits("1" * 400)]


def _number_edges(spec: Spec) -> list[Any]:
    decimals = spec["decimals"]
    found: list[Any] = [
        Digits(text) for text in ("1e400", "-1e400", "1e126", "9.9e125", "1e-131", "1e-130", "0.0", "-0")
    ]
    found += [Digits("1." + "1" * 37), Digits("1." + "1" * 38), Digits("1" * 39)]
    if decimals is not None:
        whole = 29 - decimals
        found += [Digits("9" * whole), Digits("1" + "0" * whole), Digits("0." + "0" * decimals + "1")]
        found += [Digits("0." + "0" * (decimals - 1) + "1")] if decimals else []
    for bound in (spec["low"], spec["high"]):
        if bound is not None:
            exact = Decimal(str(bound))
            step = Decimal(10) ** -(2 if decimals is None else min(2, decimals))
            found += [exact, exact - step, exact + step]
    return found


def _str_edges(spec: Spec) -> list[Any]:
    lengths = {0, 1, 511, 512, 513}
    for bound in (spec["min_length"], spec["max_length"]):
        if bound is not None:
            lengths |= {max(0, bound - 1), bound, bound + 1}
    return [_of_length(text, length) for length in sorted(lengths) if length <= 5000 for text in ("x", "漢", "😀")]


def _choice_edges(spec: Spec) -> list[Any]:
    choices = spec["choices"]
    return [*choices, *(f"{choice}x" if isinstance(choice, str) else choice + 1000 for choice in choices)]


_EDGES: dict[str, Callable[[Spec], list[Any]]] = {
    "int": _int_edges,
    "float": _number_edges,
    "decimal": _number_edges,
    "str": _str_edges,
    "choice": _choice_edges,
}


def wrong_types(*, coerce: bool) -> list[Any]:
    """Values of every type, of which a field has at most one or two, and texts that are nearly numbers."""
    found: list[Any] = [None, True, [], {}, [1], {"a": 1}, "", "two", 1.5, Digits("1.0"), Digits("1e3"), 7, "7"]
    if coerce:
        found += [" 2", "2\t", "1_000", "0x10", "+1", "٣", "1e3", "NaN", "01", "1" * 400]
    return found
