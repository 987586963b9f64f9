"""Tasks of episodes: their goal, the reward of a step, when they end.

A task is a value without memory. `begin` draws the goal of one episode, a plain dict of arrays; everything
else is a function of that goal and of where the camera is. So the goal is all there is to save, restore, fork
or batch, and one task object serves any number of episodes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .camera import CHUNK_FRAMES, Array, check_poses
from .observations import Frames, image_space, pose_space, pose_vector
from .walks import draw_walk, walk_path

Goal = dict[str, NDArray[Any]]


class Opening(NamedTuple):
    """Input of a task for drawing the goal of an episode. Poses are camera-to-world relative to the first
    frame, in metres.

    Attributes:
        frame: uint8 (H, W, 3), the first frame.
        intrinsics_px: (4,) fx, fy, cx, cy in pixels of the frame.
        rng: for everything random; it follows from the environment's seed and from nothing else.
        max_translation_m: metres per chunk that an action of 1 stands for.
        max_rotation_rad: radians per chunk that an action of 1 stands for.
        look: poses (24 * K, 4, 4) -> the frames uint8 (24 * K, H, W, 3) that this world shows along them. The
            episode stays where it is.
        is_clear: poses (F, 4, 4) -> bool (F,), whether the camera may stand there; always, where nobody knows
            what the picture hides.
    """

    frame: Frames
    intrinsics_px: Array
    rng: np.random.Generator
    max_translation_m: float
    max_rotation_rad: float
    look: Callable[[Array], Frames]
    is_clear: Callable[[Array], NDArray[np.bool_]]


class Moment(NamedTuple):
    """One step as a task sees it. Poses are camera-to-world relative to the first frame, in metres.

    Attributes:
        before: (4, 4) pose at the end of the chunk before.
        c2w: (24, 4, 4) poses of the new frames.
        frames: uint8 (24, H, W, 3), the new frames. A planner leaves them out for a task without
            `uses_frames`, which may not write to them.
        chunk_index: chunks since the reset, this one included: 1 at the first step.
        action: the action, as it was given.
    """

    before: Array
    c2w: Array
    frames: Frames
    chunk_index: int
    action: NDArray[Any]


class Verdict(NamedTuple):
    """Reward of a step, whether it ended the episode, and the goal from here on (None: the same)."""

    reward: float
    terminated: bool = False
    goal: Goal | None = None


class Task(ABC):
    """Goal, reward and end of an episode. Derive from it for a task of your own.

    `judge` is the one method that a task must have, the others add nothing by default. No method may keep
    anything on the task.
    """

    uses_frames = True
    """Whether `judge` looks at `moment.frames`; a planner need not decode them otherwise."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def begin(self, opening: Opening) -> Goal:
        """Draws the goal, all that the episode has to remember: arrays of numbers, with the same keys, shapes
        and dtypes in every episode.
        """
        return {}

    def check(self, goal: Goal) -> None:  # noqa: B027  # most tasks keep nothing
        """Refuses, with a ValueError, what `begin` can not have returned: a restored session brings its
        goal.
        """

    @abstractmethod
    def judge(self, goal: Goal, moment: Moment) -> Verdict:
        """Judges a step. An exception undoes the step."""

    def info(self, goal: Goal, c2w: Array, chunk_index: int) -> dict[str, Any]:
        """Returns the entries of `info` beside the usual keys (which win), at reset and step: plain Python
        values and fresh arrays, always the same keys.

        Args:
            goal: of this episode.
            c2w: (4, 4) pose of the newest frame.
            chunk_index: chunks since the reset.
        """
        return {}

    def spaces(self, image_size: tuple[int, int]) -> dict[str, gym.spaces.Box]:
        """Returns the spaces of the entries that `observe` adds, for frames of (height, width)."""
        return {}

    def observe(self, goal: Goal, c2w: Array, chunk_index: int) -> dict[str, Any]:
        """Returns the entries of `obs_mode="dict"` beside the usual keys: fresh arrays within `spaces`.
        Arguments as in `info`.
        """
        return {}


class FreeTask(Task):
    """The task called `free`: 0.0 at every step, and no end."""

    uses_frames = False

    def judge(self, goal: Goal, moment: Moment) -> Verdict:
        """0.0."""
        return Verdict(0.0)


@dataclass(frozen=True)
class RewardTask(Task):
    """`free` with a reward: `reward_fn(moment) -> float`."""

    reward_fn: Callable[[Moment], float]

    @property
    def name(self) -> str:
        """The function it was made with."""
        return f"reward_fn={getattr(self.reward_fn, '__name__', type(self.reward_fn).__name__)}"

    def judge(self, goal: Goal, moment: Moment) -> Verdict:
        """The function's value; never ends."""
        return Verdict(self.reward_fn(moment))


@dataclass(frozen=True)
class GoalTask(Task):
    """The task called `goal`: find the place from which the goal image was taken.

    The camera's path to it, one to `max_chunks` chunks long, is drawn within the limits of an action and, in
    a room, through free space. The goal image is what the world itself shows at its end, so in an imagined
    world a reset takes as long as that many steps more.

    The distance to the goal is `distance_m + metres_per_rad * angle_rad`. A step is worth the distance that
    it gained, and `bonus` on arrival, which ends the episode: within `tolerance_m` and `tolerance_deg` of the
    goal.
    """

    max_chunks: int = 3
    tolerance_m: float = 0.15
    tolerance_deg: float = 5.0
    metres_per_rad: float = 1.0
    bonus: float = 1.0

    uses_frames = False

    def __post_init__(self) -> None:
        """ValueError for figures that make no sense."""
        _require_at_least(1, max_chunks=self.max_chunks)
        _require_at_least(
            0,
            tolerance_m=self.tolerance_m,
            tolerance_deg=self.tolerance_deg,
            metres_per_rad=self.metres_per_rad,
        )

    def begin(self, opening: Opening) -> Goal:
        """`goal_image` uint8 (H, W, 3), `goal_c2w` (4, 4), and `twists` (max_chunks, 6), a way to it, ending
        in zeros where it is shorter.

        Raises:
            ValueError: limits so small that no such path leaves the tolerance.
        """
        for _ in range(64):
            twists = draw_walk(opening, int(opening.rng.integers(1, self.max_chunks + 1)))
            path = walk_path(twists)
            if not self._arrived(path[-1], np.eye(4)):
                padding = np.zeros((self.max_chunks - len(twists), 6))
                return {
                    "goal_image": opening.look(path)[-1].copy(),
                    "goal_c2w": path[-1],
                    "twists": np.concatenate([twists, padding]),
                }
        raise ValueError(
            f"got max_translation_m={opening.max_translation_m:g} and "
            f"max_rotation_rad={opening.max_rotation_rad:g}; wanted limits that "
            f"take the camera further than {self.tolerance_m:g} m or {self.tolerance_deg:g} degrees within "
            f"{self.max_chunks} chunks: "
            "raise them, or pass task=GoalTask(tolerance_m=..., tolerance_deg=...)"
        )

    def check(self, goal: Goal) -> None:
        """ValueError unless it has a picture, a pose and twists."""
        _require_keys(goal, "goal_image", "goal_c2w", "twists")
        picture = goal["goal_image"]
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise ValueError(f"got goal_image of {picture.dtype} {picture.shape}; wanted uint8 (H, W, 3)")
        check_poses(goal["goal_c2w"][None], 1, "goal_c2w")
        twists = goal["twists"]
        if twists.ndim != 2 or twists.shape[1] != 6 or not np.isfinite(twists).all():
            raise ValueError(f"got twists of shape {twists.shape}; wanted (chunks, 6) finite numbers")

    def judge(self, goal: Goal, moment: Moment) -> Verdict:
        """Distance gained, and the bonus on arrival."""
        now, target = moment.c2w[-1], goal["goal_c2w"]
        arrived = self._arrived(now, target)
        is_new = arrived and not self._arrived(moment.before, target)  # somebody may step on after the end
        gained = pose_distance(moment.before, target, self.metres_per_rad) - pose_distance(
            now, target, self.metres_per_rad
        )
        return Verdict(gained + self.bonus * is_new, arrived)

    def info(self, goal: Goal, c2w: Array, chunk_index: int) -> dict[str, Any]:
        """`is_success`, `distance_m`, `angle_rad` and `goal_c2w` (4, 4)."""
        distance_m, angle_rad = pose_gap(c2w, goal["goal_c2w"])
        return {
            "is_success": self._arrived(c2w, goal["goal_c2w"]),
            "distance_m": distance_m,
            "angle_rad": angle_rad,
            "goal_c2w": goal["goal_c2w"].copy(),
        }

    def spaces(self, image_size: tuple[int, int]) -> dict[str, gym.spaces.Box]:
        """`goal_image` and `goal_pose`."""
        return {"goal_image": image_space(image_size), "goal_pose": pose_space()}

    def observe(self, goal: Goal, c2w: Array, chunk_index: int) -> dict[str, Any]:
        """The goal image, and the goal's pose seen from the camera, see `pose_vector`."""
        return {
            "goal_image": goal["goal_image"].copy(),
            "goal_pose": pose_vector(_seen_from(c2w, goal["goal_c2w"])),
        }

    def _arrived(self, c2w: Array, target: Array) -> bool:
        distance_m, angle_rad = pose_gap(c2w, target)
        return distance_m <= self.tolerance_m and angle_rad <= math.radians(self.tolerance_deg)


@dataclass(frozen=True)
class FollowTask(Task):
    """The task called `follow`: be at one waypoint after the other, a chunk each.

    The waypoints are those of a walk of `chunks` chunks (standing and looking around, walking, strafing),
    drawn like the paths of `GoalTask`; after the last one it stays the target. A step is worth minus the
    deviation from its waypoint, `deviation_m + metres_per_rad * deviation_rad`.

    No deviation ends the episode: as no step is worth more than 0, an agent would learn to leave the path for
    good.
    """

    chunks: int = 40
    visible: int = 3
    metres_per_rad: float = 1.0

    uses_frames = False

    def __post_init__(self) -> None:
        """ValueError for figures that make no sense."""
        _require_at_least(1, chunks=self.chunks, visible=self.visible)
        _require_at_least(0, metres_per_rad=self.metres_per_rad)

    def begin(self, opening: Opening) -> Goal:
        """`waypoints` (chunks, 4, 4): where to be at the end of each chunk."""
        return {
            "waypoints": walk_path(draw_walk(opening, self.chunks))[CHUNK_FRAMES - 1 :: CHUNK_FRAMES].copy()
        }

    def check(self, goal: Goal) -> None:
        """ValueError unless its waypoints are poses."""
        _require_keys(goal, "waypoints")
        check_poses(goal["waypoints"], name="waypoints")

    def judge(self, goal: Goal, moment: Moment) -> Verdict:
        """Minus the deviation; never ends."""
        return Verdict(
            -pose_distance(moment.c2w[-1], self._waypoint(goal, moment.chunk_index), self.metres_per_rad)
        )

    def info(self, goal: Goal, c2w: Array, chunk_index: int) -> dict[str, Any]:
        """`deviation_m` and `deviation_rad` from the waypoint of this chunk, 0.0 at reset."""
        deviation_m, deviation_rad = (
            pose_gap(c2w, self._waypoint(goal, chunk_index)) if chunk_index else (0.0, 0.0)
        )
        return {"deviation_m": deviation_m, "deviation_rad": deviation_rad}

    def spaces(self, image_size: tuple[int, int]) -> dict[str, gym.spaces.Box]:
        """`waypoints`."""
        return {"waypoints": pose_space(self.visible)}

    def observe(self, goal: Goal, c2w: Array, chunk_index: int) -> dict[str, Any]:
        """The next `visible` waypoints seen from the camera, float32 (9 * visible,), see `pose_vector`."""
        ahead = np.stack([self._waypoint(goal, chunk_index + 1 + index) for index in range(self.visible)])
        return {"waypoints": pose_vector(_seen_from(c2w, ahead)).reshape(-1)}

    @staticmethod
    def _waypoint(goal: Goal, chunk_index: int) -> Array:
        return goal["waypoints"][min(chunk_index, len(goal["waypoints"])) - 1]


def _require_keys(goal: Goal, *keys: str) -> None:
    if missing := [key for key in keys if key not in goal]:
        raise ValueError(f"it needs {missing[0]!r}")


def _require_at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"got {name}={value!r}; wanted at least {least}")


TASKS: dict[str, type[Task]] = {"free": FreeTask, "goal": GoalTask, "follow": FollowTask}


def make_task(task: str | Task = "free", reward_fn: Callable[[Moment], float] | None = None) -> Task:
    """The task that an environment's arguments `task` and `reward_fn` mean.

    Raises:
        ValueError: an unknown name, something that is neither a name nor a Task, or a reward function beside
            a task other than "free".
    """
    if reward_fn is not None:
        if task != "free":
            raise ValueError(
                f"got reward_fn beside task={task!r}, which has a reward of its own; wanted one of the two"
            )
        if not callable(reward_fn):
            raise ValueError(
                f"got reward_fn={reward_fn!r}; wanted a function of a Moment that returns a float"
            )
        return RewardTask(reward_fn)
    if isinstance(task, Task):
        return task
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(
            f"got task={task!r}; wanted one of {', '.join(TASKS)}, or an object of a class derived from "
            "sana_wm_env.Task"
        )
    return TASKS[task]()


def pose_gap(c2w: Array, other: Array) -> tuple[float, float]:
    """Metres and radians between two poses (4, 4)."""
    turn = Rotation.from_matrix(c2w[:3, :3].T @ other[:3, :3])
    return float(np.linalg.norm(c2w[:3, 3] - other[:3, 3])), float(turn.magnitude())


def pose_distance(c2w: Array, other: Array, metres_per_rad: float) -> float:
    """Metres between two poses (4, 4), plus the angle between them at `metres_per_rad`."""
    distance_m, angle_rad = pose_gap(c2w, other)
    return distance_m + metres_per_rad * angle_rad


def _seen_from(c2w: Array, poses: Array) -> Array:
    """Poses (..., 4, 4) in the frame of the camera at c2w (4, 4)."""
    return np.linalg.inv(c2w) @ poses  # type: ignore[return-value]  # numpy's stubs lose the precision
