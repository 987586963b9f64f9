"""The processes that torchrun started, or the one that there is: who am I, wait, agree, average."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def start_processes() -> None:
    """Joins the group of processes that torchrun started, if any; on a CPU each then uses one thread."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


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
    """Whether the flag is set in any process; all have to ask."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(float(flag))
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags)


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """Mean of the gradients over all processes, in one message.

    A parameter that a step did not use counts as zero gradient; a frozen one has none, and optimisers leave it alone.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    for param in params:
        if param.grad is None:
            param.grad = torch.zeros_like(param)
    if world_size() == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in params])
    dist.all_reduce(flat)
    for param, grad in zip(params, (flat / world_size()).split([p.numel() for p in params]), strict=True):
        param.grad.copy_(grad.view_as(param))
