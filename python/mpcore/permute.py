"""Channel permutations: an order of the columns under which an N:M mask keeps more of the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mpcore import _native
from mpcore.arrays import to_count, to_numpy, to_threads
from mpcore.html import facts, flat, one_line
from mpcore.pattern import Pattern


@dataclass(frozen=True, eq=False)
class PermutationResult:
    """An order of the columns, what it keeps, and what no order can exceed. All sums are taken in float64.

    ``order[new] = old``: use ``score[:, order]``. ``kept`` is the sum over rows and groups of the N largest scores
    under this order, ``kept_identity`` the same under the given one, ``row_bound`` the sum of the largest N/M of every
    row without groups. ``upper_bound`` is the lowest certified ceiling at hand: ``row_bound``, or the pricing bound.
    ``trace`` holds (seconds, kept) at the start, whenever a better order was found, and at the end; the entries in
    between are accurate to float32. ``rounds`` counts the rounds of each search.
    """

    order: npt.NDArray[np.int64]
    kept: float
    kept_identity: float
    row_bound: float
    upper_bound: float
    trace: tuple[tuple[float, float], ...]
    rounds: int
    interrupted: bool

    def __repr__(self) -> str:
        return one_line(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return facts({"efficacy": self.efficacy, "gap": self.gap, **flat(self)}, title="PermutationResult")

    @property
    def gap(self) -> float:
        """``upper_bound / kept - 1``: an optimal order keeps at most this much more; 0 where nothing can be kept."""
        return self.upper_bound / self.kept - 1 if self.kept > 0 else 0.0

    @property
    def efficacy(self) -> float:
        """Share of the loss against choosing freely in each row that is won back: 0 as given, 1 at ``row_bound``.

        It is ``(kept - kept_identity) / (row_bound - kept_identity)``, and 1 where the given order loses nothing.
        """
        lost = self.row_bound - self.kept_identity
        return (self.kept - self.kept_identity) / lost if lost > 1e-12 * self.row_bound else 1.0


def optimize_permutation(
    score: Any,
    pattern: str | tuple[int, int] | Pattern,
    *,
    time_limit: float = 1.0,
    max_rounds: int | None = None,
    bound: Literal["row", "pricing"] = "row",
    seed: int = 0,
    threads: int | None = None,
) -> PermutationResult:
    """Search an order of the columns under which the N:M mask of ``score`` keeps more.

    Rounds of exact linear assignments: one column is taken out of every group, and all are dealt back so that the gains
    plus a random noise are largest; the noise falls as the search goes on. The best order seen is returned, and it
    never keeps less than the given one.

    With ``max_rounds`` the noise falls with the rounds, and the result depends on the arguments alone: same seed, same
    bits, for any number of threads, unless ``time_limit`` cuts it short. Without it the noise falls with the time used,
    so that two runs may differ.

    Ctrl-C ends the search and returns the best order so far, with ``interrupted`` set; nothing is raised.

    Args:
        score: (rows, columns), finite, >= 0; float16, bfloat16, float32 or float64.
        pattern: N:M; M must divide the columns.
        time_limit: seconds, bounds excluded.
        max_rounds: rounds of assignments at most.
        bound: ``"row"``, or ``"pricing"`` for a lower ceiling; M = 4 and at most 128 columns, every group is visited.
        seed: of the ChaCha8 generator.
        threads: None for all.

    Raises:
        ValueError: for a negative or not finite score, columns that are not a multiple of M, a bound that does not go
            with the shape, or an argument out of range.
        TypeError: if the score is not floating point.

    Example:
        >>> score = np.array([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
        >>> found = optimize_permutation(score, "2:4", max_rounds=10)
        >>> found.kept_identity, found.kept, found.efficacy
        (7.0, 10.0, 1.0)
    """
    wanted = Pattern(pattern)
    matrix = to_numpy(score, "score", ndim=2)
    if matrix.dtype == np.float16:
        matrix = matrix.astype(np.float32)
    if bound not in ("row", "pricing"):
        raise ValueError(f"bound: {bound!r} is not 'row' or 'pricing'")
    order, kept, kept_identity, row_bound, upper_bound, trace, rounds, interrupted = _native.optimize_permutation(
        np.ascontiguousarray(matrix),
        (wanted.keep, wanted.group),
        float(time_limit),
        None if max_rounds is None else to_count(max_rounds, "max_rounds"),
        to_count(seed, "seed"),
        to_threads(threads),
        bound == "pricing",
    )
    return PermutationResult(order, kept, kept_identity, row_bound, upper_bound, tuple(trace), rounds, interrupted)
