"""The commands that package, deploy, watch and remove a stack: parse nothing, put `windlass.deploy` together, show."""

import json
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, TextIO

import msgspec

from windlass.apps import App, AppProblem, find_app
from windlass.commands.clients import ClientProblem, client, speaks_to_home
from windlass.deploy import cost, status
from windlass.deploy.package import Package, package
from windlass.deploy.problem import DeployProblem
from windlass.deploy.settings import FILE, Settings, check, read_settings
from windlass.deploy.source import Target
from windlass.deploy.stack import Change, Clients, Event, Request, Stack, Watcher, check_stack_name, clearly
from windlass.deploy.template import Format, render, shape_of


class Common(msgspec.Struct, frozen=True, kw_only=True):
    """What most of these commands are told."""

    stack: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    json: bool = False

    @property
    def clients(self) -> Clients:
        """boto3 clients, each made once."""
        made: dict[str, Any] = {}

        def of(service: str) -> Any:
            if service not in made:
                made[service] = client(service, endpoint_url=self.endpoint_url, region=self.region)
            return made[service]

        return of


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """A pipeline and how its stack is to be."""

    app: str
    settings: Path | None = None
    set: tuple[str, ...] = ()


def _out(text: str, to: TextIO | None = None) -> None:
    to = to or sys.stdout
    to.write(f"{text}\n")
    to.flush()


def _err(text: str) -> None:
    _out(text, sys.stderr)


def _guarded(name: str, act: Callable[[], int]) -> int:
    """Problems as one line and exit status 2, Ctrl-C as 130."""
    try:
        with clearly("asking AWS"):
            return act()
    except (AppProblem, ClientProblem, DeployProblem) as problem:
        _err(f"windlass {name}: {problem}")
        return 2
    except KeyboardInterrupt:
        _err(f"windlass {name}: interrupted")
        return 130


def _chosen(chosen: Chosen) -> tuple[App, Settings]:
    """The pipeline and its settings, checked. Raises DeployProblem for what is refused; warnings go to stderr."""
    app = find_app(chosen.app)
    file = chosen.settings
    if file is None and app.module.__file__:
        beside = Path(app.module.__file__).with_name(FILE)
        file = beside if beside.is_file() else None
    settings = read_settings(file, chosen.set)
    named = app.pipeline.table
    if isinstance(named, str) and settings.table is None:
        settings = msgspec.structs.replace(settings, table=named)  # a name like any other, to be free or to be kept
    findings = check(settings, shape_of(app.pipeline))
    for finding in findings:
        if finding.severity == "warning":
            _err(f"warning: {finding.text}")
    refused = [finding.text for finding in findings if finding.severity == "refused"]
    if refused:
        raise DeployProblem("; ".join(refused))
    return app, settings


# ── package, template ───────────────────────────────────────────────────────────────────────────────────────


def run_package(chosen: Chosen, out: Path, include: list[Path], *, as_json: bool) -> int:
    """Write the zip and say what is in it."""

    def act() -> int:
        app, settings = _chosen(chosen)
        made = package(app, settings.target, include=[*_included(app, settings), *include])
        _write(out, made.archive)
        _say_package(made, out, as_json=as_json)
        return 0

    return _guarded("package", act)


def _included(app: App, settings: Settings) -> list[Path]:
    folder = Path(app.module.__file__ or "").parent
    return [folder / name for name in settings.include]


def _write(out: Path, content: bytes) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(content)
    except OSError as error:
        msg = f"{out} cannot be written: {error.strerror}; choose another place with -o"
        raise DeployProblem(msg) from None


def _say_package(made: Package, out: Path, *, as_json: bool) -> None:
    for note in made.notes:
        _err(f"warning: {note}")
    if as_json:
        told = {
            "file": str(out),
            "sha256": made.sha256,
            "handler": made.handler,
            "bytes": len(made.archive),
            "unpacked_bytes": made.unpacked_bytes,
            "target": msgspec.to_builtins(made.target),
            "parts": msgspec.to_builtins(made.parts),
        }
        _out(json.dumps(told))
        return
    for part in sorted(made.parts, key=lambda part: -part.bytes):
        _out(f"{part.bytes / 1000:9,.0f} kB  {part.files:4} files  {part.name} {part.version}")
    _out(f"{out}: {len(made.archive) / 1e6:.1f} MB for Python {made.target.python} on {made.target.arch}")
    _out(f"handler {made.handler}, sha256 {made.sha256}")


def run_template(chosen: Chosen, format: Format, out: Path | None) -> int:  # noqa: A002
    """Write the template, to a file or standard output."""

    def act() -> int:
        app, settings = _chosen(chosen)
        text = render(app, settings, format)
        if out:
            _write(out, text.encode())
            _out(f"{out}: {len(text.splitlines())} lines")
        else:
            sys.stdout.write(text)
        return 0

    return _guarded("template", act)


# ── deploy, destroy ─────────────────────────────────────────────────────────────────────────────────────────


def run_deploy(chosen: Chosen, common: Common, *, code_bucket: str | None, replace: bool, dry: bool) -> int:
    """Package, upload, create or update."""

    def act() -> int:
        check_stack_name(common.stack)
        app, settings = _chosen(chosen)
        out = sys.stderr if common.json else sys.stdout
        stack = Stack(common.stack, common.clients, time.sleep)
        target = settings.target
        if speaks_to_home(common.clients("lambda")):  # where only what this machine runs can run
            target = Target.this_machine()
            settings = settings.at(target)
            _out(f"for this machine: Python {target.python}, {target.arch}", out)
        made = package(app, target, include=_included(app, settings))
        _out(f"{len(made.archive) / 1e6:.1f} MB of code, sha256 {made.sha256[:12]}, to {stack.region}", out)
        request = Request(
            stack=common.stack,
            body=render(app, settings, "cloudformation"),
            package=made,
            settings=settings,
            keys=app.pipeline.table_keys,
            change_set=uuid.uuid4().hex,
            code_bucket=code_bucket,
            replace=replace,
        )
        if dry:
            _out("dry run: nothing is made", out)
            if common.json:
                code = {"sha256": made.sha256, "bytes": len(made.archive)}
                _out(json.dumps({"stack": common.stack, "action": "none", "region": stack.region, "code": code}))
            return 0
        done = stack.deploy(request, _watcher(out))
        if common.json:
            _out(json.dumps(msgspec.to_builtins(done)))
        else:
            _say_deployed(done.stack, done.action, done.resources, common)
        return 0

    return _guarded("deploy", act)


def _say_deployed(stack: str, action: str, resources: dict[str, str], common: Common) -> None:
    _out(f"stack {stack} is {action}")
    for logical in ("Stream", "Function", "Table", "Bucket", "Mapping"):
        if logical in resources:
            _out(f"  {logical.lower():<9}{resources[logical]}")
    more = f" --endpoint-url {common.endpoint_url}" if common.endpoint_url else ""
    _out(f"next: windlass status --stack {stack}{more}, windlass windows --stack {stack}{more}")


class _Lines(Watcher):
    """A line per event: for files, pipes and terminals that are no such."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def step(self, text: str) -> None:
        _out(text, self._out)

    def changes(self, changes: list[Change]) -> None:
        for change in changes:
            again = ", replaced" if change.replacement == "True" else ""
            _out(f"  {change.action.lower():<7}{change.resource} ({change.type}{again})", self._out)

    def event(self, event: Event) -> None:
        reason = f": {event.reason}" if event.reason else ""
        _out(f"  {event.status:<28}{event.resource}{reason}", self._out)


class _Live(_Lines):
    """A list of resources that changes in place."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._rows: dict[str, Event] = {}
        self._drawn = 0

    def event(self, event: Event) -> None:
        self._rows[event.resource] = event
        width, columns = max(map(len, self._rows)), get_terminal_size().columns
        lines = []
        for row in self._rows.values():
            colour = 31 if row.failed else 32 if row.status.endswith("_COMPLETE") else 33
            state = f"{row.status}  {row.reason}" if row.failed else row.status
            room = max(0, columns - width - 5)  # a line that wraps would be two to go up
            lines.append(f"  {row.resource:<{width}}  \x1b[{colour}m{state[:room]}\x1b[0m")
        up = f"\x1b[{self._drawn}A\x1b[J" if self._drawn else ""
        self._out.write(up + "\n".join(lines) + "\n")
        self._out.flush()
        self._drawn = len(lines)

    def step(self, text: str) -> None:
        self._rows, self._drawn = {}, 0
        super().step(text)


def _watcher(out: TextIO) -> Watcher:
    return _Live(out) if out.isatty() else _Lines(out)


def run_destroy(common: Common, *, yes: bool, data: bool, ask: Callable[[str], bool]) -> int:
    """Delete the stack; its table and bucket only where they are empty or `data` is said."""

    def act() -> int:
        clients = common.clients
        stack = Stack(common.stack, clients, time.sleep)
        resources = stack.require(own=True)  # what was there before the stack is not its to delete
        table, bucket = resources.get("Table", ""), resources.get("Bucket", "")
        kept = _holding(table, bucket, clients)
        what = f"stack {common.stack} with stream {resources.get('Stream', 'none')} and what is still unread in it"
        if data and kept:
            what += f", AND {' and '.join(kept)}"
        if not yes and not ask(f"delete {what}?"):
            _err("nothing was deleted; --yes deletes without asking")
            if common.json:
                _out(json.dumps({"stack": common.stack, "deleted": [], "kept": list(filter(None, (table, bucket)))}))
            return 1
        stack.delete(_watcher(sys.stderr if common.json else sys.stdout))
        gone, left = _sweep(table, bucket, clients, data=data)
        told = {"stack": common.stack, "deleted": gone, "kept": left}
        _out(json.dumps(told) if common.json else _destroyed(common.stack, left))
        return 0

    return _guarded("destroy", act)


def _holding(table: str, bucket: str, clients: Clients) -> list[str]:
    items = status.items_at_most(table, clients) if table else 0
    objects = status.objects_at_most(bucket, clients) if bucket else 0
    return [
        *([f"table {table} with {_about(items)} items"] if items else []),
        *([f"bucket {bucket} with {_about(objects)} objects"] if objects else []),
    ]


def _about(count: int) -> str:
    return f"{count}" if count < 1000 else "1,000 or more"


def _sweep(table: str, bucket: str, clients: Clients, *, data: bool) -> tuple[list[str], list[str]]:
    """Delete what may go. Looked at again: the function has written until the stack was gone."""
    gone, left = [], []
    for name, holds, delete in (
        (table, status.items_at_most, status.delete_table),
        (bucket, status.objects_at_most, status.delete_bucket),
    ):
        if not name:
            continue
        if data or not holds(name, clients):
            delete(name, clients)
            gone.append(name)
        else:
            left.append(name)
    return gone, left


def _destroyed(stack: str, left: list[str]) -> str:
    if not left:
        return f"stack {stack} is deleted, and nothing is left of it"
    return f"stack {stack} is deleted; kept with their data: {', '.join(left)} (--data deletes them too)"


# ── status, logs, windows ───────────────────────────────────────────────────────────────────────────────────


def run_status(common: Common) -> int:
    """One look at a stack."""

    def act() -> int:
        stack = Stack(common.stack, common.clients, time.sleep)
        resources = stack.require()
        state = str(stack.describe().get("StackStatus", ""))
        found = status.look(common.stack, state, resources, common.clients, _now_ms())
        if common.json:
            _out(msgspec.json.encode(found).decode())
        else:
            _say_status(found)
        return 0

    return _guarded("status", act)


def _say_status(found: status.Status) -> None:
    age = "no figure" if found.iterator_age_ms is None else f"{found.iterator_age_ms / 1000:,.1f} s"
    lines = [
        ("stack", f"{found.stack}, {found.state}"),
        ("stream", found.stream),
        ("mapping", f"{found.mapping_state}; last result: {found.last_result}"),
        ("behind", age),
        ("calls", f"{found.calls:,} in the last hour, {found.errors:,} failed"),
        ("records", ", ".join(f"{found.counts[name]:,} {name.lower()}" for name in ("Received", "Clean", "Late"))),
        ("written", f"{found.counts['FlushedRows']:,} items; {found.counts['SkippedFlushes']:,} repeated"),
        ("rejected", ", ".join(f"{count:,} {reason}" for reason, count in found.rejected.items()) or "none"),
        ("quarantine", found.quarantine),
        ("table", f"{found.table}; {found.table_throttles:,} writes throttled"),
    ]
    for name, text in lines:
        _out(f"{name:<12}{text}")
    if found.counts["ConflictingFlush"]:
        _out(f"ATTENTION: {found.counts['ConflictingFlush']} flushes were in conflict with what is stored")


def run_logs(common: Common, *, follow: bool, minutes: float) -> int:
    """The function's log."""

    def act() -> int:
        resources = Stack(common.stack, common.clients, time.sleep).require()
        group = resources.get("FunctionLog", "")
        since_ms = _now_ms() - int(minutes * 60_000)
        line = None
        for line in status.log_lines(group, common.clients, since_ms=since_ms, follow=follow, sleep=time.sleep):
            if common.json:
                _out(msgspec.json.encode(line).decode())
            else:
                _out(f"{_clock(line.at_ms)}  {line.text}")
        if line is None:
            _err(f"no lines in the last {minutes:g} minutes")
        return 0

    return _guarded("logs", act)


def run_windows(common: Common, *, table: str | None, key: str | None, limit: int) -> int:
    """The table's items, newest first."""

    def act() -> int:
        if not table and not common.stack:
            msg = "say which items: --stack NAME or --table NAME"
            raise DeployProblem(msg)
        name = table
        if not name:
            resources = Stack(common.stack, common.clients, time.sleep).require()
            name = status.table_of(resources, common.clients)
        keys, items = status.newest(name, common.clients, limit=limit, key=key)
        if not items:
            others = status.some_keys(name, keys, common.clients) if key is not None else []
            _out(_no_items(name, key, others), sys.stderr if common.json else sys.stdout)
        if common.json:
            _out(json.dumps({"table": name, "items": items}, default=_jsonable))
        elif items:
            _say_items(items)
        return 0

    return _guarded("windows", act)


def _jsonable(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def _no_items(table: str, key: str | None, others: list[Any]) -> str:
    if not others:
        return f"table {table} holds no items yet"
    return f"table {table} holds no window of key {key}; keys that it holds: {', '.join(map(str, others))}"


def _say_items(items: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    fences = "applied#"
    names = list(dict.fromkeys(name for item in items for name in item if not name.startswith(fences)))
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        shown.add_column(name, no_wrap=True)
    shown.add_column("shards", justify="right")
    for item in items:
        shards = sum(name.startswith(fences) for name in item)
        shown.add_row(*(Text(str(item.get(name, ""))) for name in names), str(shards))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200)
    console.print(shown)


def _clock(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%H:%M:%S}.{ms % 1000:03d}Z"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# ── cost ────────────────────────────────────────────────────────────────────────────────────────────────────


def run_cost(load: cost.Load, *, measure: bool, as_json: bool) -> int:
    """What it would cost a month."""

    def act() -> int:
        table = cost.prices()
        chosen = load
        if measure:
            rate = cost.measure_core_records_s(load, time.perf_counter)
            chosen = msgspec.structs.replace(load, core_records_s=rate)
        found = cost.estimate(chosen, table)
        if as_json:
            _out(json.dumps(cost.to_dict(chosen, found, table)))
        else:
            _say_cost(chosen, found, table)
        return 0

    return _guarded("cost", act)


def _say_cost(load: cost.Load, found: cost.Estimate, table: cost.Prices) -> None:
    _out(f"{load.records_s:,.0f} records/s of {load.record_bytes} bytes, {load.keys:,} keys, {load.window_s} s windows")
    _out(f"  shards       {found.shards:>12,}   (the load needs {found.shards_needed:,})")
    _out(f"  calls        {found.calls_s:>12,.2f}/s  of {found.call_ms:.1f} ms at {load.memory_mb} MB, {load.arch}")
    _out(f"  GB-seconds   {found.gb_seconds_month:>12,.0f}   a month, at {load.core_records_s:,.0f} records/s a core")
    _out(f"  writes       {found.writes_s:>12,.2f}/s  {found.write_units_s:,.2f} units/s")
    _out(f"  item         {found.item_bytes:>12,}   bytes at most")
    for name, usd in found.usd.items():
        _out(f"{usd:>14,.2f} USD  {name}")
    _out(f"{found.usd_month:>14,.2f} USD  a month, prices of {table.region} as of {table.as_of}")
    for note in found.notes:
        _out(f"note: {note}")
