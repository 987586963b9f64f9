"""Small videos with poses, as users have them, and as they break them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sana_wm_env.camera import twist_path
from sana_wm_env.video import VideoWriter

SIZE = (48, 80)
INTRINSICS = [60.0, 60.0, 42.0, 23.0]


def path_of(frames: int) -> np.ndarray:
    """Poses (F, 4, 4) of a curve through a world whose origin is elsewhere."""
    start = twist_path([3, -1, 2, 0.3, 0.8, -0.2], 1)
    return start @ np.concatenate(
        [np.eye(4)[None], twist_path([0.1, 0.05, 0.4, 0.02, 0.3, 0.01], frames - 1)]
    )


def write_video(path: Path, frames: int, fps: int = 16, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A video in which frame i is grey with a level that grows with i. Returns the frames."""
    made = np.broadcast_to(
        np.arange(frames, dtype=np.uint8)[:, None, None, None] * 2 + 20, (frames, *size, 3)
    ).copy()
    with VideoWriter(path, fps, min_height=0, crf=1) as writer:
        writer.write(made)
    return made


def write_clip(
    folder: Path, name: str, frames: int = 33, rate: int = 16, json_: bool = True, **changes: Any
) -> Path:
    """A video of so many frames at `rate` per second and its sidecar, some of whose fields are changed, or
    left out if None.
    """
    write_video(folder / f"{name}.mp4", frames, rate)
    fields = {
        "c2w": path_of(frames),
        "convention": "opencv",
        "intrinsics_px": INTRINSICS,
        "image_size": SIZE,
    } | changes
    fields = {key: value for key, value in fields.items() if value is not None}
    if json_:
        plain = {
            key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in fields.items()
        }
        (folder / f"{name}.json").write_text(json.dumps(plain))
    else:
        np.savez(folder / f"{name}.npz", **fields)
    return folder / f"{name}.mp4"
