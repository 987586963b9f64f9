"""The camera branch moves vectors of a token into the frame of the token's ray (model/README.md sections 6.2
and 6.3).

A head's D channels are cut in half. The first half is D/8 groups of four that are treated as homogeneous
4-vectors and moved by the token's ray matrix; the second half is turned by rotary positions. Only relative
poses of two rays reach q.k that way.
"""

import torch
from torch import Tensor

from .rope import rotate

NORM_FLOOR = 1e-6


def ray_matrices(camera: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """World-to-ray matrices of every latent cell and their inverses, both (B, T, S, 4, 4), in the dtype of
    `camera`.

    camera (B, T, 20): row-major camera-to-world matrix relative to frame 0 (OpenCV axes, metres), then fx,
    fy, cx, cy in latent-grid units. Cells are taken at integer coordinates. A cell whose ray is not a number
    gets the identity.
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
    """Directions ((x - cx) / fx, (y - cy) / fy, 1) of all cells, row-major, not normalised: (..., 4) -> (...,
    S, 3).
    """
    y = torch.arange(height, dtype=intrinsics.dtype, device=intrinsics.device).repeat_interleave(width)
    x = torch.arange(width, dtype=intrinsics.dtype, device=intrinsics.device).repeat(height)
    fx, fy, cx, cy = intrinsics[..., None, :].unbind(-1)  # each (..., 1)
    dx, dy = (x - cx) / fx, (y - cy) / fy
    return torch.stack([dx, dy, torch.ones_like(dx)], -1)


def unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True).clamp(min=NORM_FLOOR)


def move(x: Tensor, matrices: Tensor, table: Tensor, sign: float = 1.0) -> Tensor:
    """Move the first half of each head of x (B, T, S, h, D) in groups of four by the tokens' matrices (B, T,
    S, 4, 4), turn the second.

    table (B, T, S, 2, D/2) is that of `rope.rotate`, and so is `sign`.
    """
    half = x.shape[-1] // 2
    # Both halves go through the matrices, one of them for nothing: one large product of contiguous groups is
    # faster than a small one.
    groups = x.unflatten(-1, (-1, 4)).flatten(3, 4)  # (B, T, S, h, D) -> (B, T, S, h * D/4, 4)
    moved = (matrices.to(x.dtype) @ groups.mT).mT.reshape(x.shape)
    return torch.cat([moved[..., :half], rotate(x[..., half:], table, sign)], -1)


def clamp_rms(after: Tensor, before: Tensor) -> Tensor:
    """`after` with the root mean square of each head no larger than that of `before`, both (B, T, S, h,
    D).
    """

    def mean_square(v: Tensor) -> Tensor:
        return v.square().mean(-1, keepdim=True) + 1e-6

    return after * (mean_square(before) / mean_square(after)).sqrt().clamp(max=1.0)


def mean_growth(before: Tensor, after: Tensor) -> Tensor:
    """Returns the growth of the squared length of keys (B, T, S, h, D), mean over each frame and head: (B, T,
    1, h).

    The transform may lengthen keys by the camera's distance; unless the write strengths are divided by this
    (where it is above 1), I - K B K^T would no longer contract.
    """

    def square(v: Tensor) -> Tensor:
        return v.square().sum(-1).clamp(min=NORM_FLOOR**2)

    return (square(after) / square(before)).mean(2, keepdim=True)
