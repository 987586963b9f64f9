"""Wrappers of observations and actions, for agents that expect others; and the way through all wrappers to a
saved session.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import TimeLimit

from .actions import PIECES, action_space, twist_to_action
from .camera import check_intrinsics
from .keys import KEYS, key_twist, words
from .observations import Frames, camera_entries, camera_spaces

if TYPE_CHECKING:
    from sana_wm_env.model.state import WorldState

    from .remote.client import RemoteState
    from .rooms.state import RoomsState


class _ChunkWrapper(gym.ObservationWrapper, RecordConstructorArgs):
    """Turns each chunk of frames into one picture."""

    def __init__(self, env: gym.Env):
        gym.ObservationWrapper.__init__(self, env)
        space = env.observation_space
        if not (
            isinstance(space, gym.spaces.Box)
            and len(space.shape) == 4
            and space.shape[-1] == 3
            and space.dtype == np.uint8
        ):
            raise ValueError(
                f"got an environment with observations in {space}; {type(self).__name__} wants chunks of "
                "frames, uint8 (F, H, W, 3): "
                "gym.make(..., obs_mode='chunk')"
            )
        picture = self.observation(np.zeros(space.shape, np.uint8))
        self.observation_space = gym.spaces.Box(0, 255, picture.shape, np.uint8)

    @abstractmethod
    def observation(self, observation: Frames) -> Frames:
        """(F, H, W, 3) to the picture, in memory of its own."""


class LastFrame(_ChunkWrapper):
    """Shows the newest frame of each chunk: uint8 (24, H, W, 3) -> (H, W, 3), an image as policies expect it.

    `obs_mode="last"` does the same; this is for an environment that must show the whole chunk underneath, to
    `RecordChunks` say.

    Args:
        env: an environment that shows chunks.

    Raises:
        ValueError: the environment shows something else.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def observation(self, observation: Frames) -> Frames:
        """The newest frame."""
        return observation[-1].copy()


class ChunkToChannels(_ChunkWrapper):
    """Stacks evenly spaced frames of each chunk along the channels, so that an image network sees motion.

    uint8 (24, H, W, 3) -> (H, W, 3k), or (3k, H, W) with `channels_first`: oldest frame first, its red, green
    and blue together, the newest frame last. With k = 4 they are the frames 5, 11, 17 and 23 of the chunk. At
    reset all show the first frame.

    Stable-Baselines3 takes the smallest axis of an image for its channels: keep 3k below height and width
    there.

    Args:
        env: an environment that shows chunks.
        frames: k, from 1 to the number of frames in a chunk.
        channels_first: put the channels ahead of height and width.

    Raises:
        ValueError: the environment shows something else, or fewer frames than that.
    """

    def __init__(self, env: gym.Env, frames: int = 4, channels_first: bool = False):
        RecordConstructorArgs.__init__(self, frames=frames, channels_first=channels_first)
        self.frames, self.channels_first = frames, channels_first
        super().__init__(env)

    def observation(self, observation: Frames) -> Frames:
        """The stack of frames."""
        total, height, width, _ = observation.shape
        if not 1 <= self.frames <= total:
            raise ValueError(f"got frames={self.frames}; wanted 1 to {total}, the frames of a chunk")
        chosen = observation[np.arange(1, self.frames + 1) * total // self.frames - 1]  # k H W 3
        if self.channels_first:
            return chosen.transpose(0, 3, 1, 2).reshape(-1, height, width)  # k 3 H W -> 3k H W
        return chosen.transpose(1, 2, 0, 3).reshape(height, width, -1)  # H W k 3 -> H W 3k


class PoseObservation(gym.Wrapper, RecordConstructorArgs):
    """Adds the camera to pictures: `{"image": picture, "pose": (9,), "intrinsics": (4,)}`, all but the
    picture float32.

    `pose` is that of the newest frame relative to the first: position in metres, then the camera's x axis and
    its y axis. `intrinsics` are fx, fy, cx, cy as shares of width and height. `obs_mode="dict"` says the same
    about the newest frame; this is for pictures that another wrapper makes, such as
    `PoseObservation(ChunkToChannels(env))`.

    Args:
        env: an environment of this package with observations in a Box, wrapped or not.

    Raises:
        ValueError: the observations are no Box, so they have entries already.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        if not isinstance(env.observation_space, gym.spaces.Box):
            raise ValueError(
                f"got an environment with observations in {env.observation_space}; PoseObservation wants "
                "pictures in a Box: "
                "obs_mode='dict' has pose and intrinsics by itself"
            )
        self.observation_space = gym.spaces.Dict({"image": env.observation_space, **camera_spaces()})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As the environment, with the camera in the observation."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_camera(observation, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment, with the camera in the observation."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_camera(observation, info), reward, terminated, truncated, info

    def _with_camera(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        image_size = self.get_wrapper_attr("image_size")
        intrinsics_px = check_intrinsics(info["intrinsics_px"], image_size)  # (3, 3) -> (4,)
        return {"image": observation, **camera_entries(info["c2w"][-1], intrinsics_px, image_size)}


class DiscreteKeys(gym.ActionWrapper, RecordConstructorArgs):
    """Nine actions for value-based agents such as DQN: one key, held for one chunk. `Box` -> `Discrete(9)`.

    | Num | Key  | `sana-v2`  | `sana-v1`  |
    |-----|------|------------|------------|
    | 0   | w    | forward    | forward    |
    | 1   | a    | turn left  | step left  |
    | 2   | s    | back       | back       |
    | 3   | d    | turn right | step right |
    | 4   | i    | look up    | look up    |
    | 5   | j    | step left  | turn left  |
    | 6   | k    | look down  | look down  |
    | 7   | l    | step right | turn right |
    | 8   | none | stand      | stand      |

    A chunk of `sana-v2` walks 0.6 m or turns by 14.4 degrees, one of `sana-v1` 1.2 m and 28.8 degrees.
    Walking is level and turning keeps the horizon level wherever the camera looks, as with key strings;
    looking up and down ends at 60 (85) degrees. Every chunk begins from a standing start: `none` stands
    still, where in a string of `sana-v2` the camera would coast, so that what an action does depends on where
    the camera is and not on the key before.

    Args:
        env: an environment of this package, in any `action_mode`.
        scheme: what the keys mean: "sana-v2" or "sana-v1".

    Attributes:
        meanings: what each action does, in words.

    Raises:
        ValueError: an unknown scheme, one that is faster than the environment's limits, an environment with
            other actions.
    """

    def __init__(self, env: gym.Env, scheme: str = "sana-v2"):
        RecordConstructorArgs.__init__(self, scheme=scheme)
        gym.ActionWrapper.__init__(self, env)
        if not (
            self.has_wrapper_attr("action_mode")
            and env.action_space == action_space(self.get_wrapper_attr("action_mode"))
        ):
            raise ValueError(
                f"got an environment with actions in {env.action_space}; DiscreteKeys wants one of this "
                "package with its own actions: "
                "wrap it before anything else changes them"
            )
        self.scheme, self.meanings = scheme, tuple(words(key, scheme) for key in KEYS)
        try:  # wherever the camera looks, a key is no faster than level
            twist_to_action(
                [key_twist(key, scheme, np.eye(3)) for key in KEYS], self.get_wrapper_attr("limits")
            )
        except ValueError as error:
            raise ValueError(f"the keys of {scheme} are too fast for this environment: {error}") from None
        self.action_space = gym.spaces.Discrete(len(KEYS))

    def action(self, action: Any) -> Any:
        """The environment's action that holds a key for one chunk; ValueError for anything but a whole number
        from 0 to 8.
        """
        if not self.action_space.contains(action):
            raise ValueError(
                f"got the action {action!r}; wanted a whole number from 0 to {len(KEYS) - 1}, one of "
                f"{' '.join(KEYS)}"
            )
        twist = key_twist(KEYS[int(action)], self.scheme, self.get_wrapper_attr("c2w")[:3, :3])
        chunk_action = twist_to_action(twist, self.get_wrapper_attr("limits"))
        return np.tile(
            chunk_action, PIECES[self.get_wrapper_attr("action_mode")]
        )  # a constant twist is the same in every piece


def restore(
    env: gym.Env[Any, Any], state: WorldState | RoomsState | RemoteState
) -> tuple[Any, dict[str, Any]]:
    """Continues a saved session through all wrappers: `env.reset(options={"state": state})` with the step
    counter set.

    That counter belongs to `TimeLimit`, which `gymnasium.make` adds, and not to the session: a reset alone
    sets it to 0, and `env.unwrapped.restore_state` leaves it. Here it becomes `info["chunk_index"]`.
    """
    if state is None:  # an option that is None is none
        raise ValueError("got None; wanted a WorldState, or of exact rooms a RoomsState")
    obs, info = env.reset(options={"state": state})
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, TimeLimit):
            layer._elapsed_steps = info["chunk_index"]
        layer = layer.env
    return obs, info
