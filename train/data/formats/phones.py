"""What apps on phones record: Record3D, ARKit."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from sana_wm_env.camera import Array, from_opengl

from .fields import MAX_BYTES, FormatError, Track, find_size, make_pose, parse_side, read_json


def read_record3d(source: Path, size: tuple[int, int] | None, bent: bool) -> Track:
    """K is stored column by column; poses are quaternions x y z w and positions."""
    fields = _record3d_metadata(source)
    poses = np.array(fields["poses"], np.float64)
    if poses.ndim != 2 or poses.shape[1] != 7 or not np.isfinite(poses).all():
        raise FormatError(f"got poses of shape {poses.shape}; wanted (F, 7): qx qy qz qw px py pz")
    c2w = np.array([make_pose(row[:4], row[4:]) for row in poses])
    if "perFrameIntrinsicCoeffs" in fields:
        intrinsics = np.array(fields["perFrameIntrinsicCoeffs"], np.float64)[:, :4]
    else:
        matrix = np.array(fields["K"], np.float64).reshape(3, 3).T
        intrinsics = np.tile(matrix[[0, 1, 0, 1], [0, 1, 2, 2]], (len(c2w), 1))
    if len(intrinsics) != len(c2w):
        raise FormatError(f"got {len(intrinsics)} intrinsics for {len(c2w)} poses; wanted one per pose")
    size = (parse_side(fields["h"]), parse_side(fields["w"]))
    return Track(from_opengl(c2w), intrinsics, size, True, ("",) * len(c2w))


def _record3d_metadata(source: Path) -> Any:
    if source.is_dir():
        source = next(
            (f for n in ("metadata.json", "metadata") if (f := source / n).is_file()), source / "metadata"
        )
    if source.suffix != ".r3d":
        return read_json(source)
    with zipfile.ZipFile(source) as archive:
        info = archive.getinfo("metadata")
        if info.file_size > MAX_BYTES:
            raise FormatError(f"got metadata of more than {MAX_BYTES >> 20} MiB")
        return json.loads(archive.read(info))


ARKIT_POSES = ("transform", "cameraTransform", "camera_transform", "cameraPoseARFrame")
"""What apps call it."""


def find_arkit_pose(frame: dict[str, Any]) -> str | None:
    """The name that a frame of ARKit has for its pose; None if it is no such frame."""
    return next((name for name in ARKIT_POSES if name in frame and "intrinsics" in frame), None)


def read_arkit(source: Path, size: tuple[int, int] | None, bent: bool) -> Track:
    """Matrices as rows or, as simd stores them, as columns: the translation shows which."""
    fields = read_json(source)
    frames = fields if isinstance(fields, list) else fields["frames"]
    if not frames:
        raise FormatError("got no frames; wanted at least one")
    names = [find_arkit_pose(frame) for frame in frames]
    if None in names:
        raise FormatError(
            f"got frame {names.index(None)} without one of {', '.join(ARKIT_POSES)}, or intrinsics"
        )
    c2w = np.array(
        [np.array(frame[name], np.float64).reshape(4, 4) for frame, name in zip(frames, names, strict=True)]
    )
    c2w = _rows_of(c2w, [0, 0, 0, 1], "transform")
    lens = np.array([np.array(frame["intrinsics"], np.float64).reshape(3, 3) for frame in frames])
    lens = _rows_of(lens, [0, 0, 1], "intrinsics")
    sizes = {_arkit_size(frame, fields, size) for frame in frames}
    intrinsics = lens[:, [0, 1, 0, 1], [0, 1, 2, 2]]
    return Track(from_opengl(c2w), intrinsics, find_size(sizes), True, ("",) * len(frames))


def _arkit_size(frame: dict[str, Any], fields: Any, size: tuple[int, int] | None) -> tuple[int, int]:
    own = (fields if isinstance(fields, dict) else {}) | frame
    for name in ("imageResolution", "image_resolution"):
        if name in own:
            width, height = own[name]
            return parse_side(height), parse_side(width)
    if "width" in own and "height" in own:
        return parse_side(own["height"]), parse_side(own["width"])
    if size is None:
        raise FormatError("got no imageResolution; wanted the size of the pictures")
    return size


def _rows_of(matrices: Array, last: list[int], name: str) -> Array:
    """Matrices (F, n, n) whose last rows are `last`, turned over if their last columns are instead."""
    if np.allclose(matrices[:, -1], last, rtol=0, atol=1e-4):
        if np.allclose(matrices[..., -1], last, rtol=0, atol=1e-4):
            raise FormatError(
                f"got {name} without translation, which may be rows or columns; wanted a moving camera"
            )
        return matrices
    if np.allclose(matrices[..., -1], last, rtol=0, atol=1e-4):
        return matrices.mT
    raise FormatError(f"got {name} with last rows other than {' '.join(map(str, last))}")
