"""The truth has to be true: depths against hand-computed ones, views against each other, seeds against themselves."""

import numpy as np
import pytest
import torch

from sana_wm_env.rooms import HELD_OUT, default_intrinsics, paths
from sana_wm_env.rooms.render import render
from sana_wm_env.rooms.scene import ALCOVES, SOLIDS, Scenes, sample_scenes

SIZE = (32, 32)


def empty_room(scenes: Scenes) -> Scenes:
    """The same rooms, 6 m long, 4 m wide, 3 m high, without furniture and openings."""
    room = torch.tensor([[-2.0, -3.0, -3.0], [2.0, 0.0, 3.0]])
    nowhere = torch.full((len(scenes), 1, 2, 3), 1e3)
    air = torch.cat([room.expand(len(scenes), 1, 2, 3), nowhere.expand(-1, ALCOVES, -1, -1)], 1)
    return Scenes(air, nowhere.expand(-1, SOLIDS, -1, -1), scenes.materials, scenes.lamp, scenes.captions)


def camera_at(*position: float) -> torch.Tensor:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = torch.tensor(position)
    return pose[None, None]


def test_depth_of_an_empty_room_is_the_distance_to_its_planes():
    scenes = empty_room(sample_scenes([3]))
    depth = render(scenes, camera_at(0, -1.5, 1.0), (16.0, 16.0, 16.0, 16.0), SIZE).depth_m[0, 0]
    assert depth[16, 16] == pytest.approx(2.0, abs=1e-5)  # the wall ahead stands 2 m from the camera
    # The lowest row looks 31.5 / 16 below the axis at its middle: the floor, 1.5 m below, is met at 1.5 * 16 / 15.75.
    assert depth[31, 16] == pytest.approx(1.5 * 16 / 15.75, rel=0.02)


def test_a_box_hides_the_wall_behind_it():
    scenes = empty_room(sample_scenes([3]))
    solids = scenes.solids.clone()
    solids[0, 0] = torch.tensor([[-0.5, -2.0, 2.0], [0.5, 0.0, 2.5]])
    boxed = Scenes(scenes.air, solids, scenes.materials, scenes.lamp, scenes.captions)
    depth = render(boxed, camera_at(0, -1.5, 0.0), (16.0, 16.0, 16.0, 16.0), SIZE).depth_m[0, 0]
    assert depth[16, 16] == pytest.approx(2.0, abs=1e-5) and depth[16, 24] == pytest.approx(3.0, abs=1e-5)


def test_an_opening_lets_the_ray_through():
    scenes = empty_room(sample_scenes([3]))
    air = scenes.air.clone()
    air[0, 1] = torch.tensor([[-0.5, -2.0, 2.99], [0.5, 0.0, 4.0]])
    opened = Scenes(air, scenes.solids, scenes.materials, scenes.lamp, scenes.captions)
    depth = render(opened, camera_at(0, -1.5, 0.0), (16.0, 16.0, 16.0, 16.0), SIZE).depth_m[0, 0]
    assert depth[16, 16] == pytest.approx(4.0, abs=1e-5) and depth[16, 28] < 3.0 + 1e-4


def test_two_views_of_a_room_agree():
    """Points of one view, carried into another by depth and poses, lie on the surface that the other sees."""
    seeds = list(range(8))
    scenes = sample_scenes(seeds)
    starts = paths.sample_starts(scenes, seeds)
    c2w = paths.twist_paths(starts, paths.sample_twists(scenes, starts, seeds, 1))[:, [0, 24]]
    fx, fy, cx, cy = default_intrinsics((64, 64))
    views = render(scenes, c2w, (fx, fy, cx, cy), (64, 64))
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    ray = torch.stack([(x - cx) / fx, (y - cy) / fy, torch.ones_like(x)], -1).double()
    world = (views.depth_m[:, 0, :, :, None] * ray) @ c2w[:, None, 0, :3, :3].mT + c2w[:, None, None, 0, :3, 3]
    there = (world - c2w[:, None, None, 1, :3, 3]) @ c2w[:, None, 1, :3, :3]
    u, v = (fx * there[..., 0] / there[..., 2] + cx).floor().long(), (fy * there[..., 1] / there[..., 2] + cy).floor().long()
    seen = (u >= 0) & (u < 64) & (v >= 0) & (v < 64) & (there[..., 2] > 0.1)
    batch = torch.arange(8)[:, None, None].expand_as(u)
    met = views.depth_m[batch[seen], 1, v[seen], u[seen]].double()
    agree = (met - there[..., 2][seen]).abs() < 0.05 * there[..., 2][seen]
    assert seen.float().mean() > 0.4 and agree.float().mean() > 0.9


def test_antialiasing_approaches_the_finely_sampled_picture():
    """A small picture is close to a four times larger one averaged down; point sampling would not be."""
    seeds = list(range(6))
    scenes = sample_scenes(seeds)
    c2w = paths.sample_starts(scenes, seeds)[:, None]
    small = render(scenes, c2w, default_intrinsics((64, 64)), (64, 64)).rgb.float()
    large = render(scenes, c2w, default_intrinsics((256, 256)), (256, 256)).rgb.float()
    averaged = large.view(6, 64, 4, 64, 4, 3).mean((2, 4))
    sampled = large[:, 0, 2::4, 2::4]
    assert (small[:, 0] - averaged).square().mean() < 0.6 * (sampled - averaged).square().mean()


def test_a_room_depends_on_its_seed_alone():
    alone, among = sample_scenes([41]), sample_scenes([7, 41, HELD_OUT + 5])
    assert torch.equal(alone.materials[0], among.materials[1]) and torch.equal(alone.solids[0], among.solids[1])
    assert alone.captions[0] == among.captions[1] and among.captions[0] != among.captions[1]
    pose = paths.sample_starts(alone, [41])
    first, second = (render(alone, pose[:, None], default_intrinsics(SIZE), SIZE).rgb for _ in range(2))
    assert torch.equal(first, second)


def test_captions_name_what_is_there():
    scenes = sample_scenes(list(range(60)))
    text = " ".join(scenes.captions)
    for word in ("brick", "striped", "checkered", "pillar", "box", "floor"):
        assert word in text
    solids = (scenes.solids[:, :, 0, 0] < 100).sum(1)
    assert all(caption.count(",") == count for caption, count in zip(scenes.captions, solids.tolist(), strict=True))


def test_rooms_have_the_sizes_they_should():
    room = sample_scenes(list(range(100))).air[:, 0]
    width, height, length = (room[:, 1] - room[:, 0]).unbind(-1)
    for side in (width, length):
        assert side.min() >= 4 and side.max() <= 10
    assert height.min() >= 2.4 and height.max() <= 3.4


def test_global_random_state_is_left_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (the global state is what is tested)
    scenes = sample_scenes([1])
    paths.sample_twists(scenes, paths.sample_starts(scenes, [1]), [1], 2)
    assert torch.equal(torch_state, torch.get_rng_state()) and (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002
