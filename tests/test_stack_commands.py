"""What the commands of a stack print, on mocked AWS: JSON on the last line, and words where there is nothing."""

import json
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from typer.testing import CliRunner

from tests.builders import TOTALS_TABLE
from windlass import cli
from windlass.commands import deploy as command
from windlass.deploy.package import Package
from windlass.deploy.source import Target

TAXI = "examples/taxi/app.py:trips"
LOG_ONLY = json.dumps({"Resources": {"FunctionLog": {"Type": "AWS::Logs::LogGroup", "Properties": {}}}})


def run(*arguments: str, **more: Any) -> Any:
    return CliRunner().invoke(cli.app, list(arguments), **more)


@pytest.fixture(autouse=True)
def aws(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(command, "package", lambda *_, **__: Package(b"zip", "ab" * 32, "app.h", Target(), [], []))
    with mock_aws():
        yield


@pytest.fixture
def totals() -> Any:
    """A table named totals, as boto3 has it."""
    return boto3.resource("dynamodb").create_table(**TOTALS_TABLE)


def test_windows_as_json_are_one_object(totals):
    totals.put_item(Item={"vendorId": 1, "windowStart": "2026-01-01T00:00:00Z", "trips": 3})
    told = run("windows", "--table", "totals", "--json")
    item = {"vendorId": 1, "windowStart": "2026-01-01T00:00:00Z", "trips": 3}
    assert json.loads(told.stdout) == {"table": "totals", "items": [item]}


def test_a_key_without_windows_is_told_beside_keys_that_have_some(totals):
    assert run("windows", "--table", "totals", "--key", "7").stdout == "table totals holds no items yet\n"
    for vendor in range(8):
        totals.put_item(Item={"vendorId": vendor, "windowStart": "2026-01-01T00:00:00Z"})
    told = run("windows", "--table", "totals", "--key", "9").stdout
    assert told.startswith("table totals holds no window of key 9; keys that it holds: ")
    assert told.count(",") == 4
    as_json = run("windows", "--table", "totals", "--key", "9", "--json")
    assert (json.loads(as_json.stdout), as_json.stderr) == ({"table": "totals", "items": []}, told)


def test_a_dry_run_as_json_is_one_object_on_the_last_line():
    told = run("deploy", TAXI, "--stack", "taxi", "--dry-run", "--json")
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout) == {
        "stack": "taxi",
        "action": "none",
        "region": "us-east-1",
        "code": {"sha256": "ab" * 32, "bytes": 3},
    }


def test_a_dry_run_needs_no_credentials():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        assert run("deploy", TAXI, "--stack", "taxi", "--dry-run").exit_code == 0


@pytest.mark.parametrize(
    ("endpoint", "at_home"), [("http://127.0.0.1:4566", True), ("https://lambda.us-east-1.amazonaws.com", False)]
)
def test_the_zip_is_for_this_machine_where_the_environment_names_it(monkeypatch, endpoint: str, at_home: bool):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    told = run("deploy", TAXI, "--stack", "taxi", "--dry-run")
    assert ("for this machine: Python" in told.stdout) is at_home


def test_a_log_without_lines_says_so_and_prints_nothing_else():
    boto3.client("cloudformation").create_stack(StackName="taxi", TemplateBody=LOG_ONLY)
    for more in ([], ["--json"]):
        told = run("logs", "--stack", "taxi", *more)
        assert (told.exit_code, told.stdout, told.stderr) == (0, "", "no lines in the last 10 minutes\n")


@pytest.mark.parametrize("name", ["bad_name", "1st", "", "a" * 129])
def test_a_name_that_cloudformation_does_not_take_is_one_line(name: str):
    told = run("deploy", TAXI, "--stack", name, "--dry-run")
    assert (told.exit_code, told.stdout, told.stderr.count("\n")) == (2, "", 1)
    assert f"--stack {name!r}: a stack's name is a letter and up to 127 more" in told.stderr


@pytest.mark.parametrize("answer", ["n\n", ""], ids=["no", "closed"])
def test_destroy_without_a_yes_says_that_nothing_was_deleted_and_how_not_to_be_asked(answer: str):
    boto3.client("cloudformation").create_stack(StackName="taxi", TemplateBody=LOG_ONLY)
    told = run("destroy", "--stack", "taxi", "--json", input=answer)
    assert told.exit_code == 1
    assert told.stderr.endswith("nothing was deleted; --yes deletes without asking\n")
    assert json.loads(told.stdout.splitlines()[-1]) == {"stack": "taxi", "deleted": [], "kept": []}
    assert boto3.client("cloudformation").describe_stacks(StackName="taxi")["Stacks"]


def test_what_aws_refuses_on_the_way_is_one_line_and_status_2():
    stream = {"Stream": {"Type": "AWS::Kinesis::Stream", "Properties": {"ShardCount": 1}}}
    role = {"FunctionRole": {"Type": "AWS::IAM::Role", "Properties": {"AssumeRolePolicyDocument": {}}}}
    body = json.dumps({"Resources": stream | role})
    boto3.client("cloudformation").create_stack(
        StackName="taxi", TemplateBody=body, Capabilities=["CAPABILITY_NAMED_IAM"]
    )
    told = run("windows", "--stack", "taxi")
    assert (told.exit_code, told.stdout, told.stderr.count("\n")) == (2, "", 1)
    assert told.stderr.startswith("windlass windows: asking AWS: NoSuchEntity")


def test_a_table_that_the_declaration_names_must_be_free_too(totals, tmp_path):
    app = tmp_path / "named.py"
    app.write_text(Path("examples/taxi/app.py").read_text().replace('env("dynamoDBTableName")', '"totals"'))
    told = run("deploy", f"{app}:trips", "--stack", "named")
    assert told.exit_code == 2
    assert "the table totals exists already, outside this stack" in told.stderr
