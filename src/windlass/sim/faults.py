"""The faults of the simulator: a table of names, what each does, and which pipelines it can meet.

A run draws which of the enabled faults it has at all ("swarm testing": a fault that is always there hides others),
and then where each strikes. A fault is counted when it has taken effect, not when it was planned.
"""

from collections.abc import Sequence

import msgspec

WINDOWS, RECORDS = "windows", "records"


class Fault(msgspec.Struct, frozen=True):
    """One way in which the world goes wrong. `kinds`: the pipelines that it can meet."""

    name: str
    meaning: str
    kinds: tuple[str, ...] = (WINDOWS, RECORDS)


_W, _R = (WINDOWS,), (RECORDS,)

FAULTS = (
    # The table.
    Fault("write_refused", "a write fails before it takes effect"),
    Fault("write_unanswered", "a write takes effect, and its answer is lost"),
    Fault("throttled_some", "the table's capacity runs out within a call: some writes are throttled"),
    Fault("throttled_all", "the table has no capacity: every write of a call is throttled"),
    Fault("hot_key", "one key has little capacity: its writes are throttled"),
    # The quarantine.
    Fault("quarantine_refused", "writing rejected records fails before it takes effect"),
    Fault("quarantine_unanswered", "rejected records are written, and the answer is lost"),
    # The function.
    Fault("killed_before", "the function is killed before its first write"),
    Fault("killed_during", "the function is killed between two writes"),
    Fault("killed_after", "the function is killed after its last write, before it answers"),
    Fault("timed_out", "a call times out and its writes go on, while the retry runs and after: a zombie"),
    Fault("function_throttled", "Lambda does not invoke the function: throttled"),
    Fault("function_updated", "new code takes over in mid-window, with another limit of its state at times"),
    # Lambda, between stream and function.
    Fault("answer_lost", "the function answers, and Lambda counts the call as failed"),
    Fault("batch_repeated", "a call that succeeded is made again, as it was or with the new state"),
    Fault("final_repeated", "a final or early call that succeeded is made again", _W),
    Fault("window_replayed", "the mapping crashes: an open window begins again with empty state", _W),
    Fault("batch_replayed", "the mapping crashes: what is after its checkpoint is delivered again", _R),
    Fault("checkpoint_lost", "the mapping crashes before it has stored what it has just finished"),
    Fault("other_edges", "after a failed call the records come in other batches"),
    Fault("mapping_updated", "the mapping is stopped, changed and started again"),
    Fault("bisected", "a failed batch is split in two"),
    Fault("partial_answer", "a call processes the front of its batch and reports the rest as failed"),
    Fault("terminated_early", "the state is over Lambda's limit and the window ends early, in every layout", _W),
    Fault("records_in_final", "the final call of a window carries records", _W),
    # The stream.
    Fault("shard_split", "a shard is split in the middle of a window"),
    Fault("shards_merged", "two shards are merged in the middle of a window"),
    Fault("straddling_carrier", "after a reshard an aggregate holds records of another shard, which are put again"),
    Fault("read_failed", "a read of the stream fails"),
    Fault("read_short", "a read gives less than there is, or nothing"),
    Fault("clock_skew", "the hosts that stamp arrivals have clocks that differ"),
    Fault("out_of_order", "a record's arrival lies before that of the record before it"),
    Fault("late", "a record of an earlier window arrives behind one of a later window", _W),
    # The producers.
    Fault("aggregated", "user records come in KPL aggregates"),
    Fault("poison", "records that are not clean, of every kind"),
)

BY_NAME = {fault.name: fault for fault in FAULTS}


class UnknownFault(ValueError):
    """A fault that is not in the table, or cannot meet this pipeline. One line: what to write instead."""


def chosen(text: str, kind: str) -> tuple[str, ...]:
    """The names in `all`, `none` or `a,b,...` for a pipeline of that kind, in the table's order."""
    possible = [fault.name for fault in FAULTS if kind in fault.kinds]
    if text in ("all", "none"):
        return tuple(possible) if text == "all" else ()
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        _check(name, kind, possible)
    return tuple(name for name in possible if name in wanted)


def _check(name: str, kind: str, possible: Sequence[str]) -> None:
    if name not in BY_NAME:
        msg = f"there is no fault {name!r}; write all, none, or some of: {', '.join(possible)}"
        raise UnknownFault(msg)
    if name not in possible:
        msg = f"the fault {name} ({BY_NAME[name].meaning}) cannot meet a pipeline of {kind}; leave it out"
        raise UnknownFault(msg)
