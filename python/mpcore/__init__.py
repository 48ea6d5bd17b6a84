"""mpcore: measure the noise in trained layers, prune it in N:M patterns, certify what changed."""

from mpcore._native import __version__ as __version__
from mpcore.compensate import admm as admm
from mpcore.compensate import lstsq as lstsq
from mpcore.compensate import output_error as output_error
from mpcore.compensate import sparsegpt as sparsegpt
from mpcore.masks import check_mask as check_mask
from mpcore.masks import nm_mask as nm_mask
from mpcore.records import ConvergenceError as ConvergenceError
from mpcore.records import Pattern as Pattern
