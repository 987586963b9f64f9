"""Every frame of an episode as H.264 video, with what drove the camera beside it.

Gymnasium's `RecordVideo` asks for one picture per step. A step here is 24 frames, so it would lose 23 of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import gymnasium as gym
import numpy as np


def enlarge(frames: np.ndarray, min_height: int) -> np.ndarray:
    """Nearest-neighbour enlargement by the smallest whole factor that reaches `min_height`. uint8 (..., H, W, 3)."""
    factor = max(1, -(-min_height // frames.shape[-3]))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def check_video_path(path: str | Path) -> Path:
    """The path of a video to write; ValueError if it does not end in .mp4."""
    if Path(path).suffix != ".mp4":
        raise ValueError(f"got the video path '{path}'; wanted a name that ends in .mp4")
    return Path(path)


class VideoWriter:
    """Writes frames to an H.264 mp4 (yuv420p, so that every player and browser opens it).

    Small pictures are enlarged, because players blur them and colour is stored at half resolution. An odd height or width
    gets its last line repeated, which yuv420p requires. The file is complete after `close`; use it in a `with` statement.

    Args:
        path: the mp4 to write; missing folders are made, an existing file is replaced.
        fps: frames per second.
        min_height: pixels; 0 keeps the size.
        crf: x264's constant rate factor: 0 is lossless, 12 looks lossless, 23 is x264's default.
    """

    def __init__(self, path: str | Path, fps: int, min_height: int = 256, crf: int = 12):
        self.path, self.min_height, self.n_frames = check_video_path(path), min_height, 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # faststart puts the index in front, so that a browser plays the file while it loads.
        self._container: Any = av.open(str(path), "w", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=fps, options={"crf": str(crf)})
        self._stream.pix_fmt = "yuv420p"

    def write(self, frames: np.ndarray) -> None:
        """Appends frames: uint8 (F, H, W, 3), the same H and W at every call."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"got frames of {frames.dtype} {frames.shape}; wanted uint8 (F, H, W, 3)")
        frames = enlarge(frames, self.min_height)
        odd_height, odd_width = frames.shape[1] % 2, frames.shape[2] % 2
        frames = np.pad(frames, ((0, 0), (0, odd_height), (0, odd_width), (0, 0)), mode="edge")
        size = frames.shape[1:3]
        if self.n_frames == 0:
            self._stream.height, self._stream.width = size
        elif size != (self._stream.height, self._stream.width):
            raise ValueError(
                f"got frames of {size} pixels after frames of {(self._stream.height, self._stream.width)}; a video has one size"
            )
        for frame in frames:
            self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        self.n_frames += len(frames)

    def close(self) -> None:
        """Finishes the file. A second call does nothing."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            if self.n_frames:
                container.mux(self._stream.encode(None))
        finally:
            container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def write_sidecar(
    video: str | Path,
    *,
    c2w: np.ndarray,
    intrinsics_px: np.ndarray,
    image_size: tuple[int, ...],
    world: str,
    seed: int,
    **more: Any,
) -> Path:
    """Writes the .npz beside `video` (a.mp4 -> a.npz), in the layout that `RecordChunks` describes, and returns its path."""
    path = Path(video).with_suffix(".npz")
    cameras = {"c2w": c2w, "convention": "opencv", "intrinsics_px": intrinsics_px, "image_size": image_size}
    np.savez_compressed(path, **cameras, world=np.array(world), seed=np.array(seed), **more)
    return path


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
        """Finishes the video and writes the sidecar. A second call does nothing."""
        if not self.c2w:
            return
        self.video.close()
        write_sidecar(
            self.video.path,
            c2w=np.concatenate(self.c2w),
            intrinsics_px=self.info["intrinsics_px"],
            image_size=self.image_size,
            actions=np.asarray(self.actions, np.float32),
            rewards=np.asarray(self.rewards, np.float64),
            world=self.info["world"],
            seed=self.seed,
        )
        self.c2w = []


class RecordChunks(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Records every frame of every episode: the first frame once, then 24 per step, so 24k + 1 in all.

    Beside `a.mp4` lies `a.npz` with `c2w` (F, 4, 4) float64 relative to the first frame, `convention` ("opencv"), `intrinsics_px` (3, 3)
    in pixels of the observed frames, which are `image_size` (height, width) and not those of the enlarged video, `actions` (K, 6),
    `rewards` (K,), `world`, and `seed` (-1 where `reset` got none). `sana-wm data validate` and `pack` take both as they are.

    A file is complete after the next `reset`, after `close`, when a `with` statement is left, or when the program ends. A refused
    action or reset option does not end the recording, because it does not end the episode.

    Args:
        env: an environment of this package, whose steps show the whole chunk: `obs_mode="chunk"` or `render_mode="rgb_array_list"`.
        path: a name ending in .mp4 (replaced if it exists; the episodes after the first get -1, -2, ... appended), or a folder, in which
            episodes are numbered on from what is there.
        min_height: small frames are enlarged by a whole factor to at least this height in pixels; 0 keeps the size.
        crf: quality, see `VideoWriter`.

    Raises:
        ValueError: the environment shows only one frame of each step.
    """

    def __init__(self, env: gym.Env, path: str | Path, min_height: int = 256, crf: int = 12):
        gym.utils.RecordConstructorArgs.__init__(self, path=str(path), min_height=min_height, crf=crf)
        gym.Wrapper.__init__(self, env)
        self._from_render = env.render_mode == "rgb_array_list"
        shape = env.observation_space.shape
        if not self._from_render and (shape is None or len(shape) != 4 or shape[-1] != 3):
            raise ValueError(
                f"got an environment with observations of shape {shape} and render_mode={env.render_mode!r}, which show one frame of "
                "each step; RecordChunks wants them all: gym.make(..., obs_mode='chunk') or gym.make(..., render_mode='rgb_array_list')"
            )
        self.path, self.min_height, self.crf = Path(path), min_height, crf
        self.episode = 0
        self._unseen: list[np.ndarray] = []
        self._recording: Recording | None = None
        self._finish = lambda: None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode and its file; finishes the file before."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._finish()
        self._unseen = []
        video = VideoWriter(self._next_path(), int(self.env.metadata["render_fps"]), self.min_height, self.crf)
        self._recording = Recording(video, seed)
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
        """What the environment would return; frames that were recorded in between are not missing."""
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

    def _next_path(self) -> Path:
        if self.path.suffix == ".mp4":
            path = self.path if self.episode == 0 else self.path.with_name(f"{self.path.stem}-{self.episode}.mp4")
        else:
            while (path := self.path / f"episode-{self.episode:04d}.mp4").exists():
                self.episode += 1
        self.episode += 1
        return path
