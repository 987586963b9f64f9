"""Low-rank adapters (Hu et al. 2021): W + B A in place of W, until they are merged."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")
"""Layers of the refiner's blocks that take one: attention to itself and to the text, feed-forward."""


class LowRank(nn.Module):
    """Adds B (outputs, rank) A (rank, inputs) to a matrix; nothing before it is trained."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        outputs, inputs = weight.shape
        self.down = nn.Parameter(torch.randn(rank, inputs, device=weight.device) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def add_lora(network: nn.Module, rank: int) -> None:
    """Puts an adapter on every linear layer of `TARGETS`, and freezes everything else."""
    network.requires_grad_(False)
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear) and name.endswith(TARGETS):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))


def merge_lora(network: nn.Module) -> None:
    """Makes W + B A the weights, under the names that they had before."""
    for layer in list(network.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
