import copy
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import md5
from types import MappingProxyType
from typing import Annotated, Any, Literal

import boto3
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from moto import mock_aws

import windlass
from tests.builders import TOTALS_TABLE, aggregate, trip
from windlass.core.aggregate import CorruptAggregate, HashRange, deaggregate
from windlass.core.schema import Fault
from windlass.core.totals import Sum
from windlass.pipelines import Windows
from windlass.verify import CannotVerify, Verdict, verify
from windlass.verify.carriers import MAGIC, is_carrier, open_carrier
from windlass.verify.records import Reading
from windlass.verify.sources import oldest_ms, read_stream, read_table, shard_ranges

T0 = 1_735_689_600_000  # 2025-01-01T00:00:00Z
WINDOWS = [("2025-01-01T00:00:00Z", "2025-01-01T00:00:30Z"), ("2025-01-01T00:00:30Z", "2025-01-01T00:01:00Z")]
SHARDS = ("shardId-000000000000", "shardId-000000000001")


def field(name: str, kind: str, **others: Any) -> dict[str, Any]:
    return {
        "path": name.split("."),
        "type": kind,
        "nullable": False,
        "required": True,
        "low": None,
        "high": None,
        "min_length": None,
        "max_length": None,
        "choices": None,
        "decimals": None,
    } | others


def total(name: str, kind: str, path: str | None = None) -> dict[str, Any]:
    return {"name": name, "kind": kind, "path": path and path.split(".")}


def description(**others: Any) -> dict[str, Any]:
    return {
        "kind": "windows",
        "record": "Trip",
        "coerce": False,
        "fields": [field("vendorId", "int"), field("passengerCount", "int", low=0, high=9)],
        "key": [["vendorId"]],
        "key_attribute": "vendorId",
        "key_type": "N",
        "every_s": 30,
        "layout": "history",
        "aggregates": "keep_insiders",
        "totals": [total("passenger", "sum", "passengerCount"), total("trips", "count")],
    } | others


def item(vendor: int, window: int, passenger: int, trips: int, **others: Any) -> dict[str, Any]:
    start, end = WINDOWS[window]
    return {
        "vendorId": Decimal(vendor),
        "windowStart": start,
        "windowEnd": end,
        "passenger": Decimal(passenger),
        "trips": Decimal(trips),
        f"applied#{SHARDS[0]}": "0" * 56 + ".000000",
    } | others


def quarantined(sequence: str, data: bytes, *, reason: str = "not_json", shard: str = SHARDS[0], sub: int = 0, ms=T0):
    return {"reason": reason, "shard": shard, "sequence": sequence, "sub": sub, "arrival_ms": ms, "data": data}


class Case:
    """A stream, and the table and the quarantine that are right for it."""

    def __init__(self) -> None:
        self.description = description()
        self.stream = [
            (SHARDS[0], "101", T0, trip(1, 2)),
            (SHARDS[0], "102", T0 + 29_999, trip(2, 5)),
            (SHARDS[0], "103", T0 + 1, b"{not json"),
            (SHARDS[1], "101", T0 + 5, trip(1, 3)),
            (SHARDS[1], "102", T0 + 30_000, aggregate([trip(1, 1), b"null", trip(1, 0)])),
            (SHARDS[1], "103", T0 + 31_000, trip(2, 9)),
        ]
        self.items = [item(1, 0, 5, 2), item(2, 0, 5, 1), item(1, 1, 1, 2), item(2, 1, 9, 1)]
        self.quarantined = [
            quarantined("103", b"{not json"),
            quarantined("102", b"null", reason="not_an_object", shard=SHARDS[1], sub=1, ms=T0 + 30_000),
        ]

    def verdict(self, **options: Any) -> Verdict:
        return verify(self.description, iter(self.stream), iter(self.items), iter(self.quarantined), **options)

    def kinds(self, **options: Any) -> list[str]:
        verdict = self.verdict(**options)
        assert verdict.exact is (not verdict.differences)
        return [difference.kind for difference in verdict.differences]


@pytest.fixture
def case() -> Case:
    return Case()


# ── the verdict ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_right_table_is_exact_and_every_record_is_counted_once(case: Case) -> None:
    verdict = case.verdict()
    assert verdict.to_dict() == {
        "exact": True,
        "received": 8,
        "clean": 6,
        "rejected": 2,
        "reasons": {"not_an_object": 1, "not_json": 1},
        "late": 0,
        "windows": 2,
        "items": 4,
        "items_expected": 4,
        "quarantine": True,
        "expected": {"1": {"passenger": 6, "trips": 4}, "2": {"passenger": 14, "trips": 2}},
        "found": {"1": {"passenger": 6, "trips": 4}, "2": {"passenger": 14, "trips": 2}},
        "differences_total": 0,
        "differences": (),
    }
    json.dumps(verdict.to_dict())


def test_a_missing_item_is_named(case: Case) -> None:
    del case.items[2]
    (difference,) = case.verdict().differences
    assert difference.kind == "missing_item"
    assert (difference.key, difference.window) == ("1", "2025-01-01T00:00:30Z")
    assert difference.text == ("the item of 1, 2025-01-01T00:00:30Z to 2025-01-01T00:01:00Z, is not in the table")


def test_an_item_that_no_record_makes_is_named(case: Case) -> None:
    case.items.append(item(3, 0, 1, 1))
    (difference,) = case.verdict().differences
    assert (difference.kind, difference.key) == ("extra_item", "3")


def test_an_item_that_comes_twice_is_named(case: Case) -> None:
    case.items.append(case.items[0])
    assert case.kinds() == ["extra_item"]


@pytest.mark.parametrize("spoiled", [Decimal(6), Decimal("5.5"), Decimal("NaN"), "5", None, {"NULL": True}])
def test_a_wrong_number_is_named_with_both_values(case: Case, spoiled: Any) -> None:
    case.items[0]["passenger"] = spoiled
    (difference,) = case.verdict().differences
    assert (difference.kind, difference.key, difference.total) == ("wrong_total", "1", "passenger")
    assert (difference.expected, difference.window) == ("5", WINDOWS[0][0])
    assert "passenger = " in difference.text
    json.dumps(case.verdict().to_dict())


def test_a_number_that_is_equal_is_right_however_it_is_written(case: Case) -> None:
    case.items[0]["passenger"] = Decimal("5.000")
    assert case.kinds() == []


def test_a_total_that_is_not_there_at_all_is_wrong(case: Case) -> None:
    del case.items[0]["trips"]
    (difference,) = case.verdict().differences
    assert (difference.kind, difference.total, difference.found) == ("wrong_total", "trips", "nothing")


def test_a_wrong_window_end_is_named(case: Case) -> None:
    case.items[0]["windowEnd"] = "2025-01-01T00:00:31Z"
    assert case.kinds() == ["wrong_window"]


def test_an_item_of_another_window_is_one_too_many_and_one_too_few(case: Case) -> None:
    case.items[3] |= {"windowStart": "2025-01-01T00:01:00Z", "windowEnd": "2025-01-01T00:01:30Z"}
    assert sorted(case.kinds()) == ["extra_item", "missing_item"]


@pytest.mark.parametrize(
    "spoiled",
    [
        {"vendorId": "1"},
        {"windowStart": "2025-01-01 00:00:00"},
        {"windowStart": "2025-01-01T00:00:00.000Z"},
        {"windowStart": Decimal(1)},
    ],
)
def test_an_item_that_is_none_of_the_pipeline_is_named(case: Case, spoiled: dict[str, Any]) -> None:
    case.items.append(item(1, 0, 5, 2) | spoiled)
    assert case.kinds() == ["strange_item"]


def test_an_unclean_record_that_is_not_in_quarantine_is_named(case: Case) -> None:
    del case.quarantined[0]
    (difference,) = case.verdict().differences
    assert difference.kind == "not_quarantined"
    assert f"{SHARDS[0]} 103.0" in difference.text
    assert case.verdict().rejected == 2


def test_a_clean_record_in_quarantine_is_named_and_still_belongs_into_the_totals(case: Case) -> None:
    case.quarantined.append(quarantined("101", trip(1, 2), reason="wrong_type"))
    assert case.kinds() == ["wrongly_quarantined"]
    case.items[0] = item(1, 0, 3, 1)
    assert case.kinds() == ["wrongly_quarantined", "wrong_total", "wrong_total"]


def test_other_bytes_in_quarantine_are_named(case: Case) -> None:
    case.quarantined[0]["data"] = b"{not jso"
    assert case.kinds() == ["wrong_bytes"]


def test_a_quarantined_record_that_the_stream_does_not_hold_is_named(case: Case) -> None:
    case.quarantined.append(quarantined("999", b"x"))
    case.quarantined.append(quarantined("102", b"x", shard=SHARDS[1], sub=3))
    assert case.kinds() == ["not_in_stream", "not_in_stream"]


def test_a_late_record_is_taken_out_of_the_totals_and_counted(case: Case) -> None:
    case.quarantined.append(quarantined("101", trip(1, 2), reason="late"))
    case.items[0] = item(1, 0, 3, 1)
    verdict = case.verdict()
    assert verdict.exact
    assert (verdict.received, verdict.clean, verdict.rejected, verdict.late) == (8, 5, 2, 1)


def test_a_record_is_late_only_behind_one_of_a_later_window_where_the_mapping_delivers_by_arrival(case: Case) -> None:
    case.quarantined.append(quarantined("101", trip(1, 2), reason="late"))
    case.items[0] = item(1, 0, 3, 1)
    assert case.kinds(in_turn=True) == ["not_late"]

    case.stream.insert(0, (SHARDS[0], "100", T0 + 30_000, trip(2, 0)))
    case.items[3] = item(2, 1, 9, 2)
    assert case.kinds(in_turn=True) == []


def test_an_unclean_record_may_be_late_but_a_carrier_that_cannot_be_read_may_not(case: Case) -> None:
    case.quarantined[0]["reason"] = "late"
    assert case.kinds() == []

    corrupt = MAGIC + b"x" * 20
    case.stream[2] = (SHARDS[0], "103", T0 + 1, corrupt)
    case.quarantined[0]["data"] = corrupt
    assert case.kinds() == ["wrong_reason"]


@pytest.mark.parametrize(
    ("data", "may", "may_not"),
    [
        (b"{not json", "wrong_type", "not_utf8"),  # a reader may meet a wrong value before the text breaks off
        (b"\xff", "not_utf8", "not_json"),
        (b"[1]", "not_an_object", "not_json"),
        (b"{}", "missing_field", "wrong_type"),
        (b'{"vendorId":1,"passengerCount":12}', "out_of_range", "wrong_type"),
        (b'{"vendorId":"1","passengerCount":12}', "out_of_range", "missing_field"),
        (b'{"vendorId":"1","passengerCount":12}', "wrong_type", "not_json"),
        (b'{"passengerCount":"x","passengerCount":2}', "wrong_type", "out_of_range"),
        (b"\xf3\x89\x9a\xc2", "corrupt_aggregate", "not_utf8"),
    ],
)
def test_the_reason_in_quarantine_is_one_that_the_record_has(case: Case, data: bytes, may: str, may_not: str) -> None:
    case.stream[2] = (SHARDS[0], "103", T0 + 1, data)
    case.quarantined[0] = quarantined("103", data, reason=may)
    assert case.kinds() == []
    case.quarantined[0]["reason"] = may_not
    assert case.kinds() == ["wrong_reason"]


def deep(levels: int, within: str = "1") -> bytes:
    return f'{{"vendorId":1,"passengerCount":2,"x":{"[" * (levels - 1)}{within}{"]" * (levels - 1)}}}'.encode()


@pytest.mark.parametrize(
    ("levels", "disputed"), [(1, False), (100, False), (101, True), (5_000, True), (200_000, True)]
)
def test_how_deep_a_reader_goes_is_left_to_it(case: Case, levels: int, disputed: bool) -> None:
    reading = Reading(case.description["fields"], coerce=False, key=[("vendorId",)], used=[("passengerCount",)])
    assert reading.read(deep(levels)) == ([2], disputed)
    assert reading.read(deep(levels, '["]]}}\\"[[", {"a": []}]')) == ([2], disputed or levels > 97)
    assert reading.read(deep(levels)[:-2]) == "not_json"

    case.stream[2] = (SHARDS[0], "103", T0 + 1, deep(levels))
    case.quarantined[0] = quarantined("103", deep(levels))
    assert case.kinds() == ([] if disputed else ["wrongly_quarantined", "wrong_total", "wrong_total"])
    del case.quarantined[0]
    case.items[0] = item(1, 0, 7, 3)
    assert case.kinds() == []


def test_without_a_quarantine_unclean_records_are_counted_by_what_the_second_reading_says(case: Case) -> None:
    verdict = verify(case.description, case.stream, case.items)
    assert verdict.exact
    assert not verdict.quarantine
    assert verdict.reasons == {"not_an_object": 1, "not_json": 1}


def test_sequence_numbers_are_the_same_padded_or_not(case: Case) -> None:
    for line in case.quarantined:
        line["sequence"] = line["sequence"].zfill(56)
    assert case.kinds() == []


def test_differences_are_bounded_but_all_counted(case: Case) -> None:
    case.items += [item(1000 + number, 0, 1, 1) for number in range(150)]
    verdict = case.verdict()
    assert (len(verdict.differences), verdict.differences_total) == (100, 150)


def test_nothing_against_nothing_is_empty(case: Case) -> None:
    assert verify(description(), [], [], []).empty
    assert not verify(description(), case.stream, [], []).empty
    assert not verify(description(), [], case.items, []).empty
    assert not verify(description(), [], [], case.quarantined).empty


@pytest.mark.parametrize(
    ("from_ms", "to_ms", "windows"),
    [
        (None, T0 + 60_000, 2),
        (None, T0 + 59_999, 1),
        (None, T0 + 30_000, 1),
        (None, T0 + 29_999, 0),
        (T0, None, 2),
        (T0 + 1, None, 1),
        (T0 + 30_000, T0 + 60_000, 1),
        (T0 + 30_001, T0 + 60_000, 0),
    ],
)
def test_only_windows_wholly_inside_the_range_count(case: Case, from_ms, to_ms, windows) -> None:
    verdict = case.verdict(from_ms=from_ms, to_ms=to_ms)
    assert verdict.exact
    assert (verdict.windows, verdict.items) == (windows, 2 * windows)
    assert (verdict.received > 0) is (windows > 0)


def test_damage_outside_the_range_is_not_looked_at(case: Case) -> None:
    case.items = case.items[:2]
    case.quarantined[1]["data"] = b"other"
    assert case.kinds(to_ms=T0 + 30_000) == []
    assert case.kinds() != []


# ── layouts, keys, totals ───────────────────────────────────────────────────────────────────────────────────


def test_in_the_latest_layout_only_the_newest_window_of_each_key_is_compared(case: Case) -> None:
    case.description["layout"] = "latest"
    case.items = case.items[2:]
    verdict = case.verdict()
    assert verdict.exact
    assert verdict.expected == {"1": {"passenger": 1, "trips": 2}, "2": {"passenger": 9, "trips": 1}}


def test_in_the_latest_layout_an_older_window_in_the_place_of_the_newest_is_a_difference(case: Case) -> None:
    case.description["layout"] = "latest"
    case.items = [case.items[2], case.items[1]]
    assert sorted(case.kinds()) == ["extra_item", "missing_item"]


def test_in_the_latest_layout_a_key_that_moved_on_beyond_the_range_cannot_be_compared(case: Case) -> None:
    case.description["layout"] = "latest"
    case.items = case.items[2:]
    verdict = case.verdict(to_ms=T0 + 30_000)
    assert verdict.exact
    assert (verdict.items, verdict.items_expected, verdict.received) == (0, 0, 4)


@pytest.mark.parametrize(
    ("records", "stored"),
    [
        ([{}], {"s": 0, "m#sum": 0, "m#count": 0, "n": 1}),
        ([{"v": None}], {"s": 0, "m#sum": 0, "m#count": 0, "n": 1}),
        (
            [{"v": 0.1}, {"v": 0.2}, {}],
            {"s": "0.3", "m#sum": "0.3", "m#count": 2, "lo": "0.1", "hi": "0.2", "n": 3},
        ),
        ([{"v": -5}, {"v": 1e3}], {"s": 995, "m#sum": 995, "m#count": 2, "lo": -5, "hi": 1000, "n": 2}),
    ],
)
def test_every_kind_of_total_is_stored_as_described(records, stored) -> None:
    pipeline = description(
        fields=[field("k", "str"), field("v", "float", nullable=True, required=False, default=None, decimals=18)],
        key=[["k"]],
        key_attribute="k",
        key_type="S",
        totals=[
            total("s", "sum", "v"),
            total("m", "mean", "v"),
            total("lo", "min", "v"),
            total("hi", "max", "v"),
            total("n", "count"),
        ],
    )
    stream = [("s", str(n), T0, json.dumps({"k": "a"} | record).encode()) for n, record in enumerate(records)]
    right = {name: Decimal(str(value)) for name, value in stored.items()}
    right |= {"k": "a", "windowStart": WINDOWS[0][0], "windowEnd": WINDOWS[0][1]}
    verdict = verify(pipeline, stream, [right])
    assert verdict.differences == ()
    assert verdict.expected == {"a": stored}
    for name in stored:
        assert not verify(pipeline, stream, [{**right, name: right[name] + 1}]).exact
        assert not verify(pipeline, stream, [{each: right[each] for each in right if each != name}]).exact
    for name in {"lo", "hi"} - stored.keys():
        assert not verify(pipeline, stream, [right | {name: Decimal(0)}]).exact


def test_the_least_and_the_greatest_over_windows_are_not_added_up() -> None:
    pipeline = description(totals=[total("lo", "min", "passengerCount"), total("hi", "max", "passengerCount")])
    stream = [("s", "1", T0, trip(1, 3)), ("s", "2", T0 + 40_000, trip(1, 7))]
    assert verify(pipeline, stream, []).expected == {"1": {"lo": 3, "hi": 7}}


def test_sums_do_not_round_however_long_they_are() -> None:
    pipeline = description(
        fields=[field("vendorId", "int"), field("v", "decimal", decimals=18)], totals=[total("s", "sum", "v")]
    )
    values = ["99999999999.999999999999999999", "0.000000000000000001", "-99999999999.999999999999999998"]
    stream = [("s", str(n), T0, f'{{"vendorId":1,"v":{text}}}'.encode()) for n, text in enumerate(values)]
    assert verify(pipeline, stream, []).expected == {"1": {"s": "0.000000000000000002"}}


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ({"a": "x", "b": 7, "c": 1.5}, "x#7#1.5"),
        ({"a": "x#y", "b": -7, "c": 0}, "x\\#y#-7#0"),
        ({"a": "\\", "b": 0, "c": 100}, "\\\\#0#100"),
    ],
)
def test_a_key_of_several_fields_is_joined_and_escaped(record, key) -> None:
    pipeline = description(
        fields=[field("a", "str"), field("b", "int"), field("c", "decimal")],
        key=[["a"], ["b"], ["c"]],
        key_attribute="a#b#c",
        key_type="S",
        totals=[total("n", "count")],
    )
    window = {"windowStart": WINDOWS[0][0], "windowEnd": WINDOWS[0][1]}
    stream = [("s", "1", T0, json.dumps(record).encode())]
    item = {"a#b#c": key, "n": Decimal(1)} | record | {"c": Decimal(str(record["c"]))} | window
    assert verify(pipeline, stream, [item]).exact
    for spoiled in ({"b": 99}, {"c": None}):
        (difference,) = verify(pipeline, stream, [item | spoiled]).differences
        assert difference.kind == "wrong_key"


def test_equal_decimals_are_one_key() -> None:
    pipeline = description(
        fields=[field("a", "decimal"), field("b", "int")],
        key=[["a"], ["b"]],
        key_attribute="a#b",
        key_type="S",
        totals=[total("n", "count")],
    )
    stream = [("s", str(n), T0, f'{{"a":{text},"b":1}}'.encode()) for n, text in enumerate(["1.5", "1.50", "15e-1"])]
    assert verify(pipeline, stream, []).expected == {"1.5#1": {"n": 3}}


# ── carriers ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_corrupt_carrier_is_one_record(case: Case) -> None:
    corrupt = bytearray(aggregate([trip(1, 1), trip(1, 1)]))
    corrupt[-1] ^= 1
    case.stream.append((SHARDS[0], "104", T0, bytes(corrupt)))
    assert case.kinds() == ["not_quarantined"]
    case.quarantined.append(quarantined("104", bytes(corrupt), reason="corrupt_aggregate"))
    verdict = case.verdict()
    assert verdict.exact
    assert (verdict.received, verdict.reasons["corrupt_aggregate"]) == (9, 1)


CHILD = "shardId-000000000002"


class TestOutsiders:
    """Records of a carrier whose hash key is outside their shard: here the shard holds the lower half."""

    ranges = MappingProxyType({CHILD: (0, 2**127 - 1)})

    @pytest.fixture
    def outsider(self, case: Case) -> Case:
        carrier = aggregate([trip(1, 1), trip(1, 4), trip(1, 1)], hashes=[0, 2**127, 2**127 - 1])
        case.stream.append((CHILD, "104", T0, carrier))
        case.items[0] = item(1, 0, 7, 4)
        return case

    def test_they_are_rejected_and_not_in_the_totals(self, outsider: Case) -> None:
        assert outsider.kinds(ranges=self.ranges) == ["not_quarantined"]
        outsider.quarantined.append(quarantined("104", trip(1, 4), reason="wrong_shard", shard=CHILD, sub=1))
        verdict = outsider.verdict(ranges=self.ranges)
        assert verdict.exact
        assert verdict.reasons["wrong_shard"] == 1

    def test_a_pipeline_that_keeps_all_keeps_them(self, outsider: Case) -> None:
        outsider.description["aggregates"] = "keep_all"
        outsider.items[0] = item(1, 0, 11, 5)
        assert outsider.kinds(ranges=self.ranges) == []

    def test_a_shard_without_a_known_range_is_not_checked(self, outsider: Case) -> None:
        outsider.items[0] = item(1, 0, 11, 5)
        assert outsider.kinds(ranges={SHARDS[0]: (0, 2**127 - 1)}) == []

    def test_an_insider_in_quarantine_as_an_outsider_is_named(self, outsider: Case) -> None:
        outsider.quarantined.append(quarantined("104", trip(1, 4), reason="wrong_shard", shard=CHILD, sub=1))
        outsider.quarantined.append(quarantined("104", trip(1, 1), reason="wrong_shard", shard=CHILD, sub=2))
        assert outsider.kinds(ranges=self.ranges) == ["wrongly_quarantined"]


def carrier(message: bytes) -> bytes:
    return MAGIC + message + md5(message).digest()


KEY, RECORD = b"\x0a\x01k", b"\x1a\x05\x08\x00\x1a\x01x"


@pytest.mark.parametrize(
    ("message", "records"),
    [
        (KEY + RECORD, [b"x"]),
        (RECORD + KEY, [b"x"]),
        (KEY + RECORD + b"\x1a\x08\x08\x00\x1a\x01y\x1a\x01z", [b"x", b"z"]),  # the last of a field counts
        (KEY + b"\x12\x0242" + b"\x1a\x07\x08\x00\x10\x00\x1a\x01x", [b"x"]),
        (KEY + RECORD + b"\x2a\x01?" + b"\x30\x05" + b"\x3d1234" + b"\x4112345678" + b"\x53\x08\x01\x54", [b"x"]),
        (KEY + b"\x1a\x0c\x08\x00\x1a\x01x\x22\x05\x0a\x01t\x12\x00", [b"x"]),  # with a tag
        (KEY + b"\x1a\x06\x08\x80\x00\x1a\x01x", [b"x"]),  # an index written in two bytes
        (b"", None),
        (KEY, None),
        (RECORD, None),
        (KEY + b"\x1a\x05\x08\x01\x1a\x01x", None),  # outside the table
        (KEY + b"\x1a\x07\x08\x00\x10\x00\x1a\x01x", None),
        (KEY + b"\x12\x01x" + RECORD, None),
        (KEY + b"\x12\x00" + RECORD, None),
        (KEY + b"\x12\x27" + b"9" * 39 + RECORD, None),
        (KEY + b"\x1a\x02\x08\x00", None),  # a required field is missing
        (KEY + b"\x1a\x03\x1a\x01x", None),
        (KEY + RECORD + b"\x1a\x05\x08\x00\x1a\x02x", None),  # cut off
        (KEY + RECORD + b"\x2c", None),  # a group's end without its beginning
        (KEY + RECORD + b"\x2b", None),
        (KEY + RECORD + b"\x53\x08\x01\x5c", None),  # another group's end
        (KEY + RECORD + b"\x00\x00", None),  # field number 0
        (KEY + RECORD + b"\xf8\xff\xff\xff\x1f\x00", None),  # a field number beyond 29 bits
        (KEY + RECORD + b"\x08" + b"\xff" * 10 + b"\x00", None),
    ],
)
def test_a_carrier_is_read_whole_or_not_at_all(message: bytes, records: list[bytes] | None) -> None:
    opened = open_carrier(carrier(message))
    assert (opened and [record.data for record in opened]) == records
    other = deaggregate(carrier(message))
    assert (None if isinstance(other, CorruptAggregate) else other.payloads) == records


def test_a_user_record_belongs_where_its_explicit_hash_key_or_else_its_partition_key_says() -> None:
    opened = open_carrier(aggregate([b"a"], keys=["id7"])) or []
    assert [record.hash_key for record in opened] == [int.from_bytes(md5(b"id7").digest(), "big")]
    opened = open_carrier(aggregate([b"a", b"b"], hashes=[5, 2**128 - 1])) or []
    assert [record.hash_key for record in opened] == [5, 2**128 - 1]


@given(
    payloads=st.lists(st.binary(max_size=40), min_size=1, max_size=5),
    hashes=st.none() | st.integers(0, 2**128 - 1),
    edits=st.lists(st.tuples(st.integers(0, 400), st.sampled_from("rid"), st.integers(0, 255)), max_size=3),
    sealed=st.booleans(),
)
def test_both_readings_open_the_same_carriers(payloads, hashes, edits, sealed) -> None:
    data = aggregate(payloads, hashes=hashes if hashes is None else [hashes] * len(payloads))
    message = bytearray(data[4:-16])
    for place, edit, byte in edits:
        at = place % (len(message) + 1)
        if edit == "i":
            message.insert(at, byte)
        elif at < len(message):
            if edit == "r":
                message[at] = byte
            else:
                del message[at]
    data = carrier(bytes(message)) if sealed else MAGIC + bytes(message) + data[-16:]
    within = HashRange(0, 2**127)
    other = deaggregate(data, within)
    opened = open_carrier(data)
    if isinstance(other, CorruptAggregate):
        assert opened is None
    else:
        assert opened is not None
        assert [record.data for record in opened] == other.payloads
        outside = [place for place, record in enumerate(opened) if not within.low <= record.hash_key <= within.high]
        assert outside == other.outside


# ── records ─────────────────────────────────────────────────────────────────────────────────────────────────


def read(spec: dict[str, Any], data: bytes, *, coerce: bool = False, key: bool = False) -> Any:
    path = tuple(spec["path"])
    reading = Reading([field("k", "int"), spec], coerce=coerce, key=[path] if key else [("k",)], used=[path])
    row = reading.read(data)
    return row if isinstance(row, str) else row.values[0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"k":1,"v":2}', None),
        (b' \t\r\n{"k" : 1 , "v" : 2 } ', None),
        (b'{"k":1,"v":2,"more":[1,{"x":null}],"big":' + b"9" * 5000 + b',"huge":1e999}', None),
        ('{"k":1,"v":2,"é":"😀\\ud83d\\ude00\\\\ud800"}'.encode(), None),
        (b'{"k":1,"\\u0076":2}', None),
        (b"", "not_json"),
        (b"\xff", "not_utf8"),
        (b'{"k":1,"v":2,"x":"\xed\xa0\x80"}', "not_utf8"),
        (b'\xef\xbb\xbf{"k":1,"v":2}', "not_json"),
        ('{"k":1,"v":2}'.encode("utf-16"), "not_utf8"),
        (b'{"k":1,"v":2}{}', "not_json"),
        (b'{"k":1,"v":2}\x00', "not_json"),
        (b'{"k":1,"v":2,}', "not_json"),
        (b"{'k':1,'v':2}", "not_json"),
        (b'{"k":1,"v":02}', "not_json"),
        (b'{"k":1,"v":2.}', "not_json"),
        (b'{"k":1,"v":2,"x":NaN}', "not_json"),
        (b'{"k":1,"v":2,"x":-Infinity}', "not_json"),
        (b'{"k":1,"v":2,"x":"\x01"}', "not_json"),
        (b'{"k":1,"v":2,"x":"\\ud800"}', "not_json"),
        (b'{"k":1,"v":2,"x":"\\ud800\\u0041"}', "not_json"),
        (b'{"k":1,"v":2,"x":"\\ud800-\\udc00"}', "not_json"),
        (b'{"k":1,"v":2,"x":"\\ud800-\\n"}', "not_json"),
        (b'{"k":1,"v":2,"\\udc00":1}', "not_json"),
        (b"[" * 100_000, "not_json"),
        (b"null", "not_an_object"),
        (b'[{"k":1,"v":2}]', "not_an_object"),
        (b'"{}"', "not_an_object"),
        (b'{"k":1}', "missing_field"),
        (b'{"k":1,"v":null}', "wrong_type"),
        (b'{"k":1,"v":{}}', "wrong_type"),
    ],
)
def test_what_a_record_is(data: bytes, reason: str | None) -> None:
    assert read(field("v", "int"), data) == (reason or 2)


MISSING = object()
INT, FLOAT, DECIMAL = field("v", "int"), field("v", "float"), field("v", "decimal")


@pytest.mark.parametrize(
    ("spec", "text", "value"),
    [
        (INT, "-0", 0),
        (INT, str(2**63 - 1), 2**63 - 1),
        (INT, str(-(2**63)), -(2**63)),
        (INT, str(2**63), "out_of_range"),
        (INT, "9" * 5000, "out_of_range"),
        (INT, "-" + "9" * 50, "out_of_range"),
        (INT, "1.0", "wrong_type"),
        (INT, "1e2", "wrong_type"),
        (INT, "true", "wrong_type"),
        (INT, '"1"', "wrong_type"),
        (field("v", "int", low=0, high=9), "0", 0),
        (field("v", "int", low=0, high=9), "9", 9),
        (field("v", "int", low=0, high=9), "10", "out_of_range"),
        (field("v", "int", low=0, high=9), "-1", "out_of_range"),
        (FLOAT, "5", Decimal(5)),
        (FLOAT, "0.1", Decimal("0.1")),
        (FLOAT, "0.10000000000000000555", Decimal("0.1")),
        (FLOAT, "-1E-2", Decimal("-0.01")),
        (FLOAT, "-0.0", Decimal(0)),
        (FLOAT, "1e400", "out_of_range"),
        (FLOAT, "1e126", "out_of_range"),
        (FLOAT, "1e-131", "out_of_range"),
        (FLOAT, "1e-400", Decimal(0)),
        (FLOAT, "false", "wrong_type"),
        (field("v", "float", low=0.1, high=0.3), "0.1", Decimal("0.1")),
        (field("v", "float", low=0.1, high=0.3), "0.30000000000000004", "out_of_range"),
        (field("v", "float", decimals=2), "0.25", Decimal("0.25")),
        (field("v", "float", decimals=2), "0.125", "out_of_range"),
        (field("v", "float", decimals=2), "1e27", "out_of_range"),
        (field("v", "float", decimals=2), "9e26", Decimal("9e26")),
        (DECIMAL, "1.50", Decimal("1.5")),
        (DECIMAL, "9" * 38, Decimal("9" * 38)),
        (DECIMAL, "9" * 38 + "0" * 5, Decimal("9" * 38 + "0" * 5)),
        (DECIMAL, "1" + "0" * 5000, "out_of_range"),
        (DECIMAL, "9" * 39, "out_of_range"),
        (DECIMAL, "0." + "0" * 129 + "1", Decimal("1e-130")),
        (DECIMAL, "1e-131", "out_of_range"),
        (DECIMAL, "9.99e125", Decimal("9.99e125")),
        (DECIMAL, "1e126", "out_of_range"),
        (DECIMAL, "1e9999999999999999999", "out_of_range"),
        (DECIMAL, '"1"', "wrong_type"),
        (field("v", "decimal", low=0, high="0.3"), "0.3", Decimal("0.3")),
        (field("v", "decimal", low=0, high="0.3"), "0.30000000000000000000001", "out_of_range"),
        (field("v", "bool"), "true", True),
        (field("v", "bool"), "1", "wrong_type"),
        (field("v", "bool"), "null", "wrong_type"),
        (field("v", "bool", nullable=True), "null", None),
        (field("v", "str"), '"x"', "x"),
        (field("v", "str"), "1.5", "wrong_type"),
        (field("v", "str", min_length=2, max_length=3), '"é😀"', "é😀"),
        (field("v", "str", min_length=2, max_length=3), '"a"', "out_of_range"),
        (field("v", "str", min_length=2, max_length=3), '"abcd"', "out_of_range"),
        (field("v", "choice", choices=["N", "Y"]), '"Y"', "Y"),
        (field("v", "choice", choices=["N", "Y"]), '"y"', "out_of_range"),
        (field("v", "choice", choices=["N", "Y"]), "0", "wrong_type"),
        (field("v", "choice", choices=[0, 1]), "1", 1),
        (field("v", "choice", choices=[0, 1]), "true", "wrong_type"),
        (field("v", "choice", choices=[0, 1]), "1.0", "wrong_type"),
    ],
)
def test_what_a_value_is(spec: dict[str, Any], text: str, value: Any) -> None:
    found = read(spec, f'{{"k":1,"v":{text}}}'.encode())
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("spec", "text", "value"),
    [
        (INT, "2", 2),
        (INT, " \t2\t ", 2),
        (INT, "-0", 0),
        (INT, "2.0", "wrong_type"),
        (INT, "+2", "wrong_type"),
        (INT, "02", "wrong_type"),
        (INT, "2\n", "wrong_type"),
        (INT, "\u00a02", "wrong_type"),
        (INT, "٢", "wrong_type"),
        (INT, "2_0", "wrong_type"),
        (INT, "", "wrong_type"),
        (INT, "9" * 5000, "out_of_range"),
        (FLOAT, " 1.5", Decimal("1.5")),
        (FLOAT, "nan", "wrong_type"),
        (FLOAT, "Infinity", "wrong_type"),
        (FLOAT, "1e400", "out_of_range"),
        (DECIMAL, "1.50", Decimal("1.5")),
        (DECIMAL, ".5", "wrong_type"),
        (field("v", "int", low=0, high=9), "10", "out_of_range"),
        (field("v", "bool"), "true", "wrong_type"),
        (field("v", "str"), "2", "2"),
    ],
)
def test_what_a_number_written_as_text_is_where_that_is_allowed(spec, text: str, value: Any) -> None:
    assert read(spec, json.dumps({"k": 1, "v": text}).encode(), coerce=True) == value
    if spec["type"] != "str":
        assert read(spec, json.dumps({"k": 1, "v": text}).encode()) == "wrong_type"


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (field("v", "int", required=False), None),
        (field("v", "int", required=False, default=7), 7),
        (field("v", "float", required=False, default=0.1), Decimal("0.1")),
    ],
)
def test_what_is_not_required_has_its_default(spec, value) -> None:
    assert read(spec, b'{"k":1}') == value


def test_a_text_key_has_room_in_dynamodb() -> None:
    for length, clean in [(0, False), (1, True), (512, True), (513, False)]:
        data = json.dumps({"k": 1, "v": "é" * length}).encode()
        assert (read(field("v", "str"), data, key=True) == "é" * length) is clean
    both = [("a",), ("b",)]
    reading = Reading([field("a", "str"), field("b", "str")], coerce=False, key=both, used=both)
    assert not isinstance(reading.read(json.dumps({"a": "x" * 128, "b": "y"}).encode()), str)
    assert reading.read(json.dumps({"a": "x" * 129, "b": "y"}).encode()) == "out_of_range"


NESTED = [
    field("car", "object"),
    field("car.seats", "int"),
    field("car.owner", "object"),
    field("car.owner.name", "str"),
]


@pytest.mark.parametrize(
    ("record", "value"),
    [
        ({"car": {"seats": 4, "owner": {"name": "x"}}}, 4),
        ({"car.seats": 4}, "missing_field"),
        ({"car": 1}, "wrong_type"),
        ({"car": None}, "wrong_type"),
        ({"car": {"seats": 4}}, "missing_field"),
        ({"car": {"seats": 4, "owner": []}}, "wrong_type"),
        ({"car": {"seats": 4, "owner": {"name": 1}}}, "wrong_type"),
    ],
)
def test_nested_fields_are_found_by_path(record, value) -> None:
    reading = Reading(NESTED, coerce=False, key=[("car", "seats")], used=[("car", "seats")])
    row = reading.read(json.dumps(record).encode())
    assert (row if isinstance(row, str) else row.values[0]) == value


@pytest.mark.parametrize(
    ("data", "value", "disputed"),
    [
        (b'{"k":1,"v":1,"v":2}', 2, False),
        (b'{"k":1,"v":"x","v":2}', 2, True),
        (b'{"k":1,"v":2,"v":"x"}', "wrong_type", None),
        (b'{"k":1,"v":2,"u":1,"u":[]}', 2, False),
    ],
)
def test_of_a_member_that_is_written_twice_the_last_counts(data: bytes, value: Any, disputed: bool | None) -> None:
    row = Reading([field("k", "int"), INT], coerce=False, key=[("k",)], used=[("v",)]).read(data)
    if isinstance(row, str):
        assert row == value
    else:
        assert (row.values, row.disputed) == ([value], disputed)


def test_over_a_disputed_record_the_quarantine_decides(case: Case) -> None:
    data = b'{"vendorId":1,"passengerCount":"x","passengerCount":4}'
    case.stream.append((SHARDS[0], "104", T0, data))
    aside = copy.deepcopy(case)
    aside.quarantined.append(quarantined("104", data, reason="wrong_type"))
    assert aside.kinds() == []
    case.items[0] = item(1, 0, 9, 3)
    assert case.kinds() == []


# ── against the product's own reading ───────────────────────────────────────────────────────────────────────


class Owner(windlass.Record):
    name: Annotated[str, windlass.Length(1, 3)] = "me"


class Anything(windlass.Record):
    k: Literal["a", "b", "ü"]
    owner: Owner
    i: Annotated[int, windlass.Range(-5, 5)]
    c: Literal[1, -3] = 1
    f: float | None = None
    d: Decimal | None = None
    b: bool = True
    n: int | None = windlass.field(name="N", default=3)


def _declared(coerce: bool) -> tuple[Any, Reading]:
    pipeline = Windows(
        Anything,
        key="k",
        every=timedelta(seconds=30),
        totals={name: Sum(name) for name in ("i", "f", "d", "n")},
        table="t",
        coerce=coerce,
    )
    fields = pipeline.describe()["fields"]
    used = [("k",), ("i",), ("f",), ("d",), ("N",), ("c",)]
    return pipeline.plan.schema, Reading(fields, coerce=coerce, key=[("k",)], used=used)


DECLARED = {coerce: _declared(coerce) for coerce in (False, True)}

_texts = st.text(st.sampled_from("01.e+-E \t9aN\u00a0٢"), max_size=8) | st.text(max_size=4)
_numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,45})(\.[0-9]{1,45})?([eE][+-]?[0-9]{1,3})?", fullmatch=True, alphabet=None)
_literals = (
    _numbers
    | st.sampled_from(
        ["null", "true", "false", "NaN", '"a"', '"b"', '"\\u00fc"', '"\\ud800"', "{}", "[]", "5", "-6", "-0"]
    )
    | _texts.map(json.dumps)
    | _numbers.map(lambda number: f'" {number}\t"')
)


@st.composite
def _objects(draw) -> str:
    members = {"k": '"a"', "i": "1", "f": "1.5", "d": "2.25", "b": "true", "owner": '{"name":"x"}', "N": "4", "c": "1"}
    for name in draw(st.lists(st.sampled_from([*members, "other"]), max_size=3)):
        value = draw(_literals)
        members[name] = f'{{"name":{value}}}' if name == "owner" and draw(st.booleans()) else value
    for name in draw(st.lists(st.sampled_from(list(members)), max_size=1)):
        del members[name]
    return "{" + ",".join(f'"{name}":{value}' for name, value in members.items()) + "}"


@st.composite
def _payloads(draw) -> bytes:
    data = draw(_objects()).encode("utf-8", "surrogatepass")
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=1)):
        at = place % len(data)
        data = data[:at] + bytes([byte]) + data[at + draw(st.integers(0, 1)) :]
    return data


@given(data=_payloads() | st.binary(max_size=20), coerce=st.booleans())
@example(data=b'{"k":"a","i":1,"owner":{},"d":1' + b"0" * 5000 + b"}", coerce=False)
@example(data=b'{"k":"a","i":1,"owner":{},"f":"1e-200"}', coerce=True)
@example(data=b'{"k":"a","i":1,"owner":{},"d":99999999999.999999999999999999}', coerce=False)
def test_both_readings_agree_on_what_is_clean_and_on_its_values(data: bytes, coerce: bool) -> None:
    schema, reading = DECLARED[coerce]
    (record,), _ = schema.read([data])
    row = reading.read(data)
    if isinstance(row, str):
        assert isinstance(record, Fault), (row, record)
        assert record.reason.value in reading.reasons(data), (row, record)
    elif not row.disputed:
        assert not isinstance(record, Fault), (row, record)
        assert row.values == [record.k, record.i, record.f, record.d, record.n, record.c]


# ── what cannot be checked ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"kind": "records"}, "only pipelines of windows"),
        ({"layout": "weekly"}, "not of the known shape"),
        (
            {"fields": [field("vendorId", "uuid"), field("passengerCount", "int")]},
            "'uuid', which this check does not know",
        ),
        ({"key": [["else"]]}, "the field else without describing it"),
        ({"totals": [total("x", "median", "passengerCount")]}, "'median', which this check does not know"),
    ],
)
def test_a_description_of_another_shape_is_one_clear_line(others: dict[str, Any], says: str) -> None:
    with pytest.raises(CannotVerify, match=says):
        verify(description(**others), [], [])


# ── the sources ─────────────────────────────────────────────────────────────────────────────────────────────


class Kinesis:
    """Answers as AWS does where moto does not: pages of shards, empty answers in the middle, closed shards."""

    def __init__(self, answers: dict[str, list[dict[str, Any]]]) -> None:
        self.answers = answers
        self.started: dict[str, dict[str, Any]] = {}

    def list_shards(self, **arguments: Any) -> dict[str, Any]:
        names = list(self.answers)
        at = int(arguments.get("NextToken", 0))
        assert set(arguments) == ({"NextToken"} if at else {"StreamName"})
        page: dict[str, Any] = {"Shards": [{"ShardId": names[at]}]}
        return page | ({"NextToken": str(at + 1)} if at + 1 < len(names) else {})

    def get_shard_iterator(self, **arguments: Any) -> dict[str, Any]:
        self.started[arguments["ShardId"]] = arguments
        return {"ShardIterator": f"{arguments['ShardId']}/0"}

    def get_records(self, ShardIterator: str, Limit: int) -> dict[str, Any]:
        shard, _, at = ShardIterator.partition("/")
        answer = self.answers[shard][int(at)]
        closed = answer.get("closed", False)
        return {
            "Records": [record(sequence, ms) for sequence, ms in answer.get("records", [])],
            "MillisBehindLatest": answer.get("behind", 0),
            "NextShardIterator": None if closed else f"{shard}/{int(at) + 1}",
        }


def record(sequence: str, ms: int) -> dict[str, Any]:
    arrival = datetime.fromtimestamp(ms // 1000, UTC).replace(microsecond=ms % 1000 * 1000 + 999)
    return {"SequenceNumber": sequence, "ApproximateArrivalTimestamp": arrival, "Data": b"x"}


def test_every_shard_is_read_to_its_end_past_empty_answers() -> None:
    kinesis = Kinesis(
        {
            "s0": [{"records": [("1", T0 + 1)], "behind": 9}, {"behind": 5}, {"records": [("2", T0 + 2)]}, {}],
            "s1": [{"records": [("3", T0 + 3)], "behind": 9, "closed": True}],
            "s2": [{}],
        }
    )
    read_all = list(read_stream(kinesis, "stream", now_ms=T0 + 1000))
    assert read_all == [("s0", "1", T0 + 1, b"x"), ("s0", "2", T0 + 2, b"x"), ("s1", "3", T0 + 3, b"x")]


def test_reading_ends_although_a_producer_goes_on() -> None:
    answers = [{"records": [(str(n), T0 + n * 100)]} for n in range(100)]
    read_all = list(read_stream(Kinesis({"s0": answers}), "stream", now_ms=T0 + 500))
    assert [sequence for _, sequence, _, _ in read_all] == ["0", "1", "2", "3", "4", "5"]


def test_a_range_begins_a_little_before_itself_and_ends_a_little_after() -> None:
    answers = [{"records": [(str(n), T0 + n * 60_000)], "behind": 1} for n in range(100)]
    kinesis = Kinesis({"s0": answers})
    read_all = list(read_stream(kinesis, "stream", now_ms=T0 * 2, from_ms=T0 + 600_000, to_ms=T0 + 60_000))
    assert kinesis.started["s0"]["ShardIteratorType"] == "AT_TIMESTAMP"
    assert kinesis.started["s0"]["Timestamp"] == (T0 + 300_000) / 1000
    assert len(read_all) == 7


@pytest.fixture(scope="module")
def aws() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield {name: boto3.client(name) for name in ("kinesis", "dynamodb")}


def test_against_a_real_stream_and_table(aws) -> None:
    kinesis, dynamodb = aws["kinesis"], aws["dynamodb"]
    kinesis.create_stream(StreamName="trips", ShardCount=2)
    arn = kinesis.describe_stream_summary(StreamName="trips")["StreamDescriptionSummary"]["StreamARN"]
    data = [trip(1 + number % 2, number % 10) for number in range(50)] + [b"?"]
    for number, payload in enumerate(data):
        kinesis.put_record(StreamName="trips", Data=payload, PartitionKey=str(number))
    dynamodb.create_table(**TOTALS_TABLE)
    now_ms = int(time.time() * 1000) + 60_000
    pipeline = description(every_s=900)

    def stream(name: str = "trips", **options: Any) -> list[Any]:
        return list(read_stream(kinesis, name, now_ms=now_ms, **options))

    records = stream()
    assert sorted(payload for _, _, _, payload in records) == sorted(data)
    assert stream(arn) == records
    assert stream(from_ms=now_ms - 3_600_000) == records
    assert oldest_ms(kinesis, "trips", now_ms=now_ms) is None
    assert oldest_ms(kinesis, "trips", now_ms=now_ms + 48 * 3_600_000) == now_ms + 24 * 3_600_000

    before = verify(pipeline, records, read_table(dynamodb, "totals"))
    assert {difference.kind for difference in before.differences} == {"missing_item"}
    for difference in before.differences:
        start_ms = int(_epoch_s(difference.window)) * 1000
        mine = [json.loads(r[3]) for r in records if r[3] != b"?" and r[2] // 900_000 * 900_000 == start_ms]
        mine = [each for each in mine if each["vendorId"] == int(difference.key)]
        dynamodb.put_item(
            TableName="totals",
            Item={
                "vendorId": {"N": difference.key},
                "windowStart": {"S": difference.window},
                "windowEnd": {"S": _iso_s(start_ms // 1000 + 900)},
                "passenger": {"N": str(sum(each["passengerCount"] for each in mine))},
                "trips": {"N": str(len(mine))},
                "more": {"BOOL": True},
            },
        )
    after = verify(pipeline, records, read_table(dynamodb, "totals"))
    assert after.differences == ()
    assert (after.received, after.clean, after.rejected) == (51, 50, 1)


def test_after_a_split_the_children_have_ranges_to_check(aws) -> None:
    kinesis = aws["kinesis"]
    kinesis.create_stream(StreamName="splitting", ShardCount=1)
    kinesis.put_record(StreamName="splitting", Data=b"before", PartitionKey="a")
    assert shard_ranges(kinesis, "splitting") == {}
    kinesis.split_shard(StreamName="splitting", ShardToSplit=SHARDS[0], NewStartingHashKey=str(2**127))
    kinesis.put_record(StreamName="splitting", Data=b"after", PartitionKey="a")
    ranges = shard_ranges(kinesis, "splitting")
    assert sorted(ranges.values()) == [(0, 2**127 - 1), (2**127, 2**128 - 1)]
    assert SHARDS[0] not in ranges
    records = read_stream(kinesis, "splitting", now_ms=2**42)
    assert [payload for _, _, _, payload in records] == [b"before", b"after"]


def test_a_stream_or_table_that_is_not_there_is_one_clear_line(aws) -> None:
    with pytest.raises(CannotVerify, match="stream nowhere cannot be read: ResourceNotFoundException"):
        list(read_stream(aws["kinesis"], "nowhere", now_ms=0))
    with pytest.raises(CannotVerify, match="table nowhere cannot be read: ResourceNotFoundException"):
        list(read_table(aws["dynamodb"], "nowhere"))


def _epoch_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _iso_s(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_carrier_is_told_by_its_magic() -> None:
    assert is_carrier(MAGIC)
    assert not is_carrier(MAGIC[:3])
