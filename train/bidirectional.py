"""Stage 2: the bidirectional model. One noise level per clip, flow matching, the first frame mostly given.

SANA-WM section 3.1 and the released recipe: x = (1 - sigma) clean + sigma noise, the network learns v = noise - clean, the first frame is
clean and not scored with probability 0.9, captions are dropped with probability 0.1.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sana_wm_env.model.config import TransformerConfig, preset
from sana_wm_env.model.text import TextEncoderConfig
from sana_wm_env.model.transformer import Rule, Transformer

from .latents import LatentClips, Window
from .levels import LEVELS, logit_normal, sigma_of
from .loop import LoopConfig, load_average, train

IMAGE_GIVEN = 0.9


@dataclass(frozen=True)
class FlowConfig:
    """What the stages of the transformer share.

    Attributes:
        loop: steps, batch, rates, see LoopConfig.
        start: folder of the run whose averaged weights this stage begins with (None: from scratch).
        frames: latent frames per clip, 3k + 1.
        shift: flow shift of the noise levels.
    """

    loop: LoopConfig
    start: Path | None = None
    model: TransformerConfig = field(default_factory=lambda: preset("rooms"))
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    data: Path = Path("runs/data")
    shards: int = 64
    size: tuple[int, int] = (64, 64)
    frames: int = 4
    shift: float = 9.95


@dataclass(frozen=True)
class BidirectionalConfig(FlowConfig):
    """Trains the bidirectional model of a world."""

    loop: LoopConfig = field(default_factory=lambda: LoopConfig(out=Path("runs/rooms/bidirectional"), steps=2000, batch=16))


class FlowStage:
    """Flow matching under one execution rule; subclasses say which levels the frames get."""

    rule: Rule = "bidirectional"

    def __init__(self, config: FlowConfig):
        torch.manual_seed(config.loop.seed)
        self.config, self.model = config, Transformer(config.model)
        if config.start:
            self.model.load_state_dict(load_average(config.start))
        self.model.to(config.loop.device)
        self.clips = LatentClips(config.data, config.shards, config.size, config.text, config.loop.device)

    def levels(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """Level indices (B, T): one per clip."""
        return logit_normal((batch, 1), generator).expand(batch, frames)

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        window = self.clips.draw(batch, self.config.frames, generator)
        frames = window.latents.shape[2]
        index = self.levels(batch, frames, generator).clone()
        given = torch.rand(batch, generator=generator, device=generator.device) < IMAGE_GIVEN
        index[:, 0] = torch.where(given, 0, index[:, 0])
        scored = torch.ones(batch, frames, device=generator.device)
        scored[:, 0] = (~given).float()
        sigma = sigma_of(index, self.config.shift)
        noise = torch.randn(window.latents.shape, generator=generator, device=generator.device)
        noisy = torch.lerp(window.latents, noise, sigma[:, None, :, None, None])
        velocity = self.velocity(self.model, noisy, LEVELS * sigma, window)
        error = (velocity - (noise - window.latents)).square().mean((1, 3, 4))  # (B, T)
        return (error * scored).sum() / scored.sum(), {}

    def velocity(self, model: nn.Module, noisy: Tensor, timestep: Tensor, window: Window) -> Tensor:
        text = model.text_context(window.text, window.text_mask)
        cameras = model.camera_context(window.camera, window.plucker)
        return model(noisy, timestep, text, cameras, rule=self.rule)

    def preview(self, model: nn.Module) -> Tensor | None:
        return None


def run(config: BidirectionalConfig) -> None:
    train(FlowStage(config), config.loop)
