"""The dtype and the operations of a stage: weights, their averages and the optimiser are float32 in any
case.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from sana_wm_env.model.kernels.select import choose_dtype
from sana_wm_env.model.kernels.traced import TRACED
from sana_wm_env.model.network.execution import Execution
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.state import BlockState

Precision = Literal["auto", "bf16", "fp32"]
PROGRAMS = 64
"""Forms of a block that torch.compile may make: by kind, gradient, and what the chunk follows."""
KEPT = 0.4
"""Share of the activations that compiled blocks keep for the backward pass; the others are computed again, in
one with what needs them. A chunk of a session of the bundled world then takes 47 MB, with all of them 147.
"""


def compute_dtype(precision: Precision, device: str | torch.device) -> torch.dtype:
    """The dtype of activations: "auto" is bfloat16 where the device multiplies it clearly faster (on a CPU
    that is measured).
    """
    return choose_dtype({"bf16": "bfloat16", "fp32": "float32"}.get(precision, precision), device)


def prepare_network(
    network: Transformer, precision: Precision, device: str, compiled: bool = False
) -> Transformer:
    """The network on its device, ready for training or to teach.

    compiled: have torch.compile make one program of each kind of block, instead of calling one operation
    after the other. It takes minutes first, and pays on GPUs.
    """
    dtype = compute_dtype(precision, device)
    network.to(device).prepare(dtype, TRACED if compiled else None)
    if compiled:
        import torch._dynamo  # takes seconds, so only here
        import torch._functorch.config

        torch._dynamo.config.recompile_limit = PROGRAMS
        torch._functorch.config.activation_memory_budget = KEPT
        for block in network.blocks:
            block.mix = _mix_alike(torch.compile(block.mix, dynamic=False))
    return network


def _mix_alike(mix: Callable[..., Any]) -> Callable[..., tuple[Tensor, BlockState | None]]:
    """`Block.mix` that always keeps its state when streaming, so that one program serves to read and to
    commit.
    """

    def mix_and_keep(*inputs: Any) -> tuple[Tensor, BlockState | None]:
        *others, execution, past = inputs
        assert isinstance(execution, Execution)
        x, state = mix(*others, replace(execution, keep=execution.streaming), past)
        return x, state if execution.keep else None

    return mix_and_keep
