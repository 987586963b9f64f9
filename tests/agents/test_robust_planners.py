"""Planners: values that are no numbers, equal values, warm starts, wrappers, objectives that do not fit."""

import time
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from sana_wm_env.agents.choose import AgentConfig
from sana_wm_env.agents.planning.cem import CEMAgent
from sana_wm_env.agents.planning.imagination import OwnImagination, TrueImagination
from sana_wm_env.agents.planning.mppi import MPPIAgent
from sana_wm_env.agents.planning.objectives import Objective, RewardObjective, Worth, make_objective
from sana_wm_env.agents.planning.planner import PlannerConfig
from sana_wm_env.agents.random_agent import RandomAgent

SMALL = PlannerConfig(horizon=2, candidates=16, iterations=3)
KINDS = (CEMAgent, MPPIAgent)


def make(**options):
    env = gym.make("SanaWM-Rooms-v0", image_size=(16, 16), obs_mode="dict", **options)
    return env, env.reset(seed=0)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), -np.inf, np.inf])
def test_a_candidate_without_a_value_never_wins(kind, value):
    """Forward is better the farther, but forward to the right has no value at all."""

    def reward(moment) -> float:
        return value if moment.action[0] > 0 else float(moment.action[2])

    env, obs = make(reward_fn=reward)
    agent = kind(replace(SMALL, candidates=32), imagination=TrueImagination())
    for seed in range(3):
        agent.reset(seed)
        action = agent.act(obs, env)
        assert np.isfinite(action).all() and action[0] <= 0 and action[2] > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_world_imagines_may_have_no_value_either(kind):
    env = gym.make("SanaWM-v0", reward_fn=lambda moment: float("nan") if moment.action[2] > 0 else 1.0)
    obs, _ = env.reset(seed=0)
    agent = kind(PlannerConfig(horizon=1, candidates=8, iterations=2))
    agent.reset(0)
    assert agent.act(obs, env)[2] <= 0


@pytest.mark.parametrize("name", ["SanaWM-v0", "SanaWM-Rooms-v0"])
def test_what_ifs_show_that_a_reward_is_no_number_and_steps_refuse_it(name):
    env = gym.make(name, reward_fn=lambda moment: float("nan") if moment.action[2] > 0 else 1.0)
    env.reset(seed=0)
    ahead, still = np.array([[0, 0, 1, 0, 0, 0]], np.float32), np.zeros((1, 6), np.float32)
    rewards = env.unwrapped.imagine([ahead, still], decode="last").rewards
    assert np.isnan(rewards[0, 0]) and rewards[1, 0] == 1
    with pytest.raises(ValueError, match="one finite number"):
        env.step(ahead[0])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_values_that_are_no_numbers_is_said(kind):
    env, obs = make(reward_fn=lambda moment: float("nan"))
    with pytest.raises(ValueError, match=r"no candidate of 16 with a finite value.*reward_fn"):
        kind(SMALL, imagination=TrueImagination()).act(obs, env)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_values_leave_the_mean_where_it_is(kind):
    env, obs = make()  # the free task pays nothing
    agent = kind(replace(SMALL, iterations=5), imagination=TrueImagination())
    assert not agent.act(obs, env).any()


class LastIsBest(Objective):
    """Values that rise with the place of a candidate."""

    def decode(self, env):
        return "poses"

    def __call__(self, imagined, observation, env, imagination):
        n, k = imagined.rewards.shape
        return Worth(np.arange(n, dtype=float), np.full(n, k))


class Watched(CEMAgent):
    """Remembers the mean that each plan began from, and the twists that won."""

    def plan(self, observation, env):
        self.first, plan = self._first_mean(), super().plan(observation, env)
        self.won = plan.twists
        return plan


SEARCHES = [(4, 1, 1), (4, 2, 1), (4, 2, 2), (4, 4, 1), (5, 2, 1), (5, 2, 3), (3, 3, 1), (6, 3, 2), (4, 3, 4)]


@pytest.mark.parametrize(("horizon", "hold", "replan_every"), [*SEARCHES, (1, 1, 1)])
def test_the_warm_start_moves_by_what_was_done(horizon, hold, replan_every):
    env, obs = make()
    config = PlannerConfig(horizon, candidates=4, iterations=1, hold=hold, replan_every=replan_every)
    agent = Watched(config, LastIsBest(), TrueImagination())
    for _ in range(3):
        for _ in range(replan_every):
            obs, *_ = env.step(agent.act(obs, env))
        chunks = np.repeat(agent.won, hold, axis=0)[:horizon]
        rest = np.concatenate([chunks[replan_every:], np.zeros((replan_every, 3))])
        agent.plan(obs, env)
        assert np.allclose(agent.first, [rest[i : i + hold].mean(0) for i in range(0, horizon, hold)])


def test_a_plan_without_a_step_between_is_begun_from_itself():
    env, obs = make()
    agent = Watched(SMALL, LastIsBest(), TrueImagination())
    won = agent.plan(obs, env).twists
    agent.plan(obs, env)
    assert np.array_equal(agent.first, won)


NAMES = ("random", "still", "orbit", "look-around", "lawnmower", "go-to-goal", "cem", "mppi")


@pytest.mark.parametrize("name", NAMES)
def test_agents_take_wrapped_environments(name):
    env = gym.make("SanaWM-RoomsGoal-v0", image_size=(16, 16))
    obs, _ = env.reset(seed=0)
    agent = AgentConfig(agent=name, planner=SMALL, plan_in="truth").make(env.unwrapped, None)
    agent.reset(0)
    assert env.action_space.contains(agent.act(obs, env))


def test_other_environments_are_refused():
    with pytest.raises(ValueError, match="got CartPoleEnv"):
        RandomAgent().act(np.zeros(4), gym.make("CartPole-v1"))


@pytest.mark.parametrize("objective", ["frames", "latents"])
def test_objectives_are_checked_before_anything_is_imagined(objective):
    for name, imagination in (("SanaWM-v0", OwnImagination()), ("SanaWM-Rooms-v0", TrueImagination())):
        env = gym.make(name, obs_mode="dict")
        obs, _ = env.reset(seed=0)
        began = time.process_time()
        with pytest.raises(ValueError, match="goal_image"):
            CEMAgent(PlannerConfig(horizon=8), objective, imagination).act(obs, env)
        assert time.process_time() - began < 2


def test_latents_want_a_model():
    env = gym.make("SanaWM-RoomsGoal-v0", image_size=(16, 16))
    obs, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match="no model"):
        CEMAgent(SMALL, "latents", TrueImagination()).act(obs, env)


@pytest.mark.parametrize(
    "settings",
    [
        {"horizon": 0},
        {"horizon": 2.5},
        {"horizon": "2"},
        {"horizon": True},
        {"candidates": 1},
        {"candidates": None},
        {"iterations": 0},
        {"replan_every": 9},
        {"hold": 0},
        {"axes": ()},
        {"axes": (6,)},
        {"axes": (0, 0)},
        {"spread": float("nan")},
        {"spread": 0},
        {"least_spread": 2},
    ],
)
def test_sizes_of_the_search_are_checked(settings):
    with pytest.raises(ValueError, match="got"):
        PlannerConfig(**settings)
    assert isinstance(make_objective("reward"), RewardObjective)
