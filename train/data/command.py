"""`sana-wm data`: your own videos with poses -> packed clips -> latents. What cannot be used is named, and
counted by reason.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from sana_wm_env.camera import CHUNK_FRAMES, FPS
from sana_wm_env.extras import check_installed
from sana_wm_env.files import replacing_folder, write_json, write_whole
from sana_wm_env.first_frame import read_image
from sana_wm_env.model.codecs.autoencoder import SPATIAL_STRIDE
from sana_wm_env.outputs import Output, check_outputs
from sana_wm_env.progress import progress
from sana_wm_env.settings import check_choice, check_settings
from sana_wm_env.video import VideoWriter

from ..autoencoder import load_trained
from .formats import Track, read_track
from .packed import MAX_SIDE, PackedClip, packed_tars, read_packed, write_packed
from .published import PublishedClip, write_published
from .sidecars import ClipError
from .source import encode_each, encode_packed
from .videos import SUFFIXES, Footage, cut_video, inspect_video, split_frames, survey, videos_in

REPORT = "report.json"
PUBLISHED_NAME = "own"


@dataclass(frozen=True)
class ValidateConfig:
    """Checks every video below a folder, or one video, and its poses, and says what is wrong and how to
    fix it; the exit code is 1 if anything is.

    Attributes:
        folder: videos, each with its poses beside it as .npz or .json, see train/README.md; or one of them.
        min_frames: frames at 16 per second that a clip needs.
        upright: turn the videos of phones as players do, with their poses and intrinsics.
        any_video: take sidecars of recorded videos that were encoded again since.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    min_frames: int = 25
    upright: bool = False
    any_video: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, min_frames="[1, 1048576]")


@dataclass(frozen=True)
class PackVideosConfig:
    """Packs videos with poses as webdataset tars at 16 frames per second, scaled and cropped to the size
    that the world sees.

    Attributes:
        folder: videos, each with its poses beside it as .npz or .json, see train/README.md; or one of them.
        out: folder to write; has to be new or empty, or what an earlier call wrote, which is replaced.
        size: height and width of the frames, multiples of 8.
        on_error: what a clip that cannot be used does: stop before anything is written, or skip it.
        min_frames: frames at 16 per second that a clip needs.
        max_frames: longer videos are cut into pieces of this many; 961 is a minute.
        per_shard: clips per tar.
        crf: quality of the packed video: 0 keeps every pixel, 12 looks the same in far fewer bytes.
        upright: turn the videos of phones as players do, with their poses and intrinsics.
        any_video: take sidecars of recorded videos that were encoded again since.
        any_scale: take clips whose translations have no unit, such as COLMAP's, as if they were metres.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    out: Path
    size: tuple[int, int] = (64, 64)
    on_error: Literal["stop", "skip"] = "stop"
    min_frames: int = 25
    max_frames: int = 961
    per_shard: int = 32
    crf: int = 0
    upright: bool = False
    any_video: bool = False
    any_scale: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        counts = dict.fromkeys(("min_frames", "max_frames", "per_shard"), "[1, 1048576]")
        check_settings(self, size=f"[1, {MAX_SIDE}]", crf="[0, 51]", **counts)
        check_choice("--on-error", self.on_error, ("stop", "skip"))


@dataclass(frozen=True)
class ImportConfig:
    """Makes a sidecar out of the cameras that another tool has written, and checks it.

    Attributes:
        source: what the tool wrote: transforms.json, COLMAP's model folder, a RealEstate10K .txt, Record3D's
            metadata or .r3d, ARKit frames in a .json.
        video: the video that the cameras belong to, a row per frame; the sidecar is written beside it.
        from_: the format; recognised if not given.
        metres_per_unit: what one unit of the translations is in metres. nerfstudio, COLMAP and
            RealEstate10K do not say; without it the sidecar says that they have no unit, and `data pack`
            asks for --any-scale.
        images: folder of the pictures that the cameras belong to, of which the video is made first; for
            formats that name pictures.
        fps: frames per second of a video that is made of pictures.
        caption: describes the scene, never the camera.
        ignore_distortion: take a lens that bends straight lines for a pinhole.
    """

    source: Annotated[Path, tyro.conf.Positional]
    video: Path
    from_: Annotated[
        Literal["auto", "nerfstudio", "colmap", "realestate10k", "record3d", "arkit"],
        tyro.conf.arg(name="from"),
    ] = "auto"
    metres_per_unit: float | None = None
    images: Path | None = None
    fps: int = FPS
    caption: str = ""
    ignore_distortion: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, metres_per_unit="(0, 1e6)", fps="[1, 240]")


@dataclass(frozen=True)
class LatentsConfig:
    """Encodes packed clips by the autoencoder of a run, for `--data` of the stages of the transformer.

    Attributes:
        folder: packed clips.
        world: name of the preset; the autoencoder is the one in runs/WORLD/autoencoder.
        runs: folder of all runs.
        layout: own (latents beside the tars) or published (zip files in --out; sessions then begin where
            clips do).
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
    good, bad = _inspect_all(config)
    for footage in good:
        print(f"good  {footage.key}: {'; '.join(footage.notes)}")
    for key, error in bad.items():
        print(f"BAD   {_complaint(key, error)}")
    print(_summary(len(good), bad))
    return 1 if bad else 0


def pack(config: PackVideosConfig) -> None:
    """Writes the tars and report.json, which says where every video went.

    Raises:
        ValueError: settings that cannot be, no usable clip, or any broken one where on_error is "stop";
            nothing has been written then.
    """
    _check_settings(config)
    check_outputs(Output("--out", config.out, folder=True))
    check_installed("webdataset", "data pack")
    good, bad = _inspect_all(config)
    if not config.any_scale:
        bad |= {footage.key: _NO_UNIT for footage in good if not footage.cameras.metric}
        good = [footage for footage in good if footage.cameras.metric]
    if bad and (config.on_error == "stop" or not good):
        listed = "\n".join(_complaint(key, error) for key, error in bad.items())
        raise ValueError(
            f"{listed}\n{_summary(len(good), bad)}; nothing was written. --on-error skip "
            "leaves broken clips out"
        )
    with replacing_folder(config.out) as part:
        count = write_packed(part, _pieces_of(good, config), config.per_shard, config.crf)
        left_off = {footage.key: _left_off(footage, config) for footage in good}
        report = {
            "videos": len(good) + len(bad),
            "clips": count,
            "skipped": {key: str(error) for key, error in bad.items()},
            "frames_left_off": left_off,
            "size": config.size,
        }
        write_json(part / REPORT, report)
    for key, error in bad.items():
        print(f"skipped {_complaint(key, error)}")
    print(_summary(len(good), bad))
    print(
        f"wrote {count} clips to {config.out}; {sum(left_off.values())} frames at the ends "
        "of videos are left off"
    )


def latents(config: LatentsConfig) -> None:
    """Encodes every packed clip and says what to do next."""
    check_installed("webdataset", "data latents")
    if config.layout == "published" and config.out is None:
        raise ValueError("got --layout published without --out; wanted the folder to write")
    check_outputs(
        Output("--out", config.out, folder=True),
        Output("FOLDER", config.folder if config.layout == "own" else None, folder=True),
    )
    autoencoder = load_trained(config.runs / config.world / "autoencoder", config.device)
    if config.layout == "own":
        count, out = encode_packed(config.folder, autoencoder, config.device), config.folder
    else:
        assert config.out is not None
        packed = (
            clip
            for tar in progress(packed_tars(config.folder), desc="encoding", unit="tar")
            for clip in read_packed(tar)
        )
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
    print(
        f"encoded {count} clips: sana-wm train bidirectional --world {config.world} --runs {config.runs} "
        f"--data {out}{small}"
    )


_NO_UNIT = ClipError(
    "no unit",
    "got translations without a unit; wanted metres: import again with --metres-per-unit, or consent to "
    "--any-scale, which takes the units for metres",
)


def import_cameras(config: ImportConfig) -> int:
    """Writes the sidecar and says what `validate` says of it. Returns 0 if the clip can be used, 1 otherwise.

    Raises:
        ValueError: settings that cannot be, cameras that cannot be read or are not those of the video.
        FileExistsError: there is a sidecar already, or a video where one shall be made.
    """
    _check_import(config)
    if config.images is None:
        times, size, _ = survey(config.video)
        track = read_track(config.source, config.from_, size, config.ignore_distortion)
        if len(track.c2w) != len(times):
            raise ValueError(
                f"got {len(track.c2w)} cameras in {config.source} for the {len(times)} frames of "
                f"{config.video}; wanted one per frame: cut the video to the frames that have one, or "
                "give --images FOLDER to have the video made of the pictures"
            )
    else:
        track = read_track(config.source, config.from_, None, config.ignore_distortion)
        _write_video(track, config.images, config.video, config.fps)
    sidecar = write_sidecar_of(track, config.video, config.metres_per_unit, config.caption)
    print(f"wrote {sidecar}: {len(track.c2w)} cameras")
    try:
        footage = inspect_video(_key_of(config.video), config.video, upright=True)
    except ClipError as error:
        print(f"BAD   {_complaint(config.video.stem, error)}")
        return 1
    print(f"good  {footage.key}: {'; '.join(footage.notes)}")
    return 0


def write_sidecar_of(
    track: Track, video: Path, metres_per_unit: float | None = None, caption: str = ""
) -> Path:
    """Writes the cameras of another tool as the .npz beside a video and returns its path."""
    c2w = track.c2w.copy()
    c2w[:, :3, 3] *= 1.0 if metres_per_unit is None else metres_per_unit
    sidecar = video.with_suffix(".npz")
    fields = {
        "c2w": c2w,
        "convention": "opencv",
        "intrinsics_px": track.intrinsics_px,
        "image_size": track.image_size,
        "caption": caption,
        "metric": track.metric or metres_per_unit is not None,
    }

    def write(part: Path) -> None:
        with part.open("wb") as file:  # a name without .npz would get one
            np.savez(file, **fields)

    write_whole(sidecar, write)
    return sidecar


def _check_import(config: ImportConfig) -> None:
    if config.video.suffix.lower() not in SUFFIXES:
        raise ValueError(f"got --video {config.video}; wanted one of {', '.join(SUFFIXES)}")
    for suffix in (".npz", ".json"):
        if (there := config.video.with_suffix(suffix)).exists() and there != config.source:
            raise FileExistsError(
                f"got {config.video}, which has the sidecar {there.name}; move it away first"
            )
    if config.video.with_suffix(".json") == config.source:
        raise FileExistsError(
            f"got {config.source}, which would be taken for the sidecar of {config.video.name}; rename it "
            "first"
        )
    if config.images is None:
        if not config.video.is_file():
            raise ValueError(f"got --video {config.video}; there is no such file")
        return
    if config.video.exists() or config.video.suffix != ".mp4":
        raise FileExistsError(f"got --video {config.video} with --images; wanted a new .mp4 to write")
    if not config.images.is_dir():
        raise ValueError(f"got --images {config.images}; there is no such folder")


def _write_video(track: Track, folder: Path, video: Path, fps: int) -> None:
    """A video of the pictures that the cameras are named after. Nothing is left where one is missing."""
    files = [_find_picture(folder, name) for name in track.names]
    with VideoWriter(video, fps, min_height=0) as writer:
        for file in progress(files, desc="pictures", unit="frame"):
            picture = read_image(file)
            if picture.shape[:2] != track.image_size:
                raise ValueError(
                    f"got {file} of {picture.shape[0]} x {picture.shape[1]} pixels; wanted those "
                    f"of the cameras, {track.image_size[0]} x {track.image_size[1]}"
                )
            writer.write(picture[None])


def _find_picture(folder: Path, name: str) -> Path:
    if not name:
        raise ValueError("got --images for a format that names no pictures; wanted --video alone")
    for path in (folder / name, folder / Path(name).name):
        if path.is_file():
            return path
    raise ValueError(f"got no picture {name} in {folder}; wanted those that the cameras are named after")


def _key_of(video: Path) -> str:
    return next(iter(videos_in(video)))


def _inspect_all(
    config: ValidateConfig | PackVideosConfig,
) -> tuple[list[Footage], dict[str, ClipError]]:
    """The clips that can be used, and what is wrong with the others by key."""
    good, bad = [], {}
    for key, video in progress(videos_in(config.folder).items(), desc="checking", unit="video"):
        try:
            good.append(inspect_video(key, video, config.min_frames, config.upright, config.any_video))
        except ClipError as error:
            bad[key] = error
    return good, bad


def _pieces_of(footages: Iterable[Footage], config: PackVideosConfig) -> Iterator[PackedClip]:
    for footage in progress(footages, desc="packing", unit="video"):
        yield from cut_video(footage, config.size, config.max_frames, config.min_frames)


def _left_off(footage: Footage, config: PackVideosConfig) -> int:
    frames = len(footage.chosen)
    return frames - split_frames(frames, config.max_frames, config.min_frames)[-1].stop


def _check_settings(config: PackVideosConfig) -> None:
    if any(side < SPATIAL_STRIDE or side % SPATIAL_STRIDE for side in config.size):
        raise ValueError(
            f"got --size {config.size[0]} {config.size[1]}; wanted multiples of {SPATIAL_STRIDE}, which a "
            "latent cell covers"
        )
    if not 1 + CHUNK_FRAMES <= config.min_frames <= config.max_frames:
        raise ValueError(
            f"got --min-frames {config.min_frames} and --max-frames {config.max_frames}; wanted "
            f"{1 + CHUNK_FRAMES} or more"
        )
    _check_out(config.out, config.folder)


def _check_out(out: Path, folder: Path) -> None:
    """Refuses to replace what `pack` did not write, and what it reads from."""
    if out.is_dir() and folder.resolve().is_relative_to(out.resolve()) and (out / REPORT).exists():
        raise ValueError(
            f"got --out {out}, in which the videos lie: it would be replaced; wanted another folder"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"got --out {out}, which is a file; wanted a folder")
    if out.exists() and any(out.iterdir()) and not (out / REPORT).exists():
        raise ValueError(
            f"got --out {out}, which is there and was not packed by this command; wanted a new or an "
            "empty folder"
        )


def _complaint(key: str, error: ClipError) -> str:
    return f"{key} ({error.reason}): {error}"


def _summary(good: int, bad: dict[str, ClipError]) -> str:
    reasons = Counter(error.reason for error in bad.values())
    listed = f" ({', '.join(f'{reason}: {count}' for reason, count in reasons.most_common())})" if bad else ""
    return f"{good} of {good + len(bad)} videos can be used, {len(bad)} cannot{listed}"
