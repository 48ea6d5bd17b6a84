"""Run independent jobs on this machine's cores or on a Ray cluster: same function, same results, in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any, Literal, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

RETRIES = 3
"""How often Ray starts a job again whose worker died; an error that the job raises is not retried."""


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    engine: Literal["ray"] | None = None,
    address: str | None = None,
    threads: int | None = None,
    size: Callable[[Job], float] | None = None,
    progress: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
) -> list[Result]:
    """``[function(job) for job in jobs]``, several at a time.

    Args:
        function: of one job; on Ray it and the jobs travel to other processes, so they must pickle.
        jobs: any number.
        engine: None uses threads of this process (the native routines release the GIL), ``"ray"`` one Ray task a job,
            repeated up to ``RETRIES`` times when its worker dies.
        address: of a Ray cluster; None takes the one this process is connected to, or starts one on this machine.
        threads: jobs at a time in this process; None is the number of cores. Ray decides for itself.
        size: the larger, the earlier a job starts, so that no long one is left for last; None keeps the order.
        progress: called with (done, total) after every job, in the calling thread.
        stop: set when the call ends early, by an error or Ctrl-C, so that jobs in threads of this process can give up.

    Returns:
        The results in the order of ``jobs``, whatever the order they finished in.

    Raises:
        ImportError: if Ray is asked for and not installed.
        ValueError: for an unknown engine or fewer than one thread.
        Exception: whatever ``function`` raised first; jobs that have not begun are dropped.

    Example:
        >>> run_jobs(lambda n: n * n, [1, 2, 3], threads=2)
        [1, 4, 9]
    """
    if engine not in (None, "ray"):
        raise ValueError(f"engine {engine!r} is not None or 'ray'")
    if threads is not None and threads < 1:
        raise ValueError(f"threads = {threads} is not at least 1")
    order = sorted(range(len(jobs)), key=lambda i: -size(jobs[i])) if size else list(range(len(jobs)))
    finished = _on_ray(function, jobs, order, address) if engine else _in_threads(function, jobs, order, threads, stop)
    results: dict[int, Result] = {}
    for index, result in finished:
        results[index] = result
        if progress is not None:
            progress(len(results), len(jobs))
    return [results[index] for index in range(len(jobs))]


def _in_threads(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    order: list[int],
    threads: int | None,
    stop: threading.Event | None,
) -> Iterator[tuple[int, Result]]:
    with ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="mpcore") as pool:
        running = {pool.submit(function, jobs[index]): index for index in order}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            if stop is not None and running:
                stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _on_ray(
    function: Callable[[Job], Result], jobs: Sequence[Job], order: list[int], address: str | None
) -> Iterator[tuple[int, Result]]:
    try:
        import ray
    except ImportError as error:
        raise ImportError("engine 'ray' needs the package ray; install mpcore[scale]") from error
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False)
    task: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(function)
    running = {task.remote(jobs[index]): index for index in order}
    try:
        while running:
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                yield running.pop(reference), ray.get(reference)
    finally:
        for reference in running:
            ray.cancel(reference)
