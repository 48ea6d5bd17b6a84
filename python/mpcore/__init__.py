"""mpcore: measure the noise in trained layers, prune it in N:M patterns, certify what changed."""

from mpcore._native import __version__ as __version__
from mpcore.records import ConvergenceError as ConvergenceError
from mpcore.records import Pattern as Pattern
from mpcore.masks import check_mask as check_mask
from mpcore.masks import nm_mask as nm_mask
from mpcore.masks import quadratic_mask as quadratic_mask
from mpcore.masks import transposable_mask as transposable_mask
from mpcore.permute import PermutationResult as PermutationResult
from mpcore.permute import optimize_permutation as optimize_permutation
from mpcore.sparse import Packed as Packed
from mpcore.sparse import nm_linear as nm_linear
from mpcore.sparse import pack as pack
