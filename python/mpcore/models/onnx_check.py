"""Which layers of an ONNX file TensorRT can run on sparse tensor cores, by its rule for weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter notes which modules a node comes from: the operator last, its module before."""


@dataclass(frozen=True)
class OnnxLayer:
    """A Conv, Gemm or MatMul with a weight; ``reason`` says why it is not eligible."""

    layer: str
    op: str
    shape: tuple[int, ...]  # (outputs, inputs) or (outputs, inputs / groups, height, width)
    eligible: bool
    reason: str


def eligible_24(path: str | os.PathLike[str]) -> tuple[OnnxLayer, ...]:
    """Every layer of the file, and whether TensorRT's builder flag SPARSE_WEIGHTS finds it eligible.

    The rule: the weight is a constant, and for each output channel and place in the kernel two at least of every four
    consecutive input channels, which are a multiple of 4, are zero. Eligible is not faster: TensorRT times both and
    takes the dense kernel where that wins.

    Raises:
        ImportError: without onnx (extra ``onnx``).
        ValueError: if the file is no ONNX file.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError:
        raise ImportError(f"{path}: reading ONNX needs onnx; install mpcore[onnx]") from None
    try:
        graph = onnx.load(path).graph
    except DecodeError as error:
        raise ValueError(f"{path}: not an ONNX file ({error})") from None
    return tuple(_layers(_Constants(graph), graph))


class _Constants:
    """The arrays of a graph by name, seen through Identity and Transpose."""

    def __init__(self, graph: Any) -> None:
        self._stored = {entry.name: entry for entry in graph.initializer}
        self._made = {name: node for node in graph.node for name in node.output}

    def get(self, name: str) -> Array | None:
        """The array called ``name``; None if it is computed."""
        from onnx import numpy_helper

        if name in self._stored:
            stored: Array = numpy_helper.to_array(self._stored[name])
            return stored
        node = self._made.get(name)
        if node is None or node.op_type not in ("Constant", "Identity", "Transpose"):
            return None
        given = _attributes(node)
        if node.op_type == "Constant":
            return numpy_helper.to_array(given["value"]) if "value" in given else None
        inner = self.get(node.input[0])
        if inner is None or node.op_type == "Identity":
            return inner
        turned: Array = inner.transpose(given.get("perm"))
        return turned

    def maker(self, name: str) -> str:
        """What computes ``name``."""
        return self._made[name].op_type if name in self._made else "an input of the network"


def _layers(constants: _Constants, graph: Any) -> Iterator[OnnxLayer]:
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        weight = constants.get(node.input[1])
        name = _name(node)
        if weight is None:
            if node.op_type != "MatMul":  # of two activations: no layer
                yield OnnxLayer(
                    name, node.op_type, (), False, f"its weight comes from {constants.maker(node.input[1])}"
                )
        elif weight.ndim >= 2:
            outputs_first = node.op_type == "Conv" or bool(_attributes(node).get("transB"))
            matrix = weight if outputs_first else weight.swapaxes(-1, -2)
            reason = _why_not(matrix)
            yield OnnxLayer(name, node.op_type, matrix.shape, not reason, reason)


def _why_not(weight: Array) -> str:
    """``weight``: (outputs, inputs, ...)."""
    inputs = weight.shape[1]
    if inputs % 4:
        return f"{inputs} input channels is not a multiple of 4"
    kept = (weight != 0).reshape(weight.shape[0], inputs // 4, 4, -1).sum(2)
    dense = int((kept > 2).sum())
    return f"{dense} of {kept.size} groups keep more than 2 of 4" if dense else ""


def _name(node: Any) -> str:
    """The module of the layer where the file says so, else the name of its weight or node."""
    if node.input[1].endswith(".weight"):
        return str(node.input[1].removesuffix(".weight"))
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    return parts[-2] if len(parts) > 1 and parts[-2] else str(node.name or node.output[0])


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
