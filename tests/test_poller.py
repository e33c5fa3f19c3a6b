"""The thread driver: against moto in this process, and against streams of our own where threads must be seen."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import boto3
import msgspec
import pytest
from moto import mock_aws

from windlass.local.destination import AwsDestination
from windlass.local.mapping import (
    Answered,
    Checkpoint,
    Delivered,
    Failed,
    Failure,
    Fetch,
    Fetched,
    Invoke,
    Kind,
    StreamRecord,
    Undelivered,
    _Lane,
)
from windlass.local.mapping_settings import (
    LATEST,
    NOTHING_PROCESSED,
    PROBLEM,
    PROCESSED,
    TRIM_HORIZON,
    Assumptions,
    MappingSettings,
    Position,
    State,
)
from windlass.local.poller import (
    FileCheckpoints,
    InProcess,
    MemoryCheckpoints,
    PolledStream,
    Poller,
    Shard,
    SubscribedStream,
    wall_clock_ms,
)

ACCOUNT = "123456789012"
STREAM = f"arn:aws:kinesis:us-east-1:{ACCOUNT}:stream/trips"
FUNCTION = f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:totals"
FAST = {"poll_ms": 5, "poll_ms_min": 1}
WAIT_S = 20  # the longest that a busy machine may take


def settings(**fields: Any) -> MappingSettings:
    assumed = Assumptions(**{"grace_ms": 0, "backoff_ms": 2, **fields.pop("assumed", {})})
    return MappingSettings(
        **{"event_source_arn": STREAM, "function_arn": FUNCTION, "assumed": assumed, **FAST, **fields}
    )


class Shards:
    """A stream in memory. Records by shard; a closed one ends behind its last record."""

    def __init__(self, records: dict[str, list[StreamRecord]], *, parents: dict[str, tuple[str, ...]] | None = None):
        self.records = records
        self.parents = parents or {}
        self.closed: set[str] = {parent for each in self.parents.values() for parent in each}
        self.fetches: list[Fetch] = []
        self.trouble: dict[str, Exception] = {}
        self.starting = "0"

    def shards(self) -> list[Shard]:
        return [
            Shard(each, self.parents.get(each, ()), each in self.closed, self.starting) for each in list(self.records)
        ]

    def fetch(self, fetch: Fetch) -> Fetched:
        self.fetches.append(fetch)
        if fetch.shard_id in self.trouble:
            raise self.trouble[fetch.shard_id]
        position = fetch.position
        held = [each for each in self.records[fetch.shard_id] if each.arrival_ms >= position.at_ms]
        at = int(position.sequence or 0) - (position.kind == "AT_SEQUENCE_NUMBER")
        taken = [each for each in held if int(each.sequence) > at]
        return Fetched(taken, ended=fetch.shard_id in self.closed)


def records(*numbers: int) -> list[StreamRecord]:
    return [StreamRecord(str(number), "k", wall_clock_ms(), b"{}") for number in numbers]


class Function:
    """Remembers what it was called with; `answers` decides what it says."""

    def __init__(self, answers: Callable[[dict[str, Any]], object] = lambda event: {"state": event.get("state", {})}):
        self.events: list[dict[str, Any]] = []
        self.answers = answers

    def __call__(self, event: dict[str, Any], context: Any) -> object:
        self.events.append(event)
        return self.answers(event)

    def numbers(self, shard_id: str = "") -> list[int]:
        return [
            int(each["kinesis"]["sequenceNumber"])
            for event in list(self.events)
            for each in event["Records"]
            if each["eventID"].startswith(shard_id)
        ]


@pytest.fixture
def started() -> Iterator[Callable[..., Poller]]:
    """Makes and starts a poller, and stops it afterwards."""
    pollers: list[Poller] = []

    def start(stream: Any, function: Any, config: MappingSettings | None = None, **options: Any) -> Poller:
        config = config or settings()
        poller = Poller(config, stream, InProcess(function, FUNCTION), **{"discover_ms": 5, **options})
        pollers.append(poller)
        poller.start()
        return poller

    yield start
    for poller in pollers:
        poller.stop()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


# --- shards ----------------------------------------------------------------------------------------------------


def test_every_shard_is_processed_to_its_end(started):
    function = Function()
    poller = started(Shards({"a": records(1, 2), "b": records(1, 2, 3)}), function)
    assert poller.settle(timeout_s=WAIT_S)
    assert (function.numbers("a"), function.numbers("b")) == ([1, 2], [1, 2, 3])
    assert (poller.state, poller.last_result) == (State.ENABLED, PROCESSED)


def test_children_begin_when_their_parents_are_done(started):
    release = threading.Event()
    function = Function(lambda event: release.wait(WAIT_S) and {})
    stream = Shards(
        {"child": records(3), "left": records(1), "right": records(2)}, parents={"child": ("left", "right")}
    )
    poller = started(stream, function)
    until(lambda: len(function.events) == 2)
    assert function.numbers("child") == []
    release.set()
    assert poller.settle(timeout_s=WAIT_S)
    assert function.numbers("child") == [3]
    assert {each.shard_id: each.done for each in poller.status()} == {"child": False, "left": True, "right": True}


def test_a_shard_whose_parents_are_gone_from_the_listing_begins_at_once(started):
    function = Function()
    poller = started(Shards({"child": records(1)}, parents={"child": ("expired",)}), function)
    assert poller.settle(timeout_s=WAIT_S)
    assert function.numbers() == [1]


def test_a_shard_that_appears_later_is_read_from_its_beginning(started):
    function = Function()
    stream = Shards({"a": records(1)})
    config = settings(start=Position("AT_TIMESTAMP", at_ms=wall_clock_ms() + 60_000))
    poller = started(stream, function, config)
    assert poller.settle(timeout_s=WAIT_S)
    stream.records["b"] = records(7)
    until(lambda: function.numbers() == [7])


@pytest.mark.parametrize("running", [True, False])
def test_a_stream_made_again_under_its_name_is_read_from_its_beginning(started, tmp_path, running):
    function = Function()
    stream = Shards({"a": records(1), "b": records(2)})
    stream.closed.add("a")
    kept = FileCheckpoints(tmp_path / "kept.json")
    poller = started(stream, function, checkpoints=kept)
    assert poller.settle(timeout_s=WAIT_S)
    if not running:
        poller.stop()
    stream.records = {"a": records(7), "b": records(8)}
    stream.closed.clear()
    stream.starting = "5"
    if not running:
        started(stream, function, checkpoints=kept)
    until(lambda: len(function.numbers()) == 4)
    assert sorted(function.numbers()) == [1, 2, 7, 8]


def test_a_shard_that_is_listed_open_again_after_a_crash_goes_on_where_it_had_ended(started):
    function = Function()
    stream = Shards({"a": records(1, 2), "b": []}, parents={"b": ("a",)})
    checkpoints = MemoryCheckpoints()
    poller = started(stream, function, checkpoints=checkpoints)
    assert poller.settle(timeout_s=WAIT_S)
    poller.stop()
    stream.records, stream.parents, stream.closed = {"a": records(1, 3)}, {}, set()
    poller = started(stream, function, checkpoints=checkpoints)
    assert poller.settle(timeout_s=WAIT_S)
    assert function.numbers() == [1, 2, 3]
    stream.records["b"], stream.parents, stream.closed = records(4), {"b": ("a",)}, {"a"}
    until(lambda: function.numbers() == [1, 2, 3, 4])


def test_a_failing_shard_slows_no_other(started):
    def fail_on_a(event: dict[str, Any]) -> object:
        if event["Records"][0]["eventID"].startswith("a:"):
            raise ValueError
        return {}

    function = Function(fail_on_a)
    stream = Shards({"a": records(1), "b": records(1)})
    poller = started(stream, function, settings(assumed={"backoff_ms": 60_000}))
    until(lambda: poller.last_result == PROBLEM)  # the failure is told, not only under way
    stream.records["b"] += records(2, 3)
    until(lambda: function.numbers("b") == [1, 2, 3])
    status = {each.shard_id: each for each in poller.status()}
    assert (status["a"].counters.errors, status["b"].counters.errors) == (1, 0)
    assert (poller.last_result, status["a"].trouble) == (PROBLEM, "ValueError: ")


def test_a_shard_that_cannot_be_read_slows_no_other_and_comes_back(started):
    function = Function()
    stream = Shards({"a": records(1), "b": records(1)})
    stream.trouble["a"] = RuntimeError("throttled")
    poller = started(stream, function)
    until(lambda: function.numbers("b") == [1])
    assert poller.last_result == PROCESSED
    del stream.trouble["a"]
    assert poller.settle(timeout_s=WAIT_S)
    assert function.numbers("a") == [1]


def test_with_lanes_the_calls_of_a_shard_run_side_by_side(started):
    together = threading.Barrier(3)
    function = Function(lambda event: together.wait(WAIT_S) and None)
    keyed = [StreamRecord(str(n), f"key {n}", wall_clock_ms(), b"") for n in range(1, 40)]
    poller = started(Shards({"a": keyed}), function, settings(parallelization=3))
    assert poller.settle(timeout_s=WAIT_S)
    assert sorted(function.numbers()) == list(range(1, 40))
    assert poller.status()[0].counters.errors == 0


# --- stopping and starting again -------------------------------------------------------------------------------


def test_stop_lets_the_running_call_end_and_keeps_its_checkpoint():
    entered, release = threading.Event(), threading.Event()
    function = Function(lambda event: entered.set() or release.wait(WAIT_S))
    checkpoints = MemoryCheckpoints()
    stream = Shards({"a": records(1)})
    poller = Poller(settings(), stream, InProcess(function, FUNCTION), checkpoints=checkpoints)
    poller.start()
    assert entered.wait(WAIT_S)
    stopping = threading.Thread(target=poller.stop)
    stopping.start()
    release.set()
    stopping.join(WAIT_S)
    assert poller.state is State.DISABLED
    assert checkpoints.load() == {"a": Checkpoint("a", Position("AFTER_SEQUENCE_NUMBER", "1"))}
    assert function.numbers() == [1]


def test_a_mapping_goes_on_after_a_restart_where_it_stopped(started, tmp_path):
    path = tmp_path / "mapping" / "checkpoints.json"
    function = Function()
    stream = Shards({"a": records(1, 2), "b": []}, parents={"b": ("a",)})
    first = started(stream, function, checkpoints=FileCheckpoints(path))
    assert first.settle(timeout_s=WAIT_S)
    first.stop()
    stream.records["b"] += records(1)
    second = started(stream, function, checkpoints=FileCheckpoints(path))
    assert second.settle(timeout_s=WAIT_S)
    assert (function.numbers("a"), function.numbers("b")) == ([1, 2], [1])
    assert FileCheckpoints(path).load()["a"].ended


def test_latest_is_when_the_mapping_first_began_however_often_it_is_restarted_before_a_record(started):
    checkpoints = MemoryCheckpoints()
    function = Function()
    stream = Shards({"a": [StreamRecord("1", "k", 0, b"{}")]})
    for _ in range(2):
        poller = started(stream, function, settings(start=LATEST), checkpoints=checkpoints)
        assert poller.settle(timeout_s=WAIT_S)
        poller.stop()
        stream.records["a"] += records(len(stream.records["a"]) + 1)
    assert function.numbers() == [2]


def test_what_is_put_while_the_first_reads_from_latest_fail_is_read(started):
    function = Function()
    stream = Shards({"a": [StreamRecord("1", "k", 0, b"{}")]})
    poller = started(stream, function, settings(start=LATEST))
    assert poller.settle(timeout_s=WAIT_S)
    stream.trouble["a"] = RuntimeError("throttled")
    until(lambda: poller.status()[0].counters.fetch_failures > 0)
    stream.records["a"] += records(2)
    del stream.trouble["a"]
    until(lambda: function.numbers() == [2])


def test_damaged_checkpoints_are_one_clear_error(tmp_path):
    path = tmp_path / "checkpoints.json"
    path.write_text('[{"shard')
    with pytest.raises(ValueError, match=r"checkpoints\.json holds no checkpoints: .* delete it to begin again"):
        FileCheckpoints(path)


def test_checkpoints_of_another_stream_are_refused_in_one_line(started, tmp_path):
    path = tmp_path / "checkpoints.json"
    started(Shards({"a": records(1)}), Function(), checkpoints=FileCheckpoints(path)).stop()
    other = settings(event_source_arn=f"arn:aws:kinesis:us-east-1:{ACCOUNT}:stream/fares")
    poller = Poller(other, Shards({}), InProcess(Function(), FUNCTION), checkpoints=FileCheckpoints(path))
    with pytest.raises(
        ValueError, match=r"checkpoints\.json holds the checkpoints of .*/trips, not of .*/fares\. Name"
    ):
        poller.start()


def test_checkpoints_that_name_no_stream_are_taken(started, tmp_path):
    path = tmp_path / "checkpoints.json"
    path.write_bytes(msgspec.json.encode([Checkpoint("a", Position("AFTER_SEQUENCE_NUMBER", "1"))]))
    function = Function()
    poller = started(Shards({"a": records(1, 2)}), function, checkpoints=FileCheckpoints(path))
    assert poller.settle(timeout_s=WAIT_S)
    assert function.numbers() == [2]


def test_a_stream_that_cannot_be_listed_is_told_at_the_start():
    class Absent(Shards):
        def shards(self) -> list[Shard]:
            raise LookupError("no such stream")

    with pytest.raises(LookupError, match="no such stream"):
        Poller(settings(), Absent({}), InProcess(Function(), FUNCTION)).start()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_ends_a_loop_is_raised_where_it_is_stopped():
    class Full(MemoryCheckpoints):
        def save(self, checkpoint: Checkpoint) -> None:
            if checkpoint.position != TRIM_HORIZON:
                raise OSError("disk full")

    poller = Poller(settings(), Shards({"a": records(1)}), InProcess(Function(), FUNCTION), checkpoints=Full())
    poller.start()
    assert not poller.settle(timeout_s=WAIT_S)
    assert poller.last_result == "PROBLEM: a is not read any more: OSError: disk full"
    assert [each.trouble for each in poller.status()] == ["OSError: disk full"]
    with pytest.raises(OSError, match="disk full"):
        poller.stop()


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("error", [OSError("no more files"), KeyboardInterrupt("a library's own")])
def test_an_invoker_that_raises_fails_its_call_only(lanes, error):
    function = Function()
    raised = [error]

    def invoke(call: Invoke) -> Answered | Failed:
        if raised:
            raise raised.pop()
        return InProcess(function, FUNCTION)(call)

    seen: list[Any] = []
    config = settings(parallelization=lanes)
    poller = Poller(config, Shards({"a": records(1)}), invoke, observe=lambda call, outcome: seen.append(outcome))
    poller.start()
    assert poller.settle(timeout_s=WAIT_S)
    poller.stop()
    failed, answered = seen
    assert (failed.error_type, failed.message) == (type(error).__name__, str(error))
    assert (isinstance(answered, Answered), function.numbers()) == (True, [1])


def test_nothing_processed_is_the_first_result(started):
    assert started(Shards({"a": []}), Function()).last_result == NOTHING_PROCESSED


def test_settle_gives_up_in_time(started):
    function = Function(lambda event: 1 / 0)
    poller = started(Shards({"a": records(1)}), function)
    assert not poller.settle(timeout_s=0.05)


def test_settle_waits_for_a_read_that_began_after_the_last_put_even_within_a_millisecond(started):
    frozen = True
    function, checkpoints = Function(), MemoryCheckpoints()
    stream = Shards({"a": records(1)})
    poller = started(stream, function, checkpoints=checkpoints, now_ms=lambda: 1000 if frozen else wall_clock_ms())
    until(lambda: checkpoints.load()["a"].position.sequence == "1")
    stream.records["a"] += records(2)
    assert not poller.settle(timeout_s=0)
    frozen = False
    assert poller.settle(timeout_s=WAIT_S)
    assert function.numbers() == [1, 2]


def test_settle_does_not_look_into_the_middle_of_a_step(started, monkeypatch):
    finished, go_on = threading.Event(), threading.Event()
    finish = _Lane._finish

    def slowly(lane: Any, call: Any) -> None:
        finish(lane, call)
        finished.set()
        assert go_on.wait(WAIT_S)

    monkeypatch.setattr(_Lane, "_finish", slowly)
    found: list[tuple[bool, str]] = []
    asking = threading.Thread(target=lambda: found.append((poller.settle(timeout_s=WAIT_S), poller.last_result)))
    poller = started(
        Shards({"a": records(1)}),
        Function(),
        now_ms=lambda: 1000 if threading.current_thread() is asking else 2000,  # it was read after one asked
    )
    assert finished.wait(WAIT_S)
    asking.start()
    asking.join(0.2)  # as long as it may: the step is not over
    go_on.set()
    asking.join()
    assert found == [(True, PROCESSED)]


def test_every_call_is_observed_with_its_outcome(started):
    seen: list[tuple[int, type]] = []
    function = Function()
    poller = started(
        Shards({"a": records(1, 2)}), function, observe=lambda call, outcome: seen.append((call.records, type(outcome)))
    )
    assert poller.settle(timeout_s=WAIT_S)
    assert seen == [(2, Answered)]


def test_what_is_given_up_is_delivered(started):
    failures: list[Failure] = []
    config = settings(retries_max=0, on_failure_arn="arn:aws:sqs:us-east-1:1:q")
    poller = started(
        Shards({"a": records(1, 2)}),
        Function(lambda event: 1 / 0),
        config,
        deliver=lambda failure: failures.append(failure) or Delivered(),
    )
    assert poller.settle(timeout_s=WAIT_S)
    assert [(failure.records, failure.function_error) for failure in failures] == [(2, "Unhandled")]


# --- the function in this process ------------------------------------------------------------------------------

CALL = Invoke("a", 0, Kind.PLAIN, b'{"Records":[]}', 0, 1)


@pytest.mark.parametrize(
    ("returned", "body"),
    [
        (None, b"null"),
        ({"a": "é"}, '{"a": "é"}'.encode()),
        ({"a": Decimal(3)}, b'{"a": 3}'),
        ({"a": Decimal("1.5")}, b'{"a": 1.5}'),
        ({"a": float("nan")}, b'{"a": NaN}'),
    ],
)
def test_an_answer_is_written_as_lambdas_runtime_writes_it(returned, body):
    outcome = InProcess(lambda event, context: returned, FUNCTION, new_id=lambda: "r")(CALL)
    assert outcome == Answered(body, request_id="r")


def nested(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


@pytest.mark.parametrize(
    "returned", [{1, 2}, object(), b"bytes", nested(100_000)], ids=["set", "object", "bytes", "deep"]
)
def test_an_answer_that_is_not_json_is_a_function_error(returned):
    outcome = InProcess(lambda event, context: returned, FUNCTION)(CALL)
    assert isinstance(outcome, Failed)
    assert outcome.error_type == "Runtime.MarshalError"


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit("no"), asyncio.CancelledError("no"), GeneratorExit("no")]
)
def test_whatever_a_function_raises_is_a_function_error(error):
    def function(event: Any, context: Any) -> None:
        raise error

    outcome = InProcess(function, FUNCTION, new_id=lambda: "r")(CALL)
    assert outcome == Failed(type(error).__name__, "no", request_id="r")


def test_ctrl_c_in_a_function_ends_its_caller():
    def function(event: Any, context: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        InProcess(function, FUNCTION)(CALL)


def test_the_context_says_who_is_called_and_how_long_it_may_take():
    seen: list[Any] = []
    clock = iter([1000, 1200, 9000])
    InProcess(
        lambda event, context: seen.extend(
            [
                context.function_name,
                context.invoked_function_arn,
                context.aws_request_id,
                context.get_remaining_time_in_millis(),
                context.get_remaining_time_in_millis(),
            ]
        ),
        FUNCTION,
        timeout_ms=3000,
        now_ms=lambda: next(clock),
        new_id=lambda: "r",
    )(CALL)
    assert seen == ["totals", FUNCTION, "r", 2800, 0]


# --- a Kinesis endpoint ----------------------------------------------------------------------------------------


class Endpoint:
    """The three operations, with answers of our own."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.requests: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**request: Any) -> Any:
            self.requests.append((operation, request))
            return self.answers[operation].pop(0)

        return call


RECORD = {
    "SequenceNumber": "7",
    "PartitionKey": "k",
    "ApproximateArrivalTimestamp": datetime(2023, 11, 14, 22, 14, 0, 999_999, tzinfo=UTC),
    "Data": b"x",
}


def test_an_arrival_is_cut_to_whole_milliseconds():
    endpoint = Endpoint(get_shard_iterator=[{"ShardIterator": "i"}], get_records=[{"Records": [RECORD]}])
    fetched = PolledStream(endpoint, STREAM).fetch(Fetch("a", TRIM_HORIZON, 10))
    assert fetched.records == [StreamRecord("7", "k", 1_700_000_040_999, b"x")]


def test_the_iterator_of_the_last_read_is_used_where_it_fits():
    endpoint = Endpoint(
        get_shard_iterator=[{"ShardIterator": "i1"}, {"ShardIterator": "i3"}],
        get_records=[
            {"Records": [RECORD], "NextShardIterator": "i2"},
            {"Records": [], "NextShardIterator": "i2b"},
            {"Records": [], "NextShardIterator": "i4"},
        ],
    )
    stream = PolledStream(endpoint, STREAM)
    stream.fetch(Fetch("a", Position("AT_TIMESTAMP", at_ms=1_700_000_000_000), 10))
    stream.fetch(Fetch("a", Position("AFTER_SEQUENCE_NUMBER", "7"), 10))
    stream.fetch(Fetch("a", Position("AT_SEQUENCE_NUMBER", "3"), 10))
    shard = {"StreamName": "trips", "ShardId": "a"}
    at = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert endpoint.requests == [
        ("get_shard_iterator", {**shard, "ShardIteratorType": "AT_TIMESTAMP", "Timestamp": at}),
        ("get_records", {"ShardIterator": "i1", "Limit": 10}),
        ("get_records", {"ShardIterator": "i2", "Limit": 10}),
        (
            "get_shard_iterator",
            {**shard, "ShardIteratorType": "AT_SEQUENCE_NUMBER", "StartingSequenceNumber": "3"},
        ),
        ("get_records", {"ShardIterator": "i3", "Limit": 10}),
    ]


def test_from_a_time_nothing_earlier_is_read_also_where_an_endpoint_knows_whole_seconds_only():
    later = {
        **RECORD,
        "SequenceNumber": "8",
        "ApproximateArrivalTimestamp": datetime(2023, 11, 14, 22, 14, 1, tzinfo=UTC),
    }
    endpoint = Endpoint(
        get_shard_iterator=[{"ShardIterator": "i1"}],
        get_records=[
            {"Records": [RECORD], "NextShardIterator": "i2"},
            {"Records": [RECORD, later, RECORD], "NextShardIterator": "i3"},
        ],
    )
    stream = PolledStream(endpoint, STREAM)
    since = Fetch("a", Position("AT_TIMESTAMP", at_ms=1_700_000_041_000), 10)
    assert stream.fetch(since).records == []
    assert [each.sequence for each in stream.fetch(since).records] == ["8", "7"]


def test_a_missing_next_iterator_ends_the_shard_and_names_its_children():
    endpoint = Endpoint(
        get_shard_iterator=[{"ShardIterator": "i"}],
        get_records=[{"Records": [], "ChildShards": [{"ShardId": "b"}, {"ShardId": "c"}]}],
    )
    fetched = PolledStream(endpoint, STREAM).fetch(Fetch("a", TRIM_HORIZON, 10))
    assert (fetched.ended, fetched.children) == (True, ("b", "c"))


def test_a_listing_follows_its_pages_and_knows_parents_and_closed_shards():
    def listed(shard_id: str, **more: Any) -> dict[str, Any]:
        return {"ShardId": shard_id, "SequenceNumberRange": {"StartingSequenceNumber": "0"}, **more}

    closed = {"SequenceNumberRange": {"StartingSequenceNumber": "0", "EndingSequenceNumber": "9"}}
    endpoint = Endpoint(
        list_shards=[
            {"Shards": [listed("a", **closed)], "NextToken": "t"},
            {"Shards": [listed("b", ParentShardId="a", AdjacentParentShardId="z")]},
        ],
        get_shard_iterator=[{"ShardIterator": "i"}],
        get_records=[{"Records": [RECORD], "NextShardIterator": "i"}, {"Records": [], "NextShardIterator": "i"}],
    )
    stream = PolledStream(endpoint, STREAM)
    assert stream.shards() == [Shard("a", (), closed=True), Shard("b", ("a", "z"))]
    assert endpoint.requests[1] == ("list_shards", {"NextToken": "t"})
    # This endpoint gives iterators for ever; a closed shard is read when there is no more.
    assert not stream.fetch(Fetch("a", TRIM_HORIZON, 10)).ended
    assert stream.fetch(Fetch("a", Position("AFTER_SEQUENCE_NUMBER", "7"), 10)).ended


CONSUMER = STREAM + "/consumer/c:1700000000"


def pushed(*numbers: int, then: str | None = "0", behind_ms: int = 0, **more: Any) -> dict[str, Any]:
    listed = [{**RECORD, "SequenceNumber": str(number)} for number in numbers]
    event = {"Records": listed, "MillisBehindLatest": behind_ms, "ContinuationSequenceNumber": then, **more}
    return {"SubscribeToShardEvent": event}


class Pushes:
    """An EventStream of botocore's: what is pushed, and a connection that stays taken until it is closed."""

    def __init__(self, pushes: Iterable[dict[str, Any]]) -> None:
        self.pushes = pushes
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.pushes)

    def close(self) -> None:
        self.closed.set()


def subscribing(*pushes: Iterable[dict[str, Any]], **more: Any) -> Any:
    """An endpoint that answers subscription after subscription with these."""
    return Endpoint(subscribe_to_shard=[{"EventStream": Pushes(each)} for each in pushes], **more)


def read_all(stream: SubscribedStream, position: Position = TRIM_HORIZON) -> list[Fetched]:
    """Reads until the shard ends."""
    reads: list[Fetched] = []

    def ended() -> bool:
        nonlocal position
        reads.append(stream.fetch(Fetch("a", position, 10_000)))
        if reads[-1].records:
            position = Position("AFTER_SEQUENCE_NUMBER", reads[-1].records[-1].sequence)
        return reads[-1].ended

    until(ended)
    return reads


def test_a_subscription_is_taken_up_again_until_the_shard_ends():
    children = [{"ShardId": "b"}]
    endpoint = subscribing([pushed(1, 2, then="2"), pushed(then="5")], [pushed(7, then=None, ChildShards=children)])
    reads = read_all(SubscribedStream(endpoint, CONSUMER, wait_ms=WAIT_S * 1000), Position("AT_SEQUENCE_NUMBER", "1"))
    assert [each.sequence for read in reads for each in read.records] == ["1", "2", "7"]
    assert (reads[-1].ended, reads[-1].children) == (True, ("b",))
    asked = {"ConsumerARN": CONSUMER, "ShardId": "a"}
    assert [request for _, request in endpoint.requests] == [
        {**asked, "StartingPosition": {"Type": "AT_SEQUENCE_NUMBER", "SequenceNumber": "1"}},
        {**asked, "StartingPosition": {"Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": "5"}},
    ]


def test_a_subscription_that_breaks_is_told_once_and_begun_again_behind_what_was_read():
    def breaks() -> Iterator[dict[str, Any]]:
        yield pushed(1, then="1")
        raise RuntimeError("connection reset")

    stream = SubscribedStream(subscribing(breaks(), [pushed(2, then=None)]), CONSUMER, wait_ms=WAIT_S * 1000)
    first = stream.fetch(Fetch("a", TRIM_HORIZON, 1))
    after_first = Position("AFTER_SEQUENCE_NUMBER", "1")
    with pytest.raises(RuntimeError, match="connection reset"):
        stream.fetch(Fetch("a", after_first, 1))
    second = stream.fetch(Fetch("a", after_first, 1))
    assert [each.sequence for each in (*first.records, *second.records)] == ["1", "2"]


def test_a_break_behind_records_that_were_pushed_is_told_by_the_next_read():
    broken = threading.Event()

    def breaks() -> Iterator[dict[str, Any]]:
        yield pushed(1, then="1")
        broken.set()
        raise RuntimeError("connection reset")

    stream = SubscribedStream(subscribing(breaks(), [pushed(2, then=None)]), CONSUMER, wait_ms=WAIT_S * 1000)
    subscribed = stream.fetch(Fetch("a", TRIM_HORIZON, 0))  # takes nothing, and has the pushes begin
    assert not subscribed.records
    assert broken.wait(WAIT_S)
    first = stream.fetch(Fetch("a", TRIM_HORIZON, 10))  # finds the record and, mostly, the break behind it
    after_first = Position("AFTER_SEQUENCE_NUMBER", "1")
    with pytest.raises(RuntimeError, match="connection reset"):
        stream.fetch(Fetch("a", after_first, 10))
    second = stream.fetch(Fetch("a", after_first, 10))
    assert [each.sequence for each in (*first.records, *second.records)] == ["1", "2"]


def test_before_the_first_push_a_shard_is_not_known_to_be_read():
    open_ = threading.Event()

    def late() -> Iterator[dict[str, Any]]:
        open_.wait(WAIT_S)
        yield pushed(then=None)

    stream = SubscribedStream(subscribing(late()), CONSUMER, wait_ms=1)
    assert stream.fetch(Fetch("a", LATEST, 10)).behind_latest_ms > 0
    open_.set()
    assert read_all(stream, LATEST)[-1].behind_latest_ms == 0


@pytest.mark.parametrize("ends", ["the shard ends", "nobody reads any more", "it breaks"])
def test_a_subscription_that_is_over_gives_its_connection_back(ends):
    def pushes() -> Iterator[dict[str, Any]]:
        yield pushed(1, then=None if ends == "the shard ends" else "1")
        if ends == "it breaks":
            raise RuntimeError("connection reset")
        while True:
            yield pushed(2)

    events = Pushes(pushes())
    stream = SubscribedStream(Endpoint(subscribe_to_shard=[{"EventStream": events}]), CONSUMER, wait_ms=WAIT_S * 1000)
    stream.fetch(Fetch("a", TRIM_HORIZON, 1))
    if ends == "nobody reads any more":
        stream.close()
    assert events.closed.wait(WAIT_S)


def test_a_mapping_runs_on_a_consumer(started):
    listing = {"Shards": [{"ShardId": "a", "SequenceNumberRange": {"StartingSequenceNumber": "0"}}]}
    endpoint = subscribing([pushed(1, 2), pushed(3, then=None)], list_shards=[listing] * 10_000)
    function = Function()
    poller = started(SubscribedStream(endpoint, CONSUMER), function, settings(event_source_arn=CONSUMER))
    assert poller.settle(timeout_s=WAIT_S)
    assert function.numbers() == [1, 2, 3]
    assert function.events[0]["Records"][0]["eventSourceARN"] == CONSUMER


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield lambda service: boto3.client(service, region_name="us-east-1")


def test_windows_close_and_add_up_on_a_real_client(aws, started):
    kinesis = aws("kinesis")
    kinesis.create_stream(StreamName="trips", ShardCount=4)
    finals: list[tuple[str, int]] = []

    def totals(event: dict[str, Any]) -> object:
        count = event["state"].get("count", 0) + len(event["Records"])
        if event["isFinalInvokeForWindow"]:
            finals.append((event["shardId"], count))
        return {"state": {"count": count}}

    put = [{"PartitionKey": str(n), "Data": b'{"n": %d}' % n} for n in range(300)]
    kinesis.put_records(StreamName="trips", Records=put)
    config = settings(window_ms=1000, batch_size=20, assumed={"grace_ms": 20})
    poller = started(PolledStream(kinesis, STREAM), Function(totals), config)
    assert poller.settle(timeout_s=WAIT_S)
    assert sum(count for _, count in finals) == 300
    assert {shard for shard, _ in finals} == {each.shard_id for each in poller.status()}
    assert all(each.window is None for each in poller.status())


@pytest.mark.parametrize(
    ("start", "expected"), [(TRIM_HORIZON, [1, 2]), (LATEST, [2]), (Position("AT_TIMESTAMP", at_ms=1), [1, 2])]
)
def test_a_mapping_begins_at_its_starting_position(aws, started, start, expected):
    kinesis = aws("kinesis")
    kinesis.create_stream(StreamName="trips", ShardCount=1)
    kinesis.put_record(StreamName="trips", PartitionKey="k", Data=b"before")
    put_ms = wall_clock_ms()
    until(lambda: wall_clock_ms() > put_ms)  # what arrives in the millisecond of the latest is after it
    function = Function()
    poller = started(PolledStream(kinesis, STREAM), function, settings(start=start))
    assert poller.settle(timeout_s=WAIT_S)
    kinesis.put_record(StreamName="trips", PartitionKey="k", Data=b"after")
    until(lambda: function.numbers() == expected)


FAILURE = Failure(
    shard_id="shardId-000000000000",
    condition="RetryAttemptsExhausted",
    invokes=1,
    records=1,
    first_sequence="1",
    last_sequence="1",
    first_arrival_ms=0,
    last_arrival_ms=0,
    responded=True,
    function_error="Unhandled",
    request_id="r",
    payload=b'{"Records":[]}',
)


def destination(arn: str, aws: Callable[[str], Any]) -> AwsDestination:
    config = settings(uuid="u-1", on_failure_arn=arn)
    return AwsDestination(config, aws, now_ms=lambda: 1_700_000_040_000, new_id=lambda: "new")


def test_a_failure_reaches_a_queue(aws):
    queue = aws("sqs").create_queue(QueueName="failed")["QueueUrl"]
    assert destination(f"arn:aws:sqs:us-east-1:{ACCOUNT}:failed", aws)(FAILURE) == Delivered()
    [received] = aws("sqs").receive_message(QueueUrl=queue)["Messages"]
    assert list(json.loads(received["Body"])) == [
        "requestContext", "responseContext", "version", "timestamp", "KinesisBatchInfo",
    ]  # fmt: skip


def test_a_failure_reaches_a_topic(aws):
    topic = aws("sns").create_topic(Name="failed")["TopicArn"]
    queue = aws("sqs").create_queue(QueueName="listening")["QueueUrl"]
    aws("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=f"arn:aws:sqs:us-east-1:{ACCOUNT}:listening")
    assert destination(topic, aws)(FAILURE) == Delivered()
    [received] = aws("sqs").receive_message(QueueUrl=queue)["Messages"]
    assert json.loads(json.loads(received["Body"])["Message"])["KinesisBatchInfo"]["batchSize"] == 1


def test_a_failure_reaches_a_bucket_with_its_payload(aws):
    aws("s3").create_bucket(Bucket="failed")
    assert destination("arn:aws:s3:::failed", aws)(FAILURE) == Delivered()
    [held] = aws("s3").list_objects_v2(Bucket="failed")["Contents"]
    assert held["Key"] == "aws/lambda/u-1/shardId-000000000000/2023/11/14/2023-11-14T22.14.00-new"
    body = json.loads(aws("s3").get_object(Bucket="failed", Key=held["Key"])["Body"].read())
    assert (list(body)[-1], body["payload"]) == ("payload", '{"Records":[]}')


@pytest.mark.parametrize(
    "arn", [f"arn:aws:sqs:us-east-1:{ACCOUNT}:absent", f"arn:aws:sqs:us-east-1:{ACCOUNT}:q.fifo", "arn:aws:s3:::absent"]
)
def test_a_destination_that_takes_nothing_is_told_and_raises_nothing(aws, arn):
    outcome = destination(arn, aws)(FAILURE)
    assert isinstance(outcome, Undelivered)
    assert arn in outcome.reason


def test_the_data_of_a_record_reaches_the_function_untouched(aws, started):
    kinesis = aws("kinesis")
    kinesis.create_stream(StreamName="trips", ShardCount=1)
    data = bytes(range(256))
    kinesis.put_record(StreamName="trips", PartitionKey="k", Data=data)
    function = Function()
    assert started(PolledStream(kinesis, STREAM), function).settle(timeout_s=WAIT_S)
    assert base64.b64decode(function.events[0]["Records"][0]["kinesis"]["data"]) == data
    assert msgspec.json.encode(function.events[0])
