"""Many runs, each on its own seed: together what they came to, and the first failure made small.

Runs share nothing, so they may be spread over processes; what is told about them is in the order of their seeds, and
the same for any number of processes.
"""

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import msgspec

from windlass.apps import load_app
from windlass.sim.checker import Toll, Violation
from windlass.sim.records import Pool, pool_of
from windlass.sim.world import Options, Result, World

FAILURES_KEPT = 100


class Summary(msgspec.Struct):
    """What the runs came to. `faults` counts how often each took effect; `records` are user records received."""

    runs: int = 0
    exact: int = 0
    lost: int = 0
    double_counted: int = 0
    conflicts: int = 0
    records: int = 0
    records_per_second: int = 0
    faults: dict[str, int] = {}
    failing_seeds: list[int] = []
    violations: dict[str, int] = {}
    """How many runs broke which invariant first."""
    interrupted: bool = False
    """By Ctrl-C: the rest is of the runs that had been made."""

    def add(self, result: Result) -> None:
        """One more run."""
        self.runs += 1
        self.records += result.received
        self.lost += result.toll.lost
        self.double_counted += result.toll.double_counted
        for fault, count in result.faults.items():
            self.faults[fault] = self.faults.get(fault, 0) + count
        if result.violation is None:
            self.exact += 1
            return
        invariant = result.violation.invariant
        self.conflicts += invariant == "no_conflict"
        self.violations[invariant] = self.violations.get(invariant, 0) + 1
        if len(self.failing_seeds) < FAILURES_KEPT:
            self.failing_seeds.append(result.options.seed)


_pools: dict[tuple[str, int], Pool] = {}


def _pool(pipeline: Any, keys: int) -> Pool:
    """The pool of a pipeline, made once."""
    description = pipeline.describe()
    named = repr(description), keys
    if named not in _pools:
        _pools[named] = pool_of(description, keys)
    return _pools[named]


def run(
    pipeline: Any, options: Options, *, logging: bool = True, watch: Callable[[float], None] = lambda _: None
) -> Result:
    """One run; `watch` is told the share that is done. Raises NoCleanRecord."""
    with _seldom_collecting():
        return World(pipeline, _pool(pipeline, options.keys), options, logging=logging).run(watch)


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """A world keeps nearly all that it makes: looking for garbage as often as usual takes a fifth of its time."""
    usual = gc.get_threshold()
    gc.set_threshold(max(100_000, usual[0]), 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def run_many(
    pipeline: Any,
    options: Options,
    runs: int,
    *,
    app: str | None = None,
    processes: int = 1,
    progress: Callable[[float], None] = lambda _: None,
    stop_at_failure: bool = False,
) -> Summary:
    """Runs on the seeds from `options.seed` on. With `app`, the name that `pipeline` was loaded by, in processes.

    `progress` is told how many runs are done, with a part for the one under way. Raises NoCleanRecord.
    """
    summary = Summary(faults=dict.fromkeys(options.faults, 0))
    begun = time.perf_counter()
    try:
        for result in _results(pipeline, options, runs, app, processes, progress):
            summary.add(result)
            progress(summary.runs)
            if stop_at_failure and result.violation:
                break
    except KeyboardInterrupt:
        summary.interrupted = True
    summary.records_per_second = round(summary.records / max(1e-9, time.perf_counter() - begun))
    return summary


def _results(
    pipeline: Any, options: Options, runs: int, app: str | None, processes: int, progress: Callable[[float], None]
) -> Iterator[Result]:
    _pool(pipeline, options.keys)  # what is wrong with the declaration is said here, not in another process
    seeded = (msgspec.structs.replace(options, seed=options.seed + number) for number in range(runs))
    if app is None or processes < 2 or runs < 4:
        for each in seeded:
            done = each.seed - options.seed
            yield run(pipeline, each, logging=False, watch=lambda share, done=done: progress(done + share))  # type: ignore[misc]
        return
    # A process of its own for each core, started afresh: a fork would take the parent's threads and locks along.
    context = multiprocessing.get_context("spawn")
    chunk = max(1, min(20, runs // (processes * 4)))
    others = multiprocessing.active_children()
    executor = ProcessPoolExecutor(processes, context, initializer=_enter, initargs=(app,))
    try:
        yield from executor.map(_run_here, seeded, chunksize=chunk)
    except BaseException:  # Ctrl-C, or whoever asked has heard enough: what is under way need not be waited for
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


_here: Any = None


def _enter(app: str) -> None:
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _here = load_app(app)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_here(options: Options) -> Result:
    return run(_here, options, logging=False)


# ── making a failure small ──────────────────────────────────────────────────────────────────────────────────


def shrink(
    pipeline: Any, failing: Options, *, seconds: float = 20.0, clock: Callable[[], float] = time.monotonic
) -> Result:
    """The smallest run found that still breaks something, with its log, in about `seconds`.

    Tried are fewer records, then fewer shards and keys, then one fault less; each on the seed itself and, as a smaller
    run draws differently, on a few that follow.
    """
    until = clock() + seconds
    smallest = run(pipeline, failing)
    assert smallest.violation is not None, failing
    better = True
    while better and clock() < until:
        better = False
        for candidate in _smaller(smallest.options):
            found = _still_fails(pipeline, candidate, until, clock)
            if found is not None:
                smallest, better = found, True
                break
    return smallest


def _smaller(options: Options) -> Iterator[Options]:
    change = msgspec.structs.replace
    for records in sorted({options.records // 8, options.records // 2, options.records * 3 // 4, options.records - 1}):
        if 0 < records < options.records:
            yield change(options, records=records)
    if options.shards > 1:
        yield change(options, shards=1)
        yield change(options, shards=options.shards - 1)
    if options.keys > 1:
        yield change(options, keys=1)
        yield change(options, keys=options.keys // 2)
    half = len(options.faults) // 2
    if half > 1:
        yield change(options, faults=options.faults[:half])
        yield change(options, faults=options.faults[half:])
    for fault in options.faults:
        yield change(options, faults=tuple(name for name in options.faults if name != fault))


_SEEDS_TRIED = 12


def _still_fails(pipeline: Any, options: Options, until: float, clock: Callable[[], float]) -> Result | None:
    for seed in range(options.seed, options.seed + _SEEDS_TRIED):
        if clock() >= until:
            return None
        result = run(pipeline, msgspec.structs.replace(options, seed=seed))
        if result.violation is not None:
            return result
    return None


__all__ = ["Options", "Result", "Summary", "Toll", "Violation", "run", "run_many", "shrink"]
