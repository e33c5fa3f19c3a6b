"""One run: a world on one seed and one virtual clock, in which real code processes a stream under faults.

Real are the event source mapping (`windlass.local.mapping`), the handler, the core, delivery, and what a quarantine
keeps. Made here are the stream, the table, the producers, Lambda's invocations, time and trouble. One thread; things
happen in the order of a heap of (time, number); nothing asks the machine's clock. So a seed and its options give one
run, the same on every machine, and `log` says what happened, line by line.

Rules, where a fault might otherwise ask for what no pipeline can give:
- After the last record has come there is no more trouble: what is still open then must get done.
- The mapping never discards: retries and record age are without limit, as the deployment templates have them.
- A quiet window is closed no earlier than clocks can differ, so that no record of it is still to come.
- Where Lambda opens an old window again for a straggler (an assumption), no two stragglers follow each other: how many
  records such a window takes would depend on when the stream was read.
- Where Lambda ends windows early (its limit is below the pipeline's own, which no deployment has), segments end where
  a batch ended; and new code with another limit cuts elsewhere. No fence can make that exact if the same records
  then come in other batches, after some of them have been written. So from the first write of such a window until a
  checkpoint behind it is stored, the mapping of that shard neither crashes nor stops, and batches are not split,
  nor answered in part on their second way.
"""

import copy
import heapq
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from windlass.core.aggregate import HashRange
from windlass.core.window import Window
from windlass.delivery import AllThrottled
from windlass.handler import Seams
from windlass.local.mapping import (
    Answered,
    Checkpoint,
    Delivered,
    Done,
    Failed,
    Fetch,
    FetchFailed,
    Invoke,
    Kind,
    ShardMapping,
    Stopped,
    Throttled,
    Wait,
)
from windlass.local.mapping_settings import TRIM_HORIZON, Assumptions, MappingSettings
from windlass.sim.chance import Chance
from windlass.sim.checker import Broken, Checker, Toll, Violation
from windlass.sim.producers import Producers
from windlass.sim.records import Pool
from windlass.sim.seams import Bucket, Invocation, Killed, WorldQuarantine, WorldTable
from windlass.sim.stream import MemoryStream, Shard
from windlass.telemetry import Report

STREAM_ARN = "arn:aws:kinesis:us-east-1:000000000000:stream/simulated"
FUNCTION_ARN = "arn:aws:lambda:us-east-1:000000000000:function:simulated"
BEGIN_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
SKEW_MS_MAX = 1_500
TIMEOUT_MS = 60_000
HAUNT_MS_MAX = 900_000  # "Lambda quotas": a function runs for up to 15 minutes
SETTLE_MS_MAX = 4 * 3_600_000
STEPS_PER_RECORD_MAX = 400

_CALL_MISHAPS = (
    "killed_before",
    "killed_after",
    "answer_lost",
    "batch_repeated",
    "batch_repeated",
    "final_repeated",
    "partial_answer",
)
_WRITE_MISHAPS = (
    "write_refused",
    "write_unanswered",
    "killed_during",
    "timed_out",
    "throttled_some",
    "throttled_all",
    "hot_key",
)
_QUARANTINE_MISHAPS = ("quarantine_refused", "quarantine_unanswered")


class Options(msgspec.Struct, frozen=True):
    """What a run is asked for. `faults` are names of `windlass.sim.faults`."""

    seed: int
    records: int = 2000
    shards: int = 4
    keys: int = 10
    faults: tuple[str, ...] = ()


class Result(msgspec.Struct):
    """What came of a run."""

    options: Options
    violation: Violation | None = None
    received: int = 0
    faults: dict[str, int] = {}
    toll: Toll = msgspec.field(default_factory=Toll)
    log: list[str] = []


class _Silent:
    """Reports go nowhere: the checker looks at results, not at what the code says of itself."""

    def emit(self, report: Report) -> None:
        """Forget it."""


class _Listed:
    """ListShards of the stream in memory."""

    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream

    def within(self, stream_arn: str, shard: str) -> HashRange | None:
        """As Shards says."""
        assert stream_arn == STREAM_ARN, stream_arn
        return self._stream.range_of(self._stream.shards[shard])


class _Runner:
    """A shard's mapping, as it is restarted again and again, and the function's environment for it."""

    def __init__(self, shard: Shard, settings: MappingSettings) -> None:
        self.shard = shard
        self.settings = settings
        self.saved = Checkpoint(shard.id, TRIM_HORIZON)
        self.machine: ShardMapping
        self.handler: Any
        self.state_bytes_max = 0
        self.state_bytes_allowed = 0
        """The limit, or the one before it while a state of that time is open."""
        self.wake_ms = -1
        self.busy = 0
        self.done = False
        self.guarded: Window | None = None
        """The last window whose cuts are not by records: see the prologue."""
        self.furthest = ""
        """The last sequence number that the function has been sent."""
        self.fresh = False
        """None of the records of the call under way has been sent before."""

    def guard(self, window: Window | None) -> None:
        """No replay of this window: see the prologue."""
        if window is not None and (self.guarded is None or self.guarded < window):
            self.guarded = window


class World:
    """One run of a pipeline. `run()` once."""

    def __init__(self, pipeline: Any, pool: Pool, options: Options, *, logging: bool = True) -> None:
        self.options = options
        self.log: list[str] = []
        self.counts = dict.fromkeys(options.faults, 0)
        self.now_ms = BEGIN_MS
        self._logging = logging
        self.chance = Chance(options.seed)
        self._pipeline = pipeline
        self.pool = pool
        description = pipeline.describe()
        self.windows = description["kind"] == "windows"
        self.every_ms = description.get("every_s", 0) * 1000
        self.faults = self._drawn_faults()
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._steps = 0
        self.stream = MemoryStream(options.shards)
        self.checker = Checker(description, self.stream)
        self.table = WorldTable(pipeline.table_keys, self.checker.merged)
        self.quarantine = WorldQuarantine(self.checker.rejected)
        self._runners: dict[str, _Runner] = {}
        self._zombies = 0
        self._zombie_writes = 0
        self._draw_behaviour()
        self.producers = Producers(self, description)

    # -- the run ----------------------------------------------------------------------------------------------

    def run(self, watch: Callable[[float], None] = lambda _: None) -> Result:
        """Everything, to the end or to the first violation. `watch` is told the share of records that have come."""
        violation = None
        try:
            self.begin()
            while self.step():
                if not self._steps & 255:
                    watch(min(1.0, self.checker.received / self.options.records))
        except Broken as broken:
            violation = broken.violation
        return self.end(violation)

    def begin(self) -> None:
        """Mappings and producers start."""
        for shard in list(self.stream.shards.values()):
            self._start(shard)
        self.producers.start()
        self._plan_restarts()

    def step(self) -> bool:
        """The next thing that happens; False when everything is processed. Raises Broken."""
        if self.calm and self._is_settled():
            return False
        steps_max = STEPS_PER_RECORD_MAX * (self.options.records + 500)
        if self._steps > steps_max or not self._heap or self.now_ms > self.producers.end_ms + SETTLE_MS_MAX:
            runners = [each for each in self._runners.values() if not each.done]
            stuck = "; ".join(f"{each.shard.id}: {each.machine.trouble or 'waiting'}" for each in runners)
            self.checker.fail("never_blocked", f"not everything gets processed; {stuck[:500]}")
        at_ms, _, act, arguments = heapq.heappop(self._heap)
        self.now_ms = self.checker.now_ms = max(self.now_ms, at_ms)
        act(*arguments)
        self._steps += 1
        return True

    def end(self, violation: Violation | None = None) -> Result:
        """The reckoning; after a violation only what it cost."""
        settled = violation is None
        if settled:
            strict = not self._zombie_writes and self._settings.parallelization == 1
            violation = self.checker.ended(self.table, self.quarantine, strict=strict)
        toll = self.checker.toll(self.table, self.quarantine, settled=settled)
        if violation is not None:
            self.note("-", f"VIOLATION {violation.invariant}: {violation.text}")
        return Result(self.options, violation, self.checker.received, self.counts, toll, self.log)

    def at(self, at_ms: int, act: Callable[..., None], *arguments: Any) -> None:
        """Do something at a time of the world."""
        self._number += 1
        heapq.heappush(self._heap, (at_ms, self._number, act, arguments))

    def happened(self, fault: str, times: int = 1) -> None:
        """Count a fault that has taken effect."""
        if fault in self.counts:
            self.counts[fault] += times

    def has(self, fault: str) -> bool:
        """Whether this run has the fault, and trouble is not over yet."""
        return fault in self.faults and not self.calm

    @property
    def calm(self) -> bool:
        """The last record has come: nothing goes wrong any more."""
        return self.producers.finished

    def _is_settled(self) -> bool:
        if self._zombies:
            return False
        runners = list(self._runners.values())
        if len(runners) < len(self.stream.shards):
            return False
        return all(each.done or each.machine.is_settled(self.producers.end_ms) for each in runners)

    def note(self, shard: str, text: str) -> None:
        """A line of the log."""
        if self._logging:
            self.log.append(f"{self.now_ms - BEGIN_MS:>9} {shard[-4:]:>4} {text}")

    # -- what this world is like ------------------------------------------------------------------------------

    def _drawn_faults(self) -> frozenset[str]:
        """A quarter of the runs, and long ones, have every fault; the others about half of them."""
        faults = self.options.faults
        chance = self.chance.of("faults")
        everything = chance.random() < 0.25 or self.options.records >= 100_000
        return frozenset(fault for fault in faults if chance.random() < 0.55 or everything)

    def _draw_behaviour(self) -> None:
        chance = self.chance
        early_calls: tuple[Literal["extra", "extra-final", "next"], ...] = ("extra", "extra-final", "next")
        stragglers: tuple[Literal["current", "reopen"], ...] = ("current", "reopen")
        froms: tuple[Literal["last-activity", "window-end"], ...] = ("last-activity", "window-end")
        early = self.windows and "terminated_early" in self.faults and chance.happens("assumed", 0.5)
        skew_ms = SKEW_MS_MAX if self.faults & {"clock_skew", "out_of_order", "late"} else 0
        self._state_bytes_max = self._drawn_state_limit()
        assumed = Assumptions(
            final_carries_records="records_in_final" in self.faults,
            final_needs_state=chance.happens("assumed", 0.5),
            final_blocks=chance.happens("assumed", 0.5),
            early_call=chance.pick("assumed", early_calls),
            straggler=chance.pick("assumed", stragglers),
            grace_ms=chance.pick("assumed", (2 * skew_ms + 1000, 10_000, 120_000)),
            grace_from=chance.pick("assumed", froms),
            keep_window=chance.happens("assumed", 0.25),
            partial_keeps_state=chance.happens("assumed", 0.7),
            backoff_ms=chance.pick("assumed", (50, 500)),
            backoff_ms_max=chance.pick("assumed", (1000, 5_000, 60_000)),
        )
        if early:
            assumed = msgspec.structs.replace(assumed, state_bytes_max=self._early_limit())
        self._early = early
        self._may_bisect = "bisected" in self.faults and not early
        self._settings = MappingSettings(
            event_source_arn=STREAM_ARN,
            function_arn=FUNCTION_ARN,
            role_arn="arn:aws:iam::000000000000:role/simulated",
            window_ms=self.every_ms,
            report_item_failures=not self.windows or "partial_answer" in self.faults,
            parallelization=1 if self.windows else chance.pick("assumed", (1, 1, 3)),
            bisect=self._may_bisect,
            assumed=assumed,
        )
        self.one_straggler = assumed.straggler == "reopen"
        self.skew_ms = skew_ms
        self.note("-", f"faults {', '.join(sorted(self.faults))}; {assumed}")

    def _drawn_state_limit(self) -> int:
        """The pipeline's own limit, mostly so low that segments are cut within a window."""
        if not self.windows:
            return 0
        folder = self._pipeline.plan.folder
        if self.chance.happens("state", 0.35):
            return int(folder.state_bytes_max)
        rows = 1 + int(self.chance.of("state").random() * max(2, self.options.keys))
        return self._limit_of_rows(rows)

    def _limit_of_rows(self, rows: int) -> int:
        folder = self._pipeline.plan.folder
        key: Any = "k" * 12 if len(folder.key) == 1 else tuple("k" * 12 for _ in folder.key)
        if len(folder.key) == 1 and folder.key[0].type != "str":
            key = 1
        return int(folder.empty().bytes_bound + rows * folder.row_bytes(key) + 4)

    def _early_limit(self) -> int:
        """A limit of Lambda's below what states of this pipeline come to."""
        folder = self._pipeline.plan.folder
        columns, keys = len(folder.columns), max(1, self.options.keys)
        bare = (
            190
            + sum(len(column.signature) + 3 for column in folder.columns)
            + sum(len(part.name) + 9 for part in folder.key)
        )
        return int(bare + (1 + self.chance.of("state").random() * keys) * (8 + 6 * columns))

    def _drawn_settings(self) -> MappingSettings:
        """This mapping with other batches."""
        sizes = [size for size in (1, 2, 3, 5, 10, 30, 100, 1000, 10_000) if size * 400 >= self.options.records]
        chance = self.chance
        return msgspec.structs.replace(
            self._settings,
            batch_size=chance.pick("batches", sizes),
            batching_window_ms=chance.pick("batches", (0, 0, 1000, 10_000)),
            bisect=self._may_bisect and chance.happens("batches", 0.6),
            poll_ms=max(chance.pick("batches", (1000, 1000, 5000)), self.every_ms // 60),
            fetch_records_max=chance.pick("batches", (10, 100, 10_000) if self.options.records < 5000 else (10_000,)),
        )

    # -- mappings ---------------------------------------------------------------------------------------------

    def _start(self, shard: Shard) -> None:
        runner = self._runners[shard.id] = _Runner(shard, self._drawn_settings())
        self._deploy(runner, self._state_bytes_max)
        self._restart(runner, "starts")

    def _restart(self, runner: _Runner, why: str) -> None:
        jitter = self.chance.of("jitter").random
        runner.machine = ShardMapping(runner.settings, runner.shard.id, jitter=jitter, checkpoint=runner.saved)
        runner.busy = 0
        runner.wake_ms = -1
        self.note(
            runner.shard.id, f"mapping {why} {runner.saved.position.kind} batches of {runner.settings.batch_size}"
        )
        self.at(self.now_ms, self._pump, runner, runner.machine)

    def _wake(self, runner: _Runner, machine: ShardMapping, wake_ms: int) -> None:
        if machine is runner.machine and runner.wake_ms == wake_ms:
            runner.wake_ms = -1
            self._pump(runner, machine)

    def _pump(self, runner: _Runner, machine: ShardMapping) -> None:
        """Do what the machine asks for, until it waits."""
        while machine is runner.machine and not runner.done:
            action = machine.next(self.now_ms)
            match action:
                case Fetch():
                    machine.tell(self._fetched(action), self.now_ms)
                case Invoke():
                    self._invoke(runner, action)
                case Checkpoint():
                    self._store(runner, action)
                case Wait():
                    if action.until_ms is not None:
                        wake_ms = max(action.until_ms, self.now_ms + 1)
                        if runner.wake_ms < 0 or wake_ms < runner.wake_ms:
                            runner.wake_ms = wake_ms
                            self.at(wake_ms, self._wake, runner, machine, wake_ms)
                    return
                case Done():
                    runner.done = True
                    self.note(runner.shard.id, f"shard done, children {', '.join(action.children)}")
                    self._start_children(action.children)
                case Stopped():
                    self.happened("mapping_updated")
                    runner.settings = self._drawn_settings()
                    self._restart(runner, "updated")
                case _:
                    machine.tell(Delivered(action.lane), self.now_ms)

    def _start_children(self, children: Sequence[str]) -> None:
        for child in children:
            shard = self.stream.shards[child]
            if child not in self._runners and all(self._is_done(parent) for parent in shard.parents):
                self._start(shard)

    def _is_done(self, shard_id: str) -> bool:
        return shard_id in self._runners and self._runners[shard_id].done

    def _fetched(self, fetch: Fetch) -> Any:
        draw = self.chance.of("reads").random
        if self.has("read_failed") and draw() < 0.03:
            self.happened("read_failed")
            return FetchFailed("ProvisionedThroughputExceededException")
        if self.has("read_short") and draw() < 0.1:
            short = self.stream.fetch(fetch, int(draw() * 3))
            if short.behind_latest_ms:
                self.happened("read_short")
            return short
        return self.stream.fetch(fetch, fetch.limit)

    def _store(self, runner: _Runner, checkpoint: Checkpoint) -> None:
        if self.has("checkpoint_lost") and not runner.guarded and self.chance.happens("checkpoints", 0.05):
            self.happened("checkpoint_lost")
            self._crash(runner, "crashes before its checkpoint")
            return
        runner.saved = checkpoint
        window = runner.machine.window
        if runner.guarded is not None and (window is None or window > runner.guarded):
            runner.guarded = None
            runner.state_bytes_allowed = runner.state_bytes_max

    def _crash(self, runner: _Runner, why: str) -> None:
        runner.settings = self._drawn_settings()
        self._restart(runner, why)

    def _plan_restarts(self) -> None:
        draw = self.chance.of("restarts").random
        span_ms = self.producers.end_ms - BEGIN_MS
        for _ in range(2 + int(draw() * 4)):
            self.at(BEGIN_MS + int(draw() * span_ms), self.restart_some, draw())

    def restart_some(self, which: float) -> None:
        """A mapping crashes, or is told to stop, whatever it is doing."""
        runners = [runner for runner in self._runners.values() if not (runner.done or runner.guarded)]
        if not runners or self.calm:
            return
        runner = runners[int(which * len(runners))]
        crash = "window_replayed" if self.windows else "batch_replayed"
        if self.has("mapping_updated") and (self.chance.happens("restarts", 0.5) or not self.has(crash)):
            runner.machine.stop()
            self.at(self.now_ms, self._pump, runner, runner.machine)
        elif self.has(crash):
            if not self.windows or (runner.machine.window and not runner.settings.assumed.keep_window):
                self.happened(crash)
            self._crash(runner, "crashes")

    # -- invocations ------------------------------------------------------------------------------------------

    def _invoke(self, runner: _Runner, invoke: Invoke) -> None:
        """Run the function now; tell the machine after the time that it took."""
        machine, draw = runner.machine, self.chance.of("calls").random
        took_ms = 1 + int(draw() * draw() * 2000)
        if self.has("function_throttled") and draw() < 0.03:
            self.happened("function_throttled")
            self.at(self.now_ms + 1, self._tell, runner, machine, Throttled("TooManyRequestsException", invoke.lane))
            return
        event = invoke.event()
        flagged = bool(event.get("isWindowTerminatedEarly"))
        self.happened("terminated_early", int(flagged))
        if invoke.kind is Kind.FINAL and invoke.records:
            self.happened("records_in_final")
        self._maybe_update(runner, invoke, event)
        outcome = self._call(runner, invoke, event, flagged=flagged)
        if isinstance(outcome, Failed) and outcome.error_type == "Sandbox.Timedout":
            took_ms = TIMEOUT_MS
        runner.busy += 1
        self.at(self.now_ms + took_ms, self._tell, runner, machine, outcome)

    def _tell(self, runner: _Runner, machine: ShardMapping, outcome: Any) -> None:
        if machine is not runner.machine:
            return  # it crashed meanwhile: nobody waits for this answer
        failed = isinstance(outcome, Failed)
        if failed and self.has("other_edges") and not runner.guarded and self.chance.happens("edges", 0.25):
            self.happened("other_edges")
            self._crash(runner, "comes again with other batches")
            return
        machine.tell(outcome, self.now_ms)
        self._pump(runner, machine)

    def _call(self, runner: _Runner, invoke: Invoke, event: Any, *, flagged: bool) -> Any:
        """One call of the function under what is planned for it, and what Lambda is told."""
        call = self._planned(invoke)
        final = invoke.kind in (Kind.FINAL, Kind.EARLY)
        partial = call.mishap == "partial_answer" and invoke.records > 1
        if final or flagged or not runner.settings.report_item_failures or (self._early and not runner.fresh):
            partial = False
        sent = event
        if partial:
            kept = 1 + int(self.chance.of("calls").random() * (invoke.records - 1))
            sent = {**event, "Records": event["Records"][:kept]}
        answer = self._run(runner, call, sent)
        outcome: Any = answer
        if isinstance(answer, dict):
            if partial and not answer.get("batchItemFailures"):
                call.strike("partial_answer")
                failure = {"itemIdentifier": event["Records"][kept]["kinesis"]["sequenceNumber"]}
                answer = {**answer, "batchItemFailures": [failure]}
            elif call.mishap in ("batch_repeated", "final_repeated") and (call.mishap == "final_repeated") == final:
                call.strike(call.mishap)
                answer = self._repeated(runner, event, answer, keep=final or flagged)
            outcome = Answered(msgspec.json.encode(answer), invoke.lane) if isinstance(answer, dict) else answer
        if isinstance(outcome, Answered) and call.mishap in ("answer_lost", "killed_after"):
            call.strike(call.mishap)
            outcome = Failed("Runtime.ExitError", call.mishap)
        if isinstance(outcome, Failed):
            outcome = msgspec.structs.replace(outcome, lane=invoke.lane)
            if runner.settings.bisect and invoke.records > 1:
                self.happened("bisected")
        self._settle(runner, call, invoke, outcome)
        return outcome

    def _repeated(self, runner: _Runner, event: Any, answer: Any, *, keep: bool) -> Any:
        """The same call once more: with the state that it had, or with the one that it has answered."""
        state = event.get("state")
        again = {**event}
        if not keep and state is not None and self.chance.happens("calls", 0.5):
            again["state"] = msgspec.json.decode(msgspec.json.encode(answer["state"]))
        return self._run(runner, Invocation(self.now_ms, self.now_ms + TIMEOUT_MS), again)

    def _settle(self, runner: _Runner, call: Invocation, invoke: Invoke, outcome: Any) -> None:
        for fault in call.struck:
            self.happened(fault)
        if call.throttled_by_key:
            self.happened("hot_key")
        if call.throttled_by_table and not (
            isinstance(outcome, Failed) and outcome.error_type == AllThrottled.__name__
        ):
            self.happened("throttled_some")
        elif call.throttled_by_table:
            self.happened("throttled_all")
        if self._early and call.writes:
            runner.guard(invoke.window)
        if call.deferred:
            self._haunt(runner, call)
        if self._logging:
            told = outcome.error_type if isinstance(outcome, Failed) else f"ok {len(outcome.body)} bytes"
            window = f" {invoke.window.start}" if invoke.window else ""
            struck = f" [{', '.join(call.struck)}]" if call.struck else ""
            self.note(
                runner.shard.id,
                f"{invoke.kind.value}{window} {invoke.records} records, try {invoke.attempt}, {call.writes} writes: "
                f"{told}{struck}",
            )

    def _run(self, runner: _Runner, call: Invocation, event: Any) -> Any:
        """The function's answer, or how it failed. Ends the run where it did of itself."""
        self.table.invocation = self.quarantine.invocation = call
        if call.mishap == "killed_before":
            call.at = 0
        try:
            answer = runner.handler(event, call)
        except Killed:
            return Failed("Runtime.ExitError", "killed")
        except Exception as error:  # noqa: BLE001 - whatever it is, the checker judges it
            if call.zombie:
                return Failed("Sandbox.Timedout", "timed out")
            self.checker.raised(error, runner.shard.id)
            return Failed(type(error).__name__, str(error)[:200])
        if call.zombie:
            return Failed("Sandbox.Timedout", "timed out")
        if self.windows:
            state = answer["state"]
            self.checker.answered(msgspec.json.encode(state), len(state.get("rows", ())), runner.state_bytes_allowed)
        return answer

    def _planned(self, invoke: Invoke) -> Invocation:
        """What befalls this call."""
        call = Invocation(self.now_ms, self.now_ms + TIMEOUT_MS)
        if self.calm:
            return call
        draw = self.chance.of("mishaps").random
        roll, which, at, kept = draw(), draw(), draw(), draw()
        flushes = invoke.kind in (Kind.FINAL, Kind.EARLY) or not self.windows
        if roll < 0.12:
            call.mishap = _CALL_MISHAPS[int(which * len(_CALL_MISHAPS))]
        elif roll < (0.55 if flushes else 0.35):
            call.mishap = _WRITE_MISHAPS[int(which * len(_WRITE_MISHAPS))]
            call.at = int(at * at * (self.options.keys + 1 if self.windows else 3))
            if call.mishap == "killed_during":
                call.at += 1
        if call.mishap not in self.faults:
            call.mishap = ""
        if call.mishap.startswith("throttled"):
            self._squeeze(call, at)
        if kept < 0.1:
            mishap = _QUARANTINE_MISHAPS[int(kept * 20)]
            call.quarantine_mishap = mishap if mishap in self.faults else ""
        return call

    def _squeeze(self, call: Invocation, drawn: float) -> None:
        """The table runs short of capacity, for a while."""
        some = call.mishap == "throttled_some"
        burst = 1 + int(drawn * self.options.keys) if some else 0
        rate_per_s = 2 + 30 * drawn if some else 0
        self.table.limit = Bucket(burst, rate_per_s, burst, self.now_ms, self.now_ms + 100 + drawn * 2_000)

    def _haunt(self, runner: _Runner, call: Invocation) -> None:
        """The writes of a call that timed out take effect one after the other, until its sandbox is frozen."""
        draw = self.chance.of("zombies").random
        at_ms = self.now_ms + int(draw() * 2 * TIMEOUT_MS)
        kept = len(call.deferred) if draw() < 0.6 else int(draw() * len(call.deferred))
        apart_ms = min(20_000, HAUNT_MS_MAX // (kept + 1))
        for write in call.deferred[:kept]:
            self._zombies += 1
            self.at(at_ms, self._haunted, runner, write)
            at_ms += int(draw() * draw() * apart_ms)

    def _haunted(self, runner: _Runner, write: Any) -> None:
        self._zombies -= 1
        self._zombie_writes += 1
        self.table.invocation = Invocation(self.now_ms, self.now_ms + TIMEOUT_MS)
        self.note(runner.shard.id, "zombie writes")
        try:
            self.table.apply_put(write) if isinstance(write, list) else self.table.apply(write)
        except Exception as error:  # noqa: BLE001 - whatever it is, the checker judges it
            self.checker.raised(error, runner.shard.id)

    # -- code -------------------------------------------------------------------------------------------------

    def _deploy(self, runner: _Runner, state_bytes_max: int) -> None:
        """A cold start, of code with that limit of its state."""
        pipeline = self._pipeline
        if self.windows and state_bytes_max != pipeline.plan.folder.state_bytes_max:
            folder = msgspec.structs.replace(pipeline.plan.folder, state_bytes_max=state_bytes_max)
            pipeline = copy.copy(pipeline)
            pipeline.plan = msgspec.structs.replace(pipeline.plan, folder=folder)
        runner.state_bytes_max = state_bytes_max
        runner.state_bytes_allowed = max(runner.state_bytes_allowed, state_bytes_max)
        runner.handler = pipeline.handler_on(self._seams)

    def _seams(self) -> Seams:
        return Seams(
            self.table,
            self.quarantine,
            _Listed(self.stream),
            _Silent(),
            sleep=lambda seconds: self.table.invocation.sleep(seconds),
            random=self.chance.of("delivery").random,
        )

    def _maybe_update(self, runner: _Runner, invoke: Invoke, event: Any) -> None:
        """New code for this shard; with another limit only where no record is on its second way."""
        last = event["Records"][-1]["kinesis"]["sequenceNumber"] if event["Records"] else ""
        runner.fresh = (
            bool(last) and invoke.attempt == 1 and event["Records"][0]["kinesis"]["sequenceNumber"] > runner.furthest
        )
        runner.furthest = max(runner.furthest, last)
        if not self.has("function_updated") or not self.chance.happens("updates", 0.03):
            return
        limit = runner.state_bytes_max
        if self.windows and runner.fresh and self.chance.happens("updates", 0.5):
            limit = self._drawn_state_limit()
            runner.guard(runner.machine.window)
        self.happened("function_updated")
        self.note(runner.shard.id, f"function updated, state limit {limit}")
        self._deploy(runner, limit)
