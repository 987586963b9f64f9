"""Model predictive path integral control (Williams et al. 2015), with a spread that adapts as in TD-MPC2
(Hansen et al. 2024).
"""

import numpy as np

from sana_wm_env.camera import Array

from .imagination import Imagination
from .objectives import Objective
from .planner import Planner, PlannerConfig


class MPPIAgent(Planner):
    """Mean and standard deviation of all candidates, the better ones with exponentially more weight.

    Args:
        config: size of the search.
        objective: see `Planner`.
        imagination: see `Planner`.
        temperature: in standard deviations of the values, so that it means the same for metres and for
            pictures: a candidate that is better by it weighs e times as much.
    """

    def __init__(
        self,
        config: PlannerConfig | None = None,
        objective: str | Objective = "reward",
        imagination: Imagination | None = None,
        temperature: float = 0.25,
    ):
        if not temperature > 0:
            raise ValueError(f"got temperature={temperature!r}; wanted a positive number")
        self.temperature = temperature
        super().__init__(config, objective, imagination)

    def _improve(self, drawn: Array, values: Array) -> tuple[Array, Array]:
        scale = self.temperature * values.std()
        weights = np.exp((values - values.max()) / scale) if scale > 0 else np.ones(len(values))
        weights = (weights / weights.sum())[:, None, None]
        mean = (weights * drawn).sum(0)
        return mean, np.sqrt((weights * np.square(drawn - mean)).sum(0))
