"""Whole clips at once, in many steps: the bidirectional world model and the chunk-causal one."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .base import WorldBase
from .camera_inputs import STRIDE, camera_inputs
from .cores import apart
from .network.execution import Rule
from .protocol import Chunk
from .sampler import CLIP_GUIDANCE, clip_levels, sample_clip
from .state import WorldState


class ClipModel(WorldBase):
    """A world that imagines clips from their first frame on, batch-first: the variants "bidirectional" and
    "chunk_causal".
    """

    runs = ("bidirectional", "chunk_causal")

    @property
    def rule(self) -> Rule:
        """The rule by which the network runs."""
        return "chunk_causal" if self.variant == "chunk_causal" else "bidirectional"

    def play(
        self,
        state: WorldState,
        c2w: Tensor,
        sigmas: Sequence[float] | None = None,
        guidance: float = CLIP_GUIDANCE,
        on_step: Callable[[], object] | None = None,
    ) -> Iterator[Chunk]:
        """Imagine a clip, then decode it a chunk at a time. Arguments as in `clip_latents`. A refiner has its
        turn in between: with the whole clip at once under the bidirectional rule, else block by block.

        Yields:
            frames and latents of each chunk, the latter stage 1's; the last may be shorter.
        """
        latents = self.clip_latents(state, c2w, sigmas, guidance, on_step)
        at_once = self.rule == "bidirectional"
        shown = self.refine(latents, state)[0] if at_once else latents
        pieces = (video.split(self.latents_per_step, 2) for video in (latents, shown))
        for imagined, seen in zip(*pieces, strict=True):
            frames, state = self.decode(seen, state, refine=not at_once)
            yield Chunk(frames, imagined, (state,))

    @apart
    @torch.inference_mode()
    def clip_latents(
        self,
        state: WorldState,
        c2w: Tensor,
        sigmas: Sequence[float] | None = None,
        guidance: float = CLIP_GUIDANCE,
        on_step: Callable[[], object] | None = None,
    ) -> Tensor:
        """Imagine a whole clip.

        Args:
            state: sessions as `start` opened them; unchanged afterwards.
            c2w: (B, 8 k, 4, 4) poses of the raw frames after the first, as in `step`.
            sigmas: noise levels from 1 to 0, by default those of `sampler.sample_clip`.
            guidance: classifier-free guidance scale; 1 is none, in half the time.
            on_step: called after every step.

        Returns:
            new latents (B, C, k, h, w). `decode` makes frames of them, 8 of each, all at once or one piece
            after the other.

        Raises:
            ValueError: the sessions have gone on, or the poses do not fit.
        """
        if state.transformer is not None:
            raise ValueError(
                "got sessions that have gone on; a clip begins at their first frame: wanted them as `start` "
                "returns them"
            )
        latents = max(1, c2w.shape[1] // STRIDE)
        c2w = self.check_poses(state, c2w, STRIDE * latents)
        path = torch.cat([state.c2w[:, None], c2w], 1)
        camera, plucker = camera_inputs(path, state.intrinsics_px, self.config.image_size, self.config.grid)
        cameras = self.transformer.camera_context(camera, plucker)
        noise = torch.cat([state.image_latent, self.draw_noise(state, latents)[0]], 2)
        null = self.encode_prompts([""] * len(state)) if guidance != 1 else None
        x = sample_clip(
            self.transformer,
            noise,
            state.text,
            cameras,
            state.image_latent,
            null,
            guidance,
            sigmas,
            self.rule,
            on_step,
        )
        return x[:, :, 1:]

    def clip_steps(self, frames: int, sigmas: Sequence[float] | None = None) -> int:
        """Counts the steps of `clip_latents` for `frames` frames after the first: chunks that begin later end
        later.
        """
        return len(clip_levels(1 + frames // STRIDE, self.config.transformer.chunk, self.rule, sigmas)) - 1
