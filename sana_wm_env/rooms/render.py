"""The exact renderer: one ray per sample against axis-aligned boxes, batched, on any device.

`render` takes the compiled renderer (render_native.py) on a CPU that has a compiler, else `render_reference`,
the same in plain torch.

Antialiasing is two-fold: every pixel averages SAMPLES x SAMPLES rays (edges), and the surface patterns are
filtered over the footprint of a ray, fading to their mean where they get finer than that (surfaces).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import render_native
from .scene import CEILING, FLOOR, WALLS, Scenes

SAMPLES = 2
HAZE = (0.62, 0.64, 0.68)
AXIS_TONE = (0.90, 1.0, 0.76)  # walls along x and z differ in brightness, so that corners show


class Render(NamedTuple):
    """rgb: (B, F, H, W, 3) uint8; depth_m: (B, F, H, W) float32 along the optical axis, of the nearest sample
    of the pixel.
    """

    rgb: Tensor
    depth_m: Tensor


@torch.inference_mode()
def render(
    scenes: Scenes, c2w: Tensor, intrinsics_px: Tensor | tuple[float, ...], size: tuple[int, int]
) -> Render:
    """Renders B rooms from F cameras each.

    Args:
        scenes: B rooms.
        c2w: (B, F, 4, 4) camera-to-world in the room's frame, OpenCV axes, metres.
        intrinsics_px: (4,) or (B, 4) as fx, fy, cx, cy in pixels; pixel (x, y) covers [x, x + 1] x [y, y +
            1].
        size: (height, width) of the image.
    """
    if scenes.device.type == "cpu" and render_native.available():
        intrinsics = torch.as_tensor(intrinsics_px, dtype=torch.float32, device="cpu")
        return Render(*render_native.render(scenes, c2w, intrinsics, size))
    return render_reference(scenes, c2w, intrinsics_px, size)


@torch.inference_mode()
def render_reference(
    scenes: Scenes, c2w: Tensor, intrinsics_px: Tensor | tuple[float, ...], size: tuple[int, int]
) -> Render:
    """Renders in plain torch; the compiled renderer is within one grey level of it, but for pixels on
    edges.
    """
    batch, frames = c2w.shape[:2]
    device = scenes.device
    intrinsics = torch.as_tensor(intrinsics_px, dtype=torch.float32, device=device).expand(batch, 4)
    rays = _camera_rays(intrinsics, size)  # (B, 3, R)
    poses = c2w.to(device, torch.float32).flatten(0, 1)  # (B*F, 4, 4)
    owner = torch.arange(batch, device=device).repeat_interleave(frames)
    per_call = (
        4 if device.type == "cpu" else 256
    )  # a few frames fit the cache of a CPU core; a GPU wants many
    rgb = torch.empty(batch * frames, *size, 3, dtype=torch.uint8, device=device)
    depth_m = torch.empty(batch * frames, *size, dtype=torch.float32, device=device)
    for begin in range(0, len(poses), per_call):
        part = slice(begin, begin + per_call)
        which = owner[part]
        colour, depth = _shade(scenes, which, poses[part], rays[which], intrinsics[which, 0])
        colour = colour.unflatten(-1, (SAMPLES**2, *size)).mean(2)  # (n, 3, H, W)
        rgb[part] = (colour.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        depth_m[part] = depth.unflatten(-1, (SAMPLES**2, *size)).amin(1)
    return Render(rgb.unflatten(0, (batch, frames)), depth_m.unflatten(0, (batch, frames)))


def _camera_rays(intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """Directions with z = 1 in the camera frame, (B, 3, R), R = SAMPLES^2 * H * W with the samples
    outermost.
    """
    height, width = size
    device = intrinsics.device
    offset = (torch.arange(SAMPLES, dtype=torch.float32, device=device) + 0.5) / SAMPLES
    x = (torch.arange(width, device=device) + offset[:, None])[None, :, None, :]  # (1, sx, 1, W)
    y = (torch.arange(height, device=device) + offset[:, None])[:, None, :, None]  # (sy, 1, H, 1)
    fx, fy, cx, cy = (value[:, None, None, None, None] for value in intrinsics.unbind(-1))
    grid = (len(intrinsics), SAMPLES, SAMPLES, height, width)
    directions = torch.stack(
        [
            ((x - cx) / fx).expand(grid),
            ((y - cy) / fy).expand(grid),
            torch.ones(grid, dtype=torch.float32, device=device),
        ],
        1,
    )
    return directions.flatten(2)


def _shade(
    scenes: Scenes, which: Tensor, poses: Tensor, rays: Tensor, focal: Tensor
) -> tuple[Tensor, Tensor]:
    """Colour (n, 3, R) and depth (n, R) of n frames; `which` names the room of each frame."""
    direction = poses[:, :3, :3] @ rays  # (n, 3, R)
    direction = torch.where(direction.abs() < 1e-6, 1e-6, direction)
    origin = poses[:, :3, 3, None]  # (n, 3, 1)
    inverse = 1 / direction
    start = -origin * inverse

    depth, box = _first_surface(scenes, which, inverse, start)
    boxes = torch.cat([scenes.air, scenes.solids], 1)[which].flatten(2).mT  # (n, 6, K)
    low, high = boxes.gather(2, box[:, None].expand(-1, 6, -1)).chunk(2, 1)  # (n, 3, R) each
    point = origin + depth[:, None] * direction  # (n, 3, R)
    gap = torch.minimum((point - low).abs(), (high - point).abs())  # to the nearer face of each axis
    axis = torch.where(
        gap[:, 1] < torch.minimum(gap[:, 0], gap[:, 2]), 1, torch.where(gap[:, 0] < gap[:, 2], 0, 2)
    )

    horizontal = axis == 1
    looking_down = direction[:, 1] > 0
    surface = torch.where(box == 0, WALLS, box + WALLS)
    in_air = box < scenes.air.shape[1]
    surface = torch.where(in_air & horizontal, torch.where(looking_down, FLOOR, CEILING), surface)
    table = scenes.materials[which].mT  # (n, MATERIAL_FIELDS, MATERIALS)
    material = table.gather(2, surface[:, None].expand(-1, table.shape[1], -1)).unbind(1)

    x, y, z = point.unbind(1)
    u = torch.where(axis == 0, z, x)
    v = torch.where(horizontal, z, y)
    along = direction.gather(1, axis[:, None])[:, 0].abs()  # component along the surface normal
    footprint = 0.6 * depth * rays.square().sum(1) / (focal[:, None] * along)
    pattern = _pattern(material, u, v, footprint)

    to_lamp = scenes.lamp[which][:, :, None] - point
    distance2 = to_lamp.square().sum(1)
    facing = to_lamp.gather(1, axis[:, None])[:, 0].abs() * distance2.rsqrt()
    tone = torch.tensor(AXIS_TONE, dtype=torch.float32, device=depth.device)[axis]
    light = tone * (0.62 + 0.55 * facing / (1 + distance2 / 20))
    clear = torch.exp(depth * (-1 / 22))
    colour = torch.stack(
        [
            ((material[c] + (material[3 + c] - material[c]) * pattern) * light - HAZE[c]) * clear + HAZE[c]
            for c in range(3)
        ],
        1,
    )
    return colour, depth


def _first_surface(scenes: Scenes, which: Tensor, inverse: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The end of each ray: depth (n, R) and index (n, R) of the box, air boxes first."""
    enter, leave = _slabs(scenes.air[which], inverse, start)  # (n, 1 + ALCOVES, R)
    depth, box = leave[:, 0], torch.zeros_like(leave[:, 0], dtype=torch.long)
    for alcove in range(1, enter.shape[1]):
        through = (enter[:, alcove] <= leave[:, 0] + 1e-4) & (leave[:, alcove] > leave[:, 0] + 1e-4)
        depth = torch.where(through, leave[:, alcove], depth)
        box = box.masked_fill(through, alcove)
    enter_solid, leave_solid = _slabs(scenes.solids[which], inverse, start)  # (n, SOLIDS, R)
    met = torch.where((leave_solid > enter_solid) & (enter_solid > 0), enter_solid, torch.inf)
    nearest, solid = met.min(1)
    blocked = nearest < depth
    return torch.where(blocked, nearest, depth), torch.where(blocked, solid + enter.shape[1], box)


def _slabs(boxes: Tensor, inverse: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Depths (n, K, R) at which rays enter and leave K boxes (n, K, 2, 3); they miss a box if they leave
    before they enter.
    """
    near, far = [], []
    for axis in range(3):
        first = torch.addcmul(start[:, None, axis], boxes[:, :, 0, axis, None], inverse[:, None, axis])
        second = torch.addcmul(start[:, None, axis], boxes[:, :, 1, axis, None], inverse[:, None, axis])
        near.append(torch.minimum(first, second))
        far.append(torch.maximum(first, second))
    return torch.maximum(torch.maximum(near[0], near[1]), near[2]), torch.minimum(
        torch.minimum(far[0], far[1]), far[2]
    )


def _pattern(material: tuple[Tensor, ...], u: Tensor, v: Tensor, footprint: Tensor) -> Tensor:
    """The share of the second colour in a sample, 0 to 1."""
    frequency_u, frequency_v, offset_u, offset_v, along_u, along_v, product, gradient, duty, row_shift = (
        material[6:16]
    )
    v_cells = v * frequency_v + offset_v
    u_cells = u * frequency_u + offset_u + row_shift * v_cells.floor()
    wave_u = _wave(u_cells, duty, footprint * frequency_u)
    wave_v = _wave(v_cells, duty, footprint * frequency_v)
    ramp = 0.5 + 0.5 * torch.sin(6.2832 * v_cells)
    return along_u * wave_u + along_v * wave_v + product * wave_u * wave_v + gradient * ramp


def _wave(cells: Tensor, duty: Tensor, footprint: Tensor) -> Tensor:
    """A periodic bar that is 1 for a share `duty` of each period of length 1, filtered over `footprint`
    periods.
    """
    ridge = (cells - cells.floor() - 0.5).abs()  # 0.5 in the middle of the bar
    bar = ((ridge - (0.5 - duty / 2)) / footprint.clamp(min=1e-3) + 0.5).clamp(0, 1)
    return torch.lerp(bar, duty, ((footprint - 0.4) / 0.5).clamp(0, 1))
