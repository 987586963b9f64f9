"""One forward for all visitors who want a chunk: those who come while one runs are in the next, together."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..base import CameraEnv
    from ..episode import Episode, Step


class Request(NamedTuple):
    """A chunk that somebody waits for."""

    episode: Episode
    action: Any
    result: asyncio.Future[Step]


class Pool:
    """Steps episodes of one world on a thread of its own, several at once.

    Args:
        env: whose rules and weights all episodes share.
    """

    def __init__(self, env: CameraEnv):
        self.env = env
        self.forwards = self.chunks = 0
        self._waiting: list[Request] = []
        self._thread = ThreadPoolExecutor(1, "sana-wm-play")
        self._runner: asyncio.Task[None] | None = None

    async def step(self, episode: Episode, action: Any) -> Step:
        """Returns what the action leads to. ValueError for a bad action."""
        result: asyncio.Future[Step] = asyncio.get_running_loop().create_future()
        self._waiting.append(Request(episode, action, result))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await result

    def close(self) -> None:
        """Ends the thread once its forward is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            given = [(request.episode, request.action) for request in batch]
            outcomes = await loop.run_in_executor(self._thread, step_each, self.env, given)
            self.forwards, self.chunks = self.forwards + 1, self.chunks + len(batch)
            for request, outcome in zip(batch, outcomes, strict=True):
                if request.result.done():  # the visitor has gone
                    continue
                if isinstance(outcome, Exception):
                    request.result.set_exception(outcome)
                else:
                    request.result.set_result(outcome)


def step_each(env: CameraEnv, given: list[tuple[Episode, Any]]) -> list[Step | Exception]:
    """Steps several episodes in one forward; what one of them breaks, the others do not feel.

    Args:
        env: rules and weights.
        given: episodes and their actions.

    Returns:
        a step, or the error, for each; states in memory of their own.
    """
    try:
        paths = [env.rules.wish(episode, action) for episode, action in given]
        if len(given) == 1:
            advanced = [env.advance(given[0][0], paths[0])]
        else:
            advanced = env.advance_each([episode for episode, _ in given], paths)
        return [
            env.rules.judge(episode, action, frames, c2w, _own(state, len(given)))
            for (episode, action), (frames, c2w, state) in zip(given, advanced, strict=True)
        ]
    except Exception as error:
        if len(given) == 1:
            return [error]
        return [step_each(env, [one])[0] for one in given]


def _own(state: Any, rows: int) -> Any:
    """A state that does not keep its whole batch alive."""
    return state.detached() if rows > 1 and hasattr(state, "detached") else state


def places_of_state(episode: Episode) -> dict[Any, int]:
    """Where an episode's state lies in memory, and the bytes there. Waits for what of it is still being
    computed.
    """
    from sana_wm_env.model.tree import places_of  # not above: the page is there before torch

    return places_of(episode.state) or {id(episode.state): 4096}  # a room's, without tensors
