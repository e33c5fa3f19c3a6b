"""The function's zip: the user's code, the part of Windlass that a function needs, and wheels for the target.

Rules of this file:
- The same input gives the same bytes, on any machine and day: names sorted, one time for all (1980-01-01, the
  earliest a zip knows), modes 0644 and 0755, stored and not deflated, because deflate's output differs between zlib
  builds. Lambda keeps functions unpacked, so nothing there gets larger by it.
- Nothing that is compiled for one Python (`.pyc`), and no type stubs. Licences stay.
- Two parts that bring one name are refused: which of them would win is nobody's guess.

Limits: "Lambda quotas", AWS Lambda Developer Guide.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath

import msgspec

from windlass.apps import App
from windlass.deploy.problem import DeployProblem
from windlass.deploy.source import Source, Target, own_files, places, read_source
from windlass.deploy.wheels import default_cache, fetch

UNPACKED_BYTES_MAX = 262_144_000
WRAPPER = "windlass-runtime"
"""The exec wrapper's name in the zip: AWS_LAMBDA_EXEC_WRAPPER=/var/task/windlass-runtime."""

_WRAPPER_TEXT = b"""#!/bin/sh
# Lambda starts this in place of the runtime (AWS_LAMBDA_EXEC_WRAPPER), with the interpreter as first argument.
# -P: the rooms of Windlass are no top-level modules. -u: what is printed is logged at once.
exec "$1" -P -u "$LAMBDA_TASK_ROOT/windlass/runtime.py"
"""
_TIME = (1980, 1, 1, 0, 0, 0)


class Part(msgspec.Struct, frozen=True):
    """What one contributor brings: the user, Windlass, or a distribution."""

    name: str
    version: str
    files: int
    bytes: int


class Package(msgspec.Struct, frozen=True):
    """A finished zip, and what is in it."""

    archive: bytes
    sha256: str
    handler: str
    target: Target
    parts: list[Part]
    notes: list[str]

    @property
    def unpacked_bytes(self) -> int:
        """What Lambda's limit counts."""
        return sum(part.bytes for part in self.parts)


def package(app: App, target: Target, *, cache: Path | None = None, include: Iterable[Path] = ()) -> Package:
    """The zip of a pipeline's function. `include` are further files, put beside the module as they lie there.

    Raises DeployProblem.
    """
    source = read_source(app, target)
    wheels = fetch(source.distributions, target, cache or default_cache())
    bundle = _Bundle()
    bundle.add("your code", "", _with_included(app, source, include))
    bundle.add("windlass", _version(), {**dict(own_files()), WRAPPER: _WRAPPER_TEXT})
    for (name, version), wheel in zip(source.distributions.items(), wheels, strict=True):
        bundle.add(name, version, dict(wheel_files(wheel)))
    bundle.check()
    archive = zipped(bundle.files)
    digest = hashlib.sha256(archive).hexdigest()
    return Package(archive, digest, source.handler, target, bundle.parts, source.notes)


class _Bundle:
    """Files by name, each from one part."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.parts: list[Part] = []
        self._owner: dict[str, str] = {}

    def add(self, part: str, version: str, files: Mapping[str, bytes]) -> None:
        for name in files:
            if self._owner.setdefault(name, part) != part:
                msg = f"{name} comes from {self._owner[name]} and from {part}: rename one, or leave one out"
                raise DeployProblem(msg)
        self.files.update(files)
        self.parts.append(Part(part, version, len(files), sum(map(len, files.values()))))

    def check(self) -> None:
        size = sum(part.bytes for part in self.parts)
        if size > UNPACKED_BYTES_MAX:
            largest = sorted(self.parts, key=lambda part: -part.bytes)[:3]
            names = ", ".join(f"{part.name} {part.bytes / 1e6:.0f} MB" for part in largest)
            msg = f"unpacked it is {size / 1e6:.0f} MB, and Lambda takes 262 MB; largest are {names}: leave some out"
            raise DeployProblem(msg)


def _with_included(app: App, source: Source, include: Iterable[Path]) -> dict[str, bytes]:
    """With their paths from the declaration's folder; what lies elsewhere comes right beside the module."""
    files = dict(source.files)
    home, beside = places(app.module)
    for place in include:
        if not place.is_file():
            msg = f"--include {place}: there is no such file"
            raise DeployProblem(msg)
        at = place.parent.resolve() / place.name
        inside = at.relative_to(home) if at.is_relative_to(home) else Path(place.name)
        name, content = (beside / inside).as_posix(), place.read_bytes()
        if files.setdefault(name, content) != content:
            msg = f"--include {place}: the zip has another {name} already: rename one, or leave one out"
            raise DeployProblem(msg)
    return files


def _version() -> str:
    return metadata.version("windlass")


def wheel_files(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """A wheel's files as they lie when installed, without what only installers and type checkers read."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = _installed_name(entry.filename)
            if name and not entry.is_dir():
                yield name, archive.read(entry)


def _installed_name(name: str) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return None
    if path.parts[0].endswith(".data"):
        if path.parts[1:2] not in (("purelib",), ("platlib",)):
            return None  # scripts and headers
        path = PurePosixPath(*path.parts[2:])
    if path.suffix in (".pyc", ".pyi") or path.name == "py.typed" or "__pycache__" in path.parts:
        return None
    if path.parts[0].endswith(".dist-info") and path.name in ("RECORD", "INSTALLER", "REQUESTED", "WHEEL"):
        return None
    return str(path)


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip whose bytes follow from names and contents alone."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system = 3  # Unix, also where this runs on Windows: modes are read by it
            mode = 0o755 if name == WRAPPER or name.endswith(".so") else 0o644
            entry.external_attr = (0o100000 | mode) << 16
            archive.writestr(entry, content)
    return out.getvalue()
