import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import sana_wm_env  # noqa: F401  # registers the ids
from sana_wm_env.actions import (
    PIECES,
    Limits,
    action_path,
    action_space,
    actions_from_path,
    check_whole_chunks,
    twist_to_action,
)
from sana_wm_env.camera import compose, path_twist, twist, twist_path

LIMITS = Limits(0.6, 0.3)
SCALE = np.repeat(LIMITS, 3)
MODES = list(PIECES)
SIZES = {"chunk": 6, "per_latent": 18, "per_frame": 144}
units = st.floats(-1, 1, allow_subnormal=False, width=32)


def actions(mode, *batch):
    return arrays(np.float32, (*batch, SIZES[mode]), elements=units)


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


# What an action means


def test_spaces():
    for mode, size in SIZES.items():
        space = action_space(mode)
        assert space.shape == (size,) and space.dtype == np.float32
        assert (space.low == -1).all() and (space.high == 1).all()


def test_chunk_is_one_constant_twist():
    action = np.array([1, -0.5, 0, 0, 0.5, -1])
    np.testing.assert_array_equal(
        action_path(action, "chunk", LIMITS), twist_path([0.6, -0.3, 0, 0, 0.15, -0.3])
    )


def test_pieces_follow_each_other_in_the_frame_of_the_camera():
    """Forward for 8 frames, a quarter turn to the right, forward again: that goes to the right of where it
    began.
    """
    limits = Limits(0.9, 3 * np.pi / 2)  # a piece gets a third: 0.3 m, a quarter turn
    path = action_path([0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0], "per_latent", limits)
    np.testing.assert_allclose(path[3, :3, 3], [0, 0, 0.15], atol=1e-12)
    np.testing.assert_allclose(
        path[[7, 15, 23], :3, 3], [[0, 0, 0.3], [0, 0, 0.3], [0.3, 0, 0.3]], atol=1e-12
    )
    np.testing.assert_allclose(path[15, :3, :3] @ [0, 0, 1], [1, 0, 0], atol=1e-12)


def test_each_frame_has_its_own_twist():
    action = np.random.default_rng(0).uniform(-1, 1, (24, 6))
    path, pose = action_path(action.ravel(), "per_frame", LIMITS), np.eye(4)
    for frame in range(24):
        pose = pose @ twist_path(action[frame] * SCALE / 24, 1)[0]
        np.testing.assert_allclose(path[frame], pose, atol=1e-12)


@settings(max_examples=30)
@given(actions("chunk"))
def test_all_modes_have_the_same_speed(action):
    whole = action_path(action, "chunk", LIMITS)
    for mode, pieces in PIECES.items():
        np.testing.assert_allclose(action_path(np.tile(action, pieces), mode, LIMITS), whole, atol=1e-12)


# Laws


@settings(max_examples=30)
@given(st.data())
def test_batched_equals_single_bit_by_bit(data):
    mode = data.draw(st.sampled_from(MODES))
    batch = data.draw(actions(mode, data.draw(st.integers(1, 9))))
    paths = action_path(batch, mode, LIMITS)
    assert paths.shape == (len(batch), 24, 4, 4)
    for row, path in zip(batch, paths, strict=True):
        np.testing.assert_array_equal(action_path(row, mode, LIMITS), path)
    np.testing.assert_array_equal(action_path(batch[None], mode, LIMITS, batch=(1, len(batch))), paths[None])


@settings(max_examples=30)
@given(st.data())
def test_zeros_leave_the_pose_exactly(data):
    mode = data.draw(st.sampled_from(MODES))
    assert (action_path(np.zeros(SIZES[mode]), mode, LIMITS) == np.eye(4)).all()
    pieces = PIECES[mode]
    action = data.draw(actions(mode)).reshape(pieces, 6)
    still = data.draw(st.integers(0, pieces - 1))
    action[still:] = 0
    path = action_path(action.ravel(), mode, LIMITS)
    before = path[still * 24 // pieces - 1] if still else np.eye(4)
    assert (path[still * 24 // pieces :] == before).all()


@settings(max_examples=30)
@given(st.data())
def test_the_way_back(data):
    """The negated pieces in the opposite order return."""
    mode = data.draw(st.sampled_from(MODES))
    action = data.draw(actions(mode))
    back = -action.reshape(-1, 6)[::-1].ravel()
    there = action_path(action, mode, LIMITS)[-1]
    np.testing.assert_allclose(compose(there, action_path(back, mode, LIMITS)[-1]), np.eye(4), atol=1e-6)


def test_rotation_stays_orthonormal_over_a_thousand_chunks_of_frames():
    rng, c2w = np.random.default_rng(0), np.eye(4)
    for _ in range(0, 1000, 50):
        for path in action_path(rng.uniform(-1, 1, (50, 144)), "per_frame", LIMITS):
            c2w = compose(c2w, path)[-1]
    np.testing.assert_allclose(c2w[:3, :3].T @ c2w[:3, :3], np.eye(3), atol=1e-12)


# In an environment


@pytest.mark.parametrize("env_id", ["SanaWM-v0", "SanaWM-Rooms-v0"])
def test_an_environment_moves_as_its_mode_says(env_id):
    env = gym.make(env_id, action_mode="per_latent")
    assert env.action_space == action_space("per_latent")
    env.reset(seed=7)
    assert (env.step(np.zeros(18, np.float32))[4]["c2w"] == np.eye(4)).all()
    with pytest.raises(ValueError, match=r"shape \(6,\); wanted 18 numbers .*'per_latent'"):
        env.step(np.zeros(6, np.float32))
    turn = np.float32(
        [0, 0, 0, 0, 1, 0] + [0, 0, 0, 0, -1, 0] * 2
    )  # in the exact rooms no wall can stop a turn
    np.testing.assert_allclose(
        env.step(turn)[4]["c2w"], action_path(turn, "per_latent", env.unwrapped.limits), atol=1e-12
    )


def test_the_mode_is_part_of_the_spec(mode):
    env = gym.make("SanaWM-Rooms-v0", action_mode=mode)
    for again in (gym.make(EnvSpec.from_json(env.spec.to_json())), pickle.loads(pickle.dumps(env.unwrapped))):
        assert again.action_space == action_space(mode)
    with pytest.raises(ValueError, match="got action_mode='frames'"):
        gym.make("SanaWM-Rooms-v0", action_mode="frames")


# Refusals


def test_every_sample_is_legal(mode):
    space = action_space(mode)
    space.seed(0)
    for _ in range(20):
        action_path(space.sample(), mode, LIMITS, batch=())
    action_path(np.full(SIZES[mode], np.float32(1) + np.float32(1e-7)), mode, LIMITS)


def test_an_action_is_read_not_written(mode):
    action = np.ones(SIZES[mode])
    action_path(action, mode, LIMITS)
    assert (action == 1).all()


def spoiled(mode, value):
    action = np.zeros(SIZES[mode])
    action[2] = value
    return action


@pytest.mark.parametrize(
    "make, cause",
    [
        (lambda mode: spoiled(mode, np.nan), r"NaN or infinity at \[2\]: nan"),
        (lambda mode: spoiled(mode, -np.inf), r"NaN or infinity at \[2\]: -inf"),
        (lambda mode: spoiled(mode, 1.5), r"out of range at \[2\]: 1.5.*ClipAction"),
        (lambda mode: np.zeros(SIZES[mode] + 1), r"shape \(\d+,\)"),
        (lambda mode: np.zeros((1, SIZES[mode])), r"shape \(1, \d+\)"),
        (lambda mode: 0.0, r"shape \(\)"),
        (lambda mode: "forward", "type str"),
        (lambda mode: None, "type NoneType|shape"),
    ],
    ids=["nan", "infinity", "range", "length", "axes", "scalar", "text", "none"],
)
def test_bad_actions_are_refused_with_the_layout(mode, make, cause):
    with pytest.raises(
        ValueError,
        match=f"{cause}.*wanted {SIZES[mode]} numbers.*{mode}|wanted {SIZES[mode]} "
        f"numbers.*{mode}.*ClipAction",
    ):
        action_path(make(mode), mode, LIMITS, batch=())


def test_a_bad_row_is_named():
    batch = np.zeros((4, 18))
    batch[3, 7] = 2
    with pytest.raises(
        ValueError, match=r"at \[3, 7\]: 2\.0; wanted 4 x 18 numbers.*3 twists in one row.*8 frames"
    ):
        action_path(batch, "per_latent", LIMITS, batch=(4,))
    with pytest.raises(ValueError, match=r"shape \(3, 18\); wanted 4 x 18"):
        action_path(batch[:3], "per_latent", LIMITS, batch=(4,))


def test_unknown_mode():
    for call in (lambda: action_space("per_second"), lambda: action_path(np.zeros(6), "per_second", LIMITS)):
        with pytest.raises(
            ValueError, match="got action_mode='per_second'; wanted one of chunk, per_latent, per_frame"
        ):
            call()


# The other way: motions to actions


@settings(max_examples=30)
@given(actions("chunk"))
def test_a_twist_and_its_action(action):
    driven = twist_to_action(action * SCALE, LIMITS)
    assert driven.dtype == np.float32 and action_space().contains(driven)
    np.testing.assert_allclose(driven, action, atol=1e-6)
    np.testing.assert_allclose(path_twist(action_path(action, "chunk", LIMITS)), action * SCALE, atol=1e-9)


def test_velocities_to_an_action():
    action = twist_to_action(twist(v=(0, 0, 0.2), w=(0, -0.1, 0)), LIMITS)
    np.testing.assert_allclose(action, [0, 0, 0.5, 0, -0.5, 0], atol=1e-7)
    with pytest.raises(
        ValueError,
        match=r"up to 0.75 m and 0.15 rad per chunk.*at most 0.6 m and 0.3 rad.*max_translation_m=0.75",
    ):
        twist_to_action(twist(v=(0, 0, 0.5), w=(0, -0.1, 0)), LIMITS)
    with pytest.raises(ValueError, match="NaN"):
        twist_to_action(np.full(6, np.nan), LIMITS)


@settings(max_examples=30)
@given(actions("per_frame", 2), arrays(np.float64, 6, elements=st.floats(-3, 3)))
def test_any_path_can_be_driven(driven, world):
    """Wherever its world has its origin."""
    first = action_path(driven[0], "per_frame", LIMITS)
    path = np.concatenate(
        [np.eye(4)[None], first, compose(first[-1], action_path(driven[1], "per_frame", LIMITS))]
    )
    found = actions_from_path(compose(twist_path(world, 1)[0], path), LIMITS)
    assert found.shape == (2, 144) and action_space("per_frame").contains(found[0])
    np.testing.assert_allclose(found, driven, atol=1e-5)
    pose = np.eye(4)
    for chunk, action in enumerate(found):
        poses = compose(pose, action_path(action, "per_frame", LIMITS))
        np.testing.assert_allclose(poses, path[1 + 24 * chunk : 25 + 24 * chunk], atol=1e-6)
        pose = poses[-1]


def test_a_path_that_cannot_be_driven_is_refused_with_figures():
    path = np.concatenate([np.eye(4)[None], twist_path([0, 0, 1.2, 0, 0.5, 0])])
    with pytest.raises(
        ValueError, match=r"up to 1.2 m and 0.5 rad per chunk.*max_translation_m=1.2, max_rotation_rad=0.5"
    ):
        actions_from_path(path, LIMITS)
    actions_from_path(path, (1.2, 0.5))  # what the message says suffices
    with pytest.raises(ValueError, match=r"got 24 poses, the first of which .* got 23 frames; .* 24 and 48"):
        actions_from_path(path[1:], LIMITS)
    with pytest.raises(ValueError, match="transposed"):
        actions_from_path(path.transpose(0, 2, 1), LIMITS)


def test_a_path_of_float32_can_be_driven():
    path = np.concatenate([np.eye(4)[None], twist_path([0, 0, 0.3, 0, 0.15, 0])]).astype(np.float32)
    np.testing.assert_allclose(actions_from_path(path, LIMITS), [[0, 0, 0.5, 0, 0.5, 0] * 24], atol=1e-3)


def test_whole_chunks():
    assert check_whole_chunks(96) == 4
    for frames, lower, upper in ((50, 48, 72), (10, 24, 48), (0, 24, 48)):
        with pytest.raises(ValueError, match=f"got {frames} .* {lower} and {upper}"):
            check_whole_chunks(frames)
