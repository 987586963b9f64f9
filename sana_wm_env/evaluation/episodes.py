"""What worlds are measured on: rooms, and a path through each, decided before anything is imagined.

Letters: N episodes, K chunks of 24 frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sana_wm_env.model.protocol import World
from sana_wm_env.model.state import WorldState

from ..rooms import HELD_OUT, HOME
from ..rooms.paths import LOOK_FRAMES, look_around, sample_starts, sample_twists, twist_paths
from ..rooms.render import render
from ..rooms.scene import Scenes, sample_scenes

Rooms = Literal["home", "held-out"]
MOST_EPISODES, MOST_CHUNKS = 10_000, 4000


@dataclass(frozen=True)
class Episodes:
    """N episodes.

    Attributes:
        seeds: N seeds, which draw the paths; those of held-out rooms are those of the rooms.
        scenes: N rooms.
        path: (N, 1 + 24K, 4, 4) camera-to-world in each room's frame.
        drives: "world", "shuffled" (the next episode's) and "reversed" (each motion inverted), or those of
            interest: the poses that the model is given, (N, K, 24, 4, 4) relative to the first frame.
        home: whether these are home rooms.
    """

    seeds: list[int]
    scenes: Scenes
    path: Tensor
    drives: dict[str, Tensor]
    home: bool = False

    def __getitem__(self, index: slice) -> Episodes:
        return Episodes(
            self.seeds[index],
            self.scenes[index],
            self.path[index],
            {name: drive[index] for name, drive in self.drives.items()},
            self.home,
        )


def draw_episodes(
    count: int, chunks: int, seed: int, rooms: Rooms = "held-out", device: str | torch.device = "cpu"
) -> Episodes:
    """Draws `count` rooms with a path of `chunks` chunks through each.

    Args:
        count: episodes, at least 2: one drives the other in the control "shuffled".
        chunks: of 24 frames.
        seed: number of the first room; the others count up.
        rooms: "held-out" for rooms that training never saw; "home" for home rooms, on paths that it never
            saw.
        device: where the rooms are rendered.
    """
    if count > MOST_EPISODES or chunks > MOST_CHUNKS:
        raise ValueError(
            f"got episodes={count}, chunks={chunks}; wanted at most {MOST_EPISODES} episodes and "
            f"{MOST_CHUNKS} chunks: all paths are held at once"
        )
    if count < 2 or chunks < 1 or seed < 0:
        raise ValueError(
            f"got episodes={count}, chunks={chunks}, seed={seed}; wanted at least 2 episodes (one drives the "
            "other in the control "
            "'shuffled'), at least 1 chunk and a seed of 0 or more"
        )
    seeds = [HELD_OUT + seed + i for i in range(count)]
    scenes = sample_scenes(
        seeds if rooms == "held-out" else [HOME[(seed + i) % len(HOME)] for i in range(count)], device
    )
    starts = sample_starts(scenes, seeds)
    twists = sample_twists(scenes, starts, seeds, chunks)
    origin = torch.eye(4, dtype=torch.float64, device=starts.device).expand(count, 4, 4)
    driven = {"world": twists, "shuffled": twists.roll(-1, 0), "reversed": -twists}
    drives = {name: twist_paths(origin, t)[:, 1:].unflatten(1, (chunks, -1)) for name, t in driven.items()}
    return Episodes(seeds, scenes, twist_paths(starts, twists), drives, rooms == "home")


def open_sessions(
    world: World, episodes: Episodes, starts: Tensor, pictures: Tensor, intrinsics: Tensor
) -> WorldState:
    """Opens a session per episode as an environment does: a world that looks around at home has done so.

    Args:
        world: what will imagine.
        episodes: B of them, of which this takes rooms, captions and the seeds of the noise.
        starts: (B, 4, 4) where the cameras stand, in each room's frame.
        pictures: uint8 (B, H, W, 3) what they see there.
        intrinsics: (4,) in pixels of those.
    """
    scenes, intrinsics = episodes.scenes, intrinsics.expand(len(pictures), 4)
    generators = [torch.Generator().manual_seed(seed) for seed in episodes.seeds]
    state = world.start(pictures, intrinsics, scenes.captions, generators)
    if not episodes.home or not world.config.looks_around:
        return state
    path = look_around(starts)
    frames = render(scenes, path[:, ::LOOK_FRAMES], intrinsics, world.config.image_size).rgb
    return world.observe(
        state, frames.repeat_interleave(LOOK_FRAMES, 1), torch.linalg.inv(starts.double())[:, None] @ path
    )


def check_rooms(rooms: tuple[Rooms, ...]) -> None:
    """Raises ValueError for no kind of rooms, or one given twice."""
    if not rooms or len(set(rooms)) < len(rooms):
        raise ValueError(f"got --rooms {' '.join(rooms) or '(nothing)'}; wanted home, held-out, or both")


def label_rooms(rooms: Rooms, seed: int, count: int) -> list[str]:
    """Names of the first `count` rooms of `draw_episodes`, for pictures."""
    return [f"home {(seed + i) % len(HOME)}" if rooms == "home" else f"room {seed + i}" for i in range(count)]


def spread_evenly(chunks: int, most: int) -> list[int]:
    """Returns at most `most` chunk indices, evenly spread from the first to the last."""
    return sorted({round(i) for i in np.linspace(0, chunks - 1, min(chunks, most))})
