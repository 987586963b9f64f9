"""Tiny refiners with random weights, in memory and in the folders that diffusers writes."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from sana_wm_env.model.network.refiner import RefinerConfig, RefinerNetwork
from sana_wm_env.model.refiner import Refiner

SIZES = {
    "in_channels": 6,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 3,
    "caption_channels": 10,
}
GRID, WORDS = (2, 3), 5


class Words:
    """Random features of prompts, by their first letter; the second half of the places is empty."""

    def encode(self, prompts):
        rows = []
        for prompt in prompts:
            generator = torch.Generator().manual_seed(ord(prompt[0]) if prompt else 0)
            rows.append(torch.randn(WORDS, SIZES["caption_channels"], generator=generator))
        return torch.stack(rows), torch.tensor([True, True, True, False, False]).repeat(len(prompts), 1)


def tiny_refiner(**changes) -> Refiner:
    torch.manual_seed(0)
    return Refiner(RefinerNetwork(RefinerConfig(**{**SIZES, **changes})), Words())


def random_latents(frames: int, batch: int = 1, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, SIZES["in_channels"], frames, *GRID, generator=generator)


def write_refiner(folder: Path, seed: int = 0, **settings) -> Path:
    """A refiner for the bundled world's latents and prompts; returns `folder`."""
    sizes = SIZES | {"in_channels": 48, "caption_channels": 64} | settings
    torch.manual_seed(seed)
    network = RefinerNetwork(RefinerConfig.from_settings(sizes))
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "config.json").write_text(json.dumps(sizes))
    save_file(network.state_dict(), folder / "transformer" / "diffusion_pytorch_model.safetensors")
    return folder


@torch.no_grad()
def stream(refiner: Refiner, latents: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Latents of a session, the first of which is the sink, block after block; the sink stays."""
    state = refiner.start(latents[:, :, :1], prompts)
    refined = [latents[:, :, :1]]
    for block in latents[:, :, 1:].split(refiner.config.block, 2):
        new, remember = refiner.refine(block, state)
        refined.append(new)
        state = remember()
    return torch.cat(refined, 2)
