"""Copies go on: pickles, deep copies and forks carry episode, noise, generators and wrappers."""

import copy
import pickle
import subprocess
import sys
from dataclasses import replace

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import Autoreset

import sana_wm_env
from sana_wm_env import RoomsState
from sana_wm_env.rooms import HOME
from sana_wm_env.wrappers import LastFrame

ACTION = np.array([0.3, 0, 0.5, 0, 0.4, 0], np.float32)
IDS = ("SanaWM-v0", "SanaWM-Rooms-v0", "SanaWM-Goal-v0", "SanaWM-RoomsFollow-v0")
COPIES = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "cloudpickle": lambda value: cloudpickle.loads(cloudpickle.dumps(value)),
    "deepcopy": copy.deepcopy,
}


def picture(obs) -> np.ndarray:
    return obs["image"] if isinstance(obs, dict) else obs


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_of_a_running_environment_goes_on(name, kind):
    env = gym.make(name, max_episode_steps=3)
    env.reset(seed=3)
    env.step(ACTION)
    other = COPIES[kind](env)
    assert other.spec == env.spec and str(other) == str(env)
    for _ in range(2):
        ours, theirs = env.step(ACTION), other.step(ACTION)
        assert np.array_equal(picture(ours[0]), picture(theirs[0])) and ours[1:4] == theirs[1:4]
    assert ours[3]  # the limit was copied too
    assert np.array_equal(picture(env.reset()[0]), picture(other.reset()[0]))


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_of_a_running_vector_goes_on(name, kind):
    vector = gym.make_vec(name, num_envs=2, autoreset_mode="SameStep", max_episode_steps=2)
    vector.reset(seed=1)
    vector.step([ACTION, -ACTION])
    other = COPIES[kind](vector)
    for _ in range(2):
        ours, theirs = vector.step([ACTION, -ACTION]), other.step([ACTION, -ACTION])
        assert np.array_equal(picture(ours[0]), picture(theirs[0]))
        assert np.array_equal(ours[3], theirs[3]) and np.array_equal(ours[1], theirs[1])


def test_a_copy_leaves_the_original_alone():
    env = gym.make("SanaWM-Rooms-v0")
    env.reset(seed=0)
    other = copy.deepcopy(env)
    before = env.unwrapped.c2w
    other.step(ACTION)
    other.reset(seed=5)
    assert np.array_equal(env.unwrapped.c2w, before) and env.unwrapped.np_random_seed == 0


def test_a_pickle_opens_in_another_process(tmp_path):
    env = gym.make("SanaWM-v0")
    env.reset(seed=3)
    env.step(ACTION)
    (tmp_path / "env").write_bytes(pickle.dumps(env))
    frames = env.step(ACTION)[0]
    program = f"""
import pickle, numpy as np
env = pickle.loads(open({str(tmp_path / "env")!r}, "rb").read())
np.save({str(tmp_path / "frames.npy")!r}, env.step(np.array({ACTION.tolist()}, np.float32))[0])
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
    assert np.array_equal(np.load(tmp_path / "frames.npy"), frames)


def test_a_pickled_row_does_not_carry_its_batch():
    vector = gym.make_vec("SanaWM-v0", num_envs=4)
    vector.reset(seed=0)
    vector.step([ACTION] * 4)
    assert len(pickle.dumps(vector.slots[0])) < 1.5 * vector.save_state(0).nbytes


# ---- exact rooms have what their sibling has


@pytest.fixture
def rooms():
    env = gym.make("SanaWM-RoomsGoal-v0")
    env.reset(seed=5)
    env.step(ACTION)
    return env


def test_exact_sessions_are_values(rooms, tmp_path):
    state = rooms.unwrapped.save_state()
    state.save(tmp_path / "made" / "state")
    ahead = [rooms.step(ACTION) for _ in range(2)]
    opened = RoomsState.load(tmp_path / "made" / "state")
    for restore in (
        lambda: rooms.unwrapped.restore_state(state),
        lambda: rooms.unwrapped.restore_state(opened),
        lambda: sana_wm_env.restore(rooms, opened),
    ):
        obs, info = restore()
        assert info["n_new_frames"] == 1 and np.array_equal(obs["image"], state.frame)
        for wanted in ahead:
            found = rooms.step(ACTION)
            assert np.array_equal(found[0]["image"], wanted[0]["image"]) and found[1] == wanted[1]


def test_exact_branches_and_what_ifs_are_what_stepping_gives(rooms):
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 2, 6))
    told = rooms.unwrapped.imagine(actions, decode="frames")
    branches = rooms.unwrapped.fork(3)
    for k in range(2):
        obs, rewards, *_ = branches.step(actions[:, k])
        assert np.array_equal(told.frames[:, k, -1], obs["image"])
        assert np.allclose(told.rewards[:, k], rewards)
    assert rooms.unwrapped.episode.chunk_index == 1
    poses = rooms.unwrapped.imagine(actions, decode="poses")
    assert np.array_equal(poses.c2w, told.c2w) and poses.frames is None
    with pytest.raises(ValueError, match="latents"):
        rooms.unwrapped.imagine(actions, decode="latents")


def test_vectors_save_restore_branch_and_imagine():
    for name in ("SanaWM-v0", "SanaWM-Rooms-v0"):
        vector = gym.make_vec(name, num_envs=2)
        vector.reset(seed=0)
        saved = vector.save_state()
        frames = vector.step([ACTION, -ACTION])[0]
        vector.restore_state(saved)
        assert np.abs(vector.step([ACTION, -ACTION])[0].astype(int) - frames).max() <= 1
        alone = vector.fork(2, slot=1)
        assert alone.slots[0].episode.chunk_index == 1
        assert vector.imagine(np.zeros((2, 1, 6)), slot=1, decode="poses").c2w.shape == (2, 1, 24, 4, 4)
        with pytest.raises(ValueError, match="slot"):
            vector.fork(2, slot=2)


BROKEN_ROOMS = {
    "mirrored": {"c2w": np.diag([-1.0, 1, 1, 1])},
    "NaN": {"c2w": np.full((4, 4), np.nan)},
    "3 x 4": {"c2w": np.eye(4)[:3]},
    "list": {"c2w": np.eye(4).tolist()},
    "focal": {"intrinsics_px": np.array([-1.0, 1, 1, 1])},
    "frame": {"frame": np.zeros((64, 64, 3))},
    "size": {"frame": np.zeros((32, 32, 3), np.uint8)},
    "negative": {"chunk_index": -1},
    "half": {"chunk_index": 1.5},
    "room": {"room_seed": -1},
    "room text": {"room_seed": "1"},
    "place": {"place": 2**70},
    "task": {"task": {}},
    "task list": {"task": []},
}


@pytest.mark.parametrize("name", BROKEN_ROOMS)
def test_broken_exact_sessions_are_refused(rooms, name):
    state, before = rooms.unwrapped.save_state(), rooms.unwrapped.episode
    with pytest.raises(ValueError, match=r"got|it needs"):
        rooms.unwrapped.restore_state(replace(state, **BROKEN_ROOMS[name]))
    assert rooms.unwrapped.episode is before


def test_damaged_files_of_exact_sessions_are_refused(rooms, tmp_path):
    rooms.unwrapped.save_state().save(tmp_path / "state")
    content = (tmp_path / "state").read_bytes()
    for cut in range(0, len(content), max(1, len(content) // 40)):
        (tmp_path / "cut").write_bytes(content[:cut])
        with pytest.raises(ValueError, match="damaged"):
            RoomsState.load(tmp_path / "cut")


@pytest.mark.parametrize("stranger", [None, 5, "a", {}])
def test_strangers_are_no_exact_sessions(rooms, stranger):
    with pytest.raises(ValueError, match="wanted a RoomsState"):
        rooms.unwrapped.restore_state(stranger)


# ---- what an episode began from is kept


PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
BEGINNINGS = [
    ("SanaWM-v0", {"image": PICTURE, "fov_deg": 75.0}),
    ("SanaWM-v0", {"prompt": "a red room"}),
    ("SanaWM-Rooms-v0", {"room": 3}),
    ("SanaWM-Rooms-v0", {"scene_seed": 7}),
    ("SanaWM-Rooms-v0", {"intrinsics": (40.0, 40.0, 32.0, 32.0)}),
]


@pytest.mark.parametrize(("name", "options"), BEGINNINGS)
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_slots_begin_again_from_the_last_options(name, options, mode):
    vector = gym.make_vec(name, num_envs=2, max_episode_steps=2, autoreset_mode=mode)
    vector.reset(seed=0, options=options)
    first = vector.slots[0].episode
    for _ in range(2 + (mode == AutoresetMode.NEXT_STEP)):
        vector.step([ACTION] * 2)
    again = vector.slots[0].episode
    assert again.chunk_index == 0 and np.array_equal(again.intrinsics_px, first.intrinsics_px)
    if "image" in options:
        assert np.array_equal(again.state.frame[0], PICTURE)
    if "prompt" in options:
        assert torch.equal(again.state.text.keys[0], first.state.text.keys[0])
    if name == "SanaWM-Rooms-v0" and "intrinsics" not in options:
        assert again.state.seed == first.state.seed
    if options == {"room": 3} and name == "SanaWM-Rooms-v0":
        assert again.state.seed == HOME[3]


def test_a_single_environment_begins_again_too():
    env = Autoreset(LastFrame(gym.make("SanaWM-v0", max_episode_steps=1)))
    env.reset(seed=0, options={"image": PICTURE, "fov_deg": 75.0})
    env.step(ACTION)
    assert np.array_equal(env.step(ACTION)[0], PICTURE)
    plain = LastFrame(gym.make("SanaWM-v0"))
    plain.reset(options={"image": PICTURE, "fov_deg": 75.0})
    assert np.array_equal(plain.reset()[0], PICTURE)
    assert not np.array_equal(plain.reset(seed=1)[0], PICTURE)  # a seed begins anew
    assert not np.array_equal(plain.reset(options={})[0], PICTURE)


def test_keep_options_gives_the_other():
    env = LastFrame(gym.make("SanaWM-v0"))
    env.reset(seed=0, options={"image": PICTURE, "fov_deg": 75.0, "keep_options": False})
    assert not np.array_equal(env.reset()[0], PICTURE)
    vector = gym.make_vec("SanaWM-v0", num_envs=2, max_episode_steps=1, autoreset_mode="SameStep")
    vector.reset(options={"image": PICTURE, "fov_deg": 75.0, "keep_options": False})
    assert not np.array_equal(vector.step([ACTION] * 2)[0][0][-1], PICTURE)


def test_a_restored_session_is_not_begun_again():
    env = gym.make("SanaWM-Rooms-v0")
    env.reset(seed=0, options={"scene_seed": 7})
    env.unwrapped.restore_state(env.unwrapped.save_state())
    rooms = {env.reset() and env.unwrapped.episode.state.seed for _ in range(3)}
    assert rooms != {7}
