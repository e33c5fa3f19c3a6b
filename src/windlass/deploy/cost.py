"""What a pipeline costs a month, from its load and settings: shards, calls, GB-seconds, write units, dollars.

An estimate with its assumptions in the open; prices are data with a date (`prices.json`).
- Load is even: keys, shards and time get equal parts. Real load is not; take a rate from the busy hours.
- A shard is called once per batching window (at least once a second) while it has records, more often where batches
  fill up, and once more at each window's end.
- A call takes CALL_MS besides its records. At less than 1,769 MB a function has that share of a core: "Configure Lambda
  function memory". The rate of records per core is measured (`make bench`) or given.
- A flush writes one item per key, window and shard that had the key. An item carries a fence per shard, about
  FENCE_BYTES, and DynamoDB charges a write by the item's whole size in KB, rounded up: the more shards share a key, the
  dearer each of its writes. "Read and write operations", Amazon DynamoDB Developer Guide.
- Kinesis rounds records up to 1 KB on demand and to 25 KB put units with shards; an aggregate is one record.
"""

import json
import math
from importlib import resources
from typing import Any

import msgspec

CALL_MS = 4.0
"""Besides the records: reading the event's frame, logging the report, answering. Assumed, warm."""
WRITE_MS = 6.0
"""One write to DynamoDB, of which 16 go at a time. Assumed."""
CORE_MB = 1769
FENCE_BYTES = 132  # applied#us-east-1:123456789012:input-stream/shardId-000000000000 and a position
ITEM_BYTES = 200  # keys, window, a few totals
BATCH_BYTES_MAX = 6 * 1024 * 1024
EVENT_BYTES = 620  # what an event says about a record besides its data
LOG_BYTES = 1100  # START, END, REPORT, metrics and report of a call
METRICS, ALARMS = 20, 9
SHARD_BYTES_S, SHARD_RECORDS_S = 1024 * 1024, 1000  # "Quotas and limits", Amazon Kinesis Data Streams
ON_DEMAND_SHARDS = 4  # what a new on-demand stream begins with, ibid.
CARRIER_BYTES_MAX = 1024 * 1024
EXTENDED_HOURS_MAX = 168  # "Amazon Kinesis Data Streams pricing": what is kept beyond seven days has a price of its own
ITEM_WRITE_UNITS_S = 1000  # per partition, so also per item: "Best practices for partition keys"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be carried. `per_aggregate`: user records in one Kinesis record, 1 without aggregation."""

    records_s: float
    record_bytes: int = 422
    keys: int = 2
    window_s: int = 30
    per_aggregate: int = 1
    shards: int | None = None
    on_demand: bool = True
    retention_hours: int = 24
    core_records_s: float = 500_000.0
    memory_mb: int = 1024
    arch: str = "arm64"
    batch_size: int = 1000
    batching_window_s: float = 1.0
    kept_days: float = 365.0


class Prices(msgspec.Struct, frozen=True):
    """The price table."""

    region: str
    as_of: str
    source: str
    hours_a_month: int
    usd: dict[str, float]


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What it comes to. Per second unless the name says otherwise; `usd` by line, a month."""

    shards: int
    shards_needed: int
    calls_s: float
    call_ms: float
    busy: float
    gb_seconds_month: float
    writes_s: float
    write_units_s: float
    item_bytes: int
    hottest_item_units: int
    hottest_item_s: float
    usd: dict[str, float]
    notes: list[str]

    @property
    def usd_month(self) -> float:
        """All lines."""
        return sum(self.usd.values())


def prices() -> Prices:
    """The table that comes with this package."""
    text = resources.files("windlass.deploy").joinpath("prices.json").read_bytes()
    return msgspec.json.decode(text, type=Prices)


def estimate(load: Load, table: Prices) -> Estimate:
    """Work it out."""
    stream_records_s = load.records_s / load.per_aggregate
    carrier_bytes = load.record_bytes * load.per_aggregate
    needed = max(
        1,
        math.ceil(stream_records_s / SHARD_RECORDS_S),
        math.ceil(stream_records_s * carrier_bytes / SHARD_BYTES_S),
    )
    shards = load.shards or max(needed, ON_DEMAND_SHARDS if load.on_demand else 1)
    batch = _batch(load, stream_records_s / shards, carrier_bytes)
    calls_s = shards * (batch[1] + 1 / load.window_s)
    writes_s, units_s, item_bytes, hottest = _writes(load, shards)
    core = min(1.0, load.memory_mb / CORE_MB)
    flush_ms = WRITE_MS * math.ceil(writes_s * load.window_s / shards / 16)
    record_ms = load.records_s / load.core_records_s / core * 1000
    busy_ms_s = calls_s * CALL_MS / core + record_ms + shards / load.window_s * flush_ms
    seconds = table.hours_a_month * 3600
    gb_seconds = busy_ms_s / 1000 * load.memory_mb / 1024 * seconds
    found = Estimate(
        shards=shards,
        shards_needed=needed,
        calls_s=calls_s,
        call_ms=busy_ms_s / calls_s,
        busy=busy_ms_s / 1000 / shards,
        gb_seconds_month=gb_seconds,
        writes_s=writes_s,
        write_units_s=units_s,
        item_bytes=item_bytes,
        hottest_item_units=hottest,
        hottest_item_s=hottest / ITEM_WRITE_UNITS_S,
        usd=_usd(load, table, shards, stream_records_s, carrier_bytes, calls_s, gb_seconds, units_s, writes_s),
        notes=[],
    )
    return msgspec.structs.replace(found, notes=_notes(load, found))


def _batch(load: Load, shard_records_s: float, carrier_bytes: int) -> tuple[float, float]:
    """Stream records in a call, and calls a second of one shard."""
    event_bytes = EVENT_BYTES + carrier_bytes * 4 / 3
    most = min(load.batch_size, BATCH_BYTES_MAX / event_bytes)
    every_s = max(1.0, load.batching_window_s)
    gathered = shard_records_s * every_s
    if gathered >= most:
        return most, shard_records_s / most
    return gathered, min(shard_records_s, 1 / every_s)


def _writes(load: Load, shards: int) -> tuple[float, float, int, int]:
    """Writes and write units a second, the largest item's bytes, and the units that one item takes per window."""
    per_window = load.records_s * load.window_s
    active = min(load.keys, per_window)
    each = per_window / max(1.0, active)  # records of a key in a window
    reached = shards * (1 - (1 - 1 / shards) ** each) if shards > 1 else 1.0  # shards that see a key
    sharing = max(1, round(reached))
    units = sum(math.ceil((ITEM_BYTES + FENCE_BYTES * place) / 1024) for place in range(1, sharing + 1))
    writes_s = active * reached / load.window_s
    return writes_s, writes_s * units / sharing, ITEM_BYTES + FENCE_BYTES * sharing, units


def _usd(
    load: Load,
    table: Prices,
    shards: int,
    stream_records_s: float,
    carrier_bytes: int,
    calls_s: float,
    gb_seconds: float,
    units_s: float,
    writes_s: float,
) -> dict[str, float]:
    usd, hours = table.usd, table.hours_a_month
    seconds = hours * 3600
    gb_in = stream_records_s * math.ceil(carrier_bytes / 1024) * 1024 / 1e9 * seconds
    extended_hours = max(0, min(load.retention_hours, EXTENDED_HOURS_MAX) - 24)
    long_hours = max(0, load.retention_hours - EXTENDED_HOURS_MAX)
    if load.on_demand:
        kinesis = hours * usd["kinesis_on_demand_stream_hour"]
        kinesis += gb_in * (usd["kinesis_on_demand_gb_in"] + usd["kinesis_on_demand_gb_out"])
        kinesis += gb_in / hours * extended_hours * usd["kinesis_extended_gb_month"]
    else:
        put_units = stream_records_s * math.ceil(carrier_bytes / 25_600)
        kinesis = shards * hours * usd["kinesis_shard_hour"]
        kinesis += put_units * seconds / 1e6 * usd["kinesis_million_put_units"]
        kinesis += shards * hours * usd["kinesis_extended_shard_hour"] if extended_hours else 0
    kinesis += gb_in / hours * long_hours * usd["kinesis_long_term_gb_month"]
    items = min(load.keys, load.records_s * load.window_s) / load.window_s * 86_400 * load.kept_days
    item_bytes = ITEM_BYTES + FENCE_BYTES * max(1, round(writes_s * load.window_s / max(1, load.keys)))
    kept_gb = items * item_bytes / 1e9
    watching = METRICS * usd["metric_month"] + ALARMS * usd["alarm_month"] + usd["dashboard_month"]
    return {
        "Kinesis": kinesis,
        "Lambda calls": calls_s * seconds / 1e6 * usd["lambda_million_calls"],
        "Lambda time": gb_seconds * usd[f"lambda_gb_second_{load.arch}"],
        "DynamoDB writes": units_s * seconds / 1e6 * usd["dynamodb_million_write_units"],
        f"DynamoDB items of {load.kept_days:g} days": kept_gb
        * (usd["dynamodb_gb_month"] + usd["dynamodb_backup_gb_month"]),
        "Log": calls_s * seconds * LOG_BYTES / 1e9 * usd["logs_gb_in"],
        "Metrics, alarms, dashboard": watching,
    }


def _notes(load: Load, found: Estimate) -> list[str]:
    """What will hurt before it costs."""
    notes = []
    if found.shards < found.shards_needed:
        notes.append(
            f"{found.shards} shards take less than this load: it needs {found.shards_needed} "
            f"({SHARD_RECORDS_S} records and 1 MiB a second each)"
        )
    if load.record_bytes * load.per_aggregate > CARRIER_BYTES_MAX:
        notes.append(
            f"a Kinesis record would be {load.record_bytes * load.per_aggregate:,} bytes, and a stream takes 1 MiB: "
            "put fewer records in an aggregate, or smaller ones"
        )
    if found.busy > 0.8:
        notes.append(
            f"a shard keeps its function busy {found.busy:.0%} of the time and one call runs per shard: "
            "take more memory or more shards"
        )
    if found.hottest_item_s > load.window_s / 2:
        notes.append(
            f"each item takes {found.hottest_item_units:,} write units per window, and DynamoDB gives one item "
            f"{ITEM_WRITE_UNITS_S} a second: {found.hottest_item_s:.0f} s of a window of {load.window_s} s. Put the "
            "key's records on fewer shards (partition key = the key), or take longer windows"
        )
    elif found.item_bytes > 1024:
        notes.append(
            f"an item carries a fence per shard and grows to {found.item_bytes:,} bytes: its last writes cost "
            f"{math.ceil(found.item_bytes / 1024)} units each. With partition key = the key it stays small"
        )
    if found.shards > 1000:
        notes.append("more than 1,000 calls at a time: raise the account's Lambda concurrency first")
    if load.per_aggregate == 1 and load.record_bytes < 700 and load.records_s > 1000:
        notes.append(
            "small records cost by the kilobyte or the put: aggregate them (KPL) and Kinesis costs a part of it"
        )
    return notes


def to_dict(load: Load, found: Estimate, table: Prices) -> dict[str, Any]:
    """For JSON."""
    plain: dict[str, Any] = json.loads(msgspec.json.encode(found))
    return {
        "load": msgspec.to_builtins(load),
        **plain,
        "usd_month": round(found.usd_month, 2),
        "prices": {"region": table.region, "as_of": table.as_of, "source": table.source},
    }


def measure_core_records_s(load: Load, clock: Any) -> float:
    """This machine's own rate, from an event's bytes to the answer's, on trips of the given size. About a second."""
    from windlass.deploy.measure import core_records_s

    return core_records_s(load.record_bytes, load.per_aggregate, clock)
