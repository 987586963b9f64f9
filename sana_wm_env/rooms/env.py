"""The exact renderer behind the spaces of the world model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from ..base import CameraEnv
from ..camera import Array, check_intrinsics
from ..episode import Episode, Seeds
from ..observations import Frames
from ..tasks import Moment, Task
from . import default_intrinsics
from .paths import MAX_ROTATION_RAD, MAX_TRANSLATION_M
from .room import Room, check_room_option, choose_room, is_whole, look, stands_clear, stop_at_walls


class Wish(NamedTuple):
    """What the options of a reset ask for: a room by seed, or by `choose_room`'s wish; intrinsics (4,) in pixels."""

    scene_seed: int | None
    room: int | str | None
    intrinsics_px: Array


class RoomsEnv(CameraEnv, gym.utils.EzPickle):
    """A camera in a procedural room, rendered exactly.

    ## Description

    The truth beside `SanaWM-v0`, with the very same spaces, `info` and meaning of an
    action. With the same seed both start from the same first frame of the same room, so the same actions show what the world model
    should have imagined.

    Every room follows from one integer. There are 48 home rooms, which the bundled world was trained in most, and rooms without end.

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

    One of 48 home rooms and a place in it, drawn by the environment's own generator. `reset(options=...)` takes

    | Option       | Type             | Meaning                                                                         |
    |--------------|------------------|---------------------------------------------------------------------------------|
    | `room`       | int or str       | a home room, 0 to 47; `"held-out"` draws one that training never saw             |
    | `scene_seed` | int              | any room, from 0; from `sana_wm_env.rooms.HELD_OUT` on it is unknown to training |
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

    reset_options = ("room", "scene_seed", "intrinsics")
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

    def _prepare(self, options: dict[str, Any]) -> Wish:
        intrinsics = check_intrinsics(options.get("intrinsics", default_intrinsics(self.image_size)), self.image_size)
        seed, room = options.get("scene_seed"), check_room_option(options.get("room"))
        if seed is not None and room is not None:
            raise ValueError(f"got both scene_seed={seed!r} and room={room!r}; wanted one of them")
        if seed is not None and not (is_whole(seed) and seed >= 0):
            raise ValueError(f"got scene_seed={seed!r}; wanted a whole number from 0")
        return Wish(seed, room, intrinsics)

    def _start(self, prepared: Wish, seeds: Seeds) -> tuple[Frames, Array, Room]:
        room, intrinsics = self._room(prepared, seeds), prepared.intrinsics_px
        return look(room, np.eye(4)[None], intrinsics, self.image_size)[0], intrinsics, room

    def advance(self, episode: Episode, c2w: Array) -> tuple[Frames, Array, Room]:
        """Exact frames along c2w (24, 4, 4) as far as walls allow, the poses they really have, and the room. Changes nothing."""
        room: Room = episode.state
        c2w = stop_at_walls(room, episode.c2w, c2w)
        return look(room, c2w, episode.intrinsics_px, self.image_size), c2w, room

    def _is_clear(self, prepared: Wish, seeds: Seeds, c2w: Array) -> NDArray[np.bool_]:
        return stands_clear(self._room(prepared, seeds), c2w)

    def _room(self, prepared: Wish, seeds: Seeds) -> Room:
        return choose_room(seeds.room, prepared.room, prepared.scene_seed, self.device)
