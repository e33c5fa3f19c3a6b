"""`windlass verify`: the second reading of a stream against its table and quarantine, shown."""

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import msgspec

from windlass.apps import AppProblem, load_app
from windlass.commands.clients import ClientProblem, client
from windlass.commands.quarantine import open_at
from windlass.quarantine import Quarantine, QuarantineProblem, line_of
from windlass.verify import CannotVerify, Verdict, verify
from windlass.verify.sources import check_keys, oldest_ms, read_stream, read_table, shard_ranges

SETTLING_MS = 180_000
"""How long after its end a window may be open: where no record follows, the mapping closes it by the clock."""
DIFFERENCES_SHOWN = 20
KEYS_SHOWN = 40


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is verified. `from_` and `to` are texts that `moment_ms` reads; None leaves an end open."""

    app: str
    stream: str
    table: str
    quarantine: str | None = None
    endpoint_url: str | None = None
    region: str | None = None
    from_: str | None = None
    to: str | None = None
    in_turn: bool = False
    json: bool = False


def run(options: Options, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Verify and show. Exit status: 0 exact, 1 different, 2 could not check, or there was nothing to."""
    out, err = out or sys.stdout, err or sys.stderr
    now_ms = int(time.time() * 1000)
    try:
        description = load_app(options.app).describe()
        verdict = _verify(options, description, now_ms)
    except (AppProblem, CannotVerify, ClientProblem, QuarantineProblem) as error:
        print(f"windlass verify: {error}", file=err)
        return 2
    shown = err if options.json else out
    show(verdict, shown)
    for note in _notes(verdict, options, description, now_ms):
        print(note, file=shown)
    if options.json:
        print(json.dumps(verdict.to_dict()), file=out)
    return exit_status(verdict)


def exit_status(verdict: Verdict) -> int:
    """0 exact, 1 different, 2 nothing was there to compare, which proves nothing."""
    return 2 if verdict.empty else 0 if verdict.exact else 1


def _notes(verdict: Verdict, options: Options, description: Mapping[str, Any], now_ms: int) -> Iterator[str]:
    """What differences may come of that are none of the pipeline's."""
    if verdict.late and not options.in_turn:
        yield f"{verdict.late:,} late: on the quarantine's word alone (--in-turn checks it)"
    kinds = {difference.kind for difference in verdict.differences}
    open_from_ms = now_ms - SETTLING_MS - description["every_s"] * 1000
    ends = [
        difference.window for difference in verdict.differences if difference.kind in ("missing_item", "wrong_total")
    ]
    if any(window and (moment_ms(window, now_ms) or 0) > open_from_ms for window in ends):
        yield "some windows ended less than 3 minutes ago and may not be settled yet: leave them out with --to now-3m"
    folder = options.quarantine if options.quarantine and "://" not in options.quarantine else None
    if folder and "not_quarantined" in kinds and not Path(folder).expanduser().exists():
        yield f"there is no folder {folder}: is the quarantine elsewhere?"


def _verify(options: Options, description: Mapping[str, Any], now_ms: int) -> Verdict:
    from_ms, to_ms = moment_ms(options.from_, now_ms), moment_ms(options.to, now_ms)
    quarantined = None
    if options.quarantine and options.quarantine != "none":
        quarantined = quarantine_lines(open_at(options.quarantine, options.endpoint_url, options.region))
    kinesis = client("kinesis", endpoint_url=options.endpoint_url, region=options.region)
    dynamodb = client("dynamodb", endpoint_url=options.endpoint_url, region=options.region)
    if description["kind"] == "windows":
        check_keys(dynamodb, options.table, description)
    if from_ms is None:
        from_ms = oldest_ms(kinesis, options.stream, now_ms=now_ms)
    return verify(
        description,
        read_stream(kinesis, options.stream, now_ms=now_ms, from_ms=from_ms, to_ms=to_ms),
        read_table(dynamodb, options.table),
        quarantined,
        from_ms=from_ms,
        to_ms=to_ms,
        ranges=shard_ranges(kinesis, options.stream),
        in_turn=options.in_turn,
    )


def quarantine_lines(quarantine: Quarantine) -> Iterator[Mapping[str, Any]]:
    """What a quarantine keeps, in the plain values that the second reading takes."""
    return (msgspec.structs.asdict(line_of(record)) for record in quarantine.read())


_AGO = re.compile(r"now(?:-(\d{1,9})([smhd]))?")
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def moment_ms(text: str | None, now_ms: int) -> int | None:
    """From `2026-01-31T12:00:00Z`, `now`, or `now-5m` (s, m, h, d). Raises CannotVerify."""
    if text is None:
        return None
    ago = _AGO.fullmatch(text)
    if ago:
        return now_ms - (int(ago[1]) * _UNIT_MS[ago[2]] if ago[1] else 0)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        msg = f"{text!r} is no moment: write 2026-01-31T12:00:00Z, now, or now-5m"
        raise CannotVerify(msg)
    return (moment - datetime.fromisoformat("1970-01-01T00:00:00Z")) // timedelta(milliseconds=1)


def show(verdict: Verdict, out: TextIO) -> None:
    """The verdict in a terminal: totals per key, the differences, the counts, and the last word."""
    _print_totals(verdict, out)
    for difference in verdict.differences[:DIFFERENCES_SHOWN]:
        print(f"  ✗ {_escaped(difference.text)}", file=out)
    if verdict.differences_total > DIFFERENCES_SHOWN:
        print(f"  … {verdict.differences_total - DIFFERENCES_SHOWN:,} more", file=out)
    print(summary(verdict), file=out)


def summary(verdict: Verdict) -> str:
    """The counts and the last word, on a few lines."""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in verdict.reasons.items())
    windows = f"{verdict.windows:,} window{'s' if verdict.windows != 1 else ''}"
    lines = [
        f"received {verdict.received:,} = clean {verdict.clean:,} + rejected {verdict.rejected:,} "
        f"+ late {verdict.late:,}" + (f" ({reasons})" if reasons else ""),
        f"{verdict.items:,} items of {verdict.items_expected:,} expected, in {windows}",
    ]
    if not verdict.quarantine:
        lines.append("no quarantine was given: what was rejected is not checked, and late records would count as clean")
    if verdict.empty:
        return "\n".join([*lines, "nothing to compare: no record and no item in this range"])
    differences = f"{verdict.differences_total:,} difference{'s' if verdict.differences_total != 1 else ''}"
    lines.append("exact" if verdict.exact else f"NOT exact: {differences}")
    return "\n".join(lines)


def _print_totals(verdict: Verdict, out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("key", "total", "expected", "found", ""):
        table.add_column(name, justify="right" if name in ("expected", "found") else "left")
    keys = list(dict.fromkeys([*verdict.expected, *verdict.found]))
    for key in keys[:KEYS_SHOWN]:
        expected, found = verdict.expected.get(key, {}), verdict.found.get(key, {})
        for total in dict.fromkeys([*expected, *found]):
            should, has = expected.get(total), found.get(total)
            mark = "✓" if should == has else "✗"
            table.add_row(Text(_escaped(key)), total, _shown(should), _shown(has), Text(mark))
    console = Console(file=out, width=None if out.isatty() else 120, highlight=False, markup=False)
    if keys:
        console.print(table)
    if len(keys) > KEYS_SHOWN:
        print(f"… {len(keys) - KEYS_SHOWN:,} more keys", file=out)


def _shown(value: int | str | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else value


def _escaped(text: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
