"""The cross-entropy method (Rubinstein 1999): fit the next candidates to the best of the last ones."""

import numpy as np

from sana_wm_env.camera import Array

from .imagination import Imagination
from .objectives import Objective
from .planner import Planner, PlannerConfig


class CEMAgent(Planner):
    """Mean and standard deviation of the best `elites` of the candidates.

    Args:
        config: size of the search.
        objective: see `Planner`.
        imagination: see `Planner`.
        elites: share of the candidates; at least two are taken.
    """

    def __init__(
        self,
        config: PlannerConfig | None = None,
        objective: str | Objective = "reward",
        imagination: Imagination | None = None,
        elites: float = 0.15,
    ):
        if not 0 < elites <= 1:
            raise ValueError(f"got elites={elites!r}; wanted a share, more than 0 and at most 1")
        self.elites = elites
        super().__init__(config, objective, imagination)

    def _improve(self, drawn: Array, values: Array) -> tuple[Array, Array]:
        best = drawn[np.argsort(-values, kind="stable")[: max(2, round(self.elites * len(drawn)))]]
        return best.mean(0), best.std(0)
