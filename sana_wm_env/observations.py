"""What an agent sees: one function for the space, one for the value, both of a single episode."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from .camera import CHUNK_FRAMES, Array

Frames = NDArray[np.uint8]
Observation = Frames | dict[str, Any]
OBS_MODES = ("chunk", "last", "dict")
REACH_M = 10_000.0
"""Positions in observations stop at this many metres, because a Box should be bounded."""


class ChunkBox(gym.spaces.Box):
    """The space of chunks of frames, which prints what image policies want instead.

    Stable-Baselines3's `CnnPolicy` refuses four axes with a message that shows the space, and nothing of ours
    is asked before.
    """

    def __repr__(self) -> str:
        return (
            f"{super().__repr__()} (chunks of frames; for image policies: obs_mode='last', LastFrame or "
            "ChunkToChannels)"
        )


def image_space(image_size: tuple[int, int]) -> gym.spaces.Box:
    """uint8 (H, W, 3)."""
    return gym.spaces.Box(0, 255, (*image_size, 3), np.uint8)


def pose_space(poses: int = 1) -> gym.spaces.Box:
    """Space of `pose_vector` of that many poses, in a row: float32 (9 * poses,)."""
    high = np.tile(np.repeat(np.array([REACH_M, 1], np.float32), [3, 6]), poses)
    return gym.spaces.Box(-high, high, dtype=np.float32)


def pose_vector(c2w: Array) -> NDArray[np.float32]:
    """Poses (..., 4, 4) -> float32 (..., 9): position in metres, then the camera's x axis and its y axis.

    Two columns of the rotation tell all of it and, unlike angles or quaternions, never jump.
    """
    position = np.clip(c2w[..., :3, 3], -REACH_M, REACH_M)
    axes = np.clip(c2w[..., :3, :2], -1, 1).swapaxes(-1, -2)  # (..., 2, 3)
    return np.concatenate([position, axes.reshape(*c2w.shape[:-2], 6)], -1).astype(np.float32)


def camera_spaces() -> dict[str, gym.spaces.Box]:
    """Spaces of `camera_entries`."""
    return {"pose": pose_space(), "intrinsics": gym.spaces.Box(-25, 25, (4,), np.float32)}


def camera_entries(
    c2w: Array, intrinsics_px: Array, image_size: tuple[int, int]
) -> dict[str, NDArray[np.float32]]:
    """Returns the camera's entries of a dict observation: `pose` (9,), see `pose_vector`, and `intrinsics`
    (4,), relative to the image.

    Args:
        c2w: (4, 4) pose of the newest frame.
        intrinsics_px: (4,) fx, fy, cx, cy in pixels of the frames.
        image_size: (height, width) of the frames.
    """
    height, width = image_size
    relative = (intrinsics_px / [width, height, width, height]).astype(np.float32)
    return {"pose": pose_vector(c2w), "intrinsics": np.clip(relative, -25, 25)}


def observation_space(
    obs_mode: str, image_size: tuple[int, int], task_spaces: Mapping[str, gym.spaces.Box]
) -> gym.Space[Any]:
    """The space of `observe`.

    Args:
        obs_mode: one of OBS_MODES.
        image_size: (height, width) in pixels.
        task_spaces: what a task adds to "dict".

    Raises:
        ValueError: an unknown mode, a task that calls something `image`, `pose` or `intrinsics`, or whose
            spaces are none.
    """
    if obs_mode not in OBS_MODES:
        raise ValueError(f"got obs_mode={obs_mode!r}; wanted one of {', '.join(OBS_MODES)}")
    if obs_mode == "chunk":
        return ChunkBox(0, 255, (CHUNK_FRAMES, *image_size, 3), np.uint8)
    if obs_mode == "last":
        return image_space(image_size)
    entries: dict[str, gym.Space[Any]] = {"image": image_space(image_size), **camera_spaces()}
    if not isinstance(task_spaces, Mapping) or not all(
        isinstance(key, str) and isinstance(space, gym.Space) for key, space in task_spaces.items()
    ):
        raise ValueError(f"got spaces of a task {task_spaces!r:.80}; wanted a dict of spaces by name")
    if taken := sorted(entries.keys() & task_spaces):
        raise ValueError(
            f"got a task that adds {taken[0]!r} to the observation; wanted a key other than "
            f"{', '.join(entries)}"
        )
    return gym.spaces.Dict(entries | {**task_spaces})


def observe(
    obs_mode: str, frames: Frames, c2w: Array, intrinsics_px: Array, of_task: Mapping[str, Any]
) -> Observation:
    """Makes the observation after a reset or a step. Fresh arrays, but for `frames` itself in "chunk".

    Args:
        obs_mode: one of OBS_MODES.
        frames: (24, H, W, 3).
        c2w: (4, 4) pose of the newest frame.
        intrinsics_px: (4,) fx, fy, cx, cy in pixels of the frames.
        of_task: what the task adds to "dict".
    """
    if obs_mode == "chunk":
        return frames
    newest = frames[-1].copy()
    if obs_mode == "last":
        return newest
    return {"image": newest, **camera_entries(c2w, intrinsics_px, newest.shape[:2]), **of_task}
