"""Solvers of stable-worldmodel plan in our imaginations; skipped where that package does not load."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch

from sana_wm_env.agents.evaluate import play
from sana_wm_env.agents.planning.costable import CostableWorld, SolverAgent
from sana_wm_env.agents.planning.imagination import TrueImagination
from sana_wm_env.agents.random_agent import StillAgent


@pytest.fixture
def rooms():
    env = gym.make(
        "SanaWM-RoomsGoal-v0",
        obs_mode="dict",
        image_size=(16, 16),
        max_episode_steps=6,
        disable_env_checker=True,
    )
    yield env
    env.close()


def test_cost_is_the_negated_worth_of_clipped_actions(rooms):
    observation, _ = rooms.reset(seed=3)
    world = CostableWorld(rooms.unwrapped, imagination=TrueImagination())
    world.observe(observation)
    candidates = torch.zeros(1, 3, 1, 3)
    candidates[0, 1, 0, 1], candidates[0, 2, 0, 1] = 1.0, 7.0  # forward, and more than is allowed
    cost = world.get_cost({}, candidates)
    _, reward, *_ = rooms.step(np.array([0, 0, 1, 0, 0, 0], np.float32))
    assert cost.shape == (1, 3) and cost.dtype == candidates.dtype
    assert cost[0, 1] == cost[0, 2] == pytest.approx(-float(reward), abs=1e-6)
    assert cost[0, 0] != cost[0, 1]


class Straying:
    """A solver that wanders off: twice as far as allowed, and beyond what it was warmed with."""

    def __init__(self, world):
        self.warmed = []

    def configure(self, *, action_space, n_envs, config):
        self.shape = (n_envs, config.horizon, action_space.shape[-1])

    def solve(self, info_dict, init_action=None):
        self.warmed.append(init_action)
        begun = 0 if init_action is None else init_action.sum()
        return {"actions": torch.full(self.shape, 2.0) + begun}


def test_warm_starts_of_a_solver_that_strays_stay_inside(rooms):
    observation, _ = rooms.reset(seed=3)
    agent = SolverAgent(Straying, horizon=3, imagination=TrueImagination())
    for _ in range(4):
        action = agent.act(observation, rooms)
        assert rooms.action_space.contains(action)
        observation, *_ = rooms.step(action)
    first, *others = agent._solver.warmed
    assert first is None and len(others) == 3
    assert all(warm.shape == (1, 2, 3) and warm.abs().max() <= 1 for warm in others)


@pytest.mark.parametrize("value", [float("nan"), np.inf, -np.inf])
def test_a_candidate_without_a_value_costs_more_than_any(value):
    env = gym.make(
        "SanaWM-Rooms-v0",
        image_size=(16, 16),
        reward_fn=lambda moment: value if moment.action[2] > 0.5 else float(moment.action[2]),
    )
    observation, _ = env.reset(seed=3)
    world = CostableWorld(env, imagination=TrueImagination())
    world.observe(observation)
    candidates = torch.zeros(1, 3, 1, 3)
    candidates[0, :, 0, 1] = torch.tensor([0.4, 1.0, -1.0])  # forward, too far forward, back
    cost = world.get_cost({}, candidates)[0]
    assert cost.argmin() == 0 and cost.argmax() == 1 and torch.isfinite(cost[[0, 2]]).all()
    with pytest.raises(ValueError, match=r"no candidate of 1 with a finite value.*reward_fn"):
        world.get_cost({}, candidates[:, 1:2])


def test_several_environments_are_refused(rooms):
    rooms.reset(seed=3)
    with pytest.raises(ValueError, match=r"got candidates \(2, 3, 1, 6\); wanted \(1, S, H, A\)"):
        CostableWorld(rooms.unwrapped, imagination=TrueImagination()).get_cost({}, torch.zeros(2, 3, 1, 6))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("CEMSolver", {"num_samples": 48, "n_steps": 4, "topk": 6, "var_scale": 0.7}),
        ("ICEMSolver", {"num_samples": 48, "n_steps": 4, "topk": 6, "var_scale": 0.7}),
        ("MPPISolver", {"num_samples": 48, "n_steps": 4, "var_scale": 0.7}),
        ("PredictiveSamplingSolver", {"num_samples": 96}),
    ],
)
def test_their_solvers_find_goals(rooms, name, settings):
    try:
        from stable_worldmodel import solver as solvers  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another build than torch
        pytest.skip(f"stable-worldmodel does not load: {error}")
    agent = SolverAgent(partial(getattr(solvers, name), **settings), imagination=TrueImagination())
    gained = [play(agent, rooms, seed)["return"] for seed in (0, 1)]
    waited = [play(StillAgent(), rooms, seed)["return"] for seed in (0, 1)]
    assert np.mean(gained) > np.mean(waited) + 0.5
