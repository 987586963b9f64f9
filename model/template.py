"""What the state of a session of a world looks like after so and so many chunks: shapes and dtypes without
values.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .config import WorldConfig
from .memory import make_chunk
from .network.transformer import Transformer
from .state import TransformerState, WorldState
from .tree import tensors_of


class Templates:
    """States of one session on the meta device, by age. They are made when asked for: a second for the first
    one.

    Floating values that follow the network's dtype are bfloat16 here, see `check_layout`.
    """

    def __init__(self, config: WorldConfig, autoencoder: nn.Module):
        self.config = config
        with torch.device("meta"):
            self._network = Transformer(config.transformer).to(torch.bfloat16)
        self._autoencoder = to_meta(autoencoder).to(torch.bfloat16)
        self._first = self._begin()
        self._filling: list[TransformerState | None] = [None]
        self._is_full = False

    @torch.no_grad()
    def after(self, chunks: int) -> WorldState:
        """The template of a session after `chunks` chunks."""
        network, sizes = self._network, self.config.transformer
        while len(self._filling) <= chunks and not self._is_full:
            before = self._filling[-1]
            frames = sizes.chunk + (before is None)
            with torch.device("meta"):
                chunk = make_chunk(network, frames, self.config.grid, self._first.text, before)
                after = network.commit(*chunk, before)
            self._is_full = before is not None and _layout(after) == _layout(before)
            self._filling.append(after)
        index = torch.full((1,), chunks, dtype=torch.int64)
        filled = self._filling[min(chunks, len(self._filling) - 1)]
        return replace(self._first, transformer=filled, chunk_index=index)

    @torch.no_grad()
    def _begin(self) -> WorldState:
        """Before the first chunk."""
        network, config = self._network, self.config
        sizes = config.transformer
        with torch.device("meta"):
            words = torch.empty(1, sizes.text_tokens, sizes.text_width, dtype=network.dtype)
            text = network.text_context(words, torch.ones(1, sizes.text_tokens, dtype=network.dtype))
            latent = torch.empty(1, sizes.in_channels, 1, *config.grid, dtype=torch.float32)
            _, decoder = self._autoencoder.decode(latent.to(torch.bfloat16))
            return WorldState(
                transformer=None,
                image_latent=latent,
                decoder=tuple(decoder),
                text=text,
                intrinsics_px=torch.empty(1, 4, dtype=torch.float64),
                c2w=torch.empty(1, 4, 4, dtype=torch.float64),
                generators=torch.empty(1, torch.Generator().get_state().numel(), dtype=torch.uint8),
                frame=torch.empty(1, *config.image_size, 3, dtype=torch.uint8),
                chunk_index=torch.zeros(1, dtype=torch.int64),
                observed=torch.zeros(1, dtype=torch.int64),
                world=config.name,
                weights="",
            )


def to_meta(module: nn.Module) -> Any:
    """A copy of a module whose parameters and buffers have sizes only; nothing of their values is copied."""
    tensors = [*module.parameters(), *module.buffers()]
    memo = {
        id(t): nn.Parameter(t.to("meta"), False) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in tensors
    }
    return copy.deepcopy(module, memo)


def _layout(state: TransformerState) -> list[Any]:
    return [(t.shape, t.dtype) for block in state.blocks for t in tensors_of(block)]
