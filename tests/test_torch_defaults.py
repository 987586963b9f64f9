"""What a user sets for torch as a whole changes nothing: our tensors name their dtype and their device."""

from contextlib import contextmanager

import gymnasium as gym
import numpy as np
import pytest
import torch

import sana_wm_env  # noqa: F401

ACTION = np.array([0.3, 0, 0.5, 0, 0.4, 0], np.float32)


@contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def two_steps(name: str) -> bytes:
    env = gym.make(name, device="cpu") if name == "SanaWM-v0" else gym.make(name)
    env.reset(seed=1)
    frames = [env.step(ACTION)[0] for _ in range(2)]
    env.close()
    return np.stack(frames).tobytes()


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),  # wrote past the end of a buffer of depths
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
}


@pytest.fixture(scope="module")
def plain() -> dict[str, bytes]:
    return {name: two_steps(name) for name in ("SanaWM-v0", "SanaWM-Rooms-v0")}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["SanaWM-v0", "SanaWM-Rooms-v0"])
def test_an_episode_is_the_same_to_the_last_bit(name, setting, plain):
    with SETTINGS[setting]():
        assert two_steps(name) == plain[name]
