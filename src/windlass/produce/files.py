"""Records from a file of yours: trips, any CSV with a header, or NDJSON.

| file | recognised by | becomes |
|---|---|---|
| NDJSON | a name ending in .ndjson, .jsonl or .json | each line's bytes as they are; empty lines are left out |
| trips | 14 columns of the kinds of `TRIP_COLUMNS` in its first row, or these as its header | trips, for a dialect |
| any other CSV | | a JSON object per row, its header's names as fields |

A CSV's columns are parted by whichever of , ; and tab stands most in its first row. A column of an object whose cells
all read as JSON numbers is numbers, digit for digit; one of true and false is those; every other is text. An empty cell
is a missing field. The partition key is the field `id`, else a CSV's first column, else the row's number. A file is
read twice, first for the kinds of its columns; where that cannot be, as of a pipe, each cell is taken for itself.
"""

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Final

import msgspec

from windlass.produce.records import KEY_CHARS_MAX, UserRecord
from windlass.produce.trips import Trip

TRIP_COLUMNS: Final = (
    "id", "vendor_id", "pickup_datetime", "dropoff_datetime", "passenger_count", "pickup_longitude",
    "pickup_latitude", "dropoff_longitude", "dropoff_latitude", "store_and_fwd_flag", "gc_distance",
    "trip_duration", "google_distance", "google_duration",
)  # fmt: skip
NDJSON_SUFFIXES: Final = (".ndjson", ".jsonl", ".json")
TIMES: Final = ("%m/%d/%y %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S")

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
_BOOLEAN = re.compile("true|false")
_PLAIN = re.compile(f"{_NUMBER.pattern}|{_BOOLEAN.pattern}", re.ASCII)


class UnreadableFile(Exception):
    """The file is not there or a row of it cannot be read; the text names the row and what to do."""


def read(path: Path) -> Iterator[Trip | UserRecord]:
    """The file's rows as trips or, where it holds something else, as user records."""
    try:
        yield from _ndjson(path) if path.suffix.lower() in NDJSON_SUFFIXES else _csv(path)
    except OSError as error:
        msg = f"{path}: {error.strerror or error}; name a CSV or NDJSON file that can be read"
        raise UnreadableFile(msg) from error


def trip_of(cells: Sequence[str]) -> Trip:
    """The trip of a row's 14 cells; ValueError names the column that does not read."""
    row = dict(zip(TRIP_COLUMNS, cells, strict=True))
    return Trip(
        id=_key(row["id"]),
        vendor=_int(row, "vendor_id"),
        passengers=_int(row, "passenger_count"),
        pickup_ms=_ms(row, "pickup_datetime"),
        dropoff_ms=_ms(row, "dropoff_datetime"),
        pickup_longitude=_float(row, "pickup_longitude"),
        pickup_latitude=_float(row, "pickup_latitude"),
        dropoff_longitude=_float(row, "dropoff_longitude"),
        dropoff_latitude=_float(row, "dropoff_latitude"),
        held=row["store_and_fwd_flag"] == "Y",
        miles=_float(row, "gc_distance"),
        trip_s=_int(row, "trip_duration"),
        road_m=_int(row, "google_distance") if row["google_distance"] else None,
        road_s=_int(row, "google_duration") if row["google_duration"] else None,
    )


def _csv(path: Path) -> Iterator[Trip | UserRecord]:
    with path.open("rb") as file:
        # Decoded line by line, so that the row that is not UTF-8 is the one that is named.
        lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(file))
        rows = _rows(path, lines)
        first = next(rows, None)
        if first is None:
            msg = f"{path}: the file is empty; a CSV needs a header and rows"
            raise UnreadableFile(msg)
        if _is_trip(first[1]):
            yield _trip(path, *first)
        as_trips = _is_trip(first[1]) or tuple(first[1]) == TRIP_COLUMNS
        header = first[1] if as_trips else _header(path, first[1])
        kinds = {} if as_trips else _kinds(path, header)
        for number, cells in rows:
            if len(cells) != len(header):
                msg = f"{path}, row {number}: {len(cells)} cells where row 1 has {len(header)}; mend or delete the row"
                raise UnreadableFile(msg)
            yield _trip(path, number, cells) if as_trips else _object(number, header, cells, kinds)


def _kinds(path: Path, header: Sequence[str]) -> dict[str, re.Pattern[str]]:
    """What the cells of each column are that are not text. Empty for what cannot be read twice."""
    if not path.is_file():
        return dict.fromkeys(header, _PLAIN)
    left = {name: [_NUMBER, _BOOLEAN] for name in header}
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        for _, cells in islice(_rows(path, file), 1, None):
            for name, cell in zip(header, cells, strict=False):
                if cell and left[name]:
                    left[name] = [kind for kind in left[name] if kind.fullmatch(cell)]
    return {name: kinds[0] for name, kinds in left.items() if kinds}


def _rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, numbered from 1 as a spreadsheet numbers them."""
    number, reader = 0, None
    whole = iter(lines)
    while True:
        number += 1
        try:
            if reader is None:
                head = next(whole)
                reader = csv.reader(chain([head], whole), strict=True, delimiter=max(",;\t", key=head.count))
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, UnicodeDecodeError) as error:
            msg = f"{path}, row {number}: not CSV in UTF-8 ({error}); mend the row or save the file as UTF-8"
            raise UnreadableFile(msg) from error
        if cells:
            yield number, cells


def _ndjson(path: Path) -> Iterator[UserRecord]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if number == 1 and line.lstrip().startswith(b"["):
                msg = f"{path} holds a JSON array; a record is a line: write each of its objects on a line of its own"
                raise UnreadableFile(msg)
            if data := line.rstrip(b"\r\n"):
                yield UserRecord(_id_of(data) or f"row-{number}", data)


def _is_trip(cells: Sequence[str]) -> bool:
    try:
        trip_of(cells)
    except ValueError:
        return False
    return True


def _trip(path: Path, number: int, cells: Sequence[str]) -> Trip:
    try:
        return trip_of(cells)
    except ValueError as error:
        msg = f"{path}, row {number}: {error}; mend or delete the row"
        raise UnreadableFile(msg) from error


def _header(path: Path, names: Sequence[str]) -> Sequence[str]:
    wrong = next((name for name in names if not name or _NUMBER.fullmatch(name) or names.count(name) > 1), None)
    if wrong is not None:
        msg = (
            f"{path}, row 1: a header names each column once, in words; found {wrong!r}. "
            f"Put a header before the rows (trips without one have the columns {', '.join(TRIP_COLUMNS)})"
        )
        raise UnreadableFile(msg)
    return names


def _object(
    number: int, header: Sequence[str], cells: Sequence[str], kinds: Mapping[str, re.Pattern[str]]
) -> UserRecord:
    fields = {
        name: msgspec.Raw(cell.encode()) if name in kinds and kinds[name].fullmatch(cell) else cell
        for name, cell in zip(header, cells, strict=True)
        if cell
    }
    key = cells[header.index("id")] if "id" in header else cells[0]
    return UserRecord(key[:KEY_CHARS_MAX] or f"row-{number}", msgspec.json.encode(fields))


class _WithId(msgspec.Struct):
    id: str | int


def _id_of(line: bytes) -> str | None:
    with suppress(ValueError, RecursionError):
        return str(msgspec.json.decode(line, type=_WithId).id)[:KEY_CHARS_MAX]
    return None


def _key(text: str) -> str:
    if not 1 <= len(text) <= KEY_CHARS_MAX:
        msg = f"id is the partition key and has 1 to {KEY_CHARS_MAX} characters, found {len(text)}"
        raise ValueError(msg)
    return text


def _int(row: dict[str, str], name: str) -> int:
    try:
        return int(row[name])
    except ValueError:
        msg = f"{name} is a whole number, found {row[name]!r}"
        raise ValueError(msg) from None


def _float(row: dict[str, str], name: str) -> float:
    if _NUMBER.fullmatch(row[name]):
        return float(row[name])
    msg = f"{name} is a number, found {row[name]!r}"
    raise ValueError(msg)


def _ms(row: dict[str, str], name: str) -> int:
    for form in TIMES:
        with suppress(ValueError):
            return int(datetime.strptime(row[name], form).replace(tzinfo=UTC).timestamp()) * 1000
    msg = f"{name} is a time such as 1/31/16 9:05 or 2016-01-31 09:05:00, found {row[name]!r}"
    raise ValueError(msg)
