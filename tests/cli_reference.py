"""docs/cli.md, made from the commands' own help: `python -m tests.cli_reference` writes it."""

import html
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"


def reference() -> str:
    """The page, as Typer writes it from the commands."""
    command = [sys.executable, "-m", "typer", "windlass.cli", "utils", "docs", "--name", "windlass"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={"TERM": "dumb", "LANG": "C.UTF-8"})
    return html.unescape(told.stdout).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
