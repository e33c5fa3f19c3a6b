"""What a call reports: EMF metrics and a log line that Lambda users can read."""

import json
from itertools import count

import pytest
from aws_lambda_powertools import Metrics

from tests.builders import event, records, trip
from tests.handlers import taxi
from windlass.telemetry import PowertoolsTelemetry, Report


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


services = (f"trips-{number}" for number in count())  # a logger of that name keeps the stream it began with


def emitted(capsys, report, environ=None):
    PowertoolsTelemetry(next(services), environ or {}).emit(report)
    return lines(capsys)


def test_a_call_is_one_emf_blob_with_every_count(capsys):
    report = Report("s-1", received=10, clean=6, late=1, duplicates=1, rejected={"not_json": 2}, state_bytes=99)

    blob, line = emitted(capsys, report)

    told = {name: blob[name] for name in ("Received", "Clean", "Late", "Duplicates", "Rejected", "Rejected_not_json")}
    assert told == {
        "Received": 10,
        "Clean": 6,
        "Late": 1,
        "Duplicates": 1,
        "Rejected": 2,
        "Rejected_not_json": 2,
    }
    assert blob["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Windlass"
    assert blob["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["service"]]
    assert (line["message"], line["shard"], line["rejected"]) == ("call", "s-1", {"not_json": 2})


def test_calls_that_say_the_same_say_it_with_their_own_values_and_time(capsys, monkeypatch):
    telemetry = PowertoolsTelemetry(next(services), {})
    telemetry.emit(Report("s-1", received=10, clean=10))
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.5)
    telemetry.emit(Report("s-1", received=7, clean=7))

    first, second = lines(capsys)

    assert (first["Received"], second["Received"]) == (10, 7)
    assert second["_aws"]["Timestamp"] == 1_700_000_000_500 != first["_aws"]["Timestamp"]
    assert {**second, "_aws": first["_aws"]} == {**first, "Received": 7, "Clean": 7}


def test_a_failed_call_counts_no_records_as_lambda_sends_them_again(capsys):
    blob, line = emitted(capsys, Report("s-1", received=10, clean=10, throttled=3, failed="AllThrottled"))

    assert (blob["FailedCalls"], blob["AllThrottled"], blob["ThrottledWrites"]) == (1, 1, 3)
    assert "Received" not in blob
    assert (line["level"], line["message"]) == ("ERROR", "call failed")


def test_a_call_that_only_folded_writes_no_log_line(capsys):
    assert len(emitted(capsys, Report("s-1", received=10, clean=10, state_bytes=99))) == 1


def test_names_follow_powertools_own_variables(capsys):
    environ = {"POWERTOOLS_SERVICE_NAME": "taxi", "POWERTOOLS_METRICS_NAMESPACE": "Mine"}

    (blob,) = emitted(capsys, Report("s-1"), environ)

    assert blob["service"] == "taxi"
    assert blob["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Mine"


@pytest.mark.parametrize(
    ("environ", "blobs"),
    [
        ({}, 1),
        ({"POWERTOOLS_METRICS_DISABLED": "true"}, 0),
        ({"POWERTOOLS_DEV": "1"}, 0),
        ({"POWERTOOLS_DEV": "1", "POWERTOOLS_METRICS_DISABLED": "false"}, 1),
    ],
)
def test_metrics_are_off_where_powertools_own_variables_say_so(capsys, environ, blobs):
    assert len(emitted(capsys, Report("s-1"), environ)) == blobs


def test_metrics_of_the_users_own_stay_their_own(capsys):
    emitted(capsys, Report("s-1"))
    theirs = Metrics(namespace="Theirs", service="theirs")
    theirs.add_metric(name="Rides", unit="Count", value=1)
    theirs.flush_metrics()

    (blob,) = lines(capsys)
    assert (blob["service"], blob["Rides"]) == ("theirs", [1.0])
    assert "Received" not in blob


def test_a_name_that_is_empty_is_none(capsys):
    environ = {"POWERTOOLS_SERVICE_NAME": "", "POWERTOOLS_METRICS_NAMESPACE": ""}

    (blob,) = emitted(capsys, Report("s-1"), environ)

    assert blob["service"].startswith("trips-")
    assert blob["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Windlass"


def test_units_go_with_the_metrics(capsys):
    (blob,) = emitted(capsys, Report("s-1", state_bytes=99))

    units = {each["Name"]: each["Unit"] for each in blob["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
    assert (units["StateBytes"], units["Received"]) == ("Bytes", "Count")


def test_a_handlers_reports_tell_flushes_and_skipped_ones():
    handler, seams = taxi()
    state = handler(event(records([trip(1, 2), b"{"])), None)["state"]
    for _ in range(2):
        handler(event([], state=state, final=True), None)

    first, flushed, skipped = seams.telemetry.reports
    assert (first.received, first.clean, first.rejected) == (2, 1, {"not_json": 1})
    assert (flushed.flushed_rows, flushed.skipped_flushes) == (1, 0)
    assert (skipped.flushed_rows, skipped.skipped_flushes) == (0, 1)


@pytest.mark.parametrize("field", ["final", "late", "flushed_rows", "throttled"])
def test_what_wrote_refused_or_retried_is_notable(field):
    assert Report("s", **{field: 1}).is_notable()
    assert not Report("s", received=5, clean=5).is_notable()
