"""Stand-ins: a Ray cluster, somebody who presses Ctrl-C."""

from __future__ import annotations

import _thread
import inspect
import pickle
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mpcore.engine import RETRIES


@contextmanager
def ctrl_c(seconds: float) -> Iterator[None]:
    """Interrupt what runs inside after so long, and nothing that comes after it."""
    signal = threading.Timer(seconds, _thread.interrupt_main)
    signal.start()
    try:
        yield
    finally:
        signal.cancel()
        signal.join()


class FakeRay(types.ModuleType):
    """Ray's few functions for a cluster of two cores; tasks travel as pickles and finish last in, first out.

    ``most`` is how many tasks were in flight at once, ``cancelled`` holds the jobs that were given up.
    """

    def __init__(self) -> None:
        super().__init__("ray")
        self.most = 0
        self.cancelled: list[Any] = []

    def is_initialized(self) -> bool:
        return False

    def init(self, **_: Any) -> None: ...

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **options: Any) -> Any:
        assert options == {"num_cpus": 1, "max_retries": RETRIES}

        def decorate(function: Any) -> Any:
            if not inspect.isfunction(function):
                raise TypeError("The @ray.remote decorator must be applied to either a function or a class.")
            return types.SimpleNamespace(remote=lambda *arguments: pickle.dumps((function, arguments)))

        return decorate

    def wait(self, references: list[bytes]) -> Any:
        self.most = max(self.most, len(references))
        return references[-1:], references[:-1]

    def get(self, reference: bytes) -> Any:
        function, arguments = pickle.loads(reference)
        return function(*arguments)

    def cancel(self, reference: bytes) -> None:
        self.cancelled.append(pickle.loads(reference)[1][-1])
