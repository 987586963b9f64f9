"""The exact renderer behind the spaces of the world model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base import CameraEnv, check_size
from ..base_vector import MOST_SLOTS, CameraVectorEnv
from ..camera import Array, check_intrinsics
from ..candidates import NOT_DECODED, Decode, Imagined, check_budget, play_candidates
from ..episode import Episode, Seeds
from ..machine import check_device
from ..numbers import to_flag, to_whole
from ..observations import Frames, Observation
from ..tasks import Moment, Task
from . import check_room_option, default_intrinsics
from .paths import MAX_ROTATION_RAD, MAX_TRANSLATION_M
from .room import Room, choose_room, look, open_room, stands_clear, stop_at_walls
from .state import RoomsState, check_is_rooms_state, check_rooms_state


class Wish(NamedTuple):
    """Wish in the options of a reset: a room by seed, or by `choose_room`'s wish; intrinsics (4,) in
    pixels.
    """

    scene_seed: int | None
    room: int | str | None
    intrinsics_px: Array


class RoomsEnv(CameraEnv):
    """A camera in a procedural room, rendered exactly.

    ## Description

    The truth beside `SanaWM-v0`, with the very same spaces, `info` and meaning of an action. With the same
    seed both start from the same first frame of the same room, so the same actions show what the world model
    should have imagined.

    Every room follows from one integer. There are 48 home rooms, which the bundled world was trained in most,
    and rooms without end.

    ## Action Space

    As in `SanaWM-v0`: `Box(-1, 1, (6,), float32)`, the body twist of one chunk of 24 frames (1.5 s). With
    `action_mode="per_latent"` (18,), three twists of 8 frames; with `action_mode="per_frame"` (144,), one for
    each frame; at the same largest speed.

    | Num | Action                               | Min               | Max              |
    |-----|--------------------------------------|-------------------|------------------|
    | 0-2 | move right, down, forward            | -max_translation_m | max_translation_m |
    | 3-5 | look up, turn right, roll clockwise  | -max_rotation_rad | max_rotation_rad |

    Unlike the imagined camera this one stops at walls: where the next frame would come within 0.35 m of
    something solid, it stays where it was for the rest of the chunk and only turns. `info["c2w"]` has its
    actual poses.

    ## Observation Space

    As in `SanaWM-v0`: `uint8 (24, H, W, 3)`, or `(H, W, 3)` with `obs_mode="last"`, or with `obs_mode="dict"`
    a `Dict` of `image`, `pose`, `intrinsics`, and what the task adds.

    ## Rewards

    From the task, as in `SanaWM-v0`: "free" gives 0.0 at every step, `SanaWM-RoomsGoal-v0` has the task
    "goal", `SanaWM-RoomsFollow-v0` "follow". With the same seed the goal lies at the same place in both
    worlds; the goal image is exact here.

    ## Starting State

    One of 48 home rooms and a place in it, drawn by the environment's own generator. `reset(options=...)`
    takes

    | Option       | Type             | Meaning                                                                         |
    |--------------|------------------|---------------------------------------------------------------------------------|
    | `room`       | int or str       | a home room, 0 to 47; `"held-out"` draws one that training never saw             |
    | `scene_seed` | int              | any room, from 0; from `sana_wm_env.rooms.HELD_OUT` on it is unknown to training |
    | `state`      | RoomsState       | a saved session, see `save_state`; no other option beside it                     |
    | `intrinsics` | (4,) or (3, 3)   | fx, fy, cx, cy in pixels of the observed frames; 75 degrees wide by default     |

    A reset with neither seed nor options begins like the one before, from the same picture, room and prompt:
    so do automatic resets. `reset(options={..., "keep_options": False})` lets the next one begin anew.

    ## Episode End

    The task "goal" terminates on arrival; "free" and "follow" never do. `gymnasium.make` truncates after 40
    chunks (one minute).

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

    `gymnasium.make_vec("SanaWM-Rooms-v0", num_envs=4)` makes a `RoomsVectorEnv`: one room after the other, any
    autoreset mode; `vectorization_mode="sync"` or `"async"` takes wrappers and processes.

    `env.unwrapped` and the vector environment have `save_state`, `restore_state`, `fork` and `imagine` as
    `SanaWM-v0` has them; a session is a `sana_wm_env.RoomsState`.

    ## Version History

    * v0: first version.

    ## Citation

    None: the rooms are part of this package.
    """

    reset_options = ("room", "scene_seed", "state", "intrinsics")
    refused_options = dict.fromkeys(
        ("image", "prompt", "look_around"), "this environment renders rooms and imagines nothing"
    )

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
        if min(check_size(image_size)) < 16:
            raise ValueError(
                f"got image_size={image_size}; wanted (height, width) of at least 16 pixels each"
            )
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
        self.device = check_device(device)

    # ---- sessions as values

    def save_state(self) -> RoomsState:
        """The running session as a value: go on from it with `restore_state`, keep it with `RoomsState.save`.

        It holds no random generator for later resets, no unread frames of `render`, and no step counter of
        `TimeLimit`.
        """
        episode = self.episode
        room: Room = episode.state
        frame = self.newest_frame(episode)
        goal = {key: np.array(value) for key, value in episode.goal.items()}
        return RoomsState(
            room.seed,
            room.place,
            episode.c2w.copy(),
            episode.intrinsics_px.copy(),
            frame,
            episode.chunk_index,
            goal,
        )

    def restore_state(self, state: RoomsState) -> tuple[Observation, dict[str, Any]]:
        """Goes on from a saved session. Returns what `reset` does: its newest frame fills the chunk,
        `n_new_frames` is 1.

        Raises:
            ValueError: another task, another image size, or what no session can be; the running episode
                stays.
        """
        return self.reset(options={"state": check_is_rooms_state(state)})

    def fork(
        self, n: int, *, independent_noise: bool = False, max_episode_steps: int | None = None
    ) -> CameraVectorEnv:
        """Environments that go on from the present of this one, which stays as it is.

        Args:
            n: branches.
            independent_noise: as of `SanaWM-v0`; there is no noise here.
            max_episode_steps: chunks since the reset after which a branch is truncated; None for never.

        Returns:
            A vector environment in the autoreset mode "Disabled", already running.
        """
        to_flag(independent_noise, "independent_noise")
        vector = CameraVectorEnv(
            to_whole(n, "n", 1, MOST_SLOTS),
            template=self,
            max_episode_steps=max_episode_steps,
            autoreset_mode="Disabled",
        )
        vector.start_from([self.episode] * n, self.np_random)
        return vector

    def imagine(
        self,
        actions: Any,
        *,
        decode: Decode = "last",
        memory_mib: float = 1024,
        independent_noise: bool = False,
    ) -> Imagined:
        """What N sequences of K actions would lead to from here, exactly. This environment stays as it is.

        Args:
            actions: (N, K, action size), each as in `step`.
            decode: "last", "frames" or "poses", which renders nothing; there are no "latents".
            memory_mib: as of `SanaWM-v0`; one candidate is played after the other here.
            independent_noise: as of `SanaWM-v0`; there is no noise here.

        Raises:
            ValueError: a bad action; the message names its place.
        """
        check_budget(memory_mib, independent_noise)
        return play_candidates(self, actions, decode)

    # ---- how an episode begins

    def newest_frame(self, episode: Episode) -> Frames:
        """Returns the newest frame (H, W, 3) of an episode."""
        return look(episode.state, episode.c2w[None], episode.intrinsics_px, self.image_size)[0]

    def prepare(self, options: dict[str, Any]) -> Wish | Episode:
        if options.get("state") is not None:
            return self.check_session(self._episode_of(check_is_rooms_state(options["state"])))
        intrinsics = check_intrinsics(
            options.get("intrinsics", default_intrinsics(self.image_size)), self.image_size
        )
        seed, room = options.get("scene_seed"), check_room_option(options.get("room"))
        if seed is not None and room is not None:
            raise ValueError(f"got both scene_seed={seed!r} and room={room!r}; wanted one of them")
        if seed is not None:
            seed = to_whole(seed, "scene_seed", 0, 2**63 - 1)  # what a saved session holds
        return Wish(seed, room, intrinsics)

    def start(self, prepared: Wish, seeds: Seeds) -> tuple[Frames, Array, Room]:
        room, intrinsics = self._room(prepared, seeds), prepared.intrinsics_px
        return look(room, np.eye(4)[None], intrinsics, self.image_size)[0], intrinsics, room

    def advance(self, episode: Episode, c2w: Array) -> tuple[Frames, Array, Room]:
        """Renders exact frames along c2w (24, 4, 4) as far as walls allow; returns them, their actual poses
        and the room. Changes nothing.
        """
        room: Room = episode.state
        c2w = stop_at_walls(room, episode.c2w, c2w)
        return look(room, c2w, episode.intrinsics_px, self.image_size), c2w, room

    def reach(self, episode: Episode, c2w: Array) -> tuple[Frames, Array, Room]:
        """`advance` without a picture."""
        room: Room = episode.state
        return NOT_DECODED, stop_at_walls(room, episode.c2w, c2w), room

    def _episode_of(self, state: RoomsState) -> Episode:
        check_rooms_state(state)
        if state.frame.shape[:2] != self.image_size:
            raise ValueError(
                f"got a state with frames of {state.frame.shape[:2]} pixels; this environment shows "
                f"{self.image_size}: make it with image_size={state.frame.shape[:2]}"
            )
        room = open_room(state.room_seed, self.device, state.place)
        goal = {key: value.copy() for key, value in state.task.items()}
        return Episode(room, state.c2w.copy(), state.intrinsics_px.copy(), state.chunk_index, goal)

    def is_clear(self, prepared: Wish, seeds: Seeds, c2w: Array) -> NDArray[np.bool_]:
        return stands_clear(self._room(prepared, seeds), c2w)

    def _room(self, prepared: Wish, seeds: Seeds) -> Room:
        return choose_room(seeds.room, prepared.room, prepared.scene_seed, self.device)
