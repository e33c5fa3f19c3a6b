"""The `windlass` command itself: its version, and what it says where packages are missing."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from windlass.__main__ import _EXTRAS

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def windlass(*arguments: str, without: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.modules[{without!r}] = None; from windlass.__main__ import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_the_version_is_told():
    told = windlass("--version")

    assert (told.returncode, told.stdout) == (0, f"windlass {version('windlass')}\n")


@pytest.mark.parametrize(
    ("package", "command", "extras"),
    [
        ("typer", ["--version"], "cli"),
        ("moto", ["demo"], "cli,local"),
        ("packaging", ["package", "examples/taxi/app.py:trips"], "cli,deploy"),
    ],
)
def test_a_missing_package_is_one_line_that_names_the_extra(package, command, extras):
    told = windlass(*command, without=package)

    assert told.returncode == 2
    assert told.stderr == (
        f"windlass: {package} is not installed, which this command needs: pip install 'windlass[{extras}]'\n"
    )


def test_every_extra_that_is_named_brings_what_it_is_named_for():
    for package, extra in _EXTRAS.items():
        assert any(each.startswith(package) for each in PROJECT["optional-dependencies"][extra]), package


def test_every_package_of_an_extra_is_named_where_it_is_missing():
    needed = {
        each.split("[")[0].split(">")[0]
        for extra in ("cli", "deploy", "local")
        for each in PROJECT["optional-dependencies"][extra]
    }
    assert needed == set(_EXTRAS)
