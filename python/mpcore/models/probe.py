"""How strongly the logits answer to one layer's output: a local estimate of L_s, not a bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpcore.models.apply import Matrix, from_matrix, layer_of
from mpcore.models.batches import forward, layer_input, place
from mpcore.models.evaluate import keep_modes

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)


def lipschitz_estimate(
    model: nn.Module, layer: str, removed: Any, inputs: Any, *, classes: int = 5, thetas: Sequence[float] = STEPS
) -> Matrix:
    """Estimate of L_s for every sample: the largest slope of its top logits seen at a few points of the segment.

    max over theta and over the top ``classes`` classes k of sum_i |d z_k / d (A_theta v_s)_i|, by reverse mode, with
    A_theta the layer's weights of which the share theta of ``removed`` is in place (1: dense, 0: pruned). The slope
    between these points and of other classes is not looked at, so this is a lower estimate of L_s: nothing that is
    computed from it is a certificate.

    Args:
        model: dense; run in evaluation mode, its parameters are left alone.
        layer: name of a Linear or Conv2d that is called once per forward pass.
        removed: R in the layer's matrix view, (rows, columns).
        inputs: one batch, as the model takes it.
        classes: so many of the largest logits at each theta.
        thetas: points of the segment, 0..1.

    Returns:
        (samples,) float64, in logits per unit of the layer's output.

    Raises:
        ValueError: if the layer is not called exactly once.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> found = lipschitz_estimate(net, "0", np.zeros((4, 3)), torch.ones(1, 3))
        >>> bool(np.isclose(found[0], net[1].weight.detach().abs().sum(dim=1).max()))
        True
    """
    module = layer_of(model, layer)
    part = from_matrix(np.asarray(removed, np.float32), tuple(module.weight.shape)).to(module.weight)
    tap = _Tap(layer, part)
    handle = module.register_forward_hook(tap, with_kwargs=True)
    try:
        with keep_modes(model):
            model.eval()
            slopes = [_slopes(model, tap, place(inputs, model), theta, classes) for theta in thetas]
    finally:
        handle.remove()
    found: Matrix = torch.stack(slopes).amax(dim=0).double().cpu().numpy()
    return found


class _Tap:
    """Forward hook: the output without the share 1 - theta of R v, kept as a leaf to differentiate by."""

    def __init__(self, layer: str, removed: Tensor) -> None:
        self.layer, self.removed, self.theta, self.outputs = layer, removed, 1.0, list[Tensor]()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        inputs = layer_input(args, kwargs)
        if isinstance(module, nn.Conv2d):
            effect = module._conv_forward(inputs, self.removed, None)
        else:
            effect = torch.nn.functional.linear(inputs, self.removed)
        leaf: Tensor = (output - (1 - self.theta) * effect).detach().requires_grad_()
        self.outputs.append(leaf)
        return leaf


def _slopes(model: nn.Module, tap: _Tap, inputs: Any, theta: float, classes: int) -> Tensor:
    """(samples,): largest sum of absolute slopes over the top classes at one theta."""
    tap.theta, tap.outputs = theta, []
    with torch.enable_grad():
        logits = forward(model, inputs)
        if len(tap.outputs) != 1:
            raise ValueError(f"layer {tap.layer}: called {len(tap.outputs)} times in one forward pass, wanted once")
        top = logits.topk(min(classes, logits.shape[1]), dim=1).values
        parts = []
        for column in top.unbind(dim=1):
            (slope,) = torch.autograd.grad(column.sum(), tap.outputs[0], retain_graph=True)
            parts.append(slope.reshape(len(logits), -1).abs().sum(dim=1))
    return torch.stack(parts).amax(dim=0)
