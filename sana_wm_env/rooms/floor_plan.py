"""A room from above with a camera's path in it, for videos that people look at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.spatial.transform import Rotation

from ..camera import Array
from . import FOCAL
from .room import Frames, Room
from .scene import ALCOVES, FLOOR

BACKGROUND, PATH, SEEN, CAMERA = (24, 24, 24), (255, 120, 60), (255, 255, 255, 70), (255, 60, 40)
MARGIN_M, VIEW_M = 0.3, 1.6


class FloorPlan(NamedTuple):
    """A room from above, in its own frame and metres.

    Attributes:
        air: (A, 2, 3) boxes that one can walk in, lowest and highest corner.
        solids: (S, 2, 3) furniture.
        colours: uint8 (S, 3) or longer, of the furniture.
        floor: uint8 (3,).
    """

    air: Array
    solids: Array
    colours: np.ndarray
    floor: np.ndarray


def read_plan(room: Room) -> FloorPlan:
    """Returns the boxes of a room and their colours."""
    air, solids = room.scenes.air[0].cpu().numpy(), room.scenes.solids[0].cpu().numpy()
    colours = (255 * room.scenes.materials[0, :, :3].cpu().numpy()).clip(0, 255).astype(np.uint8)
    air, solids = (boxes[np.abs(boxes).max((1, 2)) < 100] for boxes in (air, solids))  # others are unused
    return FloorPlan(air, solids, colours[3 + ALCOVES :], colours[FLOOR])


def draw_floor_plan(room: Room, c2w: Array, size: int) -> Frames:
    """A plan for each frame: the room with its furniture, the way so far, and where the camera looks.

    Args:
        room: the room.
        c2w: (F, 4, 4) camera-to-world relative to the first camera, metres.
        size: height and width in pixels.

    Returns:
        uint8 (F, size, size, 3). Up is the room's +z; the field of view is the default one.
    """
    air, solids, colours, floor = read_plan(room)
    low, high = air.min((0, 1))[[0, 2]] - MARGIN_M, air.max((0, 1))[[0, 2]] + MARGIN_M
    scale = size / (high - low).max()
    shift = (size - scale * (high - low)) / 2

    def pixels(points: Array) -> list[tuple[float, float]]:  # (N, 3) -> x to the right, z up
        flat = shift + scale * (np.asarray(points)[:, [0, 2]] - low)
        return [(float(x), float(size - z)) for x, z in flat]

    def box(draw: ImageDraw.ImageDraw, corners: Array, colour: np.ndarray) -> None:
        (left, bottom), (right, top) = pixels(corners)
        draw.rectangle((left, top, right, bottom), fill=tuple(colour.tolist()))

    plan = Image.new("RGB", (size, size), BACKGROUND)
    draw = ImageDraw.Draw(plan)
    for corners in air:
        box(draw, corners, floor)
    for corners, colour in zip(solids, colours, strict=False):
        box(draw, corners, colour)
    poses = room.start @ c2w
    way, frames = pixels(poses[:, :3, 3]), []
    half = np.arctan(0.5 / FOCAL)
    sides = Rotation.from_rotvec(np.outer([-half, -half / 3, half / 3, half], [0, 1, 0])).apply(
        [0, 0, VIEW_M]
    )
    for i, pose in enumerate(poses):
        frame = plan.copy()
        over = ImageDraw.Draw(frame, "RGBA")
        view = pixels(pose[:3, 3] + sides @ pose[:3, :3].T)
        over.polygon([way[i], *view], fill=SEEN)
        if i:
            over.line(way[: i + 1], fill=PATH, width=max(2, size // 90))
        x, y = way[i]
        radius = size / 50
        over.ellipse((x - radius, y - radius, x + radius, y + radius), fill=CAMERA)
        frames.append(np.asarray(frame))
    return np.stack(frames)
