"""AWS as a source: a deployed function and what is around it, or the same behind the local endpoint.

Everything is found from the function: its event source mapping names the stream, its environment the table and the
quarantine. Nothing is remembered that AWS can be asked for, but not more often than `Paces` says: a look at a bill.

| what | from |
|---|---|
| mapping, function | Lambda: ListEventSourceMappings, GetFunctionConfiguration |
| shards | Kinesis: ListShards |
| items, one key's items | DynamoDB: Scan, Query |
| rejected records | the quarantine |
| calls | CloudWatch Logs: FilterLogEvents |
| figures | CloudWatch: GetMetricData |

What only the machinery knows (the open window of each shard, what blocks it, batches given up) comes from `inside`,
which the local endpoint has and AWS has not.
"""

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from windlass.console.call_log import CallLog
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
    SourceProblem,
    plainly,
)
from windlass.console.values import item_view, kinesis_shards
from windlass.core.rejected import Rejected
from windlass.deploy.problem import DeployProblem
from windlass.deploy.status import newest
from windlass.quarantine import AnyQuarantine, Browsable, NoQuarantine, open_quarantine
from windlass.table import DynamoTable, KeyAttribute, TableKeys

QUARANTINE = "WINDLASS_QUARANTINE"
NAMESPACE, SERVICE = "POWERTOOLS_METRICS_NAMESPACE", "POWERTOOLS_SERVICE_NAME"
LOG_MS = 15 * 60_000
LOG_BACK_MS = 10_000
"""Log events come in late: each reading begins so much before the newest that is known."""
ANSWERS_KEPT = 100
_SAMPLE = 60

Inside = Callable[[str], "Known | None"]
"""What the machinery knows of the mapping with that UUID."""


class Known(msgspec.Struct, frozen=True):
    """The shards that are read, by id, and the batches that were given up, newest first."""

    shards: Mapping[str, ShardView]
    failures: list[FailureView]


class Paces(msgspec.Struct, frozen=True):
    """How long an answer serves, in seconds, and the shortest step of a graph, in milliseconds."""

    found_s: float
    shards_s: float
    log_s: float
    figures_s: float
    step_ms: int
    items_ms: int


AT_HOME = Paces(found_s=2, shards_s=0.5, log_s=0.8, figures_s=0.8, step_ms=1_000, items_ms=700)
ON_AWS = Paces(found_s=30, shards_s=10, log_s=5, figures_s=30, step_ms=60_000, items_ms=30_000)


class _Found(msgspec.Struct, frozen=True):
    """The parts, as AWS describes them."""

    function: dict[str, Any]
    mapping: dict[str, Any]
    table: str
    keys: TableKeys | None
    quarantine: str

    @property
    def stream(self) -> str:
        return str(self.mapping["EventSourceArn"]).partition("/")[2].partition("/")[0]

    @property
    def every_ms(self) -> int:
        return int(self.mapping.get("TumblingWindowInSeconds") or 0) * 1000

    @property
    def variables(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.function.get("Environment", {}).get("Variables", {})
        return found


class AwsSource:
    """`client` makes boto3 clients by service. `function` None: the first one that reads a stream.

    `table` names the table where the function's environment does not. `endpoint` is shown, nothing else.
    """

    def __init__(
        self,
        client: Callable[[str], Any],
        *,
        function: str | None = None,
        table: str | None = None,
        endpoint: str = "",
        paces: Paces = ON_AWS,
        inside: Inside = lambda _: None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._client = client
        self._function = function
        self._table = table
        self._endpoint = endpoint
        self._paces = paces
        self._inside = inside
        self.now_ms = now_ms
        self.items_pause_ms = paces.items_ms
        self.quarantine: Browsable = _FoundQuarantine(self)
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._asking: defaultdict[Any, threading.RLock] = defaultdict(threading.RLock)
        self._kept: dict[Any, tuple[float, Any]] = {}
        self._log = CallLog()
        self._log_of = ""

    # --- asking --------------------------------------------------------------------------------------------------

    def client(self, service: str) -> Any:
        """A boto3 client, made once."""
        with self._lock:
            if service not in self._clients:
                self._clients[service] = self._client(service)
            return self._clients[service]

    def _fresh(self, name: Any, seconds: float, ask: Callable[[], Any]) -> Any:
        """An answer that is at most so old."""
        with self._lock:
            asking = self._asking[name]
        with asking:
            at, answer = self._kept.get(name, (-1e9, None))
            if time.monotonic() - at > seconds:
                answer = ask()
                self._keep(name, answer)
            return answer

    def _keep(self, name: Any, answer: Any) -> None:
        with self._lock:
            self._kept[name] = (time.monotonic(), answer)
            if len(self._kept) > ANSWERS_KEPT:
                oldest = min(self._kept, key=lambda kept: self._kept[kept][0])
                del self._kept[oldest]
                self._asking.pop(oldest, None)

    def found(self) -> _Found:
        """The parts. Raises SourceProblem where there is no function that reads a stream."""
        found: _Found = self._fresh("found", self._paces.found_s, self._find)
        return found

    def _find(self) -> _Found:
        with plainly("the function", "read"):
            mapping = self._mapping()
            name = str(mapping["FunctionArn"])
            function = self.client("lambda").get_function_configuration(FunctionName=name)
        variables: Mapping[str, str] = function.get("Environment", {}).get("Variables", {})
        table, keys = self._find_table(variables)
        return _Found(function, mapping, table, keys, variables.get(QUARANTINE, "none"))

    def _mapping(self) -> dict[str, Any]:
        asked = {"FunctionName": self._function} if self._function else {}
        pages = self.client("lambda").get_paginator("list_event_source_mappings").paginate(**asked)
        for page in pages:
            for mapping in page["EventSourceMappings"]:
                if ":kinesis:" in mapping.get("EventSourceArn", ""):
                    return dict(mapping)
        who = f"the function {self._function}" if self._function else "no function here"
        msg = f"{who} reads {'no' if self._function else 'a'} Kinesis stream yet; an event source mapping makes it"
        raise SourceProblem(msg)

    def _find_table(self, variables: Mapping[str, str]) -> tuple[str, TableKeys | None]:
        """The first of the environment's values that names a table; the likeliest names are tried first."""
        given = [self._table] if self._table else []
        likely = sorted(variables, key=lambda name: "table" not in name.lower())
        skipped = (QUARANTINE, NAMESPACE, SERVICE)
        client = self.client("dynamodb")
        for name in [*given, *(variables[each] for each in likely if each not in skipped)]:
            try:
                return name, _keys(client.describe_table(TableName=name)["Table"])
            except (ClientError, BotoCoreError):
                continue
        return "", None

    # --- what there is -------------------------------------------------------------------------------------------

    def pipeline(self) -> Pipeline:
        found = self.found()
        mapping = found.mapping
        on_failure = (mapping.get("DestinationConfig") or {}).get("OnFailure", {}).get("Destination", "")
        return Pipeline(
            title=str(found.function["FunctionName"]),
            stream=found.stream,
            function=str(found.function["FunctionName"]),
            table=found.table or "no table found",
            quarantine=found.quarantine,
            on_failure=on_failure,
            endpoint=self._endpoint,
            region=str(mapping["EventSourceArn"]).split(":")[3],
            every_ms=found.every_ms,
            key_attribute=found.keys.partition.name if found.keys else "key",
            totals=self._totals(found),
            keeps_windows=bool(found.keys and found.keys.keeps_windows),
            mapping=_in_words(mapping),
            runtime=_runtime_in_words(found.function),
            examples=self._examples(found),
        )

    def _totals(self, found: _Found) -> tuple[str, ...]:
        """The attributes that are numbers in the first items that come."""
        if found.keys is None:
            return ()
        first = self._fresh(("totals", found.table), self._paces.found_s, lambda: list(self._read(found, _SAMPLE)))
        return tuple(dict.fromkeys(name for item in first for name in item.totals))

    def _examples(self, found: _Found) -> dict[str, str]:
        key = found.keys.partition if found.keys else KeyAttribute("key", "S")
        value = "1" if key.type == "N" else '"a"'
        text = f'{{"{key.name}": {value}}}'
        return {"one key": text, "not JSON": text[:-1], "not an object": "[1, 2]"}

    def shards(self) -> list[ShardView]:
        found = self.found()
        with plainly(f"stream {found.stream}", "read"):
            listed = self._fresh(
                ("shards", found.stream),
                self._paces.shards_s,
                lambda: kinesis_shards(self.client("kinesis"), found.stream),
            )
        known = self._inside(str(found.mapping["UUID"]))
        if known is None:
            return [_by_clock(shard, found.every_ms, self.now_ms()) for shard in listed]
        return [_with_known(shard, known.shards.get(shard.shard_id)) for shard in listed]

    def items(self) -> Iterator[Item]:
        yield from self._read(self.found(), None)

    def _read(self, found: _Found, limit: int | None) -> Iterator[Item]:
        if found.keys is None:
            return
        with plainly(f"table {found.table}", "read"):
            read = DynamoTable(found.table, found.keys, client=self.client("dynamodb")).items()
            for item in itertools.islice(read, limit):
                yield self._item(found, item)

    def items_of(self, key: str, limit: int) -> list[Item]:
        found = self.found()
        try:
            _, items = newest(found.table, self.client, limit=limit, key=key)
        except DeployProblem as problem:
            raise SourceProblem(str(problem)) from None
        return [self._item(found, item) for item in items]

    def _item(self, found: _Found, item: Mapping[str, Any]) -> Item:
        assert found.keys is not None
        return item_view(item, found.keys.partition.name, None, found.every_ms, found.stream)

    # --- what has happened ---------------------------------------------------------------------------------------

    def calls(self, limit: int) -> list[CallView]:
        found = self.found()
        self._fresh("log", self._paces.log_s, lambda: self._read_log(found))
        every_ms = found.every_ms
        return [_with_end(call, every_ms) for call in self._log.calls(limit)]

    def _read_log(self, found: _Found) -> None:
        name = str(found.function["FunctionName"])
        group = found.function.get("LoggingConfig", {}).get("LogGroup") or f"/aws/lambda/{name}"
        if group != self._log_of:
            self._log, self._log_of = CallLog(), group
        since_ms = max(self.now_ms() - LOG_MS, self._log.newest_ms - LOG_BACK_MS)
        logs = self.client("logs")
        with plainly(f"log group {group}", "read"):
            try:
                pages = logs.get_paginator("filter_log_events").paginate(logGroupName=group, startTime=since_ms)
                for page in pages:
                    self._log.add(page["events"])
            except logs.exceptions.ResourceNotFoundException:
                return  # the function has not been called yet

    def series(self, from_ms: int, to_ms: int, step_ms: int) -> Series:
        step_ms = _allowed(max(step_ms, self._paces.step_ms))
        to_ms = to_ms // step_ms * step_ms
        from_ms = min(from_ms // step_ms * step_ms, to_ms - 3 * step_ms)
        name = ("series", from_ms, to_ms, step_ms)
        series: Series = self._fresh(name, self._paces.figures_s, lambda: self._read_figures(from_ms, to_ms, step_ms))
        return series

    def _read_figures(self, from_ms: int, to_ms: int, step_ms: int) -> Series:
        found = self.found()
        asked = self._queries(found)
        at_ms = list(range(from_ms, to_ms, step_ms))
        values: dict[str, list[float | None]] = {name: [0.0 if name in COUNTS else None] * len(at_ms) for name in asked}
        request: dict[str, Any] = {
            "MetricDataQueries": [_query(name, *query, step_ms // 1000) for name, query in asked.items()],
            "StartTime": datetime.fromtimestamp(from_ms / 1000, UTC),
            "EndTime": datetime.fromtimestamp(to_ms / 1000, UTC),
        }
        with plainly("CloudWatch", "read"):
            for page in self.client("cloudwatch").get_paginator("get_metric_data").paginate(**request):
                for result in page["MetricDataResults"]:
                    for moment, value in zip(result["Timestamps"], result["Values"], strict=True):
                        place = (round(moment.timestamp() * 1000) - from_ms) // step_ms
                        if 0 <= place < len(at_ms):
                            values[result["Id"]][place] = value
        return Series(step_ms, at_ms, values)

    def _queries(self, found: _Found) -> dict[str, tuple[str, str, dict[str, str], str]]:
        function = {"FunctionName": str(found.function["FunctionName"])}
        namespace = found.variables.get(NAMESPACE, "Windlass")
        own = {"service": found.variables.get(SERVICE) or self._service(namespace)}
        of_function = {
            "invocations": ("Invocations", "Sum"),
            "errors": ("Errors", "Sum"),
            "throttles": ("Throttles", "Sum"),
            "duration_min": ("Duration", "Minimum"),
            "duration_avg": ("Duration", "Average"),
            "duration_max": ("Duration", "Maximum"),
            "iterator_age": ("IteratorAge", "Maximum"),
        }
        of_windlass = {
            "received": "Received",
            "clean": "Clean",
            "rejected": "Rejected",
            "late": "Late",
            "duplicates": "Duplicates",
            "flushed_rows": "FlushedRows",
            "skipped_flushes": "SkippedFlushes",
            "retry_rounds": "RetryRounds",
            "throttled_writes": "ThrottledWrites",
        }
        return {
            "incoming": ("AWS/Kinesis", "IncomingRecords", {"StreamName": found.stream}, "Sum"),
            **{name: ("AWS/Lambda", metric, function, stat) for name, (metric, stat) in of_function.items()},
            **{name: (namespace, metric, own, "Sum") for name, metric in of_windlass.items()},
        }

    def _service(self, namespace: str) -> str:
        """The service that the function's metrics are under, where its environment does not say: the first there is."""

        def ask() -> str:
            with plainly("CloudWatch", "read"):
                found = self.client("cloudwatch").list_metrics(Namespace=namespace, MetricName="Received")["Metrics"]
            services = [each["Value"] for metric in found for each in metric["Dimensions"] if each["Name"] == "service"]
            return services[0] if services else "none"

        service: str = self._fresh(("service", namespace), self._paces.found_s, ask)
        return service

    def failures(self) -> list[FailureView] | None:
        known = self._inside(str(self.found().mapping["UUID"]))
        return None if known is None else known.failures

    def put(self, partition_key: str, data: bytes) -> Put:
        stream = self.found().stream
        with plainly(f"stream {stream}", "read"):
            answer = self.client("kinesis").put_record(StreamName=stream, PartitionKey=partition_key, Data=data)
        return Put(answer["ShardId"], answer["SequenceNumber"], self.now_ms())


class _FoundQuarantine:
    """The quarantine that the function's environment names, at the moment when it is read."""

    def __init__(self, source: AwsSource) -> None:
        self._source = source
        self._opened: tuple[str, AnyQuarantine] = ("none", NoQuarantine())

    def names(self) -> list[str]:
        return self._at().names()

    def read_object(self, name: str) -> list[Rejected]:
        return self._at().read_object(name)

    def _at(self) -> AnyQuarantine:
        where = self._source.found().quarantine
        if where != self._opened[0]:
            self._opened = (where, open_quarantine(where, make_client=lambda: self._source.client("s3")))
        return self._opened[1]


# --- in words and in numbers -------------------------------------------------------------------------------------


def _keys(described: Mapping[str, Any]) -> TableKeys:
    types = {each["AttributeName"]: each["AttributeType"] for each in described["AttributeDefinitions"]}
    by_role = {each["KeyType"]: each["AttributeName"] for each in described["KeySchema"]}
    return TableKeys(
        *(KeyAttribute(by_role[role], types[by_role[role]]) for role in ("HASH", "RANGE") if role in by_role)
    )


def _query(name: str, namespace: str, metric: str, dimensions: Mapping[str, str], stat: str, period_s: int) -> Any:
    return {
        "Id": name,
        "MetricStat": {
            "Metric": {
                "Namespace": namespace,
                "MetricName": metric,
                "Dimensions": [{"Name": key, "Value": value} for key, value in dimensions.items()],
            },
            "Period": period_s,
            "Stat": stat,
        },
    }


def _allowed(step_ms: int) -> int:
    """The next period that CloudWatch takes: 1, 5, 10, 30 s or whole minutes ("GetMetricData", API Reference)."""
    for period_ms in (1_000, 5_000, 10_000, 30_000):
        if step_ms <= period_ms:
            return period_ms
    return -(-step_ms // 60_000) * 60_000


def _by_clock(shard: ShardView, every_ms: int, now_ms: int) -> ShardView:
    """An open shard's window by the clock: windows lie on it, and AWS tells nobody what a mapping holds."""
    if shard.closed or not every_ms:
        return msgspec.structs.replace(shard, state="closed" if shard.closed else "open")
    start_ms = now_ms // every_ms * every_ms
    return msgspec.structs.replace(shard, state="open", window=(start_ms, start_ms + every_ms))


def _with_known(shard: ShardView, known: ShardView | None) -> ShardView:
    if known is None:
        return shard
    kept = {name: getattr(shard, name) for name in ("shard_id", "parents", "low", "high", "closed")}
    return msgspec.structs.replace(known, **kept)


def _with_end(call: CallView, every_ms: int) -> CallView:
    if call.window is None:
        return call
    return msgspec.structs.replace(call, window=(call.window[0], call.window[0] + every_ms))


_MAPPING = (
    ("State", "State", ""),
    ("Last result", "LastProcessingResult", ""),
    ("Batch size", "BatchSize", " records"),
    ("Batching window", "MaximumBatchingWindowInSeconds", " s"),
    ("Tumbling window", "TumblingWindowInSeconds", " s"),
    ("Parallelization", "ParallelizationFactor", " per shard"),
    ("Retries", "MaximumRetryAttempts", ""),
    ("Record age", "MaximumRecordAgeInSeconds", " s"),
    ("Bisect on error", "BisectBatchOnFunctionError", ""),
    ("Starts at", "StartingPosition", ""),
)
_ENDLESS = {"MaximumRetryAttempts": "until it succeeds", "MaximumRecordAgeInSeconds": "any"}


def _in_words(mapping: Mapping[str, Any]) -> tuple[Setting, ...]:
    found = []
    for name, member, unit in _MAPPING:
        value = mapping.get(member)
        if value is None:
            continue
        if value == -1:
            text = _ENDLESS.get(member, "-1")
        else:
            text = ("yes" if value else "no") if isinstance(value, bool) else f"{value}{unit}"
        found.append(Setting(name, text))
    return tuple(found)


def _runtime_in_words(function: Mapping[str, Any]) -> tuple[Setting, ...]:
    found = {
        "Runtime": function.get("Runtime", ""),
        "Handler": function.get("Handler", ""),
        "Memory": f"{function.get('MemorySize', '?')} MB",
        "Timeout": f"{function.get('Timeout', '?')} s",
        "Changed": str(function.get("LastModified", ""))[:19],
    }
    return tuple(Setting(name, str(value)) for name, value in found.items() if value)
