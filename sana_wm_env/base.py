"""What every environment of the package shares: spaces, checks, poses, info, rendering. A subclass supplies the pictures."""

import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from .actions import Limits, action_path, action_space
from .camera import CHUNK_FRAMES, FPS, Array, compose, intrinsics_matrix
from .observations import Frames, Observation, observation_space, observe
from .tasks import Goal, Moment, Opening, Task, make_task


def _use_one_thread() -> None:
    """Torch's threads do not survive a fork, and a child that asks for them waits for ever; one of its own it always has."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # workers of AsyncVectorEnv, where forking is the default
    os.register_at_fork(after_in_child=_use_one_thread)


class Seeds(NamedTuple):
    """What one episode draws from the environment's own generator, always all, so that every episode draws alike."""

    room: int
    noise: int
    task: int


@dataclass(frozen=True)
class Episode:
    """All that an episode remembers. Replaced as a whole, so an interrupted step leaves the one before in place.

    Attributes:
        state: whatever the subclass carries from chunk to chunk.
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


class CameraEnv(gym.Env[Observation, NDArray[np.float32]]):
    """A camera that moves through a world, 24 frames per step.

    Subclasses say which reset options they know and implement `_prepare`, `_start` and `_advance`.

    Args:
        world: name that `info["world"]` carries.
        image_size: (height, width) of the frames.
        obs_mode: "chunk", "last" or "dict".
        render_mode: None, "rgb_array" or "rgb_array_list".
        max_translation_m: metres per chunk that an action of 1 stands for.
        max_rotation_rad: radians per chunk that an action of 1 stands for.
        action_mode: "chunk", "per_latent" or "per_frame", see `action_path`.
        task: "free", "goal", "follow" or a Task.
        reward_fn: a function of a Moment, in place of a task.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "rgb_array_list"], "render_fps": FPS}  # noqa: RUF012 (Gymnasium's own type)
    reset_options: ClassVar[tuple[str, ...]]
    refused_options: ClassVar[dict[str, str]] = {}  # what a user may well try, and why it makes no sense here

    def __init__(
        self,
        *,
        world: str,
        image_size: tuple[int, int],
        obs_mode: str,
        render_mode: str | None,
        max_translation_m: float,
        max_rotation_rad: float,
        action_mode: str = "chunk",
        task: str | Task = "free",
        reward_fn: Callable[[Moment], float] | None = None,
    ):
        self.task = make_task(task, reward_fn)
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"got render_mode={render_mode!r}; wanted None or one of {', '.join(self.metadata['render_modes'])}"
                " ('human' works through gymnasium.make, which adds a window)"
            )
        for name, value in {"max_translation_m": max_translation_m, "max_rotation_rad": max_rotation_rad}.items():
            if not 0 < value < np.inf:
                raise ValueError(f"got {name}={value!r}; wanted a positive number")
        self.world, self.image_size = world, (int(image_size[0]), int(image_size[1]))
        self.obs_mode, self.render_mode = obs_mode, render_mode
        self.max_translation_m, self.max_rotation_rad = float(max_translation_m), float(max_rotation_rad)
        self.observation_space = observation_space(obs_mode, self.image_size, self.task.spaces(self.image_size))
        self.action_mode, self.limits = action_mode, Limits(self.max_translation_m, self.max_rotation_rad)
        self.action_space: gym.spaces.Box = action_space(action_mode)  # type: ignore[assignment]
        self._episode: Episode | None = None
        self._unseen: list[Frames] = []  # what `render` returns next
        self._closed = False

    @property
    def c2w(self) -> Array:
        """(4, 4) float64, fresh: pose of the newest frame relative to the first. ResetNeeded before the first reset."""
        return self._running().c2w.copy()

    @abstractmethod
    def _prepare(self, options: dict[str, Any]) -> Any:
        """Checks the values of known options and loads what they name, or raises. Changes nothing."""

    @abstractmethod
    def _start(self, prepared: Any, seeds: Seeds) -> tuple[Frames, Array, Any]:
        """First frame (H, W, 3), intrinsics (4,) and state of a new episode. What it needs at random it takes from `seeds`."""

    @abstractmethod
    def _advance(self, episode: Episode, c2w: Array) -> tuple[Frames, Array, Any]:
        """Frames (24, H, W, 3) along c2w (24, 4, 4), the poses they really have, and the next state. Changes nothing."""

    @abstractmethod
    def _is_clear(self, prepared: Any, seeds: Seeds, c2w: Array) -> NDArray[np.bool_]:
        """Whether the camera of a new episode may stand at poses (F, 4, 4): (F,). True where nobody knows what the picture hides."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode. See the class for the options and for what is returned.

        Raises:
            ValueError: an unknown option or a bad value; the running episode and the random generator stay as they were.
        """
        return self._begin(self._checked(options), seed)

    def _checked(self, options: dict[str, Any] | None) -> Any:
        """What `_prepare` makes of the options. Changes nothing."""
        self._require_open()
        return self._prepare(self._known(options))

    def _begin(self, prepared: Any, seed: int | None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        seeds = Seeds(*(int(draw) for draw in self.np_random.integers(2**63, size=len(Seeds._fields), dtype=np.uint64)))
        frame, intrinsics, state = self._start(prepared, seeds)
        frames, c2w = np.repeat(frame[None], CHUNK_FRAMES, axis=0), np.tile(np.eye(4), (CHUNK_FRAMES, 1, 1))
        episode = Episode(state, np.eye(4), intrinsics)
        goal = self.task.begin(self._opening(episode, frame, np.random.default_rng(seeds.task), partial(self._is_clear, prepared, seeds)))
        return self._resume(replace(episode, goal=goal), frames, c2w)

    def _resume(self, episode: Episode, frames: Frames, c2w: Array) -> tuple[Observation, dict[str, Any]]:
        """Goes on from an episode whose newest frame and pose fill frames (24, H, W, 3) and c2w (24, 4, 4)."""
        try:
            shown = self._observation(frames, episode), self._info(episode, c2w, 1)
        except (KeyError, IndexError) as error:
            kept = ", ".join(sorted(episode.goal)) or "nothing"
            raise ValueError(f"got a session whose task keeps {kept}; this one needs {error}: wanted a session of the same task") from error
        self._episode, self._unseen = episode, []
        self._keep_for_render(frames[-1:])
        return shown

    def _sibling(self) -> Self:
        """The same environment with nothing running and a generator of its own; spaces and weights are shared."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__ | {"_episode": None, "_unseen": [], "_np_random": None, "_np_random_seed": None})
        return other

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Moves the camera for one chunk. See the class for what is returned.

        Raises:
            ValueError: an action of wrong shape or range, or with NaN; the episode goes on as if it had not been sent.
            gymnasium.error.ResetNeeded: before the first reset.
            gymnasium.error.ClosedEnvironmentError: after close.
        """
        episode = self._running()
        return self._arrive(self._judge(episode, action, *self._advance(episode, self._wish(episode, action))))

    def _wish(self, episode: Episode, action: Any) -> Array:
        """Poses (24, 4, 4) that an action asks for; ValueError for a bad one. Changes nothing."""
        return compose(episode.c2w, action_path(action, self.action_mode, self.limits, batch=()))

    def _judge(self, episode: Episode, action: Any, frames: Frames, c2w: Array, state: Any) -> Step:
        """What comes of an action, given what `_advance` returned. Changes nothing."""
        moment = Moment(episode.c2w, c2w, frames, episode.chunk_index + 1, np.array(action, np.float32))
        reward, terminated, goal = self.task.judge(episode.goal, moment)
        goal = episode.goal if goal is None else goal
        after = replace(episode, state=state, c2w=c2w[-1].copy(), chunk_index=moment.chunk_index, goal=goal)
        return Step(after, frames, c2w, float(reward), bool(terminated))

    def _arrive(self, step: Step) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Goes on to where a step led."""
        self._episode = step.episode
        self._keep_for_render(step.frames)
        info = self._info(step.episode, step.c2w, CHUNK_FRAMES)
        return self._observation(step.frames, step.episode), step.reward, step.terminated, False, info

    def render(self) -> Frames | list[Frames] | None:  # type: ignore[override]  # Gymnasium's RenderFrame has one type for both modes
        """`rgb_array`: the newest frame. `rgb_array_list`: every frame since the last call or the last reset. None: nothing."""
        self._running()
        if self.render_mode is None:
            gym.logger.warn('render() has nothing to do without a mode: gym.make(..., render_mode="rgb_array")')
            return None
        if self.render_mode == "rgb_array":
            return self._unseen[-1].copy()
        seen, self._unseen = self._unseen, []
        return seen

    def close(self) -> None:
        """Frees the episode. A second call does nothing; reset and step refuse afterwards."""
        self._closed, self._episode, self._unseen = True, None, []

    def _known(self, options: Any) -> dict[str, Any]:
        if not isinstance(options or {}, Mapping):
            raise ValueError(f"got options of type {type(options).__name__}; wanted a dict")
        given = dict(options or {})
        for key in given:
            if key not in self.reset_options:
                reason = f" ({self.refused_options[key]})" if key in self.refused_options else ""
                raise ValueError(f"got the reset option {key!r}{reason}; wanted keys out of {', '.join(self.reset_options)}")
        return given

    def _require_open(self) -> None:
        if self._closed:
            raise gym.error.ClosedEnvironmentError("this environment was closed; make a new one with gymnasium.make")

    def _running(self) -> Episode:
        self._require_open()
        if self._episode is None:
            raise gym.error.ResetNeeded("no episode is running; call reset() first")
        return self._episode

    def _opening(self, episode: Episode, frame: Frames, rng: np.random.Generator, is_clear: Callable[[Array], Any]) -> Opening:
        """What the task of a new episode begins from."""

        def look(path: Array) -> Frames:
            shown, ahead = [], episode
            for poses in path.reshape(-1, CHUNK_FRAMES, 4, 4):
                frames, c2w, state = self._advance(ahead, poses)
                shown, ahead = [*shown, frames], replace(ahead, state=state, c2w=c2w[-1], chunk_index=ahead.chunk_index + 1)
            return np.concatenate(shown)

        limits = self.max_translation_m, self.max_rotation_rad
        return Opening(frame.copy(), episode.intrinsics_px.copy(), rng, *limits, look, is_clear)

    def _observation(self, frames: Frames, episode: Episode) -> Observation:
        of_task = self.task.observe(episode.goal, episode.c2w, episode.chunk_index) if self.obs_mode == "dict" else {}
        return observe(self.obs_mode, frames, episode.c2w, episode.intrinsics_px, of_task)

    def _keep_for_render(self, frames: Frames) -> None:
        if self.render_mode == "rgb_array":
            self._unseen = [frames[-1].copy()]
        elif self.render_mode == "rgb_array_list":
            self._unseen.extend(frames.copy())

    def _info(self, episode: Episode, c2w: Array, new_frames: int) -> dict[str, Any]:
        return self.task.info(episode.goal, episode.c2w, episode.chunk_index) | {
            "c2w": c2w,
            "intrinsics_px": intrinsics_matrix(episode.intrinsics_px),
            "n_new_frames": new_frames,
            "chunk_index": episode.chunk_index,
            "world": self.world,
        }
