"""The pytest plugin: a handler rehearsed on a stream, a mapping and a clock in memory."""

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.builders import trip
from windlass.apps import load_app
from windlass.local.mapping_settings import InvalidRequest
from windlass.table import Throttled
from windlass.testing import BEGIN, Assumptions, NotSettled, Rehearsal

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent


def counting(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return {"state": {"count": event["state"].get("count", 0) + len(event["Records"])}}


def accepting(event: dict[str, Any], context: Any) -> None:
    """Takes everything."""


def taxi() -> Any:
    return load_app(str(ROOT / "examples/taxi/app.py:trips"))


# --- time --------------------------------------------------------------------------------------------------------


def test_nothing_happens_before_time_goes_on(kinesis_lambda):
    world = kinesis_lambda(accepting)
    world.put("a")
    assert world.calls == []
    world.advance()
    assert world.calls[0].data == [b"a"]


def test_a_shard_is_read_once_a_second(kinesis_lambda):
    world = kinesis_lambda(accepting)
    world.advance(0.5)
    world.put("a")
    world.advance(0.4)
    assert world.calls == []
    world.advance(0.1)
    assert [call.at_ms for call in world.calls] == [world.now_ms]
    assert world.now == BEGIN + timedelta(seconds=1)


def test_every_window_and_shard_has_its_own_totals(kinesis_lambda):
    world = kinesis_lambda(counting, window_s=10, shards=3)
    for number in range(60):
        world.put(str(number), key=f"k{number}")
        world.advance(0.5)
    world.settle()
    assert sum(call.event["state"]["count"] for call in world.finals) == 60
    assert {(call.shard, call.window.start_ms) for call in world.finals} == {
        (shard, world.stream.shards[shard].records[0].arrival_ms // 10_000 * 10_000 + 10_000 * number)
        for shard in world.shards
        for number in range(3)
    }
    assert len(world.finals) == 9


def test_settling_reads_what_was_put_after_the_last_read(kinesis_lambda):
    world = kinesis_lambda(accepting)
    world.advance()
    world.put("a")
    world.settle()
    assert world.calls[0].data == [b"a"]


def test_the_same_steps_give_the_same_calls():
    def run() -> str:
        def shaky(event: Any, context: Any) -> Any:
            if context.aws_request_id.endswith(("3", "5", "6")):
                raise ValueError(context.aws_request_id)
            return counting(event, context)

        world = Rehearsal(shaky, window_s=10, shards=2)
        for number in range(20):
            world.put(str(number), key=str(number))
            world.advance(1)
        world.split()
        world.settle()
        return world.timeline()

    assert run() == run()
    assert "ValueError" in run()


def test_a_quiet_window_waits_for_the_grace_that_is_assumed(kinesis_lambda):
    world = kinesis_lambda(counting, window_s=10, assumed=Assumptions(grace_ms=5_000))
    world.put("a")
    world.advance(14.9)
    assert world.finals == []
    world.advance(0.2)
    assert len(world.finals) == 1


# --- where it begins ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("TRIM_HORIZON", [b"old", b"noon", b"new"]),
        (BEGIN, [b"noon", b"new"]),
        ("LATEST", [b"new"]),
    ],
)
def test_a_mapping_begins_at_its_starting_position(kinesis_lambda, start, expected):
    world = kinesis_lambda(accepting, start=start, enabled=False)
    world.put("old", arrival_ms=world.now_ms - 1)
    world.put("noon")
    world.enable()
    world.put("new")
    world.settle()
    assert [data for call in world.calls for data in call.data] == expected


def test_a_stopped_mapping_goes_on_where_it_was(kinesis_lambda):
    world = kinesis_lambda(accepting)
    world.put("a")
    world.advance(1)
    world.disable()
    world.put("b")
    world.advance(minutes=5)
    assert [call.data for call in world.calls] == [[b"a"]]
    with pytest.raises(NotSettled, match="enable"):
        world.settle()
    world.enable()
    world.settle()
    assert [call.data for call in world.calls] == [[b"a"], [b"b"]]


def test_a_restart_replays_an_open_window_with_empty_state(kinesis_lambda):
    world = kinesis_lambda(counting, window_s=60)
    world.put("a")
    world.advance(1)
    world.restart()
    world.put("b")
    world.settle()
    assert [(call.data, call.event["state"]) for call in world.calls] == [
        ([b"a"], {}),
        ([b"a", b"b"], {}),
        ([], {"count": 2}),
    ]


# --- resharding --------------------------------------------------------------------------------------------------


def test_children_are_read_after_their_parents(kinesis_lambda):
    world = kinesis_lambda(accepting, shards=2, batch_size=1)
    left, right = world.shards
    for shard in world.shards:
        world.put("before", shard=shard)
    child = world.merge(left, right)
    world.put("between", shard=child)
    low, high = world.split(child)
    for shard in (low, high):
        world.put("after", shard=shard)
    world.settle()
    assert world.shards == [low, high]
    assert [(call.shard, *call.data) for call in world.calls] == [
        (left, b"before"),
        (right, b"before"),
        (child, b"between"),
        (low, b"after"),
        (high, b"after"),
    ]


def test_a_merged_shard_waits_for_the_parent_that_fails(kinesis_lambda):
    def shaky(event: Any, context: Any) -> None:
        if b"right" in world.calls[-1].data and world.calls[-1].attempt < 4:
            raise ValueError

    world = kinesis_lambda(shaky, shards=2)
    left, right = world.shards
    world.put("left", shard=left)
    world.put("right", shard=right)
    child = world.merge()
    world.put("child", shard=child)
    world.settle()
    assert [call.shard for call in world.calls] == [left, *[right] * 4, child]


def test_a_finished_parent_stays_finished_over_a_restart(kinesis_lambda):
    world = kinesis_lambda(accepting)
    world.put("a")
    world.split()
    world.settle()
    world.restart()
    world.settle()
    assert [call.data for call in world.calls] == [[b"a"]]


# --- trouble -----------------------------------------------------------------------------------------------------


def test_what_the_handler_raised_is_kept_and_the_batch_tried_again(kinesis_lambda):
    def shaky(event: Any, context: Any) -> None:
        if len(world.calls) < 3:
            msg = f"call {len(world.calls)}"
            raise ValueError(msg)

    world = kinesis_lambda(shaky)
    world.put("a")
    world.settle()
    assert [str(call.error) for call in world.calls] == ["call 1", "call 2", "None"]
    assert [call.attempt for call in world.calls] == [1, 2, 3]
    assert [call.failed for call in world.calls] == [True, True, False]


def test_settling_gives_up_with_the_handlers_error(kinesis_lambda):
    def broken(event: Any, context: Any) -> None:
        raise KeyError("vendorId")

    world = kinesis_lambda(broken)
    world.put("a")
    with pytest.raises(NotSettled, match=r"after 600 s .*\n?.*KeyError: 'vendorId'") as caught:
        world.settle(within_s=600)
    assert isinstance(caught.value.__cause__, KeyError)
    assert 5 < len(world.calls) < 60


def test_an_answer_without_state_is_a_failure_in_words(kinesis_lambda):
    world = kinesis_lambda(accepting, window_s=30)
    world.put("a")
    world.advance(1)
    assert world.calls[0].failed
    assert "state" in world.calls[0].trouble


def test_a_throttled_call_does_not_reach_the_handler(kinesis_lambda):
    reached = []
    world = kinesis_lambda(lambda event, context: reached.append(event), retries=0)
    world.put("a")
    world.throttle(2)
    world.settle()
    assert len(reached) == 1
    assert [call.failed for call in world.calls] == [True, True, False]
    assert world.discarded == []


def test_a_lost_answer_is_a_call_made_again(kinesis_lambda):
    reached = []
    world = kinesis_lambda(lambda event, context: reached.append(event))
    world.put("a")
    world.lose_answers()
    world.settle()
    assert len(reached) == 2


def test_a_call_that_sleeps_too_long_times_out(kinesis_lambda):
    left = []

    def slow(event: Any, context: Any) -> None:
        world.sleep(4 if len(world.calls) == 1 else 2)
        left.append(context.get_remaining_time_in_millis())

    world = kinesis_lambda(slow, timeout_s=3)
    world.put("a")
    world.settle()
    assert left == [0, 1000]
    assert [call.trouble for call in world.calls] == [
        "Sandbox.Timedout: Task timed out after 3.00 seconds",
        "",
    ]


def test_what_is_given_up_is_in_discarded(kinesis_lambda):
    def broken(event: Any, context: Any) -> None:
        raise ValueError

    world = kinesis_lambda(broken, retries=2)
    world.put("a")
    world.settle()
    (failure,) = world.discarded
    assert (failure.condition, failure.invokes, failure.records) == ("RetryAttemptsExhausted", 3, 1)


def test_item_failures_begin_the_next_batch(kinesis_lambda):
    def second_first(event: Any, context: Any) -> Any:
        records = event["Records"]
        return {
            "batchItemFailures": [{"itemIdentifier": records[1]["kinesis"]["sequenceNumber"]}] if records[1:] else []
        }

    world = kinesis_lambda(second_first, report_item_failures=True)
    for data in "abc":
        world.put(data)
    world.settle()
    assert [call.data for call in world.calls] == [[b"a", b"b", b"c"], [b"b", b"c"], [b"c"]]


def test_lanes_tell_their_own_trouble(kinesis_lambda):
    def picky(event: Any, context: Any) -> None:
        if b"bad" in world.calls[-1].data:
            raise ValueError("bad")

    world = kinesis_lambda(picky, parallelization=8)
    world.put("bad", key="x")
    for number in range(20):
        world.put("good", key=f"k{number}", shard=world.shards[0])
    world.advance(1)
    assert {call.failed for call in world.calls} == {True, False}
    assert all(call.failed == (b"bad" in call.data) for call in world.calls)


# --- settings ----------------------------------------------------------------------------------------------------


def test_what_lambda_refuses_is_refused(kinesis_lambda):
    with pytest.raises(InvalidRequest, match="ParallelizationFactor"):
        kinesis_lambda(accepting, window_s=30, parallelization=2)


def test_filters_pass_over_records(kinesis_lambda):
    world = kinesis_lambda(accepting, filters=[{"data": {"vendorId": [2]}}])
    world.put({"vendorId": 1})
    world.put({"vendorId": 2})
    world.settle()
    assert [call.data for call in world.calls] == [[b'{"vendorId":2}']]
    assert world.counters(world.shards[0]).filtered_out == 1


def test_a_plain_handler_has_no_table(kinesis_lambda):
    world = kinesis_lambda(accepting)
    with pytest.raises(AttributeError, match=r"no table.*pipeline"):
        _ = world.items


def test_an_unknown_shard_is_named(kinesis_lambda):
    with pytest.raises(ValueError, match="no shard 'x'; there are shardId-000000000000"):
        kinesis_lambda(accepting).put("a", shard="x")


# --- pipelines ---------------------------------------------------------------------------------------------------


def test_what_is_put_into_a_named_shard_belongs_there(kinesis_lambda):
    world = kinesis_lambda(taxi())
    low, high = world.split()

    with pytest.raises(ValueError, match=f"shardId-000000000000 is closed: .* open are {low}, {high}"):
        world.put({"vendorId": 1, "passengerCount": 1}, shard="shardId-000000000000")
    for shard in (low, high):
        place = world.put_aggregate([{"vendorId": 1, "passengerCount": 2}], shard=shard)
        assert place.shard == shard
    world.settle()

    assert world.verify().clean == 2


def test_a_windows_pipeline_has_its_window_table_and_quarantine(kinesis_lambda):
    world = kinesis_lambda(taxi(), shards=4)
    for number in range(200):
        world.put(trip(number % 3, number % 5), key=f"k{number}")
        if number % 40 == 20:
            world.put(b"\xff", key=f"k{number}")
            world.lose_answers()
            world.restart()
        world.advance(0.4)
    world.settle()
    verdict = world.verify()
    assert (verdict.received, verdict.clean, verdict.rejected) == (205, 200, 5)
    assert sum(item["trips"] for item in world.items) == 200
    assert {rejected.reason for rejected in world.rejected} == {"not_utf8"}
    assert world.settings.window_ms == 30_000
    assert sum(report.clean for report in world.reports) >= 200


def test_verifying_says_what_differs(kinesis_lambda):
    world = kinesis_lambda(taxi())
    world.put(trip(1, 2))
    world.settle()
    next(iter(world.table.stored.values()))["passenger"] = 3
    with pytest.raises(AssertionError, match=r"not exact, 1 difference(?s:.*)passenger"):
        world.verify()


def test_a_throttled_table_makes_the_pipeline_wait_on_the_worlds_clock(kinesis_lambda):
    world = kinesis_lambda(taxi())
    world.put(trip(1, 2))
    world.put(trip(2, 3))
    refusals = iter([Throttled(())])

    def before(operation: str, argument: Any) -> None:
        for refusal in refusals:
            raise refusal

    world.table.before = before
    world.settle()
    assert not any(call.failed for call in world.calls)
    assert world.now_ms > world.calls[-1].at_ms
    assert len(world.items) == 2


def test_carriers_that_straddle_a_split_leave_outsiders_to_the_kpl(kinesis_lambda):
    world = kinesis_lambda(taxi())
    low, high = world.split()
    world.put_aggregate([trip(1, 2)] * 3, key="a", shard=low)
    world.put_aggregate([trip(1, 2)] * 3, key="a", shard=high)
    world.settle()
    assert sum(item["trips"] for item in world.items) == 3
    assert [rejected.reason for rejected in world.rejected] == ["wrong_shard"] * 3
    world.verify()


def test_a_records_pipeline_answers_item_failures(kinesis_lambda):
    from windlass import Record, Records

    class Trip(Record):
        vendorId: int

    world = kinesis_lambda(Records(Trip, key="vendorId", table="trips"))
    world.put(trip(1))
    world.put(trip(2))
    world.settle()
    assert world.settings.report_item_failures
    assert world.calls[0].answer == {"batchItemFailures": []}
    assert sorted(item["vendorId"] for item in world.items) == [1, 2]


# --- the plugin itself -------------------------------------------------------------------------------------------


def test_pytest_starts_without_importing_windlass():
    code = (
        "import sys, windlass_pytest; print([m for m in ('windlass', 'boto3', 'moto', 'msgspec') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_a_failing_test_shows_the_calls(pytester):
    pytester.makepyfile("""
        def test_it(kinesis_lambda):
            world = kinesis_lambda(lambda event, context: None, window_s=5)
            world.put("a")
            world.advance(1)
            assert world.finals
    """)
    result = pytester.runpytest_inprocess("-p", "no:xdist", "-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*calls of the handler*", "*shardId-000000000000  fold*1 record: *state*"])


def test_every_example_of_the_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/testing.md").read_text(), re.M | re.S)
    assert len(blocks) == 5
    names: dict[str, Any] = {"__name__": "docs_testing"}
    for block in blocks:
        exec(compile(block, "docs/testing.md", "exec"), names)  # the page's own code
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 5
    for test in tests:
        test(Rehearsal)


def test_the_clock_begins_when_it_is_told_to(kinesis_lambda):
    begin = datetime(2020, 12, 9, 7, 4, tzinfo=UTC)
    world = kinesis_lambda(counting, window_s=30, begin=begin)
    world.put("a")
    world.settle()
    assert world.calls[0].event["window"]["start"] == "2020-12-09T07:04:00Z"
