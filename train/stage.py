"""The base class of stages: what the loop asks of them."""

from typing import Any

import torch
from torch import Tensor, nn


class Stage:
    """A model and a loss, with the defaults of what most stages do not need.

    Attributes:
        model: what is trained.
        carried: what this process keeps from step to step besides weights: None, or dataclasses of tensors
            that `torch.load` may make.
        parts: None, or where the model is several networks, the factor on the rates of each, see
            `optimisers`. One that is frozen (`requires_grad_(False)`) when a step ends is not touched by it.
        divides_clips: whether the loss divides clips in time among `config.parallel.context` ranks; each then
            returns its frames' part such that the mean over all ranks is the loss.
    """

    model: nn.Module
    carried: Any = None
    parts: dict[str, float] | None = None
    divides_clips: bool = False

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of `batch` samples drawn with the generator, and scalars worth logging."""
        raise NotImplementedError

    def preview(self, model: Any) -> Tensor | None:
        """A picture (3, H, W) uint8 that shows how far the averaged `model` has come, None for none."""
        return None

    def let_go(self) -> None:
        """Gives up what is carried where that may be why a step was not finite."""
