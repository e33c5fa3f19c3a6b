"""All chance of a run, from one seed: a stream of numbers per purpose.

What is drawn for one purpose does not shift what is drawn for another. So a run from which a fault is taken away, when
a failure is made smaller, stays as like itself as it can.
"""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """Named streams of numbers. The same seed and name give the same numbers, on every machine."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._streams: dict[str, Random] = {}

    def of(self, purpose: str) -> Random:
        """The numbers for one purpose."""
        stream = self._streams.get(purpose)
        if stream is None:
            stream = self._streams[purpose] = Random(f"{self.seed}/{purpose}")
        return stream

    def happens(self, purpose: str, probability: float) -> bool:
        """Whether something of that probability happens now."""
        return self.of(purpose).random() < probability

    def pick(self, purpose: str, choices: Sequence[T]) -> T:
        """One of the choices, each as likely."""
        return choices[int(self.of(purpose).random() * len(choices))]
