"""nerfstudio's transforms.json."""

from pathlib import Path
from typing import Any

import numpy as np

from sana_wm_env.camera import from_opengl

from .fields import (
    LENS,
    FormatError,
    Track,
    check_lens,
    find_size,
    make_matrix,
    parse_number,
    parse_positive,
    parse_side,
    read_json,
    split_numbers,
)


def read_nerfstudio(source: Path, size: tuple[int, int] | None, bent: bool) -> Track:
    """Frames in the order of their numbered names. `applied_scale` is undone; `applied_transform` turns
    the world alone, so it changes no path.
    """
    fields = read_json(source / "transforms.json" if source.is_dir() else source)
    frames = fields["frames"]
    if not frames:
        raise FormatError("got no frames; wanted at least one")
    frames = sorted(frames, key=lambda frame: split_numbers(str(frame.get("file_path", ""))))
    if size is None and not ("w" in fields or "w" in frames[0]):
        raise FormatError("got no w and h; wanted the size of the pictures")
    rows, sizes = [], set()
    for frame in frames:
        own = fields | {name: value for name, value in frame.items() if name != "transform_matrix"}
        model = own.get("camera_model", "OPENCV")
        if model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE"):
            raise FormatError(f"got the camera model {model}; wanted a pinhole: undistort the pictures first")
        height, width = (size or (0, 0)) if "w" not in own else (parse_side(own["h"]), parse_side(own["w"]))
        sizes.add((height, width))
        rows.append(_camera(own, height, width))
        check_lens({name: parse_number(own.get(name, 0)) for name in LENS}, rows[-1], width, bent)
    c2w = np.array([make_matrix(frame["transform_matrix"]) for frame in frames])
    c2w[:, :3, 3] /= parse_positive(fields.get("applied_scale", 1.0), "applied_scale")
    names = tuple(str(frame.get("file_path", "")) for frame in frames)
    return Track(from_opengl(c2w), np.array(rows), find_size(sizes), False, names)


def _camera(own: dict[str, Any], height: int, width: int) -> list[float]:
    if "fl_x" in own:
        fx = parse_number(own["fl_x"])
        fy = parse_number(own.get("fl_y", fx))
    elif "camera_angle_x" in own:
        fx = width / 2 / np.tan(parse_number(own["camera_angle_x"]) / 2)
        angle = own.get("camera_angle_y")
        fy = fx if angle is None else height / 2 / np.tan(parse_number(angle) / 2)
    else:
        raise FormatError("got neither fl_x nor camera_angle_x; wanted one")
    return [fx, fy, parse_number(own.get("cx", width / 2)), parse_number(own.get("cy", height / 2))]
