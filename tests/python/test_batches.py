"""What is told of batches and outputs that are not what is wanted; the arguments of a hook."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpcore.models.batches import layer_input, materialise
from mpcore.models.certificate import LogitTrail

PICTURES = torch.zeros(4, 3, 8, 8)
PAIR = r"calibration: batch 1: a pair is read as \(inputs, labels\), and its labels are "


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            [PICTURES, [PICTURES, PICTURES]],
            ValueError,
            PAIR + r"torch\.float32 of shape \(4, 3, 8, 8\), wanted integers",
        ),
        ([PICTURES, (PICTURES, torch.arange(3))], ValueError, PAIR + r".*one label for each of its 4 samples"),
        ([PICTURES, (PICTURES, ["cat"] * 4)], TypeError, PAIR + "no tensor"),
        (
            (PICTURES, torch.arange(4)),
            ValueError,
            r"calibration\[1\] is an integer tensor of shape \(4,\); a list of .*",
        ),
        ((PICTURES.byte(), torch.arange(4)), ValueError, r"a list of batches is wanted: \[\(images, labels\)\]"),
        ([(PICTURES, PICTURES, torch.arange(4))], TypeError, "calibration: batch 0 is a tuple of 3, wanted inputs or "),
    ],
)
def test_a_batch_that_is_read_otherwise_than_meant_is_named(data, error, message):
    with pytest.raises(error, match=message):
        materialise(data, "calibration")


def test_labels_of_every_integer_type_and_of_every_pixel_are_taken():
    for labels in (torch.arange(4), torch.arange(4, dtype=torch.uint8), [0, 1, 2, 3], torch.zeros(4, 8, 8).long()):
        assert len(materialise([(PICTURES, labels), PICTURES], "data")) == 2
    tokens = torch.zeros(4, 6, dtype=torch.long)
    assert len(materialise([tokens, tokens], "data")) == 2
    assert len(materialise([({"ids": tokens}, torch.arange(4)), (PICTURES,)], "data")) == 2


def test_dense_outputs_of_several_sizes_name_the_batch():
    net = nn.Conv2d(3, 2, 1)
    with pytest.raises(
        ValueError, match=r"32 numbers per sample for calibration batch 1 and 128 for the batches before"
    ):
        LogitTrail(net, [PICTURES, PICTURES[..., :4, :4]], 8)
    assert LogitTrail(net, [PICTURES, PICTURES[..., :4, :4]], 4).dense.shape == (4, 128)


def test_a_layers_input_is_found_by_position_and_by_keyword():
    x, y = torch.ones(1), torch.zeros(1)
    assert layer_input((x, y), {}) is x
    assert layer_input((), {"scale": y, "input": x}) is x
    assert layer_input((), {"scale": 2.0, "hidden": x}) is x
    with pytest.raises(TypeError, match="called without a tensor"):
        layer_input((), {"scale": 2.0})
