"""How many layers of well-known networks mpcore can permute for free, beside what apex permutes.

Structure only (meta device): ``tests/python/test_plans.py`` checks that the orders leave outputs alone.
Run as ``.venv/bin/python benches/python/coverage.py``.
"""

from __future__ import annotations

import timm
import torch
from torch import nn

from mpcore.models import plans

NETWORKS = (
    ("vit_base_patch16_224", ("mlp.fc2", "attn.proj"), "mlp.fc2, attn.proj", "0/49"),
    ("resnet50", ("conv2", "conv3"), "conv2, conv3", "37/53"),
    ("resnet152d", ("conv2", "conv3"), "conv2, conv3", "105/157"),
    ("convnextv2_base", ("mlp.fc2",), "pwconv2 (mlp.fc2)", "36/76"),
    ("efficientnet_lite0", ("conv_pwl", "blocks.0.0.conv_pw"), "project convs", "-"),
    ("deit_small_patch16_224", ("mlp.fc2", "attn.proj"), "mlp.fc2, attn.proj", "0/49"),
    ("swin_tiny_patch4_window7_224", ("mlp.fc2", "attn.proj"), "mlp.fc2, attn.proj", "0/52"),
    ("mobilenetv2_100", ("conv_pwl", "blocks.0.0.conv_pw"), "project convs", "0/33"),
)
"""timm name, ends of the names of its private layers, what they are, apex: permuted / sparse layers (cited)."""


def main() -> None:
    """Print one row per network, as a Markdown table."""
    print("| network (timm) | private layers | permuted | Linear and ungrouped Conv2d permuted, of all | apex |")
    print("|---|---|---|---|---|")
    for name, ends, words, apex in NETWORKS:
        with torch.device("meta"):
            model = timm.create_model(name)
        layers = [
            layer
            for layer, module in model.named_modules()
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        ]
        permuted = {consumer for group in plans.find(model) for consumer in group.consumers}
        private = [layer for layer in layers if layer.endswith(ends)]
        done = len(permuted.intersection(private))
        print(f"| {name} | {words} | {done}/{len(private)} | {len(permuted)}/{len(layers)} | {apex} |")


if __name__ == "__main__":
    main()
