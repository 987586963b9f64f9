"""Stage 4: few-step streaming. The student rolls out on its own past, as the environment will use it, for as long as a session lasts.

A short distillation, not distribution matching: the roll-out is self-forcing's (Huang et al. 2025: one shared random exit step, gradient in
the exit call only), but the target is the true latent of the clip, which rooms can provide, instead of a pair of score models. A regression
blurs what the past leaves open; it does not blur what the past determines.

Half of every batch opens new sessions. The other half goes on where earlier steps have left theirs, with the state they have left it in
(streaming long tuning, Yang et al. 2025, LongLive): a minute of history costs no more than a chunk of it.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sana_wm_env.model.execution import chunk_spans
from sana_wm_env.model.sampler import frame_timesteps, with_image
from sana_wm_env.model.state import (
    BlockState,
    CameraContext,
    DeltaState,
    Mappable,
    TextContext,
    TransformerState,
    WindowEntry,
    WindowState,
    map_tensors,
)

from .latents import Sessions
from .loop import LoopConfig, train
from .pack import PackConfig, pack
from .processes import rank, start_processes
from .streaming import StreamingConfig, StreamingStage


@dataclass(frozen=True)
class DistillConfig(StreamingConfig):
    """Trains the few-step streaming model of a world, from the chunk-causal one."""

    stage: ClassVar[str] = "distill"
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=300))
    init_from: str = "causal"
    sessions: int = 40


@dataclass(frozen=True)
class Ongoing(Mappable):
    """A batch of sessions in mid-play: where they lie in the clips, how often they go on from the truth, and the model's state.

    trust (B,) is the share of a session's chunks that are committed as the clip has them, not as the model imagined them. With its own past
    only, a model would be taught to forget what it has imagined, as the truth behind the next corner is another; with the true past only,
    it would not learn to live with its errors.
    """

    sessions: Sessions
    trust: Tensor
    state: TransformerState | None


# what a checkpoint may hold of sessions in mid-play
torch.serialization.add_safe_globals([Ongoing, Sessions, TransformerState, BlockState, DeltaState, WindowState, WindowEntry])


class DistillStage(StreamingStage):
    config: DistillConfig
    carried: Ongoing | None = None

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        exit_step, half = self.exit_step(generator), max(batch // 2, 1)
        trust = torch.rand(half, generator=generator, device=generator.device)
        new = Ongoing(self.clips.draw(half, self.config.frames, generator), trust, None)
        opened, losses = self.play(new, exit_step, generator)
        scalars = {f"chunk{n}": loss.item() for n, loss in enumerate(losses)}
        if self.carried is None:
            self.carried = self.unfinished(opened)
        else:
            continued, later = self.play(self.carried, exit_step, generator)
            losses += later
            scalars |= {"later": later[-1].item(), "age": continued.state.next_frame.float().mean().item()}
            self.carried = self.unfinished(map_tensors(lambda *values: torch.cat(values), continued, opened), half)
        return torch.stack(losses).mean(), {**scalars, "exit_step": float(exit_step)}

    def play(self, ongoing: Ongoing, exit_step: int, generator: torch.Generator) -> tuple[Ongoing, list[Tensor]]:
        """The next chunks of some sessions: where they stand afterwards, and the squared error of each chunk's latents."""
        state, chunk = ongoing.state, self.network.config.chunk
        first = None if state is None else state.next_frame
        spans = chunk_spans(self.config.frames, chunk)
        if state is not None:
            spans = tuple((chunk * n, chunk * (n + 1)) for n in range(len(spans)))
        window = self.clips.window(ongoing.sessions, spans[-1][1], first)
        text, losses = self.network.text_context(window.text, window.text_mask), []
        for begin, end in spans:
            truth = window.latents[:, :, begin:end].contiguous()
            position = begin if first is None else first + begin
            cameras = self.network.camera_context(window.camera[:, begin:end], window.plucker[:, :, begin:end], position)
            image = truth[:, :, :1] if state is None else None
            x = with_image(torch.randn(truth.shape, generator=generator, device=generator.device), image)
            x = self.denoise(x, exit_step, text, cameras, state, image)
            given = 0 if image is None else 1
            losses.append((x - truth)[:, :, given:].square().mean())
            trusted = torch.rand(len(x), generator=generator, device=generator.device) < ongoing.trust
            past = torch.where(trusted[:, None, None, None, None], truth, x.detach())
            # what to remember is learned from the chunk after, hence with gradient wherever there is one
            with torch.set_grad_enabled(end < spans[-1][1]):
                state = self.network.commit(past, text, cameras, state)
        return Ongoing(ongoing.sessions, ongoing.trust, state.detach()), losses

    def denoise(
        self, x: Tensor, exit_step: int, text: TextContext, cameras: CameraContext, state: TransformerState | None, image: Tensor | None
    ) -> Tensor:
        """From noise to the clean latents that the exit call predicts; the gradient is that call's."""
        sigmas = self.config.sigmas
        for call in range(exit_step + 1):
            with torch.set_grad_enabled(call == exit_step):
                velocity = self.network.stream(x, frame_timesteps(sigmas[call], x, image), text, cameras, state)
                step = sigmas[call] - (sigmas[call + 1] if call < exit_step else 0.0)
                x = with_image(x - step * velocity, image)
        return x

    def unfinished(self, ongoing: Ongoing, most: int | None = None) -> Ongoing | None:
        """The first `most` of the sessions whose clips last for another play, None if there is none."""
        ahead = self.network.config.chunk * len(chunk_spans(self.config.frames, self.network.config.chunk))
        rows = (self.clips.left(ongoing.sessions) >= ongoing.state.next_frame + ahead).nonzero()[:most, 0]
        return ongoing.map(lambda value: value[rows]) if len(rows) else None


def run(config: DistillConfig) -> None:
    """Trains to config.loop.steps, or resumes, and packs the result as a world folder, runs/WORLD/world."""
    start_processes()
    train(DistillStage(config), config.loop, config.home)
    if rank() == 0:
        pack(PackConfig(config.world, config.runs, config.home.name))
