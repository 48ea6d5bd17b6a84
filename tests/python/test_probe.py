from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import TinyConvNet, images, tiny_vit
from torch import nn

from mpcore.certify import propagated_effect, relu_tail_lipschitz
from mpcore.models.apply import as_matrix, layer_of
from mpcore.models.probe import lipschitz_estimate


def test_the_estimate_never_exceeds_a_true_constant_and_meets_it_for_a_linear_tail():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))
    x, removed = torch.randn(20, 6), as_matrix(net[0].weight) * (np.random.default_rng(0).random((8, 6)) < 0.5)
    found = lipschitz_estimate(net, "0", removed, x, classes=4)
    assert found.shape == (20,)
    assert (found <= relu_tail_lipschitz([as_matrix(net[2].weight), as_matrix(net[4].weight)])).all()
    last = lipschitz_estimate(net, "2", np.zeros((7, 8)), x, classes=4)
    active = torch.relu(net[2](torch.relu(net[0](x)))) > 0
    expected = (active[:, None].double() * net[4].weight.abs().double()).sum(dim=2).amax(dim=1)
    np.testing.assert_allclose(last, expected.detach().numpy(), rtol=1e-5)
    assert (propagated_effect(removed, x.numpy(), found) >= 0).all()


@pytest.mark.parametrize(
    ("model", "layer", "x"),
    [
        (tiny_vit(), "blocks.0.mlp.fc1", images(3, channels=1, size=8)),
        (TinyConvNet(), "tail.0", images(3)),
    ],
)
def test_a_small_step_moves_no_top_logit_by_more_than_the_slope_allows(model, layer, x):
    """R a thousandth of the weights: the measured change is at most slope times reach, to first order."""
    module = layer_of(model, layer)
    R, before = 1e-3 * as_matrix(module.weight), {name: value.clone() for name, value in model.state_dict().items()}
    estimate = lipschitz_estimate(model, layer, R, x, classes=10)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    reach = []
    bias = 0 if module.bias is None else module.bias.reshape(-1, *[1] * 2 if isinstance(module, nn.Conv2d) else [])
    handle = module.register_forward_hook(lambda _m, _a, out: reach.append(1e-3 * (out - bias).flatten(1)))
    with torch.no_grad():
        dense = model(x)
        handle.remove()
        module.weight.mul_(1 - 1e-3)
        change = (model(x) - dense).abs().amax(dim=1).numpy()
    assert (change <= 1.02 * estimate * reach[0].abs().amax(dim=1).numpy() + 1e-6).all()
    assert not module._forward_hooks


def test_a_layer_that_runs_twice_is_refused():
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="layer 0: called 2 times in one forward pass"):
        lipschitz_estimate(nn.Sequential(layer, nn.ReLU(), layer), "0", np.zeros((4, 4)), torch.ones(2, 4))


def test_a_layer_called_by_keyword_is_probed_and_frozen_norms_stay_frozen() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.norm(self.a(input=x)))

    net = Named().train()
    net.norm.eval()
    assert lipschitz_estimate(net, "a", np.zeros((6, 4)), torch.randn(5, 4)).shape == (5,)
    assert (net.training, net.norm.training) == (True, False)
