"""Solvers of stable-worldmodel (0.1.1, extra `swm`) that plan in this package's imaginations: CEM, iCEM,
MPPI, predictive sampling.

Their solvers need one method of a world model, the protocol `Costable`: the costs of sequences of actions.
`CostableWorld` has it, `SolverAgent` plays the result. Solvers that follow gradients (`GradientSolver`,
`PGDSolver`) find none here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from sana_wm_env.base import CameraEnv

from ..agent import WALK, Action, Agent, steer, unwrapped
from .imagination import Imagination, OwnImagination
from .objectives import Objective, find_usable, make_objective


class CostableWorld:
    """One environment's future, as costs.

    Args:
        env: where actions are to be taken; it stays as it is.
        objective: "reward", "frames", "latents" or an `Objective`; what it calls worth, negated, is the cost.
        imagination: where candidates are tried out; by default the environment's own.
        axes: what candidates move, see `agent.steer`.
    """

    def __init__(
        self,
        env: CameraEnv,
        objective: str | Objective = "reward",
        imagination: Imagination | None = None,
        axes: tuple[int, ...] = WALK,
    ):
        self.env, self.axes = unwrapped(env), axes
        self.objective = make_objective(objective) if isinstance(objective, str) else objective
        self.imagination = OwnImagination() if imagination is None else imagination
        self._observation: Any = None

    def observe(self, observation: Any) -> None:
        """Observes the environment before each plan."""
        self.objective.check(observation, self.env, self.imagination)
        self.imagination.observe(observation, self.env)
        self._observation = observation

    def get_cost(self, info_dict: dict[str, Any], action_candidates: Tensor) -> Tensor:
        """Costs (1, S) of S candidates; infinite for one whose value is NaN or infinite.

        Args:
            info_dict: not read; `observe` has the observation.
            action_candidates: (1, S, H, axes): H chunks each, cut to [-1, 1].

        Raises:
            ValueError: more than one environment, or no candidate with a finite value.
        """
        if action_candidates.ndim != 4 or len(action_candidates) != 1:
            raise ValueError(
                f"got candidates {tuple(action_candidates.shape)}; wanted (1, S, H, A): one environment has "
                "one CostableWorld"
            )
        imagined = self.imagination(
            self.env, self.actions(action_candidates[0]), self.objective.decode(self.env)
        )
        worth = self.objective(imagined, self._observation, self.env, self.imagination)
        costs = np.where(find_usable(worth, self.env), -worth.values, np.inf)  # NaN would win, or spread
        return torch.from_numpy(costs)[None].to(action_candidates)

    criterion = get_cost  # the protocol has both

    def actions(self, candidates: Tensor) -> Action:
        """Candidates (..., axes) as the environment takes them, (..., action size)."""
        return steer(candidates.detach().cpu().clamp(-1, 1).numpy(), self.env, self.axes)


class Solver(Protocol):
    """The methods of stable-worldmodel's solvers that are used here."""

    def configure(self, *, action_space: Any, n_envs: int, config: Any) -> None:
        """Sets, once, what the solver plans for."""

    def solve(self, info_dict: dict, init_action: Tensor | None = None) -> dict:
        """Finds `actions` (environments, H, axes)."""
        ...


@dataclass(frozen=True)
class Horizon:
    """The part of stable-worldmodel's `PlanConfig` that solvers read; one action is one chunk."""

    horizon: int
    action_block: int = 1


class SolverAgent(Agent):
    """Replans before every chunk, with a warm start from the last plan, and does its first action.

    Args:
        make_solver: from a `CostableWorld` to the solver, such as `lambda world: CEMSolver(world,
            num_samples=64, n_steps=4, topk=8)`.
        horizon: chunks that a plan looks ahead.
        objective: see `CostableWorld`.
        imagination: see `CostableWorld`.
        axes: see `CostableWorld`.
    """

    def __init__(
        self,
        make_solver: Callable[[CostableWorld], Solver],
        horizon: int = 3,
        objective: str | Objective = "reward",
        imagination: Imagination | None = None,
        axes: tuple[int, ...] = WALK,
    ):
        self.make_solver, self.horizon, self.objective, self.axes = make_solver, horizon, objective, axes
        self.imagination = OwnImagination() if imagination is None else imagination
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Forgets the last episode. A solver draws from a generator of its own, which is not reset."""
        self.imagination.reset(seed)
        self._warm_start: Tensor | None = None
        self._solver: Solver | None = None

    def act(self, observation: Any, env: CameraEnv) -> Action:
        """Returns the first action of the best plan that the solver finds."""
        env = unwrapped(env)
        if self._solver is None:
            self._world = CostableWorld(env, self.objective, self.imagination, self.axes)
            self._solver = self.make_solver(self._world)
            self._solver.configure(
                action_space=Box(-1, 1, (1, len(self.axes))), n_envs=1, config=Horizon(self.horizon)
            )
        self._world.observe(observation)
        plan = self._solver.solve({"chunk": torch.zeros(1)}, self._warm_start)["actions"].cpu()
        self._warm_start = plan[:, 1:].clamp(-1, 1)  # costs were those of clamped candidates
        return self._world.actions(plan[0, 0])
