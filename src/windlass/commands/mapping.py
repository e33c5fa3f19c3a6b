"""`windlass mapping run`: an event source mapping of this machine, on any Kinesis endpoint, in front of a handler."""

import json
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from windlass.apps import AppProblem, load_handler
from windlass.commands.clients import ClientProblem, client
from windlass.commands.local import BadOption, assumptions
from windlass.commands.verify import moment_ms
from windlass.handler import RecordsHandler, WindowsHandler
from windlass.local.destination import AwsDestination
from windlass.local.mapping import Answered, Failed, Invoke, Outcome
from windlass.local.mapping_settings import REPORT_ITEM_FAILURES, InvalidRequest, MappingSettings
from windlass.local.poller import (
    FileCheckpoints,
    InProcess,
    MemoryCheckpoints,
    PolledStream,
    Poller,
    ShardStatus,
    SubscribedStream,
    wall_clock_ms,
)
from windlass.produce.put import StreamError
from windlass.produce.stream import TO_DO
from windlass.quarantine import QuarantineProblem
from windlass.settings import SettingMissing
from windlass.table import TableProblem, Throttled
from windlass.verify import CannotVerify

if TYPE_CHECKING:
    from rich.table import Table

REFRESH_S = 0.25
PUSHED_POLL_MS = 1  # what is pushed is waited for inside the read
TROUBLES_MAX = 5
TROUBLE_CHARS_MAX = 160
FUNCTION_ARN = "arn:aws:lambda:{region}:{account}:function:{name}"

_PROBLEMS = (
    AppProblem,
    BadOption,
    BotoCoreError,
    CannotVerify,
    ClientError,
    ClientProblem,
    InvalidRequest,
    OSError,
    QuarantineProblem,
    SettingMissing,
    StreamError,
    TableProblem,
    ValueError,
)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says. `request` has the members of CreateEventSourceMapping, but for a start `since`."""

    handler: str
    stream: str
    request: Mapping[str, Any]
    consumer: str | None = None
    since: str | None = None
    endpoint_url: str | None = None
    region: str | None = None
    checkpoints: Path | None = None
    assume: Sequence[str] = ()
    timeout_s: int = 60
    for_s: float | None = None
    until_settled: bool = False


def run(options: Options, *, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Poll until told to end. Exit status: 0 ended, 1 calls or the last reads failed, 2 could not begin."""
    out, err = out or sys.stdout, err or sys.stderr
    try:
        with ExitStack() as closed, _ctrl_c() as told:
            poller = _poller(options, err, closed)
            poller.start()
            print(f"polling {options.stream}; Ctrl-C ends it", file=err, flush=True)
            with _screen(poller, err) as refresh:
                _wait(poller, options, told, refresh)
                poller.stop()
                refresh()
    except _PROBLEMS as problem:
        print(f"windlass mapping run: {' '.join(str(problem).split())}", file=err)
        return 2
    counted = _counted(poller)
    unread = [f"{shard.shard_id}: {shard.unread}" for shard in poller.status() if shard.unread]
    if unread:
        told_of = "; ".join(unread[:TROUBLES_MAX])
        print(f"windlass mapping run: {len(unread)} shards could not be read at the end: {told_of}", file=err)
    print(json.dumps(counted), file=out)
    return 1 if counted["errors"] or unread else 0


def _poller(options: Options, err: TextIO, closed: ExitStack) -> Poller:
    """The poller, not started yet. What it reads with is closed with `closed`."""
    handler = load_handler(options.handler)
    options = _as_declared(options, handler)
    kinesis = client("kinesis", endpoint_url=options.endpoint_url, region=options.region)
    closed.callback(kinesis.close)
    settings, stream = _source(options, kinesis)
    _check_seams(handler)
    if isinstance(stream, SubscribedStream):
        closed.callback(stream.close)

    def observe(call: Invoke, outcome: Outcome) -> None:
        if not err.isatty():  # a terminal shows a table of the shards instead
            print(_line(call, outcome), file=err, flush=True)

    return Poller(
        settings,
        stream,
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


def _as_declared(options: Options, handler: Any) -> Options:
    """With what a declaration's calls need: its window, or answers that name what failed. Raises BadOption."""
    if not isinstance(handler, WindowsHandler | RecordsHandler):
        return options
    declared_s = handler.plan.every_s if isinstance(handler, WindowsHandler) else 0
    given_s = options.request.get("TumblingWindowInSeconds", declared_s)
    if given_s != declared_s:
        msg = (
            f"--tumbling-window {given_s} is not the window of {options.handler}, which declares "
            f"{f'{declared_s} s' if declared_s else 'none'}: leave it out"
        )
        raise BadOption(msg)
    needed: dict[str, Any] = {"TumblingWindowInSeconds": declared_s}
    if isinstance(handler, RecordsHandler):  # else what was not stored would pass for stored
        needed["FunctionResponseTypes"] = [REPORT_ITEM_FAILURES]
    return msgspec.structs.replace(options, request={**options.request, **needed})


def _check_seams(handler: Any) -> None:
    """What a declaration's first call would trip over. Raises SettingMissing, QuarantineProblem, TableProblem."""
    if not isinstance(handler, WindowsHandler | RecordsHandler):
        return
    try:
        with suppress(Throttled):
            handler.seams.table.check()
    except TableProblem as problem:
        cause = problem.__cause__  # whoever may write to a table need not be allowed to describe it
        if not (isinstance(cause, ClientError) and cause.response["Error"]["Code"] == "AccessDeniedException"):
            raise


def _source(options: Options, kinesis: Any) -> tuple[MappingSettings, PolledStream | SubscribedStream]:
    """The mapping's settings, and the stream as it reads it."""
    with _plainly(f"stream {options.stream!r}", kinesis):
        summary = kinesis.describe_stream_summary(StreamName=options.stream)["StreamDescriptionSummary"]
    stream_arn = summary["StreamARN"]
    if options.consumer is None:
        return _settings(options, stream_arn), PolledStream(kinesis, stream_arn)
    with _plainly(f"consumer {options.consumer!r} of stream {options.stream!r}", kinesis, consumer=True):
        described = kinesis.describe_stream_consumer(StreamARN=stream_arn, ConsumerName=options.consumer)
    consumer_arn = described["ConsumerDescription"]["ConsumerARN"]
    settings = _settings(options, consumer_arn)
    pushed = msgspec.structs.replace(settings, poll_ms=PUSHED_POLL_MS, poll_ms_min=PUSHED_POLL_MS)
    return pushed, SubscribedStream(kinesis, consumer_arn)


@contextmanager
def _plainly(what: str, kinesis: Any, *, consumer: bool = False) -> Iterator[None]:
    """What Kinesis refuses as a StreamError of one line that says what to do."""
    to_do = TO_DO | {"AccessDeniedException": "allow kinesis:Describe*, ListShards, GetShardIterator and GetRecords"}
    if consumer:
        to_do["ResourceNotFoundException"] = "register the consumer first or name another with --consumer"
    try:
        yield
    except ClientError as error:
        code, said = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        msg = f"{what} at {kinesis.meta.endpoint_url}: {code}: {' '.join(said.split()).rstrip('. ')}"
        raise StreamError(f"{msg}; {to_do[code]}" if code in to_do else msg) from None


def _settings(options: Options, source_arn: str) -> MappingSettings:
    region, account = source_arn.split(":")[3:5]
    name = options.handler.rpartition(":")[2] or "handler"
    request = {**options.request, "EventSourceArn": source_arn}
    since_ms = moment_ms(options.since, wall_clock_ms())
    if since_ms is not None:
        request |= {"StartingPosition": "AT_TIMESTAMP", "StartingPositionTimestamp": since_ms / 1000}
    return MappingSettings.from_request(
        request,
        uuid=str(uuid.uuid4()),
        function_arn=FUNCTION_ARN.format(region=region, account=account, name=name),
        role_arn=f"arn:aws:iam::{account}:role/local",
        now_ms=wall_clock_ms(),
        assumed=assumptions(options.assume),
    )


def _wait(poller: Poller, options: Options, told: threading.Event, refresh: Callable[[], None]) -> None:
    """Until Ctrl-C, or the time is over, or everything is processed. A loop that broke ends it; stop() raises why."""
    deadline = None if options.for_s is None else time.monotonic() + options.for_s
    while not (told.is_set() or poller.broken):
        refresh()
        left_s = REFRESH_S if deadline is None else min(REFRESH_S, deadline - time.monotonic())
        if left_s <= 0:
            return
        if not options.until_settled:
            told.wait(left_s)
        elif poller.settle(timeout_s=left_s):
            return


@contextmanager
def _screen(poller: Poller, err: TextIO) -> Iterator[Callable[[], None]]:
    """On a terminal, a table of the shards; gives what brings it up to date."""
    if not err.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=err), refresh_per_second=4) as live:
        yield lambda: live.update(_picture(poller.status()))


def _picture(shards: Sequence[ShardStatus]) -> "Table":
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    troubles = [f"{each.shard_id}: {' '.join(each.trouble.split())}" for each in shards if each.trouble]
    shown = [escape(trouble[:TROUBLE_CHARS_MAX]) for trouble in troubles[:TROUBLES_MAX]]
    table = Table(box=SIMPLE, caption="\n".join(shown), caption_justify="left")
    for heading in ("shard", "open window"):
        table.add_column(heading, no_wrap=True)
    for heading in ("records", "calls", "failed", "behind"):
        table.add_column(heading, no_wrap=True, justify="right")
    for shard in shards:
        counters = shard.counters
        open_window = f"{shard.window.start[11:19]}-{shard.window.end[11:19]}" if shard.window else ""
        table.add_row(
            shard.shard_id,
            "ended" if shard.done else open_window,
            f"{counters.polled:,}",
            f"{counters.invocations:,}",
            f"{counters.errors:,}",
            f"{counters.behind_latest_ms / 1000:,.1f} s",
        )
    return table


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
    names = (
        *("polled", "filtered_out", "invocations", "errors", "finals", "dropped", "on_failure_delivered"),
        "fetch_failures",
    )
    return {name: sum(getattr(each, name) for each in counters) for name in names}


@contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    told = threading.Event()
    had = signal.signal(signal.SIGINT, lambda *_: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGINT, had)
