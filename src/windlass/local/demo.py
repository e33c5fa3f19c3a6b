"""The main job on one machine: stream, producer, event source mapping, handler, table, quarantine, all in one process.

    produce ──► Kinesis ──► Poller (one loop per shard) ──► handler ──► DynamoDB
                              tumbling windows                 └──────► S3: quarantine

The local endpoint (`windlass.local.cloud`) answers Kinesis, DynamoDB and S3; the mapping is the one that it runs, too.
The handler is called in this process, where its reports can be watched. Nothing is left behind.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import msgspec

from windlass.handler import Seams, WindowsHandler
from windlass.local.cloud import Cloud
from windlass.local.mapping_settings import Assumptions, MappingSettings
from windlass.local.poller import InProcess, PolledStream, Poller, ShardStatus, wall_clock_ms
from windlass.local.watch import Watch
from windlass.pipelines import WRITERS, Windows
from windlass.produce.put import Packing, Produced, produce
from windlass.produce.source import records
from windlass.produce.stream import open_stream
from windlass.quarantine import AnyQuarantine, line_of, open_quarantine
from windlass.shards import KinesisShards
from windlass.table import DynamoTable
from windlass.verify import Verdict, verify
from windlass.verify.sources import read_stream, read_table, shard_ranges

REGION = "us-east-1"
STREAM, TABLE, BUCKET = "input-stream", "kinesisAggs", "windlass-quarantine"
FUNCTION_ARN = f"arn:aws:lambda:{REGION}:123456789012:function:kinesisLambdaConsumer01"
QUARANTINE = f"s3://{BUCKET}/rejected"
GRACE_MS = 500
"""How long after its end a quiet window is closed: Lambda takes up to two minutes, nobody wants to watch that."""
SETTLE_S = 120.0
UNCLEAN = 0.03


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `every_s` None is the pipeline's own window; `for_s` None ends with the file.

    `unclean` None spoils some of the drawn trips, and none of a file's records.
    """

    every_s: int | None = None
    for_s: float | None = 20.0
    shards: int = 4
    rate: float = 2000.0
    dialect: str = "mixed"
    aggregate: bool = False
    unclean: float | None = None
    seed: int = 7
    csv: Path | None = None


class Progress(msgspec.Struct, frozen=True):
    """How far a run is, for whoever shows it."""

    produced: Produced
    shards: list[ShardStatus]
    folded: int
    flushed: int
    rejected: int


class NotSettled(RuntimeError):
    """The windows did not close in time: the mapping or the function is stuck."""


@contextmanager
def local_endpoint() -> Iterator[str]:
    """The local endpoint on a free port of 127.0.0.1, for as long as the context lasts."""
    with Cloud(port=0) as cloud, _made_up_credentials():
        yield cloud.endpoint_url


@contextmanager
def _made_up_credentials() -> Iterator[None]:
    """Whoever runs the demo may have none, and may have real ones, which must not travel even to this machine."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ |= {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class Demo:
    """One run. `start`, `produce_until`, `settle`, `verify` and `stop` are its steps, in this order."""

    def __init__(self, pipeline: Windows, options: Options, endpoint_url: str) -> None:
        if options.every_s is not None:
            pipeline = pipeline.changed(every=timedelta(seconds=options.every_s))
        self.pipeline = pipeline
        self._options = options
        self.endpoint_url = endpoint_url
        session = boto3.session.Session(region_name=REGION)  # one: most of what a client costs is its session
        self.clients = {name: session.client(name, endpoint_url=endpoint_url) for name in ("kinesis", "dynamodb", "s3")}
        self.watch = Watch()
        self._produced = Produced()
        self.poller: Poller | None = None

    def start(self) -> None:
        """Make stream, table and bucket, and let the mapping read."""
        kinesis, dynamodb, s3 = self.clients["kinesis"], self.clients["dynamodb"], self.clients["s3"]
        kinesis.create_stream(StreamName=STREAM, ShardCount=self._options.shards)
        kinesis.get_waiter("stream_exists").wait(StreamName=STREAM, WaiterConfig={"Delay": 1})
        keys = self.pipeline.table_keys.attributes
        dynamodb.create_table(
            TableName=TABLE,
            AttributeDefinitions=[{"AttributeName": key.name, "AttributeType": key.type} for key in keys],
            KeySchema=[
                {"AttributeName": key.name, "KeyType": role} for key, role in zip(keys, ("HASH", "RANGE"), strict=False)
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        s3.create_bucket(Bucket=BUCKET)
        arn = kinesis.describe_stream_summary(StreamName=STREAM)["StreamDescriptionSummary"]["StreamARN"]
        settings = MappingSettings(
            event_source_arn=arn,
            function_arn=FUNCTION_ARN,
            batch_size=1000,
            window_ms=self.pipeline.plan.every_s * 1000,
            poll_ms=200,
            assumed=Assumptions(grace_ms=GRACE_MS),
        )
        function = InProcess(self.watch.function(self._handler()), FUNCTION_ARN)
        self.poller = Poller(settings, PolledStream(kinesis, arn), self.watch.invoker(function))
        self.poller.start()

    def _handler(self) -> WindowsHandler:
        seams = Seams(
            DynamoTable(TABLE, self.pipeline.table_keys, endpoint_url=self.endpoint_url, region=REGION),
            self.quarantine(),
            KinesisShards(lambda: self.clients["kinesis"]),
            self.watch,
            ThreadPoolExecutor(WRITERS),
        )
        return self.pipeline.handler_on(lambda: seams)

    def quarantine(self) -> AnyQuarantine:
        """Where its rejected records are."""
        return open_quarantine(QUARANTINE, make_client=lambda: self.clients["s3"])

    def produce_until(self, stop: threading.Event) -> Produced:
        """Put records until the time is over, the file ends, or `stop` is set."""
        options = self._options
        usual = UNCLEAN if options.csv is None else 0.0
        unclean = usual if options.unclean is None else options.unclean
        source = records(seed=options.seed, dialect=options.dialect, unclean=unclean, csv=options.csv)

        def seen(produced: Produced) -> None:
            self._produced = produced
            self.watch.put(produced.records)

        return produce(
            source,
            open_stream(STREAM, endpoint_url=self.endpoint_url, region=REGION),
            clock=time.monotonic,
            sleep=time.sleep,
            rng=random.Random(options.seed),
            rate=options.rate or None,
            for_s=options.for_s,
            packing=Packing() if options.aggregate else None,
            should_stop=stop.is_set,
            on_progress=seen,
        )

    def settle(self) -> None:
        """Wait until every record is processed and every window closed."""
        assert self.poller is not None
        settled = self.poller.settle(timeout_s=SETTLE_S)
        trouble = [f"{shard.shard_id}: {shard.trouble}" for shard in self.poller.status() if shard.trouble]
        if not settled:
            msg = f"windows were still open after {SETTLE_S:.0f} s; {'; '.join(trouble) or 'no shard says why'}"
            raise NotSettled(msg)

    def stop(self) -> None:
        """End the mapping at once, windows open or not. Raises what ended one of its loops, if anything did."""
        if self.poller is not None:
            poller, self.poller = self.poller, None
            poller.stop()

    def verify(self) -> Verdict:
        """Make the totals again from the stream itself, and compare them with the table, item by item."""
        kinesis = self.clients["kinesis"]
        return verify(
            self.pipeline.describe(),
            read_stream(kinesis, STREAM, now_ms=wall_clock_ms()),
            read_table(self.clients["dynamodb"], TABLE),
            (msgspec.structs.asdict(line_of(record)) for record in self.quarantine().read()),
            ranges=shard_ranges(kinesis, STREAM),
            in_turn=True,
        )

    def items(self) -> list[dict[str, Any]]:
        """The table's items, newest window first."""
        found = read_table(self.clients["dynamodb"], TABLE)
        return sorted(found, key=lambda item: str(item["windowStart"]), reverse=True)

    def progress(self) -> Progress:
        """How far the run is."""
        reports = list(self.watch.reports)
        return Progress(
            self._produced,
            self.poller.status() if self.poller else [],
            folded=sum(report.clean for report in reports),
            flushed=sum(report.flushed_rows for report in reports),
            rejected=sum(sum(report.rejected.values()) for report in reports),
        )


def run(
    pipeline: Windows,
    options: Options,
    *,
    watch: Callable[[Demo, threading.Event], object] = lambda _, done: done.wait(),
    stop: threading.Event | None = None,
    before_verify: Callable[[Demo], object] = lambda _: None,
    hold: Callable[[Demo, Verdict], object] = lambda _demo, _verdict: None,
) -> tuple[Verdict, Demo]:
    """A whole run, with its verdict. `watch` shows it until its event is set; `stop` ends the producer early.

    The mapping goes on until `hold`, which is called with the verdict, returns.
    """
    stop = stop or threading.Event()
    with local_endpoint() as endpoint_url:
        demo = Demo(pipeline, options, endpoint_url)
        try:
            demo.start()
            _watched(demo, stop, watch)
            before_verify(demo)
            verdict = demo.verify()
            hold(demo, verdict)
        except BaseException:
            stop.set()
            demo.stop()
            raise
        demo.stop()
        return verdict, demo


def _watched(demo: Demo, stop: threading.Event, watch: Callable[[Demo, threading.Event], object]) -> None:
    """Produce and settle on a thread of their own; whatever goes wrong there is raised here."""
    done = threading.Event()
    trouble: list[BaseException] = []

    def work() -> None:
        try:
            demo.produce_until(stop)
            demo.settle()
        except BaseException as error:  # noqa: BLE001 - raised again on the main thread
            trouble.append(error)
        finally:
            done.set()

    worker = threading.Thread(target=work, name="demo", daemon=True)
    worker.start()
    watch(demo, done)
    worker.join()
    if trouble:
        raise trouble[0]
