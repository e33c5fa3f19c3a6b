"""Events and aggregates made by hand, for tests."""

import base64
import json
from collections.abc import Iterable, Sequence
from hashlib import md5
from typing import Any

from windlass.produce.aggregate import carrier_bytes
from windlass.produce.records import UserRecord

SHARD = "shardId-000000000000"
STREAM = "arn:aws:kinesis:us-east-1:123456789012:stream/input-stream"
START_S = 1_607_497_440  # 2020-12-09T07:04:00Z
START, END_30 = "2020-12-09T07:04:00Z", "2020-12-09T07:04:30Z"
TOTALS_TABLE: dict[str, Any] = {
    "TableName": "totals",
    "AttributeDefinitions": [
        {"AttributeName": "vendorId", "AttributeType": "N"},
        {"AttributeName": "windowStart", "AttributeType": "S"},
    ],
    "KeySchema": [
        {"AttributeName": "vendorId", "KeyType": "HASH"},
        {"AttributeName": "windowStart", "KeyType": "RANGE"},
    ],
    "BillingMode": "PAY_PER_REQUEST",
}
"""What CreateTable takes for the taxi pipeline's totals, layout `history`."""


def sequence(number: int) -> str:
    """A sequence number as Kinesis writes them: 56 digits."""
    return f"{4959 * 10**52 + number}"


def hash_key(partition_key: bytes) -> int:
    """Where Kinesis places a partition key."""
    return int(md5(partition_key).hexdigest(), 16)


def kinesis_record(
    number: int, data: bytes, *, shard: str = SHARD, arrival_s: float = START_S + 1.5, key: str = "k"
) -> dict[str, Any]:
    """One element of an event's Records."""
    return {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": key,
            "sequenceNumber": sequence(number),
            "data": base64.b64encode(data).decode(),
            "approximateArrivalTimestamp": arrival_s,
        },
        "eventSource": "aws:kinesis",
        "eventVersion": "1.0",
        "eventID": f"{shard}:{sequence(number)}",
        "eventName": "aws:kinesis:record",
        "invokeIdentityArn": "arn:aws:iam::123456789012:role/KinesisLambdaConsumerRole",
        "awsRegion": "us-east-1",
        "eventSourceARN": STREAM,
    }


def event(
    records: Sequence[dict[str, Any]] = (),
    *,
    state: Any = None,
    final: bool = False,
    early: bool = False,
    shard: str = SHARD,
    start: str = START,
    end: str = END_30,
    stream: str = STREAM,
) -> dict[str, Any]:
    """A windowed event."""
    return {
        "Records": list(records),
        "window": {"start": start, "end": end},
        "state": {} if state is None else state,
        "shardId": shard,
        "eventSourceARN": stream,
        "isFinalInvokeForWindow": final,
        "isWindowTerminatedEarly": early,
    }


def records(payloads: Iterable[bytes], *, first: int = 1, shard: str = SHARD) -> list[dict[str, Any]]:
    """Kinesis records with consecutive sequence numbers."""
    return [kinesis_record(number, data, shard=shard) for number, data in enumerate(payloads, first)]


def trip(vendor: Any = 1, passengers: Any = 2, **more: Any) -> bytes:
    """A trip as JSON."""
    return json.dumps({"vendorId": vendor, "passengerCount": passengers, **more}).encode()


def aggregate(
    payloads: Sequence[bytes], keys: Sequence[str] | None = None, hashes: Sequence[int] | None = None
) -> bytes:
    """A KPL aggregate of these payloads."""
    keys = keys or [f"id{number:07d}" for number in range(len(payloads))]
    return carrier_bytes(
        [
            UserRecord(key, data, hashes[number] if hashes else None)
            for number, (key, data) in enumerate(zip(keys, payloads, strict=True))
        ]
    )
