"""A function's log, taken apart into calls.

The events of one log stream come one call after another: START, what the call wrote, END and REPORT. What a platform
writes between calls (INIT_START, say) belongs to the call that follows. A report in the log, as Windlass' telemetry
writes it, tells the call's shard, window and figures.

Source: Lambda Developer Guide, "Log format and content", and "Types of metrics for Lambda functions" for the figures.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from windlass.console.source import CallView
from windlass.console.values import moment_ms

CALLS_KEPT = 2_000
LINES_MAX = 200
_REQUEST = re.compile(r"RequestId: ([0-9a-f-]{8,})")
_FIELD = re.compile(r"(Duration|Billed Duration|Memory Size|Max Memory Used|Init Duration): ([\d.]+)")
_STATUS = re.compile(r"Status: (\w+)(?:\tError Type: (\S+))?")
_ERROR = re.compile(r"\[ERROR\]\t?(\S+Z\t\S+\t)?\s*([A-Za-z_][\w.]*): ?(.*)", re.DOTALL)
_TIMED_OUT = re.compile(r"\S+Z (\S+) (Task timed out after [\d.]+ seconds)")
_FIGURES = (
    "received",
    "clean",
    "late",
    "duplicates",
    "rejected",
    "flushed_rows",
    "skipped_flushes",
    "throttled",
    "state_bytes",
)


class _Open:
    """A call whose REPORT has not come."""

    def __init__(self, request_id: str, at_ms: int) -> None:
        self.request_id = request_id
        self.at_ms = at_ms
        self.lines: list[str] = []


class CallLog:
    """The last calls, from log events given in any number of readings."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._open: dict[str, _Open] = {}
        self._calls: OrderedDict[str, CallView] = OrderedDict()
        self._number = 0
        self.newest_ms = 0

    def add(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take events as FilterLogEvents gives them; those that were there before change nothing."""
        new = [event for event in events if event["eventId"] not in self._seen]
        for event in sorted(new, key=lambda event: int(event["timestamp"])):
            self._seen[event["eventId"]] = None
            self.newest_ms = max(self.newest_ms, int(event["timestamp"]))
            self._take(str(event["logStreamName"]), int(event["timestamp"]), str(event["message"]).rstrip("\n"))
        while len(self._seen) > 50 * CALLS_KEPT:
            self._seen.popitem(last=False)

    def calls(self, limit: int) -> list[CallView]:
        """The last calls that have ended, newest first."""
        newest = sorted(self._calls.values(), key=lambda call: call.started_ms, reverse=True)
        return newest[:limit]

    def _take(self, stream: str, at_ms: int, text: str) -> None:
        request = _REQUEST.search(text)
        if text.startswith("START ") and request:
            before = self._open.get(stream)
            self._open[stream] = _Open(request[1], at_ms)
            if before is not None and not before.request_id:
                self._open[stream].lines += before.lines
        open_ = self._open.setdefault(stream, _Open("", at_ms))
        if len(open_.lines) < LINES_MAX or text.startswith("REPORT "):
            open_.lines += text.split("\n")
        if text.startswith("REPORT ") and request:
            del self._open[stream]
            open_.request_id = request[1]
            self._number += 1
            self._keep(read_call(open_.request_id, open_.at_ms, open_.lines, self._number))

    def _keep(self, call: CallView) -> None:
        # A request may be reported twice, when its process ended and the platform tried once more.
        self._calls[f"{call.request_id} {call.number}"] = call
        while len(self._calls) > CALLS_KEPT:
            self._calls.popitem(last=False)


def read_call(request_id: str, at_ms: int, lines: list[str], number: int) -> CallView:
    """One call from its lines, the last of which is its REPORT."""
    fields = {name: float(value) for name, value in _FIELD.findall(lines[-1])}
    report = _report(lines)
    error_type, error_message = _error(request_id, lines)
    window_ms = moment_ms(report.get("window"))
    return CallView(
        number=number,
        request_id=request_id,
        started_ms=at_ms,
        duration_ms=fields.get("Duration", 0.0),
        billed_ms=int(fields.get("Billed Duration", 0)) or None,
        memory_mb=int(fields.get("Max Memory Used", 0)) or None,
        init_ms=fields.get("Init Duration"),
        shard_id=str(report.get("shard", "")),
        kind="final" if report.get("final") else "fold" if window_ms is not None else "",
        window=None if window_ms is None else (window_ms, window_ms),
        error_type=error_type,
        error_message=error_message,
        figures={name: report[name] for name in _FIGURES if report.get(name)},
        lines=tuple(lines),
    )


def _report(lines: list[str]) -> dict[str, Any]:
    """The report that telemetry wrote, if the call came so far and had something to tell."""
    for line in lines:
        if line.startswith("{") and '"shard"' in line:
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if isinstance(told, dict) and "message" in told:
                return told
    return {}


def _error(request_id: str, lines: list[str]) -> tuple[str, str]:
    """What a call failed of: its kind and its words; both empty where it did not."""
    status = _STATUS.search(lines[-1])
    failed = status is not None and status[1] in ("error", "timeout", "failure")
    for index, line in enumerate(lines):
        timed_out = _TIMED_OUT.fullmatch(line)
        if timed_out and timed_out[1] == request_id:
            return "Sandbox.Timedout", timed_out[2]
        found = _ERROR.match(line)
        if found and (failed or _is_unhandled(found, lines[index:])):
            return found[2], found[3].strip()
    if status and failed:
        kind = status[2] or status[1]
        words = next((line for line in lines if "Error" in line and not line.startswith("REPORT")), "")
        return kind, words
    return "", ""


def _is_unhandled(found: re.Match[str], lines: list[str]) -> bool:
    """Whether the runtime wrote the error: with a traceback, and without the stamp that a logger's line has."""
    return not found[1] and any("Traceback (most recent call last):" in line for line in lines)
