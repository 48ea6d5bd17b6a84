import numpy as np
import numpy.typing as npt

__version__: str

# masks
def nm_mask(
    score: npt.NDArray[np.float32] | npt.NDArray[np.float64], keep: int, group: int
) -> npt.NDArray[np.bool_]: ...
def check_mask(mask: npt.NDArray[np.bool_], keep: int, group: int) -> None: ...

# permute
def optimize_permutation(
    score: npt.NDArray[np.float32] | npt.NDArray[np.float64],
    pattern: tuple[int, int],
    time_limit: float,
    max_rounds: int | None,
    seed: int,
    threads: int | None,
) -> tuple[npt.NDArray[np.int64], float, float, float, list[tuple[float, float]], int, bool]: ...
