"""Layer jobs on a Ray cluster of two nodes with one worker each: same bits as in threads, also after deaths.

Run by ``make ray``, apart from the test suite: starting a cluster takes half a minute on two busy cores. Edges are
fitted and a checkpoint is pruned; in the middle of that the driver is killed, another time one of the two workers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
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
FILES, ROWS, COLUMNS = 16, 4096, 2048


def main() -> int:
    """0 if everything has the bits it has in threads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_checkpoint(folder / "source")
        expected = contents(mpcore.prune_checkpoint(source, "2:4", out=folder / "threads", progress=False))
        cluster = Cluster(initialize_head=True, head_node_args=dict(NODE))
        try:
            cluster.add_node(**NODE)
            ray.init(address=cluster.address, log_to_driver=False)
            print(f"{len(ray.nodes())} nodes, {int(ray.cluster_resources()['CPU'])} workers")
            wrong = [f"edges of a {what}" for what, same in fit(folder) if not same]
            ray.shutdown()
            after = kill_driver(source, folder / "driver", cluster.address)
            wrong += [] if after == expected else ["pruning whose driver was killed"]
            ray.init(address=cluster.address, log_to_driver=False)
            after = kill_worker(source, folder / "worker")
            wrong += [] if after == expected else ["pruning whose worker was killed"]
        finally:
            ray.shutdown()
            cluster.shutdown()
    print(f"other bits than in threads: {', '.join(wrong)}" if wrong else "same bits as in threads")
    return len(wrong)


def write_checkpoint(folder: Path) -> Path:
    """``FILES`` files of one layer each, and their index."""
    folder.mkdir()
    places = []
    for k in range(FILES):
        weight = np.random.default_rng(k).standard_normal((ROWS, COLUMNS), np.float32)
        save_tensors(folder / f"model-{k}.safetensors", {f"layers.{k}.mlp.up.weight": weight})
        places.append(f'"layers.{k}.mlp.up.weight": "model-{k}.safetensors"')
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{", ".join(places)}}}}}')
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fit(folder: Path) -> list[tuple[str, bool]]:
    """Edges on Ray beside edges in threads, of a mapping and of a file."""
    noise = {f"layer{i}": np.random.default_rng(i).standard_normal((40 + 7 * i, 60), np.float32) for i in range(8)}
    others = {"half": noise["layer0"].astype(ml_dtypes.bfloat16), "bias": np.zeros(3), "whole": np.zeros((4, 4), int)}
    save_tensors(folder / "edges.safetensors", noise)
    given = {"mapping": {**noise, **others}, "file": folder / "edges.safetensors"}
    return [
        (what, mpcore.fit_edges(source, engine="ray", vectors=True) == mpcore.fit_edges(source, vectors=True))
        for what, source in given.items()
    ]


def kill_worker(source: Path, out: Path) -> dict[str, bytes]:
    """Prune, and kill a worker in the middle of its file once two files are done; Ray starts the task again."""
    killed: list[str] = []

    def watch() -> None:
        wait_for_files(out, 2)
        while not (halves := sorted(out.glob(".*.partial"))):
            time.sleep(0.001)
        file, process, _ = halves[0].name.rsplit(".", 2)
        os.kill(int(process), signal.SIGKILL)
        killed.append(file.removeprefix("."))

    watcher = threading.Thread(target=watch)
    watcher.start()
    mpcore.prune_checkpoint(source, "2:4", out=out, engine="ray", progress=False)
    watcher.join()
    print(f"worker killed in the middle of {killed[0]}; its task ran again")
    return contents(out)


def kill_driver(source: Path, out: Path, address: str) -> dict[str, bytes]:
    """Prune in another process, kill it once two files are done, and start the same command again."""
    program = "from mpcore.cli import main; main()"
    words = ["prune", source, "--out", out, "--engine", "ray", "--address", address, "--quiet", "--json"]
    command = [sys.executable, "-c", program, *map(str, words)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    done = wait_for_files(out, 2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    print(f"driver killed after {done} of {FILES} files")
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return contents(out)


def wait_for_files(out: Path, count: int, *, seconds: float = 300) -> int:
    """How many files of the run are finished, once there are ``count``."""
    end = time.monotonic() + seconds
    while (done := len(list((out / "progress").glob("*.json")))) < count:
        if (out / "manifest.json").exists() or time.monotonic() > end:
            raise RuntimeError(f"{out}: finished, or stuck, before {count} files were seen")
        time.sleep(0.01)
    return done


if __name__ == "__main__":
    sys.exit(main())
