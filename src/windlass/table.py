"""The seam to DynamoDB: contributions merge into items, whole items are put. A Protocol, and its DynamoDB form.

Rules of this file:
- A merge is ONE conditional write. It adds the row's values and sets the fence `applied#<source>` (the shard, by
  region, account, stream and id) to `through`, under the condition that the fence is absent or less than `first`. When
  the condition fails, what is stored decides:

    stored fence               | meaning                               | answer
    ---------------------------+---------------------------------------+---------------------------
    absent, or < first         | new: another writer came between      | write again
    >= through                 | a duplicate flush, or a lost answer   | Merged.ALREADY
    >= first and < through     | segments overlap: a bug, never guess  | ConflictingFlush is raised

- Table keys say the layout. A sort key `windowStart` keeps every window (history). Without a sort key an item is
  the newest window of its key (latest), and before the fence its window decides:

    stored window              | answer
    ---------------------------+---------------------------------------------------------------
    none, or older             | the item is replaced whole, old shards' fences included
    the same                   | merge, by the fence
    newer                      | Merged.SUPERSEDED

- Sums and counts are ADDed without looking. Minima and maxima need the old value: such rows are written by
  compare-and-set on the attribute `version`, with the old item from the failed condition. The sums of such a row are
  ADDed all the same, so rows with and without minima may meet in one item.
- Three kinds of trouble in an answer. Throttles go out as `Throttled`, each of them: botocore retries nothing here.
  Lost answers (connection, timeout, server fault) are tried again at once a few times, which the fence makes
  harmless; puts are idempotent by key. All else passes through, as one clear line where the table itself is wrong.
- Numbers are int or Decimal, exact to 38 digits; a float never gets here.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Context, Decimal, DecimalException, Inexact, Overflow, Subnormal, Underflow
from enum import Enum
from typing import Any, Literal, Protocol

import msgspec
from botocore.exceptions import (
    ClientError,
    HTTPClientError,
    NoCredentialsError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from windlass.core.contribution import Contribution, KeyValue

WINDOW_START = "windowStart"
WINDOW_END = "windowEnd"
VERSION = "version"

MERGE_WRITES_MAX = 8
"""Conditional writes of one merge before contention on its item goes out, for `delivery` to try again after a pause."""

LOST_ANSWERS_MAX = 3
"""Sendings of one request whose answer does not come."""

BATCH_ITEMS_MAX = 25
BATCH_BYTES_MAX = 16 * 1024 * 1024
"""BatchWriteItem, "Amazon DynamoDB API reference": 25 puts and 16 MB in a request."""

Item = dict[str, Any]
"""An item as plain values: str, int, Decimal, bool, None, and dicts and lists of them."""

Wire = dict[str, Any]
"""A value, or an item of values, as DynamoDB's API writes it: {"N": "1"}."""


# ── what the seam speaks ────────────────────────────────────────────────────────────────────────────────────


class Merged(Enum):
    """What became of a contribution that caused no trouble."""

    APPLIED = "applied"
    ALREADY = "already"
    SUPERSEDED = "superseded"


class Throttled(Exception):
    """DynamoDB did nothing, for want of capacity: the same write may be tried again later.

    `reasons` are DynamoDB's own words ("ThrottlingReason", Amazon DynamoDB API reference) where it gives them,
    otherwise the name of the error.
    """

    def __init__(self, reasons: tuple[str, ...]) -> None:
        super().__init__(", ".join(reasons))
        self.reasons = reasons

    @property
    def hot_key(self) -> bool:
        """Whether one key is written too often, rather than the table as a whole."""
        return any("KeyRange" in reason or reason in _HOT for reason in self.reasons)

    @property
    def contended(self) -> bool:
        """Whether other writers came between each time: the table had capacity, for them."""
        return CONTENTION in self.reasons


CONTENTION = "ItemContention"
UNPROCESSED = "UnprocessedItems"
_HOT = (CONTENTION, "TransactionConflictException", "ReplicatedWriteConflictException")


class ConflictingFlush(Exception):
    """The fence of an item lies inside the segment that is to be merged: neither new nor already applied."""

    def __init__(self, item: Mapping[str, KeyValue], source: str, stored: str, first: str, through: str) -> None:
        super().__init__(
            f"item {dict(item)} already covers {source} through {stored}, inside the segment {first} to {through}: "
            "nothing was written. Either two functions flush this shard into one table, and each needs its own; or a "
            "deployment in mid-window changed totals, fields or limits and the window came again: into a new table it "
            "goes whole"
        )
        self.item, self.source, self.stored, self.first, self.through = dict(item), source, stored, first, through


class TableProblem(Exception):
    """The table is not as the pipeline needs it. One line: which table, what was expected and found, what to do."""


class ItemRefused(ValueError):
    """DynamoDB takes no such item: a number beyond 38 digits, more than 400 KB, an empty key."""


class KeyAttribute(msgspec.Struct, frozen=True):
    """A key attribute: its name, and its type in DynamoDB, N or S."""

    name: str
    type: Literal["N", "S"]

    def __str__(self) -> str:
        return f"{self.name} ({self.type})"


class TableKeys(msgspec.Struct, frozen=True):
    """The key schema of a table. It says the layout of windowed totals as well: see the prologue."""

    partition: KeyAttribute
    sort: KeyAttribute | None = None

    @classmethod
    def history(cls, name: str, type: Literal["N", "S"]) -> "TableKeys":  # noqa: A002
        """One item per key and window."""
        return cls(KeyAttribute(name, type), KeyAttribute(WINDOW_START, "S"))

    @classmethod
    def latest(cls, name: str, type: Literal["N", "S"]) -> "TableKeys":  # noqa: A002
        """One item per key: its newest window."""
        return cls(KeyAttribute(name, type))

    @property
    def attributes(self) -> tuple[KeyAttribute, ...]:
        """Partition key, then sort key where there is one."""
        return (self.partition,) if self.sort is None else (self.partition, self.sort)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the key attributes."""
        return tuple(part.name for part in self.attributes)

    @property
    def keeps_windows(self) -> bool:
        """Whether every window stays (history), or the newest alone (latest)."""
        return self.sort is not None

    def __str__(self) -> str:
        sort = "no sort key" if self.sort is None else f"sort key {self.sort}"
        return f"partition key {self.partition} and {sort}"


class Table(Protocol):
    """Where totals and items go. Safe to use from several threads."""

    keys: TableKeys

    def check(self) -> None:
        """Raises TableProblem unless the table is there with the keys it should have."""

    def merge(self, contribution: Contribution) -> Merged:
        """Apply a contribution once. Raises Throttled, ConflictingFlush, TableProblem, ItemRefused."""

    def put(self, items: Sequence[Item]) -> Mapping[int, Throttled]:
        """Put items of different keys. Answers which indexes were not stored for want of capacity, and why.

        Raises TableProblem, ItemRefused.
        """

    def items(self) -> Iterator[Item]:
        """Every item of the table, in no order."""


# ── values to and from the wire ─────────────────────────────────────────────────────────────────────────────
# By type, not by boto3's TypeSerializer, which tries predicates in turn and asks a Decimal context about each int.

_NUMBERS = Context(prec=38, Emin=-130, Emax=125, traps=[Inexact, Overflow, Subnormal, Underflow])
"""DynamoDB's numbers: 38 digits, from 1E-130 to 9.9E+125 ("Supported data types and naming rules")."""
_SHORT = 10**38


def _int_to_wire(value: int) -> Wire:
    if -_SHORT < value < _SHORT:
        return {"N": str(value)}
    return _decimal_to_wire(Decimal(value))


def _decimal_to_wire(value: Decimal) -> Wire:
    try:
        exact = _NUMBERS.create_decimal(value)
    except DecimalException:
        exact = None
    if exact is None or not exact.is_finite():
        msg = f"DynamoDB holds 38 digits between 1E-130 and 1E+126; found {str(value)[:200]}"
        raise ItemRefused(msg)
    return {"N": format(_NUMBERS.normalize(exact), "f")}  # plain and short: moto adds no "0E-18"


_TO_WIRE: dict[type, Callable[[Any], Wire]] = {
    str: lambda value: {"S": value},
    int: _int_to_wire,
    Decimal: _decimal_to_wire,
    bool: lambda value: {"BOOL": value},
    type(None): lambda _: {"NULL": True},
    dict: lambda value: {"M": item_to_wire(value)},
    list: lambda value: {"L": [to_wire(part) for part in value]},
    tuple: lambda value: {"L": [to_wire(part) for part in value]},
}


def to_wire(value: Any) -> Wire:
    """A plain value as DynamoDB's API writes it. Raises ItemRefused for a number beyond 38 digits."""
    convert = _TO_WIRE.get(type(value))
    assert convert, f"no form in DynamoDB for {type(value).__name__} {value!r}"
    return convert(value)


def item_to_wire(item: Mapping[str, Any]) -> Wire:
    """A plain item as DynamoDB's API writes it."""
    return {name: to_wire(value) for name, value in item.items()}


def _number(text: str) -> int | Decimal:
    try:
        return int(text)
    except ValueError:
        return Decimal(text)


_FROM_WIRE: dict[str, Callable[[Any], Any]] = {
    "S": lambda value: value,
    "N": _number,
    "BOOL": lambda value: value,
    "NULL": lambda _: None,
    "M": lambda value: item_from_wire(value),
    "L": lambda value: [from_wire(part) for part in value],
    "B": bytes,
    "SS": set,
    "NS": lambda value: {_number(part) for part in value},
    "BS": set,
}


def from_wire(value: Wire) -> Any:
    """A value of DynamoDB's API as a plain one."""
    ((kind, content),) = value.items()
    return _FROM_WIRE[kind](content)


def item_from_wire(item: Wire) -> Item:
    """An item of DynamoDB's API as plain values."""
    return {name: from_wire(value) for name, value in item.items()}


# ── one merge as requests ───────────────────────────────────────────────────────────────────────────────────


class _Expression:
    """Names and values of a request, each under a placeholder: attribute names may hold any character."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.values: Wire = {}

    def name(self, attribute: str) -> str:
        return self.names.setdefault(attribute, f"#{len(self.names)}")

    def value(self, value: Any) -> str:
        placeholder = f":{len(self.values)}"
        self.values[placeholder] = to_wire(value)
        return placeholder

    def request(self, condition: str) -> dict[str, Any]:
        return {
            "ConditionExpression": condition,
            "ExpressionAttributeNames": {placeholder: name for name, placeholder in self.names.items()},
            "ExpressionAttributeValues": self.values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }


class _Merge:
    """The requests of one contribution, given what is known of the stored item."""

    def __init__(self, contribution: Contribution, keys: TableKeys) -> None:
        self.row = contribution
        self.keys = keys
        self.fence = f"applied#{contribution.source}"
        self.looks = bool(contribution.least or contribution.most)
        self.key: Item = dict(contribution.key)
        self.plain: Item = {**contribution.plain, WINDOW_END: contribution.window.end}
        if keys.keeps_windows:
            self.key[WINDOW_START] = contribution.window.start
        else:
            self.plain[WINDOW_START] = contribution.window.start

    def request(self, old: Item | None) -> tuple[str, dict[str, Any]]:
        """The operation and its parameters. `old` is the stored item as last seen, None where none was."""
        if old is not None and self._older(old):
            return "put_item", self._replace()
        return "update_item", self._update(old)

    def decide(self, old: Item | None) -> Merged | None:
        """What the item that failed a condition says: an answer, or None to write again."""
        row = self.row
        if old is None or self._older(old):
            return None
        if not self.keys.keeps_windows and old[WINDOW_START] > row.window.start:
            return Merged.SUPERSEDED
        stored = self._text(old, self.fence)
        if stored is None or stored < row.first:
            return None
        if stored >= row.through:
            return Merged.ALREADY
        raise ConflictingFlush(self.key, row.source, stored, row.first, row.through)

    def _older(self, old: Item) -> bool:
        if self.keys.keeps_windows:
            return False
        start = self._text(old, WINDOW_START)
        return start is None or start < self.row.window.start

    def _text(self, old: Item, attribute: str) -> str | None:
        text: str | None = self._own(old, attribute, (str,), "text")
        return text

    def _own(self, old: Item, attribute: str, types: tuple[type, ...], words: str) -> Any:
        """A stored attribute, of a type that Windlass writes, or None where it is not there."""
        value = old.get(attribute)
        if value is None or type(value) in types:
            return value
        msg = (
            f"attribute {attribute} of item {self.key} should be {words}; found {value!r}, which Windlass did not "
            "write: use another table, or delete that item"
        )
        raise TableProblem(msg)

    def _replace(self) -> dict[str, Any]:
        row = self.row
        item = {**self.key, **self.plain, self.fence: row.through, **row.add, **row.least, **row.most}
        if self.looks:
            item[VERSION] = 1
        words = _Expression()
        start = words.name(WINDOW_START)
        absent = f"attribute_not_exists({start})"
        return {"Item": item_to_wire(item), **words.request(f"{absent} OR {start} < {words.value(row.window.start)}")}

    def _update(self, old: Item | None) -> dict[str, Any]:
        words = _Expression()
        condition = self._condition(words, old)
        sets = {self.fence: self.row.through, **self.plain}
        if self.looks:
            sets |= self._looked(old or {})
        expression = "SET " + ", ".join(f"{words.name(name)} = {words.value(value)}" for name, value in sets.items())
        if self.row.add:
            adds = (f"{words.name(name)} {words.value(value)}" for name, value in self.row.add.items())
            expression += " ADD " + ", ".join(adds)
        return {"Key": item_to_wire(self.key), "UpdateExpression": expression, **words.request(condition)}

    def _looked(self, old: Item) -> Item:
        """Minima, maxima and the version, merged with what is stored."""
        new: Item = {VERSION: (self._own(old, VERSION, (int,), "a whole number") or 0) + 1}
        for values, better in ((self.row.least, min), (self.row.most, max)):
            for name, value in values.items():
                stored = self._own(old, name, (int, Decimal), "a number")
                new[name] = value if stored is None else better(value, stored)
        return new

    def _condition(self, words: _Expression, old: Item | None) -> str:
        if self.looks and old is None:
            return f"attribute_not_exists({words.name(self.keys.partition.name)})"
        fence = words.name(self.fence)
        new = f"(attribute_not_exists({fence}) OR {fence} < {words.value(self.row.first)})"
        if not self.keys.keeps_windows:
            same = f"{words.name(WINDOW_START)} = {words.value(self.row.window.start)}"
            new = f"(attribute_not_exists({words.name(self.keys.partition.name)}) OR ({same} AND {new}))"
        if not self.looks:
            return new
        assert old is not None
        version = words.name(VERSION)
        seen = f"{version} = {words.value(old[VERSION])}" if VERSION in old else f"attribute_not_exists({version})"
        return f"{new} AND {seen}"


# ── the DynamoDB form ───────────────────────────────────────────────────────────────────────────────────────


class _ConditionFailed(Exception):
    def __init__(self, old: Wire | None) -> None:
        super().__init__()
        self.old = old


_THROTTLES = frozenset(
    {
        "ProvisionedThroughputExceededException",
        "ThrottlingException",
        "Throttling",
        "RequestLimitExceeded",
        "TransactionConflictException",
        "ReplicatedWriteConflictException",
    }
)
_SERVER_FAULTS = frozenset({"InternalServerError", "InternalFailure", "ServiceUnavailable", "500", "502", "503", "504"})
_NO_PERMISSION = frozenset(
    {
        "AccessDeniedException",
        "UnrecognizedClientException",
        "ExpiredTokenException",
        "MissingAuthenticationTokenException",
        "InvalidSignatureException",
    }
)
_WRONG_KEYS_LOCAL = ("number of conditions on the keys", "required keys was not given")  # DynamoDB Local's words
_WRONG_KEYS = ("does not match the schema", "Type mismatch for key", "Missing the key", *_WRONG_KEYS_LOCAL)
_WRONG_TYPE = ("incorrect data type", "incorrect operand type", "operand type")
_REFUSED = (
    "Item size",
    "empty string",
    "Number overflow",
    "Number underflow",
    "38 significant digits",
    "38 digits",
    "magnitude",
)


class DynamoTable:
    """A DynamoDB table. The client is made on first use, so that a declaration needs no region or credentials."""

    def __init__(
        self,
        name: str,
        keys: TableKeys,
        *,
        client: Any = None,
        endpoint_url: str | None = None,
        region: str | None = None,
        connections: int = 16,
    ) -> None:
        self.name = name
        self.keys = keys
        self._client = client
        self._endpoint = (endpoint_url, region, connections)
        self._making = threading.Lock()
        self._has_these_keys = False

    @property
    def client(self) -> Any:
        """The botocore client, shared by all threads."""
        if self._client is None:
            with self._making:
                if self._client is None:
                    self._client = dynamo_client(*self._endpoint)
        return self._client

    def check(self) -> None:
        """By DescribeTable, which a function's role need not allow: for commands, not for the handler."""
        found = self._described(self._call("describe_table")["Table"])
        if found != self.keys:
            raise self._wrong_keys(found)

    def merge(self, contribution: Contribution) -> Merged:
        """See Table. One write where the item is new or has only sums; one or two more where writers meet."""
        merge = _Merge(contribution, self.keys)
        old: Item | None = None
        for _ in range(MERGE_WRITES_MAX):
            operation, request = merge.request(old)
            try:
                self._call(operation, **request)
            except _ConditionFailed as failed:
                old = self._old(merge.key, failed)
            else:
                return Merged.APPLIED
            answer = merge.decide(old)
            if answer is not None:
                return answer
        raise Throttled((CONTENTION,))

    def put(self, items: Sequence[Item]) -> Mapping[int, Throttled]:
        """See Table. One BatchWriteItem after the other, 25 items each."""
        wires = [item_to_wire(item) for item in items]
        unprocessed: dict[int, Throttled] = {}
        if wires and not self._has_these_keys:
            try:
                self._see_keys(wires[0])
            except Throttled as nothing_done:
                return dict.fromkeys(range(len(wires)), nothing_done)
        for indexes in _batches(wires):
            unprocessed |= self._put_batch(wires, indexes)
        return unprocessed

    def items(self) -> Iterator[Item]:
        """See Table. By consistent Scan."""
        request: dict[str, Any] = {"ConsistentRead": True}
        while True:
            page = self._call("scan", **request)
            yield from map(item_from_wire, page["Items"])
            if "LastEvaluatedKey" not in page:
                return
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _see_keys(self, wire: Wire) -> None:
        """Once: a put goes wherever an item's attributes include the table's keys, and there the items of one such key
        would replace each other. GetItem takes a key of exactly the table's attributes. Raises TableProblem.
        """
        self._call("get_item", Key={name: wire[name] for name in self.keys.names})
        self._has_these_keys = True

    def _old(self, key: Item, failed: _ConditionFailed) -> Item | None:
        """The item that failed the condition, or None where it has been deleted since it was seen."""
        wire = failed.old or self._call("get_item", Key=item_to_wire(key), ConsistentRead=True).get("Item")
        return item_from_wire(wire) if wire else None

    def _put_batch(self, wires: Sequence[Wire], indexes: Sequence[int]) -> dict[int, Throttled]:
        puts = [{"PutRequest": {"Item": wires[index]}} for index in indexes]
        try:
            answer = self._call("batch_write_item", RequestItems={self.name: puts})
        except Throttled as none_processed:
            return dict.fromkeys(indexes, none_processed)
        left = [request for requests in answer.get("UnprocessedItems", {}).values() for request in requests]
        if not left:
            return {}
        by_key = {self._identity(wires[index]): index for index in indexes}
        return {by_key[self._identity(request["PutRequest"]["Item"])]: Throttled((UNPROCESSED,)) for request in left}

    def _identity(self, wire: Wire) -> tuple[Any, ...]:
        return tuple(from_wire(wire[name]) for name in self.keys.names)

    def _call(self, operation: str, **request: Any) -> Any:
        if operation != "batch_write_item":
            request["TableName"] = self.name
        send = getattr(self.client, operation)
        for sending in range(1, LOST_ANSWERS_MAX + 1):
            try:
                return send(**request)
            except ClientError as error:
                if sending == LOST_ANSWERS_MAX or error.response["Error"]["Code"] not in _SERVER_FAULTS:
                    raise self._meaning(error) from error
            except (HTTPClientError, BotoConnectionError, ResponseParserError):
                if sending == LOST_ANSWERS_MAX:
                    raise
            except NoCredentialsError as error:
                msg = f"no AWS credentials for table {self.name}: set them, or give the function a role"
                raise TableProblem(msg) from error
        raise AssertionError

    def _meaning(self, error: ClientError) -> Exception:
        """The error in this seam's words, or as it is where it has none."""
        code, text = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        if code == "ConditionalCheckFailedException":
            return _ConditionFailed(error.response.get("Item"))
        if code in _THROTTLES:
            return Throttled(_reasons(error.response) or (code,))
        if code == "ResourceNotFoundException":
            return TableProblem(f"table {self.name} {self._where()} is not there: create it with {self.keys}")
        if code in _NO_PERMISSION:
            msg = f"no permission to use table {self.name} {self._where()} ({code}: {text}): allow {_ACTIONS} on it"
            return TableProblem(msg)
        if code == "ValidationException":
            return self._invalid(text) or error
        return error  # type: ignore[no-any-return]

    def _invalid(self, text: str) -> Exception | None:
        if any(words in text for words in _WRONG_KEYS):
            return self._wrong_keys(self._found(), text)
        if any(words in text for words in _WRONG_TYPE):
            msg = f"table {self.name} holds an item with a total that is not a number ({text}): use another table"
            return TableProblem(msg)
        if any(words in text for words in _REFUSED):
            return ItemRefused(f"table {self.name} refused an item: {text}")
        found = self._found()  # a server may not say why
        return self._wrong_keys(found) if found is not None and found != self.keys else None

    def _found(self) -> TableKeys | None:
        """The table's own keys, where they may be asked for."""
        with suppress(Exception):
            return self._described(self.client.describe_table(TableName=self.name)["Table"])
        return None

    def _wrong_keys(self, found: TableKeys | None, text: str = "") -> TableProblem:
        has = f"has {found}" if found else f"has other keys ({text})"
        return TableProblem(
            f"table {self.name} {self._where()} should have {self.keys}; it {has}: "
            "create a table with those keys, or declare the key that this one has"
        )

    def _described(self, table: Mapping[str, Any]) -> TableKeys:
        types = {part["AttributeName"]: part["AttributeType"] for part in table["AttributeDefinitions"]}
        by_role = {part["KeyType"]: part["AttributeName"] for part in table["KeySchema"]}
        keys = [KeyAttribute(by_role[role], types[by_role[role]]) for role in ("HASH", "RANGE") if role in by_role]
        return TableKeys(*keys)

    def _where(self) -> str:
        return f"in {self.client.meta.region_name} at {self.client.meta.endpoint_url}"


_ACTIONS = "dynamodb:UpdateItem, PutItem, GetItem and BatchWriteItem"


def dynamo_client(endpoint_url: str | None = None, region: str | None = None, connections: int = 16) -> Any:
    """A botocore client that retries nothing, with a connection for each of `connections` threads."""
    import boto3  # costly to import, and only the deployed function and the commands need it
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=connections,
        connect_timeout=2,
        read_timeout=10,
        tcp_keepalive=True,
        parameter_validation=False,
    )
    return boto3.session.Session().client("dynamodb", endpoint_url=endpoint_url, region_name=region, config=config)


def _reasons(response: Mapping[str, Any]) -> tuple[str, ...]:
    # ThrottlingException spells it with a small t (botocore's model of DynamoDB)
    given = response.get("ThrottlingReasons") or response.get("throttlingReasons") or []
    return tuple(entry["reason"] for entry in given if entry.get("reason"))


def _batches(wires: Sequence[Wire]) -> Iterator[list[int]]:
    """Indexes, in order, in batches that one BatchWriteItem takes."""
    batch: list[int] = []
    size = 0
    for index, wire in enumerate(wires):
        length = len(json.dumps(wire)) + 100  # as botocore writes it, with the request around it
        if batch and (len(batch) == BATCH_ITEMS_MAX or size + length > BATCH_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(index)
        size += length
    if batch:
        yield batch
