"""RealEstate10K's rows of cameras."""

from pathlib import Path

import numpy as np

from sana_wm_env.camera import from_w2c

from .fields import FormatError, Track, check_lens, read_lines


def read_realestate10k(source: Path, size: tuple[int, int] | None, bent: bool) -> Track:
    """Rows: time in microseconds, fx fy cx cy in widths and heights, k1 k2, world-to-camera (3, 4)."""
    if size is None:
        raise FormatError("got intrinsics in image widths; wanted the video that they belong to")
    rows = []
    for number, line in enumerate(read_lines(source)):
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
        check_lens({"k1": lens[0], "k2": lens[1]}, row, width, bent)
    return Track(from_w2c(w2c), intrinsics, size, False, ("",) * len(table))
