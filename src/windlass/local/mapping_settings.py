"""What an event source mapping is told to do: from the Lambda API's request, and back to its echo.

`MappingSettings` is one frozen value. It is made from the dict of a CreateEventSourceMapping request, changed by
the dict of an UpdateEventSourceMapping request, and echoed as the API echoes it, every default spelled out.
A request that AWS refuses raises `InvalidRequest` with AWS's error type and, where it is known, AWS's text.

Where nobody outside AWS knows what Lambda does, `Assumptions` holds one option per question, and its default is
the conservative answer. Nothing else in `local` guesses.

Sources: Lambda API Reference, "CreateEventSourceMapping" and "EventSourceMappingConfiguration"; Lambda Developer
Guide, "Parameters for Amazon Kinesis Data Streams event source mappings".
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, NoReturn

import msgspec

from windlass.local.filters import PATTERN_CHARS_MAX, PATTERNS_MAX, Filter, InvalidPattern

START_KINDS = ("LATEST", "AT_TIMESTAMP", "TRIM_HORIZON")
REPORT_ITEM_FAILURES = "ReportBatchItemFailures"
STATE_BYTES_MAX = 1024 * 1024  # "Configuring Kinesis Data Streams windows": 1 MB of state


class InvalidRequest(Exception):
    """A request that the Lambda API refuses: `type` is AWS's error code, `status` the HTTP status."""

    def __init__(self, type_: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.type = type_
        self.message = message
        self.status = status


class Position(msgspec.Struct, frozen=True):
    """A place in a shard, in the words of GetShardIterator.

    `kind` TRIM_HORIZON and LATEST need no more; AT_TIMESTAMP has `at_ms`; AT_SEQUENCE_NUMBER and
    AFTER_SEQUENCE_NUMBER have `sequence`.
    """

    kind: str
    sequence: str = ""
    at_ms: int = 0


TRIM_HORIZON = Position("TRIM_HORIZON")
LATEST = Position("LATEST")


class Assumptions(msgspec.Struct, frozen=True, kw_only=True):
    """What Lambda is taken to do where AWS does not say. Times in milliseconds."""

    final_carries_records: bool = False
    """The final call of a window has `Records: []`; True: its last batch travels in it."""
    final_needs_state: bool = True
    """A final or early call answered without `state` has failed; False: it is only counted as a warning."""
    final_blocks: bool = True
    """A final or early call is repeated until it succeeds; False: discarded with the retries, batchSize 0."""
    early_call: Literal["extra", "extra-final", "next"] = "extra"
    """State over the limit goes out in a call of its own without records, early alone or early and final both
    flagged; or in the window's next regular call."""
    state_bytes_max: int = STATE_BYTES_MAX
    """The limit: of the state as compact JSON in UTF-8."""
    straggler: Literal["current", "reopen"] = "current"
    """A record older than the open window joins it; or its own window is opened again for it, and closed."""
    grace_ms: int = 120_000
    """A window without newer records is closed this long after its end ..."""
    grace_from: Literal["last-activity", "window-end"] = "last-activity"
    """... or after the shard's last record, where that is later; or after its end in any case."""
    keep_window: bool = False
    """A mapping that is stopped replays its open window from the start with empty state; True: goes on with it."""
    partial_keeps_state: bool = True
    """State beside batchItemFailures is taken and the rest retried with it; False: that answer is a failure."""
    bisect_windows: bool = True
    """BisectBatchOnFunctionError splits windowed batches too, handing the state from half to half."""
    backoff_ms: int = 500
    """The pause after a failed call; it doubles with each further failure in a row ..."""
    backoff_ms_max: int = 60_000
    """... up to this."""
    s3_payload_text: bool = True
    """The `payload` of an S3 failure record is the event as text; False: as an object."""
    repeat_every: int = 0
    """Fault injection: every n-th successful call loses its answer and is made again; 0: none."""


class _Number(msgspec.Struct, frozen=True):
    """A whole-number member of the request: its field here, its range, and the field's units per API unit."""

    field: str
    low: int
    high: int
    unit: int = 1


_NUMBERS = {
    "BatchSize": _Number("batch_size", 1, 10_000),
    "MaximumBatchingWindowInSeconds": _Number("batching_window_ms", 0, 300, 1000),
    "ParallelizationFactor": _Number("parallelization", 1, 10),
    "MaximumRecordAgeInSeconds": _Number("record_age_ms_max", -1, 604_800, 1000),
    "MaximumRetryAttempts": _Number("retries_max", -1, 10_000),
    "TumblingWindowInSeconds": _Number("window_ms", 0, 900, 1000),
}
_ENDLESS = ("record_age_ms_max", "retries_max")  # the fields where the API's -1 means no limit


class MappingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One event source mapping's configuration. `None` for a maximum means no limit; `window_ms` 0, no windows."""

    event_source_arn: str
    function_arn: str
    role_arn: str = ""
    uuid: str = ""
    enabled: bool = True
    start: Position = TRIM_HORIZON
    batch_size: int = 100
    batching_window_ms: int = 0
    parallelization: int = 1
    record_age_ms_max: int | None = None
    retries_max: int | None = None
    bisect: bool = False
    window_ms: int = 0
    report_item_failures: bool = False
    on_failure_arn: str = ""
    filters: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    assumed: Assumptions = Assumptions()
    poll_ms: int = 1000
    """Between two reads of a shard that has been read to its end; Lambda's base rate is one a second."""
    poll_ms_min: int = 200
    """Between two reads while there is more to read; Kinesis allows five reads a second per shard."""
    fetch_records_max: int = 10_000

    @classmethod
    def from_request(
        cls,
        request: Mapping[str, Any],
        *,
        uuid: str,
        function_arn: str,
        role_arn: str,
        now_ms: int,
        assumed: Assumptions | None = None,
    ) -> "MappingSettings":
        """From a CreateEventSourceMapping request. `function_arn` is what its FunctionName resolved to."""
        source = request.get("EventSourceArn")
        if not source or ":kinesis:" not in source:
            _refuse("Unrecognized event source.")
        settings = cls(
            event_source_arn=source,
            function_arn=function_arn,
            role_arn=role_arn,
            uuid=uuid,
            start=_start(request, now_ms),
            assumed=assumed or Assumptions(),
        )
        return settings.updated(request)

    def updated(self, request: Mapping[str, Any]) -> "MappingSettings":
        """These settings with what an UpdateEventSourceMapping (or Create) request names; the rest stays."""
        _check_ranges(request)
        changes: dict[str, Any] = {
            number.field: _amount(number, request[name])
            for name, number in _NUMBERS.items()
            if request.get(name) is not None
        }
        for name, read in _MEMBERS.items():
            if request.get(name) is not None:
                field, value = read(request[name])
                changes[field] = value
        settings = msgspec.structs.replace(self, **changes)
        if settings.window_ms and settings.parallelization > 1:
            # Known to be refused; AWS's wording is not known.
            _refuse(
                "ParallelizationFactor must be 1 when TumblingWindowInSeconds is set; "
                f"found {settings.parallelization}. Set one of the two back to its default."
            )
        return settings

    def echo(self) -> dict[str, Any]:
        """The configuration part of EventSourceMappingConfiguration, with every default spelled out."""
        echo: dict[str, Any] = {
            "UUID": self.uuid,
            "EventSourceMappingArn": self.arn,
            "EventSourceArn": self.event_source_arn,
            "FunctionArn": self.function_arn,
            "StartingPosition": self.start.kind,
            **{name: _echoed(number, getattr(self, number.field)) for name, number in _NUMBERS.items()},
            "BisectBatchOnFunctionError": self.bisect,
            "DestinationConfig": {"OnFailure": {"Destination": self.on_failure_arn} if self.on_failure_arn else {}},
            "FunctionResponseTypes": [REPORT_ITEM_FAILURES] if self.report_item_failures else [],
        }
        if self.start.kind == "AT_TIMESTAMP":
            echo["StartingPositionTimestamp"] = self.start.at_ms / 1000
        if self.filters:
            echo["FilterCriteria"] = {"Filters": [{"Pattern": pattern} for pattern in self.filters]}
        if self.metrics:
            echo["MetricsConfig"] = {"Metrics": list(self.metrics)}
        return echo

    @property
    def arn(self) -> str:
        """The mapping's own ARN, in the function's region and account."""
        prefix = ":".join(self.function_arn.split(":")[:5])
        return f"{prefix}:event-source-mapping:{self.uuid}"

    @property
    def region(self) -> str:
        """The stream's region, as the records of an event carry it."""
        return self.event_source_arn.split(":")[3]

    @property
    def stream_arn(self) -> str:
        """The stream, also where the event source is one of its enhanced fan-out consumers."""
        return self.event_source_arn.partition("/consumer/")[0]

    @property
    def consumer_arn(self) -> str:
        """The enhanced fan-out consumer to read through, or empty: read with GetRecords."""
        return self.event_source_arn if "/consumer/" in self.event_source_arn else ""


# --- reading a request -----------------------------------------------------------------------------------------


def _refuse(message: str) -> NoReturn:
    """A parameter that the service itself refuses."""
    raise InvalidRequest("InvalidParameterValueException", message)  # noqa: EM101


def _constraints(*violations: str) -> str:
    noun = "error" if len(violations) == 1 else "errors"
    return f"{len(violations)} validation {noun} detected: {'; '.join(violations)}"


def _refuse_constraints(*violations: str) -> NoReturn:
    """A request that its own model refuses, all violations at once."""
    raise InvalidRequest("ValidationException", _constraints(*violations))  # noqa: EM101


def _violation(value: Any, member: str, rule: str) -> str:
    return f"Value {value} at '{member}' failed to satisfy constraint: Member must {rule}"


def _start(request: Mapping[str, Any], now_ms: int) -> Position:
    kind = request.get("StartingPosition")
    if kind is None:
        _refuse(_constraints(_violation("null", "startingPosition", "not be null.")))
    if kind not in START_KINDS:
        rule = f"satisfy enum value set: [{', '.join(START_KINDS)}]"
        _refuse_constraints(_violation(f"'{kind}'", "startingPosition", rule))
    if kind != "AT_TIMESTAMP":
        return Position(kind)
    at = request.get("StartingPositionTimestamp")
    if at is None:
        _refuse("StartingPositionTimestamp is required when StartingPosition is AT_TIMESTAMP.")
    at_ms = round(at.timestamp() * 1000) if isinstance(at, datetime) else round(float(at) * 1000)
    if at_ms > now_ms:
        _refuse("StartingPositionTimestamp cannot be in the future.")
    return Position(kind, at_ms=at_ms)


def _check_ranges(request: Mapping[str, Any]) -> None:
    """The service's own constraints, all at once, as it reports them (the text of a range is assumed)."""
    found = []
    for name, number in _NUMBERS.items():
        value = request.get(name)
        if value is None:
            continue
        if type(value) is not int:
            msg = f"{name} is a whole number; found {value!r}"
            raise InvalidRequest("SerializationException", msg)  # noqa: EM101
        member = name[0].lower() + name[1:]
        if value > number.high:
            found.append(_violation(f"'{value}'", member, f"have value less than or equal to {number.high}"))
        if value < number.low:
            found.append(_violation(f"'{value}'", member, f"have value greater than or equal to {number.low}"))
    if found:
        _refuse_constraints(*found)
    if 0 <= request.get("MaximumRecordAgeInSeconds", -1) < 60:
        _refuse("MaximumRecordAgeInSeconds must be either -1 (forever) or between 60 and 604800 (inclusive)")


def _amount(number: _Number, value: int) -> int | None:
    return None if value == -1 and number.field in _ENDLESS else value * number.unit


def _echoed(number: _Number, value: int | None) -> int:
    return -1 if value is None else value // number.unit


def _enabled(value: bool) -> tuple[str, bool]:  # noqa: FBT001  (the request's own member)
    return "enabled", value


def _bisect(value: bool) -> tuple[str, bool]:  # noqa: FBT001
    return "bisect", value


def _response_types(value: list[str]) -> tuple[str, bool]:
    if any(each != REPORT_ITEM_FAILURES for each in value):
        rule = f"satisfy constraint: [Member must satisfy enum value set: [{REPORT_ITEM_FAILURES}]]"
        found = f"'[{', '.join(value)}]'"
        _refuse_constraints(_violation(found, "functionResponseTypes", rule))
    return "report_item_failures", bool(value)


def _destination(value: Mapping[str, Any]) -> tuple[str, str]:
    if value.get("OnSuccess"):
        _refuse("Unsupported DestinationConfig parameter for given event source mapping type.")
    arn = (value.get("OnFailure") or {}).get("Destination", "")
    if arn and arn.split(":")[2:3] not in (["sqs"], ["sns"], ["s3"]):
        _refuse(f"The on-failure destination is the ARN of an SQS queue, SNS topic or S3 bucket: {arn}")
    return "on_failure_arn", arn


def _filter_criteria(value: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    patterns = tuple(each.get("Pattern", "") for each in value.get("Filters") or ())
    if len(patterns) > PATTERNS_MAX:
        # Assumed wording; the limit is documented.
        _refuse(f"A mapping has at most {PATTERNS_MAX} filters; found {len(patterns)}.")
    for pattern in patterns:
        if len(pattern) > PATTERN_CHARS_MAX:
            rule = f"have length less than or equal to {PATTERN_CHARS_MAX}"
            _refuse_constraints(_violation(f"'{pattern}'", "filterCriteria.filters.1.member.pattern", rule))
    try:
        Filter(patterns)
    except InvalidPattern:
        _refuse("Invalid filter pattern definition.")
    return "filters", patterns


def _metrics(value: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    return "metrics", tuple(value.get("Metrics") or ())


_MEMBERS: dict[str, Any] = {
    "Enabled": _enabled,
    "BisectBatchOnFunctionError": _bisect,
    "FunctionResponseTypes": _response_types,
    "DestinationConfig": _destination,
    "FilterCriteria": _filter_criteria,
    "MetricsConfig": _metrics,
}


# --- states ----------------------------------------------------------------------------------------------------


class State(StrEnum):
    """A mapping's `State`, as the API spells it."""

    CREATING = "Creating"
    ENABLING = "Enabling"
    ENABLED = "Enabled"
    DISABLING = "Disabling"
    DISABLED = "Disabled"
    UPDATING = "Updating"
    DELETING = "Deleting"


STATE_REASON = "User action"
NOTHING_PROCESSED = "No records processed"
PROCESSED = "OK"
PROBLEM = "PROBLEM: Function call failed"

Command = Literal["enable", "disable", "update", "delete", "ready"]
# `ready` is the data plane's word that it has taken the last command in. What is not listed is refused: the
# mapping is in use.
TRANSITIONS: dict[tuple[State, Command], State] = {
    (State.CREATING, "ready"): State.ENABLED,
    (State.CREATING, "delete"): State.DELETING,
    (State.ENABLING, "ready"): State.ENABLED,
    (State.ENABLED, "enable"): State.UPDATING,
    (State.ENABLED, "disable"): State.DISABLING,
    (State.ENABLED, "update"): State.UPDATING,
    (State.ENABLED, "delete"): State.DELETING,
    (State.DISABLING, "ready"): State.DISABLED,
    (State.DISABLED, "enable"): State.ENABLING,
    (State.DISABLED, "disable"): State.UPDATING,
    (State.DISABLED, "update"): State.UPDATING,
    (State.DISABLED, "delete"): State.DELETING,
    (State.UPDATING, "ready"): State.ENABLED,
}


def after(state: State, command: Command, *, enabled: bool = True) -> State:
    """The state that follows. A disabled mapping comes to rest in Disabled. Raises InvalidRequest (in use)."""
    try:
        following = TRANSITIONS[state, command]
    except KeyError:
        verb = "delete" if command == "delete" else "update"
        msg = f"Cannot {verb} the event source mapping because it is in use."
        raise InvalidRequest("ResourceInUseException", msg) from None  # noqa: EM101
    return State.DISABLED if following is State.ENABLED and not enabled else following
