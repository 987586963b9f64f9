"""One transformer block: modulated attention, camera-ray embedding, text, modulated feed-forward
(model/README.md section 3).
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import TransformerConfig
from ..contexts import CameraContext, TextContext
from ..kernels.operations import PLAIN, Linear
from ..state import BlockState
from .attention import CrossAttention, GatedDeltaAttention, SoftmaxAttention
from .execution import Execution
from .feed_forward import FeedForward


class Block(nn.Module):
    """One layer of the network.

    recompute: in training, keep only the block's input and compute the rest again in the backward pass.
    """

    recompute: bool = False
    ops = PLAIN

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.scale_shift_table = nn.Parameter(torch.empty(6, config.width))
        self.plucker_proj = Linear(config.width, config.width)
        self.attn = SoftmaxAttention(config) if config.is_softmax(index) else GatedDeltaAttention(config)
        self.cross_attn = CrossAttention(config)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        text: TextContext,
        cameras: CameraContext,
        execution: Execution,
        past: BlockState | None,
    ) -> tuple[Tensor, BlockState | None]:
        """Run the block: x (B, T, S, C), modulation (B, T, 6, C) -> (x, carried state if it is kept)."""
        index = self.index
        text_of_block = (text.keys[index], text.values[index], text.mask)
        arguments = (x, modulation, text_of_block, cameras.plucker[index], cameras, execution, past)
        if self.recompute and torch.is_grad_enabled():
            # nothing in here is random, so there is no generator to wind back
            return checkpoint(self.mix, *arguments, use_reentrant=False, preserve_rng_state=False)
        return self.mix(*arguments)

    def text_context(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, h, L, D) of text features y (B, L, C)."""
        return self.cross_attn.keys_values(y)

    def ray_context(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """plucker_proj of the embedding `rows @ weight.T + bias`, with the two linear maps multiplied first:
        48 inputs instead of C.

        rows (B, T, S, 48), weight (C, 48), bias (C) -> (B, T, S, C).
        """
        return self.ops.linear(rows, self.plucker_proj.weight @ weight, self.plucker_proj(bias))

    def mix(
        self,
        x: Tensor,
        modulation: Tensor,
        text: tuple[Tensor, Tensor, Tensor],
        plucker: Tensor,
        cameras: CameraContext,
        execution: Execution,
        past: BlockState | None,
    ) -> tuple[Tensor, BlockState | None]:
        """`forward` on what the contexts hold for this block: text is keys, values and mask, plucker (B, T,
        S, C). Nothing in it tells blocks of a kind apart, so torch.compile makes one program of each kind.
        """
        rows = (self.scale_shift_table + modulation)[:, :, :, None].unbind(2)  # six of (B, T, 1, C)
        shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = rows
        gate, gate_ffn = gate.to(x.dtype), gate_ffn.to(x.dtype)
        attended, attention_state = self.attn(
            self.ops.modulate(x, shift, scale), cameras, execution, past.attention if past else None
        )
        x = torch.addcmul(x, gate, attended) + plucker
        x = self.cross_attn(x, *text)
        fed, tail = self.mlp(
            self.ops.modulate(x, shift_ffn, scale_ffn),
            cameras.grid,
            execution,
            past.ffn_tail if past else None,
        )
        x = torch.addcmul(x, gate_ffn, fed)
        return x, BlockState(attention_state, tail.clone()) if execution.keep else None
