"""Objectives of planners: a value for each imagined candidate. Larger is better.

| name        | what is compared                                                   | what has to be imagined                      |
|-------------|--------------------------------------------------------------------|----------------------------------------------|
| `"reward"`  | the rewards of the task                                            | poses, if the task judges by them: no network |
| `"frames"`  | the newest imagined frame with the goal image, at four resolutions | frames                                       |
| `"latents"` | the newest imagined latent with the encoded goal image             | latents, nothing is decoded                  |

The tasks "goal" and "follow" reward poses. Planning for their rewards is planning on a map that shows the
goal, without the world model: an upper bound. An agent that plans by frames or latents knows the goal by its
picture alone, as the paper's user does.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sana_wm_env.base import CameraEnv
from sana_wm_env.candidates import Decode, Imagined
from sana_wm_env.observations import Frames

from ..agent import entry, newest_image
from .imagination import Imagination

OBJECTIVES = ("reward", "frames", "latents")
CHUNK_COST = 0.01
"""Cost of a chunk, as a share of the difference between the present picture and the goal image."""
DISCOUNT = 0.97
"""Per chunk: the same reward earlier is better."""


class Worth(NamedTuple):
    """values: (N,), larger is better. chunks: (N,) int, how many of the K chunks to play; later ones only
    lead away again.
    """

    values: NDArray[np.float64]
    chunks: NDArray[np.int64]


def find_usable(worth: Worth, env: CameraEnv) -> NDArray[np.bool_]:
    """Returns which candidates (N,) have a finite value. ValueError if none has."""
    usable = np.isfinite(worth.values)
    if not usable.any():
        raise ValueError(
            f"got no candidate of {len(usable)} with a finite value; wanted finite rewards of {env.task.name}"
        )
    return usable


class Objective(ABC):
    """The value of candidates."""

    def check(self, observation: Any, env: CameraEnv, imagination: Imagination) -> None:  # noqa: B027
        """Refuses, with a ValueError, what it can not judge, before anything is imagined."""

    @abstractmethod
    def decode(self, env: CameraEnv) -> Decode:
        """Returns what has to be decoded."""

    @abstractmethod
    def __call__(
        self, imagined: Imagined, observation: Any, env: CameraEnv, imagination: Imagination
    ) -> Worth:
        """Returns the value of each of N candidates."""


class RewardObjective(Objective):
    """The discounted sum of the task's rewards."""

    def decode(self, env: CameraEnv) -> Decode:
        """Poses, where the task looks at nothing else."""
        return "latents" if env.task.uses_frames else "poses"

    def __call__(
        self, imagined: Imagined, observation: Any, env: CameraEnv, imagination: Imagination
    ) -> Worth:
        """All chunks, or those up to the end of the episode."""
        chunks = imagined.rewards.shape[1]
        values = imagined.rewards @ DISCOUNT ** np.arange(chunks)
        return Worth(values, np.minimum(chunks, chunks - imagined.terminated.sum(1) + 1))


class GoalImageObjective(Objective):
    """The share of the difference between present picture and goal image that is gone after the best chunk.

    Args:
        space: "frames" or "latents".
    """

    def __init__(self, space: str):
        self.space = space

    def check(self, observation: Any, env: CameraEnv, imagination: Imagination) -> None:
        """ValueError without a goal image, or without a model where latents are compared."""
        entry(observation, "goal_image")
        if self.space == "latents":
            imagination.encode(env, newest_image(observation))

    def decode(self, env: CameraEnv) -> Decode:
        """The newest frame, or nothing."""
        return "last" if self.space == "frames" else "latents"

    def __call__(
        self, imagined: Imagined, observation: Any, env: CameraEnv, imagination: Imagination
    ) -> Worth:
        """Shares of the difference, less `CHUNK_COST` per chunk."""
        _, goal = entry(observation, "goal_image")
        present = newest_image(observation)
        if self.space == "frames":
            assert imagined.frames is not None
            distance, start = picture_distance(imagined.frames, goal), picture_distance(present, goal)
        else:
            assert imagined.latents is not None
            target, before = imagination.encode(env, goal), imagination.encode(env, present)
            distance = np.square(imagined.latents[:, :, :, -1] - target).mean((2, 3, 4))
            start = np.square(before - target).mean()
        gained = 1 - distance / max(float(start), 1e-9)
        worth = gained - CHUNK_COST * np.arange(1, distance.shape[1] + 1)
        return Worth(worth.max(1), worth.argmax(1) + 1)


def picture_distance(pictures: Frames, goal: Frames, levels: int = 4) -> NDArray[np.float64]:
    """Mean squared difference of colours (0 to 1), at full, half, quarter, ... resolution, averaged.

    Coarse levels give the direction from afar, fine ones the place to stop.

    Args:
        pictures: uint8 (..., H, W, 3).
        goal: uint8 (H, W, 3).
        levels: resolutions.

    Returns:
        float64 (...).
    """
    difference = (torch.from_numpy(pictures).double() - torch.from_numpy(goal).double()) / 255
    batch = difference.movedim(-1, -3).reshape(-1, 3, *goal.shape[:2])  # (N, 3, H, W)
    total = torch.zeros(len(batch), dtype=torch.float64)
    for _ in range(levels):
        total += batch.square().mean((1, 2, 3)) / levels
        batch = F.avg_pool2d(batch, 2)
    return total.reshape(pictures.shape[:-3]).numpy()


def make_objective(name: str) -> Objective:
    """Makes the objective of that name. ValueError for an unknown one."""
    if name not in OBJECTIVES:
        raise ValueError(f"got the objective {name!r}; wanted one of {', '.join(OBJECTIVES)}")
    return RewardObjective() if name == "reward" else GoalImageObjective(name)
