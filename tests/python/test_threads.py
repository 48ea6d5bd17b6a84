"""No deadlock and the same bits after fork, under spawn, and beside torch's own threads."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch

import mpcore
from mpcore.compensate import admm, lstsq, sparsegpt
from mpcore.masks import nm_mask, quadratic_mask, transposable_mask
from mpcore.permute import optimize_permutation


def everything() -> dict[str, bytes]:
    """Every routine that starts threads, at a size for which it does."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((256, 512)).astype(np.float32)
    gram = np.eye(512) + 0.1
    groups = np.broadcast_to(np.eye(4) + 0.1, (128, 4, 4)).copy()
    mask = nm_mask(np.abs(W), "2:4")
    packed = mpcore.pack(W * mask, "2:4")
    found = {
        "nm_mask": mask,
        "quadratic_mask": quadratic_mask(W, groups, "2:4"),
        "transposable_mask": transposable_mask(np.abs(W), "2:4"),
        "svdvals": mpcore.svdvals(W),
        "fit_edge": np.array(mpcore.fit_edge(W).edge),
        "permutation": optimize_permutation(np.abs(W), "2:4", max_rounds=3).order,
        "admm": admm(W, gram, "2:4", steps=3),
        "lstsq": lstsq(W, gram, mask),
        "sparsegpt": sparsegpt(W, gram, "2:4"),
        "nm_linear": mpcore.nm_linear(packed, W),
    }
    return {name: np.asarray(value).tobytes() for name, value in found.items()}


class Masks(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Samples that a worker computes with this package."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        W = np.random.default_rng(index).standard_normal((128, 256)).astype(np.float32)
        return torch.from_numpy(W * nm_mask(np.abs(W), "2:4")) * float(mpcore.svdvals(W)[0])


FORK = """
import os, signal, sys
sys.path.insert(0, {place!r})
from test_threads import everything
import torch
torch.set_num_threads(2)
torch.randn(300, 300) @ torch.randn(300, 300)
before = everything()
child = os.fork()
if child == 0:
    signal.alarm(300)
    after = everything()
    os._exit(0 if after == before else 3)
status = os.waitpid(child, 0)[1]
assert everything() == before
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_of_a_busy_parent_computes_the_same() -> None:
    program = FORK.format(place=os.path.dirname(__file__))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["0"]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_dataloader_workers_may_use_it(start: str) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} on this system")
    expected = [Masks()[index] for index in range(4)]  # the parent's threads run before the workers are started
    loader = torch.utils.data.DataLoader(
        Masks(), batch_size=None, num_workers=2, multiprocessing_context=start, timeout=300
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(loader, expected, strict=True))


def test_torch_and_this_package_share_the_cores() -> None:
    expected = everything()
    A = torch.randn(400, 400)
    wrong: list[str] = []

    def torches() -> None:
        for _ in range(30):
            A @ A

    def ours() -> None:
        for _ in range(2):
            found = everything()
            wrong.extend(name for name, value in found.items() if value != expected[name])

    threads = [threading.Thread(target=work, daemon=True) for work in (torches, ours, ours, torches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_two_interpreters_agree(tmp_path: Any) -> None:
    program = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import hashlib, test_threads as t; "
    program += "print({n: hashlib.sha256(v).hexdigest() for n, v in t.everything().items()})"
    found = [
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "RAYON_NUM_THREADS": count},
            capture_output=True, text=True, check=True, timeout=300,
        ).stdout
        for count in ("1", "3")
    ]  # fmt: skip
    assert found[0] == found[1] != ""
