"""Long clips in overlapping windows, brought into one frame by similarities (Sim(3)) over what they share.

Lengths and robust weights are those that SANA-WM's authors run: 200 frames that share 50, 30 iterations of
reweighted least squares that let go beyond 0.1, 20 frames of blending.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sana_wm_env.camera import Array

from ..data.sidecars import ClipError
from .poses import Points, PoseEstimate

WINDOW, OVERLAP, BLEND = 200, 50, 20
ITERATIONS, LOOSE = 30, 0.1
LEAST_SHARED = 3
LEAST_POINTS = 50


def split_windows(frames: int, window: int = WINDOW, overlap: int = OVERLAP) -> list[range]:
    """Splits a clip into windows, each of which shares `overlap` frames or more with the one before."""
    if frames <= window:
        return [range(frames)]
    starts = [*range(0, frames - window, window - overlap), frames - window]
    return [range(start, start + window) for start in starts]


def estimate_windows(frames: int, estimate: Callable[[range], PoseEstimate]) -> PoseEstimate:
    """Estimates window after window and joins them. ClipError where two share too little."""
    windows = split_windows(frames)
    return join_windows(frames, windows, [estimate(window) for window in windows])


def join_windows(frames: int, windows: Sequence[range], parts: Sequence[PoseEstimate]) -> PoseEstimate:
    """One estimate of F frames out of those of its windows, in the unit and the axes of the first."""
    if len(parts) == 1:
        return parts[0]
    joined = _spread(parts[0], windows[0], frames)
    points = [joined.points]
    for number, (window, part) in enumerate(zip(windows[1:], parts[1:], strict=True), 1):
        here = _spread(part, window, frames)
        shared = np.flatnonzero(joined.registered & here.registered)
        if len(shared) < LEAST_SHARED:
            raise ClipError(
                "windows apart",
                f"got {len(shared)} frames with poses in both of the windows {number} and {number + 1}, "
                "which "
                f"meet at frame {window.start}; wanted {LEAST_SHARED} or more: cut the video there",
            )
        here = _move(here, joined, shared)
        points.append(_only(here.points, here.points.frame > shared[-1]))
        joined = _blend(joined, here, shared)
    merged = Points(*(np.concatenate(columns) for columns in zip(*map(_columns, points), strict=True)))
    return replace(joined, points=merged)


def fit_similarity(source: Array, target: Array, scale: float | None = None) -> tuple[float, Array, Array]:
    """The similarity that takes poses (N, 4, 4) to others: scale, rotation (3, 3), shift (3,).

    The rotation comes from the orientations, so that centres on a line leave nothing open. Weights are
    Huber's, on the distance of centres as a share of their extent.

    Args:
        source: what is moved.
        target: where to.
        scale: if it is known.
    """
    weights = np.ones(len(source))
    extent = max(float(np.ptp(target[:, :3, 3], axis=0).max()), 1e-9)
    factor, turn, shift = 1.0 if scale is None else scale, np.eye(3), np.zeros(3)
    for _ in range(ITERATIONS):
        share = weights / weights.sum()
        u, _, vt = np.linalg.svd(np.einsum("n,nij,nkj->ik", share, target[:, :3, :3], source[:, :3, :3]))
        turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
        from_, to = source[:, :3, 3] @ turn.T, target[:, :3, 3]
        middle_from, middle_to = share @ from_, share @ to
        if scale is None:
            spread = (share[:, None] * (from_ - middle_from) ** 2).sum()
            meeting = (share[:, None] * (from_ - middle_from) * (to - middle_to)).sum()
            factor = float(meeting / spread) if spread > 1e-18 else 1.0
        shift = middle_to - factor * middle_from
        off = np.linalg.norm(factor * from_ + shift - to, axis=1) / extent
        weights = np.minimum(1, LOOSE / np.maximum(off, 1e-12))
    return factor, turn, shift


def _spread(part: PoseEstimate, window: range, frames: int) -> PoseEstimate:
    """The estimate of a window as one of the whole clip, empty elsewhere."""

    def wide(rows: Array) -> Array:
        whole = np.full((frames, *rows.shape[1:]), np.nan)
        whole[window.start : window.stop] = rows
        return whole

    names = ("c2w", "intrinsics_px", "residual_px", "rot_sigma_deg", "trans_sigma")
    points = replace(part.points, frame=part.points.frame + window.start)
    return replace(part, points=points, **{name: wide(getattr(part, name)) for name in names})


def _move(here: PoseEstimate, there: PoseEstimate, shared: NDArray[np.int64]) -> PoseEstimate:
    """A window in the unit and the axes of what comes before it."""
    scale = _common_scale(here.points, there.points)
    factor, turn, shift = fit_similarity(here.c2w[shared], there.c2w[shared], scale)
    moved = here.c2w.copy()
    moved[:, :3, :3] = turn @ here.c2w[:, :3, :3]
    moved[:, :3, 3] = factor * here.c2w[:, :3, 3] @ turn.T + shift
    return replace(here, c2w=moved, points=here.points.scaled(factor), trans_sigma=here.trans_sigma * factor)


def _common_scale(here: Points, there: Points) -> float | None:
    """How much larger the unit of a window is, by the depths that both give to the same pixels; None if
    those are few.
    """

    def name(points: Points) -> NDArray[np.int64]:
        columns, rows = np.rint(100 * points.xy_px).astype(np.int64).T  # hundredths of a pixel
        return (points.frame * 10**7 + columns) * 10**7 + rows

    _, first, second = np.intersect1d(name(here), name(there), return_indices=True)
    if len(first) < LEAST_POINTS:
        return None
    return float(np.median(there.depth[second] / here.depth[first]))


def _blend(before: PoseEstimate, after: PoseEstimate, shared: NDArray[np.int64]) -> PoseEstimate:
    """Goes over from one window to the next in the middle of what they share."""
    width = min(BLEND, len(shared))
    first = int(shared[(len(shared) - width) // 2])
    last = int(shared[(len(shared) - width) // 2 + width - 1])
    share = np.clip((np.arange(len(before.c2w)) - first + 0.5) / max(1, last - first + 1), 0, 1)
    share[~after.registered] = 0
    share[~before.registered & after.registered] = 1
    later, both = share >= 0.5, before.registered & after.registered

    def pick(one: Array, other: Array) -> Any:
        return np.where(later.reshape(-1, *[1] * (one.ndim - 1)), other, one)

    c2w = pick(before.c2w, after.c2w)
    weight = share[both][:, None]
    turn = Rotation.from_matrix(before.c2w[both, :3, :3])
    between = (turn.inv() * Rotation.from_matrix(after.c2w[both, :3, :3])).as_rotvec()
    c2w[both, :3, :3] = (turn * Rotation.from_rotvec(weight * between)).as_matrix()
    c2w[both, :3, 3] = (1 - weight) * before.c2w[both, :3, 3] + weight * after.c2w[both, :3, 3]
    return replace(
        before,
        c2w=c2w,
        intrinsics_px=pick(before.intrinsics_px, after.intrinsics_px),
        residual_px=pick(before.residual_px, after.residual_px),
        rot_sigma_deg=pick(before.rot_sigma_deg, after.rot_sigma_deg),
        trans_sigma=pick(before.trans_sigma, after.trans_sigma),
        models=before.models + after.models,
        notes=before.notes + after.notes,
    )


def _columns(points: Points) -> tuple[NDArray, Array, Array]:
    return points.frame, points.xy_px, points.depth


def _only(points: Points, mask: NDArray[np.bool_]) -> Points:
    return Points(points.frame[mask], points.xy_px[mask], points.depth[mask])
