"""Random walks through a world, for the goals and waypoints of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .camera import Array, compose, twist_path

if TYPE_CHECKING:
    from .tasks import Opening


def draw_walk(opening: Opening, chunks: int) -> Array:
    """Draws body twists (chunks, 6) of a walk on level ground, looking around, clear of obstacles.

    Ground is level where the first camera is. One intention lasts for three chunks; where it would run into
    something, the camera turns on the spot instead.
    """
    pose, twists = np.eye(4), np.zeros((chunks, 6))
    for chunk in range(chunks):
        if chunk % 3 == 0:
            walk, turn = _intention(opening)
        path = compose(pose, twist_path(walk))
        if not opening.is_clear(path).all():
            walk, path = turn, compose(pose, twist_path(turn))
        twists[chunk], pose = walk, path[-1]
    return twists


def walk_path(twists: Array) -> Array:
    """Poses (24 * K, 4, 4) along body twists (K, 6), from the first frame (which is not among them)."""
    path, pose = [], np.eye(4)
    for twist in twists:
        path.append(compose(pose, twist_path(twist)))
        pose = path[-1][-1]
    return np.concatenate(path)


def _intention(opening: Opening) -> tuple[Array, Array]:
    """A body twist (6,) to walk, strafe or look around, and one to turn on the spot in its stead."""
    rng, metres, radians = opening.rng, opening.max_translation_m, opening.max_rotation_rad
    kind = rng.choice(["walk", "strafe", "look"], p=[0.5, 0.2, 0.3])
    speed, side = metres * rng.uniform(0.4, 1), rng.choice([-1, 1])
    drift, rate = radians * rng.uniform(-0.5, 0.5), radians * rng.uniform(0.4, 1)
    back = rng.random() < 0.25
    turn = np.array([0, 0, 0, 0, side * rate, 0])
    match kind:
        case "walk":
            return np.array([0, 0, -speed if back else speed, 0, drift, 0]), turn
        case "strafe":
            return np.array([side * speed, 0, 0, 0, drift / 2, 0]), turn
        case _:
            return turn, turn
