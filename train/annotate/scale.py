"""How long the unit of estimated cameras is in metres.

As SANA-WM's paper has it (section on annotation): per frame the factor s that minimises

    sum over points of w (s a - b)^2,    w = 1 / a,    so    s = sum(w a b) / sum(w a^2)

with the relative depth a and the metric depth b, of at least 200 points; points whose b / a lies off the
frame's median by three deviations do not count, because structure from motion puts a few at far too great a
depth; smoothed in time by an exponential moving average of momentum 0.99, which begins with what the first 64
frames give together; kept within 0.1 and 10 times the middle one. A model has one scale: the median of the
smoothed ones. Poses that are given are held against metric ones by Umeyama's similarity, refitted on the
best 80 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sana_wm_env.camera import Array
from sana_wm_env.evaluation.poses import align

from ..data.sidecars import ClipError
from .poses import Points

MOMENTUM = 0.99
CLAMP = (0.1, 10.0)
LEAST_POINTS = 200
FIRST_FRAMES = 64
BEST_SHARE = 0.8
AGREEING = 3.0


@dataclass(frozen=True)
class Scale:
    """Metres per unit.

    Attributes:
        metres_per_unit: the factor on translations.
        variation: standard deviation of the factors of single frames over their mean; 0 for a known length.
        source: where it comes from.
        per_frame: (F,) factors before smoothing, NaN where a frame has too few points.
        smoothed: (F,) afterwards.
    """

    metres_per_unit: float
    variation: float
    source: str
    per_frame: Array
    smoothed: Array


def scale_from_depth(points: Points, depth_m: Array, size: tuple[int, int], source: str) -> Scale:
    """The factor that makes relative depths metric.

    Args:
        points: relative depths of places in the F frames of a clip.
        depth_m: (F, h, w) metric depth along the optical axis, of any resolution; what is not positive and
            finite does not count.
        size: (height, width) of the clip.
        source: for the manifest.

    Raises:
        ClipError: no frame has enough points.
    """
    metric = sample_depth(depth_m, points, size)
    good = np.isfinite(metric) & (metric > 0)
    good[good] = _agreeing(points.frame[good], metric[good] / points.depth[good])
    frames, relative, metric = points.frame[good], points.depth[good], metric[good]
    per_frame = np.full(len(depth_m), np.nan)
    for frame, count in zip(*np.unique(frames, return_counts=True), strict=True):
        if count >= LEAST_POINTS:
            here = frames == frame
            per_frame[frame] = fit_scale(relative[here], metric[here])
    if not np.isfinite(per_frame).any():
        most = int(np.bincount(frames).max()) if len(frames) else 0
        raise ClipError(
            "no scale",
            f"got {most} points with metric depth in a frame at most; wanted {LEAST_POINTS}: more texture, "
            "or "
            "--baseline or --camera-height",
        )
    known = np.flatnonzero(np.isfinite(per_frame))
    early = np.isin(frames, known[:FIRST_FRAMES])
    middle = float(np.median(per_frame[known]))
    clamped = np.clip(per_frame, CLAMP[0] * middle, CLAMP[1] * middle)
    smoothed = smooth(clamped, fit_scale(relative[early], metric[early]))
    variation = float(per_frame[known].std() / per_frame[known].mean())
    return Scale(float(np.median(smoothed)), variation, source, per_frame, smoothed)


def _agreeing(frames: NDArray[np.int64], ratio: Array) -> NDArray[np.bool_]:
    """Which of N points have a ratio of depths near the median of their frame."""
    kept = np.zeros(len(frames), bool)
    for frame in np.unique(frames):
        here = np.flatnonzero(frames == frame)
        logs = np.log(ratio[here])
        off = np.abs(logs - np.median(logs))
        kept[here] = off <= AGREEING * max(1.4826 * float(np.median(off)), 1e-6)
    return kept


def fit_scale(relative: Array, metric: Array) -> float:
    """The factor on relative depths (N,) that fits metric ones (N,) best; the far count less."""
    weights = 1 / relative
    return float((weights * relative * metric).sum() / (weights * relative**2).sum())


def smooth(factors: Array, start: float, momentum: float = MOMENTUM) -> Array:
    """Exponential moving average (F,) of factors, from `start` on; NaN changes nothing."""
    smoothed, now = np.empty_like(factors), start
    for index, factor in enumerate(factors):
        now = now if np.isnan(factor) else momentum * now + (1 - momentum) * factor
        smoothed[index] = now
    return smoothed


def sample_depth(depth_m: Array, points: Points, size: tuple[int, int]) -> Array:
    """Depths (N,) at the pixels of points: the nearest of the map."""
    down, across = depth_m.shape[1] / size[0], depth_m.shape[2] / size[1]
    rows = np.clip((points.xy_px[:, 1] * down).astype(int), 0, depth_m.shape[1] - 1)
    columns = np.clip((points.xy_px[:, 0] * across).astype(int), 0, depth_m.shape[2] - 1)
    return depth_m[points.frame, rows, columns].astype(np.float64)


def scale_from_poses(given: Array, metric: Array, source: str) -> Scale:
    """The factor that makes given poses (F, 4, 4) as large as metric ones (F, 4, 4); rows with NaN in
    either are left out.

    The direction matters: given times factor is metres. ClipError where the given ones do not move.
    """
    known = np.isfinite(given).all((1, 2)) & np.isfinite(metric).all((1, 2))
    source_path, target = given[known], metric[known]
    if len(target) < 3 or np.ptp(source_path[:, :3, 3], axis=0).max() < 1e-9:
        raise ClipError("no scale", f"got {len(target)} frames with both poses; wanted 3 or more, that move")
    aligned, _ = align(source_path, target, "sim3")
    off = np.linalg.norm(aligned[:, :3, 3] - target[:, :3, 3], axis=1)
    best = np.sort(np.argsort(off, kind="stable")[: max(3, round(BEST_SHARE * len(off)))])
    _, factor = align(source_path[best], target[best], "sim3")
    if not factor > 0:
        raise ClipError("no scale", "got metric poses that no scale brings to the given ones")
    unknown = np.full(len(given), np.nan)
    return Scale(factor, 0.0, source, unknown, unknown)


def scale_from_baseline(c2w: Array, baseline_m: float) -> Scale:
    """The factor by which the last frame of (F, 4, 4) is `baseline_m` from the first."""
    length = float(np.linalg.norm(c2w[-1, :3, 3] - c2w[0, :3, 3]))
    travelled = float(np.linalg.norm(np.diff(c2w[:, :3, 3], axis=0), axis=1).sum())
    if length <= 0.05 * travelled or length == 0:
        raise ClipError(
            "no scale", "got a camera that ends where it began, from which --baseline tells nothing"
        )
    return _known_length(baseline_m / length, len(c2w), f"baseline of {baseline_m:g} m")


def scale_from_height(
    c2w: Array, intrinsics_px: Array, points: Points, camera_height_m: float, tolerance: float = 0.03
) -> Scale:
    """The factor by which the cameras (F, 4, 4) stand `camera_height_m` above the floor, in the median.

    The floor is the plane that most points agree on among those below the camera whose normal is within 25
    degrees of the cameras' mean "down".

    Args:
        c2w: cameras.
        intrinsics_px: (F, 4).
        points: relative depths.
        camera_height_m: metres.
        tolerance: how far points may lie off the plane, as a share of their median depth.

    Raises:
        ClipError: no such plane.
    """
    down = c2w[:, :3, 1].mean(0)
    down /= np.linalg.norm(down)
    places = locate_points(c2w, intrinsics_px, points)
    centre = np.median(c2w[:, :3, 3], axis=0)
    below = places[(places - centre) @ down > 0.2 * np.median(points.depth)] if len(places) else places
    plane = _find_floor(below, down, tolerance * float(np.median(points.depth))) if len(below) >= 50 else None
    if plane is None:
        raise ClipError("no scale", "got no floor under the camera; wanted one in view, or --depth")
    normal, offset = plane
    height = float(np.median(offset - c2w[:, :3, 3] @ normal))
    if height <= 0:
        raise ClipError("no scale", "got a floor above the camera; wanted one in view, or --depth")
    return _known_length(camera_height_m / height, len(c2w), f"camera {camera_height_m:g} m above the floor")


def locate_points(c2w: Array, intrinsics_px: Array, points: Points) -> Array:
    """Places (N, 3) in the world of points seen in frames."""
    fx, fy, cx, cy = intrinsics_px[points.frame].T
    local = np.stack(
        [
            (points.xy_px[:, 0] - cx) / fx * points.depth,
            (points.xy_px[:, 1] - cy) / fy * points.depth,
            points.depth,
        ],
        1,
    )
    poses = c2w[points.frame]
    return np.einsum("nij,nj->ni", poses[:, :3, :3], local) + poses[:, :3, 3]


def _find_floor(places: Array, down: Array, tolerance: float) -> tuple[Array, float] | None:
    """Normal and offset of the plane that most places (N, 3) agree on: normal @ place = offset."""
    rng, best, found = np.random.default_rng(0), 0, None
    inside: NDArray[np.bool_] = np.zeros(len(places), bool)
    for _ in range(300):
        a, b, c = places[rng.choice(len(places), 3, replace=False)]
        normal = np.cross(b - a, c - a)
        length = np.linalg.norm(normal)
        if length == 0:
            continue
        normal *= np.sign(normal @ down) / length
        if normal @ down < np.cos(np.radians(25)):
            continue
        near = np.abs(places @ normal - a @ normal) < tolerance
        if near.sum() > best:
            best, inside, found = int(near.sum()), near, normal
    if found is None or best < 30:
        return None
    middle = places[inside].mean(0)
    normal = np.linalg.svd(places[inside] - middle, full_matrices=False)[2][2]
    normal *= np.sign(normal @ down)
    return normal, float(normal @ middle)


def _known_length(factor: float, frames: int, source: str) -> Scale:
    unknown = np.full(frames, np.nan)
    return Scale(factor, 0.0, source, unknown, unknown)
