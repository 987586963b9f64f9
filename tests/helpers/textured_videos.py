"""Walks through rooms with rich surfaces, as people's videos: what `sana-wm annotate` gets, and the truth."""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch

from sana_wm_env.rooms import FOCAL, HELD_OUT
from sana_wm_env.rooms.paths import sample_starts, twist_paths
from sana_wm_env.rooms.scene import sample_scenes
from sana_wm_env.rooms.texture import render_textured
from sana_wm_env.video import VideoWriter

SIDEWAYS = (0.45, 0.02, 0.15, 0.02, -0.12, 0.0)
TURN = (0.0, 0.0, 0.0, 0.02, 0.28, 0.0)
STILL = (0.0,) * 6


@dataclass(frozen=True)
class Walk:
    """frames (F, H, W, 3) uint8, c2w (F, 4, 4) relative to the first, depth_m (F, H, W), intrinsics (4,)."""

    frames: np.ndarray
    c2w: np.ndarray
    depth_m: np.ndarray
    intrinsics_px: tuple[float, ...]

    def __getitem__(self, part: slice) -> "Walk":
        first = np.linalg.inv(self.c2w[part][0])
        return Walk(self.frames[part], first @ self.c2w[part], self.depth_m[part], self.intrinsics_px)


def render_walk(
    twist: tuple[float, ...] = SIDEWAYS, frames: int = 33, size: tuple[int, int] = (160, 160), room: int = 3
) -> Walk:
    """A constant motion per 24 frames through a held-out room."""
    seed = HELD_OUT + room
    scenes = sample_scenes([seed])
    start = sample_starts(scenes, [seed])
    c2w = twist_paths(start, torch.tensor([[twist] * (-(-(frames - 1) // 24))]).double())[:, :frames]
    focal = FOCAL * max(size)
    intrinsics = (focal, focal, size[1] / 2, size[0] / 2)
    seen = render_textured(scenes, c2w, intrinsics, size, seed)
    relative = (torch.linalg.inv(c2w[:, :1]) @ c2w)[0].numpy()
    return Walk(seen.rgb[0].numpy(), relative, seen.depth_m[0].numpy(), intrinsics)


def write_frames(path: Path, frames: np.ndarray, fps: int = 16, turn: int = 0) -> Path:
    """A video of upright frames. turn: it is stored on its side and has the tag by which players turn it so
    many quarter turns to the left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.ascontiguousarray(np.rot90(frames, -turn, (1, 2)))
    plain = path.with_suffix(".plain.mp4") if turn else path
    with VideoWriter(plain, fps, min_height=0, crf=4) as writer:
        writer.write(stored)
    if turn:
        with av.open(str(plain)) as read, av.open(str(path), "w") as written:
            stream = written.add_stream_from_template(read.streams.video[0])
            stream.set_display_rotation(90 * turn)
            for packet in read.demux(read.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    written.mux(packet)
        plain.unlink()
    return path


def write_depth(path: Path, walk: Walk, noise: float = 0.1, turn: int = 0) -> None:
    """Metric depth maps of the frames as they are stored, which err by `noise` at each pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    errs = 1 + noise * np.random.default_rng(0).standard_normal(walk.depth_m.shape)
    maps = (walk.depth_m * errs).clip(0.01).astype(np.float16)
    np.savez(path, depth_m=np.rot90(maps, -turn, (1, 2)))
