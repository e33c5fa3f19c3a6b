"""`windlass local`: the local AWS endpoint, in the foreground, until Ctrl-C."""

import ast
import inspect
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, get_args, get_type_hints

import msgspec

from windlass.local.mapping_settings import Assumptions

if TYPE_CHECKING:
    from windlass.local.cloud import Cloud

CONSOLE_PORT = 4567


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says."""

    port: int = 4566
    data: Path | None = None
    assume: Sequence[str] = ()
    quiet: bool = False
    console: int | None = None
    """The console's port, 0 for a free one; None for no console."""


class BadOption(Exception):
    """One line: what is wrong, what was found, what to do."""


def run(options: Options, *, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Serve until told to end. Exit status: 0 ended, 2 could not start."""
    out, err = out or sys.stdout, err or sys.stderr
    # Imported here: moto takes a second, and a mistyped option should not.
    try:
        assumed = assumptions(options.assume)
        from windlass.console.problem import ConsoleProblem
        from windlass.local.cloud import Cloud, CloudProblem
    except BadOption as problem:
        print(f"windlass local: {problem}", file=err)
        return 2
    logging.basicConfig(stream=err, level=logging.WARNING, format="windlass local: %(message)s")
    logging.getLogger("windlass").setLevel(logging.ERROR if options.quiet else logging.WARNING)

    def echo(function: str, line: str) -> None:
        if not options.quiet:
            print(f"{function} | {line}", file=out, flush=True)

    cloud = Cloud(port=options.port, data=options.data, assumed=assumed, echo=echo)
    with _told_to_end() as told, ExitStack() as stack:
        try:
            cloud.start()
            stack.callback(cloud.close)
            print(_greeting(cloud.endpoint_url, options.data), file=out, flush=True)
            if options.console is not None:  # after the greeting: what it needs takes a third of a second to import
                url = _console(cloud, options.console, stack)
                print(f"The console: {url}", file=out, flush=True)
        except (CloudProblem, ConsoleProblem) as problem:
            print(f"windlass local: {problem}", file=err)
            return 2
        while not told.wait(0.2):
            pass
    print("windlass local: ended", file=out, flush=True)
    return 0


def _console(cloud: "Cloud", port: int, stack: ExitStack) -> str:
    """Serve the console until the stack ends; its URL. Where the usual port is taken, a free one does."""
    from windlass.console.cloud_source import cloud_source
    from windlass.console.problem import ConsoleProblem
    from windlass.console.server import Console

    source = cloud_source(cloud)
    try:
        return stack.enter_context(Console(source, port=port)).url
    except ConsoleProblem:
        if port != CONSOLE_PORT:
            raise
        return stack.enter_context(Console(source)).url


def assumptions(given: Sequence[str]) -> Assumptions:
    """`name=value` pairs over the defaults. Raises BadOption."""
    named: dict[str, Any] = {}
    types = get_type_hints(Assumptions)
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or name not in types:
            wrong = f"there is no {name!r}" if separator else "write name=value"
            msg = f"--assume {text}: {wrong}; the names are {', '.join(types)}"
            raise BadOption(msg)
        try:
            named[name] = msgspec.convert(value, types[name], strict=False)
        except msgspec.ValidationError:
            msg = f"--assume {text}: {name} is {_kind(types[name])}; found {value!r}"
            raise BadOption(msg) from None
    return Assumptions(**named)


def _kind(type_: Any) -> str:
    return {bool: "true or false", int: "a whole number"}.get(type_) or " or ".join(get_args(type_))


def assumptions_help() -> str:
    """Each assumption on a line: its name, its default, what it means, what it may be."""
    types, meanings = get_type_hints(Assumptions), _meanings()
    defaults = {name: f"{name}={value}".lower() for name, value in msgspec.structs.asdict(Assumptions()).items()}
    width = max(map(len, defaults.values()))
    return "\n".join(
        f"{default:<{width}}  {meanings[name]} ({_kind(types[name])})" for name, default in defaults.items()
    )


def _meanings() -> dict[str, str]:
    """The text below each field in the source: Python keeps it nowhere else."""
    body = ast.parse(inspect.getsource(Assumptions)).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def _greeting(endpoint_url: str, data: Path | None) -> str:
    kept = f"It is kept in {data}, when it ends." if data else "Nothing is kept."
    return (
        f"AWS on this machine: {endpoint_url}, and https:// there too. {kept} Ctrl-C ends it.\n"
        f"  export AWS_ENDPOINT_URL={endpoint_url}\n"
        "  export AWS_DEFAULT_REGION=us-east-1 AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local"
    )


@contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """Set by Ctrl-C or a polite kill; a second one is not waited for."""
    told = threading.Event()

    def note(number: int, _frame: object) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()
        signal.signal(number, signal.default_int_handler)

    had = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in had.items():
            signal.signal(number, handler)
