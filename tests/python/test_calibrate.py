from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import TinyConvNet, images, tiny_vit
from torch import nn
from torch.nn import functional

from mpcore.models.apply import as_matrix, from_matrix
from mpcore.models.calibrate import calibrate, input_rows
from mpcore.models.segments import Path, find_segments

EVERYTHING = 10**6


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(12, 5),
        nn.Conv2d(12, 5, 1),
        nn.Conv2d(12, 5, 1, stride=2),
        nn.Conv2d(12, 5, 3, padding=1),
        nn.Conv2d(12, 5, (3, 5), stride=(1, 2), padding=(2, 0), dilation=(1, 2)),
        nn.Conv2d(12, 5, 3, padding="same", padding_mode="reflect"),
    ],
)
def test_matrix_times_rows_is_the_layer(layer):
    inputs = torch.randn(2, 7, 12) if isinstance(layer, nn.Linear) else torch.randn(2, 12, 9, 11)
    rows, chosen = input_rows(layer, inputs, EVERYTHING, seed=0)
    output = layer(inputs)
    output = output.flatten(2).transpose(1, 2) if output.ndim == 4 else output
    expected = rows @ torch.from_numpy(as_matrix(layer.weight)).T + layer.bias
    assert chosen is None
    torch.testing.assert_close(expected, output.reshape(-1, 5), rtol=1e-4, atol=1e-5)


def test_the_matrix_view_is_undone_exactly():
    weight = torch.randn(5, 12, 3, 2)
    assert torch.equal(from_matrix(as_matrix(weight), weight.shape), weight)


def test_input_channels_are_the_fastest_column_of_a_convolution():
    weight = torch.arange(2 * 4 * 9, dtype=torch.float32).reshape(2, 4, 3, 3)
    assert as_matrix(weight)[0, :5].tolist() == [0, 9, 18, 27, 1]


def test_streamed_moments_equal_those_of_all_rows_at_once():
    net, batches = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), [torch.randn(5, 6) for _ in range(3)]
    stats = calibrate(net, ["0", "2"], batches, gram=True)
    hidden = torch.relu(net[0](torch.cat(batches))).detach().double().numpy()
    np.testing.assert_allclose(stats["2"].mean, hidden.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(stats["2"].gram, hidden.T @ hidden / 15, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(stats["2"].square, (hidden**2).mean(0), rtol=1e-5)


def test_the_same_positions_are_drawn_for_the_same_seed():
    layer, inputs = nn.Conv2d(4, 4, 1), torch.randn(2, 4, 20, 20)
    first, chosen = input_rows(layer, inputs, 50, seed=3)
    again, _ = input_rows(layer, inputs, 50, seed=3)
    assert len(chosen) == 50
    assert len(first) == 100
    assert torch.equal(first, again)


def test_the_batchnorm_behind_a_convolution_is_found():
    net = TinyConvNet()
    stats = calibrate(net, ["blocks.0._expand_conv", "tail.0", "tail.3"], [images(2)])
    assert stats.norms == {"blocks.0._expand_conv": "blocks.0._bn0", "tail.0": "tail.1"}


class SamePadding(nn.Conv2d):
    def forward(self, x):
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


def test_a_layer_with_a_forward_of_its_own_is_refused():
    net = nn.Sequential(SamePadding(4, 4, 2), nn.Conv2d(4, 4, 1))
    stats = calibrate(net, ["0", "1"], [torch.randn(2, 4, 6, 6)])
    assert list(stats) == ["1"]
    assert "forward method of its own" in stats.refused["0"]


def test_a_layer_that_is_never_called_is_refused():
    net = TinyConvNet()
    net.unused = nn.Linear(4, 4)
    assert calibrate(net, ["unused"], [images(1)]).refused == {"unused": "never called on the calibration data"}


def test_calibration_leaves_training_mode_and_hooks_as_they_were():
    net = TinyConvNet().train()
    calibrate(net, ["tail.0"], [images(2)])
    assert net.training
    assert not net.tail[0]._forward_hooks


@pytest.mark.parametrize(("build", "channels", "size"), [(tiny_vit, 1, 8), (TinyConvNet, 3, 16)])
def test_rows_by_segments_equal_rows_of_whole_forward_passes(build, channels, size):
    net, batches = build(), [images(3, channels=channels, size=size, seed=s) for s in (1, 2)]
    names = [name for name, module in net.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    names = [name for name in names if getattr(net.get_submodule(name), "groups", 1) == 1]
    stats = calibrate(net, names, batches, positions=EVERYTHING)
    segments = find_segments(net, names, batches[0])
    assert segments == ["blocks.0", "blocks.1"]
    path, order = Path(net, segments, batches), list(stats)
    assert torch.equal(path.output(1), net(batches[1]))
    for name in order:
        inside = [k for k, segment in enumerate(segments) if name.startswith(segment + ".")]
        stage = inside[0] + 1 if inside else (0 if path.stage == 0 else len(segments) + 1)
        while path.stage < stage:
            path.advance()
        rows = torch.cat([path.rows(name, k, positions=EVERYTHING, seed=0) for k in range(2)]).double()
        np.testing.assert_allclose(rows.mean(0).numpy(), stats[name].mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(rows.square().mean(0).numpy(), stats[name].square, rtol=1e-5, atol=1e-6)
        assert torch.equal(path.output(1), net(batches[1]))


@pytest.mark.parametrize(("build", "channels", "size"), [(tiny_vit, 1, 8), (TinyConvNet, 3, 16)])
@pytest.mark.parametrize("most", [1 << 30, 0])
def test_a_segment_run_ahead_gives_the_rows_and_outputs_of_one_run_per_layer(build, channels, size, most):
    net, batches = build(), [images(3, channels=channels, size=size, seed=s) for s in (1, 2)]
    names = [name for name, module in net.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    names = [name for name in names if getattr(net.get_submodule(name), "groups", 1) == 1]
    segments, settings = find_segments(net, names, batches[0]), {"positions": 5, "seed": 7}
    plain, ahead = Path(net, segments, batches), Path(net, segments, batches)
    for segment in segments:
        plain.advance()
        ahead.advance()
        inside = [name for name in names if name.startswith(f"{segment}.")]
        ahead.run_ahead(inside, **settings, most=most)
        for name in inside:
            assert all(torch.equal(plain.rows(name, k, **settings), ahead.rows(name, k, **settings)) for k in range(2))
    plain.advance()
    ahead.advance()
    assert torch.equal(plain.output(1), ahead.output(1))


class SkipsABlock(nn.Module):
    """The output reads the first block too, so that the blocks are no chain."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))])

    def forward(self, x):
        early = self.blocks[0](x)
        return self.blocks[1](early) + early


def test_blocks_that_are_read_around_are_no_segments():
    assert find_segments(SkipsABlock(), ["blocks.0.0", "blocks.1.0"], torch.randn(2, 4)) == []
