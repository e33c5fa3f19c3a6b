"""Wheels for the target, not for this machine: found in a cache of their own, else brought by pip.

A wheel is chosen by its tags ("Platform compatibility tags", Python Packaging User Guide). Runtimes from Python 3.12 on
run on Amazon Linux 2023 (glibc 2.34), older ones on Amazon Linux 2 (glibc 2.26): "Lambda runtimes".
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from windlass.deploy.problem import DeployProblem
from windlass.deploy.source import Target

_GLIBC_MINOR = {"3.11": 26}
_GLIBC_MINOR_NEWER = 34
_GLIBC_FLOORS = (17, 24, 26, 27, 28, 31, 34)


def default_cache() -> Path:
    """Where wheels are kept between builds: $XDG_CACHE_HOME/windlass/wheels."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "windlass" / "wheels"


def platforms(target: Target) -> list[str]:
    """The platform tags that the target runs, most wanted first: the widest compatible one."""
    newest = _GLIBC_MINOR.get(target.python, _GLIBC_MINOR_NEWER)
    tags = [f"manylinux_2_{minor}_{target.machine}" for minor in _GLIBC_FLOORS if minor <= newest]
    return [f"manylinux2014_{target.machine}", *tags]


def fetch(distributions: Mapping[str, str], target: Target, cache: Path) -> list[Path]:
    """One wheel per distribution. Raises DeployProblem where there is none for the target."""
    system = sys.platform if target.here else "lambda"
    folder = cache / f"cp{target.python.replace('.', '')}-{target.machine}-{system}"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name, version in distributions.items() if not _kept(folder, name, version)]
    if missing:
        _download({name: distributions[name] for name in missing}, target, folder)
    wheels = []
    for name, version in distributions.items():
        wheel = _kept(folder, name, version)
        if wheel is None:
            raise DeployProblem(_no_wheel(f"{name} {version}", target))
        wheels.append(wheel)
    return wheels


def _kept(folder: Path, name: str, version: str) -> Path | None:
    stem = re.sub(r"[-_.]+", "_", name)
    pattern = re.compile(rf"{stem}-{re.escape(version)}(-\d[^-]*)?-[^-]+-[^-]+-[^-]+\.whl", re.IGNORECASE)
    found = [place for place in folder.iterdir() if pattern.fullmatch(re.sub(r"^[^-]+", _underscored, place.name))]
    return min(found, default=None)


def _underscored(match: re.Match[str]) -> str:
    return re.sub(r"[-_.]+", "_", match[0])


def _download(distributions: Mapping[str, str], target: Target, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--only-binary=:all:", "--dest", part, *_where(target)]
        command += [f"{name}=={version}" for name, version in distributions.items()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
        if done.returncode:
            raise DeployProblem(_failure(done.stderr, distributions, target))
        for wheel in Path(part).glob("*.whl"):
            wheel.replace(folder / wheel.name)


def _where(target: Target) -> list[str]:
    """pip's words for a target; none for the interpreter that runs it."""
    if target.here:
        return []
    chosen = ["--implementation", "cp", "--python-version", target.python]
    return [*chosen, *(word for platform in platforms(target) for word in ("--platform", platform))]


def _failure(told: str, distributions: Mapping[str, str], target: Target) -> str:
    if "No module named pip" in told:
        return f"this Python has no pip, which brings the wheels: {sys.executable} -m ensurepip"
    absent = re.search(r"No matching distribution found for ([A-Za-z0-9._-]+)==(\S+)", told)
    if absent and "from versions: none" in told and "Retrying" in told:
        return f"the wheels cannot be brought: no answer from the package index; asked for {', '.join(distributions)}"
    if absent:
        return _no_wheel(f"{absent[1]} {absent[2]}", target)
    lines = [line.strip() for line in told.splitlines() if line.startswith("ERROR")]
    return f"pip could not bring the wheels of {', '.join(distributions)}: {' '.join(lines)[:300] or told[-300:]}"


def _no_wheel(what: str, target: Target) -> str:
    return (
        f"{what} has no wheel for Python {target.python} on {target.arch} Linux: choose another --arch or --python, "
        "install a version that has one, or declare without it"
    )
