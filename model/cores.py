"""Whole forwards side by side, each on cores of its own.

Threads that share the operations of a small network wait for each other after every one of them; threads that each run a forward of
their own do not. `tests/benchmarks/vector.py` has the figures.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from threading import Barrier
from typing import TypeVar

import torch

Result = TypeVar("Result")


def shares(rows: int, device: torch.device) -> list[slice]:
    """A batch in parts as equal as can be, one for each forward that should run at once: all of it in one but on a CPU."""
    count = min(rows, torch.get_num_threads()) if device.type == "cpu" else 1
    return [slice(begin, end) for begin, end in pairwise(rows * n // count for n in range(count + 1))]


def side_by_side(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """The results of independent calls, which share out the threads that torch would use for one (`torch.get_num_threads`)."""
    threads = torch.get_num_threads()
    count = min(len(calls), threads)
    if count < 2:
        return [call() for call in calls]
    return list(_workers(count, threads // count).map(lambda call: call(), calls))


@cache
def _workers(count: int, threads: int) -> ThreadPoolExecutor:
    """Python threads in which torch uses `threads` of its own."""
    before, ready = torch.get_num_threads(), Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first look at it sets it to what the process was told last
        torch.set_num_threads(threads)
        ready.wait()

    workers = ThreadPoolExecutor(count, "sana-wm", begin)
    for _ in range(count):
        workers.submit(int)
    ready.wait()
    torch.set_num_threads(before)  # the number for threads that others start from here on
    return workers


os.register_at_fork(after_in_child=_workers.cache_clear)  # a forked process has none of its parent's threads
