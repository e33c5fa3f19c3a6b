"""What moto holds, written and read again without an endpoint around it."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto import backends
from moto.core.base_backend import BackendDict

from windlass.local import snapshot
from windlass.local.cloud import Cloud, CloudProblem

ACCOUNT, REGION = "123456789012", "us-east-1"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    BackendDict.reset()
    yield
    BackendDict.reset()


def backend(service: str) -> Any:
    return backends.get_backend(service)[ACCOUNT][REGION]


def restored(folder: Path) -> None:
    BackendDict.reset()
    snapshot.restore(folder)


@pytest.mark.parametrize(
    ("spec", "algorithm"),
    [("SYMMETRIC_DEFAULT", ""), ("RSA_2048", "RSASSA_PSS_SHA_256"), ("ECC_NIST_P256", "ECDSA_SHA_256")],
)
def test_a_key_signs_and_decrypts_after_a_restart_as_it_did_before(tmp_path: Path, spec: str, algorithm: str) -> None:
    usage = "SIGN_VERIFY" if algorithm else "ENCRYPT_DECRYPT"
    key = backend("kms").create_key("", usage, spec, "", {}, False, "AWS_KMS").id
    made = backend("kms").sign(key, b"text", algorithm)[1] if algorithm else backend("kms").encrypt(key, b"text", {})[0]
    assert snapshot.save(tmp_path) == {}
    restored(tmp_path)
    if algorithm:
        assert backend("kms").verify(key, b"text", made, algorithm)[1]
    else:
        assert backend("kms").decrypt(made, {})[0] == b"text"


def test_a_service_that_cannot_be_written_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    backend("kinesis").create_stream("s", 1)
    backend("sns").create_topic("t")
    backend("sns").held = threading.Thread()
    assert set(snapshot.save(tmp_path)) == {"sns"}
    restored(tmp_path)
    assert list(backend("kinesis").streams) == ["s"]
    assert not backend("sns").topics


def test_what_a_service_held_before_stays_beside_where_it_cannot_be_written_now(tmp_path: Path) -> None:
    backend("sns").create_topic("t")
    snapshot.save(tmp_path)
    whole = (tmp_path / snapshot.FILE).read_bytes()
    backend("sns").held = threading.Thread()
    for _ in range(2):
        snapshot.save(tmp_path)
        assert (tmp_path / snapshot.EARLIER).read_bytes() == whole
        assert (tmp_path / snapshot.FILE).read_bytes() != whole


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / snapshot.FILE).write_text("before")
    (tmp_path / f"{snapshot.FILE}.new").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        snapshot.save(tmp_path)
    assert (tmp_path / snapshot.FILE).read_text() == "before"


def test_an_endpoint_that_ends_says_in_a_line_what_it_could_not_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Cloud(port=0, data=tmp_path) as cloud:
        cloud.client("sns").create_topic(Name="t")
        backend("sns").held = threading.Thread()
    with Cloud(port=0, data=tmp_path):
        (tmp_path / f"{snapshot.FILE}.new").mkdir()
    left_out, nothing = caplog.messages
    assert left_out.startswith(f"{tmp_path} has all but sns (TypeError: cannot pickle ")
    assert nothing == f"nothing new is kept in {tmp_path}: Is a directory"


def test_a_folder_that_another_process_has_is_refused_until_that_one_ends_however_it_does(tmp_path: Path) -> None:
    holds = f"""
import pathlib, time
from windlass.local import snapshot
with snapshot.locked(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(CloudProblem, match=f"^{tmp_path} is in use by process {other.pid}: "):
            Cloud(port=0, data=tmp_path).start()
        other.kill()
    with Cloud(port=0, data=tmp_path):
        assert (tmp_path / snapshot.LOCK).read_text() == str(os.getpid())


def test_a_folder_is_had_unlocked_where_the_system_has_no_such_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with snapshot.locked(tmp_path), snapshot.locked(tmp_path):
        assert not list(tmp_path.iterdir())
