"""Rotary positions on three axes: time, row, column (model/README.md section 3)."""

import torch
from torch import Tensor

BASE = 10000.0


def rope_sections(head_dim: int) -> tuple[int, int, int]:
    """Complex pairs of a head that turn with (time, row, column)."""
    space = head_dim // 6
    return head_dim // 2 - 2 * space, space, space


def rope_angles(first_frame: Tensor, frames: int, height: int, width: int, head_dim: int) -> Tensor:
    """Angles in radians, float64 (B, T, S, D/2), of the tokens of `frames` latent frames from `first_frame`
    (B,) on.

    Computed, not looked up, so there is no last frame. In float64 because the angle of the fastest pair is
    the absolute frame index itself, which in a long session outgrows the mantissa of float32.
    """
    device = first_frame.device
    time, rows, columns = (_frequencies(pairs, device) for pairs in rope_sections(head_dim))
    f = first_frame.double()[:, None] + torch.arange(frames, device=device)
    batch, shape = f.shape[0], (f.shape[0], frames, height, width)
    turn_f = (f[..., None] * time)[:, :, None, None].expand(*shape, -1)
    turn_y = (torch.arange(height, device=device).double()[:, None] * rows)[:, None].expand(*shape, -1)
    turn_x = (torch.arange(width, device=device).double()[:, None] * columns).expand(*shape, -1)
    return torch.cat([turn_f, turn_y, turn_x], -1).reshape(batch, frames, height * width, -1)


def camera_angles(angles: Tensor, head_dim: int) -> Tensor:
    """The part of `angles` (B, T, S, D/2) that turns the second half of a camera head: (B, T, S, D/4).

    The half takes the first frequencies of each section of the whole head's table, not a table of its own.
    """
    sections = angles.split(rope_sections(head_dim), -1)
    return torch.cat(
        [section[..., :n] for section, n in zip(sections, rope_sections(head_dim // 2), strict=True)], -1
    )


def rope_table(angles: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the factors of `rotate`, (B, T, S, 2, 2 * pairs): the cosine of every channel, and its sine
    with the sign it enters with.
    """
    cosine, sine = angles.cos(), angles.sin()
    return (
        torch.stack([torch.stack([cosine, cosine], -1), torch.stack([-sine, sine], -1)], -3)
        .flatten(-2)
        .to(dtype)
    )


def rotate(x: Tensor, table: Tensor, sign: float = 1.0) -> Tensor:
    """Turn adjacent channel pairs of x (B, T, S, h, D) by `table` (B, T, S, 2, D), or back with sign -1;
    computed in float32 at least.
    """
    real = x.to(torch.promote_types(x.dtype, torch.float32))
    cosine, sine = table[..., :1, :], table[..., 1:, :]
    swapped = real.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (real * cosine + swapped * (sign * sine)).to(x.dtype)


def _frequencies(pairs: int, device: torch.device) -> Tensor:
    return BASE ** (-torch.arange(pairs, device=device, dtype=torch.float64) / max(pairs, 1))
