"""Kinesis streams on this machine: moto's records of them, with shards that keep Kinesis's promises.

moto answers the Kinesis API; the shards behind it are replaced, because a mapping relies on what moto's do not do:

    Kinesis                                             moto's own shard
    --------------------------------------------------  -------------------------------------------
    a closed shard keeps its records                    moves them to the children, numbered anew
    a closed shard ends: no NextShardIterator           goes on for ever
    a record goes to the open shard of its hash key     the first shard that ever had the key
    sequence numbers grow, also over a restart          begin at 1 in every shard
    concurrent puts                                     not safe
    ListShards filters                                  gives all shards
    ListStreams goes on at a NextToken                  gives none
    a put costs the same in a full stream               reads all that is there

A sequence number is 56 digits: a constant head, the millisecond of its put, a counter. So a number given out after
a restart is beyond every number given out before.

Sources: Kinesis API Reference, "GetRecords", "GetShardIterator", "SplitShard", "MergeShards", "ListStreams".
"""

import base64
import itertools
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import md5
from typing import Any

from moto.core.responses import ActionResult
from moto.kinesis import models, responses, utils
from moto.kinesis.exceptions import InvalidArgumentError, ResourceInUseError

from windlass.local.mapping import Fetch, Fetched, StreamRecord
from windlass.local.poller import Shard as ListedShard

FETCH_RECORDS_MAX = 10_000
FETCH_BYTES_MAX = 10 * 1024 * 1024
LISTED_STREAMS_MAX = 100

_HEAD = 4959 * 10**52  # 56 digits, as Kinesis writes them
_PER_MS = 10**9
_LOCK = threading.Lock()  # of shards coming and going; a shard has its own for its records


class Record:
    """A stored record. `arrival_ms` is its approximate arrival."""

    __slots__ = ("arrival_ms", "data", "partition_key", "sequence_number")

    def __init__(self, sequence_number: int, partition_key: str, data: bytes, arrival_ms: int) -> None:
        self.sequence_number = sequence_number
        self.partition_key = partition_key
        self.data = data
        self.arrival_ms = arrival_ms

    def to_json(self) -> dict[str, Any]:
        """As moto's GetRecords answers with it."""
        return {
            "Data": self.data,
            "PartitionKey": self.partition_key,
            "SequenceNumber": str(self.sequence_number),
            "ApproximateArrivalTimestamp": datetime.fromtimestamp(self.arrival_ms / 1000, UTC),
        }


class Shard(models.Shard):  # type: ignore[misc]
    """A shard: records in order, found by bisection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.created_ms = time.time_ns() // 1_000_000
        self.children: list[str] = []
        self.closing_sequence = 0
        self.closed_ms: int | None = None
        self.least_sequence = 0  # beyond all of its parents'
        self._lock = threading.Lock()
        self._sequences: list[int] = []
        self._log: list[Record] = []

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def append(self, partition_key: str, data: bytes) -> int | None:
        """The record's sequence number; None when the shard was closed meanwhile."""
        with self._lock:
            if not self.is_open:
                return None
            arrival_ms = time.time_ns() // 1_000_000
            following = self._sequences[-1] + 1 if self._sequences else self.least_sequence
            number = max(self._floor(arrival_ms), following)
            self._log.append(Record(number, partition_key, data, arrival_ms))
            self._sequences.append(number)
            return number

    def close(self, children: list[str]) -> None:
        """Take no more records."""
        with self._lock:
            self.is_open = False
            self.children = children
            self.closed_ms = time.time_ns() // 1_000_000
            self.closing_sequence = max(self._floor(self.closed_ms), self.get_max_sequence_number() + 1)

    def read(self, after: int, limit: int) -> tuple[list[Record], bool]:
        """Records beyond a sequence number, and whether the shard has ended behind them."""
        with self._lock:
            begin = bisect_right(self._sequences, after)
            found = list(itertools.islice(_within(self._log[begin : begin + limit]), limit))
            return found, not self.is_open and begin + len(found) == len(self._log)

    def behind_ms(self, after: int) -> int:
        """How far behind the newest record the reader at that sequence number is."""
        with self._lock:
            if not self._log or after >= self._sequences[-1]:
                return 0
            reached = self._log[max(0, bisect_right(self._sequences, after) - 1)]
            return max(0, self._log[-1].arrival_ms - reached.arrival_ms)

    def before(self, at_ms: int) -> int:
        """The sequence number after which a reader that begins at a time begins."""
        with self._lock:
            reached = next((record for record in reversed(self._log) if record.arrival_ms < at_ms), None)
        return reached.sequence_number if reached else 0

    def was_closed(self, at_ms: int) -> bool:
        """Whether it took no more records at that time."""
        return self.closed_ms is not None and self.closed_ms <= at_ms

    def _floor(self, now_ms: int) -> int:
        return _HEAD + now_ms * _PER_MS

    # What moto's own code asks a shard:

    def get_records(self, last_sequence_id: Any, limit: int | None) -> tuple[list[Record], int, int]:
        after = int(last_sequence_id)
        found, _ = self.read(after, min(limit or FETCH_RECORDS_MAX, FETCH_RECORDS_MAX))
        reached = found[-1].sequence_number if found else after
        return found, reached, self.behind_ms(reached)

    def put_record(self, partition_key: str, data: str, explicit_hash_key: str) -> str:  # noqa: ARG002
        number = self.append(partition_key, base64.b64decode(data))
        assert number is not None
        return str(number)

    @property
    def starting_sequence(self) -> int:
        """No record of the shard has a lower sequence number."""
        return self._floor(self.created_ms)

    def get_min_sequence_number(self) -> int:
        return self._sequences[0] if self._sequences else self.starting_sequence

    def get_max_sequence_number(self) -> int:
        return self._sequences[-1] if self._sequences else 0

    def get_sequence_number_at(self, at_timestamp: Any) -> int:
        at_s = at_timestamp.timestamp() if isinstance(at_timestamp, datetime) else float(at_timestamp)
        return self.before(round(at_s * 1000))

    def to_json(self) -> dict[str, Any]:
        listed: dict[str, Any] = super().to_json()
        numbers = {"StartingSequenceNumber": str(self.starting_sequence)}
        if not self.is_open:
            numbers["EndingSequenceNumber"] = str(self.closing_sequence)
        return {**listed, "SequenceNumberRange": numbers}

    def as_child(self) -> dict[str, Any]:
        """As GetRecords names it in ChildShards."""
        return {
            "ShardId": self.shard_id,
            "ParentShards": [parent for parent in (self.parent, self.adjacent_parent) if parent],
            "HashKeyRange": {"StartingHashKey": str(self.starting_hash), "EndingHashKey": str(self.ending_hash)},
        }


def _within(records: list[Record]) -> Iterator[Record]:
    """As many as one GetRecords carries, one at least."""
    size = 0
    for record in records:
        size += len(record.data) + len(record.partition_key)
        if size > FETCH_BYTES_MAX and size > len(record.data) + len(record.partition_key):
            return
        yield record


class Stream(models.Stream):  # type: ignore[misc]
    """A stream of such shards."""

    shards: dict[str, Any]

    def init_shards(self, shard_count: int) -> None:
        self.shard_count = shard_count
        edges = [index * 2**128 // shard_count for index in range(shard_count + 1)]
        for index, (start, end) in enumerate(itertools.pairwise(edges)):
            self._add(Shard(index, start, end - 1))

    def get_shard_for_key(self, partition_key: str, explicit_hash_key: str | None) -> Shard:
        if not isinstance(partition_key, str) or len(partition_key) > 256:
            raise InvalidArgumentError("partition_key")  # noqa: EM101
        if explicit_hash_key:
            point = int(explicit_hash_key) if str(explicit_hash_key).isdigit() else 2**128
            if point >= 2**128:
                raise InvalidArgumentError("explicit_hash_key")  # noqa: EM101
        else:
            point = int.from_bytes(md5(partition_key.encode(), usedforsecurity=False).digest())
        return self._open_at(point) or self._open_after_reshard(point)

    def _open_at(self, point: int) -> Shard | None:
        shards: list[Shard] = list(self.shards.values())
        return next((each for each in shards if each.is_open and each.starting_hash <= point <= each.ending_hash), None)

    def _open_after_reshard(self, point: int) -> Shard:
        """Between the end of a shard and the begin of its children nobody takes the key: wait for that."""
        with _LOCK:
            shard = self._open_at(point)
        assert shard is not None, "the open shards leave a hash key out"
        return shard

    def put_record(self, partition_key: str, explicit_hash_key: str | None, data: str) -> tuple[str, str]:
        decoded = base64.b64decode(data)
        while True:
            shard = self.get_shard_for_key(partition_key, explicit_hash_key)
            number = shard.append(partition_key, decoded)
            if number is not None:
                return str(number), shard.shard_id

    def split_shard(self, shard_to_split: str, new_starting_hash_key: str) -> None:
        with _LOCK:
            parent = self._open_shard(shard_to_split)
            point = int(new_starting_hash_key)
            if not parent.starting_hash < point <= parent.ending_hash:
                msg = (
                    f"NewStartingHashKey {point} used in SplitShard() on shard {shard_to_split} in stream "
                    f"{self.stream_name} under account {self.account_id} is not both greater than one plus the shard's "
                    f"StartingHashKey {parent.starting_hash} and less than the shard's EndingHashKey "
                    f"{parent.ending_hash - 1}."
                )
                raise InvalidArgumentError(msg)
            first = self._next_number()
            children = [
                Shard(first, parent.starting_hash, point - 1, parent=parent.shard_id),
                Shard(first + 1, point, parent.ending_hash, parent=parent.shard_id),
            ]
            self._replace([parent], children)

    def merge_shards(self, shard_to_merge: str, adjacent_shard_to_merge: str) -> None:
        with _LOCK:
            one, other = self._open_shard(shard_to_merge), self._open_shard(adjacent_shard_to_merge)
            low, high = sorted((one, other), key=lambda shard: shard.starting_hash)
            if low.ending_hash + 1 != high.starting_hash:
                msg = (
                    f"Shards {shard_to_merge} and {adjacent_shard_to_merge} in stream {self.stream_name} under account "
                    f"{self.account_id} are not an adjacent pair of shards eligible for merging"
                )
                raise InvalidArgumentError(msg)
            child = Shard(
                self._next_number(),
                low.starting_hash,
                high.ending_hash,
                parent=one.shard_id,
                adjacent_parent=other.shard_id,
            )
            self._replace([one, other], [child])

    def to_json_summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = super().to_json_summary()
        summary["StreamDescriptionSummary"]["OpenShardCount"] = sum(shard.is_open for shard in self.shards.values())
        summary["StreamDescriptionSummary"]["ConsumerCount"] = len(self.consumers)
        return summary

    def _replace(self, parents: list[Shard], children: list[Shard]) -> None:
        for parent in parents:
            parent.close([child.shard_id for child in children])
        for child in children:
            child.least_sequence = max(parent.closing_sequence for parent in parents) + 1
            self._add(child)
        self.shard_count = sum(shard.is_open for shard in self.shards.values())

    def _add(self, shard: Shard) -> None:
        self.shards = {**self.shards, shard.shard_id: shard}

    def _open_shard(self, shard_id: str) -> Shard:
        shard: Shard = self.get_shard(shard_id)
        if not shard.is_open:
            msg = (
                f"Shard {shard_id} in stream {self.stream_name} under account {self.account_id} has already been "
                "merged or split, and thus is not eligible for merging or splitting."
            )
            raise ResourceInUseError(msg)
        return shard

    def _next_number(self) -> int:
        return max(int(shard_id.rpartition("-")[2]) for shard_id in self.shards) + 1


def _get_records(response: Any) -> ActionResult:
    """GetRecords, with the end of a closed shard and its children."""
    iterator = response._get_param("ShardIterator")
    limit = response._get_param("Limit")
    following, records, behind_ms = response.kinesis_backend.get_records(
        response._get_param("StreamARN"), iterator, limit
    )
    stream_name, shard_id, reached = utils.decompose_shard_iterator(following)
    stream = response.kinesis_backend.describe_stream(None, stream_name)
    shard = stream.get_shard(shard_id)
    answer: dict[str, Any] = {
        "Records": [record.to_json() for record in records],
        "MillisBehindLatest": behind_ms,
        "NextShardIterator": following,
    }
    if shard.read(int(reached), 1) == ([], True):
        del answer["NextShardIterator"]
        answer["ChildShards"] = [stream.get_shard(child).as_child() for child in shard.children]
    return ActionResult(answer)


SHARD_FILTERS: dict[str, Callable[[Shard, str, int], bool]] = {
    "AT_TRIM_HORIZON": lambda shard, _after, _at_ms: shard.parent is None,  # nothing is trimmed here
    "FROM_TRIM_HORIZON": lambda _shard, _after, _at_ms: True,
    "AT_LATEST": lambda shard, _after, _at_ms: shard.is_open,
    "AT_TIMESTAMP": lambda shard, _after, at_ms: shard.created_ms <= at_ms and not shard.was_closed(at_ms),
    "FROM_TIMESTAMP": lambda shard, _after, at_ms: not shard.was_closed(at_ms),
    "AFTER_SHARD_ID": lambda shard, after, _at_ms: shard.shard_id > after,
}
"""Which shards a ShardFilter of ListShards lets through: the shard, the filter's ShardId, its Timestamp."""


def _list_shards(response: Any) -> ActionResult:
    """ListShards, with its filter; a filtered list comes in one piece."""
    asked = response._get_param("ShardFilter")
    if not asked or response._get_param("NextToken"):
        return _MOTO_LIST_SHARDS(response)
    stream = response.kinesis_backend.describe_stream(
        response._get_param("StreamARN"), response._get_param("StreamName")
    )
    at = asked.get("Timestamp", 0)
    at_ms = round((at.timestamp() if isinstance(at, datetime) else float(at)) * 1000)
    after = asked.get("ShardId", "")
    passes = SHARD_FILTERS.get(asked["Type"])
    if passes is None:
        msg = f"ShardFilter Type {asked['Type']} is none of {', '.join(SHARD_FILTERS)}"
        raise InvalidArgumentError(msg)
    return ActionResult(
        {"Shards": [shard.to_json() for _, shard in sorted(stream.shards.items()) if passes(shard, after, at_ms)]}
    )


def _list_streams(response: Any) -> ActionResult:
    """ListStreams: a page of the streams by name, from behind the name that a NextToken or the caller gives."""
    limit, token = response._get_param("Limit", LISTED_STREAMS_MAX), response._get_param("NextToken")
    if not 1 <= limit <= 10_000:
        msg = f"Limit {limit} is not from 1 to 10000"
        raise InvalidArgumentError(msg)
    try:
        after = base64.b64decode(token or "", validate=True).decode()
    except ValueError:
        msg = "NextToken is none that ListStreams has given"
        raise InvalidArgumentError(msg) from None
    after = after or response._get_param("ExclusiveStartStreamName", "")
    streams = {stream.stream_name: stream for stream in list(response.kinesis_backend.list_streams())}
    behind = sorted(name for name in streams if name > after)
    page = behind[: min(limit, LISTED_STREAMS_MAX)]
    answer: dict[str, Any] = {
        "StreamNames": page,
        "StreamSummaries": [streams[name].to_json_summary()["StreamDescriptionSummary"] for name in page],
        "HasMoreStreams": len(page) < len(behind),
    }
    if answer["HasMoreStreams"]:
        answer["NextToken"] = base64.b64encode(page[-1].encode()).decode()
    return ActionResult(answer)


def _get_shard_iterator(backend: Any, stream_arn: Any, stream_name: Any, *rest: Any, **named: Any) -> str:
    """GetShardIterator, by name or by ARN: the iterator carries the name."""
    stream = backend.describe_stream(stream_arn=stream_arn, stream_name=stream_name)
    iterator: str = _MOTO_GET_SHARD_ITERATOR(backend, None, stream.stream_name, *rest, **named)
    return iterator


_MOTO_LIST_SHARDS = responses.KinesisResponse.list_shards
_MOTO_GET_SHARD_ITERATOR = models.KinesisBackend.get_shard_iterator


@contextmanager
def our_shards() -> Iterator[None]:
    """Streams that moto makes in this context are ours."""
    with (
        replaced(models, "Stream", Stream),
        replaced(responses.KinesisResponse, "get_records", _get_records),
        replaced(responses.KinesisResponse, "list_shards", _list_shards),
        replaced(responses.KinesisResponse, "list_streams", _list_streams),
        replaced(models.KinesisBackend, "get_shard_iterator", _get_shard_iterator),
    ):
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of moto's, for as long as the context lasts."""
    had = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, had)


# --- reading, for mappings ---------------------------------------------------------------------------------


class LocalStream:
    """A stream of this process as `windlass.local.poller.Stream`: no HTTP between. `find` raises where it is gone."""

    def __init__(self, find: Callable[[], Stream]) -> None:
        self._find = find

    def shards(self) -> list[ListedShard]:
        """As ListShards."""
        return [
            ListedShard(
                shard.shard_id,
                tuple(parent for parent in (shard.parent, shard.adjacent_parent) if parent),
                not shard.is_open,
                str(shard.starting_sequence),
            )
            for shard in self._find().shards.values()
        ]

    def fetch(self, fetch: Fetch) -> Fetched:
        """As GetRecords. LATEST is resolved before a mapping begins (`latest`), so it does not come here."""
        shard: Shard = self._find().get_shard(fetch.shard_id)
        after = self._after(shard, fetch)
        records, ended = shard.read(after, min(fetch.limit, FETCH_RECORDS_MAX))
        return Fetched(
            [
                StreamRecord(str(record.sequence_number), record.partition_key, record.arrival_ms, record.data)
                for record in records
            ],
            behind_latest_ms=shard.behind_ms(records[-1].sequence_number) if records else 0,
            ended=ended,
            children=tuple(shard.children) if ended else (),
        )

    def latest(self) -> dict[str, str]:
        """The last sequence number of every shard, empty text where there is none."""
        return {shard_id: str(shard.get_max_sequence_number() or "") for shard_id, shard in self._find().shards.items()}

    def _after(self, shard: Shard, fetch: Fetch) -> int:
        position = fetch.position
        match position.kind:
            case "TRIM_HORIZON":
                return 0
            case "AT_SEQUENCE_NUMBER":
                return int(position.sequence) - 1
            case "AFTER_SEQUENCE_NUMBER":
                return int(position.sequence)
            case "AT_TIMESTAMP":
                return shard.before(position.at_ms)
        msg = f"{fetch.shard_id} cannot be read from {position.kind}"
        raise ValueError(msg)
