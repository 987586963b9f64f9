"""Pose sidecars of your own videos: what they say, and what is wrong with those that cannot be used.

A sidecar is `a.npz` or `a.json` beside `a.mp4`, with

    c2w or w2c      (F, 4, 4), one pose per frame of the video; the name says the direction
    convention      axes and units: "opencv", "opengl" (both metres) or "unreal_cm"; see `sana_wm_env.camera`
    intrinsics_px   fx, fy, cx, cy (4,) or the matrix (3, 3), or one of them per frame, (F, 4) or (F, 3, 3)
    image_size      (height, width) of the image that the intrinsics belong to
    caption         optional; describes the scene, never the camera
    fps             optional; what the video itself says if not given
    metric          optional; false where translations have no unit, as after COLMAP
    video_sha256    optional; of the bytes of the video that it belongs to

What `RecordChunks` writes is accepted as it is.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sana_wm_env.arrays import read_npz
from sana_wm_env.camera import Array, check_intrinsics, check_poses, from_opengl, from_unreal_cm, from_w2c
from sana_wm_env.video import describe_stranger

from .formats import hint_beside, recognise_fields

MAX_JSON_BYTES = 2**26
"""64 MiB: three hours of poses at 16 frames per second."""

MAX_SIDE = 2**16

AXES: dict[str, Callable[[Array], Array]] = {
    "opencv": lambda c2w: c2w,
    "opengl": from_opengl,
    "unreal_cm": from_unreal_cm,
}


class ClipError(ValueError):
    """A clip that cannot be used. reason: a word or two to count by; the message says what was given, what
    was wanted, how to fix it.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Cameras:
    """The cameras of a video's F frames.

    c2w (F, 4, 4) float64, camera-to-world in OpenCV axes, metres, in any world frame; intrinsics_px (F, 4)
    float64 as fx, fy, cx, cy in pixels of the video; caption "" for none; fps None where the sidecar does not
    say; metric False where translations have no unit.
    """

    c2w: Array
    intrinsics_px: Array
    caption: str
    fps: float | None
    metric: bool = True


def read_cameras(
    video: Path, frames: int, size: tuple[int, int], turn: int = 0, any_video: bool = False
) -> Cameras:
    """Reads the sidecar of a video that has `frames` frames of `size` (height, width).

    turn: quarter turns to the left that make the video upright. A sidecar whose image_size is that of the
    frames as they are stored is turned with them; one whose image_size is that of the upright frames belongs
    to those already.

    any_video: take the sidecar of another video, such as the same one before it was encoded again.

    Raises:
        ClipError: it cannot be used.
    """
    fields = read_fields(find_sidecar(video))
    if not any_video and (stranger := describe_stranger(video, fields.get("video_sha256"))):
        raise ClipError("pair", stranger)
    upright = (size[1], size[0]) if turn % 2 else size
    stored = turn == 0 or _fits(_image_size(fields), size)
    cameras = Cameras(
        _poses(fields, frames),
        _intrinsics(fields, frames, size if stored else upright),
        _caption(fields),
        _fps(fields),
        _metric(fields),
    )
    return turn_cameras(cameras, size, turn) if stored and turn else cameras


def turn_cameras(cameras: Cameras, size: tuple[int, int], turn: int) -> Cameras:
    """The cameras of a video whose frames of `size` (height, width) are turned to the left by quarter
    turns, as `np.rot90` turns them.

    What was down is right then, and what was right is up: the camera rolls about its own axis, and the
    intrinsics change places.
    """
    c2w, intrinsics, (height, width) = cameras.c2w, cameras.intrinsics_px, size
    roll = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for _ in range(turn % 4):
        fx, fy, cx, cy = intrinsics.T
        c2w, intrinsics = c2w @ roll, np.stack([fy, fx, cy, width - cx], 1)
        height, width = width, height
    return replace(cameras, c2w=c2w, intrinsics_px=intrinsics)


def find_sidecar(video: Path) -> Path:
    """The one sidecar of a video. ClipError if there is none, or there are two."""
    found = [video.with_suffix(suffix) for suffix in (".npz", ".json") if video.with_suffix(suffix).is_file()]
    if not found:
        raise ClipError(
            "no sidecar",
            f"got no poses; wanted {video.stem}.npz or {video.stem}.json beside the "
            "video" + hint_beside(video),
        )
    if len(found) > 1:
        raise ClipError(
            "no sidecar",
            f"got both {found[0].name} and {found[1].name}; wanted one sidecar: move the other away",
        )
    return found[0]


def read_fields(sidecar: Path) -> dict[str, Any]:
    """The fields of a sidecar by name, unchecked. ClipError if it cannot be read or is a file of another
    kind.
    """
    try:
        if sidecar.suffix == ".npz":
            return {
                name: value.item() if value.ndim == 0 else value for name, value in read_npz(sidecar).items()
            }
        if sidecar.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it has more than {MAX_JSON_BYTES >> 20} MiB: use .npz")
        fields = json.loads(sidecar.read_text(encoding="utf-8"))
    except Exception as error:  # a broken archive fails in zipfile, zlib or numpy, a broken text in json
        cause = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ClipError(
            "sidecar", f"got {sidecar.name}, which cannot be read ({cause}); export it again"
        ) from None
    if foreign := recognise_fields(fields):
        raise ClipError(
            "format",
            f"got {sidecar.name}, which holds the cameras of {foreign}; wanted a sidecar: `sana-wm data "
            "import "
            f"{sidecar.name} --from {foreign} --video ...` makes one (move {sidecar.name} out of the way "
            "first)",
        )
    if not isinstance(fields, dict):
        raise ClipError(
            "sidecar",
            f"got {sidecar.name} with a {type(fields).__name__}; wanted an object with c2w, convention, "
            "intrinsics_px",
        )
    return fields


def _poses(fields: dict[str, Any], frames: int) -> Array:
    """(F, 4, 4) camera-to-world in OpenCV axes and metres."""
    names = [name for name in ("c2w", "w2c") if name in fields]
    if len(names) != 1:
        given = (
            "both c2w and w2c"
            if names
            else f"neither c2w nor w2c, but {', '.join(sorted(fields)) or 'nothing'}"
        )
        raise ClipError(
            "poses", f"got {given}; wanted the poses under one of the two names, which says their direction"
        )
    convention = fields.get("convention")
    if not isinstance(convention, str) or convention not in AXES:
        given = "no stated convention" if convention is None else f"the convention {convention!r}"
        raise ClipError(
            "convention",
            f'got {given}; wanted "convention" to be one of {", ".join(AXES)}: a wrong guess would not show',
        )
    name = names[0]
    absent = (
        [k for k, pose in enumerate(fields[name]) if pose is None] if isinstance(fields[name], list) else []
    )
    if absent:
        raise ClipError(
            "poses",
            f"got no pose for {len(absent)} of {frames} frames, first for frame {absent[0]}; wanted one per "
            "frame: fill them in along the "
            "path (scipy's Slerp) or cut the video to a part without gaps",
        )
    try:
        poses = check_poses(fields[name], name=name)
    except ValueError as error:
        raise ClipError("poses", str(error)) from None
    if len(poses) != frames:
        raise ClipError(
            "frame count",
            f"got {len(poses)} poses for a video of {frames} frames; wanted one per frame: export the "
            "missing rows or cut the video to the "
            "frames that have a pose",
        )
    return AXES[convention](from_w2c(poses) if name == "w2c" else poses)


def _intrinsics(fields: dict[str, Any], frames: int, size: tuple[int, int]) -> Array:
    """(F, 4) in pixels of the video."""
    if "intrinsics_px" not in fields:
        raise ClipError(
            "intrinsics",
            "got no intrinsics_px; wanted intrinsics in pixels and the [height, width] of the image that "
            "they "
            "belong to",
        )
    height, width = _image_size(fields)
    given = fields["intrinsics_px"]
    try:
        shape = np.shape(given)
        per_frame = shape in ((frames, 3, 3), (frames, 4)) and shape != (3, 3)
        if not per_frame and shape not in ((4,), (3, 3)):
            raise ValueError(
                f"got intrinsics_px of shape {shape}; wanted (4,), (3, 3), ({frames}, 4) or ({frames}, 3, 3)"
            )
        rows = [
            check_intrinsics(
                row, (height, width), f"intrinsics_px[{index}]" if per_frame else "intrinsics_px"
            )
            for index, row in enumerate(given if per_frame else [given])
        ]
    except (TypeError, ValueError) as error:
        ragged = "inhomogeneous" in str(error)
        raise ClipError("intrinsics", "got intrinsics_px of unequal rows" if ragged else str(error)) from None
    if not _fits((height, width), size):
        raise ClipError(
            "intrinsics",
            f"got image_size {height} x {width} for a video of {size[0]} x {size[1]}, whose proportions "
            "differ; wanted intrinsics of the uncropped video (height first)",
        )
    down, across = size[0] / height, size[1] / width
    return np.broadcast_to(np.stack(rows) * [across, down, across, down], (frames, 4)).copy()


def _image_size(fields: dict[str, Any]) -> tuple[int, int]:
    """(height, width) of the image that the intrinsics belong to."""
    if "image_size" not in fields:
        raise ClipError(
            "intrinsics",
            "got no image_size; wanted intrinsics in pixels and the [height, width] of the image that they "
            "belong to",
        )
    given = fields["image_size"]
    sides = given.tolist() if isinstance(given, np.ndarray) else given
    whole = isinstance(sides, list | tuple) and len(sides) == 2
    if not whole or not all(
        _is_number(side) and 1 <= side <= MAX_SIDE and side == int(side) for side in sides
    ):
        shown = str(given)[:60]
        raise ClipError(
            "intrinsics", f"got image_size {shown}; wanted two whole numbers of pixels, [height, width]"
        )
    return int(sides[0]), int(sides[1])


def _fits(image_size: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether two sizes (height, width) have the same proportions, to two percent."""
    return abs(size[0] / image_size[0] / (size[1] / image_size[1]) - 1) <= 0.02


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _caption(fields: dict[str, Any]) -> str:
    caption = fields.get("caption", "")
    if not isinstance(caption, str):
        raise ClipError(
            "caption",
            f"got a caption of type {type(caption).__name__}; wanted one text, or none: join a list",
        )
    return caption


def _metric(fields: dict[str, Any]) -> bool:
    metric = fields.get("metric", True)
    if not isinstance(metric, bool):
        raise ClipError("poses", f"got metric {str(metric)[:60]!r}; wanted true or false")
    return metric


def _fps(fields: dict[str, Any]) -> float | None:
    fps = fields.get("fps")
    if fps is not None and not (_is_number(fps) and 0 < fps < 1000):
        raise ClipError(
            "frame rate",
            f"got fps {str(fps)[:60]!r}; wanted a number of frames per second, or none to take the "
            "video's own",
        )
    return fps
