"""mpcore: measure the noise in trained layers, prune it in N:M patterns, certify what changed.

NumPy names are here at once; names that need torch are imported when they are first used, so that ``import mpcore`` never
imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpcore._native import __version__ as __version__
from mpcore.masks import check_mask as check_mask
from mpcore.masks import nm_mask as nm_mask
from mpcore.permute import PermutationResult as PermutationResult
from mpcore.permute import optimize_permutation as optimize_permutation
from mpcore.records import ConvergenceError as ConvergenceError
from mpcore.records import Pattern as Pattern
from mpcore.verify import verify as verify
