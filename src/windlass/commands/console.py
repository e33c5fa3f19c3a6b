"""`windlass console`: a deployed pipeline in a browser on this machine, until Ctrl-C."""

import signal
import sys
import threading
import time
from functools import partial
from typing import TextIO

import msgspec

from windlass.commands.clients import ClientProblem, client, speaks_to_home
from windlass.console.aws_source import AT_HOME, ON_AWS, AwsSource
from windlass.console.problem import ConsoleProblem
from windlass.console.server import Console
from windlass.console.source import SourceProblem
from windlass.deploy.problem import DeployProblem
from windlass.deploy.stack import Stack


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says."""

    stack: str | None = None
    function: str | None = None
    table: str | None = None
    endpoint_url: str | None = None
    region: str | None = None
    port: int = 0


def run(options: Options, *, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Serve until Ctrl-C. Exit status: 0 ended, 2 could not begin."""
    out, err = out or sys.stdout, err or sys.stderr
    try:
        source = source_of(options)
        source.found()
        with Console(source, port=options.port) as console:
            print(f"{source.found().stream} in a browser: {console.url}  (Ctrl-C ends it)", file=out, flush=True)
            _until_ctrl_c()
    except (ClientProblem, ConsoleProblem, DeployProblem, SourceProblem) as problem:
        print(f"windlass console: {problem}", file=err)
        return 2
    return 0


def source_of(options: Options) -> AwsSource:
    """The source that the options name. Raises ClientProblem, DeployProblem."""
    make = partial(client, endpoint_url=options.endpoint_url, region=options.region)
    function = options.function
    if options.stack is not None:
        resources = Stack(options.stack, make, time.sleep).require()
        if "Function" not in resources:
            msg = f"the stack {options.stack} has no Function: is it one that windlass deployed? Or give --function"
            raise DeployProblem(msg)
        function = resources["Function"]
    return AwsSource(
        make,
        function=function,
        table=options.table,
        endpoint=options.endpoint_url or "",
        paces=AT_HOME if speaks_to_home(make("lambda")) else ON_AWS,
    )


def _until_ctrl_c() -> None:
    ended = threading.Event()
    had = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not ended.wait(0.2):
            pass
    finally:
        for number, handler in had.items():
            signal.signal(number, handler)
