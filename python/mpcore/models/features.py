"""What single layers answer, and how far the student's answers are from the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mpcore.models.apply import layer_of


@contextmanager
def layer_outputs(model: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Layer name -> its output in the last forward pass inside the block.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with layer_outputs(net, ["0"]) as outputs:
        ...     _ = net(torch.ones(4, 3))
        >>> outputs["0"].shape
        torch.Size([4, 2])
    """
    outputs: dict[str, Tensor] = {}
    handles = [layer_of(model, name).register_forward_hook(_keep(outputs, name)) for name in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def feature_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Mean over layers and samples of ||s - t||^2 / ||t||^2, s and t one sample's output of the layer.

    Args:
        student: layer name -> output, samples first.
        teacher: the same layers and shapes; an output of zeros counts as one of norm 1e-6.

    Raises:
        ValueError: naming a layer that only one of them ran, or whose two outputs differ in shape.
    """
    terms = []
    for name in sorted({*student, *teacher}):
        if name not in student or name not in teacher:
            raise ValueError(f"distill: layer {name} took no part in the {'teacher' if name in student else 'student'}")
        found, wanted = student[name], teacher[name]
        if found.shape != wanted.shape:
            shapes = f"{tuple(wanted.shape)} in the teacher, {tuple(found.shape)} in the student"
            raise ValueError(f"distill: layer {name} answers {shapes}")
        wide = torch.promote_types(found.dtype, torch.float32)
        found, wanted = found.to(wide), wanted.to(found.device, wide)
        axes = tuple(range(1, found.ndim))  # not flattened: that would copy what is stored channels last
        error = torch.linalg.vector_norm(found - wanted, dim=axes)
        terms.append((error / torch.linalg.vector_norm(wanted, dim=axes).clamp_min(1e-6)).square().mean())
    return torch.stack(terms).mean()


def _keep(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs[name] = output

    return hook
