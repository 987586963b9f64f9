"""Stage 3: chunk-causal diffusion forcing. The same weights, frames see their chunk and the past, every chunk has its own noise level.

The released `df` recipe: levels come from a four-way mixture and never fall along time; the first frame is given as before; clean prefix
chunks stay in the loss, where they only add a constant.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sana_wm_env.model.execution import chunk_sizes

from .bidirectional import FlowConfig, FlowStage
from .levels import chunk_levels
from .loop import LoopConfig, train


@dataclass(frozen=True)
class CausalConfig(FlowConfig):
    """Trains the chunk-causal model of a world, from the bidirectional one."""

    loop: LoopConfig = field(default_factory=lambda: LoopConfig(out=Path("runs/rooms/causal"), steps=1000, batch=16))
    start: Path | None = Path("runs/rooms/bidirectional")
    frames: int = 7


class CausalStage(FlowStage):
    rule = "chunk_causal"

    def levels(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """Level indices (B, T), constant within a chunk."""
        sizes = torch.tensor(chunk_sizes(frames, self.config.model.chunk))
        rows = [chunk_levels(len(sizes), generator).repeat_interleave(sizes) for _ in range(batch)]
        return torch.stack(rows).to(generator.device)


def run(config: CausalConfig) -> None:
    train(CausalStage(config), config.loop)
