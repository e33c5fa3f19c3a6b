"""Drawn trips have the figures of New York's, and are the same for the same seed."""

from bisect import bisect_left
from collections import Counter
from datetime import UTC, datetime
from itertools import islice
from random import Random

import pytest

from windlass.produce.trips import IDS, Trip, great_circle_miles, trips

DRAWN = 100_000
KM_PER_MILE = 1.609344

# The figures as they were published, written down here a second time: per cent, trips, seconds, kilometres.
VENDOR = {1: 46.505, 2: 53.495}
PASSENGERS = {
    1: {1: 79.7, 2: 14.2, 3: 3.5, 4: 2.5, 5: 0.07, 6: 0.02},
    2: {1: 61.4, 2: 15.2, 3: 4.8, 4: 2.2, 5: 10.3, 6: 6.1},
}
HOUR = [53248, 38571, 27972, 20895, 15792, 15002, 33248, 55600, 67053, 67663, 65437, 68476]
HOUR += [71873, 71473, 74292, 71811, 64313, 76483, 90600, 90308, 84072, 84185, 80492, 69785]
DURATION_S = {0.25: 397, 0.50: 662, 0.75: 1075, 0.95: 2104}
DISTANCE_KM = {0.25: 1.232, 0.50: 2.094, 0.75: 3.875, 0.95: 11.019}

# Critical values of chi-square at one in a thousand, by degrees of freedom.
CRITICAL = {1: 10.828, 5: 20.515, 23: 49.728}


@pytest.fixture(scope="module")
def drawn() -> list[Trip]:
    return list(islice(trips(Random("calibration")), DRAWN))


def chi_square(found: Counter[int], expected_shares: dict[int, float]) -> float:
    total, weight = sum(found.values()), sum(expected_shares.values())
    expected = {cell: total * share / weight for cell, share in expected_shares.items()}
    assert min(expected.values()) >= 5, "too few expected in a cell for the test to mean anything"
    return sum((found[cell] - count) ** 2 / count for cell, count in expected.items())


def at_share(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


def hour_of(trip: Trip) -> int:
    return datetime.fromtimestamp(trip.pickup_ms // 1000, UTC).hour


def test_vendors_have_their_shares(drawn):
    assert chi_square(Counter(trip.vendor for trip in drawn), VENDOR) < CRITICAL[1]


@pytest.mark.parametrize("vendor", [1, 2])
def test_passengers_have_their_shares_by_vendor(drawn, vendor):
    # Zero passengers, and seven to nine, are too rare to be cells of their own: they count with the sixes.
    found = Counter(trip.passengers if trip.passengers in range(1, 6) else 6 for trip in drawn if trip.vendor == vendor)
    assert chi_square(found, PASSENGERS[vendor]) < CRITICAL[5]


def test_hours_have_their_shares(drawn):
    assert chi_square(Counter(map(hour_of, drawn)), dict(enumerate(HOUR))) < CRITICAL[23]


@pytest.mark.parametrize("share", DURATION_S)
def test_durations_have_their_quantiles(drawn, share):
    assert at_share([trip.trip_s for trip in drawn], share) == pytest.approx(DURATION_S[share], rel=0.05)


@pytest.mark.parametrize("share", DISTANCE_KM)
def test_distances_have_their_quantiles(drawn, share):
    kilometres = [trip.miles * KM_PER_MILE for trip in drawn]
    assert at_share(kilometres, share) == pytest.approx(DISTANCE_KM[share], rel=0.05)


def test_the_chi_square_test_can_fail():
    every_hour_alike = Counter(dict.fromkeys(range(24), DRAWN // 24))
    assert chi_square(every_hour_alike, dict(enumerate(HOUR))) > CRITICAL[23]


def test_meters_left_on_make_trips_of_about_a_day_nearly_all_of_vendor_2(drawn):
    days = Counter(trip.vendor for trip in drawn if trip.trip_s > 20 * 3600)
    assert 0.001 < sum(days.values()) / DRAWN < 0.002
    assert days[2] > 0.9 * sum(days.values())


def test_only_vendor_1_sends_trips_late(drawn):
    held = Counter(trip.vendor for trip in drawn if trip.held)
    assert set(held) == {1}
    assert 0.004 < held[1] / DRAWN < 0.007


def test_some_trips_have_no_route_and_then_neither_of_its_figures(drawn):
    without = [trip for trip in drawn if trip.road_m is None]
    assert 0.012 < len(without) / DRAWN < 0.016
    assert all((trip.road_m is None) == (trip.road_s is None) for trip in drawn)


def test_the_coordinates_lie_the_stated_distance_apart(drawn):
    for trip in drawn[:5000]:
        apart = great_circle_miles(
            trip.pickup_longitude, trip.pickup_latitude, trip.dropoff_longitude, trip.dropoff_latitude
        )
        assert apart == pytest.approx(trip.miles, abs=0.002)


def test_pickups_lie_mostly_in_manhattan_and_some_at_the_airports(drawn):
    longitudes = sorted(trip.pickup_longitude for trip in drawn)
    latitudes = sorted(trip.pickup_latitude for trip in drawn)
    assert longitudes[DRAWN // 2] == pytest.approx(-73.981, abs=0.004)
    assert latitudes[DRAWN // 2] == pytest.approx(40.755, abs=0.004)
    at_jfk = bisect_left(latitudes, 40.66) / DRAWN
    assert 0.02 < at_jfk < 0.035


def test_ids_do_not_repeat_and_have_seven_digits(drawn):
    assert len({trip.id for trip in drawn}) == DRAWN < IDS
    assert all(len(trip.id) == 9 and trip.id.startswith("id") for trip in drawn)


def test_the_same_seed_gives_the_same_trips_and_another_seed_others():
    def first(seed: int) -> list[Trip]:
        return list(islice(trips(Random(seed)), 50))

    assert first(7) == first(7)
    assert first(7) != first(8)


def test_the_metered_time_is_the_time_between_pickup_and_drop_off(drawn):
    assert all(trip.dropoff_ms - trip.pickup_ms == trip.trip_s * 1000 for trip in drawn[:1000])
