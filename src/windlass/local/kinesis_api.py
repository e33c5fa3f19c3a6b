"""The calls of the Kinesis API that carry records, answered without moto's machinery.

moto needs 0.2 ms for every record that goes in or out; here it is a hundredth of that. What is not a plain call in
JSON that succeeds is left to moto, and so are all refusals and their texts: `answer` gives None.
"""

import base64
from collections.abc import Callable
from typing import Any

import msgspec
from moto.kinesis.models import kinesis_backends

from windlass.local.streams import FETCH_RECORDS_MAX, Shard, Stream

RECORDS_MAX = 500
CALL_BYTES_MAX = 5 * 1024 * 1024
RECORD_BYTES_MAX = 1024 * 1024
_PREFIX = "Kinesis_20131202."

PutSink = Callable[[Stream, int, int], None]
"""Hears of every put: the stream, the records, their bytes."""


class _Entry(msgspec.Struct, rename="pascal", gc=False):
    data: bytes
    partition_key: str
    explicit_hash_key: str | None = None


class _Put(msgspec.Struct, rename="pascal"):
    records: list[_Entry]
    stream_name: str = ""
    stream_arn: str = msgspec.field(default="", name="StreamARN")


class _PutOne(_Entry, rename="pascal"):
    stream_name: str = ""
    stream_arn: str = msgspec.field(default="", name="StreamARN")


class _Get(msgspec.Struct, rename="pascal"):
    shard_iterator: str
    limit: int = FETCH_RECORDS_MAX


_put = msgspec.json.Decoder(_Put)
_put_one = msgspec.json.Decoder(_PutOne)
_get = msgspec.json.Decoder(_Get)


class KinesisApi:
    """The calls that carry records. `put` hears of what was put."""

    def __init__(self, account: str, put: PutSink) -> None:
        self._account = account
        self._heard = put
        self._calls = {"PutRecords": self._put_records, "PutRecord": self._put_record, "GetRecords": self._get_records}

    def answer(self, target: str, region: str, body: bytes) -> bytes | None:
        """The answer to a call, by its X-Amz-Target; None for one that moto is to answer."""
        call = self._calls.get(target.removeprefix(_PREFIX))
        if call is None:
            return None
        try:
            return call(kinesis_backends[self._account][region], body)
        except (msgspec.DecodeError, KeyError, ValueError):
            return None

    def _put_records(self, backend: Any, body: bytes) -> bytes | None:
        request = _put.decode(body)
        stream = _stream(backend, request.stream_name, request.stream_arn)
        entries = request.records
        size = sum(len(entry.data) + len(entry.partition_key) for entry in entries)
        if not (0 < len(entries) <= RECORDS_MAX and size <= CALL_BYTES_MAX and all(map(_is_plain, entries))):
            return None
        placed = [_append(stream, entry) for entry in entries]
        self._heard(stream, len(entries), size)
        return msgspec.json.encode({"FailedRecordCount": 0, "Records": placed})

    def _put_record(self, backend: Any, body: bytes) -> bytes | None:
        entry = _put_one.decode(body)
        stream = _stream(backend, entry.stream_name, entry.stream_arn)
        if not _is_plain(entry):
            return None
        placed = _append(stream, entry)
        self._heard(stream, 1, len(entry.data) + len(entry.partition_key))
        return msgspec.json.encode(placed)

    def _get_records(self, backend: Any, body: bytes) -> bytes | None:
        request = _get.decode(body)
        name, shard_id, after = base64.b64decode(request.shard_iterator).decode().split(":")
        stream = _stream(backend, name, "")
        shard: Shard = stream.shards[shard_id]
        if not 0 < request.limit <= FETCH_RECORDS_MAX:
            return None
        records, ended = shard.read(int(after), request.limit)
        reached = records[-1].sequence_number if records else int(after)
        answer: dict[str, Any] = {
            "Records": [
                {
                    "SequenceNumber": str(record.sequence_number),
                    "ApproximateArrivalTimestamp": record.arrival_ms / 1000,
                    "Data": record.data,
                    "PartitionKey": record.partition_key,
                }
                for record in records
            ],
            "MillisBehindLatest": shard.behind_ms(reached),
        }
        if ended:
            answer["ChildShards"] = [stream.get_shard(child).as_child() for child in shard.children]
        else:
            answer["NextShardIterator"] = base64.b64encode(f"{name}:{shard_id}:{reached}".encode()).decode()
        return msgspec.json.encode(answer)


def _stream(backend: Any, name: str, arn: str) -> Stream:
    """Raises KeyError where there is none: moto says so."""
    stream: Stream = backend.streams[name or arn.partition("/")[2]]
    if arn and stream.arn != arn:
        raise KeyError(arn)
    return stream


def _is_plain(entry: _Entry) -> bool:
    """Nothing about it is to be refused."""
    point = entry.explicit_hash_key
    return (
        0 < len(entry.partition_key) <= 256
        and len(entry.data) + len(entry.partition_key) <= RECORD_BYTES_MAX
        and (not point or (point.isdigit() and int(point) < 2**128))
    )


def _append(stream: Stream, entry: _Entry) -> dict[str, str]:
    while True:
        shard = stream.get_shard_for_key(entry.partition_key, entry.explicit_hash_key)
        number = shard.append(entry.partition_key, entry.data)
        if number is not None:
            return {"SequenceNumber": str(number), "ShardId": shard.shard_id}
