"""The same job done as users do it today, and the floor below which nothing in Python gets.

Each contender is a function of one event that does the work of one non-final call: every trip's passengers and count
per vendor, from Lambda's event to the state or totals.
"""

import base64
import contextlib
import json
import os
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from hashlib import md5
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pybase64
from aws_kinesis_agg.deaggregator import deaggregate_records

from windlass import Count, Mean, Range, Record, Sum, Windows
from windlass.core.aggregate import MAGIC, deaggregate
from windlass.handler import Seams
from windlass.quarantine import MemoryQuarantine
from windlass.shards import KnownShards
from windlass.sim.table import MemoryTable
from windlass.telemetry import PowertoolsTelemetry

Contender = Callable[[dict[str, Any]], Any]


class Trip(Record):
    """The taxi example's record."""

    vendorId: int
    passengerCount: Annotated[int, Range(0, 9)]


class LongTrip(Trip):
    """With numbers that binary fractions cannot hold."""

    gcDistance: float
    dropoffLatitude: Decimal


TOTALS: dict[str, Any] = {"passenger": Sum("passengerCount"), "trips": Count()}
EXACT_TOTALS = TOTALS | {"distance": Sum("gcDistance"), "latitude": Mean("dropoffLatitude")}


def _handler(record: type[Record] = Trip, totals: dict[str, Any] = TOTALS, *, coerce: bool = False) -> Any:
    """The taxi pipeline's handler, with Powertools writing to nowhere."""
    pipeline = Windows(
        record, key="vendorId", every=timedelta(seconds=30), totals=totals, table="kinesisAggs", coerce=coerce
    )
    with contextlib.redirect_stdout(Path(os.devnull).open("w")):
        telemetry = PowertoolsTelemetry("bench")
    seams = Seams(MemoryTable(pipeline.table_keys), MemoryQuarantine(), KnownShards(), telemetry)
    return pipeline.handler_on(lambda: seams)


def windlass() -> Contender:
    """The real handler, its logs and metrics included; the table is in memory, as no window closes here."""
    return _running(_handler())


def windlass_coerce() -> Contender:
    """As the taxi example declares it: numbers may be written as strings."""
    return _running(_handler(coerce=True))


def windlass_exact() -> Contender:
    """Sums of a float and of a Decimal beside the others, exact to the last digit."""
    return _running(_handler(LongTrip, EXACT_TOTALS))


def _running(handler: Any) -> Contender:
    nowhere = Path(os.devnull).open("w")  # noqa: SIM115

    def run(event: dict[str, Any]) -> Any:
        with contextlib.redirect_stdout(nowhere):
            return handler(event, None)

    return run


def windlass_runtime() -> Callable[[bytes], bytes]:
    """The same handler in our own runtime loop: an event's bytes in, the answer's bytes out."""
    from windlass.runtime import function_of

    nowhere = Path(os.devnull).open("w")  # noqa: SIM115
    function = function_of(_handler())

    def run(event: bytes) -> bytes:
        with contextlib.redirect_stdout(nowhere):
            return function(event, None)

    return run


def under_awslambdaric(contender: Contender) -> Callable[[bytes], bytes]:
    """A contender between the bytes of an event and of an answer, as Lambda's Python runtime reads and writes them."""
    from awslambdaric.lambda_runtime_marshaller import LambdaMarshaller

    marshaller = LambdaMarshaller()

    def run(event: bytes) -> bytes:
        answer: str = marshaller.marshal_response(contender(marshaller.unmarshal_request(event)))[0]
        return answer.encode()

    return run


def lab() -> Contender:
    """What the lab's function does per record: de-aggregate with aws-kinesis-agg, json, one sum."""

    def run(event: dict[str, Any]) -> Any:
        total, vendor = 0, None
        for record in deaggregate_records(event["Records"]):
            trip = json.loads(base64.b64decode(record["kinesis"]["data"]).decode("utf-8"))
            if "passengerCount" in trip:
                total += trip["passengerCount"]
                vendor = trip["vendorId"]
        return {"state": {"passengerCount": total, "vendorId": vendor}}

    return run


def lab_exact() -> Contender:
    """The lab's way with fractions summed as Decimals, as DynamoDB's Python library asks for them."""

    def run(event: dict[str, Any]) -> Any:
        passengers, distance, latitude = 0, Decimal(0), Decimal(0)
        for record in deaggregate_records(event["Records"]):
            text = base64.b64decode(record["kinesis"]["data"]).decode("utf-8")
            trip = json.loads(text, parse_float=Decimal)
            passengers += trip["passengerCount"]
            distance += trip["gcDistance"]
            latitude += trip["dropoffLatitude"]
        return {"state": [passengers, str(distance), str(latitude)]}

    return run


def powertools() -> Contender:
    """Powertools' batch processor with a pydantic model, totals per vendor in a dict. Reads no aggregates."""
    return _powertools(exact=False)


def powertools_exact() -> Contender:
    """The same with the two fractions, both as Decimals."""
    return _powertools(exact=True)


def _powertools(*, exact: bool) -> Contender:
    os.environ.setdefault("POWERTOOLS_DEV", "0")
    from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
    from pydantic import BaseModel, Field

    class PydanticTrip(BaseModel):
        vendorId: int
        passengerCount: int = Field(ge=0, le=9)

    class PydanticLongTrip(PydanticTrip):
        gcDistance: Decimal
        dropoffLatitude: Decimal

    model: Any = PydanticLongTrip if exact else PydanticTrip
    processor = BatchProcessor(event_type=EventType.KinesisDataStreams)
    totals: dict[int, list[Any]] = {}

    def handle(record: Any) -> None:
        trip = model.model_validate_json(record.kinesis.data_as_bytes())
        row = totals.setdefault(trip.vendorId, [0, 0, Decimal(0), Decimal(0)])
        row[0] += trip.passengerCount
        row[1] += 1
        if exact:
            row[2] += trip.gcDistance
            row[3] += trip.dropoffLatitude

    def run(event: dict[str, Any]) -> Any:
        process_partial_response(event=event, record_handler=handle, processor=processor, context=None)
        return dict(totals)

    return run


def floor() -> Contender:
    """Base64, MD5 and splitting for aggregates, and JSON into a struct: what nobody can leave out."""

    class FloorTrip(msgspec.Struct, gc=False):
        vendorId: int
        passengerCount: int

    decode = msgspec.json.Decoder(FloorTrip).decode

    def run(event: dict[str, Any]) -> Any:
        datas = [pybase64.b64decode(record["kinesis"]["data"], None, True) for record in event["Records"]]
        if datas[0][:4] == MAGIC:
            datas = [payload for data in datas for payload in deaggregate(data).payloads]  # type: ignore[union-attr]
        return [decode(data) for data in datas]

    return run


def digest_only() -> Contender:
    """MD5 over the aggregates alone: the largest part of the floor."""

    def run(event: dict[str, Any]) -> Any:
        datas = [pybase64.b64decode(record["kinesis"]["data"], None, True) for record in event["Records"]]
        return [md5(data[4:-16], usedforsecurity=False).digest() for data in datas]

    return run


def bytewax(event: dict[str, Any], repeat: int) -> tuple[Callable[[], None], int]:
    """A Bytewax flow over the same records: decode, key by vendor, fold tumbling windows. A run and its count."""
    from datetime import UTC, datetime

    import bytewax.operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.operators import windowing
    from bytewax.testing import TestingSink, TestingSource, run_main

    texts = [record["kinesis"]["data"] for record in event["Records"]] * repeat
    at = datetime(2020, 12, 9, 7, 4, 1, tzinfo=UTC)

    def decode(text: str) -> tuple[str, int]:
        trip = json.loads(base64.b64decode(text))
        return str(trip["vendorId"]), trip["passengerCount"]

    def folded(row: tuple[int, int], passengers: int) -> tuple[int, int]:
        return row[0] + passengers, row[1] + 1

    def merged(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
        return one[0] + other[0], one[1] + other[1]

    def run() -> None:
        out: list[Any] = []
        flow = Dataflow("trips")
        source = op.input("in", flow, TestingSource(texts, batch_size=1000))
        keyed = op.map("decode", source, decode)
        clock = windowing.EventClock(ts_getter=lambda _: at, wait_for_system_duration=timedelta(seconds=10))
        windower = windowing.TumblingWindower(align_to=at.replace(second=0), length=timedelta(seconds=30))
        windows = windowing.fold_window("fold", keyed, clock, windower, lambda: (0, 0), folded, merged)
        op.output("out", windows.down, TestingSink(out))
        run_main(flow)
        assert sum(row[1][1] for _, row in out) == len(texts), out

    return run, len(texts)
