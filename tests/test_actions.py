import numpy as np
import pytest

from sana_wm_env.actions import action_space, check_whole_chunks, keys_to_path, parse_keys, to_twist
from sana_wm_env.camera import check_poses


def yaw_deg(pose):
    return np.degrees(np.arctan2(pose[0, 2], pose[2, 2]))


def pitch_deg(pose):
    return np.degrees(np.arcsin(-pose[1, 2]))


# Actions


def test_scale():
    np.testing.assert_allclose(to_twist([1, -0.5, 0, 0, 0.5, -1], 0.6, 0.3), [0.6, -0.3, 0, 0, 0.15, -0.3])
    assert (to_twist(np.zeros(6, np.float32), 0.6, 0.3) == 0).all()


def test_every_sample_is_legal():
    space = action_space()
    space.seed(0)
    for _ in range(100):
        to_twist(space.sample(), 1, 1)
    to_twist(np.full(6, np.float32(1) + np.float32(1e-7)), 1, 1)


@pytest.mark.parametrize(
    "action, cause",
    [
        ([0, 0, np.nan, 0, 0, 0], "NaN"),
        ([0, 0, np.inf, 0, 0, 0], "NaN or infinity"),
        ([0, 0, 1.5, 0, 0, 0], "ClipAction"),
        (np.zeros(7), r"shape \(7,\)"),
        (np.zeros((1, 6)), r"shape \(1, 6\)"),
        (0.0, r"shape \(\)"),
        ("forward", "type str"),
        (None, "wanted 6 numbers"),
    ],
)
def test_bad_actions_are_refused(action, cause):
    with pytest.raises(ValueError, match=cause):
        to_twist(action, 0.6, 0.3)


# Key strings: known answers from facts/model.md section 9


def test_v1_walks_and_turns_at_once():
    path = keys_to_path("w-24,l-24,none-24", "sana-v1")
    assert path.shape == (73, 4, 4) and path.dtype == np.float64
    assert (path[0] == np.eye(4)).all()
    np.testing.assert_allclose(path[24, :3, 3], [0, 0, 24 * 0.05], atol=1e-12)
    assert yaw_deg(path[48]) == pytest.approx(24 * 1.2)
    np.testing.assert_allclose(path[48:], np.broadcast_to(path[48], (25, 4, 4)))  # no inertia
    check_poses(path)


def test_the_schemes_disagree_on_d_and_l():
    end = {scheme: {key: keys_to_path(f"{key}-24", scheme)[-1] for key in "adjl"} for scheme in ("sana-v1", "sana-v2")}
    for scheme, strafe, turn, speed, rate in (("sana-v1", "ad", "jl", 0.05, 1.2), ("sana-v2", "jl", "ad", 0.025, 0.6)):
        for key, sign in zip(strafe, (-1, 1), strict=True):
            np.testing.assert_allclose(end[scheme][key][:3, 3], [sign * 24 * speed, 0, 0], atol=1e-5)
            np.testing.assert_allclose(end[scheme][key][:3, :3], np.eye(3), atol=1e-12)
        for key, sign in zip(turn, (-1, 1), strict=True):
            assert yaw_deg(end[scheme][key]) == pytest.approx(sign * 24 * rate)
            assert (end[scheme][key][:3, 3] == 0).all()


@pytest.mark.parametrize("scheme, speed", [("sana-v1", 0.05), ("sana-v2", 0.025)])
def test_keys_held_together_and_walking_level(scheme, speed):
    path = keys_to_path("s-10", scheme)
    np.testing.assert_allclose(path[-1, :3, 3], [0, 0, -10 * speed], atol=1e-5)
    path = keys_to_path("wi-20", scheme)
    assert pitch_deg(path[-1]) > 0
    np.testing.assert_allclose(path[-1, :3, 3], [0, 0, 20 * speed], atol=1e-4)  # pitch turns the view, not the way
    np.testing.assert_allclose(keys_to_path("ws-10", scheme), np.broadcast_to(np.eye(4), (11, 4, 4)))


def test_pitch_limits():
    assert pitch_deg(keys_to_path("i-200", "sana-v1")[-1]) == pytest.approx(84.0)  # the step that would exceed 85 is left out
    assert pitch_deg(keys_to_path("k-200", "sana-v2")[-1]) == pytest.approx(-60.0)  # saturates
    assert pitch_deg(keys_to_path("i-200,k-10", "sana-v2")[-1]) == pytest.approx(54.0)


def test_v2_inertia():
    path = keys_to_path("w-4,none-2", "sana-v2")
    steps = np.diff(path[:, 2, 3]) / 0.025
    decay = np.exp(-1 / 16 / 1.0)
    np.testing.assert_allclose(steps, [1, 1, 1, 1, decay, decay**2], atol=1e-5)


def test_v2_a_new_key_sets_all_velocities_and_a_released_one_fades():
    path = keys_to_path("w-2,none-2,d-2,wd-1", "sana-v2")
    walk, turn = np.hypot(*np.diff(path[:, [0, 2], 3], axis=0).T) / 0.025, np.diff([yaw_deg(pose) for pose in path]) / 0.6
    decay = np.exp(-1 / 16)
    np.testing.assert_allclose(walk, [1, 1, decay, decay**2, 0, 0, 1], atol=1e-5)  # the new key d ends the fading walk
    np.testing.assert_allclose(turn, [0, 0, 0, 0, 1, 1, 1], atol=1e-9)
    # Reversing onto a key that was held before: no jump, but the time constant of moving.
    velocity = np.diff(keys_to_path("ws-3,s-2", "sana-v2")[:, 2, 3]) / 0.025
    rise = np.exp(-1 / 16 / 0.45)
    np.testing.assert_allclose(velocity, [0, 0, 0, rise - 1, rise**2 - 1], atol=1e-5)


def test_parsing():
    assert parse_keys("dw-2, none-1", "sana-v2") == [frozenset("dw")] * 2 + [frozenset()]


@pytest.mark.parametrize(
    "text, scheme, cause",
    [
        ("w-24", "sana-v3", "sana-v1, sana-v2"),
        ("w24", "sana-v2", "'w24'"),
        ("w-0", "sana-v2", "'w-0'"),
        ("w--3", "sana-v2", "'w--3'"),
        ("w-24,", "sana-v2", "segment ''"),
        ("wx-24", "sana-v2", "'x'"),
        ("W-24", "sana-v2", "'W'"),
    ],
)
def test_bad_strings_are_refused(text, scheme, cause):
    with pytest.raises(ValueError, match=cause):
        keys_to_path(text, scheme)


def test_whole_chunks():
    assert check_whole_chunks(96) == 4
    for frames, lower, upper in ((50, 48, 72), (10, 24, 48), (0, 24, 48)):
        with pytest.raises(ValueError, match=f"got {frames} .* {lower} and {upper}"):
            check_whole_chunks(frames)
