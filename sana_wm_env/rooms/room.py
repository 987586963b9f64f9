"""One room: where the camera first stands in it, what it shows, and what stands in the way. Nothing writes to
a room.

Which rooms there are: at home (`HOME`), where the bundled world was trained most; held out (`HELD_OUT` and
above), which no training sees.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..camera import Array
from . import HELD_OUT, HOME
from .paths import LOOK_FRAMES, clear, look_around, sample_starts
from .render import render
from .scene import Scenes, sample_scenes

Frames = NDArray[np.uint8]


class Room(NamedTuple):
    """One room and where the camera stood first: (4, 4) float64 camera-to-world in the room's own frame. It
    follows from the numbers seed and place, see `open_room`.
    """

    scenes: Scenes
    start: Array
    seed: int
    place: int | None

    @property
    def caption(self) -> str:
        return self.scenes.captions[0]


@lru_cache(maxsize=64)
def open_room(seed: int, device: str = "cpu", place: int | None = None) -> Room:
    """The room that `seed` stands for, and the camera's first place in it: the one that `place` draws, or the
    room's own.
    """
    scenes = sample_scenes([seed], device)
    start = sample_starts(scenes, [seed if place is None else place])[0].cpu().numpy()
    return Room(scenes, start, seed, place)


def choose_room(
    draw: int, wish: int | str | None = None, scene_seed: int | None = None, device: str = "cpu"
) -> Room:
    """Chooses the room of an episode, from any draw.

    Args:
        draw: what the environment's generator drew, 0 or more.
        wish: number of a home room, "held-out" for one that training never saw, None for any home room.
        scene_seed: the very room, in place of a wish; the camera then stands where the room has it.
        device: where it is rendered.

    Home rooms open at a place that no training clip began at.
    """
    if scene_seed is not None:
        return open_room(scene_seed, device)
    if wish == "held-out":
        return open_room(held_out_room(draw), device)
    number = int(wish) if wish is not None else draw % len(HOME)
    return open_room(HOME[number], device, held_out_room(draw // len(HOME)))


def held_out_room(draw: int) -> int:
    """Turns any draw into the seed of a room that no training has seen."""
    return HELD_OUT + draw % HELD_OUT


def stands_clear(room: Room, c2w: Array) -> NDArray[np.bool_]:
    """Checks whether the camera may stand at poses (F, 4, 4) relative to the first camera: (F,)."""
    return clear(room.scenes, torch.from_numpy((room.start @ c2w)[None, :, :3, 3]))[0].cpu().numpy()


def look(room: Room, c2w: Array, intrinsics_px: Array, size: tuple[int, int]) -> Frames:
    """Renders exact pictures uint8 (F, H, W, 3) from poses (F, 4, 4) relative to the first camera."""
    poses = torch.from_numpy(room.start @ c2w)[None]
    intrinsics = torch.as_tensor(intrinsics_px, dtype=torch.float32, device="cpu")
    return render(room.scenes, poses.to(room.scenes.device), intrinsics, size).rgb[0].cpu().numpy()


def see_all_around(room: Room, intrinsics_px: Array, size: tuple[int, int]) -> tuple[Frames, Array]:
    """The frames of `paths.look_around`, uint8 (F, H, W, 3), and their poses (F, 4, 4) relative to the first
    camera.
    """
    start = torch.from_numpy(room.start)
    c2w = (torch.linalg.inv(start) @ look_around(start[None])[0]).numpy()
    return look(room, c2w[::LOOK_FRAMES], intrinsics_px, size).repeat(LOOK_FRAMES, 0), c2w


def stop_at_walls(room: Room, before: Array, c2w: Array) -> Array:
    """Poses (F, 4, 4) whose translation stays at the last clear place, from the first frame on that would
    enter something solid.

    Args:
        room: the room.
        before: (4, 4) the pose ahead of the first frame, taken to be clear.
        c2w: (F, 4, 4) the wish.
    """
    free = stands_clear(room, c2w)
    if free.all():
        return c2w
    hit = int(free.argmin())
    stopped = c2w.copy()
    stopped[hit:, :3, 3] = (c2w[hit - 1] if hit else before)[:3, 3]
    return stopped
