"""Every frame of an episode as H.264 video, with what drove the camera beside it.

Gymnasium's `RecordVideo` asks for one picture per step. A step here is 24 frames, so it would lose 23 of
them.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from .camera import FPS
from .files import to_path
from .numbers import to_whole
from .outputs import Output, check_outputs
from .video import LARGEST_HEIGHT, VideoWriter, check_crf

FILE_ENDING = re.compile(r"\.[a-z][a-z0-9]{0,4}", re.IGNORECASE)
"""What ends the name of a file rather than of a folder: .avi, not .5 or .2026-11-25."""


class Recording:
    """One episode on its way to disk: the video as it comes, the sidecar when it closes."""

    def __init__(self, video: VideoWriter, seed: int | None):
        self.video, self.seed = video, -1 if seed is None else seed
        self.c2w: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.info: Mapping[str, Any] = {}
        self.image_size = (0, 0)

    def add(self, frames: np.ndarray, info: Mapping[str, Any]) -> None:
        """Adds the new frames of a chunk, uint8 (n, H, W, 3), and their poses."""
        self.video.write(frames)
        self.c2w.append(info["c2w"][-len(frames) :])
        self.info, self.image_size = info, frames.shape[1:3]

    def close(self) -> None:
        """Finishes the video and its sidecar. A second call does nothing."""
        if not self.c2w:
            self.video.discard()
            return
        sidecar = {
            "c2w": np.concatenate(self.c2w),
            "intrinsics_px": self.info["intrinsics_px"],
            "image_size": self.image_size,
            "actions": np.asarray(self.actions, np.float32),
            "rewards": np.asarray(self.rewards, np.float64),
            "world": str(self.info["world"]),
            "seed": self.seed,
        }
        self.c2w = []
        self.video.close(sidecar)


class Names:
    """What the files of a recorder are called: those after a first one that was named, or of a folder that
    only grows.

    Args:
        path: a name ending in .mp4, or a folder.

    Raises:
        ValueError: another file's name, or a place where nothing can be written.
    """

    def __init__(self, path: str | Path):
        self.path, self.episode, given = to_path(path, folder=True), 0, str(path)
        named = self.path.suffix.lower() == ".mp4" and not self.path.is_dir()
        other = FILE_ENDING.fullmatch(self.path.suffix) and not given.endswith("/")
        if other and not named and not self.path.is_dir():
            raise ValueError(
                f"got path='{path}', which looks like a file of another kind; wanted a name that ends in "
                ".mp4, or a folder (one that is there, or a name with / at its end)"
            )
        self.is_folder = not named
        sidecar = None if self.is_folder else self.path.with_suffix(".npz")
        check_outputs(
            Output("path", given if named else self.path, folder=self.is_folder),
            Output("the sidecar of path", sidecar),
        )

    def next(self) -> Path:
        """The name of the next episode's video."""
        if not self.is_folder:
            path = self.path
            if self.episode:
                path = path.with_name(f"{path.stem}-{self.episode}{path.suffix}")
        else:
            while (path := self.path / f"episode-{self.episode:04d}.mp4").exists():
                self.episode += 1
        self.episode += 1
        return path


class RecordChunks(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Records every frame of every episode: the first frame once, then 24 per step, so 24k + 1 in all.

    Beside `a.mp4` lies `a.npz` with `c2w` (F, 4, 4) float64 relative to the first frame, `convention`
    ("opencv"), `intrinsics_px` (3, 3) in pixels of the observed frames, which are `image_size` (height,
    width) and not those of the enlarged video, `actions` (K, 6), `rewards` (K,), `world`, `seed` (-1 where
    `reset` got none), and `video_sha256` of the bytes of its video. `sana-wm data validate` and `pack` take
    both as they are, and refuse a sidecar beside another video.

    A file is complete after the next `reset`, after `close`, when a `with` statement is left, or when the
    program ends; until then it lies beside its name as .part, and what had the name before stays. A refused
    action or reset option does not end the recording, because it does not end the episode.

    Args:
        env: an environment of this package, whose steps show the whole chunk: `obs_mode="chunk"` or
            `render_mode="rgb_array_list"`.
        path: a name ending in .mp4 (replaced if it exists; the episodes after the first get -1, -2, ...
            appended), or a folder, in which episodes are numbered on from what is there.
        min_height: small frames are enlarged by a whole factor to at least this height in pixels; 0 keeps the
            size.
        crf: quality, 0 to 51, see `VideoWriter`.

    Raises:
        ValueError: the environment shows only one frame of each step; a path with another ending, or where
            nothing can be written; a setting out of range.
    """

    def __init__(self, env: gym.Env, path: str | Path, min_height: int = 256, crf: int = 12):
        gym.utils.RecordConstructorArgs.__init__(self, path=str(path), min_height=min_height, crf=crf)
        gym.Wrapper.__init__(self, env)
        self._from_render = env.render_mode == "rgb_array_list"
        shape = env.observation_space.shape
        if not self._from_render and (shape is None or len(shape) != 4 or shape[-1] != 3):
            raise ValueError(
                f"got an environment with observations of shape {shape} and render_mode={env.render_mode!r}, "
                "which show one frame of "
                "each step; RecordChunks wants them all: gym.make(..., obs_mode='chunk') or gym.make(..., "
                "render_mode='rgb_array_list')"
            )
        self.min_height, self.crf = to_whole(min_height, "min_height", 0, LARGEST_HEIGHT), check_crf(crf)
        self._names = Names(path)
        self.path = self._names.path
        self._unseen: list[np.ndarray] = []
        self._recording: Recording | None = None
        self._finish = lambda: None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode and its file; finishes the file before."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._finish()
        self._unseen = []
        self._recording = Recording(VideoWriter(self._names.next(), FPS, self.min_height, self.crf), seed)
        self._finish = weakref.finalize(self, self._recording.close)
        self._recording.add(self._new_frames(obs, info), info)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps and records the new frames."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._recording is not None:
            self._recording.add(self._new_frames(obs, info), info)
            self._recording.actions.append(np.array(action))
            self._recording.rewards.append(float(reward))
        return obs, reward, terminated, truncated, info

    def render(self) -> Any:
        """Returns what the environment would, including the frames that were recorded in between."""
        if not self._from_render:
            return self.env.render()
        frames, self._unseen = self._unseen + self._rendered(), []
        return frames

    def close(self) -> None:
        """Finishes the file and closes the environment."""
        try:
            self._finish()
        finally:
            self._recording = None
            self.env.close()

    def _new_frames(self, obs: Any, info: Mapping[str, Any]) -> np.ndarray:
        if not self._from_render:
            return obs[-info["n_new_frames"] :]
        frames = self._rendered()
        self._unseen += frames
        return np.stack(frames[-info["n_new_frames"] :])

    def _rendered(self) -> list[np.ndarray]:
        """Every frame since the last call: what `render` means in the mode "rgb_array_list"."""
        frames: Any = self.env.render()
        return list(frames)


class RecordVectorChunks(gym.vector.VectorWrapper, gym.utils.RecordConstructorArgs):
    """Records every frame of the slots of a vector environment: what `RecordChunks` does, in a folder
    `slot-00`, `slot-01`, ... for each.

    Works with every autoreset mode: an episode that ends has its last frames, and the next begins a file.
    The ignored action of a slot that is reset instead of moved ("NextStep") is in no file.

    Args:
        env: a vector environment of this package, whose observations show the whole chunk:
            `obs_mode="chunk"`.
        path: a folder, in which episodes are numbered on from what is there.
        slots: which are recorded; all of them by default.
        min_height: see `RecordChunks`.
        crf: see `RecordChunks`.

    Raises:
        ValueError: the environment shows only one frame of each step; a path that is no folder, or where
            nothing can be written; a slot that is not there; a setting out of range.
    """

    def __init__(
        self,
        env: gym.vector.VectorEnv,
        path: str | Path,
        slots: Sequence[int] | None = None,
        min_height: int = 256,
        crf: int = 12,
    ):
        gym.utils.RecordConstructorArgs.__init__(
            self, path=str(path), slots=slots, min_height=min_height, crf=crf
        )
        gym.vector.VectorWrapper.__init__(self, env)
        shape = env.single_observation_space.shape
        if shape is None or len(shape) != 4 or shape[-1] != 3:
            raise ValueError(
                f"got a vector environment with observations of shape {shape}, which show one frame of each "
                "step; RecordVectorChunks wants them all: gym.make_vec(..., obs_mode='chunk')"
            )
        self.min_height, self.crf = to_whole(min_height, "min_height", 0, LARGEST_HEIGHT), check_crf(crf)
        self.slots = [
            to_whole(slot, "slot", 0, env.num_envs - 1)
            for slot in (range(env.num_envs) if slots is None else slots)
        ]
        if to_path(path, folder=True).suffix.lower() == ".mp4":
            raise ValueError(f"got path='{path}'; wanted a folder, which gets a folder for each slot")
        self.path = Names(path).path
        self._names = {slot: Names(f"{self.path / f'slot-{slot:02}'}/") for slot in self.slots}
        mode = env.metadata.get("autoreset_mode", gym.vector.AutoresetMode.NEXT_STEP)
        self._mode = gym.vector.AutoresetMode(mode)
        self._recordings: dict[int, Recording] = {}
        self._finish: dict[int, Any] = {}
        self._over = np.zeros(env.num_envs, np.bool_)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts episodes and their files, in all slots or in those of `options["reset_mask"]`."""
        obs, infos = self.env.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask")
        for slot in self.slots:
            if mask is None or mask[slot]:
                self._begin(slot, obs, infos, _seed_of_slot(seed, slot))
        self._over = np.zeros(self.num_envs, np.bool_) if mask is None else self._over & ~np.asarray(mask)
        return obs, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps and records the new frames of every slot."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        over = np.asarray(terminated) | np.asarray(truncated)
        same_step = self._mode is gym.vector.AutoresetMode.SAME_STEP
        for slot in self.slots:
            if self._mode is gym.vector.AutoresetMode.NEXT_STEP and self._over[slot]:
                self._begin(slot, obs, infos, None)
                continue
            recording = self._recordings.get(slot)
            if recording is not None:
                ended = same_step and over[slot]
                frames = infos["final_obs"][slot] if ended else obs[slot]
                info = _of_slot(infos["final_info"] if ended else infos, slot)
                recording.add(frames[-int(info["n_new_frames"]) :], info)
                recording.actions.append(np.array(actions[slot]))
                recording.rewards.append(float(rewards[slot]))
            if same_step and over[slot]:
                self._begin(slot, obs, infos, None)
        self._over = over
        return obs, rewards, terminated, truncated, infos

    def close(self, **kwargs: Any) -> None:
        """Finishes all files and closes the environment."""
        try:
            for finish in self._finish.values():
                finish()
        finally:
            self._recordings, self._finish = {}, {}
            self.env.close(**kwargs)

    def _begin(self, slot: int, obs: Any, infos: Mapping[str, Any], seed: int | None) -> None:
        self._finish.get(slot, lambda: None)()
        video = VideoWriter(self._names[slot].next(), FPS, self.min_height, self.crf)
        self._recordings[slot] = recording = Recording(video, seed)
        self._finish[slot] = weakref.finalize(self, recording.close)
        info = _of_slot(infos, slot)
        recording.add(obs[slot][-int(info["n_new_frames"]) :], info)


def _seed_of_slot(seed: Any, slot: int) -> int | None:
    """The seed of one slot: vector environments count on from a single one."""
    if seed is None or isinstance(seed, int | np.integer):
        return None if seed is None else int(seed) + slot
    return seed[slot]


def _of_slot(infos: Mapping[str, Any], slot: int) -> dict[str, Any]:
    """What a sidecar needs of one slot."""
    return {name: infos[name][slot] for name in ("c2w", "intrinsics_px", "n_new_frames", "world")}
