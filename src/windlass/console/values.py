"""AWS' own forms as the console's values: a table's item, a stream's shards, a mapping's settings."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from windlass.console.source import Item, Setting, ShardView
from windlass.local.mapping_settings import MappingSettings
from windlass.local.poller import ShardStatus

FENCE = "applied#"
HASH_KEYS = 2**128
_OWN = ("windowStart", "windowEnd", "version")


def item_view(item: Mapping[str, Any], key: str, totals: Sequence[str] | None, every_ms: int, stream: str) -> Item:
    """An item of plain values. `totals` None: every other attribute that is a number.

    Shards of `stream` go by their ids, those of other streams by region, account, stream and id.
    """
    named = [name for name in item if name != key and name not in _OWN and not name.startswith(FENCE)]
    if totals is None:
        totals = [name for name in named if isinstance(item[name], int | Decimal)]
    start_ms = moment_ms(item.get("windowStart")) or 0
    fences = {name.removeprefix(FENCE): str(value) for name, value in item.items() if name.startswith(FENCE)}
    return Item(
        key=text_of(item.get(key, "")),
        window_start_ms=start_ms,
        window_end_ms=moment_ms(item.get("windowEnd")) or (start_ms + every_ms if start_ms else None),
        totals={name: text_of(item[name]) for name in totals if name in item},
        shards=_by_shard(fences, stream),
        others={name: text_of(item[name]) for name in named if name not in totals},
    )


def _by_shard(fences: Mapping[str, str], stream: str) -> dict[str, str]:
    """Under short names, unless two streams of that name in several places would share them."""
    short = {}
    for name, through in fences.items():
        source, _, shard = name.rpartition("/")
        short[shard if source.rpartition(":")[2] == stream else name] = through
    return short if len(short) == len(fences) else dict(fences)


def text_of(value: Any) -> str:
    """A value as people write it: a Decimal without exponent or trailing zeros."""
    if isinstance(value, Decimal):
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    return str(value)


def moment_ms(text: Any) -> int | None:
    """ISO-8601 text as milliseconds UTC; None for anything else."""
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except (TypeError, ValueError):
        return None


def kinesis_shards(kinesis: Any, stream: str) -> list[ShardView]:
    """A stream's shards, as ListShards gives them, by their ids."""
    listed: list[dict[str, Any]] = []
    request: dict[str, Any] = {"StreamName": stream}
    while True:
        answer = kinesis.list_shards(**request)
        listed += answer["Shards"]
        if not answer.get("NextToken"):
            return [_shard_view(shard) for shard in sorted(listed, key=lambda shard: str(shard["ShardId"]))]
        request = {"NextToken": answer["NextToken"]}


def _shard_view(shard: Mapping[str, Any]) -> ShardView:
    hash_keys = shard["HashKeyRange"]
    parents = (shard.get("ParentShardId"), shard.get("AdjacentParentShardId"))
    closed = "EndingSequenceNumber" in shard["SequenceNumberRange"]
    return ShardView(
        shard_id=shard["ShardId"],
        parents=tuple(parent for parent in parents if parent),
        low=int(hash_keys["StartingHashKey"]) / HASH_KEYS,
        high=(int(hash_keys["EndingHashKey"]) + 1) / HASH_KEYS,
        closed=closed,
        state="waiting" if parents[0] else "idle",
    )


def loop_figures(status: ShardStatus) -> dict[str, Any]:
    """What a shard's loop knows, by the names of `ShardView`."""
    counters = status.counters
    return {
        "window": (status.window.start_ms, status.window.end_ms) if status.window else None,
        "polled": counters.polled,
        "behind_ms": counters.behind_latest_ms,
        "iterator_age_ms": counters.iterator_age_ms,
        "invocations": counters.invocations,
        "errors": counters.errors,
        "trouble": status.trouble,
    }


def mapping_in_words(settings: MappingSettings) -> tuple[Setting, ...]:
    """What a mapping is told to do, under the names that the API has."""
    found = {
        "Batch size": f"{settings.batch_size:,} records",
        "Batching window": seconds(settings.batching_window_ms) if settings.batching_window_ms else "none",
        "Tumbling window": seconds(settings.window_ms) if settings.window_ms else "none",
        "Parallelization": f"{settings.parallelization} per shard",
        "Retries": "until it succeeds" if settings.retries_max is None else f"{settings.retries_max:,}",
        "Record age": "any" if settings.record_age_ms_max is None else seconds(settings.record_age_ms_max),
        "Bisect on error": "yes" if settings.bisect else "no",
        "Starts at": settings.start.kind,
    }
    return tuple(Setting(name, value) for name, value in found.items())


def seconds(ms: int) -> str:
    """A length of time in words."""
    return f"{ms / 1000:g} s"
