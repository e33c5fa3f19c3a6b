"""Aggregates that the producer writes, read by an independent reader and checked against the format."""

import base64
import io
from contextlib import redirect_stderr
from hashlib import md5

import pytest
from aws_kinesis_agg.deaggregator import deaggregate_records
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import kinesis_record
from windlass.core.aggregate import HashRange, deaggregate
from windlass.produce.aggregate import (
    CARRIER_KEY,
    DIGEST_BYTES,
    MAGIC,
    Shard,
    ShardMap,
    carrier_bytes,
    hash_of,
    packed,
)
from windlass.produce.records import UserRecord

HASHES = 1 << 128
QUARTERS = ShardMap(Shard(f"shard-{n}", n * HASHES // 4, (n + 1) * HASHES // 4 - 1) for n in range(4))

user_records = st.builds(
    UserRecord,
    key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    data=st.binary(max_size=300).filter(lambda data: not data.startswith(MAGIC)),
    hash_key=st.none() | st.integers(0, HASHES - 1),
)


def read(data: bytes) -> list[tuple[str, bytes]]:
    """The (partition key, data) of each user record, as aws-kinesis-agg reads them from a Lambda event."""
    record = kinesis_record(1, data)
    with redirect_stderr(io.StringIO()) as complaints:
        found = deaggregate_records([record])
    assert complaints.getvalue() == ""
    return [(user["kinesis"]["partitionKey"], base64.b64decode(user["kinesis"]["data"])) for user in found]


@given(st.lists(user_records, min_size=1, max_size=8))
def test_an_independent_reader_finds_every_user_record_in_order(users):
    assert read(carrier_bytes(users)) == [(user.key, user.data) for user in users]


@given(st.lists(user_records, min_size=1, max_size=8))
def test_the_function_finds_the_same_records_and_the_same_hashes(users):
    found = deaggregate(carrier_bytes(users), within=HashRange(0, HASHES // 2))
    assert found.payloads == [user.data for user in users]
    assert found.outside == [place for place, user in enumerate(users) if hash_of(user) > HASHES // 2]


def test_the_bytes_are_the_magic_a_message_and_its_digest():
    data = carrier_bytes([UserRecord("k", b"one")])
    message = data[len(MAGIC) : -DIGEST_BYTES]
    assert data[:4] == bytes.fromhex("f3899ac2")
    assert data[-DIGEST_BYTES:] == md5(message, usedforsecurity=False).digest()
    # Field 1: the key "k". Field 3, seven bytes: key index 0, data "one".
    assert message == b"\x0a\x01k" + b"\x1a\x07" + b"\x08\x00" + b"\x1a\x03one"


def test_an_explicit_hash_key_goes_into_a_table_of_its_own():
    message = carrier_bytes([UserRecord("k", b"1", hash_key=77)])[len(MAGIC) : -DIGEST_BYTES]
    assert message == b"\x0a\x01k" + b"\x12\x0277" + b"\x1a\x07" + b"\x08\x00" + b"\x10\x00" + b"\x1a\x011"


def test_a_key_used_twice_stands_in_the_table_once():
    assert carrier_bytes([UserRecord("same", b"1"), UserRecord("same", b"2")]).count(b"same") == 1


def test_a_carrier_has_the_key_a_and_the_hash_of_its_first_record():
    users = [UserRecord(f"id{n}", b"{}") for n in range(100)]
    for carrier in packed(users, QUARTERS):
        assert carrier.key == CARRIER_KEY == "a"
        assert carrier.hash_key == int(md5(carrier.users[0].key.encode(), usedforsecurity=False).hexdigest(), 16)


@given(st.lists(user_records, max_size=60), st.integers(200, 2000), st.none() | st.integers(1, 9))
def test_packing_loses_nothing_and_keeps_to_its_bounds(users, bytes_max, records_max):
    carriers = list(packed(users, QUARTERS, bytes_max=bytes_max, records_max=records_max))
    assert sorted(map(repr, users)) == sorted(repr(user) for carrier in carriers for user in carrier.users)
    for carrier in carriers:
        assert len(carrier.users) <= (records_max or len(users))
        if len(carrier.users) > 1:
            assert len(carrier.data) <= bytes_max
            assert read(carrier.data) == [(user.key, user.data) for user in carrier.users]
            assert {QUARTERS.of(hash_of(user)).id for user in carrier.users} == {carrier.shard}


@given(st.lists(user_records, max_size=60))
def test_each_shard_gets_its_records_in_the_order_they_came(users):
    carriers = list(packed(users, QUARTERS, bytes_max=1500))
    for shard in range(4):

        def here(user: UserRecord, shard: int = shard) -> bool:
            return QUARTERS.of(hash_of(user)).id == f"shard-{shard}"

        assert [user for carrier in carriers for user in carrier.users if here(user)] == list(filter(here, users))


def test_a_lone_record_goes_as_it_is():
    (alone,) = packed([UserRecord("k", b"{}", hash_key=5)], QUARTERS)
    assert (alone.key, alone.hash_key, alone.data, alone.shard) == ("k", 5, b"{}", None)


def test_a_record_with_the_magic_is_never_packed():
    users = [UserRecord("k", b"1"), UserRecord("k", MAGIC + b"broken"), UserRecord("k", b"2")]
    first, second = packed(users, QUARTERS)
    assert first.data == MAGIC + b"broken"
    assert [user.data for user in second.users] == [b"1", b"2"]


def test_without_a_shard_map_nothing_is_packed():
    users = [UserRecord("k", b"1"), UserRecord("k", b"2")]
    assert [entry.data for entry in packed(users, ShardMap(()))] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("hash_key", "shard"), [(0, "left"), (HASHES // 2 - 1, "left"), (HASHES // 2, "right"), (HASHES - 1, "right")]
)
def test_a_hash_belongs_to_the_open_shard_whose_range_holds_it(hash_key, shard):
    split = ShardMap(
        [
            Shard("parent", 0, HASHES - 1, open=False),
            Shard("left", 0, HASHES // 2 - 1),
            Shard("right", HASHES // 2, HASHES - 1),
        ]
    )
    assert split.of(hash_key).id == shard
    assert split["parent"].takes(hash_key)


def test_trips_of_three_hundred_bytes_fill_an_aggregate_to_its_bound():
    users = [UserRecord(f"id{n:07d}", b"x" * 340) for n in range(2000)]
    first = next(packed(users, ShardMap([Shard("all", 0, HASHES - 1)])))
    assert 51_200 - 500 < len(first.data) <= 51_200
    assert 135 < len(first.users) < 145
