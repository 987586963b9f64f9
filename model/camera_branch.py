"""The geometry of the camera branch: vectors of a token are expressed in the frame of the token's ray (facts 5.2, 5.3).

A head's D channels are cut in half. The first half is D/8 groups of four that are treated as homogeneous 4-vectors and moved by
the token's ray matrix; the second half is turned by rotary positions. Only relative poses of two rays reach q.k that way.
"""

import torch
from torch import Tensor

from .rope import rotate
from .state import CameraContext

NORM_FLOOR = 1e-6


def ray_matrices(camera: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """World-to-ray matrices of every latent cell and their inverses, both (B, T, S, 4, 4), in the dtype of `camera`.

    camera (B, T, 20): row-major camera-to-world matrix relative to frame 0 (OpenCV axes, metres), then fx, fy, cx, cy in
    latent-grid units. Cells are taken at integer coordinates. A cell whose ray is not a number gets the identity.
    """
    c2w, intrinsics = camera[..., :16].unflatten(-1, (4, 4)), camera[..., 16:]
    rotation, position = c2w[..., :3, :3], c2w[..., :3, 3]  # (B, T, 3, 3), (B, T, 3)
    z = unit(unit(pixel_rays(intrinsics, height, width)) @ rotation.mT)  # (B, T, S, 3)
    x = unit(torch.linalg.cross(rotation[..., None, :, 1].expand_as(z), z))
    y = unit(torch.linalg.cross(z, x))
    q = torch.stack([x, y, z], -2)  # (B, T, S, 3, 3), rows are the ray frame's axes
    t = position[:, :, None, :, None].expand(*q.shape[:3], 3, 1)
    identity = torch.eye(4, dtype=q.dtype, device=q.device)
    last_row = identity[3:].expand(*q.shape[:3], 1, 4)
    p = torch.cat([torch.cat([q, -(q @ t)], -1), last_row], -2)
    p_inv = torch.cat([torch.cat([q.mT, t], -1), last_row], -2)
    bad = p.isnan().any(-1).any(-1)[..., None, None]
    return torch.where(bad, identity, p), torch.where(bad, identity, p_inv)


def pixel_rays(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Directions ((x - cx) / fx, (y - cy) / fy, 1) of all cells, row-major, not normalised: (..., 4) -> (..., S, 3)."""
    y = torch.arange(height, dtype=intrinsics.dtype, device=intrinsics.device).repeat_interleave(width)
    x = torch.arange(width, dtype=intrinsics.dtype, device=intrinsics.device).repeat(height)
    fx, fy, cx, cy = intrinsics[..., None, :].unbind(-1)  # each (..., 1)
    dx, dy = (x - cx) / fx, (y - cy) / fy
    return torch.stack([dx, dy, torch.ones_like(dx)], -1)


def unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True).clamp(min=NORM_FLOOR)


def enter_ray_frame(x: Tensor, matrices: Tensor, cameras: CameraContext, clamp: bool) -> Tensor:
    """Transform q (with matrices P^T) or k, v (with P^-1): x (B, T, S, h, D), matrices (B, T, S, 4, 4)."""
    out = _move(x, matrices, cameras.rope_cam)
    return _clamp_rms(out, x) if clamp else out


def leave_ray_frame(x: Tensor, cameras: CameraContext) -> Tensor:
    """Undo the transform on the attention's output (B, T, S, h, D), each token with its own P."""
    return _move(x, cameras.rays, cameras.rope_cam.conj())


def _move(x: Tensor, matrices: Tensor, table: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    # Both halves go through the matrices, one of them for nothing: one large product of contiguous groups is faster than a small one.
    groups = x.unflatten(-1, (-1, 4)).flatten(3, 4)  # (B, T, S, h, D) -> (B, T, S, h * D/4, 4)
    moved = (matrices.to(x.dtype) @ groups.mT).mT.reshape(x.shape)
    return torch.cat([moved[..., :half], rotate(x[..., half:], table)], -1)


def _clamp_rms(after: Tensor, before: Tensor) -> Tensor:
    def mean_square(v: Tensor) -> Tensor:
        return v.square().mean(-1, keepdim=True) + 1e-6

    return after * (mean_square(before) / mean_square(after)).sqrt().clamp(max=1.0)


def shrink_beta(beta: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Write strengths (B, T, S, h) divided by the mean growth of the keys (B, T, S, h, D) of each frame and head.

    The transform may lengthen keys by the camera's distance; without this I - K B K^T would no longer contract.
    """

    def square(v: Tensor) -> Tensor:
        return v.square().sum(-1).clamp(min=NORM_FLOOR**2)

    growth = (square(after) / square(before)).mean(2, keepdim=True)
    return beta / growth.clamp(min=1.0)
