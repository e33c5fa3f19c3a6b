"""What flows from the sources to the stream: a user record, before it is packed."""

import msgspec

KEY_CHARS_MAX = 256
"""A partition key has 1 to 256 Unicode characters. Source: API reference, PutRecordsRequestEntry."""


class UserRecord(msgspec.Struct, frozen=True):
    """One record as the producer means it.

    `data` are its bytes, `key` its partition key, `hash_key` the explicit hash key or None for the key's MD5,
    `spoiled` the kind of dirt that was put into it on purpose, None for a clean record.
    """

    key: str
    data: bytes
    hash_key: int | None = None
    spoiled: str | None = None
