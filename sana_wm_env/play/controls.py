"""What a visitor holds down, as a value, and how the camera moves for it. All functions are pure.

The contract, which `tests/play/test_controls.py` holds:

* A message says which keys are down *now*, and which have gone down since the last one. The newest wins, an
  older one that arrives late changes nothing, and the same one twice changes nothing: there is no queue.
* A key that went down and up between two chunks counts in the next one, for a third of what holding it does.
* Auto-repeat is one press, since only the state is told.
* `release` (the page has lost the focus) clears all of it, what was tapped and looked as well.
* What the mouse turns beyond what one chunk can turn is dropped: no backlog.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

AXES = ("right", "forward", "turn", "tilt")
KEYS = {
    "w": ("forward", 1),
    "s": ("forward", -1),
    "a": ("right", -1),
    "d": ("right", 1),
    "i": ("tilt", 1),
    "k": ("tilt", -1),
    "j": ("turn", -1),
    "l": ("turn", 1),
}
"""Key -> axis and sign. The page gives other keys (arrows) these names."""
TAP = 1 / 3
"""Share of a chunk's motion that a key gives which is up again when the chunk begins."""
STEEPEST = np.radians(60)
"""How far up and down the camera may look."""
FARTHEST_LOOK = 180.0
"""Degrees of mouse look that are remembered; one chunk turns less."""

Axes = tuple[float, float, float, float]


@dataclass(frozen=True)
class Controls:
    """What a visitor wants the camera to do.

    Attributes:
        held: keys that are down.
        tapped: keys that have gone down since the last chunk was begun.
        look: degrees to the right and up that the mouse has asked for since then.
        axes: right, forward, turn right, look up of gamepad and joystick, within [-1, 1].
        seq: number of the newest message; 0 for none.
        at: when its event happened, milliseconds of the page's clock.
    """

    held: frozenset[str] = frozenset()
    tapped: frozenset[str] = frozenset()
    look: tuple[float, float] = (0.0, 0.0)
    axes: Axes = (0.0, 0.0, 0.0, 0.0)
    seq: int = 0
    at: float = 0.0


class Wish(NamedTuple):
    """How the camera should move in one chunk: shares of the limits, and degrees of mouse look."""

    axes: Axes
    look: tuple[float, float]


def merge(
    controls: Controls,
    seq: int,
    at: float,
    held: frozenset[str],
    tapped: frozenset[str],
    look: tuple[float, float],
    axes: Axes,
) -> Controls:
    """Returns the controls after a message; those before if it is not newer than they are."""
    if seq <= controls.seq:
        return controls
    right, up = np.clip(np.add(controls.look, look), -FARTHEST_LOOK, FARTHEST_LOOK).tolist()
    return Controls(held, controls.tapped | tapped, (right, up), axes, seq, at)


def release(controls: Controls) -> Controls:
    """Returns controls that nobody holds; the number of the newest message stays."""
    return Controls(seq=controls.seq, at=controls.at)


def sample(controls: Controls) -> tuple[Wish, Controls]:
    """Returns the wish for the chunk that begins now, and the controls after it: what was tapped and looked
    is used up.
    """
    total: dict[str, float] = dict(zip(AXES, controls.axes, strict=True))
    for key in controls.held | controls.tapped:
        axis, sign = KEYS[key]
        total[axis] += sign * (1.0 if key in controls.held else TAP)
    right, forward, turn, tilt = (float(np.clip(total[axis], -1, 1)) for axis in AXES)
    wish = Wish((right, forward, turn, tilt), controls.look)
    return wish, replace(controls, tapped=frozenset(), look=(0.0, 0.0))


def take_back(before: Controls, now: Controls) -> Controls:
    """Returns the controls for a chunk that is begun once more: `before` is what it was begun with, `now`
    what has come since. Nothing that was tapped is lost.
    """
    looked = (before.look[0] + now.look[0], before.look[1] + now.look[1])
    return replace(now, tapped=before.tapped | now.tapped, look=looked)


def is_moving(controls: Controls) -> bool:
    """Returns True if the next chunk would move the camera."""
    wish, _ = sample(controls)
    return any(wish.axes) or any(wish.look)


def drive(wish: Wish, rotation: NDArray[np.float64], limits: tuple[float, float]) -> NDArray[np.float32]:
    """Returns the action (6,) of mode "chunk" of somebody who walks on level ground.

    Walking is horizontal wherever the camera looks. A turn is about the vertical of the first frame and ends
    level, whatever roll was there before.

    Args:
        wish: what the chunk should do.
        rotation: (3, 3) where the camera looks, relative to the first frame, which counts as level.
        limits: metres and radians per chunk that an action of 1 stands for.
    """
    from scipy.spatial.transform import Rotation

    right, forward, turn, tilt = wish.axes
    walk = right * _level(rotation[:, 0]) + forward * _level(rotation[:, 2])
    walk /= max(1.0, float(np.linalg.norm(walk)))
    look = np.radians(wish.look) / limits[1]
    turned = np.clip([turn + look[0], tilt + look[1]], -1, 1) * limits[1]
    vector = np.zeros(3)
    if turned.any():
        yaw, pitch = np.arctan2(rotation[0, 2], rotation[2, 2]), np.arcsin(np.clip(-rotation[1, 2], -1, 1))
        steep = max(STEEPEST, abs(pitch))  # one that looks steeper already does not jump back
        target = Rotation.from_euler("YX", [yaw + turned[0], np.clip(pitch + turned[1], -steep, steep)])
        vector = (Rotation.from_matrix(rotation).inv() * target).as_rotvec()
    action = np.concatenate([rotation.T @ walk, vector / limits[1]])
    return np.clip(action, -1, 1).astype(np.float32)


def _level(direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """A direction (3,) without its vertical part, at unit length."""
    level = direction * [1, 0, 1]
    return level / (np.linalg.norm(level) + 1e-9)
