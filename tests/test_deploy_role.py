"""The template's role allows what the handler does, on what it does it to, and nothing else: both ways."""

import fnmatch
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import boto3
import botocore.client
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from tests.builders import aggregate, event, records, trip
from windlass import Count, Max, Record, Records, Sum, Windows, env
from windlass.apps import App, find_app
from windlass.deploy.settings import Settings
from windlass.deploy.template import DESTINATION_PREFIX, LAMBDA_READS, QUARANTINE_PREFIX, template

STREAM = "arn:aws:kinesis:us-east-1:123456789012:stream/trips"
TABLE = "totals"
BUCKET = "kept"


class Trip(Record):
    vendorId: int
    passengerCount: int


SUMS = {"passenger": Sum("passengerCount"), "trips": Count()}


def windows(**more: Any) -> Windows:
    given: dict[str, Any] = {"key": "vendorId", "every": timedelta(seconds=30), "totals": SUMS, "table": env("TABLE")}
    return Windows(Trip, **(given | more))


PIPELINES: dict[str, Any] = {
    "history": windows(),
    "history with a maximum": windows(totals={"most": Max("passengerCount"), **SUMS}),
    "latest": windows(layout="latest"),
    "latest with a maximum": windows(layout="latest", totals={"most": Max("passengerCount"), **SUMS}),
    "records by key": Records(Trip, table=env("TABLE"), key="vendorId"),
    "records by position": Records(Trip, table=env("TABLE")),
}


# ── what the handler does ───────────────────────────────────────────────────────────────────────────────────


class Calls:
    """Every AWS call, as (IAM action, ARN)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: set[tuple[str, str]] = set()
        self.forget_old = False  # as a server that does not give the item of a failed condition
        send = botocore.client.BaseClient._make_api_call

        def noted(client: Any, operation: str, request: dict[str, Any]) -> Any:
            self.made.add((_action(client.meta.service_model.service_name, operation), _arn(operation, request)))
            try:
                return send(client, operation, request)
            except ClientError as error:
                if self.forget_old:
                    error.response.pop("Item", None)
                raise

        monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", noted)


def _action(service: str, operation: str) -> str:
    return f"{service}:{operation}"


def _arn(operation: str, request: dict[str, Any]) -> str:
    if operation == "BatchWriteItem":
        [name] = request["RequestItems"]
        return f"arn:aws:dynamodb:us-east-1:123456789012:table/{name}"
    if "TableName" in request:
        return f"arn:aws:dynamodb:us-east-1:123456789012:table/{request['TableName']}"
    if "Bucket" in request:
        return f"arn:aws:s3:::{request['Bucket']}/{request.get('Key', '')}".rstrip("/")
    return str(request.get("StreamARN", request))


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name, value in {
        "AWS_DEFAULT_REGION": "us-east-1",
        "TABLE": TABLE,
        "WINDLASS_QUARANTINE": f"s3://{BUCKET}/{QUARANTINE_PREFIX}",
    }.items():
        monkeypatch.setenv(name, value)
    with mock_aws():
        boto3.client("kinesis").create_stream(StreamName="trips", ShardCount=1)
        boto3.client("kinesis").split_shard(
            StreamName="trips", ShardToSplit="shardId-000000000000", NewStartingHashKey=str(2**127)
        )
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield


def make_table(pipeline: Any) -> None:
    keys = pipeline.table_keys.attributes
    boto3.client("dynamodb").create_table(
        TableName=TABLE,
        AttributeDefinitions=[{"AttributeName": key.name, "AttributeType": key.type} for key in keys],
        KeySchema=[
            {"AttributeName": key.name, "KeyType": role} for key, role in zip(keys, ("HASH", "RANGE"), strict=False)
        ],
        BillingMode="PAY_PER_REQUEST",
    )


WINDOWS = (("2020-12-09T07:04:00Z", "2020-12-09T07:04:30Z"), ("2020-12-09T07:04:30Z", "2020-12-09T07:05:00Z"))


def exercised(pipeline: Any, calls: Calls) -> set[tuple[str, str]]:
    """All that the handler can come to do: plain, aggregated and unclean records, windows new, known and older."""
    make_table(pipeline)
    calls.made.clear()
    data = [trip(1, 2), b"not JSON", trip(2, 3), aggregate([trip(1, 1), trip(2, 1)])]
    for shard in ("shardId-000000000001", "shardId-000000000000"):  # the first of them has a parent
        for place in (0, 0, 1, 1, 0):
            start, end = WINDOWS[place]
            for calls.forget_old in (False, True):
                made = event(records(data, shard=shard), final=True, shard=shard, start=start, end=end)
                for record in made["Records"]:
                    record["kinesis"]["approximateArrivalTimestamp"] += 30 * place
                    record["eventSourceARN"] = STREAM
                made["eventSourceARN"] = STREAM
                given = {"Records": made["Records"]} if isinstance(pipeline, Records) else made
                pipeline.handler(given, None)
    return calls.made


# ── what the role allows ────────────────────────────────────────────────────────────────────────────────────


def allowed(pipeline: Any) -> dict[str, tuple[set[str], str]]:
    """The role's statements by Sid: actions, and the resource's ARN or pattern."""
    app = App(pipeline, find_app("examples/taxi/app.py:trips").module, "trips")
    settings = Settings(stream=STREAM, table=f"arn:aws:dynamodb:us-east-1:123456789012:table/{TABLE}")
    role = template(app, settings)["Resources"]["FunctionRole"]["Properties"]
    statements = role["Policies"][0]["PolicyDocument"]["Statement"]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    return {each["Sid"]: (set(each["Action"]), _resolved(each["Resource"])) for each in statements}


def _resolved(resource: Any) -> str:
    if isinstance(resource, str):
        return resource
    if "Fn::Sub" in resource:
        return resource["Fn::Sub"].replace("${Bucket.Arn}", f"arn:aws:s3:::{BUCKET}")
    known = {"Bucket": f"arn:aws:s3:::{BUCKET}", "FunctionLog": "arn:aws:logs:us-east-1:123456789012:log-group:it:*"}
    return known[resource["Fn::GetAtt"][0]]


# What Lambda does in the function's name, and no call of the handler's shows.
LAMBDAS_OWN = {
    "KeepGivenUpBatches": {"s3:PutObject"},
    "FindBucketForGivenUpBatches": {"s3:ListBucket"},
    "WriteLog": {"logs:CreateLogStream", "logs:PutLogEvents"},
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", PIPELINES)
def test_every_call_of_the_handler_is_allowed_and_nothing_is_allowed_that_nobody_calls(name, aws, monkeypatch):
    pipeline = PIPELINES[name]
    made = exercised(pipeline, Calls(monkeypatch))
    role = allowed(pipeline)

    for action, arn in made:
        assert any(action in actions and fnmatch.fnmatch(arn, pattern) for actions, pattern in role.values()), (
            action,
            arn,
        )

    own = {sid: granted for sid, granted in role.items() if sid not in LAMBDAS_OWN}
    for actions, pattern in own.values():
        called = {action for action, arn in made if fnmatch.fnmatch(arn, pattern)}
        assert actions - called <= set(LAMBDA_READS) - {"kinesis:ListShards"}, pattern
    assert {sid: role[sid][0] for sid in LAMBDAS_OWN} == LAMBDAS_OWN
    assert role["ReadStream"][0] == set(LAMBDA_READS)


@pytest.mark.parametrize("name", PIPELINES)
def test_no_statement_reaches_beyond_the_stacks_own_resources(name):
    for sid, (actions, pattern) in allowed(PIPELINES[name]).items():
        assert pattern != "*"
        assert not any("*" in action for action in actions)
        ends = (f"/{QUARANTINE_PREFIX}/*", f"/{DESTINATION_PREFIX}/*", ":*")
        assert "*" not in pattern or pattern.endswith(ends), sid


def test_only_lambda_may_take_the_role():
    app = find_app("examples/taxi/app.py:trips")
    trust = template(app, Settings())["Resources"]["FunctionRole"]["Properties"]["AssumeRolePolicyDocument"]
    assert json.dumps(trust["Statement"]) == json.dumps(
        [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}]
    )
