"""One transformer block: modulated attention, camera-ray embedding, text, modulated feed-forward (facts/model.md section 2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import CrossAttention, GatedDeltaAttention, SoftmaxAttention
from .config import TransformerConfig
from .execution import Execution
from .feed_forward import FeedForward
from .state import BlockState, CameraContext, TextContext


class Block(nn.Module):
    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.scale_shift_table = nn.Parameter(torch.empty(6, config.width))
        self.plucker_proj = nn.Linear(config.width, config.width)
        self.attn = SoftmaxAttention(config) if config.is_softmax(index) else GatedDeltaAttention(config)
        self.cross_attn = CrossAttention(config)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        text: TextContext,
        cameras: CameraContext,
        run: Execution,
        past: BlockState | None,
    ) -> tuple[Tensor, BlockState | None]:
        """Run the block: x (B, T, S, C), modulation (B, T, 6, C) -> (x, carried state if it is kept)."""
        rows = (self.scale_shift_table + modulation)[:, :, :, None].unbind(2)  # six of (B, T, 1, C)
        shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = rows
        attended, attention_state = self.attn(modulate(x, shift, scale), cameras, run, past.attention if past else None)
        x = torch.addcmul(x, gate, attended) + cameras.plucker[self.index]
        x = x + self.cross_attn(x, text.keys[self.index], text.values[self.index], text.mask)
        fed, tail = self.mlp(modulate(x, shift_ffn, scale_ffn), cameras.grid, run.spans, past.ffn_tail if past else None)
        x = torch.addcmul(x, gate_ffn, fed)
        return x, BlockState(attention_state, tail.clone()) if run.keep else None


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine part, then the frame's own scale and shift (B, T, 1, C)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)
