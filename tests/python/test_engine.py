"""Jobs give the same results in the same order, on threads and on Ray."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
from fakes import FakeRay
from hypothesis import given
from hypothesis import strategies as st

from mpcore.engine import run_jobs


def square(number: int) -> int:
    return number * number


@given(jobs=st.lists(st.integers(-9, 9), max_size=12), threads=st.integers(1, 4))
def test_results_are_those_of_a_plain_loop(jobs: list[int], threads: int) -> None:
    assert sorted(run_jobs(square, jobs, threads=threads)) == [(i, square(job)) for i, job in enumerate(jobs)]


def inverse(number: int) -> float:
    return 1 / number


def test_a_job_is_drawn_when_there_is_room_for_it() -> None:
    told: list[str] = []

    def work(job: int) -> None:
        told.append(f"runs {job}")

    def jobs() -> Iterator[int]:
        for job in range(3):
            told.append(f"draws {job}")
            yield job

    for index, _ in run_jobs(work, jobs(), threads=1):
        told.append(f"has {index}")
    assert told == [f"{word} {job}" for job in range(3) for word in ("draws", "runs", "has")]


def test_an_error_comes_out_and_drops_what_has_not_begun() -> None:
    ran: list[int] = []

    def fail(job: int) -> None:
        ran.append(job)
        if job == 0:
            raise RuntimeError("job 0")

    with pytest.raises(RuntimeError, match="job 0"):
        list(run_jobs(fail, [1, 0, 2, 3], threads=1))
    assert ran == [1, 0]


def test_jobs_that_run_are_told_to_stop() -> None:
    stop = threading.Event()

    def work(job: int) -> bool:
        if job == 0:
            raise RuntimeError("job 0")
        return stop.wait(20)

    with pytest.raises(RuntimeError, match="job 0"):
        list(run_jobs(work, [0, 1], threads=2, stop=stop))
    assert stop.is_set()


def test_jobs_really_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=20)
    assert len(list(run_jobs(lambda _: meeting.wait(), [0, 1, 2], threads=3))) == 3


def test_ray_gives_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    assert sorted(run_jobs(square, range(9), threads=2, engine="ray")) == [(i, i * i) for i in range(9)]
    assert fake.most == 4
    assert fake.cancelled == []


def test_ray_tasks_are_cancelled_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    with pytest.raises(ZeroDivisionError):
        list(run_jobs(inverse, [1, 2, 0, 3, 4], threads=1, engine="ray"))
    assert fake.cancelled == [1, 2]


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"mpcore\[scale\]"):
        list(run_jobs(square, [1], engine="ray"))


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ValueError, match="'dask'"):
        run_jobs(square, [1], engine="dask")
    with pytest.raises(ValueError, match="threads: 0"):
        run_jobs(square, [1], threads=0)
