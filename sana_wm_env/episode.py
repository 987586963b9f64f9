"""An episode as a value, and the rules of every environment as pure functions of it. Nothing here renders, imagines or remembers."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .actions import PIECES, Limits, action_path
from .camera import Array, compose, intrinsics_matrix
from .observations import Frames, Observation, observe
from .tasks import Goal, Moment, Task


class Seeds(NamedTuple):
    """What one episode draws from the environment's own generator, always all, so that every episode draws alike."""

    room: int
    noise: int
    task: int


@dataclass(frozen=True)
class Episode:
    """All that an episode remembers. Replaced as a whole, so an interrupted step leaves the one before in place.

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
    """What one step leads to: the episode after it, frames (24, H, W, 3) along c2w (24, 4, 4), reward, end."""

    episode: Episode
    frames: Frames
    c2w: Array
    reward: float
    terminated: bool


@dataclass(frozen=True)
class Rules:
    """What an environment was made with. One object serves any number of episodes; no method changes anything.

    A step is `wish` (where does the action lead?), the world's forward, `judge` (what was it worth?), then `observe` and `info`.

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
        """Poses (24, 4, 4) that an action asks for. ValueError for a bad one."""
        return compose(episode.c2w, action_path(action, self.action_mode, self.limits, batch=()))

    def wish_each(self, before: Array, actions: NDArray[Any]) -> Array:
        """Poses (N, 24, 4, 4) that an action each (N, action size) asks for, from cameras at before (N, 4, 4)."""
        return compose(before[:, None], action_path(actions, self.action_mode, self.limits))

    def wish_ahead(self, episode: Episode, actions: NDArray[Any]) -> Array:
        """Poses (N, K, 24, 4, 4) that sequences of actions (N, K, action size) ask for, one after the other."""
        paths, before = [], np.broadcast_to(episode.c2w, (len(actions), 4, 4))
        for chosen in actions.swapaxes(0, 1):  # (K, N, action size)
            paths.append(self.wish_each(before, chosen))
            before = paths[-1][:, -1]
        return np.stack(paths, 1)

    def check_sequences(self, actions: Any) -> NDArray[Any]:
        """Sequences of actions (N, K, action size) as an array. ValueError for a bad one; the message names its place."""
        actions, wanted = np.asarray(actions), f"(N, K, {6 * PIECES[self.action_mode]})"
        if actions.ndim != 3 or 0 in actions.shape:
            raise ValueError(f"got actions of shape {actions.shape}; wanted {wanted}: N sequences of K actions")
        try:
            action_path(actions, self.action_mode, self.limits)
        except ValueError:
            for i, sequence in enumerate(actions):
                for k, action in enumerate(sequence):
                    try:
                        action_path(action, self.action_mode, self.limits, batch=())
                    except ValueError as error:
                        raise ValueError(f"sequence {i}, action {k}: {error}") from None
            raise
        return actions

    def judge(self, episode: Episode, action: Any, frames: Frames, c2w: Array, state: Any) -> Step:
        """What comes of an action.

        Args:
            episode: before it.
            action: as it was given.
            frames: uint8 (24, H, W, 3) that the world showed.
            c2w: (24, 4, 4) poses that they really have.
            state: what the environment carries on.
        """
        moment = Moment(episode.c2w, c2w, frames, episode.chunk_index + 1, np.array(action, np.float32))
        reward, terminated, goal = self.task.judge(episode.goal, moment)
        goal = episode.goal if goal is None else goal
        after = replace(episode, state=state, c2w=c2w[-1].copy(), chunk_index=moment.chunk_index, goal=goal)
        return Step(after, frames, c2w, float(reward), bool(terminated))

    def observe(self, episode: Episode, frames: Frames) -> Observation:
        """What an agent is shown of an episode whose newest frames are these (24, H, W, 3)."""
        of_task = self.task.observe(episode.goal, episode.c2w, episode.chunk_index) if self.obs_mode == "dict" else {}
        return observe(self.obs_mode, frames, episode.c2w, episode.intrinsics_px, of_task)

    def info(self, episode: Episode, c2w: Array, new_frames: int) -> dict[str, Any]:
        """The `info` of an episode whose newest frames have poses c2w (24, 4, 4), `new_frames` of them new."""
        return self.task.info(episode.goal, episode.c2w, episode.chunk_index) | {
            "c2w": c2w,
            "intrinsics_px": intrinsics_matrix(episode.intrinsics_px),
            "n_new_frames": new_frames,
            "chunk_index": episode.chunk_index,
            "world": self.world,
        }
