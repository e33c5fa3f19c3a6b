"""The shards behind the local endpoint: Kinesis's promises, moto's API, and the short way to the records."""

import base64
import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from moto.core.base_backend import BackendDict
from moto.kinesis.exceptions import InvalidArgumentError, ResourceInUseError
from moto.kinesis.models import kinesis_backends

from windlass.local.kinesis_api import KinesisApi
from windlass.local.mapping import Fetch
from windlass.local.mapping_settings import LATEST, TRIM_HORIZON, Position
from windlass.local.streams import SHARD_FILTERS, LocalStream, Shard, Stream, our_shards

ACCOUNT, REGION = "123456789012", "us-east-1"
FIRST = "shardId-000000000000"


@pytest.fixture(autouse=True)
def ours() -> Iterator[None]:
    BackendDict.reset()
    with our_shards():
        yield
    BackendDict.reset()


def backend() -> Any:
    return kinesis_backends[ACCOUNT][REGION]


def stream(shards: int = 1) -> Stream:
    made: Stream = backend().create_stream("s", shards)
    return made


def put(to: Stream, *texts: str, key: str = "k") -> list[tuple[str, str]]:
    return [to.put_record(key, None, base64.b64encode(text.encode()).decode()) for text in texts]


def read(of: Stream, shard_id: str, position: Position = TRIM_HORIZON, limit: int = 10_000) -> Any:
    return LocalStream(lambda: of).fetch(Fetch(shard_id, position, limit))


def texts(fetched: Any) -> list[str]:
    return [record.data.decode() for record in fetched.records]


def test_hash_ranges_cover_everything_without_overlap() -> None:
    for count in (1, 2, 3, 7):
        made = Stream("s", count, None, None, ACCOUNT, REGION)
        edges = sorted((shard.starting_hash, shard.ending_hash) for shard in made.shards.values())
        assert edges[0][0] == 0
        assert edges[-1][1] == 2**128 - 1
        assert all(low[1] + 1 == high[0] for low, high in itertools.pairwise(edges))


def test_a_record_of_the_last_hash_of_a_range_has_its_shard() -> None:
    made = stream(2)
    for shard in list(made.shards.values()):
        for point in (shard.starting_hash, shard.ending_hash):
            assert made.get_shard_for_key("k", str(point)) is shard


def test_sequence_numbers_have_56_digits_and_grow_in_order_of_text_and_number() -> None:
    made = stream()
    numbers = [number for number, _ in put(made, *"abcdefgh")]
    assert {len(number) for number in numbers} == {56}
    assert numbers == sorted(set(numbers))
    assert texts(read(made, FIRST)) == list("abcdefgh")


def test_concurrent_puts_lose_nothing_and_repeat_no_number() -> None:
    made = stream()
    barrier = threading.Barrier(8)

    def many(worker: int) -> list[str]:
        barrier.wait()
        return [number for number, _ in put(made, *(f"{worker}.{each}" for each in range(200)))]

    with ThreadPoolExecutor(8) as pool:
        numbers = [number for found in pool.map(many, range(8)) for number in found]
    assert len(set(numbers)) == 1600
    fetched = read(made, FIRST)
    assert [record.sequence for record in fetched.records] == sorted(numbers)
    arrivals = [record.arrival_ms for record in fetched.records]
    assert arrivals == sorted(arrivals)


def test_a_split_leaves_the_records_where_they_are_and_ends_the_shard() -> None:
    made = stream()
    put(made, "before")
    made.split_shard(FIRST, str(2**127))
    put(made, "after")
    old = read(made, FIRST)
    assert (texts(old), old.ended, old.children) == (
        ["before"], True, ("shardId-000000000001", "shardId-000000000002"),
    )  # fmt: skip
    young = [read(made, child) for child in old.children]
    assert sorted(text for fetched in young for text in texts(fetched)) == ["after"]
    assert not any(fetched.ended for fetched in young)
    [late] = [record for fetched in young for record in fetched.records]
    assert int(late.sequence) > int(old.records[0].sequence)


def test_a_shard_ends_only_behind_its_last_record() -> None:
    made = stream()
    put(made, "a", "b")
    made.split_shard(FIRST, str(2**127))
    first = read(made, FIRST, limit=1)
    assert (texts(first), first.ended, first.children) == (["a"], False, ())
    rest = read(made, FIRST, Position("AFTER_SEQUENCE_NUMBER", first.records[0].sequence))
    assert (texts(rest), rest.ended) == (["b"], True)


def test_puts_go_on_while_a_stream_is_split_and_none_is_lost() -> None:
    made = stream()
    ended = threading.Event()
    taken: list[tuple[str, str]] = []

    def putting() -> None:
        while not ended.is_set():
            taken.extend(put(made, "x", key=str(len(taken))))

    thread = threading.Thread(target=putting)
    thread.start()
    for _ in range(20):
        widest = max(
            (shard for shard in made.shards.values() if shard.is_open), key=lambda it: it.ending_hash - it.starting_hash
        )
        made.split_shard(widest.shard_id, str((widest.starting_hash + widest.ending_hash) // 2))
    ended.set()
    thread.join()
    found = [(record.sequence, shard_id) for shard_id in made.shards for record in read(made, shard_id).records]
    assert sorted(found) == sorted(taken)


def test_a_merge_has_two_parents_and_keys_go_to_the_child() -> None:
    made = stream(2)
    made.merge_shards(FIRST, "shardId-000000000001")
    child = made.get_shard("shardId-000000000002")
    assert (child.parent, child.adjacent_parent) == (FIRST, "shardId-000000000001")
    assert {shard_id for _, shard_id in put(made, "a", key="x") + put(made, "b", key="y")} == {child.shard_id}
    listed = LocalStream(lambda: made).shards()
    assert [(shard.closed, len(shard.parents)) for shard in listed] == [(True, 0), (True, 0), (False, 2)]


def test_what_cannot_be_resharded_is_refused() -> None:
    made = stream(4)
    made.split_shard(FIRST, str(2**125))
    with pytest.raises(ResourceInUseError, match="already been"):
        made.split_shard(FIRST, str(2**124))
    with pytest.raises(InvalidArgumentError, match="not an adjacent pair"):
        made.merge_shards("shardId-000000000001", "shardId-000000000003")
    with pytest.raises(InvalidArgumentError, match="not both greater"):
        made.split_shard("shardId-000000000001", str(2**127 + 1))


def test_update_shard_count_goes_up_and_down_without_losing_a_record() -> None:
    made = stream(2)
    put(made, *"abc")
    made.update_shard_count(4)
    put(made, *"def")
    made.update_shard_count(1)
    assert sum(shard.is_open for shard in made.shards.values()) == 1
    found = [text for shard_id in made.shards for text in texts(read(made, shard_id))]
    assert sorted(found) == list("abcdef")


def test_shards_are_listed_by_where_they_were_open() -> None:
    made = stream(2)
    before = made.get_shard(FIRST)
    before.created_ms = 1000
    made.get_shard("shardId-000000000001").created_ms = 1000
    made.split_shard(FIRST, str(2**126))
    before.closed_ms = 2000
    for child in before.children:
        made.get_shard(child).created_ms = 2000

    def listed(kind: str, *, after: str = "", at_ms: int = 0) -> list[int]:
        passes = SHARD_FILTERS[kind]
        return [int(name[-1]) for name, shard in sorted(made.shards.items()) if passes(shard, after, at_ms)]

    assert listed("AT_TRIM_HORIZON") == [0, 1]
    assert listed("FROM_TRIM_HORIZON") == [0, 1, 2, 3]
    assert listed("AT_LATEST") == [1, 2, 3]
    assert listed("AT_TIMESTAMP", at_ms=1500) == [0, 1]
    assert listed("AT_TIMESTAMP", at_ms=2500) == [1, 2, 3]
    assert listed("FROM_TIMESTAMP", at_ms=1500) == [0, 1, 2, 3]
    assert listed("FROM_TIMESTAMP", at_ms=2000) == [1, 2, 3]
    assert listed("AFTER_SHARD_ID", after="shardId-000000000001") == [2, 3]


def test_reading_begins_where_the_position_says() -> None:
    made = stream()
    (first, _), (second, _), _ = put(made, *"abc")
    assert texts(read(made, FIRST, Position("AT_SEQUENCE_NUMBER", second))) == ["b", "c"]
    assert texts(read(made, FIRST, Position("AFTER_SEQUENCE_NUMBER", first))) == ["b", "c"]
    arrival = read(made, FIRST).records[0].arrival_ms
    assert texts(read(made, FIRST, Position("AT_TIMESTAMP", at_ms=arrival))) == ["a", "b", "c"]
    assert texts(read(made, FIRST, Position("AT_TIMESTAMP", at_ms=arrival + 60_000))) == []
    with pytest.raises(ValueError, match="cannot be read from LATEST"):
        read(made, FIRST, LATEST)


def test_one_read_carries_ten_mebibytes_at_most() -> None:
    made = stream()
    put(made, *("x" * 1_000_000 for _ in range(12)))
    assert len(read(made, FIRST).records) == 10


# --- the short way -----------------------------------------------------------------------------------------------


class Door:
    """The calls that carry records, and what was heard of puts."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []
        self._api = KinesisApi(ACCOUNT, lambda _, records, size: self.heard.append((records, size)))

    def __call__(self, call: str, **request: Any) -> Any:
        answer = self._api.answer(f"Kinesis_20131202.{call}", REGION, json.dumps(request).encode())
        return None if answer is None else json.loads(answer)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_what_is_put_is_got_again() -> None:
    made, door = stream(), Door()
    answer = door("PutRecords", StreamName="s", Records=[{"Data": encoded("a"), "PartitionKey": "k"}] * 2)
    assert answer["FailedRecordCount"] == 0
    one = door("PutRecord", StreamARN=made.arn, Data=encoded("b"), PartitionKey="key", ExplicitHashKey="5")
    assert one["ShardId"] == FIRST
    assert door.heard == [(2, 4), (1, 4)]
    iterator = backend().get_shard_iterator(made.arn, None, FIRST, "TRIM_HORIZON", None, None)
    got = door("GetRecords", ShardIterator=iterator, Limit=2)
    assert [base64.b64decode(record["Data"]) for record in got["Records"]] == [b"a", b"a"]
    rest = door("GetRecords", ShardIterator=got["NextShardIterator"])
    assert [record["SequenceNumber"] for record in rest["Records"]] == [one["SequenceNumber"]]
    assert door("GetRecords", ShardIterator=rest["NextShardIterator"])["Records"] == []


def test_the_end_of_a_closed_shard_names_its_children() -> None:
    made, door = stream(), Door()
    put(made, "a")
    made.split_shard(FIRST, str(2**127))
    iterator = backend().get_shard_iterator(None, "s", FIRST, "TRIM_HORIZON", None, None)
    got = door("GetRecords", ShardIterator=iterator)
    assert "NextShardIterator" not in got
    assert [child["ParentShards"] for child in got["ChildShards"]] == [[FIRST], [FIRST]]


RECORD = {"Data": encoded("a"), "PartitionKey": "k"}


@pytest.mark.parametrize(
    ("call", "request_"),
    [
        ("PutRecords", {"StreamName": "nobody", "Records": [RECORD]}),
        ("PutRecords", {"StreamName": "s", "Records": []}),
        ("PutRecords", {"StreamName": "s", "Records": [RECORD] * 501}),
        ("PutRecords", {"StreamName": "s", "Records": [{"Data": encoded("x" * 1_048_576), "PartitionKey": "k"}]}),
        ("PutRecords", {"StreamName": "s", "Records": [{**RECORD, "ExplicitHashKey": str(2**128)}]}),
        ("PutRecords", {"StreamName": "s", "Records": [{**RECORD, "PartitionKey": ""}]}),
        ("PutRecord", {"StreamName": "s", "Data": "no base64!", "PartitionKey": "k"}),
        ("PutRecord", {"StreamName": "s", "PartitionKey": "k"}),
        ("GetRecords", {"ShardIterator": "nonsense"}),
        ("GetRecords", {"ShardIterator": encoded("s:shardId-000000000009:0")}),
        ("GetRecords", {"ShardIterator": encoded(f"s:{FIRST}:0"), "Limit": 10_001}),
        ("DescribeStream", {"StreamName": "s"}),
    ],
)  # fmt: skip
def test_what_is_to_be_refused_is_left_to_moto_and_nothing_is_put(call: str, request_: dict[str, Any]) -> None:
    made, door = stream(), Door()
    assert door(call, **request_) is None
    assert texts(read(made, FIRST)) == []
    assert not door.heard


def test_shards_go_back_to_motos_own_afterwards() -> None:
    from moto.kinesis import models

    with our_shards():
        assert models.Stream is Stream
    assert models.Stream is Stream  # the fixture's context still holds
    assert issubclass(Shard, models.Shard)
