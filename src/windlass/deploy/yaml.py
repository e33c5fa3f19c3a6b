"""Templates as YAML that one can read: intrinsic functions in their short form, and comments where a value needs a why.

Writes the part of YAML that CloudFormation needs: mappings, lists, texts, numbers and booleans. A text that YAML could
take for something else is quoted; one of several lines becomes a literal block.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]

_PLAIN = re.compile(r"[A-Za-z_/](?:[A-Za-z0-9_./ ()@%+*=-]|:(?=[A-Za-z0-9:/$]))*(?<! )")
_NOT_TEXT = frozenset({"y", "n", "yes", "no", "true", "false", "on", "off", "null"})
_SHORT = {"Ref": "!Ref", "Fn::GetAtt": "!GetAtt", "Fn::Sub": "!Sub", "Fn::If": "!If", "Fn::Join": "!Join"}


def dump(value: Mapping[str, Any], comments: Mapping[Path, str] | None = None) -> str:
    """The document. `comments` go on lines of their own before the key at that path."""
    return "".join(f"{line}\n" for line in _mapping(value, (), comments or {}))


def _mapping(value: Mapping[str, Any], path: Path, comments: Mapping[Path, str]) -> Iterator[str]:
    for key, inner in value.items():
        here = (*path, key)
        if here in comments:
            yield from (f"# {line}".rstrip() for line in comments[here].splitlines())
        yield from _entry(f"{_text(key)}:", inner, here, comments)


def _entry(head: str, value: Any, path: Path, comments: Mapping[Path, str]) -> Iterator[str]:
    tag, value = _untagged(value)
    head = f"{head} {tag}" if tag else head
    if isinstance(value, Mapping) and value:
        yield head
        yield from _indented(_mapping(value, path, comments))
    elif isinstance(value, list) and value:
        yield head
        yield from _indented(_list(value, path, comments))
    elif isinstance(value, str) and _is_block(value):
        yield f"{head} |-"
        yield from _indented(value.split("\n"))
    else:
        yield f"{head} {_scalar(value)}"


def _list(value: list[Any], path: Path, comments: Mapping[Path, str]) -> Iterator[str]:
    for place, inner in enumerate(value):
        tag, bare = _untagged(inner)
        if isinstance(bare, Mapping) and bare and not tag:
            lines = _mapping(bare, (*path, str(place)), comments)
            for number, line in enumerate(lines):
                yield f"- {line}" if number == 0 else f"  {line}"
        else:
            yield from _entry("-", inner, (*path, str(place)), comments)


def _indented(lines: Any) -> Iterator[str]:
    for line in lines:
        yield f"  {line}" if line else line


def _untagged(value: Any) -> tuple[str, Any]:
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, inner),) = value.items()
        if name in _SHORT:
            dotted = name == "Fn::GetAtt" and isinstance(inner, list)
            return _SHORT[name], ".".join(inner) if dotted else inner
    return "", value


def _is_block(value: str) -> bool:
    return "\n" in value and value.isprintable() is False and _printable_lines(value) and not value[:1].isspace()


def _printable_lines(value: str) -> bool:
    return all(line.isprintable() for line in value.split("\n")) and not value.endswith("\n")


def _scalar(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float):
        return json.dumps(value)
    if isinstance(value, str):
        return _text(value)
    return "{}" if isinstance(value, Mapping) else "[]"


def _text(value: str) -> str:
    if _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return '"' + "".join(map(_quoted, value)) + '"'


def _quoted(letter: str) -> str:
    """A letter between double quotes."""
    if letter in '"\\':
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
