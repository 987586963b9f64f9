"""Planning over a receding horizon: draw candidates, imagine them, draw better ones, do the first chunks of
the best, replan.

`cem.py` and `mppi.py` draw better candidates; everything else is here.
"""

import math
import time
from abc import abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats.qmc import LatinHypercube

from sana_wm_env.base import CameraEnv
from sana_wm_env.camera import Array
from sana_wm_env.numbers import to_whole

from ..agent import WALK, Action, Agent, steer, unwrapped
from .imagination import Imagination, OwnImagination
from .objectives import Objective, Worth, find_usable, make_objective


@dataclass(frozen=True)
class PlannerConfig:
    """Size of the search."""

    horizon: int = 3
    """chunks that a plan looks ahead"""
    candidates: int = 64
    """sequences of actions per iteration"""
    iterations: int = 4
    """times that candidates are drawn"""
    replan_every: int = 1
    """chunks of a plan that are carried out before the next one"""
    hold: int = 1
    """chunks that share one twist: 3 with a horizon of 3 is the smallest search"""
    axes: tuple[int, ...] = WALK
    """axes that move: 0 right, 1 down, 2 forward, 3 look up, 4 turn right, 5 roll; by default those of a
    walker on level ground
    """
    spread: float = 0.7
    """standard deviation of the first candidates, in shares of the limits"""
    least_spread: float = 0.03
    """lower bound of the standard deviation"""
    warm_start: bool = True
    """start from the rest of the last plan"""

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        least = {"horizon": 1, "candidates": 2, "iterations": 1, "replan_every": 1, "hold": 1}
        for name, smallest in least.items():
            to_whole(getattr(self, name), name, smallest)
        if self.replan_every > self.horizon:
            raise ValueError(
                f"got replan_every={self.replan_every} with a horizon of {self.horizon} chunks; wanted no "
                "more than that"
            )
        if (
            not self.axes
            or any(axis not in range(6) for axis in self.axes)
            or len({*self.axes}) < len(self.axes)
        ):
            raise ValueError(f"got axes={self.axes!r}; wanted different numbers from 0 to 5")
        if not 0 < self.least_spread <= self.spread < math.inf:
            raise ValueError(
                f"got spread={self.spread!r}, least_spread={self.least_spread!r}; wanted 0 < "
                "least_spread <= spread"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(pieces, axes) of a candidate."""
        return -(-self.horizon // self.hold), len(self.axes)


class Plan(NamedTuple):
    """The best candidate that was found.

    Attributes:
        actions: (k, action size) float32, k at most the horizon.
        rewards: (k,) their imagined rewards.
        value: its value by the objective.
        twists: (pieces, axes) that the actions were made from.
    """

    actions: Action
    rewards: Array
    value: float
    twists: Array


class Planner(Agent):
    """Plans with an imagination towards an objective, over a receding horizon.

    Args:
        config: size of the search.
        objective: "reward", "frames", "latents" or an `Objective`.
        imagination: where candidates are tried out; by default the environment's own.
    """

    def __init__(
        self,
        config: PlannerConfig | None = None,
        objective: str | Objective = "reward",
        imagination: Imagination | None = None,
    ):
        self.config = PlannerConfig() if config is None else config
        self.objective = make_objective(objective) if isinstance(objective, str) else objective
        self.imagination = OwnImagination() if imagination is None else imagination
        self.reset()

    @abstractmethod
    def _improve(self, drawn: Array, values: Array) -> tuple[Array, Array]:
        """Mean and standard deviation (pieces, axes) to draw from next, from candidates (N, pieces, axes) and
        their values (N,).
        """

    def reset(self, seed: int | None = None) -> None:
        """Forgets plans and statistics."""
        self._rng = np.random.default_rng(seed)
        self.imagination.reset(seed)
        self._left: deque[tuple[Action, float]] = deque()
        self._last: Plan | None = None
        self._executed = 0  # chunks of the last plan that were done
        self.imagined_return, self.plans, self.imagined_chunks, self.plan_seconds = 0.0, 0, 0, 0.0

    def report(self) -> dict[str, float]:
        """Returns the statistics of this episode: imagined return of the actions done, plans, chunks imagined
        for them, seconds they took.
        """
        return {
            "imagined_return": self.imagined_return,
            "plans": self.plans,
            "imagined_chunks": self.imagined_chunks,
            "plan_seconds": self.plan_seconds,
        }

    def act(self, observation: Any, env: CameraEnv) -> Action:
        """Returns the next action of the plan, after replanning if it is time to."""
        began = time.perf_counter()
        env = unwrapped(env)
        self.imagination.observe(observation, env)
        if not self._left:
            plan = self.plan(observation, env)
            self._left.extend(
                list(zip(plan.actions, plan.rewards.tolist(), strict=True))[: self.config.replan_every]
            )
        self.plan_seconds += time.perf_counter() - began
        action, reward = self._left.popleft()
        self._executed += 1
        self.imagined_return += reward
        return action

    def plan(self, observation: Any, env: CameraEnv) -> Plan:
        """Returns the best of all candidates of all iterations, cut where the objective ends it.

        A candidate whose value is NaN or infinite never is the best, nor are others drawn after it.

        Raises:
            ValueError: an objective that does not fit the environment, before anything is imagined; or no
                candidate with a finite value.
        """
        config, env = self.config, unwrapped(env)
        self.objective.check(observation, env, self.imagination)
        mean, spread = self._first_mean(), np.full(config.shape, config.spread)
        best: Plan | None = None
        for _ in range(config.iterations):
            drawn = np.clip(mean + spread * self._normal(), -1, 1)
            drawn[0] = mean
            actions = self.actions(drawn, env)
            imagined = self.imagination(env, actions, self.objective.decode(env))
            worth: Worth = self.objective(imagined, observation, env, self.imagination)
            usable = find_usable(worth, env)
            first = int(np.where(usable, worth.values, -np.inf).argmax())
            if best is None or worth.values[first] > best.value:
                kept = slice(int(worth.chunks[first]))
                best = Plan(
                    actions[first, kept],
                    imagined.rewards[first, kept],
                    float(worth.values[first]),
                    drawn[first],
                )
            if np.ptp(worth.values[usable]) > 0:  # else nothing says where to go
                mean, closer = self._improve(drawn[usable], worth.values[usable])
                # A few candidates that happen to lie together say little about where the best one is, so the
                # spread halves at most.
                spread = np.clip(closer, np.maximum(spread / 2, config.least_spread), config.spread)
            self.imagined_chunks += actions.shape[0] * actions.shape[1]
        assert best is not None
        self.plans += 1
        self._last, self._executed = best, 0
        return best

    def actions(self, twists: Array, env: CameraEnv) -> NDArray[np.float32]:
        """Twists of the moving axes (N, pieces, axes) -> actions (N, horizon, action size)."""
        return steer(
            np.repeat(twists, self.config.hold, axis=1)[:, : self.config.horizon], env, self.config.axes
        )

    def _normal(self) -> Array:
        """Draws standard normal numbers (N, pieces, axes) as a Latin hypercube: along each axis evenly over N
        equally likely parts.

        With few candidates that matters: independent draws easily miss a side.
        """
        config = self.config
        even = LatinHypercube(math.prod(config.shape), rng=self._rng).random(config.candidates)
        return norm.ppf(even).reshape(config.candidates, *config.shape)

    def _first_mean(self) -> Array:
        """The rest of the last plan, then standing still; a piece is the mean of the chunks that share it."""
        config = self.config
        pieces, axes = config.shape
        chunks = np.zeros((pieces * config.hold, axes))
        if config.warm_start and self._last is not None:
            rest = np.repeat(self._last.twists, config.hold, axis=0)[self._executed : config.horizon]
            chunks[: len(rest)] = rest
            if not self._executed:
                return self._last.twists.copy()
        lengths = np.minimum(config.hold, config.horizon - config.hold * np.arange(pieces))[:, None]
        return chunks.reshape(pieces, config.hold, axes).sum(1) / lengths
