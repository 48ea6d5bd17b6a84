"""Token merging (ToMe) for timm vision transformers: fewer tokens from block to block, no training needed.

Between attention and MLP of every block the r most similar pairs of tokens are averaged. Tokens are split in
alternation into A and B; each of A proposes to the token of B whose mean-over-heads key is most similar by cosine, and
the r best proposals merge, weighted by how many patches a token already stands for (its size). Attention adds log size
to its logits, so that a merged token counts as often as the patches in it. Class and other prefix tokens never merge,
and the tokens that stay keep their order.

The sizes travel with the tokens: every block sets them on the tensor it returns, as the attribute ``token_sizes``.
Nothing of a pass is read from the model, so that threads may share it and a checkpointed block is recomputed from its
own input.

References:
    Bolya, Fu, Dai, Zhang, Feichtenhofer, Hoffman, "Token merging: Your ViT but faster", 2023.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_SIZES = "token_sizes"
_HERE = threading.local()
"""``keys``: those of the block this thread is in."""


def apply(model: nn.Module, r: int | Sequence[int] = 8) -> None:
    """Let a timm VisionTransformer (ViT, DeiT, distilled DeiT) merge tokens, in place.

    Weights, module names and state dict stay as they are; :func:`remove` undoes it. At most half of the tokens behind
    the prefix merge in one block. With r = 0 the outputs keep their bits. Maps of features
    (``forward_intermediates``, timm's ``features_only``) need every token and raise until :func:`remove`.

    Args:
        model: reads out its class token; average pooling would weigh merged tokens wrongly and is refused.
        r: tokens merged in every block, or one number per block.

    Raises:
        TypeError: if the model is not such a transformer, or its blocks are not plain ones.
        ValueError: if r is negative or of another length, or the model pools over tokens.

    Example:
        >>> model = VisionTransformer(img_size=8, patch_size=2, embed_dim=8, depth=2, num_heads=2, num_classes=0)
        >>> apply(model, r=3)
        >>> model.forward_features(torch.zeros(1, 3, 8, 8)).shape  # 17 tokens - 2 * 3
        torch.Size([1, 11, 8])
        >>> remove(model)
    """
    blocks, prefix = _plain_blocks(model)
    numbers = list(r) if isinstance(r, Sequence) else [r] * len(blocks)
    if len(numbers) != len(blocks) or any(not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError(f"r: {r!r}, wanted an integer >= 0, or one for each of the {len(blocks)} blocks")
    for index, (block, number) in enumerate(zip(blocks, numbers, strict=True)):
        block.merging = _Merging(index, number, prefix, any(numbers[:index]))
        block.merging.handle = block.attn.k_norm.register_forward_hook(_keep_keys)
        block.__class__ = MergingBlock
    vars(model)["forward_intermediates"] = _refuse_maps


def remove(model: nn.Module) -> None:
    """Undo :func:`apply`; a model that merges nothing stays as it is."""
    merging: list[Any] = [module for module in model.modules() if isinstance(module, MergingBlock)]
    for block in merging:
        if block.merging.handle is not None:
            block.merging.handle.remove()
        del block.merging
        block.__class__ = Block
    for module in model.modules():
        if vars(module).get("forward_intermediates") is _refuse_maps:
            del vars(module)["forward_intermediates"]


def merged_per_block(model: nn.Module) -> tuple[int, ...]:
    """The r of every block that :func:`apply` changed; empty if there is none."""
    return tuple(block.merging.r for block in model.modules() if isinstance(block, MergingBlock))


def token_sizes(model: nn.Module) -> Tensor | None:
    """(batch, tokens): patches that each token of the last forward pass stands for; None if nothing has merged.

    Of several threads that share the model, the one whose pass ended last counts.
    """
    plans = [block.merging for block in model.modules() if isinstance(block, MergingBlock)]
    return plans[-1].last if plans else None


@contextmanager
def suspended(model: nn.Module) -> Iterator[None]:
    """The model without token merging, for as long as the block runs."""
    numbers = merged_per_block(model)
    remove(model)
    try:
        yield
    finally:
        if numbers:
            apply(model, numbers)


@dataclass(eq=False)
class _Merging:
    """What one block merges; ``behind``: an earlier block merges too. ``last`` are the sizes it returned last."""

    index: int
    r: int
    prefix: int
    behind: bool
    handle: RemovableHandle | None = None
    last: Tensor | None = None

    def sizes_of(self, x: Tensor) -> Tensor | None:
        """The sizes that came with the tokens; None while every token is one patch."""
        if self.behind and not hasattr(x, _SIZES):
            raise RuntimeError(
                f"blocks.{self.index}: its input is not what the block before it returned, so that the sizes of its "
                "tokens are unknown; a hook may have replaced it, or gradients are checkpointed with use_reentrant=True"
            )
        return getattr(x, _SIZES) if self.behind else None


def _keep_keys(module: nn.Module, args: tuple[Any, ...], keys: Tensor) -> None:
    """Hook: keep the mean over heads of (batch, heads, tokens, width), for the block this thread is in."""
    _HERE.keys = keys.detach().mean(dim=1)


def _refuse_maps(*_: Any, **__: Any) -> NoReturn:
    """In the place of a model's ``forward_intermediates``."""
    raise RuntimeError(
        "forward_intermediates: the blocks merge tokens, so that what they return is no map of the image any more; "
        "call mpcore.models.tome.remove(model) first, or use mpcore.models.tome.suspended(model)"
    )


class MergingBlock(Block):
    """A timm block that merges tokens between attention and MLP; :func:`apply` gives it to existing blocks."""

    merging: _Merging

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attention, merge, MLP on (batch, tokens, width)."""
        if attn_mask is not None or is_causal:
            raise ValueError("attn_mask: token merging needs attention over all tokens, without a mask")
        plan = self.merging
        sizes = plan.sizes_of(x)
        weight = None if sizes is None else sizes.log().to(x.dtype)[:, None, None, :]
        _HERE.keys = None
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=weight)))
        keys, _HERE.keys = _HERE.keys, None
        if keys is None:
            raise RuntimeError(f"blocks.{plan.index}: its attention did not compute keys")
        r = min(plan.r, (x.shape[1] - plan.prefix) // 2)
        if r > 0:
            sizes = torch.ones(x.shape[:2], device=x.device) if sizes is None else sizes
            x, sizes = merge(x, sizes, partners(keys, r, plan.prefix), r)
        out: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        setattr(out, _SIZES, sizes)
        if not torch.compiler.is_compiling():
            plan.last = sizes
        return out


def partners(keys: Tensor, r: int, prefix: int) -> Tensor:
    """(batch, tokens) index of the token that every token goes to: itself, or for r of them their partner.

    Args:
        keys: (batch, tokens, width).
        r: number of tokens to merge, at most half of those behind the prefix.
        prefix: number of leading tokens that never merge.
    """
    keys = torch.nn.functional.normalize(keys.float(), dim=-1)
    batch, tokens, _ = keys.shape
    similarity = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)
    similarity[:, : (prefix + 1) // 2] = -torch.inf
    similarity[:, :, : prefix // 2] = -torch.inf
    best, partner = similarity.max(dim=2)
    if torch.onnx.is_in_onnx_export():  # ONNX has no stable sort by that name; its TopK puts the lower index first
        merged = best.sort(dim=1, descending=True).indices[:, :r]
    else:
        merged = best.argsort(dim=1, descending=True, stable=True)[:, :r]
    index = torch.arange(tokens, device=keys.device).expand(batch, tokens)
    return index.scatter(1, 2 * merged, 2 * partner.gather(1, merged) + 1)


def merge(x: Tensor, sizes: Tensor, target: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Size-weighted mean of the tokens that go to the same target, in the targets' order, and the summed sizes.

    Args:
        x: (batch, tokens, width).
        sizes: (batch, tokens) float, patches that each token stands for.
        target: (batch, tokens) from :func:`partners`.
        r: number of tokens that go elsewhere, in every sample.

    Returns:
        (batch, tokens - r, width) and (batch, tokens - r).
    """
    batch, tokens, width = x.shape
    stays = target == torch.arange(tokens, device=x.device)
    position = (stays.cumsum(dim=1) - 1).gather(1, target)
    total = sizes.new_zeros(batch, tokens - r).scatter_add(1, position, sizes)
    weighted = x * sizes[:, :, None].to(x.dtype)
    summed = x.new_zeros(batch, tokens - r, width).scatter_add(1, position[:, :, None].expand_as(x), weighted)
    return summed / total[:, :, None].to(x.dtype), total


def _plain_blocks(model: Any) -> tuple[list[Any], int]:
    """The blocks of a transformer that can merge tokens, and its number of prefix tokens."""
    if not isinstance(model, VisionTransformer):
        raise TypeError(f"model: {type(model).__name__} is not a timm VisionTransformer")
    trunk: Any = model
    blocks = list(trunk.blocks)
    if any(isinstance(block, MergingBlock) for block in blocks):
        raise ValueError("model: it merges tokens already; call remove first")
    for index, block in enumerate(blocks):
        kinds = (type(block), type(getattr(block, "attn", None)))
        if kinds != (Block, Attention):
            found = " with ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"blocks.{index}: {found}, wanted timm's Block with Attention")
    if trunk.attn_pool is not None or trunk.global_pool not in ("token", ""):
        raise ValueError(f"model: pools over tokens ({trunk.global_pool!r}), wanted one that reads its class token")
    return blocks, int(trunk.num_prefix_tokens)
