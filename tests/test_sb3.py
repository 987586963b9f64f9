"""`SB3VecEnv` against Stable-Baselines3's own DummyVecEnv, and SB3's algorithms on the environments."""

import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

import sana_wm_env.sb3
from sana_wm_env.sb3 import SB3VecEnv, check_replay_buffer, replay_buffer_bytes
from sana_wm_env.wrappers import DiscreteKeys

PICTURE = (36, 36)  # the smallest that SB3's network for images takes


def cart_pole():
    return gym.make(
        "CartPole-v1", max_episode_steps=15
    )  # random actions end some episodes, this limit the others


def room(obs_mode="last", size=(16, 16), **options):
    return gym.make("SanaWM-Rooms-v0", image_size=size, obs_mode=obs_mode, max_episode_steps=2, **options)


def same_step(make, slots=2):
    return SyncVectorEnv([make] * slots, autoreset_mode=AutoresetMode.SAME_STEP)


def assert_same(one, two):
    """Equal to the last bit, however deep, and keys in any order."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        np.testing.assert_array_equal(one, two, strict=isinstance(one, np.ndarray))


@pytest.mark.parametrize("make, steps", [(cart_pole, 60), (room, 5), (lambda: room("dict"), 5)])
def test_same_transitions_as_dummy_vec_env(make, steps):
    ours, theirs = SB3VecEnv(same_step(make, 3)), DummyVecEnv([make] * 3)
    assert (ours.observation_space, ours.action_space, ours.num_envs) == (
        theirs.observation_space,
        theirs.action_space,
        theirs.num_envs,
    )
    ours.action_space.seed(0)
    ends = []
    for seed in (5, None):  # the second reset goes on with the generators that the first has seeded
        if seed is not None:
            assert ours.seed(seed) == theirs.seed(seed)
        assert_same(ours.reset(), theirs.reset())
        for _ in range(steps):
            actions = np.stack([ours.action_space.sample() for _ in range(3)])
            got, wanted = ours.step(actions), theirs.step(actions)
            assert_same(got, wanted)
            assert [array.dtype for array in got[1:3]] == [np.float32, bool]
            assert_same(ours.reset_infos, theirs.reset_infos)
            ends += [info["TimeLimit.truncated"] for info, done in zip(got[3], got[2], strict=True) if done]
            assert all(
                ("terminal_observation" in info) == done for info, done in zip(got[3], got[2], strict=True)
            )
    assert True in ends and (False in ends or make is not cart_pole)


def test_worlds_on_one_set_of_weights():
    """The last frames of a batch may round differently; all else is what single worlds give."""
    options = {"obs_mode": "dict", "max_episode_steps": 2}
    ours = SB3VecEnv(gym.make_vec("SanaWM-Follow-v0", num_envs=2, autoreset_mode="SameStep", **options))
    theirs = DummyVecEnv([lambda: gym.make("SanaWM-Follow-v0", **options)] * 2)
    assert ours.seed(5) == theirs.seed(5)
    assert_same(ours.reset(), theirs.reset())
    ours.action_space.seed(0)
    for step in range(2):
        actions = np.stack([ours.action_space.sample() for _ in range(2)])
        got, wanted = ours.step(actions), theirs.step(actions)
        seen = [
            got[0],
            *(info.pop("terminal_observation") for info in got[3] if "terminal_observation" in info),
        ]
        right = [
            wanted[0],
            *(info.pop("terminal_observation") for info in wanted[3] if "terminal_observation" in info),
        ]
        assert len(seen) == len(right) == (3 if step == 1 else 1)
        for one, other in zip(seen, right, strict=True):
            assert np.abs(one.pop("image").astype(int) - other.pop("image")).max() <= 3
            assert_same(one, other)
        assert_same(got[1:], wanted[1:])
    with pytest.raises(ValueError, match="got options\\['per_slot'\\] for 1 slots"):
        ours.set_options({"per_slot": [{"prompt": "a red room"}]})
        ours.reset()
    assert len(ours.env_method("save_state", indices=[1])) == 1 and ours.get_attr("obs_mode") == ["dict"] * 2
    ours.close()


def test_observations_are_not_written_over():
    env = SB3VecEnv(SyncVectorEnv([cart_pole] * 2, autoreset_mode=AutoresetMode.SAME_STEP, copy=False))
    env.seed(0)
    first = env.reset()
    kept = first.copy()
    env.step(np.array([0, 1]))
    assert (first == kept).all()


def test_options_reach_every_slot_and_are_kept():
    env = SB3VecEnv(same_step(room))
    env.seed(0)
    env.set_options({"scene_seed": 11})
    one, other = env.reset()
    assert (one == other).all()
    assert (env.reset() == [one, other]).all()  # no options are passed the second time
    env.set_options({"scene_seed": 11, "keep_options": False})
    env.reset()
    one, other = env.reset()
    assert (one != other).any()
    with pytest.raises(ValueError, match="got a list of options; wanted one dict"):
        env.set_options([{"scene_seed": 1}, {"scene_seed": 2}])


def test_attributes_methods_and_pictures_of_slots():
    env = SB3VecEnv(same_step(lambda: Monitor(room(render_mode="rgb_array")), 3))
    assert env.get_attr("obs_mode") == ["last"] * 3 and env.render_mode == "rgb_array"
    env.set_attr("tag", 1)
    env.set_attr("tag", [2, 3], indices=[0, 2])
    assert env.get_attr("tag") == [[2, 3], 1, [2, 3]] and env.get_attr("tag", indices=1) == [1]
    assert env.has_attr("tag") and not env.has_attr("nonsense")
    env.reset()
    pictures = env.env_method("render", indices=[2, 0])
    assert (pictures[0] == env.get_images()[2]).all() and len(pictures) == 2
    assert env.render().shape == (32, 32, 3)  # tiled, as SB3 does
    assert env.env_is_wrapped(Monitor) == [True] * 3 and env.env_is_wrapped(
        gym.wrappers.ClipAction, indices=[1]
    ) == [False]
    env.close()
    assert env.env.closed


def test_a_vector_environment_without_slots_of_its_own():
    """Gymnasium's CartPoleVectorEnv steps all slots at once and has no attribute or method per slot."""
    batched = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point")
    batched.metadata = batched.metadata | {
        "autoreset_mode": AutoresetMode.SAME_STEP
    }  # what we ask of it here does not end episodes
    env = SB3VecEnv(batched)
    env.seed(0)
    env.reset()
    assert env.step(np.array([0, 1]))[0].shape == (2, 4)
    assert env.get_attr("gravity") == [9.8, 9.8] and env.env_is_wrapped(Monitor) == [False, False]
    env.set_attr("gravity", 1.6)
    assert env.get_attr("gravity", indices=[1]) == [1.6]
    with pytest.raises(
        ValueError, match=r"got the slots \[0\] to set 'gravity' in; wanted all 2: CartPoleVectorEnv"
    ):
        env.set_attr("gravity", 9.8, indices=[0])
    with pytest.raises(ValueError, match="call 'reset'"):
        env.env_method("reset", indices=[1])


# Refused before training begins


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused(mode):
    with pytest.raises(ValueError, match=rf"autoreset_mode={mode}; .* wants AutoresetMode.SAME_STEP"):
        SB3VecEnv(SyncVectorEnv([cart_pole], autoreset_mode=mode))


def test_chunks_are_refused_with_the_wrappers_that_help():
    with pytest.raises(
        ValueError, match=r"shape \(24, 16, 16, 3\).*obs_mode='last'.*LastFrame.*ChunkToChannels"
    ):
        SB3VecEnv(same_step(lambda: room("chunk")))


def test_a_single_chunk_environment_is_refused_by_cnn_policy_with_the_wrappers_that_help():
    with pytest.raises(AssertionError, match="obs_mode='last', LastFrame or ChunkToChannels"):
        PPO("CnnPolicy", room("chunk", PICTURE))


def test_replay_buffer_bytes_is_what_sb3_allocates():
    env = SB3VecEnv(same_step(room))
    buffer = ReplayBuffer(
        101, env.observation_space, env.action_space, n_envs=2
    )  # SB3 rounds down to 50 per slot
    arrays = [value for value in vars(buffer).values() if isinstance(value, np.ndarray)]
    assert (
        replay_buffer_bytes(101, env)
        == sum(array.nbytes for array in arrays)
        == 100 * (2 * 16 * 16 * 3 + 6 * 4 + 3 * 4)
    )
    assert (
        replay_buffer_bytes(100, room())
        == replay_buffer_bytes(100, same_step(room))
        == replay_buffer_bytes(101, env)
    )
    assert replay_buffer_bytes(100, room(), optimize_memory_usage=True) == 100 * (16 * 16 * 3 + 6 * 4 + 3 * 4)
    pose_and_intrinsics = 2 * (9 + 4) * 4
    assert replay_buffer_bytes(100, room("dict")) == 100 * (
        2 * 16 * 16 * 3 + pose_and_intrinsics + 6 * 4 + 3 * 4
    )


def test_a_replay_buffer_larger_than_memory_is_refused(monkeypatch):
    monkeypatch.setattr(sana_wm_env.sb3, "free_memory", lambda device: 2**20)
    env = room()
    assert check_replay_buffer(100, env) == 100
    with pytest.raises(
        MemoryError,
        match=r"got buffer_size=1000000, a replay buffer of 1\.5 GiB; .* buffer_size=667 would fill them",
    ):
        check_replay_buffer(1_000_000, env)
    assert check_replay_buffer(667, env) == 667
    with pytest.raises(MemoryError):
        check_replay_buffer(668, env)


def test_without_the_extra_the_error_names_it(tmp_path):
    code = "import sys; sys.modules['stable_baselines3'] = None; import sana_wm_env.sb3"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "pip install 'sana-wm-env[rl]'" in done.stderr


# Training, a few steps; tests/benchmarks/sb3_algorithms.py does more of them in the imagined world

ALGORITHMS = {
    "PPO on dicts": lambda: PPO(
        "MultiInputPolicy", room("dict", PICTURE), n_steps=4, batch_size=4, n_epochs=1
    ),
    "PPO on pictures of a vector environment": lambda: PPO(
        "CnnPolicy",
        VecMonitor(SB3VecEnv(same_step(lambda: room(size=PICTURE)))),
        n_steps=3,
        batch_size=3,
        n_epochs=1,
    ),
    "DQN on keys": lambda: DQN(
        "CnnPolicy", DiscreteKeys(room(size=PICTURE)), buffer_size=20, learning_starts=2, batch_size=2
    ),
    "SAC on pictures": lambda: SAC(
        "CnnPolicy", room(size=PICTURE), buffer_size=20, learning_starts=2, batch_size=2
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_learn_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        algorithm = ALGORITHMS[name]()
        before = [parameter.clone() for parameter in algorithm.policy.parameters()]
        algorithm.learn(6)
    after = list(algorithm.policy.parameters())
    assert any((one != other).any() for one, other in zip(before, after, strict=True))
    assert all(parameter.isfinite().all() for parameter in after)
    assert algorithm.num_timesteps >= 6 and algorithm.ep_info_buffer[0]["l"] == 2
