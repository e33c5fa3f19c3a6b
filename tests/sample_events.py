"""The events in events/: `python -m tests.sample_events` writes them, a test holds them against this file."""

import json
from pathlib import Path
from typing import Any

from tests.builders import aggregate, event, kinesis_record, records, trip

FOLDER = Path(__file__).parent.parent / "events"

FULL_TRIP = {
    "id": "id1048576",
    "pickupDate": "2020-12-09T07:04:01",
    "dropoffDate": "2020-12-09T07:15:12",
    "storeAndFwdFlag": "N",
    "pickupLongitude": -73.98201,
    "pickupLatitude": 40.76494,
    "dropoffLongitude": -73.96422,
    "dropoffLatitude": 40.77019,
    "gcDistance": 1.0035,
    "tripDuration": 671,
    "googleDistance": 2204,
    "googleDuration": 702,
}
UNCLEAN = [
    trip(1, 3),
    b"\xff\xfe not UTF-8",
    b'{"vendorId": 1, "passengerCount": ',
    b'["not", "an", "object"]',
    b'{"vendorId": 1}',
    b'{"vendorId": 1, "passengerCount": "two"}',
    trip(1, 12),
    aggregate([trip(2, 2), trip(2, 3)])[:-1] + b"\x00",
    trip(2, 4),
]


def open_state() -> dict[str, Any]:
    """The state that the function answers for `windowed.json`."""
    from tests.handlers import taxi

    answer = taxi()[0](EVENTS["windowed"], None)
    state: dict[str, Any] = answer["state"]
    return state


def three_trips() -> list[dict[str, Any]]:
    """Three whole trips of two vendors."""
    return records([trip(vendor, passengers, **FULL_TRIP) for vendor, passengers in ((1, 1), (2, 5), (1, 2))])


EVENTS: dict[str, dict[str, Any]] = {
    "windowed": event(three_trips()),
    "aggregated": event(records([aggregate([trip(vendor, 2, **FULL_TRIP) for vendor in (1, 2, 2)])])),
    "unclean": event(records(UNCLEAN)),
    "unwindowed": {"Records": [kinesis_record(1, trip(1, 2, **FULL_TRIP)), kinesis_record(2, trip(2, 1, **FULL_TRIP))]},
}


def all_events() -> dict[str, dict[str, Any]]:
    """Every sample by name, those with state included."""
    state = open_state()
    return EVENTS | {
        "final": event([], state=state, final=True),
        "final-with-records": event(records([trip(2, 1, **FULL_TRIP)], first=9), state=state, final=True),
        "early": event([], state=state, early=True),
    }


if __name__ == "__main__":
    for name, sample in all_events().items():
        (FOLDER / f"{name}.json").write_text(json.dumps(sample, indent=2) + "\n")
