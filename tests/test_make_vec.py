"""`gymnasium.make_vec` in each autoreset mode against single environments that are driven by hand."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList

import sana_wm_env

SLOTS, LIMIT = 2, 2
ROOM = {"image_size": (16, 16), "max_episode_steps": LIMIT}


class ByHand:
    """Single environments that do together what Gymnasium says of a vector environment in an autoreset
    mode.
    """

    def __init__(self, mode, env_id, **options):
        self.mode, self.envs = mode, [gym.make(env_id, **options) for _ in range(SLOTS)]
        self.over = [False] * SLOTS

    def reset(self, seed):
        return self._collect([env.reset(seed=seed + slot) for slot, env in enumerate(self.envs)])

    def reset_slot(self, slot, seed):
        self.over[slot] = False
        return self.envs[slot].reset(seed=seed + slot)

    def step(self, actions):
        """What each slot returns, and what it returned last where it began anew in the same step."""
        results, finals = [], [None] * SLOTS
        for slot, env in enumerate(self.envs):
            if self.mode is AutoresetMode.NEXT_STEP and self.over[slot]:
                obs, info = env.reset()
                result = (obs, 0.0, False, False, info)
            else:
                result = env.step(actions[slot])
            self.over[slot] = result[2] or result[3]
            if self.mode is AutoresetMode.SAME_STEP and self.over[slot]:
                finals[slot] = (result[0], result[4])
                obs, info = env.reset()
                result = (obs, *result[1:4], info)
            results.append(result)
        return self._collect(results), finals

    @staticmethod
    def _collect(results):
        return [list(column) for column in zip(*results, strict=True)]


def assert_same(got, wanted):
    """Equal to the last bit."""
    if isinstance(wanted, dict):
        assert got.keys() == wanted.keys()
        for key in wanted:
            assert_same(got[key], wanted[key])
    else:
        np.testing.assert_array_equal(got, wanted)


def assert_same_slots(batched, infos, observations, wanted_infos):
    for slot in range(SLOTS):
        one = (
            {key: value[slot] for key, value in batched.items()}
            if isinstance(batched, dict)
            else batched[slot]
        )
        assert_same(one, observations[slot])
        assert_same(infos[slot], wanted_infos[slot])


def make_vec(env_id, vectorization, mode, **options):
    context = {"context": "spawn"} if vectorization == "async" else {}
    return DictInfoToList(
        gym.make_vec(
            env_id,
            num_envs=SLOTS,
            vectorization_mode=vectorization,
            vector_kwargs={"autoreset_mode": mode, **context},
            **options,
        )
    )


def drive(env, by_hand, mode, steps=4):
    """Both through the same seeds and actions, out of step with each other after a while; every difference
    fails.
    """
    env.action_space.seed(0)
    obs, infos = env.reset(seed=5)
    assert_same_slots(obs, infos, *by_hand.reset(5))
    actions = env.action_space.sample()
    env.step(actions)
    by_hand.step(actions)
    # The second slot begins anew and is from now on a step behind the first.
    obs, infos = env.reset(seed=9, options={"reset_mask": np.array([False, True])})
    wanted = by_hand.reset_slot(1, 9)
    assert_same(
        (obs["image"] if isinstance(obs, dict) else obs)[1],
        wanted[0]["image"] if isinstance(obs, dict) else wanted[0],
    )
    assert_same(infos[1], wanted[1])
    ends = 0
    for _ in range(steps):
        actions = env.action_space.sample()
        obs, rewards, terminated, truncated, infos = env.step(actions)
        wanted, finals = by_hand.step(actions)
        for slot, final in enumerate(finals):
            assert ("final_obs" in infos[slot]) == (final is not None)
            if final is not None:
                assert_same(infos[slot].pop("final_obs"), final[0])
                assert_same(infos[slot].pop("final_info"), final[1])
        assert_same_slots(obs, infos, wanted[0], wanted[4])
        for got, expected in zip((rewards, terminated, truncated), wanted[1:4], strict=True):
            np.testing.assert_array_equal(got, expected)
        over = terminated | truncated
        ends += int(over.sum())
        assert not over.all()  # one slot is a step behind the other
        if mode is AutoresetMode.DISABLED and over.any():
            (slot,) = np.flatnonzero(over).tolist()
            obs, infos = env.reset(seed=20, options={"reset_mask": over})
            assert_same(infos[slot], by_hand.reset_slot(slot, 20)[1])
    assert ends >= 2
    env.close()


@pytest.mark.parametrize("mode", AutoresetMode)
def test_sync(mode):
    drive(make_vec("SanaWM-Rooms-v0", "sync", mode, **ROOM), ByHand(mode, "SanaWM-Rooms-v0", **ROOM), mode)


def test_sync_with_a_task():
    mode = AutoresetMode.SAME_STEP
    drive(
        make_vec("SanaWM-RoomsFollow-v0", "sync", mode, **ROOM),
        ByHand(mode, "SanaWM-RoomsFollow-v0", **ROOM),
        mode,
    )


def test_async_with_processes_that_are_spawned():
    mode = AutoresetMode.SAME_STEP
    drive(make_vec("SanaWM-Rooms-v0", "async", mode, **ROOM), ByHand(mode, "SanaWM-Rooms-v0", **ROOM), mode)


@pytest.mark.parametrize("name", ["SanaWM-v0", "SanaWM-Rooms-v0"])
def test_wrappers_of_slots_want_the_mode_sync(name):
    """In the mode of our own vector environment Gymnasium refuses them before it asks us."""
    with pytest.raises(gym.error.Error, match="wrappers"):
        gym.make_vec(name, num_envs=SLOTS, wrappers=(sana_wm_env.LastFrame,))
    env = gym.make_vec(name, SLOTS, vectorization_mode="sync", wrappers=(sana_wm_env.LastFrame,))
    assert env.reset(seed=0)[0].shape == (SLOTS, 64, 64, 3)
    env.close()
