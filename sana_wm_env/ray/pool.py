"""The workers of a `RayVectorEnv`: who does what, and how one that dies is replaced.

Every worker has a condition that was saved some calls ago, and the calls since. That is all it takes to put
another in its place, and to undo a call that some workers have done and one has refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from .worker import Call, Recipe, Worker

MOST_DEATHS = 3
"""Workers that may die over the same call, before somebody is told."""


@dataclass
class Seat:
    """The place of a worker.

    Attributes:
        slots: its slots, numbers of the whole.
        actor: whoever sits here.
        about: pid, node, and whether the node's copy of the world was fetched.
        condition: saved, and calls: done since.
        torn: whether a call is under way, or nobody knows how far it came.
    """

    slots: range
    actor: Any = None
    about: dict[str, Any] = field(default_factory=dict)
    condition: bytes = b""
    calls: list[Call] = field(default_factory=list)
    torn: bool = False


class Pool:
    """Workers and what they have done.

    Args:
        recipe: how each makes its environment.
        sizes: slots of each worker.
        options: of a Ray actor: num_cpus, num_gpus, scheduling_strategy and so on.
        checkpoint_every: calls after which a worker's condition is saved anew.
        start_timeout_s: seconds that a worker may take to find a place, load its weights and come back to
            where the last one was.
    """

    def __init__(
        self,
        recipe: Recipe,
        sizes: Sequence[int],
        options: Mapping[str, Any],
        checkpoint_every: int,
        start_timeout_s: float,
    ):
        self.recipe, self.options, self.every, self.timeout = (
            recipe,
            dict(options),
            checkpoint_every,
            start_timeout_s,
        )
        self.replaced = 0
        firsts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.seats = [Seat(range(first, first + n)) for first, n in zip(firsts, sizes, strict=True)]
        try:
            for seat in self.seats:
                self._hire(seat)
            for seat in self.seats:
                seat.about, seat.condition = self._wait(seat.actor.begin.remote())
        except BaseException:
            self.close()
            raise

    def run(self, calls: Mapping[int, Call]) -> dict[int, Any]:
        """What the workers of these seats return. All have done their call at the end, or none.

        Raises:
            ValueError, gymnasium.error.Error: of the first worker that refuses; slots have the numbers of
                the whole.
            RuntimeError: a call that kills workers.
        """
        refs = {i: self.submit(i, call) for i, call in calls.items()}
        done, refusal = {}, None
        for i, call in calls.items():
            try:
                done[i] = self.wait(i, call, refs[i])
            except Exception as error:
                refusal = refusal or error
        if refusal is not None:
            raise refusal  # those who have done it are torn, and go back before their next call
        for i, (_, condition) in done.items():
            self.commit(i, calls[i], condition)
        return {i: result for i, (result, _) in done.items()}

    def submit(self, i: int, call: Call) -> Any:
        """Begins a call; returns Ray's reference to what comes of it."""
        seat = self.seats[i]
        if seat.torn:
            self._survive(seat, self._return)
        seat.torn = True
        return seat.actor.run.remote(call, len(seat.calls) + 1 >= self.every)

    def wait(self, i: int, call: Call, ref: Any) -> tuple[Any, bytes | None]:
        """The result of a call that was begun, and the condition after it; by another worker if the first
        died.
        """
        seat, deaths = self.seats[i], 0
        while True:
            try:
                return ray.get(ref)
            except RayActorError as error:
                deaths += 1
                if deaths > MOST_DEATHS:
                    raise _hopeless(call, error) from error
                self._survive(seat, self._replace)
                ref = self.submit(i, call)
            except RayTaskError as error:
                refusal = _translate(error, seat.slots)
                seat.torn = not isinstance(refusal, ValueError)  # a refused value has changed nothing
                raise refusal from None

    def commit(self, i: int, call: Call, condition: bytes | None) -> None:
        """Notes that a call is done for good."""
        seat = self.seats[i]
        seat.torn = False
        if condition is None:
            seat.calls.append(call)
        else:
            seat.condition, seat.calls = condition, []

    def ask(self, method: str, args: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """What workers answer to questions that change nothing."""
        for i in args:
            if self.seats[i].torn:
                self._survive(self.seats[i], self._return)
        refs = {i: getattr(self.seats[i].actor, method).remote(*given) for i, given in args.items()}
        return {i: self._answer(i, method, args[i], ref) for i, ref in refs.items()}

    def _answer(self, i: int, method: str, args: tuple[Any, ...], ref: Any) -> Any:
        seat, deaths = self.seats[i], 0
        while True:
            try:
                return ray.get(ref)
            except RayActorError as error:
                deaths += 1
                if deaths > MOST_DEATHS:
                    raise _hopeless(Call(method), error) from error
                self._survive(seat, self._replace)
                ref = getattr(seat.actor, method).remote(*args)
            except RayTaskError as error:
                raise _translate(error, seat.slots) from None

    def close(self) -> None:
        """Ends all workers; what they hold of a GPU is free when their processes are gone."""
        for seat in self.seats:
            if seat.actor is not None:
                ray.kill(seat.actor)
                seat.actor = None

    def _hire(self, seat: Seat) -> None:
        seat.actor = ray.remote(Worker).options(**self.options).remote(self.recipe, len(seat.slots))

    def _replace(self, seat: Seat) -> None:
        """Another worker, as far as the last one was."""
        self.replaced += 1
        if seat.actor is not None:
            ray.kill(seat.actor)
        self._hire(seat)
        actor: Any = seat.actor
        seat.about, _ = self._wait(actor.begin.remote())
        self._return(seat)

    def _return(self, seat: Seat) -> None:
        """The worker goes back to the end of its last whole call."""
        self._wait(seat.actor.replay.remote(seat.condition, seat.calls))
        seat.torn = False

    def _survive(self, seat: Seat, action: Any) -> None:
        """An action on a worker, and on another if it dies of it or was dead."""
        for deaths in range(MOST_DEATHS + 1):
            try:
                return action(seat)
            except RayActorError as error:
                if deaths == MOST_DEATHS:
                    raise _hopeless(Call("replay"), error) from error
                action = self._replace

    def _wait(self, ref: Any) -> Any:
        try:
            return ray.get(ref, timeout=self.timeout)
        except GetTimeoutError:
            raise RuntimeError(
                f"a worker with {_words(self.options)} did not start within {self.timeout:g} s; the cluster "
                f"has {_words(ray.available_resources())} to spare. Wanted fewer workers, smaller shares "
                "(num_gpus=0.5), or a longer start_timeout_s"
            ) from None
        except RayTaskError as error:
            raise _translate(error, range(0)) from None


def _translate(error: RayTaskError, slots: range) -> Exception:
    """The error that a worker raised, whose slot has the number of the whole."""
    cause = error.cause
    if not isinstance(cause, Exception):
        return error
    found = re.match(r"slot (\d+): (.*)", str(cause), re.DOTALL)
    if found and int(found[1]) < len(slots):
        return type(cause)(f"slot {slots[int(found[1])]}: {found[2]}")
    return cause


def _hopeless(call: Call, error: Exception) -> RuntimeError:
    return RuntimeError(
        f"{MOST_DEATHS + 1} workers died one after the other over {call.method!r} "
        f"({str(error).strip()[:300]}); wanted fewer slots for each worker, if they ran out of memory"
    )


def _words(resources: Mapping[str, Any]) -> str:
    wanted = ("num_cpus", "num_gpus", "CPU", "GPU")
    return ", ".join(f"{key}={value:g}" for key, value in resources.items() if key in wanted) or "nothing"
