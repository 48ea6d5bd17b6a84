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

# A job in the background of a shell inherits an ignored SIGINT; the tests of Ctrl-C need it heard, in children too.
signal.signal(signal.SIGINT, signal.default_int_handler)
