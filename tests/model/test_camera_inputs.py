import pytest
import torch
from tiny_networks import paths

from sana_wm_env.model.camera_inputs import camera_inputs, raw_frames_of_latents
from sana_wm_env.model.network.rays import ray_matrices

IMAGE, GRID = (64, 64), (8, 8)
PX = torch.tensor([[40.0, 48.0, 32.0, 24.0]])


def translated(frames: int, step) -> torch.Tensor:
    c2w = torch.eye(4, dtype=torch.float64).repeat(1, frames, 1, 1)
    c2w[0, :, :3, 3] = torch.arange(frames)[:, None] * torch.tensor(step, dtype=torch.float64)
    return c2w


def test_the_vector_holds_pose_and_latent_intrinsics():
    camera, _ = camera_inputs(translated(25, (0.0, 0.0, 0.1)), PX, IMAGE, GRID)
    assert camera.shape == (1, 4, 20) and camera.dtype == torch.float64
    assert camera[0, 0].tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 5, 6, 4, 3]
    assert torch.allclose(
        camera[0, :, 11], torch.tensor([0, 0.8, 1.6, 2.4], dtype=torch.float64)
    )  # raw frame 8f, third row's fourth number


def test_plucker_of_known_cells():
    c2w = translated(25, (0.1, 0.0, 0.0))
    _, plucker = camera_inputs(c2w, PX, IMAGE, GRID)
    assert plucker.shape == (1, 48, 4, 8, 8)
    centre = plucker[0, :, :, 3, 4].unflatten(0, (8, 6))  # (8, 6, T): cx = 4, cy = 3 looks straight ahead
    assert torch.allclose(centre[:, :3], torch.tensor([0.0, 0, 1]).double()[None, :, None].expand(8, 3, 4))
    # t x d = (x, 0, 0) x (0, 0, 1) = (0, -x, 0)
    x = 0.1 * raw_frames_of_latents(25).T.double()  # (8, T)
    assert torch.allclose(centre[:, 3:], torch.stack([0 * x, -x, 0 * x], 1))
    right = plucker[0, :3, 0, 3, 5]  # one cell to the right: slope 1 / fx = 0.2
    assert torch.allclose(right, torch.tensor([0.2, 0, 1]).double() / 1.04**0.5)


def test_which_raw_frames_a_latent_packs():
    opening = raw_frames_of_latents(25).tolist()
    assert opening == [
        list(range(8)),
        list(range(1, 9)),
        list(range(9, 17)),
        list(range(17, 25)),
    ]  # latent 0 sees the future
    assert raw_frames_of_latents(24, opens=False).tolist() == [
        list(range(8)),
        list(range(8, 16)),
        list(range(16, 24)),
    ]
    assert raw_frames_of_latents(1).tolist() == [[0] * 8]


def test_a_clip_in_chunks_is_the_clip():
    c2w = paths(8 * 9 + 1)
    whole = camera_inputs(c2w, PX, IMAGE, GRID)
    parts = [camera_inputs(c2w[:, :25], PX, IMAGE, GRID)]
    parts += [camera_inputs(c2w[:, a : a + 24], PX, IMAGE, GRID, opens=False) for a in (25, 49)]
    cameras, maps = zip(*parts, strict=True)
    assert torch.equal(whole[0], torch.cat(cameras, 1)) and torch.equal(whole[1], torch.cat(maps, 2))


@pytest.mark.parametrize(("frames", "opens"), [(0, True), (24, True), (25, False), (0, False)])
def test_a_wrong_number_of_poses_is_refused(frames, opens):
    with pytest.raises(ValueError, match=f"got {frames} poses"):
        camera_inputs(translated(frames, (0, 0, 0)), PX, IMAGE, GRID, opens)


def test_ray_matrices_of_known_cells():
    camera = torch.zeros(1, 1, 20, dtype=torch.float64)
    camera[..., :16] = torch.eye(4).flatten()
    camera[..., 3] = 2.0  # two metres to the right
    camera[..., 16:] = torch.tensor([5.0, 5.0, 1.0, 0.0])
    rays, rays_inv = ray_matrices(camera, 1, 3)
    ahead = torch.eye(4, dtype=torch.float64)
    ahead[0, 3] = -2.0
    assert torch.allclose(rays[0, 0, 1], ahead)  # cell (0, 1) looks along z: axes x, y, z
    z = torch.tensor([0.2, 0, 1]).double() / 1.04**0.5
    assert torch.allclose(rays[0, 0, 2, 2, :3], z)  # third row is the ray itself
    assert torch.allclose(rays[0, 0, 2, 1, :3], torch.tensor([0.0, 1, 0]).double())
    origin = torch.tensor([2.0, 0, 0, 1]).double()
    assert torch.allclose(rays[0, 0] @ origin, torch.tensor([0.0, 0, 0, 1]).double().expand(3, 4))
    assert torch.allclose(rays_inv[0, 0, :, :3, 3], origin[:3].expand(3, 3))


def test_cells_without_a_ray_get_the_identity():
    camera = torch.zeros(1, 1, 20)
    camera[..., :16] = torch.eye(4).flatten()
    camera[..., 16:] = torch.tensor([0.0, 5.0, 0.0, 0.0])  # fx = 0: 0 / 0 in the first column
    rays, rays_inv = ray_matrices(camera, 1, 2)
    assert torch.equal(rays[0, 0, 0], torch.eye(4)) and torch.equal(rays_inv[0, 0, 0], torch.eye(4))
