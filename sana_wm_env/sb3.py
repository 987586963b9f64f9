"""Stable-Baselines3 on Gymnasium's vector environments, which it does not take by itself. Needs the extra
`rl`.

    import gymnasium as gym
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecMonitor
    from sana_wm_env.sb3 import SB3VecEnv

    worlds = gym.make_vec("SanaWM-v0", num_envs=4, obs_mode="last", autoreset_mode="SameStep")
    PPO("CnnPolicy", VecMonitor(SB3VecEnv(worlds))).learn(10_000)

A single environment needs no adapter: `PPO("CnnPolicy", gym.make("SanaWM-v0", obs_mode="last"))`.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList

from .machine import free_memory

try:
    from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
    from stable_baselines3.common.env_util import is_wrapped
    from stable_baselines3.common.vec_env.base_vec_env import (
        VecEnv,
        VecEnvIndices,
        VecEnvObs,
        VecEnvStepReturn,
    )
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "stable_baselines3":
        raise
    raise ModuleNotFoundError(
        "sana_wm_env.sb3 wants Stable-Baselines3, which is not installed: pip install 'sana-wm-env[rl]'",
        name=error.name,
    ) from None


class SB3VecEnv(VecEnv):
    """A Gymnasium vector environment as Stable-Baselines3 wants one. Works with any, not only with those of
    this package.

    The last observation of an episode is in `info["terminal_observation"]`, with the rest of that step's
    info, and `info["TimeLimit.truncated"]` says whether it was only cut short. What the reset said is in
    `reset_infos`. Wrap in SB3's `VecMonitor` for episode returns in its logs.

    Attributes and methods are those of each slot where slots have their own (`SanaWMVectorEnv`,
    `SyncVectorEnv`, `AsyncVectorEnv`), otherwise those of the vector environment, which all slots share.

    Args:
        env: the vector environment. It must reset finished slots within the same step, because SB3 takes the
            observation after a `done` for the first of the next episode.

    Raises:
        ValueError: another autoreset mode, or observations that SB3 would flatten without a word.
    """

    def __init__(self, env: VectorEnv):
        if (mode := env.metadata.get("autoreset_mode")) != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"got a vector environment with autoreset_mode={mode}; Stable-Baselines3 wants "
                "AutoresetMode.SAME_STEP: "
                "gym.make_vec(..., autoreset_mode='SameStep') for the worlds of this package, otherwise "
                "vector_kwargs={'autoreset_mode': AutoresetMode.SAME_STEP} with "
                "vectorization_mode='sync' or 'async'"
            )
        check_observation_space(env.single_observation_space)
        self.env, self._listing = env, DictInfoToList(env)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = env.metadata

    def reset(self) -> VecEnvObs:
        """Resets all slots with what `seed` and `set_options` have announced, once."""
        # SB3 counts seeds up from slot to slot, and so does Gymnasium.
        obs, self.reset_infos = self._listing.reset(seed=self._seeds[0], options=self._options[0] or None)
        self._reset_seeds()
        self._reset_options()
        return deepcopy(obs)

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """Announces the options of the next reset: one dict, because Gymnasium's vector environments take
        one.

        It is for all slots; `SanaWMVectorEnv` finds those of each slot in its entry `per_slot`.
        """
        if isinstance(options, list):
            raise ValueError(
                "got a list of options; wanted one dict: Gymnasium resets all slots of a vector environment "
                "with the same"
            )
        super().set_options(options)

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions (n, ...) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Observations, float32 rewards (n,), bool dones (n,) and one info per slot."""
        obs, rewards, terminated, truncated, infos = self._listing.step(self._actions)
        dones = terminated | truncated
        for slot in np.flatnonzero(dones):
            last_obs, last_info = infos[slot].pop("final_obs"), infos[slot].pop("final_info")
            self.reset_infos[slot] = infos[slot]
            infos[slot] = last_info | {"terminal_observation": last_obs}
        for slot, info in enumerate(infos):
            info["TimeLimit.truncated"] = bool(truncated[slot] and not terminated[slot])
        # SB3 keeps the observation until after the next step; an environment may write into the same memory
        # again.
        return deepcopy(obs), rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Closes the vector environment."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The newest frame of each slot, (H, W, 3)."""
        images: Any = self.env.render()
        return list(images or [None] * self.num_envs)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of each slot."""
        inner: Any = self.env.unwrapped
        values = (
            inner.get_attr(attr_name)
            if hasattr(inner, "get_attr")
            else [getattr(inner, attr_name)] * self.num_envs
        )
        return [values[slot] for slot in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets the attribute in each slot, or in some where slots have attributes of their own."""
        inner: Any = self.env.unwrapped
        slots = list(self._get_indices(indices))
        if hasattr(inner, "set_attr"):
            values = [value] * self.num_envs if indices is None else self.get_attr(attr_name)
            inner.set_attr(attr_name, [value if slot in slots else old for slot, old in enumerate(values)])
        else:
            self._require_all(slots, f"set {attr_name!r}")
            setattr(inner, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method in each slot and returns its values."""
        inner: Any = self.env.unwrapped
        slots, envs = list(self._get_indices(indices)), self._envs()
        if envs is not None:
            return [envs[slot].get_wrapper_attr(method_name)(*method_args, **method_kwargs) for slot in slots]
        self._require_all(slots, f"call {method_name!r}")
        if hasattr(inner, "call"):
            return list(inner.call(method_name, *method_args, **method_kwargs))
        return [getattr(inner, method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Returns for each slot whether it is wrapped in that class, as far as slots can be inspected."""
        envs = self._envs()
        return [
            envs is not None and is_wrapped(envs[slot], wrapper_class) for slot in self._get_indices(indices)
        ]

    def _envs(self) -> Sequence[gym.Env] | None:
        """The environments of the slots, where they are in this process."""
        inner: Any = self.env.unwrapped
        return getattr(inner, "envs", getattr(inner, "slots", None))

    def _require_all(self, slots: list[int], wish: str) -> None:
        if slots != list(range(self.num_envs)):
            raise ValueError(
                f"got the slots {slots} to {wish} in; wanted all {self.num_envs}: "
                f"{type(self.env.unwrapped).__name__} has no access to one"
            )


def check_observation_space(space: gym.Space) -> None:
    """Refuses what Stable-Baselines3 would take for a plain vector: chunks of frames, alone or in a dict.

    A single environment goes into SB3 without passing through here. `CnnPolicy` then stops with an error of
    SB3's own, in which the space names the wrappers; `MlpPolicy` flattens the chunk, 295 thousand numbers at
    64 x 64 pixels.

    Raises:
        ValueError: names the wrappers that help.
    """
    for part in space.spaces.values() if isinstance(space, gym.spaces.Dict) else [space]:
        if part.shape is not None and len(part.shape) > 3:
            raise ValueError(
                f"got observations of shape {part.shape}, which Stable-Baselines3 would "
                "flatten; wanted images: "
                "gym.make(..., obs_mode='last'), or wrap each environment in sana_wm_env.LastFrame or "
                "sana_wm_env.ChunkToChannels"
            )


def check_replay_buffer(
    buffer_size: int, env: gym.Env | VectorEnv | VecEnv, optimize_memory_usage: bool = False
) -> int:
    """Returns `buffer_size` if a replay buffer of so many transitions fits into memory: SB3 itself only
    warns, and fills it until it dies.

        SAC("CnnPolicy", env, buffer_size=check_replay_buffer(100_000, env))

    Args:
        buffer_size: transitions, over all slots.
        env: what will be trained on.
        optimize_memory_usage: as given to the algorithm: each observation is kept once.

    Raises:
        MemoryError: says how much it would take, how much there is, and how many transitions would fit.
    """
    needed, available = replay_buffer_bytes(buffer_size, env, optimize_memory_usage), free_memory("cpu")
    if needed > available:
        raise MemoryError(
            f"got buffer_size={buffer_size}, a replay buffer of {needed / 2**30:.1f} GiB; wanted at most the "
            f"{available / 2**30:.1f} GiB "
            f"that are available: buffer_size={buffer_size * available // needed} would fill them, smaller "
            "observations take less"
        )
    return buffer_size


def replay_buffer_bytes(
    buffer_size: int, env: gym.Env | VectorEnv | VecEnv, optimize_memory_usage: bool = False
) -> int:
    """Bytes that the arrays of SB3's replay buffer take once `buffer_size` transitions are in them."""
    slots = getattr(env, "num_envs", 1)
    observations: Any = getattr(env, "single_observation_space", env.observation_space)
    actions = getattr(env, "single_action_space", env.action_space)
    # What SB3 allocates for one transition per slot, whatever its spaces and its rules are.
    kind = DictReplayBuffer if isinstance(observations, gym.spaces.Dict) else ReplayBuffer
    smallest = kind(
        slots,
        observations,
        actions,
        n_envs=slots,
        optimize_memory_usage=optimize_memory_usage,
        handle_timeout_termination=not optimize_memory_usage,
    )
    kept = [
        array
        for value in vars(smallest).values()
        for array in (value.values() if isinstance(value, dict) else [value])
    ]
    return max(buffer_size // slots, 1) * sum(array.nbytes for array in kept if isinstance(array, np.ndarray))
