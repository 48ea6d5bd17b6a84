"""Deterministic bounds of what removing a part R of one weight matrix can do, on a finite sample set T.

One layer A = S + R is looked at, all others stay. v_s, (columns,), is the layer's input for sample s, and A_theta = S +
theta R leaves the share theta of R in place: theta = 1 is the dense layer, 0 the pruned one. L_s bounds the largest
change of a logit per largest change of the layer's output, anywhere on the segment of the A_theta v_s. Two numbers
carry everything:

- the effect eta_s = L_s max_i |(R v_s)_i| bounds every logit's change, :func:`propagated_effect`;
- the budget B_T(R) = 2 mean eta_s bounds the change of the mean cross entropy, :func:`data_path_budget`; the 2 is the
  Lipschitz constant of softmax cross entropy in the max norm.

All are statements about T, exact up to float64 rounding. L_s has to be true: :func:`relu_tail_lipschitz` gives it where
only Linear and ReLU layers follow. Transformers have no finite global constant; use the measured effects of
:func:`mpcore.certify.certify` for them, which need none.

References:
    Berlyand, Bourdais, Owhadi, Shmalo, "Pruning deep neural networks via the Marchenko-Pastur distribution", 2026.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpcore.arrays import to_numpy
from mpcore.certify.arithmetic import (
    Vector,
    joined,
    largest_products,
    largest_sum,
    matrix,
    number,
    numbers,
    product,
    scaled,
    share,
    within_range,
)


def propagated_effect(removed: Any, inputs: Any, lipschitz: Any, *, theta: float = 0.0) -> Vector:
    """eta_s(theta) = (1 - theta) L_s max_i |(R v_s)_i|: no logit of sample s moves by more, shape (samples,).

    What the rounding of the products can hide is added, so that this holds where their terms cancel too.

    Args:
        removed: R, (rows, columns), zero where weights stay.
        inputs: v_s, (samples, columns), or (samples, tokens, columns): the maximum then runs over tokens (or the
            positions of a convolution's patches) too.
        lipschitz: L_s in logits per unit of the layer's output, a number or (samples,).
        theta: share of R that is left, 0..1.

    Raises:
        ValueError: for inputs of another width, an L_s that is negative or of another shape, or a theta outside 0..1.

    Example:
        >>> propagated_effect(np.array([[0.0, 2.0]]), np.array([[1.0, 3.0], [1.0, 0.0]]), 0.5)
        array([3., 0.])
    """
    R = matrix(removed, "removed")
    V = to_numpy(inputs, "inputs").astype(np.float64)
    if V.ndim not in (2, 3) or V.shape[-1] != R.shape[1]:
        raise ValueError(f"inputs: shape {V.shape} does not end in the {R.shape[1]} columns of removed")
    constants = numbers(lipschitz, "lipschitz", (len(V),), infinite=True)
    reach, exponents = largest_products(R, V)
    return product(1 - share(theta), constants, reach, exponent=exponents)


def row_norm_effect(removed: Any, input_norms: Any, lipschitz: Any) -> Vector:
    """L_s max_i |R_i|_2 |v_s|_2 >= :func:`propagated_effect`, from the norms of the inputs alone, (samples,).

    Args:
        removed: R, (rows, columns).
        input_norms: |v_s|_2, (samples,).
        lipschitz: L_s, a number or (samples,).

    Example:
        >>> row_norm_effect(np.array([[0.0, 2.0]]), np.array([10.0]), 0.5)
        array([10.])
    """
    norms = np.atleast_1d(numbers(input_norms, "input_norms", (-1,)))
    constants = numbers(lipschitz, "lipschitz", (len(norms),), infinite=True)
    R, exponent = scaled(matrix(removed, "removed"))
    return product(constants, np.sqrt((R**2).sum(axis=1).max()), norms, exponent=exponent)


def ce_bound(eta: Any) -> float:
    """Bound of the change of the mean cross entropy, 2 mean(eta), for any labels.

    Args:
        eta: (samples,) largest change of any logit, bounded or measured, summed over the steps of a path.

    Example:
        >>> ce_bound(np.array([0.5, 1.0]))
        1.5
    """
    changes, exponent = scaled(numbers(eta, "eta", (-1,), infinite=True))
    return float(product(2.0, changes.mean(), exponent=exponent))


def data_path_budget(removed: Any, inputs: Any, lipschitz: Any, *, theta: float = 0.0) -> float:
    """(1 - theta) B_T(R), B_T(R) = (2 / |T|) sum_s L_s max_i |(R v_s)_i|: bounds |CE(A_theta) - CE(A_1)| (path bound).

    Arguments as in :func:`propagated_effect`. Convex and absolutely homogeneous in R, but not monotone in its support.

    Example:
        >>> round(data_path_budget(np.array([[0.0, 2.0]]), np.array([[1.0, 3.0], [1.0, 0.0]]), 0.5), 12)
        3.0
    """
    return ce_bound(propagated_effect(removed, inputs, lipschitz, theta=theta))


def margin_stable(margin: Any, eta: Any) -> npt.NDArray[np.bool_]:
    """Samples whose label cannot have changed: margin > 2 eta, strictly.

    Args:
        margin: (samples,) top logit minus runner-up before the change, or one number.
        eta: (samples,) largest change of any logit, or one number.

    Raises:
        ValueError: for NaN, a negative eta, or shapes that do not fit; nothing else is broadcast.

    Example:
        >>> margin_stable(np.array([1.0, 1.0]), np.array([0.4, 0.5])).tolist()
        [True, False]
    """
    lead, reach = _lead_and_reach(margin, eta, "margin")
    stable: npt.NDArray[np.bool_] = lead > reach
    return stable


def accuracy_interval(label_margin: Any, eta: Any) -> tuple[float, float]:
    """The accuracy on T after the change lies in it: surely right if margin > 2 eta, surely wrong if margin < -2 eta.

    Its ends lie within mean(|margin| <= 2 eta) of the accuracy before, the paper's margin-stability bound.

    Args:
        label_margin: (samples,) logit of the true label minus the largest other before the change.
        eta: (samples,) largest change of any logit, or one number.

    Raises:
        ValueError: for NaN, a negative eta, or shapes that do not fit; nothing else is broadcast.

    Example:
        >>> accuracy_interval(np.array([3.0, 0.5, -2.0, -0.1]), np.array([1.0, 1.0, 0.5, 0.5]))
        (0.25, 0.75)
    """
    lead, reach = _lead_and_reach(label_margin, eta, "label_margin")
    return float((lead > reach).mean()), float((lead >= -reach).mean())


def elastic_net_margin(removed: Any, budget: float, *, lambda2: Any, lambda1: Any = 0.0, theta: float = 0.0) -> float:
    """Removing all but the share theta of R lowers J = CE + lambda2 |A|_F^2 + lambda1 |A|_1 by at least this.

    lambda2 (1 - theta^2) |R|_F^2 + lambda1 (1 - theta) |R|_1 - (1 - theta) B_T(R); positive: certified. Assumes that R
    is what a mask removes: no entry of it stays (the supports of S and R are disjoint).

    Args:
        removed: R, (rows, columns).
        budget: B_T(R), or 2 mean(eta) of measured logit changes, >= 0; an infinite one is never certified.
        lambda2: >= 0, a number or (rows, columns) weights gamma_ij; half the weight decay of SGD. AdamW's decoupled
            decay is no term of the loss and gives none.
        lambda1: >= 0, a number or (rows, columns).
        theta: share of R that is left, 0..1.

    Raises:
        ValueError: for a negative number, an array of another shape, or norms outside float64.

    Example:
        >>> elastic_net_margin(np.array([[1.0, -2.0]]), 3.0, lambda2=0.5, lambda1=0.5)
        1.0
    """
    square, absolute = _norms(removed, lambda2, lambda1)
    left = 1 - share(theta)
    return (1 - theta**2) * square + left * absolute - _cost(left, budget)


def frobenius_margin(kept: Any, removed: Any, budget: float, *, lambda2: float, theta: float = 0.0) -> float:
    """Decrease of CE + lambda2 |A|_F^2 that is certain for any split A = S + R, disjoint or not, low rank or not.

    lambda2 ((1 - theta^2) |R|_F^2 + 2 (1 - theta) <S, R>) - (1 - theta) B_T(R); positive: certified. The paper's test
    has -|<S, R>| for <S, R> and follows from it; both agree for the parts of a truncated SVD, where <S, R> = 0.

    Args:
        kept: S, (rows, columns).
        removed: R, (rows, columns).
        budget: B_T(R).
        lambda2: >= 0.
        theta: share of R that is left, 0..1.

    Example:
        >>> frobenius_margin(np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]]), 3.0, lambda2=1.0)
        1.0
    """
    S, R = matrix(kept, "kept"), matrix(removed, "removed")
    if S.shape != R.shape:
        raise ValueError(f"kept: shape {S.shape} is not that of removed, {R.shape}")
    left = 1 - share(theta)
    with np.errstate(all="ignore"):
        gain = float((1 - theta**2) * (R * R).sum() + 2 * left * (S * R).sum())
    gain = within_range(number(lambda2, "lambda2") * gain, "kept, removed: lambda2 (|R|^2 + 2 <S, R>)")
    return gain - _cost(left, budget)


def smallest_lambda2(removed: Any, budget: float, *, lambda1: float = 0.0) -> float:
    """The mask is certified for every lambda2 above this: where :func:`elastic_net_margin` vanishes.

    0 if lambda1 alone pays for it; infinity if none does, as for removing nothing, where the margin is never positive.

    Example:
        >>> smallest_lambda2(np.array([[1.0, -2.0]]), 3.0)
        0.6
    """
    square, absolute = _norms(removed, 1.0, lambda1)
    missing = _cost(1.0, budget) - absolute
    if missing < 0 or (missing == 0 and square > 0):
        return 0.0
    return max(missing / square, math.ulp(0.0)) if square > 0 else math.inf


class PruneRestore(NamedTuple):
    """What :func:`prune_restore` says of removing Q + P and giving Q back."""

    margin: float  # elastic-net margin of removing P alone; positive: certified
    gain: float  # by how much restoring Q improved the bound; negative where it loosened it


def prune_restore(
    restored: Any, removed: Any, inputs: Any, lipschitz: Any, *, lambda2: float, lambda1: float = 0.0
) -> PruneRestore:
    """Certificate of A = S + Q + P, three disjoint supports: Q was pruned and restored, P stays removed.

    Args:
        restored: Q, (rows, columns).
        removed: P, (rows, columns).
        inputs: v_s, as in :func:`propagated_effect`.
        lipschitz: L_s on the segments that removing P, and Q + P, walk along.
        lambda2: >= 0.
        lambda1: >= 0.

    Raises:
        ValueError: if Q and P share an entry.

    Example:
        >>> Q, P = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
        >>> found = prune_restore(Q, P, np.array([[1.0, 1.0]]), 1.0, lambda2=3.0)
        >>> round(found.margin, 12), round(found.gain, 12)
        (1.0, -1.0)
    """
    Q, P = matrix(restored, "restored"), matrix(removed, "removed")
    if Q.shape != P.shape or ((Q != 0) & (P != 0)).any():
        raise ValueError("restored: shares an entry with removed, or has another shape")
    both, after = data_path_budget(Q + P, inputs, lipschitz), data_path_budget(P, inputs, lipschitz)
    return PruneRestore(
        elastic_net_margin(P, after, lambda2=lambda2, lambda1=lambda1),
        restoration_gain(Q, both, after, lambda2=lambda2, lambda1=lambda1),
    )


def restoration_gain(
    restored: Any, budget_before: float, budget_after: float, *, lambda2: float, lambda1: float = 0.0
) -> float:
    """B_T(Q + P) - B_T(P) - lambda2 |Q|_F^2 - lambda1 |Q|_1: restoring Q tightens the bound if positive.

    ``budget_before`` is B_T(Q + P) and ``budget_after`` is B_T(P); the budget is not monotone in the support, so that
    a restoration can also loosen it. It compares bounds, not objectives.
    """
    square, absolute = _norms(restored, lambda2, lambda1)
    before, after = (_cost(1.0, v, n) for v, n in ((budget_before, "budget_before"), (budget_after, "budget_after")))
    return before - after - square - absolute if after < math.inf else -math.inf


def multi_layer_margin(
    removed: Sequence[Any], budgets: Sequence[float], *, lambda2: Sequence[float], lambda1: Sequence[float] = ()
) -> float:
    """Certain decrease of CE + sum_j lambda2_j |A_j|_F^2 + lambda1_j |A_j|_1 after removals from several layers.

    sum_j lambda2_j |R_j|_F^2 + lambda1_j |R_j|_1 - B_j. Assumes an order: each B_j bounds the change of the cross
    entropy by step j in the network after steps 1..j-1, as :func:`ce_bound` of measured changes does.

    Args:
        removed: R_j of every step, matrices with supports disjoint from what stays.
        budgets: B_j of every step.
        lambda2: one for every step.
        lambda1: one for every step, or none at all for zeros.

    Example:
        >>> multi_layer_margin([np.ones((1, 2)), np.ones((1, 1))], [0.5, 1.0], lambda2=[1.0, 1.0])
        1.5
    """
    ones = list(lambda1) or [0.0] * len(removed)
    for name, values in (("budgets", budgets), ("lambda2", lambda2), ("lambda1", ones)):
        if len(values) != len(removed):
            raise ValueError(f"{name}: {len(values)} entries, wanted {len(removed)}, one per matrix of removed")
    steps = zip(removed, budgets, lambda2, ones, strict=True)
    return math.fsum(elastic_net_margin(R, B, lambda2=two, lambda1=one) for R, B, two, one in steps)


def stationarity_excess(
    removed: Any,
    budget: float,
    *,
    lambda2: float,
    lambda1: float = 0.0,
    epsilon: float = 0.0,
    theta: float = 1.0,
) -> float:
    """lambda2 (1 + theta) |R|_F^2 + lambda1 |R|_1 - B_T(R) - epsilon: positive proves that J is not at a minimum.

    For theta = 1: where J(A_(1-h)) >= J(A_1) - epsilon h for small h (a one-sided epsilon-stationary point of CE +
    lambda2 |A|_F^2 + lambda1 |A|_1), the excess of every mask R is at most 0. For theta < 1 it is so where
    J(A_theta) >= J(A_1) - epsilon (1 - theta).

    Example:
        >>> stationarity_excess(np.array([[1.0]]), 1.0, lambda2=0.25)
        -0.5
    """
    square, absolute = _norms(removed, lambda2, lambda1)
    return (1 + share(theta)) * square + absolute - _cost(1.0, budget) - number(epsilon, "epsilon")


def relu_tail_lipschitz(weights: Sequence[Any]) -> float:
    """L of a tail of Linear layers with 1-Lipschitz activations between: the product of the norms max_i sum_j |W_ij|.

    Bounds the change of every single logit. Exact for one layer; activations may be ReLU, |.|, tanh, not GELU (1.13).

    Args:
        weights: (outputs, inputs) of every Linear behind the pruned layer, in order; biases do not matter.

    Raises:
        ValueError: for no weights, or inputs of a layer that are not the outputs of the one before.

    Example:
        >>> relu_tail_lipschitz([np.array([[1.0, -1.0]]), np.array([[3.0], [-2.0]])])
        6.0
    """
    return joined([largest_sum(W) for W in _tail(weights)])


def relu_tail_spread(weights: Sequence[Any]) -> float:
    """Half the largest change of a difference of two logits, per unit of the layer's output: never above L.

    The last factor of :func:`relu_tail_lipschitz` becomes max_(a, b) |w_a - w_b|_1 / 2 over pairs of classes. May stand
    for L_s in everything that depends on differences of logits alone: margins, labels and cross entropy, not in
    bounds of single logits.

    Args:
        weights: as above; the last one has at least two rows.

    Example:
        >>> relu_tail_spread([np.array([[1.0, -1.0]]), np.array([[3.0], [2.0]])])
        1.0
    """
    *before, last = _tail(weights)
    if len(last) < 2:
        raise ValueError(f"weights: the last has {len(last)} rows, wanted at least 2 classes")
    W, exponent = scaled(last)
    pairs = max(float(np.abs(W[a + 1 :] - W[a]).sum(axis=1).max()) for a in range(len(W) - 1))
    return joined([*map(largest_sum, before), (pairs / 2, exponent)])


def _tail(weights: Sequence[Any]) -> list[Vector]:
    if not len(weights):
        raise ValueError("weights: wanted at least one layer")
    tail = [matrix(W, f"weights[{index}]") for index, W in enumerate(weights)]
    for index, (before, after) in enumerate(itertools.pairwise(tail)):
        if after.shape[1] != len(before):
            raise ValueError(
                f"weights[{index + 1}]: shape {after.shape} takes {after.shape[1]} inputs, "
                f"weights[{index}] has {len(before)} outputs"
            )
    return tail


def _lead_and_reach(margin: Any, eta: Any, name: str) -> tuple[Vector, Vector]:
    """The margins and 2 eta, each a number or one per sample."""
    lead = numbers(margin, name, (-1,), least=-math.inf)
    changes = numbers(eta, "eta", lead.shape or (-1,), infinite=True)
    with np.errstate(over="ignore"):
        return lead, 2 * changes


def _cost(left: float, budget: Any, name: str = "budget") -> float:
    """The share ``left`` of B_T, 0 for left = 0 even of an infinite budget."""
    return float(product(left, number(budget, name, infinite=True)))


def _norms(removed: Any, lambda2: Any, lambda1: Any) -> tuple[float, float]:
    """The sums of lambda2 R^2 and of lambda1 |R|."""
    R = matrix(removed, "removed")
    two, one = numbers(lambda2, "lambda2", R.shape), numbers(lambda1, "lambda1", R.shape)
    with np.errstate(all="ignore"):
        square, absolute = float((two * R * R).sum()), float((one * np.abs(R)).sum())
    return within_range(square, "removed: lambda2 |R|^2"), within_range(absolute, "removed: lambda1 |R|")
