"""Lines on standard error that say how far something has come that may take minutes."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from l2w_jax import standard_output

# What takes less says nothing.
SECONDS_BETWEEN_LINES = 30.0

_Item = TypeVar("_Item")


class Progress:
    """Counts what passes through, and tells about it now and then.

    Args:
        line: what to tell, by how many passed.
    """

    def __init__(self, line: Callable[[int], str]):
        self._line = line
        self._count = 0
        self._told = time.monotonic()

    def of(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """The items; several iterables may be counted together."""
        for item in items:
            yield item
            self._count += 1
            now = time.monotonic()
            if now - self._told >= SECONDS_BETWEEN_LINES:
                standard_output.tell(self._line(self._count))
                self._told = now
