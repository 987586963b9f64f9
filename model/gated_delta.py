"""The frame-wise gated delta rule (paper section 3.2; facts/model.md section 3): pure functions.

All S tokens of a latent frame read the same state and write together. The state M (rows V channels, columns K channels) runs
forward over everything so far; a second one runs backward inside a horizon, so that frames of one horizon see each other.
A horizon is a span (start, stop) of frames: the whole clip when bidirectional, one chunk otherwise.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .execution import Spans


def transitions(keys: Tensor, beta: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Frame transitions A = g (I - K B K^T) (B, T, h, D, D), and the weighted keys B K (B, T, h, S, D).

    keys (B, T, h, S, D), beta (B, T, h, S), decay (B, T, h).
    """
    weighted = keys * beta[..., None]
    identity = torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
    return decay[..., None, None] * (identity - keys.mT @ weighted), weighted


def scan(transition: Tensor, write: Tensor, spans: Spans, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run M_f = M_{f-1} A_f + W_f forward and, per span, R_f = R_{f+1} A_{f+1} + W_{f+1} backward from R = 0.

    transition (B, T, h, D, D), write (B, T, h, R, D), initial (B, h, R, D) or None for zero. Returns M_f + R_f for every
    frame, (B, T, h, R, D), which is all a read-out needs, and the forward state after the last frame (B, h, R, D).
    The normaliser is the case of one row: Z is symmetric, so z^T goes by the same rule.
    """
    a, w = transition.unbind(1), write.unbind(1)
    forward: list[Tensor] = []
    state = initial
    for a_f, w_f in zip(a, w, strict=True):
        state = w_f if state is None else _advance(state, a_f, w_f)
        forward.append(state)
    seen = list(forward)
    for start, stop in spans:
        ahead = None
        for f in range(stop - 2, start - 1, -1):
            ahead = w[f + 1] if ahead is None else _advance(ahead, a[f + 1], w[f + 1])
            seen[f] = forward[f] + ahead
    return torch.stack(seen, 1), forward[-1]


def _advance(state: Tensor, transition: Tensor, write: Tensor) -> Tensor:
    batch, heads = state.shape[:2]
    out = torch.baddbmm(write.flatten(0, 1), state.flatten(0, 1), transition.flatten(0, 1))  # (B * h, R, D)
    return out.unflatten(0, (batch, heads))


def short_conv(x: Tensor, weight: Tensor, spans: Spans, past: Tensor | None) -> Tensor:
    """Depthwise convolution over time with shared halves: y_f = sum_j w_{3-j} x_{f-j} + sum_{j>0} w_{3-j} x_{f+j}.

    x (B, T, S, C), weight (C, 1, 4), past (B, 3, S, C) inputs before the first frame (None: zeros). The past half reads across
    spans, the future half ends with its span.
    """
    reach = weight.shape[-1] - 1
    filter_ = torch.cat([weight, weight[..., :-1].flip(-1)], -1)[..., None]  # (C, 1, 7, 1)
    zero = x.new_zeros(x.shape[0], reach, *x.shape[2:])
    known = torch.cat([zero if past is None else past, x], 1)
    # (B, T, S, C) seen as images (B, C, T, S) in channels-last memory
    views = (torch.cat([known[:, a : b + reach], zero], 1).permute(0, 3, 1, 2) for a, b in spans)
    parts = [F.conv2d(view, filter_, groups=x.shape[-1]) for view in views]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)).permute(0, 2, 3, 1)


def last_frames(x: Tensor, past: Tensor | None, count: int = 3) -> Tensor:
    """The last `count` frames of (past, x), zeros before the beginning: the next chunk's `past`."""
    if x.shape[1] < count:
        x = torch.cat([x.new_zeros(x.shape[0], count, *x.shape[2:]) if past is None else past, x], 1)
    return x[:, -count:].clone()  # a view would keep the whole chunk alive
