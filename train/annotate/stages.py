"""The stages that a clip goes through, each on the records of those before it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sana_wm_env.arrays import read_array
from sana_wm_env.camera import Array, check_poses, relative_to_first
from sana_wm_env.files import write_whole

from ..data.filters import filter_ranges
from ..data.sidecars import ClipError
from ..data.videos import inspect_video
from . import guards
from .captions import Endpoint
from .depth import estimate_depth, read_depth
from .frames import read_frames
from .masks import read_valid
from .parallax import FLAT, check_motion, follow_corners, measure_parallax, measure_strays
from .poses import Clip, Points, PoseBackend, PoseEstimate, fill_gaps, fill_rows
from .records import Record, Records
from .report import draw_clip
from .scale import Scale, scale_from_baseline, scale_from_depth, scale_from_height, scale_from_poses
from .scores import measure_motion, read_scores
from .shots import Shot, describe_footage, inspect_footage, split_shots, write_clip

if TYPE_CHECKING:
    from .command import AnnotateConfig

Arrays = dict[str, NDArray]
Found = tuple[dict[str, Any], Arrays]
CLIP_VIDEO = "clip.mp4"


@dataclass(frozen=True)
class Job:
    """A clip to be finished: its key, and the key and path of its video."""

    key: str
    video_key: str
    source: Path


class Stages:
    """All stages of a run.

    Args:
        config: settings of the command.
        records: what has been done.
        backend: what estimates poses.
    """

    def __init__(self, config: AnnotateConfig, records: Records, backend: PoseBackend):
        self.config, self.records, self.backend = config, records, backend
        self.ranges = filter_ranges(config.filters)
        self.scores = read_scores(config.scores, self.ranges)
        self.steps: dict[str, Callable[[Clip, Job], Found]] = {
            "masks": self._masks,
            "motion": self._motion,
            "poses": self._poses,
            "scale": self._scale,
            "guards": self._guards,
            "caption": self._caption,
            "sidecar": self._sidecar,
        }

    def cut(self, key: str, video: Path) -> Iterator[Job]:
        """Cuts a video into clips, which have the record `shots` then."""
        listed = self.records.find(key, "shots")
        if listed is None or "clips" not in listed.values:
            listed = self._cut(key, video)
        elif listed.values["bytes"] != video.stat().st_size:
            raise ValueError(
                f"got {video}, which has changed since it was cut; wanted the same, or a new --out"
            )
        yield from (Job(clip, key, video) for clip in listed.values["clips"])

    def finish(self, job: Job) -> Record:
        """Takes a clip through all stages that it has not been through, up to the first that rejects it.
        Returns its last record.
        """
        record = self.records.find(job.key, "shots")
        assert record is not None
        for stage, step in self.steps.items():
            if record.status == "rejected":
                break
            found = self.records.find(job.key, stage)
            record = found or self._do(job, stage, step)
        return record

    def _do(self, job: Job, stage: str, step: Callable[[Clip, Job], Found]) -> Record:
        start, arrays = time.perf_counter(), {}
        try:
            values, arrays = step(self._clip(job), job)
            status, reason, cause = "done", "", ""
        except ClipError as error:
            status, reason, cause, values = "rejected", error.reason, str(error), {}
        record = Record(job.key, stage, status, reason, cause, round(time.perf_counter() - start, 3), values)
        self.records.keep(record, arrays)
        return record

    def _cut(self, key: str, video: Path) -> Record:
        """Looks through a video, writes its clips, and records them; the video's own record comes last."""
        start = time.perf_counter()
        try:
            footage = inspect_footage(video)
            shots = split_shots(
                footage, self.config.min_frames, self.config.max_frames, self.config.cuts == "split"
            )
            about = describe_footage(footage)
        except ClipError as error:
            footage, shots, about = None, [Shot(np.arange(0), (error.reason, str(error)))], {}
        keys = [key] if len(shots) == 1 else [f"{key}-{number:03d}" for number in range(len(shots))]
        records: list[Record] = []
        for name, shot in zip(keys, shots, strict=True):
            values: dict[str, Any] = about | {"source": str(video), "clip_frames": len(shot.chosen)}
            if shot.fault is None and footage is not None:
                folder = self.records.folder(name)
                folder.mkdir(parents=True, exist_ok=True)
                values["clip_size"] = list(
                    write_clip(video, shot, footage.turn, folder / CLIP_VIDEO, self.config.crf)
                )
            seconds = round((time.perf_counter() - start) / len(keys), 3)
            reason, cause = shot.fault or ("", "")
            status = "rejected" if shot.fault else "done"
            records.append(Record(name, "shots", status, reason, cause, seconds, values))
        listing = {"clips": keys, "bytes": video.stat().st_size}
        if keys != [key]:
            whole = Record(key, "shots", "done", "", "", 0.0, about | listing)
        else:
            whole = replace(records[0], values=records[0].values | listing)
        for record, shot in zip(records, shots, strict=True):
            if record.clip != key:
                self.records.keep(record, {"chosen": shot.chosen})
        self.records.keep(whole, {"chosen": shots[0].chosen} if keys == [key] else None)
        return whole

    def _clip(self, job: Job) -> Clip:
        record = self.records.find(job.key, "shots")
        assert record is not None
        masks = self.records.find(job.key, "masks")
        valid = None
        if masks is not None and masks.values.get("masked"):
            packed = self.records.arrays(job.key, "masks")
            shape = tuple(packed["shape"])
            valid = np.unpackbits(packed["valid"], count=int(np.prod(shape))).reshape(shape).astype(bool)
        return Clip(
            job.key,
            self.records.folder(job.key) / CLIP_VIDEO,
            record.values["clip_frames"],
            tuple(record.values["clip_size"]),
            self.records.arrays(job.key, "shots")["chosen"],
            record.values["turn"],
            job.source,
            valid,
        )

    def _masks(self, clip: Clip, job: Job) -> Found:
        if self.config.masks is None:
            return {"masked": False}, {}
        valid = read_valid(self.config.masks, clip, job.video_key)
        guards.check_masks(valid)
        values = {"masked": True, "at_rest": round(float(valid.mean()), 4)}
        return values, {"valid": np.packbits(valid), "shape": np.array(valid.shape)}

    def _motion(self, clip: Clip, job: Job) -> Found:
        if self.backend.name == "poses":
            return {"looked": False}, {}
        pairs = follow_corners(clip.video, clip.valid)
        check_motion(pairs)
        values = {
            "looked": True,
            "moved": round(max(pair.moved for pair in pairs), 4),
            "parallax": round(measure_parallax(pairs), 5),
        }
        return values, {}

    def _poses(self, clip: Clip, job: Job) -> Found:
        folder = self.records.folder(job.key) / "backend"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            estimate = self.backend.estimate(clip, folder)
            guards.check_registration(estimate)
        except ClipError as error:
            raise self._explained(error, job) from None
        except (RuntimeError, ArithmeticError, np.linalg.LinAlgError) as error:  # of its own library
            raise ClipError(
                "backend failed", f"{self.backend.name}: {str(error).splitlines()[0][:300]}"
            ) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        values = {
            "backend": estimate.backend,
            "frames": clip.frames,
            "registered": int(estimate.registered.sum()),
            "models": list(estimate.models),
            "metric": estimate.metric,
            "residual_px": _median(estimate.residual_px),
            "notes": list(estimate.notes),
        }
        return values, _to_arrays(estimate)

    def _explained(self, error: ClipError, job: Job) -> ClipError:
        """The error, or the likelier cause: without parallax nothing can be triangulated."""
        motion = self.records.find(job.key, "motion")
        parallax = motion.values.get("parallax", 1.0) if motion else 1.0
        if parallax >= 2 * FLAT:
            return error
        return ClipError(
            "pure rotation",
            f"got a camera that hardly does more than turn (turning explains all but {parallax:.2%} of the "
            f"width), and so {error}",
        )

    def _scale(self, clip: Clip, job: Job) -> Found:
        estimate = self._estimate(job)
        c2w = fill_gaps(estimate.c2w)
        scale = self._find_scale(clip, job, estimate, c2w)
        if scale is None:
            return {"metric": estimate.metric, "source": "the backend" if estimate.metric else "none"}, {}
        values = {
            "metric": True,
            "source": scale.source,
            "metres_per_unit": scale.metres_per_unit,
            "variation": scale.variation,
        }
        return values, {"per_frame": scale.per_frame, "smoothed": scale.smoothed}

    def _find_scale(self, clip: Clip, job: Job, estimate: PoseEstimate, c2w: Array) -> Scale | None:
        config = self.config
        if config.depth is not None:
            moge = config.depth == "moge"
            maps = (
                estimate_depth(clip, config.device)
                if moge
                else read_depth(Path(config.depth), clip, job.video_key)
            )
            return scale_from_depth(estimate.points, maps, clip.size, "MoGe-2" if moge else "depth maps")
        if config.metric_poses is not None:
            return scale_from_poses(
                estimate.c2w, _read_metric(config.metric_poses, clip, job), "metric poses"
            )
        if config.baseline is not None:
            return scale_from_baseline(c2w, config.baseline)
        if config.camera_height is not None:
            lenses = fill_rows(estimate.intrinsics_px)
            return scale_from_height(c2w, lenses, estimate.points, config.camera_height)
        return None

    def _guards(self, clip: Clip, job: Job) -> Found:
        estimate, scale = self._estimate(job), self.records.find(job.key, "scale")
        assert scale is not None
        c2w = relative_to_first(fill_gaps(estimate.c2w))
        c2w[:, :3, 3] *= scale.values.get("metres_per_unit", 1.0)
        intrinsics = fill_rows(estimate.intrinsics_px)
        given = self.backend.name == "poses"
        pairs = [] if given else follow_corners(clip.video, clip.valid)
        strays = measure_strays(pairs, c2w, intrinsics, clip.size[1])
        variation = scale.values.get("variation", 0.0)
        guards.check_estimate(
            guards.Evidence(clip, estimate, c2w, intrinsics, scale.values["metric"], variation, strays)
        )
        scores = self._scores_of(clip, job)
        guards.check_scores(scores, self.ranges)
        return {"strays": round(strays, 4), "scores": scores}, {"c2w": c2w, "intrinsics_px": intrinsics}

    def _scores_of(self, clip: Clip, job: Job) -> dict[str, float | None]:
        """Scores that the filters ask for: from files, else measured. A clip is one shot: it has no cuts."""
        scores: dict[str, float | None] = {}
        for suffix in self.ranges:
            table = self.scores[suffix]
            found = table.get(clip.key, table.get(job.video_key))
            if found is None and suffix == "vmafmotion":
                found = measure_motion(clip.video)
            if found is None and suffix == "cuts":
                found = 0.0
            scores[suffix] = found
        return scores

    def _caption(self, clip: Clip, job: Job) -> Found:
        if not self.config.caption_url:
            return {"caption": "", "note": "no --caption-url"}, {}
        wanted = {0, clip.frames // 2, clip.frames - 1}
        pictures = [frame for index, frame in enumerate(read_frames(clip.video)) if index in wanted]
        caption = Endpoint(self.config.caption_url, self.config.caption_model).describe(pictures)
        return {"caption": caption.text, "struck": list(caption.struck), "note": caption.note}, {}

    def _sidecar(self, clip: Clip, job: Job) -> Found:
        """The clip and its sidecar where `data pack` finds them, and a picture of both."""
        cameras, poses = self.records.arrays(job.key, "guards"), self._estimate(job)
        scale, caption = self.records.find(job.key, "scale"), self.records.find(job.key, "caption")
        assert scale is not None and caption is not None
        video = self.records.out / "clips" / f"{clip.key}.mp4"
        _link(clip.video, video)
        fields = {
            "c2w": cameras["c2w"],
            "convention": "opencv",
            "intrinsics_px": cameras["intrinsics_px"],
            "image_size": clip.size,
            "caption": caption.values["caption"],
            "metric": scale.values["metric"],
            "estimated_by": poses.backend,
            "scale_from": scale.values["source"],
        }
        write_whole(video.with_suffix(".npz"), lambda part: _save(part, fields))
        try:
            footage = inspect_video(clip.key, video, self.config.min_frames)
        except ClipError:
            for path in (video, video.with_suffix(".npz")):
                path.unlink()
            raise
        picture = self.records.out / "pictures" / f"{clip.key}.png"
        draw_clip(picture, clip, cameras["c2w"], bool(scale.values["metric"]))
        return {"notes": list(footage.notes)}, {}

    def _estimate(self, job: Job) -> PoseEstimate:
        record = self.records.find(job.key, "poses")
        assert record is not None
        return _from_arrays(self.records.arrays(job.key, "poses"), record)


def _read_metric(folder: Path, clip: Clip, job: Job) -> Array:
    """Metric poses (F, 4, 4) of another estimator: KEY.npz of the clip, or of its video by frames."""
    for name in (clip.key, job.video_key):
        path = folder / f"{name}.npz"
        if path.exists():
            try:
                rows = check_poses(read_array(path, "c2w"), name=path.name)
            except ValueError as error:
                raise ClipError("no scale", str(error)) from None
            if len(rows) == clip.frames:
                return rows
            if len(rows) > clip.chosen.max():
                return rows[clip.chosen]
            raise ClipError("no scale", f"got {len(rows)} poses in {path.name} for {clip.frames} frames")
    raise ClipError("no scale", f"got no metric poses for {clip.key}; wanted {clip.key}.npz with c2w")


def _to_arrays(estimate: PoseEstimate) -> Arrays:
    return {
        "c2w": estimate.c2w,
        "intrinsics_px": estimate.intrinsics_px,
        "point_frame": estimate.points.frame,
        "point_xy_px": estimate.points.xy_px,
        "point_depth": estimate.points.depth,
        "residual_px": estimate.residual_px,
        "rot_sigma_deg": estimate.rot_sigma_deg,
        "trans_sigma": estimate.trans_sigma,
    }


def _from_arrays(arrays: Arrays, record: Record) -> PoseEstimate:
    return PoseEstimate(
        arrays["c2w"],
        arrays["intrinsics_px"],
        record.values["metric"],
        Points(arrays["point_frame"], arrays["point_xy_px"], arrays["point_depth"]),
        arrays["residual_px"],
        arrays["rot_sigma_deg"],
        arrays["trans_sigma"],
        tuple(record.values["models"]),
        record.values["backend"],
        tuple(record.values["notes"]),
    )


def _median(values: Array) -> float | None:
    known = values[np.isfinite(values)]
    return round(float(np.median(known)), 4) if len(known) else None


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system knows no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        target.unlink()
    try:
        os.link(source, target)
    except OSError:
        write_whole(target, lambda part: shutil.copyfile(source, part))


def _save(part: Path, fields: dict[str, Any]) -> None:
    with part.open("wb") as file:  # by a name it would append .npz
        np.savez(file, **fields)
