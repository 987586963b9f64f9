"""Stage 3: chunk-causal diffusion forcing. The same weights, frames see their chunk and the past, every chunk
has its own noise level.

The released `df` recipe: levels come from a four-way mixture and never fall along time; the first frame is
given as before; clean prefix chunks stay in the loss, where they only add a constant.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sana_wm_env.model.network.execution import chunk_sizes
from sana_wm_env.settings import check_settings

from .flow import FlowConfig, FlowStage
from .levels import CLEAN_PAST, chunk_levels
from .loop import LoopConfig, train
from .processes import start_processes


@dataclass(frozen=True)
class CausalConfig(FlowConfig):
    """Trains the chunk-causal model of a world, from the bidirectional one.

    Attributes:
        clean_past: share of clips whose first chunks are clean and so show the network what it will stream
            on; as published if not given.
    """

    stage: ClassVar[str] = "causal"
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=500))
    init_from: str = "bidirectional"
    frames: int = 7
    clean_past: float = CLEAN_PAST

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, clean_past="[0, 1]")


class CausalStage(FlowStage):
    config: CausalConfig
    rule = "chunk_causal"

    def levels(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """Level indices (B, T), constant within a chunk."""
        sizes = torch.tensor(chunk_sizes(frames, self.network.config.chunk))
        rows = [
            chunk_levels(len(sizes), generator, self.config.clean_past).repeat_interleave(sizes)
            for _ in range(batch)
        ]
        return torch.stack(rows).to(generator.device)


def run(config: CausalConfig) -> None:
    """Trains to config.loop.steps, or resumes."""
    start_processes()
    train(CausalStage(config), config.loop, config.home)
