"""TorchRL plays single environments as they are; it wants an environment of its own."""

import gymnasium as gym
import pytest

import sana_wm_env  # noqa: F401  # registers the ids

pytest.importorskip("torchrl", reason="TorchRL is not installed: pip install torchrl, beside this package")

pytestmark = pytest.mark.slow


def test_512_steps():
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    env = GymWrapper(gym.make("SanaWM-Rooms-v0", image_size=(16, 16), obs_mode="last", max_episode_steps=40))
    check_env_specs(env)
    env.set_seed(0)
    rollout = env.rollout(512, break_when_any_done=False)
    assert rollout.batch_size == (512,) and rollout["pixels"].shape == (512, 16, 16, 3)
    assert rollout["next", "done"].sum() == 512 // 40
