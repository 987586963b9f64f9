"""`gymnasium.make_vec("SanaWM-Rooms-v0", num_envs=N)`: N exact rooms in one process."""

from typing import Any

from gymnasium.vector import AutoresetMode

from ..base_vector import CameraVectorEnv
from .env import RoomsEnv


class RoomsVectorEnv(CameraVectorEnv):
    """`RoomsEnv` N times, one after the other, see `CameraVectorEnv`.

    Args:
        num_envs: slots.
        max_episode_steps: chunks after which a slot is truncated; None for never.
        autoreset_mode: "NextStep", "SameStep" or "Disabled", or `gymnasium.vector.AutoresetMode`.
        **kwargs: of `RoomsEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **kwargs: Any,
    ):
        super().__init__(
            num_envs,
            template=RoomsEnv(**kwargs),
            max_episode_steps=max_episode_steps,
            autoreset_mode=autoreset_mode,
        )
