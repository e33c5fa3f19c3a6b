"""docs/lab.md, run as it stands: every `sh` block, in order, in one shell, with the real AWS CLI."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import held_port

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "lab.md"
WINDOW_S = "30" if os.environ.get("CI") else "2"


def commands() -> str:
    return "\n".join(re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE))


def aws_cli() -> Path:
    installed = ROOT / ".servers" / "awscli" / "bin" / "aws"
    found = str(installed) if installed.exists() else shutil.which("aws")
    if found is None:
        assert not os.environ.get("CI"), "the AWS CLI must be here in CI: .ci/awscli.sh"
        pytest.skip("needs the AWS CLI: run .ci/awscli.sh, or install aws")
    return Path(found)


def run(script: str, folder: Path, *, port: int, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """The script in a shell of its own; whatever it has started by then ends with it."""
    path = [str(Path(sys.executable).parent), str(aws_cli().parent), os.environ["PATH"]]
    environ = {"PATH": os.pathsep.join(path), "HOME": str(folder), "PORT": str(port), "WINDOW": WINDOW_S}
    shell = subprocess.Popen(
        ["/bin/sh", "-euc", script], cwd=folder, env={**environ, "AWS_PAGER": "", "TERM": "dumb", "COLUMNS": "120"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = shell.communicate(timeout=timeout_s)
    finally:
        if shell.poll() is None or (folder / "local.log").exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    return subprocess.CompletedProcess([], shell.returncode, out, err)


@pytest.mark.heavy
def test_the_lab_runs_as_written_and_its_totals_are_exact(tmp_path: Path) -> None:
    with held_port() as port:
        done = run(commands(), tmp_path, port=port, timeout_s=240)
    log = (tmp_path / "local.log").read_text() if (tmp_path / "local.log").exists() else ""
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout[-2000:]}\n{log[-3000:]}"
    assert "\nexact\n" in done.stdout
    assert len(re.findall(r"^[12]\t20\S+Z\t20\S+Z\t\d+\t\d+$", done.stdout, re.MULTILINE)) == 2
    assert log.endswith("windlass local: ended\n")
    assert done.stdout.count("REPORT RequestId") >= 5  # four shards' batches and their windows' ends
