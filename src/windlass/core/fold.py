"""Clean records into window state, and window state into segments.

Rules of this file:
- A segment is a run of clean records of one window and shard: its rows (a key and one number per column), and
  `first` and `through`, the positions of its first and last record.
- A segment is cut by records, never by batch edges: when a record brings a new key that would take the state
  over its limit, the segment closes right before that record and the next one begins with it. Whether that
  happens depends on the keys since the segment began and on nothing else. So every replay of a window cuts at
  the same records, whatever batches it comes in, and the fence in the table recognises each segment.
- Size is therefore an upper bound that is added up per row, never a measurement of the encoded state.
- Between calls the open segment travels as Lambda's `state`: an object, versioned, numbers as text. It names its
  key and columns, so that code which was deployed in the middle of a window knows whose rows it was handed.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from operator import attrgetter
from typing import Any

import msgspec

from windlass.core.contribution import Contribution, KeyValue, Number
from windlass.core.totals import Column
from windlass.core.window import Window

STATE_VERSION = 1
STATE_BYTES_MAX = 512 * 1024
"""The default limit: half of Lambda's 1 MB, beyond which Lambda itself would end the window early."""

_STATE_FRAME_BYTES = 2048  # version, positions, names of key and columns: more only where those are very long
_NUMBER_BYTES = 50  # '"-', 38 digits, a point, 'E-130",'

Key = Any  # one key value, or a tuple of several
Row = list[Number | None]


class UnknownState(ValueError):
    """The state is not one that this code can go on with. The message says what was found and what to do."""


class KeyPart(msgspec.Struct, frozen=True):
    """One field of the key: the name it has in the declaration, and its type: int, decimal or str."""

    name: str
    type: str

    def to_text(self, value: KeyValue) -> str:
        """As the state carries it, and as a key of several fields is written."""
        return format(value, "f") if type(value) is Decimal else str(value)

    def from_text(self, text: str) -> KeyValue:
        """Back from the state."""
        return text if self.type == "str" else int(text) if self.type == "int" else Decimal(text)


class Segment(msgspec.Struct):
    """Rows by key, and the positions they cover. Without rows it covers nothing, and both are empty."""

    columns: Sequence[Column]
    first: str = ""
    through: str = ""
    rows: dict[Key, Row] = {}
    bytes_bound: int = _STATE_FRAME_BYTES

    def absorb(self, groups: Mapping[Key, list[Any]]) -> None:
        """Merge groups of records into the rows."""
        for key, group in groups.items():
            row = self.rows.get(key)
            values = [column.read(group) for column in self.columns if column.read]
            if row is None:
                self.rows[key] = values
            else:
                self.rows[key] = [
                    column.merge(old, new) for column, old, new in zip(self.columns, row, values, strict=True)
                ]


class Folder(msgspec.Struct, frozen=True):
    """How the records of one declaration fold: by which key, into which columns, up to how many bytes."""

    key: tuple[KeyPart, ...]
    key_of: Callable[[Any], Key]
    columns: tuple[Column, ...]
    state_bytes_max: int = STATE_BYTES_MAX
    frame_bytes: int = _STATE_FRAME_BYTES

    @classmethod
    def of(
        cls, key: tuple[KeyPart, ...], columns: tuple[Column, ...], state_bytes_max: int = STATE_BYTES_MAX
    ) -> "Folder":
        """By these fields of a record, into these columns."""
        names = [*(part.name for part in key), *(column.signature for column in columns)]
        frame_bytes = max(_STATE_FRAME_BYTES, 512 + sum(len(json.dumps(name)) + 12 for name in names))
        return cls(key, attrgetter(*(part.name for part in key)), columns, state_bytes_max, frame_bytes)

    def empty(self) -> Segment:
        """A segment that has not begun."""
        return Segment(self.columns, bytes_bound=self.frame_bytes)

    def fold(
        self, segment: Segment, records: Sequence[Any], position_at: Callable[[int], str]
    ) -> tuple[list[Segment], Segment]:
        """The segments that these records close, in order, and the one that stays open.

        `records` are clean, in stream order, after everything that `segment` covers; `position_at(i)` is the
        position of records[i]. `segment` is changed in place.
        """
        if not records:
            return [], segment
        if not segment.rows:
            segment.first = position_at(0)
        keys = list(map(self.key_of, records))
        groups: defaultdict[Key, list[Any]] = defaultdict(list)
        for key, record in zip(keys, records, strict=True):
            groups[key].append(record)
        grown = segment.bytes_bound + sum(self.row_bytes(key) for key in groups if key not in segment.rows)
        if grown > self.state_bytes_max:
            return self._fold_and_cut(segment, keys, records, position_at)
        segment.absorb(groups)
        segment.bytes_bound = grown
        segment.through = position_at(len(records) - 1)
        return [], segment

    def _fold_and_cut(
        self, segment: Segment, keys: Sequence[Key], records: Sequence[Any], position_at: Callable[[int], str]
    ) -> tuple[list[Segment], Segment]:
        """The same, record by record, where the limit is in reach."""
        closed: list[Segment] = []
        groups: dict[Key, list[Any]] = {}
        for index, (key, record) in enumerate(zip(keys, records, strict=True)):
            if key in groups:
                groups[key].append(record)
                continue
            if key not in segment.rows:
                row_bytes = self.row_bytes(key)
                if segment.bytes_bound + row_bytes > self.state_bytes_max and (segment.rows or groups):
                    segment.absorb(groups)
                    if index:  # else it ends where the call before left it
                        segment.through = position_at(index - 1)
                    closed.append(segment)
                    segment, groups = self.empty(), {}
                    segment.first = position_at(index)
                segment.bytes_bound += row_bytes
            groups[key] = [record]
        segment.absorb(groups)
        segment.through = position_at(len(records) - 1)
        return closed, segment

    def row_bytes(self, key: Key) -> int:
        """An upper bound of a row's size in the state, whichever JSON encoder writes it."""
        parts = key if len(self.key) > 1 else (key,)
        text = sum(len(json.dumps(part)) if isinstance(part, str) else _NUMBER_BYTES + 130 for part in parts)
        return text + 4 * len(parts) + _NUMBER_BYTES * len(self.columns)

    # ── between calls ───────────────────────────────────────────────────────────────────────────────────────

    def encode(self, segment: Segment) -> dict[str, Any]:
        """The state for Lambda: `{}` when nothing is open."""
        if not segment.rows:
            return {}
        return {
            "v": STATE_VERSION,
            "key": [f"{part.name}:{part.type}" for part in self.key],
            "columns": [column.signature for column in segment.columns],
            "from": segment.first,
            "through": segment.through,
            "rows": [self._encode_row(segment, key, row) for key, row in segment.rows.items()],
        }

    def _encode_row(self, segment: Segment, key: Key, row: Row) -> list[str | None]:
        return [
            *(part.to_text(value) for part, value in zip(self.key, self._parts(key), strict=True)),
            *(column.to_text(value) for column, value in zip(segment.columns, row, strict=True)),
        ]

    def decode(self, state: Any) -> Segment:
        """The open segment of a state. Raises UnknownState.

        The columns may be another declaration's (`segment.columns` then differs from `self.columns`): such a
        segment can be flushed, not folded into.
        """
        if not state:
            return self.empty()
        self._check(state)
        try:
            columns = tuple(map(Column.parse, state["columns"]))
            same = [column.signature for column in self.columns] == state["columns"]
            segment = self.empty()
            segment.columns = self.columns if same else columns
            segment.first, segment.through = str(state["from"]), str(state["through"])
            for row in state["rows"]:
                self._decode_row(segment, row)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            msg = f"the state of this window is damaged: {type(error).__name__} {error}; found {_excerpt(state)}"
            raise UnknownState(msg) from None
        return segment

    def _check(self, state: Any) -> None:
        if not isinstance(state, dict) or state.get("v") != STATE_VERSION:
            msg = (
                f"the state of this window is not of version {STATE_VERSION}; found {_excerpt(state)}. "
                "If another function wrote it, give this one a mapping of its own"
            )
            raise UnknownState(msg)
        key = [f"{part.name}:{part.type}" for part in self.key]
        if state.get("key") != key:
            msg = (
                f"the state of this window is keyed by {state.get('key')}, this declaration by {key}. "
                "Deploy a changed key as a new function, table and mapping"
            )
            raise UnknownState(msg)

    def _decode_row(self, segment: Segment, row: list[str | None]) -> None:
        width = len(self.key)
        if len(row) != width + len(segment.columns):
            msg = f"a row of {len(row)} values"
            raise ValueError(msg)
        parts = tuple(part.from_text(text or "") for part, text in zip(self.key, row[:width], strict=True))
        key = parts if width > 1 else parts[0]
        segment.rows[key] = [column.from_text(text) for column, text in zip(segment.columns, row[width:], strict=True)]
        segment.bytes_bound += self.row_bytes(key)

    def _parts(self, key: Key) -> tuple[KeyValue, ...]:
        return key if len(self.key) > 1 else (key,)

    # ── towards the table ───────────────────────────────────────────────────────────────────────────────────

    def contributions(self, segment: Segment, source: str, window: Window) -> Iterator[Contribution]:
        """What a closed segment adds to each item. `source` is the shard's name, `Call.source`."""
        attribute = self.key_attribute
        for key, row in segment.rows.items():
            by_kind: dict[str, dict[str, Number]] = {"add": {}, "least": {}, "most": {}}
            for column, value in zip(segment.columns, row, strict=True):
                if value is not None:
                    by_kind[column.kind][column.attribute] = value
            parts = self._parts(key)
            plain = dict(zip((part.name for part in self.key), parts, strict=True)) if len(parts) > 1 else {}
            yield Contribution(
                key={attribute: parts[0] if len(parts) == 1 else self._joined(parts)},
                window=window,
                source=source,
                first=segment.first,
                through=segment.through,
                plain=plain,
                **by_kind,
            )

    @property
    def key_attribute(self) -> str:
        """The table's partition key: the key's field, or the fields' names joined by `#`."""
        return "#".join(part.name for part in self.key)

    def _joined(self, parts: Sequence[KeyValue]) -> str:
        texts = (part.to_text(value) for part, value in zip(self.key, parts, strict=True))
        return "#".join(text.replace("\\", "\\\\").replace("#", "\\#") for text in texts)


def _excerpt(state: Any) -> str:
    return json.dumps(state, default=str)[:200]
