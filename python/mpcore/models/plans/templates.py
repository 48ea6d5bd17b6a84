"""The families we know, as data. To support another one, add a :class:`Template`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Producer:
    """A layer whose outputs ``start``, ``start + 1``, ... are the channels of the group.

    If these come in blocks, one begins ``step`` after the other; 0: where the other ends.
    """

    name: str
    start: int = 0
    step: int = 0


@dataclass(frozen=True)
class TensorAxis:
    """A parameter or buffer, by its name in the state dict: from ``start`` on its ``axis`` runs over the channels.

    ``step`` is that of :class:`Producer`.
    """

    name: str
    axis: int
    start: int = 0
    step: int = 0


@dataclass(frozen=True)
class PermutationGroup:
    """Channels that can be reordered together.

    ``consumers`` read them (their input channels move), ``producers`` write them (their outputs move) and
    ``channelwise`` modules lie between (every parameter and buffer of that length moves). ``blocks`` > 1 keeps each
    of so many equal runs of channels, such as attention heads, in its place. ``tensors`` move besides: what a traced
    network has between its layers, such as a position embedding. Where a group is ``gathered``, nothing that writes the
    channels moves: the consumers read them in the new order at run time.

    The channels are all inputs of the consumers, or, where those read concatenated or split tensors, the ``channels``
    inputs that begin at ``starts[i]`` of consumer i, their blocks ``steps[i]`` apart.
    """

    consumers: tuple[str, ...]
    producers: tuple[Producer, ...]
    channelwise: tuple[str, ...] = ()
    blocks: int = 1
    tensors: tuple[TensorAxis, ...] = ()
    gathered: bool = False
    starts: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    channels: int = 0

    def runs(self) -> Iterator[tuple[str, int, int]]:
        """Consumer, where in its inputs the channels begin, and their step."""
        none = (0,) * len(self.consumers)
        return zip(self.consumers, self.starts or none, self.steps or none, strict=True)


@dataclass(frozen=True)
class Template:
    """Module names relative to a block; a trailing ``?`` marks one that need not exist.

    ``producer_part`` = (i, k) takes the i-th of k equal runs of the producer's outputs (the values of a joint qkv
    layer). ``heads`` names an attribute, relative to the block, that holds the number of channel runs that must stay
    in place. ``absent`` names modules that must not exist and attributes that must not be true, such as a skip.
    """

    family: str
    consumers: tuple[str, ...]
    producers: tuple[str, ...]
    channelwise: tuple[str, ...] = ()
    producer_part: tuple[int, int] = (0, 1)
    heads: str = ""
    absent: tuple[str, ...] = ()


MBCONV = ("block.0.1", "block.1.0", "block.1.1")
"""What lies between expansion and projection in torchvision."""

TEMPLATES = (
    # timm ViT, DeiT, Swin, ConvNeXt (V2: grn): two-layer MLPs.
    Template("mlp", ("mlp.fc2",), ("mlp.fc1",), ("mlp.norm?", "mlp.grn?")),
    # timm attention with a joint qkv layer: the values of a head meet the projection's columns of that head.
    Template("attention", ("attn.proj",), ("attn.qkv",), (), (2, 3), "attn.num_heads"),
    # The same with a layer for the values (CaiT, ConViT, TNT), or for keys and values (PVT v2, Twins); Hiera's heads.
    Template("attention-values", ("attn.proj",), ("attn.v",), (), (0, 1), "attn.num_heads"),
    Template("attention-keys-values", ("attn.proj",), ("attn.kv",), (), (1, 2), "attn.num_heads"),
    Template("attention-hiera", ("attn.proj",), ("attn.qkv",), (), (2, 3), "attn.heads"),
    # torchvision's vision transformer and Swin: an nn.Sequential of Linear, GELU, Dropout, Linear.
    Template("torchvision-mlp", ("mlp.3",), ("mlp.0",)),
    # BERT-like encoders, ViT and DistilBERT of Hugging Face; nn.TransformerEncoderLayer.
    Template("bert-mlp", ("output.dense",), ("intermediate.dense",)),
    Template(
        "bert-attention",
        ("attention.output.dense",),
        ("attention.self.value",),
        (),
        (0, 1),
        "attention.self.num_attention_heads",
    ),
    Template(
        "hf-vit-attention",
        ("attention.output.dense",),
        ("attention.attention.value",),
        (),
        (0, 1),
        "attention.attention.num_attention_heads",
    ),
    Template(
        "hf-projections",  # ViT, DeiT and DINOv2 from transformers 5 on
        ("attention.o_proj",),
        ("attention.v_proj",),
        (),
        (0, 1),
        "attention.num_attention_heads",
    ),
    Template("distilbert-mlp", ("ffn.lin2",), ("ffn.lin1",)),
    Template("distilbert-attention", ("attention.out_lin",), ("attention.v_lin",), (), (0, 1), "attention.n_heads"),
    Template("torch-encoder", ("linear2",), ("linear1",)),
    # ResNet, basic and bottleneck blocks, timm and torchvision.
    Template("resnet-conv2", ("conv2",), ("conv1",), ("bn1",)),
    Template("resnet-conv3", ("conv3",), ("conv2",), ("bn2",)),
    # Inverted residuals: efficientnet_lite_pytorch (and efficientnet_pytorch), then timm with and without
    # squeeze-excite. Their first block has no expansion: the stem writes the channels of its projection.
    Template(
        "efficientnet-package",
        ("_project_conv", "_se_reduce?"),
        ("_expand_conv", "_se_expand?"),
        ("_bn0", "_depthwise_conv", "_bn1"),
    ),
    Template(
        "efficientnet-package-stem",
        ("_blocks.0._project_conv", "_blocks.0._se_reduce?"),
        ("_conv_stem", "_blocks.0._se_expand?"),
        ("_bn0", "_blocks.0._depthwise_conv", "_blocks.0._bn1"),
        absent=("_blocks.0._expand_conv",),
    ),
    Template(
        "efficientnet-timm",
        ("conv_pwl", "se.conv_reduce?"),
        ("conv_pw", "se.conv_expand?"),
        ("bn1", "conv_dw", "bn2"),
    ),
    Template(
        "efficientnet-timm-stem",
        ("blocks.0.0.conv_pw", "blocks.0.0.se.conv_reduce?"),
        ("conv_stem", "blocks.0.0.se.conv_expand?"),
        ("bn1", "blocks.0.0.conv_dw", "blocks.0.0.bn1"),
        absent=("blocks.0.0.conv_pwl", "blocks.0.0.has_skip"),
    ),
    Template("edge-residual-timm", ("conv_pwl", "se.conv_reduce?"), ("conv_exp", "se.conv_expand?"), ("bn1",)),
    # torchvision's inverted residuals: EfficientNet and MobileNetV3 with and without squeeze-excite, MobileNetV2.
    Template("torchvision-mbconv-se", ("block.3.0", "block.2.fc1"), ("block.0.0", "block.2.fc2"), MBCONV),
    Template("torchvision-mbconv", ("block.2.0",), ("block.0.0",), MBCONV),
    Template("torchvision-fused-mbconv", ("block.1.0",), ("block.0.0",), ("block.0.1",)),
    Template("torchvision-mobilenet-v2", ("conv.2",), ("conv.0.0",), ("conv.0.1", "conv.1.0", "conv.1.1")),
    Template(
        "torchvision-mobilenet-v2-stem",
        ("features.1.conv.1",),
        ("features.0.0",),
        ("features.0.1", "features.1.conv.0.0", "features.1.conv.0.1"),
        absent=("features.1.use_res_connect",),
    ),
    Template(
        "torchvision-mbconv-stem",
        ("features.1.0.block.2.0", "features.1.0.block.1.fc1"),
        ("features.0.0", "features.1.0.block.1.fc2"),
        ("features.0.1", "features.1.0.block.0.0", "features.1.0.block.0.1"),
        absent=("features.1.0.block.3", "features.1.0.use_res_connect"),
    ),
)
