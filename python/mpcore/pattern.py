"""N:M patterns."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import SupportsIndex


@dataclass(frozen=True, init=False)
class Pattern:
    """N:M sparsity: of every ``group`` = M consecutive weights at most ``keep`` = N are not zero.

    Args:
        pattern: ``"2:4"``, ``(2, 4)`` or a Pattern; 1 <= N < M <= 32.

    Raises:
        ValueError: if ``pattern`` is none of these.

    Example:
        >>> Pattern("2:4").density
        0.5
        >>> str(Pattern((8, 16)))
        '8:16'
    """

    keep: int
    group: int

    def __init__(self, pattern: str | tuple[SupportsIndex, SupportsIndex] | Pattern) -> None:
        if isinstance(pattern, Pattern):
            keep, group = pattern.keep, pattern.group
        elif isinstance(pattern, str) and (found := re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", pattern)):
            keep, group = int(found[1]), int(found[2])
        elif isinstance(pattern, (tuple, list)) and len(pattern) == 2 and all(map(_is_integer, pattern)):
            keep, group = map(operator.index, pattern)
        else:
            raise ValueError(f"pattern {pattern!r}: wanted N:M such as '2:4', with 1 <= N < M <= 32")
        if not 1 <= keep < group <= 32:
            raise ValueError(f"pattern {keep}:{group}: N:M needs 1 <= N < M <= 32")
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "group", group)

    @property
    def density(self) -> float:
        """Share of the weights that are kept, N/M."""
        return self.keep / self.group

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"


def _is_integer(value: SupportsIndex) -> bool:
    """Of Python, NumPy or any other library, and no truth value."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)
