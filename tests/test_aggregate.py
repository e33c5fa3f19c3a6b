"""KPL aggregates: whole or corrupt, never half-read."""

from hashlib import md5

import pytest
from aws_kinesis_agg.aggregator import RecordAggregator
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import aggregate, hash_key
from windlass.core.aggregate import MAGIC, CorruptAggregate, HashRange, UserRecords, deaggregate, is_aggregate

payloads = st.lists(st.binary(max_size=60), min_size=1, max_size=20)


def sealed(message: bytes) -> bytes:
    return MAGIC + message + md5(message).digest()


@given(payloads)
def test_the_payloads_come_back_as_they_went_in_and_in_order(data):
    assert deaggregate(aggregate(data)) == UserRecords(data, [])


@given(payloads, st.booleans())
def test_carriers_of_an_independent_aggregator_are_read_the_same(data, with_hash_keys):
    aggregator = RecordAggregator()
    for number, payload in enumerate(data):
        aggregator.add_user_record(f"key-{number}", payload, str(number) if with_hash_keys else None)
    _, _, carrier = aggregator.clear_and_get().get_contents()

    assert deaggregate(carrier) == UserRecords(data, [])


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"\x0a\x01k\x1a\x05\x08\x01\x1a\x01x", "partition key index 1 is outside a table of 1"),
        (b"\x1a\x05\x08\x00\x1a\x01x", "partition key index 0 is outside a table of 0"),
        (b"\x0a\x01k\x1a\x07\x08\x00\x10\x00\x1a\x01x", "explicit hash key index 0 is outside a table of 0"),
        (b"\x0a\x01k\x12\x017\x1a\x07\x08\x00\x10\x01\x1a\x01x", "explicit hash key index 1 is outside a table of 1"),
        (b"\x0a\x01k\x12\x01x\x1a\x05\x08\x00\x1a\x01x", "explicit hash key b'x' is not a whole number"),
        (b"\x0a\x01k\x12\x28" + b"9" * 40 + b"\x1a\x05\x08\x00\x1a\x01x", "is not a whole number below 2**128"),
        (b"\x0a\x01k\x1a\x03\x1a\x01x", "the protobuf message is broken"),
        (b"\x0a\x01k\x1a\x02\x08\x00", "the protobuf message is broken"),
        (b"\x0a\x7fk", "the protobuf message is broken"),
        (b"\x0a\x01k", "it holds 0 user records"),
    ],
)
def test_a_broken_message_under_a_right_digest_makes_the_whole_carrier_corrupt(message, says):
    found = deaggregate(sealed(message))

    assert isinstance(found, CorruptAggregate)
    assert says in found.detail


def test_an_absent_hash_key_index_is_not_index_zero():
    message = b"\x0a\x01k\x12\x017\x1a\x05\x08\x00\x1a\x01x\x1a\x07\x08\x00\x10\x00\x1a\x01y"
    only_seven = HashRange(7, 7)

    found = deaggregate(sealed(message), only_seven)

    assert found == UserRecords([b"x", b"y"], [0])  # x goes by its key's MD5, y by the explicit 7


@given(payloads, st.data())
def test_one_flipped_bit_never_goes_unnoticed(data, draw):
    carrier = bytearray(aggregate(data))
    bit = draw.draw(st.integers(4 * 8, len(carrier) * 8 - 1))
    carrier[bit // 8] ^= 1 << bit % 8

    assert isinstance(deaggregate(bytes(carrier)), CorruptAggregate)


@given(st.binary(max_size=100))
def test_any_bytes_after_the_magic_are_read_or_corrupt(tail):
    assert isinstance(deaggregate(MAGIC + tail), CorruptAggregate)
    assert isinstance(deaggregate(sealed(tail)), CorruptAggregate | UserRecords)


def test_only_the_magic_makes_an_aggregate():
    assert is_aggregate(MAGIC)
    assert not is_aggregate(b'{"vendorId": 1}')
    assert not is_aggregate(MAGIC[:3])


def test_records_outside_the_range_are_named_by_their_places():
    keys = [f"id{number}" for number in range(20)]
    half = HashRange(0, 2**127 - 1)

    found = deaggregate(aggregate([b"x"] * 20, keys), half)

    assert isinstance(found, UserRecords)
    assert found.outside == [place for place, key in enumerate(keys) if hash_key(key.encode()) >= 2**127]


@pytest.mark.parametrize(("low", "high", "outside"), [(0, 0, []), (1, 1, [0]), (-1, -1, [0]), (-9, 0, []), (0, 9, [])])
def test_a_hash_key_is_the_md5_of_the_partition_key_as_a_big_endian_integer(low, high, outside):
    key = 0x0CC175B9C0F1B6A831C399E269772661  # MD5("a")
    within = HashRange(key + low, key + high)

    assert deaggregate(aggregate([b"x"], ["a"]), within) == UserRecords([b"x"], outside)
