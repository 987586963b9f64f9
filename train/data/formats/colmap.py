"""COLMAP's models, as text and in binary."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sana_wm_env.camera import Array, from_w2c

from .fields import (
    LENS,
    FormatError,
    Track,
    check_lens,
    find_size,
    make_pose,
    parse_number,
    parse_side,
    read_lines,
    split_numbers,
)

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


def read_colmap(source: Path, size: tuple[int, int] | None, bent: bool) -> Track:
    """Pictures in the order of their numbered names; those that were not placed have no row at all."""
    folder = find_model(source if source.is_dir() else source.parent)
    if folder is None:
        raise FormatError("got no model; wanted images and cameras, .bin or .txt, here or in sparse/0")
    text = (folder / "images.txt").is_file() and (folder / "cameras.txt").is_file()
    cameras = _cameras_text(folder) if text else _cameras_binary(folder)
    images = sorted(
        _images_text(folder) if text else _images_binary(folder),
        key=lambda row: split_numbers(row[2]),
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
        check_lens({name: own.get(name, 0.0) for name in LENS}, rows[-1], width, bent)
    used = {(cameras[camera][2], cameras[camera][1]) for _, camera, _ in images}
    w2c = np.array([pose for pose, _, _ in images])
    return Track(from_w2c(w2c), np.array(rows), find_size(used), False, tuple(name for *_, name in images))


def find_model(folder: Path) -> Path | None:
    """The folder of a model, this one or one of those that COLMAP makes in it; None without one."""
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
    return model, parse_side(width), parse_side(height), [parse_number(value) for value in given]


def _cameras_text(folder: Path) -> dict[int, Camera]:
    rows = [line.split() for line in read_lines(folder / "cameras.txt")]
    return {
        int(row[0]): _camera(row[1], int(row[2]), int(row[3]), [float(value) for value in row[4:]])
        for row in rows
        if row
    }


def _images_text(folder: Path) -> Iterator[Image]:
    """Behind each line of a picture stands one of points, which may be empty."""
    lines = read_lines(folder / "images.txt")
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


def _cameras_binary(folder: Path) -> dict[int, Camera]:
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


def _images_binary(folder: Path) -> Iterator[Image]:
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
    return make_pose([qx, qy, qz, qw], [tx, ty, tz])
