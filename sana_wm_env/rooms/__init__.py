"""Rooms: a procedural indoor world with an exact renderer. It is the training data, the truth and an
environment.

World frame of a room: OpenCV axes (+x right, +y down, +z into the room), metres, origin on the floor in the
middle of the room, so the floor is the plane y = 0 and the ceiling lies at y = -height. Everything follows
from one integer seed per room.
"""

from typing import Any, TypeGuard

import numpy as np

HELD_OUT = 2**31
"""First seed of the held-out rooms: training draws seeds below it, evaluation and the environment draw seeds
from it on.
"""

HOME = (
    *(2, 5, 9, 10, 12, 13, 14, 15, 19, 20, 21, 23, 25, 27, 28, 30, 32, 33, 38, 45, 46, 47, 48, 49),
    *(50, 51, 53, 55, 57, 58, 60, 61, 69, 72, 74, 77, 84, 93, 94, 99, 109, 110, 111, 112, 118, 119, 121, 123),
)  # fmt: skip
"""Seeds of the home rooms, which the bundled world was trained in most: the first 48 with four pieces of
furniture or more and an alcove.
"""

FOCAL = 0.65
"""Default focal length as a share of the image width (a horizontal field of view of 75 degrees)."""


def default_intrinsics(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Pinhole intrinsics (fx, fy, cx, cy) in pixels of a (height, width) image: 75 degrees wide, centred,
    square pixels.
    """
    height, width = size
    return FOCAL * width, FOCAL * width, width / 2, height / 2


def check_room_option(room: Any) -> int | str | None:
    """Checks the option `room` of a reset. Raises ValueError for what is no wish of `choose_room`."""
    drawn = room is None or (isinstance(room, str) and room == "held-out")
    if not drawn and not (is_whole(room) and 0 <= room < len(HOME)):
        raise ValueError(
            f"got room={room!r}; wanted a home room from 0 to {len(HOME) - 1}, or 'held-out' for one that "
            "training never saw"
        )
    return room


def is_whole(value: Any) -> TypeGuard[int]:
    """Returns True for a whole number that is not a bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
