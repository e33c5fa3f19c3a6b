"""A tumbling window: half-open, in milliseconds UTC, aligned to the epoch."""

from datetime import UTC, datetime
from functools import lru_cache

import msgspec


class Window(msgspec.Struct, frozen=True, order=True):
    """`[start_ms, end_ms)`. Lambda sends both ends as ISO-8601 text in whole seconds."""

    start_ms: int
    end_ms: int

    @classmethod
    def of(cls, arrival_ms: int, every_ms: int) -> "Window":
        """The window that a record belongs to which arrived at `arrival_ms`."""
        start_ms = arrival_ms // every_ms * every_ms
        return cls(start_ms, start_ms + every_ms)

    @classmethod
    def parse(cls, start: str, end: str) -> "Window":
        """From the texts in a Lambda event. Raises ValueError with what was found."""
        window = cls(_from_text(start), _from_text(end))
        if window.start_ms >= window.end_ms:
            msg = f"a window ends after it starts; found {start} to {end}"
            raise ValueError(msg)
        return window

    @property
    def start(self) -> str:
        """ISO-8601, whole seconds, `Z`: text order is time order."""
        return _to_text(self.start_ms)

    @property
    def end(self) -> str:
        """The first instant after the window, as ISO-8601 text."""
        return _to_text(self.end_ms)


def _from_text(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        msg = f"a window bound is text like 2026-01-31T12:00:30Z; found {text!r}"
        raise ValueError(msg)
    return round(moment.timestamp() * 1000)


@lru_cache(maxsize=256)
def _to_text(ms: int) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
