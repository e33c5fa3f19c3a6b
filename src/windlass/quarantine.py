"""Where rejected records go: the seam, and its forms (S3, a local folder, memory, nowhere on purpose).

Rules of this file:
- The rejected records of one call are one object, NDJSON, named after the shard and the least and the greatest
  of their positions: `<prefix>/<shard>/<first>-<last>.ndjson`. A retry of the same call overwrites its own copy.
- A replay with other batch edges writes other objects over the same records. So reading tells a record by
  (shard, position) and gives each once.
- Writing is whole or not at all: S3 is so by nature, a file is written beside its place and renamed.
- Whatever fails outside is a `QuarantineProblem` of one line. The caller lets it rise: the call fails, and Lambda
  keeps the batch. A record that is neither in the totals nor here would be lost.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec

from windlass.core.position import split
from windlass.core.rejected import Reason, Rejected

DETAIL_CHARACTERS_MAX = 300
WHERE_HELP = "s3://bucket/prefix, a folder, `memory`, or `none` to drop rejected records on purpose"

_SPOOL_BYTES_MAX = 8 * 1024 * 1024  # an object below this never touches the disk
_CHUNK_BYTES = 1024 * 1024
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # ShardId, Amazon Kinesis API Reference
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")  # "Bucket naming rules", Amazon S3 User Guide


class QuarantineProblem(Exception):
    """The place of the quarantine cannot be used. One line: what is wrong, what was found, what to do."""


class Quarantine(Protocol):
    """Keeps rejected records, and gives them back."""

    def put(self, shard: str, rejected: Sequence[Rejected]) -> None:
        """Keep the rejected records of one call of one shard, given in any order. Raises QuarantineProblem."""

    def read(self) -> Iterator[Rejected]:
        """Every record that is kept, once each, in no promised order. Raises QuarantineProblem."""


class Browsable(Protocol):
    """A quarantine read object by object, so that who looks again reads only what is new. Every form is one."""

    def names(self) -> list[str]:
        """The names of its objects, `<shard>/<first>-<last>.ndjson`. Raises QuarantineProblem."""

    def read_object(self, name: str) -> list[Rejected]:
        """The records of one object. Raises QuarantineProblem."""


def open_quarantine(where: str, *, make_client: Callable[[], Any] | None = None) -> "AnyQuarantine":
    """The quarantine at `where`. Nothing is created or called before the first put or read.

    `where` is `s3://bucket/prefix`, the path of a folder, `memory`, or `none`. Raises QuarantineProblem for
    anything else. `make_client` makes the S3 client where it is not to be the default one.
    """
    if not where.strip():
        msg = f"the quarantine's place is empty; give {WHERE_HELP}"
        raise QuarantineProblem(msg)
    if where == "none":
        return NoQuarantine()
    if where == "memory":
        return MemoryQuarantine()
    scheme, separator, rest = where.partition("://")
    if not separator and where.lower().startswith("s3:"):
        msg = f"{where!r} is no place in S3: give s3://bucket/prefix"
        raise QuarantineProblem(msg)
    if not separator:
        return FolderQuarantine(Path(where).expanduser())
    if scheme != "s3":
        msg = f"a quarantine cannot be at {where!r}: {scheme}:// is not known; give {WHERE_HELP}"
        raise QuarantineProblem(msg)
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        msg = f"{where!r} names no S3 bucket: {bucket!r} is not a bucket's name; give s3://bucket/prefix"
        raise QuarantineProblem(msg)
    return S3Quarantine(bucket, prefix.strip("/"), make_client or _s3_client)


# ── one line per record ─────────────────────────────────────────────────────────────────────────────────────


class Line(msgspec.Struct, frozen=True):
    """One record as it is written: `data` is base64 in the text, `arrival` ISO-8601 in milliseconds UTC."""

    reason: str
    detail: str
    shard: str
    position: str
    sequence: str
    sub: int
    arrival: str
    arrival_ms: int
    data: bytes


def line_of(rejected: Rejected) -> Line:
    """The record as it is written."""
    sequence, sub = split(rejected.position)
    return Line(
        reason=rejected.reason.value,
        detail=_bounded(rejected.detail),
        shard=rejected.shard,
        position=rejected.position,
        sequence=sequence,
        sub=sub,
        arrival=_iso(rejected.arrival_ms),
        arrival_ms=rejected.arrival_ms,
        data=rejected.data,
    )


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


def _bounded(detail: str) -> str:
    whole = detail.encode("utf-8", "backslashreplace").decode()
    return whole if len(whole) <= DETAIL_CHARACTERS_MAX else whole[: DETAIL_CHARACTERS_MAX - 1] + "…"


def _iso(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def _lines(rejected: Iterable[Rejected]) -> Iterator[bytes]:
    for record in rejected:
        yield _encode(line_of(record)) + b"\n"


def _read_lines(lines: Iterable[bytes], source: str) -> Iterator[Rejected]:
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = _decode(text)
            reason = Reason(line.reason)
        except (msgspec.MsgspecError, ValueError) as error:
            msg = f"line {number} of {source} is not a quarantined record ({error}); move the object elsewhere"
            raise QuarantineProblem(msg) from None
        yield Rejected(reason, line.detail, line.shard, line.position, line.arrival_ms, line.data)


def _once(records: Iterable[Rejected]) -> Iterator[Rejected]:
    seen: set[tuple[str, str]] = set()
    for record in records:
        identity = (record.shard, record.position)
        if identity not in seen:
            seen.add(identity)
            yield record


def _object_name(shard: str, rejected: Sequence[Rejected]) -> str:
    if not _SHARD.fullmatch(shard):
        msg = f"{shard!r} is not a shard id: nothing can be named after it"
        raise QuarantineProblem(msg)
    positions = [record.position for record in rejected]
    return f"{shard}/{min(positions)}-{max(positions)}.ndjson"


# ── the forms ───────────────────────────────────────────────────────────────────────────────────────────────


class MemoryQuarantine:
    """A quarantine that lives as long as this object: for tests and local runs. `objects` is by name."""

    def __init__(self) -> None:
        self.objects: dict[str, list[Rejected]] = {}

    def put(self, shard: str, rejected: Sequence[Rejected]) -> None:
        """As the protocol says."""
        if rejected:
            kept = [msgspec.structs.replace(record, detail=_bounded(record.detail)) for record in rejected]
            self.objects[_object_name(shard, rejected)] = kept

    def read(self) -> Iterator[Rejected]:
        """As the protocol says."""
        return _once(record for kept in list(self.objects.values()) for record in kept)

    def names(self) -> list[str]:
        """As the protocol says."""
        return list(self.objects)

    def read_object(self, name: str) -> list[Rejected]:
        """As the protocol says."""
        if name not in self.objects:
            msg = f"there is no object {name} in this quarantine"
            raise QuarantineProblem(msg)
        return list(self.objects[name])


class NoQuarantine:
    """Rejected records are dropped on purpose; who calls still counts them."""

    def put(self, shard: str, rejected: Sequence[Rejected]) -> None:
        """Keep nothing."""

    def read(self) -> Iterator[Rejected]:
        """Nothing is kept."""
        return iter(())

    def names(self) -> list[str]:
        """Nothing is kept."""
        return []

    def read_object(self, name: str) -> list[Rejected]:
        """Nothing is kept."""
        msg = f"there is no {name}: rejected records are dropped on purpose"
        raise QuarantineProblem(msg)


class FolderQuarantine:
    """A quarantine in a folder of this machine. The folder is made by the first put."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, shard: str, rejected: Sequence[Rejected]) -> None:
        """As the protocol says."""
        if not rejected:
            return
        place = self.folder / _object_name(shard, rejected)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(place, _lines(rejected))
        except OSError as error:
            raise _folder_problem(self.folder, error) from None

    def read(self) -> Iterator[Rejected]:
        """As the protocol says."""
        return _once(self._read())

    def names(self) -> list[str]:
        """As the protocol says."""
        try:
            if self.folder.exists() and not self.folder.is_dir():
                raise NotADirectoryError(20, "it is a file", str(self.folder))
            return sorted(place.relative_to(self.folder).as_posix() for place in self.folder.glob("*/*.ndjson"))
        except OSError as error:
            raise _folder_problem(self.folder, error) from None

    def read_object(self, name: str) -> list[Rejected]:
        """As the protocol says."""
        return list(self._read_object(name))

    def _read(self) -> Iterator[Rejected]:
        for name in self.names():
            yield from self._read_object(name)

    def _read_object(self, name: str) -> Iterator[Rejected]:
        place = self.folder / name
        try:
            with place.open("rb") as lines:
                yield from _read_lines(lines, str(place))
        except OSError as error:
            raise _folder_problem(self.folder, error) from None


def _folder_problem(folder: Path, error: OSError) -> QuarantineProblem:
    return QuarantineProblem(
        f"the quarantine folder {folder} cannot be used: {error.strerror or error} ({error.filename}); "
        f"make it a folder that this user may write and read, or choose another place: {WHERE_HELP}"
    )


def _write_whole(place: Path, lines: Iterable[bytes]) -> None:
    with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".", suffix=".part", delete=False) as file:
        try:
            file.writelines(lines)
            file.close()
            Path(file.name).replace(place)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(file.name).unlink()
            raise


class S3Quarantine:
    """A quarantine in an S3 bucket, under a prefix that may be empty. The client is made by the first use."""

    def __init__(self, bucket: str, prefix: str, make_client: Callable[[], Any]) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self._make_client = make_client

    @property
    def where(self) -> str:
        """As it was given: s3://bucket/prefix."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @cached_property
    def _client(self) -> Any:
        return self._make_client()

    def put(self, shard: str, rejected: Sequence[Rejected]) -> None:
        """As the protocol says. Needs s3:PutObject."""
        if not rejected:
            return
        key = self._under(_object_name(shard, rejected))
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES_MAX) as body, self._named_problems("s3:PutObject"):
            body.writelines(_lines(rejected))
            body.seek(0)
            self._client.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType="application/x-ndjson")

    def read(self) -> Iterator[Rejected]:
        """As the protocol says. Needs s3:ListBucket and s3:GetObject."""
        return _once(self._read())

    def names(self) -> list[str]:
        """As the protocol says. Needs s3:ListBucket."""
        return [key[len(self._under("")) :] for key in self._keys()]

    def read_object(self, name: str) -> list[Rejected]:
        """As the protocol says. Needs s3:GetObject."""
        return list(self._read_object(self._under(name)))

    def _read(self) -> Iterator[Rejected]:
        for key in self._keys():
            yield from self._read_object(key)

    def _read_object(self, key: str) -> Iterator[Rejected]:
        with (
            self._named_problems("s3:GetObject"),
            contextlib.closing(self._client.get_object(Bucket=self.bucket, Key=key)["Body"]) as body,
        ):
            yield from _read_lines(body.iter_lines(_CHUNK_BYTES), f"s3://{self.bucket}/{key}")

    def _keys(self) -> Iterator[str]:
        with self._named_problems("s3:ListBucket"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._under(""))
            for page in pages:
                yield from (item["Key"] for item in page.get("Contents", []) if self._is_object(item["Key"]))

    def _is_object(self, key: str) -> bool:
        """SHARD/NAME.ndjson below the prefix. What lies deeper is another quarantine's."""
        return key.endswith(".ndjson") and key.removeprefix(self._under("")).count("/") == 1

    def _under(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @contextlib.contextmanager
    def _named_problems(self, action: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError  # only where S3 is used

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            message = str(error.response.get("Error", {}).get("Message", ""))
            advice = _ADVICE.get(code, "{code}: {message}").format(
                bucket=self.bucket, action=action, code=code, message=_one_line(message)
            )
            msg = f"the quarantine {self.where} cannot be used: {advice}"
            raise QuarantineProblem(msg) from None
        except BotoCoreError as error:
            msg = f"the quarantine {self.where} cannot be used: {_one_line(str(error))}"
            raise QuarantineProblem(msg) from None


AnyQuarantine = MemoryQuarantine | NoQuarantine | FolderQuarantine | S3Quarantine
"""Every form is both a Quarantine and Browsable."""

_NO_PERMISSION = "{action} is not allowed ({code}); allow it to the function's role on this bucket and prefix"
_ADVICE = {
    "NoSuchBucket": "bucket {bucket} does not exist; create it, or name another one",
    "AccessDenied": _NO_PERMISSION,
    "403": _NO_PERMISSION,
    "AllAccessDisabled": _NO_PERMISSION,
    "PermanentRedirect": "bucket {bucket} is in another region; set the client's region to the bucket's",
    "AuthorizationHeaderMalformed": "bucket {bucket} is in another region; set the client's region to the bucket's",
    "InvalidAccessKeyId": "the credentials are not valid ({code}); renew them",
    "SignatureDoesNotMatch": "the credentials are not valid ({code}); renew them",
    "ExpiredToken": "the credentials have expired; renew them",
}


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _s3_client() -> Any:
    import boto3  # a function without rejected records never pays for it
    from botocore.config import Config

    # With an endpoint of one's own, buckets go into the path: bucket.localhost is a name that few machines resolve.
    own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    style = {"addressing_style": "path"} if own else {}
    return boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 4}, s3=style))
