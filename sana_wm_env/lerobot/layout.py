"""Names of files and columns, as LeRobotDataset v3.0 has them, and an episode as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..camera import FPS

VERSION = "v3.0"
CAMERA = "observation.images.camera"
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES = f"meta/episodes/{FILE}.parquet"
DATA = f"data/{FILE}.parquet"
VIDEO = f"videos/{{video_key}}/{FILE}.mp4"
FILES_PER_CHUNK = 1000
AXES = ["right", "down", "forward", "look_up", "turn_right", "roll"]
STATE = ["x", "y", "z", "right_x", "right_y", "right_z", "down_x", "down_y", "down_z"]

COLUMNS: dict[str, tuple[str, int, list[str] | None]] = {
    "observation.state": ("float32", 9, STATE),
    "action": ("float32", 6, AXES),
    "next.reward": ("float64", 1, None),
    "next.done": ("bool", 1, None),
    "has_action": ("bool", 1, None),
    "camera.c2w": ("float64", 16, None),
    "camera.intrinsics_px": ("float64", 4, ["fx", "fy", "cx", "cy"]),
    "timestamp": ("float32", 1, None),
    "frame_index": ("int64", 1, None),
    "episode_index": ("int64", 1, None),
    "index": ("int64", 1, None),
    "task_index": ("int64", 1, None),
}
"""Of a row: dtype, numbers, their names."""


@dataclass(frozen=True)
class Recorded:
    """One episode of F = 24 K + 1 frames.

    Attributes:
        frames: uint8 (F, H, W, 3), RGB.
        c2w: (F, 4, 4) float64 relative to the first frame, OpenCV axes, metres.
        intrinsics_px: (4,) fx, fy, cx, cy in pixels of the frames.
        actions: (K, 6 n) float32 as the environment took them, n pieces of each.
        rewards: (K,) float64.
        task: in words; the world that it is of.
        seed: -1 where it is not known.
    """

    frames: np.ndarray
    c2w: np.ndarray
    intrinsics_px: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    task: str
    seed: int = -1

    def __post_init__(self) -> None:
        """Raises ValueError where counts do not fit."""
        steps, frames = len(self.actions), len(self.frames)
        if (
            frames < 2
            or steps < 1
            or (frames - 1) % steps
            or len(self.c2w) != frames
            or len(self.rewards) != steps
        ):
            raise ValueError(
                f"got an episode of {frames} frames, {len(self.c2w)} poses, {steps} actions and "
                f"{len(self.rewards)} rewards; wanted K actions and rewards, and 24 K + 1 frames and poses"
            )
        pieces, rest = divmod(self.actions.shape[1], 6)
        if rest or not pieces or (frames - 1) // steps % pieces:
            raise ValueError(f"got actions of {self.actions.shape[1]} numbers; wanted 6, 18 or 144")

    def columns(self, episode: int, first: int, task: int) -> dict[str, np.ndarray]:
        """The columns of its rows (F, n): an action stands beside the frame that it leads on from."""
        count, steps = len(self.frames), len(self.actions)
        per_step = (count - 1) // steps
        pieces = self.actions.astype(np.float32).reshape(-1, 6)  # (K n, 6)
        actions = np.concatenate([pieces.repeat((count - 1) // len(pieces), 0), np.zeros((1, 6), np.float32)])
        rewards, rows = np.zeros(count), np.arange(count)
        rewards[per_step - 1 : count - 1 : per_step] = self.rewards
        pose = np.concatenate([self.c2w[:, :3, 3], self.c2w[:, :3, 0], self.c2w[:, :3, 1]], 1)
        return {
            "observation.state": pose.astype(np.float32),
            "action": actions,
            "next.reward": rewards,
            "next.done": rows >= count - 2,
            "has_action": rows < count - 1,
            "camera.c2w": self.c2w.reshape(count, 16).astype(np.float64),
            "camera.intrinsics_px": np.tile(np.asarray(self.intrinsics_px, np.float64), (count, 1)),
            "timestamp": (rows / FPS).astype(np.float32),
            "frame_index": rows,
            "episode_index": np.full(count, episode),
            "index": first + rows,
            "task_index": np.full(count, task),
        }


def schema() -> pa.Schema:
    """Of the rows."""
    plain = {"float32": pa.float32(), "float64": pa.float64(), "bool": pa.bool_(), "int64": pa.int64()}
    return pa.schema(
        [
            (name, plain[kind] if size == 1 else pa.list_(plain[kind], size))
            for name, (kind, size, _) in COLUMNS.items()
        ]
    )


def to_table(columns: dict[str, np.ndarray]) -> pa.Table:
    """Rows as pyarrow has them."""
    arrays = []
    for field in schema():
        values = columns[field.name]
        if values.ndim == 1:
            arrays.append(pa.array(values, field.type))
        else:
            flat = pa.array(values.reshape(-1), field.type.value_type)
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, values.shape[1]))
    return pa.Table.from_arrays(arrays, schema=schema())


def describe_features(height: int, width: int) -> dict[str, Any]:
    """The features of info.json."""
    video = {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": FPS,
        "video.channels": 3,
        "has_audio": False,
    }
    camera = {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": video,
    }
    rows = {
        name: {"dtype": kind, "shape": [size], "names": names}
        for name, (kind, size, names) in COLUMNS.items()
    }
    return {CAMERA: camera, **rows}
