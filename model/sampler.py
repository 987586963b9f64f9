"""Noise schedules and deterministic Euler samplers (facts/model.md section 8). Pure functions; no random numbers are drawn here.

Convention: x_sigma = (1 - sigma) clean + sigma noise, velocity = noise - clean, network timestep = 1000 sigma.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .execution import chunk_sizes as chunk_sizes
from .execution import chunk_spans as chunk_spans
from .state import CameraContext, TextContext, TransformerState
from .transformer import Transformer

STREAMING_SIGMAS = (1.0, 0.960, 0.889, 0.727, 0.0)
BIDIRECTIONAL_STEPS, BIDIRECTIONAL_SHIFT, BIDIRECTIONAL_GUIDANCE = 60, 9.8, 5.0

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, T, H, W), timestep (B, T)) -> velocity like x


def shift(sigma: Tensor | float, s: float) -> Tensor | float:
    """Flow shift: moves a level towards noise for s > 1; 0 and 1 stay."""
    return s * sigma / (1 + (s - 1) * sigma)


def timestep_of(sigma: Tensor) -> Tensor:
    """1000 sigma as float32, whole where it is meant to be whole.

    The network cuts timesteps to whole numbers, so 0.889 must not arrive as 888.9999.
    """
    return (1000 * sigma.double()).round(decimals=3).float()


def frame_timesteps(sigma: float, x: Tensor, image: Tensor | None) -> Tensor:
    """(B, T) timesteps of a latent (B, C, T, H, W) at one level, with 0 for the frame that holds a given image."""
    t = timestep_of(torch.tensor(sigma, dtype=torch.float64)).to(x.device).expand(x.shape[0], x.shape[2]).clone()
    if image is not None:
        t[:, : image.shape[2]] = 0
    return t


def with_image(x: Tensor, image: Tensor | None) -> Tensor:
    """Latents x with their first latent frame (B, C, 1, H, W) put back."""
    return x if image is None else torch.cat([image.to(x.dtype), x[:, :, image.shape[2] :]], 2)


def euler(velocity: Velocity, noise: Tensor, sigmas: Sequence[float], image: Tensor | None = None) -> Tensor:
    """Integrate from noise (B, C, T, H, W) at sigmas[0] to sigmas[-1]; the image frame, if any, is clean throughout."""
    x = with_image(noise, image)
    for now, then in pairwise(sigmas):
        v = velocity(x, frame_timesteps(now, x, image))
        x = with_image(x - (now - then) * v.to(x.dtype), image)
    return x


def sample_chunk(
    network: Transformer,
    noise: Tensor,
    text: TextContext,
    cameras: CameraContext,
    state: TransformerState | None,
    image: Tensor | None = None,
    sigmas: Sequence[float] = STREAMING_SIGMAS,
) -> Tensor:
    """Clean latents of the chunk that follows `state`, (B, C, T, H, W) like `noise`. The first chunk is given the image latent.

    The next state is `network.commit(latents, text, cameras, state)`.
    """
    return euler(lambda x, t: network.stream(x, t, text, cameras, state), noise, sigmas, image)


def sample_clip(
    network: Transformer,
    noise: Tensor,
    text: TextContext,
    cameras: CameraContext,
    image: Tensor | None = None,
    null_text: TextContext | None = None,
    guidance: float = BIDIRECTIONAL_GUIDANCE,
    sigmas: Sequence[float] | None = None,
) -> Tensor:
    """A whole clip under the bidirectional rule; guided away from `null_text` where it is given."""
    if sigmas is None:
        sigmas = [float(shift(1 - i / BIDIRECTIONAL_STEPS, BIDIRECTIONAL_SHIFT)) for i in range(BIDIRECTIONAL_STEPS + 1)]

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        v = network(x, t, text, cameras)
        if null_text is None or guidance == 1.0:
            return v
        free = network(x, t, null_text, cameras)
        return free + guidance * (v - free)

    return euler(velocity, noise, sigmas, image)
