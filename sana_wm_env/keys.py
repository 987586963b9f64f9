"""Camera paths that people type: `"w-48,dw-24,none-24"` are segments of pressed keys and how many frames they
are held.
"""

from dataclasses import dataclass

import numpy as np

from .camera import CHUNK_FRAMES, FPS, Array


@dataclass(frozen=True)
class KeyScheme:
    """Meaning of the keys of a key string. Two schemes are in use, and `a`, `d`, `j`, `l` differ between
    them.

    Source: the official inference code (NVlabs/Sana, docs/sana_wm.md) before (`sana-v1`) and after
    (`sana-v2`) it gave the keys new meanings.

    Attributes:
        keys: key -> (motion, sign); motions are forward, strafe (to the right), yaw (right) and pitch (up).
        speed_m: metres per frame.
        turn_deg: degrees per frame.
        pitch_limit_deg: how far up and down the camera may look.
        saturate: at the limit pitch stops there; otherwise a frame that would exceed it does not pitch at
            all.
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
KEYS = (*"wasdijkl", "none")
"""Every key of both schemes, and none of them."""

MOTIONS: tuple[str, ...] = ("forward", "strafe", "yaw", "pitch")
WORDS = {
    ("forward", 1): "forward",
    ("forward", -1): "back",
    ("strafe", 1): "step right",
    ("strafe", -1): "step left",
    ("yaw", 1): "turn right",
    ("yaw", -1): "turn left",
    ("pitch", 1): "look up",
    ("pitch", -1): "look down",
}
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
MAX_FRAMES = 100_000
"""The longest path that a string of keys may stand for: an hour and three quarters."""

TIME_CONSTANTS_S = {"moving": 0.45, "stopping": 1.0}
"""Inertia: a velocity covers the share 1 - exp(-dt / time constant) of the way to its target per frame."""


def key_scheme(name: str) -> KeyScheme:
    """The scheme called `name`; ValueError that lists the names otherwise."""
    if not isinstance(name, str) or name not in SCHEMES:
        raise ValueError(
            f"got the key scheme {name!r}; wanted one of {', '.join(SCHEMES)}: they disagree on "
            "what a, d, j and l do"
        )
    return SCHEMES[name]


def parse_keys(text: str, scheme: str) -> list[frozenset[str]]:
    """Splits `"w-48,dw-24,none-24"` into the keys held in each frame.

    Raises:
        ValueError: names the segment that is not `<keys>-<count>`, the unknown key, or the unknown scheme.
    """
    known, held_keys = key_scheme(scheme).keys, []
    for keys, count in segments(text):
        pressed = frozenset() if keys == "none" else frozenset(keys)
        if unknown := sorted(pressed - set(known)):
            raise ValueError(
                f"got the key {unknown[0]!r} in the segment '{keys}-{count}'; {scheme} has "
                f"{' '.join(known)} and none"
            )
        held_keys += [pressed] * count
    return held_keys


def keys_to_path(text: str, scheme: str) -> Array:
    """The camera path of a key string. `actions.actions_from_path` turns it into actions, with which an
    environment plays it.

    Walking is horizontal wherever the camera looks: pitch turns the view, not the way.

    Args:
        text: segments `<keys>-<frames>` joined by commas, such as `"w-48,dw-24,none-24"`.
        scheme: "sana-v1" or "sana-v2"; there is no default, because they disagree.

    Returns:
        (n + 1, 4, 4) float64 camera-to-world relative to the first frame, for a string of n frames; index 0
        is the identity.

    Raises:
        ValueError: as `parse_keys`.
    """
    rules = key_scheme(scheme)
    forward, strafe, yaw, pitch = motions(text, scheme).T
    path = np.tile(np.eye(4), (len(forward) + 1, 1, 1))
    path[1:, :3, :3] = rotation = _level_rotation(np.radians(yaw.cumsum()), np.radians(pitch.cumsum()))
    steps = forward[:, None] * _horizontal(rotation[..., 2], rules) + strafe[:, None] * _horizontal(
        rotation[..., 0], rules
    )
    path[1:, :3, 3] = steps.cumsum(axis=0)
    return path


def motions(text: str, scheme: str) -> Array:
    """Returns the motions of the camera in each frame of a key string: (n, 4) float64 in the order of
    `MOTIONS`, metres and degrees per frame.

    Inertia and the limit of pitch are in it. ValueError as `parse_keys`.
    """
    rules = key_scheme(scheme)
    return _limit_pitch(_velocities(parse_keys(text, scheme), rules), rules)


def key_twist(key: str, scheme: str, rotation: Array) -> Array:
    """The body twist of a chunk during which one key is held, from a standing start.

    Args:
        key: one key of the scheme, or "none".
        scheme: "sana-v1" or "sana-v2".
        rotation: (3, 3) where the camera looks before, relative to its first frame, which counts as level.

    Returns:
        (6,) float64, metres and radians. It leads to where `keys_to_path` ends. Where the limit of pitch is
        met the rest of the way to it is spread over the chunk.
    """
    rules = key_scheme(scheme)
    velocities = _velocities(parse_keys(f"{key}-{CHUNK_FRAMES}", scheme), rules)
    pitch = float(np.degrees(np.arcsin(np.clip(-rotation[1, 2], -1, 1))))
    forward, strafe, yaw, tilt = _limit_pitch(velocities, rules, pitch).sum(axis=0)
    walk = forward * _horizontal(rotation[:, 2], rules) + strafe * _horizontal(rotation[:, 0], rules)
    turn = np.radians([0, yaw, 0]) @ rotation + np.radians(
        [tilt, 0, 0]
    )  # yaw is about the world's vertical, pitch about the camera's x
    return np.concatenate([walk @ rotation, turn])


def segments(text: str) -> list[tuple[str, int]]:
    """Keys and frames of each segment as written.

    Raises:
        ValueError: no text, a segment that is not `<keys>-<count>` (it is named), or more than
            `MAX_FRAMES` frames.
    """
    if not isinstance(text, str):
        raise ValueError(
            f"got keys of type {type(text).__name__}; wanted a text of <keys>-<frames>, such as "
            "w-48,dw-24,none-24"
        )
    parsed, total = [], 0
    for segment in text.split(","):
        keys, dash, count = segment.strip().partition("-")
        digits = count.lstrip("0") if count.isascii() and count.isdigit() else ""
        if not (keys and dash and digits):
            raise ValueError(
                f"got the segment {_short(segment.strip())!r} in {_short(text)!r}; wanted "
                "<keys>-<frames>, such as w-48, dw-24 or none-24"
            )
        total += int(digits) if len(digits) < 12 else MAX_FRAMES + 1
        if total > MAX_FRAMES:
            raise ValueError(
                f"got more than {MAX_FRAMES} frames with the segment {_short(segment.strip())!r}; wanted "
                f"at most {MAX_FRAMES}, which are {MAX_FRAMES / FPS / 60:.0f} minutes"
            )
        parsed.append((keys, int(digits)))
    return parsed


def _short(text: str) -> str:
    """A text for a message: its beginning, where it is long."""
    most = 60 if text.isprintable() else 12  # escapes are up to ten characters each
    return text if len(text) <= most else f"{text[:most]}..."


def in_words(text: str, scheme: str) -> str:
    """The keys of a string under a scheme: "w-36,d-12" -> "forward 36, turn right 12"."""
    return ", ".join(f"{words(keys, scheme)} {count}" for keys, count in segments(text))


def words(keys: str, scheme: str) -> str:
    """Keys held together under a scheme: "wd" -> "forward + turn right"."""
    meaning = key_scheme(scheme).keys
    return "stand" if keys == "none" else " + ".join(WORDS[meaning[key]] for key in keys)


def _velocities(held_keys: list[frozenset[str]], rules: KeyScheme) -> Array:
    """(n, 4) forward and strafe in metres, yaw and pitch in degrees, per frame."""
    unit = {"forward": rules.speed_m, "strafe": rules.speed_m, "yaw": rules.turn_deg, "pitch": rules.turn_deg}
    velocities, velocity, before = np.zeros((len(held_keys), 4)), np.zeros(4), frozenset()
    for frame, pressed in enumerate(held_keys):
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


def _limit_pitch(velocities: Array, rules: KeyScheme, pitch: float = 0.0) -> Array:
    """Velocities (n, 4) as the limit of pitch allows them from a pitch in degrees on."""
    limited, limit = velocities.copy(), rules.pitch_limit_deg
    for frame, tilt in enumerate(velocities[:, 3]):
        wish = pitch + tilt
        if rules.saturate:
            wish = min(
                max(wish, min(-limit, pitch)), max(limit, pitch)
            )  # a camera that is beyond already does not jump back
        elif abs(wish) > limit:
            wish = pitch
        limited[frame, 3], pitch = wish - pitch, wish
    return limited


def _level_rotation(yaw: Array, pitch: Array) -> Array:
    """RotY(yaw) RotX(pitch): turned right by yaw, then looking up by pitch, never rolled. (n,) radians -> (n,
    3, 3).
    """
    cy, sy, cp, sp, zero = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.zeros_like(yaw)
    return np.stack([cy, sy * sp, sy * cp, zero, cp, -sp, -sy, cy * sp, cy * cp], axis=-1).reshape(-1, 3, 3)


def _horizontal(direction: Array, rules: KeyScheme) -> Array:
    """Directions (..., 3) without their vertical part, at unit length."""
    level = direction * [1, 0, 1]
    return level / (np.linalg.norm(level, axis=-1, keepdims=True) + rules.norm_floor)
