"""The two baseline agents: random actions, and none."""

from typing import Any

import numpy as np

from sana_wm_env.base import CameraEnv

from .agent import Action, Agent, unwrapped


class RandomAgent(Agent):
    """Uniformly random actions."""

    def reset(self, seed: int | None = None) -> None:
        """Seeds the draws."""
        self._rng = np.random.default_rng(seed)

    def act(self, observation: Any, env: CameraEnv) -> Action:
        """Uniform in the box."""
        env = unwrapped(env)
        return self._rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)


class StillAgent(Agent):
    """Stays where it is."""

    def act(self, observation: Any, env: CameraEnv) -> Action:
        """Zeros."""
        env = unwrapped(env)
        return np.zeros(env.action_space.shape, np.float32)
