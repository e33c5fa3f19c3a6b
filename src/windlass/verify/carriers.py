"""The KPL's aggregates, read byte by byte (amazon-kinesis-producer, aggregation-format.md).

    F3 89 9A C2 | AggregatedRecord | MD5 of it (16 bytes)

    AggregatedRecord  1 repeated bytes partition_key_table, 2 repeated bytes explicit_hash_key_table, 3 repeated Record
    Record            1 required varint partition_key_index, 2 varint explicit_hash_key_index, 3 required bytes data,
                      4 repeated Tag
    Tag               1 required bytes key, 2 bytes value

As protobuf prescribes: fields that are not of these numbers and wire types are skipped, and of a field that stands
once the last one counts.
"""

from collections.abc import Iterator
from hashlib import md5
from typing import NamedTuple

MAGIC = b"\xf3\x89\x9a\xc2"
_DIGEST_BYTES = 16
_SUBS_END = 10**6
_DEPTH_MAX = 100
_UINT64 = 2**64 - 1
_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)


class _Broken(Exception):
    """The message cannot be read. It never leaves this file."""


class UserRecord(NamedTuple):
    """One record of a carrier, and the 128-bit hash key that says to which shard it belongs."""

    data: bytes
    hash_key: int


def is_carrier(data: bytes) -> bool:
    """Whether the bytes claim to be an aggregate."""
    return data.startswith(MAGIC)


def open_carrier(data: bytes) -> list[UserRecord] | None:
    """The user records in order, or None when anything at all is wrong with the carrier."""
    message, digest = data[len(MAGIC) : -_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(data) <= len(MAGIC) + _DIGEST_BYTES or md5(message, usedforsecurity=False).digest() != digest:
        return None
    try:
        return _user_records(message)
    except _Broken:
        return None


def _user_records(message: bytes) -> list[UserRecord]:
    partition_keys: list[int] = []  # hashed
    hash_keys: list[int] = []
    records: list[tuple[int, int | None, bytes]] = []
    for number, value in _fields(message):
        if type(value) is not bytes:
            continue
        if number == 1:
            partition_keys.append(int.from_bytes(md5(value, usedforsecurity=False).digest(), "big"))
        elif number == 2:
            hash_keys.append(_hash_key(value))
        elif number == 3:
            records.append(_record(value))
    if not 0 < len(records) <= _SUBS_END:
        raise _Broken
    opened = []
    for key, explicit, data in records:
        if key >= len(partition_keys) or (explicit is not None and explicit >= len(hash_keys)):
            raise _Broken
        opened.append(UserRecord(data, partition_keys[key] if explicit is None else hash_keys[explicit]))
    return opened


def _hash_key(text: bytes) -> int:
    if not 0 < len(text) <= 39 or not text.isdigit() or int(text) >= 2**128:
        raise _Broken
    return int(text)


def _record(message: bytes) -> tuple[int, int | None, bytes]:
    key: int | None = None
    explicit: int | None = None
    data: bytes | None = None
    for number, value in _fields(message):
        if type(value) is bytes:
            if number == 3:
                data = value
            elif number == 4:
                _check_tag(value)
        elif type(value) is int:
            if number == 1:
                key = value
            elif number == 2:
                explicit = value
    if key is None or data is None:
        raise _Broken
    return key, explicit, data


def _check_tag(message: bytes) -> None:
    if not any(number == 1 and type(value) is bytes for number, value in list(_fields(message))):
        raise _Broken


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes | None]]:
    """The fields of a message: int for a varint, bytes for what has a length, None for the other wire types."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _tag(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            size, at = _varint(message, at)
            if at + size > end:
                raise _Broken
            yield number, message[at : at + size]
            at += size
        elif wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        else:
            at = _skip(message, at, number, wire, 0)
            yield number, None


def _skip(message: bytes, at: int, number: int, wire: int, depth: int) -> int:
    """The place after a field that nobody asked for."""
    if wire == _VARINT:
        return _varint(message, at)[1]
    if wire == _GROUP:
        return _skip_group(message, at, number, depth + 1)
    if wire == _BYTES:
        size, at = _varint(message, at)
    elif wire in (_FIXED32, _FIXED64):
        size = 4 if wire == _FIXED32 else 8
    else:
        raise _Broken
    if at + size > len(message):
        raise _Broken
    return at + size


def _skip_group(message: bytes, at: int, group: int, depth: int) -> int:
    if depth > _DEPTH_MAX:
        raise _Broken
    while True:
        tag, at = _tag(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _GROUP_END:
            if number != group:
                raise _Broken
            return at
        at = _skip(message, at, number, wire, depth)


def _tag(message: bytes, at: int) -> tuple[int, int]:
    start = at
    if at < len(message) and 8 <= message[at] < 0x80:
        return message[at], at + 1
    tag, at = _varint(message, at)
    if tag < 8 or tag >> 32 or at - start > 5:
        raise _Broken
    return tag, at


def _varint(message: bytes, at: int) -> tuple[int, int]:
    if at < len(message) and message[at] < 0x80:
        return message[at], at + 1
    value = shift = 0
    for place in range(at, min(at + 10, len(message))):
        byte = message[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _UINT64, place + 1
        shift += 7
    raise _Broken
