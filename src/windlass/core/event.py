"""Lambda's event for a Kinesis stream, read into columns.

The shape is the one of the Lambda developer guide ("Using Lambda to process records from Amazon Kinesis Data
Streams" and "Configuring Kinesis Data Streams windows"): `Records`, and with tumbling windows also `window`, `state`,
`shardId`, `isFinalInvokeForWindow` and `isWindowTerminatedEarly`. An event of any other shape is not data but a wrong
set-up, so it raises: the call fails, and Lambda keeps the batch.
"""

from collections.abc import Iterable, Mapping
from itertools import repeat
from operator import attrgetter, itemgetter, lt
from typing import Any

import msgspec
from pybase64 import b64decode

from windlass.core.aggregate import MAGIC
from windlass.core.position import SEQUENCE_DIGITS
from windlass.core.window import Window


class MalformedEvent(ValueError):
    """The event is not one that Lambda sends for this pipeline. The message says what was found."""


class Call(msgspec.Struct):
    """One invocation: the Kinesis records of one shard as columns of equal length, and what Lambda says of them.

    `ascii`: every payload is, so that none is an aggregate, and none can be bad UTF-8. `aggregated`: a record claims
    to be a KPL aggregate, so that the shard's hash range is worth knowing. `in_order`: the records come in the order
    of the stream, each once. `earliest_s`, `latest_s`: of the arrivals. Raises TypeError where a column holds what it
    should not.
    """

    shard: str
    stream_arn: str
    sequences: list[str]
    arrivals_s: list[float]
    payloads: list[bytes]
    window: Window | None = None
    state: Any = None
    final: bool = False
    early: bool = False
    ascii: bool = False
    aggregated: bool = False
    in_order: bool = False
    earliest_s: float = 0.0
    latest_s: float = 0.0

    @property
    def source(self) -> str:
        """The shard, told apart from other streams' shards, whose ids are the same: `REGION:ACCOUNT:STREAM/SHARD`.

        The rest is in the stream's ARN, and in that of an enhanced fan-out consumer (`…:stream/STREAM/consumer/…`).
        """
        place, _, stream = self.stream_arn.partition(":stream/")
        return f"{place.partition(':kinesis:')[2]}:{stream.partition('/')[0]}/{self.shard}" if stream else self.shard

    def __post_init__(self) -> None:
        self.ascii = all(map(bytes.isascii, self.payloads))
        self.aggregated = not self.ascii and any(map(bytes.startswith, self.payloads, repeat(MAGIC)))
        self.in_order = _in_order(self.sequences)
        if self.arrivals_s:
            by_time = sorted(self.arrivals_s)  # mostly sorted already, and then faster than min and max
            self.earliest_s, self.latest_s = by_time[0] + 0.0, by_time[-1] + 0.0


def _in_order(sequences: list[str]) -> bool:
    """Told without padding, so only where all sequence numbers have the full length, as AWS's have.

    Their total length says so in a third of the time: no server gives longer ones that would make up for shorter ones.
    """
    full = len("".join(sequences)) == SEQUENCE_DIGITS * len(sequences)
    return full and all(map(lt, sequences, sequences[1:]))


# Columns are read in C loops: this is the hot path.
_KINESIS = itemgetter("kinesis")
_SEQUENCE = itemgetter("sequenceNumber")
_ARRIVAL = itemgetter("approximateArrivalTimestamp")
_DATA = itemgetter("data")
_KINESIS_OF = attrgetter("kinesis")
_SEQUENCE_OF = attrgetter("sequenceNumber")
_ARRIVAL_OF = attrgetter("approximateArrivalTimestamp")
_DATA_OF = attrgetter("data")


def read_event(event: Mapping[str, Any]) -> Call:
    """The columns of a Lambda event. Raises MalformedEvent."""
    try:
        records = event["Records"]
        kinesis = list(map(_KINESIS, records))
        sequences = list(map(_SEQUENCE, kinesis))
        arrivals_s = list(map(_ARRIVAL, kinesis))
        texts = list(map(_DATA, kinesis))
    except (KeyError, TypeError, IndexError) as error:
        raise MalformedEvent(_what_is_missing(event, error)) from None
    payloads = _decoded(texts)
    try:
        call = Call("", "", sequences, arrivals_s, payloads)
    except TypeError as error:
        msg = f"a record's sequenceNumber is text, and its approximateArrivalTimestamp a number of seconds; {error}"
        raise MalformedEvent(msg) from None
    if "window" in event:
        _read_window(event, call)
    elif records:
        call.shard = str(records[0].get("eventID", "")).partition(":")[0]
        call.stream_arn = str(records[0].get("eventSourceARN", ""))
    if records and not call.shard:
        msg = "the event does not say which shard it is from: neither shardId nor an eventID like shardId-0…:4959…"
        raise MalformedEvent(msg)
    return call


def _decoded(texts: Iterable[str]) -> list[bytes]:
    try:
        # Positional and through map: with keywords this C function takes twice as long.
        return list(map(b64decode, texts, repeat(None), repeat(True)))  # noqa: FBT003 - validate
    except (ValueError, TypeError) as error:
        msg = f"a record's data is base64 text; {error}"
        raise MalformedEvent(msg) from None


class NotJson(ValueError):
    """The event's bytes are not JSON, so there is no event to speak of."""


class _Kinesis(msgspec.Struct, gc=False):
    """In the order in which Lambda writes them, which is the fastest to read."""

    sequenceNumber: str
    data: str
    approximateArrivalTimestamp: float


class _Record(msgspec.Struct, gc=False):
    kinesis: _Kinesis


class _WindowEnds(msgspec.Struct):
    start: str
    end: str


class _WindowedEvent(msgspec.Struct):
    """An event with a window, every part of it there; anything else takes the slow way."""

    Records: list[_Record]
    window: _WindowEnds
    shardId: str
    isFinalInvokeForWindow: bool
    isWindowTerminatedEarly: bool
    eventSourceARN: str = ""
    state: Any = None


_decode_windowed = msgspec.json.Decoder(_WindowedEvent).decode


def read_event_bytes(event: bytes) -> Call:
    """The same as `read_event`, from the bytes that Lambda sends: one pass, without a dict per record.

    An event of another shape than the usual one is read again as plain values, so that both forms agree on it.
    Raises MalformedEvent, and NotJson.
    """
    try:
        read = _decode_windowed(event)
        window = Window.parse(read.window.start, read.window.end)
    except ValueError:  # not JSON, another shape, or a window that is none
        return read_event(_plain(event))
    if not read.shardId:
        return read_event(_plain(event))
    kinesis = list(map(_KINESIS_OF, read.Records))
    return Call(
        read.shardId,
        read.eventSourceARN,
        list(map(_SEQUENCE_OF, kinesis)),
        list(map(_ARRIVAL_OF, kinesis)),
        _decoded(map(_DATA_OF, kinesis)),
        window,
        read.state,
        read.isFinalInvokeForWindow,
        read.isWindowTerminatedEarly,
    )


def _plain(event: bytes) -> Any:
    try:
        return msgspec.json.decode(event)
    except ValueError as error:
        raise NotJson(str(error)) from None


def _read_window(event: Mapping[str, Any], call: Call) -> None:
    window = event["window"]
    try:
        call.window = Window.parse(window["start"], window["end"])
    except (KeyError, TypeError, ValueError) as error:
        msg = f"the event's window is not one: {window!r:.200} ({error})"
        raise MalformedEvent(msg) from None
    for name, kind in (("shardId", str), ("isFinalInvokeForWindow", bool), ("isWindowTerminatedEarly", bool)):
        if type(event.get(name)) is not kind:
            found = repr(event[name]) if name in event else f"only {sorted(event)}"
            msg = f"an event with a window has {name}, a {kind.__name__}; found {found:.200}"
            raise MalformedEvent(msg)
    call.shard = event["shardId"]
    call.stream_arn = str(event.get("eventSourceARN", ""))
    call.state = event.get("state")
    call.final = event["isFinalInvokeForWindow"]
    call.early = event["isWindowTerminatedEarly"]


def _what_is_missing(event: Any, error: Exception) -> str:
    if not isinstance(event, Mapping):
        return f"an event is an object with Records; found {type(event).__name__}"
    if "Records" not in event:
        return f"the event has no Records; found {sorted(event)[:10]}. Is the trigger a Kinesis event source mapping?"
    return f"a record of the event is not a Kinesis record: {type(error).__name__} {error}"
