"""The console's answers: a source and what has been read of it, as values ready for the page.

One thread reads what is slow (table, quarantine) while somebody looks, and only then; a page that nobody has open
costs nothing. What cannot be read is told in `problems`, and the rest goes on.
"""

import base64
import json
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from windlass.console.index import Items, Pace, Page, RejectedRecords
from windlass.console.source import COUNTS, CallView, Item, Pipeline, Put, Source, SourceProblem
from windlass.console.values import text_of
from windlass.core.position import position, split
from windlass.core.rejected import Rejected
from windlass.core.window import Window
from windlass.quarantine import QuarantineProblem

LOOKED_AT_MS = 15_000
"""How long after a question somebody is taken to be looking."""
RATE_MS = 10_000
CALLS_MAX = 2_000
SPANS_MS = (60_000, 300_000, 900_000, 3_600_000, 10_800_000, 86_400_000)
STEPS = 180
PUTS_KEPT = 50
DATA_SHOWN_MAX = 20_000
RECORD_BYTES_MAX = 1024 * 1024


class Desk:
    """Answers what the page asks. Safe to use from several threads."""

    def __init__(self, source: Source, *, timer: Callable[[], float] = time.monotonic) -> None:
        self.source = source
        self.items = Items(source.items)
        self.rejected = RejectedRecords(source.quarantine)
        self._timer = timer
        self._problems: dict[str, str] = {}
        self._puts: OrderedDict[str, tuple[Put, bytes]] = OrderedDict()
        self._looked_ms = -LOOKED_AT_MS
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._told: tuple[float, bytes] = (-1.0, b"")
        self._thread = threading.Thread(target=self._keep_reading, name="console", daemon=True)

    # --- reading on ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def looked(self) -> None:
        """Somebody has asked something."""
        self._looked_ms = self._ms()

    def _ms(self) -> int:
        return int(self._timer() * 1000)

    def _keep_reading(self) -> None:
        paced = [
            ("table", self.items.refresh, Pace(self.source.items_pause_ms, times=8)),
            ("quarantine", self.rejected.refresh, Pace(700, times=1)),
        ]
        while not self._ending.wait(0.1):
            if self._ms() - self._looked_ms > LOOKED_AT_MS:
                continue
            for name, refresh, pace in paced:
                began_ms = self._ms()
                if pace.is_due(began_ms):
                    self._try(name, refresh, None)
                    pace.done(began_ms, self._ms())

    def _try(self, name: str, ask: Callable[[], Any], otherwise: Any) -> Any:
        try:
            answer = ask()
        except (SourceProblem, QuarantineProblem) as problem:
            self._problems[name] = str(problem)
            return otherwise
        self._problems.pop(name, None)
        return answer

    # --- answers -------------------------------------------------------------------------------------------------

    def tick(self) -> bytes:
        """What every open page is told every second, as JSON; made once for all of them."""
        with self._lock:
            made, text = self._told
            if made < 0 or self._timer() - made > 0.5:
                text = msgspec.json.encode(self._overview())
                self._told = (self._timer(), text)
            return text

    def _overview(self) -> dict[str, Any]:
        now_ms = self.source.now_ms()
        calls: list[CallView] = self._try("calls", lambda: self.source.calls(1), [])
        failures = self._try("failures", self.source.failures, [])
        return {
            "now_ms": now_ms,
            "shards": self._try("shards", self.source.shards, []),
            "rates": self._try("rates", lambda: self._rates(now_ms), {}),
            "items": self.items.count,
            "items_whole": self.items.is_whole,
            "keys": self.items.keys("", 0).total,
            "rejected": self.rejected.count,
            "failures": len(failures or []),
            "last_error": self._last_error(),
            "revision": {
                "pipeline": self._try("pipeline", self._pipeline_revision, 0),
                "items": self.items.revision,
                "calls": calls[0].number if calls else 0,
                "rejected": self.rejected.revision,
            },
            "problems": sorted(self._problems.values()),
        }

    def _rates(self, now_ms: int) -> dict[str, float]:
        """Per second, over the last whole steps."""
        end_ms = now_ms // 1000 * 1000
        series = self.source.series(end_ms - RATE_MS, end_ms, 1000)
        seconds = series.step_ms * max(1, len(series.at_ms)) / 1000
        return {name: sum(value or 0 for value in series.values[name]) / seconds for name in COUNTS}

    def _pipeline_revision(self) -> int:
        """Changes when the page has to be drawn anew."""
        drawn = msgspec.structs.replace(self.source.pipeline(), mapping=(), runtime=())
        return zlib.crc32(msgspec.json.encode(drawn))

    def _last_error(self) -> int:
        calls: list[CallView] = self._try("calls", lambda: self.source.calls(CALLS_MAX), [])
        return next((call.started_ms for call in calls if call.error_type), 0)

    def pipeline(self) -> Pipeline:
        return self.source.pipeline()

    def chart(self, total: str, keys: list[str], top: int, span: int) -> dict[str, Any]:
        return self.items.chart(total, keys, top, span)

    def item_page(self, text: str, offset: int, limit: int) -> Page:
        page = self.items.page(text, offset, limit)
        if page.total == 0 and text and not self.items.is_whole:
            rows = self.source.items_of(text, offset + limit)
            return Page(len(rows), offset, rows[offset:])
        return page

    def call_page(self, text: str, only: str, offset: int, limit: int) -> Page:
        """Calls whose lines, shard or error contain `text`; `only` is "", errors, final or notable."""
        rows = [call for call in self.source.calls(CALLS_MAX) if _is_of(call, only)]
        if text:
            wanted = text.lower()
            rows = [call for call in rows if wanted in _searched(call)]
        return Page(len(rows), offset, rows[offset : offset + limit])

    def series(self, span_ms: int) -> dict[str, Any]:
        now_ms = self.source.now_ms()
        span_ms = min(SPANS_MS, key=lambda known: abs(known - span_ms))
        step_ms = max(1000, -(-span_ms // STEPS) // 1000 * 1000)
        end_ms = now_ms // step_ms * step_ms  # the step that is going on would look like a dip
        return msgspec.structs.asdict(self.source.series(end_ms - span_ms, end_ms, step_ms))

    def rejected_page(self, reason: str, text: str, offset: int, limit: int) -> dict[str, Any]:
        page = self.rejected.page(reason, text, offset, limit)
        return {
            "total": page.total,
            "offset": offset,
            "rows": [rejected_view(record) for record in page.rows],
            "reasons": self.rejected.reasons(),
            "whole": self.rejected.is_whole,
        }

    # --- a record of one's own -----------------------------------------------------------------------------------

    def put(self, partition_key: str, data: bytes) -> Put:
        """Raises SourceProblem."""
        if not 1 <= len(partition_key) <= 256:
            msg = f"a partition key has 1 to 256 characters; found {len(partition_key)}"
            raise SourceProblem(msg)
        if not 1 <= len(data) <= RECORD_BYTES_MAX:
            msg = f"a record has 1 byte to 1 MiB; found {len(data)} bytes"
            raise SourceProblem(msg)
        put = self.source.put(partition_key, data)
        self._puts[put.sequence] = (put, data)
        while len(self._puts) > PUTS_KEPT:
            self._puts.popitem(last=False)
        return put

    def whereabouts(self, sequence: str) -> dict[str, Any]:
        """How far a record has come that was put here: put, read, folded, settled, or rejected."""
        if sequence not in self._puts:
            msg = "that record was not put here, or long ago; put another"
            raise SourceProblem(msg)
        put, data = self._puts[sequence]
        refused = self.rejected.find(put.shard_id, put.sequence)
        if refused is not None:
            return {"stage": "rejected", "rejected": rejected_view(refused)}
        pipeline = self.source.pipeline()
        window = Window.of(put.at_ms, pipeline.every_ms) if pipeline.every_ms else Window(0, 1)
        item = self._item_of(put, data, pipeline, window)
        if item is not None:
            return {"stage": "settled", "item": item}
        call = self._call_of(put)
        if call is None:
            return {"stage": "put"}
        return {"stage": "failed" if call.error_type else "folded", "call": call}

    def _item_of(self, put: Put, data: bytes, pipeline: Pipeline, window: Window) -> Item | None:
        at = position(put.sequence)
        since_ms = window.start_ms - pipeline.every_ms
        return self.items.covering(put.shard_id, at, key_in(data, pipeline), since_ms)

    def _call_of(self, put: Put) -> CallView | None:
        at = position(put.sequence)
        for call in reversed(self.source.calls(CALLS_MAX)):
            came_through = call.last and call.shard_id == put.shard_id and position(call.last) >= at
            if came_through and not (call.error_type and self._repeated(call)):
                return call
        return None

    def _repeated(self, failed: CallView) -> bool:
        return any(
            call.shard_id == failed.shard_id and call.number > failed.number and not call.error_type and call.last
            for call in self.source.calls(CALLS_MAX)
        )


def rejected_view(record: Rejected) -> dict[str, Any]:
    """A rejected record for the page. `json` says whether its text is JSON."""
    sequence, sub = split(record.position)
    text = record.data[:DATA_SHOWN_MAX].decode("utf-8", "backslashreplace")
    return {
        "reason": record.reason.value,
        "meaning": record.reason.meaning,
        "detail": record.detail.encode("utf-8", "backslashreplace").decode(),
        "shard_id": record.shard,
        "sequence": sequence,
        "sub": sub,
        "arrival_ms": record.arrival_ms,
        "bytes": len(record.data),
        "text": text,
        "json": _is_json(record.data),
        "base64": base64.b64encode(record.data[:DATA_SHOWN_MAX]).decode(),
    }


def key_in(data: bytes, pipeline: Pipeline) -> str | None:
    """The key of a record, as the table has it; None where it cannot be told."""
    path = pipeline.key_path or (pipeline.key_attribute,)
    try:
        value = json.loads(data)
        for part in path:
            value = value[part]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return text_of(value).strip() if isinstance(value, str | int | float) else None


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _is_of(call: CallView, only: str) -> bool:
    if only == "errors":
        return bool(call.error_type)
    if only == "final":
        return call.kind == "final"
    if only == "notable":
        return bool(call.error_type or call.kind in ("final", "early") or call.figures.get("rejected"))
    return True


def _searched(call: CallView) -> str:
    return "\n".join((call.request_id, call.shard_id, call.error_type, call.error_message, *call.lines)).lower()
