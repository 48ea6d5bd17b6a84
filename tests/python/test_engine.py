"""Jobs give the same results in the same order, on threads and on Ray."""

from __future__ import annotations

import sys
import threading
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcore.engine import RETRIES, run_jobs


def square(number: int) -> int:
    return number * number


class FakeRay(types.ModuleType):
    """Ray's few functions; tasks finish last in, first out."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.started: list[Any] = []
        self.cancelled: list[Any] = []

    def is_initialized(self) -> bool:
        return False

    def init(self, **_: Any) -> None: ...

    def remote(self, **options: Any) -> Any:
        assert options == {"num_cpus": 1, "max_retries": RETRIES}

        def task(function: Any) -> Any:
            def submit(job: Any) -> Any:
                self.started.append(job)
                return (len(self.started), function, job)

            return types.SimpleNamespace(remote=submit)

        return task

    def wait(self, references: list[Any], num_returns: int) -> Any:
        return references[-num_returns:], references[:-num_returns]

    def get(self, reference: Any) -> Any:
        return reference[1](reference[2])

    def cancel(self, reference: Any) -> None:
        self.cancelled.append(reference[2])


@given(jobs=st.lists(st.integers(-9, 9), max_size=12), threads=st.integers(1, 4))
def test_results_are_those_of_a_plain_loop(jobs: list[int], threads: int) -> None:
    assert run_jobs(square, jobs, threads=threads, size=abs) == [square(job) for job in jobs]


def test_the_largest_job_starts_first_and_progress_counts() -> None:
    started: list[int] = []
    counted: list[tuple[int, int]] = []
    run_jobs(
        started.append, [1, 3, 2], threads=1, size=float, progress=lambda done, total: counted.append((done, total))
    )
    assert started == [3, 2, 1]
    assert counted == [(1, 3), (2, 3), (3, 3)]


def test_an_error_comes_out_and_drops_what_has_not_begun() -> None:
    ran: list[int] = []

    def fail(job: int) -> None:
        ran.append(job)
        if job == 0:
            raise RuntimeError("job 0")

    with pytest.raises(RuntimeError, match="job 0"):
        run_jobs(fail, list(range(500)), threads=1)
    assert len(ran) < 500


def test_jobs_that_run_are_told_to_stop() -> None:
    stop = threading.Event()

    def work(job: int) -> bool:
        if job == 0:
            raise RuntimeError("job 0")
        return stop.wait(20)

    with pytest.raises(RuntimeError, match="job 0"):
        run_jobs(work, [0, 1], threads=2, stop=stop)
    assert stop.is_set()


def test_jobs_really_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=20)
    run_jobs(lambda _: meeting.wait(), [0, 1, 2], threads=3)


def test_ray_gives_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    assert run_jobs(square, [1, 3, 2], engine="ray", size=float) == [1, 9, 4]
    assert fake.started == [3, 2, 1]
    assert fake.cancelled == []


def test_ray_tasks_are_cancelled_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    with pytest.raises(ZeroDivisionError):
        run_jobs(lambda job: 1 // job, [1, 2, 0], engine="ray")
    assert fake.cancelled == [1, 2]


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"mpcore\[scale\]"):
        run_jobs(square, [1], engine="ray")


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ValueError, match="'dask'"):
        run_jobs(square, [1], engine="dask")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threads = 0"):
        run_jobs(square, [1], threads=0)
