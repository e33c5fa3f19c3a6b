"""`windlass produce`: records from a source into a stream, with a bar while it runs and a summary after it."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from typing import TextIO

import msgspec

from windlass.produce.files import UnreadableFile
from windlass.produce.put import Packing, Produced, StreamError, produce
from windlass.produce.source import records
from windlass.produce.stream import open_stream


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command was asked for. `rate` 0 is as fast as the stream takes it; `for_s` and `count` may be open."""

    stream: str
    endpoint_url: str | None = None
    region: str | None = None
    count: int | None = None
    for_s: float | None = None
    rate: float = 1000.0
    seed: int = 1
    dialect: str = "kpl"
    aggregate: bool = False
    unclean: float = 0.0
    csv: Path | None = None
    loop: bool = False
    json: bool = False


def run(options: Options, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Produce; Ctrl-C ends it with its summary.

    Exit status: 0 when all was put, 1 when something failed, 2 when nothing could be put.
    """
    out, err = out or sys.stdout, err or sys.stderr
    stop = threading.Event()
    seen = Produced()
    trouble = ""
    with _stopped_by_signals(stop), _bar(options, err) as show:

        def on_progress(produced: Produced) -> None:
            nonlocal seen
            seen = produced
            show(produced)

        try:
            _produce(options, stop, on_progress)
        except (StreamError, UnreadableFile) as error:
            trouble = str(error)
        except KeyboardInterrupt:
            trouble = "interrupted twice; the last batch may or may not be in the stream"
    if trouble:
        print(f"windlass produce: {trouble}", file=err)
    if not trouble or seen.records or seen.failed:
        print(summary(seen), file=err if options.json else out)
    if options.json:
        print(_json(seen, trouble), file=out)
    if trouble and not (seen.records or seen.failed):
        return 2
    return 1 if trouble or seen.failed else 0


def summary(produced: Produced) -> str:
    """The counts in words, on a line or two."""
    pace = produced.records / produced.seconds if produced.seconds else 0.0
    parts = [
        f"{produced.records:,} records ({produced.clean:,} clean) in {produced.kinesis_records:,} Kinesis records",
        f"{produced.data_bytes:,} bytes",
        f"{produced.seconds:.1f} s",
        f"{pace:,.0f} records/s",
    ]
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in produced.unclean.items())
    trouble = ", ".join(f"{code} {count:,}" for code, count in produced.failures.items())
    lines = (
        ", ".join(parts),
        f"unclean on purpose: {kinds}" if kinds else "",
        f"put again after a refusal: {produced.retried:,}" if produced.retried else "",
        f"put again after a resharding: {produced.misplaced:,}" if produced.misplaced else "",
        f"NOT PUT: {produced.failed:,} ({trouble})" if produced.failed else "",
    )
    return "\n".join(line for line in lines if line)


def _produce(options: Options, stop: threading.Event, on_progress: Callable[[Produced], None]) -> None:
    stream = open_stream(options.stream, endpoint_url=options.endpoint_url, region=options.region)
    source = records(
        seed=options.seed,
        dialect=options.dialect,
        unclean=options.unclean,
        csv=options.csv,
        loop=options.loop,
    )
    produce(
        islice(source, options.count),
        stream,
        clock=time.monotonic,
        sleep=time.sleep,
        rng=Random(),
        rate=options.rate or None,
        for_s=options.for_s,
        packing=Packing() if options.aggregate else None,
        should_stop=stop.is_set,
        on_progress=on_progress,
    )


def _json(produced: Produced, trouble: str) -> str:
    fields = {**msgspec.to_builtins(produced), "clean": produced.clean, "error": trouble or None}
    return msgspec.json.encode(fields).decode()


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM sets the event; the second Ctrl-C interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar(options: Options, err: TextIO) -> Iterator[Callable[[Produced], object]]:
    """Shows the counts as they grow, on a terminal; elsewhere it stays silent."""
    if not err.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[records]:,} records, {task.fields[pace]:,.0f}/s, {task.fields[failed]:,} failed"),
        TimeElapsedColumn(),
    )
    total = options.count if options.count is not None else options.for_s
    with Progress(*columns, console=Console(file=err), transient=True) as bar:
        task = bar.add_task(options.stream, total=total, records=0, pace=0.0, failed=0)

        def show(seen: Produced) -> None:
            done = seen.records + seen.failed if options.count is not None else seen.seconds
            pace = seen.records / seen.seconds if seen.seconds else 0.0
            bar.update(task, completed=done, records=seen.records, pace=pace, failed=seen.failed)

        yield show
