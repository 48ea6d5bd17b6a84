"""The processes that share one training: each takes its part of every batch, all take the same step.

They are started by ``accelerate launch`` or ``torchrun`` and found by Accelerate, which is imported only then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpcore.models.batches import Part, share_of, size, split


@dataclass(frozen=True)
class Processes:
    """This process and how many there are; alone by default, where every method costs nothing.

    ``device`` is where its models belong, None where they may stay.

    Example:
        >>> inputs, targets = Processes(rank=1, count=2).share((torch.arange(5), torch.arange(5)))
        >>> inputs.tolist(), targets.tolist()
        ([2, 3, 4], [2, 3, 4])
    """

    rank: int = 0
    count: int = 1
    device: torch.device | None = None

    @classmethod
    def find(cls) -> Processes:
        """Those a launcher started with this one, if any (its environment variable WORLD_SIZE says how many).

        They talk by gloo where there is no GPU or ACCELERATE_USE_CPU asks for CPUs, else by the GPU's own library.

        Raises:
            RuntimeError: if Accelerate does not find as many.
        """
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
        if state.num_processes != count:
            raise RuntimeError(f"distill: WORLD_SIZE is {count}, Accelerate found {state.num_processes} processes")
        return cls(state.process_index, count, state.device)

    @property
    def main(self) -> bool:
        """Whether this one writes the files."""
        return self.rank == 0

    def part(self, train: Iterable[Any]) -> Iterable[Any]:
        """The same batches, made of this process's samples alone where ``train`` can, as what ``load_data`` returns."""
        make: Callable[[int, int], Iterable[Any]] | None = getattr(train, "part", None)
        return train if self.count == 1 or make is None else make(self.rank, self.count)

    def share(self, batch: Any) -> tuple[Any, Tensor | None]:
        """Inputs and targets of this process: its :func:`share_of` the batch, unless that is a part already."""
        if isinstance(batch, Part):
            return batch.inputs, batch.targets
        inputs, targets = split(batch)
        if self.count == 1:
            return inputs, targets
        own = share_of(size(inputs), self.rank, self.count)
        cut = {key: value[own] for key, value in inputs.items()} if isinstance(inputs, dict) else inputs[own]
        return cut, None if targets is None else targets[own]

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> None:
        """Replace gradients and loss by their sums over the processes, in one message.

        A parameter without a gradient in every process stays without: the optimizer leaves it alone, as it would in
        one process.
        """
        if self.count == 1:
            return
        from accelerate.utils import reduce

        used = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=loss.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        tensors = [loss, used, *gradients]
        total = reduce(torch.cat([tensor.flatten() for tensor in tensors]), "sum")
        for tensor, part in zip(tensors, total.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
        for parameter, gradient, count in zip(parameters, gradients, used.tolist(), strict=True):
            parameter.grad = gradient if count else None

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        values: list[Any] = gather_object([value])
        return values

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    @contextmanager
    def placed(self, *models: nn.Module) -> Iterator[None]:
        """Models on this process's device inside the block, and where they were afterwards."""
        if self.device is None:
            yield
            return
        homes = [next(model.parameters()).device for model in models]
        try:
            for model in models:
                model.to(self.device)
            yield
        finally:
            for model, home in zip(models, homes, strict=True):
                model.to(home)
