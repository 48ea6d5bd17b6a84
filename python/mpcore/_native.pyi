from typing import Any, final

import numpy as np
import numpy.typing as npt

__version__: str

# compensate

def admm(
    weight: npt.NDArray[np.float32],
    gram: npt.NDArray[np.float64],
    keep: int,
    group: int,
    damping: float,
    steps: int,
    threads: int | None,
) -> npt.NDArray[np.float32]: ...
def lstsq(
    weight: npt.NDArray[np.float32],
    gram: npt.NDArray[np.float64],
    mask: npt.NDArray[np.bool_],
    damping: float,
    steps: int,
    threads: int | None,
) -> npt.NDArray[np.float32]: ...
def sparsegpt(
    weight: npt.NDArray[np.float32],
    gram: npt.NDArray[np.float64],
    keep: int,
    group: int,
    mask: npt.NDArray[np.bool_] | None,
    damping: float,
    threads: int | None,
) -> npt.NDArray[np.float32]: ...
def output_error(
    weight: npt.NDArray[np.float64], pruned: npt.NDArray[np.float64], gram: npt.NDArray[np.float64]
) -> float: ...

# certify

def margins(logits: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.uintp], npt.NDArray[np.float64]]: ...
def label_margins(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.uintp]) -> npt.NDArray[np.float64]: ...
def largest_changes(dense: npt.NDArray[np.float64], pruned: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...

# masks
def nm_mask(
    score: npt.NDArray[np.float32] | npt.NDArray[np.float64], keep: int, group: int
) -> npt.NDArray[np.bool_]: ...
def check_mask(mask: npt.NDArray[np.bool_], keep: int, group: int) -> None: ...
def quadratic_mask(
    weight: npt.NDArray[np.float32] | npt.NDArray[np.float64],
    gram: npt.NDArray[np.float64],
    keep: int,
    group: int,
    target: npt.NDArray[np.bool_] | None,
    target_weight: float,
) -> npt.NDArray[np.bool_]: ...
def transposable_mask(
    score: npt.NDArray[np.float32] | npt.NDArray[np.float64], keep: int, group: int
) -> npt.NDArray[np.bool_]: ...

# permute
def optimize_permutation(
    score: npt.NDArray[np.float32] | npt.NDArray[np.float64],
    pattern: tuple[int, int],
    time_limit: float,
    max_rounds: int | None,
    seed: int,
    threads: int | None,
    pricing: bool,
) -> tuple[npt.NDArray[np.int64], float, float, float, float, list[tuple[float, float]], int, bool]: ...

# sparse
def pack_weights(
    weight: npt.NDArray[np.float32], keep: int, group: int, mask: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]: ...
def unpack_weights(
    values: npt.NDArray[np.float32], places: npt.NDArray[np.uint8], columns: int, keep: int, group: int
) -> npt.NDArray[np.float32]: ...
def instruction_sets() -> list[str]: ...

_Values = npt.NDArray[np.float32] | npt.NDArray[np.uint16]
_Pair = tuple[int, int]
_Rest = tuple[_Values | None, str | None, bool, int | None, bool]

@final
class NmWeights:
    def __new__(
        cls, values: npt.NDArray[np.float32], places: npt.NDArray[np.uint8], columns: int, keep: int, group: int
    ) -> NmWeights: ...
    def linear(self, /, input: _Values, output: _Values, last: bool, rest: _Rest) -> None: ...
    def conv2d(
        self,
        /,
        input: _Values,
        output: _Values,
        last: bool,
        geometry: tuple[_Pair, _Pair, _Pair, _Pair, _Pair, _Pair],
        rest: _Rest,
    ) -> None: ...

# spectra

_Matrix = npt.NDArray[np.float32] | npt.NDArray[np.float64]

def singular_values(w: _Matrix, bulk: bool, threads: int | None = None) -> npt.NDArray[np.float64]: ...
def nonzero_lines(w: _Matrix, threads: int | None = None) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]: ...
def kurtosis(w: _Matrix, deviation: float | None, threads: int | None = None) -> tuple[float, float]: ...
def sinkhorn(
    w: _Matrix, sides: str, threads: int | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...
def lanczos_edge(
    w: _Matrix,
    *,
    alpha: float,
    k_max: int | None,
    seed: int,
    kurtosis: tuple[float, float],
    threads: int | None = None,
) -> tuple[dict[str, Any] | None, str]: ...
def top_svd(
    w: _Matrix, k: int, tol: float, fast: bool, seed: int, threads: int | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64], int]: ...
def find_edge(
    values: npt.NDArray[np.float64],
    n: int,
    *,
    model: str,
    alpha: float,
    bema: tuple[float, float] | None,
    profile: float | None,
    k_max: int | None,
    n_boot: int,
    seed: int,
    kurtosis: tuple[float, float],
    eps: float,
    threads: int | None,
) -> dict[str, Any]: ...
def profile_edge(rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]) -> float: ...
def mp_law(
    what: str, x: npt.NDArray[np.float64], gamma: npt.NDArray[np.float64], sigma_sq: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]: ...
def tracy_widom_law(what: str, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...
