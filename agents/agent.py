"""The base class of agents: from an observation to how the camera moves next."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sana_wm_env.actions import PIECES
from sana_wm_env.base import CameraEnv
from sana_wm_env.observations import Frames

Action = NDArray[np.float32]

WALK = (0, 2, 4)
"""The axes of a walker on level ground, see `steer`: right, forward, turn right."""


class Agent(ABC):
    """Plays one episode at a time: `reset(seed)` at its start, then `act` once per chunk."""

    def reset(self, seed: int | None = None) -> None:  # noqa: B027  # most agents keep nothing
        """Forgets the last episode. Whatever the agent draws at random in the next one follows from
        `seed`.
        """

    @abstractmethod
    def act(self, observation: Any, env: CameraEnv) -> Action:
        """Returns the next action.

        Args:
            observation: what `reset` or `step` of the environment returned.
            env: the environment, wrapped or not: its spaces and limits for a policy, `c2w` for a script,
                `imagine` for a planner. An agent leaves it as it is.

        Returns:
            (action size,) float32, a point of `env.action_space`.
        """


def unwrapped(env: gym.Env) -> CameraEnv:
    """Returns the environment of this package inside any wrappers. ValueError if there is none."""
    inner = getattr(env, "unwrapped", env)
    if not isinstance(inner, CameraEnv):
        raise ValueError(f"got {type(inner).__name__}; wanted an environment such as SanaWM-v0")
    return inner


def steer(chunk: Any, env: CameraEnv, axes: Sequence[int] = range(6)) -> Action:
    """Returns the action, in any `action_mode`, that moves with constant velocity through the chunk.

    Args:
        chunk: (..., len(axes)) within [-1, 1], in shares of the limits.
        env: the environment that will take it.
        axes: what `chunk` moves: 0 right, 1 down, 2 forward, 3 look up, 4 turn right, 5 roll clockwise. The
            others rest.

    Returns:
        (..., action size) float32.
    """
    moved = np.asarray(chunk, np.float32)
    piece = np.zeros((*moved.shape[:-1], 6), np.float32)
    piece[..., list(axes)] = moved
    return np.tile(piece, (*[1] * (piece.ndim - 1), PIECES[env.action_mode]))


def newest_image(observation: Any) -> Frames:
    """Returns the newest frame (H, W, 3) of an observation in any `obs_mode`."""
    image = observation["image"] if isinstance(observation, dict) else observation
    return image[-1] if image.ndim == 4 else image


def entry(observation: Any, *names: str) -> tuple[str, Any]:
    """Returns name and value of the first of some entries that a dict observation has.

    Raises:
        ValueError: it has none of them; the message says where to get them.
    """
    given: Sequence[str] = sorted(observation) if isinstance(observation, dict) else ()
    for name in names:
        if name in given:
            return name, observation[name]
    shown = f"entries {', '.join(given)}" if given else "pictures alone"
    raise ValueError(
        f"got observations with {shown}; wanted {' or '.join(names)}: an environment such as SanaWM-Goal-v0 "
        "or SanaWM-Follow-v0, "
        'with obs_mode="dict"'
    )
