"""Tasks on both worlds, and what an agent sees of them."""

import pickle
import warnings
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from sana_wm_env.camera import step_twists, twist_path
from sana_wm_env.observations import pose_vector
from sana_wm_env.rooms.room import held_out_room, open_room, stands_clear
from sana_wm_env.tasks import FollowTask, Goal, GoalTask, Moment, Opening, Verdict, pose_gap
from sana_wm_env.walks import draw_walk, walk_path

FORWARD, STILL = np.array([0, 0, 0.5, 0, 0.5, 0], np.float32), np.zeros(6, np.float32)
WORLDS = ("SanaWM-v0", "SanaWM-Rooms-v0")
TASK_IDS = ("SanaWM-Goal-v0", "SanaWM-Follow-v0", "SanaWM-RoomsGoal-v0", "SanaWM-RoomsFollow-v0")
LIMITS = np.repeat([0.6, 0.3], 3)


@pytest.fixture(params=WORLDS)
def world(request):
    return request.param


def make(name: str, **arguments) -> gym.Env:
    return gym.make(name, disable_env_checker=True, **arguments)


def goal_of(env: gym.Env) -> Goal:
    return env.unwrapped.episode.goal  # what the agent does not see


def opening(
    seed: int, is_clear: Callable | None = None, metres: float = 0.6, radians: float = 0.3
) -> Opening:
    """An opening without a picture; by default in the room that `seed` draws."""
    room = open_room(held_out_room(seed))
    blank = np.zeros((64, 64, 3), np.uint8)
    return Opening(
        blank,
        np.array([40.0, 40, 32, 32]),
        np.random.default_rng(seed),
        metres,
        radians,
        look=lambda path: np.zeros((len(path), 64, 64, 3), np.uint8),
        is_clear=is_clear or (lambda c2w: stands_clear(room, c2w)),
    )


# Conformity


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if "Rooms" in name else pytest.mark.slow) for name in TASK_IDS]
)
def test_gymnasium_checker_is_silent(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(
            make(name, render_mode="rgb_array").unwrapped, skip_render_check=True
        )  # tests/test_env.py checks those


@pytest.mark.parametrize("name", [*TASK_IDS, *WORLDS])
def test_stable_baselines_checker_is_silent(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env_sb3(make(name, obs_mode="dict").unwrapped)


@pytest.mark.parametrize("name", TASK_IDS)
def test_spec_survives_json_and_pickle(name):
    env = make(name)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.task == env.unwrapped.task == pickle.loads(pickle.dumps(env.unwrapped)).task
    assert again.observation_space == env.observation_space


def test_a_configured_task_survives_pickle():
    env = make("SanaWM-Rooms-v0", task=GoalTask(tolerance_m=0.3, bonus=5.0)).unwrapped
    assert pickle.loads(pickle.dumps(env)).task == GoalTask(tolerance_m=0.3, bonus=5.0)


def test_multi_input_policy_learns_from_it():
    env = make("SanaWM-RoomsGoal-v0")
    model = PPO("MultiInputPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu")
    assert model.learn(8).num_timesteps == 8 and set(model.observation_space) >= {
        "image",
        "goal_image",
        "goal_pose",
    }


@pytest.mark.parametrize(
    "arguments, cause",
    [
        ({"task": "chase"}, "got task='chase'; wanted one of free, goal, follow"),
        ({"task": GoalTask}, "object of a class derived from"),
        ({"task": None}, "got task=None"),
        ({"task": "goal", "reward_fn": len}, "wanted one of the two"),
        ({"reward_fn": 3}, "function of a Moment"),
        ({"obs_mode": "video"}, "chunk, last, dict"),
    ],
)
def test_bad_arguments_are_refused(world, arguments, cause):
    with pytest.raises(ValueError, match=cause):
        make(world, **arguments)


@pytest.mark.parametrize(
    "task, figures",
    [(GoalTask, {"max_chunks": 0}), (GoalTask, {"tolerance_m": float("nan")}), (FollowTask, {"visible": 0})],
)
def test_bad_figures_are_refused(task, figures):
    with pytest.raises(ValueError, match=f"got {next(iter(figures))}=.*wanted at least"):
        task(**figures)


# What the tasks draw


@pytest.mark.parametrize("task", ["goal", "follow"])
def test_both_worlds_set_the_same_task(task):
    imagined, exact = (make(name, task=task, obs_mode="dict") for name in WORLDS)
    for seed in (7, None):
        (seen, info), (seen_exact, info_exact) = imagined.reset(seed=seed), exact.reset(seed=seed)
        assert (seen["image"] == seen_exact["image"]).all() and info.keys() == info_exact.keys()
        for key in ("goal_c2w", "twists", "waypoints"):
            if key in goal_of(imagined):
                np.testing.assert_array_equal(goal_of(imagined)[key], goal_of(exact)[key])


def test_seeds_decide_and_the_task_does_not_change_the_rooms():
    goals, frames = [], []
    for task, seed in (("goal", 7), ("goal", 7), ("goal", 8), ("free", 7)):
        env = make("SanaWM-Rooms-v0", task=task)
        frames.append([env.reset(seed=seed)[0][0], env.reset()[0][0]])
        goals.append(goal_of(env).get("goal_c2w"))
    assert (goals[0] == goals[1]).all() and (goals[0] != goals[2]).any()
    assert (np.array(frames[0]) == frames[1]).all() and (np.array(frames[0]) == frames[3]).all()


@pytest.mark.parametrize("seed", range(12))
def test_hidden_paths_are_clear_within_the_limits_and_lead_away(seed):
    begins = opening(seed)
    for task in (GoalTask(), FollowTask()):
        goal = task.begin(begins)
        again = task.begin(begins._replace(rng=np.random.default_rng(seed + 1)))
        assert {k: (v.shape, v.dtype) for k, v in goal.items()} == {
            k: (v.shape, v.dtype) for k, v in again.items()
        }
    goal = GoalTask().begin(begins)
    path = walk_path(goal["twists"])
    assert (np.abs(goal["twists"]) <= LIMITS).all() and begins.is_clear(path).all()
    np.testing.assert_allclose(path[-1], goal["goal_c2w"], atol=1e-12)
    distance_m, angle_rad = pose_gap(np.eye(4), goal["goal_c2w"])
    assert distance_m > 0.15 or np.degrees(angle_rad) > 5
    assert begins.is_clear(FollowTask().begin(begins)["waypoints"]).all()


def test_a_walk_that_is_shut_in_turns_on_the_spot():
    twists = draw_walk(opening(0, is_clear=lambda c2w: (np.abs(c2w[:, :3, 3]) < 1e-9).all(1)), 12)
    assert (twists[:, [0, 1, 2, 3, 5]] == 0).all() and (twists[:, 4] != 0).all()


def test_limits_that_lead_nowhere_are_refused():
    env = make("SanaWM-RoomsGoal-v0", max_translation_m=0.01, max_rotation_rad=0.01)
    with pytest.raises(ValueError, match=r"max_translation_m=0\.01.*GoalTask\(tolerance_m"):
        env.reset(seed=0)
    make("SanaWM-Rooms-v0", task=GoalTask(tolerance_m=1e-4), max_translation_m=0.01).reset(seed=0)


# The goal task


def test_the_hidden_path_leads_to_the_goal_and_ends_the_episode(world):
    env = make(world, task="goal", obs_mode="dict")
    _, start = env.reset(seed=3)
    twists, rewards, terminated = goal_of(env)["twists"], [], False
    assert not start["is_success"]
    for twist in twists:
        obs, reward, terminated, truncated, info = env.step(np.float32(twist / LIMITS))
        rewards.append(reward)
        if terminated:
            break
    assert info["is_success"] is True and terminated and not truncated and obs in env.observation_space
    assert type(reward) is float and len(rewards) <= 3
    gained = start["distance_m"] + start["angle_rad"] - info["distance_m"] - info["angle_rad"]
    assert sum(rewards) == pytest.approx(gained + 1)
    if info["distance_m"] < 1e-6:  # arrived by the whole path, not by a shorter one within the tolerance
        difference = np.abs(obs["image"].astype(int) - obs["goal_image"]).max()
        assert difference <= 1  # the action is float32, the path float64


def test_a_still_camera_gains_nothing(world):
    env = make(world, task="goal")
    _, info = env.reset(seed=3)
    _, reward, terminated, truncated, after = env.step(STILL)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert (info["distance_m"], info["angle_rad"]) == (after["distance_m"], after["angle_rad"])


def test_moving_away_costs_what_coming_back_gains():
    env = make("SanaWM-Rooms-v0", task=GoalTask(tolerance_m=1e-9))
    env.reset(seed=3)
    away, back = (env.step(action)[1] for action in (FORWARD, -FORWARD))
    assert away == pytest.approx(-back, abs=1e-6) and away != 0


def test_what_the_agent_sees_of_the_goal():
    env = make("SanaWM-RoomsGoal-v0")
    obs, info = env.reset(seed=3)
    np.testing.assert_allclose(
        obs["goal_pose"], pose_vector(info["goal_c2w"]), atol=1e-6
    )  # the camera is where it began
    obs, *_, info = env.step(FORWARD)
    np.testing.assert_allclose(obs["pose"], pose_vector(info["c2w"][-1]))
    seen = np.linalg.inv(info["c2w"][-1]) @ info["goal_c2w"]
    np.testing.assert_allclose(obs["goal_pose"], pose_vector(seen), atol=1e-6)
    np.testing.assert_allclose(obs["intrinsics"], [0.65, 0.65, 0.5, 0.5])
    assert (obs["goal_image"] == goal_of(env)["goal_image"]).all()


def test_copies_in_a_vector_environment_set_what_each_sets_alone():
    vector, single = gym.make_vec("SanaWM-RoomsGoal-v0", num_envs=2), make("SanaWM-RoomsGoal-v0")
    obs, infos = vector.reset(seed=[3, 4])
    actions = np.stack([FORWARD, -FORWARD])
    after, rewards, terminated, _, _ = vector.step(actions)
    for slot, seed in enumerate((3, 4)):
        alone, info = single.reset(seed=seed)
        assert (
            all((obs[key][slot] == alone[key]).all() for key in alone)
            and infos["distance_m"][slot] == info["distance_m"]
        )
        alone, reward, ended, _, _ = single.step(actions[slot])
        assert all((after[key][slot] == alone[key]).all() for key in alone)
        assert (rewards[slot], terminated[slot]) == (reward, ended)
    vector.close()


def test_nothing_returned_is_used_again():
    env = make("SanaWM-RoomsGoal-v0")
    obs, info = env.reset(seed=3)
    kept, place = obs["goal_image"].copy(), info["goal_c2w"].copy()
    for array in (*obs.values(), info["goal_c2w"]):
        array.fill(0)
    obs, *_, info = env.step(STILL)
    assert (obs["goal_image"] == kept).all() and (info["goal_c2w"] == place).all()


def test_a_users_own_picture():
    env = make("SanaWM-Goal-v0")
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    obs, info = env.reset(seed=0, options={"image": picture, "intrinsics": (42, 42, 32, 32)})
    assert (obs["image"] == picture).all() and (obs["goal_image"] != picture).any()
    assert not info["is_success"] and info["distance_m"] <= 3 * 0.6


def test_looking_along_the_hidden_path_does_not_move_the_episode(world):
    free, goal = make(world), make(world, task="goal")
    assert (free.reset(seed=5)[0] == goal.reset(seed=5)[0]).all()
    assert (free.step(FORWARD)[0] == goal.step(FORWARD)[0]).all()


def test_a_saved_session_keeps_its_goal():
    env = make("SanaWM-Goal-v0")
    env.reset(seed=6)
    env.step(FORWARD)
    state = env.unwrapped.save_state()
    wanted = env.step(FORWARD)
    env.reset(seed=7)
    obs, info = env.unwrapped.restore_state(state)
    got = env.step(FORWARD)
    assert (obs["goal_image"] == wanted[0]["goal_image"]).all() and (
        info["goal_c2w"] == wanted[4]["goal_c2w"]
    ).all()
    assert got[1] == wanted[1] != 0 and all((got[0][key] == wanted[0][key]).all() for key in obs)
    free = make("SanaWM-v0").unwrapped
    free.reset(seed=6)
    with pytest.raises(ValueError, match=r"keeps nothing, which does not fit this one .it needs 'goal_"):
        env.unwrapped.restore_state(free.save_state())
    assert env.step(STILL)[1] == 0.0  # and goes on


def test_imagined_rewards_are_those_of_the_steps():
    env = make("SanaWM-Goal-v0")
    env.reset(seed=6)
    walk = np.float32(goal_of(env)["twists"] / LIMITS)
    imagined = env.unwrapped.imagine(np.stack([walk, np.zeros_like(walk)]), decode="latents")
    steps = [env.step(action) for action in walk]
    assert imagined.rewards[0].tolist() == [step[1] for step in steps] and (imagined.rewards[1] == 0).all()
    assert imagined.terminated[0].tolist() == [False, False, True] and not imagined.terminated[1].any()


def test_slots_have_goals_of_their_own():
    vector, single = gym.make_vec("SanaWM-Goal-v0", num_envs=2), make("SanaWM-Goal-v0")
    obs, infos = vector.reset(seed=[3, 1])
    twists = []
    for slot, seed in enumerate((3, 1)):
        alone, info = single.reset(seed=seed)
        assert (obs["goal_pose"][slot] == alone["goal_pose"]).all() and (
            infos["goal_c2w"][slot] == info["goal_c2w"]
        ).all()
        twists.append(goal_of(single)["twists"][0])
    _, rewards, terminated, _, infos = vector.step(np.float32([twists[0] / LIMITS, STILL]))
    assert (
        terminated.tolist() == infos["is_success"].tolist() == [True, False]
        and rewards[0] > 1
        and rewards[1] == 0
    )
    vector.close()


# The follow task


def test_following_the_waypoints_costs_nothing():
    env = make("SanaWM-RoomsFollow-v0")
    obs, info = env.reset(seed=4)
    assert (info["deviation_m"], info["deviation_rad"]) == (0.0, 0.0) and obs["waypoints"].shape == (27,)
    np.testing.assert_allclose(obs["waypoints"][:9], pose_vector(goal_of(env)["waypoints"][0]), atol=1e-6)
    twists = draw_walk(
        opening(0)._replace(rng=np.random.default_rng(0)), 1
    )  # any, to show that leaving the path is noticed
    for twist in step_twists(np.stack([np.eye(4), *goal_of(env)["waypoints"][:6]])):
        obs, reward, terminated, _, info = env.step(np.float32(twist / LIMITS))
        assert reward == pytest.approx(0, abs=1e-5) and not terminated
    _, reward, _, _, info = env.step(np.float32(-twists[0] / LIMITS))
    assert reward == pytest.approx(-info["deviation_m"] - info["deviation_rad"]) and reward < -0.05


def test_the_last_waypoint_stays_the_target():
    task = FollowTask(chunks=2, visible=3)
    goal = task.begin(opening(1))
    last = goal["waypoints"][-1]
    frames = np.zeros((24, 64, 64, 3), np.uint8)
    moment = Moment(last, np.tile(last, (24, 1, 1)), frames, 9, STILL)
    assert task.judge(goal, moment) == Verdict(0.0)
    assert task.judge(goal, moment._replace(chunk_index=1)).reward < 0  # there too early
    np.testing.assert_allclose(
        task.observe(goal, last, 5)["waypoints"], np.tile(pose_vector(np.eye(4)), 3), atol=1e-6
    )


def test_pose_gap():
    pose = twist_path([0.3, 0, 0.4, 0, 0, 0])[-1]
    turned = pose @ twist_path([0, 0, 0, 0, 0.2, 0])[-1]
    np.testing.assert_allclose(pose_gap(np.eye(4), turned), (0.5, 0.2), atol=1e-12)
    assert pose_gap(turned, turned) == pytest.approx((0, 0), abs=1e-12)
