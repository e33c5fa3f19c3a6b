"""The commands: parse, call, print. What they do lives in the rooms that they call."""

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Exact windowed totals from Kinesis into DynamoDB.",
)


def main() -> None:
    """The `windlass` command."""
    app()
