"""The protocol of worlds: what environments call, whoever imagines."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .config import WorldConfig
from .state import WorldState


class Chunk(NamedTuple):
    """One chunk that `play` yields.

    Attributes:
        frames: uint8 (B, F, H, W, 3); F is 0 where nothing was decoded.
        latents: (B, C, T, h, w); empty of a world that has none.
        states: the sessions after it, batches of consecutive rows.
    """

    frames: Tensor
    latents: Tensor
    states: Sequence[Any]


class World(Protocol):
    """Methods of a world that environments, planners and evaluations call. `WorldModel` is one; another may
    run elsewhere.
    """

    config: WorldConfig

    @property
    def frames_per_step(self) -> int:
        """RGB frames of a chunk."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the states."""
        ...

    def start(
        self, images: Tensor, intrinsics_px: Tensor, prompts: list[str], generators: list[torch.Generator]
    ) -> WorldState:
        """As `WorldModel.start`."""
        ...

    def observe(self, state: WorldState, frames: Tensor, c2w: Tensor) -> WorldState:
        """As `WorldModel.observe`."""
        ...

    def step(
        self, state: WorldState, c2w: Tensor, sigmas: Sequence[float] | None = None
    ) -> tuple[Tensor, WorldState]:
        """As `WorldModel.step`."""
        ...

    def step_each(
        self, states: Sequence[WorldState], c2w: Sequence[Tensor]
    ) -> list[tuple[Tensor, WorldState]]:
        """As `WorldModel.step_each`."""
        return [self.step(state, path[None]) for state, path in zip(states, c2w, strict=True)]

    def play(
        self,
        state: WorldState,
        c2w: Tensor,
        sigmas: Sequence[float] | None = None,
        decode: bool = True,
        refine: bool = True,
    ) -> Iterator[Chunk]:
        """As `WorldModel.play`."""
        for poses in c2w.split(self.frames_per_step, 1):
            frames, state = self.step(state, poses, sigmas)
            yield Chunk(frames, torch.empty(0, dtype=torch.float32, device="cpu"), (state,))

    def decode(self, latents: Tensor, state: WorldState, refine: bool = True) -> tuple[Tensor, WorldState]:
        """As `WorldModel.decode`."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """As `WorldModel.encode`."""
        ...

    def accept(self, state: WorldState) -> WorldState:
        """As `WorldModel.accept`."""
        ...
