"""Progress bars of processes that were forked, and of what is killed beside them."""

import multiprocessing
import os
import signal
import sys
import time

import pytest

from sana_wm_env.progress import Progress, progress

forks = pytest.mark.skipif(sys.platform != "linux", reason="this system forks no processes")


def hold(ready) -> None:
    with Progress.get_lock():
        ready.set()
        time.sleep(60)


def count() -> None:
    os._exit(sum(progress(range(3))))


@forks
def test_a_process_that_is_killed_while_it_draws_stops_no_other():
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=hold, args=(ready,))
    child.start()
    assert ready.wait(30)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert Progress.get_lock().acquire(timeout=10)
    Progress.get_lock().release()
    assert list(progress(range(3))) == [0, 1, 2]


@forks
def test_a_process_forked_in_the_middle_of_a_line_draws_its_own():
    """The lock is held at the fork, by a thread that the child does not have."""
    with Progress.get_lock():
        child = multiprocessing.get_context("fork").Process(target=count)
        child.start()
    child.join(30)
    assert child.exitcode == 3
