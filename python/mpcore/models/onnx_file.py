"""ONNX for TensorRT and other runtimes: dense initializers with exact zeros, checked after the export."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpcore.models.apply import layer_of
from mpcore.models.evaluate import eval_mode
from mpcore.models.inventory import inventory
from mpcore.models.sparse_layers import Sparse
from mpcore.records import atomic


def to_onnx(
    model: nn.Module, example_input: Tensor, path: str | os.PathLike[str], *, dynamic_batch: bool = True
) -> Path:
    """Export ``model`` in evaluation mode and check that every zero of its layers survived.

    TensorRT recognises N:M by the zeros in constant weights, so the file holds every Linear and Conv2d weight densely;
    a following BatchNorm may be folded into a convolution, which scales rows and moves no zero.

    Args:
        model: on the CPU.
        example_input: one batch; with ``dynamic_batch`` of two samples or more.
        path: the .onnx file; written whole or not at all.
        dynamic_batch: let the first axis have any length.

    Raises:
        ImportError: without the packages of ``mpcore[onnx]``.
        ValueError: for an accelerated model, or if a layer's zeros are not in the file; it names the layer.
    """
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"ONNX export needs {name}; install mpcore[onnx]")
    import onnx

    found = next((name for name, module in model.named_modules() if isinstance(module, Sparse)), None)
    if found is not None:
        name = found or type(model).__name__
        raise ValueError(f"layer {name}: ONNX has no such sparse layer; export the model before accelerate")
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic_batch else None
    with atomic(path) as temporary:
        with eval_mode(model), torch.inference_mode(False), torch.no_grad():
            torch.onnx.export(
                model,
                (example_input,),
                temporary,
                dynamo=True,
                external_data=False,
                verbose=False,
                dynamic_shapes=shapes,
            )
        graph = onnx.load(temporary).graph
        _check_zeros(model, {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer})
    return Path(path)


def _check_zeros(model: nn.Module, stored: dict[str, np.ndarray[Any, Any]]) -> None:
    """Every layer's zeros stand in an initializer of its shape, or of its transpose."""
    matrices = [array for array in stored.values() if array.ndim >= 2]
    matrices += [array.T for array in matrices if array.ndim == 2]
    for layer in inventory(model).layers:
        zero = (layer_of(model, layer.name).weight.detach() == 0).numpy()
        if zero.any() and not any(array.shape == zero.shape and not array[zero].any() for array in matrices):
            raise ValueError(f"layer {layer.name}: its zeros are not in the exported file")
