"""Your own videos with poses, one at a time: checked, brought to 16 frames per second, cropped to the size
that a world sees.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import Type
from numpy.typing import NDArray

from sana_wm_env.actions import FPS
from sana_wm_env.camera import CHUNK_FRAMES, Array, relative_to_first
from sana_wm_env.first_frame import fit_image
from sana_wm_env.model.codecs.autoencoder import TEMPORAL_STRIDE
from sana_wm_env.video import open_video

from .motion import describe_fault
from .packed import PackedClip
from .sidecars import Cameras, ClipError, read_cameras

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
"""What counts as a video, in letters of either case."""

MIN_FPS = 8.0
MAX_SPEED = 60.0
"""Metres per second: no walk, car or drone of the published corpus is faster, but every path in millimetres
is.
"""

STAGES_BY_FRAMES = {49: ("causal", "ode", "distill"), 73: ("self-forcing",)}
"""Raw frames of the windows that stages draw by default (8 (T - 1) + 1 for `--frames T`); the others want
25.
"""


@dataclass(frozen=True)
class Footage:
    """A video that passed every check.

    key: its name in the tars. chosen: (N,) int64, the frame of the video that is shown at k / 16 s. notes:
    what a user may want to know. turn: quarter turns to the left that its frames need; size and cameras are
    those of the turned frames.
    """

    video: Path
    key: str
    size: tuple[int, int]
    cameras: Cameras
    chosen: NDArray[np.int64]
    notes: tuple[str, ...]
    turn: int = 0


def videos_in(place: Path) -> dict[str, Path]:
    """Lists all videos below a folder by key, sorted; or the one video that is named.

    Raises:
        ValueError: no such place, no videos, or two that would have the same key.
    """
    if place.is_file():
        if place.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"got the file '{place}'; wanted a video ({', '.join(SUFFIXES)}) or a folder of them"
            )
        return {_key(place.stem): place}
    if not place.is_dir():
        raise ValueError(f"got the folder '{place}'; there is no such folder")
    videos: dict[str, Path] = {}
    for video in sorted(
        path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    ):
        if video.name.startswith("."):  # what macOS leaves beside files
            continue
        key = _key(str(video.relative_to(place).with_suffix("")))
        if key in videos:
            raise ValueError(f"got {videos[key]} and {video}, whose names both become {key!r}; rename one")
        videos[key] = video
    if not videos:
        raise ValueError(
            f"got the folder '{place}' without videos; wanted .mp4 files ({', '.join(SUFFIXES[1:])} too), "
            "each with its .npz or .json beside it"
        )
    return videos


def _key(name: str) -> str:
    """A name as webdataset takes it: it cuts at the first dot and reads folders out of names."""
    return re.sub(r"\W+", "_", name)


def inspect_video(
    key: str,
    video: Path,
    min_frames: int = 1 + CHUNK_FRAMES,
    upright: bool = False,
    any_video: bool = False,
) -> Footage:
    """Reads a video and its sidecar to the end and checks all that can be checked. ClipError if they cannot
    be used.

    upright: frames that players turn are turned, and so are poses and intrinsics if they are those of the
    frames as they are stored (`image_size` says which); otherwise such a video is refused. any_video: see
    `read_cameras`.
    """
    times, size, turn = survey(video)
    if turn and not upright:
        raise ClipError(
            "video",
            f"got a video that players turn by {90 * turn if turn < 3 else -90} degrees to the left; wanted "
            "--upright, which turns frames, poses and intrinsics together",
        )
    cameras = read_cameras(video, len(times), size, turn, any_video)
    size = (size[1], size[0]) if turn % 2 else size
    if cameras.fps:
        times = np.arange(len(times)) / cameras.fps
    if not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
        raise ClipError(
            "frame rate",
            "got frames without rising times; wanted fps in the sidecar, or a video that was encoded again",
        )
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else FPS
    if rate < MIN_FPS:
        raise ClipError(
            "frame rate",
            f"got {rate:.3g} frames per second; wanted at least {MIN_FPS:g}: too many would "
            "have to be shown twice",
        )
    chosen = at_rate(times)
    if len(chosen) < min_frames:
        raise ClipError(
            "too short",
            f"got {len(times)} frames, {len(chosen)} at {FPS} per second; wanted {min_frames} or more: "
            "record longer",
        )
    path = np.linalg.norm(np.diff(cameras.c2w[chosen, :3, 3], axis=0), axis=1)
    if cameras.metric and np.median(path) * FPS > MAX_SPEED:
        raise ClipError(
            "speed",
            f"got a camera that moves {np.median(path) * FPS:.0f} metres per second; wanted metres: divide "
            "translations by 1000 if they "
            "are millimetres, or by the scale of the reconstruction",
        )
    if fault := describe_fault(cameras.c2w, cameras.metric):
        raise ClipError("path", fault)
    repeated = len(chosen) - len(np.unique(chosen))
    unit = "m" if cameras.metric else "of no unit: pack asks for --any-scale"
    notes = [f"{len(chosen)} frames, {size[1]} x {size[0]}, path {path.sum():.2f} {unit}"]
    notes += [f"turned upright by {90 * turn if turn < 3 else -90} degrees to the left"] if turn else []
    notes += [
        f"too short for the stages {', '.join(stages)}, which want {frames} frames by default"
        for frames, stages in STAGES_BY_FRAMES.items()
        if len(chosen) < frames
    ]
    notes += [f"{rate:.4g} -> {FPS} frames per second"] if len(chosen) != len(times) else []
    notes += [f"{repeated} frames are shown twice"] if repeated else []
    return Footage(video, key, size, cameras, chosen, tuple(notes), turn)


def at_rate(times_s: Array, fps: int = FPS) -> NDArray[np.int64]:
    """Returns the indices (N,) of the frames, at rising times_s (F,), nearest to each k / fps after the
    first. Pictures are never mixed.
    """
    elapsed = times_s - times_s[0]
    wanted = (
        np.arange(int(elapsed[-1] * fps + 1e-3) + 1) / fps
    )  # times in a file are rounded to its time base
    return np.searchsorted((elapsed[1:] + elapsed[:-1]) / 2, wanted, side="right")


def split_frames(frames: int, most: int, least: int) -> list[range]:
    """Splits `frames` frames into pieces of 8 k + 1 frames, `most` or fewer. Each shares its first frame with
    the end of the piece before; the remainder is shorter than `least` or than 8.
    """
    most = 1 + (most - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE
    parts, start = [], 0
    while (left := min(most, 1 + (frames - start - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE)) >= max(
        least, 1 + TEMPORAL_STRIDE
    ):
        parts.append(range(start, start + left))
        start += left - 1
    return parts


def cut_video(footage: Footage, size: tuple[int, int], most: int, least: int) -> Iterator[PackedClip]:
    """Cuts a video into pieces at `size`, poses relative to the first frame of each, intrinsics in pixels of
    `size`.
    """
    parts = split_frames(len(footage.chosen), most, least)
    shown = _fitted(footage, size)
    last = None
    for number, part in enumerate(parts):
        pairs = ([] if last is None else [last]) + [
            next(shown) for _ in range(len(part) - (last is not None))
        ]
        last = pairs[-1]
        frames, intrinsics = (np.stack(values) for values in zip(*pairs, strict=True))
        yield PackedClip(
            key=footage.key if len(parts) == 1 else f"{footage.key}-{number:03d}",
            frames=frames,
            c2w=relative_to_first(footage.cameras.c2w[footage.chosen[part.start : part.stop]]),
            intrinsics_px=intrinsics.astype(np.float32),
            caption=footage.cameras.caption,
        )


def _fitted(footage: Footage, size: tuple[int, int]) -> Iterator[tuple[NDArray[np.uint8], Array]]:
    """Chosen frames, scaled and cropped, with their intrinsics."""
    place = 0
    for index, frame in enumerate(decode_frames(footage.video)):
        while place < len(footage.chosen) and footage.chosen[place] == index:
            picture = np.rot90(frame.to_ndarray(format="rgb24"), footage.turn)
            yield fit_image(picture, footage.cameras.intrinsics_px[index], size)
            place += 1
        if place == len(footage.chosen):
            return


def survey(video: Path) -> tuple[Array, tuple[int, int], int]:
    """Times (F,) in seconds, (height, width) and the quarter turns to the left that players make, of a video
    that is decoded to the end. ClipError if it cannot be, or its frames differ.
    """
    times, sizes, turns, mirrored = [], set(), set(), False
    for frame in decode_frames(video):
        times.append(np.nan if frame.time is None else frame.time)
        sizes.add((frame.height, frame.width))
        turns.add(frame.rotation % 360)
        mirrored |= _is_mirrored(frame)
    if len(sizes) != 1:
        raise ClipError(
            "video",
            f"got {'no frames' if not sizes else f'frames of {len(sizes)} sizes'}; wanted a video of one "
            "size",
        )
    if mirrored:
        raise ClipError(
            "video", "got a video that players mirror; wanted frames as the camera saw them: encode it again"
        )
    if len(turns) != 1 or (turn := turns.pop()) % 90:
        raise ClipError(
            "video", "got a video that players turn by other than quarter turns; wanted upright frames"
        )
    return np.array(times), sizes.pop(), turn // 90


def _is_mirrored(frame: Any) -> bool:
    """Whether players show the frame as in a mirror: its display matrix has a negative determinant."""
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return False
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).astype(float)
    return a * d - b * c < 0


def decode_frames(video: Path) -> Iterator[Any]:
    """PyAV's frames of a video in their order. ClipError if it cannot be decoded."""
    try:
        with open_video(video) as container:
            if not container.streams.video:
                raise ClipError(
                    "video", f"got {video.name} without a video stream; wanted a file with pictures"
                )
            yield from container.decode(video=0)
    except (FFmpegError, OSError, ValueError) as error:
        if isinstance(error, ClipError):
            raise
        raise ClipError(
            "video", f"got {video.name}, which cannot be decoded ({error}); copy or encode it again"
        ) from None
