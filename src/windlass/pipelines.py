"""The public declarations: `Windows` and `Records`. Each is a plan of the core plus the names of what it writes to."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cached_property
from typing import Any, Literal, get_args

from windlass.core.fold import STATE_BYTES_MAX, KeyPart
from windlass.core.pipeline import Aggregates, compile_records, compile_windows
from windlass.core.schema import DeclarationError, Field, Record
from windlass.core.totals import Count, Total
from windlass.delivery import DeliveryPolicy
from windlass.handler import RecordsHandler, Seams, WindowsHandler
from windlass.quarantine import QuarantineProblem, open_quarantine
from windlass.settings import Env, env, resolve
from windlass.shards import KinesisShards
from windlass.table import DynamoTable, KeyAttribute, TableKeys
from windlass.telemetry import PowertoolsTelemetry

Layout = Literal["history", "latest"]

WRITERS = 16
"""Item writes under way at once. A write is mostly waiting, so more than the function has cores."""

QUARANTINE = env("WINDLASS_QUARANTINE")
_QUARANTINE_PURPOSE = (
    "it says where records go that are not clean. Set it to s3://bucket/prefix or to a folder; or to none, which "
    "drops them (they are still counted)"
)
_DYNAMO_TYPES: dict[str, Literal["N", "S"]] = {"int": "N", "decimal": "N", "str": "S"}


class Windows:
    """Totals per key and tumbling window, merged exactly into DynamoDB.

    `key` is a field name, or several: dotted for nested records. `every` is the window, 1 to 900 whole seconds; set
    the same on the event source mapping. `totals` maps attribute names to Count, Sum, Mean, Min or Max. `table` is a
    table name or `env("NAME")`.

    layout="history" keeps an item per key and window (partition key: the key; sort key: windowStart, text);
    layout="latest" keeps the newest window per key (partition key only). `coerce` takes numbers written as strings.
    `aggregates` says what becomes of records in KPL aggregates whose key belongs to another shard: "keep_insiders"
    (default) leaves them to the KPL, which sends them again; "keep_all" is for producers that never do.

    Several streams may add to one table, as when producers move to another stream: items tell their shards apart by
    region, account, stream and id. A stream is read into a table once: what a second declaration would add to the same
    items passes for already applied. A quarantine tells shards apart by id alone: give each stream a prefix of its own.
    And verifying reads one stream, so it can only check a table that one stream adds to.

    Raises DeclarationError when the declaration cannot work.
    """

    def __init__(
        self,
        record: type[Record],
        *,
        key: str | Sequence[str],
        every: timedelta,
        totals: Mapping[str, Total],
        table: str | Env,
        layout: Layout = "history",
        quarantine: str | Env = QUARANTINE,
        coerce: bool = False,
        aggregates: Aggregates = "keep_insiders",
        delivery: DeliveryPolicy | None = None,
        state_bytes_max: int = STATE_BYTES_MAX,
    ) -> None:
        _one_of("layout", layout, get_args(Layout))
        _one_of("aggregates", aggregates, get_args(Aggregates))
        _is_a("every", every, timedelta, "a timedelta, like timedelta(seconds=30)")
        _is_a("coerce", coerce, bool, "True or False")
        _is_a("totals", totals, Mapping, 'names and totals, like {"trips": Count()}')
        _check_seams(table, quarantine, delivery)
        self._declared: dict[str, Any] = {
            "key": key,
            "every": every,
            "totals": totals,
            "table": table,
            "layout": layout,
            "quarantine": quarantine,
            "coerce": coerce,
            "aggregates": aggregates,
            "delivery": delivery,
            "state_bytes_max": state_bytes_max,
        }
        self.plan = compile_windows(
            record,
            key=key,
            every_s=every.total_seconds(),
            totals=totals,
            coerce=coerce,
            state_bytes_max=state_bytes_max,
        )
        self.record, self.totals, self.table, self.quarantine = record, dict(totals), table, quarantine
        self.layout, self.coerce, self.aggregates = layout, coerce, aggregates
        self.delivery = delivery or DeliveryPolicy()

    @cached_property
    def handler(self) -> WindowsHandler:
        """The Lambda function: `handler = trips.handler` in your module."""
        return self.handler_on(self._open)

    def handler_on(self, open_seams: Any) -> WindowsHandler:
        """The same function on other seams: tests, the simulator, a local run."""
        return WindowsHandler(self.plan, open_seams, self.delivery, self.aggregates)

    def changed(self, **changes: Any) -> "Windows":
        """The same declaration with some of its arguments changed: `trips.changed(every=timedelta(seconds=5))`."""
        return Windows(self.record, **(self._declared | changes))

    @property
    def table_keys(self) -> TableKeys:
        """The keys that the table must have."""
        parts = self.plan.folder.key
        kind = _DYNAMO_TYPES[parts[0].type] if len(parts) == 1 else "S"
        make = TableKeys.history if self.layout == "history" else TableKeys.latest
        return make(self.plan.folder.key_attribute, kind)

    def describe(self) -> dict[str, Any]:
        """The declaration in plain values: what readers in any language need to know of it."""
        plan = self.plan
        paths = {field.attribute: list(field.path) for field in plan.fields}
        return {
            "kind": "windows",
            "record": plan.name,
            "coerce": self.coerce,
            "fields": [_describe(field) for field in plan.fields],
            "key": [paths[part.name] for part in plan.folder.key],
            "key_attribute": plan.folder.key_attribute,
            "key_type": self.table_keys.partition.type,
            "every_s": plan.every_s,
            "layout": self.layout,
            "aggregates": self.aggregates,
            "totals": [
                {
                    "name": name,
                    "kind": type(total).__name__.lower(),
                    "path": None if isinstance(total, Count) else paths[total.field],
                }
                for name, total in self.totals.items()
            ],
        }

    def _open(self) -> Seams:
        name = resolve(self.table, "it names the DynamoDB table that the totals go to")
        return _seams(DynamoTable(name, self.table_keys), self.quarantine, self.plan.name)


class Records:
    """Every clean record as an item, by BatchWriteItem, for streams without windows.

    `key` is one field (partition key), two (partition and sort key), or None: then the record's position is the key,
    as `shard` (S) and `position` (S). Either way a repeated record overwrites itself. Answers ReportBatchItemFailures
    from the first record that is not safely stored: the event source mapping must have that in FunctionResponseTypes.
    Without it Lambda takes every answer for success, and what was throttled to the end is lost.

    Raises DeclarationError when the declaration cannot work.
    """

    def __init__(
        self,
        record: type[Record],
        *,
        table: str | Env,
        key: str | Sequence[str] | None = None,
        quarantine: str | Env = QUARANTINE,
        coerce: bool = False,
        aggregates: Aggregates = "keep_insiders",
        delivery: DeliveryPolicy | None = None,
    ) -> None:
        _one_of("aggregates", aggregates, get_args(Aggregates))
        _check_seams(table, quarantine, delivery)
        _is_a("coerce", coerce, bool, "True or False")
        self.plan = compile_records(record, key=key, coerce=coerce)
        self.record, self.table, self.quarantine = record, table, quarantine
        self.coerce, self.aggregates = coerce, aggregates
        self.delivery = delivery or DeliveryPolicy()

    @cached_property
    def handler(self) -> RecordsHandler:
        """The Lambda function: `handler = trips.handler` in your module."""
        return self.handler_on(self._open)

    def handler_on(self, open_seams: Any) -> RecordsHandler:
        """The same function on other seams: tests, the simulator, a local run."""
        return RecordsHandler(self.plan, open_seams, self.delivery, self.aggregates)

    @property
    def table_keys(self) -> TableKeys:
        """The keys that the table must have."""
        parts = self.plan.key or (KeyPart("shard", "str"), KeyPart("position", "str"))
        attributes = [KeyAttribute(part.name, _DYNAMO_TYPES[part.type]) for part in parts]
        return TableKeys(*attributes)

    def describe(self) -> dict[str, Any]:
        """The declaration in plain values. `key` are paths as in `fields`; none: the position is the key."""
        paths = {field.attribute: list(field.path) for field in self.plan.fields}
        return {
            "kind": "records",
            "record": self.plan.name,
            "coerce": self.coerce,
            "fields": [_describe(field) for field in self.plan.fields],
            "key": [paths[part.name] for part in self.plan.key],
            "key_attributes": list(self.plan.key_attributes),
            "aggregates": self.aggregates,
        }

    def _open(self) -> Seams:
        name = resolve(self.table, "it names the DynamoDB table that the items go to")
        return _seams(DynamoTable(name, self.table_keys), self.quarantine, self.plan.name)


def _kinesis_client() -> Any:
    import boto3

    return boto3.client("kinesis")


def _seams(table: DynamoTable, quarantine: str | Env, service: str) -> Seams:
    where = resolve(quarantine, _QUARANTINE_PURPOSE)
    return Seams(
        table,
        open_quarantine(where),
        KinesisShards(_kinesis_client),
        PowertoolsTelemetry(service),
        ThreadPoolExecutor(WRITERS, thread_name_prefix="windlass-write"),
    )


def _describe(field: Field) -> dict[str, Any]:
    return {
        "path": list(field.path),
        "type": field.type,
        "nullable": field.nullable,
        "required": field.required,
        "default": field.default,
        "low": field.low,
        "high": field.high,
        "min_length": field.min_length,
        "max_length": field.max_length,
        "choices": None if field.choices is None else list(field.choices),
        "decimals": field.decimals,
        "stored": field.stored,
    }


def _check_seams(table: object, quarantine: object, delivery: object) -> None:
    _is_a("table", table, str | Env, 'the name of a table, or env("NAME")')
    _is_a("quarantine", quarantine, str | Env, 's3://bucket/prefix, a folder, "none", or env("NAME")')
    for setting in (table, quarantine):
        _is_a("the variable that env names", setting.name if isinstance(setting, Env) else "-", str, "a name")
    if isinstance(quarantine, str):
        try:
            open_quarantine(quarantine)  # which creates and calls nothing
        except QuarantineProblem as error:
            raise DeclarationError(str(error)) from None
    _is_a("delivery", delivery, DeliveryPolicy | None, "a DeliveryPolicy, or None for the usual one")


def _is_a(name: str, value: object, kind: Any, expected: str) -> None:
    if not isinstance(value, kind) or value == "":
        msg = f"{name} is {expected}; found {value!r}"
        raise DeclarationError(msg)


def _one_of(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        msg = f"{name} is {' or '.join(choices)}; found {value!r}"
        raise DeclarationError(msg)
