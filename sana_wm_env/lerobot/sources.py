"""Episodes out of recordings (mp4 with npz beside) and out of Minari datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import read_npz
from ..extras import check_installed
from ..numbers import to_array
from ..video import open_video
from .layout import Recorded


def read_recordings(folder: Path) -> Iterator[Recorded]:
    """Episodes that `RecordChunks` or `RecordVectorChunks` wrote, in the order of their names.

    Raises:
        ValueError: no recording there, or one without actions; names the file.
    """
    videos = [folder] if folder.is_file() else sorted(folder.rglob("*.mp4"))
    if not videos:
        raise ValueError(f"got {folder}, which holds no .mp4; wanted recordings of RecordChunks")
    for video in videos:
        yield read_recording(video)


def read_recording(video: Path) -> Recorded:
    """One recording: frames at the size that was observed, what an enlargement added taken away again."""
    sidecar = video.with_suffix(".npz")
    if not sidecar.is_file():
        raise ValueError(f"got {video} without {sidecar.name}; wanted a recording of RecordChunks")
    file = read_npz(sidecar)
    if missing := {"c2w", "intrinsics_px", "actions", "rewards", "image_size"} - set(file):
        raise ValueError(
            f"got {sidecar} without {', '.join(sorted(missing))}; wanted a recording of RecordChunks, which "
            "has what drove the camera"
        )
    height, width = (int(side) for side in file["image_size"])
    try:
        return Recorded(
            _shrink(read_frames(video), height, width),
            np.asarray(file["c2w"]),
            _four(np.asarray(file["intrinsics_px"])),
            np.asarray(file["actions"]),
            np.asarray(file["rewards"]),
            f"move the camera through {file['world']}" if "world" in file else "move the camera",
            int(file["seed"]) if "seed" in file else -1,
        )
    except ValueError as error:
        raise ValueError(f"{video}: {error}") from None


def read_minari(name: str) -> Iterator[Recorded]:
    """Episodes of a Minari dataset that `RecordMinari` wrote of an environment that shows chunks.

    Raises:
        ValueError: no such dataset, or observations that leave frames out.
    """
    check_installed("minari", "reading a Minari dataset")
    import minari

    try:
        dataset = minari.load_dataset(name)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"got {name!r}, which is neither a folder nor a Minari dataset ({error})") from None
    seeds = {
        int(m["id"]): m.get("seed") for m in dataset.storage.get_episode_metadata(dataset.episode_indices)
    }
    for episode in dataset.iterate_episodes():
        shown = (
            to_array(episode.observations, "observations")
            if not isinstance(episode.observations, dict)
            else None
        )
        if shown is None or shown.ndim != 5:
            raise ValueError(
                f"got episode {episode.id} of {name!r} with one frame of each step; wanted all 24: record "
                "gym.make(..., obs_mode='chunk')"
            )
        infos: Any = episode.infos
        seed = seeds.get(int(episode.id))
        yield Recorded(
            np.concatenate([shown[0, -1:], *shown[1:]]),
            np.concatenate([infos["c2w"][0, -1:], *infos["c2w"][1:]]),
            _four(np.asarray(infos["intrinsics_px"][0])),
            np.asarray(episode.actions),
            np.asarray(episode.rewards),
            "move the camera",
            -1 if seed is None else int(seed),
        )


def read_frames(video: Path, begin: int = 0, end: int | None = None) -> np.ndarray:
    """Frames begin to end of a video, uint8 (F, H, W, 3), RGB."""
    frames = []
    with open_video(video) as container:
        for number, frame in enumerate(container.decode(container.streams.video[0])):
            if end is not None and number >= end:
                break
            if number >= begin:
                frames.append(frame.to_ndarray(format="rgb24"))
    return np.stack(frames) if frames else np.empty((0, 0, 0, 3), np.uint8)


def _shrink(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """The inverse of `video.enlarge`, and of the line that makes a size even."""
    factor = max(1, frames.shape[1] // height)
    blocks = frames[:, : height * factor, : width * factor]
    blocks = blocks.reshape(len(frames), height, factor, width, factor, 3)
    return (
        blocks.mean((2, 4)).round().astype(np.uint8) if factor > 1 else blocks.reshape(-1, height, width, 3)
    )


def _four(intrinsics: np.ndarray) -> np.ndarray:
    """fx, fy, cx, cy of a matrix (3, 3), or of the four themselves."""
    return intrinsics if intrinsics.shape == (4,) else intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
