import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.utils import InstanceMetadataFetcher
from moto import mock_aws
from typer.testing import CliRunner

from tests.builders import TOTALS_TABLE, trip
from windlass import cli
from windlass.commands import clients
from windlass.commands.clients import ClientProblem, client
from windlass.commands.quarantine import printable
from windlass.commands.verify import moment_ms, quarantine_lines, show
from windlass.core.position import position
from windlass.core.rejected import Reason, Rejected
from windlass.quarantine import FolderQuarantine, MemoryQuarantine
from windlass.verify import CannotVerify, verify

SHARD = "shardId-000000000000"
SEQUENCE = 49546986683135544286507457936321625675700192471156785154
T0 = 1_735_689_600_000


def rejected(
    offset: int, reason: Reason = Reason.NOT_JSON, *, data: bytes = b"{", sub: int = 0, detail="why"
) -> Rejected:
    return Rejected(reason, detail, SHARD, position(str(SEQUENCE + offset), sub), T0 + offset * 1000, data)


def run(*arguments: str, **env: str) -> Any:
    return CliRunner().invoke(cli.app, list(arguments), env={"WINDLASS_QUARANTINE": None, **env})


def last_json(result: Any) -> Any:
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def folder(tmp_path: Path) -> str:
    records = [rejected(n) for n in range(8)]
    records += [rejected(8, Reason.OUT_OF_RANGE, data=b'{"passengerCount":12}', sub=3, detail="12 is out of range")]
    records += [rejected(9, Reason.NOT_UTF8, data=b"\xff\x1b[31mred")]
    FolderQuarantine(tmp_path / "q").put(SHARD, records)
    return str(tmp_path / "q")


# ── quarantine ──────────────────────────────────────────────────────────────────────────────────────────────


def test_ls_counts_by_reason_and_shows_the_latest(folder: str) -> None:
    result = run("quarantine", "ls", folder)
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "not_json 8 2025-01-01T00:00:00Z 2025-01-01T00:00:07Z the text is not JSON" in lines
    assert "out_of_range 1 2025-01-01T00:00:08Z 2025-01-01T00:00:08Z " in " ".join(lines)
    assert f"10 records at {folder}; the latest:" in lines
    assert f"out_of_range 2025-01-01T00:00:08.000Z {SHARD} {SEQUENCE + 8}.3" in lines
    assert result.stdout.count(SHARD) == 5


def test_ls_as_json_is_one_object(folder: str) -> None:
    answer = last_json(run("quarantine", "ls", folder, "--json"))
    assert answer["total"] == 10
    assert answer["reasons"][0] == {
        "reason": "not_json",
        "count": 8,
        "first_arrival": "2025-01-01T00:00:00.000Z",
        "last_arrival": "2025-01-01T00:00:07.000Z",
        "meaning": "the text is not JSON",
    }
    assert [record["arrival_ms"] - T0 for record in answer["latest"]] == [9000, 8000, 7000, 6000, 5000]


def test_ls_takes_its_place_from_the_environment(folder: str) -> None:
    assert last_json(run("quarantine", "ls", "--json", WINDLASS_QUARANTINE=folder))["total"] == 10


@pytest.mark.parametrize("command", ["ls", "show"])
def test_without_a_place_the_variable_is_named_that_would_give_one(command: str) -> None:
    told = run("quarantine", command)
    assert (told.exit_code, told.stderr.count("\n")) == (2, 1)
    assert "no place is given: name it as WHERE, or in WINDLASS_QUARANTINE" in told.stderr


def test_ls_of_nothing_says_so(tmp_path: Path) -> None:
    result = run("quarantine", "ls", str(tmp_path))
    assert (result.exit_code, result.stdout) == (0, f"nothing in quarantine at {tmp_path}\n")


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("/nonexist", "there is no folder /nonexist"),
        ("none", "what is rejected is dropped there, on purpose"),
        ("memory", "it ends with the process that rejects"),
    ],
)
def test_a_place_that_cannot_hold_anything_says_why(where: str, why: str) -> None:
    for command in ("ls", "show"):
        told = run("quarantine", command, where)
        assert (told.exit_code, told.stdout) == (0, f"nothing in quarantine at {where}: {why}\n")
        as_json = run("quarantine", command, where, "--json")
        assert (last_json(as_json)["total"], as_json.stderr) == (0, told.stdout)


def test_a_position_where_nothing_was_rejected_says_so(folder: str) -> None:
    told = run("quarantine", "show", folder, "--position", "123")
    assert told.stdout == f"no record at position 123 among the 10 in quarantine at {folder}\n"


def test_one_reason_can_be_picked(folder: str) -> None:
    for command in ("ls", "show"):
        assert last_json(run("quarantine", command, folder, "--reason", "not_utf8", "--json"))["total"] == 1
        none = run("quarantine", command, folder, "--reason", "late").stdout
        assert none == f"nothing in quarantine at {folder} for the reason late\n"


def test_show_gives_the_newest_records_escaped(folder: str) -> None:
    result = run("quarantine", "show", folder, "--limit", "2")
    assert result.exit_code == 0
    assert result.stdout == (
        f"not_utf8  2025-01-01T00:00:09.000Z  {SHARD}  {SEQUENCE + 9}.0\n"
        "    why\n"
        "    \\xff\\x1b[31mred\n"
        "\n"
        f"out_of_range  2025-01-01T00:00:08.000Z  {SHARD}  {SEQUENCE + 8}.3\n"
        "    12 is out of range\n"
        '    {"passengerCount":12}\n'
        "\n"
        "2 of 10 records\n"
    )


def test_show_as_json_has_the_bytes_and_the_text(folder: str) -> None:
    (record,) = last_json(run("quarantine", "show", folder, "--json", "--limit", "1"))["records"]
    assert (record["text"], record["data"]) == ("\\xff\x1b[31mred", "/xtbMzFtcmVk")
    assert (record["sequence"], record["sub"]) == (str(SEQUENCE + 9), 0)


@pytest.mark.parametrize("at", [str(SEQUENCE + 8), f"{SEQUENCE + 8}.3", position(str(SEQUENCE + 8), 3)])
def test_show_finds_a_record_by_its_position(folder: str, at: str) -> None:
    answer = last_json(run("quarantine", "show", folder, "--position", at, "--json"))
    assert [record["reason"] for record in answer["records"]] == ["out_of_range"]
    assert last_json(run("quarantine", "show", folder, "--position", at[:-1] + "9", "--json"))["records"] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gs://x"], "gs:// is not known"),
        (["/", "--reason", "nonsense"], "there is no reason 'nonsense'; the reasons are not_utf8, not_json, "),
        (["s3://some-bucket", "--endpoint-url", "nonsense"], "an endpoint looks like http://127.0.0.1:4566"),
    ],
)
def test_a_quarantine_that_cannot_be_read_is_one_line_and_status_2(arguments: list[str], says: str) -> None:
    for command in ("ls", "show"):
        result = run("quarantine", command, *arguments)
        assert result.exit_code == 2
        assert says in result.stderr
        assert result.stderr.count("\n") == 1


def test_long_and_hostile_bytes_are_cut_and_escaped() -> None:
    assert printable(b"a" * 1000, 10) == "aaaaaaaaaa… (1000 bytes)"
    assert printable("é😀".encode()) == "é😀"
    assert printable(b"a\nb\tc\x07") == "a\\nb\\tc\\x07"
    assert printable("\u202egnp.exe".encode()) == "\\u202egnp.exe"
    assert printable(b"") == ""


# ── verify ──────────────────────────────────────────────────────────────────────────────────────────────────

APP = """
from datetime import timedelta
from windlass import Count, Record, Sum, Windows

class Trip(Record):
    vendorId: int
    passengerCount: int

trips = Windows(
    Trip, key="vendorId", every=timedelta(seconds=900),
    totals={"passenger": Sum("passengerCount"), "trips": Count()}, table="totals",
)
"""


@pytest.fixture
def aws(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        yield


def iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_verify_answers_by_its_exit_status(aws, tmp_path: Path) -> None:
    kinesis, dynamodb = boto3.client("kinesis"), boto3.client("dynamodb")
    kinesis.create_stream(StreamName="trips", ShardCount=1)
    # The clock is read once: a window that ends in between would only move some records to a second item.
    put = [trip(1, 2), trip(1, 5), b"?"]
    sequences = [kinesis.put_record(StreamName="trips", Data=data, PartitionKey="k")["SequenceNumber"] for data in put]
    iterator = kinesis.get_shard_iterator(StreamName="trips", ShardId=SHARD, ShardIteratorType="TRIM_HORIZON")
    records = kinesis.get_records(ShardIterator=iterator["ShardIterator"])["Records"]
    dynamodb.create_table(**TOTALS_TABLE)
    by_window: dict[int, list[int]] = {}
    for record, passengers in zip(records, [2, 5], strict=False):
        start = int(record["ApproximateArrivalTimestamp"].timestamp()) // 900 * 900
        by_window.setdefault(start, []).append(passengers)

    def store(wrong: int) -> None:
        for start, passengers in by_window.items():
            item = {"vendorId": {"N": "1"}, "windowStart": {"S": iso(start)}, "windowEnd": {"S": iso(start + 900)}}
            item |= {"passenger": {"N": str(sum(passengers) + wrong)}, "trips": {"N": str(len(passengers))}}
            dynamodb.put_item(TableName="totals", Item=item)

    store(wrong=0)
    arrival_ms = int(records[2]["ApproximateArrivalTimestamp"].timestamp() * 1000)
    unclean = Rejected(Reason.NOT_JSON, "", SHARD, position(sequences[2]), arrival_ms, b"?")
    FolderQuarantine(tmp_path / "q").put(SHARD, [unclean])
    (tmp_path / "app.py").write_text(APP)
    arguments = ["verify", f"{tmp_path}/app.py:trips", "--stream", "trips", "--table", "totals", "--json"]
    arguments += ["--quarantine", str(tmp_path / "q")]

    nothing = run(*arguments[:6], "--to", "now-1d")
    assert nothing.exit_code == 2
    assert nothing.stdout.splitlines()[-1] == "nothing to compare: no record and no item in this range"

    exact = run(*arguments)
    assert exact.exit_code == 0, exact.stderr
    verdict = last_json(exact)
    assert verdict["exact"] is True
    assert (verdict["received"], verdict["clean"], verdict["rejected"], verdict["late"]) == (3, 2, 1, 0)
    assert verdict["expected"] == verdict["found"] == {"1": {"passenger": 7, "trips": 2}}

    store(wrong=1)
    wrong = run(*arguments)
    assert wrong.exit_code == 1
    assert last_json(wrong)["differences"][0]["kind"] == "wrong_total"

    words = run(*arguments[:6])  # without a quarantine, and not as JSON
    assert words.exit_code == 1
    assert "instead of" in words.stdout
    assert "what was rejected is not checked" in words.stdout
    assert words.stdout.splitlines()[-2].startswith("NOT exact: ")
    assert "may not be settled yet: leave them out with --to now-3m" in words.stdout.splitlines()[-1]

    elsewhere = run(*arguments[:6], "--quarantine", str(tmp_path / "elsewhere"))
    assert "elsewhere: is the quarantine elsewhere?" in elsewhere.stdout

    (tmp_path / "latest.py").write_text(APP.replace('table="totals"', 'table="totals", layout="latest"'))
    other = run("verify", f"{tmp_path}/latest.py:trips", *arguments[2:6])
    assert other.exit_code == 2
    assert (
        "keyed by vendorId (N), as the pipeline is declared; it is keyed by vendorId (N) and windowSt" in other.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.py:trips"], "there is no file nowhere.py"),
        (["APP", "--from", "yesterday"], "'yesterday' is no moment: write 2026-01-31T12:00:00Z, now, or now-5m"),
        (["APP", "--quarantine", "gs://x"], "gs:// is not known"),
        (["APP"], "stream trips cannot be read: ResourceNotFoundException"),
    ],
)
def test_what_cannot_be_verified_is_one_line_and_status_2(aws, tmp_path, arguments: list[str], says: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    arguments = [argument.replace("APP", f"{tmp_path}/app.py:trips") for argument in arguments]
    result = run("verify", *arguments, "--stream", "trips", "--table", "totals")
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_the_verdict_is_shown_with_every_key_and_difference() -> None:
    field = {"type": "int", "nullable": False, "required": True, "low": None, "high": None}
    description = {
        "kind": "windows",
        "coerce": False,
        "fields": [{"path": ["v"], **field}],
        "key": [["v"]],
        "key_attribute": "v",
        "key_type": "N",
        "every_s": 30,
        "layout": "history",
        "totals": [{"name": "trips", "kind": "count", "path": None}],
    }
    stream = [(SHARD, str(n), T0, b'{"v":%d}' % (n % 2)) for n in range(3000)]
    verdict = verify(description, stream, [], [])
    out = io.StringIO()
    show(verdict, out)
    assert [" ".join(line.split()) for line in out.getvalue().splitlines()] == [
        "key total expected found",
        "0 trips 1,500 - ✗",
        "1 trips 1,500 - ✗",
        "✗ the item of 0, 2025-01-01T00:00:00Z to 2025-01-01T00:00:30Z, is not in the table",
        "✗ the item of 1, 2025-01-01T00:00:00Z to 2025-01-01T00:00:30Z, is not in the table",
        "received 3,000 = clean 3,000 + rejected 0 + late 0",
        "0 items of 2 expected, in 0 windows",
        "NOT exact: 2 differences",
    ]


def test_what_a_quarantine_keeps_reaches_the_second_reading_as_plain_values() -> None:
    quarantine = MemoryQuarantine()
    quarantine.put(SHARD, [rejected(1, sub=2, data=b"\xff")])
    (line,) = quarantine_lines(quarantine)
    assert (line["shard"], line["sequence"], line["sub"]) == (SHARD, str(SEQUENCE + 1), 2)
    assert (line["reason"], line["data"], line["arrival_ms"]) == ("not_json", b"\xff", T0 + 1000)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        (None, None),
        ("now", T0),
        ("now-90s", T0 - 90_000),
        ("now-2h", T0 - 7_200_000),
        ("2025-01-01T00:00:00Z", T0),
        ("2025-01-01T01:00:00+01:00", T0),
        ("2025-01-01T00:00:00.001Z", T0 + 1),
    ],
)
def test_a_moment_is_iso_or_so_long_ago(text: str | None, ms: int | None) -> None:
    assert moment_ms(text, T0) == ms


@pytest.mark.parametrize("text", ["", "5m", "now-", "now-5y", "2025-01-01T00:00:00", "2025-01-01"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(CannotVerify, match="is no moment"):
        moment_ms(text, T0)


@pytest.fixture
def unconfigured(monkeypatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize(
    "arguments",
    [
        ["mapping", "run", "APP", "--stream", "s"],
        ["verify", "APP", "--stream", "s", "--table", "t"],
        ["console"],
        ["quarantine", "ls", "s3://some-bucket"],
        ["status", "--stack", "s"],
        ["windows", "--table", "t"],
    ],
)
def test_every_command_says_alike_what_to_do_about_missing_credentials(
    unconfigured, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "app.py").write_text(APP)
    told = run(*(argument.replace("APP", f"{tmp_path}/app.py:trips") for argument in arguments))
    assert told.exit_code == 2
    assert told.stderr.endswith(": no AWS credentials; run aws configure (or aws sso login), or give --endpoint-url\n")
    assert told.stderr.count("\n") == 1


def test_a_profile_that_is_not_there_is_one_line(unconfigured) -> None:
    clients._loader.cache_clear()  # which asks for the profile too, the first time
    told = run("windows", "--table", "t", AWS_PROFILE="nobody")
    assert (told.exit_code, told.stderr.count("\n")) == (2, 1)
    assert "The config profile (nobody) could not be found; see `aws configure list`" in told.stderr


class Signed(Exception):
    """A request is ready to go."""


def signed(**_: object) -> None:
    raise Signed


def test_a_client_of_an_endpoint_at_home_needs_no_credentials(unconfigured, monkeypatch) -> None:
    asked: list[object] = []  # the instance's role, which takes seconds where there is none
    monkeypatch.setattr(InstanceMetadataFetcher, "retrieve_iam_role_credentials", lambda self: asked.append(self) or {})
    kinesis = client("kinesis", endpoint_url="http://127.0.0.1:4566", region=None)
    assert kinesis.meta.region_name == "us-east-1"
    assert asked == []
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    kinesis = client("kinesis", endpoint_url=None, region=None)
    kinesis.meta.events.register("before-send", signed)
    with pytest.raises(Signed):
        kinesis.list_streams()
    assert asked == []
    with pytest.raises(ClientProblem, match="an endpoint looks like"):
        client("kinesis", endpoint_url="nonsense", region=None)
