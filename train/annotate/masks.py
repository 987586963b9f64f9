"""What moves in a clip, told by another tool: files of masks, one per video or clip.

`NAME.npz` (an array `moving`) or `NAME.npy`, (F, h, w), not zero where a person, a car or an animal is; NAME
and F as those of depth (`depth.py`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sana_wm_env.arrays import read_array

from ..data.sidecars import ClipError
from .poses import Clip


def read_valid(folder: Path, clip: Clip, video_key: str) -> NDArray[np.bool_]:
    """What is at rest: (F, H, W) at the size of the clip. ClipError if there are no masks, or too few."""
    import cv2

    for name, whole in ((clip.key, False), (video_key, True)):
        for suffix in (".npz", ".npy"):
            path = folder / f"{name}{suffix}"
            if path.exists():
                moving = _load(path)
                wanted = int(clip.chosen.max()) + 1 if whole else clip.frames
                if len(moving) < wanted:
                    raise ClipError(
                        "no masks",
                        f"got {len(moving)} masks in {path.name} for {wanted} frames; wanted one each",
                    )
                rows = np.rot90(moving[clip.chosen], clip.turn, axes=(1, 2)) if whole else moving
                height, width = clip.size
                return np.stack(
                    [
                        cv2.resize(
                            (row != 0).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST
                        )
                        == 0
                        for row in rows
                    ]
                )
    raise ClipError(
        "no masks", f"got no masks for {clip.key} in {folder.name}; wanted {clip.key}.npz with moving"
    )


def _load(path: Path) -> NDArray:
    try:
        moving = read_array(path, "moving")
    except (ValueError, OSError) as error:
        raise ClipError("no masks", str(error)) from None
    if moving.ndim != 3:
        raise ClipError("no masks", f"got masks of shape {moving.shape} in {path.name}; wanted (F, h, w)")
    return moving
