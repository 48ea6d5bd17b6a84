"""Channel permutations: an order of the columns under which an N:M mask keeps more of the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mpcore import _native
from mpcore.records import Pattern, to_numpy


@dataclass(frozen=True, eq=False)
class PermutationResult:
    """An order of the columns, what it keeps, and what no order can exceed. All sums are taken in float64.

    ``order[new] = old``: use ``score[:, order]``. ``kept`` is the sum over rows and groups of the N largest scores under
    this order, ``kept_identity`` the same under the given one, ``row_bound`` the sum of the largest N/M of every row
    without groups. ``upper_bound`` is the lowest certified ceiling at hand: ``row_bound``, or the pricing bound.
    ``trace`` holds (seconds, kept) whenever a better order was found.
    """

    order: npt.NDArray[np.int64]
    kept: float
    kept_identity: float
    row_bound: float
    upper_bound: float
    trace: tuple[tuple[float, float], ...]
    rounds: int
    interrupted: bool

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
    bound: Literal["row"] = "row",
    seed: int = 0,
    threads: int | None = None,
) -> PermutationResult:
    """Search an order of the columns under which the N:M mask of ``score`` keeps more.

    Rounds of exact linear assignments: one column is taken out of every group, and all are dealt back so that the gains
    plus a random noise are largest; the noise falls as the search goes on. The best order seen is returned, and it
    never keeps less than the given one.

    With ``max_rounds`` the result depends on the arguments alone: same seed, same bits, for any number of threads, unless
    ``time_limit`` cuts it short. Without it the noise falls with the time used, so that two runs differ.

    Ctrl-C ends the search and returns the best order so far, with ``interrupted`` set; nothing is raised.

    Args:
        score: (rows, columns), finite, >= 0; float16, bfloat16, float32 or float64.
        pattern: N:M; M must divide the columns.
        time_limit: seconds, bounds excluded.
        max_rounds: rounds of assignments at most.
        bound: ``"row"``.
        seed: of the ChaCha8 generator.
        threads: None for all.

    Raises:
        ValueError: for a negative or not finite score, columns that are not a multiple of M, or an argument out of range.

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
    for name, value, least in (("max_rounds", max_rounds, 0), ("seed", seed, 0), ("threads", threads, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name}: {value} is below {least}")
    order, kept, kept_identity, row_bound, trace, rounds, interrupted = _native.optimize_permutation(
        np.ascontiguousarray(matrix), (wanted.keep, wanted.group), time_limit, max_rounds, seed, threads
    )
    return PermutationResult(order, kept, kept_identity, row_bound, row_bound, tuple(trace), rounds, interrupted)
