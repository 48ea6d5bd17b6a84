"""Settings of the suite: hypothesis profiles (``MPCORE_TESTS=thorough`` for many examples), torch's threads, Ctrl-C."""

from __future__ import annotations

import os
import signal

import torch
from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=25, derandomize="CI" in os.environ, **COMMON)
settings.register_profile("thorough", max_examples=1000, **COMMON)
settings.load_profile(os.environ.get("MPCORE_TESTS", "fast"))

# The networks of the tests are tiny; on two cores more threads only wait for one another.
torch.set_num_threads(1)


def pytest_runtest_setup() -> None:
    """What a test draws from torch's generator does not depend on the tests before it."""
    torch.manual_seed(0)


# A job of GitHub's, or a setting of the shell, has Typer and rich paint help and errors as on a terminal.
for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
    os.environ.pop(name, None)

# A job in the background of a shell inherits an ignored SIGINT; the tests of Ctrl-C need it heard, in children too.
signal.signal(signal.SIGINT, signal.default_int_handler)
