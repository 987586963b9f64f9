"""RLlib's new API stack trains on the last frame. It pins its own Gymnasium, so it runs in an environment of
its own: pip install 'ray[rllib]', beside this package.
"""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import DtypeObservation, RescaleObservation

import sana_wm_env  # noqa: F401  # registers the ids

pytest.importorskip(
    "ray.rllib", reason="RLlib is not installed: pip install 'ray[rllib]'", exc_type=ImportError
)

pytestmark = pytest.mark.slow
SIZE = {"image_size": (16, 16)}


def make(config):
    env = gym.make("SanaWM-RoomsFollow-v0", obs_mode="last", max_episode_steps=8, **config)
    return RescaleObservation(DtypeObservation(env, np.float32), np.float32(0), np.float32(1))


def test_ppo_of_512_steps():
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.tune.registry import register_env

    register_env("rooms", make)
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20)
    network = DefaultModelConfig(conv_filters=[[8, 4, 2], [16, 4, 2]], head_fcnet_hiddens=[32])
    config = (
        PPOConfig()
        .environment("rooms", env_config=SIZE)
        .env_runners(num_env_runners=0, rollout_fragment_length=64)
        .rl_module(model_config=network)
        .training(train_batch_size_per_learner=512, minibatch_size=128, num_epochs=1)
    )
    try:
        algorithm = config.build_algo()
        result = algorithm.train()["env_runners"]
        algorithm.stop()
    finally:
        ray.shutdown()
    assert result["num_env_steps_sampled_lifetime"] == 512 and np.isfinite(result["episode_return_mean"])


def test_a_chunk_is_refused_with_the_name_of_the_wrapper():
    """RLlib prints the space that it has no network for, and the space says what helps."""
    from ray.rllib.core.models.catalog import Catalog

    env = gym.make("SanaWM-Rooms-v0", **SIZE)
    with pytest.raises(ValueError, match="LastFrame"):
        Catalog(env.observation_space, env.action_space, {})
