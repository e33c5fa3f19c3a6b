"""The Kinesis form of the stream: what each answer of the service becomes, and a real endpoint on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import boto3
import pytest
from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError
from botocore.stub import Stubber
from moto.server import ThreadedMotoServer

from windlass.core.aggregate import deaggregate, is_aggregate
from windlass.produce.aggregate import KinesisRecord, Shard, plain
from windlass.produce.put import Packing, Refused, Stored, StreamError, produce
from windlass.produce.records import UserRecord
from windlass.produce.stream import KinesisStream, open_stream

ENTRY = plain(UserRecord("k", b"{}"))
CREDENTIALS = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def kinesis(endpoint) -> Any:
    return boto3.client("kinesis", endpoint_url=endpoint, **CREDENTIALS)


@pytest.fixture
def no_credentials(monkeypatch, tmp_path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@contextmanager
def answering(method: str, answer: Any = None, **error: Any) -> Iterator[KinesisStream]:
    """A stream whose client gets one answer, or one error of the service."""
    client = boto3.client("kinesis", endpoint_url="http://127.0.0.1:9", **CREDENTIALS)
    with Stubber(client) as stub:
        if error:
            stub.add_client_error(method, **error)
        else:
            stub.add_response(method, answer)
        yield KinesisStream("taxi", reader=client, writer=client)
    client.close()


def held(kinesis: Any, name: str) -> list[dict[str, Any]]:
    """Every record of the stream, shard after shard."""
    records = []
    for shard in kinesis.list_shards(StreamName=name)["Shards"]:
        iterator = kinesis.get_shard_iterator(
            StreamName=name, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        records += kinesis.get_records(ShardIterator=iterator, Limit=10_000)["Records"]
    return records


def put(name: str, endpoint: str, users: list[UserRecord], packing: Packing | None = None):
    stream = open_stream(name, endpoint_url=endpoint)
    return produce(users, stream, clock=lambda: 0.0, sleep=lambda _: None, rng=Random(1), packing=packing)


def test_plain_records_arrive_with_their_keys(endpoint, kinesis):
    kinesis.create_stream(StreamName="plain", ShardCount=3)
    users = [UserRecord(f"id{n}", b"%d" % n) for n in range(700)]
    assert put("plain", endpoint, users).records == 700
    found = {(record["PartitionKey"], record["Data"]) for record in held(kinesis, "plain")}
    assert found == {(user.key, user.data) for user in users}


def test_carriers_land_on_the_shard_they_were_packed_for(endpoint, kinesis):
    kinesis.create_stream(StreamName="packed", ShardCount=4)
    users = [UserRecord(f"id{n}", b"%d" % n) for n in range(700)]
    produced = put("packed", endpoint, users, Packing())
    assert (produced.records, produced.misplaced) == (700, 0)
    assert produced.kinesis_records < 20
    payloads = []
    for record in held(kinesis, "packed"):
        payloads += deaggregate(record["Data"]).payloads if is_aggregate(record["Data"]) else [record["Data"]]
    assert sorted(payloads) == sorted(user.data for user in users)


def test_an_empty_record_arrives_empty(endpoint, kinesis):
    kinesis.create_stream(StreamName="empty", ShardCount=1)
    put("empty", endpoint, [UserRecord("k", b"")])
    assert [record["Data"] for record in held(kinesis, "empty")] == [b""]


def test_after_a_split_the_parent_is_known_as_closed(endpoint, kinesis):
    kinesis.create_stream(StreamName="split", ShardCount=1)
    middle = str(1 << 127)
    kinesis.split_shard(StreamName="split", ShardToSplit="shardId-000000000000", NewStartingHashKey=middle)
    parent, low, high = open_stream("split", endpoint_url=endpoint).shards()
    assert parent == Shard("shardId-000000000000", 0, (1 << 128) - 1, open=False)
    assert (low.first_hash, low.last_hash, low.open) == (0, (1 << 127) - 1, True)
    assert (high.first_hash, high.last_hash, high.open) == (1 << 127, (1 << 128) - 1, True)


def test_a_local_endpoint_needs_no_credentials(endpoint, kinesis, no_credentials):
    kinesis.create_stream(StreamName="open", ShardCount=1)
    assert put("open", endpoint, [UserRecord("k", b"1")]).records == 1


def test_nor_does_one_that_the_environment_names(endpoint, kinesis, no_credentials, monkeypatch):
    kinesis.create_stream(StreamName="named", ShardCount=1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert put("named", None, [UserRecord("k", b"1")]).records == 1


def test_without_credentials_aws_is_not_asked(no_credentials):
    with pytest.raises(StreamError, match="no AWS credentials found; run `aws configure`"):
        open_stream("taxi").shards()


def test_a_stream_that_is_not_there_says_what_to_do(endpoint):
    with pytest.raises(StreamError, match=r"stream 'nowhere' at http.*ResourceNotFound.*create the stream first"):
        open_stream("nowhere", endpoint_url=endpoint).shards()


def test_a_url_that_is_none_says_how_one_looks():
    with pytest.raises(StreamError, match=r"--endpoint-url foo: .*looks like http://127\.0\.0\.1:4566"):
        open_stream("taxi", endpoint_url="foo")


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9"])
def test_a_profile_that_is_not_there_says_so(no_credentials, monkeypatch, url):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StreamError, match=r"profile \(nobody\) could not be found; see `aws configure list`"):
        open_stream("taxi", endpoint_url=url)


def test_some_refused_are_answered_one_by_one():
    answer = {
        "FailedRecordCount": 1,
        "Records": [
            {"ShardId": "shardId-000000000000", "SequenceNumber": "1"},
            {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "Rate exceeded"},
        ],
    }
    with answering("put_records", answer) as stream:
        assert stream.put([ENTRY, ENTRY]) == [
            Stored("shardId-000000000000"),
            Refused("ProvisionedThroughputExceededException", "Rate exceeded"),
        ]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ProvisionedThroughputExceededException", 400),
        ("LimitExceededException", 400),
        ("KMSThrottlingException", 400),
        ("InternalFailure", 500),
        ("SomethingNew", 503),
    ],
)
def test_a_call_that_fails_for_now_refuses_every_entry(code, status):
    with answering("put_records", service_error_code=code, http_status_code=status) as stream:
        assert [said.code for said in stream.put([ENTRY, ENTRY])] == [code, code]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("ResourceNotFoundException", "create the stream first"),
        ("AccessDeniedException", "kinesis:ListShards and kinesis:PutRecords"),
        ("ExpiredTokenException", "have expired"),
        ("ValidationException", "refused as it stands"),
    ],
)
def test_a_call_that_fails_for_good_ends_the_run_and_says_what_to_do(code, says):
    with (
        answering("put_records", service_error_code=code, http_status_code=400) as stream,
        pytest.raises(StreamError, match=f"stream 'taxi' at .*{code}.*{says}"),
    ):
        stream.put([ENTRY])


@pytest.mark.parametrize("error", [ReadTimeoutError, ConnectTimeoutError])
def test_a_lost_answer_refuses_every_entry(error):
    class Lost:
        def put_records(self, **_: Any) -> None:
            raise error(endpoint_url="http://127.0.0.1:9")

        class meta:
            endpoint_url = "http://127.0.0.1:9"

    refusals = KinesisStream("taxi", reader=Lost(), writer=Lost()).put([ENTRY])
    assert [said.code for said in refusals] == [error.__name__]


def test_an_endpoint_where_nothing_listens_says_so():
    stream = open_stream("taxi", endpoint_url="http://127.0.0.1:9")
    with pytest.raises(StreamError, match=r"nothing answers at http://127\.0\.0\.1:9 .*start the endpoint"):
        stream.shards()


def test_the_explicit_hash_key_is_sent_in_decimal(endpoint, kinesis):
    kinesis.create_stream(StreamName="explicit", ShardCount=2)
    entry = KinesisRecord("a", 3 << 126, b"x", ())
    (said,) = open_stream("explicit", endpoint_url=endpoint).put([entry])
    assert said == Stored("shardId-000000000001")
