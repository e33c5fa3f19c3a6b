"""The hash ranges of shards, which tell whether a record of a KPL aggregate belongs where it is.

The KPL aggregates by the shard that it predicts. After a reshard it predicts wrongly for a while, sees where its
records went, and sends the outsiders again (amazon-kinesis-producer, since 0.15.11). So the insiders of such a carrier
count where they are, and the outsiders count where they are sent again. A shard without a parent is as old as the
stream: no map of the KPL can be older, so nothing in it needs the check.
"""

from collections.abc import Callable
from typing import Any, Protocol

from windlass.core.aggregate import HashRange


class ShardUnknown(RuntimeError):
    """The shard's range could not be found out. The call fails and Lambda sends the batch again."""


class Shards(Protocol):
    """The seam to ListShards."""

    def within(self, stream_arn: str, shard: str) -> HashRange | None:
        """The hash keys that aggregates in this shard may carry, or None where there is nothing to check."""


class KinesisShards:
    """ListShards, asked once per stream and again for a shard that it did not name then.

    Closed shards keep their ranges, and ListShards goes on naming them while they hold records. Where the event source
    is an enhanced fan-out consumer the event names that (stream ARN/consumer/NAME:CREATED), which ListShards refuses:
    the stream's own ARN is its first part ("RegisterStreamConsumer", Kinesis API Reference).
    """

    def __init__(self, make_client: Callable[[], Any]) -> None:
        self._make_client = make_client  # costly, and most functions never need it
        self._ranges: dict[tuple[str, str], HashRange | None] = {}

    def within(self, stream_arn: str, shard: str) -> HashRange | None:
        """Needs the right kinesis:ListShards. Raises ShardUnknown."""
        stream_arn = stream_arn.partition("/consumer/")[0]
        if (stream_arn, shard) not in self._ranges:
            self._list(stream_arn)
        try:
            return self._ranges[stream_arn, shard]
        except KeyError:
            msg = f"ListShards of {stream_arn} does not name {shard}: is the event from another stream or account?"
            raise ShardUnknown(msg) from None

    def _list(self, stream_arn: str) -> None:
        try:
            shards = self._pages(stream_arn)
        except Exception as error:
            msg = (
                f"ListShards of {stream_arn} failed ({error}); KPL aggregates need the shards' ranges. Allow "
                'kinesis:ListShards to the function\'s role, or declare aggregates="keep_all"'
            )
            raise ShardUnknown(msg) from error
        for shard in shards:
            ends = shard["HashKeyRange"]
            within = HashRange(int(ends["StartingHashKey"]), int(ends["EndingHashKey"]))
            self._ranges[stream_arn, shard["ShardId"]] = within if shard.get("ParentShardId") else None

    def _pages(self, stream_arn: str) -> list[dict[str, Any]]:
        # By hand: ListShards refuses a stream beside NextToken, which is what boto3's paginator sends.
        client = self._make_client()
        page = client.list_shards(StreamARN=stream_arn)
        shards: list[dict[str, Any]] = page["Shards"]
        while page.get("NextToken"):
            page = client.list_shards(NextToken=page["NextToken"])
            shards += page["Shards"]
        return shards


class KnownShards:
    """Ranges given beforehand: for tests and the simulator. A shard that is not named needs no check."""

    def __init__(self, ranges: dict[str, HashRange] | None = None) -> None:
        self._ranges = ranges or {}

    def within(self, stream_arn: str, shard: str) -> HashRange | None:  # noqa: ARG002 - one stream is all there is
        """The range given, or None."""
        return self._ranges.get(shard)
