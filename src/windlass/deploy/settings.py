"""How a pipeline's stack is made: names and settings, each with a default, from `windlass.toml` beside the declaration.

The declaration says what is computed; keys, window and names of environment variables come from there and cannot be
set here. What could lose or delay data is a table of rules below: each with its reason, refused or warned about.

Ranges: "CreateEventSourceMapping" and "CreateFunction", AWS Lambda API Reference; "CreateStream", Amazon Kinesis API
Reference; "PutRetentionPolicy", Amazon CloudWatch Logs API Reference.
"""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import msgspec

from windlass.deploy.problem import DeployProblem
from windlass.deploy.source import Target

FILE = "windlass.toml"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
ARCHES = ("arm64", "x86_64")
START_KINDS = ("TRIM_HORIZON", "LATEST")
RESERVED_VARIABLES = frozenset(
    {
        *("_HANDLER", "_X_AMZN_TRACE_ID", "AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION"),
        *("AWS_EXECUTION_ENV", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "AWS_LAMBDA_FUNCTION_NAME"),
        *("AWS_LAMBDA_FUNCTION_VERSION", "AWS_LAMBDA_INITIALIZATION_TYPE", "AWS_LAMBDA_LOG_GROUP_NAME"),
        *("AWS_LAMBDA_LOG_STREAM_NAME", "AWS_LAMBDA_RUNTIME_API", "AWS_REGION", "AWS_SECRET_ACCESS_KEY"),
        *("AWS_SESSION_TOKEN", "LAMBDA_RUNTIME_DIR", "LAMBDA_TASK_ROOT"),
    }
)
"""Variables that CreateFunction refuses: "Working with Lambda environment variables", AWS Lambda Developer Guide."""
_LOG_DAYS = (1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names that are None are given by CloudFormation, so that one declaration can have many stacks."""

    stream: str | None = None
    """The name of a new stream, or the ARN of one that exists."""
    shards: int | None = None
    """Of a new stream; None: on demand."""
    retention_hours: int = 24
    """How long a new stream keeps records: the time there is to mend what keeps a batch from being taken."""
    stream_key: str | None = None
    """The ARN of a KMS key of yours: a new stream is encrypted with it, one that exists already is."""
    table: str | None = None
    """The name of a new table, or the ARN of one that exists."""
    function: str | None = None
    role: str | None = None
    bucket: str | None = None
    """The new bucket's name, for rejected records and for batches that Lambda gave up."""
    bucket_days: int | None = None
    """When objects of that bucket expire; None: never."""
    arch: str = "arm64"
    python: str = "3.13"
    memory_mb: int = 1024
    timeout_s: int = 60
    batch_size: int = 1000
    batching_window_s: int = 1
    starting_position: str = "TRIM_HORIZON"
    parallelization: int = 1
    retries: int = -1
    record_age_s: int = -1
    bisect: bool = False
    log_days: int = 30
    fast_runtime: bool = False
    """Start the function with Windlass' own runtime loop, which reads an event's bytes in one pass."""
    alarm_topic: str | None = None
    """The ARN of an SNS topic that alarms are sent to."""
    iterator_age_s: int = 600
    """Beyond this age of what is read, an alarm."""
    rejected_percent: float = 1.0
    """Beyond this share of rejected records, an alarm."""
    include: tuple[str, ...] = ()
    """Further files for the zip, by their paths from the declaration's folder."""
    environment: dict[str, str] = {}
    """Further variables of the function."""
    tags: dict[str, str] = {}

    @property
    def target(self) -> Target:
        """Where the function runs."""
        return Target(self.arch, self.python)

    def at(self, target: Target) -> "Settings":
        """The same settings for another place to run."""
        return msgspec.structs.replace(self, arch=target.arch, python=target.python)


class Finding(msgspec.Struct, frozen=True):
    """A setting that is refused or warned about, and why."""

    severity: Literal["refused", "warning"]
    setting: str
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.text}"


class Shape(msgspec.Struct, frozen=True):
    """What rules need to know of a declaration: its window in seconds, 0 where it has none; its quarantine."""

    every_s: int
    quarantine: str | None = None  # as written in the declaration; None: from the environment


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────


def read_settings(file: Path | None, chosen: Sequence[str] = ()) -> Settings:
    """From a TOML file (its table `deploy`) and `name=value` texts over it. Raises DeployProblem."""
    values: dict[str, Any] = {}
    if file:
        values = _table(file)
        _convert(values, f"settings in {file} cannot be used: ")
    for text in chosen:
        name, separator, value = text.partition("=")
        if not separator or name not in Settings.__struct_fields__:
            wrong = f"there is no {name!r}" if separator else "write name=value"
            msg = f"--set {text}: {wrong}; the names are {', '.join(Settings.__struct_fields__)}"
            raise DeployProblem(msg)
        read = _value(value)
        values[name] = value if name in _TEXTS and not isinstance(read, str) else read  # python=3.12 is no number
        _convert({name: values[name]}, f"--set {text}: ")
    return msgspec.convert(values, Settings)


_TEXTS = {name for name, kind in get_type_hints(Settings).items() if kind in (str, str | None)}


def _convert(values: dict[str, Any], problem: str) -> None:
    try:
        msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        msg = f"{problem}{error}"
        raise DeployProblem(msg) from None


def _table(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text())
    except OSError as error:
        msg = f"settings file {file} cannot be read: {error.strerror}"
        raise DeployProblem(msg) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"settings file {file} is not TOML: {error}"
        raise DeployProblem(msg) from None
    deploy = content.pop("deploy", {})
    if content or not isinstance(deploy, dict):
        msg = f"settings file {file} has one table, [deploy]; found {', '.join(sorted(content)) or 'deploy as a value'}"
        raise DeployProblem(msg)
    return deploy


def _value(text: str) -> Any:
    """As TOML reads it, or as text where TOML cannot."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


# ── rules ───────────────────────────────────────────────────────────────────────────────────────────────────

_RANGES: Mapping[str, tuple[int, int]] = {
    "shards": (1, 10_000),
    "retention_hours": (24, 8760),
    "bucket_days": (31, 36_500),  # objects change their storage class after 30 days
    "memory_mb": (128, 10_240),
    "timeout_s": (1, 900),
    "batch_size": (1, 10_000),
    "batching_window_s": (0, 300),
    "parallelization": (1, 10),
    "iterator_age_s": (1, 604_800),
    "rejected_percent": (0, 100),
}
_CHOICES: Mapping[str, Sequence[Any]] = {
    "arch": ARCHES,
    "python": PYTHONS,
    "starting_position": START_KINDS,
    "log_days": _LOG_DAYS,
}
AWS_STREAM_KEY = "alias/aws/kinesis"
"""The key that encrypts a stream where none of one's own is named."""
_KEY_ARN = r"arn:[a-z-]+:kms:[a-z0-9-]+:\d{12}:key/[a-zA-Z0-9-]+"
_NAMES: Mapping[str, str] = {
    "stream": r"[a-zA-Z0-9_.-]{1,128}",  # "CreateStream", Amazon Kinesis API Reference
    "table": r"[a-zA-Z0-9_.-]{3,255}",  # "CreateTable", Amazon DynamoDB API Reference
}


class _Rule(msgspec.Struct, frozen=True):
    setting: str
    severity: Literal["refused", "warning"]
    applies: Callable[[Settings, Shape], bool]
    text: str  # with {found} and {every_s}


_RULES = (
    _Rule(
        "retries", "refused", lambda s, _: s.retries != -1,
        "retries={found} makes Lambda discard a batch after so many: its records would be missing from the totals "
        "for good. Leave it at -1; a batch is then repeated until the stream lets go of it",
    ),
    _Rule(
        "record_age_s", "refused", lambda s, _: s.record_age_s != -1,
        "record_age_s={found} makes Lambda discard what is older, as after an outage. Leave it at -1",
    ),
    _Rule(
        "parallelization", "refused", lambda s, d: d.every_s > 0 and s.parallelization > 1,
        "parallelization={found} is not possible with windows: Lambda keeps one state per shard and takes 1 only. "
        "Add shards instead",
    ),
    _Rule(
        "bisect", "refused", lambda s, d: d.every_s > 0 and s.bisect,
        "bisect=true with windows is not documented by AWS: what becomes of the state between the halves is unknown. "
        "No record's bytes make a call fail here, so there is nothing to find by halving",
    ),
    _Rule(
        "batching_window_s", "warning", lambda s, d: 0 < d.every_s < s.batching_window_s,
        "batching_window_s={found} is longer than the window of {every_s} s: windows then close that much later. "
        "Take at most {every_s}, or 0 to 5 for totals soon after their window",
    ),
    _Rule(
        "starting_position", "warning", lambda s, _: s.starting_position == "LATEST",
        "starting_position=LATEST leaves out what was put before Lambda began to read, which takes minutes, and the "
        "first window is a part of one. TRIM_HORIZON reads everything that the stream holds",
    ),
    _Rule(
        "timeout_s", "warning", lambda s, _: s.timeout_s < 15,
        "timeout_s={found} leaves little for retries of throttled writes: each costs up to 2 s. Take 60",
    ),
    _Rule(
        "memory_mb", "warning", lambda s, _: s.memory_mb < 512,
        "memory_mb={found} is also {found}/1769 of a core: a full batch takes several times as long. Take 1024",
    ),
    _Rule(
        "batch_size", "warning", lambda s, _: s.batch_size < 100,
        "batch_size={found} means a call for so few records: slow and dear. Take 1000 or more",
    ),
    _Rule(
        "iterator_age_s", "refused", lambda s, _: s.iterator_age_s >= s.retention_hours * 3600,
        "iterator_age_s={found} is beyond the stream's retention: the alarm would come when records are gone",
    ),
    _Rule(
        "stream_key", "refused", lambda s, _: bool(s.stream_key and not re.fullmatch(_KEY_ARN, s.stream_key)),
        "stream_key={found} is no key's ARN, arn:aws:kms:REGION:ACCOUNT:key/ID: an alias can be given another key, and "
        "the role's permission would stay behind",
    ),
    _Rule(
        "environment", "refused", lambda s, _: bool(RESERVED_VARIABLES & s.environment.keys()),
        "environment sets variables that Lambda keeps to itself: {found}",
    ),
    _Rule(
        "quarantine", "warning", lambda _, d: d.quarantine == "none",
        "the declaration says quarantine=\"none\": rejected records are counted and lost. Leave it to the environment, "
        "and they are kept in the stack's bucket",
    ),
    _Rule(
        "quarantine", "refused", lambda _, d: d.quarantine not in (None, "none") and "://" not in str(d.quarantine),
        "the declaration keeps rejected records in {quarantine!r}, which is gone with the function's process. Use "
        "s3://bucket/prefix, or leave it to the environment",
    ),
)  # fmt: skip


def check(settings: Settings, shape: Shape) -> list[Finding]:
    """What is wrong or doubtful, refusals first."""
    found = [*_range_findings(settings)]
    for rule in _RULES:
        if rule.applies(settings, shape):
            value = getattr(settings, rule.setting, None)
            text = rule.text.format(
                found=", ".join(value) if isinstance(value, dict) else value,
                every_s=shape.every_s,
                quarantine=shape.quarantine,
            )
            found.append(Finding(rule.severity, rule.setting, text))
    return sorted(found, key=lambda finding: finding.severity)


def _range_findings(settings: Settings) -> list[Finding]:
    found = []
    for name, (low, high) in _RANGES.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            found.append(Finding("refused", name, f"{name}={value} is not between {low} and {high}"))
    for name, choices in _CHOICES.items():
        value = getattr(settings, name)
        if value not in choices:
            found.append(Finding("refused", name, f"{name}={value} is none of {', '.join(map(str, choices))}"))
    for name, pattern in _NAMES.items():
        value = getattr(settings, name)
        if value is not None and not value.startswith("arn:") and not re.fullmatch(pattern, value):
            found.append(Finding("refused", name, f"{name}={value!r} is no name of a {name}: AWS takes {pattern}"))
    return found
