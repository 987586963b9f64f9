"""An episode as a value, and the rules of every environment as pure functions of it. Nothing here renders,
imagines or remembers.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .actions import PIECES, Limits, action_path, check_action
from .camera import Array, compose, intrinsics_matrix
from .numbers import to_array, to_flag, to_number
from .observations import Frames, Observation, observe
from .tasks import Goal, Moment, Task


class Seeds(NamedTuple):
    """The draws of one episode from the environment's own generator; every episode draws all of them."""

    room: int
    noise: int
    task: int


@dataclass(frozen=True)
class Episode:
    """The state of an episode. Replaced as a whole, so an interrupted step leaves the one before in place.

    Attributes:
        state: whatever the environment carries from chunk to chunk.
        c2w: (4, 4) pose of the newest frame relative to the first.
        intrinsics_px: (4,) as fx, fy, cx, cy in pixels of the observed frames.
        chunk_index: chunks since the reset.
        goal: what the task remembers.
    """

    state: Any
    c2w: Array
    intrinsics_px: Array
    chunk_index: int = 0
    goal: Goal = field(default_factory=dict)


class Step(NamedTuple):
    """The result of one step: the episode after it, frames (24, H, W, 3) along c2w (24, 4, 4), reward,
    end.
    """

    episode: Episode
    frames: Frames
    c2w: Array
    reward: float
    terminated: bool


@dataclass(frozen=True)
class Rules:
    """The settings of an environment as pure functions of an episode. One object serves any number of
    episodes.

    A step is `wish` (where does the action lead?), the world's forward, `judge` (what was it worth?), then
    `observe` and `info`.

    Attributes:
        world: name that `info["world"]` carries.
        image_size: (height, width) of the frames.
        task: what an episode is about.
        limits: metres and radians per chunk that an action of 1 stands for.
        action_mode: "chunk", "per_latent" or "per_frame", see `action_path`.
        obs_mode: "chunk", "last" or "dict".
    """

    world: str
    image_size: tuple[int, int]
    task: Task
    limits: Limits
    action_mode: str = "chunk"
    obs_mode: str = "chunk"

    def wish(self, episode: Episode, action: Any) -> Array:
        """Returns the poses (24, 4, 4) that an action asks for. ValueError for a bad one."""
        return compose(episode.c2w, action_path(action, self.action_mode, self.limits, batch=()))

    def wish_each(self, before: Array, actions: NDArray[Any]) -> Array:
        """Returns the poses (N, 24, 4, 4) that actions (N, action size) ask for, from cameras at before (N,
        4, 4).
        """
        return compose(before[:, None], action_path(actions, self.action_mode, self.limits))

    def wish_ahead(self, episode: Episode, actions: NDArray[Any]) -> Array:
        """Returns the poses (N, K, 24, 4, 4) that sequences of actions (N, K, action size) ask for, one after
        the other.
        """
        paths, before = [], np.broadcast_to(episode.c2w, (len(actions), 4, 4))
        for chosen in actions.swapaxes(0, 1):  # (K, N, action size)
            paths.append(self.wish_each(before, chosen))
            before = paths[-1][:, -1]
        return np.stack(paths, 1)

    def check_sequences(self, actions: Any) -> NDArray[Any]:
        """Sequences of actions (N, K, action size) as an array. ValueError for a bad one; the message names
        its place.
        """
        wanted = f"(N, K, {6 * PIECES[self.action_mode]})"
        actions = to_array(actions, "actions", f"{wanted}: N sequences of K actions")
        if actions.ndim != 3 or 0 in actions.shape:
            raise ValueError(
                f"got actions of shape {actions.shape}; wanted {wanted}: N sequences of K actions"
            )
        try:
            check_action(actions, self.action_mode)
        except ValueError:
            for i, sequence in enumerate(actions):
                for k, action in enumerate(sequence):
                    try:
                        check_action(action, self.action_mode, batch=())
                    except ValueError as error:
                        raise ValueError(f"sequence {i}, action {k}: {error}") from None
            raise
        return actions

    def judge(
        self, episode: Episode, action: Any, frames: Frames, c2w: Array, state: Any, imagined: bool = False
    ) -> Step:
        """Judges an action by its result.

        Args:
            episode: before it.
            action: as it was given.
            frames: uint8 (24, H, W, 3) that the world showed.
            c2w: (24, 4, 4) poses that they really have.
            state: what the environment carries on.
            imagined: let a reward be NaN or infinite, as only a planner sees it.

        Raises:
            ValueError: a reward that is not one finite number, or a goal that is not arrays by name; names
                the task or its function.
        """
        driven = to_array(action, "an action").astype(np.float32)
        seen = frames.copy() if self.task.uses_frames else frames  # a task may write to what it is given
        moment = Moment(episode.c2w.copy(), c2w.copy(), seen, episode.chunk_index + 1, driven)
        verdict = self.task.judge(dict(episode.goal), moment)
        if not isinstance(verdict, tuple) or len(verdict) != 3:
            raise ValueError(
                f"got a {type(verdict).__name__} of judge of {self.task.name}; wanted a Verdict: reward, "
                "terminated, goal"
            )
        reward, terminated, goal = verdict
        name = f"a reward of {self.task.name}"
        if imagined:
            reward = to_array(reward, name, "one number")
            if reward.ndim:
                raise ValueError(f"got {name} of shape {reward.shape}; wanted one number")
        else:
            reward = to_number(reward, name)
        terminated = to_flag(terminated, f"terminated of {self.task.name}")
        goal = episode.goal if goal is None else check_goal(goal, self.task)
        after = replace(episode, state=state, c2w=c2w[-1].copy(), chunk_index=moment.chunk_index, goal=goal)
        return Step(after, frames, c2w, float(reward), terminated)

    def observe(self, episode: Episode, frames: Frames) -> Observation:
        """Returns the observation of an episode whose newest frames are these (24, H, W, 3)."""
        of_task: dict[str, Any] = {}
        if self.obs_mode == "dict":
            of_task = self.task.observe(episode.goal, episode.c2w, episode.chunk_index)
            _check_dict(of_task, f"observe of {self.task.name}")
        return observe(self.obs_mode, frames, episode.c2w, episode.intrinsics_px, of_task)

    def info(self, episode: Episode, c2w: Array, new_frames: int) -> dict[str, Any]:
        """Returns the `info` of an episode whose newest frames have poses c2w (24, 4, 4), `new_frames` of
        them new.
        """
        of_task = self.task.info(episode.goal, episode.c2w, episode.chunk_index)
        return _check_dict(of_task, f"info of {self.task.name}") | {
            "c2w": c2w,
            "intrinsics_px": intrinsics_matrix(episode.intrinsics_px),
            "n_new_frames": new_frames,
            "chunk_index": episode.chunk_index,
            "world": self.world,
        }


def check_goal(goal: Any, task: Task) -> Goal:
    """Returns what a task keeps of an episode; ValueError if it is not arrays of numbers by name, which is
    what a saved session holds.
    """
    for key, value in _check_dict(goal, f"a goal of {task.name}").items():
        if (dtype := np.asarray(value).dtype).kind not in "fiub":
            raise ValueError(
                f"got a goal of {task.name} with {key!r} of dtype {dtype}; wanted arrays of numbers: a "
                "saved session holds nothing else"
            )
    return goal


def _check_dict(given: Any, name: str) -> dict[str, Any]:
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise ValueError(f"got {name}={given!r:.60}; wanted a dict with texts as keys")
    return given
