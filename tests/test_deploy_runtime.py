"""The function's own runtime loop answers as awslambdaric does: events read from bytes, errors, contexts."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import event, kinesis_record, records, trip
from tests.sample_events import all_events
from windlass.core.event import MalformedEvent, NotJson, read_event, read_event_bytes
from windlass.runtime import Context, Fault, Host, function_of, load, report_of, serve, set_up_logging

SAMPLES = all_events()


# ── events from bytes ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SAMPLES)
def test_an_event_reads_the_same_from_bytes_as_from_a_dict(name):
    text = json.dumps(SAMPLES[name])
    assert read_event_bytes(text.encode()) == read_event(json.loads(text))


def without(path: str) -> dict[str, Any]:
    broken = json.loads(json.dumps(SAMPLES["windowed"]))
    *above, last = path.split(".")
    inner = broken
    for part in above:
        inner = inner[int(part) if part.isdigit() else part]
    del inner[last]
    return broken


BACKWARDS = {"start": "2020-12-09T07:04:00Z", "end": "2020-12-09T07:03:00Z"}
ZONELESS = {"start": "2020-12-09T07:04:00", "end": "2020-12-09T07:05:00"}
BROKEN = {
    "no records": without("Records"),
    "no kinesis": without("Records.1.kinesis"),
    "no data": without("Records.1.kinesis.data"),
    "no sequence number": without("Records.0.kinesis.sequenceNumber"),
    "no arrival": without("Records.2.kinesis.approximateArrivalTimestamp"),
    "no shard": without("shardId"),
    "no final": without("isFinalInvokeForWindow"),
    "no early": without("isWindowTerminatedEarly"),
    "no window end": without("window.end"),
    "no state": without("state"),
    "no arn": without("eventSourceARN"),
    "window is null": SAMPLES["windowed"] | {"window": None},
    "window is text": SAMPLES["windowed"] | {"window": "2020"},
    "window ends first": SAMPLES["windowed"] | {"window": BACKWARDS},
    "window without zone": SAMPLES["windowed"] | {"window": ZONELESS},
    "shard is empty": SAMPLES["windowed"] | {"shardId": ""},
    "final is a number": SAMPLES["windowed"] | {"isFinalInvokeForWindow": 1},
    "state is null": SAMPLES["windowed"] | {"state": None},
    "state is a list": SAMPLES["windowed"] | {"state": [1]},
    "records are null": {"Records": None},
    "a list": [1, 2],
    "a number": 3,
    "not base64": event([kinesis_record(1, b"") | {"kinesis": {**kinesis_record(1, b"")["kinesis"], "data": "%%"}}]),
    "arrival in whole seconds": event([kinesis_record(1, trip(), arrival_s=1_607_497_441)]),
    "empty": {},
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_usual_event_reads_the_same_from_bytes_as_from_a_dict(name):
    def told(read: Any, given: Any) -> Any:
        try:
            return read(given)
        except MalformedEvent as error:
            return str(error)

    assert told(read_event_bytes, json.dumps(BROKEN[name]).encode()) == told(read_event, BROKEN[name])


@given(st.lists(st.binary(max_size=50), max_size=5), st.booleans(), st.sampled_from([None, 0, 2]))
def test_any_payloads_read_the_same_from_bytes(payloads, final, indent):
    made = event(records(payloads), final=final)
    assert read_event_bytes(json.dumps(made, indent=indent).encode()) == read_event(made)


@pytest.mark.parametrize("text", [b"", b"{", b"nothing", b'{"Records": []', b"\xff"])
def test_what_is_not_json_is_said_to_be_none(text):
    with pytest.raises(NotJson):
        read_event_bytes(text)


# ── one call at a time, against a host of our own ───────────────────────────────────────────────────────────


class Played(Host):
    """A host that gives one event and keeps what it is told."""

    def __init__(self, body: bytes, headers: dict[str, str] | None = None, refuses: str = "") -> None:
        self.body, self.headers, self.refuses = body, headers or {}, refuses
        self.said: list[tuple[str, Any]] = []

    def next(self) -> tuple[dict[str, str], bytes]:
        return {"lambda-runtime-aws-request-id": "r1"} | self.headers, self.body

    def answer(self, request_id: str, body: bytes) -> None:
        if self.refuses:
            kind = "Function.ResponseSizeTooLarge"
            raise Fault(kind, self.refuses)
        self.said.append((request_id, json.loads(body)))

    def fail(self, path: str, error: Any) -> None:
        self.said.append((path, error))


def test_a_call_that_raises_is_reported_with_its_frames_and_nothing_else(capsys):
    def handler(event, context):
        msg = "no such luck"
        raise LookupError(msg)

    host = Played(b"{}")
    serve(host, function_of(handler))

    [(path, report)] = host.said
    assert path == "/invocation/r1/error"
    assert (report["errorType"], report["errorMessage"], report["requestId"]) == ("LookupError", "no such luck", "r1")
    assert len(report["stackTrace"]) == 1
    assert __file__ in report["stackTrace"][0]
    written = capsys.readouterr().out
    assert written.startswith("[ERROR] LookupError: no such luck\rTraceback (most recent call last):\r\u00a0\u00a0File")
    assert written.count("\n") == 1


def test_a_connection_that_the_handler_lost_is_an_error_of_the_call_and_not_of_the_runtime(capsys):
    def handler(event, context):
        raise BrokenPipeError("a database went away")

    host = Played(b"{}")
    serve(host, function_of(handler))

    [(path, report)] = host.said
    assert (path, report["errorType"]) == ("/invocation/r1/error", "BrokenPipeError")


@pytest.mark.parametrize(
    ("handler", "body", "kind", "text"),
    [
        (lambda event, context: 1, b"{", "Runtime.UnmarshalError", "Unable to unmarshal input:"),
        (lambda event, context: {1, 2}, b"{}", "Runtime.MarshalError", "Unable to marshal response:"),
    ],
)
def test_what_is_not_json_has_lambdas_name_for_it(handler, body, kind, text, capsys):
    host = Played(body)
    serve(host, function_of(handler))
    assert host.said[0][1]["errorType"] == kind
    assert host.said[0][1]["errorMessage"].startswith(text)


def test_an_answer_that_lambda_does_not_take_is_an_error_of_the_call(capsys):
    host = Played(b"{}", refuses="too large")
    serve(host, function_of(lambda event, context: {}))
    assert host.said == [("/invocation/r1/error", report_of(Fault("Function.ResponseSizeTooLarge", "too large"), "r1"))]


def test_the_context_says_what_lambdas_own_says():
    environ = {"AWS_LAMBDA_FUNCTION_NAME": "f", "AWS_LAMBDA_FUNCTION_VERSION": "3"}
    context = Context({"lambda-runtime-aws-request-id": "r", "lambda-runtime-deadline-ms": "4102444800000"}, environ)
    assert (context.aws_request_id, context.function_name, context.function_version) == ("r", "f", "3")
    assert context.get_remaining_time_in_millis() > 10**9
    assert Context({}, environ).get_remaining_time_in_millis() == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nodot", "Runtime.MalformedHandlerName"),
        ("no_such_module_here.handler", "Runtime.ImportModuleError"),
        ("json.no_such_name", "Runtime.HandlerNotFound"),
    ],
)
def test_a_handler_that_is_not_there_has_lambdas_name_for_it(name, kind):
    with pytest.raises(Fault) as raised:
        load(name)
    assert raised.value.kind == kind


def test_a_plain_function_is_given_plain_values_and_a_context():
    def handler(event, context):
        return {"got": event, "left": context.get_remaining_time_in_millis()}

    host = Played(b'{"a": [1, 2.5, null]}')
    serve(host, function_of(handler))
    assert host.said == [("r1", {"got": {"a": [1, 2.5, None]}, "left": 0})]


def test_what_a_function_logs_is_written_as_lambda_writes_it(monkeypatch, capsys):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    call_id = set_up_logging({"AWS_LAMBDA_LOG_LEVEL": "INFO"})
    serve(Played(b"{}"), function_of(lambda event, context: logging.getLogger("app").info("hello")), call_id)
    assert re.fullmatch(r"\[INFO\]\t[-\dT:]{19}\.\d{3}Z\tr1\thello\n", capsys.readouterr().out)


# ── the same answers as awslambdaric, process against process ───────────────────────────────────────────────


class RuntimeApi(ThreadingHTTPServer):
    """The Runtime API for one process: gives events in turn, keeps what comes back, then holds the line."""

    daemon_threads = True

    def __init__(self, events: list[bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Door)
        self.events, self.answers, self.whole = list(enumerate(events)), [], threading.Event()
        self.wanted, self.closing = len(events), threading.Event()


class _Door(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one packet: two, and Nagle's algorithm takes 40 ms
    disable_nagle_algorithm = True
    server: RuntimeApi

    def do_GET(self):
        if not self.server.events:
            self.server.closing.wait(20)
            self.close_connection = True
            return
        number, body = self.server.events.pop(0)
        self._reply(
            200, body, {"Lambda-Runtime-Aws-Request-Id": f"r{number}", "Lambda-Runtime-Deadline-Ms": "4102444800000"}
        )

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.answers.append((self.path.rpartition("/runtime")[2], json.loads(body)))
        self._reply(202, b"{}", {})
        if len(self.server.answers) >= self.server.wanted:
            self.server.whole.set()

    def _reply(self, status, body, headers):
        self.send_response(status)
        for name, value in headers.items() | {("Content-Type", "application/json"), ("Content-Length", str(len(body)))}:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


APP = """
from unittest.mock import patch
from windlass.apps import load_app
from tests.handlers import taxi, on_memory

handler, seams = taxi()
from datetime import timedelta
from windlass import Records
records_handler, _ = on_memory(Records(load_app("examples/taxi/app.py:trips").record, table="t", coerce=True))
"""


def answers(command: list[str], handler: str, events: list[bytes], folder: Path) -> list[Any]:
    """What a runtime process answers to events."""
    api = RuntimeApi(events)
    thread = threading.Thread(target=api.serve_forever, args=(0.01,))
    thread.start()
    variables = os.environ | {
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{api.server_address[1]}",
        "_HANDLER": handler,
        "LAMBDA_TASK_ROOT": str(folder),
        "PYTHONPATH": f"{folder}{os.pathsep}{Path.cwd()}",
        "AWS_LAMBDA_FUNCTION_NAME": "f",
    }
    with (folder / "out").open("ab") as out:
        process = subprocess.Popen([*command], env=variables, stdout=out, stderr=out)
        try:
            assert api.whole.wait(30), (folder / "out").read_text()
        finally:
            process.kill()
            process.wait()
            api.closing.set()
            api.shutdown()
            thread.join()
            api.server_close()
    return api.answers


def test_every_sample_event_gets_the_answer_that_awslambdaric_gives(tmp_path):
    pytest.importorskip("awslambdaric", reason="awslambdaric has no build for this machine")
    (tmp_path / "module.py").write_text(APP)
    events = [json.dumps(sample).encode() for sample in [*SAMPLES.values(), *BROKEN.values()]]
    own = Path(sys.modules["windlass.runtime"].__file__)

    for name in ("module.handler", "module.records_handler"):
        expected = answers([sys.executable, "-m", "awslambdaric", name], name, events, tmp_path)
        found = answers([sys.executable, "-P", str(own)], name, events, tmp_path)

        assert len(expected) == len(events)
        for (path, answer), (expected_path, expected_answer) in zip(found, expected, strict=True):
            # The frames differ: theirs pass through the handler's dict form.
            answer.pop("stackTrace", None)
            expected_answer.pop("stackTrace", None)
            assert (path, answer) == (expected_path, expected_answer)
        assert sum(path.endswith("/response") for path, _ in found) >= 1


def test_a_module_that_cannot_be_imported_is_reported_as_awslambdaric_reports_it(tmp_path):
    pytest.importorskip("awslambdaric", reason="awslambdaric has no build for this machine")
    (tmp_path / "broken.py").write_text("import no_such_module_anywhere\n")
    own = Path(sys.modules["windlass.runtime"].__file__)
    # No event is wanted: one report of the start ends the wait.
    api_events = [b"{}"]
    expected = answers([sys.executable, "-m", "awslambdaric", "broken.handler"], "broken.handler", api_events, tmp_path)
    found = answers([sys.executable, "-P", str(own)], "broken.handler", api_events, tmp_path)
    assert found[0] == expected[0]
    assert found[0][0] == "/init/error"


def test_an_event_of_many_records_is_decoded_in_one_pass():
    """A guard of the way, not of the time: the fast form makes no dict for a usual event."""
    calls = []
    raw = json.dumps(event(records([trip() for _ in range(50)]))).encode()
    plain = msgspec.json.decode
    try:
        msgspec.json.decode = lambda *given, **named: calls.append(given) or plain(*given, **named)  # type: ignore[assignment]
        read_event_bytes(raw)
    finally:
        msgspec.json.decode = plain  # type: ignore[assignment]
    assert calls == []


def test_the_shortest_context_is_enough_for_a_pipeline():
    from tests.handlers import taxi

    handler, _ = taxi()
    answer = function_of(handler)(json.dumps(SAMPLES["windowed"]).encode(), SimpleNamespace())
    assert json.loads(answer) == handler(SAMPLES["windowed"], None)
