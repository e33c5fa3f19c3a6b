"""`windlass demo`: the main job on this machine, shown while it runs and verified when it ends."""

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from windlass.apps import AppProblem, load_app
from windlass.commands.verify import exit_status, show
from windlass.console.problem import ConsoleProblem
from windlass.core.schema import DeclarationError
from windlass.local import demo as machinery
from windlass.local.demo import Demo, NotSettled, Options, Progress
from windlass.pipelines import Windows
from windlass.produce.files import UnreadableFile
from windlass.produce.put import StreamError
from windlass.verify import Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

ITEMS_SHOWN = 8
REFRESH_S = 0.25


def run(
    app: str | None,
    options: Options,
    *,
    as_json: bool,
    console: int | None = None,
    hold: bool = False,
    out: TextIO | None = None,
    err: TextIO | None = None,
    before_verify: Callable[[Demo], object] = lambda _: None,
) -> int:
    """Run and show. Exit status: 0 exact, 1 different, 2 could not run, or nothing was put.

    `console` is the port to serve the console at, 0 for a free one. `hold`: when all is told, go on until Ctrl-C.
    """
    out, err = out or sys.stdout, err or sys.stderr
    told = err if as_json else out
    stop = threading.Event()
    watch = _watcher(err)
    stack = ExitStack()
    items: list[dict[str, Any]] = []

    def and_keep_items(demo: Demo) -> None:
        before_verify(demo)
        items.extend(demo.items())

    def tell(demo: Demo, verdict: Verdict) -> None:
        _print_items(demo.pipeline, items, told)
        show(verdict, told)
        if hold:
            _hold(err)
        stack.close()  # before what it looks at ends

    try:
        pipeline = _pipeline(app)
        if options.csv is not None and not options.csv.exists():
            msg = f"{options.csv}: there is no such file; name a CSV or NDJSON file that can be read"
            raise UnreadableFile(msg)
        with stack, _stopped_by_ctrl_c(stop):
            if console is not None:
                watch = _with_console(watch, console, stack, err)
            verdict, _ = machinery.run(
                pipeline, options, watch=watch, stop=stop, before_verify=and_keep_items, hold=tell
            )
    except (AppProblem, ConsoleProblem, DeclarationError, NotSettled, StreamError, UnreadableFile) as error:
        print(f"windlass demo: {error}", file=err)
        return 2
    except KeyboardInterrupt:
        print("windlass demo: interrupted twice; nothing was verified", file=err)
        return 130
    if as_json:
        print(json.dumps(verdict.to_dict()), file=out)
    return exit_status(verdict)


def _with_console(watch: Any, port: int, stack: ExitStack, err: TextIO) -> Any:
    """The same watcher, with the console served from when there is something to look at."""
    from windlass.console.demo_source import DemoSource
    from windlass.console.server import Console

    def watched(demo: Demo, done: threading.Event) -> None:
        served = stack.enter_context(Console(DemoSource(demo), port=port))
        print(f"the console: {served.url}", file=err, flush=True)
        watch(demo, done)

    return watched


def _hold(err: TextIO) -> None:
    """Until Ctrl-C, the first from now on."""
    print("holding; what is put now is processed as well. Ctrl-C ends it", file=err, flush=True)
    ended = threading.Event()
    on_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda *_: ended.set()) if on_main else None
    try:
        while not ended.wait(REFRESH_S):
            pass
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _pipeline(app: str | None) -> Windows:
    if app is None:
        from windlass.local.taxi import trips

        return trips
    pipeline = load_app(app)
    if not isinstance(pipeline, Windows):
        msg = f"{app} is a {type(pipeline).__name__} pipeline; the demo shows windows, so give it a Windows pipeline"
        raise AppProblem(msg)
    return pipeline


@contextmanager
def _stopped_by_ctrl_c(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C ends the producer, and what was put is settled and verified; the second one interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def on_signal(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# ── while it runs ───────────────────────────────────────────────────────────────────────────────────────────


def _watcher(err: TextIO) -> Callable[[Demo, threading.Event], None]:
    """Shows the windows filling, on a terminal; elsewhere it only waits."""

    def wait(demo: Demo, done: threading.Event) -> None:
        print(f"producing into windows of {demo.pipeline.plan.every_s} s at {demo.endpoint_url}", file=err, flush=True)
        while not done.wait(REFRESH_S):  # in turns, so that Ctrl-C is heard
            pass

    def live(demo: Demo, done: threading.Event) -> None:
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(file=err), refresh_per_second=4, transient=True) as screen:
            while not done.wait(REFRESH_S):
                screen.update(_picture(demo.progress(), demo.pipeline.plan.every_s))

    return live if err.isatty() else wait


def _picture(progress: Progress, every_s: int) -> "RenderableType":
    from rich.table import Table

    produced = progress.produced
    table = Table(
        title=f"{produced.records:,} records put, {progress.folded:,} folded, {progress.rejected:,} rejected, "
        f"{progress.flushed:,} rows flushed",
        title_justify="left",
        caption=f"windows of {every_s} s; Ctrl-C ends the producer",
        caption_justify="left",
        box=None,
    )
    for name in ("shard", "open window", "calls", "final calls", "records", "behind"):
        table.add_column(name, justify="left" if name in ("shard", "open window") else "right")
    for shard in progress.shards:
        counters = shard.counters
        table.add_row(
            shard.shard_id,
            f"{shard.window.start[11:19]} to {shard.window.end[11:19]}" if shard.window else "-",
            f"{counters.invocations:,}",
            f"{counters.finals:,}",
            f"{counters.polled:,}",
            f"{counters.behind_latest_ms:,} ms",
        )
    return table


def _print_items(pipeline: Windows, items: list[dict[str, Any]], out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table

    names = [pipeline.plan.folder.key_attribute, "windowStart", "windowEnd"]
    names += [column.attribute for column in pipeline.plan.folder.columns]
    table = Table(title=f"newest of {len(items):,} items", title_justify="left", box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold", min_width=20 if name.startswith("window") else None)
    table.add_column("shards", justify="right")
    for item in items[:ITEMS_SHOWN]:
        shards = sum(attribute.startswith("applied#") for attribute in item)
        table.add_row(*(str(item.get(name, "-")) for name in names), str(shards))
    Console(file=out, width=None if out.isatty() else 160, highlight=False, markup=False).print(table)
