"""One trip in the three dialects."""

import json
from random import Random

import pytest
from msgspec.structs import replace

from windlass.produce.dialects import DIALECTS
from windlass.produce.trips import Trip

TRIP = Trip(
    id="id0042007",
    vendor=2,
    passengers=3,
    pickup_ms=1_454_321_106_000,  # 2016-02-01T10:05:06
    dropoff_ms=1_454_321_706_000,
    pickup_longitude=-73.9712345,
    pickup_latitude=40.7612345,
    dropoff_longitude=-73.9523456,
    dropoff_latitude=40.7723456,
    held=True,
    miles=1.2604321,
    trip_s=600,
    road_m=2750,
    road_s=701,
)


def write(dialect: str, trip: Trip = TRIP, seed: int = 1) -> dict[str, object]:
    return json.loads(DIALECTS[dialect](trip, Random(seed)))


def test_kpl_writes_typed_numbers_in_the_order_of_a_java_hash_map():
    assert list(write("kpl").items()) == [
        ("passengerCount", 3),
        ("vendorId", 2),
        ("storeAndFwdFlag", "Y"),
        ("googleDistance", 2750),
        ("dropoffLatitude", 40.77235),
        ("dropoffLongitude", -73.95235),
        ("dropoffDate", "2016-02-01T10:15:06"),
        ("pickupLongitude", -73.97123),
        ("pickupDate", "2016-02-01T10:05:06"),
        ("id", "id0042007"),
        ("tripDuration", 600),
        ("googleDuration", 701),
        ("pickupLatitude", 40.76123),
        ("gcDistance", 1.26043),
    ]


def test_kpl_writes_zero_where_no_route_is_known():
    row = write("kpl", replace(TRIP, road_m=None, road_s=None))
    assert (row["googleDistance"], row["googleDuration"]) == (0, 0)


def test_sdk_writes_numbers_but_coordinates_as_strings_and_the_flag_as_0_or_1():
    row = write("sdk")
    assert (row["vendorId"], row["passengerCount"], row["storeAndFwdFlag"]) == (2, 3, 1)
    assert write("sdk", replace(TRIP, held=False))["storeAndFwdFlag"] == 0
    assert row["pickupLatitude"].strip(" \t") == "40.7612345"
    assert row["dropoffLongitude"].strip(" \t") == "-73.9523456"


def test_sdk_puts_a_blank_or_a_tab_before_some_coordinates():
    starts = {str(write("sdk", seed=seed)["pickupLatitude"])[0] for seed in range(60)}
    assert starts == {"4", " ", "\t"}


def test_sdk_repeats_whole_miles_and_the_trips_seconds_as_the_road_figures():
    row = write("sdk")
    assert (row["gcDistance"], row["googleDistance"]) == (1, 1)
    assert (row["tripDuration"], row["googleDuration"]) == (600, 600)


def test_sdk_dates_have_microseconds():
    assert len(str(write("sdk")["pickupDate"])) == len("2016-02-01T10:05:06.123456")


def test_flink_writes_every_value_as_a_string():
    row = write("flink")
    assert {type(value) for value in row.values()} == {str}
    assert (row["vendorId"], row["passengerCount"], row["tripDuration"]) == ("2", "3", "600")


def test_flink_has_two_coordinates_in_each_others_place():
    row = write("flink")
    assert row["pickupLongitude"] == "-73.9712345"
    assert row["dropoffLongitude"] == "40.7612345"
    assert row["pickupLatitude"] == "-73.9523456"
    assert row["dropoffLatitude"] == "40.7723456"


def test_flink_dates_have_no_leading_zeros_and_no_century():
    assert (write("flink")["pickupDate"], write("flink")["dropoffDate"]) == ("2/1/16 10:05", "2/1/16 10:15")


def test_flink_leaves_empty_what_no_route_is_known_for():
    row = write("flink", replace(TRIP, road_m=None, road_s=None))
    assert (row["googleDistance"], row["googleDuration"]) == ("", "")


def test_mixed_writes_all_three_and_the_seed_decides():
    rng = Random(3)
    written = [DIALECTS["mixed"](TRIP, rng) for _ in range(60)]
    again = Random(3)
    assert written == [DIALECTS["mixed"](TRIP, again) for _ in range(60)]
    kinds = {type(json.loads(data)["storeAndFwdFlag"]).__name__ + type(json.loads(data)["vendorId"]).__name__
             for data in written}  # fmt: skip
    assert kinds == {"strint", "intint", "strstr"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_writes_the_same_fourteen_fields(dialect):
    assert sorted(write(dialect)) == sorted(write("kpl"))
