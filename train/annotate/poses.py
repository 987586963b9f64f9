"""What a backend makes of a clip: a camera per frame, and how sure it is. Which backends there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from sana_wm_env.camera import Array

from ..data.sidecars import ClipError

BackendName = Literal["auto", "pycolmap", "vipe", "pi3x-moge", "poses"]
BACKENDS = get_args(BackendName)


@dataclass(frozen=True)
class Clip:
    """One shot, as it lies in a file of its own: upright, 16 frames per second.

    Attributes:
        key: its name.
        video: the file.
        frames: how many it has.
        size: (height, width).
        chosen: (F,) the frame of the source video that each frame shows.
        turn: quarter turns to the left that made it upright.
        source: the video that it was cut out of.
        valid: (F, H, W) bool, false where something moves; None where nobody has looked.
    """

    key: str
    video: Path
    frames: int
    size: tuple[int, int]
    chosen: NDArray[np.int64]
    turn: int
    source: Path
    valid: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Points:
    """Depths of places that a backend has seen, in its own unit.

    frame (N,) int64; xy_px (N, 2) float64, pixel (x, y) covers [x, x + 1] x [y, y + 1]; depth (N,) float64
    along the optical axis.
    """

    frame: NDArray[np.int64]
    xy_px: Array
    depth: Array

    @classmethod
    def none(cls) -> Points:
        """No point at all."""
        return cls(np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros(0))

    def scaled(self, factor: float) -> Points:
        """The same in another unit."""
        return Points(self.frame, self.xy_px, self.depth * factor)


@dataclass(frozen=True)
class PoseEstimate:
    """Cameras of the F frames of a clip.

    Attributes:
        c2w: (F, 4, 4) float64 camera-to-world, OpenCV axes, in the backend's unit; NaN where there is none.
        intrinsics_px: (F, 4) fx, fy, cx, cy in pixels of the clip; NaN where there is none.
        metric: the unit is the metre.
        points: relative depths, from which a scale can be told.
        residual_px: (F,) mean reprojection error, NaN where the backend does not say.
        rot_sigma_deg: (F,) standard deviation of the orientation, by the estimator's own account, or NaN.
        trans_sigma: (F,) that of the position, in the backend's unit.
        models: sizes of all models that were found, the one that was kept first.
        backend: who made it, with the version.
    """

    c2w: Array
    intrinsics_px: Array
    metric: bool
    points: Points
    residual_px: Array
    rot_sigma_deg: Array
    trans_sigma: Array
    models: tuple[int, ...]
    backend: str
    notes: tuple[str, ...] = field(default=())

    @property
    def registered(self) -> NDArray[np.bool_]:
        """(F,) which frames have a camera."""
        return np.asarray(np.isfinite(self.c2w).all((1, 2)))

    @classmethod
    def without_points(cls, c2w: Array, intrinsics_px: Array, metric: bool, backend: str) -> PoseEstimate:
        """Cameras of a tool that says no more than that."""
        unknown = np.full(len(c2w), np.nan)
        kept = int(np.isfinite(c2w).all((1, 2)).sum())
        return cls(c2w, intrinsics_px, metric, Points.none(), unknown, unknown, unknown, (kept,), backend)


class PoseBackend(Protocol):
    """Estimates the cameras of a clip."""

    name: str

    def check(self) -> None:
        """ValueError that names what is not installed, and how to install it."""
        ...

    def estimate(self, clip: Clip, work: Path) -> PoseEstimate:
        """Cameras of a clip. `work` is an empty folder for whatever is written on the way.

        Raises:
            ClipError: there are none, and why.
        """
        ...


def fill_gaps(c2w: Array) -> Array:
    """Poses (F, 4, 4) whose missing rows (NaN) lie between their neighbours: straight on, turning evenly.
    Those at the ends are the nearest one.
    """
    there = np.isfinite(c2w).all((1, 2))
    known, wanted = np.flatnonzero(there), np.arange(len(c2w))
    if len(known) == len(c2w):
        return c2w.copy()
    if len(known) == 0:
        raise ClipError("missing poses", "got no pose for any frame")
    filled = np.tile(np.eye(4), (len(c2w), 1, 1))
    for axis in range(3):
        filled[:, axis, 3] = np.interp(wanted, known, c2w[known, axis, 3])
    if len(known) == 1:
        filled[:, :3, :3] = c2w[known[0], :3, :3]
    else:
        turns = Slerp(known, Rotation.from_matrix(c2w[known, :3, :3]))
        filled[:, :3, :3] = turns(np.clip(wanted, known[0], known[-1])).as_matrix()
    filled[there] = c2w[there]
    return filled


def fill_rows(rows: Array) -> Array:
    """Rows (F, N) whose missing ones (NaN) are interpolated; the nearest at the ends."""
    there = np.isfinite(rows).all(1)
    known = np.flatnonzero(there)
    return np.stack([np.interp(np.arange(len(rows)), known, column[known]) for column in rows.T], 1)


def open_backend(name: BackendName, **options: object) -> PoseBackend:
    """The backend of that name; `auto` takes the best that is installed.

    Raises:
        ValueError: unknown, or not installed, with the line that installs it.
    """
    from .colmap import Colmap, ColmapOptions
    from .external import Pi3XMoGe, Vipe
    from .given import GivenPoses

    if name not in BACKENDS:
        raise ValueError(f"got --backend {name!r}; wanted one of {', '.join(BACKENDS)}")
    colmap = Colmap(ColmapOptions(**options))  # type: ignore[arg-type]
    backends: dict[str, PoseBackend] = {
        "vipe": Vipe(),
        "pi3x-moge": Pi3XMoGe(),
        "pycolmap": colmap,
        "poses": GivenPoses(),
    }
    if name != "auto":
        backends[name].check()
        return backends[name]
    refusals = []
    for candidate in ("vipe", "pi3x-moge", "pycolmap"):
        try:
            backends[candidate].check()
        except ValueError as error:
            refusals.append(str(error))
        else:
            return backends[candidate]
    raise ValueError("; ".join(refusals))
