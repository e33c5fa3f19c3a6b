"""One suite for every form of the table, and what the DynamoDB form alone must do.

Where a server does not do what DynamoDB does, GAPS says so, and the test runs there to show that it still does not.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import permutations
from random import Random
from threading import Thread
from time import sleep
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from botocore.parsers import ResponseParserError
from hypothesis import given
from hypothesis import strategies as st

from tests import servers
from windlass.core.contribution import Contribution
from windlass.core.position import position
from windlass.core.window import Window
from windlass.delivery import DeliveryPolicy, deliver, merging
from windlass.sim.table import MemoryTable
from windlass.table import (
    ConflictingFlush,
    DynamoTable,
    Item,
    ItemRefused,
    KeyAttribute,
    Merged,
    Table,
    TableKeys,
    TableProblem,
    Throttled,
    dynamo_client,
    item_from_wire,
    item_to_wire,
    to_wire,
)

HISTORY = TableKeys.history("vendorId", "N")
LATEST = TableKeys.latest("vendorId", "N")
COMPOSITE = TableKeys.history("vendorId#borough", "S")
POSITIONS = TableKeys(KeyAttribute("shard", "S"), KeyAttribute("position", "S"))
LAYOUTS = pytest.mark.parametrize("keys", [HISTORY, LATEST], ids=["history", "latest"])

WINDOW = Window(1_607_497_440_000, 1_607_497_470_000)
LATER = Window(WINDOW.end_ms, WINDOW.end_ms + 30_000)
START, END = "2020-12-09T07:04:00Z", "2020-12-09T07:04:30Z"
SHARD = "shardId-00000000000{}"

GAPS = [
    # form, test, part of the test's parameters, what the server does where DynamoDB does what the test claims
    ("moto", "test_sums_are_exact_to_38_digits", "values8", "adds decimals to 28 digits"),
    ("moto", "test_sums_are_exact_to_38_digits", "values5", "cannot add to what it stored as 1E-18"),
    ("moto", "test_sums_are_exact_to_38_digits", "values10", "cannot add to what it stored as 1E-130"),
    ("moto", "test_two_shards_in_any_interleaving_give_the_same_item", "", "cannot add to what it stored as 1E-10"),
    ("moto", "test_a_sum_that_outgrows_38_digits_is_refused_and_changes_nothing", "", "rounds it"),
    ("dynalite", "test_a_sum_that_outgrows_38_digits_is_refused_and_changes_nothing", "", "stores 39 digits"),
    ("moto", "test_an_empty_text_key_is_refused", "", "updates an item with an empty key"),
]
RACES = [
    ("moto", "test_eight_shards_meet_in_one_item_at_the_same_time", "checks and writes in two steps: updates get lost"),
]


@pytest.fixture(scope="session")
def _ended() -> Iterator[None]:
    yield
    servers.end_all()


@pytest.fixture(params=servers.FORMS)
def form(request: pytest.FixtureRequest, _ended: None) -> Iterator[servers.Form]:
    form = servers.form(request.param)
    test, parameters = request.function.__name__, request.node.name
    for name, where, part, instead in GAPS:
        if (name, where) == (form.name, test) and part in parameters:
            request.applymarker(pytest.mark.xfail(reason=f"{name} {instead}", strict=True))
    for name, where, instead in RACES:
        if (name, where) == (form.name, test):
            pytest.skip(f"{name} {instead}")
    with form.running():
        yield form


def row(
    vendor: int | str,
    first: int = 1,
    through: int = 9,
    *,
    shard: int = 0,
    window: Window = WINDOW,
    name: str = "vendorId",
    **values: Any,
) -> Contribution:
    """A contribution; values are add=, least=, most=, plain=; without any, one passenger."""
    values = values or {"add": {"passenger": 1}}
    return Contribution(
        key={name: vendor},
        window=window,
        source=SHARD.format(shard),
        first=position(str(first)),
        through=position(str(through)),
        **{"add": {}, **values},
    )


def stored(table: Table, key: object) -> list[Item]:
    """The items of a partition key, by window or other sort key."""
    name = table.keys.partition.name
    if not isinstance(table, DynamoTable):
        return sorted(
            (item for item in table.items() if item[name] == key),
            key=lambda item: [item[name] for name in table.keys.names],
        )
    found = table.client.query(
        TableName=table.name,
        ConsistentRead=True,
        KeyConditionExpression="#k = :k",
        ExpressionAttributeNames={"#k": name},
        ExpressionAttributeValues={":k": to_wire(key)},
    )
    return [item_from_wire(item) for item in found["Items"]]


def totals(table: Table, key: object) -> Item:
    """The one item of a key, without its key, window, fences and version."""
    (item,) = stored(table, key)
    apart = {*table.keys.names, "windowStart", "windowEnd", "version"}
    return {name: value for name, value in item.items() if name not in apart and not name.startswith("applied#")}


# ── the fence ───────────────────────────────────────────────────────────────────────────────────────────────

FENCE = [
    # stored through | segment | answer
    (None, (10, 20), Merged.APPLIED),
    (9, (10, 20), Merged.APPLIED),
    (10, (10, 20), ConflictingFlush),
    (15, (10, 20), ConflictingFlush),
    (19, (10, 20), ConflictingFlush),
    (20, (10, 20), Merged.ALREADY),
    (25, (10, 20), Merged.ALREADY),
    (10, (10, 10), Merged.ALREADY),
]
KINDS = {
    "sums": {"add": {"passenger": 5}},
    "extremes": {"add": {"passenger": 5}, "least": {"low": 5}, "most": {"high": 5}},
}


@LAYOUTS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("through", "segment", "answer"), FENCE)
def test_the_stored_fence_decides(
    form: servers.Form,
    keys: TableKeys,
    kind: str,
    through: int | None,
    segment: tuple[int, int],
    answer: Merged | type[Exception],
) -> None:
    table, key = form.table(keys), servers.own_key()
    table.merge(row(key, 1, 99, shard=1, **KINDS[kind]))
    if through is not None:
        table.merge(row(key, 1, through, **KINDS[kind]))
    before = stored(table, key)
    if isinstance(answer, Merged):
        assert table.merge(row(key, *segment, **KINDS[kind])) is answer
        grown = 5 if answer is Merged.APPLIED else 0
        assert totals(table, key)["passenger"] == before[0]["passenger"] + grown
    else:
        with pytest.raises(ConflictingFlush) as conflict:
            table.merge(row(key, *segment, **KINDS[kind]))
        assert conflict.value.stored == position(str(through))
        assert stored(table, key) == before


@LAYOUTS
def test_a_conflict_names_item_shard_and_positions(form: servers.Form, keys: TableKeys) -> None:
    table, key = form.table(keys), servers.own_key()
    table.merge(row(key, 1, 15))
    with pytest.raises(ConflictingFlush) as conflict:
        table.merge(row(key, 10, 20))
    for part in (f"'vendorId': {key}", SHARD.format(0), position("15"), position("10"), position("20")):
        assert part in str(conflict.value)


# ── items ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_history_keeps_an_item_per_window(form: servers.Form) -> None:
    table, key = form.table(HISTORY), servers.own_key()
    table.merge(row(key, 1, 9, add={"passenger": 3, "trips": 2}))
    table.merge(row(key, 10, 19, window=LATER, add={"passenger": 4, "trips": 1}))
    fence = "applied#" + SHARD.format(0)
    first = {"vendorId": key, "windowStart": START, "windowEnd": END, fence: position("9"), "passenger": 3, "trips": 2}
    second = {**first, "windowStart": END, "windowEnd": LATER.end, fence: position("19"), "passenger": 4, "trips": 1}
    assert stored(table, key) == [first, second]


def test_an_item_of_the_latest_layout_has_its_window_as_attributes(form: servers.Form) -> None:
    table, key = form.table(LATEST), servers.own_key()
    table.merge(row(key, 1, 9, add={"passenger": 3}))
    fence = "applied#" + SHARD.format(0)
    item = {"vendorId": key, "windowStart": START, "windowEnd": END, fence: position("9"), "passenger": 3}
    assert stored(table, key) == [item]


@LAYOUTS
def test_shards_add_up_in_one_item(form: servers.Form, keys: TableKeys) -> None:
    table, key = form.table(keys), servers.own_key()
    for shard in range(4):
        assert table.merge(row(key, shard=shard, add={"passenger": 10 + shard, "trips": 1})) is Merged.APPLIED
    assert totals(table, key) == {"passenger": 46, "trips": 4}


@LAYOUTS
def test_segments_of_a_shard_follow_each_other(form: servers.Form, keys: TableKeys) -> None:
    table, key = form.table(keys), servers.own_key()
    segments = [row(key, 1, 4, add={"n": 4}), row(key, 5, 5, add={"n": 1}), row(key, 6, 8, add={"n": 3})]
    assert [table.merge(segment) for segment in segments] == [Merged.APPLIED] * 3
    assert [table.merge(segment) for segment in segments] == [Merged.ALREADY] * 3
    assert totals(table, key) == {"n": 8}


@LAYOUTS
def test_minima_and_maxima_are_those_of_all_shards(form: servers.Form, keys: TableKeys) -> None:
    table, key = form.table(keys), servers.own_key()
    for shard, value in enumerate([5, -3, 12, 0]):
        table.merge(row(key, shard=shard, add={"n": 1}, least={"low": value}, most={"high": value}))
    assert totals(table, key) == {"n": 4, "low": -3, "high": 12}


def test_an_extreme_may_be_absent_from_some_rows(form: servers.Form) -> None:
    table, key = form.table(HISTORY), servers.own_key()
    table.merge(row(key, shard=0, add={"n": 1}))
    table.merge(row(key, shard=1, add={"n": 1}, least={"low": Decimal("-0.25")}))
    table.merge(row(key, shard=2, add={"n": 1}, most={"high": -7}))
    table.merge(row(key, shard=3, add={"n": 1}))
    assert totals(table, key) == {"n": 4, "low": Decimal("-0.25"), "high": -7}


def test_a_row_without_any_number_still_moves_the_fence(form: servers.Form) -> None:
    table, key = form.table(HISTORY), servers.own_key()
    assert table.merge(row(key, add={})) is Merged.APPLIED
    assert table.merge(row(key, add={})) is Merged.ALREADY
    assert totals(table, key) == {}


SUMS = [
    ([-5, 3], -2),
    ([0, 0], 0),
    ([-7, 7], 0),
    ([Decimal("0.1"), Decimal("0.2")], Decimal("0.3")),
    ([Decimal("-12.50"), 12], Decimal("-0.5")),
    ([Decimal("1E-18"), 10**19], Decimal("10000000000000000000.000000000000000001")),
    ([10**38 - 2, 1], 10**38 - 1),
    ([-(10**38) + 1, 0], -(10**38) + 1),
    ([Decimal("0." + "1" * 38), Decimal("0." + "2" * 38)], Decimal("0." + "3" * 38)),
    ([Decimal("9E+125"), Decimal("-9E+125")], 0),
    ([Decimal("1E-130"), 0], Decimal("1E-130")),
    ([2**63 - 1] * 4, 4 * (2**63 - 1)),
]


@pytest.mark.parametrize(("values", "expected"), SUMS)
def test_sums_are_exact_to_38_digits(form: servers.Form, values: list[Any], expected: Any) -> None:
    table, key = form.table(HISTORY), servers.own_key()
    for shard, value in enumerate(values):
        table.merge(row(key, shard=shard, add={"sum": value}))
    assert totals(table, key) == {"sum": expected}


@pytest.mark.parametrize("value", [10**38 - 1, Decimal("-" + "7" * 37 + ".7"), Decimal("1E-130")])
def test_extremes_are_exact_to_38_digits(form: servers.Form, value: Any) -> None:
    table, key = form.table(HISTORY), servers.own_key()
    for shard in (0, 1):
        table.merge(row(key, shard=shard, least={"low": value}, most={"high": value}))
    assert totals(table, key) == {"low": value, "high": value}


@pytest.mark.parametrize("value", [10**38 + 1, Decimal("NaN"), Decimal("Infinity"), Decimal("1E+126"), 10**126])
def test_a_number_that_dynamodb_cannot_hold_is_refused(form: servers.Form, value: Any) -> None:
    table, key = form.table(HISTORY), servers.own_key()
    with pytest.raises(ItemRefused, match="38 digits"):
        table.merge(row(key, add={"sum": value}))
    with pytest.raises(ItemRefused, match="38 digits"):
        table.merge(row(key, most={"high": value}))
    assert stored(table, key) == []


def test_a_sum_that_outgrows_38_digits_is_refused_and_changes_nothing(form: servers.Form) -> None:
    table, key = form.table(HISTORY), servers.own_key()
    table.merge(row(key, shard=0, add={"sum": 10**38 - 1}))
    before = stored(table, key)
    with pytest.raises(ItemRefused):
        table.merge(row(key, shard=1, add={"sum": Decimal("0.5")}))
    assert stored(table, key) == before


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_of_several_fields_is_one_text_with_its_parts_beside_it(form: servers.Form) -> None:
    table, vendor = form.table(COMPOSITE), servers.own_key()
    for shard in (0, 1):
        parts = {"vendorId": vendor, "borough": "Bronx"}
        table.merge(row(f"{vendor}#Bronx", shard=shard, name="vendorId#borough", add={"n": 1}, plain=parts))
    assert totals(table, f"{vendor}#Bronx") == {"n": 2, "vendorId": vendor, "borough": "Bronx"}


@pytest.mark.parametrize("text", ["plain", "Žižkov", "数", "a'b\"c\\d#e", " ", "x" * 500])
def test_a_text_key_may_hold_any_characters(form: servers.Form, text: str) -> None:
    table, key = form.table(TableKeys.history("zone", "S")), f"{servers.own_key()}{text}"
    for shard in (0, 1):
        table.merge(row(key, shard=shard, name="zone", add={"n": 1}))
    assert totals(table, key) == {"n": 2}


def test_attribute_names_may_hold_any_characters_and_reserved_words(form: servers.Form) -> None:
    table, key = form.table(HISTORY), servers.own_key()
    names = ["count", "fare#sum", "a.b", "Länge", "select", ":0", "#0"]
    for shard in (0, 1):
        table.merge(row(key, shard=shard, add=dict.fromkeys(names, 1), least={"min": 3}, most={"max": 3}))
    assert totals(table, key) == {**dict.fromkeys(names, 2), "min": 3, "max": 3}


def test_an_empty_text_key_is_refused(form: servers.Form) -> None:
    table = form.table(TableKeys.history("zone", "S"))
    with pytest.raises(ItemRefused):
        table.merge(row("", name="zone"))
    with pytest.raises(ItemRefused):
        form.table(POSITIONS).put([{"shard": "", "position": "1"}])


# ── the latest layout ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_a_newer_window_replaces_the_item_with_its_fences(form: servers.Form, kind: str) -> None:
    table, key = form.table(LATEST), servers.own_key()
    table.merge(row(key, 1, 9, shard=0, **KINDS["extremes"]))
    table.merge(row(key, 1, 9, shard=1, add={"old": 1}))
    assert table.merge(row(key, 10, 19, shard=2, window=LATER, **KINDS[kind])) is Merged.APPLIED
    (item,) = stored(table, key)
    expected = {"vendorId": key, "windowStart": LATER.start, "windowEnd": LATER.end, "passenger": 5}
    expected["applied#" + SHARD.format(2)] = position("19")
    extremes = {"low": 5, "high": 5, "version": 1} if kind == "extremes" else {}
    assert item == expected | extremes


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_window_never_overwrites_a_newer_one(form: servers.Form, kind: str) -> None:
    table, key = form.table(LATEST), servers.own_key()
    table.merge(row(key, 10, 19, window=LATER, **KINDS[kind]))
    before = stored(table, key)
    assert table.merge(row(key, 1, 9, **KINDS[kind])) is Merged.SUPERSEDED
    assert table.merge(row(key, 1, 9, shard=1, **KINDS[kind])) is Merged.SUPERSEDED
    assert stored(table, key) == before


@pytest.mark.parametrize("kind", KINDS)
def test_shards_merge_into_the_window_that_replaced_an_older_one(form: servers.Form, kind: str) -> None:
    table, key = form.table(LATEST), servers.own_key()
    table.merge(row(key, 1, 9, shard=0, **KINDS[kind]))
    for shard in (0, 1, 2):
        table.merge(row(key, 10, 19, shard=shard, window=LATER, **KINDS[kind]))
        assert table.merge(row(key, 10, 19, shard=shard, window=LATER, **KINDS[kind])) is Merged.ALREADY
    assert totals(table, key)["passenger"] == 15


def test_an_item_that_someone_else_put_counts_as_an_older_window(form: servers.Form) -> None:
    table, key = form.table(LATEST), servers.own_key()
    table.put([{"vendorId": key, "passenger": 1000}])
    assert table.merge(row(key, add={"passenger": 3})) is Merged.APPLIED
    assert totals(table, key) == {"passenger": 3}


# ── lost answers and many writers ───────────────────────────────────────────────────────────────────────────


def _no_answer() -> Exception:
    return ReadTimeoutError(endpoint_url="http://127.0.0.1")


@LAYOUTS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lost", [1, 9])
@pytest.mark.parametrize("window", [WINDOW, LATER], ids=["same window", "newer window"])
def test_a_retry_after_a_lost_answer_changes_nothing(
    form: servers.Form, keys: TableKeys, kind: str, lost: int, window: Window
) -> None:
    table, key = form.table(keys), servers.own_key()
    table.merge(row(key, 1, 9, shard=1, **KINDS[kind]))
    losing = form.losing(keys, _no_answer, lost)
    contribution = row(key, 10, 19, window=window, **KINDS[kind])
    with suppress(ReadTimeoutError):
        losing.merge(contribution)
    again = [table.merge(contribution) for _ in range(2)]
    assert again[1] is Merged.ALREADY
    assert again[0] is Merged.ALREADY or lost > 1  # where every answer was a failed condition, nothing was applied
    expected = 10 if window is WINDOW else 5
    assert stored(table, key)[-1]["passenger"] == expected


def test_a_repeated_put_changes_nothing(form: servers.Form) -> None:
    table, key = form.table(POSITIONS), str(servers.own_key())
    items = [{"shard": key, "position": str(number), "n": number} for number in range(30)]
    losing = form.losing(POSITIONS, _no_answer, 1)
    with suppress(ReadTimeoutError):
        losing.put(items)
    assert table.put(items) == {}
    assert len(stored(table, key)) == 30


@LAYOUTS
@pytest.mark.parametrize("kind", KINDS)
def test_eight_shards_meet_in_one_item_at_the_same_time(form: servers.Form, keys: TableKeys, kind: str) -> None:
    table, key = form.table(keys), servers.own_key()
    rows = [
        row(key, first, first, shard=shard, add={"n": 1}, **({} if kind == "sums" else {"most": {"high": first}}))
        for first in (1, 2)
        for shard in range(8)
    ]

    def flush(shard: int) -> None:
        for contribution in rows[shard::8]:
            while True:
                try:
                    table.merge(contribution)
                    break
                except Throttled:
                    pass

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(flush, range(8)))
    assert totals(table, key) == {"n": 16} | ({} if kind == "sums" else {"high": 2})


def test_many_writers_of_minima_that_meet_in_one_item_all_get_through(form: servers.Form) -> None:
    if form.name == "moto":
        pytest.skip("moto is not made for calls at the same time")
    table, key = form.table(HISTORY), servers.own_key()

    def flush(shard: int) -> int:
        contribution = row(key, 1, 1, shard=shard, add={"n": 1}, least={"low": shard})
        chance = Random(shard)
        delivery = deliver(
            [contribution],
            merging(table),
            policy=DeliveryPolicy(),
            remaining_ms=lambda: 60_000,
            sleep=sleep,
            random=chance.random,
        )
        return delivery.count(Merged.APPLIED)

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(flush, range(16))) == [1] * 16
    assert totals(table, key) == {"n": 16, "low": 0}


class Between:
    """A client that lets another writer come between, once, right before the first call of an operation."""

    def __init__(self, client: Any, operation: str, other: Callable[[], object]) -> None:
        self._client = client
        self._operation = operation
        self._others = [other]

    def __getattr__(self, operation: str) -> Any:
        if operation == self._operation and self._others:
            self._others.pop()()
        return getattr(self._client, operation)


RACING = [
    # layout, window stored before, operation that the other writer comes right before
    (LATEST, WINDOW, "put_item"),
    (LATEST, None, "update_item"),
    (HISTORY, None, "update_item"),
]


@pytest.mark.parametrize(("keys", "before", "operation"), RACING)
@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_that_comes_between_is_seen(
    form: servers.Form, keys: TableKeys, before: Window | None, operation: str, kind: str
) -> None:
    table, key = form.table(keys), servers.own_key()
    if not isinstance(table, DynamoTable):
        pytest.skip("a merge in memory is one step")
    if before is not None:
        table.merge(row(key, 1, 9, window=before, **KINDS[kind]))
    other = row(key, 10, 19, shard=1, window=LATER, add={"passenger": 7}, most={"high": 70})
    racing = DynamoTable(table.name, keys, client=Between(table.client, operation, lambda: table.merge(other)))
    assert racing.merge(row(key, 10, 19, window=LATER, **KINDS[kind])) is Merged.APPLIED
    found = totals(table, key)
    assert (found["passenger"], found["high"]) == (12, 70)


def test_a_newer_window_that_comes_between_supersedes(form: servers.Form) -> None:
    table, key = form.table(LATEST), servers.own_key()
    if not isinstance(table, DynamoTable):
        pytest.skip("a merge in memory is one step")
    table.merge(row(key, 1, 9))
    newest = row(key, 20, 29, shard=1, window=Window(LATER.end_ms, LATER.end_ms + 30_000), add={"passenger": 7})
    racing = DynamoTable(table.name, LATEST, client=Between(table.client, "put_item", lambda: table.merge(newest)))
    assert racing.merge(row(key, 10, 19, window=LATER)) is Merged.SUPERSEDED
    assert totals(table, key) == {"passenger": 7}


@LAYOUTS
def test_two_shards_in_any_interleaving_give_the_same_item(form: servers.Form, keys: TableKeys) -> None:
    table = form.table(keys)
    segments = {
        (0, 1): {"add": {"n": 2, "sum": Decimal("0.1")}, "least": {"low": 4}},
        (0, 2): {"add": {"n": 1, "sum": Decimal("-7")}, "least": {"low": -4}},
        (1, 1): {"add": {"n": 3, "sum": Decimal("1E-10")}, "least": {"low": 9}},
    }
    found = []
    for order in permutations(segments):
        if order.index((0, 1)) > order.index((0, 2)):
            continue  # a shard's segments come in its own order
        key = servers.own_key()
        for shard, number in order:
            table.merge(row(key, number, number, shard=shard, **segments[shard, number]))
        (item,) = stored(table, key)
        del item["vendorId"]
        found.append(item)
    assert len(found) == 3
    assert found[0]["sum"] == Decimal("-6.8999999999")
    assert all(item == found[0] for item in found)


@LAYOUTS
def test_any_course_of_merges_ends_as_it_does_in_memory(form: servers.Form, keys: TableKeys) -> None:
    rng, key = Random(7), servers.own_key()
    table, memory = form.table(keys), MemoryTable(keys)
    next_of = [1, 1, 1]
    sent: list[Contribution] = []
    for _ in range(28):
        if sent and rng.random() < 0.3:
            contribution = rng.choice(sent[-6:])
        else:
            shard, length = rng.randrange(3), rng.randrange(1, 5)
            first, next_of[shard] = next_of[shard], next_of[shard] + length
            values = {"add": {"n": length, "sum": Decimal(rng.randrange(-500, 500)) / 100}}
            if rng.random() < 0.5:
                values |= {"least": {"low": rng.randrange(-9, 9)}, "most": {"high": rng.randrange(-9, 9)}}
            window = LATER if len(sent) > 12 and rng.random() < 0.8 else WINDOW
            contribution = row(key, first, first + length - 1, shard=shard, window=window, **values)
            sent.append(contribution)
        assert table.merge(contribution) is memory.merge(contribution)
    assert stored(table, key) == stored(memory, key)


@given(st.data())
def test_merges_of_several_shards_commute_and_may_repeat(data: st.DataObject) -> None:
    numbers = st.integers(-(10**18), 10**18) | st.decimals(-1000, 1000, places=3)
    shards = data.draw(st.lists(st.lists(numbers, min_size=1, max_size=4), min_size=1, max_size=4))

    def segments(shard: int) -> list[Contribution]:
        return [
            row(1, number, number, shard=shard, add={"sum": value}, least={"low": value}, most={"high": value})
            for number, value in enumerate(shards[shard], 1)
        ]

    def run(order: list[int]) -> list[Item]:
        table, waiting = MemoryTable(HISTORY), [segments(shard) for shard in range(len(shards))]
        for shard in order:
            if waiting[shard]:
                contribution = waiting[shard].pop(0)
                table.merge(contribution)
                for _ in range(data.draw(st.integers(0, 2))):
                    assert table.merge(contribution) is Merged.ALREADY
        return stored(table, 1)

    every = [shard for shard, values in enumerate(shards) for _ in values]
    (item,) = run(every)
    assert run(data.draw(st.permutations(every))) == [item]
    flat = [value for values in shards for value in values]
    assert (item["low"], item["high"]) == (min(flat), max(flat))
    assert item["sum"] == sum(map(Fraction, flat))


# ── putting items ───────────────────────────────────────────────────────────────────────────────────────────


def test_put_stores_items_as_they_are(form: servers.Form) -> None:
    table, key = form.table(POSITIONS), str(servers.own_key())
    item = {
        "shard": key,
        "position": position("7"),
        "whole": -3,
        "exact": Decimal("2.50"),
        "yes": True,
        "nothing": None,
        "empty": "",
        "place": {"name": "Žižkov", "at": [Decimal("50.08"), 14, {"deep": False}]},
        "none": [],
    }
    assert table.put([item]) == {}
    assert stored(table, key) == [item]


def test_put_takes_more_items_than_one_request_does(form: servers.Form) -> None:
    table, key = form.table(POSITIONS), str(servers.own_key())
    items = [{"shard": key, "position": f"{number:03d}"} for number in range(60)]
    assert table.put(items) == {}
    assert stored(table, key) == items
    assert table.put([]) == {}


def test_items_are_all_there_however_many_pages_they_take(form: servers.Form) -> None:
    table, key = form.table(POSITIONS), str(servers.own_key())
    items = [{"shard": key, "position": f"{number:03d}", "data": "x" * 60_000} for number in range(20)]
    table.put(items)
    found = sorted((item for item in table.items() if item["shard"] == key), key=lambda item: item["position"])
    assert found == items


def test_put_replaces_the_whole_item(form: servers.Form) -> None:
    table, key = form.table(POSITIONS), str(servers.own_key())
    table.put([{"shard": key, "position": "1", "old": 1}])
    table.put([{"shard": key, "position": "1", "new": 2}])
    assert stored(table, key) == [{"shard": key, "position": "1", "new": 2}]


def test_an_item_over_400_kb_is_refused(form: servers.Form) -> None:
    table, key = form.table(POSITIONS), str(servers.own_key())
    with pytest.raises(ItemRefused):
        table.put([{"shard": key, "position": "1", "data": "x" * 400 * 1024}])
    assert stored(table, key) == []


# ── a table that is not as it should be ─────────────────────────────────────────────────────────────────────


def test_a_table_with_the_right_keys_passes_the_check(form: servers.Form) -> None:
    for keys in (HISTORY, LATEST, COMPOSITE, POSITIONS):
        form.table(keys).check()


WRONG = {
    "key name": (TableKeys.history("vendor", "N"), HISTORY),
    "key type": (TableKeys.history("vendorId", "S"), HISTORY),
    "no sort key": (LATEST, HISTORY),
    "a sort key": (HISTORY, LATEST),
    "sort key name": (TableKeys(KeyAttribute("vendorId", "N"), KeyAttribute("start", "S")), HISTORY),
    "sort key type": (TableKeys(KeyAttribute("vendorId", "N"), KeyAttribute("windowStart", "N")), HISTORY),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("use", ["check", "merge", "merge extremes", "put"])
def test_a_table_with_other_keys_is_named_with_what_was_expected(form: servers.Form, wrong: str, use: str) -> None:
    actual, keys = WRONG[wrong]
    table = form.declared(actual, keys)
    if isinstance(table, MemoryTable) and (use == "check" or wrong in ("no sort key", "a sort key")):
        pytest.skip("a table in memory has no declaration beside it")
    uses: dict[str, Callable[[], object]] = {
        "check": table.check,
        "merge": lambda: table.merge(row(1)),
        "merge extremes": lambda: table.merge(row(1, least={"low": 1})),
        "put": lambda: table.put([{"vendorId": 1, **({"windowStart": START} if keys.sort else {})}]),
    }
    with pytest.raises(TableProblem) as problem:
        uses[use]()
    message = str(problem.value)
    assert "\n" not in message
    assert str(actual) in message
    if isinstance(table, DynamoTable):
        assert table.name in message
        assert f"should have {keys}" in message


@pytest.mark.parametrize("use", ["check", "merge", "put", "items"])
def test_a_missing_table_is_named_with_what_to_do(form: servers.Form, use: str) -> None:
    if form.name == "memory":
        pytest.skip("a table in memory is never missing")
    table = form.missing(HISTORY)
    uses: dict[str, Callable[[], object]] = {
        "check": table.check,
        "merge": lambda: table.merge(row(1)),
        "put": lambda: table.put([{"vendorId": 1, "windowStart": START}]),
        "items": lambda: list(table.items()),
    }
    with pytest.raises(TableProblem) as problem:
        uses[use]()
    assert "windlass-test-missing" in str(problem.value)
    assert f"create it with {HISTORY}" in str(problem.value)


def test_a_total_that_is_not_a_number_is_a_problem_of_the_table(form: servers.Form) -> None:
    table, key = form.table(HISTORY), servers.own_key()
    table.put([{"vendorId": key, "windowStart": START, "passenger": "3"}])
    with pytest.raises(TableProblem, match="not a number"):
        table.merge(row(key, add={"passenger": 1}))


def test_the_suite_runs_on_a_real_account_too() -> None:
    if not servers.REMOTE:
        pytest.skip(
            "no real account: set AWS credentials, AWS_REGION and WINDLASS_REMOTE=1 (tables are made and deleted)"
        )
    servers.form("aws").table(HISTORY).check()


# ── the DynamoDB form alone ─────────────────────────────────────────────────────────────────────────────────


class Answering:
    """A client that answers from a list: a dict is returned, an exception raised. It keeps the requests."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.meta = type("Meta", (), {"region_name": "eu-west-1", "endpoint_url": "https://dynamodb"})

    def __getattr__(self, operation: str) -> Callable[..., object]:
        def call(**request: Any) -> object:
            self.requests.append((operation, request))
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


def error(code: str, message: str = "why", **more: Any) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}, **more}, "UpdateItem")  # type: ignore[typeddict-item]


def table_answering(*answers: object, keys: TableKeys = HISTORY) -> tuple[DynamoTable, Answering]:
    client = Answering(*answers)
    return DynamoTable("kinesisAggs", keys, client=client), client


def test_a_row_of_sums_is_one_write_on_a_new_item() -> None:
    table, client = table_answering({})
    table.merge(row(1))
    ((operation, request),) = client.requests
    assert operation == "update_item"
    assert request["ReturnValuesOnConditionCheckFailure"] == "ALL_OLD"


def test_the_old_item_comes_with_the_failed_condition_and_is_not_read_again() -> None:
    old = item_to_wire({"vendorId": 1, "windowStart": START, "low": 3, "version": 4})
    table, client = table_answering(error("ConditionalCheckFailedException", Item=old), {})
    assert table.merge(row(1, least={"low": 5})) is Merged.APPLIED
    assert [operation for operation, _ in client.requests] == ["update_item", "update_item"]
    written = client.requests[1][1]["ExpressionAttributeValues"].values()
    assert {"N": "3"} in written
    assert {"N": "5"} in written  # the next version
    assert len(written) == 6


def test_the_item_is_read_where_a_server_does_not_return_it() -> None:
    old = item_to_wire({"vendorId": 1, "windowStart": START, "applied#" + SHARD.format(0): position("9")})
    table, client = table_answering(error("ConditionalCheckFailedException"), {"Item": old})
    assert table.merge(row(1)) is Merged.ALREADY
    assert client.requests[1][0] == "get_item"
    assert client.requests[1][1]["ConsistentRead"] is True


def test_contention_that_does_not_end_is_a_throttle_of_a_hot_key() -> None:
    old = item_to_wire({"vendorId": 1, "windowStart": START, "version": 4})
    table, _ = table_answering(*[error("ConditionalCheckFailedException", Item=old)] * 20)
    with pytest.raises(Throttled) as throttled:
        table.merge(row(1, least={"low": 5}))
    assert throttled.value.reasons == ("ItemContention",)
    assert throttled.value.hot_key


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [("version", "1.0", "a whole number"), ("low", "x", "a number"), ("applied#" + SHARD.format(0), 7, "text")],
)
def test_an_attribute_that_windlass_did_not_write_is_a_problem_of_the_table(attribute, value, says) -> None:
    old = item_to_wire({"vendorId": 1, "windowStart": START, attribute: value})
    table, _ = table_answering(*[error("ConditionalCheckFailedException", Item=old)] * 20)
    with pytest.raises(TableProblem, match=f"attribute {attribute} of item .* should be {says}; found {value!r}"):
        table.merge(row(1, least={"low": 5}))


THROTTLES = [
    (error("ProvisionedThroughputExceededException"), ("ProvisionedThroughputExceededException",), False),
    (error("ThrottlingException"), ("ThrottlingException",), False),
    (error("RequestLimitExceeded"), ("RequestLimitExceeded",), False),
    (error("TransactionConflictException"), ("TransactionConflictException",), True),
    (
        error(
            "ProvisionedThroughputExceededException",
            ThrottlingReasons=[{"reason": "TableWriteKeyRangeThroughputExceeded", "resource": "arn"}],
        ),
        ("TableWriteKeyRangeThroughputExceeded",),
        True,
    ),
    (
        error(
            "ThrottlingException",
            throttlingReasons=[
                {"reason": "TableWriteMaxOnDemandThroughputExceeded", "resource": "arn"},
                {"reason": "IndexWriteAccountLimitExceeded", "resource": "arn"},
            ],
        ),
        ("TableWriteMaxOnDemandThroughputExceeded", "IndexWriteAccountLimitExceeded"),
        False,
    ),
]


@pytest.mark.parametrize(("answer", "reasons", "hot_key"), THROTTLES)
def test_a_throttle_says_why_and_is_not_tried_again_here(
    answer: ClientError, reasons: tuple[str, ...], hot_key: bool
) -> None:
    table, client = table_answering(answer)
    with pytest.raises(Throttled) as throttled:
        table.merge(row(1))
    assert (throttled.value.reasons, throttled.value.hot_key) == (reasons, hot_key)
    assert len(client.requests) == 1


LOST = [
    error("InternalServerError"),
    error("ServiceUnavailable"),
    ReadTimeoutError(endpoint_url="http://127.0.0.1"),
    ConnectionClosedError(endpoint_url="http://127.0.0.1"),
    ResponseParserError("half a body"),
]


@pytest.mark.parametrize("answer", LOST, ids=lambda answer: type(answer).__name__)
def test_a_lost_answer_is_asked_for_again_a_few_times(answer: Exception) -> None:
    table, client = table_answering(answer, answer, {})
    assert table.merge(row(1)) is Merged.APPLIED
    assert client.requests[0] == client.requests[1] == client.requests[2]
    table, _ = table_answering(answer, answer, answer)
    with pytest.raises(type(answer)):
        table.merge(row(1))


@pytest.mark.parametrize("answer", [error("SomethingNew"), error("ValidationException", "of another kind"), OSError()])
def test_an_unknown_failure_passes_as_it_is(answer: Exception) -> None:
    table, client = table_answering(answer)
    with pytest.raises(type(answer)) as failure:
        table.merge(row(1))
    assert failure.value is answer
    assert [operation for operation, _ in client.requests].count("update_item") == 1


@pytest.mark.parametrize("code", ["AccessDeniedException", "UnrecognizedClientException", "ExpiredTokenException"])
def test_a_missing_permission_is_one_line_with_what_to_allow(code: str) -> None:
    table, _ = table_answering(error(code, "User: arn:aws:sts::1:role is not authorized"))
    with pytest.raises(TableProblem) as problem:
        table.merge(row(1))
    assert "table kinesisAggs in eu-west-1" in str(problem.value)
    assert "is not authorized" in str(problem.value)
    assert "allow dynamodb:UpdateItem" in str(problem.value)


def test_wrong_keys_are_told_even_where_the_table_may_not_be_described() -> None:
    table, _ = table_answering(
        error("ValidationException", "The provided key element does not match the schema"),
        error("AccessDeniedException"),
    )
    with pytest.raises(TableProblem) as problem:
        table.merge(row(1))
    assert f"should have {HISTORY}" in str(problem.value)
    assert "does not match the schema" in str(problem.value)


def test_unprocessed_items_are_told_by_index() -> None:
    items = [{"shard": "s", "position": str(number), "n": number} for number in range(60)]
    left = [{"PutRequest": {"Item": item_to_wire(items[index])}} for index in (29, 26)]
    none = error("ProvisionedThroughputExceededException")
    table, client = table_answering({}, {}, {"UnprocessedItems": {"kinesisAggs": left}}, none, keys=POSITIONS)
    unprocessed = table.put(items)
    assert sorted(unprocessed) == [26, 29, *range(50, 60)]
    assert unprocessed[26].reasons == ("UnprocessedItems",)
    assert unprocessed[55].reasons == ("ProvisionedThroughputExceededException",)
    (asked, _), *puts = client.requests
    assert asked == "get_item"  # once, whether the table's keys are these
    assert [len(request["RequestItems"]["kinesisAggs"]) for _, request in puts] == [25, 25, 10]


def test_a_batch_stays_under_16_mb_as_it_is_sent() -> None:
    items = [{"shard": "s", "position": str(number), "data": "Ž" * 180_000} for number in range(20)]
    table, client = table_answering({}, {}, {}, keys=POSITIONS)
    assert table.put(items) == {}
    assert [len(request["RequestItems"]["kinesisAggs"]) for _, request in client.requests[1:]] == [15, 5]


def test_where_the_keys_cannot_be_seen_for_want_of_capacity_nothing_is_put() -> None:
    table, client = table_answering(error("ThrottlingException"), keys=POSITIONS)
    assert set(table.put([{"shard": "s", "position": str(number)} for number in range(3)])) == {0, 1, 2}
    assert [operation for operation, _ in client.requests] == ["get_item"]


def test_items_are_not_put_into_a_table_whose_keys_are_other_attributes_of_theirs(form: servers.Form) -> None:
    if form.name == "memory":
        pytest.skip("a table in memory has no declaration beside it")
    table = form.declared(LATEST, TableKeys.latest("ride", "N"))
    with pytest.raises(TableProblem, match="create a table with those keys"):
        table.put([{"ride": number, "vendorId": 1} for number in range(3)])


def test_the_client_sends_each_request_once_and_reads_the_reasons() -> None:
    seen: list[bytes] = []

    class Throttling(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.rfile.read(int(self.headers["Content-Length"])))
            reasons = b'[{"reason": "TableWriteKeyRangeThroughputExceeded", "resource": "arn"}]'
            kind = b"com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException"
            body = b'{"__type": "%s", "message": "slow", "ThrottlingReasons": %s}' % (kind, reasons)
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Throttling) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        thread = Thread(target=server.serve_forever)
        thread.start()
        client = dynamo_client(f"http://127.0.0.1:{server.server_port}", "us-east-1")
        try:
            with pytest.raises(Throttled) as throttled:
                DynamoTable("t", HISTORY, client=client).merge(row(1))
        finally:
            client.close()
            server.shutdown()
            thread.join()
    assert throttled.value.hot_key
    assert len(seen) == 1


def test_a_table_needs_no_region_or_credentials_until_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    assert DynamoTable("t", HISTORY).name == "t"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.text(max_size=9)
    | st.integers(-(10**37), 10**37)
    | st.decimals(-(10**9), 10**9, places=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_plain_values_survive_the_wire(item: Item) -> None:
    assert item_from_wire(item_to_wire(item)) == item


@pytest.mark.parametrize("keys", [HISTORY, LATEST, POSITIONS])
def test_keys_read_as_one_phrase(keys: TableKeys) -> None:
    assert str(keys).startswith(f"partition key {keys.partition.name} ({keys.partition.type}) and ")


# ── the table in memory alone ───────────────────────────────────────────────────────────────────────────────


def test_a_fault_before_a_write_leaves_the_table_as_it_was() -> None:
    def before(operation: str, argument: object) -> None:
        raise Throttled((operation,))

    table = MemoryTable(HISTORY, before=before)
    with pytest.raises(Throttled):
        table.merge(row(1))
    with pytest.raises(Throttled):
        table.put([{"vendorId": 1, "windowStart": START}])
    assert list(table.items()) == []


def test_a_batch_with_one_key_twice_is_refused_in_memory_too() -> None:
    item = {"vendorId": 1, "windowStart": START}
    with pytest.raises(ItemRefused, match="twice"):
        MemoryTable(HISTORY).put([item, {**item, "vendorId": Decimal("1.0")}])


def test_fences_fill_an_item_up_to_400_kb_in_memory_too() -> None:
    table = MemoryTable(HISTORY)
    table.merge(row(1, plain={"zone": "x" * (400 * 1024 - 300)}))
    table.merge(row(1, shard=1))
    with pytest.raises(ItemRefused, match="409600 bytes"):
        table.merge(row(1, shard=2))
    assert sum(name.startswith("applied#") for name in stored(table, 1)[0]) == 2


@pytest.mark.parametrize("key", ["x" * 2049, "Ž" * 1025])
def test_a_key_beyond_its_bytes_is_refused_in_memory_too(key: str) -> None:
    with pytest.raises(ItemRefused, match="2048 bytes"):
        MemoryTable(TableKeys.history("zone", "S")).merge(row(key, name="zone"))
