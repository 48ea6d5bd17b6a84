"""A few hundred inputs of ``make fuzz``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import fuzz


@pytest.mark.parametrize("name", fuzz.PROPERTIES)
def test_hostile_inputs_are_refused_or_answered_rightly(name: str) -> None:
    fuzz.run(name, 200)
