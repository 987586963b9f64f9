"""The published latent layout (SanaWMZipLatentDataset; train/README.md, "The published latent layout"):
reader and writer.

    DATA/NAME.zip                      KEY.json per clip: prompt, width, height
    DATA/NAME_camera.npz               ids; ranges (start, count) in pose (sum F, 4, 4), intrinsics (sum F, 4)
    DATA/NAME_metric_scale_stats.json  KEY -> factor that makes translations metric; 1 where there is none
    DATA/NAME_SUFFIX.json or .jsonl    KEY -> score of a filter, or caption
    vae_cache/.../NAME.zip             KEY.npz per clip with z (C, T, H, W)

Poses are camera-to-world in OpenCV axes, intrinsics fx, fy, cx, cy in pixels of width x height. Latents are
taken as they are. Not documented, and assumed here: the files of a NAME lie side by side, and vae_cache lies
below the folder that is given.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from sana_wm_env.camera import Array, relative_to_first
from sana_wm_env.model.camera_inputs import STRIDE

from .filters import Ranges, bad_camera, rejected
from .latents import LatentClip

BROKEN_BELOW = 10 * 2**20
"""Bytes of a zip entry below which the published loader takes a latent for broken; a minute in 720p has 54
MB.
"""
SCALE_FIELDS = ("score", "median", "value")
CAPTION_FIELDS = ("caption", "prompt", "text")


@dataclass(frozen=True)
class PublishedClip:
    """One clip of the layout: z (C, T, h, w); c2w (F, 4, 4) with F = 8 (T - 1) + 1; intrinsics_px (F, 4) of
    an image of `size`.
    """

    key: str
    z: NDArray[Any]
    c2w: Array
    intrinsics_px: Array
    size: tuple[int, int]
    prompt: str


class PublishedLatents:
    """The clips of a published data set that pass, read one at a time. `dropped` counts the others by reason,
    once all were asked for.

    Args:
        root: folder that holds the zip files and, somewhere below it, vae_cache.
        size: (height, width) that intrinsics are converted to.
        ranges: filters, see `filter_ranges`; any at all also checks the cameras.
        broken_below: bytes below which a latent counts as broken; small worlds need 0.
        captions: suffix of the caption files that replace the prompts; "" for the prompts. A clip that they
            lack keeps its prompt.

    Raises:
        FileNotFoundError: there is no such layout below the folder.
    """

    def __init__(
        self,
        root: Path,
        size: tuple[int, int],
        ranges: Ranges | None = None,
        broken_below: int = BROKEN_BELOW,
        captions: str = "",
    ):
        self.size, self.ranges, self.broken_below, self.captions = size, ranges or {}, broken_below, captions
        self.dropped: Counter[str] = Counter()
        self.archives = published_archives(root)

    def clips(self) -> Iterable[LatentClip]:
        """The clips, relative to their first frame, in metres, with intrinsics in pixels of `size`, float16
        latents.
        """
        self.dropped.clear()
        for data, cache in self.archives:
            source = _Source.open(data, self.ranges, self.captions)
            with ZipFile(data) as prompts, ZipFile(cache) as latents:
                sizes = {entry.filename: entry.file_size for entry in latents.infolist()}
                for name in sorted(entry for entry in prompts.namelist() if entry.endswith(".json")):
                    key = name.removesuffix(".json")
                    entry = json.loads(prompts.read(name))
                    clip = self._clip(key, entry, source, latents, sizes.get(f"{key}.npz"))
                    if isinstance(clip, str):
                        self.dropped[clip] += 1
                    else:
                        yield clip

    def _clip(
        self, key: str, entry: dict[str, Any], source: "_Source", latents: ZipFile, stored: int | None
    ) -> "LatentClip | str":
        """The clip, or why it is dropped."""
        if stored is None:
            return "no latents"
        if stored < self.broken_below:
            return f"latents below {self.broken_below / 2**20:g} MiB (--min-mib)"
        if reason := rejected(
            {suffix: scores.get(key) for suffix, scores in source.scores.items()}, self.ranges
        ):
            return reason
        try:
            z = np.load(io.BytesIO(latents.read(f"{key}.npz")))["z"]
        except (BadZipFile, KeyError, ValueError, OSError):
            return "latents that cannot be read"
        size, frames = (int(entry["height"]), int(entry["width"])), STRIDE * (z.shape[1] - 1) + 1
        cameras = source.cameras(key, frames, size)
        if isinstance(cameras, str):
            return cameras
        c2w, intrinsics = cameras
        if self.ranges and (reason := bad_camera(tuple(intrinsics[0]), size)):
            return reason
        down, across = self.size[0] / size[0], self.size[1] / size[1]
        moving = torch.from_numpy(z).half().transpose(0, 1).contiguous()  # (C, T, h, w) -> (T, C, h, w)
        prompt = source.captions.get(key) or entry.get("prompt", "")
        return LatentClip(
            moving,
            moving[:1],
            torch.from_numpy(c2w),
            torch.from_numpy(intrinsics * [across, down, across, down]).float(),
            prompt,
        )


@dataclass(frozen=True)
class _Source:
    """The files beside one zip: cameras by key, metric factors, scores by filter, captions."""

    places: dict[str, tuple[int, int]]
    pose: Array
    intrinsics: Array
    scales: dict[str, float]
    scores: dict[str, dict[str, float]]
    captions: dict[str, str]

    @classmethod
    def open(cls, data: Path, ranges: Ranges, captions: str) -> "_Source":
        base = data.with_suffix("")
        places, pose, intrinsics = {}, np.zeros((0, 4, 4)), np.zeros((0, 4))
        if (path := Path(f"{base}_camera.npz")).exists():
            with np.load(path) as file:
                places = {
                    str(key): (int(start), int(count))
                    for key, (start, count) in zip(file["ids"], file["ranges"], strict=True)
                }
                pose, intrinsics = file["pose"].astype(np.float64), file["intrinsics"].astype(np.float64)
        scales = {
            key: float(value) for key, value in _keyed(f"{base}_metric_scale_stats", SCALE_FIELDS).items()
        }
        scores = {
            name: {key: float(v) for key, v in _keyed(f"{base}_{name}", SCALE_FIELDS).items()}
            for name in ranges
        }
        texts = (
            {key: str(v) for key, v in _keyed(f"{base}_{captions.lstrip('_')}", CAPTION_FIELDS).items()}
            if captions
            else {}
        )
        return cls(places, pose, intrinsics, scales, scores, texts)

    def cameras(self, key: str, frames: int, size: tuple[int, int]) -> "tuple[Array, Array] | str":
        """Metric poses relative to frame 0 and intrinsics, `frames` each, or what is wrong. A clip without a
        camera stands still.
        """
        if key not in self.places:
            height, width = size
            return np.tile(np.eye(4), (frames, 1, 1)), np.tile(
                [float(width), height, width / 2, height / 2], (frames, 1)
            )
        start, count = self.places[key]
        if count < frames or start + count > len(self.pose):
            return "fewer poses than frames"
        try:
            c2w = relative_to_first(self.pose[start : start + frames])
        except ValueError:
            return "poses that are no rigid motions"
        intrinsics = self.intrinsics[start : start + frames]
        if not np.isfinite(intrinsics).all():
            return "intrinsics that are not finite"
        c2w[:, :3, 3] *= self.scales.get(key, 1.0)
        return c2w, intrinsics


def published_archives(root: Path) -> list[tuple[Path, Path]]:
    """Pairs every zip of prompts with the zip of latents of the same name. FileNotFoundError where one is
    missing.
    """
    caches = {
        path.name: path
        for path in sorted(Path(root).rglob("*.zip"))
        if "vae_cache" in path.relative_to(root).parts
    }
    data = [
        path for path in sorted(Path(root).rglob("*.zip")) if "vae_cache" not in path.relative_to(root).parts
    ]
    if not data or not caches:
        raise FileNotFoundError(
            f"got '{root}'; wanted the published layout: NAME.zip with prompts and "
            "vae_cache/NAME.zip with latents"
        )
    if missing := [path.name for path in data if path.name not in caches]:
        raise FileNotFoundError(
            f"got '{root}' without latents for {', '.join(missing)}; wanted files of the same "
            "names below vae_cache"
        )
    return [(path, caches[path.name]) for path in data]


def write_published(root: Path, name: str, clips: Iterable[PublishedClip]) -> int:
    """Writes root/data/NAME.zip, its cameras and root/vae_cache/NAME.zip; returns the number of clips. Poses
    have to be metric.
    """
    data, cache = root / "data", root / "vae_cache"
    data.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    ids, counts, poses, intrinsics = [], [], [], []
    with (
        ZipFile(data / f"{name}.zip", "w", ZIP_STORED) as prompts,
        ZipFile(cache / f"{name}.zip", "w", ZIP_STORED) as latents,
    ):
        for clip in clips:
            height, width = clip.size
            prompts.writestr(
                f"{clip.key}.json", json.dumps({"prompt": clip.prompt, "width": width, "height": height})
            )
            file = io.BytesIO()
            np.savez(file, z=clip.z)
            latents.writestr(f"{clip.key}.npz", file.getvalue())
            ids.append(clip.key)
            counts.append(len(clip.c2w))
            poses.append(clip.c2w)
            intrinsics.append(clip.intrinsics_px)
    starts = np.cumsum([0, *counts])[:-1]
    ranges = np.stack([starts, counts], 1).astype(np.int64)
    np.savez(
        data / f"{name}_camera.npz",
        ids=np.array(ids),
        ranges=ranges,
        pose=np.concatenate(poses),
        intrinsics=np.concatenate(intrinsics),
    )
    (data / f"{name}_metric_scale_stats.json").write_text(json.dumps(dict.fromkeys(ids, 1.0)))
    return len(ids)


def _keyed(base: str, fields: tuple[str, ...]) -> dict[str, Any]:
    """KEY -> value of BASE.json or BASE.jsonl: an object of values, or of objects with one of `fields`; empty
    if there is no such file.
    """
    if (path := Path(f"{base}.json")).exists():
        pairs = json.loads(path.read_text()).items()
    elif (path := Path(f"{base}.jsonl")).exists():
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        pairs = [
            (row.get("key", row.get("id")), row) if "key" in row or "id" in row else next(iter(row.items()))
            for row in rows
        ]
    else:
        return {}
    values = {}
    for key, value in pairs:
        if isinstance(value, dict):
            value = next((value[name] for name in fields if name in value), None)
        if value is not None:
            values[key] = value
    return values
