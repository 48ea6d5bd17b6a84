"""What a weight is for, told from its name alone."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

HEADS = frozenset(
    {"head", "heads", "head_dist", "heads_dist", "fc", "_fc", "classifier", "classif", "last_linear", "lm_head"}
    | {"logits", "score", "embed_out"}
)
"""A layer with one of these as a part of its name gives the answer of the network."""
EMBEDDINGS = frozenset({"wte", "wpe", "shared", "relative_attention_bias"})
"""A weight with one of these as a part of its name, or with "embed" in a part, is a table, not a matrix to apply."""
ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
"""A layer of this name chooses experts; it is small, and its argmax is brittle."""


def role_by_name(layer: str) -> str:
    """``"head"``, ``"embedding"``, ``"router"``, ``"attention"``, ``"mlp"`` or ``"linear"``.

    Example:
        >>> [role_by_name(name) for name in ("model.embed_tokens", "lm_head", "h.0.self_attn.q_proj", "h.0.mlp.gate")]
        ['embedding', 'head', 'attention', 'router']
    """
    parts = layer.split(".")
    if not EMBEDDINGS.isdisjoint(parts) or any("embed" in part and part not in HEADS for part in parts):
        return "embedding"
    if not HEADS.isdisjoint(parts) or layer == "output":
        return "head"
    if parts[-1] in ROUTERS:
        return "router"
    if "attn" in layer or "attention" in layer:
        return "attention"
    return "mlp" if any(word in layer for word in ("mlp", ".fc", "ffn", "feed_forward", "expert")) else "linear"


def check_skip(skip: Sequence[str], layers: Sequence[str]) -> None:
    """Refuse a bare string, and globs that match none of the ``layers``.

    Raises:
        TypeError: if ``skip`` is one string.
        ValueError: if a glob matches nothing; the message names it and the first layers.

    Example:
        >>> check_skip(["*.fc?"], ["mlp.fc1", "mlp.fc2"])
    """
    if isinstance(skip, str):
        raise TypeError(f"skip: {skip!r} is a string, wanted a sequence of globs: ({skip!r},)")
    for glob in skip:
        if not any(fnmatchcase(layer, glob) for layer in layers):
            raise ValueError(f"skip: {glob!r} matches no layer; the first are {', '.join(layers[:5])}")
