"""Frames as H.264 video, and the .npz beside it that says where the camera was."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from .files import find_parts, hash_file, replacing, write_whole
from .numbers import to_whole
from .outputs import check_suffix

LARGEST_CRF = 51
LARGEST_HEIGHT = 16384
"""Pixels; x264 takes no more."""


def enlarge(frames: np.ndarray, min_height: int) -> np.ndarray:
    """Nearest-neighbour enlargement by the smallest whole factor that reaches `min_height`. uint8 (..., H, W,
    3).
    """
    factor = max(1, -(-min_height // frames.shape[-3]))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def check_video_path(path: str | Path) -> Path:
    """The path of a video to write; ValueError if it does not end in .mp4 (or .MP4)."""
    check_suffix(path, (".mp4",), "the video path")
    return Path(path)


def check_crf(crf: Any, name: str = "crf") -> int:
    """x264's constant rate factor; ValueError if it is no whole number from 0 to 51."""
    return to_whole(crf, name, 0, LARGEST_CRF)


def open_video(path: str | Path) -> Any:
    """PyAV's container of a video to read, by its very name: FFmpeg takes what stands before a colon for a
    protocol.
    """
    return av.open(name_literally(path))


def name_literally(path: str | Path) -> str:
    """A path as FFmpeg takes it without reading anything out of it."""
    return f"file:{os.path.abspath(path)}"


class VideoWriter:
    """Writes frames to an H.264 mp4 (yuv420p, so that every player and browser opens it).

    Small pictures are enlarged, because players blur them and colour is stored at half resolution. An odd
    height or width gets its last line repeated, which yuv420p requires. The file is written beside, and has
    its name after `close`; what was there before stays until then, and for good where a `with` statement is
    left by an error.

    Args:
        path: the mp4 to write; missing folders are made, an existing file is replaced.
        fps: frames per second.
        min_height: pixels; 0 keeps the size.
        crf: x264's constant rate factor: 0 is lossless, 12 looks lossless, 23 is x264's default.
        reproducible: the same frames always give the same bytes, for a few bytes more: without x264's
            macroblock tree, whose choices differ from run to run at some small sizes (160 x 160).
    """

    def __init__(
        self, path: str | Path, fps: int, min_height: int = 256, crf: int = 12, reproducible: bool = False
    ):
        self.path, self.n_frames = check_video_path(path), 0
        self.min_height, crf = to_whole(min_height, "min_height", 0, LARGEST_HEIGHT), check_crf(crf)
        self._files = ExitStack()
        self._part = self._files.enter_context(replacing(self.path))
        self._container: Any = None
        try:
            # faststart puts the index in front, so that a browser plays the file while it loads.
            self._container = av.open(
                name_literally(self._part), "w", format="mp4", options={"movflags": "+faststart"}
            )
            options = {"crf": str(crf)} | ({"x264-params": "mbtree=0"} if reproducible else {})
            self._stream = self._container.add_stream("libx264", rate=fps, options=options)
            self._stream.pix_fmt = "yuv420p"
        except FFmpegError as error:
            self.discard()
            raise _named(error, self.path) from error
        except BaseException:
            self.discard()
            raise

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
                f"got frames of {size} pixels after frames of {(self._stream.height, self._stream.width)}; a "
                "video has one size"
            )
        for frame in frames:
            try:
                self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            except FFmpegError as error:
                raise _named(error, self.path) from error
        self.n_frames += len(frames)

    def close(self, sidecar: Mapping[str, Any] | None = None) -> None:
        """Finishes the file and gives it its name. A second call does nothing; without frames nothing is
        written.

        sidecar: arguments of `write_sidecar`; then both files get their names together, or neither does.
            The sidecar is first and says whose it is: a kill between the two leaves no mixture that anybody
            takes for a pair, see `describe_stranger`.
        """
        if self._container is None or not self.n_frames:
            self.discard()
            return
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            if sidecar is not None:
                video_sha256 = hash_file(self._part)
                part = self._files.enter_context(replacing(self.path.with_suffix(".npz")))
                _write_arrays(part, **sidecar, video_sha256=video_sha256)
        except FFmpegError as error:
            self.discard()
            raise _named(error, self.path) from error
        except BaseException:
            self.discard()
            raise
        self._container = None
        self._files.close()

    def discard(self) -> None:
        """Gives the video up: what was there before stays. Does nothing after `close`."""
        if self._container is not None:
            with suppress(FFmpegError):
                self._container.close()
            self._container = None
        given_up = InterruptedError(f"{self.path} was given up")
        with suppress(OSError):
            self._files.__exit__(InterruptedError, given_up, None)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.close() if kind is None else self.discard()


def _named(error: FFmpegError, path: Path) -> Exception:
    """FFmpeg's error under the name of the file that was asked for."""
    return OSError(error.errno, error.strerror or str(error), str(path)) if error.errno else error


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
    """Writes the .npz beside `video` (a.mp4 -> a.npz), in the layout that `RecordChunks` describes, and
    returns its path. Of whose video it is it says nothing: `VideoWriter.close` writes both.
    """
    path = Path(video).with_suffix(".npz")
    cameras = {"c2w": c2w, "intrinsics_px": intrinsics_px, "image_size": image_size}
    write_whole(path, lambda part: _write_arrays(part, **cameras, world=world, seed=seed, **more))
    return path


def _write_arrays(part: Path, *, world: str, seed: int, **arrays: Any) -> None:
    with part.open("wb") as file:  # by a name it would append .npz
        np.savez_compressed(
            file, **arrays, convention=np.array("opencv"), world=np.array(world), seed=np.array(seed)
        )


def describe_stranger(video: Path, video_sha256: Any) -> str | None:
    """Says what is wrong with a video and the sidecar beside it that is of another one; None if nothing is.

    A writer that is killed after the sidecar got its name, and before the video did, leaves the old video
    there and the new one as .part.

    Args:
        video: the file.
        video_sha256: what the sidecar says of its video; None for one that does not say.
    """
    if video_sha256 is None or hash_file(video) == video_sha256:
        return None
    said = f"got {video.name} beside a sidecar of another video"
    for part in find_parts(video):
        if hash_file(part) == video_sha256:
            return (
                f"{said}, which lies there as {part.name}: a program was killed before it could rename it; "
                f"wanted {part.name} renamed to {video.name}"
            )
    return (
        f"{said}; wanted the video that was recorded with it, or --any-video if this is the same one encoded "
        "again"
    )
