"""Run independent jobs on this machine's cores or on a Ray cluster: same function, same results."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

RETRIES = 3
"""How often Ray starts a job again whose worker died; an error that the job raises is not retried."""


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    engine: str | None = None,
    address: str | None = None,
    threads: int | None = None,
    stop: threading.Event | None = None,
) -> Iterator[tuple[int, Result]]:
    """``(index, function(job))`` of every job, several at a time, in the order in which they finish.

    A job is drawn from ``jobs`` when there is room for it, so that what it holds is in memory no longer than it runs;
    put the longest first and none is left for last.

    Args:
        function: of one job; on Ray it and the jobs travel to other processes, so they must pickle.
        jobs: any number, drawn in their order in the calling thread.
        engine: None uses threads of this process (the native routines release the GIL), ``"ray"`` one Ray task a job,
            repeated up to ``RETRIES`` times when its worker dies.
        address: of a Ray cluster; None takes the one this process is connected to, or starts one on this machine.
        threads: jobs at a time; None is the number of cores. On Ray at least twice the cluster's cores are in flight.
        stop: set when the call ends early, by an error or Ctrl-C, so that jobs in threads of this process can give up;
            those that have begun are waited for.

    Raises:
        ImportError: if Ray is asked for and not installed.
        ValueError: for an unknown engine or fewer than one thread.
        Exception: whatever ``function`` raised first; no other job begins after it.

    Example:
        >>> sorted(run_jobs(lambda n: n * n, [1, 2, 3], threads=2))
        [(0, 1), (1, 4), (2, 9)]
    """
    if engine not in (None, "ray"):
        raise ValueError(f"engine: {engine!r} is not None or 'ray'")
    if threads is not None and threads < 1:
        raise ValueError(f"threads: {threads} is not at least 1")
    at_a_time = threads or os.cpu_count() or 1
    if engine == "ray":
        return _on_ray(function, enumerate(jobs), at_a_time, address)
    return _in_threads(function, enumerate(jobs), at_a_time, stop)


def _in_threads(
    function: Callable[[Job], Result], jobs: Iterator[tuple[int, Job]], at_a_time: int, stop: threading.Event | None
) -> Iterator[tuple[int, Result]]:
    running: dict[Future[Result], int] = {}
    with ThreadPoolExecutor(at_a_time, thread_name_prefix="mpcore") as pool:
        try:
            while True:
                for index, job in islice(jobs, at_a_time - len(running)):
                    running[pool.submit(function, job)] = index
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            if stop is not None and running:
                stop.set()


def _on_ray(
    function: Callable[[Job], Result], jobs: Iterator[tuple[int, Job]], at_a_time: int, address: str | None
) -> Iterator[tuple[int, Result]]:
    try:
        import ray
    except ImportError as error:
        raise ImportError("engine='ray' needs the package ray: pip install mpcore[scale]") from error
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False)
    task: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(_call)  # Ray takes no partial
    at_a_time = max(at_a_time, 2 * int(ray.cluster_resources().get("CPU", 1)))
    running: dict[Any, int] = {}
    try:
        while True:
            for index, job in islice(jobs, at_a_time - len(running)):
                running[task.remote(function, job)] = index
            if not running:
                return
            for reference in ray.wait(list(running))[0]:
                yield running.pop(reference), ray.get(reference)
    finally:
        for reference in running:
            ray.cancel(reference)


def _call(function: Callable[[Job], Result], job: Job) -> Result:
    return function(job)
