"""The commands that serve the console."""

import io
import json
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from windlass.commands import demo as demo_command
from windlass.local.demo import Options

URL = re.compile(r"http://127\.0\.0\.1:\d+/")


def asked(url: str, what: str) -> dict:
    with urllib.request.urlopen(f"{url}api/{what}", timeout=10) as answer:
        return json.loads(answer.read())


@pytest.mark.heavy
def test_the_demo_serves_its_console_while_it_runs():
    err, seen = io.StringIO(), {}

    def look(_demo) -> None:
        url = URL.search(err.getvalue().partition("the console: ")[2])[0]
        seen["pipeline"] = asked(url, "pipeline")
        seen["series"] = asked(url, "series?span_ms=60000")
        seen["url"] = url

    status = demo_command.run(
        None,
        Options(every_s=1, for_s=1.0, shards=2, rate=200),
        as_json=True,
        console=0,
        out=io.StringIO(),
        err=err,
        before_verify=look,
    )

    assert status == 0
    assert seen["pipeline"]["key_attribute"] == "vendorId"
    assert sum(value or 0 for value in seen["series"]["values"]["received"]) > 0
    try:
        asked(seen["url"], "pipeline")
    except OSError:
        return
    raise AssertionError("the console outlived the demo")


@pytest.mark.heavy
def test_the_local_endpoint_serves_a_console_beside_it():
    command = [sys.executable, "-m", "windlass", "local", "--port", "0", "--console-port", "0", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = next(URL.search(line)[0] for line in process.stdout if line.startswith("The console: "))
            assert "reads a Kinesis stream yet" in asked(url, "pipeline")["problem"]
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
