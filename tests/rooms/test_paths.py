"""Camera paths: exact twists, inside the action box, clear of everything solid."""

import torch

from sana_wm_env.rooms import paths
from sana_wm_env.rooms.scene import sample_scenes

SEEDS = list(range(48))


def sample(chunks: int):
    scenes = sample_scenes(SEEDS)
    starts = paths.sample_starts(scenes, SEEDS)
    return scenes, starts, paths.sample_twists(scenes, starts, SEEDS, chunks)


def test_paths_keep_clear_of_everything_solid():
    scenes, starts, twists = sample(6)
    c2w = paths.twist_paths(starts, twists)
    assert c2w.shape == (48, 145, 4, 4)
    # A chunk is tested at six of its frames while it is planned, so a corner may be cut by a hair between
    # them.
    assert paths.clear(scenes, c2w[..., :3, 3], 0.9 * paths.CLEARANCE_M).all()


def test_twists_fit_the_action_box_and_move():
    _, _, twists = sample(6)
    limit = torch.tensor([paths.MAX_TRANSLATION_M] * 3 + [paths.MAX_ROTATION_RAD] * 3)
    assert (twists.abs() <= limit + 1e-12).all()
    assert (twists.abs().amax((0, 1)) > 0.5 * limit).all(), "every axis is used by some path"
    assert (twists == 0).all(-1).any(), "some chunks stand still"


def test_a_look_around_turns_once_on_the_spot_and_ends_where_it_began():
    _, starts, _ = sample(1)
    path = paths.look_around(starts)
    assert path.shape == (48, 24 * paths.LOOK_CHUNKS, 4, 4)
    looks = path.unflatten(1, (-1, paths.LOOK_FRAMES))
    assert (looks == looks[:, :, :1]).all(), "each look rests for a latent frame"
    looks, rest = looks[:, : paths.LOOKS, 0], looks[:, paths.LOOKS :, 0]
    assert rest.shape[1] == 3 and (rest == starts[:, None]).all(), "and the last one for a chunk"
    assert torch.allclose(looks[:, -1], starts, atol=1e-12)
    assert (looks[..., :3, 3] == starts[:, None, :3, 3]).all()
    assert torch.allclose(looks[..., 1, :3], starts[:, None, 1, :3], atol=1e-12), "as level as it was"
    assert (starts[:, 2, 2] * looks[:, 0, 0, 2] > starts[:, 0, 2] * looks[:, 0, 2, 2]).all(), "to the right"


def test_path_of_a_twist_is_its_exponential():
    twist = torch.tensor([[[0.0, 0.0, 0.5, 0.0, 0.3, 0.0]]])
    c2w = paths.twist_paths(torch.eye(4)[None], twist)[0]
    radius = 0.5 / 0.3  # forward while turning right is an arc
    angle = 0.3 * torch.arange(25, dtype=torch.float64) / 24
    assert torch.allclose(c2w[:, 0, 3], radius * (1 - angle.cos()), atol=1e-12)
    assert torch.allclose(c2w[:, 2, 3], radius * angle.sin(), atol=1e-12)
    assert torch.equal(c2w[0], torch.eye(4, dtype=torch.float64))


def test_walking_stays_level_and_the_horizon_too():
    """Forward of a tilted camera is horizontal, and nothing but a free motion may roll the camera."""
    pose = torch.eye(4, dtype=torch.float64)[None].clone()
    pose[0, :3, :3] = torch.from_numpy(paths._yaw_pitch(0.7, 0.3))
    wish = torch.tensor([[[0.5, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    end = paths.twist_paths(pose, paths._body_twists(pose, wish))[0, -1]
    assert abs(end[1, 3]) < 1e-12 and abs(end[1, 0]) < 1e-12


def test_a_path_depends_on_its_seed_alone():
    _, _, twists = sample(3)
    scenes = sample_scenes([SEEDS[5]])
    alone = paths.sample_twists(scenes, paths.sample_starts(scenes, [SEEDS[5]]), [SEEDS[5]], 3)
    assert torch.allclose(alone[0], twists[5], atol=1e-12)


def test_retraced_walks_come_back_to_where_they_have_been():
    """Every chunk ends where the walk has a chunk's end, and most of them for the second time or more."""
    _, starts, twists = sample(12)
    walk, retraced = (
        paths.twist_paths(starts, each)[:, :: paths.CHUNK_FRAMES]
        for each in (twists, paths.retrace(twists, SEEDS))
    )
    assert retraced.shape == walk.shape
    apart = (retraced[:, :, None] - walk[:, None]).abs().amax((-1, -2))  # (B, ends, ends of the walk)
    assert torch.allclose(apart.amin(-1), torch.zeros(()).double(), atol=1e-9)
    apart = (retraced[:, :, None] - retraced[:, None]).abs().amax((-1, -2))
    seen = (apart.tril(-1) + torch.ones(13, 13).triu() < 1e-9).any(-1)
    assert 0.4 < seen.float().mean() < 0.8
    alone = paths.retrace(twists[5:6], SEEDS[5:6])
    assert torch.equal(alone[0], paths.retrace(twists, SEEDS)[5])
