"""Gymnasium's shell around rules and a running episode: spaces, options, rendering. A subclass supplies the
pictures.
"""

import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from .actions import Limits, action_space
from .camera import CHUNK_FRAMES, FPS, Array
from .episode import Episode, Rules, Seeds, Step, check_goal
from .numbers import to_flag, to_number, to_whole
from .observations import Frames, Observation, observation_space
from .tasks import Moment, Opening, Task, make_task


def _use_one_thread() -> None:
    """Torch's threads do not survive a fork: a child that asks for them hangs, but always has one of its
    own.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # workers of AsyncVectorEnv, where forking is the default
    os.register_at_fork(after_in_child=_use_one_thread)


class Start(NamedTuple):
    """How an episode begins: what the options came to, and whether a reset without any begins so again."""

    how: Any
    keep: bool = True


class CameraEnv(gym.Env[Observation, NDArray[np.float32]]):
    """A camera that moves through a world, 24 frames per step.

    Subclasses say which reset options they know and implement `prepare`, `start`, `is_clear` and
    `advance`.

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

    Attributes:
        rules: what follows from these, as pure functions of an episode.
    """

    # Gymnasium's RecordVideo and HumanRendering show one picture a step, in either mode, and a step is 1.5 s.
    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own type)
        "render_modes": ["rgb_array", "rgb_array_list"],
        "render_fps": FPS / CHUNK_FRAMES,
        "frames_per_second": FPS,
    }
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
        of_task = make_task(task, reward_fn)
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"got render_mode={render_mode!r}; wanted None or one of "
                f"{', '.join(self.metadata['render_modes'])}"
                " ('human' works through gymnasium.make, which adds a window)"
            )
        size = check_size(image_size)
        limits = Limits(
            _check_limit(max_translation_m, "max_translation_m", "metres"),
            _check_limit(max_rotation_rad, "max_rotation_rad", "radians"),
        )
        self.rules = Rules(world, size, of_task, limits, action_mode, obs_mode)
        self.render_mode = render_mode
        self.observation_space = observation_space(obs_mode, size, of_task.spaces(size))
        self.action_space: gym.spaces.Box = action_space(action_mode)  # type: ignore[assignment]
        self._episode: Episode | None = None
        self._unseen: list[Frames] = []  # what `render` returns next
        self._kept: Start | None = None  # how a reset without seed and options begins
        self._closed = False

    @property
    def episode(self) -> Episode:
        """The running episode. ResetNeeded before the first reset, ClosedEnvironmentError after close."""
        self._require_open()
        if self._episode is None:
            raise gym.error.ResetNeeded("no episode is running; call reset() first")
        return self._episode

    @property
    def c2w(self) -> Array:
        """(4, 4) float64, fresh: pose of the newest frame relative to the first. ResetNeeded before the first
        reset.
        """
        return self.episode.c2w.copy()

    # ---- Gymnasium's interface

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode. See the class for the options and for what is returned.

        A reset with neither seed nor options, such as wrappers and vector environments do by themselves,
        begins like the one before: from the same picture, room and prompt, where they were given.

        Raises:
            ValueError: an unknown option, a bad value or seed; the running episode, the random generator and
                the step counters of wrappers stay as they were.
        """
        start = self.choose_start(seed, options)
        return self.begin(start, seed)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Moves the camera for one chunk. See the class for what is returned.

        Raises:
            ValueError: an action of wrong shape or range, or with NaN; the episode goes on as if it had not
                been sent.
            gymnasium.error.ResetNeeded: before the first reset.
            gymnasium.error.ClosedEnvironmentError: after close.
        """
        episode = self.episode
        frames, c2w, state = self.advance(episode, self.rules.wish(episode, action))
        return self.arrive(self.rules.judge(episode, action, frames, c2w, state))

    def render(self) -> Frames | list[Frames] | None:  # type: ignore[override]  # Gymnasium's RenderFrame has one type for both modes
        """`rgb_array`: the newest frame. `rgb_array_list`: every frame since the last call or the last reset.
        None: nothing.
        """
        self.episode  # noqa: B018  # there has to be one
        if self.render_mode is None:
            gym.logger.warn(
                'render() has nothing to do without a mode: gym.make(..., render_mode="rgb_array")'
            )
            return None
        if self.render_mode == "rgb_array":
            return self._unseen[-1].copy()
        seen, self._unseen = self._unseen, []
        return seen

    def close(self) -> None:
        """Frees the episode. A second call does nothing; reset and step refuse afterwards."""
        self._closed, self._episode, self._unseen = True, None, []

    # ---- the parts of reset and step, for vector environments

    def choose_start(self, seed: Any, options: dict[str, Any] | None) -> Start:
        """Returns how the episode of a reset begins; ValueError for a bad seed or option. Changes nothing."""
        try:
            self._require_open()
            if seed is not None:
                to_whole(seed, "seed")
            if seed is None and options is None and self._kept is not None:
                return self._kept
            return self.check_options(options)
        except Exception:
            _keep_step_counters(self._episode)
            raise

    def check_options(self, options: dict[str, Any] | None) -> Start:
        """Returns what `begin` takes, loaded and checked; ValueError for bad options. Changes nothing."""
        self._require_open()
        if not isinstance(options or {}, Mapping):
            raise ValueError(f"got options of type {type(options).__name__}; wanted a dict")
        given = dict(options or {})
        keep = to_flag(given.pop("keep_options", True), "keep_options")
        for key in given:
            if key not in self.reset_options:
                reason = f" ({self.refused_options[key]})" if key in self.refused_options else ""
                known = ", ".join((*self.reset_options, "keep_options"))
                raise ValueError(f"got the reset option {key!r}{reason}; wanted keys out of {known}")
        if given.get("state") is not None and (others := sorted(given.keys() - {"state"})):
            raise ValueError(
                f"got the option {others[0]!r} beside a state, which has its own; wanted one or the other"
            )
        return Start(self.prepare(given), keep)

    def begin(self, start: Start, seed: int | None) -> tuple[Observation, dict[str, Any]]:
        """The second half of `reset`, from what `check_options` returned."""
        super().reset(seed=None if seed is None else int(seed))
        if isinstance(start.how, Episode):  # a saved session goes on without a draw from the generator
            shown = self.resume(start.how, *self.repeat_newest(start.how))
            self._kept = None
            return shown
        draws = self.np_random.integers(2**63, size=len(Seeds._fields), dtype=np.uint64)
        seeds = Seeds(*(int(draw) for draw in draws))
        frame, intrinsics, state = self.start(start.how, seeds)
        frames, c2w = np.repeat(frame[None], CHUNK_FRAMES, axis=0), np.tile(np.eye(4), (CHUNK_FRAMES, 1, 1))
        episode = Episode(state, np.eye(4), intrinsics)
        is_clear = partial(self.is_clear, start.how, seeds)
        opening = self._opening(episode, frame, np.random.default_rng(seeds.task), is_clear)
        goal = check_goal(self.rules.task.begin(opening), self.task)
        shown = self.resume(replace(episode, goal=goal), frames, c2w)
        self._kept = start if start.keep else None
        return shown

    def repeat_newest(self, episode: Episode) -> tuple[Frames, Array]:
        """A chunk's worth of the newest frame of a session, and of its pose."""
        frame = np.repeat(self.newest_frame(episode)[None], CHUNK_FRAMES, axis=0)
        return frame, np.tile(episode.c2w, (CHUNK_FRAMES, 1, 1))

    def check_session(self, episode: Episode) -> Episode:
        """Returns the episode of a saved session; ValueError if it is none of this environment's task."""
        frames, c2w = self.repeat_newest(episode)
        try:
            self.task.check(episode.goal)
            self.rules.info(episode, c2w, 1)
            fits = self.observation_space.contains(self.rules.observe(episode, frames))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            keys = ", ".join(sorted(episode.goal)) or "nothing"
            raise ValueError(
                f"got a session whose task keeps {keys}, which does not fit this one ({error}); wanted a "
                "session of the same task"
            ) from error
        if not fits:
            raise ValueError(
                "got a session whose observation lies outside the space; wanted one of this task"
            )
        return episode

    def resume(self, episode: Episode, frames: Frames, c2w: Array) -> tuple[Observation, dict[str, Any]]:
        """Continues an episode whose newest frame and pose fill frames (24, H, W, 3) and c2w (24, 4, 4).
        Returns what `reset` does.
        """
        shown = self.rules.observe(episode, frames), self.rules.info(episode, c2w, 1)
        if self.obs_mode == "dict" and not self.observation_space.contains(shown[0]):
            raise ValueError(
                f"got an observation of {self.task.name} that lies outside its space; wanted observe to "
                "return, by name, what spaces says: shape, dtype and bounds"
            )
        self._episode, self._unseen = episode, []
        self._keep_for_render(frames[-1:])
        return shown

    def arrive(self, step: Step) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes over the episode after a step. Returns what `step` does."""
        self._episode = step.episode
        self._keep_for_render(step.frames)
        info = self.rules.info(step.episode, step.c2w, CHUNK_FRAMES)
        return self.rules.observe(step.episode, step.frames), step.reward, step.terminated, False, info

    def twin(self) -> Self:
        """Makes the same environment with no episode and a generator of its own; rules, spaces and weights
        are shared.
        """
        other = object.__new__(type(self))  # a fork makes many: spaces of videos are slow to make
        vars(other).update(
            vars(self) | {"_episode": None, "_unseen": [], "_np_random": None, "_np_random_seed": None}
        )
        return other

    def __getstate__(self) -> dict[str, Any]:
        """All of it, the running episode and the generators too; the episode in memory of its own."""
        episode = self._episode
        if episode is not None and hasattr(episode.state, "detached"):
            episode = replace(episode, state=episode.state.detached())
        return vars(self) | {"_episode": episode}

    # ---- to be implemented by subclasses

    @abstractmethod
    def advance(self, episode: Episode, c2w: Array) -> tuple[Frames, Array, Any]:
        """Returns frames (24, H, W, 3) along c2w (24, 4, 4), their actual poses, and the next state. Changes
        nothing.
        """

    def advance_each(
        self, episodes: Sequence[Episode], c2w: Sequence[Array]
    ) -> list[tuple[Frames, Array, Any]]:
        """`advance` for several episodes of environments with these rules."""
        return [self.advance(episode, path) for episode, path in zip(episodes, c2w, strict=True)]

    def reach(self, episode: Episode, c2w: Array) -> tuple[Frames, Array, Any]:
        """`advance` for who does not look at frames; there may be none."""
        return self.advance(episode, c2w)

    @abstractmethod
    def newest_frame(self, episode: Episode) -> Frames:
        """Returns the newest frame (H, W, 3) of an episode."""

    @abstractmethod
    def prepare(self, options: dict[str, Any]) -> Any:
        """Checks the values of known options and loads what they name, or raises. Changes nothing."""

    @abstractmethod
    def start(self, prepared: Any, seeds: Seeds) -> tuple[Frames, Array, Any]:
        """First frame (H, W, 3), intrinsics (4,) and state of a new episode. What it needs at random it takes
        from `seeds`.
        """

    @abstractmethod
    def is_clear(self, prepared: Any, seeds: Seeds, c2w: Array) -> NDArray[np.bool_]:
        """Checks whether the camera of a new episode may stand at poses (F, 4, 4): (F,). True where it is
        unknown what the picture hides.
        """

    def _require_open(self) -> None:
        if self._closed:
            raise gym.error.ClosedEnvironmentError(
                "this environment was closed; make a new one with gymnasium.make"
            )

    def _opening(
        self, episode: Episode, frame: Frames, rng: np.random.Generator, is_clear: Callable[[Array], Any]
    ) -> Opening:
        """Makes what the task of a new episode begins from."""

        def look(path: Array) -> Frames:
            shown, ahead = [], episode
            for poses in path.reshape(-1, CHUNK_FRAMES, 4, 4):
                frames, c2w, state = self.advance(ahead, poses)
                shown, ahead = (
                    [*shown, frames],
                    replace(ahead, state=state, c2w=c2w[-1], chunk_index=ahead.chunk_index + 1),
                )
            return np.concatenate(shown)

        return Opening(frame.copy(), episode.intrinsics_px.copy(), rng, *self.rules.limits, look, is_clear)

    def _keep_for_render(self, frames: Frames) -> None:
        if self.render_mode == "rgb_array":
            self._unseen = [frames[-1].copy()]
        elif self.render_mode == "rgb_array_list":
            self._unseen.extend(frames.copy())

    # ---- the rules under the names that they were made with

    @property
    def world(self) -> str:
        """Name that `info["world"]` carries."""
        return self.rules.world

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        return self.rules.image_size

    @property
    def task(self) -> Task:
        """Task of the episodes."""
        return self.rules.task

    @property
    def limits(self) -> Limits:
        """Metres and radians per chunk that an action of 1 stands for."""
        return self.rules.limits

    @property
    def max_translation_m(self) -> float:
        """Metres per chunk that an action of 1 stands for."""
        return self.rules.limits.translation_m

    @property
    def max_rotation_rad(self) -> float:
        """Radians per chunk that an action of 1 stands for."""
        return self.rules.limits.rotation_rad

    @property
    def action_mode(self) -> str:
        """Pieces in which an action steers a chunk: "chunk", "per_latent" or "per_frame"."""
        return self.rules.action_mode

    @property
    def obs_mode(self) -> str:
        """Kind of observation: "chunk", "last" or "dict"."""
        return self.rules.obs_mode


def check_size(image_size: Any) -> tuple[int, int]:
    """Returns (height, width) in pixels; ValueError for anything but two whole numbers from 1."""
    if (
        not isinstance(image_size, Sequence | np.ndarray)
        or isinstance(image_size, str)
        or len(image_size) != 2
    ):
        raise ValueError(f"got image_size={image_size!r}; wanted (height, width) in pixels")
    height, width = image_size
    return to_whole(height, "the height of image_size", 1), to_whole(width, "the width of image_size", 1)


def _check_limit(value: Any, name: str, unit: str) -> float:
    limit = to_number(value, name, f"a positive number of {unit} per chunk")
    if limit <= 0:
        raise ValueError(f"got {name}={value!r}; wanted a positive number of {unit} per chunk")
    return limit


def _keep_step_counters(episode: Episode | None) -> None:
    """Undoes what `TimeLimit` has done by the time a reset is refused: it counts from zero before it asks.

    The wrapper knows nothing of a refusal, and this environment nothing of the wrapper, but for the call that
    is running.
    """
    frame = sys._getframe(2)
    while frame is not None and episode is not None:
        layer = frame.f_locals.get("self")
        if isinstance(layer, TimeLimit) and frame.f_code.co_name == "reset":
            layer._elapsed_steps = episode.chunk_index
        frame = frame.f_back
