"""The three ways to run the one network, as values, and the seam for clips whose frames are divided among
processes.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol

from torch import Tensor

Rule = Literal["bidirectional", "chunk_causal"]
Spans = tuple[tuple[int, int], ...]


class Segment(Protocol):
    """The whole chunks of a clip that this rank holds, and what the network asks of the ranks that hold the
    others.

    Every rank calls the same methods in the same order. Gradients go back to the rank that the values came
    from.

    first   index of the segment's first latent frame in the clip
    frames  latent frames of the whole clip
    """

    first: int
    frames: int

    def carry(self, state: Tensor, product: Tensor, reverse: bool) -> Tensor:
        """The recurrent state before the segment: the maps S -> S product + state of all earlier ranks, one
        after the other from S = 0.

        state (B, h, R, D), product (B, h, D, D) are this rank's. With `reverse` time runs backward: earlier
        ranks are those to the right.
        """
        ...

    def halo(self, x: Tensor, count: int, ahead: bool) -> tuple[Tensor, Tensor | None]:
        """The `count` frames before x (B, T, ...) and, if `ahead`, those after it; zeros beyond the clip's
        ends.
        """
        ...

    def gather(self, x: Tensor) -> Tensor:
        """The x (B, T, ...) of all ranks, end to end: (B, frames, ...)."""
        ...


@dataclass(frozen=True)
class Execution:
    """One pass over some latent frames.

    spans      horizons (start, stop): frames of one span see each other, and all of the past
    streaming  whether a carried state is the past (None before the first chunk)
    keep       whether the pass returns a new state
    segment    this rank's part of a clip divided among ranks; None where it holds all frames
    ahead      whether the horizon goes on in the ranks to the right
    """

    spans: Spans
    streaming: bool = False
    keep: bool = False
    segment: Segment | None = None
    ahead: bool = False

    def edges(self, x: Tensor, count: int, past: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The `count` frames on either side of x (B, T, ...), None for zeros: the other ranks', or the
        carried past.
        """
        return (past, None) if self.segment is None else self.segment.halo(x, count, self.ahead)

    def gathered(self, x: Tensor) -> Tensor:
        """The x (B, T, ...) of all ranks."""
        return x if self.segment is None else self.segment.gather(x)


def whole_clip(rule: Rule, frames: int, chunk: int, segment: Segment | None = None) -> Execution:
    """A pass over a clip, or over a segment of one: one span under "bidirectional", one per chunk under
    "chunk_causal".

    Raises ValueError for an unknown rule, and for a segment that does not hold whole chunks.
    """
    if rule == "bidirectional":
        return Execution(((0, frames),), segment=segment, ahead=segment is not None)
    if rule != "chunk_causal":
        raise ValueError(f"rule is {rule!r}; it must be 'bidirectional' or 'chunk_causal'")
    if segment is None:
        return Execution(chunk_spans(frames, chunk))
    first, last = segment.first, segment.first + frames
    spans = tuple(
        (a - first, b - first) for a, b in chunk_spans(segment.frames, chunk) if first <= a and b <= last
    )
    if not spans or (spans[0][0], spans[-1][1]) != (0, frames):
        raise ValueError(
            f"frames {first} to {last - 1} of a clip of {segment.frames} are not whole chunks; cut where a "
            "chunk begins"
        )
    return Execution(spans, segment=segment)


def chunk_sizes(frames: int, chunk: int = 3) -> tuple[int, ...]:
    """Latent frames per chunk of a clip: chunk + 1, chunk, chunk, ...; a shorter tail joins the last
    chunk.
    """
    full, tail = divmod(frames - 1, chunk)
    return (chunk + 1, *[chunk] * (full - 2), chunk + tail) if full > 1 else (frames,)


def chunk_spans(frames: int, chunk: int = 3) -> Spans:
    """The same split as (start, stop) pairs."""
    stops = list(accumulate(chunk_sizes(frames, chunk)))
    return tuple(zip([0, *stops[:-1]], stops, strict=True))
