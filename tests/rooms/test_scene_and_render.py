"""The truth has to be true: depths against hand-computed ones, views against each other, seeds against
themselves.
"""

import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from sana_wm_env.native import find_compiler
from sana_wm_env.rooms import HELD_OUT, default_intrinsics, paths, render_native
from sana_wm_env.rooms.render import render, render_reference
from sana_wm_env.rooms.scene import ALCOVES, SOLIDS, Scenes, sample_scenes

SIZE = (32, 32)
compiled = pytest.mark.skipif(not find_compiler(), reason="no C++ compiler, or switched off")


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
    # The lowest row looks 31.5 / 16 below the axis at its middle: the floor, 1.5 m below, is met at 1.5 * 16
    # / 15.75.
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
    world = (views.depth_m[:, 0, :, :, None] * ray) @ c2w[:, None, 0, :3, :3].mT + c2w[
        :, None, None, 0, :3, 3
    ]
    there = (world - c2w[:, None, None, 1, :3, 3]) @ c2w[:, None, 1, :3, :3]
    u = (fx * there[..., 0] / there[..., 2] + cx).floor().long()
    v = (fy * there[..., 1] / there[..., 2] + cy).floor().long()
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
    assert torch.equal(alone.materials[0], among.materials[1]) and torch.equal(
        alone.solids[0], among.solids[1]
    )
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
    assert all(
        caption.count(",") == count for caption, count in zip(scenes.captions, solids.tolist(), strict=True)
    )


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


def walks(seeds: list[int], frames: int = 4) -> tuple[Scenes, torch.Tensor]:
    """Rooms and a few poses of a walk through each."""
    scenes = sample_scenes(seeds)
    starts = paths.sample_starts(scenes, seeds)
    return scenes, paths.twist_paths(starts, paths.sample_twists(scenes, starts, seeds, 2))[
        :, :: 48 // (frames - 1)
    ]


def check_equal(
    scenes: Scenes, c2w: torch.Tensor, lens: torch.Tensor | tuple[float, ...], size: tuple[int, int]
):
    """Within one grey level and a millimetre, but for one pixel in a thousand at most: on edges, rounding
    decides what a ray meets.
    """
    native, reference = render(scenes, c2w, lens, size), render_reference(scenes, c2w, lens, size)
    assert native.rgb.shape == reference.rgb.shape and native.rgb.dtype == torch.uint8
    assert native.depth_m.shape == reference.depth_m.shape and native.depth_m.dtype == torch.float32
    levels = (native.rgb.int() - reference.rgb.int()).abs().amax(-1)
    assert ((levels > 1) | ((native.depth_m - reference.depth_m).abs() > 1e-3)).float().mean() <= 1e-3
    assert (levels > 0).float().mean() < 0.01  # nor are many a level off


@compiled
@pytest.mark.parametrize("size", [(64, 64), (32, 80), (37, 51), (1, 1), (5, 17)])
@pytest.mark.parametrize("seed", [0, 100, HELD_OUT])
def test_the_compiled_renderer_equals_plain_torch(size, seed):
    """Twelve rooms at once, each with its own focal length, off-centre, walked through."""
    scenes, c2w = walks(list(range(seed, seed + 12)))
    focal = torch.linspace(0.3, 2.0, 12) * size[1]
    lens = torch.stack(
        [focal, 1.1 * focal, torch.full_like(focal, size[1] / 2), torch.full_like(focal, size[0] / 3)], 1
    )
    check_equal(scenes, c2w, lens, size)


@compiled
@pytest.mark.parametrize("attitude", ["along the axes", "any"])
def test_the_compiled_renderer_equals_plain_torch_however_the_camera_is_held(attitude):
    scenes, c2w = walks(list(range(16)))
    turns = np.array(
        [
            [90 * yaw, pitch, roll]
            for yaw in range(4)
            for pitch in (-90, 0, 90, 0)
            for roll in (0, 90, 180, 270)
        ]
    )
    rotation = (
        Rotation.random(64, random_state=0)
        if attitude == "any"
        else Rotation.from_euler("yxz", turns, degrees=True)
    )
    c2w[..., :3, :3] = torch.from_numpy(rotation.as_matrix()).view(16, 4, 3, 3)
    check_equal(scenes, c2w, (40.0, 40.0, 32.25, 23.75), (48, 64))  # some samples lie on the optical axis


@compiled
def test_the_compiled_renderer_sees_into_alcoves_as_plain_torch_does():
    """From before an opening and from inside it, to both sides."""
    scenes = sample_scenes([seed for seed in range(60) if sample_scenes([seed]).air[0, 1, 0, 0] < 100])
    inside = scenes.air[:, 1].mean(1).double()
    before = inside * torch.tensor([0.5, 1, 1])
    c2w = torch.eye(4, dtype=torch.float64).repeat(len(scenes), 4, 1, 1)
    c2w[:, :, :3, 3] = torch.stack([before, before, inside, inside], 1)
    c2w[:, :, :3, :3] = torch.from_numpy(
        Rotation.from_euler("yx", [[80, 0], [-80, 0]] * 2, degrees=True).as_matrix()
    )
    check_equal(scenes, c2w, default_intrinsics(SIZE), SIZE)


@pytest.mark.parametrize("batch, frames", [(0, 3), (2, 0), (0, 0)])
def test_nothing_is_rendered_where_nothing_is_asked_for(batch, frames):
    for function in (render, render_reference):
        views = function(
            sample_scenes([0, 1])[:batch], torch.zeros(batch, frames, 4, 4), default_intrinsics(SIZE), SIZE
        )
        assert views.rgb.shape == (batch, frames, *SIZE, 3) and views.depth_m.shape == (batch, frames, *SIZE)


@compiled
def test_rooms_and_cameras_of_different_number_are_refused():
    scenes, c2w = walks([0, 1, 2])
    with pytest.raises(ValueError, match="shape"):
        render(scenes[:2], c2w, default_intrinsics(SIZE), SIZE)


def test_a_frame_depends_on_neither_its_neighbours_nor_the_threads(monkeypatch):
    """Byte by byte: all rooms at once, again, one by one, and shared among threads."""
    size = (33, 40)
    scenes, c2w = walks(list(range(5)))
    first = render(scenes, c2w, default_intrinsics(size), size)
    assert all(
        torch.equal(*pair)
        for pair in zip(first, render(scenes, c2w, default_intrinsics(size), size), strict=True)
    )
    if render_native.available():
        for index in range(5):
            alone = render(
                scenes[index : index + 1], c2w[index : index + 1, 1:3], default_intrinsics(size), size
            )
            assert torch.equal(alone.rgb[0], first.rgb[index, 1:3]) and torch.equal(
                alone.depth_m[0], first.depth_m[index, 1:3]
            )
    monkeypatch.setattr(render_native, "PIXELS_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(
        torch.equal(*pair)
        for pair in zip(first, render(scenes, c2w, default_intrinsics(size), size), strict=True)
    )


@compiled
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_renders_too(monkeypatch):
    monkeypatch.setattr(render_native, "PIXELS_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    scenes, c2w = walks([0, 1])
    here = render(scenes, c2w, default_intrinsics(SIZE), SIZE).rgb.numpy()
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(
        target=lambda: answers.put(render(scenes, c2w, default_intrinsics(SIZE), SIZE).rgb.numpy()),
        daemon=True,
    )
    process.start()
    process.join(60)
    if process.is_alive():
        process.kill()
        pytest.fail("the forked process hangs")
    assert process.exitcode == 0 and (answers.get() == here).all()


def test_rooms_are_rendered_without_a_compiler():
    """With SANA_WM_NATIVE=0, `render` is the plain torch function."""
    code = """
import torch
from sana_wm_env.rooms import default_intrinsics, paths, render_native
from sana_wm_env.rooms.render import render, render_reference
from sana_wm_env.rooms.scene import sample_scenes
scenes = sample_scenes([0])
start, intrinsics = paths.sample_starts(scenes, [0])[:, None], default_intrinsics((32, 32))
views = [f(scenes, start, intrinsics, (32, 32)) for f in (render, render_reference)]
assert not render_native.available() and all(torch.equal(*pair) for pair in zip(*views))
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"SANA_WM_NATIVE": "0"}, timeout=120
    )
