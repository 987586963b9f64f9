"""What tests share. Set before torch is imported: two threads, so that rounding does not depend on the size of the machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import gymnasium as gym
import pytest
from hypothesis import settings

import sana_wm_env  # noqa: F401  # registers the ids

settings.register_profile("house", deadline=None, derandomize=True)  # the same examples at every run, no failure by the clock
settings.load_profile("house")


@pytest.fixture(scope="session", autouse=True)
def world(tmp_path_factory):
    """Until the trained world is in the repository, `SanaWM-v0` gets one with random weights."""
    from sana_wm_env.model.checkpoint import known_worlds, save_world

    if "rooms" in known_worlds():
        return
    import torch

    from sana_wm_env.model.autoencoder import Autoencoder, AutoencoderConfig
    from sana_wm_env.model.config import TransformerConfig, WorldConfig
    from sana_wm_env.model.transformer import Transformer

    torch.manual_seed(0)
    small = TransformerConfig(depth=4, width=64, heads=2, in_channels=48, text_width=64, text_tokens=32, mlp_ratio=2.0, input_size=8)
    autoencoder = {"latent_channels": 48, "fine": 32, "coarse": 32, "encoder_blocks": 1, "decoder_blocks": 1}
    config = WorldConfig(
        "random", small, autoencoder, {"width": 64, "tokens": 32}, (64, 64), (8, 8), 16,
        max_translation_m=0.6, max_rotation_rad=0.3, first_frames="rooms",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("worlds") / "random"
    network, coder = Transformer(small), Autoencoder(AutoencoderConfig(**autoencoder))
    for module in (network, coder):
        for weight in module.parameters():  # what starts at zero would hide the prompt, the poses and the noise
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.02)
    save_world(folder, config, network, coder, torch.float32)
    gym.registry["SanaWM-v0"].kwargs["world"] = str(folder)
