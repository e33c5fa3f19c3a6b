"""`make bench`: every contender on the same trips, in turns, each on one thread; ratios as a table, all of it as JSON.

The machine is never quiet, so each figure is the best of many rounds, the contenders take turns within a round (three
calls each), and what counts is the ratio within this run.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import contenders, load
from windlass.local.function import Code, Function, Settings, code_in

ROUNDS, IN_A_ROW = 20, 3
NO_GOALS: Mapping[str, float] = {}
OUT = Path("build/bench.json")


def best_us(run: Callable[[], Any], records: int, rounds: int = 1) -> float:
    """The best time of a run, in microseconds per record."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best / records * 1e6


def in_turns(runs: dict[str, Callable[[], Any]], records: int) -> dict[str, float]:
    """Microseconds per record of each, best of ROUNDS."""
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            found[name] = min(found[name], best_us(run, records, IN_A_ROW))
    return found


def handlers(sample: Callable[[], tuple[dict[str, Any], int]], names: list[str]) -> dict[str, float]:
    """The named contenders on an event."""
    event, records = sample()
    made = {name: getattr(contenders, name)() for name in names}
    return in_turns({name: (lambda run=run: run(event)) for name, run in made.items()}, records)


def with_bytewax(plain: dict[str, float]) -> dict[str, float]:
    """Bytewax and windlass in turns on the plain event's records; nothing new where Bytewax is not installed."""
    event, records = load.plain()
    try:
        run, flow_records = contenders.bytewax(event, 10)
    except ImportError:
        return plain
    mine = contenders.windlass()
    found = dict(plain, bytewax=float("inf"))
    for _ in range(ROUNDS):
        found["bytewax"] = min(found["bytewax"], best_us(run, flow_records))
        found["windlass"] = min(found["windlass"], best_us(lambda: mine(event), records, 5))
    return found


def runtimes(sample: Callable[[], tuple[dict[str, Any], int]]) -> dict[str, float]:
    """From an event's bytes to the answer's: our runtime loop, and Lambda's own around the lab's and our handler."""
    event, records = sample()
    data = load.as_bytes(event)
    made = {
        "windlass": contenders.windlass_runtime(),
        "windlass under awslambdaric": contenders.under_awslambdaric(contenders.windlass()),
        "lab under awslambdaric": contenders.under_awslambdaric(contenders.lab()),
    }
    return in_turns({name: (lambda run=run: run(data)) for name, run in made.items()}, records)


def invocation_ms() -> dict[str, float]:
    """What the local host adds to a warm call of a function that does nothing: median and ninth decile, in ms."""
    runtime = f"python3.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "app.py").write_text("def handler(event, context):\n    return {}\n")
        code = code_in(Path(folder))
        assert isinstance(code, Code), code
        function = Function(Settings(name="nothing", runtime=runtime, handler="app.handler"), code)
        try:
            times = [best_us(lambda: function.invoke(b"{}"), 1) / 1000 for _ in range(400)][100:]
        finally:
            function.close()
    deciles = statistics.quantiles(times, n=10)
    return {"median": statistics.median(times), "ninth_decile": deciles[8]}


IMPORTS = {
    "nothing": "pass",
    "windlass": "import sys; sys.path.insert(0, 'examples/taxi'); import app",
    "lab": "import base64, json, os, boto3\nfrom decimal import Decimal\n"
    "from aws_kinesis_agg.deaggregator import deaggregate_records\n",
}


def import_ms() -> dict[str, float]:
    """The handler's module, imported in fresh interpreters, in turns; the interpreter's own start is taken off."""

    found = dict.fromkeys(IMPORTS, float("inf"))
    for _ in range(10):
        for name, code in IMPORTS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            found[name] = min(found[name], (time.perf_counter() - start) * 1000)
    nothing = found.pop("nothing")
    return {name: ms - nothing for name, ms in found.items()}


def main() -> None:
    """Measure, print, write."""
    plain = with_bytewax(handlers(load.plain, ["windlass", "lab", "powertools", "floor"]))
    aggregated = handlers(load.aggregated, ["windlass", "lab", "floor"])
    coerce = handlers(load.plain, ["windlass_coerce", "lab", "powertools"])
    texts = handlers(load.texts, ["windlass_coerce", "powertools"])
    exact = handlers(load.plain, ["windlass_exact", "lab_exact", "powertools_exact"])
    raw, raw_aggregated = runtimes(load.plain), runtimes(load.aggregated)
    imports = import_ms()
    invocation = invocation_ms()
    figures = {
        "machine": {"python": platform.python_version(), "cpu": _cpu(), "trip_bytes": load.TRIP_BYTES},
        "plain_us": plain,
        "aggregated_us": aggregated,
        "coerce_us": coerce,
        "coerce_texts_us": texts,
        "exact_us": exact,
        "runtime_plain_us": raw,
        "runtime_aggregated_us": raw_aggregated,
        "import_ms": imports,
        "local_invocation_ms": invocation,
    }
    _print(plain, "one trip a record, event to response", {"lab": 6, "bytewax": 12}, 1.5)
    _print(aggregated, "KPL aggregates, event to response", {"lab": 6.5}, 1.5)
    _print(coerce, "coerce=True, as the taxi example has it, on numbers", {"lab": 6})
    _print(texts, "coerce=True on numbers written as strings (the lab's handler fails on them)")
    _print(exact, "sums of a float and a Decimal beside the others")
    _print(raw, "own runtime loop: bytes to bytes, one trip a record", {"lab under awslambdaric": 9})
    _print(raw_aggregated, "own runtime loop: bytes to bytes, KPL aggregates", {"lab under awslambdaric": 7})
    print("\nimport of the handler's module, ms")
    for name, ms in imports.items():
        print(f"  {name:<12}{ms:8.0f}   {imports['lab'] / ms:5.2f} x as fast as the lab's")
    told = f"median {invocation['median']:.2f} ms, ninth decile {invocation['ninth_decile']:.2f} ms (goal: at most 2)"
    print(f"\nlocal invocation of a warm function: {told}")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\nall figures: {OUT}")


def _print(found: dict[str, float], title: str, goals: Mapping[str, float] = NO_GOALS, floor_goal: float = 0) -> None:
    own = next(name for name in found if name.startswith("windlass"))
    mine = found[own]
    print(f"\n{title}\n  {'':<28}{'us/trip':>9}{'trips/s':>12}   windlass against it")
    for name, us in sorted(found.items(), key=lambda pair: pair[1]):
        ratio = ""
        if name == "floor":
            ratio = f"{mine / us:5.2f} x its time (goal: at most {floor_goal:g})"
        elif name != own:
            goal = f" (goal: {goals[name]:g})" if name in goals else ""
            ratio = f"{us / mine:5.2f} x as fast{goal}"
        print(f"  {name:<28}{us:9.3f}{1e6 / us:12,.0f}   {ratio}")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return statistics.mode(names) if names else platform.processor()


if __name__ == "__main__":
    main()
