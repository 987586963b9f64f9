"""From what an agent wants to how the camera moves.

An **action** is a point of a box with sides [-1, 1]: body twists in units of the largest allowed translation
and rotation. Its **mode** says how many pieces a chunk is divided into, each with a twist of its own. For
paths that people type see `keys.py`.
"""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .camera import CHUNK_FRAMES, FPS, Array, relative_to_first, step_twists, twist_path
from .numbers import to_array

__all__ = [
    "FPS",
    "PIECES",
    "Limits",
    "action_path",
    "action_space",
    "actions_from_path",
    "check_action",
    "check_whole_chunks",
    "least_limits",
    "twist_to_action",
]

PIECES = {"chunk": 1, "per_latent": 3, "per_frame": CHUNK_FRAMES}
"""Action mode -> pieces of equal length that a chunk is divided into, each driven by a constant twist."""

ROUNDING = 1e-6
"""How far beyond 1 an action may be: what float32 may add."""


class Limits(NamedTuple):
    """The fastest motion, whatever the action mode: along and about each axis of the camera.

    Attributes:
        translation_m: metres per chunk.
        rotation_rad: radians per chunk.
    """

    translation_m: float
    rotation_rad: float


def action_space(mode: str = "chunk") -> gym.spaces.Box:
    """`Box(-1, 1, (6 * pieces,), float32)`: (vx, vy, vz, wx, wy, wz) of each piece in turn, see
    `action_path`.
    """
    return gym.spaces.Box(-1, 1, (6 * _pieces(mode),), np.float32)


def action_path(
    action: Any, mode: str, limits: tuple[float, float], batch: tuple[int, ...] | None = None
) -> Array:
    """The poses of one chunk that an action asks for.

    Each piece moves with constant velocity in the frame that the camera has at its start. A piece lasts 24, 8
    or 1 frames in the modes "chunk", "per_latent" and "per_frame", and 1 stands for the share of the limit
    that falls to it: the same speed in every mode.

    Args:
        action: (..., 6 * pieces) within [-1, 1]: for each piece in turn the translation along x (right), y
            (down), z (forward), the rotation about x (looks up), y (turns right), z (rolls clockwise), in the
            frame of the camera.
        mode: one of `PIECES`.
        limits: what 1 stands for over a whole chunk, in metres and radians; see `Limits`.
        batch: the leading axes that are wanted, () for a single action; None takes any.

    Returns:
        (..., 24, 4, 4) float64 relative to the camera before the chunk. Every member of a batch is exactly
        what it is alone. Pieces of zeros leave the pose exactly where it was.

    Raises:
        ValueError: unknown mode, wrong shape, not numbers, NaN, out of range. Nothing is clipped: an agent
            that leaves the box should know.
    """
    pieces = _pieces(mode)
    checked = check_action(action, mode, batch)
    twists = checked.reshape(*checked.shape[:-1], pieces, 6)
    paths = twist_path(
        twists * np.repeat(np.asarray(limits) / pieces, 3), CHUNK_FRAMES // pieces
    )  # (..., pieces, 24 / pieces, 4, 4)
    parts = [paths[..., 0, :, :, :]]
    for piece in range(
        1, pieces
    ):  # plain products: over one chunk rounding does not add up, and identities change nothing
        parts.append(parts[-1][..., -1:, :, :] @ paths[..., piece, :, :, :])
    return np.concatenate(parts, axis=-3)


def least_limits(twists: ArrayLike) -> Limits:
    """The smallest limits, rounded up to four decimals, with which twists (..., 6) of a whole chunk can be
    driven.
    """
    fastest = np.abs(np.asarray(twists, np.float64)).reshape(-1, 2, 3).max(axis=(0, 2))
    return Limits(*(np.ceil(fastest * (1 - ROUNDING) * 1e4) / 1e4).tolist())


def twist_to_action(twist: ArrayLike, limits: tuple[float, float]) -> NDArray[np.float32]:
    """The action of mode "chunk" that drives a twist.

    Args:
        twist: (..., 6) of a whole chunk, metres and radians, as `camera.twist` and `camera.path_twist` give
            it.
        limits: as in `action_path`.

    Returns:
        (..., 6) float32 within [-1, 1].

    Raises:
        ValueError: faster than the limits, or NaN; the message says by how much and what to set.
    """
    twist = np.asarray(twist, np.float64)
    if not np.isfinite(twist).all():
        raise ValueError("got a twist with NaN or infinity; wanted 6 numbers each, metres and radians")
    needed = least_limits(twist)
    if (np.asarray(needed) > np.asarray(limits) * (1 + ROUNDING)).any():
        enough = np.maximum(needed, limits)
        raise ValueError(
            f"got a motion of up to {needed[0]:.10g} m and {needed[1]:.10g} rad per chunk along and about "
            "one axis; wanted at most "
            f"{limits[0]:.10g} m and {limits[1]:.10g} rad: slow it down, or make the environment with "
            f"max_translation_m={enough[0]:.10g}, max_rotation_rad={enough[1]:.10g}"
        )
    return np.clip(twist / np.repeat(limits, 3), -1, 1).astype(np.float32)


def actions_from_path(c2w: ArrayLike, limits: tuple[float, float]) -> NDArray[np.float32]:
    """The actions that take a camera along any path, such as that of `keys_to_path`.

        env = gym.make("SanaWM-v0", action_mode="per_frame")
        limits = env.unwrapped.max_translation_m, env.unwrapped.max_rotation_rad
        for action in actions_from_path(path, limits):
            env.step(action)

    Args:
        c2w: (24 K + 1, 4, 4) camera-to-world in OpenCV axes and metres, in any world; the first pose is where
            the camera already is.
        limits: as in `action_path`.

    Returns:
        (K, 144) float32, actions of mode "per_frame".

    Raises:
        ValueError: as `check_poses`, a wrong number of poses, or faster than the limits.
    """
    poses = relative_to_first(c2w)
    try:
        chunks = check_whole_chunks(len(poses) - 1)
    except ValueError as error:
        raise ValueError(
            f"got {len(poses)} poses, the first of which is where the camera already is: {error}"
        ) from None
    return twist_to_action(step_twists(poses) * CHUNK_FRAMES, limits).reshape(chunks, -1)


def check_whole_chunks(frames: int) -> int:
    """Returns the number of chunks in `frames` new frames; ValueError that names the two nearest legal counts
    otherwise.
    """
    chunks, remainder = divmod(frames, CHUNK_FRAMES)
    if chunks < 1 or remainder:
        lower = max(chunks, 1) * CHUNK_FRAMES
        raise ValueError(
            f"got {frames} frames; wanted a multiple of {CHUNK_FRAMES} (a world imagines {CHUNK_FRAMES} "
            "frames at a time): "
            f"the nearest are {lower} and {lower + CHUNK_FRAMES}"
        )
    return chunks


def _pieces(mode: str) -> int:
    if not isinstance(mode, str) or mode not in PIECES:
        raise ValueError(f"got action_mode={mode!r}; wanted one of {', '.join(PIECES)}")
    return PIECES[mode]


def check_action(action: Any, mode: str, batch: tuple[int, ...] | None = None) -> Array:
    """Returns an action, or a batch of them, as fresh float64 within [-1, 1]; ValueError as of
    `action_path`.
    """
    pieces = _pieces(mode)
    size = " x ".join(map(str, (*(batch or ()), 6 * pieces)))
    twists = "one twist" if pieces == 1 else f"{pieces} twists in one row, each"
    wanted = (
        f"{size} numbers within [-1, 1] for action_mode={mode!r}: {twists} "
        f"(vx, vy, vz, wx, wy, wz) of {CHUNK_FRAMES // pieces} frame{'s' * (pieces < CHUNK_FRAMES)}"
    )
    given = to_array(action, "an action", wanted)
    if given.shape[-1:] != (6 * pieces,) or (batch is not None and given.shape[:-1] != tuple(batch)):
        raise ValueError(f"got an action of shape {given.shape}; wanted {wanted}")
    for wrong, fault in (
        (~np.isfinite(given), "NaN or infinity"),
        (np.abs(given) > 1 + ROUNDING, "a number out of range"),
    ):
        if wrong.any():
            index = np.argwhere(wrong)[0].tolist()
            advice = (
                ". Wrap the environment in ClipAction or RescaleAction" if np.isfinite(given).all() else ""
            )
            raise ValueError(
                f"got an action with {fault} at {index}: {float(given[tuple(index)])!r}; "
                f"wanted {wanted}{advice}"
            )
    return np.clip(given, -1, 1)
