"""How many layers of well-known networks mpcore can permute for free, beside what apex permutes; what the others cost.

The first table is structure only (meta device): ``tests/python/test_plans.py`` checks that orders leave outputs alone.
The second one times networks whose other layers read their channels through a gather (``permute = "gather"``), random
weights and orders, over the same network without. Run as ``.venv/bin/python benches/python/coverage.py``.
"""

from __future__ import annotations

import copy

import timm
import torch
from tables import alternate, machine
from torch import nn

from mpcore.models import plans

NETWORKS = {
    "vit_base_patch16_224": "0/49",
    "deit_small_patch16_224": "0/49",
    "swin_tiny_patch4_window7_224": "0/52",
    "convnextv2_base": "36/76",
    "resnet50": "37/53",
    "resnet152d": "105/157",
    "mobilenetv2_100": "0/33",
    "efficientnet_lite0": "-",
    "densenet121": "-",
    "inception_v3": "-",
    "vovnet39a": "-",
    "levit_128s": "-",
    "tnt_s_patch16_224": "-",
    "coatnet_0_rw_224": "-",
    "mobilevit_xxs": "-",
}
"""timm name -> apex: permuted / sparse layers (cited)."""


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
    """One row per network: layers of which channels can be permuted."""
    print('| network (timm) | Linear and ungrouped Conv2d | by template | default | `permute = "residual"` | apex |')
    print("|---|---|---|---|---|---|")
    for name, apex in NETWORKS.items():
        with torch.device("meta"):
            model = timm.create_model(name).eval()
            traced = plans.trace(model, torch.empty(2, *model.default_cfg["input_size"]))
        layers = [
            module
            for module in model.modules()
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        ]
        template = readers(plans.find(model))
        default = template | readers(traced.groups)
        counts = (len(layers), len(template), len(default), len(default | readers(traced.streams)))
        print(f"| {name} | {' | '.join(map(str, counts))} | {apex} |")


def readers(groups: tuple[plans.PermutationGroup, ...]) -> set[str]:
    """The layers that read the channels of the groups."""
    return {consumer for group in groups for consumer in group.consumers}


@torch.inference_mode()
def gathering(name: str, batch: int) -> str:
    """One row: all layers outside the free groups gather."""
    model = timm.create_model(name).eval()
    images = torch.randn(batch, 3, 224, 224)
    free = [group for group in plans.trace(copy.deepcopy(model), images).groups if not group.starts]
    gathered, groups = copy.deepcopy(model), plans.at_run_time(model, readers((*plans.find(model), *free)))
    for group in groups:
        plans.fold(gathered, group, torch.randperm(plans.channels_of(gathered, group)).tolist())
    before, after = alternate([lambda: model(images), lambda: gathered(images)], repeats=15)
    ratios = " / ".join(f"{late / early:.2f}" for late, early in zip(after, before, strict=True))
    return f"| {name} | {batch} | {len(groups)} | {ratios} |"


if __name__ == "__main__":
    main()
