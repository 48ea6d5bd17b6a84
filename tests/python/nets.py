"""Small networks that have every kind of layer the models package meets; seeded, seconds to run."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn


def tiny_vit(seed: int = 0) -> nn.Module:
    """Two blocks of width 32 on 8x8 images in 2x2 patches, 10 classes."""
    torch.manual_seed(seed)
    return timm.models.VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2
    ).eval()


class InvertedResidual(nn.Module):
    """The block of the efficientnet_lite_pytorch package, by its names."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self._expand_conv, self._bn0 = nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self._depthwise_conv, self._bn1 = (
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
        )
        self._project_conv, self._bn2 = nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.relu(self._bn0(self._expand_conv(x)))
        wide = torch.relu(self._bn1(self._depthwise_conv(wide)))
        return x + self._bn2(self._project_conv(wide))


class TinyConvNet(nn.Module):
    """Stem, two inverted residuals, a 3x3 convolution, a classifier; BatchNorm statistics are not trivial."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.blocks = nn.ModuleList([InvertedResidual(8, 32), InvertedResidual(8, 32)])
        self.tail = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3))
        self.fc = nn.Linear(24, 10)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    for values in (module.weight, module.bias, module.running_mean):
                        values.add_(0.2 * torch.randn(values.shape))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(self.tail(x).mean((2, 3)))


def images(count: int, *, channels: int = 3, size: int = 16, seed: int = 1) -> Tensor:
    """Smooth random images, so that neighbouring inputs correlate as they do in photographs."""
    noise = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(noise, 3, stride=1, padding=1) * 2
