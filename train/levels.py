"""Noise levels of training: logit-normal, shifted, one per clip or one per chunk, as in the released recipe.

A level is an index 0..999. Index i stands for sigma = s (i/1000) / (1 + (s - 1) i/1000) with flow shift s,
and the network is given the whole part of 1000 sigma as its timestep. Index 0 is exactly clean.
"""

import torch
from torch import Tensor

LEVELS = 1000
CLEAN_PAST = 0.1  # share of "teacher_forcing_clean" in the released mixture
MIXTURE = {"same_t": 1, "incremental": 4, "last_chunk_anchor": 4}  # the others, in their proportions


def sigma_of(index: Tensor, shift: float) -> Tensor:
    """Noise share of level indices 0..999."""
    base = index / LEVELS
    return shift * base / (1 + (shift - 1) * base)


def logit_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Level indices floor(1000 sigmoid(n)), n standard normal."""
    draw = torch.randn(shape, generator=generator, device=generator.device)
    return (LEVELS * draw.sigmoid()).long().clamp(max=LEVELS - 1)


def monotone(count: int, low: int, high: int, generator: torch.Generator) -> Tensor:
    """A non-decreasing sequence of `count` integers in low..high, uniform among all of them.

    Stars and bars: such sequences are in bijection with the sets of `count` distinct integers among (high -
    low + count).
    """
    if count == 0:
        return torch.empty(0, dtype=torch.long)
    picks = (
        torch.randperm(high - low + count, generator=generator, device=generator.device)[:count]
        .sort()
        .values.cpu()
    )
    return picks - torch.arange(count) + low


def chunk_levels(chunks: int, generator: torch.Generator, clean_past: float = CLEAN_PAST) -> Tensor:
    """Level indices (chunks,) of one clip by the four-way mixture of chunk-causal training.

    clean_past: share of clips whose first chunks are clean, as a session's past is; the others keep their
    proportions.
    """
    device, others = generator.device, 1 - clean_past
    shares = {name: others * weight / sum(MIXTURE.values()) for name, weight in MIXTURE.items()} | {
        "teacher_forcing_clean": clean_past
    }
    strategy = list(shares)[
        int(torch.multinomial(torch.tensor(list(shares.values()), device=device), 1, generator=generator))
    ]
    level = int(logit_normal((), generator))
    if strategy == "same_t":
        return torch.full((chunks,), level)
    anchor = (
        int(torch.randint(chunks, (), generator=generator, device=device))
        if strategy == "incremental"
        else chunks - 1
    )
    before = monotone(anchor, 0, level, generator)
    after = monotone(chunks - 1 - anchor, level, LEVELS - 1, generator)
    levels = torch.cat([before, torch.tensor([level]), after])
    if strategy == "teacher_forcing_clean" and chunks > 1:
        levels[: int(torch.randint(1, chunks, (), generator=generator, device=device))] = 0
    return levels
