"""Recorded as a Minari dataset, loaded again, played again."""

import subprocess
import sys

import gymnasium as gym
import minari
import numpy as np
import pytest

from sana_wm_env.minari import RecordMinari, replay
from sana_wm_env.wrappers import LastFrame

FORWARD = np.array([0, 0, 0.5, 0, 0.5, 0], np.float32)
ABOUT = dict.fromkeys(("author", "author_email", "description", "algorithm_name", "code_permalink"), "a test")

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def datasets_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def room(**options):
    return gym.make("SanaWM-Rooms-v0", image_size=(16, 20), max_episode_steps=2, **options)


def record(env, dataset_id="walks-v0", resets=({"seed": 3}, {}), steps=2):
    """Observations and actions of each episode as they were seen, which then are in the dataset."""
    env = RecordMinari(env, dataset_id, **ABOUT)
    env.action_space.seed(0)
    episodes = []
    for reset in resets:
        episodes.append(([env.reset(**reset)[0]], []))
        for _ in range(steps):
            action = env.action_space.sample()
            episodes[-1][0].append(env.step(action)[0])
            episodes[-1][1].append(action)
    env.close()
    return episodes


@pytest.mark.parametrize("env_id, options", [("SanaWM-v0", {}), ("SanaWM-Rooms-v0", {"obs_mode": "last"}), ("SanaWM-RoomsFollow-v0", {})])
def test_recorded_loaded_and_played_again_to_the_byte(env_id, options):
    episodes = record(gym.make(env_id, max_episode_steps=2, **options))
    dataset = minari.load_dataset("walks-v0")
    assert dataset.total_episodes == 2 and dataset.total_steps == 4
    for (seen, actions), kept in zip(episodes, dataset, strict=True):
        assert (kept.actions == actions).all() and kept.truncations.tolist() == [False, True] and not kept.terminations.any()
        for key in seen[0] if isinstance(seen[0], dict) else [None]:
            column = kept.observations if key is None else kept.observations[key]
            wanted = np.stack([obs if key is None else obs[key] for obs in seen])
            assert column.dtype == wanted.dtype and (column == wanted).all()
        assert kept.infos["n_new_frames"].tolist() == [1, 24, 24] and kept.infos["c2w"].shape == (3, 24, 4, 4)
    assert [(played.episode, played.steps, played.exact) for played in replay(dataset)] == [(0, 2, True), (1, 2, True)]


def test_reset_options_are_kept():
    record(room(), resets=[{"options": {"scene_seed": 11, "intrinsics": (9.0, 9.0, 8.0, 8.0)}}])
    dataset = minari.load_dataset("walks-v0")
    assert next(replay(dataset)).exact
    (stored,) = dataset.storage.get_episode_metadata([0])
    assert stored["options"]["scene_seed"] == 11 and stored["options"]["intrinsics"].tolist() == [9, 9, 8, 8]


def test_a_difference_is_measured():
    record(room())
    dataset = minari.load_dataset("walks-v0")
    (played,) = replay(dataset, room(max_translation_m=0.1), [1])
    assert played.episode == 1 and 0 < played.difference <= 255 and played.reward_difference == 0 and not played.exact


def test_wrapped_environments_are_recovered_with_their_wrappers():
    record(LastFrame(room()))
    dataset = minari.load_dataset("walks-v0")
    assert dataset[0].observations.shape == (3, 16, 20, 3) and all(played.exact for played in replay(dataset))


def test_an_unfinished_episode_counts_as_truncated_and_an_empty_one_not_at_all():
    env = RecordMinari(room(), "walks-v0", **ABOUT)
    env.reset(seed=1)
    env.reset(seed=2)
    env.step(FORWARD)
    env.close()
    env.close()
    (kept,) = minari.load_dataset("walks-v0")
    assert kept.truncations.tolist() == [True]


def test_refused():
    record(room(), steps=1)
    with pytest.raises(ValueError, match="'walks-v0', which exists; wanted a new name"):
        RecordMinari(room(), "walks-v0")
    env = RecordMinari(room(), "images-v0", **ABOUT)
    env.reset(seed=1)
    with pytest.raises(ValueError, match=r"'image' of 480000 bytes; wanted 60000 at most.*as a path"):
        env.reset(options={"image": np.zeros((400, 400, 3), np.uint8)})
    env.step(FORWARD)  # the episode goes on
    buffer = minari.data_collector.EpisodeBuffer(
        observations=list(np.zeros((2, 16, 20, 3), np.uint8)), actions=[FORWARD], rewards=[0.0], terminations=[False], truncations=[True]
    )
    unseeded = minari.create_dataset_from_buffers(
        "unseeded-v0", [buffer], room(obs_mode="last"), "SanaWM-Rooms-v0", jpeg_encoding=False, **ABOUT
    )
    with pytest.raises(ValueError, match="episode 0 without a seed"):
        next(replay(unseeded))


def test_without_the_extra_the_error_names_it(tmp_path):
    code = "import sys; sys.modules['minari'] = None; import sana_wm_env.minari"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "pip install 'sana-wm-env[minari]'" in done.stderr
