"""What pixels say about the camera before anybody knows where it was: does it move at all, does it do more
than turn; and afterwards, whether they move as the poses say.

Corners are followed by optical flow (Lucas and Kanade, pyramids) from a few frames on, until the picture has
moved by an eighth of its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_wm_env.camera import Array

from ..data.sidecars import ClipError
from .frames import read_frames

ANCHORS = 10
CORNERS = 400
ENOUGH = 20
UNLIKE = 0.5
"""Correlation around corners below which a picture shows something else."""

PATCH = 11
FAR = 1 / 8
"""Of the width: so far a picture moves between the two frames of a pair."""

LONGEST = 48
LOOKED_AT = 256
STILL = 0.005
"""Of the width: less than this, from any frame to any other of a pair, is no motion."""

FLAT = 0.004
"""Of the width: what the best turn may leave unexplained, for the most telling pair, if the camera only
turns.
"""

FOVS_DEG = (28.0, 36.0, 45.0, 55.0, 65.0, 75.0, 88.0, 103.0, 118.0)
STRAY = 0.008
"""Of the width: farther from its epipolar line no point of a scene that stands still is seen."""


@dataclass(frozen=True)
class Pair:
    """Corners of one frame found again in another: (N, 2) each, as shares of the width from the middle of the
    picture. likeness: median correlation of the two pictures around them, 1 for the same.
    """

    first: int
    second: int
    before: Array
    after: Array
    likeness: float

    @property
    def moved(self) -> float:
        """Median displacement, a share of the width."""
        return float(np.median(np.linalg.norm(self.after - self.before, axis=1)))


def follow_corners(video: Path, valid: NDArray[np.bool_] | None = None) -> list[Pair]:
    """Pairs of frames of a clip, and the corners that both show.

    valid: (F, H, W), false where corners are not to be taken.
    """
    import cv2

    greys = []
    for frame in read_frames(video):
        height, width = frame.shape[:2]
        small = (
            round(width * LOOKED_AT / min(height, width)),
            round(height * LOOKED_AT / min(height, width)),
        )
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        greys.append(
            cv2.resize(grey, small, interpolation=cv2.INTER_AREA) if min(height, width) > LOOKED_AT else grey
        )
    pairs = []
    for first in np.unique(np.linspace(0, max(0, len(greys) - 9), ANCHORS).astype(int)).tolist():
        mask = None if valid is None else _mask(valid[first], greys[first].shape)
        pair = _follow(greys, first, mask)
        if pair is not None:
            pairs.append(pair)
    return pairs


def check_motion(pairs: Sequence[Pair]) -> None:
    """ClipError for a camera that stands still, one that only turns, and pictures without corners."""
    if not pairs:
        raise ClipError(
            "no texture", "got frames without corners to follow; wanted a scene with some texture"
        )
    least = min(pairs, key=lambda pair: pair.likeness)
    if least.likeness < UNLIKE:
        raise ClipError(
            "scene change",
            f"got a picture that becomes another one between the frames {least.first} and {least.second} (a "
            f"dissolve?): corners that can be followed look alike by {least.likeness:.2f} only, of 1; "
            "wanted one "
            "scene: cut the video there",
        )
    moved = max(pair.moved for pair in pairs)
    if moved < STILL:
        raise ClipError(
            "still camera",
            f"got pictures that move by {moved:.2%} of their width at most; wanted a camera that moves",
        )
    unexplained = measure_parallax(pairs)
    if unexplained < FLAT:
        raise ClipError(
            "pure rotation",
            f"got a camera that only turns: turning explains all but {unexplained:.2%} of the width; wanted "
            "one that moves too, because a turn has no scale",
        )


def measure_parallax(pairs: Sequence[Pair]) -> float:
    """What the best turns leave unexplained in the most telling pair, as a share of the width, with the field
    of view at which they explain most.
    """
    moving = [pair for pair in pairs if pair.moved > 2 * STILL]
    if not moving:
        return 0.0
    left = np.array([[_unexplained(pair, fov) for pair in moving] for fov in FOVS_DEG])
    return float(left[left.sum(1).argmin()].max())


def measure_strays(pairs: Sequence[Pair], c2w: Array, intrinsics_px: Array, width: int) -> float:
    """The share of corners, median over pairs, that do not move as a scene at rest does before these cameras
    (F, 4, 4), (F, 4).
    """
    shares = []
    for pair in pairs:
        if pair.moved < STILL:
            continue
        to_second = np.linalg.inv(c2w[pair.second]) @ c2w[pair.first]
        before, after = (
            _rays(points, intrinsics_px[index], width)
            for points, index in ((pair.before, pair.first), (pair.after, pair.second))
        )
        lines = np.cross(to_second[:3, 3], before @ to_second[:3, :3].T)
        across = np.linalg.norm(lines[:, :2], axis=1)
        off = np.abs((lines * after).sum(1)) / np.maximum(across, 1e-12)
        shares.append(float((off * intrinsics_px[pair.second, 0] / width > STRAY).mean()))
    return float(np.median(shares)) if shares else 0.0


def _follow(greys: Sequence[NDArray[np.uint8]], first: int, mask: Any) -> Pair | None:
    """Follows the corners of one frame on until they have moved far enough."""
    import cv2

    corners = cv2.goodFeaturesToTrack(greys[first], CORNERS, 0.01, 5, mask=mask)
    if corners is None or len(corners) < ENOUGH:
        return None
    start = now = corners.astype(np.float32)
    width, found, empty = greys[first].shape[1], None, np.zeros(0, np.float32)
    for second in range(first + 1, min(len(greys), first + 1 + LONGEST)):
        then, seen, _ = cv2.calcOpticalFlowPyrLK(greys[second - 1], greys[second], now, empty)
        back, again, _ = cv2.calcOpticalFlowPyrLK(greys[second], greys[second - 1], then, empty)
        kept = (np.asarray(seen, bool) & np.asarray(again, bool)).ravel() & (
            np.linalg.norm(back - now, axis=2).ravel() < 0.5
        )
        start, now = start[kept], then[kept]
        if len(now) < ENOUGH:
            break
        found = second, start, now
        if np.median(np.linalg.norm(now - start, axis=2)) > FAR * width:
            break
    if found is None:
        return None
    second, start, now = found
    likeness = _likeness(greys[first], start, greys[second], now)
    middle = np.array([width, greys[first].shape[0]]) / 2
    before, after = ((points[:, 0] + 0.5 - middle) / width for points in (start, now))
    return Pair(first, second, before, after, likeness)


def _likeness(one: Any, places: Any, other: Any, others: Any) -> float:
    """Median correlation of the patches around places (N, 1, 2) of one picture and of another."""
    import cv2

    def patches(picture: Any, centres: Any) -> Array:
        cut = [cv2.getRectSubPix(picture, (PATCH, PATCH), tuple(map(float, c[0]))).ravel() for c in centres]
        values = np.array(cut, np.float64)
        values -= values.mean(1, keepdims=True)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)

    return float(np.median((patches(one, places) * patches(other, others)).sum(1)))


def _unexplained(pair: Pair, fov_deg: float) -> float:
    """Four fifths of the corners are this near, as a share of the width, to where the best turn has them."""
    focal = 0.5 / np.tan(np.radians(fov_deg) / 2)
    before, after = (
        np.column_stack([points / focal, np.ones(len(points))]) for points in (pair.before, pair.after)
    )
    one, other = (rays / np.linalg.norm(rays, axis=1, keepdims=True) for rays in (before, after))
    weights = np.ones(len(one))
    off = np.zeros(len(one))
    for _ in range(6):
        u, _, vt = np.linalg.svd(other.T @ (weights[:, None] * one))
        turned = before @ (u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt).T
        off = np.linalg.norm(turned[:, :2] / np.maximum(turned[:, 2:], 0.05) * focal - pair.after, axis=1)
        weights = 1 / np.maximum(off, 1e-4)
    return float(np.quantile(off, 0.8))


def _rays(points: Array, intrinsics_px: Array, width: int) -> Array:
    """Directions (N, 3) with z = 1 of points given as shares of the width from the middle of the picture."""
    focal = intrinsics_px[0] / width
    return np.column_stack([points / focal, np.ones(len(points))])


def _mask(valid: NDArray[np.bool_], shape: tuple[int, ...]) -> Any:
    import cv2

    return cv2.resize(valid.astype(np.uint8), (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
