"""One Lambda function on this machine: real processes, so a test takes as long as a Python takes to start."""

import importlib.util
import io
import json
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.local import environment, function, runtime_loop
from windlass.local.environment import (
    Ending,
    FunctionError,
    Outcome,
    RequestReader,
    exit_text,
    log_stream_name,
    report_line,
    timeout_line,
)
from windlass.local.function import (
    BadCode,
    Code,
    Function,
    Python,
    Settings,
    Throttled,
    TooLarge,
    code_in,
    python_for,
    unpack,
)

RUNTIME = f"python3.{sys.version_info.minor}"
HAS_CLIENT = all(importlib.util.find_spec(name) for name in ("awslambdaric", "runtime_client"))
CLIENTS = {
    "awslambdaric": pytest.param(True, id="awslambdaric", marks=pytest.mark.skipif(not HAS_CLIENT, reason="no build")),
    "own loop": pytest.param(False, id="own-loop"),
}
both_clients = pytest.mark.parametrize("client", CLIENTS.values())

Host = Callable[..., Function]


def ours(*, client: bool = HAS_CLIENT) -> Python:
    return Python(sys.executable, ".".join(map(str, sys.version_info[:3])), client, has_boto3=True)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Makes functions of a module's source text; closes them after the test."""
    made: list[Function] = []

    def make(source: str, *, client: bool = HAS_CLIENT, log: Any = None, **settings: Any) -> Function:
        folder = tmp_path / f"task-{len(made)}"
        folder.mkdir()
        (folder / "app.py").write_text(textwrap.dedent(source))
        chosen = {"name": "f", "runtime": RUNTIME, "handler": "app.handler", "timeout_ms": 20_000, **settings}
        sink = {"log": log} if log else {}
        made.append(Function(Settings(**chosen), Code(folder), python=ours(client=client), **sink))
        return made[-1]

    yield make
    for each in made:
        each.close()


def called(function: Function, event: object = None, **options: Any) -> Outcome:
    outcome = function.invoke(json.dumps(event).encode(), **options)
    assert isinstance(outcome, Outcome)
    return outcome


def answer(function: Function, event: object = None, **options: Any) -> Any:
    outcome = called(function, event, **options)
    assert outcome.ending is Ending.ANSWERED, outcome
    return json.loads(outcome.payload)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z" or threads > 1  # its first thread may be gone before the others


def gone_soon(pid: int, within: float = 30.0) -> bool:
    end = time.monotonic() + within
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

ECHO = "def handler(event, context): return event"


# --- A call that goes well --------------------------------------------------------------------------------


@both_clients
def test_the_result_of_the_handler_is_the_payload(host: Host, client: bool) -> None:
    outcome = called(host(ECHO, client=client), {"n": [1, "é", None]})

    assert json.loads(outcome.payload) == {"n": [1, "é", None]}
    assert (outcome.ending, outcome.error, outcome.function_error) == (Ending.ANSWERED, None, None)


@both_clients
def test_a_process_serves_many_calls_and_only_the_first_reports_an_init(host: Host, client: bool) -> None:
    counts = host("calls = []\ndef handler(event, context):\n    calls.append(1)\n    return len(calls)", client=client)

    first, second = called(counts), called(counts)

    assert [first.payload, second.payload] == [b"1", b"2"]
    assert first.init_duration_ms is not None
    assert second.init_duration_ms is None
    assert first.billed_ms >= first.init_duration_ms
    assert first.log_stream == second.log_stream
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/\[\$LATEST\][0-9a-f]{32}", first.log_stream)


@both_clients
def test_the_context_tells_what_lambda_tells(host: Host, client: bool) -> None:
    tells = host(
        """
        def handler(event, c):
            return [c.aws_request_id, c.invoked_function_arn, c.function_name, c.function_version,
                    c.memory_limit_in_mb, c.log_group_name, c.log_stream_name, c.get_remaining_time_in_millis(),
                    c.client_context and c.client_context.custom]
        """,
        client=client,
        memory_mb=256,
        timeout_ms=60_000,
    )
    context = '{"custom":\n{"a": 1}}'
    outcome = called(tells, request_id="3e0b1a4e-0000-4000-8000-000000000001", client_context=context)
    request_id, arn, name, version, memory, group, stream, left_ms, custom = json.loads(outcome.payload)

    assert request_id == outcome.request_id == "3e0b1a4e-0000-4000-8000-000000000001"
    assert arn == "arn:aws:lambda:us-east-1:123456789012:function:f"
    assert (name, version, memory, group) == ("f", "$LATEST", "256", "/aws/lambda/f")
    assert stream == outcome.log_stream
    assert 30_000 < left_ms <= 60_000
    assert custom == {"a": 1}


@both_clients
def test_decimals_are_numbers_and_nan_stays_bare(host: Host, client: bool) -> None:
    source = """
        from decimal import Decimal
        def handler(event, context):
            return {"a": Decimal("1.10"), "b": [Decimal("NaN"), float("inf")], "c": Decimal(12)}
        """
    outcome = called(host(source, client=client))

    assert outcome.ending is Ending.ANSWERED
    assert outcome.payload == b'{"a": 1.10, "b": [NaN, Infinity], "c": 12}'


@both_clients
def test_text_is_escaped_by_old_runtimes_only(host: Host, client: bool) -> None:
    old = host(ECHO, client=client, runtime="python3.11")
    new = host(ECHO, client=client, runtime="python3.12")

    assert old.invoke('"é"'.encode()).payload == b'"\\u00e9"'
    assert new.invoke('"é"'.encode()).payload == '"é"'.encode()


def test_an_empty_payload_is_an_empty_object(host: Host) -> None:
    assert host(ECHO).invoke(b"").payload == b"{}"


# --- What the function sees -------------------------------------------------------------------------------

SEES = "import os, sys\ndef handler(event, context): return [dict(os.environ), sys.path, os.getcwd()]"


@both_clients
def test_the_function_sees_lambdas_variables_and_its_own_but_none_of_ours(
    host: Host, client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("SECRET_OF_MINE", "x")
    sees = host(
        SEES,
        client=client,
        variables={"TABLE": "t", "AWS_REGION": "no", "AWS_ENDPOINT_URL_S3": "http://s3"},
        platform={"AWS_ENDPOINT_URL": "http://127.0.0.1:4566", "AWS_ACCESS_KEY_ID": "test"},
        region="eu-west-1",
    )
    variables, path, folder = answer(sees)

    assert not {"AWS_PROFILE", "SECRET_OF_MINE"} & set(variables)
    assert variables["TABLE"] == "t"
    assert variables["AWS_REGION"] == variables["AWS_DEFAULT_REGION"] == "eu-west-1"
    assert variables["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4566"
    assert variables["AWS_ACCESS_KEY_ID"] == "test"
    assert variables["AWS_EXECUTION_ENV"] == f"AWS_Lambda_{RUNTIME}"
    assert variables["_HANDLER"] == "app.handler"
    assert variables["TZ"] == ":UTC"
    assert variables["HOME"] != str(Path.home())
    assert path[0] == folder == variables["LAMBDA_TASK_ROOT"] == variables["PYTHONPATH"]
    assert "/mine" not in path
    assert str(Path(function.__file__).parent) not in path


def test_the_functions_own_variables_win_over_the_machines(host: Host) -> None:
    url = "AWS_ENDPOINT_URL"
    assert answer(host(SEES, platform={url: "http://machine"}, variables={url: "http://own"}))[0][url] == "http://own"


def test_every_variable_that_lambda_reserves_is_lambdas(host: Host) -> None:
    sees = host(SEES, variables={name: "mine" for name in function.RESERVED_VARIABLES if "ACCESS" not in name})
    variables = answer(sees)[0]

    credentials = {"AWS_ACCESS_KEY", "AWS_SESSION_TOKEN"}
    assert [name for name in function.RESERVED_VARIABLES - credentials if variables.get(name) == "mine"] == []


def test_what_a_function_leaves_in_its_temporary_folder_goes_with_it(host: Host) -> None:
    leaves = host("import tempfile\ndef handler(event, context): return tempfile.mkstemp()[1]")
    path = Path(answer(leaves))
    assert path.exists()

    leaves.close()

    assert not path.exists()


def test_boto3_is_there_as_in_lambdas_runtime(host: Host) -> None:
    source = "import boto3\ndef handler(event, context): return boto3.client('sts').meta.endpoint_url"
    endpoint = {"AWS_ENDPOINT_URL": "http://127.0.0.1:4566"}
    assert answer(host(source, platform=endpoint, memory_mb=512)) == "http://127.0.0.1:4566"


# --- What a function does wrong ---------------------------------------------------------------------------


@both_clients
def test_an_exception_is_the_answer_and_the_process_lives_on(host: Host, client: bool) -> None:
    raises = host(
        """
        import os
        def handler(event, context):
            if event: raise KeyError("no vendor")
            return os.getpid()
        """,
        client=client,
    )
    before = answer(raises)
    outcome = called(raises, {"x": 1})

    assert outcome.ending is Ending.FAILED
    assert outcome.function_error == "Unhandled"
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.message) == ("KeyError", "'no vendor'")
    assert 'raise KeyError("no vendor")' in outcome.error.stack_trace[0]
    told = json.loads(outcome.payload)
    assert list(told) == ["errorMessage", "errorType", "requestId", "stackTrace"]
    assert told["requestId"] == outcome.request_id
    assert any(line.startswith("[ERROR] KeyError: 'no vendor'\nTraceback") for line in outcome.lines)
    assert "Status" not in outcome.lines[-1]
    assert answer(raises) == before


@both_clients
@pytest.mark.parametrize(
    ("source", "handler", "error_type", "message"),
    [
        ("", "app.handler", "Runtime.HandlerNotFound", "Handler 'handler' missing on module 'app'"),
        ("", "other.handler", "Runtime.ImportModuleError", "Unable to import module 'other': No module"),
        ("import nope", "app.handler", "Runtime.ImportModuleError", "Unable to import module 'app': No module named"),
        ("def (", "app.handler", "Runtime.UserCodeSyntaxError", "Syntax error in module 'app': invalid syntax"),
        ("1 / 0", "app.handler", "ZeroDivisionError", "division by zero"),
        ("", "handler", "Runtime.MalformedHandlerName", "Bad handler 'handler'"),
        ("", "sys.exit", "Runtime.BuiltInModuleConflict", "Cannot use built-in module sys as a handler module"),
    ],
)  # fmt: skip
def test_a_handler_that_cannot_be_loaded_is_named(
    host: Host, client: bool, source: str, handler: str, error_type: str, message: str
) -> None:
    outcome = called(host(source, handler=handler, client=client))

    assert outcome.ending is Ending.INIT_FAILED
    assert outcome.error is not None
    assert outcome.error.type == error_type
    assert outcome.error.message.startswith(message)
    assert json.loads(outcome.payload)["errorType"] == error_type
    told = "".join(line + "\n" for line in outcome.lines)
    assert f"Phase: init\tStatus: error\tError Type: {error_type}" in told
    assert f"Phase: invoke\tStatus: error\tError Type: {error_type}" in told
    assert told.count(f"[ERROR] {error_type}: ") == 2
    assert outcome.lines[-1].endswith(f"\tStatus: error\tError Type: {error_type}\t")


def test_a_function_that_cannot_start_is_started_again_by_the_next_call(host: Host, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    late = host(f"import os\nif not os.path.exists({str(flag)!r}): raise OSError('not yet')\n{ECHO}")
    assert called(late).ending is Ending.INIT_FAILED

    flag.touch()

    assert answer(late, 7) == 7


@both_clients
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("os._exit(1)", "Runtime exited with error: exit status 1"),
        ("sys.exit(3)", "Runtime exited with error: exit status 3"),
        ("sys.exit(0)", "Runtime exited without providing a reason"),
        ("os.kill(os.getpid(), 9)", "Runtime exited with error: signal: killed"),
        ("os.kill(os.getpid(), 11)", "Runtime exited with error: signal: segmentation fault"),
    ],
)
def test_a_process_that_ends_itself_fails_its_call_and_is_replaced(
    host: Host, client: bool, code: str, text: str
) -> None:
    exits = host(
        f"""
        import os, sys
        def handler(event, context):
            print("last words", end="", flush=True)
            if event: {code}
            return "fine"
        """,
        client=client,
    )
    assert answer(exits) == "fine"
    outcome = called(exits, 1)

    assert outcome.ending is Ending.EXITED
    message = f"RequestId: {outcome.request_id} Error: {text}"
    assert outcome.error == FunctionError("Runtime.ExitError", message)
    assert json.loads(outcome.payload) == {"errorType": "Runtime.ExitError", "errorMessage": message}
    assert "last words" in outcome.lines
    assert f"{message}\nRuntime.ExitError" in outcome.lines
    assert outcome.lines[-1].endswith("Status: error\tError Type: Runtime.ExitError\t")
    assert answer(exits) == "fine"


@both_clients
def test_a_call_over_its_time_ends_the_process_and_the_next_one_gets_another(
    host: Host, client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep: list[float] = []  # since when
    sleeps = host(
        """
        import os, time
        def handler(event, context):
            print("going to sleep")
            time.sleep(event)
            return os.getpid()
        """,
        client=client,
        timeout_ms=300,
        log=lambda _, __, line: asleep.append(time.monotonic()) if line == "going to sleep" else None,
    )
    before = answer(sleeps, 0, timeout_ms=20_000)
    asleep.clear()
    with monkeypatch.context() as patch:  # its time begins when it sleeps, however long it takes to get there
        patch.setattr(environment, "monotonic", lambda: time.monotonic() - asleep[0] if asleep else 0.0)
        outcome = called(sleeps, 300)

    assert outcome.ending is Ending.TIMED_OUT
    assert 300 <= outcome.duration_ms < 10_000
    message = f"RequestId: {outcome.request_id} Error: Task timed out after 0.30 seconds"
    assert json.loads(outcome.payload) == {"errorType": "Sandbox.Timedout", "errorMessage": message}
    assert "going to sleep" in outcome.lines
    stamped = rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ {outcome.request_id} Task timed out after 0.30 seconds"
    assert re.fullmatch(stamped, outcome.lines[-3])
    assert outcome.lines[-1].endswith("\tStatus: timeout\t")

    after = called(sleeps, 0, timeout_ms=20_000)

    assert json.loads(after.payload) != before
    assert after.init_duration_ms is None  # brought up on the call's own time
    assert after.log_stream == outcome.log_stream
    assert gone_soon(before)


def test_init_over_its_time_is_tried_again_on_the_calls_time(host: Host) -> None:
    stuck = host("import time\ntime.sleep(30)\n" + ECHO, init_timeout_ms=200, timeout_ms=300)
    outcome = called(stuck)

    assert outcome.ending is Ending.TIMED_OUT
    reports = [line for line in outcome.lines if line.startswith("INIT_REPORT")]
    assert [line.split("\t", 1)[1] for line in reports] == [
        "Phase: init\tStatus: timeout",
        "Phase: invoke\tStatus: timeout",
    ]


@both_clients
def test_a_result_that_is_not_json_is_a_marshal_error(host: Host, client: bool) -> None:
    outcome = called(host("def handler(event, context): return {1, 2}", client=client))

    assert outcome.ending is Ending.FAILED
    assert outcome.error is not None
    assert outcome.error.type == "Runtime.MarshalError"
    assert "is not JSON serializable" in outcome.error.message


@both_clients
def test_a_result_over_six_megabytes_fails_the_call_and_the_next_one_is_served(host: Host, client: bool) -> None:
    sized = host("def handler(event, context): return 'x' * event", client=client)
    outcome = called(sized, 7_000_000)

    assert outcome.ending is Ending.TOO_LARGE
    assert json.loads(outcome.payload) == {
        "errorType": "Function.ResponseSizeTooLarge",
        "errorMessage": "Response payload size exceeded maximum allowed payload size (6291556 bytes).",
    }
    assert any("Failed to post invocation response" in line for line in outcome.lines)
    assert len(called(sized, 6_291_554).payload) == 6_291_556


def test_an_event_over_six_megabytes_does_not_reach_the_function(host: Host) -> None:
    length = host("def handler(event, context): return len(event)")
    most = function.PAYLOAD_BYTES_MAX

    assert json.loads(length.invoke(b'"' + b"x" * (most - 2) + b'"').payload) == most - 2
    refused = length.invoke(b'"' + b"x" * (most - 1) + b'"')
    assert refused == TooLarge(most + 1)
    assert isinstance(refused, TooLarge)
    assert "6291456 bytes" in refused.message


@both_clients
@pytest.mark.parametrize("closing", ["sys.stdout.close()", "os.close(1)", "os.close(1); os.close(2)"])
def test_a_function_that_closes_its_output_harms_nobody_else(host: Host, client: bool, closing: str) -> None:
    closes = host(f"import os, sys\ndef handler(event, context):\n    if event: {closing}\n    return 1", client=client)
    outcomes = [called(closes, event) for event in (0, 1, 0, 0)]

    assert outcomes[0].ending is Ending.ANSWERED
    assert outcomes[-1].ending is Ending.ANSWERED


@linux
def test_a_function_that_outgrows_its_memory_is_killed(host: Host) -> None:
    grows = host("kept = []\ndef handler(event, context):\n    kept.append(b'x' * event)\n    return 1", memory_mb=128)
    assert answer(grows, 1_000_000) == 1
    outcome = called(grows, 200_000_000)

    assert outcome.ending is Ending.EXITED
    assert outcome.error is not None
    assert outcome.error.message.endswith("Runtime exited with error: signal: killed")
    assert outcome.memory_used_mb == 128
    assert outcome.lines[-1].endswith("Status: error\tError Type: Runtime.OutOfMemory\t")
    assert answer(grows, 1) == 1


@linux
def test_memory_is_watched_while_the_function_works_and_prints(host: Host) -> None:
    grows = host(
        """
        def handler(event, context):
            kept = []
            while True:
                kept.append(b"x" * 1_000_000)
                print(len(kept))
                if len(kept) > 3000: return "nobody stopped me"
        """,
        timeout_ms=20_000,
    )
    assert called(grows).ending is Ending.EXITED


# --- Children ---------------------------------------------------------------------------------------------


@linux
def test_children_of_a_handler_end_with_its_environment(host: Host) -> None:
    forks = host(
        """
        import subprocess, sys
        def handler(event, context):
            if event == "exit": sys.exit(1)
            return subprocess.Popen(["sleep", "60"]).pid
        """
    )
    first = answer(forks)
    assert alive(first)
    assert called(forks, "exit").ending is Ending.EXITED
    assert gone_soon(first)

    second = answer(forks)
    forks.close()
    assert gone_soon(second)


@both_clients
def test_a_forked_copy_of_the_runtime_does_not_confuse_the_next_call(host: Host, client: bool) -> None:
    forks = host(
        """
        import os
        def handler(event, context):
            if event == "exits" and os.fork() == 0: os._exit(0)
            if event == "answers too": os.fork()
            return event
        """,
        client=client,
    )
    assert answer(forks, "exits") == "exits"
    assert called(forks, "answers too").ending in (Ending.ANSWERED, Ending.EXITED)
    # Whenever the copy is noticed, it costs one call and its environment; the others are answered.
    payloads = [called(forks, "as ever").payload for _ in range(6)]
    assert payloads.count(b'"as ever"') >= 5


@linux
def test_closing_ends_a_call_that_is_under_way(host: Host) -> None:
    started = threading.Event()
    sleeps = host(
        "import os, time\ndef handler(event, context):\n    print('pid', os.getpid())\n    time.sleep(60)",
        log=lambda _, __, line: started.set() if line.startswith("pid") else None,
        timeout_ms=60_000,
    )
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(called, sleeps)
        assert started.wait(30)
        sleeps.close()
        outcome = running.result(30)

    assert outcome.ending is Ending.EXITED
    pid = next(int(line.split()[1]) for line in outcome.lines if line.startswith("pid"))
    assert gone_soon(pid)
    with pytest.raises(RuntimeError, match="is closed"):
        sleeps.invoke(b"1")


def test_closing_with_drain_lets_calls_finish(host: Host) -> None:
    started = threading.Event()
    sleeps = host(
        "import time\ndef handler(event, context):\n    print('here')\n    time.sleep(0.2)\n    return 'done'",
        log=lambda _, __, line: started.set() if line == "here" else None,
    )
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(called, sleeps)
        assert started.wait(30)
        sleeps.close(drain=True)

        assert running.result(30).payload == b'"done"'


HOST_SCRIPT = """
import os, signal, sys
from windlass.local.function import Code, Function, Settings
from pathlib import Path
settings = Settings(name="f", runtime=sys.argv[1], handler="app.handler", timeout_ms=20_000)
f = Function(settings, Code(Path(sys.argv[2])))
print(f.invoke(b"{{}}").payload.decode(), flush=True)
{end}
"""


BUSY_HOST_SCRIPT = """
import sys, threading
from windlass.local.function import Code, Function, Settings
from pathlib import Path
started = threading.Event()
def log(at, stream, line):
    if line.startswith("pid"):
        print(line.split()[1], flush=True)
        started.set()
f = Function(Settings(name="f", runtime=sys.argv[1], handler="app.handler"), Code(Path(sys.argv[2])), log=log)
threading.Thread(target=f.invoke, args=(b"{}",), kwargs={"timeout_ms": 60_000}, daemon=True).start()
started.wait(30)
"""


@linux
def test_a_busy_function_does_not_outlive_its_host_either(tmp_path: Path) -> None:
    source = "import os, time\ndef handler(event, context):\n    print('pid', os.getpid())\n    time.sleep(60)"
    (tmp_path / "app.py").write_text(source)
    told = subprocess.run(
        [sys.executable, "-c", BUSY_HOST_SCRIPT, RUNTIME, str(tmp_path)], capture_output=True, timeout=60, check=True
    )
    assert gone_soon(int(told.stdout))


@linux
@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_function_outlives_a_host_that_forgot_to_close_it(tmp_path: Path, end: str) -> None:
    (tmp_path / "app.py").write_text("import os\ndef handler(event, context): return os.getpid()")
    script = HOST_SCRIPT.format(end=end)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    told = subprocess.run(
        [sys.executable, "-c", script, RUNTIME, str(tmp_path)],
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    assert gone_soon(int(told.stdout))
    assert told.returncode == -signal.SIGKILL or list(scratch.iterdir()) == []


@linux
def test_closing_while_the_process_is_being_started_ends_it_too(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = host("import time\ntime.sleep(60)\n" + ECHO, timeout_ms=60_000, init_timeout_ms=60_000)
    launch, launching, closed = slow._launch, threading.Event(), threading.Event()

    def waits(*details: Any) -> Any:
        launching.set()
        assert closed.wait(30)
        return launch(*details)

    monkeypatch.setattr(slow, "_launch", waits)
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(called, slow)
        assert launching.wait(30)
        closing_ = threads.submit(slow.close)
        while not any(each._condemned for each in tuple(slow._environments)):
            time.sleep(0.001)
        closed.set()
        closing_.result(30)

        assert running.result(30).ending is Ending.EXITED


@linux
@pytest.mark.parametrize("lacks", [["pidfd_open"], ["pidfd_open", "waitid"]], ids=" and ".join)
def test_an_exit_is_noticed_where_the_platform_tells_less(
    host: Host, monkeypatch: pytest.MonkeyPatch, lacks: list[str]
) -> None:
    for name in lacks:
        monkeypatch.delattr(os, name)
    exits = host(
        """
        import subprocess, sys
        def handler(event, context):
            if event: return subprocess.Popen(["sleep", "60"]).pid
            sys.exit(2)
        """
    )
    child = answer(exits, 1)
    outcome = called(exits, 0)

    assert outcome.error is not None
    assert outcome.error.message.endswith("exit status 2")
    assert gone_soon(child)
    assert alive(answer(exits, 1))


@linux
def test_the_runtimes_own_word_for_its_memory_counts_where_the_platform_tells_none(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment._Process, "peak_memory_mb", lambda _: None)
    tells = host(
        """
        import __main__
        def handler(event, context):
            __main__.memory_header = lambda: (("Windlass-Peak-Memory-Kib", str(event)),)
        """,
        client=False,
    )
    assert called(tells, 100 * 1024 + 1).memory_used_mb == 101
    assert called(tells, 129 * 1024).ending is Ending.EXITED


@pytest.mark.parametrize(("platform", "kib"), [("darwin", 2), ("freebsd14", 2048)])
def test_the_loop_tells_its_memory_where_the_host_cannot_see_it(
    monkeypatch: pytest.MonkeyPatch, platform: str, kib: int
) -> None:
    class Usage:
        ru_maxrss = 2048

    monkeypatch.setattr("resource.getrusage", lambda _: Usage)
    assert runtime_loop.memory_header() == ()
    monkeypatch.setattr(sys, "platform", platform)
    assert runtime_loop.memory_header() == (("Windlass-Peak-Memory-Kib", str(kib)),)


# --- Logs -------------------------------------------------------------------------------------------------


@both_clients
def test_output_is_logged_in_order_between_start_end_and_report(host: Host, client: bool) -> None:
    seen: list[tuple[int, str, str]] = []
    prints = host(
        """
        import logging, os, subprocess, sys
        print("at import")
        def handler(event, context):
            print("one")
            print("two", file=sys.stderr)
            logging.getLogger().warning("three")
            subprocess.run(["echo", "four"])
            os.write(1, b"five, no newline")
        """,
        client=client,
        log=lambda *event: seen.append(event),
    )
    outcome = called(prints)
    lines = [line for _, _, line in seen]

    assert tuple(lines) == outcome.lines
    assert {stream for _, stream, _ in seen} == {outcome.log_stream}
    assert [stamp for stamp, _, _ in seen] == sorted(stamp for stamp, _, _ in seen)
    assert lines[0].startswith("INIT_START Runtime Version: python:3")
    assert lines[1:3] == ["at import", f"START RequestId: {outcome.request_id} Version: $LATEST"]
    assert lines[3:5] == ["one", "two"]
    warned = r"\[WARNING\]\t\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\t" + outcome.request_id + r"\tthree"
    assert re.fullmatch(warned, lines[5])
    assert lines[6:9] == ["four", "five, no newline", f"END RequestId: {outcome.request_id}"]
    report = (
        r"REPORT RequestId: \S+\tDuration: \d+\.\d\d ms\tBilled Duration: \d+ ms\tMemory Size: 128 MB"
        r"\tMax Memory Used: \d+ MB\tInit Duration: \d+\.\d\d ms\t"
    )
    assert re.fullmatch(report, lines[9])
    assert len(lines) == 10


@both_clients
def test_megabytes_of_output_reach_the_sink_and_only_their_end_is_kept(host: Host, client: bool) -> None:
    got = 0

    def count(_: int, __: str, line: str) -> None:
        nonlocal got
        got += line.startswith("line ")

    prints = host(
        """
        import os
        def handler(event, context):
            os.write(1, b"x" * 3_000_000 + b"\\n")
            block = "".join("line %d %s\\n" % (n, "y" * 80) for n in range(1000))
            for _ in range(100): os.write(1, block.encode())
            return "done"
        """,
        client=client,
        log=count,
        timeout_ms=20_000,
    )
    outcome = called(prints)

    assert outcome.payload == b'"done"'
    assert got == 100_000
    assert sum(map(len, outcome.lines)) < environment.KEPT_BYTES_MAX
    assert max(map(len, outcome.lines)) <= environment.LINE_BYTES_MAX
    assert len(outcome.tail) == 4096
    assert outcome.tail.endswith(outcome.lines[-1].encode() + b"\n")
    assert b"END RequestId" in outcome.tail


def test_output_between_calls_does_not_block_the_next_call(host: Host) -> None:
    talks = host(
        """
        import threading
        def talk():
            for n in range(3000): print("behind", n, "z" * 60)
        def handler(event, context):
            if event: threading.Thread(target=talk).start()
            return "ok"
        """,
        timeout_ms=10_000,
    )
    assert answer(talks, 1) == "ok"
    time.sleep(0.05)
    assert answer(talks, 0) == "ok"


def test_a_sink_that_fails_stops_the_call_and_the_function_serves_the_next(host: Host) -> None:
    broken = [True]

    def sink(_: int, __: str, line: str) -> None:
        if broken[0] and line == "hello":
            msg = "disk full"
            raise OSError(msg)

    source = "import time\ndef handler(event, context):\n    print('hello')\n    time.sleep(event)\n    return 1"
    says = host(source, log=sink)
    with pytest.raises(OSError, match="disk full"):
        says.invoke(b"60")
    broken[0] = False

    assert answer(says, 0) == 1


def test_a_line_without_an_end_does_not_pile_up() -> None:
    seen: list[str] = []
    log = environment._Log(lambda _, __, line: seen.append(line), "s", lambda: 0)
    for _ in range(9):
        log.feed(b"x" * 64 * 1024)

    assert [len(line) for line in seen] == [256 * 1024] * 2
    log.flush()
    assert [len(line) for line in seen] == [256 * 1024] * 2 + [64 * 1024]


def test_what_a_process_says_as_it_ends_between_calls_is_logged_with_the_next(host: Host, tmp_path: Path) -> None:
    ends = host(
        """
        import os, threading, time
        def end(signal):
            while not os.path.exists(signal): time.sleep(0.005)
            os.write(1, b"last words")
            os._exit(1)
        def handler(event, context):
            if event: threading.Thread(target=end, args=(event,)).start()
            return os.getpid()
        """
    )
    before = answer(ends, str(tmp_path / "now"))
    (tmp_path / "now").touch()
    assert gone_soon(before)
    outcome = called(ends, "")

    assert outcome.ending is Ending.ANSWERED
    assert json.loads(outcome.payload) != before
    assert outcome.lines[0] == "last words"


# --- The Runtime API --------------------------------------------------------------------------------------


def test_the_runtime_api_refuses_what_is_out_of_turn_and_serves_on(host: Host) -> None:
    asks = host(
        """
        import os, urllib.error, urllib.request
        api = "http://" + os.environ["AWS_LAMBDA_RUNTIME_API"]
        def status(path, body=None):
            try: return urllib.request.urlopen(api + path, body).status
            except urllib.error.HTTPError as error: return error.code
            except OSError: return "dropped"
        def handler(event, context):
            base = "/2018-06-01/runtime/"
            return [status(base + "invocation/other/response", b"1"), status(base + "invocation/next"),
                    status(base + "restore/next"), status("/"), status(base + "init/error", b"{}"),
                    status("/?" + "x" * 3_000_000)]
        """,
        timeout_ms=10_000,
    )
    for _ in range(2):
        assert answer(asks) == [400, 403, 404, 404, 403, "dropped"]


# --- Concurrency ------------------------------------------------------------------------------------------

MEETS = """
    import os, time
    def handler(event, context):
        open(os.path.join(event, str(os.getpid())), "w").close()
        end = time.time() + 30
        while len(os.listdir(event)) < 3 and time.time() < end: time.sleep(0.005)
        return os.getpid()
    """


def test_calls_at_the_same_time_get_environments_of_their_own(host: Host, tmp_path: Path) -> None:
    meets = host(MEETS, timeout_ms=60_000)
    (tmp_path / "met").mkdir()
    with ThreadPoolExecutor(3) as threads:
        pids = list(threads.map(lambda _: answer(meets, str(tmp_path / "met")), range(3)))

    assert len(set(pids)) == 3
    assert answer(meets, str(tmp_path / "met")) in pids


def test_calls_beyond_the_most_environments_wait_for_one(host: Host) -> None:
    slow = host(
        "import os, time\ndef handler(event, context):\n    time.sleep(0.01)\n    return os.getpid()",
        environments_max=2,
    )
    with ThreadPoolExecutor(6) as threads:
        pids = list(threads.map(lambda _: answer(slow), range(12)))

    assert len(set(pids)) <= 2


def test_reserved_concurrency_throttles_what_exceeds_it(host: Host, tmp_path: Path) -> None:
    started = threading.Event()
    waits = host(
        """
        import os, time
        def handler(event, context):
            print("here")
            while not os.path.exists(event): time.sleep(0.005)
        """,
        reserved_concurrency=1,
        log=lambda _, __, line: started.set() if line == "here" else None,
    )
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(called, waits, str(tmp_path / "now"))
        assert started.wait(30)
        refused = waits.invoke(b"1")
        (tmp_path / "now").touch()
        running.result()

    assert refused == Throttled("ReservedFunctionConcurrentInvocationLimitExceeded", "Rate Exceeded.")
    assert called(waits, str(tmp_path / "now")).ending is Ending.ANSWERED


def test_a_function_with_no_concurrency_is_never_started(host: Host) -> None:
    assert isinstance(host(ECHO, reserved_concurrency=0).invoke(b"1"), Throttled)


# --- provided.* -------------------------------------------------------------------------------------------

BOOTSTRAP = f"""#!{sys.executable}
import json, os, urllib.request
api = "http://" + os.environ["AWS_LAMBDA_RUNTIME_API"] + "/2018-06-01/runtime/"
while True:
    event = urllib.request.urlopen(api + "invocation/next")  # a connection of its own each time
    told = {{"event": json.load(event), "handler": os.environ["_HANDLER"], "env": os.environ.get("AWS_EXECUTION_ENV")}}
    done = api + "invocation/" + event.headers["Lambda-Runtime-Aws-Request-Id"] + "/response"
    parts = iter([json.dumps(told).encode()])  # sent chunked
    urllib.request.urlopen(urllib.request.Request(done, parts, {{"Content-Type": "application/json"}}))
"""


PROGRAM = stat.S_IFREG | 0o755


def provided(archive: bytes) -> Function:
    code = unpack(archive)
    assert isinstance(code, Code)
    return Function(Settings(name="p", runtime="provided.al2023", handler="any.thing", timeout_ms=20_000), code)


def zipped(*entries: tuple[str, bytes, int]) -> bytes:
    """A zip of (name, content, Unix mode); mode 0 for none."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return out.getvalue()


def test_a_provided_runtime_runs_its_bootstrap() -> None:
    with closing(provided(zipped(("bootstrap", BOOTSTRAP.encode(), PROGRAM)))) as own:
        for n in range(2):
            assert answer(own, n) == {"event": n, "handler": "any.thing", "env": None}


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (("bootstrap", BOOTSTRAP.encode(), stat.S_IFREG | 0o644), r"fork/exec .*/bootstrap: permission denied"),
        (("bootstrap", b"\x00not a program", PROGRAM), r"fork/exec .*/bootstrap: exec format error"),
        (("other", b"", PROGRAM), r"Couldn't find valid bootstrap\(s\): \[.*/bootstrap\]"),
    ],
)
def test_a_bootstrap_that_cannot_run_is_named(entry: tuple[str, bytes, int], text: str) -> None:
    with closing(provided(zipped(entry))) as broken:
        outcome = called(broken)

    assert outcome.error is not None
    assert outcome.error.type == "Runtime.InvalidEntrypoint"
    assert re.search(text, outcome.error.message)


def test_a_variable_that_no_process_can_have_fails_the_call_not_the_host(host: Host) -> None:
    outcome = called(host(ECHO, variables={"A": "nul \0"}))
    assert outcome.ending is Ending.INIT_FAILED
    assert "embedded null byte" in str(outcome.error)


def test_an_unknown_runtime_is_refused_with_what_can_run() -> None:
    with pytest.raises(ValueError, match=r"'nodejs22.x' cannot run here; python3.x and provided"):
        Function(Settings(name="f", runtime="nodejs22.x"), Code(Path()))


# --- Code -------------------------------------------------------------------------------------------------


def test_a_zip_runs_from_a_read_only_folder_that_goes_with_the_function(tmp_path: Path) -> None:
    source = b"import pack.part\ndef handler(event, context): return [__file__, pack.part.x]"
    code = unpack(zipped(("app.py", source, 0), ("pack/__init__.py", b"", 0), ("pack/part.py", b"x = 5", 0o600)))
    assert isinstance(code, Code)
    modes = {path.stat().st_mode & 0o222 for path in [code.folder, *code.folder.rglob("*")]}
    settings = Settings(name="z", runtime=RUNTIME, handler="app.handler", timeout_ms=20_000)
    with closing(Function(settings, code, python=ours())) as from_zip:
        answered = answer(from_zip)

    assert modes == {0}
    assert answered == [str(code.folder / "app.py"), 5]
    assert not code.folder.exists()


def test_a_folder_is_left_as_it_is(host: Host, tmp_path: Path) -> None:
    here = host("import helper\ndef handler(event, context): return helper.x", variables={"A": "b"})
    (tmp_path / "task-0" / "helper.py").write_text("x = 1")
    assert answer(here) == 1
    here.close()

    assert sorted(path.name for path in (tmp_path / "task-0").iterdir()) == ["app.py", "helper.py"]


LINK = stat.S_IFLNK | 0o777


@pytest.mark.parametrize(
    "archive",
    [
        pytest.param(b"not a zip", id="garbage"),
        pytest.param(zipped(("app.py", b"x" * 900, 0))[:-30], id="cut off"),
        pytest.param(zipped(("../evil.py", b"", 0)), id="up"),
        pytest.param(zipped(("a/../../evil.py", b"", 0)), id="up from inside"),
        pytest.param(zipped(("/tmp/evil.py", b"", 0)), id="absolute"),
        pytest.param(zipped(("..\\evil.py", b"", 0)), id="backslash"),
        pytest.param(zipped(("c:evil.py", b"", 0)), id="drive"),
        pytest.param(zipped(("out", b"/etc", LINK)), id="link to outside"),
        pytest.param(zipped(("out", b"..", LINK), ("out/evil.py", b"", 0)), id="through a link"),
        pytest.param(zipped(("a", b"", 0), ("a/b", b"", 0)), id="file as folder"),
    ],
)
def test_a_zip_that_is_broken_or_reaches_outside_is_refused(archive: bytes) -> None:
    bad = unpack(archive)

    assert isinstance(bad, BadCode)
    assert bad.message.startswith("Could not unzip uploaded file.")
    assert bad.detail


def test_a_zip_that_unpacks_to_too_much_is_refused_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function, "UNPACKED_BYTES_MAX", 1000)
    assert unpack(zipped(("a", b"x" * 500, 0), ("b", b"x" * 500, 0))) == BadCode(
        "Unzipped size must be smaller than 1000 bytes", "found 1000 bytes"
    )


def test_a_damaged_entry_is_found() -> None:
    archive = bytearray(zipped(("app.py", os.urandom(300), 0)))
    archive[60] ^= 255
    assert isinstance(unpack(bytes(archive)), BadCode)


def test_links_inside_a_zip_are_kept() -> None:
    code = unpack(zipped(("lib/a.so.1", b"so", 0), ("lib/a.so", b"a.so.1", LINK)))
    assert isinstance(code, Code)
    assert (code.folder / "lib" / "a.so").read_bytes() == b"so"
    function.remove_tree(code.folder)


def test_refused_code_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    unpack(zipped(("app.py", b"", 0), ("out", b"/etc", LINK)))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert isinstance(code_in(tmp_path / "nope"), BadCode)
    assert code_in(tmp_path) == Code(tmp_path.resolve())


# --- Interpreters -----------------------------------------------------------------------------------------


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize(
    "script",
    ["#!/bin/sh\nexit 127\n", f'#!/bin/sh\nexec {sys.executable} "$@"\n', "#!/bin/sh\necho no json\n"],
    ids=["shim of no version", "another version", "no Python"],
)
def test_without_the_runtimes_interpreter_ours_is_used_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, script: str
) -> None:
    executable(tmp_path / "python3.99", script)
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        chosen = [python_for("python3.99") for _ in range(3)]

    assert {each.path for each in chosen} == {sys.executable}
    assert len(caplog.records) == 1
    assert "python3.99 is not on PATH" in caplog.text


def other_pythons() -> list[Path]:
    """Interpreters of other versions that are really there, the oldest first."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep), *map(str, Path.home().glob(".pyenv/versions/3.*/bin"))]
    names = [f"python3.{minor}" for minor in range(9, 15) if f"python3.{minor}" != RUNTIME]
    found = ([shutil.which(name, path=folder) for folder in folders if "shims" not in folder] for name in names)
    return [Path(next(filter(None, paths))) for paths in found if any(paths)]


@pytest.mark.heavy
@pytest.mark.parametrize("python", other_pythons(), ids=lambda path: path.name)
def test_a_function_runs_on_the_interpreter_that_its_runtime_names(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", f"{python.parent}{os.pathsep}{os.environ['PATH']}")
    # Our boto3 needs 3.10 or newer.
    boto3 = "import boto3" if python.name != "python3.9" else ""
    (tmp_path / "app.py").write_text(f"import sys\n{boto3}\ndef handler(event, context): return sys.version_info[:2]")
    settings = Settings(name="f", runtime=python.name, handler="app.handler", memory_mb=512, timeout_ms=20_000)
    with closing(Function(settings, Code(tmp_path))) as other:
        version = answer(other)

    assert python.name == f"python{version[0]}.{version[1]}"
    assert caplog.records == []


# --- Without processes ------------------------------------------------------------------------------------

OUTCOME = Outcome(
    request_id="r-1",
    ending=Ending.ANSWERED,
    payload=b"",
    error=None,
    started_ms=0,
    duration_ms=12.345,
    init_duration_ms=None,
    billed_ms=13,
    memory_used_mb=31,
    log_stream="s",
    lines=(),
)


def test_the_report_says_what_the_call_cost() -> None:
    assert report_line(OUTCOME, 128) == (
        "REPORT RequestId: r-1\tDuration: 12.35 ms\tBilled Duration: 13 ms\t"
        "Memory Size: 128 MB\tMax Memory Used: 31 MB\t"
    )


def test_a_timeout_is_stamped_in_utc_milliseconds() -> None:
    assert timeout_line(1_709_572_958_033, "r-1", 3_000) == (
        "2024-03-04T17:22:38.033Z r-1 Task timed out after 3.00 seconds"
    )


def test_log_streams_are_named_after_the_day_and_the_version() -> None:
    assert log_stream_name(1_709_572_958_033, "7", "ab" * 16) == f"2024/03/04/[7]{'ab' * 16}"


def test_the_tail_is_the_last_four_kilobytes_of_any_text() -> None:
    lines = tuple("é" * 50 for _ in range(100))
    long = environment.msgspec.structs.replace(OUTCOME, lines=lines)
    assert long.tail == ("é" * 50 + "\n").encode().__mul__(100)[-4096:]
    assert OUTCOME.tail == b""


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "Runtime exited without providing a reason"),
        (1, "Runtime exited with error: exit status 1"),
        (-signal.SIGKILL, "Runtime exited with error: signal: killed"),
        (-signal.SIGTERM, "Runtime exited with error: signal: terminated"),
    ],
)
def test_an_exit_is_told_in_lambdas_words(status: int, text: str) -> None:
    assert exit_text(status) == text


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x;note=1\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\nTrailer: 1\r\n\r\n"


@given(
    st.lists(st.tuples(st.sampled_from(["GET", "POST"]), st.binary(max_size=60), st.integers(0, 9)), max_size=4),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
)
def test_requests_read_the_same_wherever_their_bytes_are_cut(
    sent: list[tuple[str, bytes, int]], cuts: list[int]
) -> None:
    """A chunk size of 0 stands for Content-Length."""
    wire = b""
    for method, body, chunk in sent:
        size = b"Transfer-Encoding: chunked" if chunk else b"content-length: %d" % len(body)
        wire += b"%s /a/b HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (method.encode(), size)
        wire += chunked(body, chunk) if chunk else body
    reader, read = RequestReader(40), []
    at = 0
    for cut in cuts * (len(wire) + 1):
        if at >= len(wire):
            break
        read += reader.feed(wire[at : at + cut])
        at += cut

    assert [(request.method, request.path) for request in read] == [(method, "/a/b") for method, _, _ in sent]
    assert [request.size for request in read] == [len(body) for _, body, _ in sent]
    assert [request.body for request in read] == [body if len(body) <= 40 else b"" for _, body, _ in sent]


@pytest.mark.parametrize(
    "wire",
    [
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
    ],
)
def test_what_is_not_http_is_refused(wire: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        RequestReader(10).feed(wire)


def test_a_runtime_that_asks_to_continue_is_heard() -> None:
    reader = RequestReader(10)
    assert reader.feed(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n") == []
    assert reader.continue_due
    assert reader.feed(b"ab")[0].body == b"ab"


def test_every_response_has_the_content_type_without_which_awslambdaric_crashes() -> None:
    assert b"\r\nContent-Type: application/json\r\n" in environment.response(200, b"{}")
