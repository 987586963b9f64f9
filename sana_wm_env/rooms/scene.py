"""Rooms as data: air boxes, solid boxes, materials and a caption, all drawn from one seed.

A room is the union of axis-aligned boxes of air (the room itself and alcoves behind its openings) minus
axis-aligned solid boxes (furniture, pillars). Every box carries a material; the floor and the ceiling have
one of their own.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ALCOVES, SOLIDS = 2, 6
FLOOR, CEILING, WALLS = 0, 1, 2
MATERIALS = 3 + ALCOVES + SOLIDS

COLOURS = {
    "red": (0.80, 0.22, 0.18),
    "orange": (0.90, 0.52, 0.18),
    "yellow": (0.90, 0.80, 0.30),
    "green": (0.28, 0.62, 0.30),
    "teal": (0.18, 0.60, 0.60),
    "blue": (0.22, 0.38, 0.78),
    "purple": (0.52, 0.30, 0.68),
    "pink": (0.90, 0.58, 0.68),
    "brown": (0.48, 0.32, 0.20),
    "white": (0.92, 0.92, 0.90),
    "grey": (0.55, 0.55, 0.56),
    "black": (0.16, 0.16, 0.18),
}
WALL_COLOURS = ("white", "grey", "yellow", "green", "teal", "blue", "pink", "orange", "brown", "purple")
FLOOR_COLOURS = ("brown", "grey", "orange", "white", "teal", "red", "black", "green")

PATTERNS = {
    # name: weights of (wave along u, wave along v, their product, gradient along v), share of the period that
    # is dark, shift of odd rows
    "plain": ((0.0, 0.0, 0.0, 0.0), 0.5, 0.0),
    "striped": ((1.0, 0.0, 0.0, 0.0), 0.5, 0.0),
    "checkered": ((1.0, 1.0, -2.0, 0.0), 0.5, 0.0),
    "brick": ((1.0, 1.0, -1.0, 0.0), 0.1, 0.5),
    "shaded": ((0.0, 0.0, 0.0, 1.0), 0.5, 0.0),
}
MATERIAL_FIELDS = 16  # colour 3, second colour 3, 1/period 2, offset 2, pattern weights 4, duty, row shift


@dataclass(frozen=True)
class Scenes:
    """A batch of B rooms as tensors.

    Attributes:
        air: (B, 1 + ALCOVES, 2, 3) float32 lower and upper corners in metres; box 0 is the room.
        solids: (B, SOLIDS, 2, 3) float32 corners in metres; unused ones lie far outside with no volume.
        materials: (B, MATERIALS, MATERIAL_FIELDS) float32: floor, ceiling, walls, alcoves, solids.
        lamp: (B, 3) float32 position of the lamp in metres.
        captions: B descriptions of the static scene, never of the camera.
    """

    air: Tensor
    solids: Tensor
    materials: Tensor
    lamp: Tensor
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: slice) -> "Scenes":
        return Scenes(
            self.air[index], self.solids[index], self.materials[index], self.lamp[index], self.captions[index]
        )

    @property
    def device(self) -> torch.device:
        return self.air.device


def sample_scenes(seeds: list[int], device: str | torch.device = "cpu") -> Scenes:
    """Draws one room per seed; the same seed always gives the same room, whatever else is in the batch."""
    rooms = [_room(np.random.default_rng([seed, 0])) for seed in seeds]
    stack = [
        torch.from_numpy(np.stack(part).astype(np.float32)).to(device)
        for part in zip(*(room[:4] for room in rooms), strict=True)
    ]
    return Scenes(*stack, captions=[room[4] for room in rooms])


def _room(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]:
    width, length, height = rng.uniform(4, 10), rng.uniform(4, 10), rng.uniform(2.4, 3.4)
    room = np.array([[-width / 2, -height, -length / 2], [width / 2, 0, length / 2]])
    wall_colour, floor_colour = rng.choice(WALL_COLOURS), rng.choice(FLOOR_COLOURS)
    wall_pattern = rng.choice(
        ["plain", "shaded", "striped", "brick", "checkered"], p=[0.40, 0.24, 0.13, 0.17, 0.06]
    )
    floor_pattern = rng.choice(
        ["plain", "shaded", "checkered", "striped", "brick"], p=[0.42, 0.14, 0.24, 0.12, 0.08]
    )

    materials = [
        _material(rng, floor_colour, floor_pattern, lighten=0.1),
        _material(rng, "white", rng.choice(["plain", "shaded"]), lighten=0.3),
        _material(rng, wall_colour, wall_pattern, lighten=0.35),
    ]
    alcoves, alcove_words = _alcoves(rng, room)
    materials += [_material(rng, colour, "plain", lighten=0.1) for colour in alcove_words]
    solids, solid_words = _solids(rng, room)
    materials += [_material(rng, colour, pattern, lighten=0.0) for colour, pattern, _ in solid_words]
    materials += [np.zeros(MATERIAL_FIELDS)] * (MATERIALS - len(materials))

    surface = "" if wall_pattern in ("plain", "shaded") else f" {wall_pattern}"
    floor = "" if floor_pattern in ("plain", "shaded") else f" {floor_pattern}"
    parts = [f"a {wall_colour}{surface} room with a {floor_colour}{floor} floor"]
    parts += [f"a {colour} {name}" for colour, _, name in solid_words]
    lamp = np.array([rng.uniform(-0.2, 0.2) * width, -height + 0.7, rng.uniform(-0.2, 0.2) * length])
    return np.concatenate([room[None], alcoves]), solids, np.stack(materials), lamp, ", ".join(parts)


def _alcoves(rng: np.random.Generator, room: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Openings in the walls: boxes of air of 0.8 to 2.5 m depth that touch the room from outside."""
    alcoves = np.full((ALCOVES, 2, 3), 1e3)
    for index in range(int(rng.integers(0, ALCOVES + 1))):
        axis, side = (0, 2)[index], rng.integers(2)  # one on an x wall, one on a z wall: they never overlap
        across = 2 - axis
        span = min(rng.uniform(0.9, 2.0), 0.5 * (room[1, across] - room[0, across]))
        start = rng.uniform(room[0, across] + 0.3, room[1, across] - 0.3 - span)
        alcoves[index, :, across] = start, start + span
        alcoves[index, :, 1] = -min(rng.uniform(1.9, 2.2), -room[0, 1] - 0.1), 0.0
        depth, wall, overlap = rng.uniform(0.8, 2.5), room[side, axis], 0.01
        alcoves[index, :, axis] = (
            (wall - depth, wall + overlap) if side == 0 else (wall - overlap, wall + depth)
        )
    return alcoves, [str(colour) for colour in rng.choice(WALL_COLOURS, ALCOVES)]


def _solids(rng: np.random.Generator, room: np.ndarray) -> tuple[np.ndarray, list[tuple[str, str, str]]]:
    """Boxes on the floor and pillars up to the ceiling, with the words that describe them."""
    solids, words = np.full((SOLIDS, 2, 3), 1e3), []
    for index in range(int(rng.integers(2, SOLIDS + 1))):
        pillar = rng.random() < 0.2
        size = rng.uniform(0.3, 0.5, 2) if pillar else rng.uniform(0.4, 1.3, 2)
        height = -room[0, 1] if pillar else rng.uniform(0.3, 1.6)
        low = rng.uniform(room[0, [0, 2]] + 0.05, room[1, [0, 2]] - 0.05 - size)
        if rng.random() < 0.5 and not pillar:  # furniture likes to stand against a wall
            axis, side = rng.integers(2), rng.integers(2)
            low[axis] = room[0, 2 * axis] if side == 0 else room[1, 2 * axis] - size[axis]
        solids[index] = [[low[0], -height, low[1]], [low[0] + size[0], 0, low[1] + size[1]]]
        colour = str(rng.choice(list(COLOURS)))
        pattern = str(rng.choice(["plain", "striped", "checkered", "shaded"], p=[0.7, 0.1, 0.1, 0.1]))
        name = "pillar" if pillar else "tall box" if height > 1.1 else "low box" if height < 0.6 else "box"
        words.append((colour, pattern, name))
    return solids, words


def _material(rng: np.random.Generator, colour: str, pattern: str, lighten: float) -> np.ndarray:
    weights, duty, row_shift = PATTERNS[pattern]
    first = np.array(COLOURS[str(colour)])
    first = np.clip((first + rng.normal(0, 0.03, 3)) * (1 - lighten) + lighten, 0.05, 1.0)
    second = first * rng.uniform(0.55, 0.75)
    period = {"brick": (rng.uniform(1.2, 1.8), rng.uniform(0.7, 0.9)), "shaded": (5.0, 5.0)}.get(
        pattern, (rng.uniform(1.5, 2.6),) * 2
    )
    return np.concatenate(
        [first, second, 1 / np.array(period), rng.uniform(0, 1, 2), weights, [duty, row_shift]]
    )
