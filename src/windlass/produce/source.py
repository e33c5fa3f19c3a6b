"""Where user records come from: drawn trips or a file, written in a dialect, some of them spoiled.

Each choice draws from a generator of its own, made from the seed and the choice's name: another dialect or
another share of dirt leaves the trips as they were.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

from windlass.produce.dialects import DIALECTS
from windlass.produce.files import UnreadableFile, read
from windlass.produce.records import UserRecord
from windlass.produce.trips import Trip, trips
from windlass.produce.unclean import spoil


def records(
    *,
    seed: int = 1,
    dialect: str = "kpl",
    unclean: float = 0.0,
    csv: Path | None = None,
    loop: bool = False,
) -> Iterator[UserRecord]:
    """User records: trips without end from the seed, or those of a CSV or NDJSON file, once or in a loop.

    `unclean` is the share (0 to 1) of records that are spoiled. UnreadableFile where the file is not there
    or a row cannot be read; rows are read as they are asked for.
    """
    rng = Random(f"{seed}/dialect")
    rows: Iterable[Trip | UserRecord]
    if csv is None:
        rows = trips(Random(f"{seed}/trips"))
    else:
        rows = _repeated(csv) if loop else read(csv)
    write = DIALECTS[dialect]
    clean = (UserRecord(row.id, write(row, rng)) if isinstance(row, Trip) else row for row in rows)
    return spoil(clean, unclean, Random(f"{seed}/unclean"))


def _repeated(path: Path) -> Iterator[Trip | UserRecord]:
    while True:
        row = None
        for row in read(path):
            yield row
        if row is None:
            msg = f"{path} has no rows to repeat"
            raise UnreadableFile(msg)
