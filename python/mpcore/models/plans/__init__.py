"""Permutation groups: which channels of a network can be reordered for free, declared as data per model family.

Reordering the input channels of a layer costs nothing at run time when the layers that produce those channels, and
everything channel-wise in between, are reordered too. A :class:`PermutationGroup` names them. Every application is
checked by the caller: output before = output after (``mpcore.models.permutation``), so a template that does not fit a
look-alike network is refused rather than believed. :func:`trace` proves groups of the other layers on the network's
exported graph, residual streams included; :func:`by_head` guesses at orders per head of attention, to be checked.
"""

from mpcore.models.plans.find import find as find
from mpcore.models.plans.find import plain as plain
from mpcore.models.plans.fold import channels_of as channels_of
from mpcore.models.plans.fold import fold as fold
from mpcore.models.plans.fold import places_of as places_of
from mpcore.models.plans.gather import at_run_time as at_run_time
from mpcore.models.plans.gather import gather as gather
from mpcore.models.plans.gather import ungather as ungather
from mpcore.models.plans.heads import by_head as by_head
from mpcore.models.plans.templates import PermutationGroup as PermutationGroup
from mpcore.models.plans.templates import Producer as Producer
from mpcore.models.plans.templates import TensorAxis as TensorAxis
from mpcore.models.plans.trace import Traced as Traced
from mpcore.models.plans.trace import trace as trace
