"""KPL aggregates: one Kinesis record that carries many user records.

The format, from amazon-kinesis-producer's aggregation-format.md:

    F3 89 9A C2 | protobuf AggregatedRecord | MD5 of the protobuf bytes (16)

Rules of this file:
- Bytes without the magic are a plain record. Bytes with it are an aggregate, whole or corrupt: a wrong digest,
  a broken message, an index outside its table, a hash key that is none, or no record at all makes the whole
  carrier corrupt. It is never half-read. (KCL and aws-kinesis-agg fall back to a plain record, or lose the rest.)
- A user record's hash key is its explicit one, else MD5 of its partition key, as an integer below 2**128.
  Keys stay bytes: the KPL does not promise UTF-8, and nothing here needs text.
"""

from collections.abc import Sequence
from hashlib import md5
from operator import attrgetter
from typing import Any

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from windlass.core.position import SUB_MAX

MAGIC = b"\xf3\x89\x9a\xc2"
DIGEST_BYTES = 16
HASH_KEYS = 1 << 128

# Absent and zero must differ: index 0 of an empty table is corrupt, no index is not. A proto2 default tells
# them apart in one attribute read, where HasField would cost a second call per record. The explicit index is mostly
# absent: declared as signed, which the wire does not tell apart, it then reads as a small int that costs no allocation.
_NO_PARTITION = (1 << 64) - 1
_NO_EXPLICIT = -1

# The columns of a carrier, read in C loops: this is the hot path of a KPL stream.
_DATA = attrgetter("data")
_PARTITION = attrgetter("partition_key_index")
_EXPLICIT = attrgetter("explicit_hash_key_index")


class CorruptAggregate(msgspec.Struct, frozen=True):
    """Why a carrier with the magic could not be read."""

    detail: str


class HashRange(msgspec.Struct, frozen=True):
    """A shard's hash keys, both ends included, as ListShards gives them."""

    low: int
    high: int


def is_aggregate(data: bytes) -> bool:
    """Whether the bytes claim to be a KPL aggregate."""
    return data[:4] == MAGIC


def deaggregate(data: bytes, within: HashRange | None = None) -> "UserRecords | CorruptAggregate":
    """The user records of a carrier (bytes that begin with the magic), in their order.

    With `within`, `outside` lists the places of the records whose hash key is not in that range.
    """
    body, digest = data[4:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if len(data) <= 4 + DIGEST_BYTES:
        return CorruptAggregate(f"{len(data)} bytes are too few for an aggregate")
    if _digest(body) != digest:
        return CorruptAggregate("the MD5 digest does not match the message")
    try:
        message = _AggregatedRecord.FromString(body)
    except DecodeError as error:
        return CorruptAggregate(f"the protobuf message is broken: {error}")
    records = list(message.records)
    if not 0 < len(records) <= SUB_MAX + 1:
        return CorruptAggregate(f"it holds {len(records)} user records; 1 to {SUB_MAX + 1} are possible")
    payloads = list(map(_DATA, records))
    if b"" in payloads and not message.IsInitialized():  # absent data reads as empty, and upb lets it pass
        return CorruptAggregate("the protobuf message is broken: a record has no data")
    fault = _index_fault(records, message.partition_key_table, message.explicit_hash_key_table)
    if fault:
        return CorruptAggregate(fault)
    return UserRecords(payloads, _outside(records, message, within) if within else [])


class UserRecords(msgspec.Struct, frozen=True):
    """What a carrier held: the payloads in order, and the places of those that belong to another shard."""

    payloads: list[bytes]
    outside: list[int]


def _index_fault(records: Sequence[Any], keys: Sequence[bytes], hash_keys: Sequence[bytes]) -> str | None:
    highest = max(map(_PARTITION, records))
    if highest == _NO_PARTITION:
        return "the protobuf message is broken: a record has no partition key index"
    if highest >= len(keys):
        return f"partition key index {highest} is outside a table of {len(keys)}"
    used = set(map(_EXPLICIT, records))
    used.discard(_NO_EXPLICIT)
    for index in used:
        if not 0 <= index < len(hash_keys):
            return f"explicit hash key index {index % (1 << 64)} is outside a table of {len(hash_keys)}"
    for text in hash_keys:
        if not (0 < len(text) <= 39 and text.isdigit() and int(text) < HASH_KEYS):
            return f"explicit hash key {text[:50]!r} is not a whole number below 2**128"
    return None


def _outside(records: Sequence[Any], message: Any, within: HashRange) -> list[int]:
    # Digests are hash keys in big-endian, so they compare as the numbers do.
    low, high = (key.to_bytes(DIGEST_BYTES, "big") for key in (within.low, within.high))
    by_key = [low <= _digest(key) <= high for key in message.partition_key_table]
    by_hash = [within.low <= int(text) <= within.high for text in message.explicit_hash_key_table]
    if all(by_key) and all(by_hash):
        return []
    return [
        place
        for place, (key, explicit) in enumerate(zip(map(_PARTITION, records), map(_EXPLICIT, records), strict=True))
        if not (by_key[key] if explicit == _NO_EXPLICIT else by_hash[explicit])
    ]


def _digest(data: bytes) -> bytes:
    return md5(data, usedforsecurity=False).digest()


def _messages() -> Any:
    """The three messages of the format, declared here so that no generated file ties us to a protobuf version."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="windlass/kpl.proto",
        package="windlass.kpl",
        message_type=[
            descriptor_pb2.DescriptorProto(
                name="AggregatedRecord",
                field=[
                    field(name="partition_key_table", number=1, label=3, type=12),
                    field(name="explicit_hash_key_table", number=2, label=3, type=12),
                    field(name="records", number=3, label=3, type=11, type_name=".windlass.kpl.Record"),
                ],
            ),
            descriptor_pb2.DescriptorProto(
                name="Record",
                field=[
                    field(name="partition_key_index", number=1, label=2, type=4, default_value=str(_NO_PARTITION)),
                    field(name="explicit_hash_key_index", number=2, label=1, type=3, default_value=str(_NO_EXPLICIT)),
                    field(name="data", number=3, label=2, type=12),
                    field(name="tags", number=4, label=3, type=11, type_name=".windlass.kpl.Tag"),
                ],
            ),
            descriptor_pb2.DescriptorProto(
                name="Tag",
                field=[
                    field(name="key", number=1, label=2, type=12),
                    field(name="value", number=2, label=1, type=12),
                ],
            ),
        ],
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("windlass.kpl.AggregatedRecord"))


_AggregatedRecord = _messages()
