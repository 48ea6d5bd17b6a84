"""Measured times of calls, kept by machine, threads and layer, and what they say of a gain."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from mpcore import _native
from mpcore.gpu.timing import interleave
from mpcore.records import FORMAT, atomic


class Timings:
    """Median seconds of the calls of a layer by machine, versions, settings and layer; optionally on disk."""

    def __init__(self, path: str | os.PathLike[str] | None, here: str, device: torch.device) -> None:
        self.path = None if path is None else Path(path)
        self.here, self.device = f"{here}, {_settings(device)}", device
        self.known: dict[str, dict[str, float]] = {}
        if self.path is not None and self.path.exists():
            try:
                data = json.loads(self.path.read_text(encoding="utf-8"))
                for key, times in data["timings"].items():
                    self.known[key] = {name: _seconds(seconds) for name, seconds in times.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{self.path}: not a table of timings ({error!r})") from None

    def measure(self, key: str, calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Median and lower quartile of every call; timed in turns where the table does not have them."""
        key = f"{self.here}, {key}"
        known = self.known.setdefault(key, {})
        if missing := {name for name in calls if quartile(name) not in known}:
            with torch.inference_mode():
                timings = interleave(list(calls.values()), device=self.device)
            for name, timing in zip(calls, timings, strict=True):
                if name in missing:
                    known[name], known[quartile(name)] = timing.median, timing.low
        return {name: known[name] for call in calls for name in (call, quartile(call))}

    def save(self) -> None:
        """Write the table, if it has a path."""
        if self.path is not None:
            document = {"format": FORMAT, "kind": "timings", "timings": self.known}
            with atomic(self.path) as temporary:
                temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _settings(device: torch.device) -> str:
    """What the time of a call depends on besides machine and call."""
    words = [f"{torch.get_num_threads()} threads", f"torch {torch.__version__}", f"mpcore {_native.__version__}"]
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set by the newer interface, which this one refuses to read
        precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    if precision != "highest":
        words.append(f"float32 products in {precision} precision")
    if torch.is_autocast_enabled(device.type):
        words.append(f"autocast to {torch.get_autocast_dtype(device.type)}")
    return ", ".join(words)


def _seconds(value: object) -> float:
    if isinstance(value, (int, float)) and 0 < value < math.inf:
        return float(value)
    raise ValueError(f"{value!r} is no time")


def quartile(call: str) -> str:
    """The name under which the lower quartile of a call stands."""
    return f"{call}, lower quartile"


def sure_gain(times: Mapping[str, float], rival: str) -> float:
    """How many times as fast the sparse call is; by medians or lower quartiles, whichever promises less.

    On a busy machine one of the two may say anything: other processes take slices longer than a call.
    """
    return min(
        times[name] / times[sparse] for name, sparse in ((rival, "sparse"), (quartile(rival), quartile("sparse")))
    )
