"""Base of the stages that train the network as it is used: chunk by chunk, few steps each, on its own
past.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sana_wm_env.model.config import TransformerConfig, check_sigmas
from sana_wm_env.model.contexts import CameraContext, TextContext
from sana_wm_env.model.network.execution import chunk_spans
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.sampler import STREAMING_SIGMAS, sample_chunk, timestep_of, with_image
from sana_wm_env.model.state import TransformerState
from sana_wm_env.settings import check_settings

from .data.latents import Window
from .flow import FlowConfig, FlowStage, initial_weights
from .growth import deepen


@dataclass(frozen=True)
class StreamingConfig(FlowConfig):
    """Settings of all stages of the streaming model.

    Attributes:
        sigmas: noise levels of the sampler, ending at 0.
        cached: chunks that softmax blocks read back, the session's first among them; -1 for all.
        sinks: how many of them are the session's first.
        pack: write the result as a world folder, runs/WORLD/world.
        average_with: stages, worlds or safetensors files whose weights are averaged with the result where it
            is packed: with what the stage began from, say, which forgets less than the result alone.
    """

    frames: int = 7
    sigmas: tuple[float, ...] = STREAMING_SIGMAS
    cached: int = 2
    sinks: int = 1
    pack: bool = True
    average_with: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sigmas(self.sigmas)
        check_settings(self, cached="[-1, inf)", sinks="[1, inf)")

    @property
    def looks_around(self) -> bool:
        """Whether the world looks around at home before a session begins."""
        return False


class StreamingStage(FlowStage):
    config: StreamingConfig

    def __init__(self, config: StreamingConfig):
        self.config = config
        for name in config.average_with:  # what cannot be averaged is told before the training, not after it
            network = Transformer(self.transformer())
            weights = initial_weights(config.runs / config.world, name)
            network.load_state_dict(deepen(weights, network.config))
        super().__init__(config)

    def transformer(self) -> TransformerConfig:
        config = self.config
        return replace(super().transformer(), num_cached_blocks=config.cached, num_sink_blocks=config.sinks)

    def sample(self, model: Transformer, window: Window, noise: Tensor) -> Tensor:
        """Latents like `noise`, chunk by chunk on the model's own past, exactly as the environment samples
        them.
        """
        text, state, chunks = model.text_context(window.text, window.text_mask), None, []
        for begin, end in chunk_spans(noise.shape[2], self.network.config.chunk):
            cameras = model.camera_context(
                window.camera[:, begin:end], window.plucker[:, :, begin:end], begin
            )
            image = window.latents[:, :, :1] if state is None else None
            chunks.append(
                sample_chunk(model, noise[:, :, begin:end], text, cameras, state, image, self.config.sigmas)
            )
            state = model.commit(chunks[-1], text, cameras, state)
        return torch.cat(chunks, 2)

    def exit_step(self, generator: torch.Generator) -> int:
        """Draws the call whose prediction ends the sampling of this step's chunks: one for all chunks, as
        every chunk's state comes from it, and one for all processes.
        """
        return int(torch.randint(len(self.config.sigmas) - 1, (), generator=shared(generator)))

    def recover(
        self,
        truth: Tensor,
        text: TextContext,
        cameras: CameraContext,
        state: TransformerState | None,
        image: Tensor | None,
        generator: torch.Generator,
        levels: Sequence[float] = (),
    ) -> Tensor:
        """The clean latents that the network sees in the truth under noise, every sample at one of the levels
        (those of the sampler if none are given).
        """
        choice = torch.tensor(levels or self.config.sigmas[:-1], device=truth.device)
        sigma = choice[torch.randint(len(choice), (len(truth),), generator=generator, device=truth.device)]
        noisy = with_image(
            torch.lerp(truth, noise_like(truth, generator), sigma[:, None, None, None, None]), image
        )
        timestep = timestep_of(sigma)[:, None].repeat(1, truth.shape[2])
        if image is not None:
            timestep[:, :1] = 0
        velocity = self.network.stream(noisy, timestep, text, cameras, state)
        return noisy - sigma[:, None, None, None, None] * velocity


def shared(generator: torch.Generator) -> torch.Generator:
    """The generator of what all processes draw alike in a step."""
    return torch.Generator().manual_seed(generator.initial_seed() // 4096)


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device)
