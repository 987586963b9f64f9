"""Solvers of stable-worldmodel plan in our imaginations; skipped where that package does not load."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch

from sana_wm_env.agents.costable import CostableWorld, SolverAgent
from sana_wm_env.agents.evaluate import play
from sana_wm_env.agents.imagination import TrueImagination
from sana_wm_env.agents.random_agent import StillAgent


@pytest.fixture
def rooms():
    env = gym.make("SanaWM-RoomsGoal-v0", obs_mode="dict", image_size=(16, 16), max_episode_steps=6, disable_env_checker=True)
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
