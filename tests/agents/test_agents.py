"""Scripts and chance: what each agent does, in every action mode."""

import gymnasium as gym
import numpy as np
import pytest

import sana_wm_env  # noqa: F401  # registers the ids
from sana_wm_env.agents.agent import entry, newest_image, steer
from sana_wm_env.agents.choose import SCRIPTS, AgentConfig, EnvConfig
from sana_wm_env.agents.random_agent import RandomAgent
from sana_wm_env.agents.scripted import (
    GoToGoalAgent,
    LawnmowerAgent,
    LookAroundAgent,
    OrbitAgent,
    pose_matrix,
)
from sana_wm_env.camera import twist_path
from sana_wm_env.observations import pose_vector


def rooms(task="goal", **options):
    return gym.make(
        "SanaWM-Rooms-v0",
        image_size=(16, 16),
        obs_mode="dict",
        task=task,
        disable_env_checker=True,
        **options,
    )


def free_path(agent, env, chunks):
    """Poses (24 * chunks + 1, 4, 4) that an agent asks for where nothing is in the way."""
    inner, path = env.unwrapped, [np.eye(4)[None]]
    observation, _ = env.reset(seed=0)
    agent.reset(0)
    for _ in range(chunks):
        episode, frames = inner.episode, np.zeros((24, 16, 16, 3), np.uint8)
        path.append(inner.rules.wish(episode, agent.act(observation, inner)))
        inner.arrive(inner.rules.judge(episode, np.zeros(6), frames, path[-1], episode.state))
    return np.concatenate(path)


@pytest.mark.parametrize("mode", ["chunk", "per_latent", "per_frame"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_actions_are_of_the_space_and_repeat_with_the_seed(name, mode):
    env = rooms(action_mode=mode)
    observation, _ = env.reset(seed=1)
    actions = []
    for seed in (5, 5, 6):
        agent = AgentConfig(agent=name).make(env.unwrapped, EnvConfig())
        agent.reset(seed)
        actions.append(agent.act(observation, env.unwrapped))
        assert actions[-1] in env.action_space
    assert (actions[0] == actions[1]).all() and (actions[0] == actions[2]).all() == (name != "random")


def test_random_fills_the_box():
    env, agent = rooms(), RandomAgent()
    agent.reset(0)
    drawn = np.stack([agent.act(None, env.unwrapped) for _ in range(500)])
    assert (np.abs(drawn).max(0) > 0.95).all() and np.abs(drawn.mean(0)).max() < 0.1


@pytest.mark.parametrize("mode", ["chunk", "per_latent"])
def test_orbit_keeps_its_centre_in_the_middle(mode):
    path = free_path(OrbitAgent(1.5), rooms(action_mode=mode), 4)
    centre = np.linalg.inv(path) @ [0, 0, 1.5, 1]
    np.testing.assert_allclose(centre, np.tile([0, 0, 1.5, 1], (len(path), 1)), atol=1e-5)
    assert path[-1, 0, 3] > 0.3  # to the right


def test_look_around_turns_on_the_spot():
    path = free_path(LookAroundAgent(), rooms(), 2)
    np.testing.assert_allclose(path[:, :3, 3], 0, atol=1e-12)
    np.testing.assert_allclose(path[-1, :3, :3], twist_path([0, 0, 0, 0, 0.6, 0])[-1, :3, :3], atol=1e-6)


def test_lawnmower_sweeps_and_comes_back_beside_its_start():
    path = free_path(LawnmowerAgent(length=2), rooms(), 6)
    ends = path[24::24, :3, 3]
    np.testing.assert_allclose(
        ends,
        0.6 * np.array([[0, 0, 1], [0, 0, 2], [1, 0, 2], [1, 0, 1], [1, 0, 0], [2, 0, 0]], float),
        atol=1e-6,
    )


@pytest.mark.parametrize("task", ["goal", "follow"])
def test_go_to_goal_gets_there(task):
    env, agent = rooms(task), GoToGoalAgent()
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        for _ in range(4):
            observation, reward, terminated, _, info = env.step(agent.act(observation, env.unwrapped))
            if task == "follow":
                assert reward > -1e-4
            elif terminated:
                break
        assert task == "follow" or info["is_success"]


def test_pose_matrix_is_the_inverse_of_pose_vector():
    pose = twist_path([0.3, -0.1, 0.5, 0.2, -0.4, 0.1])[-1]
    np.testing.assert_allclose(pose_matrix(pose_vector(pose)), pose, atol=1e-6)


def test_observations_of_every_mode_have_a_newest_image():
    chunk = np.arange(24 * 4 * 4 * 3, dtype=np.uint8).reshape(24, 4, 4, 3)
    for observation in (chunk, chunk[-1], {"image": chunk[-1]}):
        assert (newest_image(observation) == chunk[-1]).all()


@pytest.mark.parametrize(
    "observation, cause", [(np.zeros((4, 4, 3)), "pictures alone"), ({"image": 0, "pose": 1}, "image, pose")]
)
def test_what_an_agent_misses_is_named(observation, cause):
    with pytest.raises(ValueError, match=f"{cause}; wanted goal_pose or waypoints"):
        entry(observation, "goal_pose", "waypoints")


def test_steer_holds_the_twist():
    env = rooms(action_mode="per_latent").unwrapped
    np.testing.assert_array_equal(steer([[1, 2, 3, 4, 5, 6]], env), [[*range(1, 7)] * 3])


@pytest.mark.parametrize(
    "make, cause",
    [
        (lambda: OrbitAgent(0), "radius_m=0"),
        (lambda: LookAroundAgent(2), "speed=2"),
        (lambda: LawnmowerAgent(0), "length=0"),
        (lambda: AgentConfig(agent="ppo").make(rooms().unwrapped, EnvConfig()), "wanted --policy FILE"),
        (lambda: EnvConfig(env="CartPole-v1").make(), "SanaWM-Goal-v0"),
        (lambda: EnvConfig(chunks=0).make(), "chunks 0"),
        (lambda: EnvConfig(image_size=16).make(), "image_size=16 for SanaWM-Goal-v0"),
    ],
)
def test_bad_figures_are_refused(make, cause):
    with pytest.raises(ValueError, match=cause):
        make()
