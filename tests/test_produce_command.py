"""`windlass produce` as one runs it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner

from windlass.cli import app
from windlass.produce import KINDS, Produced
from windlass.produce.command import Options, run, summary

REAL_TRIPS = Path(__file__).parent.parent / ".." / "shared" / "data" / "nyc-trips-5340.csv"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    credentials = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    boto3.client("kinesis", endpoint_url=url, **credentials).create_stream(StreamName="taxi", ShardCount=2)
    yield url
    server.stop()


def produced(endpoint: str, **options: Any) -> tuple[int, dict[str, Any], str]:
    """The exit status, the last line's object, and what went to stderr."""
    out, err = StringIO(), StringIO()
    status = run(Options(**{"stream": "taxi", "endpoint_url": endpoint, "json": True, "rate": 0} | options), out, err)
    return status, json.loads(out.getvalue().splitlines()[-1]), err.getvalue()


def test_the_last_line_counts_what_was_put(endpoint):
    status, counts, _ = produced(endpoint, count=1000, unclean=0.05, dialect="mixed")
    assert status == 0
    assert (counts["records"], counts["failed"], counts["error"]) == (1000, 0, None)
    assert set(counts["unclean"]) == set(KINDS)
    assert counts["clean"] == 1000 - sum(counts["unclean"].values())


def test_the_same_seed_puts_the_same_bytes(endpoint):
    sizes = {produced(endpoint, count=300, dialect="mixed", unclean=0.2, seed=3)[1]["data_bytes"] for _ in range(2)}
    assert len(sizes) == 1


def test_aggregated_trips_need_few_kinesis_records(endpoint):
    _, counts, _ = produced(endpoint, count=1000, aggregate=True)
    assert (counts["records"], counts["failed"]) == (1000, 0)
    assert counts["kinesis_records"] < 15


@pytest.mark.skipif(not REAL_TRIPS.exists(), reason="the file of real trips is not on this machine")
def test_real_trips_are_put_from_their_file(endpoint):
    _, counts, _ = produced(endpoint, csv=REAL_TRIPS, aggregate=True, dialect="flink")
    assert (counts["records"], counts["failed"]) == (5340, 0)


def test_a_file_in_a_loop_goes_on_until_the_count(endpoint, tmp_path):
    (tmp_path / "rows.csv").write_text("id,x\n1,2\n3,4\n")
    assert produced(endpoint, csv=tmp_path / "rows.csv", loop=True, count=7)[1]["records"] == 7


def test_a_broken_row_ends_with_one_line_and_what_came_before_is_put(endpoint, tmp_path):
    (tmp_path / "rows.csv").write_text("id,x\n1,2\n3\n")
    status, counts, err = produced(endpoint, csv=tmp_path / "rows.csv")
    assert status == 1
    assert counts["records"] == 1
    assert re.search(r"^windlass produce: .*rows\.csv, row 3: 1 cells where row 1 has 2", err)
    assert "row 3" in counts["error"]


def test_a_missing_stream_is_one_line(endpoint):
    status, _, err = produced(endpoint, stream="nowhere")
    assert status == 2
    assert len(err.splitlines()) == 1
    assert "stream 'nowhere'" in err


def test_a_run_for_some_time_ends_by_itself(endpoint):
    status, counts, _ = produced(endpoint, for_s=0.3, rate=100)
    assert status == 0
    assert 10 <= counts["records"] <= 30  # a slow machine puts fewer, but for the first tenth of a second


def test_the_command_line_reaches_the_stream(endpoint):
    arguments = f"produce --stream taxi --endpoint-url {endpoint} --count 60 --rate 0 --seed 4 --dialect sdk --json"
    result = CliRunner().invoke(app, [*arguments.split(), "--aggregate", "--unclean", "0.5"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["records"] == 60


@pytest.mark.parametrize("wrong", ["--unclean 1.5", "--dialect java", "--rate -1", "--count x"])
def test_an_option_that_makes_no_sense_is_refused(wrong):
    assert CliRunner().invoke(app, ["produce", "--stream", "taxi", *wrong.split()]).exit_code == 2


def test_the_summary_tells_what_was_not_put():
    text = summary(
        Produced(records=1200, kinesis_records=7, unclean={"not_json": 2}, retried=3, failed=5,
                 failures={"InternalFailure": 5}, seconds=2.0)
    )  # fmt: skip
    assert "1,200 records (1,198 clean) in 7 Kinesis records" in text
    assert "600 records/s" in text
    assert "unclean on purpose: not_json 2" in text
    assert "NOT PUT: 5 (InternalFailure 5)" in text


def test_a_bar_is_drawn_on_a_terminal_only(endpoint):
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    drawn, silent = Terminal(), StringIO()
    run(Options(stream="taxi", endpoint_url=endpoint, count=50, rate=0), StringIO(), drawn)
    run(Options(stream="taxi", endpoint_url=endpoint, count=50, rate=0), StringIO(), silent)
    assert "50 records" in drawn.getvalue()
    assert silent.getvalue() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_run_with_its_summary(endpoint, number, tmp_path):
    # A named pipe as the file: when the program opens it, it is running and its signals are set.
    pipe = tmp_path / "rows.ndjson"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "windlass", "produce", "--stream", "taxi"]
    options = ["--endpoint-url", endpoint, "--csv", str(pipe), "--rate", "20", "--json"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        with pipe.open("wb") as rows:
            rows.write(b'{"id":1}\n' * 1000)
            rows.flush()
            process.send_signal(number)
            rows.close()
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    counts = json.loads(out.splitlines()[-1])
    assert 0 <= counts["records"] < 1000
    assert counts["failed"] == 0
    assert counts["error"] is None
