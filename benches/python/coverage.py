"""How many layers of well-known networks mpcore can permute for free, beside what apex permutes; what the others cost.

The first table is structure only (meta device): ``tests/python/test_plans.py`` checks that the orders leave outputs
alone. The second one times networks whose other layers read their channels through a gather (``permute = "gather"``),
random weights and orders, over the same network without. Run as ``.venv/bin/python benches/python/coverage.py``.
"""

from __future__ import annotations

import copy

import timm
import torch
from tables import alternate, machine
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


TIMED = ("vit_small_patch16_224", "resnet50", "efficientnet_lite0")


def main() -> None:
    """Print both tables, in Markdown."""
    cover()
    print(f"\n{machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, float32\n")
    print("| network (timm) | batch | gathered layers | time over that without, min / median |")
    print("|---|---|---|---|")
    for name in TIMED:
        for batch in (1, 8):
            print(gathering(name, batch))


def cover() -> None:
    """One row per network: layers that can be permuted."""
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


@torch.inference_mode()
def gathering(name: str, batch: int) -> str:
    """One row: all layers outside the free groups gather."""
    model = timm.create_model(name).eval()
    taken = {consumer for group in plans.find(model) for consumer in group.consumers}
    gathered, groups = copy.deepcopy(model), plans.at_run_time(model, taken)
    for group in groups:
        width = gathered.get_submodule(group.consumers[0]).weight.shape[1]
        plans.fold(gathered, group, torch.randperm(width).tolist())
    images = torch.randn(batch, 3, 224, 224)
    before, after = alternate([lambda: model(images), lambda: gathered(images)], repeats=15)
    ratios = " / ".join(f"{late / early:.2f}" for late, early in zip(after, before, strict=True))
    return f"| {name} | {batch} | {len(groups)} | {ratios} |"


if __name__ == "__main__":
    main()
