"""Seeded taxi trips whose figures are those of New York's yellow cabs in the first half of 2016.

Rules of this file:

- A trip is drawn from one `random.Random` and nothing else: the same seed gives the same trips, for ever.
- Distance and duration come from one pair of correlated normals (r = 0.81). Distance reads its quantiles from
  a table; duration is a log-normal with one spread below its median and another above it, times the hour's
  traffic. A few meters are left on until the next day: the trips of about 24 hours, nearly all of vendor 2.
- Places follow from the distance: the airports lie at the far end of long trips, all else is Manhattan and
  what surrounds it; the drop-off lies at the drawn great-circle distance from the pickup.
- Ids do not repeat within `IDS` trips: they walk a full cycle over the id range.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate, pairwise
from math import asin, cos, exp, gcd, hypot, log, pi, radians, sin, sqrt
from random import Random

import msgspec

KM_PER_MILE = 1.609344
EARTH_KM = 6371.0088
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
MONDAY_MS = 1_451_865_600_000
"""2016-01-04T00:00:00, the first Monday of the trips' half year; wall-clock times of New York, written as UTC."""
WEEKS = 26

FIRST_ID, LAST_ID = 122, 3_999_983
IDS = LAST_ID - FIRST_ID + 1


class Trip(msgspec.Struct, frozen=True):
    """One taxi trip. Times are milliseconds of the local wall clock, longitudes and latitudes degrees."""

    id: str
    vendor: int
    passengers: int
    pickup_ms: int
    dropoff_ms: int
    pickup_longitude: float
    pickup_latitude: float
    dropoff_longitude: float
    dropoff_latitude: float
    held: bool
    """Kept in the car's memory before it was sent: the store-and-forward flag."""
    miles: float
    """Great-circle distance."""
    trip_s: int
    road_m: int | None
    """The road's length by a route planner; None where the planner gave no answer."""
    road_s: int | None


# What is drawn by weight: index i of a table is the value i (passengers, hour, weekday from Monday).
VENDOR_2_SHARE = 0.53495
PASSENGERS = {
    1: (0.0041, 79.7, 14.2, 3.5, 2.5, 0.07, 0.02, 0.0001, 0.0002, 0.0001),
    2: (0.0041, 61.4, 15.2, 4.8, 2.2, 10.3, 6.1, 0.0001, 0.0002, 0.0001),
}
PICKUPS_BY_HOUR = (
    53248, 38571, 27972, 20895, 15792, 15002, 33248, 55600, 67053, 67663, 65437, 68476,
    71873, 71473, 74292, 71811, 64313, 76483, 90600, 90308, 84072, 84185, 80492, 69785,
)  # fmt: skip
PICKUPS_BY_WEEKDAY = (187418, 202749, 210136, 218574, 223533, 220868, 195366)
HELD_SHARE = {1: 0.01186, 2: 0.0}

# Distance: kilometres at standard-normal deviates; log-linear between the rows and beyond the first.
NO_DISTANCE_SHARE = 0.004043
KM_AT = (
    (-0.67449, 1.232), (0.0, 2.094), (0.67449, 3.875), (1.28155, 7.631),
    (1.64485, 11.019), (2.32635, 20.788), (3.09023, 24.767),
)  # fmt: skip
KM_MAX = 60.0

# Duration: seconds; the spreads are those of ln s below and above the median.
MEDIAN_S = 662.0
SPREAD_BELOW, SPREAD_ABOVE = 0.75, 0.69
DISTANCE_AND_DURATION_R = 0.81
TRAFFIC_BY_HOUR = (
    0.89, 0.89, 0.88, 0.86, 0.83, 0.73, 0.75, 0.93, 1.09, 1.09, 1.05, 1.05,
    1.05, 1.03, 1.08, 1.10, 1.07, 1.11, 1.11, 1.04, 0.97, 0.93, 0.92, 0.89,
)  # fmt: skip
METER_LEFT_ON = {1: 0.00010, 2: 0.00272}
METER_LEFT_ON_S = (80_000, 86_400)

# The route planner: ratios of road to great circle, and of its time to the trip's; (median, spread of ln).
NO_ROUTE_SHARE = 0.014
ROAD_RATIO = (1.35, 0.19)
ROAD_TIME_RATIO = (1.21, 0.34)

# Places: (longitude, latitude). Manhattan's streets run 29 degrees east of north.
MIDTOWN = (-73.981, 40.755)
JFK, LAGUARDIA = (-73.7835, 40.6455), (-73.8705, 40.7715)
JFK_FROM_KM, LAGUARDIA_FROM_KM = 13.5, 8.0
JFK_SHARE, LAGUARDIA_SHARE = 0.78, 0.43
UPTOWN = radians(29)
ISLAND = (-74.02, 40.700, -73.925, 40.825)
KM_PER_DEGREE = EARTH_KM * pi / 180
KM_PER_DEGREE_EAST = KM_PER_DEGREE * cos(radians(40.75))


def trips(rng: Random) -> Iterator[Trip]:
    """Trips without end, drawn from `rng`."""
    first, stride = rng.randrange(IDS), _stride(rng)
    number = 0
    while True:
        yield _trip(f"id{FIRST_ID + (first + number * stride) % IDS:07d}", rng)
        number += 1


def great_circle_miles(from_longitude: float, from_latitude: float, to_longitude: float, to_latitude: float) -> float:
    """The distance over the sphere between two points given in degrees (haversine)."""
    south, north = radians(from_latitude), radians(to_latitude)
    east = radians(to_longitude - from_longitude)
    h = sin((north - south) / 2) ** 2 + cos(south) * cos(north) * sin(east / 2) ** 2
    return 2 * EARTH_KM * asin(sqrt(h)) / KM_PER_MILE


def _trip(trip_id: str, rng: Random) -> Trip:
    vendor = 2 if rng.random() < VENDOR_2_SHARE else 1
    pickup_ms, hour = _pickup(rng)
    far = rng.gauss(0.0, 1.0)
    km = 0.0 if rng.random() < NO_DISTANCE_SHARE else _km(far)
    driven_s = _driven_s(far, hour, rng)
    road_m, road_s = _route(km, driven_s, rng)
    trip_s = _metered_s(driven_s, vendor, rng)
    (west, south), (east, north) = _places(km, rng)
    return Trip(
        trip_id,
        vendor,
        bisect_right(_PASSENGERS[vendor], rng.random() * _PASSENGERS[vendor][-1]),
        pickup_ms,
        pickup_ms + trip_s * 1000,
        west,
        south,
        east,
        north,
        rng.random() < HELD_SHARE[vendor],
        round(km / KM_PER_MILE, 6),
        trip_s,
        road_m,
        road_s,
    )


def _pickup(rng: Random) -> tuple[int, int]:
    day = bisect_right(_WEEKDAYS, rng.random() * _WEEKDAYS[-1])
    hour = bisect_right(_HOURS, rng.random() * _HOURS[-1])
    week, second = int(rng.random() * WEEKS), int(rng.random() * 3600)
    return MONDAY_MS + (week * 7 + day) * DAY_MS + hour * HOUR_MS + second * 1000, hour


def _km(deviate: float) -> float:
    """The distance at a standard-normal deviate, from the table of quantiles."""
    upper = min(max(bisect_left(_KM_DEVIATES, deviate), 1), len(_KM_DEVIATES) - 1)
    start, slope, at = _KM_LINES[upper - 1]
    return min(exp(start + slope * (deviate - at)), KM_MAX)


def _driven_s(far: float, hour: int, rng: Random) -> float:
    deviate = DISTANCE_AND_DURATION_R * far + _UNEXPLAINED * rng.gauss(0.0, 1.0)
    spread = SPREAD_BELOW if deviate < 0 else SPREAD_ABOVE
    return exp(_LN_MEDIAN_S + spread * deviate) * TRAFFIC_BY_HOUR[hour]


def _metered_s(driven_s: float, vendor: int, rng: Random) -> int:
    if rng.random() < METER_LEFT_ON[vendor]:
        return rng.randrange(*METER_LEFT_ON_S)
    return max(1, round(driven_s))


def _route(km: float, driven_s: float, rng: Random) -> tuple[int | None, int | None]:
    if rng.random() < NO_ROUTE_SHARE:
        return None, None
    longer = max(1.0, ROAD_RATIO[0] * exp(ROAD_RATIO[1] * rng.gauss(0.0, 1.0)))
    slower = ROAD_TIME_RATIO[0] * exp(ROAD_TIME_RATIO[1] * rng.gauss(0.0, 1.0))
    return round(km * 1000 * longer), round(driven_s * slower) if km else 0


def _places(km: float, rng: Random) -> tuple[tuple[float, float], tuple[float, float]]:
    """Pickup and drop-off, `km` apart, each as (longitude, latitude) with five decimals: about a metre."""
    start, heading = _start(km, rng)
    end = _toward(start, km, heading)
    return (round(start[0], 5), round(start[1], 5)), (round(end[0], 5), round(end[1], 5))


def _start(km: float, rng: Random) -> tuple[tuple[float, float], float]:
    """Where the trip begins, and the bearing it takes in radians from north."""
    if km >= LAGUARDIA_FROM_KM:
        airport, share = (JFK, JFK_SHARE) if km >= JFK_FROM_KM else (LAGUARDIA, LAGUARDIA_SHARE)
        if rng.random() < share:
            near = (airport[0] + rng.gauss(0.0, 0.003), airport[1] + rng.gauss(0.0, 0.002))
            return near, _bearing(near, _in_manhattan(rng))
        return (start := _in_manhattan(rng)), _bearing(start, airport) + rng.gauss(0.0, 0.5)
    start = _in_manhattan(rng)
    heading = UPTOWN + rng.gauss(0.0, 0.5) + (pi if rng.random() < 0.5 else 0.0)
    if not _on_the_island(_toward(start, km, heading)):
        heading += pi
    return start, heading


def _in_manhattan(rng: Random) -> tuple[float, float]:
    """A point along the island's axis: some kilometres up or down it, less across."""
    along, across = rng.gauss(0.0, 2.9), rng.gauss(0.0, 0.75)
    east, north = (
        along * sin(UPTOWN) + across * cos(UPTOWN),
        along * cos(UPTOWN) - across * sin(UPTOWN),
    )
    return MIDTOWN[0] + east / KM_PER_DEGREE_EAST, MIDTOWN[1] + north / KM_PER_DEGREE


def _on_the_island(place: tuple[float, float]) -> bool:
    west, south, east, north = ISLAND
    return west <= place[0] <= east and south <= place[1] <= north


def _bearing(start: tuple[float, float], end: tuple[float, float]) -> float:
    east, north = (end[0] - start[0]) * KM_PER_DEGREE_EAST, (end[1] - start[1]) * KM_PER_DEGREE
    length = hypot(east, north)
    return (asin(east / length) if north >= 0 else pi - asin(east / length)) if length else 0.0


def _toward(start: tuple[float, float], km: float, heading: float) -> tuple[float, float]:
    """The point `km` from `start`; on these few kilometres the city is flat to within a thousandth."""
    north = start[1] + km * cos(heading) / KM_PER_DEGREE
    shrink = KM_PER_DEGREE * cos(radians((start[1] + north) / 2))
    return start[0] + km * sin(heading) / shrink, north


def _stride(rng: Random) -> int:
    """A step that visits every id once before it comes back to the first."""
    while gcd(stride := rng.randrange(IDS // 3, IDS), IDS) != 1:
        pass
    return stride


_PASSENGERS = {vendor: tuple(accumulate(weights)) for vendor, weights in PASSENGERS.items()}
_HOURS = tuple(accumulate(PICKUPS_BY_HOUR))
_WEEKDAYS = tuple(accumulate(PICKUPS_BY_WEEKDAY))
_KM_DEVIATES = tuple(deviate for deviate, _ in KM_AT)
_KM_LINES = tuple(
    (log(km), (log(next_km) - log(km)) / (next_at - at), at) for (at, km), (next_at, next_km) in pairwise(KM_AT)
)
_UNEXPLAINED = sqrt(1 - DISTANCE_AND_DURATION_R**2)
_LN_MEDIAN_S = log(MEDIAN_S) - sum(
    weight * log(traffic) for weight, traffic in zip(PICKUPS_BY_HOUR, TRAFFIC_BY_HOUR, strict=True)
) / sum(PICKUPS_BY_HOUR)
"""The hours' traffic has no share in the median of the day."""
