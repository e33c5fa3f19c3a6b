"""What a mapping tells about records it gives up: the body for SQS and SNS, and the object for S3.

Members and their order, and the name of the object, are as recorded on AWS (Lambda Developer Guide, "Retain
discarded batch records for a Kinesis Data Streams event source in Lambda"). FIFO queues and topics are not
supported by Lambda; a delivery to one fails.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from windlass.local.mapping import Delivered, Failure, Undelivered
from windlass.local.mapping_settings import MappingSettings


class Destination(Protocol):
    """Where failures go. Raises nothing: a refusal is an `Undelivered`."""

    def __call__(self, failure: Failure) -> Delivered | Undelivered: ...


def message(
    failure: Failure,
    settings: MappingSettings,
    *,
    at_ms: int,
    request_id: str,
    with_payload: bool = False,
) -> dict[str, Any]:
    """The failure record. `request_id` stands in where the batch was never sent; `with_payload`: as S3 has it."""
    body: dict[str, Any] = {
        "requestContext": {
            "requestId": failure.request_id or request_id,
            "functionArn": settings.function_arn,
            "condition": failure.condition,
            "approximateInvokeCount": failure.invokes,
        }
    }
    if failure.responded:
        body["responseContext"] = {
            "statusCode": 200,
            "executedVersion": "$LATEST",
            "functionError": failure.function_error,
        }
    body["version"] = "1.0"
    body["timestamp"] = _iso(at_ms)
    body["KinesisBatchInfo"] = {
        "shardId": failure.shard_id,
        "startSequenceNumber": failure.first_sequence,
        "endSequenceNumber": failure.last_sequence,
        "approximateArrivalOfFirstRecord": _iso(failure.first_arrival_ms),
        "approximateArrivalOfLastRecord": _iso(failure.last_arrival_ms),
        "batchSize": failure.records,
        "streamArn": settings.stream_arn,
    }
    if with_payload:
        text = failure.payload.decode()
        body["payload"] = text if settings.assumed.s3_payload_text else json.loads(text)
    return body


def object_key(failure: Failure, settings: MappingSettings, *, at_ms: int, unique: str) -> str:
    """The S3 key of a failure record; `unique` is a random UUID."""
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    name = at.strftime("%Y/%m/%d/%Y-%m-%dT%H.%M.%S")
    return f"aws/lambda/{settings.uuid}/{failure.shard_id}/{name}-{unique}"


class AwsDestination:
    """The mapping's SQS queue, SNS topic or S3 bucket, by boto3 clients.

    `client` gives the client of a service by its name, `now_ms` the time, `new_id` a new UUID as text.
    """

    def __init__(
        self,
        settings: MappingSettings,
        client: Callable[[str], Any],
        *,
        now_ms: Callable[[], int],
        new_id: Callable[[], str],
    ) -> None:
        self._settings = settings
        self._client = client
        self._now_ms = now_ms
        self._new_id = new_id

    def __call__(self, failure: Failure) -> Delivered | Undelivered:
        arn = self._settings.on_failure_arn
        service = arn.split(":")[2]
        if arn.endswith(".fifo"):
            return Undelivered(f"{arn} is a FIFO destination, which Lambda does not support")
        try:
            {"sqs": self._to_queue, "sns": self._to_topic, "s3": self._to_bucket}[service](arn, failure)
        except Exception as error:  # noqa: BLE001  (whatever a destination says, the shard goes on)
            return Undelivered(f"{arn}: {error}")
        return Delivered()

    def _body(self, failure: Failure, at_ms: int, *, with_payload: bool = False) -> str:
        body = message(failure, self._settings, at_ms=at_ms, request_id=self._new_id(), with_payload=with_payload)
        return json.dumps(body)

    def _to_queue(self, arn: str, failure: Failure) -> None:
        sqs = self._client("sqs")
        account, name = arn.split(":")[4:6]
        url = sqs.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"]
        sqs.send_message(QueueUrl=url, MessageBody=self._body(failure, self._now_ms()))

    def _to_topic(self, arn: str, failure: Failure) -> None:
        self._client("sns").publish(TopicArn=arn, Message=self._body(failure, self._now_ms()))

    def _to_bucket(self, arn: str, failure: Failure) -> None:
        at_ms = self._now_ms()
        self._client("s3").put_object(
            Bucket=arn.rpartition(":")[2],
            Key=object_key(failure, self._settings, at_ms=at_ms, unique=self._new_id()),
            Body=self._body(failure, at_ms, with_payload=True).encode(),
        )


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
