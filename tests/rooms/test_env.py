"""`SanaWM-Rooms-v0` where it differs from `SanaWM-v0`; what they share is in tests/test_env.py."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from sana_wm_env.camera import twist_path
from sana_wm_env.rooms import HELD_OUT, default_intrinsics
from sana_wm_env.rooms.paths import clear
from sana_wm_env.rooms.room import held_out_room, look, open_room, stop_at_walls

FORWARD = np.array([0, 0, 1, 0, 0, 0], np.float32)


def positions_clear(room, c2w):
    return clear(room.scenes, torch.from_numpy((room.start @ c2w)[None, :, :3, 3]))[0].numpy()


def into_the_wall(seed, metres=12.0):
    """A room, and 24 poses straight ahead for longer than any room is deep, turning on the way."""
    return open_room(seed), twist_path([0, 0, metres, 0, 0, 0.3])


@pytest.mark.parametrize("seed", range(6))
def test_a_wall_stops_the_translation_and_not_the_rotation(seed):
    room, wish = into_the_wall(seed)
    stopped = stop_at_walls(room, np.eye(4), wish)
    free = positions_clear(room, wish)
    hit = int(free.argmin())
    assert not free.all() and positions_clear(room, stopped).all()
    np.testing.assert_array_equal(stopped[:hit], wish[:hit])
    np.testing.assert_array_equal(
        stopped[hit:, :3, 3], np.broadcast_to((wish[hit - 1] if hit else np.eye(4))[:3, 3], (24 - hit, 3))
    )
    np.testing.assert_array_equal(stopped[:, :3, :3], wish[:, :3, :3])


def test_a_clear_path_is_left_alone():
    room = open_room(0)
    turn = twist_path([0, 0, 0, 0, 1, 0])
    assert stop_at_walls(room, np.eye(4), turn) is turn


def test_walking_into_a_wall_ends_in_front_of_it():
    env = gym.make("SanaWM-Rooms-v0", max_translation_m=3.0)
    env.reset(seed=5)
    ends = [env.step(FORWARD)[4]["c2w"][-1] for _ in range(6)]
    assert (ends[-1] == ends[-2]).all()
    back = env.step(-FORWARD)[4]["c2w"]
    assert back[0, 2, 3] < ends[-1][2, 3]  # and there is a way out


def test_frames_are_the_exact_render_at_the_stated_poses():
    env = gym.make("SanaWM-Rooms-v0")
    env.reset(options={"scene_seed": 11})
    obs, *_, info = env.step(FORWARD)
    assert (obs == look(open_room(11), info["c2w"], np.array(default_intrinsics((64, 64))), (64, 64))).all()


def test_scene_seed_chooses_the_room():
    env = gym.make("SanaWM-Rooms-v0")
    one = env.reset(seed=1, options={"scene_seed": 11})[0]
    assert (env.reset(seed=2, options={"scene_seed": 11})[0] == one).all()
    assert (env.reset(seed=2, options={"scene_seed": 12})[0] != one).any()


def test_drawn_rooms_are_held_out():
    for draw in (0, HELD_OUT - 1, HELD_OUT, 2**63 - 1):
        assert HELD_OUT <= held_out_room(draw) < 2 * HELD_OUT


def test_size_and_intrinsics():
    env = gym.make("SanaWM-Rooms-v0", image_size=(48, 80))
    obs, info = env.reset(seed=0, options={"intrinsics": (60, 60, 40, 24)})
    assert obs.shape == (24, 48, 80, 3)
    np.testing.assert_array_equal(info["intrinsics_px"], [[60, 0, 40], [0, 60, 24], [0, 0, 1]])
    with pytest.raises(ValueError, match="image_size"):
        gym.make("SanaWM-Rooms-v0", image_size=(8, 8))


@pytest.mark.parametrize(
    "options, cause",
    [
        ({"image": "a.png"}, "'image'.*imagines nothing"),
        ({"prompt": "a room"}, "'prompt'.*scene_seed"),
        ({"scene_seed": -1}, "scene_seed=-1"),
        ({"scene_seed": 1.5}, "scene_seed=1.5"),
        ({"intrinsics": (-50, 50, 32, 32)}, "mirror"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, cause):
    env = gym.make("SanaWM-Rooms-v0")
    with pytest.raises(ValueError, match=cause):
        env.reset(options=options)
