"""Measure a certificate: the logits of the dense, the pruned and every network in between on the same samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpcore.certify import certify
from mpcore.checkpoint import sha256
from mpcore.models.apply import Matrix
from mpcore.models.batches import check_logits, digest, first, forward, is_class_numbers, place, size, split
from mpcore.models.evaluate import eval_mode
from mpcore.models.segments import Path
from mpcore.records import Certificate

REPEATED = 1e-3
"""Largest difference of two passes of one network, relative to its largest logit, that is taken for rounding."""


class LogitTrail:
    """Logits of a network on the first ``samples`` calibration samples while it is pruned step by step.

    Raises:
        ValueError: if a logit of the dense network is NaN or infinite, or two of its passes differ by more than
            rounding.
    """

    def __init__(self, dense: nn.Module, batches: Sequence[Any], samples: int) -> None:
        self.batches = _head(batches, samples)
        self.begin(self.logits(dense))
        if not np.isfinite(self.dense).all():
            sample, label = np.argwhere(~np.isfinite(self.dense))[0]
            raise ValueError(
                f"model: logit {label} of calibration sample {sample} is {self.dense[sample, label]}, so that nothing "
                "can be certified; leave such classes out"
            )
        if (change := self.change(self.logits(dense))) > REPEATED:
            raise ValueError(
                f"model: two passes over the same samples in evaluation mode give logits that differ by {change:.3g} "
                "of the largest, so that nothing can be certified; it draws random numbers or keeps a state, which has "
                "to be turned off"
            )

    def begin(self, dense: Matrix) -> None:
        """Start again, with these as the dense network's logits."""
        self.dense = self.now = dense
        self.path: dict[str, Matrix] = {}
        self._walk: tuple[Path, Mapping[str, int]] | None = None

    def change(self, logits: Matrix) -> float:
        """Largest difference of logits from the dense ones, relative to the largest of these; infinite for NaN."""
        change = float(np.abs(logits - self.dense).max()) / (float(np.abs(self.dense).max()) or 1.0)
        return change if change == change else np.inf

    def follow(self, model: nn.Module, segments: Sequence[str], stages: Mapping[str, int]) -> None:
        """Measure ``model`` by segments from now on: what lies before a step's stage is not run again."""
        self._walk = Path(model, segments, [inputs for inputs, _ in self.batches]), stages

    def logits(self, model: nn.Module) -> Matrix:
        """Float64 logits (samples, classes), the model in evaluation mode.

        Raises:
            ValueError: naming the batch, if an output is no matrix or has other classes than those before.
        """
        with eval_mode(model):
            return _joined(forward(model, place(inputs, model)) for inputs, _ in self.batches)

    def step(self, name: str, model: nn.Module) -> Matrix:
        """Largest logit change of every sample since the last step; remembered under ``name``, a layer's or another."""
        followed = self._walk is not None and name in self._walk[1]
        logits = self._logits_from(name) if followed else self.logits(model)
        self.path[name] = np.abs(logits - self.now).max(axis=1)
        self.now = logits
        return self.path[name]

    def _logits_from(self, name: str) -> Matrix:
        """Logits of the followed model, from the stage of layer ``name`` on."""
        assert self._walk is not None
        path, stages = self._walk
        while path.stage < stages[name]:
            path.advance()
        return _joined(path.output(index) for index in range(len(self.batches)))

    @property
    def labels(self) -> Matrix | None:
        """Class numbers of the samples, or None where a batch has none (its targets may be pixels or shares)."""
        targets = [target for _, target in self.batches if target is not None and is_class_numbers(target)]
        return torch.cat(targets).cpu().numpy() if len(targets) == len(self.batches) else None

    def certificate(self, model: str | PathLike[str], *, seed: int) -> Certificate:
        """What the steps so far have changed; ``model`` is the file of the network they led to."""
        return certify(
            self.dense,
            self.now,
            path=self.path,
            labels=self.labels,
            data_sha256=digest([inputs for inputs, _ in self.batches]),
            model_sha256=sha256(model),
            seed=seed,
        )


def _joined(outputs: Iterable[Tensor]) -> Matrix:
    """The outputs for the calibration batches as one float64 matrix."""
    parts: list[Tensor] = []
    for index, output in enumerate(outputs):
        classes = parts[0].shape[1] if parts else None
        parts.append(check_logits(output, f"calibration batch {index}", classes=classes).double().cpu())
    return torch.cat(parts).numpy()


def _head(batches: Sequence[Any], samples: int) -> list[tuple[Any, Tensor | None]]:
    """The first ``samples`` samples of the batches."""
    kept: list[tuple[Any, Tensor | None]] = []
    for batch in batches:
        inputs, targets = split(batch)
        count = min(samples, size(inputs))
        kept.append((first(inputs, count), None if targets is None else targets[:count]))
        samples -= count
        if samples <= 0:
            break
    return kept
