"""The exact renderer behind the spaces of the world model."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from ..base import CameraEnv, Episode, Frames, Seeds
from ..camera import Array, check_intrinsics
from ..tasks import Moment, Task
from . import HELD_OUT, default_intrinsics
from .paths import MAX_ROTATION_RAD, MAX_TRANSLATION_M, clear, sample_starts
from .render import render
from .scene import Scenes, sample_scenes


class Room(NamedTuple):
    """One room and where the camera stood first: (4, 4) float64 camera-to-world in the room's own frame."""

    scenes: Scenes
    start: Array

    @property
    def caption(self) -> str:
        return self.scenes.captions[0]


@lru_cache(maxsize=64)
def open_room(seed: int, device: str = "cpu") -> Room:
    """The room that `seed` stands for, and the camera's first place in it. Kept for a while: nothing writes to a room."""
    scenes = sample_scenes([seed], device)
    return Room(scenes, sample_starts(scenes, [seed])[0].cpu().numpy())


def held_out_room(draw: int) -> int:
    """Turns any draw into the seed of a room that no training has seen."""
    return HELD_OUT + draw % HELD_OUT


def stands_clear(room: Room, c2w: Array) -> NDArray[np.bool_]:
    """Whether the camera may stand at poses (F, 4, 4) relative to the first camera: (F,)."""
    return clear(room.scenes, torch.from_numpy((room.start @ c2w)[None, :, :3, 3]))[0].cpu().numpy()


def look(room: Room, c2w: Array, intrinsics_px: Array, size: tuple[int, int]) -> Frames:
    """Exact pictures uint8 (F, H, W, 3) from poses (F, 4, 4) relative to the first camera."""
    poses = torch.from_numpy(room.start @ c2w)[None]
    intrinsics = torch.as_tensor(intrinsics_px, dtype=torch.float32)
    return render(room.scenes, poses.to(room.scenes.device), intrinsics, size).rgb[0].cpu().numpy()


class RoomsEnv(CameraEnv, gym.utils.EzPickle):
    """A camera in a procedural room, rendered exactly.

    ## Description

    The truth beside `SanaWM-v0`, with the very same spaces, `info` and meaning of an
    action. With the same seed both start from the same first frame of the same room, so the same actions show what the world model
    should have imagined.

    Every room follows from one integer. Rooms drawn here lie outside the range that training draws from.

    ## Action Space

    As in `SanaWM-v0`: `Box(-1, 1, (6,), float32)`, the body twist of one chunk of 24 frames (1.5 s). With `action_mode="per_latent"`
    (18,), three twists of 8 frames; with `action_mode="per_frame"` (144,), one for each frame; at the same largest speed.

    | Num | Action                               | Min               | Max              |
    |-----|--------------------------------------|-------------------|------------------|
    | 0-2 | move right, down, forward            | -max_translation_m | max_translation_m |
    | 3-5 | look up, turn right, roll clockwise  | -max_rotation_rad | max_rotation_rad |

    Unlike the imagined camera this one meets walls: where the next frame would come within 0.35 m of something solid, it stays where
    it was for the rest of the chunk and only goes on turning. `info["c2w"]` tells where it really was.

    ## Observation Space

    As in `SanaWM-v0`: `uint8 (24, H, W, 3)`, or `(H, W, 3)` with `obs_mode="last"`, or with `obs_mode="dict"` a `Dict` of `image`, `pose`,
    `intrinsics`, and what the task adds.

    ## Rewards

    From the task, as in `SanaWM-v0`: "free" gives 0.0 at every step, `SanaWM-RoomsGoal-v0` has the task "goal", `SanaWM-RoomsFollow-v0`
    "follow". With the same seed the goal lies at the same place in both worlds; the goal image is exact here.

    ## Starting State

    A room and a place in it, drawn by the environment's own generator. `reset(options=...)` takes

    | Option       | Type             | Meaning                                                                         |
    |--------------|------------------|---------------------------------------------------------------------------------|
    | `scene_seed` | int              | the room, from 0; from `sana_wm_env.rooms.HELD_OUT` on it is unknown to training |
    | `intrinsics` | (4,) or (3, 3)   | fx, fy, cx, cy in pixels of the observed frames; 75 degrees wide by default     |

    ## Episode End

    The task "goal" terminates on arrival; "free" and "follow" never do. `gymnasium.make` truncates after 40 chunks (one minute).

    ## Arguments

    | Parameter           | Type  | Default    | Description                                    |
    |---------------------|-------|------------|------------------------------------------------|
    | `image_size`        | pair  | `(64, 64)` | height and width in pixels, each at least 16   |
    | `obs_mode`          | str   | `"chunk"`  | `"chunk"`, `"last"` or `"dict"`                |
    | `render_mode`       | str   | `None`     | `"rgb_array"` or `"rgb_array_list"`            |
    | `max_translation_m` | float | `0.6`      | metres per chunk that an action of 1 stands for |
    | `max_rotation_rad`  | float | `0.3`      | radians per chunk that an action of 1 stands for |
    | `device`            | str   | `"cpu"`    | where frames are rendered                      |
    | `action_mode`       | str   | `"chunk"`  | `"chunk"`, `"per_latent"` or `"per_frame"`     |
    | `task`              | str   | `"free"`   | `"free"`, `"goal"`, `"follow"`, or a `sana_wm_env.Task` of your own |
    | `reward_fn`         | function | `None`  | a `sana_wm_env.tasks.Moment` -> float, in place of a task |

    ## Vectorized Environment

    `gymnasium.make_vec("SanaWM-Rooms-v0", num_envs=4)` runs copies one after the other or in processes.

    ## Version History

    * v0: first version.

    ## Citation

    None: the rooms are part of this package.
    """

    reset_options = ("scene_seed", "intrinsics")
    refused_options = dict.fromkeys(("image", "prompt"), "this environment renders rooms and imagines nothing")

    def __init__(
        self,
        image_size: tuple[int, int] = (64, 64),
        obs_mode: str = "chunk",
        render_mode: str | None = None,
        max_translation_m: float = MAX_TRANSLATION_M,
        max_rotation_rad: float = MAX_ROTATION_RAD,
        device: str = "cpu",
        action_mode: str = "chunk",
        task: str | Task = "free",
        reward_fn: Callable[[Moment], float] | None = None,
    ):
        gym.utils.EzPickle.__init__(
            self, image_size, obs_mode, render_mode, max_translation_m, max_rotation_rad, device, action_mode, task, reward_fn
        )
        if len(image_size) != 2 or min(image_size) < 16:
            raise ValueError(f"got image_size={image_size}; wanted (height, width) of at least 16 pixels each")
        super().__init__(
            world="rooms (exact)",
            image_size=image_size,
            obs_mode=obs_mode,
            render_mode=render_mode,
            max_translation_m=max_translation_m,
            max_rotation_rad=max_rotation_rad,
            action_mode=action_mode,
            task=task,
            reward_fn=reward_fn,
        )
        self.device = device

    def _prepare(self, options: dict[str, Any]) -> tuple[int | None, Array]:
        seed = options.get("scene_seed")
        if seed is not None and not (isinstance(seed, int | np.integer) and seed >= 0):
            raise ValueError(f"got scene_seed={seed!r}; wanted a whole number from 0")
        intrinsics = options.get("intrinsics", default_intrinsics(self.image_size))
        return None if seed is None else int(seed), check_intrinsics(intrinsics, self.image_size)

    def _start(self, prepared: tuple[int | None, Array], seeds: Seeds) -> tuple[Frames, Array, Room]:
        room, intrinsics = self._room(prepared, seeds), prepared[1]
        return look(room, np.eye(4)[None], intrinsics, self.image_size)[0], intrinsics, room

    def _advance(self, episode: Episode, c2w: Array) -> tuple[Frames, Array, Room]:
        room: Room = episode.state
        c2w = stop_at_walls(room, episode.c2w, c2w)
        return look(room, c2w, episode.intrinsics_px, self.image_size), c2w, room

    def _is_clear(self, prepared: tuple[int | None, Array], seeds: Seeds, c2w: Array) -> NDArray[np.bool_]:
        return stands_clear(self._room(prepared, seeds), c2w)

    def _room(self, prepared: tuple[int | None, Array], seeds: Seeds) -> Room:
        return open_room(held_out_room(seeds.room) if prepared[0] is None else prepared[0], self.device)


def stop_at_walls(room: Room, before: Array, c2w: Array) -> Array:
    """Poses (F, 4, 4) whose translation stays at the last clear place, from the first frame on that would enter something solid.

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
