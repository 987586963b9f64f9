"""What the readers share: the result, what is wrong with a file, and fields that are checked one by one."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from sana_wm_env.camera import Array

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


class FormatError(ValueError):
    """What is wrong with a file of another tool; says what was got and what was wanted."""


LENS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
"""Distortion parameters of OpenCV's model."""


def measure_bend(lens: dict[str, float], intrinsics: Any, width: int) -> float:
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


def check_lens(lens: dict[str, float], intrinsics: Any, width: int, bent: bool) -> None:
    """FormatError for a lens that no pinhole is, unless `bent` says to take it for one."""
    if bent or not any(lens.values()):
        return
    if not (float(intrinsics[0]) > 0 and float(intrinsics[1]) > 0 and width > 0):
        raise FormatError(f"got focal lengths {intrinsics[0]:g}, {intrinsics[1]:g}; wanted positive ones")
    if not (share := measure_bend(lens, intrinsics, width)) <= MAX_BEND:
        raise FormatError(
            f"got a lens that shifts the corners by {share:.1%} of the width; wanted a pinhole: undistort "
            "the pictures (`colmap image_undistorter`), or --ignore-distortion to take it for one"
        )


def split_numbers(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbered names by their numbers: frame2 before frame10."""
    parts = re.split(r"(\d{1,18})", name)
    return [
        (0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in parts if part
    ]


def make_pose(quaternion: Any, position: Any) -> Array:
    """(4, 4) from a quaternion x y z w and a position."""
    if not np.isfinite([*quaternion, *position]).all() or not 0.9 < np.linalg.norm(quaternion) < 1.1:
        raise FormatError(f"got the quaternion {list(quaternion)}; wanted four numbers of length 1")
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_quat(quaternion).as_matrix(), position
    return pose


def make_matrix(values: Any) -> Array:
    """(4, 4) of rows; a last row that is left out is added."""
    matrix = np.array(values, np.float64)
    return np.concatenate([matrix, [[0, 0, 0, 1]]]) if matrix.shape == (3, 4) else matrix


def find_size(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    """The one (height, width) of all pictures."""
    if len(sizes) != 1:
        raise FormatError(f"got pictures of {len(sizes)} sizes; wanted one video of one size")
    return sizes.pop()


def parse_side(value: Any) -> int:
    """Height or width of a picture in pixels."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value != value // 1
        or not 1 <= value <= 2**16
    ):
        raise FormatError(f"got the side {str(value)[:40]} of a picture; wanted a whole number of pixels")
    return int(value)


def parse_number(value: Any) -> float:
    """A finite number of the intrinsics."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(float(value)):
        raise FormatError(f"got {str(value)[:40]!r} in the intrinsics; wanted a number")
    return float(value)


def parse_positive(value: Any, name: str) -> float:
    """A finite number above 0, called `name` in what is said of it."""
    if (number := parse_number(value)) <= 0:
        raise FormatError(f"got {name} {number:g}; wanted more than 0")
    return number


def read_json(path: Path) -> Any:
    """The content of a file of bounded size."""
    if path.stat().st_size > MAX_BYTES:
        raise FormatError(f"got {path.name} of more than {MAX_BYTES >> 20} MiB")
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> Iterator[str]:
    """Lines without comments, each of bounded length."""
    with path.open(encoding="utf-8", errors="replace") as file:
        while line := file.readline(MAX_BYTES):
            if not line.startswith("#"):
                yield line
