"""A deeper network that begins as the one it grew from.

New blocks are copies of the last group of blocks (three of the delta rule and one of softmax) whose outputs
are zero, so that at first they add nothing (as in LLaMA Pro, Wu et al. 2024; bert2BERT, Chen et al. 2022).
"""

import torch
from torch import Tensor

from sana_wm_env.model.config import TransformerConfig

OUTPUTS = ("attn.proj.weight", "attn.proj.bias", "plucker_proj.weight", "plucker_proj.bias")
OUTPUTS += ("cross_attn.proj.weight", "cross_attn.proj.bias", "mlp.point_conv.conv.weight")
"""What a block adds to its tokens passes one of these; where they are zero the block does nothing."""


def depth_of(weights: dict[str, Tensor]) -> int:
    """Number of blocks among the weights of a transformer."""
    return 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("blocks.")), default=-1)


def deepen(weights: dict[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Weights for the depth of `config`, that compute the same function; those that are deep enough as they
    are.

    ValueError if the blocks there are no whole groups of `config.softmax_every`: a copy would be of the other
    kind.
    """
    depth, group = depth_of(weights), config.softmax_every or 1
    if depth >= config.depth:
        return weights
    if depth < group or depth % group:
        raise ValueError(
            f"got weights of {depth} blocks for a network of {config.depth}; wanted a multiple of "
            f"{group} blocks to grow from"
        )
    grown = dict(weights)
    for index in range(depth, config.depth):
        source = depth - group + (index - depth) % group
        for name, value in weights.items():
            if not name.startswith(f"blocks.{source}."):
                continue
            part = name.split(".", 2)[2]
            grown[f"blocks.{index}.{part}"] = torch.zeros_like(value) if part in OUTPUTS else value.clone()
    return grown
