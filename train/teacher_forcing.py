"""Stage 3 in the way that a session goes: every chunk of a long clip is learned on top of the carried state.

The clean clip is committed chunk by chunk, as the environment commits what it has imagined, and from the
state before each chunk the network recovers that chunk from noise at the sampler's levels (teacher forcing,
as SANA-Video and CausVid name it). Diffusion forcing (`causal`) learns from the one chunk behind a clean
past; this learns from all of them, with the window of the softmax blocks as it is when streaming, and the
gradient of a chunk reaches what was committed long before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor

from sana_wm_env.model.contexts import CameraContext, TextContext
from sana_wm_env.model.network.execution import chunk_spans
from sana_wm_env.model.sampler import with_image
from sana_wm_env.model.state import TransformerState
from sana_wm_env.model.tree import map_tensors, tensors_of
from sana_wm_env.rooms.paths import LOOK_CHUNKS
from sana_wm_env.settings import check_settings

from .data.latents import LatentClips, Window, encoded_rooms
from .export import export_stage
from .loop import LoopConfig, train
from .processes import rank, start_processes
from .streaming import StreamingConfig, StreamingStage, shared

Chunk = tuple[Tensor, CameraContext]
KNOWN = 0.01
"""Squared error of a cell of unit variance that counts as known."""


@dataclass(frozen=True)
class TeacherForcingConfig(StreamingConfig):
    """Trains the streaming model of a world on long clips, from the chunk-causal one.

    Attributes:
        short_frames: latent frames of a short clip, 3k + 1; more of them make a batch of the same size.
        short: share of steps on short clips, which come from more rooms than sessions do.
        lead: largest number of chunks that go before a long clip, without gradient; half of those have some.
            Old states are met only there.
        own_past: largest share of a clip's chunks that are committed as the network imagines them in one call
            on top of what it imagined before, so that it learns to live with its errors; each clip draws its
            share between 0 and this, large ones more often (scheduled sampling, Bengio et al. 2015).
        tours: files of sessions that begin with a look all around, each 4 of 961 frames.
        home_tours: files of such sessions at home.
        toured: share of steps on long clips from those, `short` being of the others. What was looked at is
            committed as it is, never as imagined; up to `lead` chunks of the walk go before the clip as well.
    """

    stage: ClassVar[str] = "teacher-forcing"
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=500, batch=8))
    init_from: str = "causal"
    sessions: int = 40
    frames: int = 37
    short_frames: int = 13
    short: float = 0.5
    lead: int = 0
    own_past: float = 0.0
    tours: int = 0
    home_tours: int = 0
    toured: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, short_frames="[1, inf)", short="[0, 1]", lead="[0, inf)", own_past="[0, 1]")
        check_settings(self, tours="[0, inf)", home_tours="[0, inf)", toured="[0, 1]")
        if self.toured and not self.tours + self.home_tours:
            raise ValueError(f"got toured={self.toured} without tours; wanted files of tours or home_tours")

    @property
    def looks_around(self) -> bool:
        return self.toured > 0

    @property
    def tour_files(self) -> dict[str, int]:
        """Clip files of tours to train on, by kind, beside `clip_files`."""
        return {"tours": self.tours, "home-tours": self.home_tours} if self.toured else {}

    @property
    def longest_lead(self) -> int:
        """Most chunks that go before a clip."""
        return self.lead + (LOOK_CHUNKS if self.toured else 0)


class TeacherForcingStage(StreamingStage):
    config: TeacherForcingConfig

    def __init__(self, config: TeacherForcingConfig):
        super().__init__(config)
        if config.toured:
            device = config.loop.device
            clips = encoded_rooms(
                config.runs / "data", config.tour_files, config.size, self.autoencoder, device
            )
            # a session opens where its look around begins, and nowhere else
            clips = [replace(clip, stills=clip.stills[:1]) for clip in clips]
            self.tours = LatentClips(clips, config.size, config.text, device)

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Returns the distance of what is recovered from the truth, over all chunks; that of the first and of
        the last chunk to log.
        """
        config, alike, lead, seen = self.config, shared(generator), 0, 0
        frames, clips = config.frames, self.clips
        if config.toured and torch.rand((), generator=alike) < config.toured:
            clips, seen = self.tours, LOOK_CHUNKS
            lead = seen + int(torch.randint(config.lead + 1, (), generator=alike))
            frames += lead * self.network.config.chunk
        elif torch.rand((), generator=alike) < config.short:
            frames = config.short_frames
            if not config.loop.compile:  # whose programs are for one size of batch
                batch = max(1, batch * config.frames // frames)
        elif config.lead and torch.rand((), generator=alike) < 0.5:
            lead = int(torch.randint(1, config.lead + 1, (), generator=alike))
            frames += lead * self.network.config.chunk
        window = clips.window(clips.draw(batch, frames, generator), frames)
        errors = self.errors(window, generator, lead, seen)  # (K, B)
        ends = {"first": errors[0].mean().item(), f"chunk{len(errors) - 1}": errors[-1].mean().item()}
        return errors.mean(), ends

    def errors(self, window: Window, generator: torch.Generator, lead: int = 0, seen: int = 0) -> Tensor:
        """Distances (K, B) of the chunks of a window after the first `lead` from the truth, each recovered on
        top of what is committed before it. Of the first `seen` chunks that is the truth.
        """
        chunks, text = self.chunks(window), self.network.text_context(window.text, window.text_mask)
        past, before = [truth for truth, _ in chunks[:-1]], None
        if self.config.own_past or lead:
            share = torch.rand(len(window.text), generator=generator, device=generator.device).sqrt()
            past, before = self.imagine(chunks, text, self.config.own_past * share, generator, lead, seen)
        past, chunks = past[lead:], chunks[lead:]
        recovered = self.recover_all(chunks, text, self.states(past, chunks, text, before), generator)
        given = [0 if lead else 1] + [0] * (len(chunks) - 1)  # the first frame of a session is
        return torch.stack(
            [
                distance(own[:, :, first:], truth[:, :, first:])
                for own, (truth, _), first in zip(recovered, chunks, given, strict=True)
            ]
        )

    def chunks(self, window: Window) -> list[Chunk]:
        """The true latents of each chunk, (B, C, 3 or 4, h, w), and its cameras."""
        cut = []
        for begin, end in chunk_spans(window.latents.shape[2], self.network.config.chunk):
            camera, plucker = window.camera[:, begin:end], window.plucker[:, :, begin:end]
            truth = window.latents[:, :, begin:end].contiguous()
            cut.append((truth, self.network.camera_context(camera, plucker, begin)))
        return cut

    def states(
        self,
        past: list[Tensor],
        chunks: list[Chunk],
        text: TextContext,
        before: TransformerState | None = None,
    ) -> list[TransformerState | None]:
        """The state before each chunk: `before`, then what is carried. `past` is what is committed, but for
        the last chunk.
        """
        states = [before]
        for latents, (_, cameras) in zip(past, chunks[:-1], strict=True):
            states.append(self.network.commit(latents, text, cameras, states[-1]))
        return states

    def recover_all(
        self,
        chunks: list[Chunk],
        text: TextContext,
        states: list[TransformerState | None],
        generator: torch.Generator,
        levels: Sequence[float] = (),
    ) -> list[Tensor]:
        """Every chunk as the network recovers it from noise. Those whose states are of one shape are one
        batch: from where the windows of the softmax blocks are full.
        """
        rest, recovered = list(zip(chunks, states, strict=True)), []
        if states[0] is None:
            ((truth, cameras), _), *rest = rest
            recovered = [self.recover(truth, text, cameras, None, truth[:, :, :1], generator, levels)]
        if self.config.loop.compile:  # whose programs are for one size of batch
            for (truth, cameras), state in rest:
                recovered.append(self.recover(truth, text, cameras, state, None, generator, levels))
            return recovered
        for _, alike in groupby(rest, key=lambda chunk: [t.shape for t in tensors_of(chunk[1])]):
            group = list(alike)
            truths, cameras, before = (
                map_tensors(lambda *values: torch.cat(values), *column)
                for column in zip(
                    *((truth, cameras, state) for (truth, cameras), state in group), strict=True
                )
            )
            texts = map_tensors(lambda *values: torch.cat(values), *[text] * len(group))
            together = self.recover(truths, texts, cameras, before, None, generator, levels)
            recovered += together.chunk(len(group))
        return recovered

    @torch.no_grad()
    def imagine(
        self,
        chunks: list[Chunk],
        text: TextContext,
        share: Tensor,
        generator: torch.Generator,
        lead: int = 0,
        seen: int = 0,
    ) -> tuple[list[Tensor], TransformerState | None]:
        """What is committed: for a share (B,) of the chunks of each clip what the network makes of pure noise
        on top of what was committed before, the truth for the others, the first `seen` among them. All but
        the last chunk; and the state after the first `lead` chunks.
        """
        state, before, past = None, None, []
        for truth, cameras in chunks[:-1]:
            if len(past) < seen:
                past.append(truth)
            else:
                image = truth[:, :, :1] if state is None else None
                own = self.recover(truth, text, cameras, state, image, generator, self.config.sigmas[:1])
                is_own = torch.rand(len(truth), generator=generator, device=generator.device) < share
                past.append(torch.where(is_own[:, None, None, None, None], with_image(own, image), truth))
            state = self.network.commit(past[-1], text, cameras, state)
            if len(past) == lead:
                before = self.opened(state)
        return past, before

    def opened(self, state: TransformerState) -> TransformerState:
        """The state as one that a clip begins with. Where blocks are compiled it asks for a gradient that
        nobody wants, as states inside the clip do, so that one program serves both.
        """
        wants = self.config.loop.compile
        return state.map(lambda t: t.detach().requires_grad_(wants and t.is_floating_point()))


def distance(own: Tensor, truth: Tensor) -> Tensor:
    """Pseudo-Huber distance (B,) of latents (B, C, T, h, w): the root of each cell's mean squared error, from
    `KNOWN` on.

    What was never seen is far off whatever is done; squared, it would be most of the loss and all of its
    noise. Of two things that may lie behind a corner the root chooses one, where the square shows their mean.
    """
    return (((own - truth).square().mean(1) + KNOWN).sqrt() - KNOWN**0.5).mean((1, 2, 3))


def run(config: TeacherForcingConfig) -> None:
    """Trains to config.loop.steps, or resumes, and packs the result as a world folder if config.pack says
    so.
    """
    start_processes()
    train(TeacherForcingStage(config), config.loop, config.home)
    if config.pack and rank() == 0:
        export_stage(config)
