"""What this machine's GPU and this build of torch can do with 2:4 weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpcore.records import Record


@dataclass(frozen=True)
class DtypeRule:
    """A dtype the sparse kernels take, and what the lengths must be multiples of."""

    dtype: str
    rows: int
    columns: int
    tokens: int


@dataclass(frozen=True)
class Capability(Record):
    """Device, versions and rules. ``reason`` says why 2:4 kernels cannot run here and is empty where they can."""

    kind: ClassVar[str] = "capability"
    device: str | None
    compute_capability: str | None
    torch: str
    cuda: str | None
    cusparselt: str | None
    reason: str
    rules: tuple[DtypeRule, ...]


RULES = {
    torch.float16: DtypeRule("float16", 16, 16, 8),
    torch.bfloat16: DtypeRule("bfloat16", 16, 16, 8),
}
"""Of torch's cuSPARSELt operators (torch/sparse/semi_structured.py); tokens are padded, the others must fit."""

_FIRST_ARCHITECTURE = (8, 0)


def capability() -> Capability:
    """Look at the current CUDA device, or say that there is none.

    Example:
        >>> found = capability()
        >>> found.reason == "" or found.device is None or "sparse" in found.reason or "cuSPARSELt" in found.reason
        True
    """
    present = torch.cuda.is_available()
    return Capability(
        device=torch.cuda.get_device_name() if present else None,
        compute_capability="{}.{}".format(*torch.cuda.get_device_capability()) if present else None,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cusparselt=_cusparselt(),
        reason=why_not(torch.device("cuda")),
        rules=tuple(RULES.values()),
    )


def why_not(device: torch.device) -> str:
    """Why the 2:4 kernels cannot run on ``device``; empty if they can."""
    if device.type != "cuda":
        return f"the 2:4 kernels need a CUDA device, this is {device.type}"
    if not torch.cuda.is_available():
        return "no CUDA device"
    if not torch.backends.cusparselt.is_available():
        return "this build of torch has no cuSPARSELt"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < _FIRST_ARCHITECTURE:
        return f"compute capability {major}.{minor} has no sparse tensor cores (8.0 is the first)"
    return ""


def _cusparselt() -> str | None:
    """``0.8.1`` for the library's own 801."""
    version = torch.backends.cusparselt.version() if torch.backends.cusparselt.is_available() else None
    return None if version is None else f"{version // 1000}.{version // 100 % 10}.{version % 100}"
