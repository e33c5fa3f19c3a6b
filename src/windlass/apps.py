"""Finding a pipeline by its name on the command line: `path/app.py:trips` or `package.module:trips`."""

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple


class AppProblem(Exception):
    """The pipeline cannot be loaded. One line: what is wrong, what was found, what to do."""


class App(NamedTuple):
    """A pipeline, and where it was found: `module.name`."""

    pipeline: Any
    module: ModuleType
    name: str


def load_app(text: str) -> Any:
    """The pipeline that `text` names: anything with a `describe()` method. Raises AppProblem.

    Where the module has exactly one pipeline, its name may be left out. The module is imported: its code runs.
    """
    return find_app(text).pipeline


def find_app(text: str) -> App:
    """The same, with where it was found. Raises AppProblem."""
    place, name = _parted(text, "name")
    module = _import_file(Path(place)) if _is_path(place) else _import_module(place)
    name = name or _only_name(module, place, "name")
    return App(_pipeline(module, place, name), module, name)


def load_handler(text: str) -> Any:
    """The Lambda handler that `text` names, `path/app.py:handler` or `module:handler`; a pipeline's own for a pipeline.

    Where the module has exactly one pipeline, its name may be left out. Raises AppProblem. The module is imported: its
    code runs.
    """
    place, name = _parted(text, "handler")
    module = _import_file(Path(place)) if _is_path(place) else _import_module(place)
    name = name or _only_name(module, place, "handler")
    found: Any = getattr(module, name, None)
    found = found.handler if _is_pipeline(found) else found
    if not callable(found):
        msg = f"{place} has no function {name!r}; write {place}:handler, a function of (event, context)"
        raise AppProblem(msg)
    return found


def _parted(text: str, called: str) -> tuple[str, str]:
    """Where it is, and its name there, empty where that is left out. Raises AppProblem."""
    place, separator, name = text.rpartition(":")
    if not separator or _is_path(name):
        place, name = text, ""
    if not place:
        msg = f"{text!r} names nothing: write path/app.py:{called} or package.module:{called}"
        raise AppProblem(msg)
    return place, name


def _is_path(place: str) -> bool:
    return place.endswith(".py") or "/" in place or "\\" in place


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        msg = f"there is no file {path}; write path/app.py:name, seen from {Path.cwd()}"
        raise AppProblem(msg)
    name = "windlass_app_" + "".join(letter if letter.isalnum() else "_" for letter in str(path.resolve()))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        msg = f"{path} is not a Python file; write path/app.py:name"
        raise AppProblem(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: type hints are resolved through it
    _first_on_path(path.resolve().parent)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code: anything may happen
        del sys.modules[name]
        msg = f"{path} cannot be imported: {_cause(error, path)}"
        raise AppProblem(msg) from error
    return module


def _import_module(name: str) -> ModuleType:
    _first_on_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the user's code: anything may happen
        msg = f"the module {name} cannot be imported: {_cause(error, None)}"
        raise AppProblem(msg) from error


def _first_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _cause(error: BaseException, path: Path | None) -> str:
    """The error in one line, with the line of the user's file where it came from."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, SyntaxError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if path and Path(frame.filename).name == path.name]
    return f"{text} (line {lines[-1]})" if lines else text


def _only_name(module: ModuleType, place: str, called: str) -> str:
    names = _names(module)
    if len(names) != 1:
        msg = f"{place} has several pipelines or none ({', '.join(names) or 'none'}): write {place}:{called}"
        raise AppProblem(msg)
    return names[0]


def _pipeline(module: ModuleType, place: str, name: str) -> Any:
    listed = ", ".join(_names(module)) or "none"
    if not hasattr(module, name):
        msg = f"{place} has no {name!r}; pipelines there: {listed}"
        raise AppProblem(msg)
    found = getattr(module, name)
    if not _is_pipeline(found):
        msg = f"{place}:{name} is not a pipeline but {type(found).__name__}; pipelines there: {listed}"
        raise AppProblem(msg)
    return found


def _names(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if _is_pipeline(value) and not name.startswith("_")]


def _is_pipeline(value: Any) -> bool:
    return not isinstance(value, type) and callable(getattr(value, "describe", None))
