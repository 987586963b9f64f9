"""Your own videos with poses, one at a time: checked, brought to 16 frames per second, cropped to the size that a world sees."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from sana_wm_env.actions import FPS
from sana_wm_env.camera import CHUNK_FRAMES, Array, relative_to_first
from sana_wm_env.model.autoencoder import TEMPORAL_STRIDE
from sana_wm_env.model.image import fit_image

from .packed import PackedClip
from .sidecars import Cameras, ClipError, read_cameras

MIN_FPS = 8.0
MAX_SPEED = 60.0
"""Metres per second: no walk, car or drone of the published corpus is faster, but every path in millimetres is."""


@dataclass(frozen=True)
class Footage:
    """A video that passed every check.

    key: its name in the shards. chosen: (N,) int64, the frame of the video that is shown at k / 16 s. notes: what a user may want to know.
    """

    video: Path
    key: str
    size: tuple[int, int]
    cameras: Cameras
    chosen: NDArray[np.int64]
    notes: tuple[str, ...]


def videos_in(folder: Path) -> dict[str, Path]:
    """All mp4 files below a folder by key, sorted. ValueError if there are none or two would have the same key."""
    if not folder.is_dir():
        raise ValueError(f"got the folder '{folder}'; there is no such folder")
    found: dict[str, Path] = {}
    for video in sorted(folder.rglob("*.mp4")):
        # webdataset cuts names at the first dot and reads folders out of them
        key = re.sub(r"\W+", "_", str(video.relative_to(folder).with_suffix("")))
        if key in found:
            raise ValueError(f"got {found[key]} and {video}, whose names both become {key!r}; rename one")
        found[key] = video
    if not found:
        raise ValueError(f"got the folder '{folder}' without videos; wanted .mp4 files, each with its .npz or .json beside it")
    return found


def inspect(key: str, video: Path, min_frames: int = 1 + CHUNK_FRAMES) -> Footage:
    """Reads a video and its sidecar to the end and checks all that can be checked. ClipError if they cannot be used."""
    times, size = _survey(video)
    cameras = read_cameras(video, len(times), size)
    if cameras.fps:
        times = np.arange(len(times)) / cameras.fps
    if not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
        raise ClipError("frame rate", "got frames without rising times; wanted fps in the sidecar, or a video that was encoded again")
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else FPS
    if rate < MIN_FPS:
        raise ClipError(
            "frame rate", f"got {rate:.3g} frames per second; wanted at least {MIN_FPS:g}: too many would have to be shown twice"
        )
    chosen = at_rate(times)
    if len(chosen) < min_frames:
        raise ClipError(
            "too short",
            f"got {len(times)} frames, {len(chosen)} at {FPS} per second; wanted {min_frames} or more: record longer",
        )
    path = np.linalg.norm(np.diff(cameras.c2w[chosen, :3, 3], axis=0), axis=1)
    if np.median(path) * FPS > MAX_SPEED:
        raise ClipError(
            "speed",
            f"got a camera that moves {np.median(path) * FPS:.0f} metres per second; wanted metres: divide translations by 1000 if they "
            "are millimetres, or by the scale of the reconstruction",
        )
    repeated = len(chosen) - len(np.unique(chosen))
    notes = [f"{len(chosen)} frames, {size[1]} x {size[0]}, path {path.sum():.2f} m"]
    notes += [f"{rate:.4g} -> {FPS} frames per second"] if len(chosen) != len(times) else []
    notes += [f"{repeated} frames are shown twice"] if repeated else []
    return Footage(video, key, size, cameras, chosen, tuple(notes))


def at_rate(times_s: Array, fps: int = FPS) -> NDArray[np.int64]:
    """Which of the frames at times_s (F,), rising, is nearest to each k / fps after the first: (N,). Pictures are never mixed."""
    elapsed = times_s - times_s[0]
    wanted = np.arange(int(elapsed[-1] * fps + 1e-3) + 1) / fps  # times in a file are rounded to its time base
    return np.searchsorted((elapsed[1:] + elapsed[:-1]) / 2, wanted, side="right")


def pieces(frames: int, most: int, least: int) -> list[range]:
    """A video of `frames` frames in pieces of 8 k + 1 frames, `most` or fewer. Each begins where the one before ended, so as to share a
    frame; what is left at the end is shorter than `least` or than 8.
    """
    most = 1 + (most - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE
    found, start = [], 0
    while (left := min(most, 1 + (frames - start - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE)) >= max(least, 1 + TEMPORAL_STRIDE):
        found.append(range(start, start + left))
        start += left - 1
    return found


def cut(footage: Footage, size: tuple[int, int], most: int, least: int) -> Iterator[PackedClip]:
    """The pieces of a video at `size`, poses relative to the first frame of each, intrinsics in pixels of `size`."""
    stretches = pieces(len(footage.chosen), most, least)
    shown = _fitted(footage, size)
    last = None
    for number, stretch in enumerate(stretches):
        pairs = ([] if last is None else [last]) + [next(shown) for _ in range(len(stretch) - (last is not None))]
        last = pairs[-1]
        frames, intrinsics = (np.stack(values) for values in zip(*pairs, strict=True))
        yield PackedClip(
            key=footage.key if len(stretches) == 1 else f"{footage.key}-{number:03d}",
            frames=frames,
            c2w=relative_to_first(footage.cameras.c2w[footage.chosen[stretch.start : stretch.stop]]),
            intrinsics_px=intrinsics.astype(np.float32),
            caption=footage.cameras.caption,
        )


def _fitted(footage: Footage, size: tuple[int, int]) -> Iterator[tuple[NDArray[np.uint8], Array]]:
    """Chosen frames, scaled and cropped, with their intrinsics."""
    place = 0
    for index, frame in enumerate(_frames(footage.video)):
        while place < len(footage.chosen) and footage.chosen[place] == index:
            yield fit_image(frame.to_ndarray(format="rgb24"), footage.cameras.intrinsics_px[index], size)
            place += 1
        if place == len(footage.chosen):
            return


def _survey(video: Path) -> tuple[Array, tuple[int, int]]:
    """Times (F,) in seconds and (height, width) of a video that is decoded to the end."""
    times, sizes, turned = [], set(), 0
    for frame in _frames(video):
        times.append(np.nan if frame.time is None else frame.time)
        sizes.add((frame.height, frame.width))
        turned = turned or frame.rotation
    if turned:
        raise ClipError(
            "video",
            f"got a video that players turn by {turned} degrees; wanted upright frames: ffmpeg -i {video.name} upright.mp4 turns them",
        )
    if len(sizes) != 1:
        raise ClipError("video", f"got {'no frames' if not sizes else f'frames of {len(sizes)} sizes'}; wanted a video of one size")
    return np.array(times), sizes.pop()


def _frames(video: Path) -> Iterator[Any]:
    try:
        with av.open(str(video)) as container:
            if not container.streams.video:
                raise ClipError("video", f"got {video.name} without a video stream; wanted an mp4 with pictures")
            yield from container.decode(video=0)
    except (FFmpegError, OSError) as error:
        raise ClipError("video", f"got {video.name}, which cannot be decoded ({error}); copy or encode it again") from None
