"""The events in events/ are what the builders make, and the taxi example answers each as it should."""

import json

import pytest

from tests.builders import START
from tests.handlers import taxi
from tests.sample_events import FOLDER, UNCLEAN, all_events

EXPECTED = {  # what is then in the table: vendor -> (passenger, trips)
    "windowed": {},
    "aggregated": {},
    "unclean": {},
    "final": {1: (3, 2), 2: (5, 1)},
    "final-with-records": {1: (3, 2), 2: (6, 2)},
    "early": {1: (3, 2), 2: (5, 1)},
}


@pytest.mark.parametrize("name", all_events())
def test_each_file_is_what_the_builders_make(name):
    assert json.loads((FOLDER / f"{name}.json").read_text()) == all_events()[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_the_taxi_example_takes_each_windowed_event(name):
    handler, seams = taxi()

    answer = handler(json.loads((FOLDER / f"{name}.json").read_text()), None)

    found = {item["vendorId"]: (item["passenger"], item["trips"]) for item in seams.table.items()}
    assert found == EXPECTED[name]
    assert (answer["state"] == {}) == bool(found)
    assert {item["windowStart"] for item in seams.table.items()} <= {START}


def test_the_unclean_event_holds_every_reason_that_a_producer_can_make():
    handler, seams = taxi()
    handler(all_events()["unclean"], None)

    kept = sorted(seams.quarantine.read(), key=lambda record: record.position)
    assert [record.reason for record in kept] == [
        "not_utf8",
        "not_json",
        "not_an_object",
        "missing_field",
        "wrong_type",
        "out_of_range",
        "corrupt_aggregate",
    ]
    assert seams.telemetry.reports[0].clean == len(UNCLEAN) - 7
