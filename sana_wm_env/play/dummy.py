"""A world without a model, as slow as you like, for work on the page and for tests: the exact rooms, with the
number of each frame written into its picture.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..camera import CHUNK_FRAMES, Array
from ..episode import Episode
from ..observations import Frames
from ..rooms.env import RoomsEnv
from ..rooms.room import Room

BITS, DOT = 16, 4
"""How a frame's number is written: that many squares of so many pixels along the lower edge, from the left,
the highest first, white for 1.
"""


class DummyEnv(RoomsEnv):
    """`RoomsEnv` whose chunks take `delay` seconds.

    Args:
        delay: seconds that a chunk takes, however many visitors want one.
        **kwargs: of `RoomsEnv`.
    """

    def __init__(self, delay: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0 <= delay <= 60:
            raise ValueError(f"got delay={delay!r}; wanted seconds from 0 to 60")
        self.delay = delay

    def advance(self, episode: Episode, c2w: Array) -> tuple[Frames, Array, Room]:
        """As that of the rooms, later and with numbers."""
        time.sleep(self.delay)
        return self._numbered(episode, c2w)

    def advance_each(
        self, episodes: Sequence[Episode], c2w: Sequence[Array]
    ) -> list[tuple[Frames, Array, Room]]:
        """As one forward of a model: all take as long as one."""
        time.sleep(self.delay)
        return [self._numbered(episode, path) for episode, path in zip(episodes, c2w, strict=True)]

    def _numbered(self, episode: Episode, c2w: Array) -> tuple[Frames, Array, Room]:
        frames, c2w, room = super().advance(episode, c2w)
        frames = frames.copy()
        for i, frame in enumerate(frames):
            write_number(frame, CHUNK_FRAMES * episode.chunk_index + i + 1)
        return frames, c2w, room


def write_number(frame: Frames, number: int) -> None:
    """Writes a number below 65536 into a picture (H, W, 3) at least 64 pixels wide."""
    for bit in range(BITS):
        value = 255 if number >> (BITS - 1 - bit) & 1 else 0
        frame[-DOT:, bit * DOT : (bit + 1) * DOT] = value


def read_number(frame: Frames) -> int:
    """The number that `write_number` wrote."""
    row = frame[-DOT // 2 - 1, DOT // 2 : BITS * DOT : DOT, 0] > 127
    return int("".join("01"[int(bit)] for bit in np.asarray(row)), 2)
