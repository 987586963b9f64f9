"""Tiny networks whose every path is alive: no weight is left at the zero it starts training from."""

import torch
from torch import Tensor

from sana_wm_env.model.camera_inputs import camera_inputs
from sana_wm_env.model.config import TransformerConfig
from sana_wm_env.model.network.transformer import Transformer

GRID = (2, 3)


def tiny_config(**changes) -> TransformerConfig:
    sizes = {
        "depth": 4,
        "width": 32,
        "heads": 2,
        "in_channels": 4,
        "text_width": 6,
        "text_tokens": 5,
        "mlp_ratio": 2.0,
        "input_size": 2,
    }
    return TransformerConfig(**{**sizes, **changes})


def tiny_network(dtype: torch.dtype = torch.float64, **changes) -> Transformer:
    torch.manual_seed(0)
    network = Transformer(tiny_config(**changes)).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return network


def paths(frames: int, batch: int = 1, step_m: float = 0.1, seed: int = 3) -> Tensor:
    """Poses (B, F, 4, 4) float64 of a camera that walks and turns, frame 0 at the origin."""
    generator = torch.Generator().manual_seed(seed)
    twist = torch.zeros(batch, 4, 4, dtype=torch.float64)
    turn, move = (torch.randn(2, batch, 3, generator=generator, dtype=torch.float64)) * torch.tensor(
        [0.02, step_m]
    )[:, None, None]
    twist[:, 0, 1], twist[:, 0, 2], twist[:, 1, 2] = -turn[:, 2], turn[:, 1], -turn[:, 0]
    twist[:, :3, :3] -= twist[:, :3, :3].mT.clone()
    twist[:, :3, 3] = move
    return torch.linalg.matrix_exp(twist[:, None] * torch.arange(frames, dtype=torch.float64)[:, None, None])


def clip(
    frames: int, batch: int = 1, dtype: torch.dtype = torch.float64, step_m: float = 0.1
) -> dict[str, Tensor]:
    """Random inputs of a clip of `frames` latent frames."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    intrinsics = torch.tensor([[50.0, 52.0, 23.0, 17.0]]).repeat(batch, 1)
    camera, plucker = camera_inputs(paths(8 * (frames - 1) + 1, batch, step_m), intrinsics, (32, 48), GRID)
    mask = torch.ones(batch, 5)
    mask[:, 3:] = 0
    return {
        "x": normal(batch, 4, frames, *GRID),
        "camera": camera,
        "plucker": plucker,
        "text": normal(batch, 5, 6),
        "mask": mask,
    }
