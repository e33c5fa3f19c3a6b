"""A mapping's settings: from the API's request, and back to its echo."""

from datetime import UTC, datetime

import pytest

from windlass.local.mapping_settings import (
    TRANSITIONS,
    InvalidRequest,
    MappingSettings,
    Position,
    State,
    after,
)

STREAM = "arn:aws:kinesis:us-east-2:123456789012:stream/trips"
FUNCTION = "arn:aws:lambda:us-east-2:123456789012:function:totals"
NOW_MS = 1_700_000_000_000


def made(**request):
    request = {"EventSourceArn": STREAM, "StartingPosition": "LATEST", **request}
    return MappingSettings.from_request(
        {name: value for name, value in request.items() if value is not ...},
        uuid="u-1",
        function_arn=FUNCTION,
        role_arn="arn:aws:iam::123456789012:role/r",
        now_ms=NOW_MS,
    )


def test_the_echo_spells_out_every_default():
    assert made().echo() == {
        "UUID": "u-1",
        "EventSourceMappingArn": "arn:aws:lambda:us-east-2:123456789012:event-source-mapping:u-1",
        "EventSourceArn": STREAM,
        "FunctionArn": FUNCTION,
        "StartingPosition": "LATEST",
        "BatchSize": 100,
        "MaximumBatchingWindowInSeconds": 0,
        "ParallelizationFactor": 1,
        "MaximumRecordAgeInSeconds": -1,
        "MaximumRetryAttempts": -1,
        "TumblingWindowInSeconds": 0,
        "BisectBatchOnFunctionError": False,
        "DestinationConfig": {"OnFailure": {}},
        "FunctionResponseTypes": [],
    }


EVERYTHING = {
    "StartingPosition": "AT_TIMESTAMP",
    "StartingPositionTimestamp": 1_600_000_000.5,
    "BatchSize": 1000,
    "MaximumBatchingWindowInSeconds": 120,
    "ParallelizationFactor": 1,
    "MaximumRecordAgeInSeconds": 60,
    "MaximumRetryAttempts": 0,
    "TumblingWindowInSeconds": 30,
    "BisectBatchOnFunctionError": True,
    "DestinationConfig": {"OnFailure": {"Destination": "arn:aws:sqs:us-east-2:123456789012:q"}},
    "FunctionResponseTypes": ["ReportBatchItemFailures"],
    "FilterCriteria": {"Filters": [{"Pattern": '{"data": {"a": [1]}}'}]},
    "MetricsConfig": {"Metrics": ["EventCount"]},
}


def test_what_is_asked_for_is_echoed():
    echo = made(**EVERYTHING).echo()
    assert {name: echo[name] for name in EVERYTHING} == EVERYTHING


def test_a_request_becomes_settings_in_milliseconds_and_plain_limits():
    settings = made(**EVERYTHING)
    assert (settings.batching_window_ms, settings.window_ms, settings.record_age_ms_max) == (120_000, 30_000, 60_000)
    assert settings.start == Position("AT_TIMESTAMP", at_ms=1_600_000_000_500)
    assert settings.retries_max == 0
    assert (made().retries_max, made().record_age_ms_max) == (None, None)


def test_an_update_changes_what_it_names_and_leaves_the_rest():
    before = made(**EVERYTHING)
    changed = before.updated({"BatchSize": 7, "MaximumRetryAttempts": -1, "FilterCriteria": {}})
    assert (changed.batch_size, changed.retries_max, changed.filters) == (7, None, ())
    assert changed.window_ms == before.window_ms
    assert "FilterCriteria" not in changed.echo()
    assert before.updated({"DestinationConfig": {"OnFailure": {"Destination": ""}}}).on_failure_arn == ""


def test_a_consumers_arn_names_its_stream():
    settings = made(EventSourceArn=STREAM + "/consumer/c:1600000000")
    assert (settings.stream_arn, settings.consumer_arn) == (STREAM, STREAM + "/consumer/c:1600000000")
    assert made().consumer_arn == ""


def test_a_timestamp_may_be_a_datetime():
    at = datetime(2023, 1, 1, tzinfo=UTC)
    settings = made(StartingPosition="AT_TIMESTAMP", StartingPositionTimestamp=at)
    assert settings.start.at_ms == 1_672_531_200_000


PARAMETER, VALIDATION = "InvalidParameterValueException", "ValidationException"
DETECTED = "1 validation error detected: "
REFUSED = [
    (
        {"StartingPosition": ...},
        PARAMETER,
        DETECTED + "Value null at 'startingPosition' failed to satisfy constraint: Member must not be null.",
    ),
    (
        {"StartingPosition": "invalid"},
        VALIDATION,
        DETECTED + "Value 'invalid' at 'startingPosition' failed to satisfy constraint: "
        "Member must satisfy enum value set: [LATEST, AT_TIMESTAMP, TRIM_HORIZON]",
    ),
    ({"EventSourceArn": ...}, PARAMETER, "Unrecognized event source."),
    ({"EventSourceArn": "arn:aws:mq:us-east-2:123456789012:broker"}, PARAMETER, "Unrecognized event source."),
    *[
        (
            {"MaximumRecordAgeInSeconds": age},
            PARAMETER,
            "MaximumRecordAgeInSeconds must be either -1 (forever) or between 60 and 604800 (inclusive)",
        )
        for age in (0, 1, 59)
    ],
    (
        {"BatchSize": 10_001},
        VALIDATION,
        DETECTED + "Value '10001' at 'batchSize' failed to satisfy constraint: "
        "Member must have value less than or equal to 10000",
    ),
    (
        {"TumblingWindowInSeconds": -1},
        VALIDATION,
        DETECTED + "Value '-1' at 'tumblingWindowInSeconds' failed to satisfy constraint: "
        "Member must have value greater than or equal to 0",
    ),
    (
        {"DestinationConfig": {"OnSuccess": {"Destination": "arn:aws:sqs:us-east-2:123456789012:q"}}},
        PARAMETER,
        "Unsupported DestinationConfig parameter for given event source mapping type.",
    ),
    ({"FilterCriteria": {"Filters": [{"Pattern": "x"}]}}, PARAMETER, "Invalid filter pattern definition."),
]


@pytest.mark.parametrize(("request_", "type_", "text"), REFUSED)
def test_a_request_is_refused_with_the_text_of_aws(request_, type_, text):
    with pytest.raises(InvalidRequest) as raised:
        made(**request_)
    assert (raised.value.type, raised.value.message, raised.value.status) == (type_, text, 400)


@pytest.mark.parametrize(
    ("member", "low", "high"),
    [
        ("BatchSize", 1, 10_000),
        ("MaximumBatchingWindowInSeconds", 0, 300),
        ("ParallelizationFactor", 1, 10),
        ("MaximumRecordAgeInSeconds", -1, 604_800),
        ("MaximumRetryAttempts", -1, 10_000),
        ("TumblingWindowInSeconds", 0, 900),
    ],
)
def test_a_number_has_its_documented_range(member, low, high):
    assert made(**{member: low}).echo()[member] == low
    assert made(**{member: high}).echo()[member] == high
    for outside in (low - 1, high + 1):
        with pytest.raises(InvalidRequest, match=f"Value '{outside}'"):
            made(**{member: outside})


def test_all_violations_are_told_at_once():
    with pytest.raises(InvalidRequest, match=r"^2 validation errors detected: .*batchSize.*; .*tumblingWindow"):
        made(BatchSize=0, TumblingWindowInSeconds=901)


OWN_WORDS = [
    ({"ParallelizationFactor": 2, "TumblingWindowInSeconds": 30}, "ParallelizationFactor must be 1"),
    ({"StartingPosition": "AT_TIMESTAMP"}, "StartingPositionTimestamp is required"),
    ({"StartingPosition": "AT_TIMESTAMP", "StartingPositionTimestamp": NOW_MS / 1000 + 1}, "in the future"),
    ({"BatchSize": "100"}, "BatchSize is a whole number; found '100'"),
    ({"FunctionResponseTypes": ["Other"]}, "ReportBatchItemFailures"),
    ({"DestinationConfig": {"OnFailure": {"Destination": "arn:aws:lambda:x:y:function:f"}}}, "SQS queue, SNS topic"),
    ({"FilterCriteria": {"Filters": [{"Pattern": '{"data": {"a": [1]}}'}] * 6}}, "at most 5 filters"),
    ({"FilterCriteria": {"Filters": [{"Pattern": "x" * 4097}]}}, "less than or equal to 4096"),
]


@pytest.mark.parametrize(("request_", "words"), OWN_WORDS)
def test_what_else_aws_refuses_is_refused(request_, words):
    with pytest.raises(InvalidRequest, match=words):
        made(**request_)


def test_windows_and_lanes_exclude_each_other_in_an_update_too():
    with pytest.raises(InvalidRequest, match="ParallelizationFactor"):
        made(TumblingWindowInSeconds=30).updated({"ParallelizationFactor": 2})


def test_a_big_batch_needs_no_batching_window():
    assert made(BatchSize=10_000).batching_window_ms == 0


LIFE = [
    ("ready", State.ENABLED),
    ("disable", State.DISABLING),
    ("ready", State.DISABLED),
    ("update", State.UPDATING),
    ("ready", State.DISABLED),
    ("enable", State.ENABLING),
    ("ready", State.ENABLED),
    ("update", State.UPDATING),
    ("ready", State.ENABLED),
    ("delete", State.DELETING),
]


def test_a_mapping_passes_through_the_documented_states():
    state, enabled = State.CREATING, True
    for command, expected in LIFE:
        enabled = {"enable": True, "disable": False}.get(command, enabled)
        state = after(state, command, enabled=enabled)
        assert state is expected


def test_a_mapping_created_disabled_comes_to_rest_disabled():
    assert after(State.CREATING, "ready", enabled=False) is State.DISABLED


@pytest.mark.parametrize("state", [State.CREATING, State.ENABLING, State.DISABLING, State.UPDATING, State.DELETING])
def test_a_mapping_on_its_way_is_in_use(state):
    with pytest.raises(InvalidRequest) as raised:
        after(state, "update")
    assert raised.value.type == "ResourceInUseException"


def test_every_state_but_the_last_has_a_way_on():
    assert {state for state, _ in TRANSITIONS} == set(State) - {State.DELETING}
