"""`SanaWM-v0`: one imagined world. Read next: `episode.py`, the rules of a step, and `model/world.py`, which
imagines it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sana_wm_env.model.base import check_offload as check_places
from sana_wm_env.model.codecs.refiner import find_refiner
from sana_wm_env.model.kernels.formats import Precision
from sana_wm_env.model.quantize import check_precision
from sana_wm_env.model.storage.worlds import check_variant, label_world, load_config, resolve_world
from sana_wm_env.model.world import WorldModel, WorldState

from .base import CameraEnv
from .base_vector import MOST_SLOTS
from .camera import Array, check_poses
from .episode import Episode, Seeds
from .first_frame import FirstFrame, check_first_frame_options
from .imagine import (
    Decode,
    Imagined,
    check_is_state,
    encode_image,
    episode_of,
    imagine,
    state_of,
    to_episode,
    with_own_noise,
)
from .machine import check_device
from .numbers import to_flag, to_whole
from .observations import Frames, Observation
from .rooms.room import choose_room, see_all_around, stands_clear
from .tasks import Moment, Task
from .wrappers import restore as restore

if TYPE_CHECKING:
    from .vector import SanaWMVectorEnv

DTYPES = (None, "float32", "bfloat16")


class Wish(NamedTuple):
    """Wish for an episode in a drawn room: a room as in `choose_room`, a prompt in place of the room's caption,
    and whether to look around in it first.
    """

    room: int | str | None
    prompt: str | None
    look_around: bool


class SanaWMEnv(CameraEnv):
    """A world that a video model imagines while you move a camera through it.

    ## Description

    One `step` moves the camera for one chunk: 3 latent frames, 24 RGB frames, 1.5 seconds at 16 frames per
    second. The model is SANA-WM ([arXiv:2605.15178](https://arxiv.org/abs/2605.15178)); the world that is
    bundled with this package, `tiny-rooms`, was trained on procedural rooms and runs on a CPU.

    `SanaWM-Rooms-v0` renders those rooms exactly, in place of imagining them: reset with the same seed it
    starts from the same first frame.

    ## Action Space

    `Box(-1, 1, (6,), float32)`: the body twist of the chunk. The camera moves with constant velocity in its
    own frame: frame i of the 24 has the pose `c2w @ exp(i / 24 * twist)`. Axes are OpenCV's: x right, y down,
    z forward. A zero action keeps the pose exactly.

    | Num | Action        | 1 stands for                       |
    |-----|---------------|------------------------------------|
    | 0   | move right    | `max_translation_m` metres         |
    | 1   | move down     | `max_translation_m` metres         |
    | 2   | move forward  | `max_translation_m` metres         |
    | 3   | look up       | `max_rotation_rad` radians         |
    | 4   | turn right    | `max_rotation_rad` radians         |
    | 5   | roll clockwise | `max_rotation_rad` radians        |

    Metres are nominal: as metric as the poses that the world was trained with. An action outside the box is
    refused, not clipped.

    That is `action_mode="chunk"`. `"per_latent"`, `Box(-1, 1, (18,))`, steers each third of the chunk, 8
    frames, and `"per_frame"`, `Box(-1, 1, (144,))`, each frame: such rows one after the other, in which 1
    stands for a third and a 24th of the limits above, so that the largest speed is the same.
    `sana_wm_env.actions` makes actions from velocities and from paths of poses; `sana_wm_env.DiscreteKeys`
    has nine keys instead.

    ## Observation Space

    `obs_mode="chunk"`: `uint8 (24, H, W, 3)`, every new frame in order. At reset the first frame fills the
    chunk. `obs_mode="last"`: `uint8 (H, W, 3)`, the newest frame, which is what image policies expect.
    `obs_mode="dict"`: a `Dict` one level deep, which is what multi-input policies expect:

    | Key           | Space               | Meaning                                                                                |
    |---------------|---------------------|----------------------------------------------------------------------------------------|
    | `image`       | `uint8 (H, W, 3)`   | the newest frame                                                                       |
    | `pose`        | `float32 (9,)`      | its camera-to-world relative to the first frame: position in metres, x axis, y axis    |
    | `intrinsics`  | `float32 (4,)`      | fx and cx in widths, fy and cy in heights of the frame                                 |
    | `goal_image`  | `uint8 (H, W, 3)`   | task "goal": what the world shows at the goal                                          |
    | `goal_pose`   | `float32 (9,)`      | task "goal": the goal as seen from the camera, in the layout of `pose`                 |
    | `waypoints`   | `float32 (27,)`     | task "follow": the next three waypoints as seen from the camera, in the layout of `pose` |

    `info` has the same keys at reset and step, with fresh arrays:

    | Key             | Type               | Meaning                                                             |
    |-----------------|--------------------|---------------------------------------------------------------------|
    | `c2w`           | float64 (24, 4, 4) | camera-to-world of each frame relative to the first frame, metres   |
    | `intrinsics_px` | float64 (3, 3)     | in pixels of the observed frames                                    |
    | `n_new_frames`  | int                | 1 at reset, then 24; joining the new ones gives the whole video     |
    | `chunk_index`   | int                | chunks since the reset                                              |
    | `world`         | str                | name of the world: `"tiny-rooms"` for the bundled one               |

    A task adds keys of its own: "goal" `is_success`, `distance_m`, `angle_rad` and `goal_c2w` (4, 4),
    "follow" `deviation_m` and `deviation_rad`.

    ## Rewards

    From the task, per chunk; distances are metres plus radians at 1 metre each. `sana_wm_env.tasks` has the
    details.

    | `task`     | Id                 | Reward of a step                                                                       |
    |------------|--------------------|----------------------------------------------------------------------------------------|
    | `"free"`   | `SanaWM-v0`        | 0.0, or what `reward_fn(moment)` returns                                               |
    | `"goal"`   | `SanaWM-Goal-v0`   | distance gained to the goal, 1.0 more on arrival: within 0.15 m and 5 degrees          |
    | `"follow"` | `SanaWM-Follow-v0` | minus the distance from the waypoint of this chunk                                     |
    | a `Task`   |                    | what its `judge` returns                                                               |

    The goal lies at the end of a hidden path of one to three chunks and its image is what the world itself
    imagines there; the waypoints are those of 40 chunks. Paths are drawn within the limits of an action, and
    clear of everything solid if the episode starts in a room.

    ## Starting State

    The world bundled with this package starts at home: in one of the 48 rooms that it was trained in most, at
    a place drawn by the environment's own generator, with the room's description as the prompt.
    `reset(options=...)` takes

    | Option       | Type                      | Meaning                                                                   |
    |--------------|---------------------------|---------------------------------------------------------------------------|
    | `room`       | int or str                | a home room, 0 to 47; `"held-out"` draws one that training never saw      |
    | `image`      | uint8 (H0, W0, 3) or path | the first frame; scaled to cover the observed size, then centre-cropped   |
    | `intrinsics` | (4,), (3, 3) or `"moge"`  | fx, fy, cx, cy in pixels of that image, or what estimates them            |
    | `fov_deg`    | float                     | the image's horizontal field of view, in place of `intrinsics`            |
    | `prompt`     | str                       | describes the scene, not the camera                                       |
    | `look_around`| bool                      | whether the world has looked all around before it begins: a dozen exact pictures of the room, a twelfth of a turn apart, which it remembers. At home it has if the world was trained for it, elsewhere not |
    | `state`      | `WorldState`              | a saved session to continue; no other option beside it                    |

    An unknown option is refused, and so is anything malformed, before anything changes.

    A reset with neither seed nor options begins like the one before, from the same picture, room and prompt:
    so do automatic resets. `reset(options={..., "keep_options": False})` lets the next one begin anew.

    ## Episode End

    The task "goal" terminates on arrival; "free" and "follow" never do. `gymnasium.make` truncates after 40
    chunks (one minute).

    ## Arguments

    | Parameter           | Type  | Default        | Description                                                       |
    |---------------------|-------|----------------|-------------------------------------------------------------------|
    | `world`             | str   | `"tiny-rooms"` | a bundled world, the folder of a trained one, a downloaded repository, or the address of a `sana-wm serve` |
    | `device`            | str   | `"cpu"`        | where the model runs                                              |
    | `obs_mode`          | str   | `"chunk"`      | `"chunk"`, `"last"` or `"dict"`                                   |
    | `render_mode`       | str   | `None`         | `"rgb_array"` (newest frame) or `"rgb_array_list"` (every frame since the last call) |
    | `max_translation_m` | float | `None`         | metres per chunk that an action of 1 stands for; `None`: as the world was trained |
    | `max_rotation_rad`  | float | `None`         | radians per chunk that an action of 1 stands for; `None`: as the world was trained |
    | `action_mode`       | str   | `"chunk"`      | `"chunk"`, `"per_latent"` or `"per_frame"`: pieces that a chunk is steered in |
    | `task`              | str   | `"free"`       | `"free"`, `"goal"`, `"follow"`, or a `sana_wm_env.Task` of your own |
    | `reward_fn`         | function | `None`      | a `sana_wm_env.tasks.Moment` -> float, in place of a task        |
    | `offload`           | dict  | `None`         | another device for `"autoencoder"`, `"text"` or `"refiner"`, see `WorldModel.load` |
    | `dtype`             | str   | `None`         | `"float32"` or `"bfloat16"`; `None`: as the world names it, or the faster of both |
    | `precision`         | str   | `None`         | `"fp8"`, `"nvfp4"`, `"mxfp8"`, `"int8"`: quantised; `None`: as the world is stored |
    | `refiner`           | str   | `None`         | `"auto"`: the world's second stage sharpens what you see; or the folder of one |

    ## Vectorized Environment

    `gymnasium.make_vec("SanaWM-v0", num_envs=4)` makes a `SanaWMVectorEnv`: one copy of the weights, one
    batched forward per step, any autoreset mode (`autoreset_mode="SameStep"`), `reset(options={"reset_mask":
    mask, "per_slot": [...]})`.

    `env.unwrapped` has `save_state`, `restore_state`, `fork(n)`, `imagine(actions)`: see
    `sana_wm_env.WorldState` and `restore`. The vector environment has them too, `fork` and `imagine` with the
    `slot` they start from. Pickles and deep copies of a running environment carry on where it is.

    ## Version History

    * v0: first version.

    ## Citation

    SANA-WM, arXiv:2605.15178.
    """

    reset_options = ("room", "image", "intrinsics", "fov_deg", "prompt", "look_around", "state")

    def __init__(
        self,
        world: str = "tiny-rooms",
        device: str = "cpu",
        obs_mode: str = "chunk",
        render_mode: str | None = None,
        max_translation_m: float | None = None,
        max_rotation_rad: float | None = None,
        action_mode: str = "chunk",
        task: str | Task = "free",
        reward_fn: Callable[[Moment], float] | None = None,
        offload: dict[str, str] | None = None,
        dtype: str | None = None,
        precision: Precision | None = None,
        refiner: str | None = None,
    ):
        if dtype not in DTYPES:
            raise ValueError(f"got dtype={dtype!r}; wanted one of {', '.join(map(repr, DTYPES))}")
        if precision is not None:
            check_precision(precision)
        self.model_folder = resolve_world(world)
        self.device = check_device(device)
        check_offload(offload)
        self.offload = offload
        self.dtype = dtype
        self.precision: Precision | None = precision
        config = load_config(self.model_folder)
        check_variant(config, "streaming")
        if refiner is not None:
            find_refiner(self.model_folder, refiner)
        self.refiner = refiner
        self._weights = Weights(self.model_folder, device, dtype, offload, precision, refiner)
        super().__init__(
            world=label_world(self.model_folder, config),
            image_size=config.image_size,
            obs_mode=obs_mode,
            render_mode=render_mode,
            max_translation_m=config.max_translation_m if max_translation_m is None else max_translation_m,
            max_rotation_rad=config.max_rotation_rad if max_rotation_rad is None else max_rotation_rad,
            action_mode=action_mode,
            task=task,
            reward_fn=reward_fn,
        )

    # ---- an episode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode. See the class for the options and for what is returned.

        A reset with neither seed nor options begins like the one before: from the same picture or room.

        Raises:
            ValueError: an unknown option, a bad value or seed; the running episode and the random generator
                stay as they were.
        """
        start = self.choose_start(seed, options)
        return self.begin(start, seed)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Moves the camera for one chunk. See the class for what is returned.

        Nothing changes before the last line, so an interrupted step leaves the episode as it was.

        Raises:
            ValueError: an action of wrong shape or range, or with NaN.
            gymnasium.error.ResetNeeded: before the first reset.
            gymnasium.error.ClosedEnvironmentError: after close.
        """
        episode = self.episode
        c2w = self.rules.wish(episode, action)
        frames, c2w, state = self.advance(episode, c2w)
        return self.arrive(self.rules.judge(episode, action, frames, c2w, state))

    def advance(self, episode: Episode, c2w: Array) -> tuple[Frames, Array, WorldState]:
        """Imagines frames (24, H, W, 3) along c2w (24, 4, 4); returns them, the same poses, and the next
        state. Changes nothing.
        """
        frames, state = self.model.step(episode.state, torch.from_numpy(c2w)[None])
        return frames[0].cpu().numpy(), c2w, state

    def advance_each(
        self, episodes: Sequence[Episode], c2w: Sequence[Array]
    ) -> list[tuple[Frames, Array, WorldState]]:
        """`advance` for several episodes in one forward."""
        states = [episode.state for episode in episodes]
        advanced = self.model.step_each(states, [torch.from_numpy(path) for path in c2w])
        return [
            (frames.cpu().numpy(), path, state) for path, (frames, state) in zip(c2w, advanced, strict=True)
        ]

    # ---- sessions as values

    def save_state(self) -> WorldState:
        """Returns the running session as a value, for `restore_state` and `WorldState.save`.

        It holds no random generator for later resets, no unread frames of `render`, and no step counter:
        `TimeLimit`, which `gymnasium.make` adds, keeps that one; `sana_wm_env.restore(env, state)` sets it.
        """
        return state_of(self.episode)

    def restore_state(self, state: WorldState) -> tuple[Observation, dict[str, Any]]:
        """Continues a saved session. Returns what `reset` does: its newest frame fills the chunk,
        `n_new_frames` is 1.

        Raises:
            ValueError: more than one session, another world, another task, or what no session can be; the
                running episode stays.
        """
        return self.reset(options={"state": check_is_state(state)})

    def fork(
        self, n: int, *, independent_noise: bool = False, max_episode_steps: int | None = None
    ) -> "SanaWMVectorEnv":
        """Branches this environment into several that continue from its present state; it stays as it is.
        Nothing is copied until they move.

        Args:
            n: branches.
            independent_noise: by default every branch imagines with the noise that this environment would, so
                that they differ by their actions alone; True gives each its own.
            max_episode_steps: chunks since the reset after which a branch is truncated; None for never.

        Returns:
            A vector environment in the autoreset mode "Disabled", already running.
        """
        from .vector import SanaWMVectorEnv

        to_whole(n, "n", 1, MOST_SLOTS)
        state = self.save_state().expand(n)
        state = with_own_noise(state) if to_flag(independent_noise, "independent_noise") else state
        vector = SanaWMVectorEnv(
            n, template=self, max_episode_steps=max_episode_steps, autoreset_mode="Disabled"
        )
        vector.start_from([to_episode(state[i]) for i in range(n)], self.np_random)  # views of one session
        return vector

    def observe(self, frames: Any, c2w: Any) -> tuple[Observation, dict[str, Any]]:
        """Goes on with what a camera saw, in place of imagining it: a walk through a place that was filmed, or
        what a robot really met after it had planned. The session remembers it.

        Args:
            frames: uint8 (24 K, H, W, 3), which follow the newest frame.
            c2w: (24 K, 4, 4) their camera-to-world relative to the first frame, OpenCV axes, metres. They may
                be faster than an action.

        Returns:
            What `restore_state` does: the newest frame fills the chunk, `n_new_frames` is 1. `chunk_index`,
            the task and its reward do not count what was observed.

        Raises:
            ValueError: frames or poses that do not fit; the episode stays.
        """
        episode, poses = self.episode, check_poses(c2w)
        if (seen := np.array(frames)).dtype != np.uint8:
            raise ValueError(f"got frames of {seen.dtype}; wanted uint8 (24 K, H, W, 3)")
        state = self.model.observe(episode.state, torch.from_numpy(seen)[None], torch.from_numpy(poses)[None])
        observed = replace(episode, state=state, c2w=poses[-1].copy())
        return self.resume(observed, *self.repeat_newest(observed))

    def imagine(
        self,
        actions: Any,
        *,
        decode: Decode = "latents",
        memory_mib: float = 1024,
        independent_noise: bool = False,
        refine: bool = False,
    ) -> Imagined:
        """Imagines where N sequences of K actions would lead from here. This environment stays as it is, to
        the last bit.

        Args:
            actions: (N, K, action size), each as in `step`.
            decode: "latents", "last", "frames" or "poses", see `sana_wm_env.imagine.imagine`.
            memory_mib: how much memory candidates may take beside what is returned.
            independent_noise: as in `fork`.
            refine: whether frames go through the refiner, where there is one.

        Raises:
            ValueError: a bad action; the message names its place. "poses" for a task that looks at frames.
        """
        options: dict[str, Any] = {
            "decode": decode,
            "memory_mib": memory_mib,
            "independent_noise": independent_noise,
            "refine": refine,
        }
        return imagine(self.rules, self.episode, self.model, self.episode.state, actions, **options)

    def encode(self, image: Frames) -> NDArray[np.float32]:
        """Returns the latent (C, h, w) of a frame, uint8 (H, W, 3): what `imagine` tells of a chunk's last
        one.
        """
        return encode_image(self.model, image)

    # ---- pictures and weights: `render` is that of CameraEnv

    @property
    def model(self) -> WorldModel:
        """The weights, loaded at the first reset: making an environment touches no GPU, so that workers can
        still be forked.

        Set it to share those of another environment.
        """
        return self._weights.model

    @model.setter
    def model(self, model: WorldModel) -> None:
        self._weights = replace(self._weights)
        self._weights.__dict__["model"] = model  # where the loaded one would be

    def close(self) -> None:
        """Frees weights and episode. A second call does nothing; reset and step refuse afterwards."""
        super().close()
        self._weights = replace(self._weights)  # not loaded

    # ---- how an episode begins

    def newest_frame(self, episode: Episode) -> Frames:
        """Returns the newest frame (H, W, 3) of an episode."""
        return episode.state.frame[0].cpu().numpy()

    def prepare(self, options: dict[str, Any]) -> FirstFrame | Wish | Episode:
        """The user's own first frame, what they wish of a drawn room, or a saved session."""
        if options.get("state") is not None:
            return self.check_session(episode_of(options["state"], self.model))
        first_frames = self.model.config.first_frames  # loads the weights, which may fail: before all changes
        room, prompt = check_first_frame_options(options)
        looks = options.get("look_around")
        if options.get("image") is not None:
            given = options["image"], self.image_size, options.get("intrinsics"), options.get("fov_deg")
            return FirstFrame.of_picture(*given, prompt, self.device)
        if first_frames != "rooms":
            raise ValueError(
                f"got no image; the world {self.world!r} has no first frames of its own, "
                "wanted reset(options={'image': array or path, 'intrinsics': (fx, fy, cx, cy)})"
            )
        if looks is None:
            looks = self.model.config.looks_around and room != "held-out"
        return Wish(room, prompt, looks)

    def start(self, prepared: FirstFrame | Wish, seeds: Seeds) -> tuple[Frames, Array, WorldState]:
        if isinstance(prepared, FirstFrame):
            return prepared.image, prepared.intrinsics_px, self._open(prepared, seeds)
        room = choose_room(seeds.room, prepared.room)
        first = FirstFrame.of_room(room, self.image_size, prepared.prompt)
        state = self._open(first, seeds)
        if prepared.look_around:
            seen = see_all_around(room, first.intrinsics_px, self.image_size)
            state = self.model.observe(state, *(torch.from_numpy(values)[None] for values in seen))
        return first.image, first.intrinsics_px, state

    def _open(self, first: FirstFrame, seeds: Seeds) -> WorldState:
        return self.model.start(
            torch.from_numpy(first.image)[None],
            torch.from_numpy(first.intrinsics_px)[None],
            [first.prompt],
            [torch.Generator().manual_seed(seeds.noise)],
        )

    def is_clear(self, prepared: FirstFrame | Wish, seeds: Seeds, c2w: Array) -> NDArray[np.bool_]:
        if isinstance(prepared, FirstFrame):
            return np.ones(len(c2w), np.bool_)
        return stands_clear(choose_room(seeds.room, prepared.room), c2w)


def check_offload(offload: Any) -> None:
    """Refuses what `WorldModel.load` cannot do, and devices that are none."""
    check_places(offload)
    for part, place in (offload or {}).items():
        if place not in ("release", "blocks"):
            check_device(place, f"offload[{part!r}]")


@dataclass(frozen=True)
class Weights:
    """Which world, where and how; loaded when somebody first asks, once for all environments that share this.

    Copies in this process share the loaded world, those in another one load it again.
    """

    folder: Path
    device: str
    dtype: str | None
    offload: dict[str, str] | None
    precision: Precision | None
    refiner: str | None

    @cached_property
    def model(self) -> WorldModel:
        """The world."""
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"got device={self.device!r}; torch {torch.__version__} sees no CUDA device: use "
                "device='cpu', or a CUDA build"
            )
        dtype = None if self.dtype is None else getattr(torch, self.dtype)
        return WorldModel.load(
            self.folder, self.device, dtype, self.offload, precision=self.precision, refiner=self.refiner
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Weights":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}
