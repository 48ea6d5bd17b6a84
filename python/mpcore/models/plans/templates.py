"""The families we know, as data. To support another one, add a :class:`Template`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Producer:
    """A layer whose outputs ``start``, ``start + 1``, ... are the channels of the group."""

    name: str
    start: int = 0


@dataclass(frozen=True)
class PermutationGroup:
    """Channels that can be reordered together.

    ``consumers`` read them (their input channels move), ``producers`` write them (their outputs move) and
    ``channelwise`` modules lie between (every parameter and buffer of that length moves). ``blocks`` > 1 keeps each
    of so many equal runs of channels, such as attention heads, in its place.
    """

    consumers: tuple[str, ...]
    producers: tuple[Producer, ...]
    channelwise: tuple[str, ...] = ()
    blocks: int = 1


@dataclass(frozen=True)
class Template:
    """Module names relative to a block; a trailing ``?`` marks one that need not exist.

    ``producer_part`` = (i, k) takes the i-th of k equal runs of the producer's outputs (the values of a joint qkv
    layer). ``heads`` names an attribute, relative to the block, that holds the number of channel runs that must stay
    in place.
    """

    family: str
    consumers: tuple[str, ...]
    producers: tuple[str, ...]
    channelwise: tuple[str, ...] = ()
    producer_part: tuple[int, int] = (0, 1)
    heads: str = ""


TEMPLATES = (
    # timm ViT, DeiT, Swin, ConvNeXt (V2: grn): two-layer MLPs.
    Template("mlp", ("mlp.fc2",), ("mlp.fc1",), ("mlp.norm?", "mlp.grn?")),
    # timm attention with a joint qkv layer: the values of a head meet the projection's columns of that head.
    Template("attention", ("attn.proj",), ("attn.qkv",), (), (2, 3), "attn.num_heads"),
    # torchvision's vision transformer: an nn.Sequential of Linear, GELU, Dropout, Linear.
    Template("torchvision-mlp", ("mlp.3",), ("mlp.0",)),
    # BERT-like encoders of Hugging Face.
    Template("bert-mlp", ("output.dense",), ("intermediate.dense",)),
    Template(
        "bert-attention",
        ("attention.output.dense",),
        ("attention.self.value",),
        (),
        (0, 1),
        "attention.self.num_attention_heads",
    ),
    # ResNet, basic and bottleneck blocks, timm and torchvision.
    Template("resnet-conv2", ("conv2",), ("conv1",), ("bn1",)),
    Template("resnet-conv3", ("conv3",), ("conv2",), ("bn2",)),
    # Inverted residuals: efficientnet_lite_pytorch (and efficientnet_pytorch), then timm with and without
    # squeeze-excite.
    Template(
        "efficientnet-package",
        ("_project_conv", "_se_reduce?"),
        ("_expand_conv", "_se_expand?"),
        ("_bn0", "_depthwise_conv", "_bn1"),
    ),
    Template(
        "efficientnet-timm",
        ("conv_pwl", "se.conv_reduce?"),
        ("conv_pw", "se.conv_expand?"),
        ("bn1", "conv_dw", "bn2"),
    ),
)
