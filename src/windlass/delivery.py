"""Some failed, or all: what to do about writes that DynamoDB throttled. One module for both sinks.

Rules of this file, by what came back of the first round:

    throttled | what is done
    ----------+---------------------------------------------------------------------------------------------
    none      | delivered
    all       | AllThrottled at once: Lambda calls again with the same payload, later
    some, or  | only those again, after a pause of full jitter whose bound doubles up to a cap; delivered when
    contended | none is left; SomeThrottled after the last attempt, or when the time left would not do

- A write is contended when others to its item came first, again and again. That is no want of capacity: one of those
  that meet gets through each time, and pauses that differ part them. Lambda, calling them all again, would not.

- Any other failure is not a throttle: it goes up at once, when the writes that were under way have ended.
- Calling again with the whole payload is harmless in every case: merges are fenced, puts are idempotent by key.
- The fence knows order, not sets: were a later segment of a shard to reach an item before an earlier one, the
  earlier would pass for a duplicate. So the contributions to one item go one after the other, in order, and behind
  a throttled one the others wait. Different items are written side by side.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from typing import TypeVar

import msgspec

from windlass.core.contribution import Contribution
from windlass.core.schema import DeclarationError
from windlass.table import BATCH_ITEMS_MAX, Item, Merged, Table, Throttled

Unit = TypeVar("Unit")
Outcome = TypeVar("Outcome")
Send = Callable[[Sequence[Unit]], Sequence[Outcome | Throttled]]
"""Writes units and answers for each, in their order: its outcome, or why it was throttled."""


class DeliveryPolicy(msgspec.Struct, frozen=True):
    """How long to insist. The pause before retry n (1, 2, ...) is random in [0, min(cap, base * 2**(n-1)))."""

    attempts: int = 5
    """Rounds of writing in all, the first included."""
    base_ms: int = 50
    cap_ms: int = 2_000
    margin_ms: int = 1_000
    """What must be left of the invocation when a retry begins, for its writes and the answer."""

    def __post_init__(self) -> None:
        whole = all(type(value) is int for value in msgspec.structs.astuple(self))
        if not (whole and self.attempts >= 1 and 0 <= self.base_ms <= self.cap_ms and self.margin_ms >= 0):
            msg = f"a DeliveryPolicy has whole numbers, attempts >= 1 and 0 <= base_ms <= cap_ms; found {self}"
            raise DeclarationError(msg)

    def pause_ms(self, retry: int, drawn: float) -> float:
        """The pause before a retry (1, 2, ...), for a number drawn from [0, 1)."""
        return float(drawn * min(self.cap_ms, self.base_ms * 2 ** (retry - 1)))


class Delivery(msgspec.Struct, frozen=True):
    """How it went: rounds of writing (1: no retry), units written again, and the outcome of each unit."""

    rounds: int
    retried: int
    outcomes: list[object]

    def count(self, outcome: object) -> int:
        """How many units ended so."""
        return self.outcomes.count(outcome)


class NotDelivered(Exception):
    """Units that DynamoDB throttled to the end. `throttled` says which (by index), and why; the rest as in Delivery."""

    def __init__(
        self, throttled: Mapping[int, Throttled], of: int, how: str, *, rounds: int = 1, retried: int = 0
    ) -> None:
        self.throttled = dict(throttled)
        self.rounds, self.retried = rounds, retried
        self.reasons = tuple(sorted({reason for each in throttled.values() for reason in each.reasons}))
        self.hot_key = any(each.hot_key for each in throttled.values())
        super().__init__(f"{len(throttled)} of {of} writes {how} ({', '.join(self.reasons)}): {_ADVICE[self.hot_key]}")

    @property
    def indexes(self) -> tuple[int, ...]:
        """The units that are not stored, ascending."""
        return tuple(sorted(self.throttled))


_ADVICE = {
    True: "a hot key. Lambda will call again; if this lasts, split the key or take longer windows",
    False: "the table's limit. Lambda will call again; if this lasts, raise the table's write capacity",
}


class AllThrottled(NotDelivered):
    """Every unit was throttled in the first round: nothing was tried again here."""


class SomeThrottled(NotDelivered):
    """Some units were throttled still when the attempts or the time had run out; the others are stored."""


def deliver(
    units: Sequence[Unit],
    send: Send[Unit, Outcome],
    *,
    policy: DeliveryPolicy,
    remaining_ms: Callable[[], int],
    sleep: Callable[[float], None],
    random: Callable[[], float],
) -> Delivery:
    """Write units, and again those that were throttled: see the prologue.

    `remaining_ms()` is what the invocation has left; `sleep` takes seconds; `random()` is in [0, 1).
    Raises AllThrottled, SomeThrottled, and whatever `send` raises.
    """
    outcomes: list[Outcome | Throttled] = list(send(units)) if units else []
    left = _throttled(outcomes)
    if left and len(left) == len(units) and not any(why.contended for why in left.values()):
        raise AllThrottled(left, len(units), "were throttled, which is all of them")
    rounds, retried = 1, 0
    while left:
        pause_ms = policy.pause_ms(rounds, random())
        if rounds == policy.attempts:
            how = f"were still throttled after {rounds} attempts"
            raise SomeThrottled(left, len(units), how, rounds=rounds, retried=retried)
        if remaining_ms() < pause_ms + policy.margin_ms:
            how = f"were still throttled after {rounds} attempts, with too little of the invocation left"
            raise SomeThrottled(left, len(units), how, rounds=rounds, retried=retried)
        sleep(pause_ms / 1000)
        again = list(left)
        for index, outcome in zip(again, send([units[index] for index in again]), strict=True):
            outcomes[index] = outcome
        rounds, retried, left = rounds + 1, retried + len(again), _throttled(outcomes)
    return Delivery(rounds, retried, list(outcomes))


def _throttled(outcomes: Sequence[object]) -> dict[int, Throttled]:
    return {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, Throttled)}


# ── the two sinks ───────────────────────────────────────────────────────────────────────────────────────────


def merging(table: Table, executor: Executor | None = None) -> Send[Contribution, Merged]:
    """Contributions into their items, on the executor's threads; inline and in order without one."""

    def merge_in_order(rows: Sequence[Contribution]) -> list[Merged | Throttled]:
        answers: list[Merged | Throttled] = []
        for row in rows:
            try:
                answers.append(table.merge(row))
            except Throttled as why:
                return answers + [why] * (len(rows) - len(answers))
        return answers

    def send(rows: Sequence[Contribution]) -> list[Merged | Throttled]:
        by_item: dict[Hashable, list[int]] = {}
        for index, row in enumerate(rows):
            by_item.setdefault((row.window.start_ms, *row.key.values()), []).append(index)
        return _spread(executor, merge_in_order, rows, list(by_item.values()))

    return send


def putting(table: Table, executor: Executor | None = None) -> Send[Item, None]:
    """Items of different keys, a BatchWriteItem at a time, on the executor's threads; inline without one."""

    def put(items: Sequence[Item]) -> list[Throttled | None]:
        unprocessed = table.put(items)
        return [unprocessed.get(index) for index in range(len(items))]

    def send(items: Sequence[Item]) -> list[Throttled | None]:
        starts = range(0, len(items), BATCH_ITEMS_MAX)
        groups = [range(start, min(start + BATCH_ITEMS_MAX, len(items))) for start in starts]
        return _spread(executor, put, items, groups)

    return send


def collapse(items: Sequence[Item], key: Callable[[Item], Hashable]) -> tuple[list[Item], list[int]]:
    """Of items with one key the last, as if each had been put; and for each the index where its key came first.

    Both lists are in the order of those first indexes.
    """
    first: dict[Hashable, int] = {}
    last: dict[Hashable, Item] = {}
    for index, item in enumerate(items):
        of = key(item)
        first.setdefault(of, index)
        last[of] = item
    return list(last.values()), list(first.values())


def _spread(
    executor: Executor | None,
    work: Callable[[Sequence[Unit]], Sequence[Outcome | Throttled]],
    units: Sequence[Unit],
    groups: Sequence[Sequence[int]],
) -> list[Outcome | Throttled]:
    """The answers of `work` on each group of indexes, put back into the units' order."""
    parts = [[units[index] for index in group] for group in groups]
    if executor is None or len(parts) < 2:
        answers = [work(part) for part in parts]
    else:
        failures: list[BaseException] = []

        def work_until_one_fails(part: Sequence[Unit]) -> Sequence[Outcome | Throttled]:
            if failures:  # seen here, as a caller who were to cancel the rest may wake when all are through
                return ()
            try:
                return work(part)
            except BaseException as error:
                failures.append(error)
                raise

        futures = [executor.submit(work_until_one_fails, part) for part in parts]
        failed = [future for future in futures if future.exception()]  # waits for each
        answers = [future.result() for future in failed or futures]
    by_index = {
        index: answer
        for group, part in zip(groups, answers, strict=True)
        for index, answer in zip(group, part, strict=True)
    }
    return [by_index[index] for index in range(len(units))]
