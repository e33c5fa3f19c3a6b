"""A source for the console's tests whose every value the test decides."""

import threading
from collections.abc import Iterator

from windlass.console.source import (
    COUNTS,
    MEASURES,
    CallView,
    FailureView,
    Item,
    Pipeline,
    Put,
    Series,
    Setting,
    ShardView,
    SourceProblem,
)
from windlass.core.position import position
from windlass.core.rejected import Reason, Rejected
from windlass.quarantine import MemoryQuarantine

NOW_MS = 1_795_430_400_000
WINDOW_MS = 30_000
SHARD = "shardId-000000000000"


class MadeUp:
    """Holds still. `word` is put wherever a text can come from a record, a function or a name."""

    items_pause_ms = 700

    def __init__(self, *, items: list[Item] | None = None, word: str = "word") -> None:
        self.word = word
        self.made = items if items is not None else [item(word, 0, passenger=word)]
        self.quarantine = MemoryQuarantine()
        self.put_records: list[tuple[str, bytes]] = []
        self.problem = ""
        self.gone = ""
        self.lock = threading.Lock()

    def now_ms(self) -> int:
        return NOW_MS

    def pipeline(self) -> Pipeline:
        if self.gone:
            raise SourceProblem(self.gone)
        word = self.word
        return Pipeline(
            title=word,
            stream=word,
            function=word,
            table=word,
            quarantine=word,
            on_failure=word,
            endpoint=word,
            region=word,
            every_ms=WINDOW_MS,
            key_attribute="key",
            key_path=("key",),
            totals=("passenger",),
            mapping=(Setting(word, word),),
            runtime=(Setting(word, word),),
            examples={"clean": '{"key": 1}'},
        )

    def shards(self) -> list[ShardView]:
        if self.problem:
            raise SourceProblem(self.problem)
        window = (NOW_MS - 12_000, NOW_MS + 18_000)
        return [
            ShardView(
                shard_id=SHARD,
                parents=(self.word,),
                low=0.0,
                high=1.0,
                closed=False,
                state="blocked",
                window=window,
                folded=3,
                state_bytes=10,
                errors=3,
                trouble=self.word,
            )
        ]

    def items(self) -> Iterator[Item]:
        yield from self.made

    def items_of(self, key: str, limit: int) -> list[Item]:
        return [item for item in self.made if item.key == key][:limit]

    def calls(self, limit: int) -> list[CallView]:
        call = CallView(
            number=1,
            request_id="r-1",
            started_ms=NOW_MS - 1000,
            duration_ms=12.5,
            shard_id=SHARD,
            kind="final",
            window=(NOW_MS - WINDOW_MS, NOW_MS),
            records=7,
            attempt=2,
            error_type=self.word,
            error_message=self.word,
            figures={"received": 7},
            lines=(f"START {self.word}", self.word, "REPORT"),
        )
        return [call][:limit]

    def series(self, from_ms: int, to_ms: int, step_ms: int) -> Series:
        at_ms = list(range(from_ms, to_ms, step_ms))
        return Series(step_ms, at_ms, {name: [1.0] * len(at_ms) for name in (*COUNTS, *MEASURES)})

    def failures(self) -> list[FailureView]:
        return [
            FailureView(
                at_ms=NOW_MS,
                shard_id=SHARD,
                condition=self.word,
                records=2,
                first="1",
                last="2",
                destination=self.word,
                refused=self.word,
            )
        ]

    def put(self, partition_key: str, data: bytes) -> Put:
        with self.lock:
            self.put_records.append((partition_key, data))
            return Put(SHARD, str(100 + len(self.put_records)), NOW_MS)


def item(key: str, windows_ago: int, *, passenger: object = 1, through: str = "1") -> Item:
    start_ms = NOW_MS - (windows_ago + 1) * WINDOW_MS
    return Item(key, start_ms, start_ms + WINDOW_MS, {"passenger": str(passenger)}, {SHARD: position(through)})


def refused(sequence: int, reason: Reason = Reason.NOT_JSON, detail: str = "why", data: bytes = b"{") -> Rejected:
    return Rejected(reason, detail, SHARD, position(str(sequence)), NOW_MS + sequence, data)
