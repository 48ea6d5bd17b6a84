"""ONNX for TensorRT and other runtimes: dense initializers with exact zeros, checked after the export."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpcore.models.evaluate import eval_mode
from mpcore.models.inventory import inventory
from mpcore.models.outputs import check_example
from mpcore.models.sparse_layers import Sparse
from mpcore.records import atomic


def to_onnx(
    model: nn.Module, example_input: Tensor, path: str | os.PathLike[str], *, dynamic_batch: bool = True
) -> Path:
    """Export ``model`` in evaluation mode and check that every zero of its layers survived.

    TensorRT recognises N:M by the zeros in constant weights, so the file holds every Linear and Conv2d weight densely;
    a following BatchNorm may be folded into a convolution, which scales rows and moves no zero. A layer that evaluation
    does not use, or whose output is the same for every input, is not in the file and need not be.

    Args:
        model: on the CPU.
        example_input: one batch; with ``dynamic_batch`` of two samples or more.
        path: the .onnx file; written whole or not at all.
        dynamic_batch: let the first axis have any length.

    Raises:
        ImportError: without the packages of ``mpcore[onnx]``.
        TypeError: if ``example_input`` is no tensor.
        ValueError: for an accelerated model, for less than two samples with ``dynamic_batch``, for a model that torch
            cannot export, or if a layer's zeros are not in the file; it names the layer.
    """
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"ONNX export needs {name}; install mpcore[onnx]")
    import onnx

    check_example(example_input)
    if dynamic_batch and len(example_input) < 2:
        raise ValueError(
            f"example_input: shape {tuple(example_input.shape)}, wanted two samples or more: with fewer torch.export "
            "takes the batch for a constant; dynamic_batch=False keeps it one"
        )
    found = next((name for name, module in model.named_modules() if isinstance(module, Sparse)), None)
    if found is not None:
        name = found or type(model).__name__
        raise ValueError(f"layer {name}: ONNX has no such sparse layer; export the model before accelerate")
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic_batch else None
    with atomic(path) as temporary:
        with eval_mode(model), torch.inference_mode(False), torch.no_grad():
            try:
                exported = torch.onnx.export(
                    model,
                    (example_input,),
                    temporary,
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                    dynamic_shapes=shapes,
                )
            except torch.onnx.OnnxExporterError as error:
                raise ValueError(_why_not(model, error, dynamic_batch)) from error
        graph = onnx.load(temporary).graph
        stored = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
        assert exported is not None
        _check_zeros(model, stored, _multiplied(exported.exported_program))
    return Path(path)


def _why_not(model: nn.Module, error: Exception, dynamic_batch: bool) -> str:
    """One line for an export that failed, with what may help."""
    cause = " ".join(str(error.__cause__ or error).split())
    fixed = dynamic_batch and "user-specified" in cause
    hint = "its batch has one length only: dynamic_batch=False exports it so" if fixed else "torch cannot export it"
    return f"{type(model).__name__}: {hint} ({cause[:300]})"


def _multiplied(program: Any) -> set[str]:
    """Names of the parameters that the program combines with its inputs, as they are or made into something else.

    Left out are those it does not use, and those whose products are constants.
    """
    names = program.graph_signature.inputs_to_parameters
    inputs, found = set(program.graph_signature.user_inputs), set()
    varies: dict[Any, bool] = {}
    owners: dict[Any, set[str]] = {}
    for node in program.graph.nodes:
        varies[node] = node.name in inputs or any(varies[source] for source in node.all_input_nodes)
        owners[node] = {names[node.name]} if node.name in names else set()
        for source in node.all_input_nodes:
            owners[node] |= owners[source]
        if varies[node]:
            found |= owners[node]
        if varies[node] or getattr(node.target, "overloadpacket", None) in _PRODUCTS:
            owners[node] = set()
    return found


def _check_zeros(model: nn.Module, stored: dict[str, np.ndarray[Any, Any]], used: Collection[str]) -> None:
    """The zeros of every layer with ``used`` parameters stand in an initializer of its shape, or of its transpose."""
    kept = {id(model.get_parameter(name)) for name in used}
    matrices = [array for array in stored.values() if array.ndim >= 2]
    matrices += [array.T for array in matrices if array.ndim == 2]
    for name in inventory(model):
        module = model.get_submodule(name)
        if not any(id(parameter) in kept for parameter in module.parameters()):
            continue
        zero = (torch.as_tensor(module.weight).detach() == 0).numpy()
        if zero.any() and not any(array.shape == zero.shape and not array[zero].any() for array in matrices):
            own = type(module).forward not in (nn.Linear.forward, nn.Conv2d.forward)
            hint = f"; a {type(module).__name__} multiplies by another weight, which it computes" if own else ""
            raise ValueError(f"layer {name}: its zeros are not in the exported file{hint}")


_ATEN: Any = torch.ops.aten
_PRODUCTS = (_ATEN.linear, _ATEN.conv2d, _ATEN.convolution, _ATEN.addmm, _ATEN.mm, _ATEN.bmm, _ATEN.matmul)
