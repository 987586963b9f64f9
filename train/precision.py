"""The dtype and the operations of a stage: weights, their averages and the optimiser are float32 in any
case.
"""

from typing import Literal

import torch

from sana_wm_env.model.kernels.select import choose_dtype
from sana_wm_env.model.network.transformer import Transformer

Precision = Literal["auto", "bf16", "fp32"]


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
    network.to(device).prepare(compute_dtype(precision, device), plain=compiled)
    if compiled:
        for block in network.blocks:
            block.compile()
    return network
