"""Where forwards run: on threads of our own, so that they neither spin against other processes nor leave
anything behind in the caller's.

A small network gains nothing from sharing out one operation among cores: the threads wait for each other
after every one of them, and on a busy machine wait for a core that another process holds. So each forward has
one core, several forwards at once have one each, and the caller's torch threads are neither used nor changed.
That also lets a process be forked after a step: what OpenMP keeps per thread lies in threads that a child
starts anew. `tests/benchmarks/vector.py` and `busy.py` have the figures.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial, wraps
from itertools import pairwise
from threading import Barrier
from typing import Any, Generic, TypeVar

import torch

Result = TypeVar("Result")
_here = threading.local()  # of our threads: `ours`, and `spare` where they are fewer than the cores


def shares(rows: int, device: torch.device) -> list[slice]:
    """A batch in parts as equal as can be, one for each forward that should run at once: all of it in one but
    on a CPU.

    In a thread of ours, which is one of several already, all of it as well.
    """
    count = (
        min(rows, torch.get_num_threads())
        if device.type == "cpu" and not getattr(_here, "ours", False)
        else 1
    )
    return [slice(begin, end) for begin, end in pairwise(rows * n // count for n in range(count + 1))]


def run_together(calls: Sequence[Callable[[], Result]], threads: int | None = None) -> list[Result]:
    """Runs independent calls at once and returns their results.

    threads: of torch in each call; None: they share out those that torch would use for one
    (`torch.get_num_threads`).
    """
    available = torch.get_num_threads()
    count = min(len(calls), available)
    if count < 2:
        return [call() for call in calls]
    return list(_workers(count, threads or available // count).map(lambda call: call(), calls))


def run_apart(call: Callable[[], Result], threads: int | None = None) -> Result:
    """Runs a call on a thread of ours, or here where this is one, and returns its result. threads: as in
    `run_together`.
    """
    if getattr(_here, "ours", False):
        return call()
    return _workers(1, threads or torch.get_num_threads()).submit(call).result()


def apart(method: Callable[..., Result]) -> Callable[..., Result]:
    """A method whose object has a `device` and the `threads` that it wants: on a CPU it runs apart."""

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Result:
        if self.device.type != "cpu":
            return method(self, *args, **kwargs)
        return run_apart(partial(method, self, *args, **kwargs), self.threads)

    return run


def has_spare_core() -> bool:
    """Returns True if another core is likely to be free while a forward runs in this thread."""
    return getattr(_here, "spare", False)


class Deferred(Generic[Result]):
    """A value computed on first use, or before that by a thread of ours. The same value in any case."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call, self._future, self._process = call, None, os.getpid()

    def begin(self) -> None:
        """Computes it in the background, once."""
        if self._future is None:
            self._future = _background().submit(self._call)

    def result(self) -> Result:
        """The value; computed here where nobody has begun, and in a forked child, where whoever had is
        missing.
        """
        if self._future is None or self._process != os.getpid() or self._future.cancel():
            return self._call()
        return self._future.result()


@cache
def _background() -> ThreadPoolExecutor:
    """One more thread, for what can wait, with one of torch's."""
    return _pool("sana-wm-background", 1, 1)


def _forget_threads() -> None:
    """A forked process has none of its parent's."""
    _workers.cache_clear()
    _background.cache_clear()


@cache
def _workers(count: int, threads: int) -> ThreadPoolExecutor:
    """Threads for forwards."""
    return _pool("sana-wm", count, threads)


def _pool(name: str, count: int, threads: int) -> ThreadPoolExecutor:
    """Python threads in which torch uses `threads` of its own."""
    before, ready = torch.get_num_threads(), Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first look at it sets it to what the process was told last
        torch.set_num_threads(threads)
        _here.ours, _here.spare = True, before > count
        ready.wait()

    workers = ThreadPoolExecutor(count, name, begin)
    for _ in range(count):
        workers.submit(int)
    ready.wait()
    torch.set_num_threads(before)  # the number for threads that others start from here on
    return workers


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
