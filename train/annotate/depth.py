"""Metric depth of a clip: files that an estimator has written, or MoGe-2 where it is installed.

Files lie in one folder: `NAME.npz` (an array `depth_m`) or `NAME.npy`, (F, h, w) in metres along the optical
axis, of any resolution; or a folder `NAME` with an array (h, w) per frame, in the order of their names. NAME
is the key of a clip, whose F frames they then are, or that of a video, whose frames as they are stored they
are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sana_wm_env.arrays import read_array
from sana_wm_env.camera import Array
from sana_wm_env.extras import check_installed

from ..data.sidecars import ClipError
from .frames import read_frames
from .poses import Clip

MOGE = "Ruicheng/moge-2-vitl"
MOST_PIXELS = 255_000
"""Of a depth map, as the authors scale theirs."""


def read_depth(folder: Path, clip: Clip, video_key: str) -> Array:
    """Depth maps (F, h, w) of the frames of a clip. ClipError if there are none, or too few."""
    if (found := _find(folder, clip.key)) is not None:
        maps = _load(found)
        if len(maps) != clip.frames:
            raise _wrong(found, len(maps), clip.frames, "clip")
        return maps
    if (found := _find(folder, video_key)) is None:
        raise ClipError(
            "no depth", f"got no depth for {clip.key} in {folder.name}; wanted {clip.key}.npz with depth_m"
        )
    maps = _load(found)
    if len(maps) <= clip.chosen.max():
        raise _wrong(found, len(maps), int(clip.chosen.max()) + 1, "video")
    return np.rot90(maps[clip.chosen], clip.turn, axes=(1, 2))


def check_moge() -> None:
    """ValueError if MoGe is not installed."""
    check_installed("moge", "--depth moge")


def estimate_depth(clip: Clip, device: str = "cpu") -> Array:
    """Depth maps (F, h, w) float16 by MoGe-2, of frames of at most `MOST_PIXELS`."""
    import cv2
    import torch
    from moge.model.v2 import MoGeModel  # type: ignore[import-not-found]

    model = MoGeModel.from_pretrained(MOGE).to(device).eval()
    shrink = min(1.0, (MOST_PIXELS / (clip.size[0] * clip.size[1])) ** 0.5)
    maps = []
    for frame in read_frames(clip.video):
        small = cv2.resize(frame, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        with torch.inference_mode():
            picture = torch.from_numpy(small).to(device).movedim(-1, 0).float() / 255
            maps.append(model.infer(picture)["depth"].float().cpu().numpy().astype(np.float16))
    return np.stack(maps)


def _find(folder: Path, name: str) -> Path | None:
    candidates = (folder / f"{name}.npz", folder / f"{name}.npy", folder / name)
    return next((path for path in candidates if path.exists()), None)


def _load(path: Path) -> Array:
    try:
        if path.is_dir():
            maps = np.stack([read_array(file, "depth_m") for file in sorted(path.iterdir())])
        else:
            maps = read_array(path, "depth_m")
    except (ValueError, OSError) as error:
        raise ClipError("no depth", str(error)) from None
    if maps.ndim != 3:
        raise ClipError("no depth", f"got depth of shape {maps.shape} in {path.name}; wanted (F, h, w)")
    return maps


def _wrong(path: Path, got: int, wanted: int, whose: str) -> ClipError:
    return ClipError(
        "no depth",
        f"got {got} depth maps in {path.name} for the {wanted} frames of the {whose}; wanted one each",
    )
