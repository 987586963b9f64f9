"""What the calls of a client do to the world. Each is a function of what it names."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sana_wm_env.model.protocol import Chunk
from sana_wm_env.model.state import WorldState

from ..camera import CHUNK_FRAMES
from ..env import SanaWMEnv
from ..episode import Episode, Seeds
from ..imagine import episode_of, state_of, with_own_noise
from . import wire
from .session import Session

MOST_ROWS = 4096
"""States of a call."""


class Opening:
    """Options of a reset, checked."""

    def __init__(self, how: Any):
        self.how = how


class Playing:
    """Sequences that are being imagined, and which of their frames are wanted."""

    def __init__(self, chunks: Iterator[Chunk], show: wire.Show):
        self.chunks, self.show = chunks, show


class Worker:
    """Does what clients ask, one call after the other.

    Args:
        env: world and weights; no episode runs in it.
    """

    def __init__(self, env: SanaWMEnv):
        self.env = env

    def load(self) -> None:
        """Loads the weights."""
        self.env.model  # noqa: B018

    def state_bytes(self) -> int:
        """Bytes that a state takes at most."""
        needed = self.env.model.needed
        return needed.state + needed.decoder + needed.window

    def welcome(self, session: Session) -> wire.Welcome:
        """The first message to a client."""
        env = self.env
        return wire.Welcome(
            session.name,
            env.world,
            env.image_size,
            env.max_translation_m,
            env.max_rotation_rad,
            env.model.fingerprint,
        )

    def answer(self, session: Session, call: wire.Call) -> wire.Answer:
        """Does a call. Raises what is wrong with it; then nothing has changed."""
        match call:
            case wire.Prepare():
                return self._prepare(session, call)
            case wire.Start():
                return self._start(session, call)
            case wire.IsClear():
                return self._is_clear(session, call)
            case wire.Step():
                return self._step(session, call)
            case wire.Branch():
                state = session.get(call.state, WorldState)
                branches = with_own_noise(state.expand(_count(call.n)))
                return wire.Held(session.hold([(branches[i], 1) for i in range(call.n)]))
            case wire.Measure():
                return self._measure(session, call)
            case wire.Play():
                return self._play(session, call)
            case wire.Next():
                return _next(session, call)
            case wire.Encode():
                height, width = self.env.image_size
                frames = wire.from_wire(call.frames, "uint8", (None, None, height, width, 3))
                latents = self.env.model.encode(torch.from_numpy(frames))
                return wire.Value(wire.to_wire(latents.float().cpu().numpy()))
            case wire.Save():
                return _save(session, call)
            case wire.Restore():
                return self._restore(session, call)

    def _prepare(self, session: Session, call: wire.Prepare) -> wire.Held:
        given = {name: getattr(call, name) for name in call.__struct_fields__}
        options = {
            name: wire.from_wire(value) if isinstance(value, wire.Array) else value
            for name, value in given.items()
            if value is not None
        }
        return wire.Held(session.hold([(Opening(self.env.prepare(options)), 0)]))

    def _start(self, session: Session, call: wire.Start) -> wire.Started:
        opening = session.get(call.prepared, Opening)
        frame, intrinsics, state = self.env.start(opening.how, _seeds(call.seeds))
        (number,) = session.hold([(state, 1)])
        return wire.Started(number, wire.to_wire(frame), wire.to_wire(intrinsics))

    def _is_clear(self, session: Session, call: wire.IsClear) -> wire.Value:
        opening = session.get(call.prepared, Opening)
        c2w = wire.from_wire(call.c2w, "float64", (None, 4, 4))
        return wire.Value(wire.to_wire(self.env.is_clear(opening.how, _seeds(call.seeds), c2w)))

    def _step(self, session: Session, call: wire.Step) -> wire.Stepped:
        states = [session.get(number, WorldState) for number in call.states]
        c2w = wire.from_wire(call.c2w, "float64", (_count(len(states)), CHUNK_FRAMES, 4, 4))
        episodes = [Episode(state, np.eye(4), np.zeros(4)) for state in states]
        if len(states) == 1:
            advanced = [self.env.advance(episodes[0], c2w[0])]
        else:
            advanced = self.env.advance_each(episodes, list(c2w))
        # rows of a batch would keep all of it
        after = [state.detached() if len(states) > 1 else state for _, _, state in advanced]
        numbers = session.hold([(state, 1) for state in after])
        return wire.Stepped(numbers, wire.to_wire(np.stack([frames for frames, _, _ in advanced])))

    def _measure(self, session: Session, call: wire.Measure) -> wire.Value:
        state, needed = session.get(call.state, WorldState), self.env.model.needed
        most = max(needed.forward, needed.decode, call.refine * needed.refine)
        return wire.Value(wire.to_wire(np.int64(2 * state.nbytes + most)))

    def _play(self, session: Session, call: wire.Play) -> wire.Held:
        state = session.get(call.state, WorldState)
        c2w = wire.from_wire(call.c2w, "float64", (None, None, 4, 4))
        rows, frames = c2w.shape[:2]
        if frames < CHUNK_FRAMES or frames % CHUNK_FRAMES:
            raise ValueError(f"got poses of {frames} frames; wanted whole chunks of {CHUNK_FRAMES}")
        if not 0 <= call.first <= 2**20:
            raise ValueError(f"got first={call.first}; wanted 0 to {2**20}")
        branches = state.expand(_count(rows))
        if call.own_noise:
            branches = with_own_noise(branches, call.first)
        chunks = self.env.model.play(
            branches, torch.from_numpy(c2w), decode=call.show != "nothing", refine=call.refine
        )
        return wire.Held(session.hold([(Playing(chunks, call.show), rows)]))

    def _restore(self, session: Session, call: wire.Restore) -> wire.Restored:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.safetensors"
            path.write_bytes(call.data)
            try:
                state = WorldState.load(path)
            except ValueError as error:
                raise ValueError(str(error).replace(repr(str(path)), "a saved state")) from None
        episode = episode_of(state, self.env.model)
        (number,) = session.hold([(episode.state, 1)])
        return wire.Restored(
            number,
            wire.to_wire(episode.state.frame[0].cpu().numpy()),
            wire.to_wire(episode.c2w),
            wire.to_wire(episode.intrinsics_px),
            episode.chunk_index,
            {name: wire.to_wire(value) for name, value in episode.goal.items()},
        )


def _next(session: Session, call: wire.Next) -> wire.Chunk:
    playing = session.get(call.playing, Playing)
    chunk = next(playing.chunks, None)
    if chunk is None:
        raise ValueError("got a call for another chunk; all have been played")
    frames = chunk.frames[:, -1:] if playing.show == "last" else chunk.frames
    latents = chunk.latents.float().cpu().numpy()
    return wire.Chunk(wire.to_wire(latents), wire.to_wire(frames.cpu().numpy()))


def _save(session: Session, call: wire.Save) -> wire.Saved:
    state = session.get(call.state, WorldState)
    task = {name: wire.from_wire(value) for name, value in call.task.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        state_of(Episode(state, np.eye(4), np.zeros(4), goal=task)).save(path)
        return wire.Saved(path.read_bytes())


def _seeds(given: tuple[int, int, int]) -> Seeds:
    if not all(0 <= seed < 2**63 for seed in given):
        raise ValueError(f"got the draws {given}; wanted 0 to 2^63 - 1")
    return Seeds(*given)


def _count(rows: int) -> int:
    if not 1 <= rows <= MOST_ROWS:
        raise ValueError(f"got {rows} states in one call; wanted 1 to {MOST_ROWS}")
    return rows
