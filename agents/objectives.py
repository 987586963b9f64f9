"""What a planner wants: from what it imagines to a number per candidate. Larger is better.

| name        | what is compared                                                   | what has to be imagined                      |
|-------------|--------------------------------------------------------------------|----------------------------------------------|
| `"reward"`  | the rewards of the task                                            | poses, if the task judges by them: no network |
| `"frames"`  | the newest imagined frame with the goal image, at four resolutions | frames                                       |
| `"latents"` | the newest imagined latent with the encoded goal image             | latents, nothing is decoded                  |

The tasks "goal" and "follow" pay by pose. To plan for their rewards is to plan with a map in which the goal is marked, and the world model
is not asked; it is an upper bound. An agent that plans by frames or latents knows the goal by its picture alone, as the paper's user does.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sana_wm_env.base import CameraEnv
from sana_wm_env.observations import Frames
from sana_wm_env.session import Decode, Imagined

from .agent import entry, newest_image
from .imagination import Imagination

OBJECTIVES = ("reward", "frames", "latents")
CHUNK_COST = 0.01
"""What a chunk must gain, as a share of the way from the present picture to the goal image, to be worth its time."""
DISCOUNT = 0.97
"""Per chunk: the same reward earlier is better."""


class Worth(NamedTuple):
    """values: (N,), larger is better. chunks: (N,) int, how many of the K chunks to play; what follows would only lead away again."""

    values: NDArray[np.float64]
    chunks: NDArray[np.int64]


class Objective(ABC):
    """What candidates are worth."""

    @abstractmethod
    def decode(self, env: CameraEnv) -> Decode:
        """What has to be imagined."""

    @abstractmethod
    def __call__(self, imagined: Imagined, observation: Any, env: CameraEnv, imagination: Imagination) -> Worth:
        """What each of N candidates is worth."""


class RewardObjective(Objective):
    """The discounted sum of the task's rewards."""

    def decode(self, env: CameraEnv) -> Decode:
        """Poses, where the task looks at nothing else."""
        return "latents" if env.task.uses_frames else "poses"

    def __call__(self, imagined: Imagined, observation: Any, env: CameraEnv, imagination: Imagination) -> Worth:
        """All chunks, or those up to the end of the episode."""
        chunks = imagined.rewards.shape[1]
        values = imagined.rewards @ DISCOUNT ** np.arange(chunks)
        return Worth(values, np.minimum(chunks, chunks - imagined.terminated.sum(1) + 1))


class GoalImageObjective(Objective):
    """How much of the difference between present picture and goal image is gone after the best chunk.

    Args:
        space: "frames" or "latents".
    """

    def __init__(self, space: str):
        self.space = space

    def decode(self, env: CameraEnv) -> Decode:
        """The newest frame, or nothing."""
        return "last" if self.space == "frames" else "latents"

    def __call__(self, imagined: Imagined, observation: Any, env: CameraEnv, imagination: Imagination) -> Worth:
        """Shares of the difference, less `CHUNK_COST` per chunk."""
        _, goal = entry(observation, "goal_image")
        present = newest_image(observation)
        if self.space == "frames":
            assert imagined.frames is not None
            distance, start = picture_distance(imagined.frames, goal), picture_distance(present, goal)
        else:
            assert imagined.latents is not None
            target, before = self._encoded(goal, env, imagination), self._encoded(present, env, imagination)
            distance = np.square(imagined.latents[:, :, :, -1] - target).mean((2, 3, 4))
            start = np.square(before - target).mean()
        gained = 1 - distance / max(float(start), 1e-9)
        worth = gained - CHUNK_COST * np.arange(1, distance.shape[1] + 1)
        return Worth(worth.max(1), worth.argmax(1) + 1)

    @staticmethod
    def _encoded(image: Frames, env: CameraEnv, imagination: Imagination) -> NDArray[np.float32]:
        """uint8 (H, W, 3) -> its latent (C, h, w)."""
        model = imagination.model(env)
        if model is None:
            raise ValueError('got the objective "latents" and no model to encode the goal image; wanted the objective "frames"')
        return model.encode(torch.from_numpy(image)[None, None])[0, :, 0].float().cpu().numpy()


def picture_distance(pictures: Frames, goal: Frames, levels: int = 4) -> NDArray[np.float64]:
    """Mean squared difference of colours (0 to 1), at full, half, quarter, ... resolution, averaged.

    Coarse levels tell from afar which way to go, fine ones where to stop.

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
    """The objective of that name. ValueError for another."""
    if name not in OBJECTIVES:
        raise ValueError(f"got the objective {name!r}; wanted one of {', '.join(OBJECTIVES)}")
    return RewardObjective() if name == "reward" else GoalImageObjective(name)
