"""`mpcore.certify`: what pruning cannot have changed (docs/method.md, "Certificates").

``measured`` compares logits and needs no constant of the network; ``bounds`` are the deterministic theorems about a
removed part R, given a Lipschitz constant of what follows the layer; ``chance`` are the ones for random R, which hold
with a stated probability.
"""

from mpcore.certify.bounds import PruneRestore as PruneRestore
from mpcore.certify.bounds import accuracy_interval as accuracy_interval
from mpcore.certify.bounds import ce_bound as ce_bound
from mpcore.certify.bounds import data_path_budget as data_path_budget
from mpcore.certify.bounds import elastic_net_margin as elastic_net_margin
from mpcore.certify.bounds import frobenius_margin as frobenius_margin
from mpcore.certify.bounds import margin_stable as margin_stable
from mpcore.certify.bounds import multi_layer_margin as multi_layer_margin
from mpcore.certify.bounds import propagated_effect as propagated_effect
from mpcore.certify.bounds import prune_restore as prune_restore
from mpcore.certify.bounds import relu_tail_lipschitz as relu_tail_lipschitz
from mpcore.certify.bounds import relu_tail_spread as relu_tail_spread
from mpcore.certify.bounds import restoration_gain as restoration_gain
from mpcore.certify.bounds import row_norm_effect as row_norm_effect
from mpcore.certify.bounds import smallest_lambda2 as smallest_lambda2
from mpcore.certify.bounds import stationarity_excess as stationarity_excess
from mpcore.certify.chance import gaussian_effect as gaussian_effect
from mpcore.certify.chance import mp_edge_effect as mp_edge_effect
from mpcore.certify.chance import recover_support as recover_support
from mpcore.certify.chance import sub_gaussian_effect as sub_gaussian_effect
from mpcore.certify.chance import support_threshold as support_threshold
from mpcore.certify.measured import certify as certify
from mpcore.certify.measured import wilson as wilson
