"""The agents by name, and the environments they play in, as the command line knows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym

import sana_wm_env  # noqa: F401  # registers the environments
from sana_wm_env.base import CameraEnv
from sana_wm_env.env import SanaWMEnv
from sana_wm_env.model.world import WorldModel
from sana_wm_env.settings import check_settings
from sana_wm_env.tasks import Task

from .agent import Agent
from .planning.cem import CEMAgent
from .planning.imagination import AnchoredImagination, Imagination, OwnImagination, TrueImagination
from .planning.mppi import MPPIAgent
from .planning.planner import PlannerConfig
from .policy.redness import RednessTask
from .random_agent import RandomAgent, StillAgent
from .scripted import GoToGoalAgent, LawnmowerAgent, LookAroundAgent, OrbitAgent

PLANNERS: dict[str, type[CEMAgent] | type[MPPIAgent]] = {"cem": CEMAgent, "mppi": MPPIAgent}
SCRIPTS: dict[str, Callable[[], Agent]] = {
    "random": RandomAgent,
    "still": StillAgent,
    "orbit": OrbitAgent,
    "look-around": LookAroundAgent,
    "lawnmower": LawnmowerAgent,
    "go-to-goal": GoToGoalAgent,
}
AgentName = Literal[
    "random", "still", "orbit", "look-around", "lawnmower", "go-to-goal", "cem", "mppi", "ppo"
]


@dataclass(frozen=True)
class EnvConfig:
    """The environment that an agent plays in."""

    env: str = "SanaWM-Goal-v0"
    """id of an environment: SanaWM-Goal-v0 is imagined, SanaWM-RoomsGoal-v0 the truth"""
    task: Literal["redness"] | None = None
    """another task than the id's: "redness" pays for turning to what is red"""
    chunks: int = 8
    """chunks after which an episode is cut short"""
    world: str = "rooms"
    """the world model: name of a bundled world, or the folder of a trained one"""
    device: str = "cpu"
    image_size: int | None = None
    """side of the frames in pixels, of the exact rooms alone: 16 are rendered ten times as fast as 64, and
    enough for thumbnails
    """

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, chunks="[1, inf)", image_size="[8, 4096]")

    def make(self, **options: Any) -> gym.Env:
        """The environment, with dict observations."""
        return gym.make(
            self.env, max_episode_steps=self.chunks, disable_env_checker=True, **self.arguments(), **options
        )

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of `gymnasium.make` and `make_vec`."""
        if self.env not in gym.registry or not self.env.startswith("SanaWM-"):
            known = ", ".join(name for name in gym.registry if name.startswith("SanaWM-"))
            raise ValueError(f"got the environment {self.env!r}; wanted one of {known}")
        task: dict[str, Task] = {"task": RednessTask()} if self.task else {}
        if self.imagined and self.image_size is not None:
            raise ValueError(
                f"got image_size={self.image_size} for {self.env}, whose world decides; wanted it "
                "for exact rooms alone"
            )
        size = {} if self.image_size is None else {"image_size": (self.image_size, self.image_size)}
        world = {"world": self.world} if self.imagined else size
        return {"obs_mode": "dict", "device": self.device, **world, **task}

    @property
    def imagined(self) -> bool:
        """True for an imagined environment, False for the renderer."""
        return "Rooms" not in self.env


@dataclass(frozen=True)
class AgentConfig:
    """The agent that plays."""

    agent: AgentName = "random"
    policy: Path | None = None
    """of the agent "ppo": a file that `sana-wm agents train` wrote"""
    objective: Literal["reward", "frames", "latents"] = "reward"
    """of a planner: the task's rewards, or likeness to the goal image, in pixels or in latents"""
    plan_in: Literal["model", "truth"] = "model"
    """of a planner: "model" imagines, from the newest true frame where the environment is not imagined;
    "truth" plays copies
    """
    anchor_every: int = 1
    """of a planner in an exact environment: chunks between the true frames that its model starts from"""
    planner: PlannerConfig = field(default_factory=PlannerConfig)

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, anchor_every="[1, inf)")

    def make(self, env: CameraEnv, place: EnvConfig, world: WorldModel | None = None) -> Agent:
        """Makes the agent for an environment. `world`: a loaded model to imagine with in an exact
        environment, in place of `place.world`.
        """
        if self.agent in SCRIPTS:
            return SCRIPTS[self.agent]()
        if self.agent == "ppo":
            from .policy.ppo import PPOAgent

            if self.policy is None:
                raise ValueError(
                    "got the agent ppo without a policy; wanted --policy FILE.zip, from sana-wm agents train"
                )
            return PPOAgent.load(self.policy)
        return PLANNERS[self.agent](self.planner, self.objective, self.imagination(env, place, world))

    def imagination(self, env: CameraEnv, place: EnvConfig, world: WorldModel | None = None) -> Imagination:
        """Makes the imagination that a planner plans in."""
        if self.plan_in == "truth":
            if isinstance(env, SanaWMEnv):
                raise ValueError(
                    f"got --plan-in truth in {place.env}, which imagines: it is its own truth; wanted "
                    "--plan-in model, or an environment "
                    "of exact rooms such as SanaWM-RoomsGoal-v0"
                )
            return TrueImagination()
        if isinstance(env, SanaWMEnv):
            return OwnImagination()
        return AnchoredImagination(world or WorldModel.load(place.world, place.device), self.anchor_every)
