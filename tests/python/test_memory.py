"""The malloc switch: what it tells the C library, and when."""

from __future__ import annotations

import ctypes
import platform

import pytest

from mpcore.models import memory
from mpcore.models.memory import memory_kept


class Libc:
    """Writes down the calls of mallopt and malloc_trim."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def mallopt(self, parameter: int, value: int) -> None:
        self.calls.append((parameter, value))

    def malloc_trim(self, pad: int) -> None:
        self.calls.append((pad,))


ON = [(-4, 0), (-1, 2**31 - 1)]
OFF = [(-4, 65536), (-1, 128 * 1024), (0,)]


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    fake = Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: fake)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    return fake


def test_only_the_outermost_block_turns_the_switch_and_it_turns_it_back(libc: Libc) -> None:
    with memory_kept():
        assert libc.calls == ON
        with memory_kept():
            pass
        assert libc.calls == ON
    assert libc.calls == ON + OFF


def test_an_error_inside_turns_the_switch_back(libc: Libc) -> None:
    with pytest.raises(RuntimeError, match="inside"), memory_kept():
        raise RuntimeError("inside")
    assert libc.calls == ON + OFF
    assert memory._inside == 0


def test_other_c_libraries_are_left_alone(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with memory_kept():
        pass
    assert libc.calls == []
