"""mpcore: measure the noise in trained layers, prune it in N:M patterns, certify what changed.

NumPy names are here at once; names that need torch are imported when they are first used, so that ``import mpcore``
never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpcore import certify as certify
from mpcore import compensate as compensate
from mpcore._native import __version__ as __version__
from mpcore.masks import check_mask as check_mask
from mpcore.masks import nm_mask as nm_mask
from mpcore.masks import quadratic_mask as quadratic_mask
from mpcore.masks import transposable_mask as transposable_mask
from mpcore.permute import PermutationResult as PermutationResult
from mpcore.permute import optimize_permutation as optimize_permutation
from mpcore.records import ConvergenceError as ConvergenceError
from mpcore.records import Pattern as Pattern
from mpcore.sparse import Packed as Packed
from mpcore.sparse import nm_linear as nm_linear
from mpcore.sparse import pack as pack
from mpcore.spectra import EdgeFit as EdgeFit
from mpcore.spectra import SpectraReport as SpectraReport
from mpcore.spectra import fit_edge as fit_edge
from mpcore.spectra import fit_edges as fit_edges
from mpcore.spectra import mp as mp
from mpcore.spectra import svd as svd
from mpcore.spectra import svdvals as svdvals
from mpcore.stream import prune_checkpoint as prune_checkpoint
from mpcore.verify import verify as verify

if TYPE_CHECKING:
    from mpcore.models.accelerate import accelerate as accelerate
    from mpcore.models.evaluate import evaluate as evaluate
    from mpcore.models.export import load as load
    from mpcore.models.inventory import inventory as inventory
    from mpcore.models.recipe import Recipe as Recipe
    from mpcore.pipeline import prune as prune
    from mpcore.recovery import distill as distill

_NEEDS_TORCH = {
    "Recipe": "mpcore.models.recipe",
    "accelerate": "mpcore.models.accelerate",
    "distill": "mpcore.recovery",
    "evaluate": "mpcore.models.evaluate",
    "inventory": "mpcore.models.inventory",
    "load": "mpcore.models.export",
    "prune": "mpcore.pipeline",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module 'mpcore' has no attribute {name!r}")
    try:
        module = import_module(_NEEDS_TORCH[name])
    except ModuleNotFoundError as error:
        if error.name in ("torch", "timm", "torchvision"):
            raise ImportError(f"mpcore.{name} needs {error.name}: pip install mpcore[torch]") from None
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_NEEDS_TORCH})
