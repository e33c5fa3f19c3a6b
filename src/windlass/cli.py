"""The commands: parse, call, print. What they do lives in the rooms that they call."""

import sys
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"windlass {version('windlass')}")
        raise typer.Exit


@app.callback()
def _windlass(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Exact windowed totals from Kinesis into DynamoDB."""


class DialectName(StrEnum):
    """How the lab's producers write a trip."""

    KPL = "kpl"
    SDK = "sdk"
    FLINK = "flink"
    MIXED = "mixed"


CsvOption = Annotated[
    Path | None,
    typer.Option(
        help="A file to send instead of drawn trips: NDJSON line by line, or a CSV's rows as objects (columns of "
        "numbers as numbers, empty cells left out). The partition key is the field id, else the first column."
    ),
]


@app.command()
def produce(
    stream: Annotated[str, typer.Option(help="The stream's name.")],
    endpoint_url: Annotated[str | None, typer.Option(help="A Kinesis endpoint; AWS when left out.")] = None,
    region: Annotated[
        str | None, typer.Option(help="The stream's region; the configured one, or us-east-1, when left out.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=0, help="Stop after so many records.")] = None,
    for_s: Annotated[
        float | None, typer.Option("--for", min=0, metavar="SECONDS", help="Stop after so many seconds.")
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0, help="Records a second; 0 for as fast as the stream takes them.")
    ] = 1000.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same records.")] = 1,
    dialect: Annotated[DialectName, typer.Option(help="How trips are written.")] = DialectName.KPL,
    aggregate: Annotated[
        bool, typer.Option("--aggregate/--plain", help="Pack records as the KPL does, or put each alone.")
    ] = False,
    unclean: Annotated[float, typer.Option(min=0, max=1, help="The share of records to spoil.")] = 0.0,
    csv: CsvOption = None,
    loop: Annotated[bool, typer.Option("--loop", help="Begin the file again when it ends.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the counts as one JSON object, on the last line.")
    ] = False,
) -> None:
    """Put taxi trips, or the records of a file, into a stream until told to stop; Ctrl-C ends with a summary."""
    from windlass.produce import command

    options = command.Options(
        stream=stream,
        endpoint_url=endpoint_url,
        region=region,
        count=count,
        for_s=for_s,
        rate=rate,
        seed=seed,
        dialect=dialect.value,
        aggregate=aggregate,
        unclean=unclean,
        csv=csv,
        loop=loop,
        json=json,
    )
    raise typer.Exit(command.run(options))


quarantine_app = typer.Typer(no_args_is_help=True, help="What was rejected: counts by reason, and the records.")
app.add_typer(quarantine_app, name="quarantine")

WhereArgument = Annotated[
    str,
    typer.Argument(
        envvar="WINDLASS_QUARANTINE", show_default=False, help="s3://bucket/prefix or a folder.", metavar="WHERE"
    ),
]
ReasonOption = Annotated[str | None, typer.Option(help="Only records that were rejected for this reason.")]
EndpointOption = Annotated[str | None, typer.Option(help="An AWS endpoint of your own; AWS when left out.")]
RegionOption = Annotated[str | None, typer.Option(help="The AWS region; the configured one when left out.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, on the last line.")]


@quarantine_app.command("ls")
def quarantine_ls(
    where: WhereArgument = "",
    reason: ReasonOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    json: JsonOption = False,
) -> None:
    """Count the rejected records by reason, and show the latest."""
    from windlass.commands import quarantine

    options = quarantine.Where(where=where, reason=reason, endpoint_url=endpoint_url, region=region, json=json)
    raise typer.Exit(quarantine.ls(options))


@quarantine_app.command("show")
def quarantine_show(
    where: WhereArgument = "",
    reason: ReasonOption = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many records, the newest.")] = 20,
    position: Annotated[
        str | None, typer.Option(help="Only the record there: a sequence number, or with its sub: 4959….3")
    ] = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    json: JsonOption = False,
) -> None:
    """Show rejected records, newest first: why each was rejected, and what it holds."""
    from windlass.commands import quarantine

    options = quarantine.Where(where=where, reason=reason, endpoint_url=endpoint_url, region=region, json=json)
    raise typer.Exit(quarantine.show(options, limit=limit, position=position))


@app.command()
def verify(
    app: Annotated[str, typer.Argument(help="The pipeline: path/app.py:name or package.module:name.", metavar="APP")],
    stream: Annotated[str, typer.Option(help="The stream's name or ARN.")],
    table: Annotated[str, typer.Option(help="The table's name.")],
    quarantine: Annotated[
        str | None,
        typer.Option(envvar="WINDLASS_QUARANTINE", help="Where rejected records are: s3://bucket/prefix or a folder."),
    ] = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="WHEN", help="Only windows from then on: 2026-01-31T12:00:00Z, now or now-2h."),
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only windows that end by then; leaves open windows out.")
    ] = None,
    in_turn: Annotated[
        bool, typer.Option("--in-turn", help="The mapping delivered by arrival, as the local one does: check lateness.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make the totals of windows again from the stream itself, and compare them with the table, item by item.

    Exit status: 0 exact, 1 different, 2 could not check, or there was nothing to.
    """
    from windlass.commands import verify as command

    options = command.Options(
        app=app,
        stream=stream,
        table=table,
        quarantine=quarantine,
        endpoint_url=endpoint_url,
        region=region,
        from_=from_,
        to=to,
        in_turn=in_turn,
        json=json,
    )
    raise typer.Exit(command.run(options))


@app.command()
def demo(
    app: Annotated[
        str | None, typer.Argument(help="A Windows pipeline, path/app.py:name; the taxi example when left out.")
    ] = None,
    for_s: Annotated[
        float | None,
        typer.Option("--for", min=0.1, metavar="SECONDS", help="Produce so long; 20, or to the end of the file."),
    ] = None,
    every: Annotated[int | None, typer.Option(min=1, max=900, metavar="SECONDS", help="The window's length.")] = 5,
    shards: Annotated[int, typer.Option(min=1, max=64, help="How many shards the stream has.")] = 4,
    rate: Annotated[float, typer.Option(min=0, help="Records a second; 0 for as fast as it goes.")] = 2000.0,
    dialect: Annotated[DialectName, typer.Option(help="How trips are written.")] = DialectName.MIXED,
    aggregate: Annotated[
        bool, typer.Option("--aggregate/--plain", help="Pack records as the KPL does, or put each alone.")
    ] = False,
    unclean: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="The share of records to spoil: 0.03 of drawn trips, 0 of a file."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same records.")] = 7,
    csv: CsvOption = None,
    console: Annotated[bool, typer.Option("--console", help="Show it in a browser while it runs.")] = False,
    console_port: Annotated[int, typer.Option(min=0, max=65535, help="Where; 0 for a free port.")] = 0,
    hold: Annotated[bool, typer.Option("--hold", help="Go on after the verdict, until Ctrl-C.")] = False,
    json: JsonOption = False,
) -> None:
    """Run the whole job on this machine: stream, producer, windows, table; then verify it, item by item.

    Exit status: 0 exact, 1 different, 2 could not run, or nothing was put. Needs only this package with its extras.
    """
    from windlass.commands import demo as command
    from windlass.local.demo import Options

    options = Options(
        every_s=every,
        for_s=for_s if for_s is not None or csv else 20.0,
        shards=shards,
        rate=rate,
        dialect=dialect.value,
        aggregate=aggregate,
        unclean=unclean,
        seed=seed,
        csv=csv,
    )
    port = console_port if console else None
    raise typer.Exit(command.run(app, options, as_json=json, console=port, hold=hold))


def _tell_assumptions(given: list[str] | None) -> list[str] | None:
    if given and "help" in given:
        from windlass.commands.local import assumptions_help

        print(assumptions_help())
        raise typer.Exit
    return given


AssumeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        is_eager=True,
        callback=_tell_assumptions,
        help="What Lambda does where AWS does not say: grace_ms=0, say; help lists them. Repeatable.",
    ),
]


@app.command()
def local(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on 127.0.0.1; 0 for a free one.")] = 4566,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep all of it there, and go on with it.")] = None,
    assume: AssumeOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not print the functions' logs.")] = False,
    console: Annotated[bool, typer.Option("--console/--no-console", help="Show it in a browser, too.")] = True,
    console_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where; 0 for a free port, as when 4567 is taken.")
    ] = 4567,
) -> None:
    """AWS on this machine, at one endpoint: streams, tables, functions that run, event source mappings that poll."""
    from windlass.commands import local as command

    at = console_port if console else None
    raise typer.Exit(command.run(command.Options(port=port, data=data, assume=assume or (), quiet=quiet, console=at)))


@app.command()
def console(
    stack: Annotated[str | None, typer.Option(help="The stack that windlass deployed.")] = None,
    function: Annotated[
        str | None, typer.Option(help="Or the function; the first that reads a stream when left out.")
    ] = None,
    table: Annotated[
        str | None, typer.Option(help="The table, where the function's environment does not name it.")
    ] = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on 127.0.0.1; 0 for a free one.")] = 0,
) -> None:
    """Show a deployed pipeline in a browser on this machine: its windows, its function, its trouble, live.

    Reads what AWS tells, at most every few seconds; the button that puts a record is the one thing that writes.
    """
    from windlass.commands import console as command

    options = command.Options(
        stack=stack, function=function, table=table, endpoint_url=endpoint_url, region=region, port=port
    )
    raise typer.Exit(command.run(options))


mapping_app = typer.Typer(no_args_is_help=True, help="Event source mappings of this machine, on any endpoint.")
app.add_typer(mapping_app, name="mapping")


class StartName(StrEnum):
    """Where a mapping begins to read."""

    TRIM_HORIZON = "TRIM_HORIZON"
    LATEST = "LATEST"


@mapping_app.command("run")
def mapping_run(
    handler: Annotated[str, typer.Argument(help="path/app.py:handler, or a pipeline.", metavar="APP")],
    stream: Annotated[str, typer.Option(help="The stream's name.")],
    consumer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Read through this enhanced fan-out consumer of the stream.")
    ] = None,
    endpoint_url: Annotated[
        str | None, typer.Option(help="The stream's endpoint; what the handler calls is for AWS_ENDPOINT_URL to say.")
    ] = None,
    region: RegionOption = None,
    starting_position: Annotated[StartName, typer.Option(help="Where to begin.")] = StartName.TRIM_HORIZON,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Begin then instead: 2026-01-31T12:00:00Z, or now-2h.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="At most so many records a call.")] = None,
    batching_window: Annotated[int | None, typer.Option(metavar="SECONDS", help="Gather records so long.")] = None,
    tumbling_window: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="The length of a window; a declaration's own when left out.")
    ] = None,
    parallelization_factor: Annotated[int | None, typer.Option(help="Calls at a time, per shard.")] = None,
    retries: Annotated[int | None, typer.Option(help="Give a batch up after so many; never when left out.")] = None,
    record_age: Annotated[int | None, typer.Option(metavar="SECONDS", help="Give up older records.")] = None,
    bisect: Annotated[bool, typer.Option("--bisect", help="Halve a batch that fails.")] = False,
    report_item_failures: Annotated[
        bool, typer.Option("--report-item-failures", help="Heed batchItemFailures; a Records pipeline's always are.")
    ] = False,
    on_failure: Annotated[str | None, typer.Option(metavar="ARN", help="Where discarded batches are told of.")] = None,
    filter_: Annotated[list[str] | None, typer.Option("--filter", metavar="JSON", help="A filter pattern.")] = None,
    timeout: Annotated[int, typer.Option(min=1, max=900, metavar="SECONDS", help="The function's timeout.")] = 60,
    checkpoints: Annotated[Path | None, typer.Option(metavar="FILE", help="Go on there the next time.")] = None,
    assume: AssumeOption = None,
    for_s: Annotated[float | None, typer.Option("--for", min=0, metavar="SECONDS", help="End after so long.")] = None,
    until_settled: Annotated[
        bool, typer.Option("--until-settled", help="End when all that is in the stream is processed.")
    ] = False,
) -> None:
    """Poll a stream and call a handler with its batches and windows, as Lambda does. Prints the counts at the end.

    Exit status: 0 ended, 1 some calls failed, or a shard could not be read at the end, 2 could not begin.
    """
    from windlass.commands import mapping as command

    asked = {
        "StartingPosition": starting_position.value,
        "BatchSize": batch_size,
        "MaximumBatchingWindowInSeconds": batching_window,
        "TumblingWindowInSeconds": tumbling_window,
        "ParallelizationFactor": parallelization_factor,
        "MaximumRetryAttempts": retries,
        "MaximumRecordAgeInSeconds": record_age,
        "BisectBatchOnFunctionError": bisect or None,
        "FunctionResponseTypes": ["ReportBatchItemFailures"] if report_item_failures else None,
        "DestinationConfig": {"OnFailure": {"Destination": on_failure}} if on_failure else None,
        "FilterCriteria": {"Filters": [{"Pattern": pattern} for pattern in filter_]} if filter_ else None,
    }
    options = command.Options(
        handler=handler,
        stream=stream,
        consumer=consumer,
        request={name: value for name, value in asked.items() if value is not None},
        since=since,
        endpoint_url=endpoint_url,
        region=region,
        checkpoints=checkpoints,
        assume=assume or (),
        timeout_s=timeout,
        for_s=for_s,
        until_settled=until_settled,
    )
    raise typer.Exit(command.run(options))


class ArchName(StrEnum):
    """Lambda's architectures."""

    ARM64 = "arm64"
    X86_64 = "x86_64"


class FormatName(StrEnum):
    """How a template is written."""

    CLOUDFORMATION = "cloudformation"
    SAM = "sam"


AppArgument = Annotated[
    str, typer.Argument(help="The pipeline: path/app.py:name or package.module:name.", metavar="APP")
]
StackOption = Annotated[str, typer.Option(help="The stack's name.")]
SettingsOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Names and settings; windlass.toml beside APP when left out.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="One setting over the file's. Repeatable.")
]


@app.command()
def package(
    app: AppArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The zip.")] = Path(
        "build/function.zip"
    ),
    arch: Annotated[
        ArchName | None, typer.Option(help="Lambda's architecture; that of the settings when left out.")
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Lambda's Python, 3.11 to 3.14; that of the settings when left out."),
    ] = None,
    include: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A further file to put beside the module. Repeatable.")
    ] = None,
    settings: SettingsOption = None,
    json: JsonOption = False,
) -> None:
    """Make the function's zip: your module, what it imports, wheels for Lambda. The same input gives the same bytes."""
    from windlass.commands import deploy as command

    over = (*((f'arch="{arch}"',) if arch else ()), *((f'python="{python}"',) if python else ()))  # text, not a number
    chosen = command.Chosen(app=app, settings=settings, set=over)
    raise typer.Exit(command.run_package(chosen, output, include or [], as_json=json))


@app.command()
def template(
    app: AppArgument,
    format: Annotated[FormatName, typer.Option(help="How it is written.")] = FormatName.CLOUDFORMATION,  # noqa: A002
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Standard output when left out.")
    ] = None,
    settings: SettingsOption = None,
    set_: SetOption = None,
) -> None:
    """Write the stack as a template that one can read, from the declaration."""
    from windlass.commands import deploy as command

    chosen = command.Chosen(app=app, settings=settings, set=tuple(set_ or ()))
    raise typer.Exit(command.run_template(chosen, format.value, output))


@app.command()
def deploy(
    app: AppArgument,
    stack: StackOption,
    settings: SettingsOption = None,
    set_: SetOption = None,
    code_bucket: Annotated[str | None, typer.Option(metavar="BUCKET", help="Where the zip goes.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take changes that replace a stream, table, bucket or mapping.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and package; make nothing.")] = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    json: JsonOption = False,
) -> None:
    """Create or update the stack: package, upload, change set; Ctrl-C takes it back."""
    from windlass.commands import deploy as command

    chosen = command.Chosen(app=app, settings=settings, set=tuple(set_ or ()))
    common = command.Common(stack=stack, endpoint_url=endpoint_url, region=region, json=json)
    raise typer.Exit(command.run_deploy(chosen, common, code_bucket=code_bucket, replace=replace, dry=dry_run))


@app.command()
def status(
    stack: StackOption, endpoint_url: EndpointOption = None, region: RegionOption = None, json: JsonOption = False
) -> None:
    """Look at a stack: its mapping, how far behind it is, what was settled, rejected and throttled."""
    from windlass.commands import deploy as command

    raise typer.Exit(
        command.run_status(command.Common(stack=stack, endpoint_url=endpoint_url, region=region, json=json))
    )


@app.command()
def logs(
    stack: StackOption,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    minutes: Annotated[float, typer.Option(min=0, help="Begin so far back.")] = 10.0,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each line of the log.")] = False,
) -> None:
    """Show the function's log."""
    from windlass.commands import deploy as command

    common = command.Common(stack=stack, endpoint_url=endpoint_url, region=region, json=json)
    raise typer.Exit(command.run_logs(common, follow=follow, minutes=minutes))


@app.command()
def windows(
    stack: Annotated[str, typer.Option(help="The stack whose table to read.")] = "",
    table: Annotated[str | None, typer.Option(help="A table, where there is no stack.")] = None,
    key: Annotated[str | None, typer.Option(help="Only the windows of this key.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many items.")] = 20,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    json: JsonOption = False,
) -> None:
    """Show the table's items, newest first. Without --key the whole table is read."""
    from windlass.commands import deploy as command

    common = command.Common(stack=stack, endpoint_url=endpoint_url, region=region, json=json)
    raise typer.Exit(command.run_windows(common, table=table, key=key, limit=limit))


def _confirmed(text: str) -> bool:
    try:
        return typer.confirm(text, err=True)
    except typer.Abort:  # Ctrl-C, or nobody there to answer
        print(file=sys.stderr)
        return False


@app.command()
def destroy(
    stack: StackOption,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data: Annotated[bool, typer.Option("--data", help="Delete the table and the bucket with what is in them.")] = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    json: JsonOption = False,
) -> None:
    """Delete a stack. A table or bucket that holds anything stays, unless --data says otherwise."""
    from windlass.commands import deploy as command

    common = command.Common(stack=stack, endpoint_url=endpoint_url, region=region, json=json)
    raise typer.Exit(command.run_destroy(common, yes=yes, data=data, ask=_confirmed))


@app.command()
def cost(
    rate: Annotated[float, typer.Option(min=0, metavar="N", help="Records a second.")],
    record_bytes: Annotated[int, typer.Option("--bytes", min=1, help="Of one record.")] = 422,
    keys: Annotated[int, typer.Option(min=1, help="Different keys in a window.")] = 2,
    window: Annotated[int, typer.Option(min=1, max=900, metavar="SECONDS", help="The window's length.")] = 30,
    shards: Annotated[
        int | None, typer.Option(min=1, help="As many as needed (on demand: at least 4) when left out.")
    ] = None,
    provisioned: Annotated[bool, typer.Option("--provisioned", help="Pay by shard, not on demand.")] = False,
    per_aggregate: Annotated[int, typer.Option(min=1, help="Records in one KPL aggregate; 1: plain.")] = 1,
    retention: Annotated[int, typer.Option(min=24, metavar="HOURS", help="How long the stream keeps records.")] = 24,
    memory: Annotated[int, typer.Option(min=128, max=10240, metavar="MB", help="The function's.")] = 1024,
    arch: Annotated[ArchName, typer.Option(help="Lambda's architecture.")] = ArchName.ARM64,
    core_rate: Annotated[
        float | None, typer.Option(min=1, metavar="N", help="Records a second on one core; measured when left out.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Estimate what a load costs a month: shards, calls, GB-seconds, write units, dollars."""
    from windlass.commands import deploy as command
    from windlass.deploy.cost import Load

    load = Load(
        records_s=rate,
        record_bytes=record_bytes,
        keys=keys,
        window_s=window,
        per_aggregate=per_aggregate,
        shards=shards,
        on_demand=not provisioned,
        retention_hours=retention,
        core_records_s=core_rate or 1.0,
        memory_mb=memory,
        arch=arch.value,
    )
    raise typer.Exit(command.run_cost(load, measure=core_rate is None, as_json=json))


@app.command()
def simulate(
    app: Annotated[str, typer.Argument(help="The pipeline: path/app.py:name or package.module:name.", metavar="APP")],
    seed: Annotated[int, typer.Option(min=0, help="The first run's seed; the others follow.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="How many runs, each on a seed of its own.")] = 100,
    records: Annotated[int, typer.Option(min=1, help="User records put in each run.")] = 2000,
    shards: Annotated[int, typer.Option(min=1, max=1000, help="Shards at the beginning.")] = 4,
    keys: Annotated[int, typer.Option(min=1, help="Different keys, beside those at the key's edges.")] = 10,
    faults: Annotated[str, typer.Option(metavar="all|none|a,b,…", help="What goes wrong; docs/simulator.md.")] = "all",
    json: JsonOption = False,
) -> None:
    """Run the pipeline in worlds of faults on a virtual clock, and hold every total against the stream.

    A failure is made smaller for some twenty seconds, and shown as a timeline. The same seed and options give the same
    run. Exit status: 0 every run was exact, 1 one was not, 2 nothing could be simulated.
    """
    from windlass.commands import simulate as command

    options = command.Options(
        app=app, seed=seed, runs=runs, records=records, shards=shards, keys=keys, faults=faults, json=json
    )
    raise typer.Exit(command.run(options))
