"""`windlass mapping run`: a mapping of this machine in front of any handler, on any endpoint."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from windlass.commands import mapping as command
from windlass.local.cloud import Cloud
from windlass.local.mapping import Fetch, Fetched
from windlass.local.poller import PolledStream
from windlass.table import DynamoTable, Item, Throttled

pytestmark = pytest.mark.heavy

SOURCE = """
seen = []

def handler(event, context):
    if "fails" in {record["kinesis"]["partitionKey"] for record in event["Records"]}:
        raise ValueError("no")
    seen.append((len(event["Records"]), event.get("isFinalInvokeForWindow")))
    return {"state": {}}
"""
FAST = ("grace_ms=0", "backoff_ms=10", "backoff_ms_max=20")


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with Cloud(port=0) as cloud:
        cloud.client("kinesis").create_stream(StreamName="there", ShardCount=1)
        yield cloud


def put(cloud: Cloud, stream: str, *keys: str) -> None:
    cloud.client("kinesis").create_stream(StreamName=stream, ShardCount=1)
    cloud.client("kinesis").put_records(
        StreamName=stream, Records=[{"Data": b"x", "PartitionKey": key} for key in keys]
    )


def run(cloud: Cloud, app: str, stream: str, **more: Any) -> tuple[int, dict[str, Any], str]:
    asked: dict[str, Any] = {
        "handler": app,
        "stream": stream,
        "request": {"StartingPosition": "TRIM_HORIZON"},
        "endpoint_url": cloud.endpoint_url,
        "region": "us-east-1",
        "until_settled": True,
        "assume": FAST,
    }
    asked["request"] = {**asked["request"], **more.pop("request", {})}
    out, err = io.StringIO(), io.StringIO()
    status = command.run(command.Options(**{**asked, **more}), out=out, err=err)
    return status, json.loads(out.getvalue() or "{}"), err.getvalue()


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "app.py"
    path.write_text(SOURCE)
    return path


def test_a_handler_gets_the_batches_and_windows_of_a_stream(cloud: Cloud, app: Path) -> None:
    put(cloud, "run", "a", "b", "c")
    status, counted, said = run(cloud, f"{app}:handler", "run", request={"TumblingWindowInSeconds": 1, "BatchSize": 2})
    assert status == 0, said
    assert (counted["polled"], counted["errors"]) == (3, 0)
    assert counted["finals"] >= 1
    assert said.count(" fold ") >= 2
    assert "final" in said


def test_checkpoints_in_a_file_say_where_to_go_on(cloud: Cloud, app: Path, tmp_path: Path) -> None:
    put(cloud, "twice", "a")
    kept = {"checkpoints": tmp_path / "kept.json"}
    assert run(cloud, f"{app}:handler", "twice", **kept)[1]["polled"] == 1
    assert run(cloud, f"{app}:handler", "twice", **kept)[1]["polled"] == 0


def test_failing_calls_are_told_and_make_the_status(cloud: Cloud, app: Path) -> None:
    put(cloud, "failing", "fails")
    status, counted, said = run(cloud, f"{app}:handler", "failing", request={"MaximumRetryAttempts": 1})
    assert (status, counted["errors"], counted["dropped"]) == (1, 2, 1)
    assert "attempt=2 ValueError: no" in said


def test_a_mapping_may_begin_at_a_moment(cloud: Cloud, app: Path) -> None:
    put(cloud, "since", "a")
    assert run(cloud, f"{app}:handler", "since", since="now-1h")[1]["polled"] == 1
    assert run(cloud, f"{app}:handler", "since", since="now")[1]["polled"] == 0


def test_a_mapping_ends_when_its_time_is_over(cloud: Cloud, app: Path) -> None:
    status, counted, _ = run(cloud, f"{app}:handler", "there", until_settled=False, for_s=0.05)
    assert (status, counted["polled"]) == (0, 0)


def test_a_read_that_fails_once_is_counted_and_one_that_fails_to_the_end_makes_the_status(
    cloud: Cloud, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cloud, "unread", "a")
    fetch, failing = PolledStream.fetch, [True]

    def fails(stream: PolledStream, asked: Fetch) -> Fetched:
        if failing.pop():
            raise ConnectionError("nobody answers")
        failing.append(False)
        return fetch(stream, asked)

    monkeypatch.setattr(PolledStream, "fetch", fails)
    failing[:] = [False, True]
    status, counted, _ = run(cloud, f"{app}:handler", "unread")
    assert (status, counted["polled"], counted["fetch_failures"]) == (0, 1, 1)

    failing[:] = [True] * 10_000
    status, counted, said = run(cloud, f"{app}:handler", "unread", until_settled=False, for_s=0.3)
    assert (status, counted["polled"]) == (1, 0)
    assert "1 shards could not be read at the end: shardId-000000000000: nobody answers" in said


class Terminal(io.StringIO):
    """Something that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_shards_and_not_every_call(cloud: Cloud, app: Path) -> None:
    put(cloud, "shown", "a", "fails")
    out, err = io.StringIO(), Terminal()
    options = command.Options(
        handler=f"{app}:handler",
        stream="shown",
        request={"StartingPosition": "TRIM_HORIZON", "MaximumRetryAttempts": 1},
        endpoint_url=cloud.endpoint_url,
        region="us-east-1",
        until_settled=True,
        assume=FAST,
    )
    assert command.run(options, out=out, err=err) == 1
    assert "attempt=" not in err.getvalue()
    last = err.getvalue().split("open window")[-1]
    assert "shardId-0000" in last
    assert json.loads(out.getvalue())["errors"] == 2


@pytest.mark.parametrize(
    ("app", "stream", "more", "word"),
    [
        ("{app}:nobody", "there", {}, "has no function 'nobody'"),
        ("{app}", "there", {}, "has several pipelines or none (none): write {app}:handler"),
        ("nowhere.py:handler", "there", {}, "there is no file nowhere.py"),
        ("{app}:handler", "missing", {}, "create the stream first or name another with --stream"),
        ("{app}:handler", "there", {"consumer": "x"}, "register the consumer first or name another with --consumer"),
        ("{app}:handler", "", {}, "Invalid length for parameter StreamName"),
        ("{app}:handler", "there", {"checkpoints": Path("/")}, "Is a directory: '/'"),
        ("{app}:handler", "there", {"request": {"BatchSize": 0}}, "greater than or equal to 1"),
        ("{app}:handler", "there", {"assume": ["grace=1"]}, "--assume grace=1"),
        ("{app}:handler", "there", {"since": "yesterday"}, "'yesterday' is no moment"),
    ],
)  # fmt: skip
def test_what_cannot_begin_is_one_line(
    cloud: Cloud, tmp_path: Path, app: str, stream: str, more: dict[str, Any], word: str
) -> None:
    (tmp_path / "app.py").write_text(SOURCE)
    status, _, said = run(cloud, app.format(app=tmp_path / "app.py"), stream, **more)
    assert status == 2
    assert said.startswith("windlass mapping run: ")
    assert word.format(app=tmp_path / "app.py") in said
    assert said.count("\n") == 1


# ── a declaration ───────────────────────────────────────────────────────────────────────────────────────────

DECLARED = """
from datetime import timedelta
from windlass import Count, DeliveryPolicy, Record, Records, Windows, env

class Trip(Record):
    vendorId: int

trips = Windows(Trip, key="vendorId", every=timedelta(seconds=1), totals={"n": Count()}, table=env("TRIPS_TABLE"))
handler = trips.handler
each = Records(Trip, table=env("TRIPS_TABLE"), delivery=DeliveryPolicy(attempts=1))
"""


@pytest.fixture
def declared(cloud: Cloud, tmp_path: Path, monkeypatch) -> Path:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "local")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", cloud.endpoint_url)
    monkeypatch.setenv("WINDLASS_QUARANTINE", "none")
    monkeypatch.setenv("TRIPS_TABLE", "trips")
    path = tmp_path / "app.py"
    path.write_text(DECLARED)
    return path


@pytest.fixture(scope="module")
def tables(cloud: Cloud) -> None:
    for name, keys in (("trips", ("vendorId", "windowStart")), ("others", ("vendorId",))):
        cloud.client("dynamodb").create_table(
            TableName=name,
            AttributeDefinitions=[
                {"AttributeName": key, "AttributeType": "N" if key == "vendorId" else "S"} for key in keys
            ],
            KeySchema=[
                {"AttributeName": key, "KeyType": role} for key, role in zip(keys, ("HASH", "RANGE"), strict=False)
            ],
            BillingMode="PAY_PER_REQUEST",
        )


@pytest.mark.parametrize("name", ["trips", "handler"])
def test_a_declaration_gives_the_window(cloud: Cloud, declared: Path, tables: None, name: str) -> None:
    put(cloud, f"declared-{name}", "a")
    status, counted, said = run(cloud, f"{declared}:{name}", f"declared-{name}")
    assert (status, counted.get("errors")) == (0, 0), said
    assert counted["finals"] >= 1


def test_what_a_pipeline_of_records_could_not_store_comes_again(cloud: Cloud, declared: Path, monkeypatch) -> None:
    keys = {"shard": "HASH", "position": "RANGE"}
    cloud.client("dynamodb").create_table(
        TableName="each",
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in keys],
        KeySchema=[{"AttributeName": key, "KeyType": role} for key, role in keys.items()],
        BillingMode="PAY_PER_REQUEST",
    )
    cloud.client("kinesis").create_stream(StreamName="each", ShardCount=1)
    cloud.client("kinesis").put_records(
        StreamName="each", Records=[{"Data": b'{"vendorId":1}', "PartitionKey": key} for key in "ab"]
    )
    monkeypatch.setenv("TRIPS_TABLE", "each")
    throttled, put = {1: Throttled(("ThrottlingException",))}, DynamoTable.put

    def put_less_at_first(table: DynamoTable, items: Sequence[Item]) -> Mapping[int, Throttled]:
        left = put(table, items[:1] if throttled else items)
        return left or {index: throttled.pop(index) for index in list(throttled)}

    monkeypatch.setattr(DynamoTable, "put", put_less_at_first)
    assert run(cloud, f"{declared}:each", "each")[0] == 0
    assert cloud.client("dynamodb").scan(TableName="each")["Count"] == 2


@pytest.mark.parametrize(
    ("name", "environ", "more", "word"),
    [
        ("trips", {}, {"request": {"TumblingWindowInSeconds": 5}}, "--tumbling-window 5 is not the window of"),
        ("handler", {}, {"request": {"TumblingWindowInSeconds": 5}}, "which declares 1 s: leave it out"),
        ("each", {}, {"request": {"TumblingWindowInSeconds": 5}}, "which declares none: leave it out"),
        ("trips", {"TRIPS_TABLE": ""}, {}, "the environment variable TRIPS_TABLE is not set"),
        ("trips", {"WINDLASS_QUARANTINE": ""}, {}, "the environment variable WINDLASS_QUARANTINE is not set"),
        ("trips", {"WINDLASS_QUARANTINE": "gs://x"}, {}, "gs:// is not known"),
        ("trips", {"TRIPS_TABLE": "nowhere"}, {}, "table nowhere in us-east-1"),
        ("trips", {"TRIPS_TABLE": "others"}, {}, "it has partition key vendorId (N) and no sort key"),
    ],
)  # fmt: skip
def test_what_a_declaration_would_trip_over_is_told_before_polling(
    cloud: Cloud, declared: Path, tables: None, monkeypatch, name: str, environ: Any, more: Any, word: str
) -> None:
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    status, _, said = run(cloud, f"{declared}:{name}", "there", **more)
    assert (status, said.count("\n")) == (2, 1), said
    assert word in said


def test_a_table_that_may_not_be_described_is_no_reason_not_to_begin(cloud: Cloud, declared: Path, monkeypatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "DescribeTable")

    client = cloud.client("dynamodb")
    monkeypatch.setattr(client, "describe_table", refused)
    monkeypatch.setattr("windlass.table.dynamo_client", lambda *_: client)
    assert run(cloud, f"{declared}:trips", "there")[0] == 0
