"""Stage 5: distribution matching on the model's own roll-outs (self-forcing, Huang et al. 2025; DMD, Yin et
al. 2024).

The released recipe. Three networks: the generator streams a clip on its own past; the critic, a bidirectional
model that is trained on what the generator makes, knows the score of that; the real score is the frozen
bidirectional teacher's. The generator follows the difference of the two scores. It is updated on every fifth
step, the critic on each.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from sana_wm_env.model.config import TransformerConfig
from sana_wm_env.model.network.execution import chunk_spans
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.sampler import frame_timesteps, with_image
from sana_wm_env.settings import check_settings

from .data.latents import Window
from .export import export_stage
from .levels import LEVELS, sigma_of
from .loop import LoopConfig, load_average, train
from .ode import ODE_SIGMAS
from .optim import OptimConfig
from .processes import rank, start_processes
from .streaming import StreamingConfig, StreamingStage

SCORE_SHIFT = 10.0
TIMESTEPS = (20, 980)
RATES = OptimConfig(lr=1e-3, adam_lr=5e-4, betas=(0.0, 0.999))


@dataclass(frozen=True)
class SelfForcingConfig(StreamingConfig):
    """Trains the few-step streaming model by distribution matching; first with all caches, then with sink and
    window.

    The first phase is `--name self-forcing-all --cached -1`, the second `--init-from self-forcing-all`;
    generator and critic both go on.

    Attributes:
        teacher: stage of the real score and of the critic's beginning.
        every: critic updates per generator update.
        guidance: w of cond + w (cond - uncond), on the real score only.
        critic_rate: the critic's learning rate, as a share of the generator's.
    """

    stage: ClassVar[str] = "self-forcing"
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=700, batch=8, optim=RATES))
    init_from: str = "ode"
    frames: int = 10
    sigmas: tuple[float, ...] = ODE_SIGMAS
    teacher: str = "bidirectional"
    every: int = 5
    guidance: float = 3.0
    critic_rate: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, every="[1, inf)", guidance="[0, inf)", critic_rate="(0, inf)")


class SelfForcingStage(StreamingStage):
    config: SelfForcingConfig
    carried: int

    def __init__(self, config: SelfForcingConfig):
        super().__init__(config)
        home, self.carried = config.runs / config.world, 0  # steps taken
        teacher, critic = (self.prepare(Transformer(self.transformer())) for _ in range(2))
        teacher.load_state_dict(load_average(home / config.teacher))
        source = config.init_from if config.init_from.startswith("self-forcing") else config.teacher
        critic.load_state_dict(load_average(home / source, "critic"))
        self.teacher, self.critic = teacher.requires_grad_(False), critic
        self.model = nn.ModuleDict({"generator": self.network, "critic": critic})
        self.parts = {"generator": 1.0, "critic": config.critic_rate}

    def transformer(self) -> TransformerConfig:
        return replace(super().transformer(), sink=self.config.cached != -1)

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        turn = self.carried % self.config.every == 0
        self.carried += 1
        self.network.requires_grad_(turn)
        total, scalars = torch.zeros((), device=generator.device), {}
        if turn:
            window = self.draw(batch, generator)
            made = self.roll_out(window, generator)
            matching, scalars = self.matching(made, window, generator)
            total = total + matching
        window = self.draw(batch, generator)
        with torch.no_grad():
            made = self.roll_out(window, generator)
        critic = self.critic_loss(made, window, generator)
        return total + critic, {**scalars, "critic": critic.item()}

    def draw(self, batch: int, generator: torch.Generator) -> Window:
        """Cameras, captions and first frames to play; the later latents of the clips are not used."""
        return self.clips.window(
            self.clips.draw(batch, self.config.frames, generator, text_drop=0.0), self.config.frames
        )

    def roll_out(self, window: Window, generator: torch.Generator) -> Tensor:
        """A clip (B, C, T, h, w) that the generator streams on its own past; gradient flows through each
        chunk's exit call only.
        """
        network, sigmas, exit_step = self.network, self.config.sigmas, self.exit_step(generator)
        text, state, chunks = network.text_context(window.text, window.text_mask), None, []
        noise = torch.randn(window.latents.shape, generator=generator, device=generator.device)
        for begin, end in chunk_spans(noise.shape[2], network.config.chunk):
            cameras = network.camera_context(
                window.camera[:, begin:end], window.plucker[:, :, begin:end], begin
            )
            image = window.latents[:, :, :1] if state is None else None
            x = with_image(noise[:, :, begin:end], image)
            for call in range(exit_step + 1):
                with torch.set_grad_enabled(call == exit_step and torch.is_grad_enabled()):
                    velocity = network.stream(
                        x, frame_timesteps(sigmas[call], x, image), text, cameras, state
                    )
                    clean = with_image(x - sigmas[call] * velocity, image)
                if call < exit_step:
                    fresh = torch.randn(x.shape, generator=generator, device=generator.device)
                    x = with_image(torch.lerp(clean, fresh, sigmas[call + 1]), image)
            chunks.append(clean)
            if end < noise.shape[2]:
                with torch.no_grad():
                    state = network.commit(clean.detach(), text, cameras, state)
        return torch.cat(chunks, 2)

    def noised(self, made: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A clip at one random level, its first frame clean: noisy (B, C, T, h, w), noise, timestep (B, T),
        sigma (B, 1, 1, 1, 1).
        """
        device, batch = generator.device, len(made)
        index = torch.randint(LEVELS, (batch,), generator=generator, device=device)
        sigma = (LEVELS * sigma_of(index, SCORE_SHIFT)).trunc().clamp(*TIMESTEPS) / LEVELS
        noise = torch.randn(made.shape, generator=generator, device=device)
        noisy = with_image(torch.lerp(made, noise, sigma[:, None, None, None, None]), made[:, :, :1])
        timestep = (LEVELS * sigma)[:, None].repeat(1, made.shape[2])
        timestep[:, 0] = 0
        return noisy, noise, timestep, sigma[:, None, None, None, None]

    def matching(
        self, made: Tensor, window: Window, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Half the squared distance to where the two scores pull the clip, so that its gradient is their
        normalised difference.
        """
        with torch.no_grad():
            noisy, _, timestep, sigma = self.noised(made, generator)
            fake = noisy - sigma * self.velocity(self.critic, noisy, timestep, window)
            conditional = self.velocity(self.teacher, noisy, timestep, window)
            free = self.velocity(self.teacher, noisy, timestep, self.without_text(window))
            real = noisy - sigma * (conditional + self.config.guidance * (conditional - free))
            size = (made - real)[:, :, 1:].abs().mean((1, 2, 3, 4), keepdim=True).clamp(min=1e-6)
            pull = ((fake - real) / size).nan_to_num()
        loss = 0.5 * (made - (made - pull).detach())[:, :, 1:].square().mean()
        return loss, {"matching": loss.item(), "distance": size.mean().item()}

    def critic_loss(self, made: Tensor, window: Window, generator: torch.Generator) -> Tensor:
        """Flow matching of the critic on what the generator made."""
        noisy, noise, timestep, _ = self.noised(made, generator)
        error = self.velocity(self.critic, noisy, timestep, window) - (noise - made)
        return error[:, :, 1:].square().mean()

    def without_text(self, window: Window) -> Window:
        batch = len(window.text)
        return replace(
            window,
            text=self.clips.null.expand(batch, -1, -1),
            text_mask=self.clips.null_mask.expand(batch, -1),
        )

    def preview(self, model: nn.ModuleDict) -> Tensor:
        return super().preview(cast(Transformer, model["generator"]))


def run(config: SelfForcingConfig) -> None:
    """Trains to config.loop.steps, or resumes, and packs the generator as a world folder,
    runs/WORLD/world.
    """
    start_processes()
    train(SelfForcingStage(config), config.loop, config.home)
    if config.pack and rank() == 0:
        export_stage(config)
