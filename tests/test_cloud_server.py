"""The HTTP door and its certificate, the metrics in log lines, and the refusals, without an endpoint around them."""

import http.client
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from moto.cloudwatch.models import cloudwatch_backends
from moto.core.base_backend import BackendDict
from moto.logs.models import logs_backends
from typer.testing import CliRunner

from windlass import cli
from windlass.commands.local import BadOption, assumptions
from windlass.local.certificate import tls_context
from windlass.local.function import Settings
from windlass.local.mapping_settings import Assumptions
from windlass.local.monitor import Monitor, embedded_metrics
from windlass.local.server import Server


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Says what it was asked."""
    if environ["PATH_INFO"] == "/fails":
        raise ZeroDivisionError
    if environ["PATH_INFO"] == "/empty":
        start_response("204 No Content", [("X-Kind", "none")])
        return [b""]
    body = environ["wsgi.input"].read()
    said = f"{environ['wsgi.url_scheme']} {environ['REQUEST_METHOD']} {environ['PATH_INFO']} {environ['QUERY_STRING']}"
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Meta", environ.get("HTTP_X_META", ""))])
    return [said.encode(), b" ", body]


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server("127.0.0.1", 0, app, lambda: tls_context(folder))
    server.start()
    try:
        yield server
    finally:
        server.end()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server


def asked(connection: http.client.HTTPConnection, method: str, path: str, **more: Any) -> tuple[int, bytes]:
    connection.request(method, path, **more)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_a_connection_serves_many_requests(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    assert asked(connection, "GET", "/a%20b?c=d") == (200, b"http GET /a b c=d ")
    mine = connection.sock
    assert asked(connection, "POST", "/x", body=b"hello", headers={"X-Meta": "m"}) == (200, b"http POST /x  hello")
    assert asked(connection, "PUT", "/x", body=iter([b"in ", b"chunks"]), encode_chunked=True)[1].endswith(b"in chunks")
    assert asked(connection, "GET", "/empty") == (204, b"")
    assert asked(connection, "HEAD", "/x") == (200, b"")
    assert connection.sock is mine
    connection.close()


def test_a_failing_request_ends_nothing_else(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    assert asked(connection, "GET", "/fails")[0] == 500
    assert "ZeroDivisionError" in caplog.text
    assert asked(connection, "GET", "/x")[0] == 200
    connection.close()


def test_what_is_no_http_is_hung_up_on(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(b"hello\r\n\r\n")
        assert line.recv(100) == b""


def test_an_expected_continue_is_sent(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(b"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert line.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(b"ok")
        assert line.recv(1000).endswith(b"http PUT /x  ok")


def test_https_is_told_by_its_first_byte_and_the_certificate_is_kept(tmp_path: Path) -> None:
    trusted = ""
    for _ in range(2):
        with serving(tmp_path) as server:
            trusted = trusted or ssl.get_server_certificate(("127.0.0.1", server.port))
            trust = ssl.create_default_context(cadata=trusted)
            for name in ("127.0.0.1", "localhost"):
                connection = http.client.HTTPSConnection(name, server.port, context=trust)
                assert asked(connection, "GET", "/x") == (200, b"https GET /x  ")
                connection.close()
    assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0


def test_a_damaged_certificate_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "certificate.pem").write_text("no")
    (tmp_path / "key.pem").write_text("no")
    with pytest.raises(ValueError, match=r"holds no usable certificate: .*Delete certificate\.pem and key\.pem"):
        tls_context(tmp_path)


def test_a_taken_port_is_an_oserror(server: Server, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="in use"):
        Server("127.0.0.1", server.port, app, lambda: tls_context(tmp_path))


def test_many_clients_at_once_are_all_served(server: Server) -> None:
    answers: list[int] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        answers.extend(asked(connection, "POST", "/x", body=b"y" * 1000)[0] for _ in range(20))
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 160


# --- metrics in log lines ----------------------------------------------------------------------------------------


def metric_of(text: str) -> list[tuple[str, float, str, tuple[tuple[str, str], ...]]]:
    found = embedded_metrics(text, "us-east-1", 5)
    return [(metric.name, metric.value, metric.unit, metric.dimensions) for metric in found]


HEAD = '{"_aws":{"Timestamp":7,"CloudWatchMetrics":[{"Namespace":"N","Dimensions":%s,"Metrics":%s}]}%s}'


@pytest.mark.parametrize(
    ("dimensions", "metrics", "rest", "expected"),
    [
        ('[["a"]]', '[{"Name":"m","Unit":"Count"}]', ',"a":1,"m":2', [("m", 2.0, "Count", (("a", "1"),))]),
        ("[]", '[{"Name":"m"}]', ',"m":2', [("m", 2.0, "None", ())]),
        ('[["a"],[]]', '[{"Name":"m"}]', ',"a":1,"m":2', [("m", 2.0, "None", (("a", "1"),)), ("m", 2.0, "None", ())]),
        ("[]", '[{"Name":"m"}]', ',"m":[1,2]', [("m", 1.0, "None", ()), ("m", 2.0, "None", ())]),
        ("[]", '[{"Name":"m"}]', "", []),
        ('[["a"]]', '[{"Name":"m"}]', ',"m":1', []),
        ("[]", '[{"Name":"m"}]', ',"m":"text"', []),
        ("[]", '[{"Name":"m"}]', ',"m":NaN', []),
        ("7", "7", "", []),
    ],
)
def test_embedded_metrics_are_read_or_left_alone(
    dimensions: str, metrics: str, rest: str, expected: list[object]
) -> None:
    assert metric_of(HEAD % (dimensions, metrics, rest)) == expected


@pytest.mark.parametrize("text", ["", "{", '{"_aws":', '{"_aws":{}}', '{"_aws":[]}', "[]", "null"])
def test_what_is_not_in_the_embedded_format_is_no_metric(text: str) -> None:
    assert metric_of(text) == []


def test_lines_of_several_streams_are_stored_in_order_and_echoed_once() -> None:
    BackendDict.reset()
    echoed: list[str] = []
    monitor = Monitor(
        "123456789012",
        now_ms=lambda: 1,
        locked=lambda _: nullcontext(),
        echo=lambda function, line: echoed.append(f"{function} {line}"),
    )
    now = int(time.time() * 1000)
    write = monitor.sink(Settings(name="f", runtime="python3.13"))
    write(now + 1, "one", "second")
    write(now, "one", "first")
    write(now, "two", "other")
    monitor.flush()
    monitor.flush()
    group = logs_backends["123456789012"]["us-east-1"].groups["/aws/lambda/f"]
    assert {name: [event.message for event in stream.events] for name, stream in group.streams.items()} == {
        "one": ["first", "second"],
        "two": ["other"],
    }
    assert echoed == ["f second", "f first", "f other"]
    monitor.sink(Settings(name="g", runtime="python3.13", log_group="shared"))(now, "one", "third")
    monitor.flush()
    assert "shared" in logs_backends["123456789012"]["us-east-1"].groups
    assert echoed[3:] == ["g third"]
    BackendDict.reset()


def test_a_flush_is_over_when_what_another_had_taken_is_stored_too() -> None:
    BackendDict.reset()
    taken, stored = threading.Event(), threading.Event()
    found: list[str] = []

    def echo(_: str, __: str) -> None:
        taken.set()
        assert stored.wait(30)

    def read() -> None:
        monitor.flush()
        groups = logs_backends["123456789012"]["us-east-1"].groups
        found.extend(event.message for group in groups.values() for event in group.streams["one"].events)

    monitor = Monitor("123456789012", now_ms=lambda: 1, locked=lambda _: nullcontext(), echo=echo)
    monitor.sink(Settings(name="f", runtime="python3.13"))(int(time.time() * 1000), "one", "said")
    flushing, reading = threading.Thread(target=monitor.flush), threading.Thread(target=read)
    flushing.start()
    assert taken.wait(30)
    reading.start()
    reading.join(0.2)  # as long as it may: it has nothing to read yet
    stored.set()
    flushing.join()
    reading.join()
    assert found == ["said"]
    BackendDict.reset()


def test_lines_and_metrics_written_while_others_are_handed_on_are_stored_once() -> None:
    BackendDict.reset()
    echoed: list[str] = []
    monitor = Monitor(
        "123456789012", now_ms=lambda: 1, locked=lambda _: nullcontext(), echo=lambda _, line: echoed.append(line)
    )
    settings = Settings(name="f", runtime="python3.13")
    line = HEAD % ("[]", '[{"Name":"m"}]', ',"m":1')
    write = monitor.sink(settings)

    def work(stream: int) -> None:
        for _ in range(200):
            write(int(time.time() * 1000), str(stream), line)
            monitor.throttled(settings)

    had = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # a thread may lose its turn in the middle of anything
    try:
        with ThreadPoolExecutor(4) as pool:
            working = [pool.submit(work, stream) for stream in range(4)]
            while not all(each.done() for each in working):
                monitor.flush()
    finally:
        sys.setswitchinterval(had)
    monitor.flush()
    metrics = cloudwatch_backends["123456789012"]["us-east-1"].metric_data
    assert len(echoed) == 800
    assert Counter(metric.name for metric in metrics) == {"m": 800, "Throttles": 800}
    BackendDict.reset()


# --- options -----------------------------------------------------------------------------------------------------


def test_assumptions_are_read_by_name_and_type() -> None:
    assert assumptions([]) == Assumptions()
    given = ["grace_ms=0", "final_blocks=false", "early_call=next", "grace_ms=5"]
    assert assumptions(given) == Assumptions(grace_ms=5, final_blocks=False, early_call="next")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("grace_ms", "write name=value; the names are final_carries_records"),
        ("nothing=1", "there is no 'nothing'; the names are final_carries_records"),
        ("grace_ms=soon", "grace_ms is a whole number; found 'soon'"),
        ("keep_window=maybe", "keep_window is true or false; found 'maybe'"),
        ("early_call=never", "early_call is extra or extra-final or next; found 'never'"),
    ],
)
def test_an_assumption_that_is_none_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(BadOption, match=f"^--assume {text}: {says}"):
        assumptions([text])


@pytest.mark.parametrize("command", [["local"], ["mapping", "run"]])
def test_the_assumptions_are_listed_with_their_defaults_and_meanings(command: list[str]) -> None:
    told = CliRunner().invoke(cli.app, [*command, "--assume", "help"])
    assert told.exit_code == 0
    lines = told.stdout.splitlines()
    assert [line.partition("=")[0] for line in lines] == list(Assumptions.__struct_fields__)
    assert " ".join(lines[-1].split()).startswith("repeat_every=0 Fault injection: every n-th successful call")
