"""The simulator itself: the same seed is the same run, every fault strikes, and what cannot be simulated is said."""

import io
import json
import multiprocessing
import subprocess
import sys
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from windlass import Count, Length, Max, Mean, Min, Range, Record, Records, Sum, Windows, field
from windlass.apps import load_app
from windlass.commands import simulate as command
from windlass.core.fold import Folder
from windlass.core.schema import Fault
from windlass.sim.checker import INVARIANTS, Broken
from windlass.sim.faults import FAULTS, UnknownFault, chosen
from windlass.sim.proof import assert_exact
from windlass.sim.records import NoCleanRecord, pool_of, reading_of
from windlass.sim.runs import Options, run, run_many
from windlass.sim.table import MemoryTable
from windlass.sim.world import World

APP = "examples/taxi/app.py:trips"
ALL = chosen("all", "windows")


class Place(Record):
    zone: Annotated[str, Length(1, 20)]
    latitude: float | None = None


class Ride(Record):
    kind: Literal["taxi", "limousine"]
    place: Place
    seats: Annotated[int, Range(-5, 100)]
    fare: Annotated[Decimal, Range(Decimal(0), Decimal(1000))]
    tip: float = 1.5
    note: str | None = None


PIPELINES = {
    "taxi": load_app(APP),
    "every total, two keys": Windows(
        Ride,
        key=["kind", "place.zone"],
        every=timedelta(seconds=10),
        totals={
            "rides": Count(),
            "fares": Sum("fare"),
            "tip": Mean("tip"),
            "least": Min("seats"),
            "north": Max("place.latitude"),
        },
        table="t",
    ),
    "latest": Windows(
        Ride,
        key="place.zone",
        every=timedelta(seconds=7),
        totals={"rides": Count(), "fares": Sum("fare", decimals=2)},
        table="t",
        layout="latest",
        aggregates="keep_all",
    ),
    "records": Records(Ride, key=["place.zone", "seats"], table="t"),
    "records by position": Records(Ride, table="t", coerce=True),
}


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("first", [1, pytest.param(31, marks=pytest.mark.heavy)])
def test_every_run_is_exact(name, first):
    pipeline = PIPELINES[name]
    assert_exact(pipeline, seed=first, runs=30, records=60, keys=4)


def test_the_same_seed_gives_the_same_log_byte_for_byte():
    options = Options(7, records=120, shards=3, keys=4, faults=ALL)
    logs = ["\n".join(run(PIPELINES["taxi"], options).log) for _ in range(2)]
    assert logs[0] == logs[1]
    assert len(logs[0].splitlines()) > 20


def test_a_run_does_not_depend_on_the_process_it_is_made_in():
    code = (
        "from windlass.apps import load_app; from windlass.sim.runs import Options, run; "
        "from windlass.sim.faults import chosen; import hashlib; "
        f"log = run(load_app({APP!r}), Options(3, 100, 2, 4, chosen('all', 'windows'))).log; "
        "print(hashlib.sha256('\\n'.join(log).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.heavy
@pytest.mark.parametrize(("kind", "name", "records"), [("windows", "taxi", 120), ("records", "records", 400)])
def test_every_fault_strikes_within_some_runs(kind, name, records):
    summary = run_many(PIPELINES[name], Options(1, records, 3, 5, chosen("all", kind)), 40)
    assert [name for name, count in summary.faults.items() if not count] == []
    assert summary.exact == 40


def test_without_faults_nothing_strikes_and_all_is_exact():
    summary = run_many(PIPELINES["taxi"], Options(1, 100, 2, 4), 5)
    assert (summary.exact, summary.faults, summary.records) == (5, {}, 500)


@pytest.mark.parametrize("fault", [fault.name for fault in FAULTS if "windows" in fault.kinds])
def test_each_fault_alone_is_survived(fault):
    assert run_many(PIPELINES["taxi"], Options(1, 60, 2, 4, (fault,)), 4).exact == 4


@pytest.mark.parametrize("name", PIPELINES)
def test_the_pool_holds_clean_records_and_every_kind_of_dirt(name):
    pool = pool_of(PIPELINES[name].describe(), 5)
    assert len(pool.clean) > 50
    kinds = {
        "not_utf8",
        "not_json",
        "not_an_object",
        "missing_field",
        "wrong_type",
        "out_of_range",
        "corrupt_aggregate",
    }
    assert kinds <= pool.unclean.keys()


@pytest.mark.parametrize("name", PIPELINES)
def test_both_readings_agree_on_everything_in_the_pool(name):
    pipeline = PIPELINES[name]
    pool, reading = pool_of(pipeline.describe(), 5), reading_of(pipeline.describe())
    payloads = [
        *pool.clean,
        *(data for reason, some in pool.unclean.items() for data in some if reason != "corrupt_aggregate"),
    ]
    said = [row if isinstance(row, str) else "clean" for row in map(reading.read, payloads)]
    read, _ = pipeline.plan.schema.read(payloads)
    found = [each.reason.value if isinstance(each, Fault) else "clean" for each in read]
    assert [trio for trio in zip(payloads, said, found, strict=True) if trio[1] != trio[2]] == []


# ── what cannot be simulated ────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_fault_is_told_with_those_that_there_are():
    with pytest.raises(
        UnknownFault, match=r"^there is no fault 'gremlins'; write all, none, or some of: write_refused"
    ):
        chosen("gremlins", "windows")


def test_a_fault_that_cannot_meet_the_pipeline_is_told():
    with pytest.raises(UnknownFault, match=r"the fault late .* cannot meet a pipeline of records"):
        chosen("late", "records")


class Impossible(Record):
    who: str
    part: Annotated[Decimal, Range(Decimal("0.1"), Decimal("0.2"))]


def test_a_declaration_without_clean_records_is_told():
    pipeline = Windows(
        Impossible, key="who", every=timedelta(seconds=1), totals={"n": Sum("part", decimals=0)}, table="t"
    )
    with pytest.raises(NoCleanRecord, match="no clean record can be made from the declaration Impossible"):
        pool_of(pipeline.describe(), 3)


@pytest.mark.parametrize(
    ("app", "faults", "said"),
    [("no/such.py:trips", "all", "there is no file"), (APP, "gremlins", "there is no fault 'gremlins'")],
)
def test_the_command_says_in_one_line_what_it_cannot_do(app, faults, said):
    out, err = io.StringIO(), io.StringIO()
    assert command.run(command.Options(app=app, faults=faults), out, err) == 2
    assert out.getvalue() == ""
    assert len(err.getvalue().splitlines()) == 1
    assert said in err.getvalue()


class Place(Record):
    id: str = field(name="ID")


class Renamed(Record):
    merchant: str = field(name="merchant_id")
    place: Place = field(name="at")
    n: int


def test_keys_of_fields_that_json_names_otherwise_are_simulated():
    totals = {"sum": Sum("n"), "count": Count()}
    pipeline = Windows(Renamed, key=["merchant", "place.id"], every=timedelta(seconds=5), totals=totals, table="t")

    assert_exact(pipeline, runs=2, records=60)


class Ride(Record):
    zone: str
    street: str
    fare: Annotated[float, Range(0, 1e12)]
    tip: int


ODD = [
    Windows(Ride, key="zone", every=timedelta(seconds=30), totals={"f": Sum("fare"), "t": Sum("tip")}, table="t"),
    Records(Ride, key=["zone", "street"], table="t"),
]


@pytest.mark.parametrize("pipeline", ODD, ids=["a range wider than sums", "two text keys"])
def test_what_the_product_may_decide_is_no_violation(pipeline):
    assert_exact(pipeline, runs=12, records=150)


def test_keys_that_are_alike_when_joined_are_told_apart(monkeypatch):
    pipeline = Windows(Ride, key=["zone", "street"], every=timedelta(seconds=30), totals={"rides": Count()}, table="t")
    assert_exact(pipeline, runs=3, records=60)

    monkeypatch.setattr(Folder, "_joined", lambda self, parts: "#".join(map(str, parts)))
    with pytest.raises(AssertionError):
        assert_exact(pipeline, runs=3, records=60)


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_the_runs_and_tells_of_those_that_were_made(processes, monkeypatch):
    def interrupt(done):
        if done >= 1:
            raise KeyboardInterrupt

    @contextmanager
    def interrupting(options, err):
        yield interrupt

    monkeypatch.setattr(command, "_progress", interrupting)
    # Processes begin with this one's path, where other tests may have put a module of theirs.
    monkeypatch.setattr("sys.path", [place for place in sys.path if "pytest-" not in place])
    others = set(multiprocessing.active_children())
    out, err = io.StringIO(), io.StringIO()
    options = command.Options(app=APP, runs=1000, records=20, shards=1, processes=processes, json=True)

    assert command.run(options, out, err) == 130

    told = json.loads(out.getvalue().splitlines()[-1])
    assert told["interrupted"] is True
    assert told["runs"] < 1000
    assert err.getvalue().startswith("interrupted; of the runs that had been made:")
    assert set(multiprocessing.active_children()) <= others


def test_ctrl_c_before_the_first_run_has_ended_calls_nothing_exact(monkeypatch):
    @contextmanager
    def interrupting(options, err):
        yield interrupt

    def interrupt(done):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_progress", interrupting)
    out = io.StringIO()

    assert command.run(command.Options(app=APP, runs=2, records=20, processes=1), out, io.StringIO()) == 130
    assert out.getvalue().splitlines()[-1] == "no run had ended"


def test_the_command_ends_with_one_json_object():
    out, err = io.StringIO(), io.StringIO()
    options = command.Options(app=APP, runs=3, records=60, shards=2, keys=4, processes=1, json=True)
    assert command.run(options, out, err) == 0
    told = json.loads(out.getvalue().splitlines()[-1])
    assert {
        "runs": 3,
        "exact": 3,
        "lost": 0,
        "double_counted": 0,
        "conflicts": 0,
        "records": 180,
        "failing_seeds": [],
    }.items() <= (told.items())
    assert list(told["faults"]) == list(ALL)


# ── the same world, led by Hypothesis ───────────────────────────────────────────────────────────────────────


class Trouble(RuleBasedStateMachine):
    """Hypothesis chooses when mappings crash and stop, shards split and merge; whatever it does, the end is exact."""

    @initialize(seed=st.integers(0, 2**32), faults=st.sets(st.sampled_from(ALL)))
    def begin(self, seed, faults):
        options = Options(seed, records=40, shards=2, keys=3, faults=tuple(name for name in ALL if name in faults))
        self.world = World(PIPELINES["taxi"], pool_of_taxi, options)
        self.world.begin()

    @rule(steps=st.integers(1, 60))
    def time_goes_on(self, steps):
        for _ in range(steps):
            if not self.world.step():
                return

    @precondition(lambda self: not self.world.calm)
    @rule(which=st.floats(0, 1, exclude_max=True))
    def a_mapping_is_disturbed(self, which):
        self.world.restart_some(which)

    @precondition(lambda self: not self.world.calm)
    @rule()
    def the_stream_is_resharded(self):
        self.world.producers.reshard()

    def teardown(self):
        if hasattr(self, "world"):
            while self.world.step():
                pass
            assert self.world.end().violation is None


pool_of_taxi = pool_of(PIPELINES["taxi"].describe(), 3)
TestTrouble = Trouble.TestCase
TestTrouble.settings = profile(max_examples=25, stateful_step_count=12, deadline=None)


def test_a_violation_ends_a_run_even_inside_the_handler():
    assert not issubclass(Broken, Exception)


def test_the_page_names_every_fault_and_invariant():
    page = (Path(__file__).parent.parent / "docs" / "simulator.md").read_text()
    names = [fault.name for fault in FAULTS] + list(INVARIANTS)
    assert [name for name in names if f"| `{name}` |" not in page] == []


def test_the_fixture_proves_a_pipeline_in_a_users_test(simulate):
    assert simulate(PIPELINES["taxi"], runs=2, records=30).exact == 2


def test_the_fixture_fails_with_seed_invariant_and_timeline(simulate, monkeypatch):
    merge = MemoryTable._merge
    monkeypatch.setattr(MemoryTable, "_merge", lambda self, row: merge(self, msgspec.structs.replace(row, first="~")))
    with pytest.raises(AssertionError, match=r"(?s)seed \d+ breaks never_too_much: .*--runs 1.*mapping starts"):
        simulate(PIPELINES["taxi"], runs=20, records=60, shrink_s=0.2)
