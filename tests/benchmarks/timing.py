"""How long calls take; the benchmarks beside this file share it."""

import time
from collections.abc import Callable

import torch


def seconds(call: Callable[[], object], device: str = "cpu") -> float:
    """Returns the seconds that one call takes, until the device has done all that it was given."""
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def wait(device: str) -> None:
    """Waits until the device has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
