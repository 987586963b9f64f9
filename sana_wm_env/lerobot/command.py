"""`sana-wm dataset`: episodes for training elsewhere, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..outputs import Output, check_outputs
from ..recorder import Names, Recording
from ..settings import check_settings
from ..video import VideoWriter
from .layout import FPS, Recorded
from .reader import MOST_FAULTS, find_faults, read_episodes
from .sources import read_minari, read_recordings
from .writer import LeRobotWriter


@dataclass(frozen=True)
class ExportConfig:
    """Recordings or a Minari dataset as a LeRobotDataset v3. What a stopped run has written is whole, and the
    next one goes on after it.

    Attributes:
        source: folder of recordings (mp4 with npz beside), or the name of a Minari dataset.
        out: the dataset's folder.
        data_mb: MiB of rows after which a new file begins.
        video_mb: MiB of video after which a new file begins.
        crf: quality of the video, 0 to 51; 12 looks lossless.
    """

    source: tyro.conf.Positional[str]
    out: Path
    data_mb: float = 32
    video_mb: float = 32
    crf: int = 12

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, data_mb="(0, inf)", video_mb="(0, inf)", crf="[0, 51]")


@dataclass(frozen=True)
class ImportConfig:
    """Episodes of an exported dataset as recordings: mp4 with npz beside, as `sana-wm data pack` takes them.

    Attributes:
        source: folder of the dataset.
        out: folder of the recordings.
        crf: quality of the video, 0 to 51; 12 looks lossless.
    """

    source: tyro.conf.Positional[Path]
    out: Path
    crf: int = 12

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, crf="[0, 51]")


@dataclass(frozen=True)
class ValidateConfig:
    """Checks a LeRobotDataset v3, whoever wrote it: counts, ranges, timestamps, and every video to its end.

    Attributes:
        source: folder of the dataset.
    """

    source: tyro.conf.Positional[Path]


def export(config: ExportConfig) -> None:
    """Writes episodes that are not there yet."""
    check_outputs(Output("--out", config.out, folder=True))
    writer = LeRobotWriter(config.out, data_mb=config.data_mb, video_mb=config.video_mb, crf=config.crf)
    there, count = len(writer.episodes), 0
    for count, episode in enumerate(_read(config.source), 1):
        if count > there:
            writer.add(episode)
            print(f"episode {count - 1}: {len(episode.frames)} frames", flush=True)
    print(f"{config.out}: {count} episodes, {count - min(there, count)} of them new")


def _read(source: str) -> Iterator[Recorded]:
    return read_recordings(Path(source)) if Path(source).exists() else read_minari(source)


def import_(config: ImportConfig) -> None:
    """Writes recordings."""
    check_outputs(Output("--out", config.out, folder=True))
    names, count = Names(f"{config.out}/"), 0
    for episode in read_episodes(config.source):
        video = VideoWriter(names.next(), FPS, 0, config.crf)
        recording = Recording(video, episode.seed if episode.seed >= 0 else None)
        fx, fy, cx, cy = episode.intrinsics_px
        matrix = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
        recording.add(episode.frames, {"c2w": episode.c2w, "intrinsics_px": matrix, "world": episode.task})
        recording.actions, recording.rewards = list(episode.actions), [float(r) for r in episode.rewards]
        recording.close()
        count += 1
    print(f"{config.out}: {count} recordings")


def validate(config: ValidateConfig) -> int:
    """Prints what is wrong; 1 if anything is."""
    faults = find_faults(config.source)
    for fault in faults[:MOST_FAULTS]:
        print(fault)
    if len(faults) > MOST_FAULTS:
        print(f"and {len(faults) - MOST_FAULTS} more")
    print(f"{config.source}: {'nothing is wrong' if not faults else f'{len(faults)} faults'}")
    return int(bool(faults))
