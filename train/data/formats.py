"""Cameras as other tools write them, brought to the project's convention: camera-to-world, OpenCV axes,
pixels.

nerfstudio      transforms.json (instant-ngp's and Blender's too): camera-to-world, +y up, +z backward
colmap          cameras and images, .txt or .bin: world-to-camera, quaternions w first, no unit
realestate10k   a row per frame: time, fx fy cx cy in widths and heights, world-to-camera (3, 4), no unit
record3d        metadata of Record3D, .json or .r3d: camera-to-world as quaternion w last, +y up, metres
arkit           frames of ARKit with `transform` (4, 4) and `intrinsics` (3, 3): +y up, metres

Pixel (0, 0) begins at 0 in all of them. Lenses that bend straight lines by more than a hundredth of the
picture are refused: a sidecar holds pinhole cameras.
"""

import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from scipy.spatial.transform import Rotation

from sana_wm_env.camera import Array, check_poses, from_opengl, from_w2c

MAX_BYTES = 2**28
"""256 MiB of text or of frames; points in COLMAP's files are passed over, however many they are."""

MAX_BEND = 0.01
"""By how much of the picture's width the lens may shift its corners."""


@dataclass(frozen=True)
class Track:
    """The cameras of F pictures in order.

    c2w (F, 4, 4) float64 in OpenCV axes; intrinsics_px (F, 4) as fx, fy, cx, cy in pixels of image_size
    (height, width); metric: translations are metres; names of the pictures, "" where the format has none.
    """

    c2w: Array
    intrinsics_px: Array
    image_size: tuple[int, int]
    metric: bool
    names: tuple[str, ...]


def read_track(source: Path, kind: str, size: tuple[int, int] | None = None, bent: bool = False) -> Track:
    """The cameras in a file or a folder of another tool.

    Args:
        source: what the tool wrote.
        kind: one of `FORMATS`, or "auto" to have it recognised.
        size: (height, width) of the pictures, for formats that do not say.
        bent: take lenses with distortion for pinholes.

    Raises:
        ValueError: another format, a broken file, cameras that no pinhole is.
    """
    if kind == "auto":
        kind = recognise(source) or ""
        if not kind:
            raise ValueError(
                f"got {source}, which is none of {', '.join(FORMATS)}; wanted one, or --from FORMAT"
            )
    if kind not in FORMATS:
        raise ValueError(f"got the format {kind!r}; wanted one of {', '.join(FORMATS)}")
    if not source.exists():
        raise ValueError(f"got {source}; there is no such file or folder")
    try:
        track = FORMATS[kind](source, size, bent)
        return replace(track, c2w=check_poses(track.c2w, name=f"{kind} poses"))
    except FormatError as error:
        raise ValueError(f"{source}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{source}: {_in_one_line(error)}; wanted what {kind} writes") from None
    except (
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        OverflowError,
        struct.error,
        RecursionError,
    ) as error:
        raise ValueError(f"{source}: a part is missing or of another kind ({_in_one_line(error)})") from None
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{source}: cannot be read ({_in_one_line(error)})") from None


class FormatError(ValueError):
    """What is wrong with a file of another tool; says what was got and what was wanted."""


def recognise(source: Path) -> str | None:
    """Which of `FORMATS` a file or a folder holds, None if none."""
    if source.is_dir():
        if (source / "transforms.json").is_file():
            return "nerfstudio"
        if (source / "metadata.json").is_file() or (source / "metadata").is_file():
            return "record3d"
        return "colmap" if _model_in(source) else None
    if source.suffix == ".r3d":
        return "record3d"
    if source.name in ("images.txt", "images.bin", "cameras.txt", "cameras.bin"):
        return "colmap"
    if source.suffix == ".txt" and source.is_file():
        with source.open("rb") as file:
            head = file.read(4096).decode(errors="replace").splitlines()
        rows = [line.split() for line in head if line.strip()]
        return "realestate10k" if len(rows) > 1 and any(len(row) == 19 for row in rows[:3]) else None
    try:
        return recognise_fields(_read_json(source))
    except (ValueError, OSError, RecursionError):
        return None


def recognise_fields(fields: Any) -> str | None:
    """Which of `FORMATS` the content of a .json is, None if none."""
    if isinstance(fields, list) and fields and isinstance(fields[0], dict) and _arkit_pose(fields[0]):
        return "arkit"
    if not isinstance(fields, dict) or "c2w" in fields or "w2c" in fields:
        return None
    if "poses" in fields and ("K" in fields or "perFrameIntrinsicCoeffs" in fields):
        return "record3d"
    frames = fields.get("frames")
    if not (isinstance(frames, list) and frames and isinstance(frames[0], dict)):
        return None
    if "transform_matrix" in frames[0]:
        return "nerfstudio"
    return "arkit" if _arkit_pose(frames[0]) else None


def hint_beside(video: Path) -> str:
    """What to run where a video has no sidecar but cameras of another tool beside it; "" otherwise."""
    beside = [video.with_suffix(".txt"), video.parent / "transforms.json", video.parent / "images.txt"]
    beside += [video.parent / "images.bin", video.parent / "sparse" / "0", video.parent / "metadata.json"]
    beside += [video.with_suffix(".r3d")]
    for source in beside:
        if source.exists() and (kind := recognise(source)):
            command = f"sana-wm data import {source} --from {kind} --video {video}"
            return f"; {source.name} holds the cameras of {kind}: `{command}`"
    return ""


# ---- nerfstudio


def _nerfstudio(source: Path, size: tuple[int, int] | None, bent: bool) -> Track:
    """Frames in the order of their numbered names. `applied_scale` is undone; `applied_transform` turns
    the world alone, so it changes no path.
    """
    fields = _read_json(source / "transforms.json" if source.is_dir() else source)
    frames = fields["frames"]
    if not frames:
        raise FormatError("got no frames; wanted at least one")
    frames = sorted(frames, key=lambda frame: in_order(str(frame.get("file_path", ""))))
    if size is None and not ("w" in fields or "w" in frames[0]):
        raise FormatError("got no w and h; wanted the size of the pictures")
    rows, sizes = [], set()
    for frame in frames:
        own = fields | {name: value for name, value in frame.items() if name != "transform_matrix"}
        model = own.get("camera_model", "OPENCV")
        if model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE"):
            raise FormatError(f"got the camera model {model}; wanted a pinhole: undistort the pictures first")
        height, width = (size or (0, 0)) if "w" not in own else (_whole(own["h"]), _whole(own["w"]))
        sizes.add((height, width))
        rows.append(_nerfstudio_camera(own, height, width))
        _check_lens({name: _real(own.get(name, 0)) for name in LENS}, rows[-1], width, bent)
    c2w = np.array([_matrix(frame["transform_matrix"]) for frame in frames])
    c2w[:, :3, 3] /= _positive(fields.get("applied_scale", 1.0), "applied_scale")
    names = tuple(str(frame.get("file_path", "")) for frame in frames)
    return Track(from_opengl(c2w), np.array(rows), _one_size(sizes), False, names)


def _nerfstudio_camera(own: dict[str, Any], height: int, width: int) -> list[float]:
    if "fl_x" in own:
        fx = _real(own["fl_x"])
        fy = _real(own.get("fl_y", fx))
    elif "camera_angle_x" in own:
        fx = width / 2 / np.tan(_real(own["camera_angle_x"]) / 2)
        angle = own.get("camera_angle_y")
        fy = fx if angle is None else height / 2 / np.tan(_real(angle) / 2)
    else:
        raise FormatError("got neither fl_x nor camera_angle_x; wanted one")
    return [fx, fy, _real(own.get("cx", width / 2)), _real(own.get("cy", height / 2))]


# ---- COLMAP

MODELS = (
    ("SIMPLE_PINHOLE", "f cx cy"),
    ("PINHOLE", "fx fy cx cy"),
    ("SIMPLE_RADIAL", "f cx cy k1"),
    ("RADIAL", "f cx cy k1 k2"),
    ("OPENCV", "fx fy cx cy k1 k2 p1 p2"),
    ("OPENCV_FISHEYE", "fx fy cx cy k1 k2 k3 k4"),
    ("FULL_OPENCV", "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6"),
    ("FOV", "fx fy cx cy omega"),
    ("SIMPLE_RADIAL_FISHEYE", "f cx cy k1"),
    ("RADIAL_FISHEYE", "f cx cy k1 k2"),
    ("THIN_PRISM_FISHEYE", "fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1"),
    ("RAD_TAN_THIN_PRISM_FISHEYE", "fx fy cx cy k0 k1 k2 k3 k4 k5 p0 p1 s0 s1 s2 s3"),
)
"""COLMAP's camera models by their number, with the names of their parameters (src/colmap/sensor/models.h)."""


def _colmap(source: Path, size: tuple[int, int] | None, bent: bool) -> Track:
    """Pictures in the order of their numbered names; those that were not placed have no row at all."""
    folder = _model_in(source if source.is_dir() else source.parent)
    if folder is None:
        raise FormatError("got no model; wanted images and cameras, .bin or .txt, here or in sparse/0")
    text = (folder / "images.txt").is_file() and (folder / "cameras.txt").is_file()
    cameras = _colmap_cameras_text(folder) if text else _colmap_cameras_binary(folder)
    images = sorted(
        _colmap_images_text(folder) if text else _colmap_images_binary(folder),
        key=lambda row: in_order(row[2]),
    )
    if not images:
        raise FormatError("got a model without pictures; wanted at least one")
    rows = []
    for _, camera, name in images:
        if camera not in cameras:
            raise FormatError(f"got {name} with the camera {camera}, which is not among the cameras")
        model, width, _, given = cameras[camera]
        own = dict(zip(dict(MODELS)[model].split(), given, strict=True))
        fx = own.get("fx", own.get("f", 0.0))
        rows.append([fx, own.get("fy", fx), own["cx"], own["cy"]])
        if model.endswith("FISHEYE") or model == "FOV":
            raise FormatError(
                f"got the camera model {model}; wanted a pinhole: `colmap image_undistorter` makes one"
            )
        _check_lens({name: own.get(name, 0.0) for name in LENS}, rows[-1], width, bent)
    used = {(cameras[camera][2], cameras[camera][1]) for _, camera, _ in images}
    w2c = np.array([pose for pose, _, _ in images])
    return Track(from_w2c(w2c), np.array(rows), _one_size(used), False, tuple(name for *_, name in images))


def _model_in(folder: Path) -> Path | None:
    for inner in (folder, folder / "sparse" / "0", folder / "sparse", folder / "0"):
        for suffix in (".txt", ".bin"):
            if (inner / f"images{suffix}").is_file() and (inner / f"cameras{suffix}").is_file():
                return inner
    return None


Camera = tuple[str, int, int, list[float]]
Image = tuple[Array, int, str]


def _camera(model: str, width: int, height: int, given: list[float]) -> Camera:
    names = dict(MODELS).get(model)
    if names is None:
        raise FormatError(
            f"got the camera model {model!r}; wanted one of {', '.join(name for name, _ in MODELS)}"
        )
    if len(given) != len(names.split()):
        raise FormatError(f"got {len(given)} parameters of {model}; wanted {names}")
    return model, _whole(width), _whole(height), [_real(value) for value in given]


def _colmap_cameras_text(folder: Path) -> dict[int, Camera]:
    rows = [line.split() for line in _lines(folder / "cameras.txt")]
    return {
        int(row[0]): _camera(row[1], int(row[2]), int(row[3]), [float(value) for value in row[4:]])
        for row in rows
        if row
    }


def _colmap_images_text(folder: Path) -> Iterator[Image]:
    """Behind each line of a picture stands one of points, which may be empty."""
    lines = _lines(folder / "images.txt")
    for line in lines:
        row = line.split(maxsplit=9)
        if not row:
            continue
        if len(row) != 10:
            raise FormatError(
                f"got a row of {len(row)} fields in images.txt; wanted ID QW QX QY QZ TX TY TZ CAMERA NAME"
            )
        yield _w2c(*(float(value) for value in row[1:8])), int(row[8]), row[9].strip()
        next(lines, None)


def _colmap_cameras_binary(folder: Path) -> dict[int, Camera]:
    found = {}
    with (folder / "cameras.bin").open("rb") as file:
        for _ in range(_count(file, 48)):
            number, model, width, height = _unpack(file, "<iiQQ")
            if not 0 <= model < len(MODELS):
                raise FormatError(
                    f"got the camera model {model} in cameras.bin; wanted 0 to {len(MODELS) - 1}"
                )
            name, parameters = MODELS[model]
            given = _unpack(file, f"<{len(parameters.split())}d")
            found[number] = _camera(name, width, height, list(given))
    return found


def _colmap_images_binary(folder: Path) -> Iterator[Image]:
    path = folder / "images.bin"
    total = path.stat().st_size
    with path.open("rb") as file:
        for _ in range(_count(file, 73)):
            _, *pose, camera = _unpack(file, "<i7di")
            name = bytearray()
            while (byte := file.read(1)) != b"\0":
                if not byte or len(name) > 4096:
                    raise FormatError("got images.bin with a name that does not end; copy it again")
                name += byte
            (points,) = _unpack(file, "<Q")
            if points * 24 > total - file.tell():
                raise FormatError("got images.bin that was cut off; copy it again")
            file.seek(points * 24, 1)
            yield _w2c(*pose), camera, name.decode(errors="replace")


def _count(file: BinaryIO, least: int) -> int:
    """How many entries a file declares, each of `least` bytes or more."""
    (count,) = _unpack(file, "<Q")
    here = file.tell()
    rest = file.seek(0, 2) - here
    file.seek(here)
    if count * least > rest + least:
        raise FormatError(f"got {count} entries declared in {rest} bytes; copy it again")
    return count


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    data = file.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise FormatError("got a file that was cut off; copy it again")
    return struct.unpack(layout, data)


def _w2c(qw: float, qx: float, qy: float, qz: float, tx: float, ty: float, tz: float) -> Array:
    return _pose([qx, qy, qz, qw], [tx, ty, tz])


# ---- RealEstate10K


def _realestate10k(source: Path, size: tuple[int, int] | None, bent: bool) -> Track:
    """Rows: time in microseconds, fx fy cx cy in widths and heights, k1 k2, world-to-camera (3, 4)."""
    if size is None:
        raise FormatError("got intrinsics in image widths; wanted the video that they belong to")
    rows = []
    for number, line in enumerate(_lines(source)):
        fields = line.split()
        if len(fields) == 1 and not rows:
            continue  # the address of the film
        if not fields:
            continue
        if len(fields) != 19:
            raise FormatError(
                f"got {len(fields)} fields in line {number + 1}; wanted 19: time, 6 of the lens, 12"
            )
        rows.append([float(field) for field in fields])
    if not rows:
        raise FormatError("got no rows; wanted one per frame")
    table = np.array(rows)
    if (np.diff(table[:, 0]) <= 0).any():
        first = int(np.argmax(np.diff(table[:, 0]) <= 0)) + 1
        raise FormatError(f"got times that do not rise at row {first}; wanted the rows in their order")
    w2c = np.tile(np.eye(4), (len(table), 1, 1))
    w2c[:, :3] = table[:, 7:].reshape(-1, 3, 4)
    height, width = size
    intrinsics = table[:, 1:5] * [width, height, width, height]
    for row, lens in zip(intrinsics, table[:, 5:7], strict=True):
        _check_lens({"k1": lens[0], "k2": lens[1]}, row, width, bent)
    return Track(from_w2c(w2c), intrinsics, size, False, ("",) * len(table))


# ---- phones


def _record3d(source: Path, size: tuple[int, int] | None, bent: bool) -> Track:
    """K is stored column by column; poses are quaternions x y z w and positions."""
    fields = _record3d_metadata(source)
    poses = np.array(fields["poses"], np.float64)
    if poses.ndim != 2 or poses.shape[1] != 7 or not np.isfinite(poses).all():
        raise FormatError(f"got poses of shape {poses.shape}; wanted (F, 7): qx qy qz qw px py pz")
    c2w = np.array([_pose(row[:4], row[4:]) for row in poses])
    if "perFrameIntrinsicCoeffs" in fields:
        intrinsics = np.array(fields["perFrameIntrinsicCoeffs"], np.float64)[:, :4]
    else:
        matrix = np.array(fields["K"], np.float64).reshape(3, 3).T
        intrinsics = np.tile(matrix[[0, 1, 0, 1], [0, 1, 2, 2]], (len(c2w), 1))
    if len(intrinsics) != len(c2w):
        raise FormatError(f"got {len(intrinsics)} intrinsics for {len(c2w)} poses; wanted one per pose")
    return Track(
        from_opengl(c2w), intrinsics, (_whole(fields["h"]), _whole(fields["w"])), True, ("",) * len(c2w)
    )


def _record3d_metadata(source: Path) -> Any:
    if source.is_dir():
        source = next(
            (f for n in ("metadata.json", "metadata") if (f := source / n).is_file()), source / "metadata"
        )
    if source.suffix != ".r3d":
        return _read_json(source)
    with zipfile.ZipFile(source) as archive:
        info = archive.getinfo("metadata")
        if info.file_size > MAX_BYTES:
            raise FormatError(f"got metadata of more than {MAX_BYTES >> 20} MiB")
        return json.loads(archive.read(info))


ARKIT_POSES = ("transform", "cameraTransform", "camera_transform", "cameraPoseARFrame")


def _arkit_pose(frame: dict[str, Any]) -> str | None:
    return next((name for name in ARKIT_POSES if name in frame and "intrinsics" in frame), None)


def _arkit(source: Path, size: tuple[int, int] | None, bent: bool) -> Track:
    """Matrices as rows or, as simd stores them, as columns: the translation shows which."""
    fields = _read_json(source)
    frames = fields if isinstance(fields, list) else fields["frames"]
    if not frames:
        raise FormatError("got no frames; wanted at least one")
    names = [_arkit_pose(frame) for frame in frames]
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
    return Track(from_opengl(c2w), intrinsics, _one_size(sizes), True, ("",) * len(frames))


def _arkit_size(frame: dict[str, Any], fields: Any, size: tuple[int, int] | None) -> tuple[int, int]:
    own = (fields if isinstance(fields, dict) else {}) | frame
    for name in ("imageResolution", "image_resolution"):
        if name in own:
            width, height = own[name]
            return _whole(height), _whole(width)
    if "width" in own and "height" in own:
        return _whole(own["height"]), _whole(own["width"])
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


# ---- what all share

LENS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")


def bend(lens: dict[str, float], intrinsics: Any, width: int) -> float:
    """By how much of the width a lens (OpenCV's model) shifts the corner that it shifts most."""
    fx, fy, cx, cy = (float(value) for value in intrinsics)
    k1, k2, k3, k4, k5, k6, p1, p2 = (lens.get(name, 0.0) for name in LENS)
    x, y = max(cx, width - cx) / fx, cy / fy
    r2 = x * x + y * y
    above, below = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)), 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
    if below == 0:
        return float("inf")
    dx = x * (above / below - 1) + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    dy = y * (above / below - 1) + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)
    return max(abs(dx * fx), abs(dy * fy)) / width


def _check_lens(lens: dict[str, float], intrinsics: Any, width: int, bent: bool) -> None:
    if bent or not any(lens.values()):
        return
    if not (float(intrinsics[0]) > 0 and float(intrinsics[1]) > 0 and width > 0):
        raise FormatError(f"got focal lengths {intrinsics[0]:g}, {intrinsics[1]:g}; wanted positive ones")
    if not (share := bend(lens, intrinsics, width)) <= MAX_BEND:
        raise FormatError(
            f"got a lens that shifts the corners by {share:.1%} of the width; wanted a pinhole: undistort "
            "the pictures (`colmap image_undistorter`), or --ignore-distortion to take it for one"
        )


def in_order(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbered names by their numbers: frame2 before frame10."""
    parts = re.split(r"(\d{1,18})", name)
    return [
        (0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in parts if part
    ]


def _pose(quaternion: Any, position: Any) -> Array:
    """(4, 4) from a quaternion x y z w and a position."""
    if not np.isfinite([*quaternion, *position]).all() or not 0.9 < np.linalg.norm(quaternion) < 1.1:
        raise FormatError(f"got the quaternion {list(quaternion)}; wanted four numbers of length 1")
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_quat(quaternion).as_matrix(), position
    return pose


def _matrix(values: Any) -> Array:
    """(4, 4) of rows; a last row that is left out is added."""
    matrix = np.array(values, np.float64)
    return np.concatenate([matrix, [[0, 0, 0, 1]]]) if matrix.shape == (3, 4) else matrix


def _one_size(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    if len(sizes) != 1:
        raise FormatError(f"got pictures of {len(sizes)} sizes; wanted one video of one size")
    return sizes.pop()


def _whole(value: Any) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value != value // 1
        or not 1 <= value <= 2**16
    ):
        raise FormatError(f"got the side {str(value)[:40]} of a picture; wanted a whole number of pixels")
    return int(value)


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(float(value)):
        raise FormatError(f"got {str(value)[:40]!r} in the intrinsics; wanted a number")
    return float(value)


def _positive(value: Any, name: str) -> float:
    if (number := _real(value)) <= 0:
        raise FormatError(f"got {name} {number:g}; wanted more than 0")
    return number


def _read_json(path: Path) -> Any:
    if path.stat().st_size > MAX_BYTES:
        raise FormatError(f"got {path.name} of more than {MAX_BYTES >> 20} MiB")
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> Iterator[str]:
    """Lines without comments, each of bounded length."""
    with path.open(encoding="utf-8", errors="replace") as file:
        while line := file.readline(MAX_BYTES):
            if not line.startswith("#"):
                yield line


def _in_one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:400]


FORMATS: dict[str, Callable[[Path, tuple[int, int] | None, bool], Track]] = {
    "nerfstudio": _nerfstudio,
    "colmap": _colmap,
    "realestate10k": _realestate10k,
    "record3d": _record3d,
    "arkit": _arkit,
}
"""What can be read, by the name that `--from` takes."""
