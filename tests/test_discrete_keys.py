import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import sana_wm_env  # noqa: F401  # registers the ids
from sana_wm_env.actions import PIECES, action_path
from sana_wm_env.camera import compose
from sana_wm_env.keys import KEYS, keys_to_path, words
from sana_wm_env.wrappers import DiscreteKeys

IDS = ("SanaWM-v0", "SanaWM-Rooms-v0")
FAST = {"max_translation_m": 1.2, "max_rotation_rad": 0.51}


def wrapped(scheme="sana-v2", **options):
    return DiscreteKeys(gym.make("SanaWM-Rooms-v0", obs_mode="last", image_size=(36, 36), **options), scheme)


def poses(env, keys):
    """Poses of the camera after each key."""
    return [env.step(KEYS.index(key))[4]["c2w"][-1] for key in keys]


@pytest.mark.parametrize("env_id", IDS)
def test_a_key_moves_the_camera_for_a_chunk(env_id):
    with DiscreteKeys(gym.make(env_id)) as env:
        assert env.action_space == gym.spaces.Discrete(9) and len(KEYS) == 9
        assert env.meanings == (
            *(
                "forward",
                "turn left",
                "back",
                "turn right",
                "look up",
                "step left",
                "look down",
                "step right",
            ),
            "stand",
        )
        env.reset(seed=7)
        turned, still = poses(env, ["d", "none"])
        np.testing.assert_allclose(turned, keys_to_path("d-24", "sana-v2")[-1], atol=1e-6)
        assert (still == turned).all()


@pytest.mark.parametrize("scheme", ["sana-v1", "sana-v2"])
@pytest.mark.parametrize("mode", list(PIECES))
def test_every_key_in_every_mode(scheme, mode):
    env = wrapped(scheme=scheme, action_mode=mode, **FAST)
    env.reset(seed=0)
    for index, key in enumerate(KEYS):
        action = env.action(index)
        assert env.env.action_space.contains(action)
        np.testing.assert_allclose(
            action_path(action, mode, env.unwrapped.limits), keys_to_path(f"{key}-24", scheme)[1:], atol=1e-5
        )
    looks_up = poses(env, "i")[0]
    ahead = compose(looks_up, action_path(env.action(0), mode, env.unwrapped.limits))[-1]
    np.testing.assert_allclose(
        ahead, keys_to_path("i-24,w-24", scheme)[-1], atol=1e-5
    )  # up is where it looks, not where it walks


def test_the_documented_table():
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (DiscreteKeys.__doc__ or "").splitlines()
        if "|" in line
    ][2:]
    for column, scheme in ((2, "sana-v2"), (3, "sana-v1")):
        assert [(row[0], row[1], row[column]) for row in rows] == [
            (str(i), key, words(key, scheme)) for i, key in enumerate(KEYS)
        ]


def test_reset_starts_level_again():
    env = wrapped()
    env.reset(seed=0)
    poses(env, "iidd")
    env.reset(seed=0)
    np.testing.assert_allclose(poses(env, "d")[0], keys_to_path("d-24", "sana-v2")[-1], atol=1e-6)


def test_bad_actions_are_refused_and_change_nothing():
    env = wrapped()
    env.reset(seed=0)
    for bad in (9, -1, 0.5, "w", None, np.zeros(6, np.float32)):
        with pytest.raises(
            ValueError, match=r"wanted a whole number from 0 to 8, one of w a s d i j k l none"
        ):
            env.step(bad)
    for fine in (3, np.int64(8), np.array(8)):
        info = env.step(fine)[4]
    assert info["chunk_index"] == 3


def test_what_cannot_be_wrapped_is_refused():
    with pytest.raises(
        ValueError, match=r"keys of sana-v1 are too fast .* 1.2 m and 0.5027 rad .* max_translation_m=1.2"
    ):
        wrapped(scheme="sana-v1")
    with pytest.raises(ValueError, match=r"'sana-v3'; wanted one of sana-v1, sana-v2"):
        wrapped(scheme="sana-v3")
    for other in (gym.make("CartPole-v1"), wrapped()):
        with pytest.raises(ValueError, match=r"actions in Discrete\(\d\); DiscreteKeys wants"):
            DiscreteKeys(other)


def test_spec_goes_through_json_and_pickle():
    env = wrapped(scheme="sana-v1", **FAST)
    for spec in (EnvSpec.from_json(env.spec.to_json()), pickle.loads(pickle.dumps(env.spec))):
        again = gym.make(spec)
        assert again.action_space == env.action_space and again.get_wrapper_attr("scheme") == "sana-v1"
        again.reset(seed=0)
        env.reset(seed=0)
        assert (again.step(7)[0] == env.step(7)[0]).all()


def test_checkers_are_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env_sb3(wrapped())
        warnings.filterwarnings(
            "ignore", ".*different from the unwrapped version"
        )  # so it is, that is the point
        check_env(wrapped(), skip_render_check=True)
