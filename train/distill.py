"""Stage 4: few-step streaming. The student rolls out on its own past, as the environment will use it.

A short distillation, not distribution matching: the roll-out is self-forcing's (Huang et al. 2025: one shared random exit step, gradient in
the exit call only, detached clean-pass state), but the target is the true latent of the clip, which rooms can provide, instead of a pair of
score models. A regression blurs what the past leaves open; it does not blur what the past determines.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sana_wm_env.model.execution import chunk_spans
from sana_wm_env.model.sampler import STREAMING_SIGMAS, frame_timesteps, sample_chunk, with_image

from .bidirectional import FlowConfig, FlowStage
from .latents import Window
from .loop import LoopConfig, start_processes, train
from .optim import rank
from .pack import PackConfig, pack

LONGEST_GAP = 120  # latent frames: a minute


@dataclass(frozen=True)
class DistillConfig(FlowConfig):
    """Trains the few-step streaming model of a world, from the chunk-causal one.

    Attributes:
        sigmas: noise levels of the sampler, ending at 0.
        late: share of the samples that play late in a session, see `DistillStage.late_in_a_session`.
    """

    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=300))
    start: str = "causal"
    late: float = 0.0
    frames: int = 10
    sigmas: tuple[float, ...] = STREAMING_SIGMAS


class DistillStage(FlowStage):
    config: DistillConfig

    def sample(self, model: nn.Module, window: Window, noise: Tensor) -> Tensor:
        """Latents like `noise`, chunk by chunk on the model's own past, exactly as the environment samples them."""
        text, state, chunks = model.text_context(window.text, window.text_mask), None, []
        for begin, end in chunk_spans(noise.shape[2], self.model.config.chunk):
            cameras = model.camera_context(window.camera[:, begin:end], window.plucker[:, :, begin:end], begin)
            image = window.latents[:, :, :1] if state is None else None
            chunks.append(sample_chunk(model, noise[:, :, begin:end], text, cameras, state, image, self.config.sigmas))
            state = model.commit(chunks[-1], text, cameras, state)
        return torch.cat(chunks, 2)

    def late_in_a_session(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What a share `late` of the samples pretends, for clips are short and sessions are not.

        Returns origin (B, 4, 4), a first camera up to 3 m away and turned any way from where poses are counted, and gap (B,), latent frames
        that have passed between the first chunk and the second. Both are nothing for the other samples.
        """
        kwargs = {"generator": generator, "device": generator.device}
        late = torch.rand(2, batch, **kwargs) < self.config.late
        yaw = (2 * torch.rand(batch, **kwargs) - 1) * math.pi * late[0]
        origin = torch.eye(4, device=generator.device).repeat(batch, 1, 1)
        origin[:, 0, 0], origin[:, 0, 2], origin[:, 2, 0], origin[:, 2, 2] = yaw.cos(), yaw.sin(), -yaw.sin(), yaw.cos()
        reach = torch.tensor([3.0, 0.5, 3.0], device=generator.device)
        origin[:, :3, 3] = (2 * torch.rand(batch, 3, **kwargs) - 1) * reach * late[0, :, None]
        gap = torch.randint(1, LONGEST_GAP, (batch,), **kwargs) * late[1]
        return origin, gap

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        device, sigmas = generator.device, self.config.sigmas
        origin, gap = self.late_in_a_session(batch, generator)
        window = self.clips.draw(batch, self.config.frames, generator, origin=origin)
        # one exit step for all chunks and all processes, as every chunk's caches come from it
        exit_step = int(torch.randint(len(sigmas) - 1, (), generator=torch.Generator().manual_seed(generator.initial_seed() // 4096)))
        text = self.model.text_context(window.text, window.text_mask)
        state, losses, spans = None, [], chunk_spans(self.config.frames, self.model.config.chunk)
        for begin, end in spans:
            truth = window.latents[:, :, begin:end].contiguous()
            cameras = self.model.camera_context(window.camera[:, begin:end], window.plucker[:, :, begin:end], begin + gap * (begin > 0))
            image = truth[:, :, :1] if state is None else None
            x = with_image(torch.randn(truth.shape, generator=generator, device=device), image)
            for call in range(exit_step + 1):
                with torch.set_grad_enabled(call == exit_step):
                    velocity = self.model.stream(x, frame_timesteps(sigmas[call], x, image), text, cameras, state)
                    step = sigmas[call] - (sigmas[call + 1] if call < exit_step else 0.0)
                    x = with_image(x - step * velocity, image)
            given = 0 if image is None else 1
            losses.append((x - truth)[:, :, given:].square().mean())
            if end < spans[-1][1]:
                with torch.no_grad():
                    state = self.model.commit(x.detach(), text, cameras, state)
        scalars = {f"chunk{n}": loss.item() for n, loss in enumerate(losses)}
        return torch.stack(losses).mean(), {**scalars, "exit_step": float(exit_step)}


def run(config: DistillConfig) -> None:
    """Trains to config.loop.steps, or resumes, and packs the result as a world folder, runs/WORLD/world."""
    start_processes()
    home = config.runs / config.world
    stage = DistillStage(config)
    train(stage, config.loop, home / "distill")
    if rank() == 0:
        pack(PackConfig(config.world, config.runs))
