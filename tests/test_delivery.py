"""All failed, or some: what delivery does about throttled writes, for both sinks."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from decimal import Decimal
from threading import Barrier, Event, Lock
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.contribution import Contribution
from windlass.core.position import position
from windlass.core.schema import DeclarationError
from windlass.core.window import Window
from windlass.delivery import (
    AllThrottled,
    Delivery,
    DeliveryPolicy,
    NotDelivered,
    SomeThrottled,
    collapse,
    deliver,
    merging,
    putting,
)
from windlass.sim.table import MemoryTable
from windlass.table import CONTENTION, Item, KeyAttribute, Merged, TableKeys, TableProblem, Throttled

HISTORY = TableKeys.history("vendorId", "N")
POSITIONS = TableKeys(KeyAttribute("shard", "S"), KeyAttribute("position", "S"))
LIMIT = Throttled(("ProvisionedThroughputExceededException",))
HOT = Throttled(("TableWriteKeyRangeThroughputExceeded",))
POLICY = DeliveryPolicy(attempts=4, base_ms=100, cap_ms=300, margin_ms=1_000)


class Invocation:
    """A clock that sleeping moves, and chance that always draws `drawn`."""

    def __init__(self, left_ms: float = 60_000, drawn: float = 0.5) -> None:
        self.left_ms = left_ms
        self.drawn = drawn
        self.slept_ms: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept_ms.append(round(seconds * 1000, 6))
        self.left_ms -= seconds * 1000

    def deliver(self, units: Sequence[Any], send: Any, policy: DeliveryPolicy = POLICY) -> Delivery:
        return deliver(
            units,
            send,
            policy=policy,
            remaining_ms=lambda: int(self.left_ms),
            sleep=self.sleep,
            random=lambda: self.drawn,
        )


class Sending:
    """A send that throttles each unit as often as `times` says. It keeps the rounds."""

    def __init__(self, times: dict[str, int], why: Throttled = LIMIT) -> None:
        self.times = dict(times)
        self.why = why
        self.rounds: list[list[str]] = []

    def __call__(self, units: Sequence[str]) -> list[Any]:
        self.rounds.append(list(units))
        return [self._one(unit) for unit in units]

    def _one(self, unit: str) -> object:
        if self.times.get(unit, 0):
            self.times[unit] -= 1
            return self.why
        return unit.upper()


# ── the rule ────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_throttled_is_one_round() -> None:
    send, invocation = Sending({}), Invocation()
    assert invocation.deliver(["a", "b"], send) == Delivery(1, 0, ["A", "B"])
    assert invocation.slept_ms == []


def test_nothing_to_write_writes_nothing() -> None:
    send = Sending({})
    assert Invocation().deliver([], send) == Delivery(1, 0, [])
    assert send.rounds == []


def test_all_throttled_raises_at_once() -> None:
    send, invocation = Sending({"a": 1, "b": 1}), Invocation()
    with pytest.raises(AllThrottled) as failure:
        invocation.deliver(["a", "b"], send)
    assert send.rounds == [["a", "b"]]
    assert invocation.slept_ms == []
    assert failure.value.indexes == (0, 1)


def test_contended_writes_are_written_again_even_if_they_are_all() -> None:
    send, invocation = Sending({"a": 2, "b": 1}, Throttled((CONTENTION,))), Invocation()
    assert invocation.deliver(["a", "b"], send) == Delivery(3, 3, ["A", "B"])
    assert len(invocation.slept_ms) == 2
    with pytest.raises(SomeThrottled, match="1 of 1 writes were still throttled after 4 attempts"):
        Invocation().deliver(["a"], Sending({"a": 9}, Throttled((CONTENTION,))))


def test_some_throttled_are_written_again_alone_until_none_is_left() -> None:
    send, invocation = Sending({"b": 1, "d": 2}), Invocation()
    delivery = invocation.deliver(["a", "b", "c", "d"], send)
    assert send.rounds == [["a", "b", "c", "d"], ["b", "d"], ["d"]]
    assert delivery == Delivery(3, 3, ["A", "B", "C", "D"])


def test_all_of_a_later_round_throttled_is_still_some() -> None:
    send = Sending({"b": 2})
    assert Invocation().deliver(["a", "b"], send).rounds == 3


def test_some_throttled_to_the_last_attempt_raises_with_which() -> None:
    send, invocation = Sending({"b": 9, "d": 9}), Invocation()
    with pytest.raises(SomeThrottled) as failure:
        invocation.deliver(["a", "b", "c", "d"], send)
    assert len(send.rounds) == POLICY.attempts
    assert failure.value.indexes == (1, 3)
    assert len(invocation.slept_ms) == POLICY.attempts - 1


def test_pauses_double_up_to_the_cap_with_full_jitter() -> None:
    policy = DeliveryPolicy(attempts=6, base_ms=100, cap_ms=500)
    for drawn in (0.0, 0.5, 0.999):
        invocation = Invocation(drawn=drawn)
        invocation.deliver(["a", "b"], Sending({"b": 5}), policy)
        assert invocation.slept_ms == pytest.approx([drawn * bound for bound in (100, 200, 400, 500, 500)])


@pytest.mark.parametrize(("left_ms", "rounds"), [(1_049, 1), (1_050, 2), (1_149, 2), (1_150, 3), (60_000, 4)])
def test_a_retry_begins_only_with_its_pause_and_the_margin_left(left_ms: int, rounds: int) -> None:
    send = Sending({"b": 9})
    with pytest.raises(SomeThrottled) as failure:
        Invocation(left_ms=left_ms).deliver(["a", "b"], send)
    assert len(send.rounds) == rounds
    assert ("too little of the invocation left" in str(failure.value)) is (rounds < 4)


def test_one_attempt_is_no_retry() -> None:
    send = Sending({"b": 1})
    with pytest.raises(SomeThrottled):
        Invocation().deliver(["a", "b"], send, DeliveryPolicy(attempts=1))
    assert len(send.rounds) == 1


@pytest.mark.parametrize(("why", "advice"), [(HOT, "a hot key"), (LIMIT, "the table's limit")])
def test_the_message_says_how_many_why_and_what_to_do(why: Throttled, advice: str) -> None:
    with pytest.raises(SomeThrottled) as some:
        Invocation().deliver(["a", "b", "c"], Sending({"b": 9}, why))
    assert "1 of 3 writes were still throttled after 4 attempts" in str(some.value)
    with pytest.raises(AllThrottled) as every:
        Invocation().deliver(["a"], Sending({"a": 9}, why))
    assert "1 of 1 writes were throttled, which is all of them" in str(every.value)
    for failure in (some.value, every.value):
        assert why.reasons[0] in str(failure)
        assert advice in str(failure)
        assert failure.reasons == why.reasons
        assert failure.hot_key is why.hot_key


@pytest.mark.parametrize("broken_round", [1, 2])
def test_an_unknown_failure_goes_up_at_once(broken_round: int) -> None:
    throttling, rounds = Sending({"b": 9}), []

    def send(units: Sequence[str]) -> list[Any]:
        rounds.append(units)
        if len(rounds) == broken_round:
            raise TableProblem("gone")
        return throttling(units)

    with pytest.raises(TableProblem):
        Invocation().deliver(["a", "b"], send)
    assert len(rounds) == broken_round


@pytest.mark.parametrize(
    "wrong",
    [{"attempts": 0}, {"attempts": "3"}, {"base_ms": -1}, {"base_ms": 10, "cap_ms": 5}, {"margin_ms": -1}],
)
def test_a_policy_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match="a DeliveryPolicy has"):
        DeliveryPolicy(**wrong)


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(1, 5))
def test_each_unit_is_delivered_or_named_never_both(times: list[int], attempts: int) -> None:
    units = [str(index) for index in range(len(times))]
    send = Sending(dict(zip(units, times, strict=True)))
    stuck = tuple(index for index, count in enumerate(times) if count >= attempts)
    failure: NotDelivered | None = None
    try:
        delivery = Invocation().deliver(units, send, DeliveryPolicy(attempts=attempts))
    except NotDelivered as raised:
        failure = raised
    if failure is None:
        assert stuck == ()
        assert delivery.outcomes == units
        assert delivery.rounds == 1 + max(times, default=0)
        assert delivery.retried == sum(times)
    elif isinstance(failure, AllThrottled):
        assert min(times) > 0
        assert failure.indexes == tuple(range(len(units)))
    else:
        assert failure.indexes == stuck != ()


# ── window totals ───────────────────────────────────────────────────────────────────────────────────────────


def row(vendor: int, number: int = 1, start_ms: int = 0) -> Contribution:
    mark = position(str(number))
    return Contribution(
        {"vendorId": vendor}, Window(start_ms, start_ms + 30_000), "shardId-0", mark, mark, {"n": number}
    )


class Flaky:
    """Fails the n-th write to a vendor, from 1, as `faults` says."""

    def __init__(self, faults: dict[tuple[int, int], Exception]) -> None:
        self.faults = faults
        self.seen: dict[int, int] = {}
        self.lock = Lock()

    def __call__(self, operation: str, contribution: Contribution) -> None:
        vendor = contribution.key["vendorId"]
        assert isinstance(vendor, int)
        with self.lock:
            count = self.seen[vendor] = self.seen.get(vendor, 0) + 1
        if (vendor, count) in self.faults:
            raise self.faults[vendor, count]


def inline_and_threads() -> list[Any]:
    return [pytest.param(0, id="inline"), pytest.param(4, id="threads")]


@pytest.mark.parametrize("width", inline_and_threads())
def test_a_flush_survives_throttles_of_some_items(width: int) -> None:
    table = MemoryTable(HISTORY, before=Flaky({(3, 1): LIMIT, (5, 1): HOT, (5, 2): HOT}))
    rows = [row(vendor) for vendor in range(8)]
    with ThreadPoolExecutor(width or 1) as pool:
        delivery = Invocation().deliver(rows, merging(table, pool if width else None))
    assert (delivery.rounds, delivery.retried, delivery.count(Merged.APPLIED)) == (3, 3, 8)
    assert sorted(item["vendorId"] for item in table.items()) == list(range(8))


def test_inline_merges_go_in_order() -> None:
    order: list[Any] = []
    table = MemoryTable(HISTORY, before=lambda _, contribution: order.append(contribution.key["vendorId"]))
    Invocation().deliver([row(vendor) for vendor in (3, 1, 2)], merging(table))
    assert order == [3, 1, 2]


@pytest.mark.parametrize("width", inline_and_threads())
@pytest.mark.parametrize("throttled", [1, 2, 3])
def test_segments_of_one_item_go_in_order_and_none_overtakes_a_throttled_one(width: int, throttled: int) -> None:
    table = MemoryTable(HISTORY, before=Flaky({(1, throttled): HOT}))
    rows = [row(1, 1), row(2, 1), row(1, 2), row(2, 2), row(1, 3), row(2, 3)]
    with ThreadPoolExecutor(width or 1) as pool:
        delivery = Invocation().deliver(rows, merging(table, pool if width else None))
    assert delivery.count(Merged.APPLIED) == 6
    assert delivery.retried == 4 - throttled
    assert [item["n"] for item in table.items()] == [6, 6]


def test_items_are_written_side_by_side() -> None:
    met = Barrier(4, timeout=5)
    table = MemoryTable(HISTORY, before=lambda *_: met.wait() and None)
    with ThreadPoolExecutor(4) as pool:
        delivery = Invocation().deliver([row(vendor) for vendor in range(4)], merging(table, pool))
    assert delivery.count(Merged.APPLIED) == 4


def test_windows_of_one_key_are_items_of_their_own() -> None:
    met = Barrier(2, timeout=5)
    table = MemoryTable(HISTORY, before=lambda *_: met.wait() and None)
    with ThreadPoolExecutor(2) as pool:
        Invocation().deliver([row(1), row(1, start_ms=30_000)], merging(table, pool))
    assert len(list(table.items())) == 2


@pytest.mark.parametrize("width", inline_and_threads())
def test_a_problem_of_the_table_stops_a_flush(width: int) -> None:
    table = MemoryTable(HISTORY, before=Flaky({(2, 1): TableProblem("gone"), (0, 1): LIMIT}))
    with ThreadPoolExecutor(width or 1) as pool, pytest.raises(TableProblem, match="gone"):
        Invocation().deliver([row(vendor) for vendor in range(4)], merging(table, pool if width else None))


def test_a_failure_waits_for_the_writes_under_way() -> None:
    failing, written = Event(), []

    def before(_: str, contribution: Contribution) -> None:
        if contribution.key["vendorId"] == 0:
            failing.set()
            raise TableProblem("gone")
        assert failing.wait(30)

    def after(_: str, contribution: Contribution) -> None:
        written.append(contribution.key["vendorId"])

    table = MemoryTable(HISTORY, before=before, after=after)
    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(TableProblem):
            Invocation().deliver([row(1), row(0)], merging(table, pool))
        assert written == [1]


class OneAfterTheOther(Executor):
    """Runs what it is given before anybody can wake to take the rest back."""

    def submit(self, work: Any, /, *given: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        try:
            future.set_result(work(*given))
        except BaseException as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future


def test_after_a_failure_no_write_is_begun() -> None:
    written = []

    def before(_: str, contribution: Contribution) -> None:
        if contribution.key["vendorId"] == 0:
            raise TableProblem("gone")
        written.append(contribution.key["vendorId"])

    with pytest.raises(TableProblem):
        Invocation().deliver(
            [row(vendor) for vendor in (1, 0, 2, 3)], merging(MemoryTable(HISTORY, before=before), OneAfterTheOther())
        )
    assert written == [1]


def test_a_repeated_flush_is_counted_as_already_applied() -> None:
    table, rows = MemoryTable(HISTORY), [row(1), row(2)]
    Invocation().deliver(rows[:1], merging(table))
    delivery = Invocation().deliver(rows, merging(table))
    assert delivery.outcomes == [Merged.ALREADY, Merged.APPLIED]


# ── items ───────────────────────────────────────────────────────────────────────────────────────────────────


class Batches(MemoryTable):
    """A table that leaves items unprocessed, as often as `times` says of their position."""

    def __init__(self, times: dict[str, int]) -> None:
        super().__init__(POSITIONS)
        self.times = times
        self.sizes: list[int] = []

    def put(self, items: Sequence[Item]) -> dict[int, Throttled]:
        self.sizes.append(len(items))
        left = {index: LIMIT for index, item in enumerate(items) if self.times.get(item["position"], 0)}
        for index in left:
            self.times[items[index]["position"]] -= 1
        super().put([item for index, item in enumerate(items) if index not in left])
        return left


def items(count: int) -> list[Item]:
    return [{"shard": "s", "position": str(number)} for number in range(count)]


@pytest.mark.parametrize("width", inline_and_threads())
def test_unprocessed_items_are_put_again_alone(width: int) -> None:
    table = Batches({"3": 1, "30": 2, "59": 1})
    with ThreadPoolExecutor(width or 1) as pool:
        delivery = Invocation().deliver(items(60), putting(table, pool if width else None))
    assert sorted(table.sizes[:3]) == [10, 25, 25]
    assert table.sizes[3:] == [3, 1]
    assert (delivery.rounds, delivery.retried, len(delivery.outcomes)) == (3, 4, 60)
    assert len(list(table.items())) == 60


def test_items_that_stay_unprocessed_are_named_by_index() -> None:
    table = Batches({"30": 9, "59": 9})
    with pytest.raises(SomeThrottled) as failure:
        Invocation().deliver(items(60), putting(table))
    assert failure.value.indexes == (30, 59)
    assert len(list(table.items())) == 58


def test_all_items_unprocessed_raises_at_once() -> None:
    table = Batches(dict.fromkeys(map(str, range(60)), 1))
    with pytest.raises(AllThrottled):
        Invocation().deliver(items(60), putting(table))
    assert len(table.sizes) == 3


# ── one put per key ─────────────────────────────────────────────────────────────────────────────────────────


def by(name: str) -> Callable[[Item], Any]:
    return lambda item: item[name]


def test_of_items_with_one_key_the_last_is_put_and_the_first_position_kept() -> None:
    found = [{"k": 1, "n": 0}, {"k": 2, "n": 1}, {"k": 1, "n": 2}, {"k": 3, "n": 3}, {"k": Decimal("1.0"), "n": 4}]
    last, first = collapse(found, by("k"))
    assert last == [{"k": Decimal("1.0"), "n": 4}, {"k": 2, "n": 1}, {"k": 3, "n": 3}]
    assert first == [0, 1, 3]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers())))
def test_collapsed_puts_end_as_all_puts_in_order(pairs: list[tuple[int, int]]) -> None:
    found: list[Item] = [{"k": key, "n": n} for key, n in pairs]
    last, first = collapse(found, by("k"))
    assert {item["k"]: item for item in last} == {item["k"]: item for item in found}
    assert first == sorted({[item["k"] for item in found].index(item["k"]) for item in found})
    assert [item["k"] for item in last] == [found[index]["k"] for index in first]
