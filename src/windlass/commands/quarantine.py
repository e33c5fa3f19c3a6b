"""`windlass quarantine ls` and `show`: what was rejected, by reason, and the records themselves.

Whatever a record holds is shown escaped: its bytes come from anywhere, and a terminal obeys what it is sent.
"""

import base64
import json
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from heapq import nlargest
from typing import Any, TextIO

import msgspec

from windlass.commands.clients import ClientProblem, client
from windlass.core.position import split
from windlass.core.rejected import Reason, Rejected
from windlass.quarantine import (
    WHERE_HELP,
    FolderQuarantine,
    MemoryQuarantine,
    NoQuarantine,
    Quarantine,
    QuarantineProblem,
    open_quarantine,
)

LATEST = 5
TEXT_CHARACTERS_MAX = 400


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """Which quarantine, and which of its records."""

    where: str
    reason: str | None = None
    endpoint_url: str | None = None
    region: str | None = None
    json: bool = False


def ls(options: Where, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """The records counted by reason, and the latest of them. Exit status: 0, or 2 when it could not be read."""
    out, err = out or sys.stdout, err or sys.stderr
    try:
        counted, latest = _count(_records(options))
    except (QuarantineProblem, ClientProblem) as error:
        print(f"windlass quarantine: {error}", file=err)
        return 2
    if options.json:
        reasons = [count.to_dict() for count in counted]
        total = sum(count.count for count in counted)
        answer = {"where": options.where, "total": total, "reasons": reasons, "latest": list(map(_plain, latest))}
        print(json.dumps(answer), file=out)
    elif counted:
        _print_counts(options, counted, latest, out)
    if not counted:
        print(_nothing_in(options), file=err if options.json else out)
    return 0


def show(
    options: Where,
    *,
    limit: int = 20,
    position: str | None = None,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """The records, newest first. Exit status: 0, or 2 when they could not be read."""
    out, err = out or sys.stdout, err or sys.stderr
    total = looked_at = 0

    def counted() -> Iterator[Rejected]:
        nonlocal total, looked_at
        for record in _records(options):
            looked_at += 1
            if position is None or _is_at(record, position):
                total += 1
                yield record

    try:
        records = nlargest(limit, counted(), key=_age)
    except (QuarantineProblem, ClientProblem) as error:
        print(f"windlass quarantine: {error}", file=err)
        return 2
    if options.json:
        answer = {"where": options.where, "total": total, "records": list(map(_plain, records))}
        print(json.dumps(answer), file=out)
    elif records:
        for record in records:
            print(_block(record), file=out)
        print(f"{len(records)} of {total} records", file=out)
    if not records:
        nothing = _nothing_in(options)
        if looked_at:
            nothing = f"no record at position {position} among the {looked_at} in quarantine at {options.where}"
        print(nothing, file=err if options.json else out)
    return 0


def _nothing_in(options: Where) -> str:
    """That nothing is there, and why, where nothing could be."""
    why = ""
    match open_quarantine(options.where):
        case NoQuarantine():
            why = ": what is rejected is dropped there, on purpose"
        case MemoryQuarantine():
            why = ": it ends with the process that rejects"
        case FolderQuarantine(folder=folder) if not folder.exists():
            why = f": there is no folder {folder}"
    of_reason = f" for the reason {options.reason}" if options.reason else ""
    return f"nothing in quarantine at {options.where}{of_reason}{why}"


def printable(data: bytes, characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    """Bytes as text that is safe to print: what is not UTF-8 or not printable is escaped, what is long is cut."""
    head = data[: characters_max * 4]
    text = "".join(map(_escaped, head.decode("utf-8", "backslashreplace")))
    if len(text) <= characters_max and len(head) == len(data):
        return text
    return f"{text[:characters_max]}… ({len(data)} bytes)"


def _escaped(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()


class _Count:
    """The records of one reason."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        self.count = 0
        self.first_ms = self.last_ms = 0

    def add(self, arrival_ms: int) -> None:
        """Count one more."""
        self.first_ms = min(self.first_ms, arrival_ms) if self.count else arrival_ms
        self.last_ms = max(self.last_ms, arrival_ms)
        self.count += 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "reason": self.reason.value,
            "count": self.count,
            "first_arrival": _iso(self.first_ms),
            "last_arrival": _iso(self.last_ms),
            "meaning": self.reason.meaning,
        }


def _records(options: Where) -> Iterator[Rejected]:
    if not options.where:
        msg = f"no place is given: name it as WHERE, or in WINDLASS_QUARANTINE; it is {WHERE_HELP}"
        raise QuarantineProblem(msg)
    if options.reason is not None and options.reason not in list(Reason):
        msg = f"there is no reason {options.reason!r}; the reasons are {', '.join(Reason)}"
        raise QuarantineProblem(msg)
    for record in open_at(options.where, options.endpoint_url, options.region).read():
        if options.reason in (None, record.reason.value):
            yield record


def open_at(where: str, endpoint_url: str | None, region: str | None) -> Quarantine:
    """The quarantine that a command names. Raises QuarantineProblem."""
    return open_quarantine(where, make_client=lambda: client("s3", endpoint_url=endpoint_url, region=region))


def _count(records: Iterable[Rejected]) -> tuple[list[_Count], list[Rejected]]:
    counts: dict[Reason, _Count] = {}

    def counted() -> Iterator[Rejected]:
        for record in records:
            counts.setdefault(record.reason, _Count(record.reason)).add(record.arrival_ms)
            yield record

    latest = nlargest(LATEST, counted(), key=_age)
    return sorted(counts.values(), key=lambda count: -count.count), latest


def _age(record: Rejected) -> tuple[int, str, str]:
    return record.arrival_ms, record.shard, record.position


def _is_at(record: Rejected, position: str) -> bool:
    """Whether the record is there: a sequence number, or one with its sub after a point, padded or not."""
    sequence, _, sub = position.partition(".")
    its_sequence, its_sub = split(record.position)
    return its_sequence == (sequence.lstrip("0") or "0") and sub in ("", str(its_sub), f"{its_sub:06d}")


def _print_counts(options: Where, counted: list[_Count], latest: list[Rejected], out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("reason", no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("first arrival", no_wrap=True)
    table.add_column("last arrival", no_wrap=True)
    table.add_column("meaning")
    for count in counted:
        first, last = _iso(count.first_ms)[:19] + "Z", _iso(count.last_ms)[:19] + "Z"
        table.add_row(count.reason.value, f"{count.count:,}", first, last, Text(count.reason.meaning))
    console = Console(file=out, width=None if out.isatty() else 160)
    console.print(table)
    print(f"\n{sum(count.count for count in counted):,} records at {options.where}; the latest:\n", file=out)
    for record in latest:
        print(_block(record), file=out)


def _block(record: Rejected) -> str:
    sequence, sub = split(record.position)
    detail = printable(record.detail.encode("utf-8", "backslashreplace"))
    head = f"{record.reason.value}  {_iso(record.arrival_ms)}  {record.shard}  {sequence}.{sub}"
    return f"{head}\n    {detail}\n    {printable(record.data) or '(no bytes)'}\n"


def _plain(record: Rejected) -> dict[str, Any]:
    sequence, sub = split(record.position)
    return {
        "reason": record.reason.value,
        "detail": record.detail,
        "shard": record.shard,
        "position": record.position,
        "sequence": sequence,
        "sub": sub,
        "arrival": _iso(record.arrival_ms),
        "arrival_ms": record.arrival_ms,
        "text": record.data.decode("utf-8", "backslashreplace"),
        "data": base64.b64encode(record.data).decode(),
    }


def _iso(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"
