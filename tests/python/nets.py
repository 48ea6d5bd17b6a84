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


class Attention(nn.Module):
    """Of Hugging Face's BERT, by its names: ``self.query``, ``self.key``, ``self.value``, ``output.dense``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner, output = nn.Module(), nn.Module()
        inner.query, inner.key, inner.value = (nn.Linear(width, width) for _ in range(3))
        inner.num_attention_heads = heads
        output.dense, output.LayerNorm = nn.Linear(width, width), nn.LayerNorm(width)
        self.add_module("self", inner)
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        inner = self.get_submodule("self")
        split = (len(x), -1, inner.num_attention_heads, x.shape[-1] // inner.num_attention_heads)
        query, key, value = (layer(x).view(split).transpose(1, 2) for layer in (inner.query, inner.key, inner.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.output.LayerNorm(x + self.output.dense(mixed))


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.intermediate, self.output = nn.Module(), nn.Module()
        self.intermediate.dense, self.output.dense = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.output.LayerNorm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        hidden = nn.functional.gelu(self.intermediate.dense(x))
        return self.output.LayerNorm(x + self.output.dense(hidden))


class Encoder(nn.Module):
    """A BERT-like encoder on embedded tokens (n, tokens, 16), two layers of two heads, three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.layer = nn.ModuleList([EncoderLayer(16, 2), EncoderLayer(16, 2)])
        self.classifier = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layer:
            x = layer(x)
        return self.classifier(x.mean(1))


def images(count: int, *, channels: int = 3, size: int = 16, seed: int = 1) -> Tensor:
    """Smooth random images, so that neighbouring inputs correlate as they do in photographs."""
    noise = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(noise, 3, stride=1, padding=1) * 2
