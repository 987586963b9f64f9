"""What runs in a worker: a batched vector environment on one copy of the weights, whose whole condition is a
value.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from ..base_vector import CameraVectorEnv
from ..candidates import Imagined
from ..episode import Episode
from ..imagine import imagine
from .weights import SharedWorld

SHARED = ("rules", "observation_space", "action_space", "_weights")
"""What all slots share and no step changes: not part of a saved condition."""


class Call(NamedTuple):
    """A call of the vector environment that changes it."""

    method: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}  # nobody writes into it


@dataclass(frozen=True)
class Recipe:
    """How a worker makes its environment.

    Attributes:
        kind: class of the vector environment.
        threads: of torch; results of a CPU depend on how many there are.
        label: name of the world, whatever the folder of a node's copy is called.
        world: files of the world; None where every node finds it by itself.
        kwargs: of the class, the number of slots left out.
    """

    kind: type[CameraVectorEnv]
    threads: int
    label: str
    world: SharedWorld | None
    kwargs: dict[str, Any] = field(default_factory=dict)


class Worker:
    """Some slots of a `RayVectorEnv`, in a process of their own.

    Args:
        recipe: how the environment is made.
        slots: how many.
    """

    def __init__(self, recipe: Recipe, slots: int):
        torch.set_num_threads(recipe.threads)
        kwargs, self.fetched = dict(recipe.kwargs), False
        if recipe.world is not None:
            kwargs["world"], self.fetched = recipe.world.open()
        self.vector = recipe.kind(slots, **kwargs)
        slot = self.vector.slots[0]
        rules = replace(slot.rules, world=recipe.label)
        for each in self.vector.slots:
            each.rules = rules
        self._shared = {name: vars(slot)[name] for name in SHARED if name in vars(slot)}

    def begin(self) -> tuple[dict[str, Any], bytes]:
        """Where this worker is, and its condition before anything is asked of it, with generators."""
        self.vector.np_random  # noqa: B018  # generators that nobody has seeded are drawn now
        return {
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "fetched": self.fetched,
        }, self.save()

    def run(self, call: Call, save: bool) -> tuple[Any, bytes | None]:
        """What a call returns, and the condition after it where it is wanted."""
        result = getattr(self.vector, call.method)(*call.args, **call.kwargs)
        return result, self.save() if save else None

    def replay(self, condition: bytes, calls: Sequence[Call]) -> None:
        """Goes back to a condition, and on through the calls that followed it."""
        self.load(condition)
        for call in calls:
            self.run(call, False)

    def save(self) -> bytes:
        """The condition as bytes: episodes, generators, counters, what is shown."""
        names = {id(value): name for name, value in self._shared.items()}
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
        pickler.persistent_id = lambda value: names.get(id(value))  # type: ignore[method-assign]
        pickler.dump(self.vector)
        return buffer.getvalue()

    def load(self, condition: bytes) -> None:
        """Takes over what `save` returned, in this process or in another."""
        unpickler = pickle.Unpickler(io.BytesIO(condition))
        unpickler.persistent_load = self._shared.__getitem__  # type: ignore[method-assign]
        self.vector = unpickler.load()

    def session(self, slot: int) -> Episode:
        """The running episode of a slot, in memory of its own on the CPU."""
        return _to_cpu(self.vector.slots[slot].episode)

    def shown(self) -> Any:
        """The newest observations of all slots."""
        return self.vector.observe()

    def states(self) -> list[Any]:
        """The sessions of all slots, on the CPU."""
        return [_move(state) for state in self.vector.save_state()]

    def imagine(
        self, episode: Episode, actions: NDArray[Any], first: int, options: Mapping[str, Any]
    ) -> Imagined:
        """What sequences of actions would lead to from an episode of any worker; `first` is the place of
        their first among all candidates.
        """
        slot = self.vector.slots[0]
        if hasattr(slot, "model"):
            state = slot.model.accept(episode.state)
            episode = replace(episode, state=state)
            return imagine(slot.rules, episode, slot.model, state, actions, first=first, **options)
        twin = slot.twin()
        twin.resume(episode, *twin.repeat_newest(episode))
        return twin.imagine(actions, **options)

    def close(self) -> None:
        """Frees weights and episodes."""
        self.vector.close()


def _to_cpu(episode: Episode) -> Episode:
    return replace(episode, state=_move(episode.state), c2w=np.array(episode.c2w))


def _move(state: Any) -> Any:
    return state.detached().map(lambda t: t.cpu()) if hasattr(state, "detached") else state
