"""Segments are cut by records, never by batch edges; the state survives its own encoding."""

import itertools
import json
from decimal import Decimal
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import END_30, SHARD, START, START_S
from windlass.core.event import Call
from windlass.core.fold import Segment, UnknownState
from windlass.core.pipeline import WindowsPlan, compile_windows
from windlass.core.position import position
from windlass.core.schema import Range, Record
from windlass.core.totals import Count, Max, Mean, Min, Sum
from windlass.core.window import Window

WINDOW = Window.parse(START, END_30)


class Reading(Record):
    device: str
    value: Annotated[int, Range(-1000, 1000)]
    weight: Decimal | None = None


TOTALS = {
    "n": Count(),
    "sum": Sum("value"),
    "mean": Mean("weight"),
    "least": Min("value"),
    "most": Max("weight"),
}


def plan_of(state_bytes_max: int = 2048 + 3 * 400) -> WindowsPlan:
    """A limit that holds about three rows, so that cuts happen."""
    return compile_windows(Reading, key="device", every_s=30, totals=TOTALS, state_bytes_max=state_bytes_max)


readings = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d", "é", "a#b"]),
        st.integers(-1000, 1000),
        st.none() | st.decimals(-100, 100, places=3, allow_nan=False),
    ),
    max_size=40,
)


def call(values: list[Any], state: Any, first: int, *, final: bool = False) -> Call:
    def encoded(device: str, value: int, weight: Decimal | None) -> bytes:
        text = json.dumps({"device": device, "value": value})
        return (text if weight is None else f'{text[:-1]}, "weight": {weight:f}}}').encode()

    return Call(
        SHARD,
        "",
        [str(10**55 + number) for number in range(first, first + len(values))],
        [START_S + 1.0] * len(values),
        [encoded(*value) for value in values],
        window=WINDOW,
        state=state,
        final=final,
    )


def run(plan: WindowsPlan, values: list[Any], edges: list[int]) -> list[Segment]:
    """The segments of a window that comes in batches with these edges."""
    flushed: list[Segment] = []
    state: Any = {}
    bounds = [0, *sorted(edge for edge in edges if edge <= len(values)), len(values)]
    for start, end in itertools.pairwise(bounds):
        step = plan.run(call(values[start:end], state, start), None)
        flushed += step.flush
        state = json.loads(json.dumps(plan.folder.encode(step.open)))
    return flushed + plan.run(call([], state, 0, final=True), None).flush


def shape(segments: list[Segment]) -> list[Any]:
    return [(segment.first, segment.through, segment.rows) for segment in segments]


@given(readings, st.lists(st.integers(0, 40), max_size=6))
def test_any_batching_of_the_same_records_gives_the_same_segments(values, edges):
    plan = plan_of()

    assert shape(run(plan, values, edges)) == shape(run(plan, values, []))


def test_a_cut_at_the_first_record_of_a_call_ends_where_the_call_before_did():
    values = [(key, 1, None) for key in "abcdef"]
    plan = plan_of()
    cuts = [segment.through for segment in run(plan, values, [])]

    for edge in range(len(values)):
        assert [segment.through for segment in run(plan, values, [edge])] == cuts


@given(readings)
def test_segments_follow_each_other_without_overlap_and_cover_first_to_last(values):
    segments = run(plan_of(), values, [])

    positions = [edge for segment in segments for edge in (segment.first, segment.through)]
    assert positions == sorted(positions)
    if values:
        assert positions[0] == position(str(10**55))
        assert positions[-1] == position(str(10**55 + len(values) - 1))


@given(readings)
def test_the_totals_over_all_segments_are_the_totals_of_the_records(values):
    merged: dict[str, list[Any]] = {}
    plan = plan_of()
    for segment in run(plan, values, [7, 20]):
        for key, row in segment.rows.items():
            old = merged.get(key, [None] * len(row))
            merged[key] = [column.merge(a, b) for column, a, b in zip(plan.folder.columns, old, row, strict=True)]

    for key in {device for device, _, _ in values}:
        mine = [(value, weight) for device, value, weight in values if device == key]
        weights = [weight for _, weight in mine if weight is not None]
        assert merged.pop(key) == [
            len(mine),
            sum(value for value, _ in mine),
            sum(weights, Decimal(0)),
            len(weights),
            min(value for value, _ in mine),
            max(weights, default=None),
        ]
    assert not merged


@given(readings)
def test_the_state_survives_its_own_encoding(values):
    plan = plan_of(10**6)
    segment = plan.run(call(values, {}, 0), None).open
    through_json = json.loads(json.dumps(plan.folder.encode(segment)))

    back = plan.folder.decode(through_json)

    assert (back.rows, back.first, back.through) == (segment.rows, segment.first, segment.through)
    assert back.bytes_bound == segment.bytes_bound


@given(st.lists(st.tuples(st.text(min_size=1, max_size=500), st.integers(-1000, 1000), st.none()), max_size=30))
def test_the_state_is_never_larger_than_its_bound(values):
    values = [value for value in values if value[0].isprintable()]
    plan = plan_of(20_000)
    step = plan.run(call(values, {}, 0), None)
    state = plan.folder.encode(step.open)

    for encoded in (json.dumps(state), json.dumps(state, ensure_ascii=False)):
        assert len(encoded.encode()) <= step.open.bytes_bound <= 20_000


class Priced(Record):
    price: Decimal
    lot: Decimal


@pytest.mark.parametrize("key", ["price", ["price", "lot"]])
@pytest.mark.parametrize("text", ["-9.9e125", "1e-130", "-0." + "0" * 91 + "1" * 38, "9" * 38])
def test_the_bound_holds_for_numbers_as_keys(key, text):
    plan = compile_windows(Priced, key=key, every_s=30, totals={"n": Count()})
    data = f'{{"price": {text}, "lot": {text}}}'.encode()
    open_ = plan.run(Call(SHARD, "", [str(10**55)], [START_S + 1.0], [data], window=WINDOW), None).open
    empty = len(json.dumps(plan.folder.encode(open_) | {"rows": []}))

    assert len(json.dumps(plan.folder.encode(open_))) - empty <= open_.bytes_bound - plan.folder.frame_bytes
    assert empty <= plan.folder.frame_bytes


def test_decimal_keys_are_written_in_full_digits():
    plan = compile_windows(Priced, key=["price", "lot"], every_s=30, totals={"n": Count()})
    data = b'{"price": 1e20, "lot": 2.50}'
    open_ = plan.run(Call(SHARD, "", [str(10**55)], [START_S + 1.0], [data], window=WINDOW), None).open

    (row,) = plan.folder.contributions(open_, "s/shardId-0", WINDOW)

    assert row.key == {"price#lot": "100000000000000000000#2.5"}


def test_numbers_beyond_2_to_the_53_cross_the_state_unharmed():
    plan = compile_windows(Reading, key="device", every_s=30, totals={"sum": Sum("value")})
    segment = Segment(plan.folder.columns, "0", "1", {"a": [2**60 + 1]})

    state = json.loads(json.dumps(plan.folder.encode(segment)), parse_int=float)

    assert plan.folder.decode(state | {"v": 1}).rows == {"a": [2**60 + 1]}


@given(readings, readings)
def test_a_record_at_or_before_through_is_a_duplicate(before, after):
    plan = plan_of(10**6)
    first = plan.run(call(before, {}, 0), None)
    again = plan.run(call(before + after, plan.folder.encode(first.open), 0), None)

    assert again.counts.duplicates == len(before)
    assert again.counts.clean == len(after)
    assert shape([again.open]) == shape([plan.run(call(before + after, {}, 0), None).open])


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ([1], "is not of version 1; found [1]"),
        ({"passengerCount": 5}, "is not of version 1"),
        ({"v": 2}, 'found {"v": 2}'),
        ({"v": 1, "key": ["other:int"]}, "keyed by ['other:int'], this declaration by ['device:str']"),
        ({"v": 1, "key": ["device:str"], "columns": ["x"]}, "is damaged"),
        ({"v": 1, "key": ["device:str"], "columns": [], "from": "", "through": "", "rows": [["a", "1"]]}, "is damaged"),
    ],
)
def test_a_state_that_is_not_ours_raises_with_what_was_found(state, says):
    with pytest.raises(UnknownState) as caught:
        plan_of().run(call([], state, 0), None)

    assert says in str(caught.value)


def test_a_state_of_other_totals_is_settled_before_the_new_ones_begin():
    old = compile_windows(Reading, key="device", every_s=30, totals={"sum": Sum("value")})
    new = compile_windows(Reading, key="device", every_s=30, totals={"n": Count()})
    state = old.folder.encode(old.run(call([("a", 5, None)], {}, 0), None).open)

    step = new.run(call([("a", 6, None)], state, 1, final=True), None)

    written = [c for segment in step.flush for c in new.folder.contributions(segment, SHARD, WINDOW)]
    assert [(c.first < c.through or c.first == c.through, c.add) for c in written] == [
        (True, {"sum": 5}),
        (True, {"n": 1}),
    ]
    assert written[0].through < written[1].first


class Pair(Record):
    left: str
    right: int


@given(st.lists(st.tuples(st.text("a#\\", min_size=1, max_size=3), st.integers(0, 3)), min_size=2, unique=True))
def test_different_keys_of_several_fields_never_share_an_item(pairs):
    plan = compile_windows(Pair, key=["left", "right"], every_s=30, totals={"n": Count()})
    segment = Segment(plan.folder.columns, "a", "b", {pair: [1] for pair in pairs})

    written = list(plan.folder.contributions(segment, SHARD, WINDOW))

    assert len({c.key["left#right"] for c in written}) == len(pairs)
    assert [(c.plain["left"], c.plain["right"]) for c in written] == pairs


def test_the_bound_holds_with_many_totals_of_long_names():
    totals = {f"ü{number:03d}".ljust(250, "\x01"): Count() for number in range(40)}
    plan = compile_windows(Reading, key="device", every_s=30, totals=totals)

    open_ = plan.run(call([("a", 1, None)], {}, 1), None).open

    assert len(json.dumps(plan.folder.encode(open_))) <= open_.bytes_bound
