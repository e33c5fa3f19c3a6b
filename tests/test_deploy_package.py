"""The function's zip: what goes in, what stays out, the same bytes each time, and it runs from its zip alone."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from tests.builders import event, records, trip
from tests.sample_events import all_events
from tests.test_deploy_runtime import answers
from windlass.apps import find_app
from windlass.cli import app as cli
from windlass.deploy.package import WRAPPER, Package, package, wheel_files, zipped
from windlass.deploy.problem import DeployProblem
from windlass.deploy.source import DEPLOYED, RUNTIME_HAS, Target, closure, handler_name, own_files, read_source
from windlass.deploy.wheels import fetch, platforms

pytestmark = pytest.mark.heavy

TAXI = "examples/taxi/app.py:trips"
WHEELS = Path("build/wheels")

DECLARATION = """
from datetime import timedelta
from windlass import Count, Record, Windows
{imports}

class Trip(Record):
    vendorId: int

{name} = Windows(Trip, key="vendorId", every=timedelta(seconds=30), totals={{"trips": Count()}}, table="totals")
{more}
"""


def made(target: Target, app: str = TAXI, **more) -> Package:
    try:
        return package(find_app(app), target, cache=WHEELS, **more)
    except DeployProblem as problem:
        if "no answer from the package index" in str(problem):
            pytest.skip(str(problem))
        raise


def declared(folder: Path, imports: str = "", name: str = "trips", more: str = "handler = trips.handler") -> str:
    file = folder / "app.py"
    file.write_text(DECLARATION.format(imports=imports, name=name, more=more))
    return str(file)


@pytest.fixture(scope="module")
def arm() -> Package:
    return made(Target("arm64", "3.13"))


def names(made: Package) -> set[str]:
    return set(zipfile.ZipFile(BytesIO(made.archive)).namelist())


# ── what goes in ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_zip_holds_the_module_windlass_and_wheels_for_the_target(arm):
    inside = names(arm)
    assert {"app.py", "windlass/handler.py", "windlass/core/fold.py", WRAPPER} <= inside
    extensions = [name for name in inside if name.endswith(".so")]
    assert extensions
    assert all("aarch64" in name or "abi3" in name for name in extensions)
    assert arm.handler == "app.handler"


def test_nothing_that_is_for_home_or_that_lambda_has_goes_in(arm):
    inside = names(arm)
    tops = {name.split("/")[0] for name in inside}
    assert not tops & {"boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six.py", "urllib3", "moto", "typer"}
    rooms = {name.split("/")[1].removesuffix(".py") for name in inside if name.startswith("windlass/")}
    assert rooms == DEPLOYED
    assert not [name for name in inside if name.endswith((".pyc", ".pyi")) or "__pycache__" in name]


def test_the_bundle_stays_small(arm):
    own = next(part for part in arm.parts if part.name == "windlass")
    assert own.bytes < 300_000
    assert arm.unpacked_bytes < 8_000_000
    assert arm.unpacked_bytes == sum(entry.file_size for entry in zipfile.ZipFile(BytesIO(arm.archive)).infolist())


def test_what_windlass_imports_when_deployed_is_in_the_zip(arm):
    """Every room that is packed imports only rooms that are packed, and distributions that are."""
    parts = {part.name for part in arm.parts}
    assert {"msgspec", "protobuf", "pybase64", "aws-lambda-powertools"} <= parts


@pytest.mark.parametrize("arch", ["arm64", "x86_64"])
def test_a_second_package_of_the_same_input_has_the_same_sha256(arch, arm):
    first, second = made(Target(arch, "3.13")), made(Target(arch, "3.13"))
    assert first.sha256 == second.sha256 == hashlib.sha256(first.archive).hexdigest()


def test_a_fresh_process_on_another_day_in_another_time_zone_gives_the_same_sha256(arm, tmp_path):
    code = (
        "import sys; from pathlib import Path; from windlass.apps import find_app\n"
        "from windlass.deploy.package import package; from windlass.deploy.source import Target\n"
        f"print(package(find_app({TAXI!r}), Target('arm64', '3.13'), cache=Path({str(WHEELS)!r})).sha256)"
    )
    variables = os.environ | {"TZ": "Pacific/Auckland", "PYTHONHASHSEED": "7", "HOME": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables)
    assert told.stdout.strip() == arm.sha256


def test_a_zip_depends_on_names_and_contents_alone():
    a = zipped({"b.py": b"2", "a.py": b"1"})
    assert a == zipped({"a.py": b"1", "b.py": b"2"})
    entries = zipfile.ZipFile(BytesIO(zipped({"x.so": b"", "a.py": b"", WRAPPER: b""}))).infolist()
    modes = {entry.filename: oct(entry.external_attr >> 16 & 0o777) for entry in entries}
    assert modes == {"a.py": "0o644", WRAPPER: "0o755", "x.so": "0o755"}
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert [entry.filename for entry in entries] == ["a.py", WRAPPER, "x.so"]


# ── the user's code ─────────────────────────────────────────────────────────────────────────────────────────


def test_modules_and_packages_beside_it_come_along_and_nothing_else(tmp_path):
    (tmp_path / "helper.py").write_text("import deep\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "__init__.py").write_text("")
    (tmp_path / "deep" / "data.json").write_text("{}")
    (tmp_path / "deep" / "__pycache__").mkdir()
    (tmp_path / "deep" / "__pycache__" / "x.pyc").write_bytes(b"")
    (tmp_path / "unrelated.py").write_text("")
    app = declared(tmp_path, "def later():\n    import helper")
    files = read_source(find_app(app), Target()).files
    assert set(files) == {"app.py", "helper.py", "deep/__init__.py", "deep/data.json"}


def test_a_module_without_a_name_for_its_handler_gets_one(tmp_path):
    app = find_app(declared(tmp_path, more=""))
    source = read_source(app, Target())
    assert handler_name(app) == source.handler == "windlass_function.handler"
    assert source.files["windlass_function.py"] == b"from app import trips\n\nhandler = trips.handler\n"


def test_what_is_imported_and_installed_comes_at_its_installed_version(tmp_path):
    from importlib.metadata import version

    app = find_app(declared(tmp_path, "def later():\n    import rich.table"))
    found = read_source(app, Target()).distributions
    assert found["rich"] == version("rich")
    assert "markdown-it-py" in found  # and what that needs


def test_imports_for_types_and_of_what_lambda_has_bring_nothing(tmp_path):
    imports = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rich\nimport boto3, json, dateutil"
    source = read_source(find_app(declared(tmp_path, imports)), Target())
    assert "rich" not in source.distributions
    assert not RUNTIME_HAS & source.distributions.keys()


def test_an_import_that_is_installed_nowhere_is_told(tmp_path):
    imports = "try:\n    import no_such_speedup\nexcept ImportError:\n    pass"
    source = read_source(find_app(declared(tmp_path, imports)), Target())
    expected = "app.py line 5 imports no_such_speedup, which is not installed here: it is not packaged"
    assert source.notes == [expected]


def test_a_declaration_that_imports_what_stays_at_home_is_refused(tmp_path):
    with pytest.raises(
        DeployProblem, match=r"app\.py line 4 imports windlass\.produce\.trips.*, which is not deployed"
    ):
        read_source(find_app(declared(tmp_path, "from windlass.produce.trips import trips as t")), Target())


@pytest.mark.parametrize("name", ["json.py", "my-app.py"])
def test_a_module_that_cannot_be_one_in_the_function_is_refused(tmp_path, name):
    app = Path(declared(tmp_path)).rename(tmp_path / name)
    with pytest.raises(DeployProblem, match="rename"):
        read_source(find_app(f"{app}:trips"), Target())


def test_markers_are_evaluated_for_the_target():
    assert "typing-extensions" in closure(["aws-lambda-powertools"], Target())
    assert not RUNTIME_HAS & closure(["aws-lambda-powertools", "boto3"], Target()).keys()


def test_an_extra_that_is_required_brings_what_it_requires(tmp_path, monkeypatch):
    required = {
        "needs": ['withx[Fast_Path]; python_version >= "3"', 'unasked; extra == "more"'],
        "withx": ['speedup[deep]; extra == "fast-path"', 'slow; extra == "other"', "plain"],
        "speedup": ['withx; extra == "deep"', 'below; extra == "deep" and sys_platform == "linux"'],
        **dict.fromkeys(("plain", "below", "slow", "unasked"), ()),
    }
    for name, lines in required.items():
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.3\nName: {name}\nVersion: 1\n"
        (info / "METADATA").write_text(head + "".join(f"Requires-Dist: {line}\n" for line in lines))
    monkeypatch.syspath_prepend(tmp_path)
    assert set(closure(["needs"], Target())) == {"needs", "withx", "speedup", "plain", "below"}


def test_every_file_of_windlass_that_is_deployed_is_python():
    for name, _ in own_files():
        assert name.endswith(".py")
        assert name.split("/")[1].removesuffix(".py") in DEPLOYED


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_parts_with_one_name_are_refused(tmp_path, arm):
    (tmp_path / "typing_extensions.py").write_text("")
    with pytest.raises(DeployProblem, match=r"typing_extensions\.py comes from your code and from typing-extensions"):
        made(Target("arm64", "3.13"), include=[tmp_path / "typing_extensions.py"])


def test_what_is_larger_than_lambda_takes_is_refused_and_says_what_is_large(monkeypatch, arm):
    monkeypatch.setattr("windlass.deploy.package.UNPACKED_BYTES_MAX", 1_000_000)
    with pytest.raises(DeployProblem, match=r"unpacked it is 6 MB, .* largest are aws-lambda-powertools 4 MB"):
        made(Target("arm64", "3.13"))


def test_a_dependency_without_a_wheel_for_the_target_is_named(tmp_path):
    with pytest.raises(DeployProblem, match=r"msgspec 0\.1\.99 has no wheel for Python 3\.13 on arm64 Linux: choose"):
        fetch({"msgspec": "0.1.99"}, Target("arm64", "3.13"), tmp_path)
    assert not list(tmp_path.rglob("*.whl"))


def test_a_further_file_that_is_not_there_is_refused(arm):
    with pytest.raises(DeployProblem, match=r"--include no\.json: there is no such file"):
        made(Target("arm64", "3.13"), include=[Path("no.json")])


def test_wheels_for_older_runtimes_are_for_their_older_glibc():
    assert "manylinux_2_28_aarch64" in platforms(Target("arm64", "3.13"))
    assert "manylinux_2_28_x86_64" not in platforms(Target("x86_64", "3.11"))


def test_a_wheels_data_folders_lie_where_they_are_installed(tmp_path):
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("w-1.data/purelib/w/a.py", "w-1.data/scripts/w", "w/b.pyi", "w-1.dist-info/RECORD", "../x.py"):
            archive.writestr(name, b"")
        archive.writestr("w-1.dist-info/licenses/LICENSE", b"")
    assert [name for name, _ in wheel_files(wheel)] == ["w/a.py", "w-1.dist-info/licenses/LICENSE"]


def with_files(folder: Path, monkeypatch, *include: str) -> set[str]:
    monkeypatch.setattr("windlass.deploy.package.fetch", lambda distributions, *_: [])
    monkeypatch.setattr("windlass.deploy.package.read_source", _without_distributions)
    return names(package(find_app(declared(folder)), Target(), include=[folder / name for name in include]))


def _without_distributions(app, target):
    return msgspec.structs.replace(read_source(app, target), distributions={})


def test_further_files_keep_their_paths_from_the_declarations_folder(tmp_path, monkeypatch):
    home = tmp_path / "home"
    for name in ("home/a/zones.csv", "home/b/zones.csv", "elsewhere.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    inside = with_files(home, monkeypatch, "a/zones.csv", "b/zones.csv", "../elsewhere.csv")
    assert {"a/zones.csv", "b/zones.csv", "elsewhere.csv"} <= inside


def test_a_further_file_is_beside_the_module_of_a_package(tmp_path, monkeypatch):
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").write_text("")
    declared(tmp_path / "flows")
    (tmp_path / "zones.csv").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("windlass.deploy.package.fetch", lambda distributions, *_: [])
    monkeypatch.setattr("windlass.deploy.package.read_source", _without_distributions)
    assert "flows/zones.csv" in names(package(find_app("flows.app:trips"), Target(), include=[tmp_path / "zones.csv"]))


def test_a_further_file_in_the_place_of_another_is_refused(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "app.py").write_text("not the declaration")
    with pytest.raises(DeployProblem, match=r"--include .*app\.py: the zip has another app\.py already: rename one"):
        with_files(home, monkeypatch, "../app.py")
    assert "app.py" in with_files(home, monkeypatch, "app.py")  # the same file again is no other


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("over", "arch", "python"),
    [([], "x86_64", "3.12"), (["--arch", "arm64"], "arm64", "3.12"), (["--python", "3.13"], "x86_64", "3.13")],
)
def test_the_command_packages_for_the_settings_unless_told_otherwise(tmp_path, monkeypatch, over, arch, python):
    asked = []

    def package_only_asked_for(app, target, *, include):
        asked.append((target, include))
        raise DeployProblem("enough")

    monkeypatch.setattr("windlass.commands.deploy.package", package_only_asked_for)
    app = declared(tmp_path)
    (tmp_path / "windlass.toml").write_text('[deploy]\narch = "x86_64"\npython = "3.12"\ninclude = ["zones.csv"]\n')
    CliRunner().invoke(cli, ["package", app, "--include", "more.csv", *over])
    assert asked == [(Target(arch, python), [tmp_path / "zones.csv", Path("more.csv")])]


# ── it runs ─────────────────────────────────────────────────────────────────────────────────────────────────

_RUNTIMES_OWN = (
    "awslambdaric",
    "runtime_client",
    "snapshot_restore_py",
    "simplejson",
    "boto3",
    "botocore",
    "s3transfer",
)
_RUNTIMES_OWN += ("jmespath", "dateutil", "six", "urllib3")


def a_runtime(folder: Path) -> Path:
    """What Lambda's runtime has, and nothing else that is installed here."""
    from importlib.util import find_spec

    folder.mkdir()
    for name in _RUNTIMES_OWN:
        spec = find_spec(name)
        if spec and spec.origin:
            origin = Path(spec.origin)
            source = origin.parent if origin.name == "__init__.py" else origin
            (folder / source.name).symlink_to(source)
    return folder


@pytest.mark.parametrize("fast", [False, True], ids=["awslambdaric", "own loop"])
def test_the_zip_alone_runs_in_a_clean_folder(tmp_path, fast, monkeypatch):
    pytest.importorskip("awslambdaric", reason="awslambdaric has no build for this machine")
    task = tmp_path / "task"
    zipfile.ZipFile(BytesIO(made(Target.this_machine()).archive)).extractall(task)
    (task / WRAPPER).chmod(0o755)
    monkeypatch.setenv("dynamoDBTableName", "kinesisAggs")
    monkeypatch.setenv("WINDLASS_QUARANTINE", "none")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    monkeypatch.setenv("LAMBDA_RUNTIME_DIR", str(a_runtime(tmp_path / "runtime")))
    unclean = event(records([trip(1, 3), b"not JSON", trip(1, 12)]))  # aggregates would ask AWS for the shards
    events = [json.dumps(each).encode() for each in (all_events()["windowed"], unclean, all_events()["unwindowed"])]
    # -S: no site-packages of ours. The runtime's own folder is on the path, as on Lambda.
    start = "import sys, os; sys.path[:0] = [os.environ['LAMBDA_TASK_ROOT'], os.environ['LAMBDA_RUNTIME_DIR']]; "
    start += "import awslambdaric.__main__ as m; m.main(['', 'app.handler'])"
    command = [sys.executable, "-S", "-E", "-c", start]
    if fast:  # -S through the wrapper: a link to the interpreter that adds it
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
        python.chmod(0o755)
        command = [str(task / WRAPPER), str(python)]

    found = answers(command, "app.handler", events, task)

    assert [path.rpartition("/")[2] for path, _ in found] == ["response", "response", "error"]
    assert found[0][1]["state"]["rows"] == [["1", "3", "2"], ["2", "5", "1"]]
    assert found[1][1]["state"]["rows"] == [["1", "3", "1"]]
    assert found[2][1]["errorType"] == "MalformedEvent"
