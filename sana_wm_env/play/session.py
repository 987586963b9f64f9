"""One visitor's session: the loop from controls to frames. `jobs.py` has what else one may ask for."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from . import controls as control
from .controls import Controls
from .messages import BRANCHES, STILL, WALK, encode_picture, encode_thumbnail, pack_frame
from .pace import Pace, hear_begun, hear_ended, measure, next_in, next_stride, restart
from .pool import Pool, places_of_state
from .telling import describe_step
from .timeline import Moment, Timeline

if TYPE_CHECKING:
    from ..base import CameraEnv
    from ..episode import Step
    from ..recorder import Recording
    from .pilot import Pilot
    from .worlds import Opening

MOST_JOBS = 8
"""Wishes beside walking that may wait; more are refused."""
SETTINGS = {"flow": "flow", "paused": "paused", "truth": "shows_truth", "walls": "stops_at_walls"}
"""What a page may set, and where."""
PIECE = 6
"""Frames that are encoded before the first of them is sent."""
Job = Callable[[], Awaitable[None]]


class Link(Protocol):
    """The way to a page."""

    stride: int
    """Every how many frames one is sent: more than 1 to a page that cannot take them all."""

    async def tell(self, message: dict[str, Any]) -> None:
        """Sends a JSON object."""

    async def show(self, frames: list[bytes]) -> None:
        """Sends packed frames; returns when the page can take more."""


class Session:
    """A visitor's world, timeline and controls. It goes on when the page has gone, and waits for the next.

    Args:
        id: what the page keeps to come back.
        env: an environment of its own on shared weights.
        pool: where chunks are computed.
        folder: for recordings and parked states.

    Attributes:
        flow: whether time goes on while nobody moves.
        paused: whether nothing moves.
        shows_truth: whether the true picture is sent beside the imagined one.
        stops_at_walls: whether a visitor stops at the walls of a room that is known; the world itself has
            none.
        epoch: counts the jumps; what was sent before the last one is void.
    """

    def __init__(self, id: str, env: CameraEnv, pool: Pool, folder: Path):
        self.id, self.env, self.pool, self.folder = id, env, pool, folder
        self.timeline, self.controls, self.pace = Timeline(), Controls(), Pace()
        self.opening: Opening | None = None
        self.pilot: Pilot | None = None
        self.recording: Recording | None = None
        self.futures: list[list[Step]] | None = None
        self.link: Link | None = None
        self.flow, self.paused, self.shows_truth, self.stops_at_walls = False, False, False, True
        self.epoch, self.left_at = 0, time.monotonic()
        self._jobs: deque[Job] = deque()
        self._wake = asyncio.Event()
        self._begun_with: Controls | None = None  # the controls of the newest chunk, before it used them up
        self._took_back = False  # the page has to be told
        self._late = False  # a key came too late for that chunk, and it is begun once more
        self._take = self._good = 0
        self._unrecorded: list[tuple[Step, Any]] = []
        self._loop: asyncio.Task[None] | None = None

    # ---- what the page says

    def hear(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Takes in a checked message about controls or time, at once, whatever is being computed. Returns
        what the page is told, if anything.
        """
        told = None
        if message["kind"] == "control":
            told = self._hear_control(message)
        elif message["kind"] == "release":
            if message["seq"] > self.controls.seq:
                self.controls = replace(
                    control.release(self.controls), seq=message["seq"], at=float(message["at"])
                )
        elif message["kind"] in ("begun", "ended"):
            if message["epoch"] == self.epoch:
                self._hear_time(message["kind"], message["chunk"], time.monotonic())
        elif message["kind"] == "set":
            setattr(self, SETTINGS[message["name"]], message["on"])
        self._wake.set()
        return told

    def _hear_time(self, kind: str, chunk: int, now: float) -> None:
        """The page has begun, or ended, to show a chunk."""
        before, hears = self.pace, hear_begun if kind == "begun" else hear_ended
        self.pace = hears(before, chunk, now)
        if kind == "ended" and self.pace.ended > before.ended and before.begun == chunk and self.link:
            shown_in = now - before.begun_at
            self.link.stride, self._good = next_stride(self.link.stride, shown_in, self._good)

    def _hear_control(self, message: dict[str, Any]) -> dict[str, Any]:
        """The first receipt: that the message is here, and in which chunk it counts."""
        before = self.controls
        self.controls = control.merge(
            before,
            message["seq"],
            float(message["at"]),
            frozenset(message["held"]),
            frozenset(message["tapped"]),
            _floats(message["look"]),
            _floats(message["axes"]),
        )
        pressed = self.controls.held != before.held or bool(message["tapped"])
        if self.pilot is not None and control.is_moving(self.controls):
            self.pilot, self._took_back = None, True  # whoever moves has the controls
        unseen = self.pace.sent > message["showing"] and self.pace.waits
        if pressed and unseen and self._can_begin_again():
            self._late = True
        counts_in = self.pace.sent + (0 if self._late and unseen else 1)
        return {
            "kind": "received",
            "seq": message["seq"],
            "at": message["at"],
            "chunk": counts_in,
            "take": self._take + 1 if self._late and unseen else 0,
            "epoch": self.epoch,
        }

    def _can_begin_again(self) -> bool:
        """Whether the newest chunk, which nobody has seen, may be computed once more: once, and where that is
        fast.
        """
        return self._begun_with is not None and self._take == 0 and self.pace.is_fast and self.pilot is None

    def ask(self, job: Job) -> None:
        """Has something done between two chunks. ValueError if too much waits already."""
        if len(self._jobs) >= MOST_JOBS:
            raise ValueError(f"got more than {MOST_JOBS} wishes at once; wanted them one after the other")
        self._jobs.append(job)
        self._wake.set()

    # ---- the page comes and goes

    def attach(self, link: Link) -> Link | None:
        """Gives the session a page; returns the one that it had."""
        before, self.link = self.link, link
        self.paused = False
        self.controls = Controls()
        self.jump()
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())
        return before

    def detach(self, link: Link) -> None:
        """The page has gone."""
        if self.link is link:
            self.link, self.left_at = None, time.monotonic()
            self.controls = control.release(self.controls)
            self.pilot = None

    def jump(self) -> None:
        """What was sent is void from here on."""
        self.epoch += 1
        self.pace = restart(self.pace, self.timeline.now.chunk if self.timeline.moments else 0)
        self._begun_with, self._late, self._take = None, False, 0
        self._wake.set()

    async def close(self) -> None:
        """Ends the loop, and a recording that runs."""
        if self._loop is not None:
            self._loop.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop
        if self.recording is not None:
            await asyncio.to_thread(self.recording.close)
            self.recording = None

    async def tell(self, message: dict[str, Any]) -> None:
        """Tells the page, if there is one."""
        if self.link is not None:
            with suppress(ConnectionError):
                await self.link.tell(message)

    # ---- the loop

    async def _run(self) -> None:
        while True:
            try:
                await self._turn()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self.paused = True
                await self.tell({"kind": "error", "text": f"{error or type(error).__name__}"[:500]})

    async def _turn(self) -> None:
        """One job, one chunk, or a wait for something to happen."""
        self._wake.clear()
        if self._took_back:
            self._took_back = False
            await self.tell({"kind": "agent", "name": None})
        if self._jobs:
            await self._jobs.popleft()()
            return
        wait = self._next_in()
        if wait is None or wait > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait)
            return
        await self._advance()

    def _next_in(self) -> float | None:
        """Seconds until the next chunk should be begun, None for not before something happens."""
        if self.link is None or not self.timeline.moments or self.futures is not None or self.paused:
            return None
        if self._late:
            return 0.0
        if not (self.flow or self.pilot is not None or control.is_moving(self.controls)):
            return None
        return next_in(self.pace, time.monotonic())

    async def _advance(self) -> None:
        """Computes one chunk and sends it; with a key that came too late for it, once more."""
        again, self._late = self._late, False
        if again and self._begun_with is not None:
            if self.pace.sent == self.timeline.now.chunk:  # it was sent, and nobody has seen it
                self.env.begin(_start(self.timeline.undo()), None)
                self._unrecorded = self._unrecorded[:-1]
            self.controls = control.take_back(self._begun_with, self.controls)
            self._take = 1
        else:
            self._take = 0
            await self.record_seen()
        began, epoch = time.monotonic(), self.epoch
        self._begun_with = self.controls
        action, seq, at = await self._choose()
        self.pace = replace(self.pace, sent=self.timeline.now.chunk + 1)
        step = await self.pool.step(self.env.episode, action)
        if self._late or epoch != self.epoch:
            return
        self.pace = measure(self.pace, time.monotonic() - began)
        self.env.arrive(step)
        moment = self.timeline.add(
            chunk=step.episode.chunk_index,
            c2w=step.c2w[-1].copy(),
            thumbnail=await asyncio.to_thread(encode_thumbnail, step.frames[-1]),
            action=action,
            reward=step.reward,
            episode=step.episode,
        )
        self._unrecorded.append((step, action))
        applied = {"seq": seq, "at": at, "ms": round(1000 * (time.monotonic() - began))}
        await self.tell(
            {"kind": "applied", "take": self._take, **applied, **describe_step(self, moment, step)}
        )
        await self._show_chunk(step, self._take)
        moment.places = await asyncio.to_thread(places_of_state, step.episode)
        gone = self.timeline.thin()
        if gone or moment.chunk % 4 == 0:
            await self.tell({"kind": "memory", "gone": gone, "bytes": self.timeline.nbytes})

    async def _choose(self) -> tuple[np.ndarray, int, float]:
        """The action of the next chunk, and the newest message that is in it."""
        wish, self.controls = control.sample(self.controls)
        seq, at = self.controls.seq, self.controls.at
        if self.pilot is None:
            action = control.drive(wish, self.env.episode.c2w[:3, :3], self.env.rules.limits)
            if self.room is not None and self.stops_at_walls:
                from .worlds import keep_clear

                action = keep_clear(self.env, self.room, action)
            return action, seq, at
        action, plan = await asyncio.to_thread(self.pilot.act, self.env)
        if plan is not None:
            await self.tell({"kind": "plan", "epoch": self.epoch, **plan})
        return action, seq, at

    async def _show_chunk(self, step: Step, take: int) -> None:
        """Sends the frames of a chunk, piece by piece, as many as the page can take."""
        link, epoch, chunk = self.link, self.epoch, step.episode.chunk_index
        if link is None:
            return
        stride = link.stride
        numbers = [i for i in range(len(step.frames)) if (i + 1) % stride == 0 or i + 1 == len(step.frames)]
        for first in range(0, len(numbers), PIECE):
            some = numbers[first : first + PIECE]
            pictures = await asyncio.to_thread(self.encode, step, some)
            if self.epoch != epoch or self._late:
                return
            packed = [
                pack_frame(WALK, epoch, chunk, take, i, step.c2w[i], each)
                for i, each in zip(some, pictures, strict=True)
            ]
            with suppress(ConnectionError):
                await link.show(packed)

    def encode(self, step: Step, numbers: list[int]) -> list[list[bytes]]:
        """The pictures of some frames of a step: imagined, and true where it is shown."""
        rows = [[encode_picture(step.frames[i])] for i in numbers]
        if self.room is not None and self.shows_truth:
            from .worlds import true_frames

            truth = true_frames(self.room, step.c2w[numbers], step.episode, self.env.rules.image_size)
            for row, frame in zip(rows, truth, strict=True):
                row.append(encode_picture(frame))
        return rows

    @property
    def room(self) -> Any:
        """The room behind what is imagined; None if nobody knows it, or it is what is seen."""
        from .worlds import shows_truth_itself

        return None if self.opening is None or shows_truth_itself(self.env) else self.opening.room

    # ---- pictures

    async def show_still(self) -> None:
        """Sends the picture of the present, and its truth."""
        if self.link is None or not self.timeline.moments:
            return
        episode = self.env.episode
        frames = np.repeat(self.env.newest_frame(episode)[None], 1, axis=0)
        pictures = [encode_picture(frames[0])]
        if self.room is not None and self.shows_truth:
            from .worlds import true_frames

            size = self.env.rules.image_size
            pictures.append(encode_picture(true_frames(self.room, episode.c2w[None], episode, size)[0]))
        packed = pack_frame(STILL, self.epoch, self.timeline.now.chunk, 0, 0, episode.c2w, pictures)
        with suppress(ConnectionError):
            await self.link.show([packed])

    async def show_futures(self, frames: list[np.ndarray], c2w: list[np.ndarray]) -> None:
        """Sends branches of equal length, frames (F, H, W, 3) and poses (F, 4, 4) each, side by side."""
        if self.link is None:
            return
        for i in range(len(frames[0])):
            pictures = await asyncio.to_thread(lambda i=i: [encode_picture(branch[i]) for branch in frames])
            packed = pack_frame(BRANCHES, self.epoch, self.timeline.now.chunk, 0, i, c2w[0][i], pictures)
            with suppress(ConnectionError):
                await self.link.show([packed])

    async def record_seen(self) -> None:
        """Writes the chunks that will not be taken back into a recording that runs."""
        steps, self._unrecorded = self._unrecorded, []
        if self.recording is not None:
            for step, action in steps:
                info = self.env.rules.info(step.episode, step.c2w, len(step.frames))
                await asyncio.to_thread(self.recording.add, step.frames, info)
                self.recording.actions.append(np.asarray(action, np.float32))
                self.recording.rewards.append(step.reward)


def _floats(values: list[Any]) -> Any:
    return tuple(map(float, values))


def _start(moment: Moment) -> Any:
    """What `begin` of an environment takes to go on from a moment."""
    from ..base import Start

    return Start(moment.episode)
