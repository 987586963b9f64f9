"""`sana-wm data`: your own videos with poses -> packed clips -> latents. What cannot be used is named, and counted by reason."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tqdm import tqdm

from sana_wm_env.camera import CHUNK_FRAMES
from sana_wm_env.model.autoencoder import SPATIAL_STRIDE

from ..autoencoder import load_trained
from .packed import PackedClip, packed_shards, read_packed, write_packed
from .published import PublishedClip, write_published
from .sidecars import ClipError
from .source import encode_each, encode_packed
from .videos import Footage, cut, inspect, pieces, videos_in

REPORT = "report.json"
PUBLISHED_NAME = "own"


@dataclass(frozen=True)
class ValidateConfig:
    """Checks every mp4 below a folder and its poses, and says what is wrong and how to fix it; the exit code is 1 if anything is.

    Attributes:
        folder: videos, each with its poses beside it as .npz or .json, see train/README.md.
        min_frames: frames at 16 per second that a clip needs.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    min_frames: int = 25


@dataclass(frozen=True)
class PackVideosConfig:
    """Packs videos with poses as webdataset shards at 16 frames per second, scaled and cropped to the size that the world sees.

    Attributes:
        folder: videos, each with its poses beside it as .npz or .json, see train/README.md.
        out: folder to write; has to be new, or what an earlier call wrote, which is replaced.
        size: height and width of the frames, multiples of 8.
        on_error: what a clip that cannot be used does: stop before anything is written, or skip it.
        min_frames: frames at 16 per second that a clip needs.
        max_frames: longer videos are cut into pieces of this many; 961 is a minute.
        per_shard: clips per shard.
        crf: quality of the packed video: 0 keeps every pixel, 12 looks the same in far fewer bytes.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    out: Path
    size: tuple[int, int] = (64, 64)
    on_error: Literal["stop", "skip"] = "stop"
    min_frames: int = 25
    max_frames: int = 961
    per_shard: int = 32
    crf: int = 0


@dataclass(frozen=True)
class LatentsConfig:
    """Encodes packed clips by the autoencoder of a run, for `--data` of the stages of the transformer.

    Attributes:
        folder: packed clips.
        world: name of the preset; the autoencoder is the one in runs/WORLD/autoencoder.
        runs: folder of all runs.
        layout: own (latents beside the shards) or published (zip files in --out; sessions then begin where clips do).
        out: folder for the published layout.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    world: str = "rooms"
    runs: Path = Path("runs")
    layout: Literal["own", "published"] = "own"
    out: Path | None = None
    device: str = "cpu"


def validate(config: ValidateConfig) -> int:
    """Prints a line per clip and a summary. Returns 0 if all clips can be used, 1 otherwise."""
    good, bad = _inspect_all(config.folder, config.min_frames)
    for footage in good:
        print(f"good  {footage.key}: {'; '.join(footage.notes)}")
    for key, error in bad.items():
        print(f"BAD   {_complaint(key, error)}")
    print(_summary(len(good), bad))
    return 1 if bad else 0


def pack(config: PackVideosConfig) -> None:
    """Writes the shards and report.json, which says where every video went.

    Raises:
        ValueError: settings that cannot be, no usable clip, or any broken one where on_error is "stop"; nothing has been written then.
    """
    _check_settings(config)
    good, bad = _inspect_all(config.folder, config.min_frames)
    if bad and (config.on_error == "stop" or not good):
        listed = "\n".join(_complaint(key, error) for key, error in bad.items())
        raise ValueError(f"{listed}\n{_summary(len(good), bad)}; nothing was written. --on-error skip leaves broken clips out")
    part = config.out.with_name(config.out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    count = write_packed(part, _pieces_of(good, config), config.per_shard, config.crf)
    left_off = {footage.key: _left_off(footage, config) for footage in good}
    skipped = {key: str(error) for key, error in bad.items()}
    report = {"videos": len(good) + len(bad), "clips": count, "skipped": skipped, "frames_left_off": left_off, "size": config.size}
    (part / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    shutil.rmtree(config.out, ignore_errors=True)
    part.rename(config.out)
    for key, error in bad.items():
        print(f"skipped {_complaint(key, error)}")
    print(_summary(len(good), bad))
    print(f"wrote {count} clips to {config.out}; {sum(left_off.values())} frames at the ends of videos are left off")


def latents(config: LatentsConfig) -> None:
    """Encodes every packed clip and says what to do next."""
    autoencoder = load_trained(config.runs / config.world / "autoencoder", config.device)
    if config.layout == "own":
        count, out = encode_packed(config.folder, autoencoder, config.device), config.folder
    elif config.out is None:
        raise ValueError("got --layout published without --out; wanted the folder to write")
    else:
        packed = (clip for shard in tqdm(packed_shards(config.folder), desc="encoding", unit="shard") for clip in read_packed(shard))
        clips = (
            PublishedClip(
                clip.key,
                latent.moving.transpose(0, 1).float().numpy(),
                clip.c2w,
                clip.intrinsics_px.astype(np.float64),
                (clip.frames.shape[1], clip.frames.shape[2]),
                clip.caption,
            )
            for clip, latent in encode_each(packed, autoencoder, config.device)
        )
        count, out = write_published(config.out, PUBLISHED_NAME, clips), config.out
    small = " --min-mib 0" if config.layout == "published" else ""
    print(f"encoded {count} clips: sana-wm train bidirectional --world {config.world} --runs {config.runs} --data {out}{small}")


def _inspect_all(folder: Path, min_frames: int) -> tuple[list[Footage], dict[str, ClipError]]:
    """The clips that can be used, and what is wrong with the others by key."""
    good, bad = [], {}
    for key, video in tqdm(videos_in(folder).items(), desc="checking", unit="video"):
        try:
            good.append(inspect(key, video, min_frames))
        except ClipError as error:
            bad[key] = error
    return good, bad


def _pieces_of(footages: Iterable[Footage], config: PackVideosConfig) -> Iterator[PackedClip]:
    for footage in tqdm(footages, desc="packing", unit="video"):
        yield from cut(footage, config.size, config.max_frames, config.min_frames)


def _left_off(footage: Footage, config: PackVideosConfig) -> int:
    frames = len(footage.chosen)
    return frames - pieces(frames, config.max_frames, config.min_frames)[-1].stop


def _check_settings(config: PackVideosConfig) -> None:
    if any(side < SPATIAL_STRIDE or side % SPATIAL_STRIDE for side in config.size):
        raise ValueError(f"got --size {config.size[0]} {config.size[1]}; wanted multiples of {SPATIAL_STRIDE}, which a latent cell covers")
    if not 1 + CHUNK_FRAMES <= config.min_frames <= config.max_frames:
        raise ValueError(f"got --min-frames {config.min_frames} and --max-frames {config.max_frames}; wanted {1 + CHUNK_FRAMES} or more")
    if config.out.exists() and not (config.out / REPORT).exists():
        raise ValueError(f"got --out {config.out}, which is there and was not packed by this command; wanted a new folder")


def _complaint(key: str, error: ClipError) -> str:
    return f"{key} ({error.reason}): {error}"


def _summary(good: int, bad: dict[str, ClipError]) -> str:
    reasons = Counter(error.reason for error in bad.values())
    listed = f" ({', '.join(f'{reason}: {count}' for reason, count in reasons.most_common())})" if bad else ""
    return f"{good} of {good + len(bad)} videos can be used, {len(bad)} cannot{listed}"
