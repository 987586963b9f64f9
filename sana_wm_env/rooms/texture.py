"""Rooms with rich surfaces, for tools that need something to hold on to: structure from motion, trackers.

The pattern is solid noise: a function of the place in the room alone, so that it sticks to surfaces from
wherever they are seen. Rooms themselves stay as plain as they are; nothing else uses this.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .render import Render, render
from .scene import Scenes

CELLS_M = (0.9, 0.37, 0.16, 0.07)
"""Sizes of the blobs, coarse to fine."""

CONTRAST = 0.75
"""How much darker and lighter than the plain surface a pattern gets."""

GRID = 64
FINER = 2
"""Samples per pixel and axis."""


@torch.inference_mode()
def render_textured(
    scenes: Scenes,
    c2w: Tensor,
    intrinsics_px: Tensor | tuple[float, ...],
    size: tuple[int, int],
    seed: int = 0,
) -> Render:
    """Renders B rooms with rich surfaces from F cameras each, on a CPU.

    Arguments and result are those of `render.render`; depth_m is the nearest of a pixel, as there.

    Args:
        scenes: B rooms.
        c2w: (B, F, 4, 4) camera-to-world in the room's frame, OpenCV axes, metres.
        intrinsics_px: (4,) or (B, 4) as fx, fy, cx, cy in pixels.
        size: (height, width) of the image.
        seed: of the pattern.
    """
    batch, frames = c2w.shape[:2]
    intrinsics = torch.as_tensor(intrinsics_px, dtype=torch.float32).expand(batch, 4)
    fine = (size[0] * FINER, size[1] * FINER)
    rgb = torch.empty(batch, frames, *size, 3, dtype=torch.uint8)
    depth_m = torch.empty(batch, frames, *size)
    for room in range(batch):
        part = slice(room, room + 1)
        for frame in range(frames):
            pose = c2w[part, frame : frame + 1]
            seen = render(scenes[part], pose, intrinsics[part] * FINER, fine)
            points = _points(seen.depth_m[0, 0], pose[0, 0].float(), intrinsics[room] * FINER)
            footprint = seen.depth_m[0, 0] / (intrinsics[room, 0] * FINER)
            tone = 1 + CONTRAST * _noise(points, footprint, seed)
            colour = (seen.rgb[0, 0].float() * tone[..., None]).clamp(0, 255)
            pooled = F.avg_pool2d(colour.movedim(-1, 0), FINER).movedim(0, -1)
            rgb[room, frame] = pooled.round().to(torch.uint8)
            depth_m[room, frame] = -F.max_pool2d(-seen.depth_m[:, 0], FINER)[0]
    return Render(rgb, depth_m)


def _points(depth_m: Tensor, c2w: Tensor, intrinsics: Tensor) -> Tensor:
    """Places (H, W, 3) in the room that the pixels of a view show."""
    fx, fy, cx, cy = intrinsics
    height, width = depth_m.shape
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rays = torch.stack([(u - cx) / fx, (v - cy) / fy, torch.ones_like(u)], -1)
    return (rays * depth_m[..., None]) @ c2w[:3, :3].T + c2w[:3, 3]


def _noise(points: Tensor, footprint_m: Tensor, seed: int) -> Tensor:
    """Solid noise (H, W) of about -1 to 1 at places (H, W, 3); blobs finer than a pixel fade."""
    total = torch.zeros_like(footprint_m)
    for octave, cell in enumerate(CELLS_M):
        places = torch.remainder(points / cell + 17.3 * octave, GRID) / GRID * 2 - 1
        # a border of one cell, so that the pattern goes on where it repeats
        grid = places * (GRID / (GRID + 1)) - 1 / (GRID + 1)
        sampled = F.grid_sample(
            _lattice(seed * len(CELLS_M) + octave), grid[None, None], align_corners=False
        )[0, 0, 0]
        total += sampled * (1 - footprint_m / cell).clamp(0, 1) * 0.8**octave
    return total.clamp(-1, 1)


@lru_cache(maxsize=8)
def _lattice(seed: int) -> Tensor:
    """Random values (1, 1, N, N, N) at the N = GRID + 1 corners of cells; the last repeats the first."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(1, 1, GRID, GRID, GRID, generator=generator) * 2 - 1
    for axis in (2, 3, 4):
        values = torch.cat([values, values.narrow(axis, 0, 1)], axis)
    return values
