import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sana_wm_env.camera import (
    CHUNK_FRAMES,
    check_intrinsics,
    check_poses,
    compose,
    from_opengl,
    from_unreal_cm,
    from_w2c,
    intrinsics_from_fov,
    intrinsics_matrix,
    path_twist,
    relative_to_first,
    step_twists,
    to_opengl,
    to_unreal_cm,
    to_w2c,
    twist,
    twist_path,
)


def pose(coordinates):
    """Any pose can be reached by a twist."""
    return twist_path(coordinates, 1)[0]


# What a twist means


@pytest.mark.parametrize(
    "moves, direction",
    [([1, 0, 0, 0, 0, 0], [1, 0, 0]), ([0, 1, 0, 0, 0, 0], [0, 1, 0]), ([0, 0, 1, 0, 0, 0], [0, 0, 1])],
    ids=["right", "down", "forward"],
)
def test_translation_goes_along_the_axes_of_the_camera(moves, direction):
    start = pose([1, 2, 3, 0.3, -0.4, 0.5])
    moved = compose(start, twist_path(moves)[-1])
    np.testing.assert_allclose(moved[:3, 3] - start[:3, 3], start[:3, :3] @ direction, atol=1e-12)
    np.testing.assert_allclose(moved[:3, :3], start[:3, :3], atol=1e-12)


@pytest.mark.parametrize(
    "axis, looked_at, becomes",
    [(3, [0, 0, 1], [0, -1, 0]), (4, [0, 0, 1], [1, 0, 0]), (5, [1, 0, 0], [0, 1, 0])],
    ids=["looks up", "turns right", "rolls clockwise"],
)
def test_rotation_signs(axis, looked_at, becomes):
    """A quarter turn takes the axis of the camera to the stated direction of the world (x right, y down, z
    forward).
    """
    turn = np.zeros(6)
    turn[axis] = np.pi / 2
    np.testing.assert_allclose(twist_path(turn)[-1, :3, :3] @ looked_at, becomes, atol=1e-12)


def test_forward_and_yaw_drive_a_circle():
    forward, yaw = 0.6, 0.3
    end = twist_path([0, 0, forward, 0, yaw, 0])[-1]
    radius = forward / yaw
    np.testing.assert_allclose(end[:3, 3], [radius * (1 - np.cos(yaw)), 0, radius * np.sin(yaw)], atol=1e-12)
    np.testing.assert_allclose(end[:3, :3], Rotation.from_euler("y", yaw).as_matrix(), atol=1e-12)


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
        ([["a"]], None, "wanted an array of real numbers"),
    ],
    ids=[
        "transposed",
        "mirrored",
        "nan",
        "scaled",
        "sheared",
        "projection",
        "length",
        "3x4",
        "single",
        "text",
    ],
)
def test_bad_poses_are_refused_with_the_likely_cause(poses, length, cause):
    with pytest.raises(ValueError, match=f"(?s){cause}"):
        check_poses(poses, length)


def unreal(forward, right, up):
    """A pose in Unreal's axes that looks along the world's forward, (1, 4, 4), centimetres."""
    pose = np.eye(4)
    pose[:3, 3] = forward, right, up
    return pose[None]


def test_converters_have_known_answers():
    looks_along_x = np.eye(4)[None].copy()
    looks_along_x[0, :3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]  # OpenCV: columns are right, down, forward
    looks_along_x[0, :3, 3] = [1, 2, 3]
    np.testing.assert_allclose(to_w2c(looks_along_x)[0] @ [1, 2, 3, 1], [0, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(to_w2c(looks_along_x)[0] @ [6, 2, 3, 1], [0, 0, 5, 1], atol=1e-12)  # 5 m ahead
    opengl = to_opengl(looks_along_x)[0]
    np.testing.assert_allclose(opengl[:3, 2], [-1, 0, 0], atol=1e-12)  # +z points backward
    np.testing.assert_allclose(opengl[:3, 1], [0, -1, 0], atol=1e-12)  # +y points up
    np.testing.assert_allclose(from_unreal_cm(unreal(100, 20, 3))[0, :3, 3], [0.2, -0.03, 1])
    np.testing.assert_allclose(
        to_unreal_cm(from_unreal_cm(unreal(100, 20, 3))), unreal(100, 20, 3), atol=1e-12
    )


@pytest.mark.parametrize(
    "convert",
    [from_w2c, to_w2c, from_opengl, to_opengl, from_unreal_cm, to_unreal_cm, step_twists, relative_to_first],
)
def test_converters_refuse_what_is_no_pose(convert):
    path = twist_path([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="transposed"):
        convert(path.transpose(0, 2, 1))
    with pytest.raises(ValueError, match="mirrored"):
        convert(path @ np.diag([1, -1, 1, 1]))
    given = path.copy()
    convert(given)
    assert (given == path).all()


# Twists


def test_twist_from_velocities():
    np.testing.assert_allclose(twist(v=(0.2, 0, 0.4), w=(0, 0.1, 0)), [0.3, 0, 0.6, 0, 0.15, 0])
    np.testing.assert_allclose(twist(w=(0, 10, 0), degrees=True, seconds=9), [0, 0, 0, 0, np.pi / 2, 0])
    assert (twist() == 0).all()
    # 0.4 m/s for a chunk of 1.5 s
    np.testing.assert_allclose(twist_path(twist(v=[0, 0, 0.4]))[-1, :3, 3], [0, 0, 0.6])


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ({"v": (1, 2)}, r"got v of shape \(2,\); wanted 3"),
        ({"w": 3}, r"got w of shape \(\)"),
        ({"w": "left"}, "w of type str"),
        ({"v": (0, 0, np.nan)}, "v with NaN"),
    ],
)
def test_bad_velocities_are_refused(wrong, cause):
    with pytest.raises(ValueError, match=cause):
        twist(**wrong)


def test_a_path_of_changing_velocity_has_no_twist():
    path = np.concatenate(
        [
            twist_path([0, 0, 0.3, 0, 0, 0], 12),
            compose(twist_path([0, 0, 0.3, 0, 0, 0], 1), twist_path([0, 0, 0.6, 0, 0, 0], 12)),
        ]
    )
    with pytest.raises(ValueError, match=r"velocity changes.*path\[11\] by 0.15.*actions_from_path"):
        path_twist(path)


def test_the_twist_of_more_than_half_a_circle():
    turned = [0.2, 0, 1, 0, 5, 0.3]
    np.testing.assert_allclose(path_twist(twist_path(turned)), turned, atol=1e-9)


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
        ("wide", "wanted an array of real numbers"),
    ],
)
def test_bad_intrinsics_are_refused(intrinsics, cause):
    with pytest.raises(ValueError, match=cause):
        check_intrinsics(intrinsics, (64, 64))


def test_intrinsics_from_a_field_of_view():
    np.testing.assert_allclose(intrinsics_from_fov((60, 100), 90), [50, 50, 50, 30])
    with pytest.raises(ValueError, match="field of view"):
        intrinsics_from_fov((60, 100), 180)
