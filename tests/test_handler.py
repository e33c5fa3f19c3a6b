"""The handler: laws over whole windows, and what each kind of event and trouble comes to."""

import itertools
import json
import random
from datetime import timedelta
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import (
    END_30,
    SHARD,
    START,
    START_S,
    STREAM,
    aggregate,
    event,
    hash_key,
    kinesis_record,
    records,
    trip,
)
from tests.handlers import on_memory
from windlass import Count, Max, Min, Range, Record, Records, Sum, Windows
from windlass.core.aggregate import HashRange
from windlass.core.event import MalformedEvent
from windlass.core.fold import UnknownState
from windlass.core.rejected import Reason
from windlass.delivery import AllThrottled, SomeThrottled
from windlass.shards import ShardUnknown
from windlass.sim.table import MemoryTable
from windlass.table import Throttled


class Trip(Record):
    vendorId: int
    passengerCount: Annotated[int, Range(0, 9)]


FENCE = f"applied#us-east-1:123456789012:input-stream/{SHARD}"


def windows(**changed: Any) -> Windows:
    usual: dict[str, Any] = {
        "key": "vendorId",
        "every": timedelta(seconds=30),
        "totals": {"passenger": Sum("passengerCount"), "trips": Count()},
        "table": "kinesisAggs",
    }
    return Windows(Trip, **(usual | changed))


SMALL_STATE = 2048 + 3 * 290  # about three rows, so that windows are cut


def deliver(handler: Any, batches: list[list[dict[str, Any]]], *, shard: str = SHARD) -> list[dict[str, Any]]:
    """A window from its start with empty state to its final call. The states answered."""
    state: Any = {}
    states = []
    for batch in batches:
        state = json.loads(json.dumps(handler(event(batch, state=state, shard=shard), None)["state"]))
        states.append(state)
    assert handler(event([], state=state, final=True, shard=shard), None) == {"state": {}}
    return states


def split(values: list[Any], edges: list[int]) -> list[list[Any]]:
    bounds = sorted({0, len(values), *(edge for edge in edges if edge < len(values))})
    return [values[start:end] for start, end in itertools.pairwise(bounds)]


def items(seams: Any) -> dict[Any, Any]:
    return {(item["vendorId"], item["windowStart"]): item for item in seams.table.items()}


payloads = st.lists(
    st.one_of(
        st.builds(trip, st.integers(1, 6), st.integers(0, 9)),
        st.sampled_from([b"{", b"[]", b"\xff", trip(1, 11), trip("x", 1), b'{"vendorId": 1}']),
        st.lists(st.builds(trip, st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=5).map(aggregate),
    ),
    max_size=25,
)
edges = st.lists(st.integers(0, 25), max_size=5)
variants = st.sampled_from([{}, {"layout": "latest"}, {"totals": {"least": Min("passengerCount"), "n": Count()}}])


@given(payloads, edges, variants)
def test_any_batching_of_the_same_records_gives_the_same_items(data, cut, variant):
    whole, in_one = on_memory(windows(state_bytes_max=SMALL_STATE, **variant))
    parts, in_parts = on_memory(windows(state_bytes_max=SMALL_STATE, **variant))

    deliver(whole, [records(data)])
    deliver(parts, split(records(data), cut))

    assert items(in_one) == items(in_parts)


@given(payloads, edges, edges, st.integers(0, 5), variants)
def test_a_replay_of_the_whole_window_in_other_batches_changes_nothing(data, cut, other_cut, keep, variant):
    handler, seams = on_memory(windows(state_bytes_max=SMALL_STATE, **variant))
    state: Any = {}
    for batch in split(records(data), cut)[:keep]:  # a part of the window, then the state is lost
        state = handler(event(batch, state=state), None)["state"]
    deliver(handler, split(records(data), other_cut))
    once = items(seams)

    deliver(handler, split(records(data), cut))
    handler(event([], state=state, final=True), None)

    untouched, reference = on_memory(windows(state_bytes_max=SMALL_STATE, **variant))
    deliver(untouched, [records(data)])
    assert items(seams) == once == items(reference)


@given(payloads, st.data())
def test_a_replay_of_any_suffix_changes_nothing(data, draw):
    handler, seams = on_memory(windows())
    start = draw.draw(st.integers(0, len(data)))
    state = handler(event(records(data)), None)["state"]
    again = handler(event(records(data)[start:], state=state), None)["state"]
    handler(event([], state=again, final=True), None)

    reference, expected = on_memory(windows())
    deliver(reference, [records(data)])
    assert again == state
    assert items(seams) == items(expected)


@given(payloads, payloads, st.lists(st.booleans(), max_size=8), variants)
def test_two_shards_in_any_interleaving_give_the_same_items(left, right, order, variant):
    def run(turns: list[bool]) -> dict[Any, Any]:
        handler, seams = on_memory(windows(state_bytes_max=SMALL_STATE, **variant))
        states: dict[str, Any] = {"shardId-1": {}, "shardId-2": {}}
        queues = {
            "shardId-1": split(records(left, shard="shardId-1"), [3, 9]),
            "shardId-2": split(records(right, shard="shardId-2"), [5, 8]),
        }
        for first in [*turns, *[True, False] * 4]:
            shard = "shardId-1" if first else "shardId-2"
            if queues[shard]:
                batch = queues[shard].pop(0)
                states[shard] = handler(event(batch, state=states[shard], shard=shard), None)["state"]
        for shard in sorted(states, reverse=bool(turns and turns[0])):
            handler(event([], state=states[shard], final=True, shard=shard), None)
        found = items(seams)
        for item in found.values():
            item.pop("version", None)  # counts the merges of minima, in whatever order they came
        return found

    assert run(order) == run([])


@given(payloads)
def test_every_record_ends_in_exactly_one_place(data):
    handler, seams = on_memory(windows())
    batch = records(data)
    for record in batch[::7]:
        record["kinesis"]["approximateArrivalTimestamp"] = START_S - 0.001

    deliver(handler, [batch])

    counts = seams.telemetry.reports[0]
    folded = sum(item["trips"] for item in seams.table.items())
    kept = list(seams.quarantine.read())
    late = [record for record in kept if record.reason == Reason.LATE]
    assert (counts.clean, counts.late) == (folded, len(late))
    assert counts.received == folded + len(kept)
    assert len({record.position for record in kept}) == len(kept)


@given(st.lists(st.binary(max_size=60), max_size=6), st.booleans())
def test_any_bytes_end_in_one_place_and_never_raise(data, final):
    handler, seams = on_memory(windows())

    answer = handler(event(records(data), final=final), None)

    report = seams.telemetry.reports[0]
    assert isinstance(answer["state"], dict)
    assert report.received == report.clean + sum(report.rejected.values()) + report.late


@given(st.integers(0, 10**6))
def test_a_mutated_aggregate_ends_in_one_place_and_never_raises(seed):
    rng = random.Random(seed)
    carrier = bytearray(aggregate([trip(1, 2), trip(2, 3)]))
    for _ in range(rng.randint(1, 4)):
        carrier[rng.randrange(len(carrier))] = rng.randrange(256)
    handler, seams = on_memory(windows())

    handler(event(records([bytes(carrier[: rng.randint(0, len(carrier))])])), None)

    report = seams.telemetry.reports[0]
    assert report.received >= 1
    assert report.received == report.clean + sum(report.rejected.values())


def test_a_final_call_folds_its_records_before_it_flushes():
    handler, seams = on_memory(windows())

    answer = handler(event(records([trip(1, 2), trip(2, 4)]), final=True), None)

    assert answer == {"state": {}}
    assert items(seams)[1, START]["passenger"] == 2
    assert items(seams)[2, START] == {
        "vendorId": 2,
        "windowStart": START,
        "windowEnd": END_30,
        "passenger": 4,
        "trips": 1,
        FENCE: items(seams)[2, START][FENCE],
    }


def test_an_early_call_flushes_and_the_window_goes_on_with_an_empty_state():
    handler, seams = on_memory(windows())
    state = handler(event(records([trip(1, 2)])), None)["state"]

    assert handler(event([], state=state, early=True), None) == {"state": {}}
    deliver(handler, [records([trip(1, 3)], first=2)])

    assert items(seams)[1, START]["passenger"] == 5


def test_streams_of_equal_shard_ids_add_to_one_table():
    handler, seams = on_memory(windows())
    arns = [
        STREAM,
        STREAM.replace("input", "old"),
        STREAM.replace("us-east-1", "eu-west-1"),
        STREAM.replace("1234", "9"),
    ]
    for arn in (*arns, f"{arns[1]}/consumer/fan-out:1700000000", *arns):
        handler(event(records([trip(1, 2)]), final=True, stream=arn), None)

    assert items(seams)[1, START]["passenger"] == 2 * 4
    assert [report.skipped_flushes for report in seams.telemetry.reports] == [0] * 4 + [1] * 5


def test_records_out_of_order_or_repeated_in_one_call_are_folded_once():
    handler, seams = on_memory(windows())
    batch = [kinesis_record(number, trip(1, number)) for number in (2, 1, 2, 3, 3)]

    handler(event(batch, final=True), None)

    assert items(seams)[1, START]["passenger"] == 2 + 3
    assert seams.telemetry.reports[0].duplicates == 3


def test_a_batch_repeated_after_the_totals_have_changed_is_not_counted_again():
    before, seams = on_memory(windows())
    after = windows(totals={"trips": Count(), "most": Max("passengerCount")}).handler_on(lambda: seams)
    batch = records([trip(1, 2), trip(1, 3)])
    state = before(event(batch), None)["state"]

    after(event(batch, state=state, final=True), None)

    (item,) = seams.table.items()
    assert (item["passenger"], item["trips"], "most" in item) == (5, 2, False)
    assert seams.telemetry.reports[-1].duplicates == 2


def test_a_repeated_final_call_is_told_as_skipped():
    handler, seams = on_memory(windows())
    state = handler(event(records([trip(1, 2), trip(2, 2)])), None)["state"]
    for _ in range(2):
        handler(event([], state=state, final=True), None)

    assert [(r.flushed_rows, r.skipped_flushes) for r in seams.telemetry.reports] == [(0, 0), (2, 0), (0, 2)]


def test_the_latest_layout_keeps_the_newest_window_and_tells_the_superseded_ones():
    handler, seams = on_memory(windows(layout="latest"))
    later = {"start": "2020-12-09T07:04:30Z", "end": "2020-12-09T07:05:00Z"}
    new = [kinesis_record(9, trip(1, 7), arrival_s=START_S + 31, shard="shardId-2")]
    handler(event(new, final=True, shard="shardId-2", **later), None)
    handler(event(records([trip(1, 2)]), final=True), None)

    (item,) = seams.table.items()
    assert (item["windowStart"], item["passenger"]) == (later["start"], 7)
    assert seams.telemetry.reports[-1].superseded_rows == 1


def test_a_late_record_goes_to_quarantine_and_not_into_the_window():
    handler, seams = on_memory(windows())
    late = kinesis_record(1, trip(1, 5), arrival_s=START_S + 30.0)

    handler(event([late, *records([trip(1, 2)], first=2)], final=True), None)

    assert items(seams)[1, START]["passenger"] == 2
    assert [(r.reason, r.arrival_ms) for r in seams.quarantine.read()] == [(Reason.LATE, (START_S + 30) * 1000)]


def test_records_of_an_aggregate_outside_the_shards_range_are_left_to_the_kpl():
    keys = [f"id{number}" for number in range(30)]
    inside = [key for key in keys if hash_key(key.encode()) < 2**127]
    carrier = aggregate([trip(1, 1)] * 30, keys)
    ranges = {SHARD: HashRange(0, 2**127 - 1)}

    for policy, folded in (("keep_insiders", len(inside)), ("keep_all", 30)):
        handler, seams = on_memory(windows(aggregates=policy), ranges)
        handler(event(records([carrier, trip(1, 1)]), final=True), None)

        assert items(seams)[1, START]["trips"] == folded + 1
        assert seams.telemetry.reports[0].rejected.get("wrong_shard", 0) == 30 - folded


def test_a_shard_whose_range_cannot_be_found_fails_the_call_before_anything_is_written():
    handler, seams = on_memory(windows())

    class Failing:
        def within(self, stream_arn: str, shard: str) -> HashRange | None:
            raise ShardUnknown(shard)

    seams.shards = Failing()
    with pytest.raises(ShardUnknown):
        handler(event(records([aggregate([trip(1, 1)])]), final=True), None)

    assert not items(seams)
    handler(event(records([trip(1, 1)]), final=True), None)  # without aggregates nobody asks


KINESIS = kinesis_record(1, b"{}")["kinesis"]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({}, "no Records; found []"),
        ({"detail": 1}, "no Records; found ['detail']"),
        ([], "is an object with Records; found list"),
        ({"Records": [{"body": "sqs"}]}, "not a Kinesis record: KeyError 'kinesis'"),
        ({"Records": [], "window": {"start": "x", "end": "y"}}, "not one"),
        ({"Records": [], "window": {"start": START, "end": END_30}}, "has shardId"),
        (event([], end="2020-12-09T07:05:00Z"), "is 60 s long, Trip declares 30 s"),
        ({"Records": []}, "set TumblingWindowInSeconds=30"),
        (event([], state={"passengerCount": 3}), "not of version 1"),
        (event([{"kinesis": {"sequenceNumber": "1", "approximateArrivalTimestamp": 1.0, "data": "!"}}]), "base64"),
        (event([kinesis_record(1, b"{}") | {"kinesis": {**KINESIS, "sequenceNumber": 5}}]), "sequenceNumber is text"),
        (event([kinesis_record(1, b"{}") | {"kinesis": {**KINESIS, "approximateArrivalTimestamp": "1"}}]), "a number"),
        (event([kinesis_record(1, b"{}") | {"kinesis": {**KINESIS, "approximateArrivalTimestamp": None}}]), "a number"),
        (event([]) | {"isFinalInvokeForWindow": "false"}, "has isFinalInvokeForWindow, a bool; found 'false'"),
        (event([]) | {"shardId": None}, "has shardId, a str; found None"),
    ],
)
def test_a_malformed_event_raises_with_what_was_found(bad, says):
    handler, seams = on_memory(windows())

    with pytest.raises((MalformedEvent, UnknownState)) as caught:
        handler(bad, None)

    assert says in str(caught.value)
    assert not items(seams)
    assert [report.failed for report in seams.telemetry.reports] == [type(caught.value).__name__]


# ── throttling: all failed, some failed ─────────────────────────────────────────────────────────────────────


class Throttling(MemoryTable):
    """Refuses the writes that the script says to."""

    def __init__(self, keys: Any, refuse: Any) -> None:
        super().__init__(keys)
        self.refuse, self.writes = refuse, 0

    def merge(self, contribution: Any) -> Any:
        self.writes += 1
        if self.refuse(self.writes, contribution):
            raise Throttled(("TableWriteKeyRangeThroughputExceeded",))
        return super().merge(contribution)


def test_when_all_writes_are_throttled_the_call_raises_at_once():
    pipeline = windows()
    table = Throttling(pipeline.table_keys, lambda writes, _: True)
    handler, seams = on_memory(pipeline, table=table)

    with pytest.raises(AllThrottled):
        handler(event(records([trip(1, 1), trip(2, 1)]), final=True), None)

    assert table.writes == 2
    (report,) = seams.telemetry.reports
    assert (report.failed, report.retry_rounds, report.throttled) == ("AllThrottled", 0, 2)


def test_when_some_writes_are_throttled_only_those_are_tried_again():
    pipeline = windows()
    table = Throttling(pipeline.table_keys, lambda writes, row: writes <= 4 and row.key == {"vendorId": 2})
    handler, seams = on_memory(pipeline, table=table)

    handler(event(records([trip(1, 1), trip(2, 1), trip(3, 1)]), final=True), None)

    assert table.writes == 5
    assert {key: item["trips"] for (key, _), item in items(seams).items()} == {1: 1, 2: 1, 3: 1}
    assert seams.telemetry.reports[0].retry_rounds == 2


def test_a_call_that_gave_up_on_some_writes_is_made_whole_by_lambdas_retry():
    pipeline = windows()
    stuck = {2}
    table = Throttling(pipeline.table_keys, lambda _, row: row.key["vendorId"] in stuck)
    handler, seams = on_memory(pipeline, table=table)
    final = event(records([trip(1, 1), trip(2, 1)]), final=True)

    with pytest.raises(SomeThrottled):
        handler(final, None)
    stuck.clear()
    handler(final, None)
    gave_up = seams.telemetry.reports[0]
    assert (gave_up.failed, gave_up.retry_rounds, gave_up.throttled) == ("SomeThrottled", 4, 5)

    assert {key: item["trips"] for (key, _), item in items(seams).items()} == {1: 1, 2: 1}
    assert seams.telemetry.reports[-1].skipped_flushes == 1


def test_quarantine_trouble_fails_the_call_before_the_flush():
    handler, seams = on_memory(windows())

    class Broken:
        def put(self, shard: str, rejected: Any) -> None:
            raise OSError("no space")

        def read(self) -> Any:
            return iter(())

    seams.quarantine = Broken()
    with pytest.raises(OSError, match="no space"):
        handler(event(records([b"{", trip(1, 1)]), final=True), None)

    assert not items(seams)


# ── Records ─────────────────────────────────────────────────────────────────────────────────────────────────


class Text(Record):
    text: str = ""


class Note(Record):
    id: str
    text: str = ""
    more: Text


def note(key: str, more: str = "") -> bytes:
    return json.dumps({"id": key, "more": {"text": more}}).encode()


def unwindowed(batch: list[dict[str, Any]]) -> dict[str, Any]:
    return {"Records": batch}


def test_every_clean_record_becomes_an_item_under_its_position():
    handler, seams = on_memory(Records(Trip, table="t"))
    data = [trip(1, 1), aggregate([trip(2, 2), trip(2, 2)]), b"{"]

    answer = handler(unwindowed(records(data)), None)

    assert answer == {"batchItemFailures": []}
    found = sorted(seams.table.items(), key=lambda item: item["position"])
    assert [(item["vendorId"], item["passengerCount"], item["position"][-7:]) for item in found] == [
        (1, 1, ".000000"),
        (2, 2, ".000000"),
        (2, 2, ".000001"),
    ]
    assert [record.reason for record in seams.quarantine.read()] == [Reason.NOT_JSON]


def test_records_repeated_in_any_batches_are_stored_once():
    handler, seams = on_memory(Records(Trip, table="t"))
    data = records([trip(1, n) for n in range(9)])
    for batch in (data, data[3:], data[:2]):
        handler(unwindowed(batch), None)

    assert len(list(seams.table.items())) == 9


def test_of_records_with_one_key_the_last_is_stored():
    handler, seams = on_memory(Records(Trip, key="vendorId", table="t"))

    handler(unwindowed(records([trip(1, 1), trip(2, 5), trip(1, 3)])), None)

    assert {item["vendorId"]: item["passengerCount"] for item in seams.table.items()} == {1: 3, 2: 5}


def test_the_answer_names_the_first_record_that_is_not_safely_stored():
    pipeline = Records(Trip, key="vendorId", table="t")

    class Refusing(MemoryTable):
        def put(self, items: Any) -> Any:
            refused = {
                index: Throttled(("UnprocessedItems",)) for index, item in enumerate(items) if item["vendorId"] == 2
            }
            super().put([item for index, item in enumerate(items) if index not in refused])
            return refused

    handler, seams = on_memory(pipeline, table=Refusing(pipeline.table_keys))
    data = records([trip(1, 1), trip(2, 1), trip(3, 1), trip(2, 2)])

    answer = handler(unwindowed(data), None)

    assert answer == {"batchItemFailures": [{"itemIdentifier": data[1]["kinesis"]["sequenceNumber"]}]}
    assert {item["vendorId"] for item in seams.table.items()} == {1, 3}


def test_of_a_call_that_stored_a_part_only_what_comes_before_the_rest_is_counted():
    pipeline = Records(Note, key="id", table="t")

    class Refusing(MemoryTable):
        def put(self, items: Any) -> Any:
            at = [index for index, item in enumerate(items) if item["id"] == "c"]
            super().put([item for index, item in enumerate(items) if index not in at])
            return dict.fromkeys(at, Throttled(("UnprocessedItems",)))

    handler, seams = on_memory(pipeline, table=Refusing(pipeline.table_keys))
    large = note("l", "x" * 410_000)
    data = records([b"{", large, note("b"), note("c"), b"{", note("d")])

    answer = handler(unwindowed(data), None)

    assert answer == {"batchItemFailures": [{"itemIdentifier": data[3]["kinesis"]["sequenceNumber"]}]}
    (report,) = seams.telemetry.reports
    assert (report.received, report.clean, report.rejected) == (3, 1, {"not_json": 1, "too_large": 1})
    assert (report.flushed_rows, report.throttled, report.retry_rounds) == (2, 5, 4)


def test_records_refuse_an_event_with_a_window():
    handler, _ = on_memory(Records(Trip, table="t"))

    with pytest.raises(MalformedEvent, match="TumblingWindowInSeconds=0"):
        handler(event([]), None)


def test_a_record_too_large_for_an_item_goes_to_quarantine():
    handler, seams = on_memory(Records(Note, key="id", table="t"))
    large = json.dumps({"id": "a", "text": "x" * 410_000, "more": {}}).encode()

    handler(unwindowed(records([large, note("c", "x" * 410_000), note("b", "x" * 400_000)])), None)

    assert [record.reason for record in seams.quarantine.read()] == [Reason.TOO_LARGE] * 2
    assert [item["id"] for item in seams.table.items()] == ["b"]


def test_largest_and_smallest_merge_over_segments_and_shards():
    handler, seams = on_memory(windows(totals={"least": Min("passengerCount"), "most": Max("passengerCount")}))
    for shard, values in (("shardId-1", (3, 5)), ("shardId-2", (1, 4))):
        deliver(handler, [records([trip(1, value) for value in values], shard=shard)], shard=shard)

    (item,) = seams.table.items()
    assert (item["least"], item["most"]) == (1, 5)
