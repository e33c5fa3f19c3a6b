"""The demo as a source: its poller, its watch, its table and its quarantine, all in this process."""

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from windlass.console.source import (
    COUNTS,
    CallView,
    FailureView,
    Item,
    Pipeline,
    Put,
    Series,
    Setting,
    ShardView,
    plainly,
)
from windlass.console.values import item_view, kinesis_shards, loop_figures, mapping_in_words
from windlass.core.window import Window
from windlass.local.demo import FUNCTION_ARN, QUARANTINE, REGION, STREAM, TABLE, Demo
from windlass.local.meter import Bucket
from windlass.local.poller import ShardStatus, wall_clock_ms
from windlass.local.watch import WatchedCall
from windlass.quarantine import Browsable
from windlass.verify.sources import read_table

BLOCKED_AFTER = 2
"""Failed calls of one batch in a row, after which its shard is called blocked rather than unlucky."""


class DemoSource:
    """Looks at a demo that has been started."""

    items_pause_ms = 700

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self.quarantine: Browsable = demo.quarantine()
        self._every_ms = demo.pipeline.plan.every_s * 1000

    def now_ms(self) -> int:
        return wall_clock_ms()

    def pipeline(self) -> Pipeline:
        demo, plan = self._demo, self._demo.pipeline.plan
        described = demo.pipeline.describe()
        settings = demo.poller.settings if demo.poller else None
        return Pipeline(
            title=plan.name,
            stream=STREAM,
            function=FUNCTION_ARN.rpartition(":")[2],
            table=TABLE,
            quarantine=QUARANTINE,
            endpoint=demo.endpoint_url,
            region=REGION,
            every_ms=self._every_ms,
            key_attribute=plan.folder.key_attribute,
            key_path=tuple(described["key"][0]) if len(described["key"]) == 1 else (),
            totals=tuple(column.attribute for column in plan.folder.columns),
            keeps_windows=demo.pipeline.table_keys.keeps_windows,
            mapping=mapping_in_words(settings) if settings else (),
            runtime=(Setting("Runs", "in this process"),),
            examples=examples(described),
        )

    def shards(self) -> list[ShardView]:
        poller = self._demo.poller
        held = {status.shard_id: status for status in poller.status()} if poller else {}
        calls = list(self._demo.watch.calls)
        with plainly("the shards", "used"):
            listed = kinesis_shards(self._demo.clients["kinesis"], STREAM)
        return [
            status_view(shard, held[shard.shard_id], calls) if shard.shard_id in held else shard for shard in listed
        ]

    def items(self) -> Iterator[Item]:
        with plainly(f"table {TABLE}", "used"):
            for item in read_table(self._demo.clients["dynamodb"], TABLE):
                yield self._item(item)

    def items_of(self, key: str, limit: int) -> list[Item]:
        found = [item for item in self.items() if item.key == key]
        return sorted(found, key=lambda item: -item.window_start_ms)[:limit]

    def _item(self, item: dict[str, Any]) -> Item:
        folder = self._demo.pipeline.plan.folder
        totals = [column.attribute for column in folder.columns]
        return item_view(item, folder.key_attribute, totals, self._every_ms, STREAM)

    def calls(self, limit: int) -> list[CallView]:
        kept = list(self._demo.watch.calls)[-limit:]
        return [call_view(call) for call in reversed(kept)]

    def series(self, from_ms: int, to_ms: int, step_ms: int) -> Series:
        step_ms = max(1000, step_ms // 1000 * 1000)
        from_ms = from_ms // step_ms * step_ms
        steps = self._demo.watch.meter.read(from_ms, to_ms, step_ms)
        at_ms = list(range(from_ms, to_ms, step_ms))
        began_ms = self._demo.watch.began_ms
        known = [step if at + step_ms > began_ms else None for at, step in zip(at_ms, steps, strict=True)]
        return Series(step_ms, at_ms, columns(known))

    def failures(self) -> list[FailureView]:
        return []  # the demo's mapping tries a batch again until it succeeds, and gives none up

    def put(self, partition_key: str, data: bytes) -> Put:
        with plainly(f"stream {STREAM}", "used"):
            answer = self._demo.clients["kinesis"].put_record(StreamName=STREAM, PartitionKey=partition_key, Data=data)
        return Put(answer["ShardId"], answer["SequenceNumber"], self.now_ms())


def status_view(shard: ShardView, status: ShardStatus, calls: list[WatchedCall]) -> ShardView:
    """A listed shard with what its loop says, and what its calls have folded into the open window."""
    folded, state_bytes = _in_window(status.shard_id, status.window, calls)
    return msgspec.structs.replace(
        shard,
        state=_state(status, calls),
        folded=folded,
        state_bytes=state_bytes,
        **loop_figures(status),
    )


def _state(status: ShardStatus, calls: list[WatchedCall]) -> str:
    if status.done:
        return "done"
    last = next((call for call in reversed(calls) if call.shard_id == status.shard_id), None)
    if status.trouble and last is not None and last.attempt >= BLOCKED_AFTER:
        return "blocked"
    return "reading"


def _in_window(shard_id: str, window: Window | None, calls: list[WatchedCall]) -> tuple[int | None, int | None]:
    if window is None:
        return None, None
    folded, state_bytes = 0, None
    for call in reversed(calls):
        if call.shard_id != shard_id:
            continue
        if call.window_end_ms is not None and call.window_end_ms < window.start_ms:
            break
        if call.window_start_ms != window.start_ms or call.report is None:
            continue
        folded += 0 if call.report.failed else call.report.clean
        state_bytes = call.report.state_bytes if state_bytes is None else state_bytes
    return folded, state_bytes


def call_view(call: WatchedCall) -> CallView:
    """A call that was watched, for the page."""
    window = (call.window_start_ms, call.window_end_ms) if call.window_start_ms is not None else None
    report = call.report
    figures: dict[str, Any] = {}
    if report is not None:
        named = ("received", "clean", "late", "duplicates", "rejected", "flushed_rows", "skipped_flushes", "throttled")
        figures = {name: getattr(report, name) for name in named if getattr(report, name)}
        figures |= {"state_bytes": report.state_bytes} if report.state_bytes else {}
    return CallView(
        number=call.number,
        request_id=call.request_id,
        started_ms=call.started_ms,
        duration_ms=call.duration_ms,
        shard_id=call.shard_id,
        kind=call.kind,
        window=window,  # type: ignore[arg-type]  # both ends or none
        records=call.records,
        attempt=call.attempt,
        error_type=call.error_type,
        error_message=call.error_message,
        last=call.last,
        figures=figures,
        lines=call.lines,
    )


def columns(steps: Sequence[dict[str, Bucket] | None]) -> dict[str, list[float | None]]:
    """A meter's steps as the source's series; None is a step of which nothing is known."""
    found: dict[str, list[float | None]] = {
        name: [None if step is None else step[name].total if name in step else 0 for step in steps] for name in COUNTS
    }
    duration = [(step or {}).get("duration") for step in steps]
    age = [(step or {}).get("iterator_age") for step in steps]
    return found | {
        "duration_min": [bucket.least if bucket else None for bucket in duration],
        "duration_avg": [bucket.total / bucket.times if bucket else None for bucket in duration],
        "duration_max": [bucket.greatest if bucket else None for bucket in duration],
        "iterator_age": [bucket.greatest if bucket else None for bucket in age],
    }


def examples(described: dict[str, Any]) -> dict[str, str]:
    """Records to put, made from the declaration: a clean one, and one for each of three reasons."""
    clean: dict[str, Any] = {}
    for field in described["fields"]:
        _place(clean, field["path"], _example(field))
    first = described["fields"][0]["path"]
    missing = json.loads(json.dumps(clean))
    _drop(missing, first)
    wrong = json.loads(json.dumps(clean))
    _place(wrong, first, "not a number" if _is_number(described["fields"][0]) else 17)
    text = json.dumps(clean)
    return {"clean": text, "missing field": json.dumps(missing), "wrong type": json.dumps(wrong), "not JSON": text[:-1]}


def _is_number(field: dict[str, Any]) -> bool:
    return field["type"] in ("int", "float", "decimal")


def _example(field: dict[str, Any]) -> Any:
    if field["choices"]:
        return field["choices"][0]
    if _is_number(field):
        low = field["low"]
        return 1 if low is None or Decimal(str(low)) <= 1 else int(Decimal(str(low)))
    return {"bool": True}.get(field["type"], "a" * (field["min_length"] or 1))


def _place(record: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        record = record.setdefault(part, {})
    record[path[-1]] = value


def _drop(record: dict[str, Any], path: list[str]) -> None:
    for part in path[:-1]:
        record = record[part]
    del record[path[-1]]
