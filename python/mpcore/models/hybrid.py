"""The hybrid magnitude-SER schedule: prune unstructured in small steps, let training say what comes back, recover.

Up to ``switch`` a step removes the smallest weights of all layers. Beyond it a step removes a little too much by
|W| / w (:func:`mpcore.budget.layer_weights`), trains the removed entries alone for an epoch (phase A), gives those back
that moved most (:func:`mpcore.models.restore.reallocate`), and trains the rest with the zeros held (phase B).

What the paper leaves open is fixed here: removed entries start phase A at zero, all of them compete, and one that comes
back has the value at which it was removed. N:M masks come afterwards.

References:
    Berlyand, Bourdais, Owhadi, Shmalo, "Pruning deep neural networks via the Marchenko-Pastur distribution", 2026.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mpcore.budget import layer_weights
from mpcore.models.apply import Matrix, layer_of, load_own
from mpcore.models.batches import digest, forward, place, split
from mpcore.models.export import state_sha256
from mpcore.models.restore import Priority, reallocate
from mpcore.models.statefile import part, read_state, write_state
from mpcore.records import LayerInfo

STATE = Path("progress") / "hybrid.safetensors"


@dataclass(frozen=True)
class HybridSettings:
    """The schedule and its two kinds of training; defaults are the paper's where it gives numbers.

    Args:
        target: share of all weights removed in the end, 0..1.
        step: sparsity added per cycle.
        switch: sparsity up to which cycles are plain magnitude pruning; 0 makes all of them SER.
        overshoot: share of all weights removed beyond a cycle's sparsity, and given back.
        priority: which layers' entries come back first, rho = 1/w ("protected") or w ("pruned").
        selection_lr: of AdamW in phase A; a cosine takes it down to a quarter.
        selection_epochs: of phase A.
        logit_weight: of the mean squared distance to the dense logits in phase A.
        magnitude_lr: of SGD with momentum 0.9 after a magnitude step.
        recovery_lr: of SGD with momentum 0.9 after an SER step.
        recovery_epochs: after every step; over the SER cycles they rise to twice as many.
        label_smoothing: of the cross entropy.
        seed: of the order of the batches.
    """

    target: float = 0.5
    step: float = 0.05
    switch: float = 0.2
    overshoot: float = 0.03
    priority: Priority = "protected"
    selection_lr: float = 4e-4
    selection_epochs: float = 1.0
    logit_weight: float = 1.0
    magnitude_lr: float = 3e-5
    recovery_lr: float = 5e-5
    recovery_epochs: float = 1.0
    label_smoothing: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.step <= self.target < 1 or not 0 <= self.overshoot < 1 - self.target:
            raise ValueError(
                f"hybrid: step = {self.step}, target = {self.target}, overshoot = {self.overshoot}, "
                "wanted 0 < step <= target and target + overshoot < 1"
            )

    def cycles(self) -> list[tuple[str, float]]:
        """("magnitude" | "ser", sparsity) of every cycle, the last one at the target."""
        count = math.ceil(self.target / self.step - 1e-9)
        stops = [min((k + 1) * self.step, self.target) for k in range(count)]
        return [("magnitude" if stop <= self.switch + 1e-9 else "ser", stop) for stop in stops]


@dataclass(frozen=True)
class Cycle:
    """What one cycle did: shares of all weights, and training batches seen."""

    kind: str
    sparsity: float
    restored: float
    batches: int


def hybrid(
    model: nn.Module,
    layers: Sequence[LayerInfo],
    sigma_plus: Mapping[str, float],
    train: Sequence[Any],
    settings: HybridSettings | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: Callable[[Cycle], None] = lambda _: None,
) -> tuple[dict[str, Tensor], list[Cycle]]:
    """Prune ``model`` in place along the schedule; the dense model it starts as is the teacher of phase A.

    A schedule that was interrupted takes up from the last whole cycle in ``folder``, given the same dense model, and
    ends with the bits of an uninterrupted one on the same machine and with the same number of threads.

    Args:
        model: trained; left in evaluation mode, BatchNorm statistics as they were.
        layers: the layers that compete, of an inventory.
        sigma_plus: edge of each, measured once on the dense model.
        train: batches ``(inputs, targets)``, or ``inputs`` (then only the dense logits are followed).
        settings: None takes the defaults.
        folder: gets ``progress/hybrid.safetensors`` after every cycle; None keeps nothing.
        resume: take up an earlier state; False starts again.
        progress: told of every cycle, once it is on disk.

    Returns:
        Masks (true = kept) in the weights' shapes by layer, and the cycles.

    Raises:
        ValueError: without layers or batches, for settings out of range, or a state in ``folder`` that another schedule
            left.
    """
    settings = settings or HybridSettings()
    if not layers or not len(train):
        raise ValueError(f"hybrid: {len(layers)} layers and {len(train)} batches, wanted at least one of each")
    state = _State(model, [layer.name for layer in layers], train, settings)
    identity = _identity(model, state.names, sigma_plus, train, settings)
    path = None if folder is None else Path(folder) / STATE
    cycles = []
    if resume and path is not None and (found := read_state(path, "schedule", identity)) is not None:
        position, tensors = found
        state.seen, cycles = position["seen"], [Cycle(**cycle) for cycle in position["cycles"]]
        state.put_back(tensors)
    plan = settings.cycles()
    total = max(sum(kind == "ser" for kind, _ in plan), 1)
    for number, (kind, sparsity) in enumerate(plan[len(cycles) :], start=len(cycles)):
        seen, restored = state.seen, 0.0
        if kind == "magnitude":
            state.remove(dict.fromkeys(state.names, 1.0), sparsity)
            state.train_kept(settings.magnitude_lr, settings.recovery_epochs)
        else:
            restored = state.reallocate(layer_weights(layers, sigma_plus, sparsity), sparsity)
            done = number - (len(plan) - total)
            state.train_kept(settings.recovery_lr, settings.recovery_epochs * (1 + done / max(total - 1, 1)))
        cycles.append(Cycle(kind, state.sparsity(), restored, state.seen - seen))
        if path is not None:
            position = {"seen": state.seen, "cycles": [vars(cycle) for cycle in cycles]}
            write_state(path, identity, position, state.tensors())
        progress(cycles[-1])
    return state.kept, cycles


def _identity(
    model: nn.Module,
    names: Sequence[str],
    sigma_plus: Mapping[str, float],
    train: Sequence[Any],
    settings: HybridSettings,
) -> dict[str, Any]:
    """What a state on disk must agree on to be taken up."""
    edges = {name: float(sigma_plus[name]) for name in names}
    return {
        **dataclasses.asdict(settings),
        "batches": len(train),
        "data_sha256": digest([train[0]]),
        "edges": edges,
        "dense_sha256": state_sha256(model),
    }


class _State:
    """The network under way: masks, the values that removed weights had, and how many batches were seen."""

    def __init__(self, model: nn.Module, names: list[str], train: Sequence[Any], settings: HybridSettings) -> None:
        self.model, self.names, self.train, self.settings = model.eval(), names, train, settings
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.weights: dict[str, Tensor] = {name: layer_of(model, name).weight for name in names}
        self.kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.weights.items()}
        self.value = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.seen = 0

    def tensors(self) -> dict[str, Tensor]:
        """Weights, masks and values, for a state file."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"kept.{name}": mask for name, mask in self.kept.items()}
        return tensors | {f"value.{name}": tensor for name, tensor in self.value.items()}

    def put_back(self, tensors: dict[str, Tensor]) -> None:
        """Take up what :meth:`tensors` gave."""
        load_own(self.model, part(tensors, "model."))
        for prefix, places in (("kept.", self.kept), ("value.", self.value)):
            for name, tensor in part(tensors, prefix).items():
                places[name].copy_(tensor)

    def sparsity(self) -> float:
        return 1 - sum(int(m.sum()) for m in self.kept.values()) / sum(m.numel() for m in self.kept.values())

    def remove(self, factors: Mapping[str, float], sparsity: float) -> None:
        """Remove the smallest |W| / w; what is gone stays gone."""
        self._note_values()
        self._hold(reallocate(self._arrays(), factors, sparsity, overshoot=0.0).kept)

    def reallocate(self, factors: Mapping[str, float], sparsity: float) -> float:
        """One SER step; returns the share of all weights that came back."""
        settings = self.settings
        self._note_values()
        arrays = self._arrays()
        self._hold(reallocate(arrays, factors, sparsity + settings.overshoot, overshoot=0.0).kept)
        moved = self.select()
        importance = {name: np.where(kept.cpu().numpy(), 0.0, moved[name]) for name, kept in self.kept.items()}
        step = reallocate(
            arrays, factors, sparsity, overshoot=settings.overshoot, importance=importance, priority=settings.priority
        )
        with torch.no_grad():
            for name, back in step.restored.items():
                weight = self.weights[name]
                weight.copy_(torch.where(torch.from_numpy(back).to(weight.device), self.value[name], weight))
        self._hold(step.kept)
        size = sum(mask.numel() for mask in self.kept.values())
        return sum(int(back.sum()) for back in step.restored.values()) / size

    def select(self) -> dict[str, Matrix]:
        """Phase A: train the removed entries alone from zero; how far each moved. The weights are put back."""
        before = {name: weight.detach().clone() for name, weight in self.weights.items()}
        optimiser = torch.optim.AdamW(list(self.weights.values()), lr=self.settings.selection_lr, weight_decay=0.0)
        free = {name: ~kept for name, kept in self.kept.items()}
        self._train(optimiser, self.settings.selection_epochs, free, floor=0.25, follow=self.settings.logit_weight)
        with torch.no_grad():
            moved = {name: (weight - before[name]).abs().cpu().numpy() for name, weight in self.weights.items()}
            for name, weight in self.weights.items():
                weight.copy_(before[name])
        return moved

    def train_kept(self, lr: float, epochs: float) -> None:
        """Phase B: all parameters move, removed entries stay at zero."""
        optimiser = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
        self._train(optimiser, epochs, self.kept, floor=0.0, follow=0.0)
        self._hold({name: kept.cpu().numpy() for name, kept in self.kept.items()})

    def _train(
        self, optimiser: torch.optim.Optimizer, epochs: float, free: dict[str, Tensor], *, floor: float, follow: float
    ) -> None:
        """Steps in a cosine down to ``floor`` of the learning rate, with gradients of the ``free`` entries alone."""
        steps, peak = max(round(epochs * len(self.train)), 1), optimiser.param_groups[0]["lr"]
        for step in range(steps):
            share = 0.5 * (1 + math.cos(math.pi * step / steps))
            optimiser.param_groups[0]["lr"] = peak * (floor + (1 - floor) * share)
            optimiser.zero_grad()
            torch.autograd.backward(self._loss(self._batch(), follow))
            for name, weight in self.weights.items():
                if weight.grad is not None:
                    weight.grad.masked_fill_(~free[name], 0.0)
            optimiser.step()  # neither optimizer decays weights, so that a gradient of zero moves nothing
        optimiser.zero_grad()

    def _batch(self) -> Any:
        epoch, index = divmod(self.seen, len(self.train))
        order = np.random.default_rng((self.settings.seed, epoch)).permutation(len(self.train))
        self.seen += 1
        return self.train[int(order[index])]

    def _loss(self, batch: Any, follow: float) -> Tensor:
        inputs, targets = split(batch)
        inputs = place(inputs, self.model)
        logits = forward(self.model, inputs)
        loss = logits.new_zeros(())
        if targets is not None:
            smoothing = self.settings.label_smoothing
            loss = loss + functional.cross_entropy(logits, targets.to(logits.device), label_smoothing=smoothing)
        if follow or targets is None:
            with torch.no_grad():
                dense = forward(self.teacher, inputs)
            loss = loss + (follow or 1.0) * functional.mse_loss(logits, dense)
        return loss

    def _note_values(self) -> None:
        """Remember what the kept weights are now: the value at which they may come back."""
        for name, weight in self.weights.items():
            self.value[name] = torch.where(self.kept[name], weight.detach(), self.value[name])

    def _arrays(self) -> dict[str, Matrix]:
        return {name: weight.detach().float().cpu().numpy() for name, weight in self.weights.items()}

    @torch.no_grad()
    def _hold(self, kept: Mapping[str, Matrix]) -> None:
        for name, weight in self.weights.items():
            self.kept[name] = torch.from_numpy(np.ascontiguousarray(kept[name])).to(weight.device)
            weight.masked_fill_(~self.kept[name], 0.0)
