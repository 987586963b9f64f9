"""The three ways to run the one network, as values."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Rule = Literal["bidirectional", "chunk_causal"]
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Execution:
    """One pass over some latent frames.

    spans      horizons (start, stop): frames of one span see each other, and all of the past
    streaming  whether a carried state is the past (None before the first chunk)
    keep       whether the pass returns a new state
    """

    spans: Spans
    streaming: bool = False
    keep: bool = False


def whole_clip(rule: Rule, frames: int, chunk: int) -> Execution:
    """A pass over a clip: one span under "bidirectional", one per chunk under "chunk_causal"."""
    if rule == "bidirectional":
        return Execution(((0, frames),))
    if rule == "chunk_causal":
        return Execution(chunk_spans(frames, chunk))
    raise ValueError(f"rule is {rule!r}; it must be 'bidirectional' or 'chunk_causal'")


def chunk_sizes(frames: int, chunk: int = 3) -> tuple[int, ...]:
    """Latent frames per chunk of a clip: chunk + 1, chunk, chunk, ...; a shorter tail joins the last chunk."""
    full, tail = divmod(frames - 1, chunk)
    return (chunk + 1, *[chunk] * (full - 2), chunk + tail) if full > 1 else (frames,)


def chunk_spans(frames: int, chunk: int = 3) -> Spans:
    """The same split as (start, stop) pairs."""
    stops = list(accumulate(chunk_sizes(frames, chunk)))
    return tuple(zip([0, *stops[:-1]], stops, strict=True))
