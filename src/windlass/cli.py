"""The commands: parse, call, print. What they do lives in the rooms that they call."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Exact windowed totals from Kinesis into DynamoDB.",
)


@app.callback()
def _windlass() -> None:
    """Keeps a command's name necessary even while it is the only one."""


class DialectName(StrEnum):
    """How the lab's producers write a trip."""

    KPL = "kpl"
    SDK = "sdk"
    FLINK = "flink"
    MIXED = "mixed"


@app.command()
def produce(
    stream: Annotated[str, typer.Option(help="The stream's name.")],
    endpoint_url: Annotated[str | None, typer.Option(help="A Kinesis endpoint; AWS when left out.")] = None,
    region: Annotated[str, typer.Option(help="The stream's region.")] = "us-east-1",
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
    csv: Annotated[Path | None, typer.Option(help="A CSV or NDJSON file to send instead of drawn trips.")] = None,
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


def main() -> None:
    """The `windlass` command."""
    app()
