"""Key strings: known answers from the published rules of both schemes."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sana_wm_env  # noqa: F401  # registers the ids
from sana_wm_env.actions import action_path, actions_from_path
from sana_wm_env.camera import check_poses, compose, twist_path
from sana_wm_env.keys import SCHEMES, in_words, key_twist, keys_to_path, motions, parse_keys, segments

strings = st.lists(
    st.tuples(st.sets(st.sampled_from("wasdijkl"), max_size=4), st.integers(1, 40)), min_size=1, max_size=6
).map(lambda parts: ",".join(f"{''.join(sorted(keys)) or 'none'}-{count}" for keys, count in parts))
schemes = st.sampled_from(list(SCHEMES))


def yaw_deg(pose):
    return np.degrees(np.arctan2(pose[0, 2], pose[2, 2]))


def pitch_deg(pose):
    return np.degrees(np.arcsin(-pose[1, 2]))


def test_v1_walks_and_turns_at_once():
    path = keys_to_path("w-24,l-24,none-24", "sana-v1")
    assert path.shape == (73, 4, 4) and path.dtype == np.float64
    assert (path[0] == np.eye(4)).all()
    np.testing.assert_allclose(path[24, :3, 3], [0, 0, 24 * 0.05], atol=1e-12)
    assert yaw_deg(path[48]) == pytest.approx(24 * 1.2)
    np.testing.assert_allclose(path[48:], np.broadcast_to(path[48], (25, 4, 4)))  # no inertia
    check_poses(path)


def test_the_schemes_disagree_on_d_and_l():
    end = {
        scheme: {key: keys_to_path(f"{key}-24", scheme)[-1] for key in "adjl"}
        for scheme in ("sana-v1", "sana-v2")
    }
    for scheme, strafe, turn, speed, rate in (
        ("sana-v1", "ad", "jl", 0.05, 1.2),
        ("sana-v2", "jl", "ad", 0.025, 0.6),
    ):
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
    np.testing.assert_allclose(
        path[-1, :3, 3], [0, 0, 20 * speed], atol=1e-4
    )  # pitch turns the view, not the way
    np.testing.assert_allclose(keys_to_path("ws-10", scheme), np.broadcast_to(np.eye(4), (11, 4, 4)))


def test_pitch_limits():
    assert pitch_deg(keys_to_path("i-200", "sana-v1")[-1]) == pytest.approx(
        84.0
    )  # the step that would exceed 85 is left out
    assert pitch_deg(keys_to_path("k-200", "sana-v2")[-1]) == pytest.approx(-60.0)  # saturates
    assert pitch_deg(keys_to_path("i-200,k-10", "sana-v2")[-1]) == pytest.approx(54.0)


def test_v2_inertia():
    path = keys_to_path("w-4,none-2", "sana-v2")
    steps = np.diff(path[:, 2, 3]) / 0.025
    decay = np.exp(-1 / 16 / 1.0)
    np.testing.assert_allclose(steps, [1, 1, 1, 1, decay, decay**2], atol=1e-5)


def test_v2_a_new_key_sets_all_velocities_and_a_released_one_fades():
    path = keys_to_path("w-2,none-2,d-2,wd-1", "sana-v2")
    walk = np.hypot(*np.diff(path[:, [0, 2], 3], axis=0).T) / 0.025
    turn = np.diff([yaw_deg(pose) for pose in path]) / 0.6
    decay = np.exp(-1 / 16)
    np.testing.assert_allclose(
        walk, [1, 1, decay, decay**2, 0, 0, 1], atol=1e-5
    )  # the new key d ends the fading walk
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


# The rules once more, frame by frame and with matrices, as they are published

V1 = {
    "w": (0, 1),
    "s": (0, -1),
    "a": (1, -1),
    "d": (1, 1),
    "j": (2, -1),
    "l": (2, 1),
    "i": (3, 1),
    "k": (3, -1),
}
V2 = V1 | {"j": (1, -1), "l": (1, 1), "a": (2, -1), "d": (2, 1)}


def about(axis, degrees):
    """Rotation about the vertical ("y", to the right) or the camera's own axis ("x", up)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]] if axis == "y" else [[1, 0, 0], [0, c, -s], [0, s, c]])


def published_path(text, scheme):
    new = scheme == "sana-v2"
    unit = np.array([0.025, 0.025, 0.6, 0.6]) * (1 if new else 2)
    rotation = np.eye(3)
    position = np.zeros(3)
    pitch = 0.0
    velocity = np.zeros(4)
    before = set()
    path = [np.eye(4)]
    for segment in text.split(","):
        keys, count = segment.split("-")
        held = set() if keys == "none" else set(keys)
        for _ in range(int(count)):
            target = np.zeros(4)
            for key in held:
                index, sign = (V2 if new else V1)[key]
                target[index] += sign * unit[index]
            if not new or held - before:
                velocity = target
            else:
                tau = np.where(target == 0, 1.0, 0.45)
                velocity = velocity + (1 - np.exp(-(1 / 16) / tau)) * (target - velocity)
            before, tilt = held, velocity[3]
            if new:
                tilt = np.clip(pitch + tilt, -60, 60) - pitch
            elif abs(pitch + tilt) > 85:
                tilt = 0.0
            pitch += tilt
            rotation = about("y", velocity[2]) @ rotation @ about("x", tilt)
            ahead, right = rotation[:, 2] * [1, 0, 1], rotation[:, 0] * [1, 0, 1]
            floor = 1e-6 if new else 0
            position = position + velocity[0] * ahead / (np.linalg.norm(ahead) + floor)
            position = position + velocity[1] * right / (np.linalg.norm(right) + floor)
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = rotation, position
            path.append(pose)
    return np.stack(path)


@settings(max_examples=40)
@given(strings, schemes)
def test_paths_follow_the_published_rules(text, scheme):
    path = keys_to_path(text, scheme)
    np.testing.assert_allclose(path, published_path(text, scheme), atol=1e-9)
    check_poses(path)
    assert len(motions(text, scheme)) == len(path) - 1 == sum(count for _, count in segments(text))


@pytest.mark.parametrize(
    ("scheme", "meaning"),
    [
        ("sana-v1", "forward + step right 24, stand 12, turn left + look down 12"),
        ("sana-v2", "forward + turn right 24, stand 12, step left + look down 12"),
    ],
)
def test_words_follow_the_scheme(scheme, meaning):
    assert in_words("wd-24, none-12,jk-12", scheme) == meaning


# Keys as actions


@settings(max_examples=40)
@given(st.text("wasdijkl", max_size=12), schemes)
def test_keys_held_for_chunks_lead_where_their_string_leads(keys, scheme):
    """A new key ends every motion, and one that stays held goes on: between keys there is no inertia to
    lose.
    """
    pose = np.eye(4)
    for key in keys:
        pose = compose(pose, twist_path(key_twist(key, scheme, pose[:3, :3])))[-1]
    wanted = keys_to_path(",".join(f"{key}-24" for key in keys), scheme)[-1] if keys else np.eye(4)
    np.testing.assert_allclose(pose, wanted, atol=1e-9)


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_no_key_is_no_motion_and_a_camera_beyond_the_limit_does_not_jump(scheme):
    beyond = about("x", 87)
    assert (key_twist("none", scheme, np.eye(3)) == 0).all()
    assert (key_twist("i", scheme, beyond) == 0).all()
    np.testing.assert_allclose(key_twist("none", scheme, beyond), np.zeros(6), atol=1e-12)


def test_an_environment_plays_a_key_string():
    text, scheme = "d-12,none-12,w-6,wd-18", "sana-v2"
    path = keys_to_path(text, scheme)
    env = gym.make("SanaWM-Rooms-v0", action_mode="per_frame", image_size=(16, 16))
    env.reset(seed=7)
    seen = [env.step(action)[4]["c2w"] for action in actions_from_path(path, env.unwrapped.limits)]
    np.testing.assert_allclose(np.concatenate(seen), path[1:], atol=1e-6)


def test_v1_is_faster_than_the_bundled_world_by_default():
    with pytest.raises(ValueError, match=r"max_translation_m=1.2, max_rotation_rad=0.5027"):
        actions_from_path(keys_to_path("w-24,l-24", "sana-v1"), (0.6, 0.3))
    action = actions_from_path(keys_to_path("w-24", "sana-v1"), (1.2, 0.5027))[0]
    np.testing.assert_allclose(
        action_path(action, "per_frame", (1.2, 0.5027))[-1, :3, 3], [0, 0, 1.2], atol=1e-6
    )
