"""Tasks and rewards that a user brings, on both worlds."""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest

import sana_wm_env
from sana_wm_env.camera import twist_path
from sana_wm_env.observations import pose_space
from sana_wm_env.tasks import Goal, Moment, Opening, Task, Verdict

FORWARD = np.array([0, 0, 0.5, 0, 0.5, 0], np.float32)


@pytest.fixture(params=["SanaWM-v0", "SanaWM-Rooms-v0"])
def world(request):
    return request.param


def make(name: str, **arguments) -> gym.Env:
    return gym.make(name, disable_env_checker=True, **arguments)


@dataclass(frozen=True)
class Brighter(Task):
    """Worth the brightness gained over the best so far, over after `patience` steps: frames, a goal that
    changes, an end.
    """

    patience: int = 3

    def begin(self, opening: Opening) -> Goal:
        return {
            "best": np.array(opening.frame.mean()),
            "place": opening.look(twist_path([0, 0, 0, 0, 0.3, 0]))[-1],
        }

    def judge(self, goal: Goal, moment: Moment) -> Verdict:
        if moment.action[2] < 0:
            raise RuntimeError("no way back")
        best = max(goal["best"], moment.frames[-1].mean())
        return Verdict(
            best - goal["best"], moment.chunk_index >= np.int64(self.patience), goal | {"best": best}
        )

    def info(self, goal, c2w, chunk_index):
        return {"best": float(goal["best"])}

    def spaces(self, image_size):
        return {"left": gym.spaces.Box(0, self.patience, (1,), np.float32)}

    def observe(self, goal, c2w, chunk_index):
        return {"left": np.array([self.patience - chunk_index], np.float32)}


def test_a_task_of_ones_own(world):
    env = make(world, task=Brighter(), obs_mode="dict")
    obs, info = env.reset(seed=2)
    assert obs["left"] == [3] and info["best"] == pytest.approx(obs["image"].mean())
    best, rewards = info["best"], []
    with pytest.raises(RuntimeError, match="no way back"):
        env.step(-FORWARD)
    for index in (1, 2, 3):
        obs, reward, terminated, _, info = env.step(FORWARD)
        rewards.append(reward)
        assert (
            (info["chunk_index"], terminated) == (index, index == 3)
            and type(terminated) is bool
            and type(reward) is float
        )
        assert obs in env.observation_space
    assert sum(rewards) == pytest.approx(info["best"] - best)


def test_a_reward_function(world):
    moments = []

    def reward(moment: Moment) -> np.float32:
        moments.append(moment)
        return np.float32(moment.c2w[-1, 2, 3] - moment.before[2, 3])

    env = make(world, reward_fn=reward)
    env.reset(seed=2)
    obs, gained, terminated, _, info = env.step(FORWARD)
    assert type(gained) is float and gained == pytest.approx(info["c2w"][-1, 2, 3]) and not terminated
    (moment,) = moments
    assert (
        (moment.frames == obs).all()
        and (moment.c2w == info["c2w"]).all()
        and (moment.action == FORWARD).all()
    )
    assert moment.chunk_index == 1 and (moment.before == np.eye(4)).all()


def test_a_key_that_is_taken_is_refused():
    class Clash(Brighter):
        def spaces(self, image_size):
            return {"pose": pose_space()}

    with pytest.raises(ValueError, match="adds 'pose'"):
        make("SanaWM-Rooms-v0", task=Clash(), obs_mode="dict")
    make("SanaWM-Rooms-v0", task=Clash())  # where it does not show, it does no harm


def test_a_task_must_judge():
    class Unfinished(Task):
        pass

    with pytest.raises(TypeError, match="judge"):
        Unfinished()
    assert sana_wm_env.Task is Task
