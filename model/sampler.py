"""Noise schedules and deterministic Euler samplers (model/README.md section 9). Pure functions; no random
numbers are drawn here.

Convention: x_sigma = (1 - sigma) clean + sigma noise, velocity = noise - clean, network timestep = 1000
sigma.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .contexts import CameraContext, TextContext
from .network.execution import Rule
from .network.execution import chunk_sizes as chunk_sizes
from .network.execution import chunk_spans as chunk_spans
from .network.transformer import Transformer
from .state import TransformerState

STREAMING_SIGMAS, STREAMING_SHIFT = (
    (1.0, 0.960, 0.889, 0.727, 0.0),
    8.0,
)  # the list is the shift of four equal steps, rounded
CLIP_STEPS, CLIP_SHIFT, CLIP_GUIDANCE = 60, 9.8, 5.0

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, T, H, W), timestep (B, T)) -> velocity like x


def shift(sigma: Tensor | float, s: float) -> Tensor | float:
    """Flow shift: moves a level towards noise for s > 1; 0 and 1 stay."""
    return s * sigma / (1 + (s - 1) * sigma)


def timestep_of(sigma: Tensor) -> Tensor:
    """1000 sigma as float32, whole where it is meant to be whole.

    The network cuts timesteps to whole numbers, so 0.889 must not arrive as 888.9999.
    """
    return (1000 * sigma.double()).round(decimals=3).float()


def shifted_sigmas(steps: int, s: float) -> tuple[float, ...]:
    """Levels of `steps` equal steps from 1 to 0 under flow shift s. ValueError for fewer than one step or a
    shift that is not positive.
    """
    if steps < 1:
        raise ValueError(f"got {steps} steps; wanted at least 1")
    if not 0 < s < math.inf:
        raise ValueError(f"got a flow shift of {s}; wanted a positive number")
    return tuple(float(shift(1 - i / steps, s)) for i in range(steps + 1))


def staggered(sigmas: Sequence[float], sizes: Sequence[int]) -> Tensor:
    """Levels (K + 1, T) float64 of a clip of n chunks of `sizes` frames, each of which walks down `sigmas`
    later than the one before.

    The lag is the n-th part of the schedule, in whole steps, one at least: when the first chunk is clean the
    last one is about to begin. With one chunk all frames share the level. Source: model/README.md section 9,
    the released chunk-causal sampler.
    """
    steps = len(sigmas) - 1
    lag = max(1, steps // len(sizes))
    started = lag * torch.arange(len(sizes), device="cpu").repeat_interleave(
        torch.tensor(sizes, device="cpu")
    )  # (T,)
    done = torch.arange(steps + lag * (len(sizes) - 1) + 1, device="cpu")[:, None] - started  # (K + 1, T)
    return torch.tensor(sigmas, dtype=torch.float64, device="cpu")[done.clamp(0, steps)]


def clip_levels(frames: int, chunk: int, rule: Rule, sigmas: Sequence[float] | None = None) -> Tensor:
    """Levels (K + 1, T) of a clip of T latent frames, as `sample_clip` walks them: K steps (`sigmas`: by
    default the published 60).
    """
    sigmas = shifted_sigmas(CLIP_STEPS, CLIP_SHIFT) if sigmas is None else sigmas
    return staggered(sigmas, chunk_sizes(frames, chunk) if rule == "chunk_causal" else (frames,))


def frame_timesteps(sigma: float | Tensor, x: Tensor, image: Tensor | None) -> Tensor:
    """(B, T) timesteps of a latent (B, C, T, H, W) at one level or one per frame (T,), with 0 for the frame
    that holds a given image.
    """
    t = (
        timestep_of(torch.as_tensor(sigma, dtype=torch.float64, device="cpu"))
        .to(x.device)
        .expand(x.shape[0], x.shape[2])
        .clone()
    )
    if image is not None:
        t[:, : image.shape[2]] = 0
    return t


def with_image(x: Tensor, image: Tensor | None) -> Tensor:
    """Latents x with their first latent frame (B, C, 1, H, W) put back."""
    return x if image is None else torch.cat([image.to(x.dtype), x[:, :, image.shape[2] :]], 2)


def euler(
    velocity: Velocity,
    noise: Tensor,
    sigmas: Sequence[float] | Tensor,
    image: Tensor | None = None,
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """Integrate from noise (B, C, T, H, W) at sigmas[0] to sigmas[-1]; the image frame, if any, is clean
    throughout.

    `sigmas` are one level per step, or one per step and frame (K + 1, T). A step calls `velocity` with the
    frames up to the last one that it moves; no other frame can see those behind it. `on_step` is called after
    every step.
    """
    x = with_image(noise, image)
    levels = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
    levels = levels if levels.ndim == 2 else levels[:, None].expand(-1, x.shape[2])
    for now, then in pairwise(levels):
        seen = int((now != then).nonzero().max()) + 1
        shown = x[:, :, :seen]
        v = velocity(shown, frame_timesteps(now[:seen], shown, image))
        stride = (now - then)[:seen, None, None].to(x.device, torch.promote_types(x.dtype, torch.float32))
        x = with_image(torch.cat([(shown - stride * v.to(x.dtype)).to(x.dtype), x[:, :, seen:]], 2), image)
        if on_step is not None:
            on_step()
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
    """Clean latents of the chunk that follows `state`, (B, C, T, H, W) like `noise`. The first chunk is given
    the image latent.

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
    guidance: float = CLIP_GUIDANCE,
    sigmas: Sequence[float] | None = None,
    rule: Rule = "bidirectional",
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """A whole clip (B, C, T, H, W) like `noise`, guided away from `null_text` where it is given.

    Under the bidirectional rule all frames become clean together. Under the chunk-causal rule chunks follow
    one another, see `staggered`: every step runs the network on all chunks that have begun, each at its own
    level, the finished ones clean; nothing is cached.
    """

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        begun = cameras.map(lambda tensor: tensor[:, : x.shape[2]])
        v = network(x, t, text, begun, rule)
        if null_text is None or guidance == 1.0:
            return v
        free = network(x, t, null_text, begun, rule)
        return free + guidance * (v - free)

    return euler(
        velocity, noise, clip_levels(noise.shape[2], network.config.chunk, rule, sigmas), image, on_step
    )
