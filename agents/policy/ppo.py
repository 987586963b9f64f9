"""A policy that was learned by proximal policy optimisation (Schulman et al. 2017) through Stable-Baselines3.

Needs the extra `rl`; `train_ppo.py` trains one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sana_wm_env.sb3  # isort: skip  # noqa: F401  # says how to install what is missing, so it comes first

import numpy as np
from stable_baselines3 import PPO

from sana_wm_env.base import CameraEnv

from ..agent import Action, Agent, unwrapped
from .view import View


class PPOAgent(Agent):
    """A trained policy, without its noise.

    Args:
        model: Stable-Baselines3's, with the `View` that it was trained through.
        view: what it sees and moves.
    """

    def __init__(self, model: PPO, view: View):
        self.model, self.view = model, view

    @classmethod
    def load(cls, path: Path | str) -> PPOAgent:
        """Reads what `train` wrote. Such a file can hold code: open none from strangers.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a policy that this package has not trained.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"got the policy {str(path)!r}, which is no file; wanted one that sana-wm agents train wrote"
            )
        model = PPO.load(path, device="cpu")
        return cls(model, _view_of(model, path))

    def act(self, observation: Any, env: CameraEnv) -> Action:
        """The policy's mean."""
        env = unwrapped(env)
        moved, _ = self.model.predict(self.view.see(observation), deterministic=True)
        return self.view.act(np.clip(moved, -1, 1), env)


def _view_of(model: PPO, path: Path | str) -> View:
    view = getattr(model, "view", None)
    if not isinstance(view, dict):
        raise ValueError(
            f"got {str(path)!r}, a policy that does not say what it sees; wanted one that "
            "sana-wm agents train wrote"
        )
    return View(int(view["side"]), tuple(view["axes"]), tuple(view["entries"]))
