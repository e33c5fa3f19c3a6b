"""What the simulator found in the code that it runs: each as small as it comes."""

from tests.builders import START_S, aggregate, event, kinesis_record, records, trip
from tests.handlers import taxi
from windlass.core.rejected import Reason
from windlass.core.schema import Fault, Record, Schema, fields_of
from windlass.local.mapping import Answered, Fetch, Fetched, Invoke, Kind, ShardMapping, StreamRecord, Wait
from windlass.local.mapping_settings import Assumptions, MappingSettings

SHARD = "shardId-000000000000"


def settings(**more):
    return MappingSettings(
        event_source_arn="arn:aws:kinesis:us-east-1:1:stream/s",
        function_arn="arn:aws:lambda:us-east-1:1:function:f",
        window_ms=30_000,
        **more,
    )


def calls_for(stream, config, *, reads):
    """(kind, window start in seconds, records) of every call, with so many records given per read."""
    machine = ShardMapping(config, SHARD, jitter=lambda: 0.0)
    calls, given, now_ms = [], 0, 100_000
    for _ in range(200):
        match machine.next(now_ms):
            case Fetch():
                machine.tell(Fetched(stream[given : given + reads], ended=given + reads >= len(stream)), now_ms)
                given += reads
            case Invoke() as invoke:
                calls.append((invoke.kind, invoke.window.start_ms // 1000, invoke.records))
                machine.tell(Answered(b'{"state":{}}'), now_ms)
            case Wait():
                now_ms += 1000
            case _:
                pass
    return calls


def test_a_straggler_does_not_close_the_window_that_it_interrupts():
    arrivals = [30_100, 29_900, 30_200]
    stream = [StreamRecord(f"{number:056d}", "k", at_ms, b"{}") for number, at_ms in enumerate(arrivals, 1)]
    config = settings(assumed=Assumptions(straggler="reopen"))
    finals = [
        [start for kind, start, _ in calls_for(stream, config, reads=reads) if kind is Kind.FINAL]
        for reads in (1, 2, 3)
    ]
    assert finals == [[0, 30]] * 3


class Reading(Record):
    value: float


def test_a_float_ends_below_dynamodbs_last_number_even_where_it_is_not_stored():
    schema = Schema("Reading", fields_of(Reading), coerce=False)
    (beyond, last), _ = schema.read([b'{"value":1e126}', b'{"value":9.9e125}'])
    assert isinstance(beyond, Fault)
    assert beyond.reason is Reason.OUT_OF_RANGE
    assert last.value == 9.9e125


def test_a_batch_that_comes_again_with_its_own_answer_as_state_takes_nothing_out_of_the_quarantine():
    """Its clean records are duplicates then; so an object of the same name must not lose what lay before them."""
    handler, seams = taxi()
    broken = aggregate([trip()])[:-1]
    late = kinesis_record(1, trip(), arrival_s=START_S - 0.5)
    batch = [late, *records([trip(passengers="x"), trip(), broken], first=2)]
    answer = handler(event(batch), None)
    before = {(record.position, record.reason) for record in seams.quarantine.read()}
    again = handler(event(batch, state=answer["state"]), None)
    assert again == answer
    assert len(before) == 3
    assert {(record.position, record.reason) for record in seams.quarantine.read()} == before
