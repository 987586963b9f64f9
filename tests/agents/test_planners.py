"""CEM and MPPI, what they want, and where they try it out."""

import gymnasium as gym
import numpy as np
import pytest

import sana_wm_env  # noqa: F401  # registers the ids
from sana_wm_env.agents.choose import AgentConfig, EnvConfig
from sana_wm_env.agents.planning.cem import CEMAgent
from sana_wm_env.agents.planning.imagination import AnchoredImagination, OwnImagination, TrueImagination
from sana_wm_env.agents.planning.mppi import MPPIAgent
from sana_wm_env.agents.planning.objectives import (
    GoalImageObjective,
    RewardObjective,
    make_objective,
    picture_distance,
)
from sana_wm_env.agents.planning.planner import PlannerConfig
from sana_wm_env.agents.policy.redness import RednessTask
from sana_wm_env.candidates import Imagined

SMALL = PlannerConfig(candidates=32, iterations=3)
BOTH = pytest.mark.parametrize("planner", [CEMAgent, MPPIAgent])


def rooms(**options):
    return gym.make("SanaWM-RoomsGoal-v0", image_size=(16, 16), disable_env_checker=True, **options)


@pytest.fixture(scope="module")
def world():
    """An imagined episode and what was seen first. Tests leave it where it is."""
    env = gym.make("SanaWM-Goal-v0", disable_env_checker=True)
    observation, _ = env.reset(seed=3)
    return env.unwrapped, observation


# Search


@BOTH
def test_candidates_gather_where_the_values_are_best(planner):
    agent, target = planner(), np.array([[0.5, -0.3, 0.1], [0, 0.2, -0.6], [0.1, 0.1, 0.1]])
    mean, spread, rng = np.zeros((3, 3)), np.full((3, 3), 0.7), np.random.default_rng(0)
    for _ in range(12):
        drawn = mean + spread * rng.standard_normal((256, 3, 3))
        mean, spread = agent._improve(drawn, -np.square(drawn - target).sum((1, 2)))
    np.testing.assert_allclose(mean, target, atol=0.03)
    assert (spread < 0.1).all()


@BOTH
def test_values_that_do_not_differ_do_no_harm(planner):
    """Nor does a single elite: its deviation is 0, not NaN."""
    drawn = np.random.default_rng(0).standard_normal((4, 1, 2))
    mean, spread = planner()._improve(drawn, np.zeros(4))
    assert np.isfinite(mean).all() and np.isfinite(spread).all()


@BOTH
def test_plans_arrive_as_imagined(planner):
    env = rooms()
    for seed in (3, 5):
        agent = planner(SMALL, "reward", TrueImagination())
        observation, info = env.reset(seed=seed)
        agent.reset(seed)
        total, terminated = 0.0, False
        while not terminated and info["chunk_index"] < 6:
            observation, reward, terminated, _, info = env.step(agent.act(observation, env.unwrapped))
            total += reward
        assert info["is_success"]
        report = agent.report()
        assert report["imagined_return"] == pytest.approx(total, abs=1e-5)
        assert (
            report["plans"] == info["chunk_index"]
            and report["imagined_chunks"] == report["plans"] * 32 * 3 * 3
        )


def test_planning_repeats_with_the_seed_and_leaves_the_episode_alone():
    env, plans = rooms(), []
    observation, _ = env.reset(seed=3)
    before = env.unwrapped.episode
    for seed in (1, 1, 2):
        agent = CEMAgent(SMALL, "reward", TrueImagination())
        agent.reset(seed)
        plans.append(agent.plan(observation, env.unwrapped).actions)
    assert env.unwrapped.episode is before
    np.testing.assert_array_equal(plans[0], plans[1])
    assert plans[0].shape != plans[2].shape or (plans[0] != plans[2]).any()


def test_a_plan_is_carried_on_and_begins_the_next():
    env = rooms(task="follow")
    observation, _ = env.reset(seed=3)
    agent = CEMAgent(PlannerConfig(candidates=8, iterations=1, replan_every=2), "reward", TrueImagination())
    for plans in (1, 1, 2):
        observation, *_ = env.step(agent.act(observation, env.unwrapped))
        assert agent.plans == plans
    rest = agent._last.twists[1:]  # one chunk of the second plan is done
    np.testing.assert_array_equal(agent._first_mean(), np.concatenate([rest, np.zeros((1, 3))]))


def test_candidates_leave_no_side_out():
    agent = CEMAgent(PlannerConfig(candidates=8))
    for seed in range(5):
        agent.reset(seed)
        drawn = agent._normal()
        assert drawn.shape == (8, 3, 3) and ((drawn > 0).sum(0) == 4).all()  # along every axis
        assert ((drawn > 0.675).sum(0) == 2).all()  # the upper quarter of a normal distribution


def test_what_moves_and_for_how_long():
    agent = CEMAgent(PlannerConfig(horizon=5, hold=2, axes=(1, 5)))
    env = rooms().unwrapped
    actions = agent.actions(np.arange(12).reshape(2, 3, 2) / 12, env)
    assert actions.shape == (2, 5, 6) and (actions[:, :, [0, 2, 3, 4]] == 0).all()
    np.testing.assert_array_equal(actions[:, 0], actions[:, 1])
    np.testing.assert_allclose(actions[1, 4, [1, 5]], [10 / 12, 11 / 12], rtol=1e-6)


@pytest.mark.parametrize(
    "options, cause",
    [
        ({"horizon": 0}, "horizon=0"),
        ({"replan_every": 4}, "replan_every=4"),
        ({"axes": (2, 2)}, "axes"),
        ({"axes": (6,)}, "axes"),
        ({"least_spread": 1.0}, "least_spread=1.0"),
    ],
)
def test_bad_figures_are_refused(options, cause):
    with pytest.raises(ValueError, match=cause):
        PlannerConfig(**options)


# Objectives


def test_rewards_count_less_later_and_end_with_the_episode():
    rewards = np.array([[1.0, 0, 0], [0, 0, 1], [0.5, 0.5, 0]])
    ended = np.array([[True, True, True], [False, False, False], [False, True, True]])
    imagined = Imagined(None, None, np.empty(0), rewards, ended)
    worth = RewardObjective()(imagined, None, rooms().unwrapped, TrueImagination())
    assert worth.values.argsort().tolist() == [1, 2, 0] and worth.chunks.tolist() == [1, 3, 2]


def test_the_distance_of_pictures_sees_from_afar():
    """A blot that is two places off is nearer than one that is four, though at full resolution neither
    overlaps with the goal's.
    """
    pictures = np.zeros((5, 32, 32, 3), np.uint8)
    for row, place in enumerate((8, 8, 10, 12, 24)):
        pictures[row, 8:10, place : place + 2] = 255
    distance = picture_distance(pictures[1:], pictures[0])
    assert distance[0] == 0 and (np.diff(distance) > 0).all()
    assert picture_distance(pictures[0] * 0, pictures[0] * 0 + 255, 3) == pytest.approx(1)


def test_a_plan_by_pictures_stops_where_the_goal_is_seen():
    env = rooms()
    observation, _ = env.reset(seed=3)
    goal, other = observation["goal_image"], observation["image"]
    frames = np.stack([[other, goal, other], [other, other, other], [goal, goal, goal]])
    imagined = Imagined(None, frames, np.empty(0), np.zeros((3, 3)), np.zeros((3, 3), bool))
    worth = GoalImageObjective("frames")(imagined, observation, env.unwrapped, TrueImagination())
    assert worth.chunks.tolist() == [2, 1, 1]
    np.testing.assert_allclose(worth.values, [1 - 0.02, -0.01, 1 - 0.01])


def test_the_way_to_the_goal_is_worth_most_by_pictures_and_by_latents(world):
    """The hidden path shows the goal image; its mirror image and a way back do not."""
    env, observation = world
    walk = np.float32(env.episode.goal["twists"][:3] / np.repeat([0.6, 0.3], 3))
    imagination = OwnImagination()
    imagined = imagination(env, np.stack([walk, -walk]), "last")
    for space in ("frames", "latents"):
        worth = make_objective(space)(imagined, observation, env, imagination)
        assert worth.values[0] > worth.values[1] + 0.2 and worth.values[0] > 0.5
        assert (
            space == "latents" or worth.chunks[0] == (walk != 0).any(1).sum()
        )  # a latent of a moving picture is another one


# Imaginations


def test_who_judges_by_poses_needs_no_network(world):
    env, observation = world
    agent = CEMAgent(SMALL)
    agent.reset(0)
    state = env.save_state()
    plan = agent.plan(observation, env)
    assert plan.rewards.sum() > 0.5 and agent.objective.decode(env) == "poses"
    assert env.save_state().chunk_index == state.chunk_index


def test_truth_is_what_steps_give():
    env = rooms()
    env.reset(seed=3)
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 3, 6)).astype(np.float32)
    before, foreseen = env.unwrapped.episode, TrueImagination()(env.unwrapped, actions, "frames")
    walked = TrueImagination()(env.unwrapped, actions, "poses")
    for row, sequence in enumerate(actions):
        env.unwrapped.resume(before, np.zeros((24, 16, 16, 3), np.uint8), np.tile(before.c2w, (24, 1, 1)))
        over = False
        for k, action in enumerate(sequence):
            observation, reward, terminated, _, info = env.step(action)
            np.testing.assert_array_equal(foreseen.frames[row, k, -1], observation["image"])
            for one in (foreseen, walked):
                np.testing.assert_array_equal(one.c2w[row, k], info["c2w"])
                assert one.rewards[row, k] == (0 if over else reward) and one.terminated[row, k] == (
                    over or terminated
                )
            over = over or terminated


def test_a_model_beside_the_truth_starts_from_true_frames(world):
    model, env = world[0].model, gym.make("SanaWM-RoomsGoal-v0", disable_env_checker=True)
    imagination = AnchoredImagination(model, every=2)
    observation, _ = env.reset(seed=3)
    forward = np.float32([[[0, 0, 0.5, 0, 0.5, 0]]])
    imagination.reset(0)
    imagination.observe(observation, env.unwrapped)
    imagined = imagination(env.unwrapped, forward, "last")
    after, reward, *_ = env.step(forward[0, 0])
    assert imagined.rewards[0, 0] == pytest.approx(reward)
    start, truth, guess = (
        picture.astype(float) for picture in (observation["image"], after["image"], imagined.frames[0, 0])
    )
    assert np.square(guess - truth).mean() < 0.5 * np.square(start - truth).mean()
    imagination.observe(after, env.unwrapped)  # imagines what was done
    np.testing.assert_allclose(imagination._state.c2w[0], env.unwrapped.c2w, atol=1e-6)
    assert imagination._state.chunk_index == 1
    env.step(forward[0, 0])
    imagination.observe(after, env.unwrapped)  # anchors anew
    assert imagination._state.chunk_index == 0 and (imagination._anchor == env.unwrapped.c2w).all()
    poses = imagination(env.unwrapped, forward, "poses").c2w
    np.testing.assert_allclose(
        poses[0, 0], env.unwrapped.rules.wish(env.unwrapped.episode, forward[0, 0]), atol=1e-12
    )


def test_wishes_that_cannot_be_met_are_refused(world):
    env = rooms()
    observation, _ = env.reset(seed=3)
    forward = np.zeros((1, 1, 6), np.float32)
    with pytest.raises(ValueError, match="RoomsEnv, which imagines nothing"):
        OwnImagination()(env.unwrapped, forward, "last")
    with pytest.raises(ValueError, match="wanted the objective"):
        CEMAgent(SMALL, "latents", TrueImagination()).plan(observation, env.unwrapped)
    with pytest.raises(ValueError, match="wanted one of reward, frames, latents"):
        make_objective("beauty")
    with pytest.raises(ValueError, match="call observe"):
        AnchoredImagination(world[0].model)(env.unwrapped, forward, "last")
    with pytest.raises(ValueError, match="it is its own truth"):
        AgentConfig(agent="cem", plan_in="truth").make(world[0], EnvConfig())


# The task to look for red


def test_who_judges_by_pictures_has_them_imagined(world):
    env = gym.make("SanaWM-v0", task=RednessTask(), obs_mode="dict", disable_env_checker=True).unwrapped
    env.__dict__["model"] = world[0].model  # not loaded again
    observation, _ = env.reset(seed=4)
    agent = CEMAgent(PlannerConfig(horizon=1, candidates=3, iterations=1))
    agent.reset(0)
    plan = agent.plan(observation, env)
    assert agent.objective.decode(env) == "latents" and plan.value == plan.rewards[0] != 0


def test_redness_is_what_the_newest_frames_gain():
    env = rooms(task=RednessTask(scale=2.0), obs_mode="dict")
    observation, _ = env.reset(seed=4)
    first, total = observation["image"].astype(float).mean((0, 1)) / 255, 0.0
    for _ in range(2):
        observation, reward, terminated, *_ = env.step(np.float32([0, 0, 0.5, 0, 1, 0]))
        total += reward
        assert not terminated
    last = observation["image"].astype(float).mean((0, 1)) / 255
    assert total == pytest.approx(2 * (np.array([1, -0.5, -0.5]) @ (last - first)), abs=1e-9) and total != 0
