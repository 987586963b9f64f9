"""From what an agent or a player wants to how the camera moves.

An **action** is a point of `Box(-1, 1, (6,))`: the body twist of one chunk in units of the largest allowed translation and rotation.
A **key string** such as `"w-48,dw-24,none-24"` is a path for people: segments of pressed keys and how many frames they are held.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from .camera import CHUNK_FRAMES, Array

FPS = 16
"""Frames per second of every world."""


def action_space() -> gym.spaces.Box:
    """`Box(-1, 1, (6,), float32)`: (vx, vy, vz, wx, wy, wz), see `to_twist`."""
    return gym.spaces.Box(-1, 1, (6,), np.float32)


def to_twist(action: Any, max_translation_m: float, max_rotation_rad: float) -> Array:
    """Scales an action to the body twist of one chunk.

    Args:
        action: (6,) within [-1, 1]: translation along x (right), y (down), z (forward), rotation about x (looks up), y (turns right),
            z (rolls clockwise), all in the frame of the camera.
        max_translation_m: metres per chunk that 1 stands for.
        max_rotation_rad: radians per chunk that 1 stands for.

    Returns:
        (6,) float64, metres and radians.

    Raises:
        ValueError: wrong shape, not numbers, NaN, out of range. Nothing is clipped: an agent that leaves the box should know.
    """
    wanted = "wanted 6 numbers within [-1, 1]: (vx, vy, vz, wx, wy, wz)"
    try:
        given = np.array(action, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"got an action of type {type(action).__name__}; {wanted}") from None
    if given.shape != (6,):
        raise ValueError(f"got an action of shape {given.shape}; {wanted}")
    if not np.isfinite(given).all():
        raise ValueError(f"got the action {given} with NaN or infinity; {wanted}")
    if np.abs(given).max() > 1 + 1e-6:  # what rounding to float32 may add
        raise ValueError(f"got the action {given}; {wanted}. Wrap the environment in ClipAction or RescaleAction")
    return np.clip(given, -1, 1) * np.repeat([max_translation_m, max_rotation_rad], 3)


@dataclass(frozen=True)
class KeyScheme:
    """What the keys of a key string mean. Two schemes are in use, and `a`, `d`, `j`, `l` differ between them.

    Source: the official inference code (NVlabs/Sana, docs/sana_wm.md) before (`sana-v1`) and after (`sana-v2`) it gave the keys new
    meanings.

    Attributes:
        keys: key -> (motion, sign); motions are forward, strafe (right), yaw (right) and pitch (up).
        speed_m: metres per frame.
        turn_deg: degrees per frame.
        pitch_limit_deg: how far up and down the camera may look.
        saturate: at the limit pitch stops there; otherwise a frame that would exceed it does not pitch at all.
        smooth: velocities follow the keys with inertia.
        norm_floor: added to the length by which horizontal directions are divided.
    """

    keys: dict[str, tuple[str, int]]
    speed_m: float
    turn_deg: float
    pitch_limit_deg: float
    saturate: bool
    smooth: bool
    norm_floor: float


_WALK = {"w": ("forward", 1), "s": ("forward", -1), "i": ("pitch", 1), "k": ("pitch", -1)}
MOTIONS = ("forward", "strafe", "yaw", "pitch")
SCHEMES = {
    "sana-v1": KeyScheme(
        keys=_WALK | {"a": ("strafe", -1), "d": ("strafe", 1), "j": ("yaw", -1), "l": ("yaw", 1)},
        speed_m=0.05,
        turn_deg=1.2,
        pitch_limit_deg=85,
        saturate=False,
        smooth=False,
        norm_floor=0.0,
    ),
    "sana-v2": KeyScheme(
        keys=_WALK | {"a": ("yaw", -1), "d": ("yaw", 1), "j": ("strafe", -1), "l": ("strafe", 1)},
        speed_m=0.025,
        turn_deg=0.6,
        pitch_limit_deg=60,
        saturate=True,
        smooth=True,
        norm_floor=1e-6,
    ),
}
TIME_CONSTANTS_S = {"moving": 0.45, "stopping": 1.0}
"""Inertia: a velocity covers the share 1 - exp(-dt / time constant) of the way to its target per frame."""


def key_scheme(name: str) -> KeyScheme:
    """The scheme called `name`; ValueError that lists the names otherwise."""
    if name not in SCHEMES:
        raise ValueError(f"got the key scheme {name!r}; wanted one of {', '.join(SCHEMES)}: they disagree on what a, d, j and l do")
    return SCHEMES[name]


def parse_keys(text: str, scheme: str) -> list[frozenset[str]]:
    """Splits `"w-48,dw-24,none-24"` into the keys held in each frame.

    Raises:
        ValueError: names the segment that is not `<keys>-<count>`, the unknown key, or the unknown scheme.
    """
    known, held = key_scheme(scheme).keys, []
    for segment in text.split(","):
        keys, dash, count = segment.strip().partition("-")
        if not (keys and dash and count.isascii() and count.isdigit() and int(count)):
            raise ValueError(f"got the segment {segment.strip()!r} in {text!r}; wanted <keys>-<frames>, such as w-48, dw-24 or none-24")
        pressed = frozenset() if keys == "none" else frozenset(keys)
        if unknown := sorted(pressed - set(known)):
            raise ValueError(f"got the key {unknown[0]!r} in the segment {segment.strip()!r}; {scheme} has {' '.join(known)} and none")
        held += [pressed] * int(count)
    return held


def keys_to_path(text: str, scheme: str) -> Array:
    """The camera path of a key string.

    Walking is horizontal wherever the camera looks: pitch turns the view, not the way.

    Args:
        text: segments `<keys>-<frames>` joined by commas, such as `"w-48,dw-24,none-24"`.
        scheme: "sana-v1" or "sana-v2"; there is no default, because they disagree.

    Returns:
        (n + 1, 4, 4) float64 camera-to-world relative to the first frame, for a string of n frames; index 0 is the identity.

    Raises:
        ValueError: as `parse_keys`.
    """
    rules = key_scheme(scheme)
    yaw = pitch = 0.0  # degrees
    position = np.zeros(3)
    path = [np.eye(4)]
    for forward, strafe, turn, tilt in _velocities(parse_keys(text, scheme), rules):
        yaw += turn
        wish = pitch + tilt
        if rules.saturate:
            pitch = float(np.clip(wish, -rules.pitch_limit_deg, rules.pitch_limit_deg))
        elif abs(wish) <= rules.pitch_limit_deg:
            pitch = wish
        rotation = _level_rotation(np.radians(yaw), np.radians(pitch))
        position = (
            position + forward * _horizontal(rotation[:, 2], rules.norm_floor) + strafe * _horizontal(rotation[:, 0], rules.norm_floor)
        )
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, position
        path.append(pose)
    return np.stack(path)


def check_whole_chunks(frames: int) -> int:
    """How many chunks `frames` new frames are; ValueError that names the two nearest legal counts otherwise."""
    chunks, rest = divmod(frames, CHUNK_FRAMES)
    if chunks < 1 or rest:
        lower = max(chunks, 1) * CHUNK_FRAMES
        raise ValueError(
            f"got {frames} frames; wanted a multiple of {CHUNK_FRAMES} (a world imagines {CHUNK_FRAMES} frames at a time): "
            f"the nearest are {lower} and {lower + CHUNK_FRAMES}"
        )
    return chunks


def _velocities(held: list[frozenset[str]], rules: KeyScheme) -> Array:
    """(n, 4) forward and strafe in metres, yaw and pitch in degrees, per frame."""
    unit = {"forward": rules.speed_m, "strafe": rules.speed_m, "yaw": rules.turn_deg, "pitch": rules.turn_deg}
    velocities, velocity, before = np.zeros((len(held), 4)), np.zeros(4), frozenset()
    for frame, pressed in enumerate(held):
        target = np.zeros(4)
        for key in pressed:
            motion, sign = rules.keys[key]
            target[MOTIONS.index(motion)] += sign * unit[motion]
        if not rules.smooth or pressed - before:  # a key that was not held before acts at once, on all four
            velocity = target
        else:
            constant = np.where(target != 0, TIME_CONSTANTS_S["moving"], TIME_CONSTANTS_S["stopping"])
            velocity = velocity + (target - velocity) * (1 - np.exp(-1 / FPS / constant))
        velocities[frame], before = velocity, pressed
    return velocities


def _level_rotation(yaw: float, pitch: float) -> Array:
    """RotY(yaw) RotX(pitch): turned right by yaw, then looking up by pitch, never rolled. (3, 3)."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    return np.array([[cy, sy * sp, sy * cp], [0, cp, -sp], [-sy, cy * sp, cy * cp]])


def _horizontal(direction: Array, norm_floor: float) -> Array:
    level = direction * [1, 0, 1]
    return level / (np.linalg.norm(level) + norm_floor)
