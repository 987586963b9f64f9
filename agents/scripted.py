"""Agents that follow a script, without learning or planning.

A chunk is six numbers in shares of the environment's limits: right, down, forward, look up, turn right, roll
clockwise.
"""

import math
from typing import Any

import numpy as np

from sana_wm_env.base import CameraEnv
from sana_wm_env.camera import Array, step_twists

from .agent import Action, Agent, entry, steer, unwrapped


class OrbitAgent(Agent):
    """Circles to the right around a point `radius_m` metres ahead, which stays in the middle of the
    picture.
    """

    def __init__(self, radius_m: float = 2.0):
        if not 0 < radius_m < math.inf:
            raise ValueError(f"got radius_m={radius_m!r}; wanted a positive number of metres")
        self.radius_m = radius_m

    def act(self, observation: Any, env: CameraEnv) -> Action:
        """A step sideways and the turn back to the centre, as fast as the limits allow."""
        env = unwrapped(env)
        turn_rad = min(env.max_rotation_rad, env.max_translation_m / self.radius_m)
        return steer(
            [turn_rad * self.radius_m / env.max_translation_m, 0, 0, 0, -turn_rad / env.max_rotation_rad, 0],
            env,
        )


class LookAroundAgent(Agent):
    """Turns right on the spot, `speed` of what the limits allow."""

    def __init__(self, speed: float = 1.0):
        if not 0 < speed <= 1:
            raise ValueError(f"got speed={speed!r}; wanted a share of the limit, more than 0 and at most 1")
        self.speed = speed

    def act(self, observation: Any, env: CameraEnv) -> Action:
        """The turn."""
        env = unwrapped(env)
        return steer([0, 0, 0, 0, self.speed, 0], env)


class LawnmowerAgent(Agent):
    """Sweeps an area without turning: some chunks forward, one to the right, as many back, one to the right,
    and so on.
    """

    def __init__(self, length: int = 3):
        if length < 1:
            raise ValueError(f"got length={length!r}; wanted at least 1 chunk")
        self.length = length

    def reset(self, seed: int | None = None) -> None:
        """Begins with the first lane."""
        self._chunk = -1

    def act(self, observation: Any, env: CameraEnv) -> Action:
        """The next chunk of the sweep."""
        env = unwrapped(env)
        self._chunk += 1
        lane, place = divmod(self._chunk, self.length + 1)
        ahead = 1 if lane % 2 == 0 else -1
        return steer([1, 0, 0, 0, 0, 0] if place == self.length else [0, 0, ahead, 0, 0, 0], env)


class GoToGoalAgent(Agent):
    """Goes straight to the goal, or to the next waypoint, by its pose in the observation: an upper bound.

    It ignores walls.
    """

    def act(self, observation: Any, env: CameraEnv) -> Action:
        """The constant twist that leads there, slowed down as a whole to what the limits allow.

        Raises:
            ValueError: the observation has neither `goal_pose` nor `waypoints`.
        """
        env = unwrapped(env)
        _, poses = entry(observation, "goal_pose", "waypoints")
        twist = step_twists(np.stack([np.eye(4), pose_matrix(poses[:9])]))[0]
        share = twist / np.repeat([env.max_translation_m, env.max_rotation_rad], 3)
        return steer(share / max(1.0, np.abs(share).max()), env)


def pose_matrix(vector: Any) -> Array:
    """(9,) of `sana_wm_env.observations.pose_vector` -> (4, 4) camera-to-world, float64."""
    position, x, y = np.asarray(vector, np.float64).reshape(3, 3)
    x = x / np.linalg.norm(x)
    y = y - x * (x @ y)  # what float32 has rounded off
    y /= np.linalg.norm(y)
    pose = np.eye(4)
    pose[:3] = np.stack([x, y, np.cross(x, y), position], axis=1)
    return pose
