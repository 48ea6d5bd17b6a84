"""Certificates and masks of networks that are no chain of segments, or only look like one, against whole passes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from nets import TinyConvNet, images, tiny_vit
from torch import nn

import mpcore
from mpcore import pipeline
from mpcore.models import sequence
from mpcore.models.batches import forward, split
from mpcore.models.certificate import LogitTrail
from mpcore.models.proof import find_segments
from mpcore.models.segments import Chain, Path, uncached

WIDTH = 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, other: torch.Tensor | list[torch.Tensor] | None = None) -> torch.Tensor:
        self.features = x + self.fc2(torch.relu(self.fc1(x)))
        if isinstance(other, list):
            other.append(x)
            return self.features + torch.tanh(torch.stack(other).sum(0))
        return self.features if other is None else self.features + torch.tanh(3 * other)


class Blocks(nn.Module):
    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(depth)), nn.Linear(WIDTH, 5)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class FromEarlierBlock(Blocks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = x
        for block in self.blocks:
            x, before = block(x, before), x
        return self.head(x)


class SkippedByData(Blocks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, block in enumerate(self.blocks):
            if index == 2 and x[:, 0].mean() > 0:
                continue
            x = block(x)
        return self.head(x)


class Masked(Blocks):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.blocks:
            x = block(x) if mask is None else block(x, mask)
        return self.head(x)


class Memory(Blocks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory: list[torch.Tensor] = []
        for block in self.blocks:
            x = block(x, memory)
        return self.head(x)


class Stashed(Blocks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.head(self.blocks[0].features)


class SharedLayer(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[3].fc1 = self.blocks[0].fc1


class LayerBetween(Blocks):
    """A layer beside the chain that reads the first block and feeds the third."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start, gate = x, None
        for index, block in enumerate(self.blocks):
            if index == 2:
                gate = self.gate(start)
            x = block(x, gate)
        return self.head(x)


def noise(*shape: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    moved = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    moved[:, 0] += shift
    return moved


PLAIN = [noise(8, WIDTH, seed=seed) for seed in range(3)]
PARTED = [noise(8, WIDTH, seed=0, shift=-20), noise(8, WIDTH, seed=1, shift=20)]
SOMETIMES = [{"x": PLAIN[0]}, {"x": PLAIN[1], "mask": PLAIN[2]}]


def layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def changes(model: nn.Module, run, batches) -> np.ndarray:
    """Largest logit change of every sample between the stored files, by whole passes."""
    dense, pruned = (mpcore.load(run.folder, copy.deepcopy(model), which=which).eval() for which in ("dense", "model"))
    with torch.inference_mode():
        pairs = [(forward(dense, split(batch)[0]), forward(pruned, split(batch)[0])) for batch in batches]
    return torch.cat([(a.double() - b.double()).abs().amax(dim=1) for a, b in pairs]).numpy()


def prune(model: nn.Module, batches, **settings):
    recipe = mpcore.Recipe(**{"permute": False, "certify_samples": 64, **settings})
    return mpcore.prune(model, recipe, calibration=batches, progress=False)


def check(build, batches, **settings):
    run = prune(build(), batches, **settings)
    measured, certificate = changes(build(), run, batches), run.report.certificate
    np.testing.assert_allclose(certificate.eta, measured, rtol=1e-5, atol=1e-5 * measured.max())
    assert (np.array(certificate.eta_path) >= np.array(certificate.eta)).all()
    assert mpcore.verify(run.folder).ok
    return run


# what a certificate says is what the stored files do


@pytest.mark.parametrize("order", ["asymmetric", "sequential", "parallel"])
@pytest.mark.parametrize(
    ("build", "batches"),
    [
        (Blocks, PLAIN),
        (FromEarlierBlock, PLAIN),
        (SkippedByData, PARTED),
        (Masked, SOMETIMES),
        (Masked, SOMETIMES[::-1]),
        (Memory, PLAIN),
        (Stashed, PLAIN),
        (SharedLayer, PLAIN),
        (LayerBetween, PLAIN),
    ],
)
def test_a_certificate_is_that_of_whole_passes_of_the_stored_models(build, batches, order):
    check(build, batches, sequence=order)


def decoder(kind: str, **changes) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    common = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    if kind == "OPTForCausalLM":
        config = transformers.OPTConfig(ffn_dim=64, max_position_embeddings=32, word_embed_proj_dim=32, **common)
    else:
        config = transformers.LlamaConfig(
            intermediate_size=64, num_key_value_heads=2, max_position_embeddings=32, **common, **changes
        )
    return getattr(transformers, kind)(config).eval()


TOKENS = [
    {"input_ids": torch.randint(1, 64, (4, 12), generator=torch.Generator().manual_seed(seed))} for seed in range(2)
]


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "LlamaForSequenceClassification", "OPTForCausalLM"])
def test_a_decoder_that_keeps_keys_and_values_is_certified_as_it_is_used(kind):
    model = decoder(kind)
    assert model.config.use_cache
    run = check(lambda: decoder(kind), TOKENS)
    assert model.config.use_cache
    assert run.model.config.use_cache


def test_without_its_cache_a_decoder_is_a_chain():
    model = decoder("LlamaForCausalLM")
    assert find_segments(model, layers(model), TOKENS) == ("model.layers.0", "model.layers.1")
    with uncached(model):
        assert not model.config.use_cache
    assert model.config.use_cache


# the proof


@pytest.mark.parametrize(
    ("build", "batches"),
    [
        (FromEarlierBlock, PLAIN),
        (SkippedByData, PARTED),
        (SkippedByData, PARTED[::-1]),
        (Memory, PLAIN),
        (Stashed, PLAIN),
        (SharedLayer, PLAIN),
        (LayerBetween, PLAIN),
    ],
)
def test_what_is_no_chain_is_not_taken_for_one(build, batches):
    model = build()
    assert not find_segments(model, layers(model), batches)


def test_chains_are_found_and_known_to_take_more_than_the_activation():
    every = [f"blocks.{index}" for index in range(4)]
    for build, batches, alone in (
        (Blocks, PLAIN, True),
        (Masked, SOMETIMES, False),
        (Masked, SOMETIMES[::-1], False),
        (Masked, SOMETIMES[:1], True),
    ):
        model = build()
        chain = find_segments(model, layers(model), batches)
        assert (list(chain), chain.alone, chain.once) == (every, alone, frozenset(layers(model)))
    assert find_segments(tiny_vit(), ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"], [images(4, channels=1, size=8)])
    net = TinyConvNet()
    names = ["blocks.0._expand_conv", "blocks.1._expand_conv"]
    assert find_segments(net, names, [images(4)]) == ("blocks.0", "blocks.1")


@pytest.mark.parametrize("build", [Blocks, Masked])
def test_a_chain_gives_the_model_s_own_output_from_every_stage_on(build):
    model, batches = build(), SOMETIMES if build is Masked else PLAIN
    path = Path(model, find_segments(model, layers(model), batches), batches)
    for _ in range(6):
        for index, batch in enumerate(batches):
            assert torch.equal(path.output(index), forward(model, batch))
        path.advance()


# the last line of defence


def test_a_chain_that_is_wrong_for_the_pruned_model_is_found_out_and_everything_is_done_again(monkeypatch):
    expected = check(Stashed, PLAIN)
    chain = Chain((f"blocks.{index}" for index in range(4)), alone=True)
    monkeypatch.setattr(sequence, "find_segments", lambda *_: chain)
    tried = []
    once = pipeline._Stages.prune_once

    def counted(self, *args, whole):
        tried.append(whole)
        return once(self, *args, whole=whole)

    monkeypatch.setattr(pipeline._Stages, "prune_once", counted)
    run = check(Stashed, PLAIN)
    assert tried == [False, True]
    assert run.report.certificate == expected.report.certificate


def test_an_interrupted_second_try_is_resumed_as_one(monkeypatch, tmp_path):
    monkeypatch.setattr(
        sequence, "find_segments", lambda *_: Chain((f"blocks.{index}" for index in range(4)), alone=True)
    )
    recipe = mpcore.Recipe(permute=False, certify_samples=64)

    def go(name: str):
        return mpcore.prune(Stashed(), recipe, calibration=PLAIN, out=tmp_path / name, progress=False)

    go("whole")
    step, steps = LogitTrail.step, []

    def interrupted(self, *args):
        steps.append(args)
        if len(steps) == 11:  # eight layers by segments, then the third by whole passes
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(LogitTrail, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go("cut")
    assert (tmp_path / "cut" / "progress" / "whole.json").exists()
    go("cut")
    for name in ("model.safetensors", "plan.json", "certificate.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_user_is_told_why_every_layer_runs_the_whole_network(monkeypatch, capsys):
    def told(build):
        mpcore.prune(build(), mpcore.Recipe(permute=False, certify_samples=64), calibration=PLAIN * 2)
        lines = capsys.readouterr().err.splitlines()
        return [line for line in lines if line.startswith("prune: ")]

    assert told(Blocks) == []
    assert told(FromEarlierBlock) == [
        "prune: no chain of blocks found in the network, so each layer runs the whole of it: slower"
    ]
    monkeypatch.setattr(
        sequence, "find_segments", lambda *_: Chain((f"blocks.{index}" for index in range(4)), alone=True)
    )
    (line,) = told(Stashed)
    assert line.startswith("prune: the pruned network is no chain of its blocks (by segments the logits are off by ")
    assert line.endswith("so every layer is done again, and each runs the whole network: slower")


# layers that are called more than once, or never


class Twice(nn.Module):
    """One layer on even and on odd inputs."""

    def __init__(self, *, in_blocks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.twice, self.head, self.in_blocks = nn.Linear(WIDTH, WIDTH), nn.Linear(2 * WIDTH, 4), in_blocks
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        even, odd = x.clone(), x.clone()
        even[..., 1::2], odd[..., ::2] = 0, 0
        both = torch.cat([self.twice(even), self.twice(odd)], -1)
        return x + torch.tanh(both[..., :WIDTH] - both[..., WIDTH:]) if self.in_blocks else self.head(both)


class TwiceInBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Twice(in_blocks=True) for _ in range(3)), nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize("order", ["asymmetric", "sequential", "parallel"])
@pytest.mark.parametrize("solver", ["none", "lstsq", "admm"])
def test_a_layer_called_twice_keeps_what_both_calls_need(solver, order):
    batches = [noise(64, WIDTH, seed=0)]
    run = check(Twice, batches, solver=solver, sequence=order)
    kept = (run.model.twice.weight != 0).sum(dim=0)
    even, odd = int(kept[::2].sum()), int(kept[1::2].sum())
    assert even + odd == WIDTH * WIDTH // 2
    assert min(even, odd) > 0.3 * (even + odd)
    layer = next(layer for layer in run.report.plan.layers if layer.name == "twice")
    assert layer.relative_error > 0.01


def test_rows_of_a_layer_are_those_of_all_its_calls():
    x = noise(64, WIDTH, seed=0)
    model = Twice()
    chain = find_segments(model, ["twice"], [x])
    assert "twice" not in chain.once
    rows = Path(model, chain, [x]).rows("twice", 0, positions=8, seed=0)
    even, odd = x.clone(), x.clone()
    even[:, 1::2], odd[:, ::2] = 0, 0
    assert torch.equal(rows, torch.cat([even, odd]))


def test_a_layer_called_twice_within_a_segment_is_fitted_to_both():
    model = TwiceInBlocks().eval()
    chain = find_segments(model, layers(model), PLAIN)
    assert len(chain) == 3
    assert not chain.once & {f"blocks.{index}.twice" for index in range(3)}
    run = prune(model, PLAIN)
    for block in run.model.blocks:
        kept = (block.twice.weight != 0).sum(dim=0)
        assert min(int(kept[::2].sum()), int(kept[1::2].sum())) > 0.3 * WIDTH * WIDTH / 2


def test_a_layer_that_only_the_dense_model_comes_to_is_still_pruned():
    class Closing(Blocks):
        """The last block is left out once the first one has been pruned."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            changed = bool((self.blocks[0].fc1.weight == 0).any())
            for block in self.blocks[: 3 if changed else 4]:
                x = block(x)
            return self.head(x)

    for order in ("asymmetric", "sequential", "parallel"):
        run = check(Closing, PLAIN, sequence=order)
        mpcore.check_mask(run.model.blocks[3].fc2.weight.detach().numpy() != 0, "2:4")
