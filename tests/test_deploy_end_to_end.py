"""From a declaration to exact totals on a local endpoint: deploy, produce, verify, look, update, destroy."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.builders import TOTALS_TABLE
from tests.test_deploy_package import made
from windlass.commands import deploy as command
from windlass.commands import verify
from windlass.deploy.source import Target
from windlass.local.cloud import ACCOUNT, Cloud
from windlass.local.mapping_settings import Assumptions
from windlass.local.poller import wall_clock_ms
from windlass.produce import command as produce

pytestmark = pytest.mark.heavy

TAXI = "examples/taxi/app.py:trips"
STACK = "taxi"


class Clock:
    """The endpoint's clock: the wall's, and what one adds to it."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return wall_clock_ms() + self.ahead_ms


@pytest.fixture(scope="module", autouse=True)
def wheels() -> None:
    """Skips this file where wheels are neither at hand nor to be had."""
    made(Target.this_machine())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cloud(clock, monkeypatch) -> Iterator[Cloud]:
    monkeypatch.setattr("windlass.deploy.package.default_cache", lambda: Path("build/wheels"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "local")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with Cloud(port=0, assumed=Assumptions(grace_ms=0), poll_ms=20, now_ms=clock) as cloud:
        yield cloud


@pytest.fixture
def at(cloud) -> command.Common:
    return command.Common(stack=STACK, endpoint_url=cloud.endpoint_url, region="us-east-1", json=True)


def deployed(at: command.Common, *settings: str) -> int:
    return command.run_deploy(command.Chosen(app=TAXI, set=settings), at, code_bucket=None, replace=False, dry=False)


def told(capsys: Any) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def put(cloud: Cloud, count: int, *, aggregate: bool) -> None:
    options = produce.Options(
        stream="input-stream",
        endpoint_url=cloud.endpoint_url,
        region="us-east-1",
        count=count,
        for_s=None,
        rate=0,
        seed=5,
        dialect="mixed",
        aggregate=aggregate,
        unclean=0.03,
        csv=None,
        loop=False,
        json=True,
    )
    assert produce.run(options) == 0


def until(true: Any, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to be in time"
        time.sleep(0.05)


def verdict(at: command.Common, bucket: str) -> int:
    options = verify.Options(
        app=TAXI,
        stream="input-stream",
        table="kinesisAggs",
        quarantine=f"s3://{bucket}/quarantine",
        endpoint_url=at.endpoint_url,
        region="us-east-1",
        json=True,
    )
    return verify.run(options)


@pytest.mark.parametrize("fast", ["false", "true"], ids=["awslambdaric", "own loop"])
def test_a_deployed_stack_computes_exact_totals(cloud, clock, at, capsys, fast):
    assert deployed(at, "shards=2", f"fast_runtime={fast}") == 0, capsys.readouterr().err
    created = told(capsys)
    assert created["action"] == "created"
    bucket = created["resources"]["Bucket"]
    put(cloud, 1500, aggregate=False)
    put(cloud, 1500, aggregate=True)
    capsys.readouterr()

    # The window ends on the endpoint's clock, so nobody waits for it.
    clock.ahead_ms += 31_000
    exact = []
    until(lambda: exact.append(verdict(at, bucket)) or exact[-1] == 0)
    found = told(capsys)
    assert found["exact"] is True
    assert found["received"] == 3000

    assert command.run_windows(at, table=None, key=None, limit=50) == 0
    items = told(capsys)["items"]
    assert {item["vendorId"] for item in items} == {1, 2}
    assert [item["windowStart"] for item in items] == sorted((item["windowStart"] for item in items), reverse=True)
    assert command.run_windows(at, table=None, key="1", limit=1) == 0
    [newest] = told(capsys)["items"]
    assert newest["vendorId"] == 1

    assert command.run_status(at) == 0
    status = told(capsys)
    assert (status["mapping_state"], status["last_result"], status["errors"]) == ("Enabled", "OK", 0)
    assert (status["table"], status["quarantine"]) == ("kinesisAggs", f"s3://{bucket}/quarantine")

    assert command.run_logs(at, follow=False, minutes=10) == 0
    lines = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("REPORT") for line in lines)

    # What holds data stays.
    assert command.run_destroy(at, yes=True, data=False, ask=lambda text: False) == 0
    assert told(capsys) == {"stack": STACK, "deleted": [], "kept": ["kinesisAggs", bucket]}
    assert cloud.client("dynamodb").describe_table(TableName="kinesisAggs")["Table"]["ItemCount"] == len(items)
    assert cloud.client("kinesis").list_streams()["StreamNames"] == []
    assert cloud.client("lambda").list_functions()["Functions"] == []


def test_deploying_again_changes_nothing_and_a_setting_changes_what_it_names(cloud, at, capsys):
    assert deployed(at) == 0
    first = told(capsys)
    assert deployed(at) == 0
    assert told(capsys)["action"] == "unchanged"
    assert deployed(at, "batch_size=500") == 0
    again = told(capsys)
    assert again["action"] == "updated"
    assert again["resources"]["Table"] == first["resources"]["Table"]
    mapping = cloud.client("lambda").get_event_source_mapping(UUID=again["resources"]["Mapping"])
    assert mapping["BatchSize"] == 500
    assert mapping["TumblingWindowInSeconds"] == 30


@pytest.mark.parametrize("setting", ["table=other", "stream=other", "bucket=another-bucket"])
def test_another_name_for_what_holds_data_is_refused_and_changes_nothing(cloud, at, capsys, setting):
    assert deployed(at, "bucket=a-bucket") == 0
    before = told(capsys)["resources"]
    assert deployed(at, "bucket=a-bucket", setting) == 2
    assert "the new one begins empty" in line(capsys)
    assert command.Stack(STACK, at.clients, time.sleep).resources() == before


def test_other_keys_for_a_table_that_is_there_are_refused(cloud, at, capsys, tmp_path):
    assert deployed(at) == 0
    app = tmp_path / "app.py"
    app.write_text(Path("examples/taxi/app.py").read_text().replace("coerce=True", 'coerce=True, layout="latest"'))
    chosen = command.Chosen(app=str(app), settings=Path("examples/taxi/windlass.toml"))
    capsys.readouterr()
    assert command.run_deploy(chosen, at, code_bucket=None, replace=False, dry=False) == 2
    assert "it has partition key vendorId (N) and sort key windowStart (S)" in line(capsys)


def test_destroy_asks_takes_no_for_an_answer_and_removes_what_is_empty(cloud, at, capsys):
    assert deployed(at) == 0
    asked: list[str] = []
    assert command.run_destroy(at, yes=False, data=False, ask=lambda text: bool(asked.append(text))) == 1
    assert "delete stack taxi with stream input-stream" in asked[0]
    assert cloud.client("cloudformation").describe_stacks(StackName=STACK)
    capsys.readouterr()
    assert command.run_destroy(at, yes=True, data=False, ask=lambda text: False) == 0
    assert told(capsys)["kept"] == []
    assert cloud.client("dynamodb").list_tables()["TableNames"] == []
    buckets = [bucket["Name"] for bucket in cloud.client("s3").list_buckets()["Buckets"]]
    assert buckets == [f"windlass-code-{ACCOUNT}-us-east-1"]


def test_destroy_deletes_data_only_when_told(cloud, at, capsys):
    assert deployed(at) == 0
    bucket = told(capsys)["resources"]["Bucket"]
    item = {"vendorId": {"N": "1"}, "windowStart": {"S": "2020-12-09T07:04:00Z"}}
    cloud.client("dynamodb").put_item(TableName="kinesisAggs", Item=item)
    cloud.client("s3").put_object(Bucket=bucket, Key="quarantine/x", Body=b"1")
    cloud.client("s3").put_object(Bucket=bucket, Key="quarantine/x", Body=b"2")
    assert command.run_destroy(at, yes=True, data=True, ask=lambda text: False) == 0
    assert sorted(told(capsys)["deleted"]) == sorted(["kinesisAggs", bucket])
    assert cloud.client("dynamodb").list_tables()["TableNames"] == []


def line(capsys: Any) -> str:
    told = [each for each in capsys.readouterr().err.splitlines() if each.startswith("windlass ")]
    assert len(told) == 1, told
    return told[0]


def nothing_is_left(cloud: Cloud) -> bool:
    stacks = cloud.client("cloudformation").list_stacks(StackStatusFilter=["CREATE_COMPLETE", "REVIEW_IN_PROGRESS"])
    objects = [
        each
        for bucket in cloud.client("s3").list_buckets()["Buckets"]
        for each in cloud.client("s3").list_objects_v2(Bucket=bucket["Name"]).get("Contents", [])
    ]
    return stacks["StackSummaries"] == [] and objects == []


def test_a_name_that_is_taken_is_one_line_and_nothing_is_made(cloud, at, capsys):
    cloud.client("kinesis").create_stream(StreamName="input-stream", ShardCount=1)
    assert deployed(at) == 2
    arn = f"arn:aws:kinesis:us-east-1:{ACCOUNT}:stream/input-stream"
    expected = f'the stream input-stream exists already, outside this stack: read it with stream = "{arn}"'
    assert expected in line(capsys)
    assert nothing_is_left(cloud)


def test_a_log_that_a_removed_function_left_is_one_line_and_nothing_is_made(cloud, at, capsys):
    logs = cloud.client("logs")
    logs.create_log_group(logGroupName="/aws/lambda/left")
    assert deployed(at, "function=left") == 2
    assert "the log group /aws/lambda/left exists already, outside this stack" in line(capsys)
    assert nothing_is_left(cloud)

    logs.delete_log_group(logGroupName="/aws/lambda/left")
    logs.create_log_group(logGroupName="/aws/lambda/left-over")
    assert deployed(at, "function=left") == 0


def test_a_stream_encrypted_with_a_key_of_ones_own_asks_for_that_key(cloud, at, capsys):
    kinesis = cloud.client("kinesis")
    kinesis.create_stream(StreamName="mine", ShardCount=1)
    key_arn = cloud.client("kms").create_key()["KeyMetadata"]["Arn"]
    kinesis.start_stream_encryption(StreamName="mine", EncryptionType="KMS", KeyId=key_arn)
    arn = kinesis.describe_stream_summary(StreamName="mine")["StreamDescriptionSummary"]["StreamARN"]
    kinesis.create_stream(StreamName="plain", ShardCount=1)

    assert deployed(at, f"stream={arn}") == 2
    assert f'stream {arn} is encrypted with {key_arn}: say stream_key = "{key_arn}"' in line(capsys)
    assert deployed(at, f"stream={arn.replace('mine', 'plain')}", f"stream_key={key_arn}") == 2
    assert "leave stream_key out" in line(capsys)
    assert nothing_is_left(cloud)

    assert deployed(at, f"stream={arn}", f"stream_key={key_arn}") == 0


def test_a_table_with_other_keys_is_one_line_that_names_them(cloud, at, capsys):
    cloud.client("dynamodb").create_table(
        TableName="kinesisAggs",
        AttributeDefinitions=[{"AttributeName": "vendorId", "AttributeType": "N"}],
        KeySchema=[{"AttributeName": "vendorId", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    assert deployed(at) == 2
    said = line(capsys)
    assert "should have partition key vendorId (N) and sort key windowStart (S)" in said
    assert "it has partition key vendorId (N) and no sort key" in said
    assert nothing_is_left(cloud)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (f"stream=arn:aws:kinesis:us-east-1:{ACCOUNT}:stream/gone", "there is no stream arn:aws:kinesis"),
        (f"stream=arn:aws:kinesis:eu-west-1:{ACCOUNT}:stream/gone", "is in eu-west-1, the stack would be in us-east-1"),
        (f"table=arn:aws:dynamodb:us-east-1:{ACCOUNT}:table/gone", "there is no table arn:aws:dynamodb"),
        ("retries=2", "makes Lambda discard a batch"),
        ('include=["no.csv"]', "there is no such file"),
        ("retrys=2", "there is no 'retrys'; the names are stream"),
    ],
)
def test_what_is_not_there_or_not_possible_is_one_line_and_nothing_is_made(cloud, at, capsys, setting, text):
    assert deployed(at, setting) == 2
    assert text in line(capsys)
    assert nothing_is_left(cloud)


def test_an_existing_stream_and_table_are_used_and_stay(cloud, at, capsys):
    cloud.client("kinesis").create_stream(StreamName="mine", ShardCount=1)
    cloud.client("dynamodb").create_table(**TOTALS_TABLE)
    settings = [
        f"stream=arn:aws:kinesis:us-east-1:{ACCOUNT}:stream/mine",
        f"table=arn:aws:dynamodb:us-east-1:{ACCOUNT}:table/totals",
    ]
    assert deployed(at, *settings) == 0, capsys.readouterr().err
    assert told(capsys)["resources"]["Table"] == "totals"
    assert command.run_status(at) == 0
    status = told(capsys)
    assert (status["stream"], status["table"]) == ("mine", "totals")
    assert command.run_destroy(at, yes=True, data=True, ask=lambda text: False) == 0
    assert cloud.client("dynamodb").list_tables()["TableNames"] == ["totals"]
    assert cloud.client("kinesis").list_streams()["StreamNames"] == ["mine"]


def test_looking_at_a_stack_that_is_not_there_is_one_line(cloud, at, capsys):
    for run in (command.run_status, lambda at: command.run_logs(at, follow=False, minutes=1)):
        assert run(at) == 2
        assert "there is no stack taxi in us-east-1: windlass deploy makes it" in line(capsys)


def test_without_credentials_there_is_one_line(capsys, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    at = command.Common(stack=STACK, region="us-east-1")
    assert command.run_status(at) == 2
    assert "no AWS credentials; run aws configure" in line(capsys)


def test_an_endpoint_that_does_not_answer_is_one_line(capsys):
    at = command.Common(stack=STACK, endpoint_url="http://127.0.0.1:9", region="us-east-1")
    at = msgspec.structs.replace(at)
    assert command.run_windows(at, table="t", key=None, limit=1) == 2
    assert "Could not connect" in line(capsys)
