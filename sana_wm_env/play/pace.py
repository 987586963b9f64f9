"""When the next chunk has to be begun: as late as possible, so that it follows the newest controls, and early
enough that it is there when the last one has been shown. The page's clock decides, not ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

CHUNK_SECONDS = 24 / 16
MARGIN = 0.05
"""Seconds between the expected arrival of a chunk and its first picture: timers, encoding, the way."""
FAST = 0.4
"""Seconds within which a chunk can be begun once more for a key that came too late for it."""
LATE, RECOVER, MOST_STRIDE = 1.3, 6, 6
"""A page that takes longer than LATE chunks for one gets fewer frames, down to every MOST_STRIDE-th; after
RECOVER chunks in time it gets more again.
"""


@dataclass(frozen=True)
class Pace:
    """How far chunks of one epoch are.

    Attributes:
        sent: newest chunk that was sent, or is being computed.
        begun: newest chunk of which the page has shown a picture.
        begun_at: when we heard of that, in seconds of the server's clock.
        ended: newest chunk that the page has shown to its end.
        took: seconds that the last few chunks took from controls to the first byte sent.
    """

    sent: int = 0
    begun: int = 0
    begun_at: float = 0.0
    ended: int = 0
    took: tuple[float, ...] = ()

    @property
    def lead(self) -> float:
        """Seconds before the end of a chunk at which the next one is begun."""
        return min(CHUNK_SECONDS, 1.1 * max(self.took, default=0.2) + MARGIN)

    @property
    def waits(self) -> bool:
        """Whether a chunk lies at the page that it has not begun to show."""
        return self.sent > self.begun

    @property
    def is_fast(self) -> bool:
        """Whether a chunk may be computed twice."""
        return max(self.took, default=1.0) < FAST


def next_in(pace: Pace, now: float) -> float | None:
    """Returns the seconds until the next chunk should be begun; None if not before the page says more.

    At most one chunk waits at the page, so what is shown is never older than that, however fast or slow
    the world is.
    """
    if pace.ended >= pace.sent:
        return 0.0
    if pace.waits:
        return None
    return max(0.0, pace.begun_at + CHUNK_SECONDS - pace.lead - now)


def hear_begun(pace: Pace, chunk: int, now: float) -> Pace:
    """Returns the pace after the page has begun to show a chunk. What was not sent cannot be shown."""
    return pace if not pace.begun < chunk <= pace.sent else replace(pace, begun=chunk, begun_at=now)


def hear_ended(pace: Pace, chunk: int, now: float) -> Pace:
    """Returns the pace after the page has shown a chunk to its end."""
    if not pace.ended < chunk <= pace.sent:
        return pace
    return replace(hear_begun(pace, chunk, now), ended=chunk)


def measure(pace: Pace, seconds: float, keep: int = 5) -> Pace:
    """Returns the pace after a chunk took so long."""
    took: Sequence[float] = (*pace.took, seconds)
    return replace(pace, took=tuple(took[-keep:]))


def next_stride(stride: int, shown_in: float, good: int) -> tuple[int, int]:
    """Returns every how many frames a page is sent one from now on, and how many chunks went well in a row.

    Args:
        stride: so far.
        shown_in: seconds that the page took to show the newest chunk; 1.5 where all frames came in time.
        good: chunks that went well in a row, so far.
    """
    if shown_in > LATE * CHUNK_SECONDS:
        return min(MOST_STRIDE, stride + 1), 0
    if stride > 1 and good + 1 >= RECOVER:
        return stride - 1, 0
    return stride, good + 1


def restart(pace: Pace, chunk: int) -> Pace:
    """Returns the pace of a new epoch that stands at a chunk; what was measured stays."""
    return Pace(sent=chunk, begun=chunk, ended=chunk, took=pace.took)
