"""How far a matrix is from independent entries of one variance, the ground the Marchenko-Pastur law stands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mpcore import _native
from mpcore.arrays import to_count, to_numpy
from mpcore.records import Record
from mpcore.spectra.fit import fit_edge, spread_and_score
from mpcore.spectra.values import native_matrix

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Diagnostics(Record):
    """What independent entries of one variance would show as zeros.

    ``kurtosis``: excess kurtosis of all entries; ``noise_kurtosis``: of those within ten standard deviations.
    ``row_spread`` and ``column_spread``: coefficient of variation of the variances of rows and columns, less what
    measuring each on few entries adds (0.4 for variances uniform on [.3, 1.7]); ``row_z`` and ``column_z``: how many
    standard errors of noise the square of that is away from 0.
    ``n_spikes``, ``edge``: of the matrix; ``permuted_spikes``, ``permuted_edge``: of the same entries in random places.
    Spikes that stay there come from single large entries, those that go from the arrangement of the entries.
    """

    kind: ClassVar[str] = "diagnostics"
    kurtosis: float
    noise_kurtosis: float
    row_spread: float
    row_z: float
    column_spread: float
    column_z: float
    edge: float
    n_spikes: int
    permuted_edge: float
    permuted_spikes: int


def diagnose(W: Any, *, alpha: float = 0.01, seed: int = 0, threads: int | None = None) -> Diagnostics:
    """Test the assumptions behind :func:`mpcore.fit_edge` on W.

    Args:
        W: (rows, cols), as for :func:`mpcore.fit_edge`; all-zero rows and columns are left out.
        alpha: level of the Tracy-Widom test for spikes, in [1e-15, 1/2].
        seed: of the permutation (NumPy's PCG64).
        threads: None uses all cores; the result does not depend on it.

    Raises:
        TypeError, ValueError: as :func:`mpcore.fit_edge`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> signal = 0.3 * np.outer(rng.standard_normal(200), rng.standard_normal(400))
        >>> found = diagnose(rng.standard_normal((200, 400)) + signal)
        >>> found.n_spikes, found.permuted_spikes, abs(found.kurtosis) < 0.2
        (1, 0, True)
    """
    to_count(seed, "seed")
    options: dict[str, Any] = {"alpha": alpha, "seed": seed, "threads": threads}
    whole = native_matrix(to_numpy(W, "W", ndim=2))
    fit = fit_edge(whole, **options)
    rows, columns = _native.nonzero_lines(whole, threads)
    kept = np.ascontiguousarray(whole[np.ix_(rows, columns)])
    everything, within = _native.kurtosis(kept, None, threads)
    row_spread, row_z = _spread(kept, 1, within)
    column_spread, column_z = _spread(kept, 0, within)
    shuffled = np.random.default_rng(seed).permutation(kept.ravel()).reshape(kept.shape)
    control = fit_edge(shuffled, **options)
    return Diagnostics(
        kurtosis=everything,
        noise_kurtosis=within,
        row_spread=row_spread,
        row_z=row_z,
        column_spread=column_spread,
        column_z=column_z,
        edge=fit.edge,
        n_spikes=fit.n_spikes,
        permuted_edge=control.edge,
        permuted_spikes=control.n_spikes,
    )


def _spread(matrix: NDArray[Any], axis: int, kurtosis: float) -> tuple[float, float]:
    """Of the mean squares along ``axis``."""
    largest = float(np.abs(matrix).max())
    squares = np.square(matrix / largest, dtype=np.float64).mean(axis=axis, keepdims=True).ravel()
    return spread_and_score(squares, matrix.shape[axis], kurtosis)
