"""Laws of poses and twists, over many of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import RigidTransform

from sana_wm_env.camera import (
    CHUNK_FRAMES,
    check_poses,
    compose,
    from_opengl,
    from_unreal_cm,
    from_w2c,
    path_twist,
    relative_to_first,
    step_twists,
    to_opengl,
    to_unreal_cm,
    to_w2c,
    twist_path,
)

few = settings(max_examples=40)
numbers = st.floats(-1.5, 1.5, allow_subnormal=False)
twists = arrays(np.float64, 6, elements=numbers)
paths = arrays(
    np.float64, st.tuples(st.integers(1, 9), st.just(6)), elements=numbers
)  # any poses, by their twists


def pose(coordinates):
    """Any pose can be reached by a twist."""
    return twist_path(coordinates, 1)[0]


def poses(coordinates):
    return twist_path(coordinates, 1)[:, 0]


# Twists and composition


@few
@given(twists)
def test_zero_twist_leaves_the_pose_exactly(start):
    after = start = pose(start)
    for _ in range(3):
        path = compose(after, twist_path(np.zeros(6)))
        assert (path == start).all()
        after = path[-1]


@few
@given(twists, twists)
def test_twist_then_inverse_returns(start, twist):
    back = compose(compose(pose(start), twist_path(twist)[-1]), twist_path(-twist)[-1])
    np.testing.assert_allclose(back, pose(start), atol=1e-6)


@few
@given(twists)
def test_two_halves_are_the_whole(twist):
    half = twist_path(twist / 2, CHUNK_FRAMES // 2)
    np.testing.assert_allclose(np.concatenate([half, compose(half[-1], half)]), twist_path(twist), atol=1e-6)


@few
@given(twists)
def test_velocity_is_constant_in_the_body_frame(twist):
    path = np.concatenate([np.eye(4)[None], twist_path(twist)])
    steps = RigidTransform.from_matrix(path[:-1]).inv() * RigidTransform.from_matrix(path[1:])
    np.testing.assert_allclose(
        steps.as_exp_coords(), np.tile(np.roll(twist, 3) / CHUNK_FRAMES, (CHUNK_FRAMES, 1)), atol=1e-9
    )
    np.testing.assert_allclose(step_twists(path), np.tile(twist / CHUNK_FRAMES, (CHUNK_FRAMES, 1)), atol=1e-9)


@few
@given(twists, st.integers(1, 48))
def test_a_path_gives_its_twist_back(twist, frames):
    if frames == 1:
        twist = twist / 2  # one step alone cannot tell more than half a circle from the rest of it
    np.testing.assert_allclose(path_twist(twist_path(twist, frames)), twist, atol=1e-9)


def test_rotation_stays_orthonormal_over_a_thousand_chunks():
    c2w, rng = np.eye(4), np.random.default_rng(0)
    for _ in range(1000):
        c2w = compose(c2w, twist_path(rng.uniform(-0.6, 0.6, 6)))[-1]
    np.testing.assert_allclose(c2w[:3, :3].T @ c2w[:3, :3], np.eye(3), atol=1e-12)
    assert c2w[3].tolist() == [0, 0, 0, 1]


@few
@given(st.data(), st.integers(1, 9), st.integers(1, 3))
def test_batched_equals_single_bit_by_bit(data, rows, columns):
    twist = data.draw(arrays(np.float64, (rows, columns, 6), elements=numbers))
    path = twist_path(twist)
    assert path.shape == (rows, columns, CHUNK_FRAMES, 4, 4)
    moved = compose(path[..., -1:, :, :], path)
    for row in range(rows):
        for column in range(columns):
            alone = twist_path(twist[row, column])
            np.testing.assert_array_equal(path[row, column], alone)
            np.testing.assert_array_equal(moved[row, column], compose(alone[-1], alone))


# Poses from outside


@few
@given(twists, twists)
def test_relative_to_first(world, twist):
    path = twist_path(twist)
    moved = relative_to_first(compose(pose(world), path))
    assert (moved[0] == np.eye(4)).all()
    np.testing.assert_allclose(compose(path[0], moved), path, atol=1e-9)


@pytest.mark.parametrize(
    ("there", "back"),
    [(to_w2c, from_w2c), (to_opengl, from_opengl), (to_unreal_cm, from_unreal_cm)],
    ids=["w2c", "opengl", "unreal_cm"],
)
@few
@given(paths)
def test_converters_round_trip(there, back, path):
    path = poses(path)
    for first, second in ((there, back), (back, there)):
        foreign = first(path)
        check_poses(foreign)
        assert not np.shares_memory(foreign, path)
        np.testing.assert_allclose(second(foreign), path, atol=1e-9)


@few
@given(paths)
def test_one_path_in_four_conventions(path):
    """The same motion, whichever tool it came from."""
    path = poses(path)
    wanted = relative_to_first(path)
    for foreign in (
        from_w2c(np.linalg.inv(path)),
        from_opengl(to_opengl(path)),
        from_unreal_cm(to_unreal_cm(path)),
    ):
        np.testing.assert_allclose(relative_to_first(foreign), wanted, atol=1e-6)


@few
@given(paths, st.data())
def test_spoiled_poses_are_refused_with_the_cause(path, data):
    path = poses(path)
    index = data.draw(st.integers(0, len(path) - 1), "index")
    mirrored, scaled, rough = path.copy(), path.copy(), path.copy()
    mirrored[index] = mirrored[index] @ np.diag(
        np.r_[data.draw(st.sampled_from([(-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)])), 1]
    )
    scaled[index, :3, :3] *= data.draw(st.floats(1.01, 100) | st.floats(0.01, 0.99), "scale")
    rough[index, data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))] = data.draw(
        st.sampled_from([np.nan, np.inf, -np.inf])
    )
    for spoiled, cause in (
        (mirrored, "is mirrored"),
        (scaled, "rotation scaled by"),
        (rough, "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=cause):
            check_poses(spoiled)
    if np.abs(path[0, :3, 3]).max() > 1e-3:  # without a translation a transposed pose is a pose
        with pytest.raises(ValueError, match=r"\[0\](?s:.*)is transposed"):
            check_poses(path.transpose(0, 2, 1))
    with pytest.raises(ValueError, match=f"got {len(path)} poses; wanted {len(path) + 24}, one per frame"):
        check_poses(path, len(path) + 24)
