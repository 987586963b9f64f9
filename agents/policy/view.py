"""The view of a small policy: what it sees of an observation, and which axes of the camera it moves.

Thumbnails and poses in one vector: a network of two small layers learns from them within some thousand
chunks, as many as an imagined world affords on a CPU.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sana_wm_env.base import CameraEnv
from sana_wm_env.settings import check_settings

from ..agent import WALK, Action, steer


@dataclass(frozen=True)
class View:
    """The input of a policy, and the axes that it moves."""

    side: int = 8
    """pixels along each side of the thumbnails"""
    axes: tuple[int, ...] = WALK
    """axes that move: 0 right, 1 down, 2 forward, 3 look up, 4 turn right, 5 roll"""
    entries: tuple[str, ...] = ()
    """entries of the observation that are shown; none given: all but the intrinsics and the pose since the
    first frame
    """

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, side="[1, 1024]", axes="[0, 5]")

    def space(self, seen: gym.spaces.Dict) -> gym.spaces.Box:
        """The space of `see`, for observations in `seen`.

        Raises:
            ValueError: an entry that the observation does not have.
        """
        limits = [self._limit(seen[name]) for name in self._shown(seen.spaces)]
        high = np.concatenate(limits).astype(np.float32)
        return gym.spaces.Box(-high, high, dtype=np.float32)

    def see(self, observation: dict[str, Any]) -> NDArray[np.float32]:
        """Dict observations of any leading axes -> float32 (..., n): pictures as thumbnails from -1 to 1,
        poses as they are.
        """
        parts = []
        for name in self._shown(observation):
            value = np.asarray(observation[name])
            if value.dtype == np.uint8:
                pixels = torch.from_numpy(value).movedim(-1, -3).float() / 127.5 - 1
                small = F.adaptive_avg_pool2d(
                    pixels.reshape(-1, *pixels.shape[-3:]), self.side
                )  # (N, 3, side, side)
                value = small.numpy().reshape(*value.shape[:-3], -1)
            parts.append(value.astype(np.float32))
        return np.concatenate(parts, axis=-1)

    def action_space(self) -> gym.spaces.Box:
        """The moving axes, in shares of the environment's limits."""
        return gym.spaces.Box(-1, 1, (len(self.axes),), np.float32)

    def act(self, moved: Any, env: CameraEnv) -> Action:
        """(..., moving axes) -> the environment's actions (..., action size)."""
        return steer(moved, env, self.axes)

    def _shown(self, given: Any) -> list[str]:
        if missing := sorted({*self.entries} - {*given}):
            raise ValueError(
                f"got a view of {missing[0]!r}; wanted entries of the observation: {', '.join(sorted(given))}"
            )
        return [name for name in sorted(given) if name in (self.entries or {*given} - {"intrinsics", "pose"})]

    def _limit(self, space: Any) -> NDArray[np.float32]:
        return np.ones(3 * self.side**2, np.float32) if space.dtype == np.uint8 else space.high
