"""Image fidelity and its statistics, as pure functions.

Letters: N images, F frames, H, W height and width in pixels, E episodes, K chunks.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

# Rounding to 8 bits alone leaves an error of variance 1/12, so two uint8 images cannot be told apart below
# it.
ROUNDING_MSE = 1.0 / 12.0
PSNR_CEILING_DB = 10.0 * math.log10(255.0**2 / ROUNDING_MSE)  # 58.9 dB


def _check_pair(a: Tensor, b: Tensor) -> None:
    if (
        a.dtype != torch.uint8
        or b.dtype != torch.uint8
        or a.shape != b.shape
        or a.ndim < 3
        or a.shape[-1] != 3
    ):
        raise ValueError(
            f"got {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}; wanted two uint8 image batches "
            "(..., H, W, 3) of equal shape. Convert float frames with (x * 255).round().clamp(0, "
            "255).to(torch.uint8)"
        )


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of `values` (..., H, W) over the pixels where `mask` (..., H, W) is true; NaN where none is."""
    if mask is None:
        return values.mean((-2, -1))
    weight = mask.to(values.dtype)
    return (values * weight).sum((-2, -1)) / weight.sum((-2, -1))


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of each frame, from its uint8 values: average the result, not the errors,
    over frames.

    Args:
        a: uint8 (..., H, W, 3).
        b: the same shape.
        mask: bool (..., H, W), the pixels that count; default all.

    Returns:
        float64 (...), dB. Equal images get `PSNR_CEILING_DB` (the error of 8-bit rounding), never infinity.
        A frame without a counted pixel gets NaN.
    """
    _check_pair(a, b)
    squared = (a.double() - b.double()).square().mean(-1)
    return 10.0 * torch.log10(255.0**2 / masked_mean(squared, mask).clamp(min=ROUNDING_MSE))


def ssim_map(a: Tensor, b: Tensor, window: Literal["gaussian", "uniform"] = "gaussian") -> Tensor:
    """Structural similarity of each window (Wang, Bovik, Sheikh, Simoncelli 2004, equation 13).

    11x11 Gaussian window of standard deviation 1.5, K1 = 0.01, K2 = 0.03, range 255, per colour channel, mean
    over channels, for all windows that lie wholly inside the image.

    Args:
        a: uint8 (..., H, W, 3), H and W at least 11.
        b: the same shape.
        window: "uniform" weighs the 121 pixels equally.

    Returns:
        float64 (..., H - 10, W - 10), at most 1; entry (y, x) belongs to the window centred on pixel (y + 5,
        x + 5).
    """
    _check_pair(a, b)
    height, width = a.shape[-3:-1]
    if min(height, width) < 11:
        raise ValueError(f"got images of {height}x{width} pixels; SSIM's window needs at least 11x11")
    rows, columns = _windows(height, a.device, window), _windows(width, a.device, window)

    def blur(image: Tensor) -> Tensor:  # (..., 3, H, W) -> (..., 3, H - 10, W - 10)
        return rows @ image @ columns.T

    x, y = a.movedim(-1, -3).double(), b.movedim(-1, -3).double()
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return similarity.mean(-3)


def _windows(length: int, device: torch.device, shape: str) -> Tensor:
    """One row per window of 11 pixels: (length - 10, length). As matrix products these are far faster than
    float64 convolutions.
    """
    offset = torch.arange(length, device=device) - torch.arange(length - 10, device=device)[:, None] - 5
    height = torch.exp(-(offset.double() ** 2) / (2 * 1.5**2)) if shape == "gaussian" else 1.0
    weight = height * (offset.abs() <= 5).double()
    return weight / weight.sum(1, keepdim=True)


def ssim(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean structural similarity of each frame, see `ssim_map`.

    Args:
        a: uint8 (..., H, W, 3), H and W at least 11.
        b: the same shape.
        mask: bool (..., H, W), the window centres that count; default all.

    Returns:
        float64 (...), at most 1. A frame without a counted window gets NaN.
    """
    return masked_mean(ssim_map(a, b), None if mask is None else mask[..., 5:-5, 5:-5])


def contrast(frames: Tensor) -> Tensor:
    """Standard deviation of each frame's grey values (mean of the channels): 0 for a flat colour. uint8 (...,
    H, W, 3) -> (...).
    """
    return frames.double().mean(-1).flatten(-2).std(-1, correction=0)


def histogram_overlap(a: Tensor, b: Tensor, bins: int = 16) -> Tensor:
    """Returns the overlap of two frames' colour histograms: 1 for the same colours wherever they stand, 0 for
    none in common.

    Intersection (Swain and Ballard 1991) of the histograms of each channel, mean over channels.

    Args:
        a: uint8 (..., H, W, 3).
        b: the same shape.
        bins: equal bins of a channel's 256 values.

    Returns:
        float64 (...).
    """
    _check_pair(a, b)
    return torch.minimum(_histograms(a, bins), _histograms(b, bins)).sum(-1).mean(-1)


def _histograms(frames: Tensor, bins: int) -> Tensor:
    """Shares of a frame's pixels in each bin: uint8 (..., H, W, 3) -> float64 (..., 3, bins)."""
    index = frames.movedim(-1, -3).flatten(-2).long() * bins // 256  # (..., 3, H W)
    counts = torch.zeros(*index.shape[:-1], bins, dtype=torch.float64, device=frames.device)
    return counts.scatter_add_(-1, index, torch.ones_like(index, dtype=torch.float64)) / index.shape[-1]


def visible_in_first(
    depth_m: Tensor,
    c2w: Tensor,
    first_depth_m: Tensor,
    first_c2w: Tensor,
    intrinsics_px: Tensor,
    tolerance: float = 0.03,
) -> Tensor:
    """Returns a mask of the pixels of later views whose surface the first view shows too.

    Each pixel is lifted with its true depth, moved into the first camera and compared with the first view's
    depth there. Depths are compared and interpolated as their inverses, which are linear in the image on any
    plane, so a slanted floor does not look hidden. Between two surfaces the interpolated value belongs to
    neither: such pixels count as not visible.

    Args:
        depth_m: (B, F, H, W) z-depth in metres of the later views.
        c2w: (B, F, 4, 4) camera-to-world, OpenCV axes, metres.
        first_depth_m: (B, H, W) of the first view.
        first_c2w: (B, 4, 4) of the first view.
        intrinsics_px: (B, 4) or (4,), fx fy cx cy, shared by all views; the centre of the upper left pixel is
            (0.5, 0.5).
        tolerance: largest relative difference of the two depths.

    Returns:
        bool (B, F, H, W).
    """
    batch, frames, height, width = depth_m.shape
    depth_m, first_depth_m = depth_m.double(), first_depth_m.double()
    fx, fy, cx, cy = (
        intrinsics_px.double().to(depth_m.device).expand(batch, 4)[:, None, None, None].unbind(-1)
    )  # each (B, 1, 1, 1)
    v, u = torch.meshgrid(
        *(torch.arange(n, device=depth_m.device, dtype=torch.float64) + 0.5 for n in (height, width)),
        indexing="ij",
    )
    points = torch.stack(
        [(u - cx) / fx * depth_m, (v - cy) / fy * depth_m, depth_m], dim=-1
    )  # (B, F, H, W, 3)
    to_first = torch.linalg.inv(first_c2w.double())[:, None] @ c2w.double()  # (B, F, 4, 4)
    points = (
        torch.einsum("bfij,bfhwj->bfhwi", to_first[..., :3, :3], points) + to_first[..., None, None, :3, 3]
    )
    x, y, z = points.unbind(-1)
    in_front = z > 1e-3
    z = z.clamp(min=1e-3)
    # grid_sample with align_corners=False puts -1 and 1 at the outer edges of the image, as our pixel
    # coordinates do.
    grid = torch.stack(
        [(fx * x / z + cx) / width * 2 - 1, (fy * y / z + cy) / height * 2 - 1], dim=-1
    )  # (B, F, H, W, 2)
    inside = (grid.abs() <= 1).all(-1)
    sampled = F.grid_sample(
        1 / first_depth_m[:, None],
        grid.flatten(1, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    ).view(batch, frames, height, width)
    return in_front & inside & ((sampled * z - 1).abs() <= tolerance)


@dataclass(frozen=True)
class Estimate:
    """A mean over episodes with its standard error and 95 % interval (Student's t)."""

    mean: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    episodes: int

    def to_dict(self) -> dict:
        return asdict(self)


def estimate_mean(per_episode: np.ndarray) -> Estimate:
    """Returns mean, standard error and interval of one figure per episode, (E,). Episodes with NaN (nothing
    to measure) are left out; `None` where it is undefined.
    """
    values = np.asarray(per_episode, dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return Estimate(None, None, None, None, 0)
    mean = float(values.mean())
    if len(values) == 1:
        return Estimate(mean, None, None, None, 1)
    error = float(values.std(ddof=1) / math.sqrt(len(values)))
    margin = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Estimate(mean, error, mean - margin, mean + margin, len(values))
