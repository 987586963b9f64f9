"""Stage 1: the causal video autoencoder, on groups of frames from rooms."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sana_wm_env.model.autoencoder import TEMPORAL_STRIDE, Autoencoder, AutoencoderConfig, group

from .data import CLIP_FRAMES, CLIPS_PER_SHARD, read_shard, shard_path, write_shards
from .loop import LoopConfig, train

NOISE = 0.1


@dataclass(frozen=True)
class AutoencoderStageConfig:
    """Trains the autoencoder of a world; see LoopConfig for what all stages share."""

    loop: LoopConfig = field(default_factory=lambda: LoopConfig(out=Path("runs/rooms/autoencoder"), steps=2000, batch=16))
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    data: Path = Path("runs/data")
    shards: int = 96
    size: tuple[int, int] = (64, 64)


class AutoencoderStage:
    """Reconstruction of three neighbouring groups of 8 frames, the first of them a single repeated frame half of the time.

    A little noise on the latents, relative to their spread, keeps the decoder smooth: what the transformer writes will never be exact.
    """

    def __init__(self, config: AutoencoderStageConfig):
        self.config, self.model = config, Autoencoder(config.model).to(config.loop.device, memory_format=torch.channels_last)
        self.clips = [read_shard(shard_path(config.data, index)).frames for index in range(config.shards)]

    def draw(self, batch: int, generator: torch.Generator, groups: int = 3) -> Tensor:
        """(batch, groups, 24, H, W) in [-1, 1] from random clips and places."""
        device = self.config.loop.device
        rows = []
        for _ in range(batch):
            shard, clip, start, still = (
                int(torch.randint(high, (), generator=generator, device=device))
                for high in (len(self.clips), CLIPS_PER_SHARD, CLIP_FRAMES - TEMPORAL_STRIDE * groups + 1, 2)
            )
            frames = self.clips[shard][clip, start : start + TEMPORAL_STRIDE * groups]
            if still:
                frames = torch.cat(
                    [frames[TEMPORAL_STRIDE - 1 : TEMPORAL_STRIDE].expand(TEMPORAL_STRIDE, -1, -1, -1), frames[TEMPORAL_STRIDE:]]
                )
            rows.append(frames)
        video = torch.stack(rows).to(device).permute(0, 4, 1, 2, 3)  # (B, 3, F, H, W)
        return group(video.float() / 127.5 - 1)

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        groups = self.draw(batch, generator)
        raw = self.model.encode_groups(groups)
        spread = raw.detach().std((0, 1, 3, 4), keepdim=True)
        noisy = raw + NOISE * spread * torch.randn(raw.shape, generator=generator, device=raw.device)
        output = self.model.decode_groups(noisy, torch.cat([noisy[:, :1], noisy[:, :-1]], 1))
        error = output - groups
        squared = error.square().mean()
        # the pull on the mean square of the latents fixes their scale, which the reconstruction leaves free
        loss = squared + 0.2 * error.abs().mean() + 1e-4 * (raw.square().mean() - 1).square()
        return loss, {"psnr": (10 * torch.log10(4 / squared)).item(), "latent_std": raw.std().item()}

    @torch.no_grad()
    def preview(self, model: nn.Module) -> Tensor:
        """Four clips: the true last frame of each group above its reconstruction."""
        groups = self.draw(4, torch.Generator(self.config.loop.device).manual_seed(1))
        raw = model.encode_groups(groups)
        output = model.decode_groups(raw, torch.cat([raw[:, :1], raw[:, :-1]], 1)).clamp(-1, 1)
        both = torch.stack([groups, output], 1)[:, :, :, -3:]  # (4, 2, T, 3, H, W)
        picture = both.permute(3, 0, 1, 4, 2, 5).flatten(1, 3).flatten(2, 3)  # (3, 4*2*H, T*W)
        return ((picture + 1) * 127.5).round().to(torch.uint8).cpu()


def run(config: AutoencoderStageConfig) -> None:
    """Trains, then measures the normalisation of the latents and writes the result beside the checkpoint."""
    write_shards(config.data, range(config.shards), config.size, config.loop.device)
    stage = AutoencoderStage(config)
    model = train(stage, config.loop)
    with torch.no_grad():
        groups = stage.draw(256, torch.Generator(config.loop.device).manual_seed(2), groups=1)
        model.fit_normalisation(torch.cat([model.encode_groups(part) for part in groups.split(16)]))
    torch.save(model.state_dict(), Path(config.loop.out) / "autoencoder.pt")
