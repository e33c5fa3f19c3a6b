"""What a deployed stack is doing: its mapping, how far behind, what was settled and rejected; its log; its items.

Metrics are read as CloudWatch has them: up to a few minutes late, and none where nothing happened.
Sources: "Types of metrics for Lambda functions", AWS Lambda Developer Guide; "DynamoDB metrics and dimensions".
"""

import heapq
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal, DecimalException
from itertools import islice
from typing import Any

import msgspec

from windlass.core.rejected import Reason
from windlass.deploy.problem import DeployProblem
from windlass.deploy.stack import Clients, clearly
from windlass.deploy.template import METRICS_NAMESPACE
from windlass.table import WINDOW_START, DynamoTable, ItemRefused, KeyAttribute, TableKeys, item_from_wire, item_to_wire

PERIOD_S = 3600
"""How far back the counts of a status go."""

_COUNTS = (
    "Received",
    "Clean",
    "Late",
    "Duplicates",
    "FlushedRows",
    "SkippedFlushes",
    "FailedCalls",
    "ConflictingFlush",
)


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One look. Counts are those of the last `period_s`; None: no figure."""

    stack: str
    state: str
    stream: str
    table: str
    quarantine: str
    function: str
    mapping_state: str
    last_result: str
    iterator_age_ms: float | None
    calls: int
    errors: int
    table_throttles: int
    counts: dict[str, int]
    rejected: dict[str, int]
    period_s: int = PERIOD_S


class _Query(msgspec.Struct, frozen=True):
    name: str
    namespace: str
    metric: str
    dimensions: dict[str, str]
    stat: str = "Sum"


def look(stack: str, state: str, resources: Mapping[str, str], clients: Clients, now_ms: int) -> Status:
    """Raises DeployProblem."""
    with clearly(f"looking at stack {stack}"):
        mapping = clients("lambda").get_event_source_mapping(UUID=_known(resources, "Mapping"))
        stream = resources.get("Stream") or mapping["EventSourceArn"].rpartition("/")[2]
        table = table_of(resources, clients)
        figures = _figures(clients("cloudwatch"), _queries(stack, resources, table), now_ms)
    return Status(
        stack=stack,
        state=state,
        stream=stream,
        table=table,
        quarantine=resources.get("Quarantine", "none"),
        function=_known(resources, "Function"),
        mapping_state=mapping.get("State", "?"),
        last_result=mapping.get("LastProcessingResult") or "none yet",
        iterator_age_ms=figures.get("age"),
        calls=int(figures.get("calls", 0)),
        errors=int(figures.get("errors", 0)),
        table_throttles=int(figures.get("throttles", 0)),
        counts={name: int(figures.get(name, 0)) for name in _COUNTS},
        rejected={str(reason): int(figures[reason]) for reason in Reason if figures.get(reason)},
    )


def _known(resources: Mapping[str, str], logical: str) -> str:
    if logical not in resources:
        msg = f"the stack has no {logical}: is it one that windlass deployed?"
        raise DeployProblem(msg)
    return resources[logical]


def table_of(resources: Mapping[str, str], clients: Clients) -> str:
    """The table's name; of one that was there before the stack, from the function's role."""
    if "Table" in resources:
        return resources["Table"]
    policy = clients("iam").get_role_policy(RoleName=_known(resources, "FunctionRole"), PolicyName="function")
    for statement in policy["PolicyDocument"]["Statement"]:
        if statement.get("Sid") == "WriteTable":
            return str(statement["Resource"]).rpartition("/")[2]
    msg = "the stack does not say which table it writes to"
    raise DeployProblem(msg)


def _queries(stack: str, resources: Mapping[str, str], table: str) -> list[_Query]:
    function, service = {"FunctionName": _known(resources, "Function")}, {"service": stack}
    return [
        _Query("age", "AWS/Lambda", "IteratorAge", function, "Maximum"),
        _Query("calls", "AWS/Lambda", "Invocations", function),
        _Query("errors", "AWS/Lambda", "Errors", function),
        _Query("throttles", "AWS/DynamoDB", "WriteThrottleEvents", {"TableName": table}),
        *(_Query(name, METRICS_NAMESPACE, name, service) for name in _COUNTS),
        *(_Query(reason, METRICS_NAMESPACE, f"Rejected_{reason}", service) for reason in Reason if reason != "late"),
    ]


def _figures(cloudwatch: Any, queries: list[_Query], now_ms: int) -> dict[str, float]:
    """By name: a sum over the period, or the newest maximum."""
    end_s = now_ms // 1000 + 60
    asked = [
        {
            "Id": f"q{place}",
            "MetricStat": {
                "Metric": {
                    "Namespace": query.namespace,
                    "MetricName": query.metric,
                    "Dimensions": [{"Name": name, "Value": value} for name, value in query.dimensions.items()],
                },
                "Period": 60,
                "Stat": query.stat,
            },
        }
        for place, query in enumerate(queries)
    ]
    answer = cloudwatch.get_metric_data(
        MetricDataQueries=asked,
        StartTime=datetime.fromtimestamp(end_s - PERIOD_S, UTC),
        EndTime=datetime.fromtimestamp(end_s, UTC),
        ScanBy="TimestampDescending",
    )
    found = {}
    for result in answer["MetricDataResults"]:
        query, values = queries[int(result["Id"][1:])], result["Values"]
        if values:
            found[query.name] = values[0] if query.stat == "Maximum" else sum(values)
    return found


# ── the log ─────────────────────────────────────────────────────────────────────────────────────────────────


class LogLine(msgspec.Struct, frozen=True):
    """One event of the function's log."""

    at_ms: int
    text: str


def log_lines(
    group: str,
    clients: Clients,
    *,
    since_ms: int,
    follow: bool,
    sleep: Callable[[float], None],
) -> Iterator[LogLine]:
    """The log from a time on, oldest first; with `follow` without end. Raises DeployProblem.

    Events come in late and out of order over several log streams, so each read looks back a little.
    """
    logs = clients("logs")
    seen: dict[str, int] = {}  # events by id: their time
    while True:
        with clearly(f"reading the log {group}"):
            pages = logs.get_paginator("filter_log_events").paginate(logGroupName=group, startTime=since_ms)
            events = [event for page in pages for event in page["events"] if event["eventId"] not in seen]
        for event in sorted(events, key=lambda event: int(event["timestamp"])):
            yield LogLine(event["timestamp"], event["message"].rstrip("\n"))
            seen[event["eventId"]] = event["timestamp"]
            since_ms = max(since_ms, event["timestamp"] - 30_000)
        seen = {event_id: at_ms for event_id, at_ms in seen.items() if at_ms >= since_ms}  # no others are read again
        if not follow:
            return
        sleep(1.0)


# ── the items ───────────────────────────────────────────────────────────────────────────────────────────────


def newest(
    table: str, clients: Clients, *, limit: int, key: str | None = None
) -> tuple[TableKeys, list[dict[str, Any]]]:
    """The table's keys and its newest items. Raises DeployProblem.

    With `key` a query of that key's items; without one the whole table is read, as items of all keys lie in no order.
    """
    client = clients("dynamodb")
    with clearly(f"reading table {table}"):
        keys = _keys(client.describe_table(TableName=table)["Table"])
        found = _of_key(client, table, keys, key, limit) if key is not None else _all(client, table, keys)
        return keys, heapq.nlargest(limit, found, key=lambda item: str(item.get(WINDOW_START, "")))


def some_keys(table: str, keys: TableKeys, clients: Clients, enough: int = 5) -> list[Any]:
    """A few of the partition keys that the table's first items have. Raises DeployProblem."""
    with clearly(f"reading table {table}"):
        first = islice(_all(clients("dynamodb"), table, keys), 1000)
        return list(dict.fromkeys(item[keys.partition.name] for item in first))[:enough]


def _all(client: Any, table: str, keys: TableKeys) -> Iterator[dict[str, Any]]:
    yield from DynamoTable(table, keys, client=client).items()


def _of_key(client: Any, table: str, keys: TableKeys, key: str, limit: int) -> Iterator[dict[str, Any]]:
    try:
        wire = item_to_wire({":key": Decimal(key) if keys.partition.type == "N" else key})
    except (DecimalException, ItemRefused):
        msg = f"--key {key}: the key {keys.partition.name} of table {table} is a number"
        raise DeployProblem(msg) from None
    pages = client.get_paginator("query").paginate(
        TableName=table,
        KeyConditionExpression="#key = :key",
        ExpressionAttributeNames={"#key": keys.partition.name},
        ExpressionAttributeValues=wire,
        ScanIndexForward=False,
        ConsistentRead=True,
        PaginationConfig={"MaxItems": limit, "PageSize": limit},  # a page also ends at 1 MB
    )
    yield from (item_from_wire(item) for page in pages for item in page["Items"])


def _keys(described: Mapping[str, Any]) -> TableKeys:
    types = {each["AttributeName"]: each["AttributeType"] for each in described["AttributeDefinitions"]}
    parts = [KeyAttribute(each["AttributeName"], types[each["AttributeName"]]) for each in described["KeySchema"]]
    return TableKeys(*parts)


# ── what a stack leaves behind ──────────────────────────────────────────────────────────────────────────────


def items_at_most(table: str, clients: Clients, enough: int = 1000) -> int:
    """How many items a table holds, counted up to about `enough`; 0 where there is no table."""
    client, count = clients("dynamodb"), 0
    try:
        for page in client.get_paginator("scan").paginate(TableName=table, Select="COUNT", ConsistentRead=True):
            count += page["Count"]
            if count >= enough:
                break
    except client.exceptions.ResourceNotFoundException:
        return 0
    return count


def objects_at_most(bucket: str, clients: Clients, enough: int = 1000) -> int:
    """How many object versions a bucket holds, counted up to about `enough`; 0 where there is no bucket."""
    client, count = clients("s3"), 0
    try:
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
            count += len(page.get("Versions", [])) + len(page.get("DeleteMarkers", []))
            if count >= enough:
                break
    except client.exceptions.ClientError as error:
        if error.response["Error"]["Code"] not in ("NoSuchBucket", "404"):
            raise
        return 0
    return count


def delete_table(table: str, clients: Clients) -> None:
    """Delete a table with everything in it."""
    client = clients("dynamodb")
    try:
        client.delete_table(TableName=table)
    except client.exceptions.ResourceNotFoundException:
        return


def delete_bucket(bucket: str, clients: Clients) -> None:
    """Delete a bucket with every version in it."""
    client = clients("s3")
    try:
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
            versions = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            doomed = [{"Key": each["Key"], "VersionId": each["VersionId"]} for each in versions]
            if doomed:
                client.delete_objects(Bucket=bucket, Delete={"Objects": doomed, "Quiet": True})
        client.delete_bucket(Bucket=bucket)
    except client.exceptions.ClientError as error:
        if error.response["Error"]["Code"] not in ("NoSuchBucket", "404"):
            raise
