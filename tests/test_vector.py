"""N sessions on one set of weights: what `SanaWMVectorEnv` promises beside what every vector environment
does.
"""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

import sana_wm_env  # noqa: F401  # registers the ids
from sana_wm_env.model.tree import tensors_of
from sana_wm_env.vector import SanaWMVectorEnv

ACTIONS = np.random.default_rng(1).uniform(-1, 1, (6, 3, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    env = gym.make("SanaWM-v0").unwrapped
    return env.model


@pytest.fixture
def make(model):
    """Vector environments that need not load the weights again."""

    def made(num_envs=2, **options):
        envs = gym.make_vec("SanaWM-v0", num_envs=num_envs, **options)
        for slot in envs.slots:
            slot.model = model
        return envs

    return made


@pytest.fixture
def alone(model):
    """Single environments on the same weights."""

    def made(**options):
        env = gym.make("SanaWM-v0", **options)
        env.unwrapped.model = model
        return env

    return made


def agree(batch, singles):
    """Frames within three grey levels of 255, which rounding in bfloat16 grows to over some chunks, all else
    exactly.
    """
    obs, rewards, terminated, truncated, info = batch
    for slot, single in enumerate(singles):
        assert np.abs(obs[slot].astype(int) - single[0]).max() <= 3
        assert (rewards[slot], terminated[slot], truncated[slot]) == single[1:4]
        assert all(np.array_equal(info[key][slot], value) for key, value in single[4].items())


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_slots_of_any_age_are_what_they_are_alone(make, alone, mode):
    """Two chunks an episode, but for the slot that starts late: openings and later chunks meet in one
    step.
    """
    envs = make(autoreset_mode=mode, max_episode_steps=2, obs_mode="last")
    singles = [alone(obs_mode="last", max_episode_steps=2) for _ in range(2)]
    assert isinstance(envs, SanaWMVectorEnv) and envs.metadata["autoreset_mode"] is AutoresetMode(mode)
    obs, info = envs.reset(seed=5)
    for slot, env in enumerate(singles):
        assert (env.reset(seed=5 + slot)[0] == obs[slot]).all()
    envs.step(ACTIONS[0, :2])
    for slot, env in enumerate(singles):
        env.step(ACTIONS[0, slot])
    envs.reset(seed=[None, 9], options={"reset_mask": np.array([False, True])})
    singles[1].reset(seed=9)
    over = [False, False]
    for actions in ACTIONS[1:4, :2]:
        batch = envs.step(actions)
        wanted, finals = [], {}
        for slot, env in enumerate(singles):
            if over[slot] and mode == "NextStep":
                first, first_info = env.reset()
                step = (first, 0.0, False, False, first_info)
            else:
                step = env.step(actions[slot])
            over[slot] = step[2] or step[3]
            if over[slot] and mode == "SameStep":
                finals[slot] = step
                first, first_info = env.reset()
                step = (first, *step[1:4], first_info)
            wanted.append(step)
        agree(batch, wanted)
        info = batch[4]
        assert ("final_obs" in info) == bool(finals)
        for slot, step in finals.items():
            assert (
                info["_final_obs"][slot] and np.abs(info["final_obs"][slot].astype(int) - step[0]).max() <= 3
            )
            assert info["final_info"]["chunk_index"][slot] == step[4]["chunk_index"] == 2


def test_disabled_waits_for_a_reset(make):
    envs = make(autoreset_mode="Disabled", max_episode_steps=1, obs_mode="last")
    envs.reset(seed=0)
    first = envs.step(ACTIONS[0, :2])
    assert first[3].all()
    with pytest.raises(gym.error.ResetNeeded, match=r"slots \[0, 1\] have ended"):
        envs.step(ACTIONS[0, :2])
    obs, info = envs.reset(options={"reset_mask": np.array([False, True])})
    assert (obs[0] == first[0][0]).all() and info["_chunk_index"].tolist() == [False, True]
    with pytest.raises(gym.error.ResetNeeded, match=r"slots \[0\]"):
        envs.step(ACTIONS[0, :2])


def test_a_bad_slot_is_named_and_no_slot_moves(make):
    envs = make()
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        envs.step(ACTIONS[0, :2])
    envs.reset(seed=1)
    before = [tensors_of(state) for state in envs.save_state()]
    bad = ACTIONS[0, :2].copy()
    bad[1, 3] = np.nan
    for actions, cause in ((bad, "slot 1: .*NaN"), (ACTIONS[0], "got 3 actions; wanted 2")):
        with pytest.raises(ValueError, match=cause):
            envs.step(actions)
    for options, cause in (
        ({"per_slot": [{"prompt": "a red room"}, {"prompt": 7}]}, "slot 1: .*type int"),
        ({"per_slot": [None]}, "for 1 slots"),
        ({"reset_mask": np.zeros(2, np.bool_)}, "one at least"),
    ):
        with pytest.raises(ValueError, match=cause):
            envs.reset(seed=3, options=options)
    for seed in (-1, [1], [1, -1]):
        with pytest.raises(ValueError, match="got seed="):
            envs.reset(seed=seed)
    with pytest.raises(TypeError, match="type int64"):
        envs.reset(options={"reset_mask": np.ones(2, np.int64)})
    after = [tensors_of(state) for state in envs.save_state()]
    assert all(
        torch.equal(a, b)
        for one, other in zip(before, after, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_options_per_slot_come_on_top_of_the_common_ones(make):
    envs = make()
    common = {"prompt": "a blue brick room"}
    envs.reset(seed=[4, 4], options={**common, "per_slot": [None, {"prompt": "a red room, a tall box"}]})
    first, second = envs.save_state()
    assert torch.equal(first.generators, second.generators) and torch.equal(first.frame, second.frame)
    assert not torch.equal(first.text.values[0], second.text.values[0])
    assert common == {"prompt": "a blue brick room"}


def test_saved_slots_go_on_alike(make):
    envs = make(obs_mode="last", max_episode_steps=2)
    envs.reset(seed=2)
    envs.step(ACTIONS[0, :2])
    states = envs.save_state()
    wanted = envs.step(ACTIONS[1, :2])
    assert wanted[3].all()
    other = make(obs_mode="last", max_episode_steps=2)
    other.restore_state(states)
    got = other.step(ACTIONS[1, :2])
    assert (got[0] == wanted[0]).all() and got[3].all()  # the step counter came with the state
    one = envs.save_state(1)
    assert sum(t.untyped_storage().nbytes() for t in tensors_of(one)) == one.nbytes
    obs, info = other.restore_state(states[1], slot=0)
    assert info["_chunk_index"].tolist() == [True, False] and (obs[1] == got[0][1]).all()
    with pytest.raises(ValueError, match="got 1 states; wanted 2"):
        other.restore_state(states[:1])


def test_weights_are_there_once():
    envs = gym.make_vec("SanaWM-v0", num_envs=3)
    envs.reset(seed=0)
    assert len({id(slot.model) for slot in envs.slots}) == 1
    assert "observation_space" not in envs.__dict__  # bounds of a batch of videos are made when asked for
    assert envs.observation_space.shape == (3, 24, 64, 64, 3)
    envs.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        envs.step(ACTIONS[0])


def test_the_spec_of_a_vector_environment_survives_json(make):
    envs = make(3, autoreset_mode="SameStep")
    spec = gym.envs.registration.EnvSpec.from_json(envs.spec.to_json())
    again = gym.make_vec(spec)
    assert (
        again.num_envs == 3
        and again.autoreset_mode is AutoresetMode.SAME_STEP
        and again.max_episode_steps == 40
    )
    json.loads(envs.spec.to_json())


def test_a_goal_in_every_slot(model):
    envs = gym.make_vec("SanaWM-Goal-v0", num_envs=2)
    for slot in envs.slots:
        slot.model = model
    obs, info = envs.reset(seed=0)
    assert obs["goal_image"].shape == (2, 64, 64, 3) and not info["is_success"].any()
    obs, rewards, _, _, info = envs.step(ACTIONS[0, :2])
    assert (
        obs["image"].shape == (2, 64, 64, 3) and (rewards != 0).all() and info["goal_c2w"].shape == (2, 4, 4)
    )


def test_processes_that_are_spawned_find_the_id():
    envs = gym.make_vec(
        "sana_wm_env:SanaWM-v0",
        num_envs=1,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn", "shared_memory": False},
    )
    obs, _ = envs.reset(seed=3)
    with gym.make("SanaWM-v0") as env:
        assert (env.reset(seed=3)[0] == obs[0]).all()
    envs.close()
