"""A pipeline proven in a test: simulated worlds, and a failure told so that it can be repeated."""

from typing import Any

import msgspec

from windlass.sim.faults import chosen
from windlass.sim.runs import Options, Summary, run_many, shrink

LOG_LINES = 60


def assert_exact(
    pipeline: Any,
    *,
    seed: int = 1,
    runs: int = 50,
    records: int = 100,
    shards: int = 2,
    keys: int = 5,
    faults: str = "all",
    shrink_s: float = 5.0,
) -> Summary:
    """Simulate a `Windows` or `Records` pipeline; AssertionError with seed, invariant and timeline if a run is inexact.

    `faults` is all, none, or names with commas between them. Raises NoCleanRecord and UnknownFault for what cannot be
    simulated. The same arguments give the same runs.
    """
    options = Options(seed, records, shards, keys, chosen(faults, pipeline.describe()["kind"]))
    summary = run_many(pipeline, options, runs, stop_at_failure=True)
    if not summary.failing_seeds:
        return summary
    failing = msgspec.structs.replace(options, seed=summary.failing_seeds[0])
    smallest = shrink(pipeline, failing, seconds=shrink_s)
    assert smallest.violation is not None
    told = smallest.options
    repeat = (
        f"--seed {told.seed} --runs 1 --records {told.records} --shards {told.shards} --keys {told.keys} "
        f"--faults {','.join(told.faults) or 'none'}"
    )
    violation = f"seed {failing.seed} breaks {smallest.violation.invariant}: {smallest.violation.text}"
    raise AssertionError("\n".join([violation, f"the smallest run found: {repeat}", *smallest.log[-LOG_LINES:]]))
