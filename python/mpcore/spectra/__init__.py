"""Singular values, and the edge between noise and signal in a weight matrix."""

from mpcore.spectra.batch import SpectraReport as SpectraReport
from mpcore.spectra.batch import fit_edges as fit_edges
from mpcore.spectra.diagnose import Diagnostics as Diagnostics
from mpcore.spectra.diagnose import diagnose as diagnose
from mpcore.spectra.edgefit import EdgeFit as EdgeFit
from mpcore.spectra.edgefit import GoodnessOfFit as GoodnessOfFit
from mpcore.spectra.edgefit import Ranks as Ranks
from mpcore.spectra.edgefit import Spike as Spike
from mpcore.spectra.fit import fit_edge as fit_edge
from mpcore.spectra.values import Svd as Svd
from mpcore.spectra.values import SvdInfo as SvdInfo
from mpcore.spectra.values import svd as svd
from mpcore.spectra.values import svdvals as svdvals
