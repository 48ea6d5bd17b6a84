"""Slow, readable NumPy twins of the native routines: oracle of the tests, and text for readers."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np

from mpcore.pattern import Pattern

Array = np.ndarray[Any, Any]

# compensate


def damped(gram: Array, damping: float) -> Array:
    """H + lambda I with lambda = max(damping, 1e-7) * mean(diag H); the identity where H is all zeros."""
    mean = np.diag(gram).mean()
    return gram + (max(damping, 1e-7) * mean if mean > 0 else 1.0) * np.eye(len(gram))


def largest(magnitudes: Array, keep: int, group: int) -> Array:
    """Mask of the ``keep`` largest of every ``group`` consecutive columns, ties to the lower column."""
    groups = magnitudes.reshape(len(magnitudes), -1, group)
    order = np.argsort(-groups, axis=2, kind="stable")[:, :, :keep]
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order, True, axis=2)
    kept: Array = mask.reshape(magnitudes.shape)
    return kept


def lstsq(W: Array, gram: Array, mask: Array, damping: float) -> Array:
    """Minimise tr((W' - W)(H + lambda I)(W' - W)') over W' zero off the mask, one dense problem per row."""
    root = np.linalg.cholesky(damped(gram, damping)).T
    fitted = np.zeros(W.shape)
    for row, kept in enumerate(mask):
        fitted[row, kept] = np.linalg.lstsq(root[:, kept], root @ W[row], rcond=None)[0]
    return fitted


def sparsegpt(W: Array, gram: Array, keep: int, group: int, damping: float, mask: Array | None = None) -> Array:
    """SparseGPT with the inverse of the remaining columns' moments recomputed at every column.

    Removing w_j moves the columns still to come by -w_j (H_F^-1)_j / (H_F^-1)_jj, where F holds j and those columns; a
    group on entry keeps the largest w_j^2 / (H_F^-1)_jj.
    """
    moments, W, columns = damped(gram, damping), W.astype(np.float64), W.shape[1]
    kept = np.zeros(W.shape, bool) if mask is None else mask
    inverse = [np.linalg.inv(moments[j:, j:]) for j in range(columns)]
    for j in range(columns):
        if j % group == 0 and mask is None:
            saliency = [W[:, i] ** 2 / inverse[i][0, 0] for i in range(j, j + group)]
            kept[:, j : j + group] = largest(np.stack(saliency, axis=1), keep, group)
        error = np.where(kept[:, j], 0.0, W[:, j]) / inverse[j][0, 0]
        W[:, j:] -= np.outer(error, inverse[j][0])
    return np.where(kept, W, 0.0)


def admm(W: Array, gram: Array, keep: int, group: int, damping: float, steps: int) -> Array:
    """ADMM on the mask in unit-diagonal coordinates, exchanges in its groups, exact least squares on its support."""
    moments = damped(gram, damping)
    scale = np.sqrt(np.diag(moments))
    A, V = moments / np.outer(scale, scale), W * scale
    kept = largest(np.abs(V), keep, group)
    D, U = np.where(kept, V, 0.0), np.zeros(V.shape)
    most = 0
    for step in range(steps):
        if step % 5 == 0:
            if step > 0 and most < 1e-4 * W.size:
                break  # five steps hardly changed the mask
            rho, most = 0.05 * 1.12 ** (step + 2), 0  # in stairs of five steps
        Z = np.linalg.solve(A + rho * np.eye(len(A)), (V @ A + rho * (D - U)).T).T
        Y = Z + U
        before, kept = kept, largest(np.abs(Y), keep, group)
        most = max(most, int(np.count_nonzero(before != kept)))
        D = np.where(kept, Y, 0.0)
        U = Y - D
    for row, goal, mask in zip(D, V, kept, strict=True):
        for first in range(0, len(row), group):
            exchange(row, goal, mask, A, range(first, first + group))
    return lstsq(W, gram, kept, damping)


def exchange(row: Array, goal: Array, mask: Array, A: Array, columns: range) -> None:
    """Put one pruned weight of a group in place of a kept one, the best pair, if (goal - row) A (goal - row)' falls."""

    def moved(i: int, j: int) -> Array:
        new: Array = row.copy()
        new[i] = 0.0
        new[j] = (goal - new) @ A[j] / A[j, j]
        return new

    def error(weights: Array) -> float:
        return float((goal - weights) @ A @ (goal - weights))

    pairs = [(i, j) for i in columns for j in columns if mask[i] and not mask[j]]
    i, j = min(pairs, key=lambda pair: error(moved(*pair)))
    if error(moved(i, j)) < error(row):
        row[:] = moved(i, j)
        mask[i], mask[j] = False, True


def output_error(W: Array, W_pruned: Array, inputs: Array) -> float:
    """Relative squared error of the outputs on the inputs themselves, (samples, columns)."""
    wanted, got = inputs @ W.T, inputs @ W_pruned.T
    return float(((got - wanted) ** 2).sum() / (wanted**2).sum())


# certify


def margins(logits: Array) -> tuple[Array, Array]:
    """Label with the largest logit, ties to the lower one, and its lead over the runner-up."""
    ordered = np.sort(logits, axis=1)
    return logits.argmax(axis=1), ordered[:, -1] - ordered[:, -2]


def label_margins(logits: Array, labels: Array) -> Array:
    """Logit of the label minus the largest of the others."""
    rows = [row[label] - np.delete(row, label).max() for row, label in zip(logits, labels, strict=True)]
    return np.array(rows)


def largest_changes(dense: Array, pruned: Array) -> Array:
    """Largest |change| of any logit, by sample."""
    changes: Array = np.abs(pruned - dense).max(axis=1)
    return changes


# masks


def nm_mask(score: Array, keep: int, group: int, axis: int = -1) -> Array:
    """:func:`largest` along any axis of an array of any number of dimensions."""
    moved = np.moveaxis(score, axis, -1)
    return np.moveaxis(largest(moved.reshape(-1, moved.shape[-1]), keep, group).reshape(moved.shape), -1, axis)


def patterns(keep: int, group: int) -> Array:
    """All masks of one group, (C(M, N), M), those that keep lower indices first."""
    return np.array([np.isin(np.arange(group), kept) for kept in combinations(range(group), keep)])


def quadratic_cost(
    W: Array, gram: Array, mask: Array, target: Array | None = None, target_weight: float = 0.0, keep: int = 0
) -> Array:
    """What a mask costs in every row and group, (rows, groups): r' C r of the removed weights r.

    With a target, ``target_weight`` times the number of differing entries is added, in units of the mean of r' C r over
    all masks of ``keep`` entries.
    """
    group = gram.shape[1]
    shape = (len(W), -1, group)
    removed = (W * ~mask).reshape(shape)
    cost: Array = np.einsum("rgi,gij,rgj->rg", removed, gram, removed)
    if target is not None:
        tiled = (np.tile(kept, W.shape[1] // group) for kept in patterns(keep, group))
        mean = np.mean([quadratic_cost(W, gram, np.broadcast_to(kept, W.shape)) for kept in tiled], axis=0)
        cost = cost + target_weight * mean * (mask != target).reshape(shape).sum(axis=2)
    return cost


def quadratic_mask(
    W: Array, gram: Array, keep: int, group: int, target: Array | None = None, target_weight: float = 0.0
) -> Array:
    """The mask of least :func:`quadratic_cost`, by trying every pattern."""
    every = [np.tile(kept, (len(W), W.shape[1] // group)) for kept in patterns(keep, group)]
    costs = np.stack([quadratic_cost(W, gram, mask, target, target_weight, keep) for mask in every])
    mask: Array = patterns(keep, group)[costs.argmin(axis=0)].reshape(W.shape)
    return mask


def transposable_value(block: Array, keep: int) -> float:
    """Most that a mask with ``keep`` entries in every row and column of a square block keeps: all masks, row by row."""
    size = len(block)
    states = {(0,) * size: 0.0}
    for row in block:
        after: dict[tuple[int, ...], float] = {}
        for counts, value in states.items():
            for kept in combinations(range(size), keep):
                new = tuple(count + (j in kept) for j, count in enumerate(counts))
                if max(new) <= keep:
                    after[new] = max(after.get(new, -np.inf), value + row[list(kept)].sum())
        states = after
    return float(states[(keep,) * size])


# permute


def kept_score(score: Array, order: Array, keep: int, group: int) -> float:
    """Sum over rows and groups of the ``keep`` largest scores with the columns in ``order``, in float64."""
    groups = np.sort(score[:, order].astype(np.float64).reshape(len(score), -1, group), axis=2)
    return float(groups[:, :, group - keep :].sum())


def best_partition(score: Array, keep: int, group: int) -> float:
    """Most that any order keeps, over all partitions of the columns into groups: for up to about 12 columns."""

    def best(left: tuple[int, ...]) -> float:
        if not left:
            return 0.0
        first, *rest = left
        values = []
        for others in combinations(rest, group - 1):
            remaining = tuple(column for column in rest if column not in others)
            own = kept_score(score, np.array([first, *others]), keep, group)
            values.append(own + best(remaining))
        return max(values)

    return best(tuple(range(score.shape[1])))


def assign(gain: Array) -> Array:
    """The column of each row in the one-to-one assignment with the largest total: the Hungarian method, row by row."""
    size = len(gain)
    row_price, column_price = np.zeros(size + 1), np.zeros(size + 1)
    owner, before = np.full(size + 1, -1), np.zeros(size + 1, int)
    for row in range(size):
        owner[size], column = row, size  # the extra column is where the new row starts from
        distance, open_ = np.full(size, np.inf), np.ones(size, bool)
        while owner[column] >= 0:
            used = owner[column]
            through = -gain[used] - row_price[used] - column_price[:size]
            closer = open_ & (through < distance)
            distance[closer], before[:size][closer] = through[closer], column
            nearest = int(np.where(open_, distance, np.inf).argmin())
            step = distance[nearest]
            closed = np.append(~open_, True)
            row_price[owner[closed]] += step
            column_price[closed] -= step
            distance[open_] -= step
            column, open_[nearest] = nearest, False
        while column != size:
            owner[column], column = owner[before[column]], before[column]
    result = np.empty(size, int)
    result[owner[:size]] = np.arange(size)
    return result


def optimize_permutation(
    score: Array, pattern: str | tuple[int, int] | Pattern, *, max_rounds: int, seed: int = 0
) -> Array:
    """Rounds of assignments without noise: an order that keeps at least as much as the given one."""
    wanted, rng = Pattern(pattern), np.random.default_rng(seed)
    keep, size = wanted.keep, wanted.group
    groups = np.arange(score.shape[1]).reshape(-1, size)
    for _ in range(max_rounds):
        slots = rng.integers(size, size=len(groups))
        taken = groups[np.arange(len(groups)), slots]
        rest = np.stack([np.delete(members, slot) for members, slot in zip(groups, slots, strict=True)])
        # A column adds what it has above the N-th largest of the group's others.
        theta = np.sort(score[:, rest], axis=2)[:, :, size - 1 - keep]
        gain = np.maximum(score[:, taken][:, :, None] - theta[:, None, :], 0).sum(axis=0)
        to = assign(gain)
        groups[to, slots[to]] = taken
    return groups.ravel()


# sparse


def nm_linear(W: Array, X: Array, bias: Array | None = None, activation: str | None = None) -> Array:
    """activation(X W' + bias) in float64, with the dense matrix."""
    out: Array = X.astype(np.float64) @ W.T.astype(np.float64)
    if bias is not None:
        out = out + bias
    if activation == "relu":
        return np.maximum(out, 0)
    if activation == "gelu":
        return np.array(out * 0.5 * np.vectorize(math.erfc, otypes=[float])(-out / math.sqrt(2)))
    return out


# spectra


def mp_pdf(x: Array, gamma: float, sigma_sq: float = 1.0) -> Array:
    """sqrt((b - x)(x - a)) / (2 pi gamma sigma_sq x) between the edges a, b = sigma_sq (1 -+ sqrt(gamma))^2."""
    low, high = sigma_sq * ((1 - gamma) / (1 + gamma**0.5)) ** 2, sigma_sq * (1 + gamma**0.5) ** 2
    inside = (x > low) & (x < high)
    y = np.where(inside, x, 1.0)
    density: Array = np.where(inside, np.sqrt(np.clip((high - y) * (y - low), 0, None)) / y, 0.0)
    return density / (2 * np.pi * gamma * sigma_sq)


def mp_cdf(x: float, gamma: float, sigma_sq: float = 1.0, nodes: int = 20_001) -> float:
    """Midpoints of the density in the angle t, x = a + (b - a) sin^2(t / 2): no singular edge, no pole at gamma = 1."""
    low, high = sigma_sq * ((1 - gamma) / (1 + gamma**0.5)) ** 2, sigma_sq * (1 + gamma**0.5) ** 2
    end = 2 * np.arcsin(np.sqrt(np.clip((x - low) / (high - low), 0, 1)))
    angle = (np.arange(nodes) + 0.5) * end / nodes
    at = low + (high - low) * np.sin(angle / 2) ** 2
    values = mp_pdf(at, gamma, sigma_sq) * (high - low) * np.sin(angle) / 2
    return float(values.sum() * end / nodes)


def mp_ppf(q: float, gamma: float, sigma_sq: float = 1.0) -> float:
    """The point where the distribution function reaches q, by bisection."""
    low, high = sigma_sq * ((1 - gamma) / (1 + gamma**0.5)) ** 2, sigma_sq * (1 + gamma**0.5) ** 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if mp_cdf(middle, gamma, sigma_sq) < q else (low, middle)
    return float((low + high) / 2)


def spike_to_sample(theta: float, gamma: float, sigma_sq: float = 1.0) -> float:
    """Singular value of W / sqrt(n) for a signal of strength theta; the edge below the transition."""
    if theta**2 <= sigma_sq * gamma**0.5:
        return float(sigma_sq**0.5 * (1 + gamma**0.5))
    return float(((theta**2 + sigma_sq) * (theta**2 + sigma_sq * gamma)) ** 0.5 / theta)


def bema(values: Array, n: int, trim: float, quantile: float) -> tuple[float, float]:
    """Variance and threshold (singular value) of BEMA; ``quantile`` is the Tracy-Widom one of level 1 - beta."""
    p = len(values)
    gamma, eigenvalues = p / n, np.sort(values)[::-1] ** 2 / n
    ranks = np.arange(int(np.ceil(trim * p)), int(np.floor((1 - trim) * p)) + 1)
    upper = np.array([mp_ppf(1 - k / p, gamma) for k in ranks])
    sigma_sq = float((upper * eigenvalues[ranks - 1]).sum() / (upper**2).sum())
    width = quantile * n ** (-2 / 3) * gamma ** (-1 / 6) * (1 + gamma**0.5) ** (4 / 3)
    return sigma_sq, float((n * sigma_sq * ((1 + gamma**0.5) ** 2 + width)) ** 0.5)


def energy_variance(values: Array, n: int, spikes: int) -> float:
    """Variance s with sum of squared values = s p n + sum of squared strengths, by bisection.

    The strengths of the spikes sum to sum_i L_i ((1 + s S_i)^2 - s^2 Q_i) - s (n - p + 1)(1 + s S_i) over the largest
    squares L_i, with S_i and Q_i the sums over j of 1 / (L_j - L_i) and of its square.
    """
    squares, p = np.sort(values)[::-1] ** 2, len(values)
    distances = squares[None, :] - squares[:spikes, None]
    terms = np.divide(1, distances, out=np.zeros_like(distances), where=distances != 0)
    top, S, Q = squares[:spikes], terms.sum(axis=1), (terms**2).sum(axis=1)

    def excess(s: float) -> float:
        strengths = top * ((1 + s * S) ** 2 - s**2 * Q) - s * (n - p + 1) * (1 + s * S)
        return float(s * p * n + strengths.sum() - squares.sum())

    low, high = 0.0, squares[spikes:].sum() / ((p - spikes) * (n - spikes)) * 10
    for _ in range(200):
        low, high = ((low + high) / 2, high) if excess((low + high) / 2) < 0 else (low, (low + high) / 2)
    return float((low + high) / 2)


def noise_edge(rows: Array, columns: Array) -> float:
    """Largest singular value of noise with variance rows[i] * columns[j], by brute force over a fine grid."""
    alpha = np.linspace(0, 1 / rows.max(), 4001)[1:-1]
    beta = np.linspace(0, 1 / columns.max(), 4001)[1:-1]
    on_rows = (rows / (1 - alpha[:, None] * rows)).sum(axis=1)
    on_columns = (columns / (1 - beta[:, None] * columns)).sum(axis=1)
    partner = np.interp(alpha * on_rows, beta * on_columns, beta)
    return float((on_rows / partner).min() ** 0.5)
