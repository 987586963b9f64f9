"""Stages 4 and 5 in short: few-step streaming on the model's own past, for as long as a session lasts,
without score models.

Half of every batch opens sessions. Their roll-out is self-forcing's (Huang et al. 2025: one shared random
exit step, gradient in the exit call only), but the target is the true latent, which rooms can provide: what
the given picture determines is learned as such.

The other half goes on where earlier steps have left their sessions, with the state they have left them in
(streaming long tuning, LongLive, Yang et al. 2025): a minute of history costs no more than a chunk of it.
These chunks learn by flow matching at the sampler's own levels. A regression would blur what the past leaves
open, and blur of blur is all that a minute of it leaves.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sana_wm_env.model.contexts import CameraContext, TextContext
from sana_wm_env.model.network.execution import chunk_spans
from sana_wm_env.model.sampler import frame_timesteps, sample_chunk, with_image
from sana_wm_env.model.state import BlockState, DeltaState, TransformerState, WindowEntry, WindowState
from sana_wm_env.model.tree import Mappable, map_tensors, tensors_of

from .data.latents import Sessions
from .export import export_stage
from .loop import LoopConfig, train
from .processes import rank, start_processes
from .streaming import StreamingConfig, StreamingStage, noise_like

LOST = 5.0
"""Squared error of latents beyond which a session is given up. They have unit variance, so two unrelated
clips differ by 2.
"""


@dataclass(frozen=True)
class DistillConfig(StreamingConfig):
    """Trains the few-step streaming model of a world, from the chunk-causal one.

    Attributes:
        openings: how the chunks that open a session are learned: "roll-out" by regression along their
            sampling, "flow" like those of sessions that go on.
    """

    stage: ClassVar[str] = "distill"
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=300))
    init_from: str = "causal"
    sessions: int = 40
    openings: Literal["roll-out", "flow"] = "roll-out"


@dataclass(frozen=True)
class Ongoing(Mappable):
    """A batch of unfinished sessions: where they lie in the clips, how often they go on from the truth, and
    the model's state.

    trust (B,) is the share of a session's chunks that are committed as the clip has them, not as the model
    imagined them. With its own past only, a model would be taught to forget what it has imagined, as the
    truth behind the next corner is another; with the true past only, it would not learn to live with its
    errors.
    """

    sessions: Sessions
    trust: Tensor
    state: TransformerState | None


# what a checkpoint may hold of unfinished sessions
torch.serialization.add_safe_globals(
    [Ongoing, Sessions, TransformerState, BlockState, DeltaState, WindowState, WindowEntry]
)


class DistillStage(StreamingStage):
    config: DistillConfig
    carried: Ongoing | None = None

    def __init__(self, config: DistillConfig):
        super().__init__(config)
        chunk, full = self.network.config.chunk, max(config.cached, 2)
        goes_on = bool(self.clips.lengths.max() >= config.frames + chunk)
        if goes_on and (config.cached == -1 or len(chunk_spans(config.frames, chunk)) < full):
            raise ValueError(
                f"got --frames {config.frames} and --cached {config.cached}; wanted --cached from 0 and "
                f"--frames {1 + chunk * full} or more: sessions go on together, so their windows have to be "
                "full"
            )

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Returns the mean error of new and continued sessions, half of the batch each; errors by chunk to
        log.
        """
        half = max(batch // 2, 1)
        trust = torch.rand(half, generator=generator, device=generator.device)
        new = Ongoing(self.clips.draw(half, self.config.frames, generator), trust, None)
        opened, errors = self.advance(new, generator)
        losses = [error.mean() for error in errors]
        scalars = {f"chunk{n}": loss.item() for n, loss in enumerate(losses)}
        going_on = [self.unfinished(opened, errors)]
        if self.carried is not None:
            continued, later = self.advance(self.carried, generator)
            losses += [error.mean() for error in later]
            assert continued.state is not None
            scalars |= {"later": losses[-1].item(), "age": continued.state.next_frame.float().mean().item()}
            going_on.insert(0, self.unfinished(continued, later))
        going_on = [ongoing for ongoing in going_on if len(ongoing.trust)]
        self.carried = map_tensors(lambda *values: torch.cat(values)[:half], *going_on) if going_on else None
        return torch.stack(losses).mean(), {**scalars, "exit_step": float(self.exit_step(generator))}

    def let_go(self) -> None:
        self.carried = None

    def advance(self, ongoing: Ongoing, generator: torch.Generator) -> tuple[Ongoing, list[Tensor]]:
        """Learns the next chunks of some sessions. Returns the sessions after them, and each chunk's squared
        error (B,).
        """
        state, chunk, opens = ongoing.state, self.network.config.chunk, ongoing.state is None
        begun = None if state is None else state.next_frame
        spans = chunk_spans(self.config.frames, chunk)
        if not opens:
            spans = tuple((chunk * n, chunk * (n + 1)) for n in range(len(spans)))
        first = 0 if begun is None else begun
        window = self.clips.window(ongoing.sessions, spans[-1][1], begun)
        text, errors = self.network.text_context(window.text, window.text_mask), []
        for begin, end in spans:
            truth = window.latents[:, :, begin:end].contiguous()
            cameras = self.network.camera_context(
                window.camera[:, begin:end], window.plucker[:, :, begin:end], first + begin
            )
            trusted = torch.rand(len(truth), generator=generator, device=generator.device) < ongoing.trust
            given = 1 if opens and begin == 0 else 0
            image = truth[:, :, :1] if given else None
            if opens and self.config.openings == "roll-out":
                predicted = self.roll_out(
                    noise_like(truth, generator), self.exit_step(generator), text, cameras, state, image
                )
                past = torch.where(trusted[:, None, None, None, None], truth, predicted.detach())
            else:
                predicted = self.recover(truth, text, cameras, state, image, generator)
                past = self.imagine(truth, trusted, text, cameras, state, image, generator)
            errors.append((predicted - truth)[:, :, given:].square().mean((1, 2, 3, 4)))
            # what to remember is learned from the chunk after, hence with gradient wherever there is one
            with torch.set_grad_enabled(end < spans[-1][1]):
                state = self.network.commit(past, text, cameras, state)
        assert state is not None
        return Ongoing(ongoing.sessions, ongoing.trust, state.detach()), errors

    def roll_out(
        self,
        x: Tensor,
        exit_step: int,
        text: TextContext,
        cameras: CameraContext,
        state: TransformerState | None,
        image: Tensor | None,
    ) -> Tensor:
        """From noise x to the clean latents that the exit call predicts; the gradient is that call's."""
        sigmas, x = self.config.sigmas, with_image(x, image)
        for call in range(exit_step + 1):
            with torch.set_grad_enabled(call == exit_step):
                velocity = self.network.stream(
                    x, frame_timesteps(sigmas[call], x, image), text, cameras, state
                )
                step = sigmas[call] - (sigmas[call + 1] if call < exit_step else 0.0)
                x = with_image(x - step * velocity, image)
        return x

    @torch.no_grad()
    def imagine(
        self,
        truth: Tensor,
        trusted: Tensor,
        text: TextContext,
        cameras: CameraContext,
        state: TransformerState | None,
        image: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """The chunk as it is committed: the truth where trusted (B,), else what the network samples."""
        past = truth.clone()
        if len(rows := (~trusted).nonzero()[:, 0]):
            text, cameras = text.map(lambda v: v[rows]), cameras.map(lambda v: v[rows])
            state = None if state is None else state.map(lambda v: v[rows])
            noise, still = noise_like(truth[rows], generator), None if image is None else image[rows]
            past[rows] = sample_chunk(self.network, noise, text, cameras, state, still, self.config.sigmas)
        return past

    def unfinished(self, ongoing: Ongoing, errors: list[Tensor]) -> Ongoing:
        """Keeps the sessions whose clips are long enough to go on, and that are not lost.

        A session is lost where its state is not finite, or what is made of it is far beyond any picture:
        nothing can be learned from it, and its gradient harms all others.
        """
        assert ongoing.state is not None
        ahead = self.network.config.chunk * len(chunk_spans(self.config.frames, self.network.config.chunk))
        lasts = self.clips.left(ongoing.sessions) >= ongoing.state.next_frame + ahead
        sound = torch.stack([error < LOST for error in errors]).all(0)
        for value in tensors_of(ongoing.state):
            sound &= value.reshape(len(value), -1).isfinite().all(1)
        rows = (lasts & sound).nonzero()[:, 0]
        return ongoing.map(lambda value: value[rows])


def run(config: DistillConfig) -> None:
    """Trains to config.loop.steps, or resumes, and packs the result as a world folder if config.pack says
    so.
    """
    start_processes()
    train(DistillStage(config), config.loop, config.home)
    if config.pack and rank() == 0:
        export_stage(config)
