"""Token merging keeps nothing of a pass in the model: threads, checkpointing and export see their own tokens."""

from __future__ import annotations

import threading
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
from nets import images, tiny_vit
from torch import nn

from mpcore.models import tome
from mpcore.models.onnx_file import to_onnx


def merging(r: int = 3) -> nn.Module:
    model = tiny_vit()
    tome.apply(model, r)
    return model


@pytest.mark.filterwarnings("error")
def test_threads_may_share_a_model() -> None:
    model = merging()
    inputs = [images(2, channels=1, size=8, seed=seed) for seed in range(4)]
    with torch.inference_mode():
        expected = [model(x) for x in inputs]
    start, wrong = threading.Barrier(4), []

    @torch.inference_mode()
    def serve(index: int) -> None:
        start.wait()
        try:
            wrong.extend(n for n in range(30) if not torch.equal(model(inputs[index]), expected[index]))
        except RuntimeError as error:
            wrong.append(error)

    threads = [threading.Thread(target=serve, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_checkpointed_block_is_recomputed_with_the_sizes_of_its_own_pass() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = merging().train()
        model.set_grad_checkpointing(checkpointing)
        first, second = (model(images(2, channels=1, size=8, seed=seed)) for seed in (0, 1))
        (first.square().sum() + 0 * second.sum()).backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


def test_tokens_without_their_sizes_are_refused() -> None:
    model = merging()
    model.blocks[0].register_forward_hook(lambda module, args, output: output.clone())
    with pytest.raises(RuntimeError, match=r"blocks\.1: its input is not what the block before it returned"):
        model(images(2, channels=1, size=8))
    tome.remove(model)
    tome.apply(model, [0, 3])  # nothing has merged before the second block
    model(images(2, channels=1, size=8))


def test_maps_of_features_are_refused_until_the_merging_is_removed() -> None:
    model, x = tiny_vit(), images(2, channels=1, size=8)
    expected = model.forward_intermediates(x, intermediates_only=True)
    tome.apply(model, 3)
    with pytest.raises(RuntimeError, match="forward_intermediates: the blocks merge tokens"):
        model.forward_intermediates(x)
    with pytest.raises(RuntimeError, match=r"call mpcore\.models\.tome\.remove\(model\) first"):
        model.get_intermediate_layers(x, 1)
    with tome.suspended(model):
        assert torch.equal(model.forward_intermediates(x, intermediates_only=True)[1], expected[1])
    name = "vit_tiny_patch16_224"
    maps = timm.create_model(name, features_only=True, img_size=32, embed_dim=24, depth=3, num_heads=2).eval()
    tome.apply(maps.model, 1)
    with pytest.raises(RuntimeError, match="forward_intermediates: the blocks merge tokens"):
        maps(torch.zeros(1, 3, 32, 32))


def test_onnx_merges_the_same_tokens(tmp_path: Path) -> None:
    model, x = merging(), images(3, channels=1, size=8)
    session = onnxruntime.InferenceSession(to_onnx(model, x[:2], tmp_path / "model.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_what_torch_compiles_merges_the_same_tokens() -> None:
    model, x = merging(), images(3, channels=1, size=8)
    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
