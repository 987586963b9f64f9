"""The contract of the controls, as `play/controls.py` states it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sana_wm_env.camera import twist_path
from sana_wm_env.keys import keys_to_path
from sana_wm_env.play.controls import (
    KEYS,
    TAP,
    Controls,
    Wish,
    drive,
    is_moving,
    merge,
    release,
    sample,
    take_back,
)

LIMITS = (0.6, 0.3)
STILL = (0.0, 0.0, 0.0, 0.0)
LEVEL = np.eye(3)


def say(controls=None, seq=1, held="", tapped="", look=(0.0, 0.0), axes=STILL):
    return merge(controls or Controls(), seq, 10.0 * seq, frozenset(held), frozenset(tapped), look, axes)


def test_a_held_key_moves_chunk_after_chunk():
    controls = say(held="w", tapped="w")
    for _ in range(3):
        wish, controls = sample(controls)
        assert wish.axes == (0, 1, 0, 0)


def test_a_tap_between_two_chunks_moves_the_next_one_and_no_other():
    """Pressed and released within 50 ms (jy-crpg-bench#2)."""
    controls = say(say(held="w", tapped="w"), seq=2)
    wish, controls = sample(controls)
    assert wish.axes == (0, TAP, 0, 0)
    assert not is_moving(controls) and sample(controls)[0].axes == STILL


def test_thirty_repeats_are_one_press():
    """Auto-repeat says the same state again and again (smolvm#1077)."""
    controls = say(held="w", tapped="w")
    for seq in range(2, 32):
        controls = say(controls, seq, held="w")
    wish, controls = sample(controls)
    assert wish.axes == (0, 1, 0, 0)
    assert sample(say(controls, 40))[0].axes == STILL


def test_the_newest_wins_and_old_news_change_nothing():
    newest = say(say(held="w"), seq=5, held="d")
    assert say(newest, seq=5, held="s") == newest
    assert say(newest, seq=4, held="s", tapped="s", look=(50, 0)) == newest


def test_release_clears_everything_but_the_number():
    """The tab loses the focus while W is down (FlashDreams ADR-1)."""
    controls = release(say(held="w", tapped="wl", look=(30, 0), axes=(1.0, 0, 0, 0)))
    assert not is_moving(controls) and controls.seq == 1
    assert say(controls, seq=1, held="w") == controls  # and what was sent before it comes too late


def test_opposite_keys_stand_still():
    assert sample(say(held="ws"))[0].axes == STILL


def test_keys_and_sticks_add_up_to_the_limit():
    assert sample(say(held="w", axes=(0.5, 0.8, 0, 0)))[0].axes == (0.5, 1, 0, 0)


def test_mouse_look_is_used_up_by_one_chunk_and_leaves_no_backlog():
    controls = say(say(look=(500.0, 0)), seq=2, look=(500.0, 0))
    wish, controls = sample(controls)
    turned = drive(wish, LEVEL, LIMITS)
    assert turned[4] == 1 and not is_moving(controls)


def test_a_chunk_that_is_begun_once_more_loses_no_tap():
    before = say(tapped="w")
    _, used = sample(before)
    now = say(used, seq=2, held="l", tapped="l")
    again = take_back(before, now)
    assert sample(again)[0].axes == (0, TAP, 1, 0)


def test_standing_still_is_exactly_zero():
    assert not drive(Wish(STILL, (0.0, 0.0)), Rotation.from_euler("YX", [1, 0.4]).as_matrix(), LIMITS).any()


@pytest.mark.parametrize(
    "key, axis, sign", [("w", 2, 1), ("s", 2, -1), ("a", 0, -1), ("d", 0, 1), ("i", 3, 1), ("l", 4, 1)]
)
def test_each_key_moves_its_axis(key, axis, sign):
    action = drive(sample(say(held=key))[0], LEVEL, LIMITS)
    expected = np.zeros(6)
    expected[axis] = sign
    assert np.allclose(action, expected, atol=1e-6)


def test_the_keys_are_those_of_the_scheme_sana_v1():
    for key in KEYS:
        action = drive(sample(say(held=key))[0], LEVEL, LIMITS) * np.repeat(LIMITS, 3)
        reached, wanted = twist_path(action)[-1], keys_to_path(f"{key}-24", "sana-v1")[-1]
        moved, turned = reached[:3, 3] @ wanted[:3, 3], np.trace(reached[:3, :3].T @ wanted[:3, :3])
        assert moved > 0 or (turned > 2.9 and not np.allclose(reached[:3, :3], np.eye(3)))


def test_walking_is_level_wherever_one_looks():
    up = Rotation.from_euler("X", 0.9).as_matrix()
    action = drive(sample(say(held="w"))[0], up, LIMITS)
    assert np.allclose(up @ action[:3], [0, 0, 1], atol=1e-5)


def test_turning_ends_level_and_pitch_has_a_limit():
    rotation = LEVEL
    for chunk in range(12):
        action = drive(Wish((0, 0, 1, 1), (0, 0)), rotation, LIMITS).astype(float)
        rotation = rotation @ Rotation.from_rotvec(action[3:] * LIMITS[1]).as_matrix()
        if chunk > 8:
            assert np.degrees(np.arcsin(-rotation[1, 2])) == pytest.approx(60, abs=0.1)
    assert abs(rotation[1, 0]) < 1e-3  # no roll: the x axis lies level


numbers = st.floats(-1, 1)


@given(
    st.frozensets(st.sampled_from(sorted(KEYS))),
    st.tuples(numbers, numbers, numbers, numbers),
    st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)),
    st.tuples(st.floats(-3, 3), st.floats(-1.5, 1.5), st.floats(-3, 3)),
)
def test_every_wish_is_an_action_in_the_box(held, axes, look, angles):
    rotation = Rotation.from_euler("YXZ", angles).as_matrix()
    action = drive(sample(say(held=held, look=look, axes=axes))[0], rotation, LIMITS)
    assert action.shape == (6,) and action.dtype == np.float32
    assert np.isfinite(action).all() and np.abs(action).max() <= 1
