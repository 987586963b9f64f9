"""The one-minute benchmark: a set of scenes, a minute of video each, poses, revisits, drift and throughput in
one table.

Scenes come from the published dataset, or are rooms in its layout (`benchmark_scenes`), where the exact video
stands beside the imagined one. Each scene has files of its own, so a run that was killed resumes with the
missing scenes and ends with the same report (to the last bit with `--batch 1`; in other batches matrix
products round differently, which changes frames by a grey level).

Letters: B scenes of a batch, K chunks, F = 1 + 24K frames, E = 1 + 3K frames that the estimator sees.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sana_wm_env.model.storage.worlds import label_world, resolve_world
from sana_wm_env.model.world import WorldModel

from ..arrays import write_array
from ..camera import FPS, Array
from ..files import write_json
from ..first_frame import fit_image
from ..outputs import Output, check_outputs
from ..progress import Progress, progress
from ..rooms.paths import CHUNK_FRAMES
from ..rooms.render import render
from ..rooms.scene import sample_scenes
from ..settings import check_settings
from ..video import VideoWriter
from . import metrics, report
from .benchmark_scenes import FRAMES, SPLITS, BenchmarkScene, read_scenes, scene_names, write_rooms
from .fidelity import SHEET_CHUNKS, spread_evenly
from .poses import ALIGNMENTS, FIGURES, compare_paths
from .revisit import drift, revisit_consistency, revisit_pairs
from .tracking import GAP, track


@dataclass(frozen=True)
class BenchmarkConfig:
    """Scenes to run, and the folder of the results."""

    world: str = "rooms"
    """name of a bundled world, or the folder of a trained one"""
    scenes: int = 80
    """the first so many scenes of each split"""
    split: Literal["simple", "hard", "both"] = "both"
    out: Path = Path("runs/benchmark")
    """folder of the results; the same command resumes"""
    scene_folder: Path | None = None
    """the published dataset, downloaded (default: rooms, made in OUT/scenes)"""
    seed: int = 3000
    """rooms: scene i is the held-out room number seed + i; all worlds: scene i is imagined with noise of seed
    + i
    """
    chunks: int = 40
    """chunks of 24 frames to imagine of each minute; 40 for the benchmark, fewer for a trial"""
    batch: int = 4
    """scenes that are imagined at the same time"""
    videos: bool = True
    """keep the imagined videos, with their poses beside them"""
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        most = (FRAMES - 1) // CHUNK_FRAMES
        check_settings(self, scenes="[1, inf)", seed="[0, inf)", chunks=f"[1, {most}]", batch="[1, inf)")


def play_scenes(
    world: WorldModel, scenes: list[BenchmarkScene], seeds: list[int], chunks: int, bar: Progress
) -> tuple[Tensor, Array, list[float]]:
    """Imagines a batch of scenes.

    Returns:
        frames uint8 (B, F, H, W, 3) with the first one in front, intrinsics (B, 4) in their pixels, and the
        seconds of each step.
    """
    size = world.config.image_size
    fitted = [fit_image(scene.image, scene.intrinsics_px, size) for scene in scenes]
    images, intrinsics = (np.stack(parts) for parts in zip(*fitted, strict=True))
    first = torch.from_numpy(images).to(world.device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    state = world.start(
        first, torch.from_numpy(intrinsics).to(world.device), [scene.prompt for scene in scenes], generators
    )
    path = torch.from_numpy(np.stack([scene.c2w for scene in scenes]))
    video, seconds = [first[:, None].cpu()], []
    began = time.perf_counter()
    for chunk in world.play(state, path[:, 1 : 1 + CHUNK_FRAMES * chunks]):
        video.append(chunk.frames.cpu())  # waits for the device, so that the time is that of the step
        seconds.append(time.perf_counter() - began)
        bar.update(len(scenes))
        began = time.perf_counter()
    return torch.cat(video, 1), intrinsics, seconds


def read_back(
    scenes: list[BenchmarkScene], video: Tensor, intrinsics_px: Array
) -> tuple[dict[str, Tensor], dict[str, Array]]:
    """The imagined videos (B, F, H, W, 3) and, of rooms, the exact ones, each with the paths (B, E, 4, 4)
    estimated from them.

    Of other scenes no path is estimated: the depth that `tracking` needs is not known.
    """
    rooms = [s.room_seed for s in scenes if s.room_seed is not None]
    starts = [s.start for s in scenes if s.start is not None]
    videos = {"world": video}
    if len(rooms) < len(scenes):
        return videos, {}
    known = sample_scenes(rooms)
    first = torch.from_numpy(np.stack(starts))
    lens = torch.from_numpy(intrinsics_px)
    commanded = first[:, None] @ torch.from_numpy(np.stack([scene.c2w[: video.shape[1]] for scene in scenes]))
    videos["truth"] = render(known, commanded, lens.float(), (video.shape[2], video.shape[3])).rgb
    return videos, {name: track(frames[:, ::GAP], known, first, lens) for name, frames in videos.items()}


def examine_video(video: Tensor, c2w: Array, estimated: Array | None) -> dict[str, Any]:
    """Measures one video (F, H, W, 3) by the commanded path (F, 4, 4) and the estimated one (E, 4, 4)."""
    result: dict[str, Any] = {
        "revisit": revisit_consistency(video, revisit_pairs(c2w)),
        "drift": drift(video),
    }
    if estimated is not None:
        errors = {alignment: compare_paths(estimated, c2w[::GAP], alignment) for alignment in ALIGNMENTS}
        result["poses"] = {
            name: {figure: float(getattr(e, figure)[1:].mean()) for figure in FIGURES}
            for name, e in errors.items()
        }
        ends = slice(CHUNK_FRAMES // GAP, None, CHUNK_FRAMES // GAP)  # the last frame of each chunk
        result["per_chunk"] = {figure: getattr(errors["none"], figure)[ends].tolist() for figure in FIGURES}
    return result


def fidelity_per_chunk(video: Tensor, truth: Tensor) -> dict[str, list[float]]:
    """PSNR and SSIM of two videos (F, H, W, 3) for each chunk, the first frame left out."""
    pairs = [
        (video[i : i + CHUNK_FRAMES], truth[i : i + CHUNK_FRAMES]) for i in range(1, len(video), CHUNK_FRAMES)
    ]
    return {
        name: [float(f(a, b).mean()) for a, b in pairs]
        for name, f in (("psnr_db", metrics.psnr), ("ssim", metrics.ssim))
    }


def measure_scene(
    scene: BenchmarkScene, videos: dict[str, Tensor], paths: dict[str, Array]
) -> dict[str, Any]:
    """All figures of one scene from its videos and paths; of a room also those of the exact video, which are
    the bound.
    """
    c2w = scene.c2w[: len(videos["world"])]
    result = {name: examine_video(video, c2w, paths.get(name)) for name, video in videos.items()}
    if "truth" in videos:
        result["world"]["per_chunk"] |= fidelity_per_chunk(videos["world"], videos["truth"])
    return {"scene": scene.name, "split": scene.split, "pairs": len(revisit_pairs(c2w)), **result}


def tiles(videos: dict[str, Tensor]) -> np.ndarray:
    """Frames for the contact sheet, (T, H, W, 3): for each chunk shown the truth, where it is known, and the
    world.
    """
    shown = [
        CHUNK_FRAMES * (k + 1) for k in spread_evenly(len(videos["world"]) // CHUNK_FRAMES, SHEET_CHUNKS)
    ]
    return torch.stack(
        [videos[name][i] for i in shown for name in ("truth", "world") if name in videos]
    ).numpy()


def _remaining(config: BenchmarkConfig, folder: Path) -> Iterator[list[tuple[int, BenchmarkScene]]]:
    """Batches of scenes without a result, with their place in the list, split by split."""
    for split in _splits(config):
        batch: list[tuple[int, BenchmarkScene]] = []
        for i, scene in enumerate(read_scenes(folder, split, config.scenes)):
            if not (config.out / split / f"{scene.name}.json").exists():
                batch.append((i, scene))
            if len(batch) == config.batch:
                yield batch
                batch = []
        if batch:
            yield batch


def _splits(config: BenchmarkConfig) -> list[str]:
    return list(SPLITS) if config.split == "both" else [config.split]


def _write_scene(
    config: BenchmarkConfig,
    scene: BenchmarkScene,
    videos: dict[str, Tensor],
    sidecar: dict[str, Any],
    result: dict[str, Any],
) -> None:
    """Writes a scene's files, the figures last: a scene that has them is done."""
    base = config.out / scene.split / scene.name
    base.parent.mkdir(parents=True, exist_ok=True)
    if config.videos:
        with VideoWriter(base.with_suffix(".mp4"), FPS, min_height=0) as writer:
            writer.write(videos["world"].numpy())
            writer.close(sidecar)
    write_array(base.with_suffix(".frames.npy"), tiles(videos))
    write_json(base.with_suffix(".json"), result)


def run(config: BenchmarkConfig) -> int:
    """Runs what is missing, then writes benchmark.json (without times, so that equal runs write it equally),
    benchmark.md and pictures.
    """
    from .benchmark_report import write_results

    check_outputs(Output("--out", config.out, folder=True))
    world = WorldModel.load(config.world, device=config.device)
    size = (world.config.image_size[0], world.config.image_size[1])
    header = _header(config, world)
    _check_same_run(config.out, header)
    folder = config.scene_folder or config.out / "scenes"
    if config.scene_folder is None:
        write_rooms(folder, config.scenes, config.seed, size)
    names = [(split, scene) for split in _splits(config) for scene in scene_names(folder)[: config.scenes]]
    done = sum((config.out / split / f"{name}.json").exists() for split, name in names)
    with progress(
        total=len(names) * config.chunks, initial=done * config.chunks, unit="chunk", desc="benchmark"
    ) as bar:
        for batch in _remaining(config, folder):
            began = time.perf_counter()
            scenes = [scene for _, scene in batch]
            seeds = [config.seed + i for i, _ in batch]
            video, intrinsics, steps = play_scenes(world, scenes, seeds, config.chunks, bar)
            seconds = (time.perf_counter() - began) / len(batch)
            videos, paths = read_back(scenes, video, intrinsics)
            for row, (scene, seed) in enumerate(zip(scenes, seeds, strict=True)):
                scene_videos = {name: frames[row] for name, frames in videos.items()}
                estimated = {name: path[row] for name, path in paths.items()}
                result = measure_scene(scene, scene_videos, estimated)
                result["times"] = {
                    "seconds": seconds,
                    "step_seconds": [s / len(batch) for s in steps],
                    "batch": len(batch),
                }
                sidecar = {
                    "c2w": scene.c2w[: video.shape[1]],
                    "intrinsics_px": intrinsics[row],
                    "image_size": size,
                    "seed": seed,
                }
                sidecar |= {
                    "world": label_world(resolve_world(config.world), world.config),
                    **{f"estimated_c2w_{name}": path for name, path in estimated.items()},
                }
                _write_scene(config, scene, scene_videos, sidecar, result)
    results = [json.loads((config.out / split / f"{name}.json").read_text()) for split, name in names]
    print(write_results(config.out, header, results))
    return 0


def _header(config: BenchmarkConfig, world: WorldModel) -> dict:
    settings = {k: v for k, v in asdict(config).items() if k not in ("out", "batch", "videos", "device")}
    settings["scene_folder"] = "rooms" if config.scene_folder is None else str(config.scene_folder)
    return {"config": settings} | report.provenance(world)


def _check_same_run(out: Path, header: dict) -> None:
    """Results of one folder come from one world and one way of running it; more scenes and the other split
    may be added.
    """
    path = out / "run.json"
    fixed = {
        "weights_sha256": header["weights_sha256"],
        **{k: header["config"][k] for k in ("seed", "chunks", "scene_folder")},
    }
    if path.exists() and (before := json.loads(path.read_text())) != fixed:
        changed = ", ".join(f"{k} {before.get(k)} -> {v}" for k, v in fixed.items() if before.get(k) != v)
        raise ValueError(
            f"got {out}, which holds results of another run ({changed}); give another --out, or the same "
            "settings to go on"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, fixed)
