"""The event source mapping on Kinesis servers that are not ours: what it reads there, and how it goes on.

Time is real here: polls follow each other quickly, and windows of one second have to pass. Where a server does not do
what AWS documents, QUIRKS says what, and what becomes of it. On AWS (WINDLASS_REMOTE=1) the same tests run at
Lambda's own pace, on streams that they make and delete.
"""

import calendar
import io
import json
import threading
import time
import uuid
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from botocore.eventstream import EventStream

from tests import servers
from tests.builders import trip
from windlass.apps import load_app
from windlass.commands import mapping as mapping_command
from windlass.handler import Seams
from windlass.local.mapping import Delivered, Failure
from windlass.local.mapping_settings import LATEST, TRIM_HORIZON, Assumptions, MappingSettings, Position
from windlass.local.poller import (
    EPOCH,
    MILLISECOND,
    FileCheckpoints,
    InProcess,
    PolledStream,
    Poller,
    Stream,
    SubscribedStream,
)
from windlass.produce.aggregate import Shard, ShardMap, packed
from windlass.produce.records import UserRecord
from windlass.quarantine import MemoryQuarantine, line_of
from windlass.shards import KinesisShards
from windlass.sim.table import MemoryTable
from windlass.telemetry import Kept
from windlass.verify import verify

pytestmark = pytest.mark.heavy

QUIRKS = {
    "moto": {
        "resharding": "a split puts the parent's records again, under new sequence numbers, into the children; a merge "
        "copies them. So a mapping finds twice what it had read before (moto.kinesis.models)",
        "consumers": "it registers consumers and has no SubscribeToShard",
    },
    "kinesalite": {
        "stream_arn": "it is of 2020 and knows streams by name only; AWS has taken StreamARN since 2022",
        "consumers": "it is older than enhanced fan-out",
        "from_now": "it never answers a read from a time behind its last record, which is where LATEST begins",
    },
    "kinesis-mock": {
        "initial_response": "its answer to SubscribeToShard does not begin with the initial-response that AWS's begins "
        "with, and that botocore insists on",
    },
}
"""What a server does in another way than AWS. A test that needs it is skipped with these words, or goes around it."""

FUNCTION_ARN = "arn:aws:lambda:us-east-1:000000000000:function:conformance"
HASH_KEYS = 2**128


class Pace(msgspec.Struct, frozen=True):
    """How quickly a server is polled, how far its clock and ours may be apart, and how long anything may take."""

    poll_ms: int = 100
    poll_ms_min: int = 5
    discover_ms: int = 50
    look_s: float = 0.01
    grace_ms: int = 250
    wait_s: float = 30


PACES = {
    # An answer takes it about 20 ms on a busy core, whoever asks.
    "kinesis-mock": Pace(poll_ms=150, poll_ms_min=20, discover_ms=200),
    "aws": Pace(poll_ms=1000, poll_ms_min=250, discover_ms=2000, look_s=1, grace_ms=3000, wait_s=180),
}

Placed = tuple[str, str]
"""The shard and sequence number of a record."""


class Function:
    """Remembers its calls in order, and does what `act` does."""

    def __init__(self, act: Callable[[dict[str, Any]], Any] = lambda event: None) -> None:
        self.events: list[dict[str, Any]] = []
        self._act = act
        self._lock = threading.Lock()

    def __call__(self, event: dict[str, Any], context: Any) -> Any:
        with self._lock:
            self.events.append(event)
            return self._act(event)

    @property
    def batches(self) -> list[list[str]]:
        """The sequence numbers of each call."""
        return [sequences(event) for event in list(self.events)]

    @property
    def placed(self) -> list[Placed]:
        """Every record, in the order of the calls."""
        return [
            tuple(record["eventID"].split(":")) for event in list(self.events) for record in event.get("Records", ())
        ]


def sequences(event: dict[str, Any]) -> list[str]:
    return [record["kinesis"]["sequenceNumber"] for record in event.get("Records", ())]


def payloads(event: dict[str, Any]) -> list[bytes]:
    return [b64decode(record["kinesis"]["data"]) for record in event.get("Records", ())]


def counting(event: dict[str, Any]) -> dict[str, Any]:
    return {"state": {"count": event["state"].get("count", 0) + len(event["Records"])}}


class Trial:
    """A stream of its own on a server, and mappings of it."""

    def __init__(self, server: servers.Kinesis) -> None:
        self.server = server
        self.client = server.client
        self.pace = PACES.get(server.name, Pace())
        self.discarded: list[Failure] = []
        self.name = f"windlass-test-{uuid.uuid4().hex[:12]}"
        self.arn = ""

    # -- the stream -------------------------------------------------------------------------------------------

    def needs(self, what: str) -> None:
        """Skip the test where the server is known to do it otherwise."""
        if self.has_quirk(what):
            pytest.skip(f"{self.server.name}: {QUIRKS[self.server.name][what]}")

    def has_quirk(self, what: str) -> bool:
        return what in QUIRKS.get(self.server.name, {})

    def create(self, shards: int = 1) -> "Trial":
        self.client.create_stream(StreamName=self.name, ShardCount=shards)
        self._until_active()
        self.arn = self.client.describe_stream_summary(StreamName=self.name)["StreamDescriptionSummary"]["StreamARN"]
        return self

    def delete(self) -> None:
        if self.arn:
            self.client.delete_stream(StreamName=self.name, EnforceConsumerDeletion=True)

    def register_consumer(self) -> str:
        made = self.client.register_stream_consumer(StreamARN=self.arn, ConsumerName="conformance")
        arn = made["Consumer"]["ConsumerARN"]
        self.until(
            lambda: (
                self.client.describe_stream_consumer(ConsumerARN=arn)["ConsumerDescription"]["ConsumerStatus"]
                == "ACTIVE"
            )
        )
        return arn

    def _until_active(self) -> None:
        self.until(
            lambda: (
                self.client.describe_stream_summary(StreamName=self.name)["StreamDescriptionSummary"]["StreamStatus"]
                == "ACTIVE"
            )
        )

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.pace.wait_s
        while not holds():
            assert time.monotonic() < deadline, "it took too long"
            time.sleep(self.pace.look_s)

    def shards(self) -> list[Shard]:
        """Every shard, by its beginning; closed ones too."""
        listed = self.client.list_shards(StreamName=self.name)["Shards"]
        return [
            Shard(
                each["ShardId"],
                int(each["HashKeyRange"]["StartingHashKey"]),
                int(each["HashKeyRange"]["EndingHashKey"]),
                open="EndingSequenceNumber" not in each["SequenceNumberRange"],
            )
            for each in listed
        ]

    def open_shards(self) -> list[Shard]:
        return sorted((each for each in self.shards() if each.open), key=lambda each: each.first_hash)

    def put(self, data: Sequence[bytes], *, shard: Shard | None = None, key: str = "k") -> list[Placed]:
        """In order, to a shard or over all of them."""
        entries = [
            {
                "Data": each,
                "PartitionKey": f"{key}{number}",
                "ExplicitHashKey": str(shard.first_hash if shard else number * (HASH_KEYS // len(data))),
            }
            for number, each in enumerate(data)
        ]
        if self.server.name == "aws":  # where PutRecords does not promise any order
            answers = [self.client.put_record(StreamName=self.name, **entry) for entry in entries]
        else:
            answers = self.client.put_records(StreamName=self.name, Records=entries)["Records"]
        return [(answer["ShardId"], answer["SequenceNumber"]) for answer in answers]

    def put_by_key(self, data: Sequence[bytes]) -> list[Placed]:
        """At once, where the partition keys lead to."""
        records = [{"Data": each, "PartitionKey": f"k{number}"} for number, each in enumerate(data)]
        answer = self.client.put_records(StreamName=self.name, Records=records)
        assert answer["FailedRecordCount"] == 0
        return [(each["ShardId"], each["SequenceNumber"]) for each in answer["Records"]]

    def split(self, shard: Shard) -> list[Shard]:
        """In the middle. Answers the children."""
        middle = (shard.first_hash + shard.last_hash + 1) // 2
        before = {each.id for each in self.shards()}
        self.client.split_shard(StreamName=self.name, ShardToSplit=shard.id, NewStartingHashKey=str(middle))
        self._until_active()
        return [each for each in self.shards() if each.id not in before]

    def merge(self, left: Shard, right: Shard) -> Shard:
        before = {each.id for each in self.shards()}
        self.client.merge_shards(StreamName=self.name, ShardToMerge=left.id, AdjacentShardToMerge=right.id)
        self._until_active()
        (child,) = (each for each in self.shards() if each.id not in before)
        return child

    def truth(self) -> list[tuple[str, str, int, bytes]]:
        """What the stream holds, read without a mapping: shard, sequence number, arrival in milliseconds, bytes."""
        return [record for shard in self.shards() for record in self._read(shard)]

    def _read(self, shard: Shard) -> Iterator[tuple[str, str, int, bytes]]:
        iterator = self.client.get_shard_iterator(
            StreamName=self.name, ShardId=shard.id, ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        while iterator:
            answer = self.client.get_records(ShardIterator=iterator)
            for record in answer["Records"]:
                arrival_ms = (record["ApproximateArrivalTimestamp"] - EPOCH) // MILLISECOND
                yield shard.id, record["SequenceNumber"], arrival_ms, record["Data"]
            if not (answer["Records"] or answer.get("MillisBehindLatest", 0)):
                return
            iterator = answer.get("NextShardIterator")

    # -- the mapping ------------------------------------------------------------------------------------------

    def poller(
        self,
        function: Callable[..., Any],
        *,
        checkpoints: Path | None = None,
        stream: Stream | None = None,
        **fields: Any,
    ) -> Poller:
        pace = self.pace
        assumed = {"grace_ms": pace.grace_ms, "backoff_ms": 5, **fields.pop("assumed", {})}
        settings = MappingSettings(
            event_source_arn=fields.pop("event_source_arn", self.arn),
            function_arn=FUNCTION_ARN,
            on_failure_arn="arn:aws:sqs:us-east-1:000000000000:discarded",
            poll_ms=pace.poll_ms,
            poll_ms_min=pace.poll_ms_min,
            assumed=Assumptions(**assumed),
            **fields,
        )
        return Poller(
            settings,
            stream or PolledStream(self.client, self.arn),
            InProcess(function, FUNCTION_ARN),
            deliver=self._discard,
            checkpoints=FileCheckpoints(checkpoints) if checkpoints else None,
            discover_ms=pace.discover_ms,
        )

    def _discard(self, failure: Failure) -> Delivered:
        self.discarded.append(failure)
        return Delivered()

    @contextmanager
    def running(self, function: Callable[..., Any], **fields: Any) -> Iterator[Poller]:
        """A mapping at work; settled at the end, unless the test fails before."""
        poller = self.poller(function, **fields)
        poller.start()
        try:
            yield poller
            assert poller.settle(timeout_s=self.pace.wait_s), [each.trouble for each in poller.status()]
        finally:
            poller.stop()

    def process(self, function: Callable[..., Any], **fields: Any) -> None:
        """Everything that is in the stream."""
        with self.running(function, **fields):
            pass


@pytest.fixture(scope="session")
def _ended() -> Iterator[None]:
    yield
    servers.end_all()


@pytest.fixture(params=servers.KINESIS)
def trial(request: pytest.FixtureRequest, _ended: None) -> Iterator[Trial]:
    """A trial on each of the servers, whose stream the test creates."""
    made = Trial(servers.kinesis(request.param))
    yield made
    made.delete()


def numbered(count: int, name: str = "r") -> list[bytes]:
    return [b"%s %d" % (name.encode(), number) for number in range(count)]


# --- reading -----------------------------------------------------------------------------------------------------


def test_every_record_comes_once_and_in_the_order_of_its_shard(trial):
    trial.create(3)
    put = trial.put_by_key(numbered(60))
    function = Function()
    trial.process(function, batch_size=8)
    assert Counter(function.placed) == Counter(put)
    for shard in trial.shards():
        came = [sequence for shard_id, sequence in function.placed if shard_id == shard.id]
        assert came == [sequence for shard_id, sequence in put if shard_id == shard.id]


def test_a_record_comes_as_it_was_put(trial):
    trial.create()
    data = bytes(range(256)) * 40
    ((shard, sequence),) = trial.put([data], key="key ")
    function = Function()
    before_ms = time.time() * 1000
    trial.process(function)
    (record,) = function.events[0]["Records"]
    assert payloads(function.events[0]) == [data]
    assert record["eventID"] == f"{shard}:{sequence}"
    assert record["kinesis"]["partitionKey"] == "key 0"
    assert record["eventSourceARN"] == trial.arn
    slack_ms = 10_000 + trial.pace.grace_ms
    assert abs(record["kinesis"]["approximateArrivalTimestamp"] * 1000 - before_ms) < slack_ms


def test_batches_are_filled_in_order(trial):
    trial.create()
    put = [sequence for _, sequence in trial.put(numbered(17))]
    function = Function()
    trial.process(function, batch_size=5)
    assert function.batches == [put[:5], put[5:10], put[10:15], put[15:]]


def test_reads_go_on_where_the_last_one_ended(trial):
    trial.create()
    function = Function()
    with trial.running(function, batch_size=100) as poller:
        for part in range(3):
            trial.put(numbered(4, f"part {part},"))
            assert poller.settle(timeout_s=trial.pace.wait_s)
    assert [data for event in function.events for data in payloads(event)] == [
        b"part %d, %d" % (part, number) for part in range(3) for number in range(4)
    ]


def test_the_trim_horizon_is_the_first_record(trial):
    trial.create()
    put = trial.put(numbered(3))
    function = Function()
    trial.process(function, start=TRIM_HORIZON)
    assert function.placed == put


def test_latest_is_what_comes_after_the_mapping_began(trial):
    trial.needs("from_now")
    trial.create()
    trial.put(numbered(3, "old"))
    function = Function()
    with trial.running(function, start=LATEST) as poller:
        assert poller.settle(timeout_s=trial.pace.wait_s)
        put = trial.put(numbered(3, "new"))
    assert function.placed == put


def test_a_timestamp_is_the_first_record_that_arrived_then_or_later(trial):
    trial.create()
    trial.put(numbered(3, "old"))
    time.sleep(0.05 if trial.server.name != "aws" else 2)
    put = trial.put(numbered(3, "new"))
    arrived = {sequence: arrival_ms for _, sequence, arrival_ms, _ in trial.truth()}
    function = Function()
    trial.process(function, start=Position("AT_TIMESTAMP", at_ms=arrived[put[0][1]]))
    assert function.placed == put


def test_filters_pass_over_what_they_do_not_match(trial):
    trial.create()
    trial.put([trip(number % 2, 1) for number in range(6)])
    function = Function()
    trial.process(function, filters=('{"data": {"vendorId": [1]}}',))
    assert [data for event in function.events for data in payloads(event)] == [trip(1, 1)] * 3


def test_lanes_keep_the_order_of_a_key(trial):
    trial.create()
    for _ in range(3):
        trial.put(numbered(10), key="lane")
    function = Function()
    trial.process(function, parallelization=4, batch_size=2)
    by_key: dict[str, list[str]] = {}
    for event in function.events:
        for record in event["Records"]:
            by_key.setdefault(record["kinesis"]["partitionKey"], []).append(record["kinesis"]["sequenceNumber"])
    assert sum(map(len, by_key.values())) == 30
    assert all(came == sorted(came, key=int) for came in by_key.values())


def test_a_consumer_is_pushed_every_record_once(trial, monkeypatch):
    trial.needs("consumers")
    if trial.has_quirk("initial_response"):
        monkeypatch.setattr(EventStream, "get_initial_response", lambda self: SimpleNamespace(payload=b"{}"))
    trial.create(2)
    consumer_arn = trial.register_consumer()
    put = trial.put(numbered(10))
    stream = SubscribedStream(trial.client, consumer_arn)
    function = Function()
    try:
        with trial.running(function, stream=stream, event_source_arn=consumer_arn, batch_size=4):
            trial.until(lambda: len(function.placed) == 10)
            put += trial.put(numbered(6, "more"))
            trial.until(lambda: len(function.placed) >= 16)
    finally:
        stream.close()
    assert Counter(function.placed) == Counter(put)
    assert {record["eventSourceARN"] for event in function.events for record in event["Records"]} == {consumer_arn}


def test_the_command_reads_through_a_consumer(trial, monkeypatch, tmp_path):
    trial.needs("consumers")
    if trial.has_quirk("initial_response"):
        monkeypatch.setattr(EventStream, "get_initial_response", lambda self: SimpleNamespace(payload=b"{}"))
    trial.create(2)
    trial.register_consumer()
    trial.put(numbered(10))
    app = tmp_path / "app.py"
    app.write_text(
        "from pathlib import Path\n"
        "seen = []\n"
        "def handler(event, context):\n"
        "    seen.extend(record['eventSourceARN'] for record in event['Records'])\n"
        "    Path(__file__).with_name('seen').write_text('\\n'.join(seen))\n"
    )
    out = io.StringIO()
    options = mapping_command.Options(
        handler=f"{app}:handler",
        stream=trial.name,
        consumer="conformance",
        request={"StartingPosition": "TRIM_HORIZON"},
        endpoint_url=trial.server.endpoint,
        region="us-east-1",
        until_settled=True,
    )
    assert mapping_command.run(options, out=out, err=io.StringIO()) == 0
    assert json.loads(out.getvalue().splitlines()[-1])["polled"] == 10
    seen = (tmp_path / "seen").read_text().splitlines()
    assert len(seen) == 10
    assert all("/consumer/conformance" in arn for arn in seen)


# --- failing -----------------------------------------------------------------------------------------------------


def test_a_batch_that_fails_is_sent_again_and_holds_back_what_follows(trial):
    trial.create()
    put = [sequence for _, sequence in trial.put(numbered(4))]

    def act(event: dict[str, Any]) -> None:
        if len(function.events) < 3:
            raise ValueError

    function = Function(act)
    trial.process(function, batch_size=2)
    assert function.batches == [put[:2], put[:2], put[:2], put[2:]]


def test_halving_leaves_only_the_bad_record_behind(trial):
    trial.create()
    data = [*numbered(5), b"bad", *numbered(4)]
    put = [sequence for _, sequence in trial.put(data)]

    def act(event: dict[str, Any]) -> None:
        if b"bad" in payloads(event):
            raise ValueError
        done.extend(sequences(event))

    done: list[str] = []
    trial.process(Function(act), bisect=True, retries_max=0)
    assert done == put[:5] + put[6:]
    (failure,) = trial.discarded
    assert (failure.first_sequence, failure.last_sequence, failure.records) == (put[5], put[5], 1)


def test_item_failures_begin_the_next_batch(trial):
    trial.create()
    put = [sequence for _, sequence in trial.put(numbered(6))]

    def act(event: dict[str, Any]) -> dict[str, Any]:
        failed = put[2] if len(function.events) == 1 else put[4] if len(function.events) == 2 else None
        return {"batchItemFailures": [{"itemIdentifier": failed}] if failed else []}

    function = Function(act)
    trial.process(function, report_item_failures=True)
    assert function.batches == [put, put[2:], put[4:]]


# --- resharding --------------------------------------------------------------------------------------------------


def _family(function: Function, parents: Sequence[Shard], children: Sequence[Shard]) -> None:
    """Every record of the parents came before every one of the children."""
    came = [shard for shard, _ in function.placed]
    last = max(place for place, shard in enumerate(came) if shard in {each.id for each in parents})
    first = min(place for place, shard in enumerate(came) if shard in {each.id for each in children})
    assert last < first


def test_the_children_of_a_split_come_after_their_parent(trial):
    trial.needs("resharding")
    trial.create(2)
    parent, _ = trial.open_shards()
    put = trial.put(numbered(12), shard=parent)
    children = trial.split(parent)
    for child in children:
        put += trial.put(numbered(5), shard=child)
    function = Function()
    trial.process(function, batch_size=3)
    assert Counter(function.placed) == Counter(put)
    _family(function, [parent], children)


def test_a_merged_shard_comes_after_both_its_parents(trial):
    trial.needs("resharding")
    trial.create(2)
    left, right = trial.open_shards()
    put = trial.put(numbered(7), shard=left) + trial.put(numbered(12), shard=right)
    child = trial.merge(left, right)
    put += trial.put(numbered(5), shard=child)
    function = Function()
    trial.process(function, batch_size=3)
    assert Counter(function.placed) == Counter(put)
    _family(function, [left, right], [child])


def test_resharding_under_a_running_mapping_loses_and_repeats_nothing(trial):
    trial.needs("resharding")
    trial.create(2)
    function = Function()
    put: list[Placed] = []
    with trial.running(function, batch_size=4):
        put += trial.put(numbered(10, "before"))
        parent, other = trial.open_shards()
        low, high = sorted(trial.split(parent), key=lambda shard: shard.first_hash)
        put += trial.put(numbered(10, "split"))
        child = trial.merge(high, other)
        put += trial.put(numbered(10, "merged"))
    assert Counter(function.placed) == Counter(put)
    _family(function, [parent], [low])
    _family(function, [parent, other], [child])


# --- windows -----------------------------------------------------------------------------------------------------


def _expected(trial: Trial, window_ms: int) -> Counter[tuple[str, int]]:
    return Counter((shard, arrival_ms // window_ms * window_ms) for shard, _, arrival_ms, _ in trial.truth())


def _found(function: Function) -> Counter[tuple[str, int]]:
    totals: Counter[tuple[str, int]] = Counter()
    for event in function.events:
        if event["isFinalInvokeForWindow"]:
            start = time.strptime(event["window"]["start"], "%Y-%m-%dT%H:%M:%SZ")
            totals[event["shardId"], _utc_ms(start)] += event["state"]["count"]
    return totals


def _utc_ms(at: time.struct_time) -> int:
    return calendar.timegm(at) * 1000


def test_every_window_of_every_shard_ends_with_its_own_total(trial):
    trial.create(4)
    function = Function(counting)
    with trial.running(function, window_ms=1000, batch_size=5):
        windows: set[int] = set()
        while len(windows) < 2:
            trial.put(numbered(8))
            time.sleep(0.02)
            windows |= {start for _, start in _expected(trial, 1000)}
    assert _found(function) == _expected(trial, 1000)
    assert len({start for _, start in _found(function)}) >= 2
    opened = set()
    for event in function.events:
        window = (event["shardId"], event["window"]["start"])
        assert bool(event["state"]) == (window in opened)
        opened.add(window)
        if event["isFinalInvokeForWindow"]:
            opened.discard(window)
    assert not opened


def test_a_shard_that_ends_closes_its_window(trial):
    trial.needs("resharding")
    trial.create()
    (parent,) = trial.open_shards()
    trial.put(numbered(6))
    children = trial.split(parent)
    trial.put(numbered(6))
    function = Function(counting)
    trial.process(function, window_ms=1000)
    assert _found(function) == _expected(trial, 1000)
    finals = [event["shardId"] for event in function.events if event["isFinalInvokeForWindow"]]
    assert finals[-1] in {child.id for child in children}
    assert finals[0] == parent.id


# --- checkpoints -------------------------------------------------------------------------------------------------


def test_a_restarted_mapping_goes_on_behind_what_was_processed(trial, tmp_path):
    trial.create(2)
    path = tmp_path / "checkpoints.json"
    put = trial.put(numbered(11))
    first = Function()
    trial.process(first, checkpoints=path, batch_size=3)
    put += trial.put(numbered(7))
    second = Function()
    trial.process(second, checkpoints=path, batch_size=3)
    assert Counter(first.placed + second.placed) == Counter(put)


def test_a_mapping_restarted_after_a_merge_begins_with_the_child(trial, tmp_path):
    trial.needs("resharding")
    trial.create(2)
    path = tmp_path / "checkpoints.json"
    put = trial.put(numbered(11))
    first = Function()
    trial.process(first, checkpoints=path, batch_size=3)
    (left, right) = trial.open_shards()
    child = trial.merge(left, right)
    put += trial.put(numbered(7), shard=child)
    second = Function()
    trial.process(second, checkpoints=path, batch_size=3)
    assert Counter(first.placed + second.placed) == Counter(put)
    assert {shard for shard, _ in second.placed} == {child.id}


def test_an_open_window_is_replayed_from_its_start_with_empty_state(trial, tmp_path):
    trial.create()
    now_s = time.time()
    window_ms = next(each for each in (900_000, 899_000) if now_s % (each / 1000) < each / 1000 - 60)
    put = [sequence for _, sequence in trial.put(numbered(5))]
    path = tmp_path / "checkpoints.json"
    first = Function(counting)
    poller = trial.poller(first, checkpoints=path, window_ms=window_ms, batch_size=2)
    poller.start()
    trial.until(lambda: sum(map(len, first.batches)) == 5)
    poller.stop()
    second = Function(counting)
    poller = trial.poller(second, checkpoints=path, window_ms=window_ms)
    poller.start()
    trial.until(lambda: bool(second.events))
    poller.stop()
    assert second.events[0]["state"] == {}
    assert second.batches[0] == put


# --- a pipeline --------------------------------------------------------------------------------------------------


def test_kpl_aggregates_over_a_reshard_make_exact_totals(trial):
    trial.needs("resharding")
    trial.create(2)
    pipeline = load_app(str(servers.ROOT / "examples/taxi/app.py:trips")).changed(every=timedelta(seconds=1))
    seams = Seams(
        MemoryTable(pipeline.table_keys),
        MemoryQuarantine(),
        KinesisShards(lambda: _by_arn(trial)),
        Kept(),
        sleep=lambda _: None,
    )
    handler = pipeline.handler_on(lambda: seams)
    users = [UserRecord(f"id{number:07d}", trip(number % 3, number % 7)) for number in range(120)]
    old_map = ShardMap(trial.open_shards())
    with trial.running(handler, window_ms=1000):
        _put_packed(trial, users[:40], old_map)
        trial.split(trial.open_shards()[0])
        _put_packed(trial, users[40:80], old_map)
        _put_packed(trial, users[80:], ShardMap(trial.open_shards()))
        trial.put([b"not a trip", trip("no", 1)])
    verdict = verify(
        pipeline.describe(),
        trial.truth(),
        seams.table.items(),
        [msgspec.structs.asdict(line_of(record)) for record in seams.quarantine.read()],
        ranges={shard.id: (shard.first_hash, shard.last_hash) for shard in _children(trial)},
    )
    assert verdict.exact, verdict.differences
    assert verdict.received == 122
    assert verdict.reasons.keys() == {"not_json", "wrong_type", "wrong_shard"}


def _by_arn(trial: Trial) -> Any:
    """A client that takes StreamARN, as AWS does."""
    if not trial.has_quirk("stream_arn"):
        return trial.client
    return SimpleNamespace(list_shards=lambda **request: trial.client.list_shards(StreamName=trial.name))


def _put_packed(trial: Trial, users: list[UserRecord], shards: ShardMap) -> None:
    entries = [
        {
            "Data": record.data,
            "PartitionKey": record.key,
            **({} if record.hash_key is None else {"ExplicitHashKey": str(record.hash_key)}),
        }
        for record in packed(users, shards, records_max=8)
    ]
    assert trial.client.put_records(StreamName=trial.name, Records=entries)["FailedRecordCount"] == 0


def _children(trial: Trial) -> list[Shard]:
    listed = trial.client.list_shards(StreamName=trial.name)["Shards"]
    with_parents = {each["ShardId"] for each in listed if each.get("ParentShardId")}
    return [shard for shard in trial.shards() if shard.id in with_parents]
