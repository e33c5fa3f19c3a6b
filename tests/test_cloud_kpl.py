"""AWS's own libraries in front of the local endpoint: the Kinesis Producer Library (Java and its native program, over
HTTPS) puts, the Kinesis Client Library (Java, its calls in CBOR) reads the same stream as a second oracle.

Needs .ci/kpl.sh (Java and Maven). The load test takes more than a minute and runs where WINDLASS_LOAD=1 is set.
"""

import io
import itertools
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from windlass.commands import verify
from windlass.local.cloud import Cloud
from windlass.local.mapping_settings import Assumptions
from windlass.produce.source import records

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parent.parent
KPL = ROOT / ".servers" / "kpl"
MAGIC = b"\xf3\x89\x9a\xc2"

APP = """
from datetime import timedelta
from typing import Annotated
from windlass import Count, Range, Record, Sum, Windows, env

class Trip(Record):
    vendorId: int
    passengerCount: Annotated[int, Range(0, 9)]

trips = Windows(
    Trip, key="vendorId", every=timedelta(seconds=2), totals={"passenger": Sum("passengerCount"), "trips": Count()},
    table=env("dynamoDBTableName"), coerce=True,
)
handler = trips.handler
"""


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    if not (KPL / ".made-from").exists():
        assert not os.environ.get("CI"), "AWS's Kinesis libraries must be here in CI: .ci/kpl.sh"
        pytest.skip("needs AWS's Kinesis libraries: run .ci/kpl.sh (Java and Maven)")
    with Cloud(port=0, assumed=Assumptions(grace_ms=500)) as cloud:
        yield cloud


def consumer(cloud: Cloud, quarantine: Path) -> None:
    cloud.client("kinesis").create_stream(StreamName="trips", ShardCount=4)
    cloud.client("dynamodb").create_table(
        TableName="aggs", BillingMode="PAY_PER_REQUEST",
        KeySchema=[
            {"AttributeName": "vendorId", "KeyType": "HASH"}, {"AttributeName": "windowStart", "KeyType": "RANGE"}
        ],
        AttributeDefinitions=[
            {"AttributeName": "vendorId", "AttributeType": "N"}, {"AttributeName": "windowStart", "AttributeType": "S"}
        ],
    )  # fmt: skip
    role = cloud.client("iam").create_role(RoleName="r", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("app.py", APP)
    cloud.client("lambda").create_function(
        FunctionName="totals", Runtime=f"python3.{sys.version_info[1]}", Handler="app.handler", Role=role, Timeout=60,
        Code={"ZipFile": archive.getvalue()},
        Environment={"Variables": {"dynamoDBTableName": "aggs", "WINDLASS_QUARANTINE": str(quarantine)}},
    )  # fmt: skip
    arn = cloud.client("kinesis").describe_stream_summary(StreamName="trips")["StreamDescriptionSummary"]["StreamARN"]
    cloud.client("lambda").create_event_source_mapping(
        FunctionName="totals", EventSourceArn=arn, StartingPosition="TRIM_HORIZON", BatchSize=1000,
        TumblingWindowInSeconds=2,
    )  # fmt: skip


def putting(cloud: Cloud, rate: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["java", "-cp", f"{KPL}:{KPL / 'lib'}/*", "Put", "trips", str(cloud.port), str(rate)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "AWS_EC2_METADATA_DISABLED": "true"},
    )  # fmt: skip


def read_with_the_kcl(cloud: Cloud, count: int) -> str:
    """How many trips of each vendor the KCL finds in the stream, as Java writes a map."""
    read = subprocess.run(
        ["java", "-cp", f"{KPL}:{KPL / 'lib'}/*", "Read", "trips", str(cloud.port), str(count), "60",
         '"vendorId":"?([0-9]+)'],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert read.returncode == 0, read.stderr[-3000:] + read.stdout
    return read.stdout.strip()


def trips_in_the_table(cloud: Cloud) -> dict[int, int]:
    found = Counter[int]()
    for item in cloud.client("dynamodb").scan(TableName="aggs")["Items"]:
        found[int(item["vendorId"]["N"])] += int(item["trips"]["N"])
    return found


def lines(count: int, unclean: float) -> Iterator[bytes]:
    """Trips with their keys; a spoiled one that holds the end of a line is left out, as a line could not carry it."""
    drawn = (record for record in records(seed=3, unclean=unclean) if b"\n" not in record.data)
    for record in itertools.islice(drawn, count):
        yield record.key.encode() + b"\t" + record.data + b"\n"


def stored(cloud: Cloud) -> tuple[int, int]:
    """How many Kinesis records there are, and how many of them are aggregates."""
    data = [
        record.data
        for shard in cloud._mappings._stream(cloud.view().mappings[0].settings).shards.values()
        for record in shard.read(0, 10**9)[0]
    ]
    return len(data), sum(each.startswith(MAGIC) for each in data)


def exact(cloud: Cloud, app: Path, quarantine: Path) -> bool:
    app.write_text(APP)
    options = verify.Options(
        app=f"{app}:trips",
        stream="trips",
        table="aggs",
        quarantine=str(quarantine),
        endpoint_url=cloud.endpoint_url,
        region="us-east-1",
    )
    out = io.StringIO()
    status = verify.run(options, out, out)
    print(out.getvalue())
    return status == 0


def test_twenty_thousand_trips_of_the_real_kpl_come_out_exact(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    consumer(cloud, tmp_path / "quarantine")
    process = putting(cloud, rate=0)
    out, err = process.communicate(b"".join(lines(20_000, unclean=0.0)), timeout=60)
    assert (process.returncode, out.strip()) == (0, b"20000"), err.decode()
    assert cloud.settle(timeout_s=40)
    carriers, aggregates = stored(cloud)
    assert carriers < 3000
    assert aggregates > carriers / 2
    assert exact(cloud, tmp_path / "kplapp.py", tmp_path / "quarantine")
    totals = trips_in_the_table(cloud)
    assert read_with_the_kcl(cloud, 20_000) == f"{{1={totals[1]}, 2={totals[2]}}}"


@pytest.mark.skipif(not os.environ.get("WINDLASS_LOAD"), reason="takes more than a minute: set WINDLASS_LOAD=1")
def test_five_thousand_a_second_over_four_shards_for_a_minute_do_not_fall_behind(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    consumer(cloud, tmp_path / "quarantine")
    text = b"".join(lines(300_000, unclean=0.0))
    process = putting(cloud, rate=5000)
    ages: list[int] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(1.0):
            shards = cloud.view().mappings[0].shards
            ages.append(max((shard.counters.iterator_age_ms for shard in shards), default=0))

    sampler = threading.Thread(target=sample)
    sampler.start()
    begun = time.monotonic()
    try:
        out, err = process.communicate(text, timeout=180)
    finally:
        ended.set()
        sampler.join()
    took_s = time.monotonic() - begun
    assert (process.returncode, out.strip()) == (0, b"300000"), err.decode()[-2000:]
    assert cloud.settle(timeout_s=60)
    print(f"300,000 trips in {took_s:.0f} s; iterator age by second: {ages}")
    assert took_s < 90
    early, late = sorted(ages[10:30]), sorted(ages[-25:-5])
    assert late[len(late) // 2] < early[len(early) // 2] + 2000
    assert exact(cloud, tmp_path / "loadapp.py", tmp_path / "quarantine")
