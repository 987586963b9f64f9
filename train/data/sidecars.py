"""Pose sidecars of your own videos: what they say, and what is wrong with those that cannot be used.

A sidecar is `a.npz` or `a.json` beside `a.mp4`, with

    c2w or w2c      (F, 4, 4), one pose per frame of the video; the name says the direction
    convention      axes and units: "opencv", "opengl" (both metres) or "unreal_cm"; see `sana_wm_env.camera`
    intrinsics_px   fx, fy, cx, cy (4,) or the matrix (3, 3), or one of them per frame, (F, 4) or (F, 3, 3)
    image_size      (height, width) of the image that the intrinsics belong to
    caption         optional; describes the scene, never the camera
    fps             optional; what the video itself says if not given

What `RecordChunks` writes is accepted as it is.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sana_wm_env.camera import Array, check_intrinsics, check_poses, from_opengl, from_unreal_cm, from_w2c

AXES: dict[str, Callable[[Array], Array]] = {"opencv": lambda c2w: c2w, "opengl": from_opengl, "unreal_cm": from_unreal_cm}


class ClipError(ValueError):
    """A clip that cannot be used. reason: a word or two to count by; the message says what was given, what was wanted, how to fix it."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Cameras:
    """The cameras of a video's F frames.

    c2w (F, 4, 4) float64, camera-to-world in OpenCV axes, metres, in any world frame; intrinsics_px (F, 4) float64 as fx, fy, cx, cy in
    pixels of the video; caption "" for none; fps None where the sidecar does not say.
    """

    c2w: Array
    intrinsics_px: Array
    caption: str
    fps: float | None


def read_cameras(video: Path, frames: int, size: tuple[int, int]) -> Cameras:
    """The cameras in the sidecar of a video that has `frames` frames of `size` (height, width). ClipError if they cannot be used."""
    fields = _read(_find(video))
    return Cameras(_poses(fields, frames), _intrinsics(fields, frames, size), str(fields.get("caption", "")), _fps(fields))


def _find(video: Path) -> Path:
    found = [video.with_suffix(suffix) for suffix in (".npz", ".json") if video.with_suffix(suffix).is_file()]
    if not found:
        raise ClipError("no sidecar", f"got no poses; wanted {video.stem}.npz or {video.stem}.json beside the video")
    if len(found) > 1:
        raise ClipError("no sidecar", f"got both {found[0].name} and {found[1].name}; wanted one sidecar: move the other away")
    return found[0]


def _read(sidecar: Path) -> dict[str, Any]:
    try:
        if sidecar.suffix == ".npz":
            with np.load(sidecar) as file:
                return {name: value.item() if value.ndim == 0 else value for name, value in file.items()}
        fields = json.loads(sidecar.read_text())
    except Exception as error:  # a broken archive fails in zipfile, zlib or numpy, a broken text in json
        raise ClipError("sidecar", f"got {sidecar.name}, which cannot be read ({error}); export it again") from None
    if not isinstance(fields, dict):
        raise ClipError(
            "sidecar", f"got {sidecar.name} with a {type(fields).__name__}; wanted an object with c2w, convention, intrinsics_px"
        )
    return fields


def _poses(fields: dict[str, Any], frames: int) -> Array:
    """(F, 4, 4) camera-to-world in OpenCV axes and metres."""
    names = [name for name in ("c2w", "w2c") if name in fields]
    if len(names) != 1:
        given = "both c2w and w2c" if names else f"neither c2w nor w2c, but {', '.join(sorted(fields)) or 'nothing'}"
        raise ClipError("poses", f"got {given}; wanted the poses under one of the two names, which says their direction")
    convention = fields.get("convention")
    if convention not in AXES:
        given = "no stated convention" if convention is None else f"the convention {convention!r}"
        raise ClipError("convention", f'got {given}; wanted "convention" to be one of {", ".join(AXES)}: a wrong guess would not show')
    name = names[0]
    if isinstance(fields[name], list) and None in fields[name]:
        absent = [index for index, pose in enumerate(fields[name]) if pose is None]
        raise ClipError(
            "poses",
            f"got no pose for {len(absent)} of {frames} frames, first for frame {absent[0]}; wanted one per frame: fill them in along the "
            "path (scipy's Slerp) or cut the video to a stretch without gaps",
        )
    try:
        poses = check_poses(fields[name], name=name)
    except ValueError as error:
        raise ClipError("poses", str(error)) from None
    if len(poses) != frames:
        raise ClipError(
            "frame count",
            f"got {len(poses)} poses for a video of {frames} frames; wanted one per frame: export the missing rows or cut the video to the "
            "frames that have a pose",
        )
    return AXES[convention](from_w2c(poses) if name == "w2c" else poses)


def _intrinsics(fields: dict[str, Any], frames: int, size: tuple[int, int]) -> Array:
    """(F, 4) in pixels of the video."""
    if "intrinsics_px" not in fields or "image_size" not in fields:
        missing = " and ".join(name for name in ("intrinsics_px", "image_size") if name not in fields)
        raise ClipError(
            "intrinsics", f"got no {missing}; wanted intrinsics in pixels and the [height, width] of the image that they belong to"
        )
    try:
        given = np.asarray(fields["intrinsics_px"], np.float64)
        height, width = (int(side) for side in fields["image_size"])
        per_frame = given.shape == (frames, 3, 3) or given.shape == (frames, 4)
        if not per_frame and given.ndim > 1 and given.shape != (3, 3):
            raise ValueError(f"got intrinsics_px of shape {given.shape}; wanted (4,), (3, 3), ({frames}, 4) or ({frames}, 3, 3)")
        rows = [
            check_intrinsics(row, (height, width), f"intrinsics_px[{index}]" if per_frame else "intrinsics_px")
            for index, row in enumerate(given if per_frame else given[None])
        ]
    except (TypeError, ValueError) as error:
        raise ClipError("intrinsics", str(error)) from None
    down, across = size[0] / height, size[1] / width
    if abs(down / across - 1) > 0.02:
        raise ClipError(
            "intrinsics",
            f"got image_size {height} x {width} for a video of {size[0]} x {size[1]}, whose proportions differ; wanted intrinsics of "
            "the uncropped video (height first)",
        )
    return np.broadcast_to(np.stack(rows) * [across, down, across, down], (frames, 4)).copy()


def _fps(fields: dict[str, Any]) -> float | None:
    fps = fields.get("fps")
    if fps is not None and not (isinstance(fps, int | float) and 0 < fps < 1000):
        raise ClipError("frame rate", f"got fps {fps!r}; wanted a number of frames per second, or none to take the video's own")
    return fps
