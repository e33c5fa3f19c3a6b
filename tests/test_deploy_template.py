"""The stack's template: from the declaration alone, lossless settings, and clean in the eyes of AWS's own tools."""

import json
import os
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from windlass import Count, Min, Record, Records, Sum, Windows, env
from windlass.apps import App, find_app
from windlass.core.rejected import Reason
from windlass.deploy import yaml as templates
from windlass.deploy.problem import DeployProblem
from windlass.deploy.settings import Settings, Shape, check, read_settings
from windlass.deploy.template import render, shape_of, template
from windlass.telemetry import Report

TAXI = find_app("examples/taxi/app.py:trips")
NAMES = read_settings(Path("examples/taxi/windlass.toml"))


class Trip(Record):
    vendorId: int
    zone: str
    passengerCount: int


def app_of(pipeline: Any) -> App:
    return App(pipeline, TAXI.module, "trips")


def windows(**more: Any) -> Windows:
    given = {"key": "vendorId", "every": timedelta(seconds=60), "totals": {"n": Count()}, "table": env("TABLE")}
    return Windows(Trip, **(given | more))


KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
TOPIC = "arn:aws:sns:us-east-1:123456789012:me"
VARIANTS: dict[str, tuple[Any, Settings]] = {
    "taxi": (TAXI.pipeline, NAMES),
    "no names": (TAXI.pipeline, Settings()),
    "latest": (windows(layout="latest", totals={"least": Min("passengerCount")}), Settings(shards=4)),
    "two keys": (windows(key=["zone", "vendorId"], totals={"sum": Sum("passengerCount")}), Settings(arch="x86_64")),
    "records": (Records(Trip, table=env("TABLE")), Settings(parallelization=4, retention_hours=168)),
    "records by key": (Records(Trip, table="trips", key=["zone", "vendorId"]), Settings(alarm_topic=TOPIC)),
    "existing": (
        windows(),
        Settings(
            stream="arn:aws:kinesis:us-east-1:123456789012:stream/there",
            table="arn:aws:dynamodb:us-east-1:123456789012:table/there",
        ),
    ),
    "all settings": (
        windows(quarantine="s3://elsewhere/prefix"),
        Settings(
            bucket="a-bucket", bucket_days=90, fast_runtime=True, environment={"STAGE": "test"}, python="3.12",
            stream_key=KEY,
        ),
    ),
    "no quarantine": (windows(quarantine="none"), Settings(starting_position="LATEST")),
}  # fmt: skip


def resources(name: str) -> dict[str, Any]:
    pipeline, settings = VARIANTS[name]
    return template(app_of(pipeline), settings)["Resources"]


# ── from the declaration ────────────────────────────────────────────────────────────────────────────────────


def test_keys_window_and_variables_are_the_declarations():
    made = resources("taxi")
    assert made["Table"]["Properties"]["KeySchema"] == [
        {"AttributeName": "vendorId", "KeyType": "HASH"},
        {"AttributeName": "windowStart", "KeyType": "RANGE"},
    ]
    assert made["Table"]["Properties"]["AttributeDefinitions"] == [
        {"AttributeName": "vendorId", "AttributeType": "N"},
        {"AttributeName": "windowStart", "AttributeType": "S"},
    ]
    assert made["Mapping"]["Properties"]["TumblingWindowInSeconds"] == 30
    variables = made["Function"]["Properties"]["Environment"]["Variables"]
    assert variables["dynamoDBTableName"] == {"Ref": "Table"}
    assert variables["WINDLASS_QUARANTINE"] == {"Fn::Sub": "s3://${Bucket}/quarantine"}


def test_a_key_of_ones_own_encrypts_the_stream_and_the_role_may_decrypt_that_stream_with_it():
    made = resources("all settings")
    assert made["Stream"]["Properties"]["StreamEncryption"] == {"EncryptionType": "KMS", "KeyId": KEY}
    statements = made["FunctionRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
    [decrypt] = [each for each in statements if "kms:Decrypt" in each["Action"]]
    assert decrypt["Resource"] == KEY
    of_stream = {"kms:EncryptionContext:aws:kinesis:arn": {"Fn::GetAtt": ["Stream", "Arn"]}}
    assert decrypt["Condition"] == {"StringEquals": of_stream}
    assert "kms:" not in str(resources("taxi")["FunctionRole"])


def test_the_taxi_stack_has_the_names_of_the_lab():
    made = resources("taxi")
    found = {
        logical: next(iter(made[logical]["Properties"].values()))
        for logical in ("Stream", "Table", "Function", "FunctionRole")
    }
    assert found == {
        "Stream": "input-stream",
        "Table": "kinesisAggs",
        "Function": "kinesisLambdaConsumer01",
        "FunctionRole": "KinesisLambdaConsumerRole",
    }  # fmt: skip


def test_without_settings_cloudformation_gives_every_name():
    named = {"Name", "TableName", "FunctionName", "RoleName", "BucketName", "LogGroupName"}
    for logical in ("Stream", "Table", "Function", "FunctionRole", "Bucket", "FunctionLog"):
        assert not named & resources("no names")[logical]["Properties"].keys()


def test_what_exists_is_used_and_not_made():
    made = resources("existing")
    assert not {"Stream", "Table"} & made.keys()
    assert made["Mapping"]["Properties"]["EventSourceArn"].endswith(":stream/there")
    assert made["Function"]["Properties"]["Environment"]["Variables"]["TABLE"] == "there"


def test_records_report_item_failures_and_have_no_window():
    properties = resources("records")["Mapping"]["Properties"]
    assert properties["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert "TumblingWindowInSeconds" not in properties


@pytest.mark.parametrize("name", VARIANTS)
def test_lambda_is_never_told_to_discard_and_has_a_destination_all_the_same(name):
    properties = resources(name)["Mapping"]["Properties"]
    assert (properties["MaximumRetryAttempts"], properties["MaximumRecordAgeInSeconds"]) == (-1, -1)
    assert properties["BisectBatchOnFunctionError"] is False
    assert properties["DestinationConfig"]["OnFailure"]["Destination"] == {"Fn::GetAtt": ["Bucket", "Arn"]}
    assert properties["MetricsConfig"] == {"Metrics": ["EventCount"]}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_holds_data_is_encrypted_private_and_outlives_the_stack(name):
    made = resources(name)
    bucket = made["Bucket"]
    assert set(bucket["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
    assert bucket["Properties"]["BucketEncryption"]
    for kept in [bucket, *([made["Table"]] if "Table" in made else [])]:
        assert (kept["DeletionPolicy"], kept["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")


def test_the_fast_runtime_is_one_setting():
    variables = resources("all settings")["Function"]["Properties"]["Environment"]["Variables"]
    assert variables["AWS_LAMBDA_EXEC_WRAPPER"] == "/var/task/windlass-runtime"
    assert variables["STAGE"] == "test"


def test_both_formats_differ_in_the_function_alone():
    cloudformation, sam = template(TAXI, NAMES), template(TAXI, NAMES, "sam")
    differing = {
        name for name in cloudformation["Resources"] if cloudformation["Resources"][name] != sam["Resources"][name]
    }
    assert differing == {"Function"}
    assert cloudformation["Outputs"] == sam["Outputs"]


def test_a_table_that_the_declaration_names_cannot_be_another():
    with pytest.raises(DeployProblem, match='writes to table "fixed", the settings say other'):
        template(app_of(windows(table="fixed")), Settings(table="other"))


def test_a_variable_that_the_stack_sets_cannot_be_set_again():
    with pytest.raises(DeployProblem, match="environment sets TABLE, which the stack sets itself"):
        template(app_of(windows()), Settings(environment={"TABLE": "x"}))


def test_there_is_an_alarm_for_each_way_to_lose_or_delay():
    alarms = [each["Properties"] for each in resources("taxi").values() if each["Type"] == "AWS::CloudWatch::Alarm"]
    metrics = {alarm.get("MetricName", "share") for alarm in alarms}
    assert metrics == {
        *("IteratorAge", "Errors", "Throttles", "Duration", "share", "ConflictingFlush", "WriteThrottleEvents"),
        *("OnFailureDestinationDeliveredEventCount", "DroppedEventCount"),
    }
    assert {alarm["TreatMissingData"] for alarm in alarms} == {"notBreaching"}


def test_late_records_count_for_the_alarm_on_rejected_ones():
    share, *queries = resources("taxi")["RejectedAlarm"]["Properties"]["Metrics"]
    assert share["Expression"] == "100 * (rejected + FILL(late, 0)) / received"
    metrics = {query["Id"]: query["MetricStat"]["Metric"]["MetricName"] for query in queries}
    assert metrics == {"rejected": "Rejected", "late": "Late", "received": "Received"}


def test_the_dashboard_is_json_and_graphs_every_reason_under_the_metric_that_counts_it():
    body = resources("taxi")["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    widgets = json.loads(body)["widgets"]
    assert len(widgets) == 8
    [graph] = [each["properties"] for each in widgets if each["properties"]["title"] == "Rejected, by reason"]
    report = Report(late=1, rejected=dict.fromkeys((reason for reason in Reason if reason != "late"), 1))
    assert {metric for _, metric, *_ in graph["metrics"]} <= report.metrics().keys()


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────

LOSSY = [
    (Settings(retries=2), "retries", "refused", "discard a batch"),
    (Settings(retries=0), "retries", "refused", "discard a batch"),
    (Settings(stream_key="alias/mine"), "stream_key", "refused", "is no key's ARN"),
    (Settings(record_age_s=3600), "record_age_s", "refused", "discard what is older"),
    (Settings(parallelization=2), "parallelization", "refused", "Lambda keeps one state per shard"),
    (Settings(bisect=True), "bisect", "refused", "not documented"),
    (Settings(batching_window_s=120), "batching_window_s", "warning", "longer than the window of 30 s"),
    (Settings(starting_position="LATEST"), "starting_position", "warning", "leaves out what was put before"),
    (Settings(timeout_s=3), "timeout_s", "warning", "little for retries"),
    (Settings(memory_mb=256), "memory_mb", "warning", "256/1769"),
    (Settings(batch_size=10), "batch_size", "warning", "so few records"),
    (Settings(iterator_age_s=86_400), "iterator_age_s", "refused", "when records are gone"),
    (Settings(environment={"AWS_REGION": "x"}), "environment", "refused", "AWS_REGION"),
    (Settings(batch_size=20_000), "batch_size", "refused", "not between 1 and 10000"),
    (Settings(timeout_s=901), "timeout_s", "refused", "not between 1 and 900"),
    (Settings(arch="arm"), "arch", "refused", "none of arm64, x86_64"),
    (Settings(python="3.9"), "python", "refused", "none of 3.11"),
    (Settings(log_days=31), "log_days", "refused", "none of 1, 3, 5"),
    (Settings(stream="a,b"), "stream", "refused", "stream='a,b' is no name of a stream"),
    (Settings(stream="a" * 129), "stream", "refused", "is no name of a stream"),
    (Settings(table="ab"), "table", "refused", "table='ab' is no name of a table"),
    (Settings(table="a/b/c"), "table", "refused", "is no name of a table"),
]


@pytest.mark.parametrize(("settings", "name", "severity", "text"), LOSSY)
def test_a_setting_that_loses_or_delays_is_told_with_its_reason(settings, name, severity, text):
    [finding] = check(settings, Shape(30))
    assert (finding.setting, finding.severity) == (name, severity)
    assert text in finding.text


def test_the_defaults_and_the_taxi_settings_are_without_findings():
    assert check(Settings(), Shape(30)) == []
    assert check(NAMES, shape_of(TAXI.pipeline)) == []


def test_what_only_windows_forbid_is_free_to_records():
    assert check(Settings(parallelization=10, bisect=True, batching_window_s=300), Shape(0)) == []


@pytest.mark.parametrize(("where", "severity"), [("none", "warning"), ("memory", "refused"), ("/tmp/q", "refused")])
def test_a_quarantine_that_does_not_last_is_told(where, severity):
    [finding] = check(Settings(), shape_of(windows(quarantine=where)))
    assert finding.severity == severity


def test_settings_come_from_a_file_and_single_ones_over_it(tmp_path):
    file = tmp_path / "windlass.toml"
    file.write_text('[deploy]\nstream = "s"\nbatch_size = 500\n')
    found = read_settings(file, ["batch_size=700", "table=kinesisAggs", "fast_runtime=true", 'tags={a = "b"}'])
    assert (found.stream, found.batch_size, found.table, found.fast_runtime) == ("s", 700, "kinesisAggs", True)
    assert found.tags == {"a": "b"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[deploy]\nbatch_sise = 5", "unknown field `batch_sise`"),
        ("[deploy]\nbatch_size = 'many'", "Expected `int`"),
        ("[deploy\n", "is not TOML"),
        ("[other]\na = 1", r"one table, \[deploy\]; found other"),
        ("deploy = 3", r"one table, \[deploy\]"),
    ],
)
def test_a_settings_file_that_is_wrong_is_one_line(tmp_path, text, problem):
    file = tmp_path / "windlass.toml"
    file.write_text(text)
    with pytest.raises(DeployProblem, match=problem) as raised:
        read_settings(file)
    assert "\n" not in str(raised.value)
    assert str(file) in str(raised.value)


def test_a_setting_that_is_text_may_look_like_a_number():
    assert read_settings(None, ["python=3.12", "stream=2024"]).python == "3.12"
    assert read_settings(None, ["stream=2024", "memory_mb=512"]).stream == "2024"


def test_a_single_setting_of_the_wrong_kind_is_named_and_not_the_file(tmp_path):
    file = tmp_path / "windlass.toml"
    file.write_text("[deploy]\nbatch_size = 500\n")
    with pytest.raises(DeployProblem, match=r"^--set memory_mb=lots: Expected `int") as raised:
        read_settings(file, ["memory_mb=lots"])
    assert str(file) not in str(raised.value)


def test_a_setting_that_is_none_is_refused_by_name():
    with pytest.raises(DeployProblem, match="--set batch=5: there is no 'batch'; the names are stream"):
        read_settings(None, ["batch=5"])
    with pytest.raises(DeployProblem, match="--set batch: write name=value; the names are stream"):
        read_settings(None, ["batch"])


# ── YAML ────────────────────────────────────────────────────────────────────────────────────────────────────


class Loader(yaml.SafeLoader):
    """CloudFormation's short forms, taken back to the long ones."""


def long_form(name: str):
    def construct(loader: Any, node: Any) -> Any:
        value = loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else loader.construct_sequence(node)
        return {name: value.split(".") if name == "Fn::GetAtt" else value}

    return construct


for tag, name in (("!Ref", "Ref"), ("!Sub", "Fn::Sub"), ("!GetAtt", "Fn::GetAtt")):
    Loader.add_constructor(tag, long_form(name))


@pytest.mark.parametrize("written_as", ["cloudformation", "sam"])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_text_says_what_the_values_say(name, written_as):
    pipeline, settings = VARIANTS[name]
    text = render(app_of(pipeline), settings, written_as)
    assert yaml.load(text, Loader) == template(app_of(pipeline), settings, written_as)
    assert len(text) < 51_200


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.one_of(TEXT, st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False, width=16)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_any_values_come_back_from_their_yaml(value):
    text = templates.dump(value)
    assert (yaml.load(text, Loader) or {}) == value


@pytest.mark.parametrize(
    "text", ["yes", "Null", "1", "0x1F", "1e3", "2012-10-17", "a: b", "a #b", "- a", "", " a", "a ", "~", "*"]
)
def test_a_text_that_yaml_would_take_for_something_else_is_quoted(text):
    assert yaml.safe_load(templates.dump({"a": text})) == {"a": text}
    assert '"' in templates.dump({"a": text})


# ── other people's eyes ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("templates")
    for name, (pipeline, settings) in VARIANTS.items():
        for written_as in ("cloudformation", "sam"):
            file = folder / f"{name.replace(' ', '-')}.{written_as}.yaml"
            file.write_text(render(app_of(pipeline), settings, written_as))
    return folder


LINTED = ("taxi", "latest", "records", "existing", "all settings")  # the others have no resource that these have not


@pytest.mark.heavy
@pytest.mark.parametrize("name", [*(f"{name}.cloudformation" for name in LINTED), "taxi.sam"])
def test_cfn_lint_finds_nothing_in_any_template(name):
    lint = pytest.importorskip("cfnlint.api", reason="cfn-lint is not installed")
    from cfnlint.config import ManualArgs

    variant, _, written_as = name.partition(".")
    pipeline, settings = VARIANTS[variant]
    found = lint.lint(render(app_of(pipeline), settings, written_as), config=ManualArgs(regions=["us-east-1"]))
    assert [str(each) for each in found] == []


def tool(name: str) -> str:
    for place in (Path(".servers") / name / "bin" / name,):
        if place.exists():
            return str(place.absolute())
    pytest.skip(f"{name} is not installed here: .ci/sam.sh brings it")


def test_sam_validates_every_template(written):
    sam = tool("sam")
    variables = os.environ | {
        "SAM_CLI_TELEMETRY": "0",
        "AWS_DEFAULT_REGION": "us-east-1",
        "SAM_CLI_APPVERSION_CHECK": "0",
    }
    for name in ("taxi", "records"):
        command = [sam, "validate", "--lint", "--template", str(written / f"{name}.sam.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=written, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "is a valid SAM Template" in done.stdout + done.stderr


def test_checkov_finds_nothing_that_has_no_written_reason(written):
    checkov = tool("checkov")
    command = [checkov, "-d", str(written), "--framework", "cloudformation", "--skip-download", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert found["results"]["failed_checks"] == []
    assert found["summary"]["passed"] > 100
    for skipped in found["results"]["skipped_checks"]:
        assert len(skipped["check_result"]["suppress_comment"]) > 20
