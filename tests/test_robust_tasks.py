"""Tasks and reward functions of one's own: what they return is checked, and what they are given they may
write to; the episode stays where it was.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

from sana_wm_env import Task

ACTION = np.array([0.3, 0, 0.5, 0, 0.4, 0], np.float32)
IDS = ("SanaWM-v0", "SanaWM-Rooms-v0")


def make(name: str = "SanaWM-Rooms-v0", obs_mode: str = "dict", **methods: Any) -> gym.Env:
    """An environment with a task of these methods."""
    judge = {"judge": lambda self, goal, moment: (0.0, False, None)}
    return gym.make(name, task=type("Mine", (Task,), judge | methods)(), obs_mode=obs_mode)


def judged(value: Any) -> dict[str, Any]:
    return {"judge": lambda self, goal, moment: value}


NO_VERDICTS = {
    "None": None, "a number": 1.0, "a list": [1.0, False, None], "two": (1.0, False),
    "four": (1.0, False, None, 3),
    "a dict": {"reward": 1.0}, "reward text": ("1", False, None), "reward NaN": (np.nan, False, None),
    "ended text": (1.0, "no", None), "ended None": (1.0, None, None), "ended 1": (1.0, 1, None),
    "ended twice": (1.0, np.array([True, False]), None), "goal a list": (1.0, False, [1]),
    "goal a number": (1.0, False, 3), "goal of texts": (1.0, False, {"a": "b"}),
    "goal of objects": (1.0, False, {"a": object()}), "goal without names": (1.0, False, {1: np.zeros(3)}),
    "goal of complex": (1.0, False, {"a": 1j}),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_VERDICTS)
def test_what_is_no_verdict_is_refused_and_the_episode_stays(kind):
    env = make(**judged(NO_VERDICTS[kind]))
    env.reset(seed=0)
    before = env.unwrapped.episode
    with pytest.raises(ValueError, match=r"got .* of (judge of )?Mine"):
        env.step(ACTION)
    assert env.unwrapped.episode is before


@pytest.mark.parametrize("ended", [True, np.bool_(True), np.array(True)])
def test_an_end_is_said_in_any_kind_of_truth(ended):
    env = make(**judged((1.0, ended, None)))
    env.reset(seed=0)
    assert env.step(ACTION)[2] is True


SPACE = {"spaces": lambda self, size: {"a": Box(0, 1, (2,), np.float32)}}
NO_EPISODES = {
    "begin None": {"begin": lambda self, opening: None},
    "begin a list": {"begin": lambda self, opening: [1]},
    "begin texts": {"begin": lambda self, opening: {"a": "b"}},
    "observe None": {"observe": lambda self, goal, c2w, index: None},
    "observe nothing": SPACE,
    "observe more": {"observe": lambda self, goal, c2w, index: {"a": np.zeros(2)}},
    "observe outside": SPACE | {"observe": lambda self, goal, c2w, index: {"a": np.full(2, 5, np.float32)}},
    "observe another shape": SPACE | {"observe": lambda *given: {"a": np.zeros(3, np.float32)}},
    "info None": {"info": lambda self, goal, c2w, index: None},
    "info without names": {"info": lambda self, goal, c2w, index: {1: 2}},
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_EPISODES)
def test_what_no_episode_can_begin_with_is_refused_by_name(kind):
    with pytest.raises(ValueError, match=r"got .* of Mine"):
        make(**NO_EPISODES[kind]).reset(seed=0)


@pytest.mark.parametrize("spaces", [None, [1], {"a": 5}, {1: Box(0, 1)}, {"image": Box(0, 1)}])
def test_spaces_that_are_none_are_refused_when_made(spaces):
    with pytest.raises(ValueError, match=r"of a task|a task that adds"):
        make(spaces=lambda self, size: spaces)


@pytest.mark.parametrize("name", IDS)
def test_who_writes_to_what_it_is_given_harms_nothing(name):
    def scribbles(moment) -> float:
        for part in (moment.before, moment.c2w, moment.frames, moment.action):
            part[...] = 0
        return 0.0

    plain, scribbled = gym.make(name), gym.make(name, reward_fn=scribbles)
    plain.reset(seed=0)
    scribbled.reset(seed=0)
    for _ in range(2):
        action = ACTION.copy()
        wanted, found = plain.step(ACTION), scribbled.step(action)
        assert np.array_equal(wanted[0], found[0]) and np.array_equal(wanted[4]["c2w"], found[4]["c2w"])
        assert np.array_equal(action, ACTION)


def test_a_task_that_fails_leaves_the_episode_and_its_goal():
    def judge(self, goal, moment):
        goal["mine"] = 1
        raise RuntimeError("mine")

    env = make(judge=judge)
    env.reset(seed=0)
    before = env.unwrapped.episode
    with pytest.raises(RuntimeError, match="mine"):
        env.step(ACTION)
    assert env.unwrapped.episode is before and before.goal == {}
