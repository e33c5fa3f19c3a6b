"""Dirt on purpose: every way in which a producer can make a record that no total may count.

Rules:

- A kind of dirt is named after the reason under which the consumer is to set the record aside. The reasons that
  no producer can cause are not here: a late record, an item too large, a record in the wrong shard.
- Three of the kinds need to know what the consumer declares; here that is the lab's `vendorId` and
  `passengerCount` (0 to 9). A record without those two fields gets one of the other kinds.
- What a consumer that reads numbers from strings would accept is no dirt: "2" and " 2" stay out of the tables.
- A number that was written as a string stays a string when it is moved out of its range.
- Kinds take turns in a shuffled order: of any `2 * len(KINDS)` spoiled trips, each kind has at least one.
"""

from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Any, Final

import msgspec

from windlass.produce.aggregate import carrier_bytes, sealed
from windlass.produce.records import UserRecord

REQUIRED: Final = ("vendorId", "passengerCount")
OUT_OF_RANGE: Final = (-1, 12, 10, 255, -40)
NOT_A_NUMBER: Final[tuple[Any, ...]] = ("two", "", None, 1.5, True, [1], {"count": 1})

Fields = dict[str, Any]


def spoil(records: Iterable[UserRecord], share: float, rng: Random) -> Iterator[UserRecord]:
    """The records, a `share` (0 to 1) of them spoiled, kind after kind."""
    due: list[str] = []
    for record in records:
        if rng.random() >= share:
            yield record
            continue
        able = KINDS if _fields(record.data) else tuple(_OF_BYTES)
        if not any(kind in able for kind in due):
            due = rng.sample(KINDS, len(KINDS))
        kind = next(kind for kind in due if kind in able)
        due.remove(kind)
        yield spoiled(record, kind, rng)


def spoiled(record: UserRecord, kind: str, rng: Random) -> UserRecord:
    """The record with dirt of that kind. ValueError where the kind needs fields that it does not have."""
    if kind in _OF_BYTES:
        data = _OF_BYTES[kind](record, rng)
    else:
        fields = _fields(record.data)
        if fields is None:
            msg = f"{kind} needs a JSON object with {' and '.join(REQUIRED)}, found {record.data[:60]!r}"
            raise ValueError(msg)
        data = msgspec.json.encode(_OF_FIELDS[kind](fields, rng))
    return msgspec.structs.replace(record, data=data, spoiled=kind)


def _fields(data: bytes) -> Fields | None:
    """The record's fields when it is an object that has the declared ones, else None."""
    try:
        fields = msgspec.json.decode(data)
    except (ValueError, RecursionError):  # msgspec's own errors and UnicodeDecodeError are of the first kind
        return None
    return fields if isinstance(fields, dict) and all(name in fields for name in REQUIRED) else None


def _missing_field(fields: Fields, rng: Random) -> Fields:
    gone = rng.choice(REQUIRED)
    return {name: value for name, value in fields.items() if name != gone}


def _wrong_type(fields: Fields, rng: Random) -> Fields:
    return {**fields, rng.choice(REQUIRED): rng.choice(NOT_A_NUMBER)}


def _out_of_range(fields: Fields, rng: Random) -> Fields:
    value = rng.choice(OUT_OF_RANGE)
    return {**fields, "passengerCount": str(value) if isinstance(fields["passengerCount"], str) else value}


def _not_utf8(record: UserRecord, rng: Random) -> bytes:
    """A byte of another encoding: in a text, before everything, or the whole in UTF-16."""
    way = rng.randrange(3)
    if way == 0 and (at := record.data.find(b'":"')) >= 0:
        return record.data[: at + 3] + b"\xe9\xff" + record.data[at + 3 :]
    if way == 1:
        return b"\xff\xfe" + record.data.decode("utf-8", "replace").encode("utf-16-le")
    return rng.choice((b"\xff", b"\xfe", b"\x80")) + record.data


def _not_json(record: UserRecord, rng: Random) -> bytes:
    """Cut off, or with a number that JSON does not have, or no JSON from the start."""
    text = record.data.strip() if _is_json(record.data) else b"{}"
    return rng.choice(
        (
            b"{" + text[: len(text) // 2],
            text[: rng.randrange(1, len(text))] if text.startswith(b"{") else b"{",
            b'{"passengerCount":NaN,"vendorId":1}',
            b'{"vendorId":2,"passengerCount":-Infinity}',
            text + b",",
            text.replace(b'"', b"'") if b'"' in text else b"'",
            b"",
        )
    )


def _not_an_object(record: UserRecord, rng: Random) -> bytes:
    whole = record.data if _is_json(record.data) else b"0"
    return rng.choice((b"[" + whole + b"]", b"null", b"42", b'"trip"', b"true", b"[]"))


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return False
    return True


def _corrupt_aggregate(record: UserRecord, rng: Random) -> bytes:
    """An aggregate of this one record, broken in one of its three parts."""
    return rng.choice((_wrong_digest, _broken_message, _index_outside, _hash_index_outside))(record)


def _wrong_digest(record: UserRecord) -> bytes:
    whole = carrier_bytes([record])
    return whole[:-1] + bytes((whole[-1] ^ 0xFF,))


def _broken_message(record: UserRecord) -> bytes:
    """Its last entry is cut short; the digest is right, so only the message tells."""
    return sealed(_message(record)[:-1])


def _index_outside(record: UserRecord) -> bytes:
    """A second entry whose key index points past the table of one key."""
    return sealed(_message(record) + b"\x1a\x06\x08\x07\x1a\x02{}")


def _hash_index_outside(record: UserRecord) -> bytes:
    """A second entry whose hash key index points into a table that is not there."""
    return sealed(_message(record) + b"\x1a\x08\x08\x00\x10\x05\x1a\x02{}")


def _message(record: UserRecord) -> bytes:
    return carrier_bytes([msgspec.structs.replace(record, hash_key=None)])[4:-16]


_OF_FIELDS: Final[dict[str, Callable[[Fields, Random], Fields]]] = {
    "missing_field": _missing_field,
    "wrong_type": _wrong_type,
    "out_of_range": _out_of_range,
}
_OF_BYTES: Final[dict[str, Callable[[UserRecord, Random], bytes]]] = {
    "not_utf8": _not_utf8,
    "not_json": _not_json,
    "not_an_object": _not_an_object,
    "corrupt_aggregate": _corrupt_aggregate,
}
KINDS: Final = (*_OF_FIELDS, *_OF_BYTES)
"""Every kind of dirt."""
