"""What moto holds, in one file: written when an endpoint with a data folder ends, read when it starts again.

The file is Python's own serialization of moto's backends, so it belongs to one version of moto, and to one owner: to
read it is to run what it says. A crash loses what came since the endpoint was started, checkpoints excepted. Private
keys are in it as they are, so it is for its owner's eyes only.
"""

import importlib.metadata
import io
import json
import os
import pickle  # the folder is the owner's own, as his shell's start-up file is
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any
from weakref import WeakValueDictionary

from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from moto import backends
from moto.core.base_backend import BackendDict, BaseBackend

SERVICES = (
    "cloudformation",
    "cloudwatch",
    "dynamodb",
    "dynamodbstreams",
    "iam",
    "kinesis",
    "kms",
    "lambda",
    "logs",
    "s3",
    "sns",
    "sqs",
    "sts",
)
FILE = "aws.pickle"
EARLIER = "aws.pickle.earlier"
LOCK = "in-use"


class Damaged(ValueError):
    """The file cannot be read. One line: what is wrong, what was found, what to do."""


class InUse(ValueError):
    """Another process has the folder. One line: which, and what to do."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is this process's in this context, for the others that ask. Raises InUse.

    The kernel lets go of it when the process ends, however it ends; the file stays and says nothing then.
    """
    try:
        import fcntl
    except ImportError:  # not on this system
        yield
        return
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            msg = f"{folder} is in use by process {file.read()}: end that one, or choose another folder with --data"
            raise InUse(msg) from None
        except OSError:  # nor on this file system
            pass
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def save(folder: Path) -> dict[str, str]:
    """Write what moto holds; a crash leaves the old file or the new one. What was left out, by service, and why.

    Where something is left out, the file from before, which may have it, stays as EARLIER.
    """
    state = {service: _held(backends.get_backend(service)) for service in SERVICES if service in _begun()}
    left_out: dict[str, str] = {}
    try:
        written = _pickled(state)
    except Exception:  # noqa: BLE001  (moto's state can hold anything)
        left_out = {service: why for service, held in state.items() if (why := _why_not(held))}
        # All in one again: what services share is written once.
        written = _pickled({service: held for service, held in state.items() if service not in left_out})
    folder.mkdir(parents=True, exist_ok=True)
    beside, path, earlier = (folder / name for name in (f"{FILE}.new", FILE, EARLIER))
    _write(beside, json.dumps(_versions()).encode() + b"\n" + written)
    if left_out and path.exists() and not earlier.exists():
        _write(earlier, path.read_bytes())
    beside.replace(path)
    return left_out


def restore(folder: Path) -> None:
    """Give moto what was written, if anything was. Raises Damaged."""
    path = folder / FILE
    if not path.exists():
        return
    head, _, rest = path.read_bytes().partition(b"\n")
    if head.decode("utf-8", "replace") != json.dumps(_versions()):
        msg = (
            f"{path} was written by {head[:80]!r}, and this is {json.dumps(_versions())}: "
            "delete the file to begin anew, or install those versions"
        )
        raise Damaged(msg)
    try:
        state = _Unpickler(io.BytesIO(rest)).load()
    except Exception as error:  # noqa: BLE001  (damaged bytes can say anything)
        msg = f"{path} is damaged ({type(error).__name__}: {error}): delete the file to begin anew"
        raise Damaged(msg) from None
    for service, accounts in state.items():
        for account, regions in accounts.items():
            for region, held in regions.items():
                backends.get_backend(service)[account][region].__dict__.update(held)


def _versions() -> dict[str, str]:
    return {"moto": importlib.metadata.version("moto"), "format": "1"}


def _begun() -> set[str]:
    return {held.service_name for held in BackendDict._instances}


def _held(backend: Any) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        account: {region: dict(held.__dict__) for region, held in regions.items()}
        for account, regions in backend.items()
    }


def private_key(pem: bytes) -> PrivateKeyTypes:
    """A key as it was written. Files name this function: cryptography's own has no name to be found by."""
    return load_pem_private_key(pem, None)


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _pickled(state: Any) -> bytes:
    written = io.BytesIO()
    _Pickler(written, protocol=5).dump(state)
    return written.getvalue()


def _why_not(state: Any) -> str:
    """Why it cannot be written; empty text where it can."""
    try:
        _pickled(state)
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return ""


class _Pickler(pickle.Pickler):
    """A backend that another one holds is written as a name; what cannot be written is made anew."""

    def persistent_id(self, obj: Any) -> tuple[str, str, str] | None:
        if isinstance(obj, BaseBackend):
            return _service(obj), obj.account_id, obj.region_name
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, WeakValueDictionary):
            return WeakValueDictionary, (dict(obj),)
        if type(obj) is defaultdict and isinstance(obj.default_factory, FunctionType):
            return defaultdict, (type(obj.default_factory()),), None, None, iter(obj.items())
        if hasattr(type(obj), "private_bytes"):  # isinstance costs a third of the whole
            pem = obj.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            return private_key, (pem,)
        for make in (threading.Lock, threading.RLock):
            if type(obj) is type(make()):
                return make, ()
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> Any:
        service, account, region = pid
        return backends.get_backend(service)[account][region]


def _service(backend: BaseBackend) -> str:
    found = next(
        held.service_name
        for held in BackendDict._instances
        for regions in held.values()
        for each in regions.values()
        if each is backend
    )
    return str(found)
