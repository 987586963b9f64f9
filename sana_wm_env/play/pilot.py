"""An agent that has the controls, and what it plans, as pictures."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .messages import encode_thumbnail

if TYPE_CHECKING:
    from sana_wm_env.agents.agent import Agent
    from sana_wm_env.agents.planning.imagination import Imagination

    from ..base import CameraEnv
    from ..candidates import Decode, Imagined

SHOWN = 4
"""Candidates of a plan that are shown."""


class Watched:
    """An imagination whose last question is kept, so that its answers can be shown.

    Args:
        imagination: what answers.
    """

    def __init__(self, imagination: Imagination):
        self.imagination = imagination
        self.actions: Any = None
        self.worth: Any = None

    def __call__(self, env: CameraEnv, actions: Any, decode: Decode) -> Imagined:
        """Asks the imagination."""
        imagined = self.imagination(env, actions, decode)
        self.actions, self.worth = actions, np.asarray(imagined.rewards).sum(1)
        return imagined

    def __getattr__(self, name: str) -> Any:
        return getattr(self.imagination, name)


class Pilot:
    """An agent at the controls.

    Args:
        name: as a visitor has chosen it.
        agent: who decides.
        watched: of a planner: where its candidates can be seen.
    """

    def __init__(self, name: str, agent: Agent, watched: Watched | None = None):
        self.name, self.agent, self.watched = name, agent, watched

    def act(self, env: CameraEnv) -> tuple[np.ndarray, dict[str, Any] | None]:
        """Returns the next action (6,), and the plan behind it as the page shows it, if there is one."""
        episode = env.episode
        frames = np.repeat(env.newest_frame(episode)[None], 1, axis=0)
        action = self.agent.act(env.rules.observe(episode, frames), env)
        return np.asarray(action, np.float32), None if self.watched is None else self._plan(env)

    def _plan(self, env: CameraEnv) -> dict[str, Any] | None:
        """The best candidates of the last question: what each would show, chunk by chunk."""
        watched = self.watched
        if watched is None or watched.actions is None:
            return None
        best = np.argsort(-watched.worth, kind="stable")[:SHOWN]
        imagined = watched.imagination(env, watched.actions[best], "last")
        if imagined.frames is None:
            return None
        return {
            "candidates": [
                {
                    "value": round(float(watched.worth[i]), 3),
                    "pictures": [inline(frame) for frame in pictures],
                    "path": [pose[:3, 3].round(3).tolist() for pose in path],
                }
                for i, pictures, path in zip(best, imagined.frames, imagined.c2w[:, :, -1], strict=True)
            ]
        }


def choices(env: CameraEnv, policy: Path | None) -> dict[str, str]:
    """Agents that can play an environment, by name, and what each does."""
    found = {
        "random": "moves at random",
        "orbit": "circles around what is ahead",
        "look-around": "turns on the spot",
        "lawnmower": "sweeps an area",
    }
    from ..tasks import FreeTask

    if not isinstance(env.task, FreeTask):
        found |= {"go-to-goal": "goes straight to the goal", "cem": "imagines, then takes what was best"}
    if policy is not None:
        found["ppo"] = f"the policy {policy.name}"
    return found


def make_pilot(name: str, env: CameraEnv, policy: Path | None, seed: int) -> Pilot:
    """Returns an agent for an environment. ValueError for one that does not fit."""
    if name not in choices(env, policy):
        why = (
            "a task: --env SanaWM-Goal-v0"
            if name != "ppo"
            else "--policy FILE.zip, from sana-wm agents train"
        )
        raise ValueError(f"got the agent {name!r}, which needs {why}")
    from sana_wm_env.agents.choose import AgentConfig, EnvConfig
    from sana_wm_env.agents.planning.cem import CEMAgent
    from sana_wm_env.agents.planning.planner import PlannerConfig

    small = PlannerConfig(horizon=2, candidates=12, iterations=2, hold=2)
    config = AgentConfig(name, policy=policy, planner=small)  # type: ignore[arg-type]
    watched = None
    if name == "cem":
        from ..env import SanaWMEnv

        if not isinstance(env, SanaWMEnv):
            config = AgentConfig(name, plan_in="truth", planner=small)
        watched = Watched(config.imagination(env, EnvConfig()))
        agent: Agent = CEMAgent(small, "reward", watched)  # type: ignore[arg-type]
    else:
        agent = config.make(env, EnvConfig())
    agent.reset(seed)
    return Pilot(name, agent, watched)


def inline(frame: Any) -> str:
    """A picture that stands in a message itself."""
    data = encode_thumbnail(frame)
    kind = "png" if data[:4] == b"\x89PNG" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
