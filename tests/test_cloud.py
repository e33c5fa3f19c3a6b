"""The local endpoint, through its door: boto3, real function processes, real mappings."""

import base64
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.iam.models import iam_backends

from windlass.local.cloud import ACCOUNT, Cloud, CloudProblem
from windlass.local.mapping_settings import Assumptions

FAST = Assumptions(grace_ms=0, backoff_ms=20, backoff_ms_max=50)
ROLE = f"arn:aws:iam::{ACCOUNT}:role/runs"

TOTALS = """
import base64, json, os
import boto3
table = boto3.client("dynamodb")

def handler(event, context):
    state = event["state"]
    for record in event["Records"]:
        trip = json.loads(base64.b64decode(record["kinesis"]["data"]))
        vendor = str(trip["vendorId"])
        state[vendor] = state.get(vendor, 0) + trip["passengerCount"]
    if not (event["isFinalInvokeForWindow"] or event["isWindowTerminatedEarly"]):
        return {"state": state}
    for vendor, passengers in state.items():
        table.update_item(
            TableName=os.environ["dynamoDBTableName"], Key={"vendorId": {"N": vendor}},
            UpdateExpression="ADD passengers :n", ExpressionAttributeValues={":n": {"N": str(passengers)}})
    return {"state": {}}
"""
ECHO = "def handler(event, context):\n    print('got', len(event.get('Records', [])))\n    return event\n"
FAILS = "def handler(event, context):\n    raise ValueError('no such trip')\n"


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with Cloud(port=0, assumed=FAST, poll_ms=20) as cloud:
        cloud.client("iam").create_role(RoleName="runs", AssumeRolePolicyDocument="{}")
        yield cloud


def zipped(source: str, name: str = "app.py") -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(name, source)
    return archive.getvalue()


def function(cloud: Cloud, name: str, source: str, **more: Any) -> str:
    asked = {"Runtime": f"python3.{sys.version_info[1]}", "Handler": "app.handler", "Role": ROLE, "Timeout": 30}
    made = cloud.client("lambda").create_function(
        FunctionName=name, Code={"ZipFile": zipped(source)}, **{**asked, **more}
    )
    return str(made["FunctionArn"])


def stream(cloud: Cloud, name: str, shards: int = 1) -> str:
    cloud.client("kinesis").create_stream(StreamName=name, ShardCount=shards)
    return f"arn:aws:kinesis:us-east-1:{ACCOUNT}:stream/{name}"


def mapping(cloud: Cloud, function_name: str, stream_arn: str, **more: Any) -> dict[str, Any]:
    asked = {"StartingPosition": "TRIM_HORIZON", **more}
    made = cloud.client("lambda").create_event_source_mapping(
        FunctionName=function_name, EventSourceArn=stream_arn, **asked
    )
    del made["ResponseMetadata"]
    return dict(made)


def eventually(look: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


def state_of(cloud: Cloud, uuid: str) -> str:
    return str(cloud.client("lambda").get_event_source_mapping(UUID=uuid)["State"])


def lines_of(cloud: Cloud, name: str, group: str = "") -> list[str]:
    found = cloud.client("logs").filter_log_events(logGroupName=group or f"/aws/lambda/{name}")
    return [event["message"] for event in found["events"]]


def metric(cloud: Cloud, namespace: str, name: str, dimension: str, value: str, what: str = "Sum") -> float:
    now = time.time()
    found = cloud.client("cloudwatch").get_metric_statistics(
        Namespace=namespace, MetricName=name, Dimensions=[{"Name": dimension, "Value": value}],
        StartTime=now - 600, EndTime=now + 60, Period=3600, Statistics=[what],
    )  # fmt: skip
    return sum(point[what] for point in found["Datapoints"])


def unchecked(cloud: Cloud, service: str) -> Any:
    """A client that sends what the SDK would not, and tries once."""
    config = Config(parameter_validation=False, retries={"total_max_attempts": 1}, proxies={})
    return boto3.client(
        service, endpoint_url=cloud.endpoint_url, region_name="us-east-1", aws_access_key_id="a",
        aws_secret_access_key="b", config=config,
    )  # fmt: skip


def refused(call: Callable[..., Any], **request: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as refusal:
        call(**request)
    error = refusal.value.response["Error"]
    return error["Code"], error["Message"]


def trips(count: int) -> tuple[list[dict[str, Any]], Counter[int]]:
    found, totals = [], Counter[int]()
    for number in range(count):
        vendor, passengers = 1 + number % 2, number % 5
        totals[vendor] += passengers
        data = json.dumps({"vendorId": vendor, "passengerCount": passengers}).encode()
        found.append({"Data": data, "PartitionKey": f"id{number}"})
    return found, totals


def table(cloud: Cloud, name: str) -> None:
    cloud.client("dynamodb").create_table(
        TableName=name, KeySchema=[{"AttributeName": "vendorId", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "vendorId", "AttributeType": "N"}], BillingMode="PAY_PER_REQUEST",
    )  # fmt: skip


def totals_in(cloud: Cloud, name: str) -> dict[int, int]:
    items = cloud.client("dynamodb").scan(TableName=name)["Items"]
    return {int(item["vendorId"]["N"]): int(item["passengers"]["N"]) for item in items}


# --- the whole of it -----------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_windows_of_anyones_zip_come_out_exact_over_four_shards(cloud: Cloud) -> None:
    arn = stream(cloud, "trips", shards=4)
    table(cloud, "aggs")
    function(cloud, "totals", TOTALS, Environment={"Variables": {"dynamoDBTableName": "aggs"}})
    made = mapping(cloud, "totals", arn, StartingPosition="LATEST", BatchSize=200, TumblingWindowInSeconds=1)
    records, truth = trips(1500)
    for begin in range(0, 1500, 500):
        cloud.client("kinesis").put_records(StreamName="trips", Records=records[begin : begin + 500])
        time.sleep(0.4)
    assert cloud.settle(timeout_s=30)
    assert totals_in(cloud, "aggs") == truth
    now = cloud.client("lambda").get_event_source_mapping(UUID=made["UUID"])
    assert (now["State"], now["LastProcessingResult"]) == ("Enabled", "OK")
    assert metric(cloud, "AWS/Lambda", "Errors", "FunctionName", "totals") == 0
    assert metric(cloud, "AWS/Lambda", "IteratorAge", "FunctionName", "totals", "SampleCount") >= 4
    assert metric(cloud, "AWS/Kinesis", "IncomingRecords", "StreamName", "trips") == 1500
    [view] = [each for each in cloud.view().mappings if each.uuid == made["UUID"]]
    assert sum(shard.counters.polled for shard in view.shards) == 1500


def test_concurrent_conditional_writes_take_turns(cloud: Cloud) -> None:
    table(cloud, "fenced")
    client = cloud.client("dynamodb")

    def add(number: int) -> bool:
        try:
            client.update_item(
                TableName="fenced", Key={"vendorId": {"N": "1"}}, UpdateExpression="ADD passengers :n SET seen = :k",
                ConditionExpression="attribute_not_exists(seen) OR seen < :k",
                ExpressionAttributeValues={":n": {"N": "1"}, ":k": {"N": str(number)}},
            )  # fmt: skip
        except client.exceptions.ConditionalCheckFailedException:
            return False
        return True

    had = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # a thread may lose its turn in the middle of anything
    try:
        with ThreadPoolExecutor(8) as pool:
            taken = sum(pool.map(add, range(60)))
    finally:
        sys.setswitchinterval(had)
    assert totals_in(cloud, "fenced") == {1: taken}


# --- Invoke --------------------------------------------------------------------------------------------------


def invoked(client: Any, name: str, **asked: Any) -> dict[str, Any]:
    """The answer, its payload read: one that is not keeps the connection of its client to itself."""
    answer: dict[str, Any] = client.invoke(FunctionName=name, **asked)
    return answer | {"Payload": answer["Payload"].read()}


def test_invoke_answers_with_the_result_the_version_and_the_tail_of_the_log(cloud: Cloud) -> None:
    function(cloud, "echo", ECHO)
    answer = invoked(cloud.client("lambda"), "echo", Payload=b'{"a": 1}', LogType="Tail")
    assert (answer["StatusCode"], answer["ExecutedVersion"]) == (200, "$LATEST")
    assert json.loads(answer["Payload"]) == {"a": 1}
    tail = base64.b64decode(answer["LogResult"]).decode().splitlines()
    assert tail[-3] == "got 0"
    assert tail[-1].startswith("REPORT RequestId: " + answer["ResponseMetadata"]["RequestId"])
    assert "got 0" in lines_of(cloud, "echo")
    assert metric(cloud, "AWS/Lambda", "Invocations", "FunctionName", "echo") == 1
    assert cloud.view().calls[-1].function == "echo"


def test_a_function_that_raises_is_reported_as_lambda_does(cloud: Cloud) -> None:
    function(cloud, "fails", FAILS)
    answer = invoked(cloud.client("lambda"), "fails")
    assert (answer["StatusCode"], answer["FunctionError"]) == (200, "Unhandled")
    told = json.loads(answer["Payload"])
    assert (told["errorType"], told["errorMessage"]) == ("ValueError", "no such trip")
    assert metric(cloud, "AWS/Lambda", "Errors", "FunctionName", "fails") == 1


def test_an_event_is_taken_at_once_and_run_later(cloud: Cloud) -> None:
    function(cloud, "later", ECHO)
    answer = invoked(cloud.client("lambda"), "later", InvocationType="Event", Payload=b'{"Records": [1, 2]}')
    assert answer["StatusCode"] == 202
    eventually(lambda: [call for call in cloud.view().calls if call.function == "later"])
    assert "got 2" in lines_of(cloud, "later")


def test_a_dry_run_runs_nothing(cloud: Cloud) -> None:
    function(cloud, "dry", ECHO)
    assert invoked(cloud.client("lambda"), "dry", InvocationType="DryRun")["StatusCode"] == 204
    assert not [call for call in cloud.view().calls if call.function == "dry"]


def test_a_function_is_found_by_every_name_it_has(cloud: Cloud) -> None:
    client = cloud.client("lambda")
    arn = function(cloud, "named", "def handler(event, context):\n    return context.invoked_function_arn\n")
    version = client.publish_version(FunctionName="named")["Version"]
    client.create_alias(FunctionName="named", Name="live", FunctionVersion=version)
    for name in ("named", arn, f"{ACCOUNT}:function:named", "named:$LATEST", f"{arn}:live", "named:live"):
        answer = invoked(client, name)
        assert answer["ExecutedVersion"] == (version if "live" in name else "$LATEST"), name
    assert invoked(client, "named", Qualifier="live")["ExecutedVersion"] == version
    message = f"Function not found: {arn}:none"
    assert refused(client.invoke, FunctionName="named", Qualifier="none") == ("ResourceNotFoundException", message)


def test_a_mapping_follows_the_alias_that_it_was_made_with(cloud: Cloud) -> None:
    client = cloud.client("lambda")
    arn = stream(cloud, "aliased")
    function_arn = function(cloud, "aliased", "def handler(event, context):\n    print('old')\n")
    version = client.publish_version(FunctionName="aliased")["Version"]
    client.create_alias(FunctionName="aliased", Name="live", FunctionVersion=version)
    client.update_function_code(FunctionName="aliased", ZipFile=zipped(ECHO))
    made = mapping(cloud, f"{function_arn}:live", arn)
    assert made["FunctionArn"] == f"{function_arn}:live"
    cloud.client("kinesis").put_record(StreamName="aliased", Data=b"x", PartitionKey="a")
    assert cloud.settle(timeout_s=30)
    assert "old" in lines_of(cloud, "aliased")


def test_invoke_refuses_what_lambda_refuses(cloud: Cloud) -> None:
    client = cloud.client("lambda")
    code, message = refused(client.invoke, FunctionName="nobody")
    arn = f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:nobody"
    assert (code, message) == ("ResourceNotFoundException", f"Function not found: {arn}")
    function(cloud, "narrow", ECHO)
    client.put_function_concurrency(FunctionName="narrow", ReservedConcurrentExecutions=0)
    code, message = refused(unchecked(cloud, "lambda").invoke, FunctionName="narrow")
    assert (code, message) == ("TooManyRequestsException", "Rate Exceeded.")
    assert metric(cloud, "AWS/Lambda", "Throttles", "FunctionName", "narrow") == 1
    code, message = refused(client.invoke, FunctionName="narrow", Payload=b"x" * 6_400_000)
    assert code == "RequestTooLargeException"


def test_new_code_and_settings_take_effect_on_the_next_call(cloud: Cloud) -> None:
    client = cloud.client("lambda")
    function(cloud, "changing", "import os\ndef handler(event, context):\n    return [1, os.environ.get('WHO')]\n")
    said = lambda: json.loads(invoked(client, "changing")["Payload"])  # noqa: E731
    assert said() == [1, None]
    client.update_function_configuration(FunctionName="changing", Environment={"Variables": {"WHO": "me"}})
    assert said() == [1, "me"]
    source = "import os\ndef handler(event, context):\n    return [2, os.environ.get('WHO')]\n"
    client.update_function_code(FunctionName="changing", ZipFile=zipped(source))
    assert said() == [2, "me"]


def test_a_deleted_functions_processes_end(cloud: Cloud) -> None:
    client = cloud.client("lambda")
    function(cloud, "brief", "import os\ndef handler(event, context):\n    return os.getpid()\n")
    pid = json.loads(invoked(client, "brief")["Payload"])
    os.kill(pid, 0)
    client.delete_function(FunctionName="brief")
    eventually(lambda: not _lives(pid))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ({"Runtime": "nodejs20.x"}, "InvalidParameterValueException", "Runtime nodejs20.x cannot run here"),
        ({"Timeout": 901}, "ValidationException", "Value '901' at 'timeout' failed to satisfy constraint"),
        ({"MemorySize": 64}, "ValidationException", "Member must have value greater than or equal to 128"),
        ({"Code": {"ZipFile": b"no zip"}}, "InvalidParameterValueException", "Could not unzip uploaded file."),
        (
            {"Environment": {"Variables": {"AWS_REGION": "x", "_HANDLER": "y"}}},
            "InvalidParameterValueException",
            "Reserved keys used in this request: AWS_REGION, _HANDLER",
        ),
        ({"Environment": {"Variables": {"A": "x" * 4100}}}, "InvalidParameterValueException", "exceeded the 4KB limit"),
        ({"PackageType": "Image", "Code": {"ImageUri": "a/b:c"}}, "InvalidParameterValueException", "give a zip"),
    ],
)  # fmt: skip
def test_a_function_that_cannot_run_here_is_refused_when_it_is_made(
    cloud: Cloud, more: dict[str, Any], code: str, message: str
) -> None:
    asked = {"FunctionName": "never", "Runtime": "python3.13", "Handler": "app.handler", "Role": ROLE}
    request = {**asked, "Code": {"ZipFile": zipped(ECHO)}, **more}
    found_code, found_message = refused(unchecked(cloud, "lambda").create_function, **request)
    assert found_code == code
    assert message in found_message


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("functions", b'{"Timeout": "x"}', "SerializationException"),
        ("functions", b'{"Environment": 5}', "SerializationException"),
        ("functions", b'{"Code": []}', "SerializationException"),
        ("functions", b"{", "InvalidRequestContentException"),
        ("event-source-mappings", b"[1]", "InvalidRequestContentException"),
        ("event-source-mappings", b'{"FunctionName": 5}', "SerializationException"),
        ("event-source-mappings", b'{"FilterCriteria": {"Filters": [7]}}', "SerializationException"),
        ("event-source-mappings", b'{"BatchSize": "many", "StartingPosition": "LATEST"}', "InvalidParameterValue"),
        ("functions/x/invocations", b"no JSON", "ResourceNotFoundException"),
    ],
)  # fmt: skip
def test_a_request_of_the_wrong_shape_is_refused(cloud: Cloud, path: str, body: bytes, kind: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", cloud.port)
    scope = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/lambda/aws4_request, SignedHeaders=x, Signature=y"
    connection.request("POST", f"/2015-03-31/{path}", body, {"Authorization": scope})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert 400 <= answer.status < 500
    assert (answer.getheader("x-amzn-ErrorType") or "").startswith(kind)


# --- event source mappings --------------------------------------------------------------------------------------


def test_a_mapping_is_echoed_with_every_default_and_comes_to_life(cloud: Cloud) -> None:
    arn = stream(cloud, "plain")
    function_arn = function(cloud, "plain", ECHO)
    made = mapping(cloud, "plain", arn)
    uuid = made.pop("UUID")
    assert made.pop("LastModified").timestamp() == pytest.approx(time.time(), abs=10)
    assert made == {
        "EventSourceMappingArn": f"arn:aws:lambda:us-east-1:{ACCOUNT}:event-source-mapping:{uuid}",
        "EventSourceArn": arn,
        "FunctionArn": function_arn,
        "StartingPosition": "TRIM_HORIZON",
        "BatchSize": 100,
        "MaximumBatchingWindowInSeconds": 0,
        "ParallelizationFactor": 1,
        "MaximumRecordAgeInSeconds": -1,
        "MaximumRetryAttempts": -1,
        "TumblingWindowInSeconds": 0,
        "BisectBatchOnFunctionError": False,
        "DestinationConfig": {"OnFailure": {}},
        "FunctionResponseTypes": [],
        "State": "Creating",
        "StateTransitionReason": "User action",
        "LastProcessingResult": "No records processed",
    }
    eventually(lambda: state_of(cloud, uuid) == "Enabled")
    listed = cloud.client("lambda").list_event_source_mappings(FunctionName="plain")["EventSourceMappings"]
    assert [each["UUID"] for each in listed] == [uuid]


def test_a_disabled_mapping_calls_nothing_and_goes_on_where_it_was(cloud: Cloud) -> None:
    client, kinesis = cloud.client("lambda"), cloud.client("kinesis")
    arn = stream(cloud, "paused")
    function(cloud, "paused", ECHO)
    uuid = mapping(cloud, "paused", arn, StartingPosition="LATEST")["UUID"]
    eventually(lambda: state_of(cloud, uuid) == "Enabled")
    assert client.update_event_source_mapping(UUID=uuid, Enabled=False)["State"] == "Disabling"
    eventually(lambda: state_of(cloud, uuid) == "Disabled")
    kinesis.put_record(StreamName="paused", Data=b"while disabled", PartitionKey="a")
    time.sleep(0.2)
    assert not [call for call in cloud.view().calls if call.function == "paused"]
    answer = client.update_event_source_mapping(UUID=uuid, Enabled=True, BatchSize=7)
    assert (answer["State"], answer["BatchSize"]) == ("Enabling", 7)
    eventually(lambda: [call for call in cloud.view().calls if call.function == "paused"])
    eventually(lambda: state_of(cloud, uuid) == "Enabled")  # its first call may come before it is told


def test_a_deleted_mapping_is_gone_and_calls_no_more(cloud: Cloud) -> None:
    client = cloud.client("lambda")
    arn = stream(cloud, "gone")
    function(cloud, "gone", ECHO)
    uuid = mapping(cloud, "gone", arn)["UUID"]
    eventually(lambda: state_of(cloud, uuid) == "Enabled")
    assert client.delete_event_source_mapping(UUID=uuid)["State"] == "Deleting"
    missing = ("ResourceNotFoundException", "The resource you requested does not exist.")
    eventually(lambda: not client.list_event_source_mappings(FunctionName="gone")["EventSourceMappings"])
    assert refused(client.get_event_source_mapping, UUID=uuid) == missing
    cloud.client("kinesis").put_record(StreamName="gone", Data=b"x", PartitionKey="a")
    time.sleep(0.2)
    assert not [call for call in cloud.view().calls if call.function == "gone"]


def test_mappings_that_lambda_refuses_are_refused_in_its_words(cloud: Cloud) -> None:
    client = unchecked(cloud, "lambda")
    arn = stream(cloud, "choosy")
    function(cloud, "choosy", ECHO)
    make = client.create_event_source_mapping
    asked = {"FunctionName": "choosy", "EventSourceArn": arn, "StartingPosition": "LATEST"}
    invalid = "InvalidParameterValueException"
    no_stream = f"{arn}2"
    assert refused(make, **{**asked, "FunctionName": "nobody"}) == (invalid, "Function does not exist")
    assert refused(make, **{**asked, "EventSourceArn": no_stream}) == (invalid, f"Stream not found: {no_stream}")
    assert refused(make, **{**asked, "BatchSize": 10_001})[0] == "ValidationException"
    assert refused(make, **asked, TumblingWindowInSeconds=30, ParallelizationFactor=2)[0] == invalid
    del asked["StartingPosition"]
    assert refused(make, **asked)[1].startswith("1 validation error detected: Value null at 'startingPosition'")
    uuid = mapping(cloud, "choosy", arn)["UUID"]
    code, message = refused(make, **asked, StartingPosition="LATEST")
    assert code == "ResourceConflictException"
    assert uuid in message
    missing = ("ResourceNotFoundException", "The resource you requested does not exist.")
    assert refused(client.update_event_source_mapping, UUID="none", BatchSize=1) == missing


@pytest.mark.parametrize("kind", ["sqs", "sns", "s3"])
def test_a_batch_that_is_given_up_is_told_of_at_its_destination(cloud: Cloud, kind: str) -> None:
    sqs, sns, s3 = (cloud.client(service) for service in ("sqs", "sns", "s3"))
    name = f"lost-{kind}"
    url = sqs.create_queue(QueueName=name)["QueueUrl"]
    queue = f"arn:aws:sqs:us-east-1:{ACCOUNT}:{name}"
    target = queue
    if kind == "sns":
        target = sns.create_topic(Name=name)["TopicArn"]
        sns.subscribe(TopicArn=target, Protocol="sqs", Endpoint=queue, Attributes={"RawMessageDelivery": "true"})
    if kind == "s3":
        s3.create_bucket(Bucket=name)
        target = f"arn:aws:s3:::{name}"
    arn = stream(cloud, name)
    function(cloud, name, FAILS)
    put = cloud.client("kinesis").put_record(StreamName=name, Data=b"poison", PartitionKey="a")
    destination = {"OnFailure": {"Destination": target}}
    metrics = {"Metrics": ["EventCount"]}
    made = mapping(cloud, name, arn, MaximumRetryAttempts=1, DestinationConfig=destination, MetricsConfig=metrics)

    def received() -> Any:
        if kind == "s3":
            keys = s3.list_objects_v2(Bucket=name).get("Contents", [])
            return [s3.get_object(Bucket=name, Key=each["Key"])["Body"].read() for each in keys]
        return [each["Body"] for each in sqs.receive_message(QueueUrl=url, WaitTimeSeconds=1).get("Messages", [])]

    told = json.loads(eventually(received)[0])
    assert told["requestContext"]["condition"] == "RetryAttemptsExhausted"
    assert told["requestContext"]["approximateInvokeCount"] == 2
    assert told["KinesisBatchInfo"]["startSequenceNumber"] == put["SequenceNumber"]
    now = cloud.client("lambda").get_event_source_mapping(UUID=made["UUID"])
    assert now["LastProcessingResult"] == "PROBLEM: Function call failed"
    assert cloud.settle(timeout_s=30)  # what was sent may be received before the sender has noted that it was
    delivered = "OnFailureDestinationDeliveredEventCount"
    assert metric(cloud, "AWS/Lambda", delivered, "EventSourceMappingUUID", made["UUID"]) == 1
    assert [sent.refused for sent in cloud.view().failures if sent.uuid == made["UUID"]] == [""]


def test_a_consumer_of_enhanced_fan_out_is_an_event_source(cloud: Cloud) -> None:
    arn = stream(cloud, "fanned")
    function(cloud, "fanned", ECHO)
    consumer = cloud.client("kinesis").register_stream_consumer(StreamARN=arn, ConsumerName="mine")["Consumer"]
    make = cloud.client("lambda").create_event_source_mapping
    asked = {"FunctionName": "fanned", "StartingPosition": "TRIM_HORIZON"}
    none = f"{arn}/consumer/nobody:1"
    assert refused(make, EventSourceArn=none, **asked)[1] == f"Stream not found: {none}"
    cloud.client("kinesis").put_record(StreamName="fanned", Data=b"x", PartitionKey="a")
    assert mapping(cloud, "fanned", consumer["ConsumerARN"])["EventSourceArn"] == consumer["ConsumerARN"]
    assert cloud.settle(timeout_s=30)
    assert "got 1" in lines_of(cloud, "fanned")


GOOD = """
def handler(event, context):
    state = event["state"]
    state["seen"] = state.get("seen", 0) + len(event["Records"])
    print("seen", state["seen"], event["isFinalInvokeForWindow"])
    return {"state": {} if event["isFinalInvokeForWindow"] else state}
"""
BAD = {
    "no handler in the zip": ("other = 1\n", "Runtime.HandlerNotFound"),
    "fails at import": ("import nothing_of_that_name\n", "Runtime.ImportModuleError"),
    "does not parse": ("def handler(event context):\n", "Runtime.UserCodeSyntaxError"),
    "no state": ("def handler(event, context):\n    return {}\n", ""),
    "state is NaN": ("def handler(event, context):\n    return {'state': {'n': float('nan')}}\n", ""),
    "seven megabytes": (
        "def handler(event, context):\n    return {'state': {'x': 'x' * 7_000_000}}\n",
        "Function.ResponseSizeTooLarge",
    ),
    "not JSON": ("def handler(event, context):\n    return {'state': {'x': {1}}}\n", "Runtime.MarshalError"),
    "exits": ("import os\ndef handler(event, context):\n    os._exit(3)\n", "Runtime.ExitError"),
    "sleeps too long": ("import time\ndef handler(event, context):\n    time.sleep(60)\n", "Sandbox.Timedout"),
    "forks and exits": (
        "import os, time\ndef handler(event, context):\n    os.fork() or time.sleep(60)\n    os._exit(1)\n",
        "Runtime.ExitError",
    ),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", BAD)
def test_a_bad_function_blocks_its_shard_and_a_mended_one_goes_on_without_loss(cloud: Cloud, name: str) -> None:
    source, error_type = BAD[name]
    called = "bad-" + name.replace(" ", "-")
    arn = stream(cloud, called)
    timeout_s = 1 if error_type == "Sandbox.Timedout" else 30  # the others fail of their own fault, however slowly
    function(cloud, called, source, Timeout=timeout_s, MemorySize=256)
    cloud.client("kinesis").put_records(
        StreamName=called, Records=[{"Data": b"x", "PartitionKey": "a"} for _ in range(3)]
    )
    uuid = mapping(cloud, called, arn, TumblingWindowInSeconds=1)["UUID"]

    def result() -> str:
        return str(cloud.client("lambda").get_event_source_mapping(UUID=uuid)["LastProcessingResult"])

    eventually(lambda: result() == "PROBLEM: Function call failed")
    assert {call.error_type for call in cloud.view().calls if call.function == called} == {error_type}
    cloud.client("lambda").update_function_configuration(FunctionName=called, Timeout=30)
    cloud.client("lambda").update_function_code(FunctionName=called, ZipFile=zipped(GOOD))
    eventually(lambda: "seen 3 True" in lines_of(cloud, called))
    eventually(lambda: result() == "OK")
    cloud.client("lambda").delete_event_source_mapping(UUID=uuid)


def test_state_over_a_megabyte_ends_the_window_early(cloud: Cloud) -> None:
    source = """
def handler(event, context):
    print("early", event["isWindowTerminatedEarly"], "final", event["isFinalInvokeForWindow"], len(event["Records"]))
    done = event["isFinalInvokeForWindow"] or event["isWindowTerminatedEarly"]
    return {"state": {} if done else {"x": "x" * 1_100_000}}
"""
    arn = stream(cloud, "large")
    function(cloud, "large", source)
    cloud.client("kinesis").put_record(StreamName="large", Data=b"x", PartitionKey="a")
    mapping(cloud, "large", arn, TumblingWindowInSeconds=1)
    assert cloud.settle(timeout_s=30)
    said = [line for line in lines_of(cloud, "large") if line.startswith("early")]
    assert said == ["early False final False 1", "early True final False 0", "early False final True 0"]


def test_the_policies_of_aws_are_there_when_they_are_asked_for_and_not_before(cloud: Cloud) -> None:
    cloud.client("sts").get_caller_identity()
    held = iam_backends[ACCOUNT]["aws-us-gov"]
    assert "managed_policies" not in vars(held)
    assert "arn:aws-us-gov:iam::aws:policy/AdministratorAccess" in held.managed_policies
    with pytest.raises(AttributeError):
        held.nothing  # noqa: B018

    iam = cloud.client("iam")
    policy_arn = "arn:aws:iam::aws:policy/service-role/AWSLambdaKinesisExecutionRole"
    iam.attach_role_policy(RoleName="runs", PolicyArn=policy_arn)
    attached = iam.list_attached_role_policies(RoleName="runs")["AttachedPolicies"]
    assert [each["PolicyArn"] for each in attached] == [policy_arn]


def test_moto_calls_no_function_by_itself_and_never_asks_docker(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.awslambda.models import LambdaFunction

    asked: list[str] = []
    monkeypatch.setattr(LambdaFunction, "_invoke_lambda", lambda *_: asked.append("docker") or ("", False, ""))
    arn = stream(cloud, "once")
    function(cloud, "once", ECHO)
    mapping(cloud, "once", arn, BatchSize=10)
    cloud.client("kinesis").put_records(
        StreamName="once", Records=[{"Data": b"x", "PartitionKey": "a"} for _ in range(10)]
    )
    assert cloud.settle(timeout_s=30)
    assert "got 10" in lines_of(cloud, "once")
    topic = cloud.client("sns").create_topic(Name="calls")["TopicArn"]
    function_arn = f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:once"
    cloud.client("sns").subscribe(TopicArn=topic, Protocol="lambda", Endpoint=function_arn)
    cloud.client("sns").publish(TopicArn=topic, Message="hello")
    eventually(lambda: "got 1" in lines_of(cloud, "once"))
    assert not asked


# --- what is left behind -----------------------------------------------------------------------------------------


def test_embedded_metrics_become_metrics(cloud: Cloud) -> None:
    line = {
        "_aws": {
            "Timestamp": int(time.time() * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": "Taxi",
                    "Dimensions": [["service"]],
                    "Metrics": [{"Name": "Late", "Unit": "Count"}, {"Name": "Sizes"}],
                }
            ],
        },
        "service": "trips",
        "Late": 3,
        "Sizes": [1, 2, 4],
    }
    source = f"import json\ndef handler(event, context):\n    print(json.dumps({line!r}))\n"
    function(cloud, "measures", source)
    invoked(cloud.client("lambda"), "measures")
    assert metric(cloud, "Taxi", "Late", "service", "trips") == 3
    assert metric(cloud, "Taxi", "Sizes", "service", "trips") == 7
    assert metric(cloud, "Taxi", "Sizes", "service", "trips", "SampleCount") == 3


# --- CloudFormation ----------------------------------------------------------------------------------------------

TEMPLATE = {
    "Parameters": {"Window": {"Type": "Number", "Default": 1}},
    "Resources": {
        "Stream": {"Type": "AWS::Kinesis::Stream", "Properties": {"Name": "stacked", "ShardCount": 1}},
        "Role": {
            "Type": "AWS::IAM::Role",
            "Properties": {"RoleName": "stacked", "AssumeRolePolicyDocument": {"Version": "2012-10-17"}},
        },
        "Function": {
            "Type": "AWS::Lambda::Function",
            "Properties": {
                "FunctionName": "stacked",
                "Runtime": f"python3.{sys.version_info[1]}",
                "Handler": "index.handler",
                "Role": {"Fn::GetAtt": ["Role", "Arn"]},
                "Code": {"ZipFile": "def handler(event, context):\n    print('one')\n    return {'state': {}}\n"},
                "Timeout": "20",
            },
        },
        "Mapping": {
            "Type": "AWS::Lambda::EventSourceMapping",
            "Properties": {
                "FunctionName": {"Ref": "Function"},
                "EventSourceArn": {"Fn::GetAtt": ["Stream", "Arn"]},
                "StartingPosition": "TRIM_HORIZON",
                "TumblingWindowInSeconds": {"Ref": "Window"},
                "Enabled": "true",
            },
        },
    },
    "Outputs": {"Mapping": {"Value": {"Ref": "Mapping"}}},
}


def test_what_a_stack_makes_comes_to_life_changes_and_goes(cloud: Cloud) -> None:
    formation, client = cloud.client("cloudformation"), cloud.client("lambda")
    formation.create_stack(StackName="taxi", TemplateBody=json.dumps(TEMPLATE))
    [output] = formation.describe_stacks(StackName="taxi")["Stacks"][0]["Outputs"]
    uuid = output["OutputValue"]
    eventually(lambda: state_of(cloud, uuid) == "Enabled")
    cloud.client("kinesis").put_record(StreamName="stacked", Data=b"{}", PartitionKey="a")
    assert cloud.settle(timeout_s=30)
    assert lines_of(cloud, "stacked").count("one") == 2  # the batch, and the window's end
    changed = json.loads(json.dumps(TEMPLATE).replace("'one'", "'two'"))
    changed["Resources"]["Mapping"]["Properties"]["Enabled"] = "false"
    formation.update_stack(StackName="taxi", TemplateBody=json.dumps(changed))
    eventually(lambda: state_of(cloud, uuid) == "Disabled")
    invoked(client, "stacked")
    assert "two" in lines_of(cloud, "stacked")
    formation.delete_stack(StackName="taxi")
    eventually(lambda: not client.list_event_source_mappings(FunctionName="stacked")["EventSourceMappings"])
    assert refused(client.invoke, FunctionName="stacked")[0] == "ResourceNotFoundException"


def test_streams_are_listed_by_name_page_by_page(cloud: Cloud) -> None:
    client = cloud.client("kinesis", "eu-west-1")
    names = [f"page-{index:03}" for index in range(103)]
    for name in reversed(names):
        client.create_stream(StreamName=name, ShardCount=1)
    first = client.list_streams()
    assert (first["StreamNames"], first["HasMoreStreams"]) == (names[:100], True)
    assert [each["StreamName"] for each in first["StreamSummaries"]] == names[:100]
    client.delete_stream(StreamName=names[99])  # a page begins behind a name, whether the stream is there or not
    last = client.list_streams(NextToken=first["NextToken"])
    assert (last["StreamNames"], last["HasMoreStreams"]) == (names[100:], False)
    assert "NextToken" not in last
    assert client.list_streams(ExclusiveStartStreamName=names[99])["StreamNames"] == names[100:]
    assert len(client.list_streams(Limit=10_000)["StreamNames"]) == 100
    pages = list(client.get_paginator("list_streams").paginate(PaginationConfig={"PageSize": 40}))
    assert [name for page in pages for name in page["StreamNames"]] == names[:99] + names[100:]
    assert [len(page["StreamSummaries"]) for page in pages] == [40, 40, 22]


@pytest.mark.parametrize("asked", [{"NextToken": "nonsense"}, {"Limit": 10_001}, {"NextToken": "YQ==", "Limit": 0}])
def test_a_page_of_streams_that_cannot_be_is_refused(cloud: Cloud, asked: dict[str, Any]) -> None:
    client = boto3.client(
        "kinesis", endpoint_url=cloud.endpoint_url, region_name="us-east-1", aws_access_key_id="a",
        aws_secret_access_key="b", config=Config(proxies={}, parameter_validation=False),
    )  # fmt: skip
    assert refused(client.list_streams, **asked)[0] == "InvalidArgumentException"


LOGS = """
import os
def handler(event, context):
    print(context.log_group_name, os.environ["AWS_LAMBDA_LOG_GROUP_NAME"])
"""


def test_a_function_writes_its_log_where_its_settings_say(cloud: Cloud) -> None:
    client = cloud.client("lambda")
    function(cloud, "logs", LOGS, LoggingConfig={"LogGroup": "mine", "LogFormat": "JSON"})
    invoked(client, "logs")
    assert "mine mine" in lines_of(cloud, "logs", "mine")
    told = client.get_function_configuration(FunctionName="logs")["LoggingConfig"]
    assert told == {"LogGroup": "mine", "LogFormat": "JSON"}
    assert client.publish_version(FunctionName="logs")["LoggingConfig"] == told
    client.update_function_configuration(FunctionName="logs", LoggingConfig={"LogGroup": "other"})
    client.update_function_configuration(FunctionName="logs", Timeout=20)
    invoked(client, "logs")
    assert "other other" in lines_of(cloud, "logs", "other")
    assert lines_of(cloud, "logs", "mine").count("mine mine") == 1
    groups = [each["logGroupName"] for each in cloud.client("logs").describe_log_groups()["logGroups"]]
    assert "/aws/lambda/logs" not in groups
    told = client.update_function_configuration(FunctionName="logs", LoggingConfig={"LogFormat": "Text"})
    assert told["LoggingConfig"] == {"LogGroup": "/aws/lambda/logs", "LogFormat": "Text"}


def test_a_stacks_function_writes_to_the_log_group_of_the_stack_also_after_an_update(cloud: Cloud) -> None:
    formation = cloud.client("cloudformation")
    properties: dict[str, Any] = {
        "FunctionName": "grouped", "Handler": "index.handler", "Runtime": f"python3.{sys.version_info[1]}",
        "Role": ROLE, "Timeout": 20, "Code": {"ZipFile": LOGS},
    }  # fmt: skip
    resources: dict[str, Any] = {
        "First": {"Type": "AWS::Logs::LogGroup", "Properties": {"RetentionInDays": 1}},
        "Second": {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": "second"}},
        "Function": {"Type": "AWS::Lambda::Function", "Properties": properties},
    }
    for make, logical in ((formation.create_stack, "First"), (formation.update_stack, "Second")):
        properties["LoggingConfig"] = {"LogGroup": {"Ref": logical}}
        make(StackName="grouped", TemplateBody=json.dumps({"Resources": resources}))
        invoked(cloud.client("lambda"), "grouped")
        found = formation.describe_stack_resource(StackName="grouped", LogicalResourceId=logical)
        group = found["StackResourceDetail"]["PhysicalResourceId"]
        assert f"{group} {group}" in lines_of(cloud, "grouped", group)
    formation.delete_stack(StackName="grouped")


# --- the endpoint itself -----------------------------------------------------------------------------------------


def test_https_is_spoken_on_the_same_port(cloud: Cloud, tmp_path: Path) -> None:
    import ssl

    pem = ssl.get_server_certificate(("127.0.0.1", cloud.port))
    bundle = tmp_path / "ca.pem"
    bundle.write_text(pem)
    client = boto3.client(
        "sts", endpoint_url=f"https://localhost:{cloud.port}", region_name="us-east-1", aws_access_key_id="a",
        aws_secret_access_key="b", verify=str(bundle), config=Config(proxies={}),
    )  # fmt: skip
    assert client.get_caller_identity()["Account"] == ACCOUNT


def test_one_endpoint_at_a_time_in_a_process(cloud: Cloud) -> None:
    with pytest.raises(CloudProblem, match="has a local endpoint already"):
        Cloud(port=0).start()


@pytest.mark.heavy
def test_with_a_data_folder_all_of_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    script = Path(__file__).with_name("restarts.py")
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "data")], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    first, second, third, damaged, crashed, kept = result.stdout.splitlines()
    assert first == "calls 1: ['a'] waiting 0"
    assert second == "calls 1: ['b'] waiting 1"  # what was processed before is not delivered again
    assert third == "item kept object message topic group role SYMMETRIC_DEFAULT"
    assert damaged.startswith(f"{tmp_path / 'data' / 'aws.pickle'} is damaged (")
    assert crashed == f"Disabled PROBLEM: Stream not found: arn:aws:kinesis:us-east-1:{ACCOUNT}:stream/trips"
    assert "holds no mapping" in kept


@pytest.mark.heavy
def test_the_command_says_where_it_is_ends_on_ctrl_c_and_leaves_no_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "windlass", "local", "--port", "0", "--data", str(tmp_path / "d")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    greeting = process.stdout.readline()
    try:
        assert greeting.startswith("AWS on this machine: http://127.0.0.1:")
        if sys.platform == "linux":  # of work until it was ready: what else this machine does is not its fault
            ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            assert sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") < 3
        url = process.stdout.readline().partition("AWS_ENDPOINT_URL=")[2].strip()
        make = lambda service: boto3.client(  # noqa: E731
            service, endpoint_url=url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        role = make("iam").create_role(RoleName="r", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        make("lambda").create_function(
            FunctionName="pid", Runtime=f"python3.{sys.version_info[1]}", Handler="app.handler", Role=role,
            Code={"ZipFile": zipped("import os\ndef handler(event, context):\n    return os.getpid()\n")},
        )  # fmt: skip
        pid = json.loads(invoked(make("lambda"), "pid")["Payload"])
        os.kill(pid, 0)
    finally:
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=15)
    assert process.returncode == 0, errors
    assert "pid | START RequestId" in rest
    assert rest.endswith("windlass local: ended\n")
    assert not errors
    assert not _lives(pid)


def test_a_port_in_use_is_one_clear_line(cloud: Cloud) -> None:
    command = [sys.executable, "-m", "windlass", "local", "--port", str(cloud.port)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert result.returncode == 2
    assert result.stderr.startswith(f"windlass local: 127.0.0.1:{cloud.port} cannot be used: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("values", "total"),
    [
        (["1E-18", "2"], "2.000000000000000001"),
        (["12345678901.123456789012345678", "0.000000000000000001"], "12345678901.123456789012345679"),
        (["99999999999999999999999999999999999998", "1"], "99999999999999999999999999999999999999"),
        (["-1.5", "1.5"], "0"),
    ],
)
def test_sums_in_a_table_are_exact_to_38_digits(cloud: Cloud, values: list[str], total: str) -> None:
    client = cloud.client("dynamodb", "us-east-1")
    name = f"sums-{total}"
    client.create_table(
        TableName=name,
        AttributeDefinitions=[{"AttributeName": "k", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "k", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    for value in values:
        client.update_item(
            TableName=name,
            Key={"k": {"S": "a"}},
            UpdateExpression="ADD n :n",
            ExpressionAttributeValues={":n": {"N": value}},
        )
    (item,) = client.scan(TableName=name)["Items"]
    assert Decimal(item["n"]["N"]) == Decimal(total)
