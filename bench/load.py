"""What every contender gets: the same trips, as Lambda's events."""

import json
from itertools import islice
from random import Random
from typing import Any

from windlass.deploy.measure import event_of
from windlass.produce.aggregate import carrier_bytes
from windlass.produce.dialects import DIALECTS
from windlass.produce.records import UserRecord
from windlass.produce.trips import trips

TRIP_BYTES = 422  # what a trip of the workshop's stream comes to, with its key and its envelope
RECORDS = 1_000
CARRIERS, TRIPS_PER_CARRIER = 50, 120


def payloads(count: int, dialect: str = "kpl") -> list[bytes]:
    """Trips as JSON, each filled up to TRIP_BYTES with a member that nobody declares."""
    rng = Random(1)
    written = (DIALECTS[dialect](trip, rng) for trip in trips(Random(2)))
    return [_filled(data) for data in islice(written, count)]


def _filled(data: bytes) -> bytes:
    gap = TRIP_BYTES - len(data) - len(b',"note":""')
    assert gap >= 0, data
    return data[:-1] + b',"note":"' + b"x" * gap + b'"}'


def plain() -> tuple[dict[str, Any], int]:
    """An event of RECORDS plain records, and how many trips it holds."""
    return event_of(payloads(RECORDS)), RECORDS


def texts() -> tuple[dict[str, Any], int]:
    """The same with every number written as a string, as the Flink producer writes them."""
    return event_of(payloads(RECORDS, "flink")), RECORDS


def aggregated() -> tuple[dict[str, Any], int]:
    """An event of KPL aggregates of about 51 kB, and how many trips it holds."""
    data = payloads(CARRIERS * TRIPS_PER_CARRIER)
    carriers = [
        carrier_bytes([UserRecord(f"id{start + n:07d}", each) for n, each in enumerate(data[start : start + 120])])
        for start in range(0, len(data), TRIPS_PER_CARRIER)
    ]
    return event_of(carriers), len(data)


def as_bytes(sample: dict[str, Any]) -> bytes:
    """The event as Lambda's runtime receives it."""
    return json.dumps(sample).encode()
