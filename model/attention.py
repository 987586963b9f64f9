"""Self-attention of both kinds, and cross-attention to the text. Each self-attention runs a main and a camera branch.

Letters: B batch, T latent frames, S tokens per frame, N = T * S, L text tokens, h heads, D head size, C width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .camera_branch import enter_ray_frame, leave_ray_frame, shrink_beta
from .config import TransformerConfig
from .execution import Execution
from .gated_delta import last_frames, scan, scan_across, short_conv, transitions
from .rope import rotate
from .state import CameraContext, DeltaState, WindowEntry, WindowState

DENOMINATOR_EPS = 1e-8


class SelfAttention(nn.Module):
    """What both kinds share: parameters under their native names, the output gate and projection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.heads = heads
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.dt_bias = nn.Parameter(torch.full((heads,), -5.0))
        self.register_buffer("recall_gate", torch.zeros(1))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(width, eps=1e-5)
        self.k_norm = nn.RMSNorm(width, eps=1e-5)
        self.beta_proj = nn.Linear(width, heads)
        self.gate_proj = nn.Linear(width, heads)
        self.output_gate = nn.Linear(width, width)
        self.q_proj_cam = nn.Linear(width, width)
        self.k_proj_cam = nn.Linear(width, width)
        self.v_proj_cam = nn.Linear(width, width)
        self.out_proj_cam = nn.Linear(width, width)
        self.q_norm_cam = nn.RMSNorm(width, eps=1e-5)
        self.k_norm_cam = nn.RMSNorm(width, eps=1e-5)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))  # (B, T, S, C) -> (B, T, S, h, D)

    def combine(self, u: Tensor, main: Tensor, camera: Tensor) -> Tensor:
        """Gate and project the sum of both branches; main and camera (B, T, S, C)."""
        gate = F.silu(self.output_gate(u))
        wide = torch.promote_types(u.dtype, torch.float32)
        both = gate.to(wide) * (main.to(wide) + self.out_proj_cam(camera).to(wide))
        return self.proj(both.to(u.dtype))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial values that are not those of a plain Linear (facts/model.md section 11.2)."""
        nn.init.zeros_(self.A_log)
        nn.init.constant_(self.dt_bias, -5.0)
        for linear, bias in ((self.beta_proj, 5.0), (self.gate_proj, 0.0), (self.output_gate, 1.2785), (self.out_proj_cam, 0.0)):
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, bias)
        self.init_cam_from_base()

    @torch.no_grad()
    def init_cam_from_base(self) -> None:
        """Start the camera branch as a copy of the main one with a silent output."""
        for linear, rows in zip((self.q_proj_cam, self.k_proj_cam, self.v_proj_cam), self.qkv.weight.chunk(3), strict=True):
            linear.weight.copy_(rows)
            nn.init.zeros_(linear.bias)
        self.q_norm_cam.weight.copy_(self.q_norm.weight)
        self.k_norm_cam.weight.copy_(self.k_norm.weight)
        nn.init.zeros_(self.out_proj_cam.weight)
        nn.init.zeros_(self.out_proj_cam.bias)


class GatedDeltaAttention(SelfAttention):
    """Linear-time mixing by the frame-wise gated delta rule (facts/model.md section 3)."""

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

    def forward(self, u: Tensor, cameras: CameraContext, run: Execution, past: DeltaState | None) -> tuple[Tensor, DeltaState | None]:
        """Mix u (B, T, S, C) -> (output (B, T, S, C), state after the last frame if it is kept)."""
        beta = torch.sigmoid(self.beta_proj(u))  # (B, T, S, h)
        decay = self.decay(u)  # (B, T, h)
        main, matrix, normaliser, keys = self.main_branch(u, beta, decay, cameras, run, past)
        camera, camera_matrix, camera_keys = self.camera_branch(u, beta, decay, cameras, run, past)
        out = self.combine(u, main, camera)
        if not run.keep:
            return out, None
        tail = last_frames(keys, past.conv_tail if past else None)
        camera_tail = last_frames(camera_keys, past.camera_conv_tail if past else None) if self.carry_camera_conv else None
        return out, DeltaState(_at_most_fp32(matrix), _at_most_fp32(normaliser), _at_most_fp32(camera_matrix), tail, camera_tail)

    def decay(self, u: Tensor) -> Tensor:
        """How much of the state survives each frame, in (0, 1): (B, T, h), float32 at least."""
        gate = _at_least_fp32(self.gate_proj(u.mean(2)))
        return torch.exp(-torch.exp(_at_least_fp32(self.A_log)) * F.softplus(gate + self.dt_bias))

    def main_branch(
        self, u: Tensor, beta: Tensor, decay: Tensor, cameras: CameraContext, run: Execution, past: DeltaState | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns output (B, T, S, C), M (B, h, D, D), z (B, h, D), and what goes into the convolution (B, T, S, C)."""
        q, raw_k, v = self.qkv(u).chunk(3, -1)
        k = short_conv(raw_k, self.conv_k.weight, run.spans, *run.edges(raw_k, 3, past.conv_tail if past else None))
        q, k = self.split(F.relu(self.q_norm(q))), self.split(F.relu(self.k_norm(k)) * self.key_scale(u))
        q_turned, k_turned = per_head(rotate(q, cameras.rope)), per_head(rotate(k, cameras.rope))
        q, k, v, beta = per_head(q), per_head(k), per_head(self.split(v)), _at_least_fp32(beta.transpose(2, 3))
        transition, weighted = transitions(k_turned, beta, decay)
        matrices, matrix = self.mix(transition, v.mT @ weighted, run, _like(past.matrix, v) if past else None)
        transition, weighted = transitions(k, beta, decay)
        rows, row = self.mix(transition, weighted.sum(3, keepdim=True), run, _like(past.normaliser, v)[:, :, None] if past else None)
        out = (q_turned @ matrices.mT) / (q @ rows.mT + DENOMINATOR_EPS)  # (B, T, h, S, D)
        return per_token(out).to(u.dtype), matrix, row[:, :, 0], raw_k

    def camera_branch(
        self, u: Tensor, beta: Tensor, decay: Tensor, cameras: CameraContext, run: Execution, past: DeltaState | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Numerator-only delta rule between rays. Returns output (B, T, S, C), M (B, h, D, D), input of the convolution."""
        raw_k = self.k_proj_cam(u)
        k = short_conv(raw_k, self.conv_k_cam.weight, run.spans, *run.edges(raw_k, 3, past.camera_conv_tail if past else None))
        q = self.split(F.relu(self.q_norm_cam(self.q_proj_cam(u))))
        k = self.split(F.relu(self.k_norm_cam(k)) * self.key_scale(u))
        v = self.split(self.v_proj_cam(u))
        q = enter_ray_frame(q, cameras.rays.mT, cameras, self.clamp)
        k_moved, v = enter_ray_frame(torch.cat([k, v], 3), cameras.rays_inv, cameras, self.clamp).chunk(2, 3)
        beta = _at_least_fp32(shrink_beta(beta, k, k_moved).transpose(2, 3))
        q, k_moved, v = per_head(q), per_head(k_moved), per_head(v)
        transition, weighted = transitions(k_moved, beta, decay)
        matrices, matrix = self.mix(transition, v.mT @ weighted, run, _like(past.camera_matrix, v) if past else None)
        out = self.split(per_token(q @ matrices.mT).to(u.dtype))
        return leave_ray_frame(out, cameras).flatten(-2), matrix, raw_k

    @staticmethod
    def mix(transition: Tensor, write: Tensor, run: Execution, initial: Tensor | None) -> tuple[Tensor, Tensor]:
        return scan(transition, write, run.spans, initial) if run.stretch is None else scan_across(transition, write, run)

    def key_scale(self, u: Tensor) -> float:
        """1 / sqrt(D S) with S of the grid at hand: a frame's K K^T then has eigenvalues of order one on any grid."""
        dim, spatial = u.shape[-1] // self.heads, u.shape[2]
        return {"dim_spatial": dim * spatial, "dim": dim, "none": 1}[self.key_scale_mode] ** -0.5


class SoftmaxAttention(SelfAttention):
    """Softmax over the visible chunks (facts/model.md section 4)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.scale = config.head_dim**-0.5
        self.streaming_scale = config.attention_scale
        self.clamp = config.cam_rms_clamp != "none"
        self.window = (config.sink, config.num_cached_blocks)

    def forward(self, u: Tensor, cameras: CameraContext, run: Execution, past: WindowState | None) -> tuple[Tensor, WindowState | None]:
        """Mix u (B, T, S, C) -> (output (B, T, S, C), window after this chunk if it is kept)."""
        q, k, v = (self.split(x) for x in self.qkv(u).chunk(3, -1))
        q = rotate(self.split(self.q_norm(q.flatten(-2))), cameras.rope)
        k = rotate(self.split(self.k_norm(k.flatten(-2))), cameras.rope)
        q_cam = self.split(self.q_norm_cam(self.q_proj_cam(u)))
        k_cam = self.split(self.k_norm_cam(self.k_proj_cam(u)))
        v_cam = self.split(self.v_proj_cam(u))
        q_cam = enter_ray_frame(q_cam, cameras.rays.mT, cameras, self.clamp)
        k_cam, v_cam = enter_ray_frame(torch.cat([k_cam, v_cam], 3), cameras.rays_inv, cameras, self.clamp).chunk(2, 3)
        own = WindowEntry(*(all_tokens(run.gathered(x)) for x in (k, v, k_cam, v_cam)))
        entries = past.entries if past else ()
        read = (*entries, own)
        main = self.attend(q, [e.key for e in read], [e.value for e in read], run)
        camera = self.attend(q_cam, [e.camera_key for e in read], [e.camera_value for e in read], run)
        out = self.combine(u, main.flatten(-2), leave_ray_frame(camera, cameras).flatten(-2))
        return out, WindowState(keep_window(entries, own.map(_own_memory), *self.window)) if run.keep else None

    def attend(self, q: Tensor, keys: list[Tensor], values: list[Tensor], run: Execution) -> Tensor:
        """Queries of a span see all keys up to its end. q (B, T, S, h, D), keys (B, h, N, D) -> (B, T, S, h, D).

        Keys are those of cached chunks and of the own frames, or where the clip is divided among ranks, of the whole clip.
        """
        k, v = (x[0] if len(x) == 1 else torch.cat(x, 2) for x in (keys, values))
        frames, tokens = q.shape[1:3]
        earlier = k.shape[2] - frames * tokens if run.stretch is None else run.stretch.first * tokens
        scale = self.streaming_scale if run.streaming else self.scale
        parts = []
        for start, stop in run.spans:
            seen = k.shape[2] if run.ahead else earlier + stop * tokens
            parts.append(F.scaled_dot_product_attention(all_tokens(q[:, start:stop]), k[:, :, :seen], v[:, :, :seen], scale=scale))
        out = parts[0] if len(parts) == 1 else torch.cat(parts, 2)  # (B, h, N, D)
        return out.transpose(1, 2).unflatten(1, (frames, tokens))


def keep_window(entries: tuple[WindowEntry, ...], own: WindowEntry, sink: bool, count: int) -> tuple[WindowEntry, ...]:
    """The entries that the next chunk reads: all if count is -1, else `count`, the session's first among them if `sink`."""
    entries = (*entries, own)
    if count == -1 or len(entries) <= count:
        return entries
    recent = count - 1 if sink and count else count
    return entries[: count - recent] + entries[len(entries) - recent :]


class CrossAttention(nn.Module):
    """Queries from the video, keys and values from the text."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(width, eps=1e-6)
        self.k_norm = nn.RMSNorm(width, eps=1e-6)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text features (B, L, C) -> K, V (B, h, L, D)."""
        k, v = self.kv_linear(text).chunk(2, -1)
        return self._heads(self.k_norm(k)), self._heads(v)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Read the text: x (B, T, S, C), keys and values (B, h, L, D), mask (B, 1, 1, L) with False for padding -> (B, T, S, C)."""
        q = self._heads(self.q_norm(self.q_linear(x)).flatten(1, 2))
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2).view_as(x))

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


def per_head(x: Tensor) -> Tensor:
    """(B, T, S, h, D) -> (B, T, h, S, D), float32 at least: what the scan works on."""
    return _at_least_fp32(x).transpose(2, 3).contiguous()


def per_token(x: Tensor) -> Tensor:
    return x.transpose(2, 3).flatten(-2)  # (B, T, h, S, D) -> (B, T, S, C)


def all_tokens(x: Tensor) -> Tensor:
    return x.flatten(1, 2).transpose(1, 2)  # (B, T, S, h, D) -> (B, h, N, D)


def _own_memory(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)  # as a file gives it back: the layout may decide how a product rounds


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _at_most_fp32(x: Tensor) -> Tensor:
    return x.to(torch.float32)


def _like(state: Tensor, x: Tensor) -> Tensor:
    return state.to(x.dtype)
