"""The camera's path, estimated from the frames of a video whose first frame shows a known room.

Dense direct tracking (Steinbruecker, Sturm, Cremers 2011; Kerl, Sturm, Cremers 2013): the pose of each frame
is the one at which its pixels agree best with a reference, Gauss-Newton over the six numbers of a pose,
coarse to fine, robust weights. The references are

* the frame `GAP` frames earlier, and
* unless `with_room=False`, the exact picture of the room from the pose estimated for that earlier frame,
  brightness and contrast fitted. It keeps errors from adding up. Where the video shows something else than
  the room, its residuals are large and it weighs little.

The depth of both is that of the exact room at the estimate. Input are the video, the room, the first pose and
the lens, not the commanded path: the search for a pose begins at the pose before.

Limits: a video whose shapes are no longer those of the room gives motions in metres of the wrong room; flat
colour shows no motion and is read as none (a weak prior); a camera that turns by more than a fifth of the
picture within `GAP` frames is lost.

Letters: N videos, F frames, H, W pixels, R residuals.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import RigidTransform
from torch import Tensor

from ..camera import Array, compose, twist_path
from ..progress import progress
from ..rooms.render import render
from ..rooms.scene import Scenes

GAP = 8
"""Frames between the two of a pair: one latent frame, three pairs a chunk."""
ITERATIONS = (10, 8, 6)
"""On a quarter, half and all of the resolution."""
PRIOR = (0.2, 0.2, 0.2, 0.1, 0.1, 0.1)
"""Standard deviation of a motion within `GAP` frames, metres and radians: twice the largest that the
environment commands.
"""
INDEPENDENT = 1 / 30
"""Share of pixels that count as independent at half resolution: neighbours err together."""
KERNEL = 4.0
"""Residuals of so many standard deviations get half of the weight (Cauchy)."""


@torch.inference_mode()
def track(
    frames: Tensor, scenes: Scenes, starts: Tensor, intrinsics_px: Tensor, with_room: bool = True
) -> Array:
    """Estimates camera paths.

    Args:
        frames: uint8 (N, F, H, W, 3), every `GAP`-th frame of each video; the first one shows the room from
            `starts`.
        scenes: N rooms.
        starts: (N, 4, 4) first poses in the rooms' frames, camera-to-world, metres.
        intrinsics_px: (N, 4) fx, fy, cx, cy in pixels of the frames.
        with_room: compare with exact pictures of the room, too.

    Returns:
        (N, F, 4, 4) float64 camera-to-world relative to the first frame, metres.

    Raises:
        ValueError: frames of another dtype or shape, or smaller than 32 pixels.
    """
    if (
        frames.dtype != torch.uint8
        or frames.ndim != 5
        or frames.shape[-1] != 3
        or min(frames.shape[2:4]) < 32
    ):
        raise ValueError(
            f"got frames {frames.dtype} {tuple(frames.shape)}; wanted uint8 (N, F, H, W, 3) of at "
            "least 32 x 32 pixels"
        )
    size = (frames.shape[2], frames.shape[3])
    device = scenes.device
    video = frames.to(device).movedim(-1, 2).float()  # (N, F, 3, H, W)
    starts, intrinsics = starts.double().to(device), intrinsics_px.float().to(device)
    path = [np.tile(np.eye(4), (len(frames), 1, 1))]
    pairs = list(pairwise(video.unbind(1)))
    for before, now in progress(pairs, desc="poses", unit="frame", leave=False, disable=len(pairs) < 30):
        view = render(scenes, (starts @ torch.from_numpy(path[-1]).to(device))[:, None], intrinsics, size)
        references = [before]
        if with_room:
            references.append(_like(view.rgb[:, 0].movedim(-1, 1).float(), before))
        path.append(compose(path[-1], _motion(references, now, view.depth_m[:, 0], intrinsics)))
    return np.stack(path, 1)


def _like(picture: Tensor, other: Tensor) -> Tensor:
    """The picture (N, 3, H, W) with mean and contrast of the other, channel by channel."""
    contrast = other.std((2, 3), keepdim=True) / picture.std((2, 3), keepdim=True).clamp(min=1)
    return (picture - picture.mean((2, 3), keepdim=True)) * contrast + other.mean((2, 3), keepdim=True)


def _motion(references: list[Tensor], now: Tensor, depth_m: Tensor, intrinsics: Tensor) -> Array:
    """Pose (N, 4, 4) of the camera that took `now` (N, 3, H, W), seen from the one of the references (N, 3,
    H, W each).
    """
    levels = [(references, now, depth_m)]
    for _ in ITERATIONS[1:]:
        pictures, target, depth = levels[-1]
        halved = (
            1 / F.avg_pool2d(1 / depth[:, None], 2)[:, 0]
        )  # inverse depth is linear in the image on any plane
        levels.append(([F.avg_pool2d(p, 2) for p in pictures], F.avg_pool2d(target, 2), halved))
    pose = np.tile(np.eye(4), (len(now), 1, 1))
    for iterations, (shrink, (pictures, target, depth)) in zip(
        ITERATIONS, reversed(list(enumerate(levels))), strict=True
    ):
        pose = _refine(
            pose, pictures, target, depth, intrinsics / 2**shrink, iterations, INDEPENDENT * 4 ** (shrink - 1)
        )
    return pose


def _refine(
    pose: Array,
    references: list[Tensor],
    now: Tensor,
    depth_m: Tensor,
    intrinsics: Tensor,
    iterations: int,
    independent: float,
) -> Array:
    """Gauss-Newton on one resolution: the pose (N, 4, 4) of `now` at which warping it to the references
    leaves the least.
    """
    height, width = now.shape[-2:]
    fx, fy, cx, cy = intrinsics[:, :, None, None].unbind(1)  # (N, 1, 1) each
    v, u = torch.meshgrid(*(torch.arange(n, device=now.device) + 0.5 for n in (height, width)), indexing="ij")
    points = torch.stack([(u - cx) / fx * depth_m, (v - cy) / fy * depth_m, depth_m], 1)  # (N, 3, H, W)
    slopes = [
        F.pad(now[..., 2:] - now[..., :-2], (1, 1, 0, 0)) / 2,
        F.pad(now[..., 2:, :] - now[..., :-2, :], (0, 0, 1, 1)) / 2,
    ]
    channels = torch.cat([now, *slopes], 1)  # (N, 9, H, W)
    precision = torch.diag(1 / now.new_tensor(PRIOR) ** 2)
    for _ in range(iterations):
        to_now = torch.from_numpy(np.linalg.inv(pose)).to(now)
        x, y, z = (
            torch.einsum("nij,njhw->nihw", to_now[:, :3, :3], points) + to_now[:, :3, 3, None, None]
        ).unbind(1)
        ahead = z.clamp(min=0.05)
        px, py = fx * x / ahead + cx, fy * y / ahead + cy
        seen = (z > 0.05) & (px > 1) & (px < width - 1) & (py > 1) & (py < height - 1)
        grid = torch.stack([px / width * 2 - 1, py / height * 2 - 1], -1)
        warped, across, down = F.grid_sample(
            channels, grid, padding_mode="border", align_corners=False
        ).split(3, 1)
        jacobian = _jacobian(
            across * fx[:, None], down * fy[:, None], *(c[:, None] for c in (x, y, ahead))
        )  # (N, R, 6)
        mask = seen[:, None].expand_as(warped).flatten(1)
        twist = torch.from_numpy(_twist(pose)).to(now)
        normal, gradient = precision.expand(len(pose), 6, 6).clone(), -(twist @ precision)
        for reference in references:
            weights, residual = _weights((reference - warped).flatten(1), mask)
            weighted = jacobian * (independent * weights)[..., None]
            normal += weighted.mT @ jacobian
            gradient += (weighted * residual[..., None]).sum(1)
        step = torch.linalg.solve(normal, gradient)
        pose = compose(pose, twist_path(step.double().cpu().numpy(), 1)[:, 0])
        if float(step.abs().max()) < 3e-4:
            break
    return pose


def _jacobian(across: Tensor, down: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Derivatives of warped colours by a body twist of the camera, (N, 3HW, 6).

    A point at X moves by -v - w x X in the frame of a camera that moves by the twist (v, w). `across` and
    `down` are the slopes of the image times the focal lengths, (N, 3, H, W); x, y, z (N, 1, H, W) are the
    points.
    """
    gx, gy = across / z, down / z
    gz = -(gx * x + gy * y) / z
    columns = [-gx, -gy, -gz, gy * z - gz * y, gz * x - gx * z, gx * y - gy * x]
    return torch.stack(columns, -1).flatten(1, 3)


def _weights(residual: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse variances (N, R) with Cauchy's robust weights, and the residuals; zero where the mask is.

    The spread is taken from the median, so that a reference which disagrees as a whole weighs little.
    """
    middle = torch.where(mask, residual.abs(), torch.nan).nanmedian(1).values.nan_to_num(255.0)
    spread = (1.4826 * middle).clamp(min=1.0)[:, None]  # grey levels; rounding alone leaves a third
    return mask / (1 + (residual / (KERNEL * spread)) ** 2) / spread**2, residual


def _twist(pose: Array) -> Array:
    """Body twists (N, 6) of poses (N, 4, 4), translation first."""
    return np.roll(RigidTransform.from_matrix(pose).as_exp_coords(), 3, axis=-1).astype(np.float32)
