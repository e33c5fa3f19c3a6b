"""This machine's own rate of records per core: real events through a real handler, table and quarantine in memory.

The figure to put into an estimate where no better one is known. Lambda's cores differ; arm64's are of this order.
"""

import base64
import contextlib
import io
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from windlass import Count, Record, Sum, Windows
from windlass.core.contribution import Contribution
from windlass.handler import Seams
from windlass.produce.aggregate import carrier_bytes
from windlass.produce.records import UserRecord
from windlass.quarantine import MemoryQuarantine
from windlass.runtime import function_of
from windlass.shards import KnownShards
from windlass.table import Merged, TableKeys
from windlass.telemetry import PowertoolsTelemetry

RECORDS = 2000
ROUNDS = 12


class Sample(Record):
    """Two numbers in as many bytes as asked for."""

    k: int
    v: int


class _NoTable:
    """Takes everything: no window ends here."""

    def __init__(self, keys: TableKeys) -> None:
        self.keys = keys

    def check(self) -> None:
        return

    def merge(self, contribution: Contribution) -> Merged:  # noqa: ARG002
        return Merged.APPLIED

    def put(self, items: object) -> dict[int, Exception]:  # noqa: ARG002
        return {}

    def items(self) -> object:
        return iter(())


def core_records_s(record_bytes: int, per_aggregate: int, clock: Callable[[], float]) -> float:
    """Records a second, the best of several rounds. `clock` gives seconds."""
    pipeline = Windows(Sample, key="k", every=timedelta(seconds=30), totals={"v": Sum("v"), "n": Count()}, table="none")
    event = _event(record_bytes, per_aggregate)
    best = float("inf")
    with contextlib.redirect_stdout(io.StringIO()):
        seams = Seams(
            _NoTable(pipeline.table_keys),  # type: ignore[arg-type]
            MemoryQuarantine(),
            KnownShards(),
            PowertoolsTelemetry("measure"),
        )
        call = function_of(pipeline.handler_on(lambda: seams))
        for _ in range(ROUNDS):
            begun = clock()
            call(event, None)
            best = min(best, clock() - begun)
    return RECORDS / best


def _event(record_bytes: int, per_aggregate: int) -> bytes:
    data = [_record(number, record_bytes) for number in range(RECORDS)]
    if per_aggregate > 1:
        groups = [data[start : start + per_aggregate] for start in range(0, RECORDS, per_aggregate)]
        data = [carrier_bytes([UserRecord("k", each, None) for each in group]) for group in groups]
    return json.dumps(event_of(data)).encode()


def event_of(data: list[bytes]) -> dict[str, Any]:
    """Kinesis records with these bytes as one windowed event of Lambda's, not the window's last."""
    return {
        "Records": [_framed(number, each) for number, each in enumerate(data)],
        "window": {"start": "2020-12-09T07:04:00Z", "end": "2020-12-09T07:04:30Z"},
        "state": {},
        "shardId": "shardId-000000000000",
        "eventSourceARN": "arn:aws:kinesis:us-east-1:123456789012:stream/input-stream",
        "isFinalInvokeForWindow": False,
        "isWindowTerminatedEarly": False,
    }


def _record(number: int, record_bytes: int) -> bytes:
    bare = json.dumps({"k": number % 2, "v": number % 7, "note": ""})
    return (bare[:-2] + "x" * max(0, record_bytes - len(bare)) + '"}').encode()


def _framed(number: int, data: bytes) -> dict[str, Any]:
    sequence = str(4959 * 10**52 + number)
    return {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": f"id{number:07d}",
            "sequenceNumber": sequence,
            "data": base64.b64encode(data).decode(),
            "approximateArrivalTimestamp": 1_607_497_441.5,
        },
        "eventSource": "aws:kinesis",
        "eventVersion": "1.0",
        "eventID": f"shardId-000000000000:{sequence}",
        "eventName": "aws:kinesis:record",
        "invokeIdentityArn": "arn:aws:iam::123456789012:role/KinesisLambdaConsumerRole",
        "awsRegion": "us-east-1",
        "eventSourceARN": "arn:aws:kinesis:us-east-1:123456789012:stream/input-stream",
    }
