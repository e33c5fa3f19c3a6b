"""docs/deploy.md speaks of commands, options and settings that there are, and of figures that come out."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from windlass.cli import app
from windlass.deploy.cost import Load, estimate, prices
from windlass.deploy.settings import Settings, read_settings

DOC = Path("docs/deploy.md").read_text()
COMMANDS = re.findall(r"^    (windlass .*)$", DOC, re.MULTILINE)


def test_the_page_shows_every_command_of_its_subject():
    shown = {line.split()[1] for line in COMMANDS}
    assert {"deploy", "template", "package", "status", "logs", "windows", "destroy", "cost"} <= shown


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_on_the_page_can_be_given_as_it_stands(line):
    words = shlex.split(line)[1:]
    command = get_command(app)
    context = command.make_context("windlass", words, resilient_parsing=False)
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, list(rest), parent=context)
    assert context.params


def test_the_settings_on_the_page_are_settings(tmp_path):
    block = "\n".join(line[4:] for line in DOC.split("    [deploy]")[1].splitlines()[1:] if line.startswith("    "))
    block = block.split("windlass ")[0]
    file = tmp_path / "windlass.toml"
    file.write_text(f"[deploy]\n{block}")
    assert tomllib.loads(file.read_text())["deploy"]["stream"] == "input-stream"
    assert read_settings(file) != Settings()


def test_every_setting_named_on_the_page_is_one():
    for line in re.findall(r"--set (\w+)=", DOC):
        assert line in Settings.__struct_fields__


@pytest.mark.parametrize(
    ("shards", "kilobytes", "units"), re.findall(r"\| ([\d,]+) \| ([\d.]+) kB \| (?:about )?([\d,]+) \|", DOC)
)
def test_the_table_of_write_units_is_what_the_estimate_says(shards, kilobytes, units):
    shards, units = (int(text.replace(",", "")) for text in (shards, units))
    found = estimate(Load(records_s=1_000_000, keys=1, shards=shards), prices())
    assert found.item_bytes / 1000 == pytest.approx(float(kilobytes), rel=0.1)
    assert found.hottest_item_units == pytest.approx(units, rel=0.03)
