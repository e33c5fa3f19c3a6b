"""Hash ranges of shards: asked for once, and again for a shard that was not there."""

import pytest

from tests.builders import STREAM
from windlass.core.aggregate import HashRange
from windlass.shards import KinesisShards, ShardUnknown


def shard(name, low, high, parent=None):
    listed = {"ShardId": name, "HashKeyRange": {"StartingHashKey": str(low), "EndingHashKey": str(high)}}
    return listed | ({"ParentShardId": parent} if parent else {})


class Kinesis:
    """ListShards, two shards a page, and how often it was called."""

    def __init__(self, shards):
        self.shards, self.calls = shards, []

    def list_shards(self, **request):
        self.calls.append(request)
        assert not ("NextToken" in request and "StreamARN" in request)
        start = int(request.get("NextToken", 0))
        more = {"NextToken": str(start + 2)} if start + 2 < len(self.shards) else {}
        return {"Shards": self.shards[start : start + 2]} | more


def test_a_shard_with_a_parent_has_a_range_to_check_and_one_without_has_none():
    shards = KinesisShards(lambda: Kinesis([shard("s-0", 0, 9), shard("s-1", 0, 4, "s-0"), shard("s-2", 5, 9, "s-0")]))

    assert shards.within(STREAM, "s-0") is None
    assert shards.within(STREAM, "s-2") == HashRange(5, 9)


def test_the_shards_are_listed_once_and_again_for_one_that_is_new():
    kinesis = Kinesis([shard("s-0", 0, 9)])
    shards = KinesisShards(lambda: kinesis)
    for _ in range(3):
        shards.within(STREAM, "s-0")
    assert len(kinesis.calls) == 1

    kinesis.shards.append(shard("s-1", 0, 4, "s-0"))

    assert shards.within(STREAM, "s-1") == HashRange(0, 4)
    assert len(kinesis.calls) == 2


def test_an_event_of_an_enhanced_fan_out_consumer_asks_for_its_streams_shards():
    kinesis = Kinesis([shard("s-1", 0, 4, "s-0")])

    assert KinesisShards(lambda: kinesis).within(f"{STREAM}/consumer/fast:1700000000", "s-1") == HashRange(0, 4)
    assert kinesis.calls == [{"StreamARN": STREAM}]


def test_an_unknown_shard_and_a_refused_listing_say_what_to_do():
    with pytest.raises(ShardUnknown, match="does not name s-9"):
        KinesisShards(lambda: Kinesis([])).within(STREAM, "s-9")
    with pytest.raises(ShardUnknown, match=r'kinesis:ListShards .* or declare aggregates="keep_all"'):
        KinesisShards(lambda: None).within(STREAM, "s-9")
