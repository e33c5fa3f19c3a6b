import sys
from pathlib import Path

import pytest

from windlass.apps import AppProblem, load_app, load_handler

PIPELINE = """
class Pipeline:
    def handler(self, event, context):
        return event

    def describe(self):
        return {"name": "trips"}

trips = Pipeline()
number = 5
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "app.py"
    path.write_text(PIPELINE)
    return path


@pytest.fixture(autouse=True)
def _own_path(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))


def test_a_pipeline_is_found_in_a_file(app: Path) -> None:
    assert load_app(f"{app}:trips").describe() == {"name": "trips"}


def test_a_relative_path_is_seen_from_the_working_folder(app: Path) -> None:
    assert load_app("app.py:trips").describe() == {"name": "trips"}
    assert load_app("./app.py:trips").describe() == {"name": "trips"}


def test_a_pipeline_is_found_in_a_module(tmp_path: Path) -> None:
    package = tmp_path / "package_of_this_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text(PIPELINE)
    assert load_app("package_of_this_test.module:trips").describe() == {"name": "trips"}


def test_the_only_pipeline_needs_no_name(app: Path) -> None:
    assert load_app(str(app)).describe() == {"name": "trips"}


def test_the_only_pipelines_handler_needs_no_name_either(app: Path) -> None:
    assert load_handler(str(app))({"a": 1}, None) == {"a": 1}
    assert load_handler("app.py:trips")({"a": 1}, None) == {"a": 1}


def test_a_file_may_import_its_neighbour(app: Path, tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_this_app.py").write_text(PIPELINE)
    app.write_text("from neighbour_of_this_app import trips")
    assert load_app(f"{app}:trips").describe() == {"name": "trips"}


def test_a_file_is_run_once(app: Path) -> None:
    assert load_app(f"{app}:trips") is load_app("app.py:trips")


def test_a_file_that_declares_records_resolves_their_types(app: Path) -> None:
    app.write_text(
        "from __future__ import annotations\n"
        "from datetime import timedelta\n"
        "from windlass import Count, Record, Windows\n"
        "class Trip(Record):\n    vendorId: int\n"
        'trips = Windows(Trip, key="vendorId", every=timedelta(seconds=30), totals={"n": Count()}, table="t")\n'
    )
    assert load_app("app.py").describe()["record"] == "Trip"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' names nothing: write path/app.py:name"),
        (":trips", "names nothing"),
        ("nowhere.py:trips", "there is no file nowhere.py; write path/app.py:name, seen from "),
        ("app.py:tripz", "app.py has no 'tripz'; pipelines there: trips"),
        ("app.py:number", "app.py:number is not a pipeline but int; pipelines there: trips"),
        ("app.py:Pipeline", "app.py:Pipeline is not a pipeline but type; pipelines there: trips"),
        ("no_such_module_at_all:trips", "the module no_such_module_at_all cannot be imported: ModuleNotFoundError: "),
        ("..:trips", "cannot be imported"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(app: Path, text: str, says: str) -> None:
    with pytest.raises(AppProblem) as raised:
        load_app(text)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("x = 1\nimport no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing' (line 2)"),
        ("1 / 0", "ZeroDivisionError: division by zero (line 1)"),
        ("raise SystemExit(3)", "SystemExit: 3 (line 1)"),
        ("def f(:\n", "SyntaxError: "),
        ("raise ValueError('two\\nlines')", "ValueError: two lines (line 1)"),
    ],
)
def test_a_file_that_fails_says_why_and_where_and_can_be_tried_again(app: Path, code: str, says: str) -> None:
    app.write_text(code)
    with pytest.raises(AppProblem) as raised:
        load_app("app.py:trips")
    assert says in str(raised.value)
    assert str(raised.value).startswith("app.py cannot be imported: ")
    app.write_text(PIPELINE)
    assert load_app("app.py:trips").describe() == {"name": "trips"}


def test_several_pipelines_need_a_name(app: Path) -> None:
    app.write_text(PIPELINE + "more = Pipeline()\n_private = Pipeline()\n")
    with pytest.raises(AppProblem, match=r"several pipelines or none \(trips, more\): write app.py:name"):
        load_app("app.py")
