from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import TinyConvNet, images, tiny_vit
from torch import Tensor, nn
from torch.nn import functional

import mpcore
from mpcore.models.apply import as_matrix, from_matrix
from mpcore.models.batches import forward
from mpcore.models.calibrate import calibrate, input_rows
from mpcore.models.proof import find_segments
from mpcore.models.segments import Path

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


def test_a_convolution_of_single_images_gives_the_rows_of_a_batch_of_one():
    layer = nn.Conv2d(12, 5, 3, padding=1, padding_mode="reflect")
    image = torch.randn(12, 6, 7)
    alone, batch = (input_rows(layer, inputs, 10, seed=0) for inputs in (image, image[None]))
    assert torch.equal(alone[0], batch[0])
    assert torch.equal(alone[1], batch[1])

    class OneByOne(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([super(OneByOne, self).forward(image).mean((1, 2)) for image in x])

    images_one_by_one = calibrate(OneByOne(layer), ["0"], [torch.randn(3, 12, 6, 7)])
    assert images_one_by_one["0"].count == 3 * 6 * 7


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


@pytest.mark.parametrize("gram", [False, True])
def test_inputs_that_vary_little_around_a_large_mean_keep_their_variance(gram):
    draw = torch.Generator().manual_seed(0)
    mean = torch.linspace(-300, 500, 12)
    batches = [mean + torch.randn(200, 1, generator=draw) * torch.linspace(0.1, 0.4, 12) for _ in range(3)]
    net = nn.Sequential(nn.Linear(12, 4))
    found = calibrate(net, ["0"], batches, gram=gram)["0"]
    rows = torch.cat(batches).double().numpy()
    exact = np.cov(rows, rowvar=False, bias=True)
    np.testing.assert_allclose(found.square - found.mean**2, np.diagonal(exact), rtol=1e-4)
    if gram:
        centred = found.gram - np.outer(found.mean, found.mean)
        np.testing.assert_allclose(centred, exact, rtol=1e-4)


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


class Normed(nn.Module):
    """A convolution without a bias and BatchNorms that see it, or seem to."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.relu = how, nn.ReLU(inplace=how == "in place")
        self.stem, self.conv, self.other = (nn.Conv2d(c, 16, 3, padding=1, bias=False) for c in (3, 16, 16))
        self.norm, self.second = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)
        for norm in (self.norm, self.second):
            norm.running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        if self.how == "one conv, two norms":
            x = self.norm(self.conv(x)) + self.second(self.conv(-x))
        elif self.how == "two convs, one norm":
            x = self.norm(self.conv(x)) + self.norm(self.other(x))
        elif self.how == "now and then" and bool(x.mean() > 0.3):
            x = self.conv(x)
        elif self.how == "by keyword":
            x = self.norm(input=self.conv(input=x))
        elif self.how in ("in place", "out of place"):
            x = self.norm(self.relu(self.conv(x)))
        else:
            x = self.norm(self.conv(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("how", "norms"),
    [
        ("each once", {"conv": "norm"}),
        ("by keyword", {"conv": "norm"}),
        ("in place", {}),
        ("out of place", {}),
        ("one conv, two norms", {}),
        ("two convs, one norm", {}),
        ("now and then", {}),
    ],
)
def test_a_batchnorm_counts_only_where_it_and_one_layer_meet_once_in_every_pass(how, norms):
    batches = [images(4), 30 * images(4, seed=2)]
    assert calibrate(Normed(how).eval(), ["conv", "other"], batches).norms == norms
    with torch.inference_mode():
        assert calibrate(Normed(how).eval(), ["conv", "other"], batches).norms == norms


def test_a_relu_in_place_before_a_batchnorm_changes_nothing():
    def eta(how):
        recipe = mpcore.Recipe(permute=False, certify_samples=8)
        run = mpcore.prune(Normed(how).eval(), recipe, calibration=[images(32)], progress=False)
        assert torch.equal(run.model.norm.running_mean, Normed(how).norm.running_mean)
        return run.report.certificate.eta

    assert eta("in place") == eta("out of place")


class Fed(nn.Module):
    """A layer that is given its input in an unusual way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.query = how, nn.Parameter(torch.randn(1, 3, 8))
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "view of a parameter":
            return self.second(self.first(self.query.expand(len(x), -1, -1)).mean(1) + x)
        return self.second(input=self.first(input=x))


@pytest.mark.parametrize("how", ["view of a parameter", "by keyword"])
def test_a_layer_is_observed_however_it_is_fed(how):
    stats = calibrate(Fed(how), ["first", "second"], [torch.randn(6, 8)])
    assert list(stats) == ["first", "second"]
    assert not stats.refused


class Takes(nn.Linear):
    def forward(self, *, scale=1.0):
        return super().forward(torch.ones(2, 4) * scale)


def test_a_layer_that_is_given_no_tensor_is_refused():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Takes(4, 2)

        def forward(self, _: Tensor) -> Tensor:
            return self.layer(scale=2.0)

    assert calibrate(Net(), ["layer"], [torch.zeros(2, 4)]).refused == {"layer": "it is called without a tensor"}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused_with_what_to_do():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

    class Padded(nn.Module):
        def __init__(self, **options: bool) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(layer, 1, **options)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.encoder(x, src_key_padding_mask=padding).mean(1)

    batch = {"x": torch.randn(4, 6, 16), "padding": torch.arange(6).expand(4, 6) > 3}
    name = "encoder.layers.0.linear1"
    with pytest.raises(ValueError, match=rf"layer {name}: is fed a nested tensor.* enable_nested_tensor=False"):
        calibrate(Padded(), [name], [batch])
    assert list(calibrate(Padded(enable_nested_tensor=False), [name], [batch])) == [name]


class Answers(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.layer = how, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> object:
        y = self.layer(x)
        return {"one number": y.sum(-1), "scalar": y.sum(), "dict": {"out": y, "aux": y}, "empty": (), "list": [y, y]}[
            self.how
        ]


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("one number", ValueError, r"batch 0 has the shape \(6,\), wanted logits \(samples, classes\); .*stack"),
        ("scalar", ValueError, r"calibration batch 0 has the shape \(\), wanted logits \(samples, classes\)"),
        ("dict", TypeError, "its output is of type dict with the keys 'out', 'aux', wanted a tensor of logits; wrap"),
        ("list", TypeError, "its output is a list of 2, wanted a tensor of logits; wrap the model so that its forward"),
        ("empty", TypeError, "its output is of type tuple, wanted a tensor of logits"),
    ],
)
def test_outputs_that_are_no_logits_are_refused_at_once(how, error, message):
    with pytest.raises(error, match=message):
        calibrate(Answers(how), ["layer"], [torch.randn(6, 8)])


def test_integer_images_are_refused_with_what_is_wanted():
    batches = [torch.zeros(2, 3, 16, 16, dtype=torch.uint8)]
    with pytest.raises(ValueError, match=r"batch 0 is a torch\.uint8 tensor .* images are wanted as floating-point"):
        calibrate(TinyConvNet(), ["tail.0"], batches)


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
    assert calibrate(net, ["unused"], [images(1)]).refused == {
        "unused": "never called on the calibration data, or read without calling it"
    }


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
    segments = find_segments(net, names, batches)
    assert segments == ("blocks.0", "blocks.1")
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
    segments, settings = find_segments(net, names, batches), {"positions": 5, "seed": 7}
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
    assert not find_segments(SkipsABlock(), ["blocks.0.0", "blocks.1.0"], [torch.randn(2, 4)])


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class Turned(nn.Linear):
    def forward(self, x):
        return super().forward(x.T)


@pytest.mark.parametrize(("layer", "take"), [(Pair(8, 8), lambda y: y[0]), (Turned(16, 4), lambda y: y[:8])])
def test_a_linear_with_a_forward_of_its_own_is_refused_whatever_it_returns(layer, take):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return take(self.layer(x))

    stats = calibrate(Net(), ["layer"], [torch.randn(16, 8)])
    assert "forward method of its own" in stats.refused["layer"]


class Skip(nn.Module):
    """A convolution whose output is read by a BatchNorm, and by nothing else or by a sum too."""

    def __init__(self, *, also):
        super().__init__()
        self.conv, self.norm, self.also = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), also
        self.norm.running_var.copy_(torch.rand(4) + 0.5)

    def forward(self, x):
        y = self.conv(x)
        return (self.norm(y) + y if self.also else self.norm(y)).mean((2, 3))


def test_a_batchnorm_that_is_not_the_only_reader_is_no_place_for_the_mean():
    for also, found in ((False, {"conv": "norm"}), (True, {})):
        torch.manual_seed(0)
        net = Skip(also=also)
        net.train()
        net.norm.eval()
        before = net.norm.running_mean.clone()
        assert calibrate(net, ["conv"], [torch.randn(8, 4, 5, 5)]).norms == found
        assert torch.equal(net.norm.running_mean, before)
        assert (net.training, net.norm.training) == (True, False)


def test_a_bias_of_two_layers_is_no_place_for_the_mean_of_one():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    net[2].bias = net[0].bias
    before = net[0].bias.detach().clone()
    recipe = mpcore.Recipe(pattern="1:4", permute=False)
    run = mpcore.prune(net, recipe, calibration=[torch.randn(64, 8)], progress=False)
    assert torch.equal(run.model[0].bias, before)
    assert torch.equal(run.model[2].bias, before)


class Wants(nn.Module):
    """Takes ``samples`` samples and no other number of them; answers with a dictionary."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples, self.first, self.head = samples, nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.first(x).view(self.samples, 8))}


def test_a_model_for_one_number_of_samples_is_refused_in_a_line():
    with pytest.raises(ValueError, match=r"model: takes batches of 32 samples and none of 2, .* any number"):
        mpcore.prune(Wants(32), "fast", calibration=[torch.randn(32, 8)], progress=False)
    with pytest.raises(RuntimeError, match=r"shape '\[-?\d+, 8\]' is invalid"):
        mpcore.prune(Wants(5), "fast", calibration=[torch.randn(32, 8)], progress=False)


def test_a_dictionary_with_logits_is_an_answer():
    model, inputs = Wants(-1), torch.ones(3, 8)
    assert torch.equal(forward(model, inputs), model(inputs)["logits"])
