"""Putting: batches, retries, pace, and the account of every record, against a scripted stream."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count, islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.produce.aggregate import KinesisRecord, Shard, plain
from windlass.produce.put import (
    LIMITS,
    Limits,
    Packing,
    Produced,
    Refused,
    Stored,
    StreamError,
    backoff_s,
    batches,
    produce,
)
from windlass.produce.records import UserRecord

HASHES = 1 << 128
THROTTLED = Refused("ProvisionedThroughputExceededException", "Rate exceeded for shard")
Answers = Callable[[Sequence[KinesisRecord]], Sequence[Stored | Refused]]


class Clock:
    """Seconds that pass only while someone sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class MemoryStream:
    """A stream of one list; its answers follow a script, and then everything is stored."""

    def __init__(self, script: Sequence[Answers] = (), shards: Sequence[Sequence[Shard]] = ()) -> None:
        self.held: list[KinesisRecord] = []
        self.puts: list[list[KinesisRecord]] = []
        self._script = iter(script)
        self._shards = iter(shards)

    def shards(self) -> Sequence[Shard]:
        return next(self._shards, [Shard("only", 0, HASHES - 1)])

    def put(self, entries: Sequence[KinesisRecord]) -> Sequence[Stored | Refused]:
        self.puts.append(list(entries))
        answers = next(self._script, stored)(entries)
        self.held += [entry for entry, said in zip(entries, answers, strict=True) if isinstance(said, Stored)]
        return answers


def stored(entries: Sequence[KinesisRecord]) -> list[Stored]:
    return [Stored("only")] * len(entries)


def refused(entries: Sequence[KinesisRecord]) -> list[Refused]:
    return [THROTTLED] * len(entries)


def refusing(*places: int) -> Answers:
    return lambda entries: [THROTTLED if at in places else Stored("only") for at in range(len(entries))]


def users(number: int) -> list[UserRecord]:
    return [UserRecord(f"id{n}", b"%d" % n) for n in range(number)]


def run(records, stream, clock=None, **options) -> Produced:
    clock = clock or Clock()
    return produce(records, stream, clock=clock, sleep=clock.sleep, rng=Random(1), **options)


def test_records_arrive_in_order_and_are_counted():
    stream = MemoryStream()
    produced = run(users(1200), stream)
    assert [entry.data for entry in stream.held] == [b"%d" % n for n in range(1200)]
    assert (produced.records, produced.kinesis_records, produced.failed) == (1200, 1200, 0)
    assert produced.data_bytes == sum(len(b"%d" % n) for n in range(1200))


def test_a_put_has_at_most_500_entries():
    stream = MemoryStream()
    run(users(1200), stream)
    assert [len(put) for put in stream.puts] == [500, 500, 200]


def test_a_put_has_at_most_five_mebibytes_with_keys():
    large = [plain(UserRecord("k" * 100, b"x" * 1_000_000)) for _ in range(12)]
    sizes = [sum(entry.put_bytes for entry in batch) for batch in batches(large, LIMITS)]
    assert [size // 1_000_100 for size in sizes] == [5, 5, 2]
    assert max(sizes) <= 5 * 1024 * 1024


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 5), st.integers(41, 100))
def test_batches_keep_order_and_bounds_and_are_as_few_as_order_allows(sizes, entries_max, bytes_max):
    limits = Limits(entries_max=entries_max, bytes_max=bytes_max)
    entries = [plain(UserRecord("k", b"x" * size)) for size in sizes]
    cut = list(batches(entries, limits))
    assert [entry for batch in cut for entry in batch] == entries
    weights = [sum(entry.put_bytes for entry in batch) for batch in cut]
    assert all(len(batch) <= entries_max for batch in cut)
    assert all(weight <= bytes_max for weight in weights)
    for batch, weight, following in zip(cut, weights, cut[1:], strict=False):
        assert len(batch) == entries_max or weight + following[0].put_bytes > bytes_max


def test_a_record_larger_than_the_stream_takes_is_not_sent_and_counts_as_failed():
    stream = MemoryStream()
    produced = run([UserRecord("k", b"x" * 1024 * 1024), *users(3)], stream)
    assert (produced.records, produced.failures) == (3, {"RecordTooLarge": 1})
    assert len(stream.held) == 3


def test_only_the_refused_entries_are_put_again_in_their_order():
    stream = MemoryStream([refusing(1, 3, 4), refusing(1)])
    produced = run(users(6), stream)
    assert [[entry.data for entry in put] for put in stream.puts[1:]] == [[b"1", b"3", b"4"], [b"3"]]
    assert (produced.records, produced.retried, produced.failed) == (6, 4, 0)


def test_what_is_still_refused_after_the_last_attempt_counts_as_failed_and_the_rest_goes_on():
    limits = Limits(attempts_max=3, entries_max=4)
    stream = MemoryStream([refusing(2), refused, refused])
    produced = run(users(10), stream, limits=limits)
    assert (produced.records, produced.failed) == (9, 1)
    assert produced.failures == {"ProvisionedThroughputExceededException": 1}
    assert b"2" not in [entry.data for entry in stream.held]


def test_a_batch_of_which_nothing_is_ever_taken_ends_the_run_with_what_to_do():
    seen: list[Produced] = []
    stream = MemoryStream([stored] + [refused] * 3)
    with pytest.raises(StreamError, match=r"took nothing of a batch of 4 in 3 attempts.*Rate exceeded.*lower --rate"):
        run(users(10), stream, limits=Limits(attempts_max=3, entries_max=4), on_progress=seen.append)
    assert (seen[-1].records, seen[-1].failed) == (4, 6)


def test_retries_wait_a_drawn_time_under_a_doubling_bound():
    clock = Clock()
    run(users(2), MemoryStream([refused] * 7), clock)
    bounds = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert len(clock.slept) == len(bounds)
    assert all(0 <= slept <= bound for slept, bound in zip(clock.slept, bounds, strict=True))
    assert len(set(clock.slept)) == len(bounds)


def test_waits_are_spread_over_the_whole_bound():
    rng = Random(1)
    drawn = [backoff_s(3, LIMITS, rng) for _ in range(1000)]
    assert min(drawn) < 0.01
    assert 0.19 < max(drawn) <= 0.2


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), max_size=12), st.booleans())
def test_whatever_is_refused_taken_is_stored_plus_failed(script, aggregate):
    def answering(refusals: list[bool]) -> Answers:
        return lambda entries: [
            THROTTLED if refusals[at % len(refusals)] else Stored("only") for at in range(len(entries))
        ]

    stream = MemoryStream([answering(refusals) for refusals in script])
    seen: list[Produced] = []
    packing = Packing(records_max=3) if aggregate else None
    with suppress(StreamError):
        run(users(40), stream, limits=Limits(attempts_max=3, entries_max=7), packing=packing, on_progress=seen.append)
    assert seen[-1].records + seen[-1].failed == 40
    assert seen[-1].records == sum(len(entry.users) for entry in stream.held)


def test_a_stream_that_fails_for_good_leaves_the_account_complete():
    def gone(_: Sequence[KinesisRecord]) -> Sequence[Stored]:
        msg = "the stream was deleted"
        raise StreamError(msg)

    seen: list[Produced] = []
    with pytest.raises(StreamError, match="deleted"):
        run(users(1200), MemoryStream([stored, gone]), on_progress=seen.append)
    assert (seen[-1].records, seen[-1].failures) == (500, {"StreamError": 700})


def test_what_a_source_gave_before_it_broke_is_put():
    def broken() -> Iterator[UserRecord]:
        yield from users(7)
        msg = "row 8 cannot be read"
        raise ValueError(msg)

    stream = MemoryStream()
    with pytest.raises(ValueError, match="row 8"):
        run(broken(), stream)
    assert len(stream.held) == 7


def test_unclean_records_are_counted_by_kind_only_once_they_are_stored():
    dirty = [UserRecord("k", b"x", spoiled="not_json"), UserRecord("k", b"y", spoiled="not_utf8"), *users(2)]
    produced = run(dirty, MemoryStream([refusing(1), refused, refused]), limits=Limits(attempts_max=3))
    assert produced.unclean == {"not_json": 1}
    assert (produced.records, produced.clean, produced.failed) == (3, 2, 1)


# ── pace ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rate", [3, 50, 1000, 33333])
def test_the_rate_is_kept_from_the_first_record_to_the_last(rate):
    clock = Clock()
    produced = run(users(10 * min(rate, 100)), MemoryStream(), clock, rate=rate)
    chunk_s = max(0.1, 1 / rate)
    assert produced.seconds == pytest.approx(produced.records / rate, abs=1.01 * chunk_s)


def test_a_slow_put_is_caught_up_so_that_the_rate_does_not_drift():
    clock = Clock()

    def slow(entries: Sequence[KinesisRecord]) -> list[Stored]:
        clock.now += 3.0
        return stored(entries)

    produced = run(users(1000), MemoryStream([slow]), clock, rate=100)
    assert produced.seconds == pytest.approx(10, abs=0.2)


def test_without_a_rate_nothing_waits():
    clock = Clock()
    run(users(5000), MemoryStream(), clock)
    assert clock.slept == []


def test_a_stop_is_seen_within_a_tenth_of_a_second_of_waiting():
    clock = Clock()
    produced = run(users(10), MemoryStream(), clock, rate=0.01, should_stop=lambda: clock.now >= 1030)
    assert (produced.records, produced.failed) == (1, 0)
    assert clock.now == pytest.approx(1030, abs=0.11)


def test_a_run_for_some_time_is_as_long_however_late_the_stream_says_what_shards_it_has():
    class Late(MemoryStream):
        def shards(self) -> Sequence[Shard]:
            clock.now += 60
            return super().shards()

    clock = Clock()
    produced = run(users(1000), Late(), clock, rate=100, for_s=0.3)
    assert (produced.records, round(clock.now - 1060, 6)) == (30, 0.3)


def test_a_stop_takes_no_record_that_it_does_not_put():
    source = iter(users(10_000))
    clock = Clock()
    produced = run(source, MemoryStream(), clock, rate=1000, should_stop=lambda: clock.now >= 1002)
    assert produced.records + sum(1 for _ in source) == 10_000


def test_progress_is_told_after_every_put():
    seen: list[Produced] = []
    run(users(1200), MemoryStream(), on_progress=seen.append)
    assert [produced.records for produced in seen] == [500, 1000, 1200, 1200]


def test_an_endless_source_is_read_only_as_far_as_it_is_put():
    drawn = count()
    endless = (UserRecord("k", b"%d" % number) for number in drawn)
    assert run(islice(endless, 50), MemoryStream()).records == 50
    assert next(drawn) == 50


# ── aggregates ──────────────────────────────────────────────────────────────────────────────────────────────


def test_packed_records_count_as_user_records_and_carriers_as_kinesis_records():
    stream = MemoryStream()
    produced = run(users(100), stream, packing=Packing(records_max=10))
    assert (produced.records, produced.kinesis_records) == (100, 10)
    assert [user for entry in stream.held for user in entry.users] == users(100)


def test_of_a_carrier_on_another_shard_only_the_records_that_do_not_belong_there_are_put_again():
    before = [Shard("parent", 0, HASHES - 1)]
    after = [
        Shard("parent", 0, HASHES - 1, open=False),
        Shard("low", 0, HASHES // 2 - 1),
        Shard("high", HASHES // 2, HASHES - 1),
    ]
    split = MemoryStream([lambda entries: [Stored("low")] * len(entries)], [before, after])
    low = [UserRecord("k", b"%d" % n, hash_key=n) for n in range(5)]
    high = [UserRecord("k", b"%d" % n, hash_key=HASHES - 1 - n) for n in range(5, 8)]
    produced = run([*low, *high], split, packing=Packing())
    assert [len(entry.users) for entry in split.held] == [8, 1, 1, 1]
    assert [entry.users[0] for entry in split.held[1:]] == high
    assert (produced.records, produced.misplaced, produced.failed) == (8, 3, 0)


def test_of_a_carrier_on_a_shard_that_nobody_knows_all_records_are_put_again():
    stream = MemoryStream([lambda entries: [Stored("unheard of")] * len(entries)])
    produced = run(users(4), stream, packing=Packing())
    assert [len(entry.users) for entry in stream.held] == [4, 1, 1, 1, 1]
    assert (produced.records, produced.misplaced) == (4, 4)


def test_after_a_resharding_the_next_carriers_are_packed_for_the_new_shards():
    before = [Shard("parent", 0, HASHES - 1)]
    after = [Shard("low", 0, HASHES // 2 - 1), Shard("high", HASHES // 2, HASHES - 1)]

    def by_hash(entries: Sequence[KinesisRecord]) -> list[Stored]:
        return [Stored("low" if entry.hash_key < HASHES // 2 else "high") for entry in entries]

    stream = MemoryStream([by_hash] * 99, [before, after])
    source = [UserRecord("k", b"%d" % n, hash_key=n % 2 * (HASHES - 1)) for n in range(300)]
    clock = Clock()
    produced = run(source, stream, clock, rate=1000, packing=Packing())
    assert produced.misplaced == 50
    assert [entry.shard for entry in stream.held[-2:]] == ["low", "high"]
    assert produced.records == 300
