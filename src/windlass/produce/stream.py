"""The Kinesis form of the stream that records are put into: boto3 against AWS or any endpoint like it.

| what goes wrong | is |
|---|---|
| an entry is refused | its own `Refused`, with the service's code |
| the call is throttled, times out, loses its connection, or the service fails (5xx) | all entries `Refused` |
| no such stream, no rights, no credentials, a wrong endpoint | `StreamError`: one line that says what to do |

A call whose answer was lost may have stored its entries: they are put again, as the KPL would, and then the stream
has them twice, as two records. botocore's own retries are off for puts, so that every attempt is counted.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - botocore's own
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from windlass.produce.aggregate import KinesisRecord, Shard
from windlass.produce.put import Refused, Stored, StreamError

LOCAL_HOSTS: Final = ("127.0.0.1", "localhost", "::1", "0.0.0.0")  # noqa: S104 - compared with, not bound to
TRANSIENT: Final = frozenset(
    {
        "ProvisionedThroughputExceededException",
        "LimitExceededException",
        "ThrottlingException",
        "KMSThrottlingException",
        "InternalFailure",
        "InternalFailureException",
        "ServiceUnavailable",
        "RequestTimeout",
    }
)
TO_DO: Final = {
    "ResourceNotFoundException": "create the stream first or name another with --stream",
    "AccessDeniedException": "the producer needs kinesis:ListShards and kinesis:PutRecords on the stream",
    "UnrecognizedClientException": "the credentials are not of this account or endpoint; see `aws configure list`",
    "InvalidSignatureException": "the credentials are not of this account or endpoint; see `aws configure list`",
    "ExpiredTokenException": "the credentials have expired; get new ones, as with `aws sso login`",
    "ResourceInUseException": "the stream is being made or deleted; wait until it is ACTIVE",
}
"""What to do about an error code."""


class KinesisStream:
    """A stream of that name behind boto3 Kinesis clients, one to read with, one to put with."""

    def __init__(self, name: str, reader: Any, writer: Any) -> None:
        self.name = name
        self._reader, self._writer = reader, writer

    def shards(self) -> Sequence[Shard]:
        """All shards that ListShards names. Source: API reference, ListShards: a closed one has an end."""
        pages = self._said(lambda: list(self._reader.get_paginator("list_shards").paginate(StreamName=self.name)))
        return [
            Shard(
                shard["ShardId"],
                int(shard["HashKeyRange"]["StartingHashKey"]),
                int(shard["HashKeyRange"]["EndingHashKey"]),
                open="EndingSequenceNumber" not in shard["SequenceNumberRange"],
            )
            for page in pages
            for shard in page["Shards"]
        ]

    def put(self, entries: Sequence[KinesisRecord]) -> Sequence[Stored | Refused]:
        """One PutRecords."""
        request = [_entry(entry) for entry in entries]
        try:
            answer = self._said(lambda: self._writer.put_records(StreamName=self.name, Records=request))
        except _Transient as error:
            return [Refused(error.code, str(error))] * len(entries)
        return [
            Refused(said["ErrorCode"], said.get("ErrorMessage", ""))
            if said.get("ErrorCode")
            else Stored(said["ShardId"])
            for said in answer["Records"]
        ]

    def _said(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ClientError as error:
            code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
            said = " ".join(error.response["Error"].get("Message", "").split())[:300]
            msg = f"stream {self.name!r} at {self._where}: {code}: {said}"
            if code in TRANSIENT or status >= 500:
                raise _Transient(msg, code) from error
            msg = f"{msg.rstrip('. ')}; {TO_DO.get(code, 'the request was refused as it stands')}"
            raise StreamError(msg) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            msg = (
                "no AWS credentials found; run `aws configure`, set AWS_PROFILE, or name a local endpoint "
                "with --endpoint-url http://127.0.0.1:4566"
            )
            raise StreamError(msg) from error
        except (ConnectionError, HTTPClientError) as error:
            msg = f"nothing answers at {self._where} ({error}); start the endpoint or mend --endpoint-url"
            raise _Transient(msg, type(error).__name__) from error
        except BotoCoreError as error:
            msg = f"stream {self.name!r} at {self._where}: {error}"
            raise StreamError(msg) from error

    @property
    def _where(self) -> str:
        return str(self._writer.meta.endpoint_url)


class _Transient(StreamError):
    """The call failed in a way that a retry may mend."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


def open_stream(name: str, *, endpoint_url: str | None = None, region: str | None = None) -> KinesisStream:
    """The stream of that name at AWS or at `endpoint_url`; nothing is called yet.

    The region is the one given, else the one of the AWS configuration, else us-east-1. A local endpoint (127.0.0.1,
    localhost), given or in AWS_ENDPOINT_URL, gets made-up credentials when none are configured.
    StreamError where the URL, the region or the profile is none.
    """
    try:
        clients = _session(endpoint_url, region)
        return KinesisStream(name, reader=_client(clients, endpoint_url, 3), writer=_client(clients, endpoint_url, 1))
    except BotoCoreError as error:  # before ValueError, as some of these are both
        msg = f"{error}; see `aws configure list` for where profile, region and credentials come from"
        raise StreamError(msg) from error
    except ValueError as error:
        msg = f"--endpoint-url {endpoint_url}: {error}; an endpoint looks like http://127.0.0.1:4566"
        raise StreamError(msg) from error


def _session(endpoint_url: str | None, region: str | None) -> boto3.Session:
    session = botocore.session.Session()
    place = endpoint_url or os.environ.get("AWS_ENDPOINT_URL")
    if place and urlsplit(place).hostname in LOCAL_HOSTS:
        # The instance's role is asked for over the network, which takes seconds where there is none.
        session.get_component("credential_provider").remove("iam-role")
        if session.get_credentials() is None:
            session.set_credentials("local", "local")
    region = region or session.get_config_variable("region") or "us-east-1"
    return boto3.Session(botocore_session=session, region_name=region)


def _client(clients: boto3.Session, endpoint_url: str | None, attempts_max: int) -> Any:
    retries = {"mode": "standard", "total_max_attempts": attempts_max}
    config = Config(retries=retries, connect_timeout=5, read_timeout=30)
    return clients.client("kinesis", endpoint_url=endpoint_url, config=config)


def _entry(entry: KinesisRecord) -> dict[str, Any]:
    request: dict[str, Any] = {"Data": entry.data, "PartitionKey": entry.key}
    if entry.hash_key is not None:
        request["ExplicitHashKey"] = str(entry.hash_key)
    return request
