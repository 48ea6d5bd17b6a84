"""Fit the same checkpoint in threads and on a Ray cluster of two nodes with one worker each: the bits must be equal.

Run by ``make ray``, apart from the test suite: starting a cluster takes half a minute on two busy cores.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import ml_dtypes
import numpy as np
import ray
from ray.cluster_utils import Cluster

import mpcore
from mpcore.checkpoint import save_tensors

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}


def main() -> int:
    """Compare a mapping and a file; 0 if both agree."""
    noise = {f"layer{i}": np.random.default_rng(i).standard_normal((40 + 7 * i, 60), np.float32) for i in range(8)}
    others = {"half": noise["layer0"].astype(ml_dtypes.bfloat16), "bias": np.zeros(3), "whole": np.zeros((4, 4), int)}
    source = {**noise, **others}
    cluster = Cluster(initialize_head=True, head_node_args=dict(NODE))
    try:
        cluster.add_node(**NODE)
        ray.init(address=cluster.address, log_to_driver=False)
        print(f"{len(ray.nodes())} nodes, {int(ray.cluster_resources()['CPU'])} workers")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            save_tensors(path, noise)
            wrong = [
                name
                for name, given in (("mapping", source), ("file", path))
                if mpcore.fit_edges(given, engine="ray", vectors=True) != mpcore.fit_edges(given, vectors=True)
            ]
    finally:
        ray.shutdown()
        cluster.shutdown()
    print(f"other bits than in threads: {', '.join(wrong)}" if wrong else "same bits as in threads")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
