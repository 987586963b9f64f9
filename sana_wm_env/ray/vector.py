"""`gymnasium.make_vec(..., backend="ray")`: N slots shared out among workers of a Ray cluster."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import ray
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sana_wm_env.model.kernels.select import choose_dtype
from sana_wm_env.model.storage.worlds import load_config

from ..actions import action_path
from ..base import CameraEnv
from ..base_vector import CameraVectorEnv, Flags, SlotResets, check_count, of_slot
from ..candidates import Imagined
from ..episode import Episode
from ..numbers import to_number, to_whole
from .joining import join, join_infos
from .pool import Pool
from .weights import SharedWorld
from .worker import Call, Recipe


class Batch(NamedTuple):
    """What one worker's slots returned, see `RayVectorEnv.recv`.

    Attributes:
        worker: which; the next actions for these slots go to `send(actions, worker)`.
        slots: their numbers.
        obs, rewards, terminated, truncated, infos: as of `step`, of these slots alone.
    """

    worker: int
    slots: range
    obs: Any
    rewards: NDArray[np.float64]
    terminated: Flags
    truncated: Flags
    infos: dict[str, Any]


class RayVectorEnv(VectorEnv[Any, Any, Any]):
    """A vector environment whose slots are shared out among workers, each with one copy of the weights.

    `step` moves all slots in lockstep; `send` and `recv` take batches as they are ready. Poses, rewards and
    random numbers are those of one vector environment with as many slots; frames too where as many go
    through the network together, else within a few grey levels (`SanaWMVectorEnv`).

    A worker that dies is replaced. The new one goes back to the last saved condition and does the calls since
    once more, so that frames, rewards and generators go on as if nothing had happened.

    Args:
        num_envs: slots.
        kind: class of the vector environment in each worker, which says what the slots are.
        workers: processes, with slots as equal in number as can be.
        num_cpus: of each worker, which are also its torch threads.
        num_gpus: of each worker; a share such as 0.5 puts two on a GPU. Wants device="cuda".
        checkpoint_every: calls between two saved conditions. A worker that dies costs so many at most; each
            condition goes to this process, where it takes as much memory as the sessions.
        share_weights: whether the world's files go through the object store to the nodes; False where every
            node finds the world by itself.
        start_timeout_s: seconds that a worker may take to start.
        actor_options: more of Ray's options of an actor, such as {"scheduling_strategy": "SPREAD"}.
        max_episode_steps: chunks after which a slot is truncated; None for never.
        autoreset_mode: as of `CameraVectorEnv`.
        **kwargs: of the environment.

    Raises:
        ValueError: what cannot be shared out, before a worker starts.
        RuntimeError: the cluster has no place for a worker.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        kind: type[CameraVectorEnv],
        workers: int = 2,
        num_cpus: float = 1,
        num_gpus: float = 0,
        checkpoint_every: int = 4,
        share_weights: bool = True,
        start_timeout_s: float = 600,
        actor_options: Mapping[str, Any] | None = None,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **kwargs: Any,
    ):
        self.num_envs = to_whole(num_envs, "num_envs", 1)
        count = to_whole(workers, "workers", 1, self.num_envs)
        to_whole(checkpoint_every, "checkpoint_every", 1)
        _check_places(num_cpus, num_gpus, kwargs.get("device", "cpu"))
        vectors = {"max_episode_steps": max_episode_steps, "autoreset_mode": autoreset_mode}
        # one slot, without weights, says what all are
        self._template = kind(1, **vectors, **kwargs)
        slot: CameraEnv = self._template.slots[0]
        self.autoreset_mode = self._template.autoreset_mode
        self.metadata = self._template.metadata
        self.render_mode = slot.render_mode
        self.single_observation_space = slot.observation_space
        self.single_action_space = slot.action_space
        if not ray.is_initialized():
            # a cluster is joined where it was named, not because somebody has one here
            ray.init(address=os.environ.get("RAY_ADDRESS", "local"), include_dashboard=False)
        folder = getattr(slot, "model_folder", None)
        world = SharedWorld.of(folder) if folder is not None and share_weights else None
        if folder is not None:
            kwargs["dtype"] = _choose_dtype(folder, kwargs.get("dtype"), kwargs.get("device", "cpu"))
        threads = max(1, int(num_cpus))
        recipe = Recipe(kind, threads, slot.rules.world, world, kwargs | vectors)
        sizes = [self.num_envs * (i + 1) // count - self.num_envs * i // count for i in range(count)]
        options = {"num_cpus": num_cpus, "num_gpus": num_gpus, **(actor_options or {})}
        self._pool = Pool(recipe, sizes, options, checkpoint_every, start_timeout_s)
        self._sent: dict[int, tuple[Call, Any]] = {}
        self._over = np.zeros(self.num_envs, np.bool_)

    @property
    def workers(self) -> list[dict[str, Any]]:
        """Of each worker: its slots, pid, node, and whether it fetched the weights for its node."""
        return [{"slots": seat.slots, **seat.about} for seat in self._pool.seats]

    @property
    def replaced(self) -> int:
        """Workers that have died and been replaced."""
        return self._pool.replaced

    @cached_property
    def observation_space(self) -> gym.Space[Any]:  # type: ignore[override]
        return batch_space(self.single_observation_space, self.num_envs)

    @cached_property
    def action_space(self) -> gym.Space[Any]:  # type: ignore[override]
        return batch_space(self.single_action_space, self.num_envs)

    # ---- all slots in lockstep

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As `CameraVectorEnv.reset`. A refused reset changes no slot of any worker."""
        self._require_idle("reset")
        asked = SlotResets.of(seed, options, self.num_envs)
        mask = np.zeros(self.num_envs, np.bool_)
        mask[asked.slots] = True
        calls = {}
        for i, seat in enumerate(self._pool.seats):
            rows = slice(seat.slots.start, seat.slots.stop)
            if mask[rows].any():
                # a slot with neither seed nor options begins as it began before
                mine = asked.shared | {"reset_mask": mask[rows]}
                if any(asked.per_slot[rows]):
                    mine["per_slot"] = asked.per_slot[rows]
                calls[i] = Call("reset", kwargs={"seed": asked.seeds[rows], "options": mine})
        done = self._pool.run(calls)
        self._over &= ~mask
        if len(done) < len(self._pool.seats):
            shown = self._pool.ask("shown", {i: () for i in self._numbers() if i not in done})
            done |= {i: (obs, {}) for i, obs in shown.items()}
        return self._join([done[i][0] for i in self._numbers()], [done[i][1] for i in self._numbers()])

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], Flags, Flags, dict[str, Any]]:
        """As `CameraVectorEnv.step`. A refused action moves no slot of any worker."""
        self._require_idle("step")
        check_count(actions, self.num_envs)
        if self.autoreset_mode is AutoresetMode.DISABLED and self._over.any():
            raise gym.error.ResetNeeded(
                f"the episodes of the slots {np.flatnonzero(self._over).tolist()} have ended; call "
                "reset(options={'reset_mask': mask}) first"
            )
        for slot in range(self.num_envs):
            if not (self._over[slot] and self.autoreset_mode is AutoresetMode.NEXT_STEP):
                of_slot(slot, self._check_action, actions[slot])
        done = self._pool.run(
            {
                i: Call("step", (_copy(actions[seat.slots.start : seat.slots.stop]),))
                for i, seat in enumerate(self._pool.seats)
            }
        )
        obs, rewards, terminated, truncated, infos = zip(*(done[i] for i in self._numbers()), strict=True)
        ended = np.concatenate(terminated), np.concatenate(truncated)
        self._note_ends(slice(None), *ended)
        shown, joined = self._join(obs, infos)
        return shown, np.concatenate(rewards), *ended, joined

    # ---- batches as they are ready

    def send(self, actions: Any, worker: int) -> None:
        """Begins a step of one worker's slots, and returns at once. `reset` comes first.

        Raises:
            ValueError: an action of wrong shape or range, or this worker has not been received yet.
        """
        seat = self._pool.seats[to_whole(worker, "worker", 0, len(self._pool.seats) - 1)]
        if worker in self._sent:
            raise ValueError(f"got actions for worker {worker}, whose last step was not received; call recv")
        check_count(actions, len(seat.slots))
        for slot, action in zip(seat.slots, actions, strict=True):
            if not (self._over[slot] and self.autoreset_mode is AutoresetMode.NEXT_STEP):
                of_slot(slot, self._check_action, action)
        call = Call("step", (_copy(actions),))
        self._sent[worker] = call, self._pool.submit(worker, call)

    def recv(self, timeout_s: float | None = None) -> Batch:
        """The first batch that is ready, of whichever worker.

        Raises:
            ValueError: nothing was sent.
            TimeoutError: none was ready in time.
        """
        if not self._sent:
            raise ValueError("got recv() where nothing was sent; call send(actions, worker) first")
        refs = {ref: worker for worker, (_, ref) in self._sent.items()}
        ready, _ = ray.wait(list(refs), timeout=timeout_s)
        if not ready:
            raise TimeoutError(f"none of the workers {sorted(self._sent)} was ready within {timeout_s} s")
        worker = refs[ready[0]]
        call, ref = self._sent.pop(worker)
        (obs, rewards, terminated, truncated, infos), condition = self._pool.wait(worker, call, ref)
        self._pool.commit(worker, call, condition)
        slots = self._pool.seats[worker].slots
        self._note_ends(slice(slots.start, slots.stop), terminated, truncated)
        ours = join_infos([infos], [len(slots)])
        flags = terminated.copy(), truncated.copy()
        return Batch(worker, slots, join([obs]), rewards.copy(), *flags, ours)

    # ---- sessions and imagination

    def save_state(self, slot: int | None = None) -> Any:
        """The session of one slot, or a list of all, on the CPU; any environment of the same world goes on
        from it.
        """
        if slot is None:
            states = self._pool.ask("states", dict.fromkeys(self._numbers(), ()))
            return [state for i in self._numbers() for state in states[i]]
        worker, row = self._find(slot)
        return self._pool.ask("states", {worker: ()})[worker][row]

    def restore_state(
        self, states: Any | Sequence[Any], slot: int | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As `CameraVectorEnv.restore_state`."""
        given = list(states) if isinstance(states, list | tuple) else [states]
        chosen = [self._number(slot)] if slot is not None else list(range(self.num_envs))
        if len(given) != len(chosen) or any(state is None for state in given):
            raise ValueError(
                f"got {len(given)} states; wanted {len(chosen)}, one per slot, none of them None"
            )
        each = dict(zip(chosen, given, strict=True))
        mask = np.isin(np.arange(self.num_envs), chosen)
        per_slot = [{"state": each[i]} if i in each else None for i in range(self.num_envs)]
        return self.reset(options={"reset_mask": mask, "per_slot": per_slot})

    def imagine(self, actions: Any, *, slot: int = 0, **options: Any) -> Imagined:
        """As `imagine` of a slot's environment, the candidates shared out among all workers."""
        return self.imagine_from(self.episode(slot), actions, **options)

    def imagine_from(self, episode: Episode, actions: Any, **options: Any) -> Imagined:
        """As `imagine`, from an episode of whoever has the same world and rules: a planner's own environment,
        say.
        """
        rules = self._template.slots[0].rules
        actions = rules.check_sequences(actions)
        count = min(len(self._pool.seats), len(actions))
        borders = [len(actions) * i // count for i in range(count + 1)]
        shared = ray.put(episode)
        parts = self._pool.ask(
            "imagine",
            {i: (shared, actions[borders[i] : borders[i + 1]], borders[i], options) for i in range(count)},
        )
        columns = zip(*(parts[i] for i in range(count)), strict=True)
        joined: list[Any] = [None if column[0] is None else np.concatenate(column) for column in columns]
        return Imagined(*joined)

    def episode(self, slot: int = 0) -> Episode:
        """The running episode of a slot, on the CPU."""
        worker, row = self._find(slot)
        return self._pool.ask("session", {worker: (row,)})[worker]

    def view(self, slot: int = 0) -> CameraEnv:
        """An environment in this process that stands where a slot stands, as planners want to see one. It
        loads weights only if it is stepped.
        """
        twin = self._template.slots[0].twin()
        episode = self.episode(slot)
        twin.resume(episode, *twin.repeat_newest(episode))
        return twin

    def fork(self, n: int, *, slot: int = 0, **options: Any) -> CameraVectorEnv:
        """As `fork` of a slot's environment: the branches are a vector environment of this process, which
        loads the weights here when they first move. `imagine` tries futures on the workers.
        """
        twin: Any = self.view(slot)
        return twin.fork(n, **options)

    # ---- the rest of Gymnasium's interface

    def render(self) -> tuple[Any, ...]:
        """What `render` of every slot returns."""
        return self._each("render")

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The attribute `name` of every slot, or what it returns if it is a method."""
        return self._each("call", name, *args, **kwargs)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute `name` of every slot."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute of every slot to the same value, or to one of a list or tuple each."""
        values = values if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(f"got {len(values)} values; wanted {self.num_envs}, one per slot")
        self._require_idle("set_attr")
        self._pool.run(
            {
                i: Call("set_attr", (name, list(values[seat.slots.start : seat.slots.stop])))
                for i, seat in enumerate(self._pool.seats)
            }
        )

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """Copies of the generators of every slot."""
        return self.get_attr("np_random")

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """Seed of the generator of every slot."""
        return self.get_attr("np_random_seed")

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the workers; the cluster stays, for others."""
        self._sent.clear()
        self._pool.close()

    def _each(self, method: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        self._require_idle(method)
        done = self._pool.run({i: Call(method, args, kwargs) for i in self._numbers()})
        return tuple(value for i in self._numbers() for value in done[i])

    def _numbers(self) -> range:
        return range(len(self._pool.seats))

    def _number(self, slot: Any) -> int:
        return to_whole(slot, "slot", 0, self.num_envs - 1)

    def _find(self, slot: Any) -> tuple[int, int]:
        """Worker of a slot, and its number there."""
        self._require_idle("asking for a session")
        slot = self._number(slot)
        worker = next(i for i, seat in enumerate(self._pool.seats) if slot in seat.slots)
        return worker, slot - self._pool.seats[worker].slots.start

    def _check_action(self, action: Any) -> None:
        rules = self._template.slots[0].rules
        action_path(action, rules.action_mode, rules.limits, batch=())

    def _note_ends(self, rows: slice, terminated: Flags, truncated: Flags) -> None:
        keeps = self.autoreset_mode is not AutoresetMode.SAME_STEP
        self._over[rows] = (terminated | truncated) & keeps

    def _require_idle(self, wish: str) -> None:
        if self.closed or self._pool.seats[0].actor is None:
            raise gym.error.ClosedEnvironmentError("this environment was closed; make a new one")
        if self._sent:
            raise ValueError(
                f"got {wish} while steps of the workers {sorted(self._sent)} were sent and not received; "
                "call recv for each first"
            )

    def _join(self, obs: Sequence[Any], infos: Sequence[Mapping[str, Any]]) -> tuple[Any, dict[str, Any]]:
        return join(obs), join_infos(infos, [len(seat.slots) for seat in self._pool.seats])


def _copy(actions: Any) -> Any:
    """Actions that stay as they are when the caller writes into the array again."""
    return actions.copy() if isinstance(actions, np.ndarray) else list(actions)


def _choose_dtype(folder: Path, dtype: str | None, device: str) -> str | None:
    """The dtype of all workers. What is fastest on a CPU is measured, and busy nodes would not agree."""
    named = load_config(folder).dtype
    if dtype is not None or named != "auto" or device != "cpu":
        return dtype
    return str(choose_dtype(named, device)).removeprefix("torch.")


def _check_places(num_cpus: Any, num_gpus: Any, device: Any) -> None:
    for value, name in ((num_cpus, "num_cpus"), (num_gpus, "num_gpus")):
        if to_number(value, name) < 0:
            raise ValueError(f"got {name}={value!r}; wanted 0 or more for each worker")
    on_gpu = str(device).startswith("cuda")
    if on_gpu and not num_gpus:
        raise ValueError(
            f"got device={device!r} with num_gpus=0, where Ray hides all GPUs from a worker; wanted "
            "num_gpus=1, or a share such as 0.5"
        )
    if on_gpu and str(device) not in ("cuda", "cuda:0"):
        raise ValueError(
            f"got device={device!r}; wanted device='cuda': Ray gives each worker its GPU, which it "
            "sees as the only one"
        )
    if num_gpus and not on_gpu:
        warnings.warn(
            f"got num_gpus={num_gpus} with device={device!r}: the GPUs are held and not used; "
            "device='cuda' uses them",
            stacklevel=3,
        )
