"""N environments of one kind in one: every slot with its own episode, all moved together.

`vector.py` has the imagined ones, where a step is one batched forward; `rooms/vector.py` the exact ones.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from math import prod
from typing import Any, ClassVar, NamedTuple, Self

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from numpy.typing import NDArray

from .base import CameraEnv, Start
from .episode import Episode
from .machine import check_fits
from .numbers import to_whole

Flags = NDArray[np.bool_]
MOST_SLOTS = 2**20


class CameraVectorEnv(VectorEnv[Any, Any, Any]):
    """An environment N times. Every slot returns what the same environment returns alone.

    Each slot is a whole environment, with its own generator, options, task and frames to render.

    Observations, `info` arrays and autoreset follow `gymnasium.vector.SyncVectorEnv`. A slot that is reset
    automatically begins as it was last reset with options: from the same picture, room and prompt.

    Args:
        num_envs: slots.
        template: an environment whose arguments and weights every slot takes.
        max_episode_steps: chunks after which a slot is truncated; None for never. `make_vec` passes what the
            id was registered with.
        autoreset_mode: "NextStep", "SameStep" or "Disabled", or `gymnasium.vector.AutoresetMode`.
    """

    metadata: ClassVar[dict[str, Any]] = {**CameraEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int,
        *,
        template: CameraEnv,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ):
        self.num_envs = to_whole(num_envs, "num_envs", 1, MOST_SLOTS)
        if max_episode_steps is not None:
            to_whole(max_episode_steps, "max_episode_steps", 1)
        each = 2 * _count_bytes(template.observation_space)  # that of a slot, and its place in the batch
        check_fits(self.num_envs * each, f"{num_envs} environments", "fewer of them, or obs_mode='last'")
        self.max_episode_steps = max_episode_steps
        self.autoreset_mode = _check_mode(autoreset_mode)
        self.slots: list[Any] = [template.twin() for _ in range(num_envs)]
        self.metadata = {**template.metadata, "autoreset_mode": self.autoreset_mode}  # type: ignore[misc]
        self.render_mode = template.render_mode
        self.single_observation_space = template.observation_space
        self.single_action_space = template.action_space
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

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode in every slot, or in those of `options["reset_mask"]`.

        Args:
            seed: None, one number (slot i gets seed + i) or one per slot.
            options: those of the environment's `reset` for every slot; `per_slot`, a dict or None for each
                slot, which comes on top; and `reset_mask`, bool (num_envs,): the slots to reset, the others
                stay as they are. A slot with neither seed nor options begins as it began before.

        Raises:
            ValueError, TypeError: before any slot changes; the message names the slot.
        """
        asked = SlotResets.of(seed, options, self.num_envs)
        starts = {i: of_slot(i, self.slots[i].choose_start, *asked.of_slot(i)) for i in asked.slots}
        return self.begin(starts, asked.seeds)

    def begin(
        self, starts: Mapping[int, Start], seeds: Sequence[int | None] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """The second half of `reset`: slots by what their `choose_start` returned."""
        infos: dict[str, Any] = {}
        for i, start in starts.items():
            self._shown[i], info = self.slots[i].begin(start, seeds[i] if seeds else None)
            infos = self._add_info(infos, info, i)
            self._elapsed[i] = info["chunk_index"]  # more than 0 for a restored session
            self._ended[i] = False
        return self.observe(), infos

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], Flags, Flags, dict[str, Any]]:
        """Moves every slot for one chunk; `autoreset_mode` decides what happens to ended slots.

        Raises:
            ValueError: a bad action; the message names its slot, and no slot has moved.
            gymnasium.error.ResetNeeded: before the first reset, or if an ended slot was not reset in the mode
                "Disabled".
        """
        check_count(actions, self.num_envs)
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            ended = np.flatnonzero(self._ended).tolist()
            raise gym.error.ResetNeeded(
                f"the episodes of the slots {ended} have ended; call "
                f"reset(options={{'reset_mask': mask}}) first"
            )
        over = (
            self._ended
            if self.autoreset_mode is AutoresetMode.NEXT_STEP
            else np.zeros(self.num_envs, np.bool_)
        )
        moving = np.flatnonzero(~over).tolist()
        episodes = {i: of_slot(i, _running, self.slots[i]) for i in moving}
        paths = [of_slot(i, self.slots[i].rules.wish, episodes[i], actions[i]) for i in moving]
        advanced = self.slots[0].advance_each([episodes[i] for i in moving], paths) if moving else []
        steps = {
            i: of_slot(i, self.slots[i].rules.judge, episodes[i], actions[i], frames, path, state)
            for i, (frames, path, state) in zip(moving, advanced, strict=True)
        }
        rewards = np.zeros(self.num_envs)
        terminated = np.zeros(self.num_envs, np.bool_)
        truncated = np.zeros(self.num_envs, np.bool_)
        infos: dict[str, Any] = {}
        for i, slot in enumerate(self.slots):
            if i in steps:
                self._shown[i], rewards[i], terminated[i], truncated[i], info = slot.arrive(steps[i])
                self._elapsed[i] += 1
                truncated[i] |= (
                    self.max_episode_steps is not None and self._elapsed[i] >= self.max_episode_steps
                )
                if self.autoreset_mode is AutoresetMode.SAME_STEP and (terminated[i] or truncated[i]):
                    infos = self._add_info(infos, {"final_obs": self._shown[i], "final_info": info}, i)
                    info = self._reset_slot(i)
            else:
                info = self._reset_slot(i)
            infos = self._add_info(infos, info, i)
        self._ended = (terminated | truncated) & (self.autoreset_mode is not AutoresetMode.SAME_STEP)
        return self.observe(), rewards, terminated, truncated, infos

    def save_state(self, slot: int | None = None) -> Any:
        """Returns the session of one slot, in memory of its own; or a list of all, which share what the slots
        share.
        """
        if slot is None:
            return [each.save_state() for each in self.slots]
        state = self._slot(slot).save_state()
        return state.detached() if hasattr(state, "detached") else state

    def restore_state(
        self, states: Any | Sequence[Any], slot: int | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Continues saved sessions: one per slot, or one state for one `slot`; the other slots stay.

        The step counter of a restored slot is its `chunk_index`. Returns what `reset` returns.

        Raises:
            ValueError: a state of another world, or a wrong number of them; no slot has changed.
        """
        given = list(states) if isinstance(states, list | tuple) else [states]
        chosen = np.ones(self.num_envs, np.bool_)
        if slot is not None:
            chosen = np.arange(self.num_envs) == self.slots.index(self._slot(slot))
        if len(given) != chosen.sum():
            raise ValueError(
                f"got {len(given)} states; wanted {chosen.sum()}, one per slot (a single "
                "slot is named by slot=)"
            )
        left = iter(given)
        if any(state is None for state in given):
            raise ValueError("got None for a state; wanted one that save_state or load gave")
        return self.reset(
            options={
                "reset_mask": chosen,
                "per_slot": [{"state": next(left)} if restored else None for restored in chosen],
            }
        )

    def fork(self, n: int, *, slot: int = 0, **options: Any) -> "CameraVectorEnv":
        """Branches one slot, as `fork` of its environment does."""
        return self._slot(slot).fork(n, **options)

    def imagine(self, actions: Any, *, slot: int = 0, **options: Any) -> Any:
        """What sequences of actions would lead to from one slot, as `imagine` of its environment tells."""
        return self._slot(slot).imagine(actions, **options)

    def start_from(self, episodes: Sequence[Episode], rng: np.random.Generator) -> None:
        """Starts every slot from a running episode, with generators that follow from `rng`, left as it is."""
        for slot, generator in zip(self.slots, deepcopy(rng).spawn(self.num_envs), strict=True):
            slot.np_random = generator
        self.begin({i: Start(episode) for i, episode in enumerate(episodes)})

    def render(self) -> tuple[Any, ...]:
        """Returns what `render` of every slot does."""
        return tuple(slot.render() for slot in self.slots)

    def close_extras(self, **kwargs: Any) -> None:
        """Frees weights and episodes."""
        for slot in self.slots:
            slot.close()

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The attribute `name` of every slot, or what it returns if it is a method."""
        values = [getattr(slot, name) for slot in self.slots]
        return tuple(value(*args, **kwargs) if callable(value) else value for value in values)

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
        """Seed of the generator of every slot."""
        return tuple(slot.np_random_seed for slot in self.slots)

    def _reset_slot(self, i: int) -> dict[str, Any]:
        self._shown[i], info = self.slots[i].reset()
        self._elapsed[i] = 0
        return info

    def observe(self) -> Any:
        """All newest observations in fresh arrays."""
        for i, slot in enumerate(self.slots):
            of_slot(i, _running, slot)
        return concatenate(
            self.single_observation_space,
            self._shown,
            create_empty_array(self.single_observation_space, self.num_envs),
        )

    def _slot(self, slot: Any) -> Any:
        """The environment of a slot; ValueError if there is none of that number."""
        return self.slots[to_whole(slot, "slot", 0, self.num_envs - 1)]


def _count_bytes(space: gym.Space[Any]) -> int:
    """Bytes of an observation, as far as they can be told."""
    if isinstance(space, gym.spaces.Dict):
        return sum(_count_bytes(part) for part in space.spaces.values())
    return 0 if space.shape is None or space.dtype is None else prod(space.shape) * space.dtype.itemsize


def check_count(actions: Any, count: int) -> None:
    """ValueError if these are not `count` actions."""
    if not hasattr(actions, "__len__") or isinstance(actions, str | Mapping):
        raise ValueError(f"got actions of type {type(actions).__name__}; wanted {count}, one per slot")
    if len(actions) != count:
        raise ValueError(f"got {len(actions)} actions; wanted {count}, one per slot")


class SlotResets(NamedTuple):
    """What a reset of a vector environment asks for: the slots to reset, options for all of them; options and
    seed of every slot.
    """

    slots: list[int]
    shared: dict[str, Any]
    per_slot: list[dict[str, Any]]
    seeds: list[int | None]

    @classmethod
    def of(cls, seed: Any, options: Any, count: int) -> Self:
        """What the arguments of a `reset` ask for; ValueError, TypeError for what cannot be."""
        if not isinstance(options or {}, Mapping):
            raise ValueError(f"got options of type {type(options).__name__}; wanted a dict")
        shared = dict(options or {})
        slots = _choose_slots(shared.pop("reset_mask", None), count)
        per_slot = _options_of(shared.pop("per_slot", None), count)
        return cls(slots, shared, per_slot, _seeds_of(seed, count))

    def of_slot(self, i: int) -> tuple[int | None, dict[str, Any] | None]:
        """Seed and options of one slot, None where nothing is given."""
        return self.seeds[i], (self.shared | self.per_slot[i]) or None


def _choose_slots(mask: Any, count: int) -> list[int]:
    """The slots that `options["reset_mask"]` names; all for None."""
    if mask is None:
        return list(range(count))
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(
            "got options['reset_mask'] of type "
            f"{getattr(mask, 'dtype', type(mask).__name__)}; wanted a bool array"
        )
    if mask.shape != (count,) or not mask.any():
        raise ValueError(
            f"got options['reset_mask']={mask}; wanted ({count},), True for the slots to reset, one at least"
        )
    return np.flatnonzero(mask).tolist()


def _seeds_of(seed: Any, count: int) -> list[int | None]:
    """The seed of each slot: one number counts on from slot to slot."""
    if seed is None:
        return [None] * count
    if isinstance(seed, list | tuple | np.ndarray):
        if len(seed) != count:
            raise ValueError(f"got seed={seed!r}; wanted {count} of them, one per slot")
        return [None if value is None else to_whole(value, "seed") for value in seed]
    first = to_whole(seed, "seed")
    return [first + i for i in range(count)]


def _options_of(options: Any, count: int) -> list[dict[str, Any]]:
    """Options of each slot, those of `per_slot` with {} for None."""
    if options is None:
        return [{}] * count
    if not isinstance(options, list | tuple) or len(options) != count:
        found = len(options) if hasattr(options, "__len__") else type(options).__name__
        raise ValueError(f"got options['per_slot'] for {found} slots; wanted a list of {count}, one per slot")
    for i, given in enumerate(options):
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"slot {i}: got options of type {type(given).__name__}; wanted a dict or None")
    return [dict(given or {}) for given in options]


def _check_mode(mode: Any) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        known = ", ".join(repr(known.value) for known in AutoresetMode)
        raise ValueError(f"got autoreset_mode={mode!r}; wanted one of {known}") from None


def _running(slot: CameraEnv) -> Episode:
    return slot.episode


def of_slot(i: int, call: Callable[..., Any], *args: Any) -> Any:
    """call(*args), whose errors name the slot."""
    try:
        return call(*args)
    except (ValueError, gym.error.ResetNeeded) as error:
        raise type(error)(f"slot {i}: {error}") from None
