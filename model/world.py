"""The streaming world model: sessions that go on chunk by chunk, behind two pure functions, `start` and
`step`.

A `WorldModel` owns weights and nothing else. A session is an immutable `WorldState`.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor

from .base import WorldBase
from .camera_inputs import camera_inputs
from .config import Variant
from .contexts import CameraContext, TextContext
from .cores import Deferred, apart, has_spare_core, run_together, shares
from .kernels.formats import Precision
from .protocol import Chunk as Chunk
from .protocol import World as World
from .sampler import sample_chunk
from .state import TransformerState, concatenate
from .state import WorldState as WorldState


class WorldModel(WorldBase):
    """Camera-controlled video world (paper sections 3 and 4), batch-first: every row of a batch is a session
    of its own.

    One step imagines one chunk: `latents_per_step` latent frames, `frames_per_step` RGB frames. On a CPU the
    rows of a batch are shared out among the cores. `clip.ClipModel` imagines whole clips.
    """

    runs = ("streaming",)

    @classmethod
    def load(
        cls,
        world: str | Path = "tiny-rooms",
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        offload: Mapping[str, str] | None = None,
        variant: Variant | None = None,
        precision: Precision | None = None,
        refiner: str | Path | None = None,
    ) -> Self:
        """As `WorldBase.load`. Of another variant than "streaming" it is a `ClipModel`, which has a `load` of
        its own.
        """
        if variant in (None, "streaming"):
            return super().load(world, device, dtype, offload, precision=precision, refiner=refiner)
        from .clip import ClipModel

        warnings.warn(
            f"WorldModel.load(variant={variant!r}) is ClipModel.load from now on",
            DeprecationWarning,
            stacklevel=2,
        )
        model = ClipModel.load(world, device, dtype, offload, variant, precision, refiner)
        return cast(Any, model)  # what it was before

    def step(
        self, state: WorldState, c2w: Tensor, sigmas: Sequence[float] | None = None
    ) -> tuple[Tensor, WorldState]:
        """Imagine the next chunk along a camera path.

        Args:
            state: where the sessions stand; unchanged afterwards.
            c2w: (B, frames_per_step, 4, 4) camera-to-world poses of the new raw frames, relative to raw frame
                0, OpenCV axes, metres.
            sigmas: noise levels from 1 to 0; None for those of the configuration.

        Returns:
            frames uint8 (B, frames_per_step, H, W, 3) and the next state.

        Raises:
            ValueError: poses that do not fit, or are not finite.
        """
        c2w = self.check_poses(state, c2w, self.frames_per_step)
        if len(parts := shares(len(state), self.device)) < 2:
            return self._step(state, c2w, sigmas)
        calls = [partial(self._step, state[rows], c2w[rows], sigmas) for rows in parts]
        frames, states = zip(*run_together(calls, self.threads), strict=True)
        return torch.cat(frames), concatenate(states)

    def step_each(
        self, states: Sequence[WorldState], c2w: Sequence[Tensor]
    ) -> list[tuple[Tensor, WorldState]]:
        """`step` for sessions of any age: one forward for all whose windows are equally full, of which there
        are at most three kinds.

        Args:
            states: one session each.
            c2w: poses (frames_per_step, 4, 4) of each, as in `step`.

        Returns:
            frames uint8 (frames_per_step, H, W, 3) and next state of each, the latter rows of a common batch.
        """
        groups: dict[Any, list[int]] = {}
        for i, state in enumerate(states):
            groups.setdefault(state.layout, []).append(i)

        def advance(members: Sequence[int]) -> dict[int, tuple[Tensor, WorldState]]:
            frames, after = self.step(
                concatenate([states[i] for i in members]), torch.stack([c2w[i] for i in members])
            )
            return {i: (frames[row], after[row]) for row, i in enumerate(members)}

        parts = [members[part] for members in groups.values() for part in shares(len(members), self.device)]
        results: dict[int, tuple[Tensor, WorldState]] = {}
        for part_results in run_together([partial(advance, part) for part in parts], self.threads):
            results |= part_results
        return [results[i] for i in range(len(states))]

    def observe(self, state: WorldState, frames: Tensor, c2w: Tensor) -> WorldState:
        """Goes on with what a camera saw, in place of imagining it: a look around, a walk that was filmed.

        Args:
            state: where the sessions stand; unchanged afterwards.
            frames: uint8 (B, K * frames_per_step, H, W, 3), which follow the newest frame.
            c2w: (B, K * frames_per_step, 4, 4) their poses, as in `step`. They may go as fast as they like:
                the latent frames are 8 raw frames each, and what rests for 8 is remembered as a still.

        Returns:
            The next state. It draws no noise, and its `chunk_index` is the same: it counts what is imagined.

        Raises:
            ValueError: frames or poses that do not fit, or are not finite.
        """
        size = self.frames_per_step
        chunks = max(1, frames.shape[1] // size) if frames.ndim == 5 else 1
        wanted = (len(state), chunks * size, *self.config.image_size, 3)
        if frames.dtype != torch.uint8 or frames.shape != wanted:
            raise ValueError(
                f"frames are {frames.dtype} {tuple(frames.shape)}; wanted uint8 {wanted}: whole chunks of "
                f"{size} frames"
            )
        c2w = self.check_poses(state, c2w, wanted[1])
        for seen, poses in zip(frames.split(size, 1), c2w.split(size, 1), strict=True):
            state = self._observe(state, seen, poses)
        return state

    @apart
    @torch.inference_mode()
    def _observe(self, state: WorldState, frames: Tensor, c2w: Tensor) -> WorldState:
        """`observe` for one chunk."""
        newest = state.frame[:, None]
        latents = self.encode(torch.cat([newest, frames.to(newest.device)], 1))[:, :, 1:].to(self.device)
        cameras, image = self._cameras(state, c2w)
        _, after = self.decode(latents, state, refine=False)
        return after.changed(
            transformer=self._commit(_after(image, latents), state.text, cameras, state.transformer),
            c2w=c2w[:, -1].clone(),
            observed=state.observed + 1,
            frame=frames[:, -1].to(self.device, copy=True),
        )

    def play(
        self,
        state: WorldState,
        c2w: Tensor,
        sigmas: Sequence[float] | None = None,
        decode: bool = True,
        refine: bool = True,
    ) -> Iterator[Chunk]:
        """Imagine chunk after chunk along a path that is known in advance.

        Args:
            state: where the sessions stand; unchanged afterwards.
            c2w: (B, K * frames_per_step, 4, 4) poses of all new frames, as in `step`.
            sigmas: as in `step`.
            decode: whether frames are wanted.
            refine: whether a refiner, where there is one, has its turn before the decoder. The latents that
                are yielded are stage 1's in any case.

        Yields:
            K chunks.
        """
        size = self.frames_per_step
        c2w = self.check_poses(state, c2w, size * max(1, c2w.shape[1] // size))
        parts, chunks = shares(len(state), self.device), c2w.split(size, 1)
        states: Sequence[WorldState] = [state[rows] for rows in parts]
        for k, poses in enumerate(chunks):
            begin = decode and k + 1 < len(chunks)  # nobody may ever ask for the state after the last one
            calls = [
                partial(self._chunk, of, poses[rows], sigmas, decode, begin, refine)
                for of, rows in zip(states, parts, strict=True)
            ]
            latents, frames, states = zip(*run_together(calls, self.threads), strict=True)
            yield Chunk(torch.cat(frames), torch.cat(latents), states)

    def _step(
        self, state: WorldState, c2w: Tensor, sigmas: Sequence[float] | None
    ) -> tuple[Tensor, WorldState]:
        _, frames, after = self._chunk(state, c2w, sigmas, decode=True, begin=True, refine=True)
        return frames, after

    @apart
    @torch.inference_mode()
    def _chunk(
        self,
        state: WorldState,
        c2w: Tensor,
        sigmas: Sequence[float] | None,
        decode: bool,
        begin: bool,
        refine: bool,
    ) -> tuple[Tensor, Tensor, WorldState]:
        """Latents, frames (none of them unless `decode`) and next state of one batch; `begin` its clean
        passes in the background.
        """
        latents, after = self.generate_latents(state, c2w, sigmas)
        # with a core to spare the clean pass runs beside the decode, else while the caller thinks
        if begin and has_spare_core():
            after.begin()
        if decode:
            frames, after = self.decode(latents, after, refine)
        else:
            frames, after = state.frame[:, None][:, :0], self.skip(latents, after)
        if begin:
            after.begin()
        return latents, frames, after

    @apart
    @torch.inference_mode()
    def generate_latents(
        self, state: WorldState, c2w: Tensor, sigmas: Sequence[float] | None = None
    ) -> tuple[Tensor, WorldState]:
        """`step` without the decode: new latents (B, C, latents_per_step, h, w); the next state but for
        decoder and frame.
        """
        c2w = self.check_poses(state, c2w, self.frames_per_step)
        before = state.transformer
        cameras, image = self._cameras(state, c2w)
        noise, generators = self.draw_noise(state, self.latents_per_step)
        levels = self.config.sigmas if sigmas is None else sigmas
        x = sample_chunk(self.transformer, _after(image, noise), state.text, cameras, before, image, levels)
        commit = partial(self._commit, x, state.text, cameras, before)
        after = state.changed(
            transformer=Deferred(commit) if self.device.type == "cpu" else commit(),
            c2w=c2w[:, -1].clone(),
            generators=generators,
            chunk_index=state.chunk_index + 1,
        )
        return x[:, :, -self.latents_per_step :], after

    def _cameras(self, state: WorldState, c2w: Tensor) -> tuple[CameraContext, Tensor | None]:
        """What the network is told of the poses of a new chunk; and the first frame's latent, which goes
        before the session's first chunk, as its pose does.
        """
        before = state.transformer
        opens = before is None
        path = torch.cat([state.c2w[:, None], c2w], 1) if opens else c2w
        inputs = camera_inputs(path, state.intrinsics_px, self.config.image_size, self.config.grid, opens)
        cameras = self.transformer.camera_context(*inputs, 0 if opens else before.next_frame)
        return cameras, state.image_latent if opens else None

    @apart
    @torch.inference_mode()
    def _commit(
        self, latents: Tensor, text: TextContext, cameras: CameraContext, before: TransformerState | None
    ) -> TransformerState:
        """The clean pass."""
        return self.transformer.commit(latents, text, cameras, before)


def _after(image: Tensor | None, latents: Tensor) -> Tensor:
    """The latents of a chunk, after the image latent if there is one."""
    return latents if image is None else torch.cat([image, latents], 2)
