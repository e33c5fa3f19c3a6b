"""The demo runs the whole job and says exact only where it is."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from windlass.apps import load_app
from windlass.commands import demo as command
from windlass.commands.clients import client
from windlass.local.demo import STREAM, TABLE, Demo, Options
from windlass.local.taxi import trips

REAL_TRIPS = Path(__file__).parent.parent.parent / "shared" / "data" / "nyc-trips-5340.csv"
# The records of the first tenth of a second are enough, should this machine take the whole second to put them.
SHORT = Options(every_s=1, for_s=1.0, shards=2, rate=1200, unclean=0.1)


def run(options, **more):
    out, err = io.StringIO(), io.StringIO()
    status = command.run(None, options, as_json=True, out=out, err=err, **more)
    return status, json.loads(out.getvalue().splitlines()[-1]), err.getvalue()


def test_a_run_ends_exact_and_accounts_for_every_record():
    status, verdict, told = run(SHORT)

    assert status == 0
    assert verdict["exact"] is True
    assert verdict["received"] == verdict["clean"] + verdict["rejected"] + verdict["late"] > 100
    assert verdict["rejected"] > 0
    assert verdict["items"] == verdict["items_expected"] >= 2
    assert verdict["expected"] == verdict["found"]
    assert told.splitlines()[-1] == "exact"


@pytest.mark.heavy
def test_an_aggregated_run_is_exact_too():
    status, verdict, _ = run(Options(every_s=1, for_s=1.0, shards=2, rate=1000, aggregate=True))

    assert (status, verdict["exact"]) == (0, True)


def test_one_spoiled_item_makes_it_different_and_says_which():
    def spoil(demo: Demo) -> None:
        item = demo.items()[0]
        demo.clients["dynamodb"].update_item(
            TableName=TABLE,
            Key={"vendorId": {"N": str(item["vendorId"])}, "windowStart": {"S": item["windowStart"]}},
            UpdateExpression="ADD passenger :one",
            ExpressionAttributeValues={":one": {"N": "1"}},
        )

    status, verdict, told = run(msgspec.structs.replace(SHORT, for_s=0.1), before_verify=spoil)

    assert status == 1
    assert verdict["exact"] is False
    assert [difference["total"] for difference in verdict["differences"]] == ["passenger"]
    assert "NOT exact: 1 difference" in told


@pytest.mark.skipif(not REAL_TRIPS.exists(), reason="the file of real trips is not on this machine")
def test_the_totals_of_real_trips_come_out():
    status, verdict, _ = run(
        Options(every_s=1, for_s=None, rate=0, unclean=0.0, csv=REAL_TRIPS, dialect="flink", aggregate=True)
    )

    assert status == 0
    assert verdict["found"] == {
        "1": {"passenger": 3481, "trips": 2307},
        "2": {"passenger": 6120, "trips": 3033},
    }


def _wait_for_a_record(endpoint_url: str) -> None:
    kinesis = client("kinesis", endpoint_url=endpoint_url, region=None)
    shards = [shard["ShardId"] for shard in kinesis.list_shards(StreamName=STREAM)["Shards"]]
    for _ in range(300):
        for shard in shards:
            begin = {"StreamName": STREAM, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"}
            iterator = kinesis.get_shard_iterator(**begin)["ShardIterator"]
            if kinesis.get_records(ShardIterator=iterator, Limit=1)["Records"]:
                return
        time.sleep(0.1)


@pytest.mark.heavy
def test_ctrl_c_ends_the_producer_and_what_was_put_is_verified():
    with subprocess.Popen(
        [sys.executable, "-m", "windlass", "demo", "--for", "60", "--every", "1", "--rate", "300", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        told = process.stderr.readline()
        assert "producing" in told
        _wait_for_a_record(told.split()[-1])
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1])["exact"] is True


def test_the_demos_own_pipeline_is_the_taxi_example():
    example = load_app("examples/taxi/app.py:trips")

    assert trips.describe() == example.describe()


@pytest.mark.parametrize(
    ("app", "says"),
    [("no/such.py:trips", "there is no file"), ("examples/taxi/app.py:nothing", "nothing")],
)
def test_a_pipeline_that_cannot_be_loaded_is_one_clear_line(app, says):
    out, err = io.StringIO(), io.StringIO()

    assert command.run(app, SHORT, as_json=True, out=out, err=err) == 2
    assert says in err.getvalue()
    assert len(err.getvalue().splitlines()) == 1
