"""Noise of sessions."""

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_noise(generators: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Noise (B, *shape), float32 on the CPU, and the next states (B, n) of the generators.

    Drawn row by row on the CPU, so that a session's noise depends neither on its neighbours nor on the
    device.
    """
    drawn, states, generator = [], [], torch.Generator()
    for row in generators.cpu():
        generator.set_state(row.clone())
        drawn.append(torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device="cpu"))
        states.append(generator.get_state())
    return torch.stack(drawn), torch.stack(states)
