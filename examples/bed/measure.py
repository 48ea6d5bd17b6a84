"""How close one network is to another, from the logits of both on the same images."""

from __future__ import annotations

from typing import Any

import torch

from mpcore.certify import wilson
from mpcore.models.memory import memory_kept


@memory_kept()
@torch.inference_mode()
def logits(network: torch.nn.Module, batches: list[torch.Tensor]) -> torch.Tensor:
    """(n, classes) over all batches."""
    return torch.cat([network(batch) for batch in batches])


def closeness(dense: torch.Tensor, pruned: torch.Tensor) -> dict[str, Any]:
    """Share of equal labels with its 95 % Wilson interval, and the mean KL divergence from ``dense`` in nats."""
    agreed = int((pruned.argmax(1) == dense.argmax(1)).sum())
    return {
        "agreement": agreed / len(dense),
        "agreement_interval": wilson(agreed, len(dense)),
        "KL": kl_divergence(dense, pruned),
    }


def accuracy(answers: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Share of right labels with its 95 % Wilson interval."""
    correct = int((answers.argmax(1) == labels).sum())
    return {"top1": correct / len(labels), "top1_interval": wilson(correct, len(labels))}


def kl_divergence(dense: torch.Tensor, pruned: torch.Tensor) -> float:
    """Mean over samples of sum_c p_c (log p_c - log q_c), p dense and q pruned.

    Example:
        >>> kl_divergence(torch.zeros(1, 2), torch.tensor([[0.0, 0.0]]))
        0.0
    """
    p, q = dense.double().log_softmax(1), pruned.double().log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())
