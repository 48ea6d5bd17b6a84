from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from nets import images, tiny_vit
from torch import nn

from mpcore import fit_edges
from mpcore.models.export import state_sha256
from mpcore.models.hybrid import HybridSettings, _State, hybrid
from mpcore.models.inventory import inventory

VIT = {"channels": 1, "size": 8}


def setting(**changes):
    model = tiny_vit()
    layers = [layer for layer in inventory(model).layers if layer.prunable]
    edges = {name: fit.sigma_plus for name, fit in fit_edges(model).items()}
    data = [(images(8, seed=s, **VIT), torch.arange(8) % 10) for s in range(4)]
    return model, layers, edges, data, HybridSettings(**{"target": 0.3, "step": 0.1, "switch": 0.1, **changes})


def test_the_schedule_switches_once_and_ends_at_the_target():
    assert HybridSettings(target=0.35, step=0.1, switch=0.2).cycles() == [
        ("magnitude", 0.1),
        ("magnitude", 0.2),
        ("ser", pytest.approx(0.3)),
        ("ser", 0.35),
    ]
    assert {kind for kind, _ in HybridSettings(switch=0.0).cycles()} == {"ser"}
    assert {kind for kind, _ in HybridSettings(target=0.2).cycles()} == {"magnitude"}


@pytest.mark.parametrize("priority", ["protected", "pruned"])
def test_every_cycle_ends_at_its_sparsity_with_exact_zeros_and_both_phases_train(priority):
    model, layers, edges, data, settings = setting(priority=priority)
    dense = copy.deepcopy(model)
    masks, cycles = hybrid(model, layers, edges, data, settings)
    size = sum(layer.parameters for layer in layers)
    assert [cycle.kind for cycle in cycles] == ["magnitude", "ser", "ser"]
    for cycle, sparsity in zip(cycles, (0.1, 0.2, 0.3), strict=True):
        assert cycle.sparsity == pytest.approx(sparsity, abs=0.6 / size)
        assert cycle.restored == pytest.approx(0.03 if cycle.kind == "ser" else 0.0, abs=1.1 / size)
    # one epoch; one of selection and one of recovery; one of selection and two of recovery
    assert [cycle.batches for cycle in cycles] == [4, 8, 12]
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight.detach()
        assert (weight[~mask] == 0).all()
        assert not torch.signbit(weight[~mask]).any()
        assert torch.count_nonzero(weight) == mask.sum()
    head = model.head.weight.detach()
    assert not torch.equal(head, dense.head.weight.detach())


def test_the_two_signs_give_different_masks_and_a_seed_gives_the_same():
    found = []
    for priority in ("protected", "pruned", "protected"):
        model, layers, edges, data, settings = setting(priority=priority)
        found.append(hybrid(model, layers, edges, data, settings)[0])
    assert any(not torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert all(torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_phase_a_moves_removed_entries_alone_and_puts_the_weights_back():
    model, layers, _, data, settings = setting()
    state = _State(model, [layer.name for layer in layers], data, settings)
    state.remove(dict.fromkeys(state.names, 1.0), 0.4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moved = state.select()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, kept in state.kept.items():
        assert (moved[name][kept.numpy()] == 0).all()
    assert sum(np.count_nonzero(change) for change in moved.values()) > 0


def test_what_comes_back_has_the_value_at_which_it_went():
    """One layer, training off (rates near zero): kept weights are those of the dense model, bit for bit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    dense = model[0].weight.detach().clone()
    layers = [layer for layer in inventory(model).layers if layer.name == "0"]
    data = [torch.randn(8, 16) for _ in range(3)]
    settings = HybridSettings(target=0.5, step=0.25, switch=0.0, overshoot=0.2, magnitude_lr=0.0, recovery_lr=0.0)
    masks, cycles = hybrid(model, layers, {"0": 1.0}, data, settings)
    assert cycles[-1].restored == pytest.approx(0.2, abs=0.01)
    torch.testing.assert_close(model[0].weight.detach(), dense * masks["0"], rtol=0, atol=0)
    smallest = dense.abs().flatten().sort().values[:64]
    plain = dense.abs() > smallest[-1]
    assert not torch.equal(masks["0"], plain)  # the data had a say


def test_mistakes_are_named():
    model, _, edges, data, settings = setting()
    with pytest.raises(ValueError, match="hybrid: 0 layers and 4 batches"):
        hybrid(model, [], edges, data, settings)
    with pytest.raises(ValueError, match=r"target [+] overshoot < 1"):
        HybridSettings(target=0.99)


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupted_schedule_ends_with_the_same_bits(tmp_path, after):
    whole, layers, edges, data, settings = setting()
    expected_masks, expected = hybrid(whole, layers, edges, data, settings)
    told = []

    def stop(cycle):
        told.append(cycle)
        if len(told) == after:
            raise PowerCut

    cut, *_ = setting()
    with pytest.raises(PowerCut):
        hybrid(cut, layers, edges, data, settings, folder=tmp_path, progress=stop)
    again, *_ = setting()
    masks, cycles = hybrid(again, layers, edges, data, settings, folder=tmp_path, progress=told.append)
    assert told == cycles == expected
    assert state_sha256(again) == state_sha256(whole)
    assert all(torch.equal(masks[name], expected_masks[name]) for name in expected_masks)


def test_a_state_of_another_schedule_or_network_is_refused_and_resume_false_starts_again(tmp_path):
    model, layers, edges, data, settings = setting()
    hybrid(model, layers, edges, data, settings, folder=tmp_path)
    fresh, *_, other = setting(priority="pruned")
    with pytest.raises(ValueError, match=r"priority was 'protected', now 'pruned'.*resume=False"):
        hybrid(fresh, layers, edges, data, other, folder=tmp_path)
    with pytest.raises(ValueError, match="dense_sha256 was"):
        hybrid(model, layers, edges, data, settings, folder=tmp_path)
    fresh, *_ = setting()
    _, cycles = hybrid(fresh, layers, edges, data, other, folder=tmp_path, resume=False)
    assert len(cycles) == 3


def test_a_damaged_state_is_an_error_that_names_the_file(tmp_path):
    model, layers, edges, data, settings = setting()
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress" / "hybrid.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"hybrid\.safetensors: not a state of a schedule"):
        hybrid(model, layers, edges, data, settings, folder=tmp_path)
