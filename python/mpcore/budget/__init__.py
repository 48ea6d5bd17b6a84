"""From signals to a pattern per layer: uniform, from a table, by spectral edges (SEB), or by measured sensitivities.

Only arrays and records are needed here. Layers that cannot be cut into groups stay dense, with the reason in words.
"""

from mpcore.budget.knapsack import fitting as fitting
from mpcore.budget.knapsack import knapsack as knapsack
from mpcore.budget.knapsack import reference_pattern as reference_pattern
from mpcore.budget.knapsack import solve_choices as solve_choices
from mpcore.budget.plain import from_table as from_table
from mpcore.budget.plain import uniform as uniform
from mpcore.budget.predecessor import rmt2025 as rmt2025
from mpcore.budget.predecessor import rmt2025_shares as rmt2025_shares
from mpcore.budget.seb import corrected_signal as corrected_signal
from mpcore.budget.seb import hill_exponent as hill_exponent
from mpcore.budget.seb import layer_weights as layer_weights
from mpcore.budget.seb import seb as seb
