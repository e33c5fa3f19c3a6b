"""The simulator must catch what it is for: ten ways to get the totals wrong, each found within 200 seeds.

A mutant changes one decision of the real code. The report must name an invariant that this mistake breaks, so a mutant
is only caught if it is caught for its own reason.
"""

import io
import json
from itertools import count

import msgspec
import pytest

from windlass import delivery
from windlass.apps import load_app
from windlass.commands import simulate
from windlass.core import pipeline as core
from windlass.core.fold import Folder
from windlass.sim.faults import chosen
from windlass.sim.runs import Options, run_many, shrink
from windlass.sim.table import MemoryTable

APP = "examples/taxi/app.py:trips"
SEEDS_MAX = 200
SMALL = Options(1, records=60, shards=2, keys=4, faults=chosen("all", "windows"))


def merged_as(change):
    def mutate(monkeypatch):
        merge = MemoryTable._merge
        monkeypatch.setattr(MemoryTable, "_merge", lambda self, row: merge(self, change(row)))

    return mutate


replaced = msgspec.structs.replace
no_fence = merged_as(lambda row: replaced(row, first="~"))
fence_lets_equal_pass = merged_as(lambda row: replaced(row, first=row.first + "~"))
fence_per_table = merged_as(lambda row: replaced(row, source="any"))


def cuts_at_batch_edges(monkeypatch):
    fold = Folder.fold

    def fold_then_cut(self, segment, records, position_at):
        _, open_ = fold(replaced(self, state_bytes_max=10**9), segment, records, position_at)
        return ([open_], self.empty()) if open_.bytes_bound > self.state_bytes_max else ([], open_)

    monkeypatch.setattr(Folder, "fold", fold_then_cut)


def flush_before_the_fold(monkeypatch):
    run = core.WindowsPlan.run

    def flush_first(self, call, *more):
        if not (call.final or call.early) or not call.state or not call.sequences:
            return run(self, call, *more)
        first = run(self, replaced(call, sequences=[], arrivals_s=[], payloads=[]), *more)
        then = run(self, replaced(call, state={}), *more)
        return core.Step([*first.flush, *then.flush], then.open, then.rejected, then.counts)

    monkeypatch.setattr(core.WindowsPlan, "run", flush_first)


def final_call_drops_its_records(monkeypatch):
    run = core.WindowsPlan.run

    def drop(self, call, *more):
        none = {"sequences": [], "arrivals_s": [], "payloads": []} if call.final else {}
        return run(self, replaced(call, **none), *more)

    monkeypatch.setattr(core.WindowsPlan, "run", drop)


def duplicates_folded(monkeypatch):
    monkeypatch.setattr(core, "drop_duplicates", lambda *_: None)


def rewritten_instead_of_merged(monkeypatch):
    merge = MemoryTable._merge

    def rewrite(self, row):
        for place, item in self.stored.items():
            if item["windowStart"] == row.window.start and row.key.items() <= item.items():
                self.stored[place] = {**item, **dict.fromkeys(row.add, 0)}
        return merge(self, row)

    monkeypatch.setattr(MemoryTable, "_merge", rewrite)


def throttled_items_forgotten(monkeypatch):
    monkeypatch.setattr(delivery, "_throttled", lambda _: {})


def state_not_reset_after_a_flush(monkeypatch):
    fold = Folder.fold

    def fold_on(self, segment, records, position_at):
        closed, open_ = fold(self, segment, records, position_at)
        for done in closed:
            open_.first = min(done.first, open_.first)
            for key, row in done.rows.items():
                open_.rows.setdefault(key, row)
        return closed, open_

    monkeypatch.setattr(Folder, "fold", fold_on)


MUTANTS = {
    no_fence: {"never_too_much", "exact"},
    cuts_at_batch_edges: {"no_conflict"},
    fence_lets_equal_pass: {"never_too_much", "exact"},
    flush_before_the_fold: {"no_conflict"},
    final_call_drops_its_records: {"exact"},
    duplicates_folded: {"never_too_much", "exact", "no_conflict"},
    rewritten_instead_of_merged: {"never_falls"},
    throttled_items_forgotten: {"exact"},
    fence_per_table: {"exact", "no_conflict"},
    state_not_reset_after_a_flush: {"no_conflict", "never_too_much", "state_within_limit"},
}

NAMES = {no_fence: "no_fence", fence_lets_equal_pass: "fence_lets_equal_pass", fence_per_table: "fence_per_table"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: NAMES.get(mutant, mutant.__name__))
def test_a_mutant_is_caught_by_the_invariant_that_it_breaks(mutant, monkeypatch):
    mutant(monkeypatch)
    summary = run_many(load_app(APP), SMALL, SEEDS_MAX, stop_at_failure=True)
    assert summary.failing_seeds, f"{summary.runs} runs, all exact"
    assert set(summary.violations) <= MUTANTS[mutant]


def test_the_command_names_seed_invariant_and_a_smaller_run_of_a_mutant(monkeypatch):
    no_fence(monkeypatch)
    out, err = io.StringIO(), io.StringIO()
    options = simulate.Options(app=APP, runs=5, records=60, shards=2, keys=4, shrink_s=1, processes=1, json=True)
    assert simulate.run(options, out, err) == 1
    summary = json.loads(out.getvalue().splitlines()[-1])
    assert summary["failing_seeds"]
    assert summary["double_counted"] > 0
    assert "VIOLATION never_too_much" in err.getvalue()
    assert f"--seed {summary['failing_seeds'][0]} --runs 1 --records 60" in err.getvalue()


def test_a_failure_shrinks_to_fewer_records_and_faults_and_still_fails(monkeypatch):
    no_fence(monkeypatch)
    summary = run_many(load_app(APP), SMALL, SEEDS_MAX, stop_at_failure=True)
    failing = replaced(SMALL, seed=summary.failing_seeds[0])
    tries = count()  # time is counted in looks at the clock, so that a busy machine shrinks as far
    smallest = shrink(load_app(APP), failing, seconds=800, clock=lambda: next(tries))
    assert smallest.violation is not None
    assert smallest.options.records < failing.records
    assert len(smallest.options.faults) < len(failing.faults)
