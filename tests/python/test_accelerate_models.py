"""Models that do more with their layers than call them: accelerate is right, or says what stays dense and why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pruned import prune
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from mpcore.models import accelerate as module
from mpcore.models.accelerate import accelerate
from mpcore.models.outputs import difference, floating
from mpcore.models.sparse_layers import SparseLinear
from mpcore.pattern import Pattern


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sparse layer counts as faster, so that no test depends on the clock."""
    monkeypatch.setattr(module, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(module, "LEAST_WHOLE", 0.0)


def two() -> nn.Sequential:
    torch.manual_seed(0)
    return prune(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8)), "2:4").eval()


def reasons(fast: module.Accelerated) -> dict[str, str]:
    return {row["layer"]: row["reason"] for row in fast.report.rows()}


def sparse(fast: module.Accelerated) -> list[str]:
    return [name for name, layer in fast.model.named_modules() if isinstance(layer, SparseLinear)]


def test_a_forward_given_to_one_layer_is_kept() -> None:
    # As Hugging Face's accelerate hooks do.
    model, x = two(), torch.randn(3, 16)
    old = model[0].forward
    model[0].forward = lambda value: 2 * old(value)
    fast = accelerate(model, x)
    assert (sparse(fast), fast.difference) == (["2"], pytest.approx(0, abs=1e-5))
    assert reasons(fast)["0"] == "a Linear with a forward of its own"


class Doubled(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, 2 * weight, bias)


def test_a_convolution_of_its_own_is_kept() -> None:
    layer = Doubled(8, 8, 3)
    layer.weight.data[:, ::2] = 0
    assert reasons(accelerate(layer, torch.randn(2, 8, 5, 5)))[""] == "a Conv2d with a _conv_forward of its own"


def test_a_layer_that_computes_something_else_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "why_dense", lambda *_: ("", Pattern("2:4")))
    model = two()
    old = model[0].forward
    model[0].forward = lambda value: old(value) + 0.01
    fast = accelerate(model, torch.randn(3, 16))
    assert sparse(fast) == ["2"]
    assert reasons(fast)["0"] == "2:4, but its output is not that of its weight and bias"


class Guarded(nn.Module):
    """Calls ``use`` with its layers."""

    def __init__(self, use: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.use = nn.Linear(16, 32), nn.Linear(32, 16), use

    def forward(self, x: Tensor) -> Any:
        return self.use(self, self.down(self.up(x).relu()))


def insist(model: Guarded, x: Tensor) -> Tensor:
    assert isinstance(model.up, nn.Linear), "wanted a Linear"
    return x


def depend(model: Guarded, x: Tensor) -> Tensor:
    return x if isinstance(model.down, nn.Linear) else 2 * x


def test_only_the_layer_a_model_cannot_do_without_stays_dense() -> None:
    fast = accelerate(prune(Guarded(insist), "2:4"), torch.randn(3, 16))
    assert sparse(fast) == ["down"]
    assert "alone, but the model does not run with it (AssertionError: wanted a Linear" in reasons(fast)["up"]


def test_a_wrong_output_is_never_handed_back() -> None:
    fast = accelerate(prune(Guarded(depend), "2:4"), torch.randn(3, 16))
    assert sparse(fast) == ["up"]
    assert "with it an output changes by 1 of the largest" in reasons(fast)["down"]
    assert fast.difference < 1e-5


class Counting(nn.Module):
    """Keeps state from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_a_model_that_no_copy_repeats_is_refused() -> None:
    with pytest.raises(ValueError, match=r"computes something else on example_input, by 0\.5 of the largest"):
        accelerate(nn.Sequential(two(), Counting()), torch.randn(3, 16))


@pytest.mark.parametrize("nested", [False, True])
def test_the_fast_path_of_transformer_layers_does_not_pass_by_the_sparse_layers(nested: bool) -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = prune(nn.TransformerEncoder(model, 2) if nested else model, "2:4").eval()
    x, calls = torch.randn(3, 5, 32), []
    fast = accelerate(model, x)
    for name in sparse(fast):
        fast.model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(fast.model)(x), model(x), rtol=1e-4, atol=1e-5)
    assert len(calls) == (4 if nested else 2)


def outputs() -> dict[str, Callable[[Any, Tensor], Any]]:
    return {
        "mapping": lambda _, y: {"a": y, "n": 3},
        "nested": lambda _, y: ((y, y), [y]),
        "none": lambda _, y: (None, y),
        "truth": lambda _, y: y > 0,
        "empty": lambda _, y: y[:0],
        "whole": lambda _, y: (y, y.argmax()),
    }


@pytest.mark.parametrize("kind", list(outputs()))
def test_outputs_of_every_kind_are_compared(kind: str) -> None:
    fast = accelerate(prune(Guarded(outputs()[kind]), "2:4"), torch.randn(3, 16))
    assert sparse(fast) == ["up", "down"]
    assert fast.difference < 1e-5


def test_every_floating_tensor_counts() -> None:
    x = torch.tensor([1.0, -4.0])
    assert floating({"a": (x, None, [x, torch.tensor(3)])}) == [x, x]
    assert difference([x, x], [x, torch.tensor([1.0, -3.0])]) == 0.25
    assert difference([x, torch.zeros(1)], [x, torch.ones(1)]) == 0.25
    assert difference([x], [x[:1]]) == float("inf")
    assert difference([x], [x * float("nan")]) == float("inf")
    assert difference([x * float("nan")], [x]) == difference([], []) == 0.0


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(input=x)


def test_a_layer_called_by_keyword_is_replaced() -> None:
    assert sparse(accelerate(prune(Keyword(), "2:4"), torch.randn(3, 16))) == ["fc"]


def test_the_result_runs_without_no_grad_behind_dense_layers() -> None:
    model, x = nn.Sequential(nn.Linear(16, 16), two()), torch.randn(3, 16)
    fast = accelerate(model, x).model
    torch.testing.assert_close(fast(x), model(x).detach(), rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.export.export(fast, (x,))


def test_the_model_stays_as_it_is_in_training_mode() -> None:
    model = prune(nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8)), "2:4").train()
    for layer in model:
        parametrizations.spectral_norm(layer)
    before = copy.deepcopy(model.state_dict())
    accelerate(model, torch.randn(3, 16))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_under_two_names_is_replaced_under_both() -> None:
    layer = nn.Linear(16, 16)
    fast = accelerate(prune(nn.Sequential(layer, nn.ReLU(), layer), "2:4"), torch.randn(3, 16)).model
    assert isinstance(fast[0], SparseLinear)
    assert fast[2] is fast[0]


@pytest.mark.parametrize("sizes", [(8, 0), (0, 8)])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_an_empty_weight_has_its_reason(sizes: tuple[int, int]) -> None:
    fast = accelerate(nn.Linear(*sizes), torch.randn(2, sizes[0]))
    assert reasons(fast)[""] == f"its weight is empty, {sizes[::-1]}"


def test_a_weight_that_is_not_finite_has_its_reason() -> None:
    model = two()
    weight = model[2].weight.data
    weight[0, int(weight[0].nonzero()[0])] = float("nan")
    assert reasons(accelerate(model, torch.randn(3, 16)))["2"] == "2:4, but its weight holds NaN or infinity"


def test_a_model_without_parameters_has_an_empty_report() -> None:
    fast = accelerate(nn.ReLU(), torch.randn(3))
    assert (fast.report.rows(), fast.difference) == ([], 0.0)


def test_masks_of_torch_are_to_be_made_permanent_first() -> None:
    model = nn.Sequential(nn.Linear(16, 8))
    torch_prune.random_unstructured(model[0], "weight", amount=0.5)
    assert "torch.nn.utils.prune.remove makes that permanent" in reasons(accelerate(model, torch.randn(3, 16)))["0"]
    model[0].spare = torch_prune.random_unstructured(nn.Linear(16, 8), "weight", amount=0.5)
    with pytest.raises(ValueError, match=r"layer 0\.spare: .* by a hook; call torch\.nn\.utils\.prune\.remove"):
        accelerate(model, torch.randn(3, 16))
    with pytest.raises(ValueError, match=r"model: 0\.weight has no shape yet"):
        accelerate(nn.Sequential(nn.LazyLinear(3)), torch.randn(3, 16))
