"""The three ways in which the lab's producers write one and the same trip as JSON.

Rules, as a table; what a dialect does wrong is kept, as the consumer has to live with it:

| dialect | written by | numbers | coordinates | flag | dates | no route known |
|---|---|---|---|---|---|---|
| kpl | the Java replay on the KPL | numbers | digits of a 32-bit float | "N" "Y" | to the second | 0 |
| sdk | the boto3 script | numbers, miles whole | strings, some after a blank | 0 1 | microseconds | whole miles |
| flink | the Flink SQL notebook | strings | strings, two of them swapped | "N" "Y" | 1/31/16 9:05 | "" |

In the Flink dialect `dropoffLongitude` holds the pickup's latitude and `pickupLatitude` the drop-off's
longitude: the notebook's table names its columns in another order than its file has them.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from typing import Final

import msgspec

from windlass.produce.trips import Trip

Dialect = Callable[[Trip, Random], bytes]
"""Writes a trip; what is left to chance in a dialect is drawn from the `Random`."""

BEFORE_A_COORDINATE = ("", "", "", "", " ", "\t")
"""What stands before a coordinate in the script's list of places."""

_json = msgspec.json.Encoder().encode


class _Kpl(msgspec.Struct, frozen=True):
    """Member order is that of a Java hash map."""

    passengerCount: int
    vendorId: int
    storeAndFwdFlag: str
    googleDistance: int
    dropoffLatitude: float
    dropoffLongitude: float
    dropoffDate: str
    pickupLongitude: float
    pickupDate: str
    id: str
    tripDuration: int
    googleDuration: int
    pickupLatitude: float
    gcDistance: float


class _Sdk(msgspec.Struct, frozen=True):
    id: str
    vendorId: int
    pickupDate: str
    dropoffDate: str
    passengerCount: int
    pickupLongitude: str
    pickupLatitude: str
    dropoffLongitude: str
    dropoffLatitude: str
    storeAndFwdFlag: int
    gcDistance: int
    tripDuration: int
    googleDistance: int
    googleDuration: int


class _Flink(msgspec.Struct, frozen=True):
    id: str
    vendorId: str
    pickupDate: str
    dropoffDate: str
    passengerCount: str
    pickupLongitude: str
    dropoffLongitude: str
    pickupLatitude: str
    dropoffLatitude: str
    storeAndFwdFlag: str
    gcDistance: str
    tripDuration: str
    googleDistance: str
    googleDuration: str


def kpl(trip: Trip, _: Random) -> bytes:
    """The trip with typed numbers and dates without a zone."""
    return _json(
        _Kpl(
            passengerCount=trip.passengers,
            vendorId=trip.vendor,
            storeAndFwdFlag="Y" if trip.held else "N",
            googleDistance=trip.road_m or 0,
            dropoffLatitude=round(trip.dropoff_latitude, 5),
            dropoffLongitude=round(trip.dropoff_longitude, 5),
            dropoffDate=_time(trip.dropoff_ms).isoformat(timespec="seconds"),
            pickupLongitude=round(trip.pickup_longitude, 5),
            pickupDate=_time(trip.pickup_ms).isoformat(timespec="seconds"),
            id=trip.id,
            tripDuration=trip.trip_s,
            googleDuration=trip.road_s or 0,
            pickupLatitude=round(trip.pickup_latitude, 5),
            gcDistance=round(trip.miles, 5),
        )
    )


def sdk(trip: Trip, rng: Random) -> bytes:
    """The trip as the script writes it: coordinates as loose strings, distances as whole miles."""
    whole_miles = max(1, round(trip.miles))
    return _json(
        _Sdk(
            id=trip.id,
            vendorId=trip.vendor,
            pickupDate=_time(trip.pickup_ms, rng).isoformat(timespec="microseconds"),
            dropoffDate=_time(trip.dropoff_ms, rng).isoformat(timespec="microseconds"),
            passengerCount=trip.passengers,
            pickupLongitude=_loose(trip.pickup_longitude, rng),
            pickupLatitude=_loose(trip.pickup_latitude, rng),
            dropoffLongitude=_loose(trip.dropoff_longitude, rng),
            dropoffLatitude=_loose(trip.dropoff_latitude, rng),
            storeAndFwdFlag=int(trip.held),
            gcDistance=whole_miles,
            tripDuration=trip.trip_s,
            googleDistance=whole_miles,
            googleDuration=trip.trip_s,
        )
    )


def flink(trip: Trip, _: Random) -> bytes:
    """The trip with every value a string, and two coordinates in each other's place."""
    return _json(
        _Flink(
            id=trip.id,
            vendorId=str(trip.vendor),
            pickupDate=_short(trip.pickup_ms),
            dropoffDate=_short(trip.dropoff_ms),
            passengerCount=str(trip.passengers),
            pickupLongitude=str(trip.pickup_longitude),
            dropoffLongitude=str(trip.pickup_latitude),
            pickupLatitude=str(trip.dropoff_longitude),
            dropoffLatitude=str(trip.dropoff_latitude),
            storeAndFwdFlag="Y" if trip.held else "N",
            gcDistance=str(trip.miles),
            tripDuration=str(trip.trip_s),
            googleDistance="" if trip.road_m is None else str(trip.road_m),
            googleDuration="" if trip.road_s is None else str(trip.road_s),
        )
    )


def mixed(trip: Trip, rng: Random) -> bytes:
    """The trip in one of the three dialects, each as likely."""
    return _ALONE[int(rng.random() * len(_ALONE))](trip, rng)


_ALONE: Final = (kpl, sdk, flink)
DIALECTS: Final[dict[str, Dialect]] = {"kpl": kpl, "sdk": sdk, "flink": flink, "mixed": mixed}


def _time(at_ms: int, rng: Random | None = None) -> datetime:
    """The wall-clock time; with an `rng` also the microseconds that a script's `now` would have."""
    at = datetime.fromtimestamp(at_ms // 1000, UTC).replace(tzinfo=None)
    return at if rng is None else at.replace(microsecond=int(rng.random() * 1_000_000))


def _short(at_ms: int) -> str:
    at = _time(at_ms)
    return f"{at.month}/{at.day}/{at.year % 100:02d} {at.hour}:{at.minute:02d}"


def _loose(degrees: float, rng: Random) -> str:
    return BEFORE_A_COORDINATE[int(rng.random() * len(BEFORE_A_COORDINATE))] + str(degrees)
