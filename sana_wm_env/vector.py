"""`gymnasium.make_vec("SanaWM-v0", num_envs=N)`: N sessions on one set of weights, one batched forward per step."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from numpy.typing import NDArray

from sana_wm_env.model.world import WorldState

from .env import SanaWMEnv
from .session import SessionEnv

Flags = NDArray[np.bool_]


class SanaWMVectorEnv(VectorEnv[Any, Any, Any]):
    """`SanaWMEnv` N times on one set of weights. Every slot gives what the same environment gives alone.

    Each slot is a whole `SanaWMEnv`, with its own generator, options, task and frames to render; only the forward of the network is
    common. Poses, rewards and noise of a slot are exactly those it has alone; frames agree within one grey level, as products of larger
    matrices round differently. Slots may be of any age: those whose attention windows are equally full go through the network together.

    Observations, `info` arrays and autoreset follow `gymnasium.vector.SyncVectorEnv`.

    Args:
        num_envs: slots.
        max_episode_steps: chunks after which a slot is truncated; None for never. `make_vec` passes what the id was registered with.
        autoreset_mode: "NextStep", "SameStep" or "Disabled", or `gymnasium.vector.AutoresetMode`.
        template: an environment whose arguments and weights every slot takes, in place of `kwargs`.
        **kwargs: of `SanaWMEnv`.
    """

    metadata: ClassVar[dict[str, Any]] = {**SanaWMEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        template: SessionEnv | None = None,
        **kwargs: Any,
    ):
        if num_envs < 1:
            raise ValueError(f"got num_envs={num_envs}; wanted at least 1")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"got max_episode_steps={max_episode_steps}; wanted at least 1, or None for no limit")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        template = SanaWMEnv(**kwargs) if template is None else template
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        self.slots: list[SessionEnv] = [template._sibling() for _ in range(num_envs)]
        self.metadata = {**template.metadata, "autoreset_mode": self.autoreset_mode}  # type: ignore[misc]
        self.render_mode = template.render_mode
        self.single_observation_space, self.single_action_space = template.observation_space, template.action_space
        self._shown: list[Any] = [None] * num_envs  # the newest observation of every slot
        self._elapsed = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, np.bool_)

    # made when asked for: the bounds of a batch of videos take as much memory as the videos

    @cached_property
    def observation_space(self) -> gym.Space[Any]:  # type: ignore[override]
        return batch_space(self.single_observation_space, self.num_envs)

    @cached_property
    def action_space(self) -> gym.Space[Any]:  # type: ignore[override]
        return batch_space(self.single_action_space, self.num_envs)

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode in every slot, or in those of `options["reset_mask"]`.

        Args:
            seed: None, one number (slot i gets seed + i) or one per slot.
            options: those of `SanaWMEnv.reset` for every slot; `per_slot`, a dict or None for each slot, which comes on top; and
                `reset_mask`, bool (num_envs,): the slots to reset, the others stay as they are.

        Raises:
            ValueError, TypeError: before any slot changes; the message names the slot.
        """
        shared = dict(options or {})
        chosen = self._chosen(shared.pop("reset_mask", None))
        own = shared.pop("per_slot", None) or [None] * self.num_envs
        seeds = self._seeds(seed)
        if len(own) != self.num_envs:
            raise ValueError(f"got options['per_slot'] for {len(own)} slots; wanted {self.num_envs}")
        for slot in self.slots[1:]:
            slot.model = self.slots[0].model
        prepared = {i: _of_slot(i, self.slots[i]._checked, shared | dict(own[i] or {})) for i in chosen}
        infos: dict[str, Any] = {}
        for i in chosen:
            self._shown[i], info = self.slots[i]._begin(prepared[i], seeds[i])
            infos = self._add_info(infos, info, i)
            self._elapsed[i], self._ended[i] = info["chunk_index"], False  # more than 0 for a restored session
        return self._observations(), infos

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], Flags, Flags, dict[str, Any]]:
        """Moves every slot for one chunk; what happens to slots whose episode has ended says `autoreset_mode`.

        Raises:
            ValueError: a bad action; the message names its slot, and no slot has moved.
            gymnasium.error.ResetNeeded: before the first reset, or if an ended slot was not reset in the mode "Disabled".
        """
        if len(actions) != self.num_envs:
            raise ValueError(f"got {len(actions)} actions; wanted {self.num_envs}, one per slot")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            ended = np.flatnonzero(self._ended).tolist()
            raise gym.error.ResetNeeded(f"the episodes of the slots {ended} have ended; call reset(options={{'reset_mask': mask}}) first")
        over = self._ended if self.autoreset_mode is AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, np.bool_)
        moving = np.flatnonzero(~over).tolist()
        episodes = {i: self.slots[i]._running() for i in moving}
        paths = [_of_slot(i, self.slots[i]._wish, episodes[i], actions[i]) for i in moving]
        states = [episodes[i].state for i in moving]
        advanced = self.slots[0].model.step_each(states, [torch.from_numpy(path) for path in paths]) if moving else []
        steps = {
            i: self.slots[i]._judge(episodes[i], actions[i], frames.cpu().numpy(), path, state)
            for i, path, (frames, state) in zip(moving, paths, advanced, strict=True)
        }
        rewards, terminated, truncated = np.zeros(self.num_envs), np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
        infos: dict[str, Any] = {}
        for i, slot in enumerate(self.slots):
            if i in steps:
                self._shown[i], rewards[i], terminated[i], truncated[i], info = slot._arrive(steps[i])
                self._elapsed[i] += 1
                truncated[i] |= self.max_episode_steps is not None and self._elapsed[i] >= self.max_episode_steps
                if self.autoreset_mode is AutoresetMode.SAME_STEP and (terminated[i] or truncated[i]):
                    infos = self._add_info(infos, {"final_obs": self._shown[i], "final_info": info}, i)
                    info = self._reset_slot(i)
            else:
                info = self._reset_slot(i)
            infos = self._add_info(infos, info, i)
        self._ended = (terminated | truncated) & (self.autoreset_mode is not AutoresetMode.SAME_STEP)
        return self._observations(), rewards, terminated, truncated, infos

    def save_state(self, slot: int | None = None) -> Any:
        """The session of one slot, in memory of its own; or those of all, a list whose members share what the slots share."""
        if slot is None:
            return [one.save_state() for one in self.slots]
        return self.slots[slot].save_state().detached()

    def restore_state(self, states: WorldState | Sequence[WorldState], slot: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Goes on from saved sessions: one per slot, or one state for one `slot`; the other slots stay.

        The step counter of a restored slot is its `chunk_index`. Returns what `reset` returns.

        Raises:
            ValueError: a state of another world, or a wrong number of them; no slot has changed.
        """
        given = [states] if isinstance(states, WorldState) else list(states)
        chosen = np.ones(self.num_envs, np.bool_) if slot is None else np.arange(self.num_envs) == range(self.num_envs)[slot]
        if len(given) != chosen.sum():
            raise ValueError(f"got {len(given)} states; wanted {chosen.sum()}, one per slot (a single slot is named by slot=)")
        left = iter(given)
        return self.reset(options={"reset_mask": chosen, "per_slot": [{"state": next(left)} if one else None for one in chosen]})

    def render(self) -> tuple[Any, ...]:
        """What `render` of every slot returns."""
        return tuple(slot.render() for slot in self.slots)

    def close_extras(self, **kwargs: Any) -> None:
        """Frees weights and episodes."""
        for slot in self.slots:
            slot.close()

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The attribute `name` of every slot, or what it returns if it is a method."""
        found = [getattr(slot, name) for slot in self.slots]
        return tuple(one(*args, **kwargs) if callable(one) else one for one in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute `name` of every slot."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute of every slot to the same value, or to one of a list or tuple each."""
        values = values if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(f"got {len(values)} values; wanted {self.num_envs}, one per slot")
        for slot, value in zip(self.slots, values, strict=True):
            setattr(slot, name, value)

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of every slot."""
        return tuple(slot.np_random for slot in self.slots)

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """What the generator of every slot was seeded with."""
        return tuple(slot.np_random_seed for slot in self.slots)

    def _reset_slot(self, i: int) -> dict[str, Any]:
        self._shown[i], info = self.slots[i].reset()
        self._elapsed[i] = 0
        return info

    def _observations(self) -> Any:
        """All newest observations in fresh arrays."""
        for i, slot in enumerate(self.slots):
            _of_slot(i, slot._running)
        return concatenate(self.single_observation_space, self._shown, create_empty_array(self.single_observation_space, self.num_envs))

    def _chosen(self, mask: Any) -> list[int]:
        if mask is None:
            return list(range(self.num_envs))
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"got options['reset_mask'] of type {getattr(mask, 'dtype', type(mask).__name__)}; wanted a bool array")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"got options['reset_mask']={mask}; wanted ({self.num_envs},), True for the slots to reset, one at least")
        return np.flatnonzero(mask).tolist()

    def _seeds(self, seed: Any) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else list(seed)
        if len(seeds) != self.num_envs or any(one is not None and not (isinstance(one, int | np.integer) and one >= 0) for one in seeds):
            raise ValueError(f"got seed={seed!r}; wanted None, a whole number from 0, or one for each of the {self.num_envs} slots")
        return [None if one is None else int(one) for one in seeds]


def _of_slot(i: int, call: Callable[..., Any], *args: Any) -> Any:
    """call(*args), whose errors name the slot."""
    try:
        return call(*args)
    except (ValueError, gym.error.ResetNeeded) as error:
        raise type(error)(f"slot {i}: {error}") from None
