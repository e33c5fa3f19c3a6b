"""The console about functions of AWS' own API: read over the local endpoint as over AWS, and from its inside."""

import io
import json
import site
import sys
import zipfile
from pathlib import Path

import pytest

from tests import browser as browsers
from tests.browser import Watched
from tests.builders import TOTALS_TABLE
from windlass.commands import console as command
from windlass.console.aws_source import AT_HOME, AwsSource
from windlass.console.call_log import CallLog
from windlass.console.cloud_source import cloud_source
from windlass.console.desk import Desk
from windlass.console.server import Console
from windlass.console.source import SourceProblem
from windlass.local.cloud import ACCOUNT, Cloud
from windlass.local.mapping_settings import Assumptions

pytestmark = pytest.mark.heavy

SOURCE = Path(__file__).parent.parent / "src"
APP = f"""
import sys
sys.path[:0] = {[str(SOURCE), *site.getsitepackages()]!r}
import base64, os, signal
from datetime import timedelta
from windlass.local.taxi import trips

def handler(event, context):
    if any(b"KILL" in base64.b64decode(record["kinesis"]["data"]) for record in event["Records"]):
        print("about to be killed")
        os.kill(os.getpid(), signal.SIGKILL)
    return folds(event, context)

folds = trips.changed(every=timedelta(seconds=1)).handler
"""
CLEAN = [json.dumps({"vendorId": 1 + n % 2, "passengerCount": 1}).encode() for n in range(20)]


@pytest.fixture(scope="module")
def cloud():
    assumed = Assumptions(grace_ms=0, backoff_ms=50, backoff_ms_max=100)
    with Cloud(port=0, assumed=assumed, poll_ms=50) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def deployed(cloud):
    """A function of the taxi example: stream, table, bucket, role, mapping; and all of its records processed."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("app.py", APP)
    cloud.client("iam").create_role(RoleName="runs", AssumeRolePolicyDocument="{}")
    cloud.client("kinesis").create_stream(StreamName="trips", ShardCount=2)
    cloud.client("s3").create_bucket(Bucket="refused-trips")
    cloud.client("dynamodb").create_table(**TOTALS_TABLE)
    cloud.client("lambda").create_function(
        FunctionName="folds",
        Runtime=f"python3.{sys.version_info[1]}",
        Handler="app.handler",
        Role=f"arn:aws:iam::{ACCOUNT}:role/runs",
        Timeout=30,
        MemorySize=512,
        Code={"ZipFile": archive.getvalue()},
        Environment={
            "Variables": {
                "WINDLASS_QUARANTINE": "s3://refused-trips/rejected",
                "dynamoDBTableName": "totals",
                "POWERTOOLS_LOG_LEVEL": "DEBUG",
            }
        },
    )
    cloud.client("lambda").create_event_source_mapping(
        FunctionName="folds",
        EventSourceArn=f"arn:aws:kinesis:us-east-1:{ACCOUNT}:stream/trips",
        StartingPosition="TRIM_HORIZON",
        TumblingWindowInSeconds=1,
    )
    put(cloud, *CLEAN, b"{", b"[]")
    assert cloud.settle(timeout_s=30)
    return cloud


def put(cloud, *records: bytes) -> None:
    entries = [{"Data": data, "PartitionKey": str(number)} for number, data in enumerate(records)]
    cloud.client("kinesis").put_records(StreamName="trips", Records=entries)


def outside(cloud, **more) -> AwsSource:
    """As AWS would be read: by the API alone."""
    return AwsSource(cloud.client, paces=AT_HOME, **more)


def test_everything_is_found_from_the_function(deployed):
    pipeline = outside(deployed, function="folds").pipeline()

    assert (pipeline.stream, pipeline.table, pipeline.key_attribute) == ("trips", "totals", "vendorId")
    assert pipeline.quarantine == "s3://refused-trips/rejected"
    assert pipeline.every_ms == 1000
    assert set(pipeline.totals) == {"passenger", "trips"}
    assert {setting.name: setting.value for setting in pipeline.mapping}["Retries"] == "until it succeeds"


def test_without_a_name_the_first_function_with_a_stream_is_taken(deployed):
    assert outside(deployed).pipeline().function == "folds"


def test_a_function_that_reads_no_stream_is_said(deployed):
    with pytest.raises(SourceProblem, match="the function nowhere"):
        outside(deployed, function="nowhere").pipeline()


def test_items_hold_what_was_folded(deployed):
    items = list(outside(deployed).items())

    assert sum(int(item.totals["trips"]) for item in items) == len(CLEAN)
    assert {item.key for item in items} == {"1", "2"}
    of_one = outside(deployed).items_of("1", 100)
    assert {item.key for item in of_one} == {"1"}
    assert sum(int(item.totals["trips"]) for item in of_one) == len(CLEAN) // 2
    assert all(item.shards and item.window_end_ms - item.window_start_ms == 1000 for item in items)


def test_rejected_records_come_from_the_quarantine_that_the_function_names(deployed):
    desk = Desk(outside(deployed))
    desk.rejected.refresh()

    assert {count.reason: count.count for count in desk.rejected.reasons()} == {"not_json": 1, "not_an_object": 1}


def test_calls_are_read_from_the_log_with_their_figures(deployed):
    calls = outside(deployed).calls(100)

    assert sum(call.figures.get("clean", 0) for call in calls) == len(CLEAN)
    assert {call.shard_id for call in calls if call.figures} <= {"shardId-000000000000", "shardId-000000000001"}
    assert all(call.duration_ms > 0 and call.memory_mb and call.lines[-1].startswith("REPORT") for call in calls)
    assert any(call.kind == "final" for call in calls)
    assert any(call.init_ms for call in calls)
    assert calls == sorted(calls, key=lambda call: -call.started_ms)


def test_figures_come_from_cloudwatch(deployed):
    source = outside(deployed)
    now_ms = source.now_ms()

    series = source.series(now_ms - 300_000, now_ms + 5_000, 5_000)

    total = {name: sum(value or 0 for value in values) for name, values in series.values.items()}
    assert (total["received"], total["clean"], total["rejected"]) == (22, 20, 2)
    assert total["invocations"] == len(source.calls(1000))
    assert max(value or 0 for value in series.values["duration_max"]) > 0
    assert {len(values) for values in series.values.values()} == {len(series.at_ms)}


def test_what_aws_does_not_tell_is_not_made_up(deployed):
    shards = outside(deployed).shards()

    assert [shard.state for shard in shards] == ["open", "open"]
    assert {(shard.folded, shard.polled, shard.behind_ms) for shard in shards} == {(None, None, None)}
    assert outside(deployed).failures() is None


def test_the_local_endpoint_tells_what_its_shards_are_doing(deployed):
    shards = cloud_source(deployed).shards()

    assert sum(shard.polled for shard in shards) >= 22
    assert [round(shard.high - shard.low, 3) for shard in shards] == [0.5, 0.5]
    assert cloud_source(deployed).failures() == []


def test_a_record_that_was_put_is_found_again(deployed):
    desk = Desk(cloud_source(deployed))
    sent = desk.put("k", b'{"vendorId": 7, "passengerCount": 3}')
    assert deployed.settle(timeout_s=30)
    desk.items.refresh()

    found = desk.whereabouts(sent.sequence)

    assert (found["stage"], found["item"].key, found["item"].totals["passenger"]) == ("settled", "7", "3")


def test_the_command_finds_the_pipeline_behind_an_endpoint(deployed):
    options = command.Options(endpoint_url=deployed.endpoint_url, region="us-east-1")

    assert command.source_of(options).found().stream == "trips"
    missing = command.Options(endpoint_url=deployed.endpoint_url, region="us-east-1", function="nowhere")
    err = io.StringIO()
    assert command.run(missing, out=io.StringIO(), err=err) == 2
    assert err.getvalue().startswith("windlass console: ")


def test_a_batch_that_was_given_up_is_told_with_where_its_message_went(deployed):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("app.py", "def handler(event, context):\n    raise ValueError('no such trip')\n")
    queue = deployed.client("sqs").create_queue(QueueName="given-up")["QueueUrl"]
    arn = deployed.client("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]
    deployed.client("kinesis").create_stream(StreamName="bad-trips", ShardCount=1)
    deployed.client("lambda").create_function(
        FunctionName="fails",
        Runtime=f"python3.{sys.version_info[1]}",
        Handler="app.handler",
        Role=f"arn:aws:iam::{ACCOUNT}:role/runs",
        Code={"ZipFile": archive.getvalue()},
    )
    deployed.client("lambda").create_event_source_mapping(
        FunctionName="fails",
        EventSourceArn=f"arn:aws:kinesis:us-east-1:{ACCOUNT}:stream/bad-trips",
        StartingPosition="TRIM_HORIZON",
        MaximumRetryAttempts=0,
        DestinationConfig={"OnFailure": {"Destination": arn["QueueArn"]}},
    )
    deployed.client("kinesis").put_record(StreamName="bad-trips", PartitionKey="k", Data=b"{}")
    assert deployed.settle(timeout_s=30)
    source = cloud_source(deployed, function="fails")

    (failure,) = source.failures()

    assert (failure.condition, failure.records) == ("RetryAttemptsExhausted", 1)
    assert (failure.destination, failure.refused) == (arn["QueueArn"], "")
    assert source.pipeline().on_failure == arn["QueueArn"]
    assert [call.error_type for call in source.calls(9)] == ["ValueError"]


def test_a_killed_function_is_seen_with_its_last_words(deployed):
    with browsers.chromium(browsers.needed()) as browser, Console(cloud_source(deployed)) as console:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        watched = Watched(page)
        page.goto(f"{console.url}#logs")
        put(deployed, b"KILL")
        page.get_by_role("button", name="errors").click()
        page.wait_for_selector(".list-space:not(:has(.row:not(.failed))) .row.failed")
        page.locator(".row.failed").first.click()
        assert "Runtime.ExitError" in page.locator(".detail .error").inner_text()
        assert "about to be killed" in page.locator(".detail .log").inner_text()
        page.keyboard.press("4")
        page.locator(".blocked-row", has_text="is blocked").wait_for()
        page.goto("about:blank")
        assert watched.complaints == []
        assert watched.hosts == {f"127.0.0.1:{console.port}"}


# --- the log -------------------------------------------------------------------------------------------------------


def events(*lines: str, stream: str = "s", at_ms: int = 1000):
    return [
        {"eventId": f"{stream}{at_ms}{number}", "timestamp": at_ms + number, "message": line, "logStreamName": stream}
        for number, line in enumerate(lines)
    ]


REPORT = (
    "REPORT RequestId: 11111111-2222\tDuration: 12.50 ms\tBilled Duration: 13 ms\tMemory Size: 128 MB\t"
    "Max Memory Used: 80 MB\tInit Duration: 200.10 ms\t"
)


def test_a_call_that_logged_very_much_keeps_its_report():
    log = CallLog()
    many = [f"line {number}" for number in range(500)]

    log.add(events("START RequestId: 11111111-2222 Version: 1", *many, REPORT))

    (call,) = log.calls(9)
    assert call.duration_ms == 12.5


def test_a_call_is_what_lies_between_start_and_report():
    log = CallLog()
    told = json.dumps(
        {
            "level": "INFO",
            "message": "call",
            "shard": "shardId-1",
            "window": "2026-11-23T11:00:00Z",
            "final": True,
            "clean": 4,
        }
    )
    log.add(
        events(
            "INIT_START v1", "START RequestId: 11111111-2222 Version: 1", told, "END RequestId: 11111111-2222", REPORT
        )
    )

    (call,) = log.calls(9)
    assert (call.request_id, call.shard_id, call.kind, call.figures) == (
        "11111111-2222",
        "shardId-1",
        "final",
        {"clean": 4},
    )
    assert (call.duration_ms, call.billed_ms, call.memory_mb, call.init_ms) == (12.5, 13, 80, 200.1)
    assert call.error_type == ""
    assert call.lines[0] == "INIT_START v1"


def test_streams_are_told_apart_and_events_read_twice_count_once():
    log = CallLog()
    first = events("START RequestId: 11111111-aaaa", "one", REPORT.replace("2222", "aaaa"), stream="a")
    second = events("START RequestId: 11111111-bbbb", "two", REPORT.replace("2222", "bbbb"), stream="b")
    log.add(first[:2] + second)
    log.add(first + second)

    assert {call.request_id: call.lines[1] for call in log.calls(9)} == {"11111111-aaaa": "one", "11111111-bbbb": "two"}


@pytest.mark.parametrize(
    ("lines", "report", "error"),
    [
        (["[ERROR] ValueError: no such trip\nTraceback (most recent call last):"], "", ("ValueError", "no such trip")),
        (
            ["2026-11-23T11:00:00.000Z 11111111-2222 Task timed out after 3.00 seconds"],
            "Status: timeout",
            ("Sandbox.Timedout", "Task timed out after 3.00 seconds"),
        ),
        ([], "Status: error\tError Type: Runtime.OutOfMemory", ("Runtime.OutOfMemory", "")),
        (["[ERROR] ValueError: two\nlines\rTraceback (most recent call last):\r"], "", ("ValueError", "two")),
        (["[ERROR]\t2026-11-23T11:00:00.000Z\t11111111-2222\tKeyError: 7"], "Status: error", ("KeyError", "7")),
        (["an error that was caught"], "", ("", "")),
        (["[ERROR]\t2026-11-23T11:00:00.000Z\t11111111-2222\tRetrying: table was busy"], "", ("", "")),
        (["[ERROR]\t2026-11-23T11:00:00.000Z\t1\tRetry: 1\nTraceback (most recent call last):"], "", ("", "")),
        (["[ERROR] Retrying: table was busy"], "", ("", "")),
        (["a record said: Task timed out after 5 seconds"], "", ("", "")),
        (["2026-11-23T11:00:00.000Z 22222222-3333 Task timed out after 5.00 seconds"], "", ("", "")),
    ],
)
def test_a_failed_call_says_what_it_failed_of(lines, report, error):
    log = CallLog()
    log.add(events("START RequestId: 11111111-2222", *lines, REPORT + report))

    (call,) = log.calls(9)
    assert (call.error_type, call.error_message.split("\n")[0]) == error
