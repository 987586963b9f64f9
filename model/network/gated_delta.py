"""The frame-wise gated delta rule (paper section 3.2; model/README.md section 4): pure functions.

All S tokens of a latent frame read the same state and write together. The state M (rows V channels, columns K
channels) runs forward over everything so far; a second one runs backward inside a horizon, so that frames of
one horizon see each other. A horizon is a span (start, stop) of frames: the whole clip when bidirectional,
one chunk otherwise.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from .execution import Execution, Segment, Spans
from .rope import rotate

DENOMINATOR_EPS = 1e-8


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor,
    table: Tensor | None,
    execution: Execution,
    matrix: Tensor | None,
    normaliser: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Computes what queries read from the states of their frames, and the state after the last one.

    q, k, v (B, T, S, h, D), beta (B, T, S, h), decay (B, T, h); matrix (B, h, D, D) and normaliser (B, h, D)
    are the carried state, None for zero. In the main branch a rotary `table` (B, T, S, 2, D) turns queries
    and keys of the matrix, and what is read is divided by the normaliser's part, which is not turned; in the
    camera branch there is neither. Returns (B, T, S, h, D) in the dtype of q; computed in float32 at least.
    """
    turned = (q, k) if table is None else (rotate(q, table), rotate(k, table))
    queries, keys, values = (per_head(x) for x in (*turned, v))
    beta = at_least_fp32(beta.transpose(2, 3))
    transition, weighted = transitions(keys, beta, decay)
    matrices, after = _mix(transition, values.mT @ weighted, execution, _like(matrix, values))
    out = queries @ matrices.mT  # (B, T, h, S, D)
    if table is None:
        return out.transpose(2, 3).to(q.dtype), after, None
    transition, weighted = transitions(per_head(k), beta, decay)
    row = None if normaliser is None else normaliser[:, :, None]
    rows, row = _mix(transition, weighted.sum(3, keepdim=True), execution, _like(row, values))
    out = out / (per_head(q) @ rows.mT + DENOMINATOR_EPS)
    return out.transpose(2, 3).to(q.dtype), after, row[:, :, 0]


def _mix(
    transition: Tensor, write: Tensor, execution: Execution, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`scan` of a whole clip or of a segment of one, to which no state is carried."""
    if execution.segment is None:
        return scan(transition, write, execution.spans, initial)
    return scan_across(transition, write, execution)


def transitions(keys: Tensor, beta: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Frame transitions A = g (I - K B K^T) (B, T, h, D, D), and the weighted keys B K (B, T, h, S, D).

    keys (B, T, h, S, D), beta (B, T, h, S), decay (B, T, h).
    """
    weighted = keys * beta[..., None]
    identity = torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
    return decay[..., None, None] * (identity - keys.mT @ weighted), weighted


def scan(transition: Tensor, write: Tensor, spans: Spans, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run M_f = M_{f-1} A_f + W_f forward and, per span, R_f = R_{f+1} A_{f+1} + W_{f+1} backward from R = 0.

    transition (B, T, h, D, D), write (B, T, h, R, D), initial (B, h, R, D) or None for zero. Returns M_f +
    R_f for every frame, (B, T, h, R, D), which is all a read-out needs, and the forward state after the last
    frame (B, h, R, D). The normaliser is the case of one row: Z is symmetric, so z^T goes by the same rule.
    """
    a, w = _frames(transition), _frames(write)
    forward = _absorb(a, w, initial if initial is None else initial.flatten(0, 1))
    return _clip(_with_later(forward, a, w, spans), write), forward[-1].view_as(write[:, 0])


def scan_across(
    transition: Tensor, write: Tensor, execution: Execution, initial: None = None
) -> tuple[Tensor, Tensor]:
    """`scan` of one segment of a clip that is divided among ranks: same arguments, same results, with what
    other ranks hold.

    States are affine in the state before: every rank scans from zero and multiplies its transitions, learns
    what the ranks before it leave behind, and adds that times the products. Two states per head travel,
    however long the clip.
    """
    if execution.segment is None:
        raise ValueError("the clip is not divided among ranks; scan it with `scan`")
    forward, _ = _sweep(transition, write, execution.segment, reverse=False)
    if not execution.ahead:  # horizons end inside the segment
        a, w = _frames(transition), _frames(write)
        return _clip(_with_later(_frames(forward), a, w, execution.spans), write), forward[:, -1]
    backward, after = _sweep(transition.flip(1), write.flip(1), execution.segment, reverse=True)
    later = torch.cat(
        [backward.flip(1)[:, 1:], after[:, None]], 1
    )  # a frame's own write is in `forward` already
    return forward + later, forward[:, -1]


def _sweep(transition: Tensor, write: Tensor, segment: Segment, reverse: bool) -> tuple[Tensor, Tensor]:
    """The states after each frame (B, T, h, R, D) and before the first (B, h, R, D); frames come in the order
    of the sweep.
    """
    a = _frames(transition)
    states = _clip(_absorb(a, _frames(write), None), write)
    products = _clip(list(accumulate(a, torch.matmul)), transition)
    before = segment.carry(states[:, -1], products[:, -1], reverse)
    return states + before[:, None] @ products, before


def _frames(x: Tensor) -> tuple[Tensor, ...]:
    return (
        x.transpose(0, 1).flatten(1, 2).unbind()
    )  # (B, T, h, R, D) -> T of (B * h, R, D): what one product takes


def _clip(frames: Sequence[Tensor], like: Tensor) -> Tensor:
    return (
        torch.stack(list(frames)).unflatten(1, (like.shape[0], like.shape[2])).transpose(0, 1)
    )  # back to (B, T, h, R, D)


def _absorb(transitions: Sequence[Tensor], writes: Sequence[Tensor], state: Tensor | None) -> list[Tensor]:
    """The states after each frame, from a first state or from zero."""
    states = []
    for a, w in zip(transitions, writes, strict=True):
        state = w if state is None else torch.baddbmm(w, state, a)
        states.append(state)
    return states


def _with_later(
    forward: Sequence[Tensor], a: Sequence[Tensor], w: Sequence[Tensor], spans: Spans
) -> list[Tensor]:
    """M_f + R_f of every frame: the forward states, and what the later frames of the same span write."""
    seen = list(forward)
    for start, stop in spans:
        later = _absorb(a[stop - 1 : start : -1], w[stop - 1 : start : -1], None)
        for f, state in zip(range(stop - 2, start - 1, -1), later, strict=True):
            seen[f] = forward[f] + state
    return seen


def short_conv(
    x: Tensor, weight: Tensor, spans: Spans, past: Tensor | None, future: Tensor | None = None
) -> Tensor:
    """Depthwise convolution over time with shared halves: y_f = sum_j w_{3-j} x_{f-j} + sum_{j>0} w_{3-j}
    x_{f+j}.

    x (B, T, S, C), weight (C, 1, 4), past (B, 3, S, C) inputs before the first frame (None: zeros). The past
    half reads across spans, the future half ends with its span; the last span may go on in `future` (B, 3, S,
    C).
    """
    reach = weight.shape[-1] - 1
    filter_ = F.pad(weight.to(x.dtype), (0, reach), mode="reflect")[..., None]  # (C, 1, 7, 1)
    zero = x.new_zeros(x.shape[0], reach, *x.shape[2:])
    known = torch.cat([zero if past is None else past, x, zero if future is None else future], 1)
    # (B, T, S, C) seen as images (B, C, T, S) in channels-last memory; all spans but the last end in zeros
    ended = (torch.cat([known[:, a : b + reach], zero], 1) for a, b in spans[:-1])
    views = (view.permute(0, 3, 1, 2) for view in (*ended, known[:, spans[-1][0] :]))
    parts = [F.conv2d(view, filter_, groups=x.shape[-1]) for view in views]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)).permute(0, 2, 3, 1)


def last_frames(x: Tensor, past: Tensor | None, count: int = 3) -> Tensor:
    """The last `count` frames of (past, x), zeros before the beginning: the next chunk's `past`."""
    if x.shape[1] < count:
        x = torch.cat([x.new_zeros(x.shape[0], count, *x.shape[2:]) if past is None else past, x], 1)
    return x[:, -count:].clone()  # a view would keep the whole chunk alive


def per_head(x: Tensor) -> Tensor:
    """(B, T, S, h, D) -> (B, T, h, S, D), float32 at least: what the scan works on."""
    return at_least_fp32(x).transpose(2, 3).contiguous()


def at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _like(state: Tensor | None, x: Tensor) -> Tensor | None:
    return None if state is None else state.to(x.dtype)
