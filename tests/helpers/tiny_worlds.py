"""A world so small that its steps take no time, and sessions of it."""

from dataclasses import asdict

import torch
from tiny_networks import paths, tiny_config

from sana_wm_env.model.codecs.autoencoder import AutoencoderConfig
from sana_wm_env.model.codecs.text import TextEncoderConfig
from sana_wm_env.model.config import WorldConfig
from sana_wm_env.model.world import WorldModel

AUTOENCODER = AutoencoderConfig(latent_channels=4, fine=8, coarse=8, encoder_blocks=1, decoder_blocks=1)
TEXT = TextEncoderConfig(width=6, tokens=5)
CONFIG = WorldConfig("tiny", tiny_config(), asdict(AUTOENCODER), asdict(TEXT), (16, 24), (2, 3))


def begin(world: WorldModel, batch: int, seed: int = 0):
    images = torch.randint(
        256, (batch, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
    )
    intrinsics = torch.tensor([[20.0, 20.0, 12.0, 8.0]]).repeat(batch, 1)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(batch)]
    return world.start(images, intrinsics, ["a red room", "a tall green box"][:batch], generators)


def poses(chunk: int, batch: int) -> torch.Tensor:
    return paths(24 * (chunk + 1) + 1, batch)[:, 24 * chunk + 1 :]
