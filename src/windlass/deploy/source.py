"""What of the user's code goes into the function: the declaration's module, what it imports, and which distributions.

Rules of this file:
- Imports are read from the source, not from a run: also those inside functions count, `if TYPE_CHECKING` does not.
- An import is looked for where Python would find it: beside the declaration's top-level module, in the standard
  library, among the installed distributions. A package beside it comes whole, with its data files.
- What Lambda's Python runtimes have (boto3 and what it needs) is left out: "Working with layers for Python Lambda
  functions" and "Lambda runtimes" of the AWS Lambda Developer Guide.
- Distributions are those that are installed here, at their installed versions, closed over their requirements with
  markers evaluated for the target. So two builds agree as long as what is installed agrees.
"""

import ast
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import msgspec
from packaging.markers import Environment, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from windlass.apps import App
from windlass.deploy.problem import DeployProblem

RUNTIME_HAS = frozenset({"boto3", "botocore", "jmespath", "python-dateutil", "s3transfer", "six", "urllib3"})
"""Distributions that every Python runtime of Lambda has."""
RUNTIME_MODULES = frozenset(
    {"boto3", "botocore", "jmespath", "dateutil", "s3transfer", "six", "urllib3", "awslambdaric"}
)

ENTRY = "windlass_function"
"""The module that is generated where the user's own has no name for the handler."""

DEPLOYED = frozenset(
    {
        *("__init__", "core", "delivery", "handler", "pipelines", "quarantine"),
        *("runtime", "settings", "shards", "table", "telemetry"),
    }
)
"""The rooms of Windlass that a function needs. They import each other only; packaging refuses where that is not so."""

_SKIPPED = re.compile(r"__pycache__|\..*|.*\.(pyc|pyo|egg-info|dist-info)|node_modules|\.venv")


class Target(msgspec.Struct, frozen=True):
    """Where the function runs: Lambda's architecture (arm64, x86_64) and Python's version (3.13).

    `here`: not on Lambda but on this machine, as with a local endpoint.
    """

    arch: str = "arm64"
    python: str = "3.13"
    here: bool = False

    @classmethod
    def this_machine(cls) -> "Target":
        """This machine and this interpreter."""
        arch = "arm64" if platform.machine().lower() in ("arm64", "aarch64") else "x86_64"
        return cls(arch, f"{sys.version_info.major}.{sys.version_info.minor}", here=True)

    @property
    def machine(self) -> str:
        """As Python and wheels name it."""
        return "aarch64" if self.arch == "arm64" else "x86_64"

    @property
    def markers(self) -> Environment:
        """What dependency markers see there ("Dependency specifiers", Python Packaging User Guide)."""
        if self.here:
            return default_environment()
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }


class Source(msgspec.Struct, frozen=True):
    """The user's part: Lambda's handler, files by their name in the zip, distributions and versions, notes."""

    handler: str
    files: dict[str, bytes]
    distributions: dict[str, str]
    notes: list[str]


def read_source(app: App, target: Target) -> Source:
    """Raises DeployProblem where something that is imported cannot be deployed."""
    top, root = _root(app.module)
    scan = _Scan(root)
    scan.add(top)
    handler = _handler(app, scan.files)
    for name, text in own_files():
        scan.follow(f"{name}", text)
    return Source(handler, scan.files, closure(scan.distributions(), target), scan.notes)


def own_files() -> Iterator[tuple[str, bytes]]:
    """The part of Windlass that a function needs, as (name in the zip, bytes)."""
    for entry in sorted(resources.files("windlass").iterdir(), key=lambda entry: entry.name):
        if entry.name.removesuffix(".py") in DEPLOYED:
            yield from _own(entry, "windlass")


def _own(entry: Traversable, under: str) -> Iterator[tuple[str, bytes]]:
    name = f"{under}/{entry.name}"
    if entry.is_dir() and entry.name != "__pycache__":
        for inner in sorted(entry.iterdir(), key=lambda inner: inner.name):
            yield from _own(inner, name)
    elif entry.name.endswith(".py"):
        yield name, entry.read_bytes()


def handler_name(app: App) -> str:
    """Lambda's handler for a pipeline: the module's own name for it, else one in a module that packaging generates."""
    names = [name for name, value in vars(app.module).items() if value is app.pipeline.handler]
    return f"{_dotted(app.module)}.{sorted(names)[0]}" if names else f"{ENTRY}.handler"


def _handler(app: App, files: dict[str, bytes]) -> str:
    handler = handler_name(app)
    if handler == f"{ENTRY}.handler":
        line = f"from {_dotted(app.module)} import {app.name}\n\nhandler = {app.name}.handler\n"
        files[f"{ENTRY}.py"] = line.encode()
    return handler


def _dotted(module: ModuleType) -> str:
    if module.__name__.startswith("windlass_app_"):  # loaded from a path
        return Path(module.__file__ or "").stem
    return module.__name__


def _root(module: ModuleType) -> tuple[str, Path]:
    """The top-level module's name, and the folder that it is found in."""
    assert module.__file__
    path, dotted = Path(module.__file__).resolve(), _dotted(module)
    parts = dotted.split(".")
    if not all(part.isidentifier() for part in parts):
        msg = f"{path.name} cannot be imported by Lambda: {dotted!r} is not a Python name; rename the file"
        raise DeployProblem(msg)
    above = len(parts) - (0 if path.name == "__init__.py" else 1)
    root = path.parents[above]
    if parts[0] in sys.stdlib_module_names or parts[0] == "windlass":
        msg = f"{path} would hide the module {parts[0]} in the function; rename it"
        raise DeployProblem(msg)
    return parts[0], root


def places(module: ModuleType) -> tuple[Path, PurePosixPath]:
    """The folder that a module lies in, here and in the zip."""
    folder = Path(module.__file__ or "").resolve().parent
    return folder, PurePosixPath(folder.relative_to(_root(module)[1]))


# ── imports ─────────────────────────────────────────────────────────────────────────────────────────────────


class _Scan:
    """Follows imports from one module on, among the files of one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, bytes] = {}
        self.notes: list[str] = []
        self._outside: dict[str, str] = {}  # dotted name -> where it is imported
        self._seen: set[str] = set()

    def add(self, top: str) -> bool:
        """A module or package of the folder, and what it imports; False where there is none."""
        places = [self.root / f"{top}.py"] if (self.root / f"{top}.py").is_file() else _files(self.root / top)
        if not any(place.suffix == ".py" for place in places):
            return False
        self._seen.add(top)
        for place in places:
            name = place.relative_to(self.root).as_posix()
            self.files[name] = place.read_bytes()
            if place.suffix == ".py":
                self.follow(name, self.files[name])
        return True

    def follow(self, name: str, text: bytes) -> None:
        """The imports of one file."""
        try:
            tree = ast.parse(text, name)
        except SyntaxError as error:
            msg = f"{self.root / name} is not Python: {error}"
            raise DeployProblem(msg) from None
        for dotted, line in _imports(tree.body):
            top, _, rest = dotted.partition(".")
            where = f"{name} line {line}"
            if top == "windlass" and _stays_at_home(rest.partition(".")[0]):
                msg = f"{where} imports {dotted}, which is not deployed: keep the declaration apart from what uses it"
                raise DeployProblem(msg)
            known = top in self._seen or top in sys.stdlib_module_names or top in RUNTIME_MODULES or top == "windlass"
            if not known and not self.add(top):
                self._outside.setdefault(dotted, where)

    def distributions(self) -> set[str]:
        """Those that the imports come from."""
        owners = metadata.packages_distributions()
        found: set[str] = set()
        for dotted, where in sorted(self._outside.items()):
            top = dotted.partition(".")[0]
            if top in owners:
                found.update(map(canonicalize_name, _owners(dotted, owners[top])))
            else:
                self.notes.append(f"{where} imports {top}, which is not installed here: it is not packaged")
        return found


def _stays_at_home(room: str) -> bool:
    """Whether a name in the package is a room that is not deployed; a class or function is none."""
    names = {entry.name.removesuffix(".py") for entry in resources.files("windlass").iterdir()}
    return room in names - DEPLOYED


def _owners(dotted: str, candidates: list[str]) -> list[str]:
    """Of several distributions under one top-level name (google, say) those that have the module."""
    if len(set(candidates)) < 2:
        return candidates
    parts = dotted.split(".")
    begins = tuple("/".join(parts[:count]) + end for count in range(2, len(parts) + 1) for end in ("/", ".py"))
    own = [name for name in candidates if any(str(f).startswith(begins) for f in metadata.files(name) or ())]
    return own or candidates


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = []
    for place in sorted(folder.iterdir()):
        if _SKIPPED.fullmatch(place.name):
            continue
        found += _files(place) if place.is_dir() else [place]
    return found


def _imports(body: Iterable[ast.stmt]) -> Iterator[tuple[str, int]]:
    """Every absolute import as (dotted name, line)."""
    for statement in body:
        if isinstance(statement, ast.If) and _is_typing_only(statement.test):
            yield from _imports(statement.orelse)
        elif isinstance(statement, ast.Import):
            yield from ((alias.name, statement.lineno) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            if statement.level == 0 and statement.module:
                yield from ((f"{statement.module}.{alias.name}", statement.lineno) for alias in statement.names)
        else:
            for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                yield from _imports(_statements(getattr(statement, field, [])))


def _statements(parts: Iterable[ast.AST]) -> Iterator[ast.stmt]:
    for part in parts:
        if isinstance(part, ast.stmt):
            yield part
        else:  # an except clause or a case
            yield from getattr(part, "body", [])


def _is_typing_only(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


# ── distributions ───────────────────────────────────────────────────────────────────────────────────────────


def closure(names: Iterable[str], target: Target) -> dict[str, str]:
    """Distributions and what they require on the target, by name and installed version; without what Lambda has."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(name, "") for name in sorted(names)]  # with an extra; "": what it requires in any case
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen or name in RUNTIME_HAS:
            continue
        seen.add((name, extra))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            msg = (
                f"{name} is required on Lambda but not installed here, so its version is not known: pip install {name}"
            )
            raise DeployProblem(msg) from None
        found[name] = distribution.version
        todo += _required(distribution, extra, target)
    return dict(sorted(found.items()))


def _required(distribution: metadata.Distribution, extra: str, target: Target) -> Iterator[tuple[str, str]]:
    """Names and extras of what a distribution requires with one of its extras."""
    environment: dict[str, Any] = {**target.markers, "extra": extra}
    for requirement in map(Requirement, distribution.requires or []):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            yield from ((canonicalize_name(requirement.name), each) for each in ("", *sorted(requirement.extras)))
