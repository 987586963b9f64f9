"""The bundled causal video autoencoder: 8 frames and 8x8 pixels become one latent cell.

Time is folded, not convolved: a group of 8 frames enters as 24 channels of one image, so encoding is a plain
2-D network per group. The first frame of a clip is a group of its own (repeated 8 times), as in every causal
video autoencoder with frame counts 8k + 1. The decoder reads the previous latent frame beside the current
one; that single latent is all the state a streaming decode carries.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sana_wm_env.settings import check_settings

TEMPORAL_STRIDE = 8
SPATIAL_STRIDE = 8
PATCH = 4


@dataclass(frozen=True)
class AutoencoderConfig:
    """latent_channels: channels of a latent cell; fine, coarse: widths at a quarter and an eighth of the
    pixel resolution; *_blocks: residual blocks per resolution on either side.
    """

    latent_channels: int = 48
    fine: int = 96
    coarse: int = 192
    encoder_blocks: int = 2
    decoder_blocks: int = 3

    def __post_init__(self) -> None:
        check_settings(
            self,
            latent_channels="[1, 4096]",
            fine="[1, 8192]",
            coarse="[1, 8192]",
            encoder_blocks="[0, 256]",
            decoder_blocks="[0, 256]",
        )


class DecoderState(NamedTuple):
    """State of decoding between chunks. previous: (B, C, h, w) the last latent frame, normalised."""

    previous: Tensor


class ResidualBlock(nn.Module):
    """norm, SiLU, 3x3 convolution, twice, plus the input. The second convolution starts at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Encoder(nn.Module):
    """Groups (N, 24, H, W) -> latents (N, C, H/8, W/8)."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.patches = nn.Conv2d(3 * TEMPORAL_STRIDE * PATCH**2, config.fine, 1)
        self.fine = nn.Sequential(*(ResidualBlock(config.fine) for _ in range(config.encoder_blocks)))
        self.down = nn.Conv2d(4 * config.fine, config.coarse, 1)
        self.coarse = nn.Sequential(*(ResidualBlock(config.coarse) for _ in range(config.encoder_blocks)))
        self.out = nn.Conv2d(config.coarse, config.latent_channels, 1)

    def forward(self, groups: Tensor) -> Tensor:
        x = self.fine(self.patches(F.pixel_unshuffle(groups, PATCH)))  # (N, fine, H/4, W/4)
        return self.out(self.coarse(self.down(F.pixel_unshuffle(x, 2))))


class Decoder(nn.Module):
    """Pairs of latents (N, 2C, h, w), previous then current -> groups (N, 24, 8h, 8w)."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.inp = nn.Conv2d(2 * config.latent_channels, config.coarse, 3, padding=1)
        self.coarse = nn.Sequential(*(ResidualBlock(config.coarse) for _ in range(config.decoder_blocks)))
        self.up = nn.Conv2d(config.coarse, 4 * config.fine, 1)
        self.fine = nn.Sequential(*(ResidualBlock(config.fine) for _ in range(config.decoder_blocks)))
        self.patches = nn.Conv2d(config.fine, 3 * TEMPORAL_STRIDE * PATCH**2, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        x = self.fine(F.pixel_shuffle(self.up(self.coarse(self.inp(pairs))), 2))
        return F.pixel_shuffle(self.patches(x), PATCH)


class Autoencoder(nn.Module):
    """Video in [-1, 1] <-> latents of about zero mean and unit variance per channel.

    The normalisation (`latents_mean`, `latents_std`, as in the LTX-2 autoencoder) is measured after training,
    see `fit_normalisation`.
    """

    spatial_stride = SPATIAL_STRIDE
    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config, self.latent_channels = config, config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.register_buffer("latents_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latents_std", torch.ones(config.latent_channels))

    def encode(self, video: Tensor) -> Tensor:
        """Video (B, 3, 1 + 8k, H, W) in [-1, 1] -> latents (B, C, 1 + k, H/8, W/8). Raises ValueError on
        other frame counts or sizes.
        """
        _, _, frames, height, width = video.shape
        if frames % TEMPORAL_STRIDE != 1 or height % SPATIAL_STRIDE or width % SPATIAL_STRIDE:
            legal = 1 + (max(frames, 1) - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE
            raise ValueError(
                f"a video of {frames} frames of {height}x{width} cannot be encoded: frames must be 8k + 1 "
                f"(the nearest are {legal} and "
                f"{legal + TEMPORAL_STRIDE}) and both sides multiples of {SPATIAL_STRIDE}"
            )
        first = video[:, :, :1].expand(-1, -1, TEMPORAL_STRIDE, -1, -1)
        latents = self.encode_groups(group(torch.cat([first, video[:, :, 1:]], 2)))  # (B, T, C, h, w)
        return self.normalise(latents).transpose(1, 2)

    def decode(self, latents: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, DecoderState]:
        """Latents (B, C, T, h, w) -> video (B, 3, F, H, W) and the state for the next call.

        Without a state the first latent opens a clip and gives 1 frame; every other latent gives 8. Decoding
        in pieces equals decoding whole.
        """
        raw = self.denormalise(latents.transpose(1, 2))  # (B, T, C, h, w)
        before = raw[:, 0] if state is None else self.denormalise(state[0][:, None])[:, 0]
        groups = self.decode_groups(raw, torch.cat([before[:, None], raw[:, :-1]], 1))
        video = ungroup(groups)
        after = DecoderState(latents[:, :, -1].clone())  # a view would keep them all
        return video if state is not None else video[:, :, TEMPORAL_STRIDE - 1 :], after

    def encode_groups(self, groups: Tensor) -> Tensor:
        """(B, T, 24, H, W) -> raw latents (B, T, C, h, w)."""
        return self.encoder(groups.flatten(0, 1)).unflatten(0, groups.shape[:2])

    def decode_groups(self, raw: Tensor, previous: Tensor) -> Tensor:
        """Raw latents and their predecessors, (B, T, C, h, w) each -> (B, T, 24, H, W)."""
        return self.decoder(torch.cat([previous, raw], 2).flatten(0, 1)).unflatten(0, raw.shape[:2])

    def normalise(self, raw: Tensor) -> Tensor:
        """Raw latents (B, T, C, h, w) -> zero mean, unit variance."""
        return (raw - self.latents_mean[:, None, None]) / self.latents_std[:, None, None]

    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return latents * self.latents_std[:, None, None] + self.latents_mean[:, None, None]

    @torch.no_grad()
    def fit_normalisation(self, raw: Tensor) -> None:
        """Sets the normalisation from a sample of raw latents (N, T, C, h, w)."""
        self.latents_mean.copy_(raw.mean((0, 1, 3, 4)))
        self.latents_std.copy_(raw.std((0, 1, 3, 4)))


def group(video: Tensor) -> Tensor:
    """(B, 3, 8T, H, W) -> (B, T, 24, H, W); channel = 3 * frame + colour."""
    batch, _, frames, height, width = video.shape
    folded = video.unflatten(2, (frames // TEMPORAL_STRIDE, TEMPORAL_STRIDE))  # (B, 3, T, 8, H, W)
    return folded.permute(0, 2, 3, 1, 4, 5).reshape(batch, -1, 3 * TEMPORAL_STRIDE, height, width)


def ungroup(groups: Tensor) -> Tensor:
    """(B, T, 24, H, W) -> (B, 3, 8T, H, W)."""
    return groups.unflatten(2, (TEMPORAL_STRIDE, 3)).flatten(1, 2).transpose(1, 2)
