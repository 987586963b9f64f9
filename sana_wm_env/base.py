"""Gymnasium's shell around rules and a running episode: spaces, options, rendering. A subclass supplies the pictures."""

import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from .actions import Limits, action_space
from .camera import CHUNK_FRAMES, FPS, Array
from .episode import Episode, Rules, Seeds, Step
from .observations import Frames, Observation, observation_space
from .tasks import Moment, Opening, Task, make_task


def _use_one_thread() -> None:
    """Torch's threads do not survive a fork, and a child that asks for them waits for ever; one of its own it always has."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # workers of AsyncVectorEnv, where forking is the default
    os.register_at_fork(after_in_child=_use_one_thread)


class CameraEnv(gym.Env[Observation, NDArray[np.float32]]):
    """A camera that moves through a world, 24 frames per step.

    Subclasses say which reset options they know and implement `_prepare`, `_start`, `_is_clear` and `advance`.

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
        of_task = make_task(task, reward_fn)
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"got render_mode={render_mode!r}; wanted None or one of {', '.join(self.metadata['render_modes'])}"
                " ('human' works through gymnasium.make, which adds a window)"
            )
        for name, value in {"max_translation_m": max_translation_m, "max_rotation_rad": max_rotation_rad}.items():
            if not 0 < value < np.inf:
                raise ValueError(f"got {name}={value!r}; wanted a positive number")
        size, limits = (int(image_size[0]), int(image_size[1])), Limits(float(max_translation_m), float(max_rotation_rad))
        self.rules = Rules(world, size, of_task, limits, action_mode, obs_mode)
        self.render_mode = render_mode
        self.observation_space = observation_space(obs_mode, size, of_task.spaces(size))
        self.action_space: gym.spaces.Box = action_space(action_mode)  # type: ignore[assignment]
        self._episode: Episode | None = None
        self._unseen: list[Frames] = []  # what `render` returns next
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
        """(4, 4) float64, fresh: pose of the newest frame relative to the first. ResetNeeded before the first reset."""
        return self.episode.c2w.copy()

    # ---- what Gymnasium asks for

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode. See the class for the options and for what is returned.

        Raises:
            ValueError: an unknown option or a bad value; the running episode and the random generator stay as they were.
        """
        return self.begin(self.check_options(options), seed)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Moves the camera for one chunk. See the class for what is returned.

        Raises:
            ValueError: an action of wrong shape or range, or with NaN; the episode goes on as if it had not been sent.
            gymnasium.error.ResetNeeded: before the first reset.
            gymnasium.error.ClosedEnvironmentError: after close.
        """
        episode = self.episode
        frames, c2w, state = self.advance(episode, self.rules.wish(episode, action))
        return self.arrive(self.rules.judge(episode, action, frames, c2w, state))

    def render(self) -> Frames | list[Frames] | None:  # type: ignore[override]  # Gymnasium's RenderFrame has one type for both modes
        """`rgb_array`: the newest frame. `rgb_array_list`: every frame since the last call or the last reset. None: nothing."""
        self.episode  # noqa: B018  # there has to be one
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

    # ---- the parts of reset and step, for who plays several environments at once

    def check_options(self, options: dict[str, Any] | None) -> Any:
        """What `begin` takes, loaded and checked; ValueError for bad options. Changes nothing."""
        self._require_open()
        if not isinstance(options or {}, Mapping):
            raise ValueError(f"got options of type {type(options).__name__}; wanted a dict")
        given = dict(options or {})
        for key in given:
            if key not in self.reset_options:
                reason = f" ({self.refused_options[key]})" if key in self.refused_options else ""
                raise ValueError(f"got the reset option {key!r}{reason}; wanted keys out of {', '.join(self.reset_options)}")
        return self._prepare(given)

    def begin(self, prepared: Any, seed: int | None) -> tuple[Observation, dict[str, Any]]:
        """The second half of `reset`, from what `check_options` returned."""
        super().reset(seed=seed)
        seeds = Seeds(*(int(draw) for draw in self.np_random.integers(2**63, size=len(Seeds._fields), dtype=np.uint64)))
        frame, intrinsics, state = self._start(prepared, seeds)
        frames, c2w = np.repeat(frame[None], CHUNK_FRAMES, axis=0), np.tile(np.eye(4), (CHUNK_FRAMES, 1, 1))
        episode = Episode(state, np.eye(4), intrinsics)
        opening = self._opening(episode, frame, np.random.default_rng(seeds.task), partial(self._is_clear, prepared, seeds))
        return self.resume(replace(episode, goal=self.rules.task.begin(opening)), frames, c2w)

    def resume(self, episode: Episode, frames: Frames, c2w: Array) -> tuple[Observation, dict[str, Any]]:
        """Goes on from an episode whose newest frame and pose fill frames (24, H, W, 3) and c2w (24, 4, 4). Returns what `reset` does."""
        try:
            shown = self.rules.observe(episode, frames), self.rules.info(episode, c2w, 1)
        except (KeyError, IndexError) as error:
            kept = ", ".join(sorted(episode.goal)) or "nothing"
            raise ValueError(f"got a session whose task keeps {kept}; this one needs {error}: wanted a session of the same task") from error
        self._episode, self._unseen = episode, []
        self._keep_for_render(frames[-1:])
        return shown

    def arrive(self, step: Step) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Goes on to where a step led. Returns what `step` does."""
        self._episode = step.episode
        self._keep_for_render(step.frames)
        info = self.rules.info(step.episode, step.c2w, CHUNK_FRAMES)
        return self.rules.observe(step.episode, step.frames), step.reward, step.terminated, False, info

    def twin(self) -> Self:
        """The same environment with nothing running and a generator of its own; rules, spaces and weights are shared."""
        other = object.__new__(type(self))  # a fork makes many: spaces of videos are slow to make
        vars(other).update(vars(self) | {"_episode": None, "_unseen": [], "_np_random": None, "_np_random_seed": None})
        return other

    # ---- what a subclass supplies

    @abstractmethod
    def advance(self, episode: Episode, c2w: Array) -> tuple[Frames, Array, Any]:
        """Frames (24, H, W, 3) along c2w (24, 4, 4), the poses they really have, and the next state. Changes nothing."""

    @abstractmethod
    def _prepare(self, options: dict[str, Any]) -> Any:
        """Checks the values of known options and loads what they name, or raises. Changes nothing."""

    @abstractmethod
    def _start(self, prepared: Any, seeds: Seeds) -> tuple[Frames, Array, Any]:
        """First frame (H, W, 3), intrinsics (4,) and state of a new episode. What it needs at random it takes from `seeds`."""

    @abstractmethod
    def _is_clear(self, prepared: Any, seeds: Seeds, c2w: Array) -> NDArray[np.bool_]:
        """Whether the camera of a new episode may stand at poses (F, 4, 4): (F,). True where nobody knows what the picture hides."""

    def _require_open(self) -> None:
        if self._closed:
            raise gym.error.ClosedEnvironmentError("this environment was closed; make a new one with gymnasium.make")

    def _opening(self, episode: Episode, frame: Frames, rng: np.random.Generator, is_clear: Callable[[Array], Any]) -> Opening:
        """What the task of a new episode begins from."""

        def look(path: Array) -> Frames:
            shown, ahead = [], episode
            for poses in path.reshape(-1, CHUNK_FRAMES, 4, 4):
                frames, c2w, state = self.advance(ahead, poses)
                shown, ahead = [*shown, frames], replace(ahead, state=state, c2w=c2w[-1], chunk_index=ahead.chunk_index + 1)
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
        """What an episode is about."""
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
        """Pieces that a chunk is steered in."""
        return self.rules.action_mode

    @property
    def obs_mode(self) -> str:
        """What an observation is."""
        return self.rules.obs_mode
