"""The processes that torchrun started, or the one that there is: who am I, wait, agree, average, notice who
is gone.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from .allocator import keep_memory

PARENT = "SANA_WM_PARENT"
"""Environment variable with the process that a training process must not outlive."""


def start_processes() -> None:
    """Joins the group of processes that torchrun or the ladder started, if any. For commands: see
    `keep_memory`.
    """
    keep_memory()
    if parent := os.environ.get(PARENT):
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, however that ended: two runs must not write into one
    folder.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def any_process(flag: bool) -> bool:
    """Returns True if the flag is set in any process; all have to call."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(float(flag))
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags)


def mean(value: float) -> float:
    """Returns the mean of a number over all processes; all have to call."""
    return sum(gathered(value)) / world_size() if world_size() > 1 else value


def local_part(tensor: Tensor) -> Tensor:
    """Returns this process's shard of a sharded tensor, any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gathers a sharded tensor in one piece, returns any other as it is; all processes have to call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def limit_waiting(seconds: float) -> None:
    """Limits how long a message is waited for from now on. Before, while data are prepared, processes may
    keep each other waiting.
    """
    for group in list(dist.distributed_c10d._world.pg_map) if dist.is_initialized() else ():
        dist.distributed_c10d._set_pg_timeout(
            timedelta(seconds=seconds), group
        )  # torch has no public way to change it


@contextmanager
def answering(seconds: float, where: Callable[[], str]) -> Iterator[None]:
    """Turns the many ways in which a lost process shows into one ConnectionError that says what happened and
    what is left.
    """
    try:
        yield
    except (RuntimeError, CheckpointException) as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise ConnectionError(
            f"process {rank()} of {world_size()} stopped at {where()}; another one is gone, or has not "
            f"answered for {seconds:g} s. "
            "The same command resumes."
        ) from error


@torch.no_grad()
def complete_gradients(model: nn.Module) -> None:
    """A parameter that a step did not use counts as zero gradient; a frozen one has none, and optimisers
    leave it alone.
    """
    for param in model.parameters():
        if not param.requires_grad:
            param.grad = None
        elif param.grad is None:
            param.grad = torch.zeros_like(param)


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """Mean of the gradients over all processes, in one message."""
    if world_size() == 1:
        return
    # `complete_gradients` has left none out
    grads = [cast(Tensor, p.grad) for p in model.parameters() if p.requires_grad]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for grad, part in zip(grads, (flat / world_size()).split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))
