"""`gymnasium.make_vec("SanaWM-v0", num_envs=N)`: N sessions on one set of weights, one batched forward per
step.
"""

from typing import Any

from gymnasium.vector import AutoresetMode

from .base_vector import CameraVectorEnv
from .env import SanaWMEnv


class SanaWMVectorEnv(CameraVectorEnv):
    """`SanaWMEnv` N times on one set of weights, see `CameraVectorEnv`.

    Only the forward of the network is common. Poses, rewards and noise of a slot are exactly those it has
    alone; frames agree within one grey level, as products of larger matrices round differently. Slots may be
    of any age: those whose attention windows are equally full go through the network together.

    Args:
        num_envs: slots.
        max_episode_steps: chunks after which a slot is truncated; None for never. `make_vec` passes what the
            id was registered with.
        autoreset_mode: "NextStep", "SameStep" or "Disabled", or `gymnasium.vector.AutoresetMode`.
        template: an environment whose arguments and weights every slot takes, in place of `kwargs`.
        **kwargs: of `SanaWMEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        template: SanaWMEnv | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            num_envs,
            template=SanaWMEnv(**kwargs) if template is None else template,
            max_episode_steps=max_episode_steps,
            autoreset_mode=autoreset_mode,
        )
