"""Our wrappers, and Gymnasium's own, around the environments."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FrameStackObservation, RecordEpisodeStatistics, RescaleAction

from sana_wm_env.observations import pose_vector
from sana_wm_env.recorder import RecordChunks
from sana_wm_env.wrappers import ChunkToChannels, LastFrame, PoseObservation

FORWARD = np.array([0, 0, 0.5, 0, 0.5, 0], np.float32)


def room(size=(16, 20), **options):
    return gym.make("SanaWM-Rooms-v0", image_size=size, **options)


def both(env, **options):
    """What a wrapped and a bare environment show at the same reset and step."""
    bare = room(**options)
    return [(env.reset(seed=3)[0], bare.reset(seed=3)[0]), (env.step(FORWARD)[0], bare.step(FORWARD)[0])]


def test_last_frame():
    env = LastFrame(room())
    assert env.observation_space == room(obs_mode="last").observation_space
    for seen, chunk in both(env):
        assert (seen == chunk[-1]).all() and seen.base is None  # a view would keep the whole chunk in memory


@pytest.mark.parametrize(
    "frames, numbers", [(1, [23]), (4, [5, 11, 17, 23]), (5, [3, 8, 13, 18, 23]), (24, range(24))]
)
@pytest.mark.parametrize("channels_first", [False, True])
def test_chunk_to_channels(frames, numbers, channels_first):
    env = ChunkToChannels(room(), frames, channels_first)
    assert env.observation_space.shape == ((3 * frames, 16, 20) if channels_first else (16, 20, 3 * frames))
    for seen, chunk in both(env):
        assert seen in env.observation_space
        for place, number in enumerate(numbers):
            channels = slice(3 * place, 3 * place + 3)
            picture = seen[channels].transpose(1, 2, 0) if channels_first else seen[:, :, channels]
            assert (picture == chunk[number]).all()


def test_pose_observation_says_what_the_dict_mode_says():
    env = PoseObservation(LastFrame(room()))
    assert env.observation_space == room(obs_mode="dict").observation_space
    for seen, wanted in both(env, obs_mode="dict"):
        assert seen.keys() == wanted.keys() and all((seen[key] == wanted[key]).all() for key in wanted)


def test_pose_observation_keeps_the_picture_of_other_wrappers():
    env = PoseObservation(ChunkToChannels(room(), 2))
    env.reset(seed=3)
    seen, *_, info = env.step(FORWARD)
    assert seen["image"].shape == (16, 20, 6) and seen in env.observation_space
    assert (seen["pose"] == pose_vector(info["c2w"][-1])).all()
    np.testing.assert_allclose(seen["intrinsics"], [0.65, 0.65 * 20 / 16, 0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("frames", [0, 25])
def test_as_many_frames_as_a_chunk_has(frames):
    with pytest.raises(ValueError, match=f"got frames={frames}; wanted 1 to 24"):
        ChunkToChannels(room(), frames)


@pytest.mark.parametrize("wrapper", [LastFrame, ChunkToChannels])
def test_chunks_are_wanted(wrapper):
    for obs_mode in ("last", "dict"):
        with pytest.raises(ValueError, match=rf"{wrapper.__name__} wants chunks of frames.*obs_mode='chunk'"):
            wrapper(room(obs_mode=obs_mode))


def test_no_pose_is_added_to_a_pose():
    with pytest.raises(ValueError, match="obs_mode='dict' has pose"):
        PoseObservation(room(obs_mode="dict"))


WRAPPED = {
    "LastFrame": LastFrame,
    "ChunkToChannels": lambda env: ChunkToChannels(env, frames=2, channels_first=True),
    "PoseObservation": lambda env: PoseObservation(ChunkToChannels(env, frames=3)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_spec_survives_json(name):
    env = WRAPPED[name](room())
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert type(again) is type(env) and again.observation_space == env.observation_space
    one, two = env.reset(seed=1)[0], again.reset(seed=1)[0]
    assert all((one[key] == two[key]).all() for key in one) if isinstance(one, dict) else (one == two).all()


@pytest.mark.parametrize("name", WRAPPED)
def test_checker_is_silent(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message=".*is different from the unwrapped version"
        )  # the checker prefers no wrappers at all
        check_env(WRAPPED[name](room(size=(40, 40)).unwrapped), skip_render_check=True)


def test_the_whole_chunk_is_recorded_under_last_frame(tmp_path):
    env = LastFrame(RecordChunks(room(), tmp_path))
    env.reset(seed=0)
    env.step(FORWARD)
    env.close()
    assert np.load(tmp_path / "episode-0000.npz")["c2w"].shape == (25, 4, 4)


# Gymnasium's wrappers


def test_record_episode_statistics():
    env = RecordEpisodeStatistics(gym.make("SanaWM-RoomsFollow-v0", image_size=(16, 16), max_episode_steps=3))
    env.reset(seed=0)
    rewards = []
    for _ in range(3):
        _, reward, terminated, truncated, info = env.step(FORWARD)
        rewards.append(reward)
        if terminated or truncated:
            break
    assert (
        info["episode"]["l"] == len(rewards)
        and info["episode"]["r"] == pytest.approx(sum(rewards))
        and any(rewards)
    )


def test_rescale_action():
    env, bare = RescaleAction(room(), np.float32(0), np.float32(10)), room()
    env.reset(seed=0)
    bare.reset(seed=0)
    assert (
        env.step(np.float32([5, 5, 10, 5, 2.5, 5]))[0] == bare.step(np.float32([0, 0, 1, 0, -0.5, 0]))[0]
    ).all()


def test_frame_stack_observation():
    env = FrameStackObservation(room(obs_mode="last"), 2)
    first = env.reset(seed=0)[0]
    second = env.step(FORWARD)[0]
    assert second.shape == (2, 16, 20, 3) and (second[0] == first[1]).all() and (second[1] != second[0]).any()
