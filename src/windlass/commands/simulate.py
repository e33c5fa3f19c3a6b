"""`windlass simulate`: a pipeline in many worlds of faults; the first failure told so that it can be repeated."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import msgspec

from windlass.apps import AppProblem, load_app
from windlass.sim.faults import UnknownFault, chosen
from windlass.sim.records import NoCleanRecord
from windlass.sim.runs import Options as RunOptions
from windlass.sim.runs import Result, Summary, run_many, shrink

TIMELINE_LINES = 60
FAULTS_A_LINE = 4


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated. `faults` is all, none, or names with commas between them."""

    app: str
    seed: int = 1
    runs: int = 1
    records: int = 2000
    shards: int = 4
    keys: int = 10
    faults: str = "all"
    shrink_s: float = 20.0
    processes: int | None = None
    json: bool = False


def run(options: Options, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Simulate and show. Exit status: 0 every run was exact, 1 one was not, 2 nothing could be simulated.

    After Ctrl-C 130, unless a run had not been exact.
    """
    out, err = out or sys.stdout, err or sys.stderr
    try:
        pipeline = load_app(options.app)
        faults = chosen(options.faults, pipeline.describe()["kind"])
        asked = RunOptions(options.seed, options.records, options.shards, options.keys, faults)
        with _progress(options, err) as progress:
            summary = run_many(
                pipeline,
                asked,
                options.runs,
                app=options.app,
                processes=options.processes or min(2, os.cpu_count() or 1),
                progress=progress,
            )
    except (AppProblem, UnknownFault, NoCleanRecord) as error:
        print(f"windlass simulate: {error}", file=err)
        return 2
    shown = err if options.json else out
    _show(summary, shown)
    if summary.failing_seeds:
        first = msgspec.structs.replace(asked, seed=summary.failing_seeds[0])
        show_failure(options, first, shrink(pipeline, first, seconds=options.shrink_s), shown)
    if options.json:
        print(json.dumps(msgspec.to_builtins(summary)), file=out)
    return 1 if summary.failing_seeds else 130 if summary.interrupted else 0


def _show(summary: Summary, out: TextIO) -> None:
    if summary.interrupted:
        print("interrupted; of the runs that had been made:", file=out)
    print(f"{summary.runs:,} runs, {summary.records:,} records, {summary.records_per_second:,} a second", file=out)
    counted = [f"{name} {count:,}" for name, count in summary.faults.items()]
    for start in range(0, len(counted), FAULTS_A_LINE):
        print("  " + ", ".join(counted[start : start + FAULTS_A_LINE]), file=out)
    if not summary.failing_seeds:
        print("exact, every run" if summary.runs else "no run had ended", file=out)
        return
    broken = ", ".join(f"{name} in {count}" for name, count in summary.violations.items())
    print(
        f"NOT exact: {summary.runs - summary.exact} of {summary.runs} runs ({broken}); lost {summary.lost}, "
        f"double counted {summary.double_counted}, conflicts {summary.conflicts}",
        file=out,
    )
    print(f"failing seeds: {', '.join(map(str, summary.failing_seeds[:20]))}", file=out)


def show_failure(options: Options, first: RunOptions, smallest: Result, out: TextIO) -> None:
    """The smallest run found, as a timeline, and the two commands that repeat it and the first failure."""
    violation = smallest.violation
    assert violation is not None
    print(f"\nthe smallest run found that fails breaks {violation.invariant}: {violation.text}\n", file=out)
    lines = smallest.log
    if len(lines) > TIMELINE_LINES:
        print(f"{'':>9}      … {len(lines) - TIMELINE_LINES} lines before these", file=out)
    print(f"{'ms':>9} shard", file=out)
    for line in lines[-TIMELINE_LINES:]:
        print(line, file=out)
    print(f"\nto repeat it:            {command(options, smallest.options, first.faults)}", file=out)
    print(f"to repeat the first one: {command(options, first, first.faults)}", file=out)


def command(asked: Options, options: RunOptions, every: tuple[str, ...]) -> str:
    """The command that makes this run again; `every` are the faults that were asked for."""
    faults = asked.faults if options.faults == every else ",".join(options.faults) or "none"
    return (
        f"windlass simulate {shlex.quote(asked.app)} --seed {options.seed} --runs 1 --records {options.records} "
        f"--shards {options.shards} --keys {options.keys} --faults {faults}"
    )


@contextmanager
def _progress(options: Options, err: TextIO) -> Iterator[Any]:
    """A bar on a terminal; nothing elsewhere."""
    if not err.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=err), transient=True) as bar:
        task = bar.add_task("runs", total=options.runs)
        yield lambda done: bar.update(task, completed=done)
