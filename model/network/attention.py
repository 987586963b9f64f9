"""Self-attention of both kinds, and cross-attention to the text. Each self-attention runs a main and a camera
branch.

Letters: B batch, T latent frames, S tokens per frame, N = T * S, L text tokens, h heads, D head size, C
width.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import TransformerConfig
from ..contexts import CameraContext
from ..kernels.operations import PLAIN, Linear, RMSNorm
from ..state import DeltaState, WindowEntry, WindowState
from .execution import Execution
from .gated_delta import at_least_fp32, last_frames
from .rays import clamp_rms


class SelfAttention(nn.Module):
    """Base of both kinds: parameters under their native names, the output gate and projection."""

    ops = PLAIN
    clamp: bool
    recall_gate: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.heads = heads
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.dt_bias = nn.Parameter(torch.full((heads,), -5.0))
        self.register_buffer("recall_gate", torch.zeros(1))
        self.qkv = Linear(width, 3 * width, bias=False)
        self.proj = Linear(width, width)
        self.q_norm = RMSNorm(width, eps=1e-5)
        self.k_norm = RMSNorm(width, eps=1e-5)
        self.beta_proj = Linear(width, heads)
        self.gate_proj = Linear(width, heads)
        self.output_gate = Linear(width, width)
        self.q_proj_cam = Linear(width, width)
        self.k_proj_cam = Linear(width, width)
        self.v_proj_cam = Linear(width, width)
        self.out_proj_cam = Linear(width, width)
        self.q_norm_cam = RMSNorm(width, eps=1e-5)
        self.k_norm_cam = RMSNorm(width, eps=1e-5)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))  # (B, T, S, C) -> (B, T, S, h, D)

    def combine(self, u: Tensor, main: Tensor, camera: Tensor) -> Tensor:
        """Gate and project the sum of both branches; main and camera (B, T, S, C)."""
        return self.proj(self.ops.gated_sum(self.output_gate(u), main, self.out_proj_cam(camera)))

    def enter_ray_frame(self, x: Tensor, matrices: Tensor, cameras: CameraContext) -> Tensor:
        """Transform q (with matrices P^T) or k, v (with P^-1): x (B, T, S, h, D), matrices (B, T, S, 4,
        4).
        """
        out = self.ops.move(x, matrices, cameras.rope_cam)
        return clamp_rms(out, x) if self.clamp else out

    def leave_ray_frame(self, x: Tensor, cameras: CameraContext) -> Tensor:
        """Undo the transform on the attention's output (B, T, S, h, D), each token with its own P."""
        return self.ops.move(x, cameras.rays, cameras.rope_cam, -1.0)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial values that are not those of a plain Linear (model/README.md section 11.2)."""
        nn.init.zeros_(self.A_log)
        nn.init.constant_(self.dt_bias, -5.0)
        for linear, bias in (
            (self.beta_proj, 5.0),
            (self.gate_proj, 0.0),
            (self.output_gate, 1.2785),
            (self.out_proj_cam, 0.0),
        ):
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.get_parameter("bias"), bias)
        self.init_cam_from_base()

    @torch.no_grad()
    def init_cam_from_base(self) -> None:
        """Start the camera branch as a copy of the main one with a silent output."""
        for linear, rows in zip(
            (self.q_proj_cam, self.k_proj_cam, self.v_proj_cam), self.qkv.weight.chunk(3), strict=True
        ):
            linear.weight.copy_(rows)
            nn.init.zeros_(linear.get_parameter("bias"))
        self.q_norm_cam.weight.copy_(self.q_norm.weight)
        self.k_norm_cam.weight.copy_(self.k_norm.weight)
        nn.init.zeros_(self.out_proj_cam.weight)
        nn.init.zeros_(self.out_proj_cam.get_parameter("bias"))


class GatedDeltaAttention(SelfAttention):
    """Linear-time mixing by the frame-wise gated delta rule (model/README.md section 4)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.conv_k = ShortConv(config.width)
        self.conv_k_cam = ShortConv(config.width)
        self.clamp = config.cam_rms_clamp == "all"
        self.carry_camera_conv = config.cam_conv_carry
        self.key_scale_mode = config.key_scale

    @torch.no_grad()
    def init_cam_from_base(self) -> None:
        super().init_cam_from_base()
        self.conv_k_cam.weight.copy_(self.conv_k.weight)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.conv_k.reset_parameters()
        super().reset_parameters()

    def forward(
        self, u: Tensor, cameras: CameraContext, execution: Execution, past: DeltaState | None
    ) -> tuple[Tensor, DeltaState | None]:
        """Mix u (B, T, S, C) -> (output (B, T, S, C), state after the last frame if it is kept)."""
        beta = torch.sigmoid(self.beta_proj(u))  # (B, T, S, h)
        decay = self.decay(u)  # (B, T, h)
        main, matrix, normaliser, keys = self.main_branch(u, beta, decay, cameras, execution, past)
        camera, camera_matrix, camera_keys = self.camera_branch(u, beta, decay, cameras, execution, past)
        out = self.combine(u, main, camera)
        if not execution.keep:
            return out, None
        tail = last_frames(keys, past.conv_tail if past else None)
        camera_tail = (
            last_frames(camera_keys, past.camera_conv_tail if past else None)
            if self.carry_camera_conv
            else None
        )
        return out, DeltaState(
            _at_most_fp32(matrix), _at_most_fp32(normaliser), _at_most_fp32(camera_matrix), tail, camera_tail
        )

    def decay(self, u: Tensor) -> Tensor:
        """Returns the share of the state that survives each frame, in (0, 1): (B, T, h), float32 at least."""
        gate = at_least_fp32(self.gate_proj(u.mean(2)))
        return torch.exp(-torch.exp(at_least_fp32(self.A_log)) * F.softplus(gate + self.dt_bias))

    def main_branch(
        self,
        u: Tensor,
        beta: Tensor,
        decay: Tensor,
        cameras: CameraContext,
        execution: Execution,
        past: DeltaState | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns output (B, T, S, C), M (B, h, D, D), z (B, h, D), and what goes into the convolution (B, T,
        S, C).
        """
        q, raw_k, v = self.qkv(u).chunk(3, -1)
        k = self.ops.short_conv(
            raw_k,
            self.conv_k.weight,
            execution.spans,
            *execution.edges(raw_k, 3, past.conv_tail if past else None),
        )
        q, k = self.q_norm(q, relu=True), self.k_norm(k, relu=True, scale=self.key_scale(u))
        states = (past.matrix, past.normaliser) if past else (None, None)
        heads = (self.split(x) for x in (q, k, v))
        out, matrix, normaliser = self.ops.delta_rule(*heads, beta, decay, cameras.rope, execution, *states)
        return out.flatten(-2), matrix, cast(Tensor, normaliser), raw_k  # one comes with a table

    def camera_branch(
        self,
        u: Tensor,
        beta: Tensor,
        decay: Tensor,
        cameras: CameraContext,
        execution: Execution,
        past: DeltaState | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Numerator-only delta rule between rays. Returns output (B, T, S, C), M (B, h, D, D), input of the
        convolution.
        """
        raw_k = self.k_proj_cam(u)
        k = self.ops.short_conv(
            raw_k,
            self.conv_k_cam.weight,
            execution.spans,
            *execution.edges(raw_k, 3, past.camera_conv_tail if past else None),
        )
        q = self.split(self.q_norm_cam(self.q_proj_cam(u), relu=True))
        k = self.split(self.k_norm_cam(k, relu=True, scale=self.key_scale(u)))
        q = self.enter_ray_frame(q, cameras.rays_mT, cameras)
        k_moved, v = (
            self.enter_ray_frame(x, cameras.rays_inv, cameras) for x in (k, self.split(self.v_proj_cam(u)))
        )
        beta = beta / self.ops.mean_growth(k, k_moved).clamp(min=1.0)
        out, matrix, _ = self.ops.delta_rule(
            q, k_moved, v, beta, decay, None, execution, past.camera_matrix if past else None, None
        )
        return self.leave_ray_frame(out, cameras).flatten(-2), matrix, raw_k

    def key_scale(self, u: Tensor) -> float:
        """1 / sqrt(D S) with S of the grid at hand: a frame's K K^T then has eigenvalues of order one on any
        grid.
        """
        dim, spatial = u.shape[-1] // self.heads, u.shape[2]
        return {"dim_spatial": dim * spatial, "dim": dim, "none": 1}[self.key_scale_mode] ** -0.5


class SoftmaxAttention(SelfAttention):
    """Softmax over the visible chunks (model/README.md section 5)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.scale = config.head_dim**-0.5
        self.streaming_scale = config.attention_scale
        self.clamp = config.cam_rms_clamp != "none"
        self.window = (config.sinks, config.num_cached_blocks)

    def forward(
        self, u: Tensor, cameras: CameraContext, execution: Execution, past: WindowState | None
    ) -> tuple[Tensor, WindowState | None]:
        """Mix u (B, T, S, C) -> (output (B, T, S, C), window after this chunk if it is kept)."""
        q, k, v = self.qkv(u).chunk(3, -1)
        q = self.ops.rotate(self.split(self.q_norm(q)), cameras.rope)
        k = self.ops.rotate(self.split(self.k_norm(k)), cameras.rope)
        q_cam = self.split(self.q_norm_cam(self.q_proj_cam(u)))
        k_cam = self.split(self.k_norm_cam(self.k_proj_cam(u)))
        q_cam = self.enter_ray_frame(q_cam, cameras.rays_mT, cameras)
        k_cam, v_cam = (
            self.enter_ray_frame(x, cameras.rays_inv, cameras)
            for x in (k_cam, self.split(self.v_proj_cam(u)))
        )
        entry = WindowEntry(*(all_tokens(execution.gathered(x)) for x in (k, self.split(v), k_cam, v_cam)))
        entries = past.entries if past else ()
        read = (*entries, entry)
        main = self.attend(q, [e.key for e in read], [e.value for e in read], execution)
        camera = self.attend(q_cam, [e.camera_key for e in read], [e.camera_value for e in read], execution)
        out = self.combine(u, main.flatten(-2), self.leave_ray_frame(camera, cameras).flatten(-2))
        return out, WindowState(
            keep_window(entries, entry.map(_own_memory), *self.window)
        ) if execution.keep else None

    def attend(self, q: Tensor, keys: list[Tensor], values: list[Tensor], execution: Execution) -> Tensor:
        """Queries of a span see all keys up to its end. q (B, T, S, h, D), keys (B, h, N, D) -> (B, T, S, h,
        D).

        Keys are those of cached chunks and of the own frames, or where the clip is divided among ranks, of
        the whole clip.
        """
        frames, tokens = q.shape[1:3]
        total = sum(k.shape[2] for k in keys)
        earlier = total - frames * tokens if execution.segment is None else execution.segment.first * tokens
        scale = self.streaming_scale if execution.streaming else self.scale
        parts = []
        for start, stop in execution.spans:
            unseen = (
                0 if execution.ahead else total - earlier - stop * tokens
            )  # always at the end of the own frames
            k, v = ([*x[:-1], x[-1][:, :, : x[-1].shape[2] - unseen]] for x in (keys, values))
            parts.append(self.ops.attend(q[:, start:stop].flatten(1, 2), k, v, scale))
        out = parts[0] if len(parts) == 1 else torch.cat(parts, 1)  # (B, N, h, D)
        return out.unflatten(1, (frames, tokens))


def keep_window(
    entries: tuple[WindowEntry, ...], newest: WindowEntry, sinks: int, count: int
) -> tuple[WindowEntry, ...]:
    """The entries that the next chunk reads: all if count is -1, else `count`, the session's first `sinks`
    among them.
    """
    entries = (*entries, newest)
    if count == -1 or len(entries) <= count:
        return entries
    first = min(sinks, count)
    return entries[:first] + entries[len(entries) - (count - first) :]


class CrossAttention(nn.Module):
    """Queries from the video, keys and values from the text."""

    ops = PLAIN

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.q_linear = Linear(width, width)
        self.kv_linear = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.q_norm = RMSNorm(width, eps=1e-6)
        self.k_norm = RMSNorm(width, eps=1e-6)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text features (B, L, C) -> K, V (B, h, L, D)."""
        k, v = self.kv_linear(text).chunk(2, -1)
        return self._heads(self.k_norm(k)), self._heads(v)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Add to x (B, T, S, C) what it reads from the text: keys and values (B, h, L, D), mask (B, 1, 1, L)
        with False for padding.
        """
        q = self.q_norm(self.q_linear(x)).flatten(1, 2).unflatten(-1, (self.heads, -1))  # (B, N, h, D)
        out = self.ops.attend(q, [keys], [values], q.shape[-1] ** -0.5, mask)
        return self.proj.forward_onto(x, out.reshape(x.shape))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, N, C) -> (B, h, N, D)


class ShortConv(nn.Module):
    """Weight (C, 1, 4) of `short_conv`; its last tap is the current frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 1, 4))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.weight.zero_()
        self.weight[..., -1] = 1.0


def all_tokens(x: Tensor) -> Tensor:
    return x.flatten(1, 2).transpose(1, 2)  # (B, T, S, h, D) -> (B, h, N, D)


def _own_memory(x: Tensor) -> Tensor:
    return x.clone(
        memory_format=torch.contiguous_format
    )  # as a file gives it back: the layout may decide how a product rounds


def _at_most_fp32(x: Tensor) -> Tensor:
    return x.to(torch.float32)
