"""`sana-wm annotate`: videos without poses -> clips with metric ones, as `sana-wm data pack` takes them."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sana_wm_env.camera import CHUNK_FRAMES, FOV_DEG
from sana_wm_env.extras import check_installed
from sana_wm_env.outputs import Output, check_outputs
from sana_wm_env.progress import progress, write_line
from sana_wm_env.settings import check_settings

from ..data.filters import filter_ranges
from ..data.videos import videos_in
from .captions import Endpoint
from .depth import check_moge
from .poses import BackendName, open_backend
from .records import Record, Records
from .report import write_report
from .stages import Stages


@dataclass(frozen=True)
class AnnotateConfig:
    """Estimates the cameras of videos and writes clips that `sana-wm data pack` takes, see train/README.md.
    The same command goes on where it was stopped.

    Attributes:
        folder: videos, or one of them.
        out: folder to write: clips/ for `data pack`, manifest.jsonl, report.md, pictures/, work/.
        backend: what estimates the poses; auto takes ViPE, Pi3X or pycolmap, the first that is installed;
            poses takes those beside the videos and does scale and guards alone.
        depth: where metres come from: a folder of metric depth maps (NAME.npz with depth_m), or moge.
        metric_poses: folder of metric camera paths (NAME.npz with c2w) to scale the estimated ones by.
        baseline: metres from the first to the last camera of every clip, if that is known.
        camera_height: metres of the camera above the floor, if that is known and the floor is in view.
        masks: folder of masks of what moves (NAME.npz with moving, uint8).
        intrinsics: one focal length per clip, or one per frame, for zooms.
        fov_deg: horizontal field of view that the estimate begins with; 58 degrees if not given.
        features: of a frame at most, for pycolmap.
        cuts: take the shots of a video with cuts one by one, or refuse the video.
        min_frames: frames at 16 per second that a clip needs.
        max_frames: longer shots are cut into pieces; 961 is a minute.
        filters: keep clips whose scores lie in the paper's ranges for this source, such as miradata.
        scores: folder with the scores of other tools (NAME_SUFFIX.json) for the filters.
        caption_url: OpenAI-compatible endpoint that describes the scenes, such as http://127.0.0.1:8000/v1.
        caption_model: name of the model there.
        crf: quality of the clips: 0 keeps every pixel, 12 looks the same in fewer bytes.
        device: where MoGe runs.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    out: Path
    backend: BackendName = "auto"
    depth: str | None = None
    metric_poses: Path | None = None
    baseline: float | None = None
    camera_height: float | None = None
    masks: Path | None = None
    intrinsics: Literal["shared", "per-frame"] = "shared"
    fov_deg: float | None = None
    features: int = 1500
    cuts: Literal["split", "refuse"] = "split"
    min_frames: int = 1 + CHUNK_FRAMES
    max_frames: int = 961
    filters: str = ""
    scores: Path | None = None
    caption_url: str = ""
    caption_model: str = ""
    crf: int = 4
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(
            self,
            baseline="(0, 1e6)",
            camera_height="(0, 1e6)",
            fov_deg=f"[{FOV_DEG[0]}, {FOV_DEG[1]})",
            features="[100, 65536]",
            min_frames=f"[{1 + CHUNK_FRAMES}, 1048576]",
            max_frames=f"[{1 + CHUNK_FRAMES}, 1048576]",
            crf="[0, 51]",
        )


@dataclass
class Tally:
    """How a run went: keys of the clips that came through, and the last record of each that did not."""

    accepted: list[str] = field(default_factory=list)
    rejected: dict[str, Record] = field(default_factory=dict)


def annotate(config: AnnotateConfig) -> int:
    """Annotates every video. Returns 0 if any clip came through, 1 otherwise.

    Raises:
        ValueError: settings that cannot be, a backend that is not installed, an output folder of other work.
    """
    _check_settings(config)
    videos = videos_in(config.folder)
    check_outputs(Output("--out", config.out, folder=True))
    if (
        config.out.resolve() == config.folder.resolve()
        or config.out.resolve() in config.folder.resolve().parents
    ):
        raise ValueError(f"got --out {config.out}, in which the videos lie; wanted another folder")
    options = {"intrinsics": config.intrinsics, "fov_deg": config.fov_deg, "features": config.features}
    backend = open_backend(config.backend, **options)
    records = Records(config.out, settings_of(config, backend.name))
    stages = Stages(config, records, backend)
    tally = Tally()
    bar = progress(videos.items(), desc="annotating", unit="video")
    for key, video in bar:
        for clip in stages.cut(key, video):
            record = stages.finish(clip)
            if record.status == "done":
                tally.accepted.append(record.clip)
            else:
                tally.rejected[record.clip] = record
                write_line(f"rejected {record.clip} at {record.stage} ({record.reason}): {record.cause}")
    records.write_manifest()
    write_report(records, settings_of(config, backend.name))
    print(_summary(tally, config))
    return 0 if tally.accepted else 1


def settings_of(config: AnnotateConfig, backend: str) -> dict[str, Any]:
    """What decides the results; a run with other settings wants another folder."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("out", "device")}
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()} | {
        "backend": backend
    }


def _check_settings(config: AnnotateConfig) -> None:
    check_installed("cv2", "annotate")
    check_installed("scenedetect", "annotate")
    if config.max_frames < config.min_frames:
        raise ValueError(
            f"got --max-frames {config.max_frames}; wanted --min-frames {config.min_frames} or more"
        )
    filter_ranges(config.filters)
    lengths = {"--baseline": config.baseline, "--camera-height": config.camera_height}
    sources = lengths | {"--depth": config.depth, "--metric-poses": config.metric_poses}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"got {' and '.join(given)}; wanted one source of metres")
    if config.depth == "moge":
        check_moge()
    elif config.depth is not None:
        _check_folder(Path(config.depth), "--depth", " or moge")
    for folder, name in (
        (config.masks, "--masks"),
        (config.scores, "--scores"),
        (config.metric_poses, "--metric-poses"),
    ):
        if folder is not None:
            _check_folder(folder, name)
    if config.caption_url or config.caption_model:
        Endpoint(config.caption_url, config.caption_model).check()


def _check_folder(folder: Path, name: str, more: str = "") -> None:
    if not folder.is_dir():
        raise ValueError(f"got {name} {folder}; wanted a folder{more}")


def _summary(tally: Tally, config: AnnotateConfig) -> str:
    reasons = Counter(record.reason for record in tally.rejected.values())
    listed = (
        f" ({', '.join(f'{reason}: {count}' for reason, count in reasons.most_common())})" if reasons else ""
    )
    total = len(tally.accepted) + len(tally.rejected)
    metric = config.depth or config.baseline or config.camera_height or config.metric_poses
    consent = "" if metric or config.backend in ("vipe", "poses") else " --any-scale"
    following = (
        f"; next: sana-wm data pack {config.out / 'clips'} --out packed{consent}" if tally.accepted else ""
    )
    return (
        f"{len(tally.accepted)} of {total} clips have poses, {len(tally.rejected)} were rejected{listed}; "
        f"{config.out / 'report.md'} says more{following}"
    )
