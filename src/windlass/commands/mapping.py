"""`windlass mapping run`: an event source mapping of this machine, on any Kinesis endpoint, in front of a handler."""

import json
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from windlass.apps import AppProblem, load_handler
from windlass.commands.clients import ClientProblem, client
from windlass.commands.local import BadOption, assumptions
from windlass.local.destination import AwsDestination
from windlass.local.mapping import Answered, Failed, Invoke, Outcome
from windlass.local.mapping_settings import InvalidRequest, MappingSettings
from windlass.local.poller import (
    FileCheckpoints,
    InProcess,
    MemoryCheckpoints,
    PolledStream,
    Poller,
    wall_clock_ms,
)

FUNCTION_ARN = "arn:aws:lambda:{region}:{account}:function:{name}"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says. `request` has the members of CreateEventSourceMapping."""

    handler: str
    stream: str
    request: Mapping[str, Any]
    endpoint_url: str | None = None
    region: str | None = None
    checkpoints: Path | None = None
    assume: Sequence[str] = ()
    timeout_s: int = 60
    for_s: float | None = None
    until_settled: bool = False


def run(options: Options, *, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Poll until told to end. Exit status: 0 ended, 1 calls failed, 2 could not begin."""
    out, err = out or sys.stdout, err or sys.stderr
    try:
        poller = _poller(options, err)
        with _ctrl_c() as told:
            poller.start()
            print(f"polling {options.stream}; Ctrl-C ends it", file=err, flush=True)
            _wait(poller, options, told)
            poller.stop()
    except (AppProblem, BadOption, ClientProblem, InvalidRequest, ValueError, BotoCoreError, ClientError) as problem:
        print(f"windlass mapping run: {problem}", file=err)
        return 2
    counted = _counted(poller)
    print(json.dumps(counted), file=out)
    return 1 if counted["errors"] else 0


def _poller(options: Options, err: TextIO) -> Poller:
    handler = load_handler(options.handler)
    kinesis = client("kinesis", endpoint_url=options.endpoint_url, region=options.region)
    stream_arn = kinesis.describe_stream_summary(StreamName=options.stream)["StreamDescriptionSummary"]["StreamARN"]
    settings = _settings(options, stream_arn)

    def observe(call: Invoke, outcome: Outcome) -> None:
        print(_line(call, outcome), file=err, flush=True)

    return Poller(
        settings,
        PolledStream(kinesis, stream_arn),
        InProcess(handler, settings.function_arn, timeout_ms=options.timeout_s * 1000),
        deliver=AwsDestination(
            settings,
            lambda service: client(service, endpoint_url=options.endpoint_url, region=settings.region),
            now_ms=wall_clock_ms,
            new_id=lambda: str(uuid.uuid4()),
        )
        if settings.on_failure_arn
        else None,
        checkpoints=FileCheckpoints(options.checkpoints) if options.checkpoints else MemoryCheckpoints(),
        observe=observe,
    )


def _settings(options: Options, stream_arn: str) -> MappingSettings:
    region, account = stream_arn.split(":")[3:5]
    name = options.handler.rpartition(":")[2] or "handler"
    return MappingSettings.from_request(
        {**options.request, "EventSourceArn": stream_arn},
        uuid=str(uuid.uuid4()),
        function_arn=FUNCTION_ARN.format(region=region, account=account, name=name),
        role_arn=f"arn:aws:iam::{account}:role/local",
        now_ms=wall_clock_ms(),
        assumed=assumptions(options.assume),
    )


def _wait(poller: Poller, options: Options, told: threading.Event) -> None:
    if options.until_settled:
        while not told.is_set() and not poller.settle(timeout_s=0.5):
            pass
    else:
        told.wait(options.for_s)


def _line(call: Invoke, outcome: Outcome) -> str:
    window = f" {call.window.start_ms // 1000}-{call.window.end_ms // 1000}" if call.window else ""
    match outcome:
        case Answered():
            came = "ok"
        case Failed():
            came = f"{outcome.error_type}: {outcome.message}"
        case _:
            came = str(outcome)
    return f"{call.shard_id} {call.kind.value}{window} records={call.records} attempt={call.attempt} {came}"


def _counted(poller: Poller) -> dict[str, int]:
    counters = [shard.counters for shard in poller.status()]
    names = ("polled", "filtered_out", "invocations", "errors", "finals", "dropped", "on_failure_delivered")
    return {name: sum(getattr(each, name) for each in counters) for name in names}


@contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    told = threading.Event()
    had = signal.signal(signal.SIGINT, lambda *_: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGINT, had)
