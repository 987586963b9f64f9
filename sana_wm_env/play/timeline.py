"""The moments of a session: a tree that grows where a visitor goes back and walks another way.

Every chunk leaves a moment: a thumbnail, a pose, and the whole state, which can be gone on from. States have
a cap in bytes; beyond it they are thinned out, the older the thinner. Thumbnail and pose stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CAP = 192 * 2**20
"""Bytes of states of one session: 64 moments of the bundled world."""
NEWEST = 8
"""Moments of the present line that are never thinned out."""
GONE = 64
"""Moments that are no more whose thumbnails can still be had: a page may ask for one as it goes."""


@dataclass
class Moment:
    """The end of one chunk.

    Attributes:
        id: counts up.
        parent: id of the moment before; None at a start.
        chunk: chunks since the start.
        c2w: (4, 4) pose, relative to the first frame.
        thumbnail: a picture, encoded.
        action: (6,) that led here; None at a start.
        reward: of that action.
        fresh: the same action from the parent need not lead here again: a start, or noise of its own.
        places: where the state lies in memory, and the bytes there. What two states share has one place.
        episode: the state; None if it was thinned out, or lies in a file.
        file: where it lies while the session is parked.
    """

    id: int
    parent: int | None
    chunk: int
    c2w: NDArray[np.float64]
    thumbnail: bytes
    action: NDArray[np.float32] | None = None
    reward: float = 0.0
    fresh: bool = False
    places: Mapping[Any, int] = field(default_factory=dict)
    episode: Any = None
    file: Path | None = None

    @property
    def is_kept(self) -> bool:
        """Whether one can go on from here."""
        return self.episode is not None or self.file is not None


class Timeline:
    """All moments of a session, and where it is.

    Args:
        cap: bytes that states may take in memory.
    """

    def __init__(self, cap: int = CAP):
        self.moments: dict[int, Moment] = {}
        self.present: int | None = None
        self.cap, self._next = cap, 0
        self._gone: dict[int, bytes] = {}

    def add(self, **fields: Any) -> Moment:
        """Adds a moment after the present, which it becomes. Fields as of `Moment`, but for id and parent.
        With chunk 0 it is a start of its own.
        """
        parent = None if fields["chunk"] == 0 else self.present
        moment = Moment(id=self._next, parent=parent, **fields)
        self._next += 1
        self.moments[moment.id] = moment
        self.present = moment.id
        return moment

    def undo(self) -> Moment:
        """Takes the present away, which nothing may follow, and returns the moment before, which becomes the
        present.
        """
        moment = self.now
        before = self.moments[moment.parent]  # type: ignore[index]
        self._remember(self.moments.pop(moment.id))
        self.present = before.id
        return before

    def clear(self) -> None:
        """Forgets everything, ids stay used."""
        for moment in self.moments.values():
            self._remember(moment)
        self.moments, self.present = {}, None

    def thumbnail(self, moment: int) -> bytes | None:
        """The picture of a moment, also of one that has just gone; None if there is none."""
        there = self.moments.get(moment)
        return self._gone.get(moment) if there is None else there.thumbnail

    def _remember(self, moment: Moment) -> None:
        self._gone[moment.id] = moment.thumbnail
        while len(self._gone) > GONE:
            del self._gone[next(iter(self._gone))]

    @property
    def now(self) -> Moment:
        """The present."""
        return self.moments[self.present]  # type: ignore[index]

    @property
    def nbytes(self) -> int:
        """Bytes of states in memory, what they share counted once."""
        places: dict[Any, int] = {}
        for moment in self.moments.values():
            if moment.episode is not None:
                places.update(moment.places)
        return sum(places.values())

    def line(self, moment: int | None = None) -> list[Moment]:
        """The moments from the start to a moment, by default the present."""
        line, at = [], self.present if moment is None else moment
        while at is not None and at in self.moments:
            line.append(self.moments[at])
            at = line[-1].parent
        return line[::-1]

    def nearest_kept(self, moment: int) -> Moment:
        """The moment itself, or the last one before it that one can go on from. KeyError if there is none."""
        for candidate in reversed(self.line(moment)):
            if candidate.is_kept:
                return candidate
        raise KeyError(moment)

    def thin(self) -> list[int]:
        """Gives up states until the others fit under the cap. Returns the ids of those that went."""
        gone = []
        guarded = {moment.id for moment in self.line()[-NEWEST:]}
        while self.nbytes > self.cap:
            held = [m for m in self.moments.values() if m.episode is not None]
            free = [m for m in held if m.id not in guarded and not (m.parent is None and m.chunk == 0)]
            if not free:
                break
            chosen = choose_to_thin([m.id for m in held], [m.id for m in free])
            self.moments[chosen].episode = None
            gone.append(chosen)
        return gone


def choose_to_thin(held: Sequence[int], free: Iterable[int]) -> int:
    """Returns which of the `free` moments to give up: the one that leaves the smallest gap for its age, so
    that what stays lies the thinner the older it is.

    Args:
        held: ids of moments with a state, in order of time.
        free: ids out of them, one at least.
    """
    newest, place = held[-1] + 1, {moment: i for i, moment in enumerate(held)}

    def gap_for_age(moment: int) -> float:
        i = place[moment]
        before = held[i - 1] if i else moment - 1
        after = held[i + 1] if i + 1 < len(held) else newest
        return (after - before) / (newest - moment)

    return min(free, key=gap_for_age)
