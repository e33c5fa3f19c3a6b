"""Dirt of every kind is really dirt, of that kind, as the consumer's own reader sees it."""

import json
from collections import Counter
from itertools import islice
from random import Random
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.aggregate import CorruptAggregate, deaggregate
from windlass.core.rejected import Reason
from windlass.core.schema import Fault, Range, Record, Schema, fields_of
from windlass.produce.aggregate import MAGIC
from windlass.produce.records import UserRecord
from windlass.produce.source import records
from windlass.produce.unclean import KINDS, spoil, spoiled

FIELD_KINDS = ("missing_field", "wrong_type", "out_of_range")


class TaxiTrip(Record):
    vendorId: int
    passengerCount: Annotated[int, Range(0, 9)]


SCHEMA = Schema("TaxiTrip", fields_of(TaxiTrip), coerce=True)


def reason_for(data: bytes) -> Reason | None:
    """What the consumer makes of the bytes: a reason, or None for a clean record."""
    if data.startswith(MAGIC):
        return Reason.CORRUPT_AGGREGATE if isinstance(deaggregate(data), CorruptAggregate) else None
    (read,), _ = SCHEMA.read([data])
    return read.reason if isinstance(read, Fault) else None


def some(dialect: str = "mixed", count: int = 1) -> list[UserRecord]:
    return list(islice(records(dialect=dialect), count))


def test_every_reason_that_a_producer_can_cause_is_a_kind():
    of_the_consumers_side = {Reason.TOO_LARGE, Reason.WRONG_SHARD, Reason.LATE}
    assert set(KINDS) == {str(reason) for reason in Reason} - {str(reason) for reason in of_the_consumers_side}


@pytest.mark.parametrize("dialect", ["kpl", "sdk", "flink"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_consumer_finds_the_kind_that_was_put_in(kind, dialect):
    (trip,) = some(dialect)
    for seed in range(60):
        dirty = spoiled(trip, kind, Random(seed))
        assert reason_for(dirty.data) == kind, dirty.data
        assert dirty.spoiled == kind


@pytest.mark.parametrize("dialect", ["kpl", "sdk", "flink", "mixed"])
def test_the_consumer_accepts_every_record_that_was_not_spoiled(dialect):
    assert {reason_for(record.data) for record in some(dialect, 500)} == {None}


def test_a_spoiled_record_keeps_its_key():
    (trip,) = some()
    assert {spoiled(trip, kind, Random(1)).key for kind in KINDS} == {trip.key}


def test_a_count_written_as_a_string_is_out_of_range_as_a_string():
    (trip,) = some("flink")
    assert type(json.loads(spoiled(trip, "out_of_range", Random(1)).data)["passengerCount"]) is str


@given(st.integers(0, 2**32))
def test_every_kind_occurs_among_twice_as_many_spoiled_records_as_there_are_kinds(seed):
    dirty = spoil(some(count=2 * len(KINDS)), 1.0, Random(seed))
    assert {record.spoiled for record in dirty} == set(KINDS)


def test_the_share_of_spoiled_records_is_the_one_asked_for():
    dirty = Counter(record.spoiled is not None for record in islice(records(unclean=0.1), 5000))
    assert dirty[True] == pytest.approx(500, abs=70)


def test_no_share_spoils_nothing_and_a_whole_share_spoils_all():
    assert not any(record.spoiled for record in spoil(some(count=50), 0.0, Random(1)))
    assert all(record.spoiled for record in spoil(some(count=50), 1.0, Random(1)))


def test_spoiling_some_leaves_the_others_as_they_were():
    clean = list(islice(records(seed=5, dialect="mixed"), 300))
    mixed = list(islice(records(seed=5, dialect="mixed", unclean=0.3), 300))
    assert all(dirty == trip for dirty, trip in zip(mixed, clean, strict=True) if dirty.spoiled is None)


@given(st.binary(max_size=80), st.integers(0, 2**32))
def test_records_without_the_declared_fields_get_the_kinds_that_need_none(data, seed):
    (dirty,) = spoil([UserRecord("k", data)], 1.0, Random(seed))
    assert dirty.spoiled in set(KINDS) - set(FIELD_KINDS)
    assert reason_for(dirty.data) is not None


def test_a_kind_that_needs_fields_says_so_when_they_are_missing():
    with pytest.raises(ValueError, match=r"needs a JSON object with vendorId and passengerCount, found b'\{\}'"):
        spoiled(UserRecord("k", b"{}"), "wrong_type", Random(1))
