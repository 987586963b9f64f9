"""Does a video follow its commands, whatever made it? Poses estimated from its frames, against the commanded
ones.

A frame that the estimator cannot place counts as one of a camera that never left the first frame, so that a
video cannot gain by being unreadable. Structure from motion has no unit: its translations get one factor, by
the alignment that is stated. The estimator says how sure it is, and the table says it too: an error no larger
than that says nothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from sana_wm_env.train.annotate.frames import read_frames
from sana_wm_env.train.annotate.poses import Clip, PoseEstimate, open_backend
from sana_wm_env.train.data.sidecars import ClipError
from sana_wm_env.train.data.videos import survey, videos_in

from ..arrays import read_npz
from ..camera import Array, check_intrinsics, relative_to_first
from ..files import write_json
from ..outputs import name_beside
from ..progress import progress
from ..rooms import default_intrinsics
from ..rooms.room import open_room
from ..settings import check_settings
from .poses import FIGURES, SCALED, Alignment, PoseErrors, compare_paths, read_poses
from .report import check_report, markdown_table, write_page
from .tracking import GAP, track

Backend = Literal["pycolmap", "tracker"]


@dataclass(frozen=True)
class VideoConfig:
    """Scores videos of any model by how their camera moves, see docs/guides/annotate.md.

    Attributes:
        video: a video, or a folder of them.
        commanded: what the camera was told, one pose per frame: .npy, or .npz with c2w; for a folder of
            videos a folder of files of their names. Beside each video, if not given.
        backend: pycolmap estimates poses of any scene; tracker those of rooms, which it knows.
        scene_seed: the room that the tracker compares with, from its own first place.
        align: what is taken out of the estimate first; if not given, one factor on translations (scale) for
            pycolmap, nothing (none) for the tracker.
        fov_deg: horizontal field of view that pycolmap begins with.
        json: the report; a page (.md) of the same name goes beside it.
    """

    video: Annotated[Path, tyro.conf.Positional]
    commanded: Path | None = None
    backend: Backend = "pycolmap"
    scene_seed: int | None = None
    align: Alignment | None = None
    fov_deg: float | None = None
    json: Path | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, scene_seed="[0, inf)", fov_deg="(0, 180)")


@dataclass(frozen=True)
class Score:
    """How a video follows.

    Attributes:
        rot_err_deg, trans_err_m, cam_mc: (F,) errors of the frames that were looked at.
        placed: (F,) which of them the estimator could place.
        scale: factor on its translations.
        rot_sigma_deg, trans_sigma_m: its own standard deviations, mean over placed frames; NaN if it says
        none. note: why nothing was placed, or "".
    """

    rot_err_deg: Array
    trans_err_m: Array
    cam_mc: Array
    placed: NDArray[np.bool_]
    scale: float
    rot_sigma_deg: float
    trans_sigma_m: float
    note: str = ""

    def summary(self) -> dict[str, Any]:
        """Means over frames, plain values."""
        values: dict[str, Any] = {name: float(getattr(self, name).mean()) for name in FIGURES}
        values |= {"frames": len(self.placed), "placed": int(self.placed.sum()), "scale": self.scale}
        sigmas = {"rot_sigma_deg": self.rot_sigma_deg, "trans_sigma_m": self.trans_sigma_m}
        return values | {k: v if np.isfinite(v) else None for k, v in sigmas.items()} | {"note": self.note}


def run(config: VideoConfig) -> int:
    """Prints a row per video and their mean; two runs write equal bytes.

    Raises:
        ValueError: settings that cannot be, no commanded path, or one of another length than its video.
    """
    videos = videos_in(config.video)
    align: Alignment = config.align or ("scale" if config.backend == "pycolmap" else "none")
    _check(config, align)
    if config.json:
        check_report(config.json)
    scores = {}
    for key, video in progress(videos.items(), desc="scoring", unit="video", disable=len(videos) < 2):
        scores[key] = score_video(video, _commanded_of(config, key, video), config, align)
    rows = {key: score.summary() for key, score in scores.items()}
    text, notes = table(rows), explain(config.backend, align)
    print(f"{text}\n\n{notes}")
    if config.json:
        report = {"backend": config.backend, "alignment": align, "videos": rows, "mean": mean_of(rows)}
        write_json(config.json, report)
        header = {"estimator": config.backend, "alignment": align}
        sections = [("Videos", text), ("How to read this", notes)]
        write_page(name_beside(config.json, ".md"), "Videos against their commands", header, sections, [])
    return 0


def score_video(video: Path, commanded: Path, config: VideoConfig, align: Alignment) -> Score:
    """Estimates the poses of a video and compares them with the commanded ones."""
    times, (height, width), turn = survey(video)
    if turn:
        raise ValueError(f"got {video.name}, which players turn; wanted upright frames: encode it again")
    reference = relative_to_first(read_poses(commanded))
    if len(reference) != len(times):
        raise ValueError(
            f"got {len(reference)} commanded poses in {commanded} for the {len(times)} frames of "
            f"{video.name}; wanted one per frame"
        )
    if config.backend == "tracker":
        assert config.scene_seed is not None
        frames = np.stack([frame for index, frame in enumerate(read_frames(video)) if index % GAP == 0])
        estimate = track_room(frames, config.scene_seed, _lens(commanded, (height, width)))
        return score_path(estimate, reference[::GAP], align)
    try:
        estimate = _reconstruct(video, (len(times), height, width), config.fov_deg)
    except ClipError as error:
        unknown = np.full((len(times), 4, 4), np.nan)
        nothing = PoseEstimate.without_points(unknown, unknown[:, 0], False, "pycolmap")
        return score_path(nothing, reference, align, str(error))
    return score_path(estimate, reference, align)


def score_path(estimate: PoseEstimate, reference: Array, align: Alignment, note: str = "") -> Score:
    """Errors of an estimate of F frames against a reference (F, 4, 4) relative to its first frame, metres."""
    placed = estimate.registered
    still = np.tile(np.eye(4), (len(reference), 1, 1))
    errors = compare_paths(still, reference, "none")
    figures = {name: getattr(errors, name).copy() for name in FIGURES}
    scale = 1.0
    if placed.sum() > 1:
        aligned = _compare(estimate.c2w[placed], reference[placed], align)
        scale = aligned.scale
        for name in FIGURES:
            figures[name][placed] = getattr(aligned, name)
    sigmas = (estimate.rot_sigma_deg[placed], estimate.trans_sigma[placed] * scale)
    rot, trans = (float(np.nanmean(s)) if np.isfinite(s).any() else float("nan") for s in sigmas)
    return Score(**figures, placed=placed, scale=scale, rot_sigma_deg=rot, trans_sigma_m=trans, note=note)


def track_room(frames: NDArray[np.uint8], scene_seed: int, intrinsics_px: Array) -> PoseEstimate:
    """Poses of every `GAP`-th frame (F, H, W, 3) of a video of a room, by the tracker that knows it. Its
    uncertainty is how far it is from itself when it does without the room's pictures.
    """
    room = open_room(scene_seed)
    start, lens = torch.from_numpy(room.start)[None], torch.from_numpy(intrinsics_px).float()[None]
    with_room, without = (
        track(torch.from_numpy(frames)[None], room.scenes, start, lens, with_room=known)[0]
        for known in (True, False)
    )
    apart = compare_paths(without, with_room, "none")
    estimate = PoseEstimate.without_points(
        with_room, np.tile(intrinsics_px, (len(frames), 1)), True, "tracker"
    )
    return replace(estimate, rot_sigma_deg=apart.rot_err_deg, trans_sigma=apart.trans_err_m)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """A row per video and their mean, in Markdown."""
    shown = [[key, *_cells(row)] for key, row in rows.items()]
    if len(rows) > 1:
        shown.append(["mean", *_cells(mean_of(rows))])
    titles = ("video", "RotErr °", "TransErr m", "CamMC", "placed", "scale", "its own ± °", "± m")
    return markdown_table(titles, shown)


def mean_of(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over videos; those that say nothing do not count."""
    names = ("rot_err_deg", "trans_err_m", "cam_mc", "scale", "rot_sigma_deg", "trans_sigma_m")
    means: dict[str, Any] = {}
    for name in names:
        known = [row[name] for row in rows.values() if row[name] is not None]
        means[name] = float(np.mean(known)) if known else None
    return means | {name: sum(row[name] for row in rows.values()) for name in ("placed", "frames")}


def explain(backend: Backend, align: Alignment) -> str:
    """What the figures are."""
    return (
        f"Means over frames, poses by {backend}, alignment {align} (sana-wm evaluate poses --help). Frames "
        "that "
        "were not placed count as those of a camera that never moved. The last two columns are the "
        "estimator's own "
        "standard deviation"
        + (
            ", from the covariance of its bundle adjustment."
            if backend == "pycolmap"
            else ", from doing without the room's pictures."
        )
    )


def _compare(estimated: Array, reference: Array, align: Alignment) -> PoseErrors:
    return compare_paths(relative_to_first(estimated), relative_to_first(reference), align)


def _check(config: VideoConfig, align: Alignment) -> None:
    if config.backend == "tracker":
        if config.scene_seed is None:
            raise ValueError("got --backend tracker without --scene-seed; wanted the room of the videos")
        return
    open_backend("pycolmap")
    if align not in SCALED:
        raise ValueError(
            f"got --align {align} with poses of no unit; wanted one that finds the scale: {', '.join(SCALED)}"
        )


def _commanded_of(config: VideoConfig, key: str, video: Path) -> Path:
    """The file of commanded poses of a video."""
    given = config.commanded
    if given is not None and not given.is_dir():
        if config.video.is_dir():
            raise ValueError(f"got --commanded {given} for a folder of videos; wanted a folder of files")
        return given
    folder = video.parent if given is None else given
    for name in (f"{video.stem}.npz", f"{video.stem}.npy", f"{key}.npz", f"{key}.npy"):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"got no commanded poses for {video.name}; wanted {folder / video.stem}.npz with c2w")


def _lens(commanded: Path, size: tuple[int, ...]) -> Array:
    """Intrinsics (4,) in pixels of the video: those beside the commanded poses, else those of rooms."""
    height, width = size
    fields = read_npz(commanded) if commanded.suffix == ".npz" else {}
    if not {"intrinsics_px", "image_size"} <= set(fields):
        return np.array(default_intrinsics((height, width)))
    given = np.asarray(fields["intrinsics_px"], np.float64)
    one = given[0] if given.ndim == 2 and given.shape[1] == 4 else given
    old_height, old_width = (int(side) for side in fields["image_size"])
    down, across = height / old_height, width / old_width
    return check_intrinsics(one, (old_height, old_width)) * [across, down, across, down]


def _reconstruct(video: Path, shape: tuple[int, ...], fov_deg: float | None) -> PoseEstimate:
    frames, height, width = shape
    clip = Clip(video.stem, video, frames, (height, width), np.arange(frames), 0, video)
    with tempfile.TemporaryDirectory() as work:
        return open_backend("pycolmap", fov_deg=fov_deg).estimate(clip, Path(work))


def _cells(row: dict[str, Any]) -> list[str]:
    def cell(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return [
        cell(row["rot_err_deg"], 2),
        cell(row["trans_err_m"], 3),
        cell(row["cam_mc"], 3),
        f"{row['placed']} of {row['frames']}",
        cell(row["scale"], 3),
        cell(row["rot_sigma_deg"], 2),
        cell(row["trans_sigma_m"], 3),
    ]
