"""Camera paths through rooms: where a walk may start, how it goes on, and what stands in the way.

A path is a sequence of body twists, one per chunk of 24 frames, exactly what the environment takes as
actions. The families are walk, strafe, look around, orbit, rise, tilt, stand still, and free (any twist of
the action box, as a random agent would send).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .scene import Scenes

CHUNK_FRAMES = 24
MAX_TRANSLATION_M = 0.6
MAX_ROTATION_RAD = 0.3
CLEARANCE_M = 0.35
FAMILIES = {
    "walk": 0.26,
    "strafe": 0.14,
    "look": 0.16,
    "orbit": 0.14,
    "rise": 0.06,
    "tilt": 0.06,
    "still": 0.04,
    "free": 0.14,
}
MAX_PITCH_RAD = 0.5
LOOKS, LOOK_FRAMES = 12, 8
LOOK_CHUNKS = LOOKS * LOOK_FRAMES // CHUNK_FRAMES + 1


def clear(scenes: Scenes, positions: Tensor, margin_m: float = CLEARANCE_M) -> Tensor:
    """Checks whether a camera may stand at positions (B, F, 3): inside the room and a margin away from
    everything solid. Returns bool (B, F).
    """
    point = positions.to(scenes.air)[:, :, None]
    room, solids = scenes.air[:, None, :1], scenes.solids[:, None]
    inside = ((point > room[..., 0, :] + margin_m) & (point < room[..., 1, :] - margin_m)).all(-1).all(-1)
    hit = ((point > solids[..., 0, :] - margin_m) & (point < solids[..., 1, :] + margin_m)).all(-1).any(-1)
    return inside & ~hit


def twist_paths(starts: Tensor, twists: Tensor, frames: int = CHUNK_FRAMES) -> Tensor:
    """Poses along constant body twists.

    Args:
        starts: (B, 4, 4) camera-to-world.
        twists: (B, K, 6) body twists (vx, vy, vz, wx, wy, wz) per chunk, metres and radians.
        frames: frames per chunk.

    Returns:
        (B, 1 + frames * K, 4, 4) camera-to-world in float64; index 0 is the start, frame i of a chunk is
        `pose @ exp(i / frames * twist)`.
    """
    pose = starts.double()
    path = [pose[:, None]]
    for twist in twists.double().unbind(1):
        path.append(pose[:, None] @ _exponentials(twist, frames))
        pose = path[-1][:, -1]
    return torch.cat(path, 1)


def _exponentials(twist: Tensor, frames: int) -> Tensor:
    """exp(i / frames * twist), i = 1..frames, for twists (B, 6): (B, frames, 4, 4)."""
    share = torch.arange(1, frames + 1, device=twist.device, dtype=twist.dtype) / frames
    zero = torch.zeros_like(twist[:, 0])
    vx, vy, vz, wx, wy, wz = twist.unbind(-1)
    generator = torch.stack(
        [zero, -wz, wy, vx, wz, zero, -wx, vy, -wy, wx, zero, vz, zero, zero, zero, zero], -1
    ).view(-1, 1, 4, 4)
    return torch.linalg.matrix_exp(generator * share[None, :, None, None])


def sample_starts(scenes: Scenes, seeds: list[int]) -> Tensor:
    """One camera per room (B, 4, 4) float64: at eye height, clear of everything, level within a few degrees,
    looking into the room.
    """
    poses = np.tile(np.eye(4), (len(scenes), 1, 1))
    tries = 64
    draws = np.stack([np.random.default_rng([seed, 1]).random((tries, 6)) for seed in seeds])  # (B, tries, 6)
    room = scenes.air[:, 0].double().cpu().numpy()  # (B, 2, 3)
    low, high = room[:, None, 0] + CLEARANCE_M, room[:, None, 1] - CLEARANCE_M
    position = low + draws[..., :3] * (high - low)
    position[..., 1] = np.maximum(-0.9 - 0.9 * draws[..., 1], room[:, None, 0, 1] + 0.5)
    target = 0.7 * (
        low + draws[..., 3:6] * (high - low)
    )  # pulled to the middle, so that a view is rarely a bare wall
    ahead = target - position
    yaw = np.arctan2(ahead[..., 0], ahead[..., 2])
    pitch = 0.3 * (draws[..., 4] - 0.6)
    reach = position + 1.4 * np.stack(
        [np.sin(yaw), np.zeros_like(yaw), np.cos(yaw)], -1
    )  # room to see, and to walk
    free = clear(scenes, torch.from_numpy(position)) & clear(scenes, torch.from_numpy(reach), 0.05)
    first = free.cpu().numpy().argmax(1)
    for index, choice in enumerate(first):
        if not free[index, choice]:
            choice = int(clear(scenes, torch.from_numpy(position))[index].int().argmax())
        poses[index, :3, :3] = _yaw_pitch(yaw[index, choice], pitch[index, choice])
        poses[index, :3, 3] = position[index, choice]
    return torch.from_numpy(poses).to(scenes.device)


def _yaw_pitch(yaw: float, pitch: float) -> np.ndarray:
    """Rotation that turns right by yaw, then looks up by pitch."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    return np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])


def sample_twists(scenes: Scenes, starts: Tensor, seeds: list[int], chunks: int) -> Tensor:
    """Body twists (B, chunks, 6) float64 of smooth paths that keep clear of everything solid.

    Where the wish of a family would hit something, the path tries the opposite translation, then turns on the
    spot.
    """
    wishes = torch.from_numpy(
        np.stack([_wishes(np.random.default_rng([seed, 2]), chunks) for seed in seeds])
    ).to(scenes.device)
    pose, twists = starts.double(), []
    for wish in wishes.unbind(1):  # (B, 7): forward, right, up, yaw, pitch, roll, free
        candidates = torch.stack(
            [wish, wish * wish.new_tensor([-1, -1, -1, 1, 1, 1, 1]), _turn(wish)], 1
        )  # (B, 3, 7)
        body = _body_twists(pose, candidates)
        ends = pose[:, None, None] @ _exponentials(body.flatten(0, 1), 6).unflatten(
            0, body.shape[:2]
        )  # (B, 3, 6, 4, 4)
        safe = clear(scenes, ends[..., :3, 3].flatten(1, 2)).unflatten(1, (3, 6)).all(-1)
        choice = torch.where(safe.any(1), safe.int().argmax(1), 2)
        twist = body[torch.arange(len(body), device=body.device), choice]
        twists.append(twist)
        pose = pose @ _exponentials(twist, 1)[:, 0]
    return torch.stack(twists, 1)


def retrace(twists: Tensor, seeds: list[int]) -> Tensor:
    """Walks (B, K, 6) that keep going back on their steps: one to six chunks of the walk, the same way back,
    up to two chunks on, and again. As long as the given ones, and nowhere but where they have been.

    What a camera has seen and left comes into view again all the time, which walks seldom do by themselves.
    """
    turns = [_there_and_back(np.random.default_rng([seed, 4]), twists.shape[1]) for seed in seeds]
    order, sign = torch.from_numpy(np.stack(turns)).to(twists.device).unbind(1)  # (B, K) each
    return twists.gather(1, order[..., None].expand(-1, -1, 6)) * sign[..., None]


def look_around(starts: Tensor) -> Tensor:
    """A dozen looks all around, on the spot: the camera turns right by a twelfth, about the vertical, and
    stands for `LOOK_FRAMES`, one latent frame. The last look is the first frame's again; there it rests for a
    chunk.

    Args:
        starts: (B, 4, 4) camera-to-world.

    Returns:
        (B, 24 * `LOOK_CHUNKS`, 4, 4) camera-to-world in float64. It jumps as no action may: what is seen that
        way is looked at, not imagined.
    """
    angle = 2 * torch.pi / LOOKS * torch.arange(1, LOOKS + 1, device=starts.device, dtype=torch.float64)
    sin, cos, zero, one = angle.sin(), angle.cos(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], -1).view(-1, 3, 3)  # to the right
    looks = starts.double()[:, None].repeat(1, LOOKS, 1, 1)
    looks[..., :3, :3] = turn @ looks[..., :3, :3]
    rest = starts.double()[:, None].expand(-1, CHUNK_FRAMES, -1, -1)
    return torch.cat([looks.repeat_interleave(LOOK_FRAMES, 1), rest], 1)


def _there_and_back(rng: np.random.Generator, chunks: int) -> np.ndarray:
    """Which chunk of the walk comes when, and 1 where it is walked forward, -1 where it is walked back: (2,
    chunks).
    """
    order: list[tuple[int, int]] = []
    here = 0
    while len(order) < chunks:
        far, on = here + int(rng.integers(1, 7)), int(rng.integers(0, 3))
        order += [(chunk, 1) for chunk in range(here, far)]
        order += [(chunk, -1) for chunk in reversed(range(here, far))]
        order += [(chunk, 1) for chunk in range(here, here + on)]
        here += on
    return np.array(order[:chunks]).T


def _turn(wish: Tensor) -> Tensor:
    """Standing still and turning, at the wished rate but not slower than a glance."""
    turn = torch.zeros_like(wish)
    turn[:, 3] = torch.where(wish[:, 3] < 0, -1.0, 1.0) * wish[:, 3].abs().clamp(min=0.15)
    return turn


def _body_twists(pose: Tensor, wish: Tensor) -> Tensor:
    """Wishes (B, N, 7) in the level frame of the camera -> body twists (B, N, 6) inside the action box.

    Walking is horizontal however the camera is tilted, and pitch saturates; free wishes are body twists
    already.
    """
    rotation = pose[:, None, :3, :3]
    level = pose.new_tensor([1, 0, 1])
    forward = torch.nn.functional.normalize(rotation[..., 2] * level, dim=-1)
    right = torch.nn.functional.normalize(rotation[..., 0] * level, dim=-1)
    down = pose.new_tensor([0, 1, 0]).expand_as(forward)
    velocity = wish[..., 0:1] * forward + wish[..., 1:2] * right - wish[..., 2:3] * down
    pitch = torch.asin(-rotation[..., 1, 2].clamp(-1, 1))
    lift = torch.minimum(torch.maximum(wish[..., 4], -MAX_PITCH_RAD - pitch), MAX_PITCH_RAD - pitch)
    level_again = -torch.asin(rotation[..., 1, 0].clamp(-1, 1))  # undo the roll that a free motion has left
    angular = (rotation.mT @ (wish[..., 3:4] * down)[..., None])[..., 0]
    angular = angular + torch.stack([lift, torch.zeros_like(lift), level_again.expand_as(lift)], -1)
    led = torch.cat([(rotation.mT @ velocity[..., None])[..., 0], angular], -1)
    free = torch.stack(
        [wish[..., 1], -wish[..., 2], wish[..., 0], wish[..., 4], wish[..., 3], wish[..., 5]], -1
    )
    limit = pose.new_tensor([MAX_TRANSLATION_M] * 3 + [MAX_ROTATION_RAD] * 3)
    return torch.minimum(torch.maximum(torch.where(wish[..., 6:] > 0, free, led), -limit), limit)


@dataclass
class _Motion:
    """A few chunks of one family. side: -1 or 1; ahead: 1 to walk forward, -1 back; drift: slow turns (yaw,
    pitch) on the way.
    """

    family: str
    chunks: int
    side: int
    speed: float
    turn: float
    radius: float
    ahead: int
    drift: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Motion":
        family, chunks = str(rng.choice(list(FAMILIES), p=list(FAMILIES.values()))), int(rng.integers(2, 6))
        side = int(rng.choice([-1, 1]))
        speed = rng.uniform(0.2, 0.6)
        turn = rng.uniform(0.08, 0.28)
        radius = rng.uniform(1.2, 2.6)
        return cls(
            family,
            chunks,
            side,
            speed,
            turn,
            radius,
            1 if rng.random() < 0.75 else -1,
            rng.normal(0, 0.05, 2),
        )

    def wish(self, rng: np.random.Generator) -> list[float]:
        """Forward, right, up (metres), yaw, pitch, roll (radians) of the next chunk, and 1 where it is a free
        twist.
        """
        side, yaw, pitch = self.side, self.drift[0], self.drift[1]
        match self.family:
            case "walk":
                return [self.ahead * self.speed, 0, 0, 2 * yaw, pitch, 0, 0]
            case "strafe":
                return [0, side * self.speed * 0.8, 0, yaw, pitch / 2, 0, 0]
            case "look":
                return [0, 0, 0, side * self.turn, pitch, 0, 0]
            case "orbit":
                return [0, side * self.speed * 0.8, 0, -side * self.speed * 0.8 / self.radius, 0, 0, 0]
            case "rise":
                return [0, 0, side * self.speed / 2, yaw, -side * self.turn / 4, 0, 0]
            case "tilt":
                return [0, 0, 0, yaw, side * self.turn * 0.7, 0, 0]
            case "still":
                return [0, 0, 0, 0, 0, 0, 0]
            case _:
                translation = rng.uniform(-MAX_TRANSLATION_M, MAX_TRANSLATION_M, 3)
                rotation = rng.uniform(-MAX_ROTATION_RAD, MAX_ROTATION_RAD, 3)
                return [*translation, *rotation, 1]


def _wishes(rng: np.random.Generator, chunks: int) -> np.ndarray:
    """The wishes of a walker, one per chunk: (chunks, 7), see `_Motion.wish`."""
    wishes, motion = np.zeros((chunks, 7)), None
    for chunk in range(chunks):
        if motion is None or motion.chunks == 0:
            motion = _Motion.draw(rng)
        wishes[chunk] = motion.wish(rng)
        wishes[chunk, :6] *= rng.uniform(0.85, 1.15) if motion.family != "free" else 1.0
        motion.chunks -= 1
        if motion.family in ("look", "tilt") and motion.chunks == 1:
            motion.side = -motion.side  # look back again
    return wishes
