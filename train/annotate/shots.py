"""Videos cut into shots: each becomes a clip of its own, upright and at 16 frames per second."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_wm_env.actions import FPS
from sana_wm_env.camera import Array
from sana_wm_env.video import VideoWriter

from ..data.sidecars import ClipError
from ..data.videos import MIN_FPS, at_rate, survey
from .frames import Frame, read_frames

CUT_FACTOR, CUT_LEAST, CUT_APART = 3.0, 15.0, 8
"""A cut changes a picture 3 times as much as the frames around it do, and by 15 levels of hue, saturation and
brightness (PySceneDetect's adaptive detector); two cuts are 8 frames apart or more.
"""

DARKEST = 20.0
"""Mean grey level, of 255, below which a frame is dark."""

BLURRIEST = 0.68
"""Perceptual blur, 0 sharp to 1, above which a frame is blurred: textured rooms have 0.4, and as much as this
after a Gaussian of 2 pixels at the size at which it is judged.
"""

LOOKED_AT = 256
"""Pixels of the shorter side at which cuts, darkness and blur are judged."""


@dataclass(frozen=True)
class Footage:
    """What a look through a video says.

    Attributes:
        times_s: (F,) of the frames of the video.
        size: (height, width) as stored.
        turn: quarter turns to the left that make it upright.
        cuts: first frames of all shots but the first.
        brightness: (F,) mean grey levels.
        blur: (F,) see `measure_blur`.
    """

    times_s: Array
    size: tuple[int, int]
    turn: int
    cuts: tuple[int, ...]
    brightness: Array
    blur: Array


@dataclass(frozen=True)
class Shot:
    """A clip to be: the frames of the video that it shows; or why it is none, as (reason, sentence)."""

    chosen: NDArray[np.int64]
    fault: tuple[str, str] | None = None


def inspect_footage(video: Path) -> Footage:
    """Looks at every frame of a video. ClipError if it cannot be decoded, or its times do not rise."""
    import cv2
    from scenedetect import AdaptiveDetector, FrameTimecode

    times, size, turn = survey(video)
    if not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
        raise ClipError(
            "frame rate", "got frames without rising times; wanted a video that was encoded again"
        )
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else FPS
    if rate < MIN_FPS:
        raise ClipError(
            "frame rate", f"got {rate:.3g} frames per second; wanted at least {MIN_FPS:g}: record again"
        )
    detector = AdaptiveDetector(CUT_FACTOR, min_scene_len=CUT_APART, min_content_val=CUT_LEAST)
    cuts: list[int] = []
    brightness, blur = np.zeros(len(times)), np.zeros(len(times))
    shrink = min(1.0, LOOKED_AT / min(size))
    for index, frame in enumerate(read_frames(video)):
        small = cv2.resize(frame, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
        brightness[index], blur[index] = grey.mean(), measure_blur(grey)
        found = detector.process_frame(FrameTimecode(index, float(rate)), small[..., ::-1].copy())
        cuts += [cut.frame_num for cut in found]
    return Footage(times, size, turn, tuple(sorted(set(cuts))), brightness, blur)


def measure_blur(grey: NDArray[np.float32]) -> float:
    """How little a picture (H, W) loses by being blurred: 0 sharp, 1 blurred (Crete, Dolmiere, Ladret,
    Nicolas 2007). A picture of one colour counts as sharp: nothing can be said.
    """
    import cv2

    shares = []
    for axis, window in ((0, (1, 9)), (1, (9, 1))):
        before = np.abs(np.diff(grey, axis=axis))
        after = np.abs(np.diff(cv2.blur(grey, window), axis=axis))
        total = float(before.sum())
        if total > 0.2 * before.size:
            shares.append(1 - float(np.maximum(0, before - after).sum()) / total)
    return max(shares, default=0.0)


def split_shots(footage: Footage, min_frames: int, max_frames: int, split: bool = True) -> list[Shot]:
    """The clips of a video: one per shot, longer ones in pieces of `max_frames` at 16 per second.

    split: take every shot of a video with cuts; otherwise such a video is refused as a whole.
    """
    frames = len(footage.times_s)
    if footage.cuts and not split:
        fault = (
            "cut",
            f"got a cut at frame {footage.cuts[0]} ({len(footage.cuts)} in all); wanted one shot, or --cuts "
            "split",
        )
        return [Shot(np.arange(0), fault)]
    edges = [0, *footage.cuts, frames]
    shots = []
    for first, last in pairwise(edges):
        chosen = first + at_rate(footage.times_s[first:last])
        pieces = max(1, -(-len(chosen) // max_frames))
        whole = [Shot(part, _judge(footage, part, min_frames)) for part in np.array_split(chosen, pieces)]
        shots += whole
    return shots


def _judge(footage: Footage, chosen: NDArray[np.int64], min_frames: int) -> tuple[str, str] | None:
    """Why these frames are no clip."""
    if len(chosen) < min_frames:
        cuts = f" in a video with {len(footage.cuts)} cuts" if footage.cuts else ""
        return "too short", f"got {len(chosen)} frames at {FPS} per second{cuts}; wanted {min_frames} or more"
    dark = float((footage.brightness[chosen] < DARKEST).mean())
    if dark > 0.5:
        level = np.median(footage.brightness[chosen])
        return "dark", (
            f"got {dark:.0%} of the frames darker than {DARKEST:g} of 255 (median {level:.0f}); wanted light"
        )
    blurred = float((footage.blur[chosen] > BLURRIEST).mean())
    if blurred > 0.5:
        return "blur", (
            f"got {blurred:.0%} of the frames blurred beyond {BLURRIEST:g} (median "
            f"{np.median(footage.blur[chosen]):.2f}); wanted a camera in focus that moves less"
        )
    return None


def write_clip(video: Path, shot: Shot, turn: int, path: Path, crf: int) -> tuple[int, int]:
    """Writes the frames of a shot, upright, and returns their (height, width), which are even."""
    wanted, last, size = iter(shot.chosen.tolist()), int(shot.chosen[-1]), (0, 0)
    following = next(wanted)
    with VideoWriter(path, FPS, min_height=0, crf=crf, reproducible=True) as writer:
        for index, frame in enumerate(read_frames(video, turn)):
            while following == index:
                even = _even(frame)
                size = even.shape[:2]
                writer.write(even[None])
                following = next(wanted, -1)
            if index == last:
                break
    return size


def _even(frame: Frame) -> Frame:
    """A frame without its last row or column where their number is odd: no encoder has to invent one."""
    height, width = frame.shape[:2]
    return frame[: height - height % 2, : width - width % 2]


def describe_footage(footage: Footage) -> dict[str, Any]:
    """Plain values for the manifest."""
    return {
        "frames": len(footage.times_s),
        "size": list(footage.size),
        "turn": footage.turn,
        "cuts": list(footage.cuts),
        "brightness": round(float(np.median(footage.brightness)), 1),
        "blur": round(float(np.median(footage.blur)), 3),
    }
