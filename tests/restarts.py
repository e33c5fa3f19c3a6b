"""Run by test_cloud: one endpoint after the other over the same data folder, each in this process."""

import io
import json
import sys
import time
import zipfile
from pathlib import Path

from windlass.local.cloud import ACCOUNT, Cloud, CloudProblem

SOURCE = """
import base64
def handler(event, context):
    print("data", *(base64.b64decode(each["kinesis"]["data"]).decode() for each in event["Records"]))
"""
STREAM = f"arn:aws:kinesis:us-east-1:{ACCOUNT}:stream/trips"


def opened(data: Path) -> Cloud:
    return Cloud(port=0, data=data, poll_ms=20)


def tell(cloud: Cloud) -> None:
    assert cloud.settle(timeout_s=10)
    waiting = cloud.client("sqs").receive_message(QueueUrl=f"{cloud.endpoint_url}/{ACCOUNT}/queue").get("Messages", [])
    said = [line.removeprefix("data ") for call in cloud.view().calls for line in call.lines if line[:4] == "data"]
    print(f"calls {len(cloud.view().calls)}: {said} waiting {len(waiting)}")


def first(cloud: Cloud) -> None:
    client = cloud.client
    client("kinesis").create_stream(StreamName="trips", ShardCount=1)
    role = client("iam").create_role(RoleName="role", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("app.py", SOURCE)
    client("lambda").create_function(
        FunctionName="says", Runtime=f"python3.{sys.version_info[1]}", Handler="app.handler", Role=role, Timeout=20,
        Code={"ZipFile": archive.getvalue()},
    )  # fmt: skip
    client("lambda").create_event_source_mapping(FunctionName="says", EventSourceArn=STREAM, StartingPosition="LATEST")
    client("kinesis").put_record(StreamName="trips", Data=b"a", PartitionKey="k")
    client("sqs").create_queue(QueueName="queue")
    tell(cloud)
    client("sqs").send_message(QueueUrl=f"{cloud.endpoint_url}/{ACCOUNT}/queue", MessageBody="message")
    client("dynamodb").create_table(
        TableName="t", KeySchema=[{"AttributeName": "a", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "a", "AttributeType": "S"}], BillingMode="PAY_PER_REQUEST",
    )  # fmt: skip
    client("dynamodb").put_item(TableName="t", Item={"a": {"S": "item kept"}})
    client("s3").create_bucket(Bucket="bucket")
    client("s3").put_object(Bucket="bucket", Key="object", Body=b"object")
    client("sns").create_topic(Name="topic")
    client("kms").create_key()


def kept(cloud: Cloud) -> str:
    client = cloud.client
    told = client("sqs").receive_message(QueueUrl=f"{cloud.endpoint_url}/{ACCOUNT}/queue", VisibilityTimeout=0)
    return " ".join(
        [
            client("dynamodb").scan(TableName="t")["Items"][0]["a"]["S"],
            client("s3").get_object(Bucket="bucket", Key="object")["Body"].read().decode(),
            told["Messages"][0]["Body"] if "Messages" in told else "message",
            client("sns").list_topics()["Topics"][0]["TopicArn"].rpartition(":")[2],
            "group" if client("logs").describe_log_groups()["logGroups"] else "",
            client("iam").list_roles()["Roles"][0]["RoleName"],
            client("kms").describe_key(KeyId=client("kms").list_keys()["Keys"][0]["KeyId"])["KeyMetadata"]["KeySpec"],
        ]
    )


def problem(data: Path) -> str:
    try:
        opened(data).start()
    except CloudProblem as found:
        return str(found)
    return "no problem"


def main(data: Path) -> None:
    with opened(data) as cloud:
        first(cloud)
    with opened(data) as cloud:
        cloud.client("kinesis").put_record(StreamName="trips", Data=b"b", PartitionKey="k")
        tell(cloud)
    with opened(data) as cloud:
        print(kept(cloud))
    (data / "aws.pickle").write_bytes((data / "aws.pickle").read_bytes()[:-100])
    print(problem(data))
    (data / "aws.pickle").unlink()
    with opened(data) as cloud:  # as after a crash: the mapping is there, its stream is not
        cloud._mappings.at_rest()
        [mapping] = cloud.view().mappings
        print(mapping.state, mapping.last_result)
    (data / "aws.pickle").unlink()
    [stored] = [path for path in (data / "mappings").glob("*.json") if ".checkpoints" not in path.name]
    stored.write_text(json.dumps({"settings": 1}))
    print(problem(data))


if __name__ == "__main__":
    time.tzset()
    main(Path(sys.argv[1]))
