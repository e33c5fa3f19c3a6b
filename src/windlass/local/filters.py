"""FilterCriteria: which records an event source mapping passes to its function.

A mapping has up to five patterns; a record is kept when any of them matches. A pattern is a JSON object over
the *flattened* Kinesis record: `data` (the record's bytes read as JSON) beside the metadata `partitionKey`,
`sequenceNumber`, `kinesisSchemaVersion` and `approximateArrivalTimestamp`.

    pattern   data in the stream    what happens
    -------   -------------------   ------------------------------------------------
    data      JSON                  evaluated
    data      not JSON              does not match: the record is passed over
    no data   anything              the metadata alone is evaluated

Rules (Lambda Developer Guide, "Control which events Lambda sends to your function", and the README of
aws/event-ruler for what the guide leaves open):

* fields of an object are joined by AND, the entries of a list by OR, `$or` joins objects by OR;
* text compares exactly; numbers compare by how they are written (300 is not 300.0) except under `numeric`,
  which compares IEEE doubles;
* an array in the record matches when any of its elements does; objects in an array likewise;
* a missing field matches nothing but `{"exists": false}`; `exists` looks at leaves only, so an object counts
  as absent.

`cidr` and `wildcard`, and any pattern on metadata, are accepted with a warning: Lambda's table does not list the
operators, and its guide says that Kinesis mappings filter on `data` alone.
"""

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

PATTERN_CHARS_MAX = 4096
PATTERNS_MAX = 5
METADATA = ("kinesisSchemaVersion", "partitionKey", "sequenceNumber", "approximateArrivalTimestamp")

_MISSING: Any = object()  # what a matcher is given for a field that the record does not have

Matcher: TypeAlias = Callable[[Any], bool]


class InvalidPattern(ValueError):
    """A pattern that cannot be used. Lambda's own text says no more than `Invalid filter pattern definition.`"""


class _Number(str):
    """A JSON number as it was written, because equality compares the text."""

    __slots__ = ()


def _reject_constant(name: str) -> Any:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


# Reads JSON and keeps every number as its text.
_read = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_reject_constant).decode


class Filter:
    """The compiled patterns of one mapping. `warnings` says where they leave what Lambda documents."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.warnings: list[str] = []
        self._matchers: list[Matcher] = []
        self._reads_data = False
        for pattern in patterns:
            self._matchers.append(self._compile(pattern))

    def keeps(self, *, data: bytes, partition_key: str, sequence: str, arrival_ms: int) -> bool:
        """Whether a record goes to the function. `data` is the record's bytes, not yet in base64."""
        if not self._matchers:
            return True
        fields: dict[str, Any] = {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": partition_key,
            "sequenceNumber": sequence,
            "approximateArrivalTimestamp": _Number(repr(arrival_ms / 1000)),
        }
        if self._reads_data:
            value = _data(data)
            if value is not _MISSING:
                fields["data"] = value
        try:
            return any(matcher(fields) for matcher in self._matchers)
        except RecursionError:
            return False  # nested beyond what any producer writes: as good as not JSON

    def _compile(self, text: str) -> Matcher:
        if len(text) > PATTERN_CHARS_MAX:
            msg = f"a filter pattern has at most {PATTERN_CHARS_MAX} characters; found {len(text)}"
            raise InvalidPattern(msg)
        try:
            pattern = _read(text)
            matcher = _object(pattern, self.warnings)
        except InvalidPattern:
            raise
        except (ValueError, RecursionError) as error:
            msg = f"a filter pattern is a JSON object; found {text[:60]!r} ({error})"
            raise InvalidPattern(msg) from None
        self._warn_of_metadata(pattern)
        if _asks_for_data(pattern):
            self._reads_data = True
            _require_object(pattern)
            # Data that is not JSON never matches a pattern on it, not even {"exists": false}.
            return lambda fields: "data" in fields and matcher(fields)
        return matcher

    def _warn_of_metadata(self, pattern: dict[str, Any]) -> None:
        for field in pattern:
            if field in METADATA:
                self.warnings.append(f"pattern on {field}: Lambda documents filtering Kinesis records by data only")
            elif field not in ("data", "$or"):
                self.warnings.append(f"pattern on {field}: a Kinesis record has no such field, so nothing matches")


def _data(data: bytes) -> Any:
    try:
        return _read(data.decode())
    except (ValueError, RecursionError):
        return _MISSING


def _branches(pattern: dict[str, Any]) -> Sequence[dict[str, Any]]:
    alternatives: Any = pattern.get("$or")
    return alternatives if _is_or(alternatives) else ()


def _asks_for_data(pattern: dict[str, Any]) -> bool:
    return "data" in pattern or any(_asks_for_data(branch) for branch in _branches(pattern))


def _require_object(pattern: dict[str, Any]) -> None:
    for each in (pattern, *_branches(pattern)):
        if "data" in each and not isinstance(each["data"], dict):
            msg = f"the pattern of data is a JSON object; found {_show(each['data'])}"
            raise InvalidPattern(msg)


# --- objects ---------------------------------------------------------------------------------------------------


def _object(pattern: Any, warnings: list[str]) -> Matcher:
    if not isinstance(pattern, dict) or not pattern:
        msg = f"a filter pattern is an object with at least one field; found {_show(pattern)}"
        raise InvalidPattern(msg)
    fields: list[tuple[str, Matcher]] = []
    either: list[Matcher] = []
    for name, inner in pattern.items():
        if name == "$or" and _is_or(inner):
            either = [_object(alternative, warnings) for alternative in inner]
        elif isinstance(inner, dict):
            fields.append((name, _nested(_object(inner, warnings))))
        elif isinstance(inner, list):
            fields.append((name, _leaf(inner, warnings)))
        else:
            msg = f"{name} must be a list of values to match, or an object; found {_show(inner)}"
            raise InvalidPattern(msg)

    def matches(value: Any) -> bool:
        return all(matcher(value.get(name, _MISSING)) for name, matcher in fields) and (
            not either or any(matcher(value) for matcher in either)
        )

    return matches


def _nested(inner: Matcher) -> Matcher:
    """An object, or any object of an array. A missing one is an object without fields: `exists: false` matches."""

    def matches(value: Any) -> bool:
        if isinstance(value, list):
            return any(matches(element) for element in value)
        return inner(value if isinstance(value, dict) else {})

    return matches


def _is_or(value: Any) -> bool:
    """`$or` joins two or more objects that are not themselves operators; else it is a field of that name."""
    return (
        isinstance(value, list)
        and len(value) >= 2
        and all(isinstance(each, dict) and not (each.keys() & _OPERATORS.keys()) for each in value)
    )


# --- leaves ----------------------------------------------------------------------------------------------------


def _leaf(entries: list[Any], warnings: list[str]) -> Matcher:
    if not entries:
        msg = "a list of values to match has at least one entry; found []"
        raise InvalidPattern(msg)
    equal = {_identity(entry) for entry in entries if not isinstance(entry, (dict, list))}
    if any(isinstance(entry, list) for entry in entries):
        msg = f"a list of values to match holds no further list; found {_show(entries)}"
        raise InvalidPattern(msg)
    operators = [_operator(entry, warnings) for entry in entries if isinstance(entry, dict)]

    def matches(value: Any) -> bool:
        leaves = list(_leaves(value))
        return any(_identity(leaf) in equal for leaf in leaves) or any(matcher(leaves) for matcher in operators)

    return matches


def _leaves(value: Any) -> Iterable[Any]:
    """The scalars of a field: none where it is missing or an object, each element of an array."""
    if isinstance(value, list):
        for element in value:
            yield from _leaves(element)
    elif value is not _MISSING and not isinstance(value, dict):
        yield value


def _identity(scalar: Any) -> tuple[type, Any]:
    """Scalars are equal when kind and text are: `"1"`, `1`, `1.0` and `true` are four things."""
    return type(scalar), scalar


def _operator(entry: dict[str, Any], warnings: list[str]) -> Matcher:
    if len(entry) != 1:
        msg = f"an operator is an object with exactly one field; found {_show(entry)}"
        raise InvalidPattern(msg)
    [(name, argument)] = entry.items()
    if name not in _OPERATORS:
        msg = f"unknown operator {name!r}; known are {', '.join(sorted(_OPERATORS))}"
        raise InvalidPattern(msg)
    if name in _UNDOCUMENTED:
        warnings.append(f"operator {name} is not in Lambda's documented list of filter operators")
    return _OPERATORS[name](argument)


def _exists(argument: Any) -> Matcher:
    if not isinstance(argument, bool):
        msg = f"exists takes true or false; found {_show(argument)}"
        raise InvalidPattern(msg)
    return lambda leaves: bool(leaves) is argument


def _of_text(name: str, argument: Any, test: Callable[[str], bool]) -> Matcher:
    if type(argument) is not str:
        msg = f"{name} takes text; found {_show(argument)}"
        raise InvalidPattern(msg)
    return lambda leaves: any(type(leaf) is str and test(leaf) for leaf in leaves)


def _ignore_case(argument: Any) -> Matcher:
    folded = argument.casefold() if isinstance(argument, str) else ""
    return _of_text("equals-ignore-case", argument, lambda leaf: leaf.casefold() == folded)


def _affix(name: str, test: Callable[[str, str], bool]) -> Callable[[Any], Matcher]:
    def compile_(argument: Any) -> Matcher:
        if isinstance(argument, dict) and argument.keys() == {"equals-ignore-case"}:
            folded = argument["equals-ignore-case"]
            if type(folded) is str:
                folded = folded.casefold()
            return _of_text(name, folded, lambda leaf: test(leaf.casefold(), folded))
        return _of_text(name, argument, lambda leaf: test(leaf, argument))

    return compile_


def _wildcard(argument: Any) -> Matcher:
    if type(argument) is not str:
        msg = f"wildcard takes text; found {_show(argument)}"
        raise InvalidPattern(msg)
    pattern = ""
    at = 0
    while at < len(argument):
        char = argument[at]
        if char == "\\":
            at += 1
            if argument[at : at + 1] not in ("*", "\\"):
                msg = f"in a wildcard \\* and \\\\ are the only escapes; found {argument!r}"
                raise InvalidPattern(msg)
            pattern += re.escape(argument[at])
        elif char == "*":
            if argument[at + 1 : at + 2] == "*":
                msg = f"a wildcard has no consecutive *; found {argument!r}"
                raise InvalidPattern(msg)
            pattern += ".*"
        else:
            pattern += re.escape(char)
        at += 1
    fits = re.compile(pattern, re.DOTALL).fullmatch
    return _of_text("wildcard", argument, lambda leaf: fits(leaf) is not None)


def _cidr(argument: Any) -> Matcher:
    try:
        network = ipaddress.ip_network(argument, strict=False) if type(argument) is str else None
    except ValueError:
        network = None
    if network is None:
        msg = f"cidr takes a block like 10.0.0.0/24; found {_show(argument)}"
        raise InvalidPattern(msg)

    def inside(leaf: str) -> bool:
        try:
            return ipaddress.ip_address(leaf) in network
        except ValueError:
            return False

    return _of_text("cidr", argument, inside)


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "=": lambda a, b: a == b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _numeric(argument: Any) -> Matcher:
    """`["=", 5]`, `[">", 0]`, or a range `[">", 0, "<=", 5]`: a lower bound, then an upper one."""
    shape = [part if type(part) is str else "number" for part in argument] if isinstance(argument, list) else []
    signs = shape[::2]
    usable = (
        (len(shape) == 2 and signs[0] in _COMPARE)
        or (len(shape) == 4 and signs[0] in (">", ">=") and signs[1] in ("<", "<="))
    ) and all(isinstance(number, _Number) for number in argument[1::2])
    if not usable:
        msg = f'numeric takes ["=", 5], [">", 0] or [">", 0, "<=", 5]; found {_show(argument)}'
        raise InvalidPattern(msg)
    tests = [(_COMPARE[sign], float(number)) for sign, number in zip(signs, argument[1::2], strict=True)]
    if len(tests) == 2 and tests[0][1] >= tests[1][1]:
        msg = f"the lower bound of a numeric range lies below the upper one; found {_show(argument)}"
        raise InvalidPattern(msg)
    return lambda leaves: any(
        isinstance(leaf, _Number) and all(test(float(leaf), bound) for test, bound in tests) for leaf in leaves
    )


def _anything_but(argument: Any) -> Matcher:
    """Text or numbers to exclude, one or a list of one kind; or one of the text operators to negate."""
    if isinstance(argument, dict):
        [name] = argument if len(argument) == 1 else [""]
        if name not in _NEGATABLE:
            msg = f"anything-but negates one of {', '.join(_NEGATABLE)}; found {_show(argument)}"
            raise InvalidPattern(msg)
        listed = argument[name] if isinstance(argument[name], list) else [argument[name]]
        excluded = [_OPERATORS[name](each) for each in listed]
        return lambda leaves: any(not any(matcher([leaf]) for matcher in excluded) for leaf in leaves)
    listed = argument if isinstance(argument, list) else [argument]
    if not listed or {type(each) for each in listed} not in ({str}, {_Number}):
        msg = f"anything-but takes text or numbers, not both; found {_show(argument)}"
        raise InvalidPattern(msg)
    values = {_identity(each) for each in listed}
    return lambda leaves: any(_identity(leaf) not in values for leaf in leaves)


_OPERATORS: dict[str, Callable[[Any], Matcher]] = {
    "anything-but": _anything_but,
    "cidr": _cidr,
    "equals-ignore-case": _ignore_case,
    "exists": _exists,
    "numeric": _numeric,
    "prefix": _affix("prefix", str.startswith),
    "suffix": _affix("suffix", str.endswith),
    "wildcard": _wildcard,
}
_NEGATABLE = ("prefix", "suffix", "equals-ignore-case", "wildcard")
_UNDOCUMENTED = ("cidr", "wildcard")


def _show(value: Any) -> str:
    return json.dumps(value, default=str)[:80]
