"""The KPL's aggregated records, written: many user records in one Kinesis record.

Source: "KPL Aggregated Record Format" (aggregation-format.md of amazon-kinesis-producer). Rules:

- The bytes are the magic F3 89 9A C2, an AggregatedRecord in protobuf, and the MD5 of that message.
- AggregatedRecord is: 1 partition keys (repeated string), 2 explicit hash keys (repeated string), 3 records; a record
  is: 1 index of its key, 2 index of its hash key where it has one, 3 its data. A key stands in its table once.
- All user records of one aggregate belong to one shard: the one that their hash, explicit or the MD5 of the
  partition key, falls into. The carrier says so by the first one's hash as its own explicit hash key;
  its partition key is the letter "a", as the KPL has it.
- A user record that would be alone in its aggregate, or is too large for one, goes as it is.

The reading side is not imported: what this file writes and what the function reads meet in the bytes only.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from hashlib import md5

import msgspec

from windlass.produce.records import UserRecord

MAGIC = b"\xf3\x89\x9a\xc2"
DIGEST_BYTES = 16
CARRIER_KEY = "a"
AGGREGATE_BYTES_MAX = 51_200
"""The KPL's default AggregationMaxSize."""

_KEYS, _HASH_KEYS, _RECORDS = b"\x0a", b"\x12", b"\x1a"
_KEY_INDEX, _HASH_KEY_INDEX, _DATA = b"\x08", b"\x10", b"\x1a"


class Shard(msgspec.Struct, frozen=True):
    """A shard and the hash keys it takes, both ends included. A closed one takes no more records."""

    id: str
    first_hash: int
    last_hash: int
    open: bool = True

    def takes(self, hash_key: int) -> bool:
        """Whether the hash key lies in the shard's range."""
        return self.first_hash <= hash_key <= self.last_hash


class KinesisRecord(msgspec.Struct, frozen=True):
    """One entry of a put: a user record as it is, or a carrier of several.

    `shard` is the shard a carrier was packed for, None for a record that is not a carrier.
    """

    key: str
    hash_key: int | None
    data: bytes
    users: tuple[UserRecord, ...]
    shard: str | None = None

    @property
    def put_bytes(self) -> int:
        """What counts against the limits of a put: the data and the partition key."""
        return len(self.data) + len(self.key.encode())


class ShardMap:
    """Which open shard a hash key belongs to, and the range of any known shard."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._by_id = {shard.id: shard for shard in shards}
        self._open = sorted((shard for shard in self._by_id.values() if shard.open), key=lambda shard: shard.last_hash)
        self._last_hashes = [shard.last_hash for shard in self._open]

    def __getitem__(self, shard_id: str) -> Shard:
        """The shard of that id; KeyError where it is not known."""
        return self._by_id[shard_id]

    def __contains__(self, shard_id: object) -> bool:
        return shard_id in self._by_id

    def of(self, hash_key: int) -> Shard | None:
        """The open shard that takes this hash key, or None: no shard map covers it."""
        at = bisect_left(self._last_hashes, hash_key)
        return self._open[at] if at < len(self._open) and self._open[at].takes(hash_key) else None


def hash_of(record: UserRecord) -> int:
    """The hash that decides the record's shard: explicit, or the big-endian MD5 of the partition key."""
    if record.hash_key is not None:
        return record.hash_key
    return int.from_bytes(md5(record.key.encode(), usedforsecurity=False).digest(), "big")


def plain(record: UserRecord) -> KinesisRecord:
    """The record as one Kinesis record."""
    return KinesisRecord(record.key, record.hash_key, record.data, (record,))


def packed(
    records: Iterable[UserRecord],
    shards: ShardMap,
    *,
    bytes_max: int = AGGREGATE_BYTES_MAX,
    records_max: int | None = None,
) -> Iterator[KinesisRecord]:
    """The records packed into carriers, one open carrier per shard; all are closed at the end.

    A record for which no shard is known, or that carries its own magic (a spoiled aggregate), goes as it is.
    """
    open_packs: dict[str, _Pack] = {}
    for record in records:
        shard = None if record.data.startswith(MAGIC) else shards.of(hash_of(record))
        if shard is None:
            yield plain(record)
            continue
        pack = open_packs.get(shard.id)
        if pack and not pack.has_room(record, bytes_max, records_max):
            yield pack.closed()
            pack = None
        if pack is None:
            pack = open_packs[shard.id] = _Pack(shard.id)
        pack.add(record)
    for pack in open_packs.values():
        yield pack.closed()


def carrier_bytes(records: Sequence[UserRecord]) -> bytes:
    """One aggregate of these records, as it goes over the wire."""
    pack = _Pack("")
    for record in records:
        pack.add(record)
    return sealed(pack.message())


def sealed(message: bytes) -> bytes:
    """The magic, the message, its MD5."""
    return MAGIC + message + md5(message, usedforsecurity=False).digest()


class _Pack:
    """An aggregate being filled: its two tables, its records, and the bytes it would have if closed now."""

    def __init__(self, shard_id: str) -> None:
        self.shard_id = shard_id
        self.users: list[UserRecord] = []
        self.size_bytes = len(MAGIC) + DIGEST_BYTES
        self._keys = _Table(_KEYS)
        self._hash_keys = _Table(_HASH_KEYS)
        self._entries: list[bytes] = []

    def has_room(self, record: UserRecord, bytes_max: int, records_max: int | None) -> bool:
        # The bound counts a record's tables as if all were new; it is never too small.
        bound = len(record.data) + len(record.key.encode()) + _OVERHEAD_BYTES_MAX
        full = records_max is not None and len(self.users) >= records_max
        return not full and self.size_bytes + bound <= bytes_max

    def add(self, record: UserRecord) -> None:
        size = self._keys.size_bytes + self._hash_keys.size_bytes
        body = _KEY_INDEX + _varint(self._keys.index_of(record.key))
        if record.hash_key is not None:
            body += _HASH_KEY_INDEX + _varint(self._hash_keys.index_of(str(record.hash_key)))
        entry = _field(_RECORDS, body + _field(_DATA, record.data))
        self._entries.append(entry)
        self.users.append(record)
        self.size_bytes += len(entry) + self._keys.size_bytes + self._hash_keys.size_bytes - size

    def message(self) -> bytes:
        return b"".join((*self._keys.fields, *self._hash_keys.fields, *self._entries))

    def closed(self) -> KinesisRecord:
        if len(self.users) == 1:
            return plain(self.users[0])
        data = sealed(self.message())
        assert len(data) == self.size_bytes, "the size of an open aggregate is counted wrong"
        return KinesisRecord(CARRIER_KEY, hash_of(self.users[0]), data, tuple(self.users), self.shard_id)


class _Table:
    """A table of the message: each text once, found by its index."""

    def __init__(self, tag: bytes) -> None:
        self.fields: list[bytes] = []
        self.size_bytes = 0
        self._tag = tag
        self._index: dict[str, int] = {}

    def index_of(self, text: str) -> int:
        index = self._index.setdefault(text, len(self.fields))
        if index == len(self.fields):
            self.fields.append(_field(self._tag, text.encode()))
            self.size_bytes += len(self.fields[-1])
        return index


_OVERHEAD_BYTES_MAX = 39 + 4 * 6 + 2 * 6
"""An explicit hash key has up to 39 digits; four lengths and two indexes take at most six bytes each, tag included."""


def _field(tag: bytes, value: bytes) -> bytes:
    return tag + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    """A number in protobuf's base 128, least significant group first."""
    if number < 0x80:
        return _ONE_BYTE[number]
    groups = bytearray()
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


_ONE_BYTE = [bytes((number,)) for number in range(0x80)]
