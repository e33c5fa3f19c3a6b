"""The stream and the table, read with boto3 clients that are passed in.

Whatever AWS answers with an error is a CannotVerify of one line. The rights needed: kinesis:ListShards,
kinesis:GetShardIterator, kinesis:GetRecords, kinesis:DescribeStreamSummary, dynamodb:Scan.
"""

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from windlass.verify.check import StreamRecord
from windlass.verify.records import CannotVerify

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SLACK_MS = 5 * 60 * 1000
"""Arrival times may be out of order within a shard (GetRecords, Kinesis API Reference); by less than this, assumed."""


def read_stream(
    kinesis: Any, stream: str, *, now_ms: int, from_ms: int | None = None, to_ms: int | None = None
) -> Iterator[StreamRecord]:
    """Every record of every shard, closed ones too, in shard order; at least those in `[from_ms, to_ms)`.

    `stream` is a name or an ARN. Reading ends where the stream ended at `now_ms`, while producers go on.
    """
    end_ms = now_ms if to_ms is None else min(now_ms, to_ms + _SLACK_MS)
    with _said_plainly(f"stream {stream}"):
        for shard in _shards(kinesis, stream):
            yield from _read_shard(kinesis, stream, shard["ShardId"], from_ms, end_ms)


def shard_ranges(kinesis: Any, stream: str) -> dict[str, tuple[int, int]]:
    """The hash keys, both ends included, of every shard that has a parent: only there can the KPL have misjudged."""
    with _said_plainly(f"stream {stream}"):
        return {
            shard["ShardId"]: (
                int(shard["HashKeyRange"]["StartingHashKey"]),
                int(shard["HashKeyRange"]["EndingHashKey"]),
            )
            for shard in _shards(kinesis, stream)
            if shard.get("ParentShardId")
        }


def oldest_ms(kinesis: Any, stream: str, *, now_ms: int) -> int | None:
    """From when on the stream holds every record, or None when it holds all there ever were."""
    with _said_plainly(f"stream {stream}"):
        summary = kinesis.describe_stream_summary(**_named(stream))["StreamDescriptionSummary"]
    kept_from_ms = now_ms - int(summary["RetentionPeriodHours"]) * 3_600_000
    return kept_from_ms if _ms(summary["StreamCreationTimestamp"]) < kept_from_ms else None


def check_keys(dynamodb: Any, table: str, description: Mapping[str, Any]) -> None:
    """Raises CannotVerify where a table has other keys than the pipeline described, as far as it may be asked."""
    try:
        found = dynamodb.describe_table(TableName=table)["Table"]
    except (ClientError, BotoCoreError):
        return  # reading it says what is wrong, and needs no DescribeTable
    types = {part["AttributeName"]: part["AttributeType"] for part in found["AttributeDefinitions"]}
    has = [(part["AttributeName"], types[part["AttributeName"]]) for part in found["KeySchema"]]
    due = [(description["key_attribute"], description["key_type"])]
    due += [("windowStart", "S")] if description["layout"] == "history" else []
    if sorted(has) != sorted(due):
        words = [" and ".join(f"{name} ({kind})" for name, kind in keys) for keys in (due, has)]
        msg = f"table {table} should be keyed by {words[0]}, as the pipeline is declared; it is keyed by {words[1]}"
        raise CannotVerify(msg)


def read_table(dynamodb: Any, table: str) -> Iterator[dict[str, Any]]:
    """Every item of the table, consistently read. Numbers are Decimal, strings str, the rest as DynamoDB writes it."""
    with _said_plainly(f"table {table}"):
        pages = dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
        for page in pages:
            for item in page["Items"]:
                yield {name: _value(value) for name, value in item.items()}


def _shards(kinesis: Any, stream: str) -> Iterator[dict[str, Any]]:
    # Not the paginator: it repeats the stream's name beside NextToken, which ListShards refuses.
    answer = kinesis.list_shards(**_named(stream))
    yield from answer["Shards"]
    while answer.get("NextToken"):
        answer = kinesis.list_shards(NextToken=answer["NextToken"])
        yield from answer["Shards"]


def _read_shard(kinesis: Any, stream: str, shard: str, from_ms: int | None, end_ms: int) -> Iterator[StreamRecord]:
    start: dict[str, Any] = {"ShardIteratorType": "TRIM_HORIZON"}
    if from_ms is not None:
        start = {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": max(0, from_ms - _SLACK_MS) / 1000}
    by_arn = _named(stream) if stream.startswith("arn:") else {}  # AWS needs it for streams of other accounts
    iterator = kinesis.get_shard_iterator(**_named(stream), ShardId=shard, **start)["ShardIterator"]
    while iterator:
        answer = kinesis.get_records(ShardIterator=iterator, Limit=10_000, **by_arn)
        iterator = answer.get("NextShardIterator")
        arrival_ms = 0
        for record in answer["Records"]:
            arrival_ms = _ms(record["ApproximateArrivalTimestamp"])
            yield shard, record["SequenceNumber"], arrival_ms, record["Data"]
        # An empty answer alone says nothing: AWS gives them in the middle of a shard, too.
        if arrival_ms >= end_ms or not (answer["Records"] or answer.get("MillisBehindLatest")):
            return


def _named(stream: str) -> dict[str, str]:
    return {"StreamARN": stream} if stream.startswith("arn:") else {"StreamName": stream}


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _value(value: Mapping[str, Any]) -> Any:
    if "N" in value:
        return Decimal(value["N"])
    return value["S"] if "S" in value else dict(value)


@contextlib.contextmanager
def _said_plainly(what: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        message = " ".join(str(error.response.get("Error", {}).get("Message", "")).split())[:300]
        advice = _ADVICE.get(code, "")
        msg = f"{what} cannot be read: {code}: {message}{advice}"
        raise CannotVerify(msg) from None
    except BotoCoreError as error:
        msg = f"{what} cannot be read: {' '.join(str(error).split())[:300]}"
        raise CannotVerify(msg) from None


_HERE = "; check its name, the region and the endpoint"
_RIGHTS = (
    "; allow kinesis:ListShards, GetShardIterator, GetRecords and DescribeStreamSummary, "
    "and dynamodb:Scan, to whoever verifies"
)
_ADVICE = {
    "ResourceNotFoundException": _HERE,
    "AccessDeniedException": _RIGHTS,
    "UnrecognizedClientException": "; check the credentials",
    "ExpiredTokenException": "; renew the credentials",
}
