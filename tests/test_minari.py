"""Recorded as a Minari dataset, loaded again, played again."""

import subprocess
import sys

import gymnasium as gym
import imageio.v3 as iio
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


@pytest.mark.parametrize(
    "env_id, options",
    [("SanaWM-v0", {}), ("SanaWM-Rooms-v0", {"obs_mode": "last"}), ("SanaWM-RoomsFollow-v0", {})],
)
def test_recorded_loaded_and_played_again_to_the_byte(env_id, options):
    episodes = record(gym.make(env_id, max_episode_steps=2, **options))
    dataset = minari.load_dataset("walks-v0")
    assert dataset.total_episodes == 2 and dataset.total_steps == 4
    for (seen, actions), kept in zip(episodes, dataset, strict=True):
        assert (
            (kept.actions == actions).all()
            and kept.truncations.tolist() == [False, True]
            and not kept.terminations.any()
        )
        for key in seen[0] if isinstance(seen[0], dict) else [None]:
            column = kept.observations if key is None else kept.observations[key]
            wanted = np.stack([obs if key is None else obs[key] for obs in seen])
            assert column.dtype == wanted.dtype and (column == wanted).all()
        assert kept.infos["n_new_frames"].tolist() == [1, 24, 24] and kept.infos["c2w"].shape == (3, 24, 4, 4)
    assert [(played.episode, played.steps, played.exact) for played in replay(dataset)] == [
        (0, 2, True),
        (1, 2, True),
    ]


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
    assert (
        played.episode == 1
        and 0 < played.difference <= 255
        and played.reward_difference == 0
        and not played.exact
    )


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
    env = RecordMinari(room(), "options-v0", **ABOUT)
    env.reset(seed=1)
    with pytest.raises(
        ValueError,
        match=r"the reset option 'room' of dtype object; "
        r"wanted what can be stored",
    ):
        env.reset(options={"room": object()})
    env.step(FORWARD)  # the episode goes on
    buffer = minari.data_collector.EpisodeBuffer(
        observations=list(np.zeros((2, 16, 20, 3), np.uint8)),
        actions=[FORWARD],
        rewards=[0.0],
        terminations=[False],
        truncations=[True],
    )
    unseeded = minari.create_dataset_from_buffers(
        "unseeded-v0", [buffer], room(obs_mode="last"), "SanaWM-Rooms-v0", jpeg_encoding=False, **ABOUT
    )
    with pytest.raises(ValueError, match="episode 0 without a seed"):
        next(replay(unseeded))


@pytest.mark.parametrize("name", ["foo", "foo-v", "", None, 5, "a b/c-v0", "walks-v0.1/"])
def test_malformed_names_are_refused_at_once(name, tmp_path):
    with pytest.raises(ValueError, match="Minari's form"):
        RecordMinari(room(), name)
    assert not list(tmp_path.iterdir())  # nothing that would be in the way of the next try


def test_every_legal_option_is_played_again(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    iio.imwrite(tmp_path / "a.png", picture)
    env = gym.make("SanaWM-v0")
    env.reset(seed=5, options={"prompt": "a red room"})
    env.step(FORWARD)
    every = [
        {"image": tmp_path / "a.png", "fov_deg": 65.0},
        {"image": str(tmp_path / "a.png"), "intrinsics": (90.0, 90.0, 60.0, 45.0), "prompt": None},
        {"image": np.kron(picture, np.ones((4, 4, 1), np.uint8)), "intrinsics": [360, 360, 240, 180]},
        {"prompt": None},
        {"prompt": "x" * 100_000},
        {"room": 3, "keep_options": False},
        {"room": "held-out"},
        {"state": env.unwrapped.save_state()},
        {},
        None,
    ]
    recorder = RecordMinari(env, "options-v0", **ABOUT)
    for options in every:
        recorder.reset(seed=2**64 + 1 if options == {} else 7, options=options)
        recorder.step(FORWARD)
    recorder.close()
    (tmp_path / "a.png").unlink()  # what was recorded does not need it any more
    played = list(replay(minari.load_dataset("options-v0")))
    assert len(played) == len(every) and all(one.exact for one in played)


def test_exact_sessions_are_played_again():
    env = room()
    env.reset(seed=5)
    env.step(FORWARD)
    record(room(), resets=[{"seed": 1, "options": {"state": env.unwrapped.save_state()}}])
    assert next(replay(minari.load_dataset("walks-v0"))).exact


def test_rewards_of_a_function_are_recorded_without_spec():
    def make():
        return gym.make("SanaWM-Rooms-v0", image_size=(16, 20), reward_fn=lambda moment: 1.5)

    with pytest.warns(UserWarning, match="will not say how to make its environment"):
        record(make())
    dataset = minari.load_dataset("walks-v0")
    with pytest.raises(ValueError, match=r"without the spec .*replay\(dataset, env\)"):
        next(replay(dataset))
    assert all(played.exact for played in replay(dataset, make())) and dataset[0].rewards.tolist() == [
        1.5,
        1.5,
    ]


def test_what_could_not_be_stored_is_not_lost(monkeypatch):
    env = RecordMinari(room(), "walks-v0", **ABOUT)
    env.reset(seed=1)
    env.step(FORWARD)
    with monkeypatch.context() as patch:
        patch.setattr(minari, "create_dataset_from_buffers", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            env.reset(seed=2)
    env.close()
    assert minari.load_dataset("walks-v0").total_episodes == 1


def test_without_the_extra_the_error_names_it(tmp_path):
    code = "import sys; sys.modules['minari'] = None; import sana_wm_env.minari"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "pip install 'sana-wm-env[minari]'" in done.stderr
