"""Kinesis's calls in CBOR, which the Java SDKs speak unless told not to, from and to the calls in JSON.

The two differ in three things: bytes are bytes (in JSON: base64), a time is tag 1 over whole milliseconds (in JSON:
seconds), and what a member is cannot be seen from JSON, so bytes and times are known by their names.

Source: RFC 8949, "Concise Binary Object Representation"; the members' types: Kinesis API Reference.
"""

import base64
import json
import struct
from typing import Any

CONTENT_TYPE = "application/x-amz-cbor-1.1"
_TIME_TAG = 1
_BREAK = object()
_SIMPLE = {20: False, 21: True, 22: None, 23: None}
_FLOATS = {25: ">e", 26: ">f", 27: ">d"}
_DEPTH_MAX = 32


class NotCbor(ValueError):
    """The bytes are not CBOR, or more than the Kinesis API uses."""


def to_json(body: bytes) -> bytes:
    """A request in CBOR as the same request in JSON. Raises NotCbor."""
    try:
        reader = _Reader(body)
        return json.dumps(reader.value(0) if body else {}).encode()
    except (IndexError, struct.error, ValueError, TypeError) as error:
        msg = f"the body is no CBOR: {error}"
        raise NotCbor(msg) from None


def from_json(body: bytes) -> bytes:
    """An answer in JSON as the same answer in CBOR; an empty one stays empty."""
    return b"".join(_written("", json.loads(body))) if body else b""


class _Reader:
    """Reads one value after the other, bytes and times as JSON has them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def value(self, depth: int) -> Any:
        if depth > _DEPTH_MAX:
            msg = f"values lie in values {depth} deep"
            raise NotCbor(msg)
        first = self._data[self._at]
        self._at += 1
        major, info = first >> 5, first & 31
        if major == 7:
            return self._simple(info)
        endless = info == 31
        size = 0 if endless else self._size(info)
        match major:
            case 0:
                return size
            case 1:
                return -1 - size
            case 2:
                return base64.b64encode(self._text(size, endless=endless, depth=depth)).decode()
            case 3:
                return self._text(size, endless=endless, depth=depth).decode()
            case 4:
                return self._items(size, endless=endless, depth=depth)
            case 5:
                flat = self._items(2 * size, endless=endless, depth=depth)
                return dict(zip(flat[::2], flat[1::2], strict=True))
        tagged = self.value(depth + 1)
        return tagged / 1000 if size == _TIME_TAG else tagged

    def _simple(self, info: int) -> Any:
        if info == 31:
            return _BREAK
        if info in _FLOATS:
            form = _FLOATS[info]
            return struct.unpack(form, self._take(struct.calcsize(form)))[0]
        if info not in _SIMPLE:
            msg = f"there is no simple value {info}"
            raise NotCbor(msg)
        return _SIMPLE[info]

    def _size(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            msg = f"{info} says no size"
            raise NotCbor(msg)
        return int.from_bytes(self._take(1 << (info - 24)))

    def _take(self, size: int) -> bytes:
        part = self._data[self._at : self._at + size]
        if len(part) < size:
            msg = f"it ends {size - len(part)} bytes too early"
            raise NotCbor(msg)
        self._at += size
        return part

    def _text(self, size: int, *, endless: bool, depth: int) -> bytes:
        if not endless:
            return self._take(size)
        parts = []
        while self._data[self._at] != 0xFF:
            first = self._data[self._at]
            self._at += 1
            if depth >= _DEPTH_MAX or first & 31 == 31:
                msg = "a text in parts has a part in parts"
                raise NotCbor(msg)
            parts.append(self._take(self._size(first & 31)))
        self._at += 1
        return b"".join(parts)

    def _items(self, count: int, *, endless: bool, depth: int) -> list[Any]:
        found: list[Any] = []
        while endless or len(found) < count:
            item = self.value(depth + 1)
            if item is _BREAK:
                break
            found.append(item)
        return found


def _written(name: str, value: Any) -> list[bytes]:
    """The parts of a value, by the member's name where that decides."""
    match value:
        case None | bool():
            return [{None: b"\xf6", True: b"\xf5", False: b"\xf4"}[value]]
        case int() | float() if name.endswith("Timestamp"):
            return [_head(6, _TIME_TAG), *_written("", round(value * 1000))]
        case int():
            return [_head(0, value) if value >= 0 else _head(1, -1 - value)]
        case float():
            return [b"\xfb" + struct.pack(">d", value)]
        case str() if name == "Data":
            data = base64.b64decode(value)
            return [_head(2, len(data)), data]
        case str():
            text = value.encode()
            return [_head(3, len(text)), text]
        case list():
            return [_head(4, len(value)), *(part for item in value for part in _written(name, item))]
    members = [part for key, item in value.items() for part in (*_written("", key), *_written(key, item))]
    return [_head(5, len(value)), *members]


def _head(major: int, size: int) -> bytes:
    if size < 24:
        return bytes([major << 5 | size])
    width = next(width for width in range(4) if size < 1 << (8 << width))
    return bytes([major << 5 | 24 + width]) + size.to_bytes(1 << width)
