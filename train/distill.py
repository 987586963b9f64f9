"""Stages 4 and 5 in short: few-step streaming on the model's own past, for as long as a session lasts, without score models.

Half of every batch opens sessions. Their roll-out is self-forcing's (Huang et al. 2025: one shared random exit step, gradient in the exit
call only), but the target is the true latent, which rooms can provide: what the given picture determines is learned as such.

The other half goes on where earlier steps have left their sessions, with the state they have left them in (streaming long tuning, LongLive,
Yang et al. 2025): a minute of history costs no more than a chunk of it. These chunks learn by flow matching at the sampler's own levels. A
regression would blur what the past leaves open, and blur of blur is all that a minute of it leaves.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sana_wm_env.model.execution import chunk_spans
from sana_wm_env.model.sampler import frame_timesteps, sample_chunk, timestep_of, with_image
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
from .pack import pack_stage
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
        half = max(batch // 2, 1)
        trust = torch.rand(half, generator=generator, device=generator.device)
        new = Ongoing(self.clips.draw(half, self.config.frames, generator), trust, None)
        opened, losses = self.play(new, generator)
        scalars = {f"chunk{n}": loss.item() for n, loss in enumerate(losses)}
        if self.carried is None:
            self.carried = self.unfinished(opened)
        else:
            continued, later = self.play(self.carried, generator)
            losses += later
            scalars |= {"later": later[-1].item(), "age": continued.state.next_frame.float().mean().item()}
            self.carried = self.unfinished(map_tensors(lambda *values: torch.cat(values), continued, opened), half)
        return torch.stack(losses).mean(), {**scalars, "exit_step": float(self.exit_step(generator))}

    def play(self, ongoing: Ongoing, generator: torch.Generator) -> tuple[Ongoing, list[Tensor]]:
        """The next chunks of some sessions: where they stand afterwards, and the squared error of each chunk's latents."""
        state, chunk, opens = ongoing.state, self.network.config.chunk, ongoing.state is None
        spans = chunk_spans(self.config.frames, chunk)
        if not opens:
            spans = tuple((chunk * n, chunk * (n + 1)) for n in range(len(spans)))
        first = 0 if opens else state.next_frame
        window = self.clips.window(ongoing.sessions, spans[-1][1], None if opens else first)
        text, losses = self.network.text_context(window.text, window.text_mask), []
        for begin, end in spans:
            truth = window.latents[:, :, begin:end].contiguous()
            cameras = self.network.camera_context(window.camera[:, begin:end], window.plucker[:, :, begin:end], first + begin)
            trusted = torch.rand(len(truth), generator=generator, device=generator.device) < ongoing.trust
            if opens:
                image = truth[:, :, :1] if begin == 0 else None
                predicted = self.roll_out(noise_like(truth, generator), self.exit_step(generator), text, cameras, state, image)
                past = torch.where(trusted[:, None, None, None, None], truth, predicted.detach())
            else:
                predicted, past = self.recover(truth, text, cameras, state, generator), truth.clone()
                if len(rows := (~trusted).nonzero()[:, 0]):
                    own = (value.map(lambda v: v[rows]) for value in (text, cameras, state.detach()))
                    with torch.no_grad():
                        past[rows] = sample_chunk(self.network, noise_like(truth[rows], generator), *own, sigmas=self.config.sigmas)
            given = 1 if opens and begin == 0 else 0
            losses.append((predicted - truth)[:, :, given:].square().mean())
            # what to remember is learned from the chunk after, hence with gradient wherever there is one
            with torch.set_grad_enabled(end < spans[-1][1]):
                state = self.network.commit(past, text, cameras, state)
        return Ongoing(ongoing.sessions, ongoing.trust, state.detach()), losses

    def roll_out(
        self, x: Tensor, exit_step: int, text: TextContext, cameras: CameraContext, state: TransformerState | None, image: Tensor | None
    ) -> Tensor:
        """From noise x to the clean latents that the exit call predicts; the gradient is that call's."""
        sigmas, x = self.config.sigmas, with_image(x, image)
        for call in range(exit_step + 1):
            with torch.set_grad_enabled(call == exit_step):
                velocity = self.network.stream(x, frame_timesteps(sigmas[call], x, image), text, cameras, state)
                step = sigmas[call] - (sigmas[call + 1] if call < exit_step else 0.0)
                x = with_image(x - step * velocity, image)
        return x

    def recover(
        self, truth: Tensor, text: TextContext, cameras: CameraContext, state: TransformerState, generator: torch.Generator
    ) -> Tensor:
        """The clean latents that the network sees in the truth under noise, every sample at one of the sampler's levels."""
        levels = torch.tensor(self.config.sigmas[:-1], device=truth.device)
        sigma = levels[torch.randint(len(levels), (len(truth),), generator=generator, device=truth.device)]
        noisy = torch.lerp(truth, noise_like(truth, generator), sigma[:, None, None, None, None])
        velocity = self.network.stream(noisy, timestep_of(sigma)[:, None].expand(-1, truth.shape[2]), text, cameras, state)
        return noisy - sigma[:, None, None, None, None] * velocity

    def unfinished(self, ongoing: Ongoing, most: int | None = None) -> Ongoing | None:
        """The first `most` of the sessions whose clips last for another play, None if there is none."""
        ahead = self.network.config.chunk * len(chunk_spans(self.config.frames, self.network.config.chunk))
        rows = (self.clips.left(ongoing.sessions) >= ongoing.state.next_frame + ahead).nonzero()[:most, 0]
        return ongoing.map(lambda value: value[rows]) if len(rows) else None


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device)


def run(config: DistillConfig) -> None:
    """Trains to config.loop.steps, or resumes, and packs the result as a world folder, runs/WORLD/world."""
    start_processes()
    train(DistillStage(config), config.loop, config.home)
    if rank() == 0:
        pack_stage(config)
