"""Handlers on seams in memory."""

from typing import Any

from windlass.core.aggregate import HashRange
from windlass.handler import Seams
from windlass.pipelines import Records, Windows
from windlass.quarantine import MemoryQuarantine
from windlass.shards import KnownShards
from windlass.sim.table import MemoryTable
from windlass.telemetry import Kept


def on_memory(pipeline: Windows | Records, ranges: dict[str, HashRange] | None = None, table: Any = None) -> Any:
    """The pipeline's handler and its seams, everything in memory."""
    seams = Seams(
        table or MemoryTable(pipeline.table_keys),
        MemoryQuarantine(),
        KnownShards(ranges),
        Kept(),
        sleep=lambda _: None,
        random=lambda: 0.0,
    )
    return pipeline.handler_on(lambda: seams), seams


def taxi() -> Any:
    """The taxi example's handler and its seams."""
    from windlass.apps import load_app

    return on_memory(load_app("examples/taxi/app.py:trips"))
