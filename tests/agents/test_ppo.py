"""Training a policy, going on with it, and playing it."""

import json

import numpy as np
import pytest
from stable_baselines3 import PPO

from sana_wm_env import cli
from sana_wm_env.agents.choose import EnvConfig
from sana_wm_env.agents.evaluate import play
from sana_wm_env.agents.policy.ppo import PPOAgent
from sana_wm_env.agents.policy.train_ppo import Returns, TrainConfig, make_envs, train
from sana_wm_env.agents.policy.view import View

TRUTH = EnvConfig(env="SanaWM-RoomsGoal-v0", chunks=3, image_size=16)


def config(out, **options):
    small = {"steps": 16, "envs": 2, "rollout": 4, "batch": 8, "epochs": 1, "snapshot_every": 8}
    return TrainConfig(**{"where": TRUTH, "out": out} | small | options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training of 16 chunks that then went on to 32."""
    out = tmp_path_factory.mktemp("ppo")
    train(config(out))
    first = PPO.load(out / "policy.zip").policy.state_dict()
    train(config(out, steps=32))
    return out, first


def test_training_goes_on_where_it_stopped(trained):
    out, first = trained
    model = PPO.load(out / "policy.zip")
    assert model.num_timesteps == 32
    assert any((first[name] != value).any() for name, value in model.policy.state_dict().items())
    assert [path.name for path in sorted(out.glob("policy-*"))] == [
        f"policy-{steps:07}.zip" for steps in (0, 8, 16, 24, 32)
    ]
    steps = [row[0] for row in Returns(out / "returns.csv").rows]
    assert steps == sorted(steps) and len(steps) >= 8 and steps[-1] <= 32
    assert json.loads((out / "config.json").read_text())["config"]["steps"] == 32


def test_a_finished_training_stays_and_another_is_refused(trained):
    out, _ = trained
    before = (out / "policy.zip").read_bytes()
    train(config(out, steps=32))
    assert (out / "policy.zip").stat().st_size == len(before) and PPO.load(
        out / "policy.zip"
    ).num_timesteps == 32
    with pytest.raises(ValueError, match=r"got epochs=2, .* begun with 1"):
        train(config(out, steps=32, epochs=2))


def test_returns_after_the_policy_are_forgotten(tmp_path):
    returns = Returns(tmp_path / "returns.csv")
    for steps in (3, 6, 9):
        returns.add(steps, steps / 2)
    returns.write()
    again = Returns(tmp_path / "returns.csv")
    again.cut(6)
    assert again.rows == [(3, 1.5), (6, 3.0)]


def test_a_policy_plays_what_it_says(trained):
    out, _ = trained
    agent, env = PPOAgent.load(out / "policy.zip"), TRUTH.make()
    observation, _ = env.reset(seed=0)
    action = agent.act(observation, env)
    assert (
        action in env.action_space
        and (action[[1, 3, 5]] == 0).all()
        and (action == agent.act(observation, env.unwrapped)).all()
    )
    mean, _ = agent.model.predict(View().see(observation), deterministic=True)
    np.testing.assert_array_equal(action[[0, 2, 4]], np.clip(mean, -1, 1))
    assert play(agent, env, 0)["chunks"] <= 3


def test_the_command_evaluates_a_policy(trained, capsys):
    out, _ = trained
    argv = [
        "agents",
        "evaluate",
        "--agent",
        "ppo",
        "--policy",
        str(out / "policy.zip"),
        "--env",
        TRUTH.env,
        "--chunks",
        "2",
        "--image-size",
        "16",
    ]
    assert cli.main([*argv, "--episodes", "2"]) == 0
    assert "ppo in SanaWM-RoomsGoal-v0" in capsys.readouterr().out


def test_foreign_policies_are_refused(tmp_path):
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=2, batch_size=2)
    model.save(tmp_path / "other.zip")
    with pytest.raises(ValueError, match="does not say what it sees"):
        PPOAgent.load(tmp_path / "other.zip")


def test_what_a_policy_sees():
    envs = make_envs(config(None))
    seen = envs.reset()
    assert seen.shape == (2, 2 * 3 * 64 + 9) and envs.action_space.shape == (3,)
    for _ in range(3):
        last, _, dones, infos = envs.step(np.zeros((2, 3), np.float32))
        assert all(row in envs.observation_space for row in last)
    assert dones.all()
    for info in infos:
        assert info["terminal_observation"].shape == seen[0].shape and info["TimeLimit.truncated"]
    envs.close()


def test_thumbnails_are_averages_and_poses_stay():
    view = View(side=2, entries=("image", "goal_pose"))
    image = np.zeros((3, 4, 4, 3), np.uint8)
    image[:, :2, :2, 0] = 255
    pose = np.arange(27, dtype=np.float32).reshape(3, 9)
    seen = view.see({"image": image, "goal_pose": pose, "pose": pose, "goal_image": image})
    np.testing.assert_array_equal(seen[:, :9], pose)
    np.testing.assert_array_equal(
        seen[:, 9:].reshape(3, 3, 2, 2)[:, 0], np.tile([[1, -1], [-1, -1]], (3, 1, 1))
    )
    assert (seen[:, 13:] == -1).all()
    np.testing.assert_array_equal(view.see({"image": image[0], "goal_pose": pose[0]}), seen[0])
    with pytest.raises(ValueError, match="got a view of 'smell'"):
        View(entries=("smell",)).see({"image": image})


def test_imagined_worlds_share_their_weights(tmp_path):
    imagined = EnvConfig(env="SanaWM-v0", task="redness", chunks=2)
    envs = make_envs(config(tmp_path, where=imagined))
    seen = envs.reset()
    assert seen.shape == (2, 3 * 64)
    slots = envs.unwrapped.env.unwrapped.slots
    assert slots[0].model is slots[1].model
    envs.close()
