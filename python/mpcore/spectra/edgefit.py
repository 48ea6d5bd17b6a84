"""The record that :func:`mpcore.fit_edge` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mpcore.html import facts
from mpcore.records import Record, to_numpy
from mpcore.spectra import mp
from mpcore.spectra.values import svd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Spike:
    """One singular value above the edge.

    ``value`` and ``strength`` are singular values of W and of the signal behind it, the noise's part taken off.
    ``p_value`` is the probability that noise alone reaches ``value`` (Tracy-Widom). ``overlap_left`` and
    ``overlap_right`` are the expected cosines between the singular vectors of W and those of the signal.
    ``participation_*`` = 1 / (size * sum of u^4) of the sample vectors, 1/3 for a spread-out random vector, 1/size for
    a single entry; None unless ``vectors=True``.
    """

    value: float
    strength: float
    p_value: float
    overlap_left: float | None
    overlap_right: float | None
    participation_left: float | None = None
    participation_right: float | None = None


@dataclass(frozen=True)
class GoodnessOfFit:
    """How well the bulk follows the Marchenko-Pastur law with the fitted variance, spikes allowed for.

    ``ks``: largest distance between the distribution of the bulk and the law. ``p_value``: probability of a larger one
    under the law (its variance fitted too). ``anderson_darling``: squared distance weighted towards both edges.
    ``accepted``: p_value >= 0.01. The Lanczos route tests the second moment instead; ``ks`` and ``anderson_darling``
    are None there.
    """

    ks: float | None
    p_value: float
    anderson_darling: float | None
    accepted: bool


@dataclass(frozen=True)
class Ranks:
    """Four answers to "how many dimensions"; those that need all singular values are None on the Lanczos route.

    ``stable`` = squared Frobenius norm over s1^2; ``effective`` = exp of the entropy of s / sum(s); ``numerical`` =
    number of s > max(p, n) eps s1; ``gavish_donoho`` = number above the optimal hard threshold.
    """

    stable: float
    effective: float | None
    numerical: int | None
    gavish_donoho: int | None


@dataclass(frozen=True)
class EdgeFit(Record):
    """Noise and signal of one (rows, cols) matrix W.

    ``lambda_*`` are eigenvalues of W W' / n, ``sigma_*`` singular values of W itself (sigma = sqrt(n lambda)). ``p`` <=
    ``n`` are the sides after all-zero rows and columns are dropped, ``gamma`` = p/n; ``shape`` is as given.

    ``edge`` is the one to act on: ``sigma_plus_deflated`` where the Marchenko-Pastur law is accepted, ``sigma_free``
    where it is not; of up to 128 values the edge of noise with the variances of rows and columns, where these explain
    some of the spikes. ``model_used`` says which. ``n_spikes`` counts values above the threshold that goes with
    ``edge`` (edge plus the Tracy-Widom term at level ``alpha``), ``n_spikes_ci`` the same with the edge at the ends of
    ``edge_ci``. Intervals are 95 %.
    """

    kind: ClassVar[str] = "edge"
    shape: tuple[int, int]
    p: int
    n: int
    gamma: float
    sigma_sq: float
    sigma_sq_se: float
    sigma_sq_ci: tuple[float, float]
    lambda_minus: float
    lambda_plus: float
    sigma_minus: float
    sigma_plus: float
    sigma_plus_deflated: float
    sigma_tw: float
    alpha: float
    sigma_free: float | None
    sigma_free_ci: tuple[float, float] | None
    edge: float
    edge_ci: tuple[float, float]
    n_spikes: int
    n_spikes_ci: tuple[int, int]
    n_spikes_whitened: int | None
    n_below: int | None
    spikes: tuple[Spike, ...]
    bulk_fraction: float
    gof: GoodnessOfFit
    ranks: Ranks
    mp_soft_rank: float
    model_used: str  # "mp" | "free" | "whitened" | "bema" | "paper"
    method_used: str  # "exact" | "lanczos"
    warnings: tuple[str, ...]
    values: tuple[float, ...] | None = None

    def _repr_html_(self) -> str:
        """The figures that matter, and the plot where the fit holds its values and matplotlib is there."""
        names = (
            "shape",
            "edge",
            "edge_ci",
            "n_spikes",
            "n_spikes_ci",
            "n_spikes_whitened",
            "bulk_fraction",
            "sigma_sq",
        )
        pairs = {name: getattr(self, name) for name in (*names, "model_used", "method_used", "warnings")}
        law = f"{'accepted' if self.gof.accepted else 'rejected'}, p = {self.gof.p_value:.2g}"
        return facts({"Marchenko-Pastur law": law, **pairs}, title="EdgeFit") + self._picture()

    def _picture(self) -> str:
        if self.values is None:
            return ""
        try:
            from mpcore.spectra.plot import svg
        except ModuleNotFoundError as error:
            if error.name == "matplotlib":
                return ""
            raise
        return svg(self)

    def pdf(self, x: ArrayLike) -> NDArray[np.float64]:
        """Fitted Marchenko-Pastur density at eigenvalues x.

        Raises:
            ValueError: if the matrix has no noise (sigma_sq = 0).
        """
        return mp.pdf(x, self.gamma, self.sigma_sq)

    def cdf(self, x: ArrayLike) -> NDArray[np.float64]:
        """Fitted Marchenko-Pastur distribution function at eigenvalues x.

        Raises:
            ValueError: if the matrix has no noise (sigma_sq = 0).
        """
        return mp.cdf(x, self.gamma, self.sigma_sq)

    def ppf(self, q: ArrayLike) -> NDArray[np.float64]:
        """Eigenvalues at levels q of the fitted law.

        Raises:
            ValueError: if the matrix has no noise (sigma_sq = 0) or q is outside [0, 1].
        """
        return mp.ppf(q, self.gamma, self.sigma_sq)

    def shrink(self, W: Any, *, seed: int = 0) -> NDArray[Any]:
        """Denoise: keep the spikes of W, each shrunk to strength * overlap_left * overlap_right, drop the rest.

        This minimises the expected squared Frobenius error under the fitted noise (Gavish and Donoho, "Optimal
        shrinkage of singular values", 2017).

        Args:
            W: the matrix that was fitted, (rows, cols).
            seed: of the iteration that finds the singular vectors.

        Returns:
            (rows, cols), float32 for half and single precision, float64 otherwise.

        Raises:
            ValueError: if W has another shape than was fitted.
        """
        array = to_numpy(W, "W", ndim=2)
        if array.shape != self.shape:
            raise ValueError(f"W: shape {array.shape} is not the fitted {self.shape}")
        dtype = np.float64 if array.dtype == np.float64 else np.float32
        if not self.spikes:
            return np.zeros(self.shape, dtype)
        found = svd(array, len(self.spikes), seed=seed)
        kept = [s.strength * (s.overlap_left or 0.0) * (s.overlap_right or 0.0) for s in self.spikes]
        denoised: NDArray[Any] = ((found.U * kept) @ found.Vt).astype(dtype)
        return denoised

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """Histogram of the eigenvalues with the fitted law, the edge and its interval, and the spikes.

        Args:
            ax: matplotlib axes to draw on; None makes a figure.
            title: heading; None writes shape, spikes and verdict.

        Raises:
            ValueError: if the fit holds no values: fit with ``return_values=True``.
        """
        from mpcore.spectra.plot import draw

        return draw(self, ax, title)
