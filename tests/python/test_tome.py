from __future__ import annotations

import copy

import pytest
import torch
from nets import images, tiny_vit
from timm.models import VisionTransformer, deit
from torch import Tensor, nn

from mpcore.models import tome


def distilled() -> nn.Module:
    torch.manual_seed(0)
    return deit.VisionTransformerDistilled(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depth=2, num_heads=2
    ).eval()


def pictures() -> Tensor:
    return images(3, channels=1, size=8)


def merged_one_by_one(x: Tensor, sizes: Tensor, keys: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Slow twin for one sample: lists of tokens, pairs in order of similarity."""
    unit = keys / keys.norm(dim=-1, keepdim=True)
    behind = range(prefix, len(x))
    proposals = []
    for a in (i for i in behind if i % 2 == 0):
        best = max((b for b in behind if b % 2 == 1), key=lambda b: float(unit[a] @ unit[b]))
        proposals.append((float(unit[a] @ unit[best]), a, best))
    chosen = sorted(proposals, key=lambda p: -p[0])[:r]
    groups = {i: [i] for i in range(len(x))}
    for _, a, b in chosen:
        groups[b].append(a)
        del groups[a]
    totals = [sizes[members].sum() for members in groups.values()]
    means = [(x[m] * sizes[m, None]).sum(0) / t for m, t in zip(groups.values(), totals, strict=True)]
    return torch.stack(means), torch.stack(totals)


@pytest.mark.parametrize("prefix", [0, 1, 2, 4])
@pytest.mark.parametrize("tokens", [9, 12])
def test_merging_equals_its_slow_twin(tokens, prefix):
    generator = torch.Generator().manual_seed(tokens + prefix)
    x, keys = (torch.randn(2, tokens, width, generator=generator, dtype=torch.float64) for width in (5, 3))
    sizes = torch.randint(1, 5, (2, tokens), generator=generator).double()
    for r in range((tokens - prefix) // 2 + 1):
        merged, total = tome.merge(x, sizes, tome.partners(keys, r, prefix), r)
        for sample in range(2):
            expected = merged_one_by_one(x[sample], sizes[sample], keys[sample], r, prefix)
            torch.testing.assert_close(merged[sample], expected[0])
            torch.testing.assert_close(total[sample], expected[1])


@pytest.mark.parametrize("build", [tiny_vit, distilled])
def test_merging_nothing_keeps_every_bit(build):
    model, x = build(), pictures()
    expected = model(x)
    tome.apply(model, r=0)
    assert torch.equal(model(x), expected)
    tome.remove(model)
    assert torch.equal(model(x), expected)
    assert all(not block._forward_hooks for block in model.modules())


@pytest.mark.parametrize(("build", "prefix"), [(tiny_vit, 1), (distilled, 2)])
def test_tokens_fall_by_r_and_the_patches_stay_accounted_for(build, prefix):
    model, x = build(), pictures()
    tome.apply(model, r=[3, 4])
    assert model.forward_features(x).shape == (3, prefix + 16 - 7, 32)
    sizes = tome.token_sizes(model)
    assert torch.equal(sizes.sum(dim=1), torch.full((3,), prefix + 16.0))
    assert torch.equal(sizes[:, :prefix], torch.ones(3, prefix))
    assert tome.merged_per_block(model) == (3, 4)


def test_at_most_half_of_the_patch_tokens_merge_in_a_block():
    model = tiny_vit()
    tome.apply(model, r=1000)
    assert model.forward_features(pictures()).shape[1] == 1 + 4


def test_merging_identical_tokens_changes_nothing():
    """Proportional attention: a token of size k acts as k equal tokens."""
    model = tiny_vit()
    with torch.no_grad():
        model.pos_embed[:, 1:] = model.pos_embed[:, 1:2]  # all patches of a constant image are the same token
    x = torch.full((2, 1, 8, 8), 0.3)
    expected = model(x)
    tome.apply(model, r=7)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_weights_names_and_gradients_stay():
    model, x = tiny_vit().train(), pictures()
    names = list(model.state_dict())
    tome.apply(model, r=3)
    assert list(model.state_dict()) == names
    model(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_deep_copy_merges_on_its_own():
    model, x = tiny_vit(), pictures()
    tome.apply(model, r=3)
    expected = model(x)
    twin = copy.deepcopy(model)
    tome.remove(model)
    assert torch.equal(twin(x), expected)
    assert twin.forward_features(x).shape[1] == 17 - 6
    tome.remove(twin)
    assert torch.equal(twin(x), model(x))


def test_suspending_restores_the_merging_even_after_an_error():
    model, x = tiny_vit(), pictures()
    plain = model(x)
    tome.apply(model, r=[1, 2])
    with tome.suspended(model):
        assert torch.equal(model(x), plain)
    with pytest.raises(RuntimeError), tome.suspended(model):
        model(torch.zeros(1, 5, 8, 8))
    assert tome.merged_per_block(model) == (1, 2)


def test_unfit_models_and_numbers_are_named():
    with pytest.raises(TypeError, match="model: Linear is not a timm VisionTransformer"):
        tome.apply(nn.Linear(2, 2))
    model = tiny_vit()
    for r in (-1, [1], [1, -1], 1.5):
        with pytest.raises(ValueError, match=r"r: .*, wanted an integer >= 0, or one for each of the 2 blocks"):
            tome.apply(model, r)
    tome.apply(model, 1)
    with pytest.raises(ValueError, match="merges tokens already"):
        tome.apply(model, 1)
    with pytest.raises(ValueError, match="attn_mask: token merging needs"):
        model.forward_features(pictures(), is_causal=True)
    average = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, global_pool="avg")
    with pytest.raises(ValueError, match="pools over tokens"):
        tome.apply(average)
