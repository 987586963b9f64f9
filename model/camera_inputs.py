"""Camera poses to the network's two inputs: a 20-vector and a 48-channel ray map per latent frame
(model/README.md sections 6.1 and 6.4).

Poses are camera-to-world matrices in OpenCV axes (+x right, +y down, +z forward), metres, relative to raw
frame 0 of the session.
"""

import torch
from torch import Tensor

from .network.rays import pixel_rays, unit

STRIDE = 8  # raw frames per latent frame


def camera_inputs(
    c2w: Tensor, intrinsics_px: Tensor, image_size: tuple[int, int], grid: tuple[int, int], opens: bool = True
) -> tuple[Tensor, Tensor]:
    """Camera inputs of a clip or of one streaming chunk.

    Args:
        c2w: (B, F, 4, 4) poses of the raw frames, relative to raw frame 0. With `opens` the first one is raw
            frame 0 itself and F = 8 (T - 1) + 1; otherwise the frames follow earlier chunks and F = 8 T (24
            for a chunk of 3 latents).
        intrinsics_px: (B, 4) fx, fy, cx, cy in pixels.
        image_size: height and width of the image that the intrinsics belong to.
        grid: height and width of the latent.
        opens: whether the clip begins at raw frame 0.

    Returns:
        camera (B, T, 20) and plucker (B, 48, T, h, w), in the dtype and on the device of c2w.

    Raises:
        ValueError: on any other number of frames.
    """
    frames = c2w.shape[1]
    if frames < 1 or frames % STRIDE != int(opens):
        wanted = "8 (T - 1) + 1 with raw frame 0 first" if opens else "8 T"
        raise ValueError(
            f"got {frames} poses; a clip that {'opens' if opens else 'continues'} a session has {wanted}"
        )
    intrinsics = latent_intrinsics(intrinsics_px.to(c2w), image_size, grid)
    keyed = c2w[:, ::STRIDE] if opens else c2w[:, STRIDE - 1 :: STRIDE]  # raw frame 8f belongs to latent f
    camera = torch.cat([keyed.flatten(2), intrinsics[:, None].expand(-1, keyed.shape[1], -1)], -1)
    rays = plucker_rays(c2w, intrinsics, grid)  # (B, F, S, 6)
    # (B, T, 8, S, 6) -> (B, 48, T, h, w), channel = 6 * place in the group + component
    packed = rays[:, raw_frames_of_latents(frames, opens).to(c2w.device)]
    return camera, packed.permute(0, 2, 4, 1, 3).flatten(1, 2).unflatten(-1, grid).contiguous()


def raw_frames_of_latents(frames: int, opens: bool = True) -> Tensor:
    """Returns the indices (T, 8) of the given poses, `frames` in number, that each latent frame packs.

    Latent f packs raw frames 8f - 7 to 8f. Latent 0 has no seven frames before it and packs 0 to 7, so it
    sees poses of the *future*; the last pose is repeated where a clip ends before raw frame 7.
    """
    if not opens:
        return torch.arange(frames, device="cpu").unflatten(0, (-1, STRIDE))
    starts = torch.arange(1 - STRIDE, frames - STRIDE + 1, STRIDE, device="cpu").clamp(min=0)
    return (starts[:, None] + torch.arange(STRIDE, device="cpu")).clamp(max=frames - 1)


def latent_intrinsics(intrinsics_px: Tensor, image_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """fx, fy, cx, cy (..., 4) of an image of (height, width) pixels, in units of latent cells."""
    down, across = grid[0] / image_size[0], grid[1] / image_size[1]
    return intrinsics_px * torch.tensor(
        [across, down, across, down], dtype=intrinsics_px.dtype, device=intrinsics_px.device
    )


def plucker_rays(c2w: Tensor, intrinsics: Tensor, grid: tuple[int, int]) -> Tensor:
    """Plücker coordinates (unit direction d, moment t x d) in world axes: c2w (B, F, 4, 4), latent intrinsics
    (B, 4) -> (B, F, S, 6).
    """
    d = unit(pixel_rays(intrinsics, *grid)[:, None] @ c2w[..., :3, :3].mT)  # (B, F, S, 3)
    moment = torch.linalg.cross(c2w[..., None, :3, 3].expand_as(d), d)
    return torch.cat([d, moment], -1)
