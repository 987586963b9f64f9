import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import RigidTransform, Rotation

from sana_wm_env.camera import (
    CHUNK_FRAMES,
    check_intrinsics,
    check_poses,
    compose,
    intrinsics_from_fov,
    intrinsics_matrix,
    relative_to_first,
    twist_path,
)

numbers = st.floats(-1.5, 1.5, allow_subnormal=False)
twists = arrays(np.float64, 6, elements=numbers)


def pose(twist):
    """Any pose can be reached by a twist."""
    return twist_path(twist, 1)[0]


# What a twist means


@pytest.mark.parametrize(
    "twist, direction",
    [([1, 0, 0, 0, 0, 0], [1, 0, 0]), ([0, 1, 0, 0, 0, 0], [0, 1, 0]), ([0, 0, 1, 0, 0, 0], [0, 0, 1])],
    ids=["right", "down", "forward"],
)
def test_translation_goes_along_the_axes_of_the_camera(twist, direction):
    start = pose([1, 2, 3, 0.3, -0.4, 0.5])
    moved = compose(start, twist_path(twist)[-1])
    np.testing.assert_allclose(moved[:3, 3] - start[:3, 3], start[:3, :3] @ direction, atol=1e-12)
    np.testing.assert_allclose(moved[:3, :3], start[:3, :3], atol=1e-12)


@pytest.mark.parametrize(
    "axis, looked_at, becomes",
    [(3, [0, 0, 1], [0, -1, 0]), (4, [0, 0, 1], [1, 0, 0]), (5, [1, 0, 0], [0, 1, 0])],
    ids=["looks up", "turns right", "rolls clockwise"],
)
def test_rotation_signs(axis, looked_at, becomes):
    """A quarter turn takes the axis of the camera to the stated direction of the world (x right, y down, z forward)."""
    twist = np.zeros(6)
    twist[axis] = np.pi / 2
    np.testing.assert_allclose(twist_path(twist)[-1, :3, :3] @ looked_at, becomes, atol=1e-12)


def test_forward_and_yaw_drive_a_circle():
    forward, yaw = 0.6, 0.3
    end = twist_path([0, 0, forward, 0, yaw, 0])[-1]
    radius = forward / yaw
    np.testing.assert_allclose(end[:3, 3], [radius * (1 - np.cos(yaw)), 0, radius * np.sin(yaw)], atol=1e-12)
    np.testing.assert_allclose(end[:3, :3], Rotation.from_euler("y", yaw).as_matrix(), atol=1e-12)


# Laws


@given(twists)
def test_zero_twist_leaves_the_pose_exactly(twist):
    start = pose(twist)
    after = start
    for _ in range(3):
        path = compose(after, twist_path(np.zeros(6)))
        assert (path == start).all()
        after = path[-1]


@given(twists, twists)
def test_twist_then_inverse_returns(start, twist):
    back = compose(compose(pose(start), twist_path(twist)[-1]), twist_path(-twist)[-1])
    np.testing.assert_allclose(back, pose(start), atol=1e-6)


@given(twists)
def test_two_halves_are_the_whole(twist):
    half = twist_path(twist / 2, CHUNK_FRAMES // 2)
    np.testing.assert_allclose(np.concatenate([half, compose(half[-1], half)]), twist_path(twist), atol=1e-6)


@given(twists)
def test_velocity_is_constant_in_the_body_frame(twist):
    path = np.concatenate([np.eye(4)[None], twist_path(twist)])
    steps = RigidTransform.from_matrix(path[:-1]).inv() * RigidTransform.from_matrix(path[1:])
    np.testing.assert_allclose(steps.as_exp_coords(), np.tile(np.roll(twist, 3) / CHUNK_FRAMES, (CHUNK_FRAMES, 1)), atol=1e-9)


def test_rotation_stays_orthonormal_over_a_thousand_chunks():
    c2w, rng = np.eye(4), np.random.default_rng(0)
    for _ in range(1000):
        c2w = compose(c2w, twist_path(rng.uniform(-0.6, 0.6, 6)))[-1]
    np.testing.assert_allclose(c2w[:3, :3].T @ c2w[:3, :3], np.eye(3), atol=1e-12)
    assert c2w[3].tolist() == [0, 0, 0, 1]


def test_batches_of_twists():
    twist = np.random.default_rng(0).uniform(-1, 1, (2, 3, 6))
    assert twist_path(twist).shape == (2, 3, CHUNK_FRAMES, 4, 4)
    np.testing.assert_array_equal(twist_path(twist)[1, 2], twist_path(twist[1, 2]))
    starts = twist_path(twist)[..., -1:, :, :]
    np.testing.assert_array_equal(compose(starts, twist_path(twist))[1, 2], compose(starts[1, 2, 0], twist_path(twist[1, 2])))


# Poses from outside


def test_good_poses_pass_unchanged_and_fresh():
    path = twist_path([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])
    checked = check_poses(path, CHUNK_FRAMES)
    assert (checked == path).all() and not np.shares_memory(checked, path)
    check_poses(path.astype(np.float32))


def spoil(change):
    path = twist_path([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])
    change(path)
    return path


def mirror(path):
    path[5] = path[5] @ np.diag([1, -1, 1, 1])


@pytest.mark.parametrize(
    "poses, length, cause",
    [
        (twist_path(np.ones(6)).transpose(0, 2, 1), None, "transposed"),
        (spoil(mirror), None, r"\[5\].*mirrored"),
        (spoil(lambda p: p.__setitem__((3, 0, 0), np.nan)), None, r"NaN.*\(3, 0, 0\)"),
        (spoil(lambda p: p[2, :3, :3].__imul__(2)), None, "scaled by 2"),
        (spoil(lambda p: p[2, 0].__imul__(1.1)), None, "not orthonormal"),
        (spoil(lambda p: p[2].__setitem__(3, [0, 0, 1, 0])), None, "last row"),
        (twist_path(np.ones(6)), 48, "got 24 poses; wanted 48"),
        (twist_path(np.ones(6))[:, :3], None, "append the row 0 0 0 1"),
        (np.eye(4), None, "wanted .F, 4, 4."),
        ([["a"]], None, "not an array of numbers"),
    ],
    ids=["transposed", "mirrored", "nan", "scaled", "sheared", "projection", "length", "3x4", "single", "text"],
)
def test_bad_poses_are_refused_with_the_likely_cause(poses, length, cause):
    with pytest.raises(ValueError, match=f"(?s){cause}"):
        check_poses(poses, length)


@given(twists, twists)
def test_relative_to_first(world, twist):
    path = twist_path(twist)
    moved = relative_to_first(compose(pose(world), path))
    assert (moved[0] == np.eye(4)).all()
    np.testing.assert_allclose(compose(path[0], moved), path, atol=1e-9)


# Intrinsics


def test_intrinsics_in_both_forms():
    flat = check_intrinsics((50, 60, 31, 33), (64, 64))
    assert flat.dtype == np.float64 and flat.tolist() == [50, 60, 31, 33]
    assert (check_intrinsics(intrinsics_matrix(flat), (64, 64)) == flat).all()


@pytest.mark.parametrize(
    "intrinsics, cause",
    [
        ((50, -50, 32, 32), "mirror"),
        ((0, 50, 32, 32), "positive"),
        ((0.8, 0.8, 0.5, 0.5), "normalised"),
        ((50, 50, 80, 32), "principal point"),
        ((50, 50, np.nan, 32), "NaN"),
        ((50, 50, 32), r"shape \(3,\)"),
        ([[50, 2, 32], [0, 50, 32], [0, 0, 1]], "skew"),
        ([[50, 0, 0], [0, 50, 0], [32, 32, 1]], "transposed"),
        ("wide", "not an array of numbers"),
    ],
)
def test_bad_intrinsics_are_refused(intrinsics, cause):
    with pytest.raises(ValueError, match=cause):
        check_intrinsics(intrinsics, (64, 64))


def test_intrinsics_from_a_field_of_view():
    np.testing.assert_allclose(intrinsics_from_fov((60, 100), 90), [50, 50, 50, 30])
    with pytest.raises(ValueError, match="field of view"):
        intrinsics_from_fov((60, 100), 180)
