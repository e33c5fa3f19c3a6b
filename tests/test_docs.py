"""The pages say what is so: their code runs, their links lead somewhere, the reference is the commands' own help."""

import re
from pathlib import Path

import pytest

from tests.cli_reference import PAGE, reference

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_command_reference_is_fresh():
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_the_code_in_the_readme_runs():
    blocks = python_blocks(ROOT / "README.md")
    scope = {"__name__": "readme"}
    for block in blocks:
        exec(block, scope)

    assert scope["trips"].describe()["totals"] == [
        {"name": "passenger", "kind": "sum", "path": ["passengerCount"]},
        {"name": "trips", "kind": "count", "path": None},
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())

    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_room_is_on_the_map():
    rooms = {path.name for path in (ROOT / "src" / "windlass").iterdir() if not path.name.startswith(("_", "py.typed"))}
    on_map = set(re.findall(r"^\| `([\w./]+?)/?` \|", ARCHITECTURE, re.MULTILINE))

    assert rooms - on_map == set()
    assert on_map - rooms == set()
