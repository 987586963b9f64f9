"""How close the imagined world is to the truth: frames of held-out rooms against the exact render along the same path.

Letters: N episodes, B episodes of a batch, K chunks, F frames of a chunk (24), H, W pixels.

Every figure stands between controls, so that a broken measure or a lazy model shows:

| condition     | frames                                                             | says                                  |
|---------------|--------------------------------------------------------------------|---------------------------------------|
| `world`       | imagined from the true first frame along the true actions          | the result                            |
| `autoencoder` | the true video, encoded and decoded                                | upper bound: all that latents can keep |
| `still`       | the first frame, repeated                                          | what doing nothing is worth           |
| `shuffled`    | imagined along the actions of the next episode                     | whether actions matter at all         |
| `reversed`    | imagined along the inverse actions (each chunk's twist negated)    | whether their direction matters       |
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sana_wm_env.model.state import tensors_of
from sana_wm_env.model.world import WorldModel

from ..rooms import HELD_OUT, default_intrinsics
from ..rooms.paths import CHUNK_FRAMES, sample_starts, sample_twists, twist_paths
from ..rooms.render import Render, render
from ..rooms.scene import Scenes, sample_scenes
from . import metrics

FIGURES = ("psnr_db", "ssim", "psnr_visible_db", "ssim_visible", "histogram_overlap")
DRIVEN = ("world", "shuffled", "reversed")
CONDITIONS = ("autoencoder", "world", "still", "shuffled", "reversed")
SHEET_ROWS, SHEET_CHUNKS = 8, 5


@dataclass(frozen=True)
class FidelityConfig:
    """What is measured, and where the report goes."""

    world: str = "rooms"
    """name of a bundled world, or the folder of a trained one"""
    episodes: int = 64
    """held-out rooms, one episode each; at least 2"""
    chunks: int = 4
    """chunks of 24 frames per episode"""
    seed: int = 1000
    """episode i takes the held-out room number seed + i; training never sees held-out rooms"""
    json: Path = Path("fidelity.json")
    """the report"""
    out: Path | None = None
    """folder of the contact sheet (default: beside the report, of the same name, as .png)"""
    batch: int = 8
    """episodes that are imagined at the same time"""
    device: str = "cpu"


@dataclass(frozen=True)
class Plan:
    """All that is decided before anything is imagined.

    Attributes:
        seeds: N room seeds.
        scenes: N rooms.
        path: (N, 1 + 24K, 4, 4) camera-to-world in each room's frame.
        drives: for each of `DRIVEN`, or for those of interest, the poses that the model is given, (N, K, 24, 4, 4) relative to the first
            frame.
    """

    seeds: list[int]
    scenes: Scenes
    path: Tensor
    drives: dict[str, Tensor]

    def __getitem__(self, index: slice) -> Plan:
        return Plan(self.seeds[index], self.scenes[index], self.path[index], {name: drive[index] for name, drive in self.drives.items()})


@dataclass(frozen=True)
class Measured:
    """What came out, per episode and chunk.

    Attributes:
        figures: (condition, figure of `FIGURES`) -> (N, K) means over the frames of a chunk; NaN where nothing was measured.
        contrast: "world" and "truth" -> (N, K) standard deviation of a frame's grey values, mean over frames.
        visible_share: (N, K) share of true pixels that the first frame shows too.
        tiles: rows of pictures for the contact sheet.
        finite: no NaN or infinity in any carried state.
    """

    figures: dict[tuple[str, str], np.ndarray]
    contrast: dict[str, np.ndarray]
    visible_share: np.ndarray
    tiles: list[list[np.ndarray]]
    finite: bool


def plan(episodes: int, chunks: int, seed: int, device: str | torch.device = "cpu") -> Plan:
    """Draws `episodes` held-out rooms with a path of `chunks` chunks through each."""
    if episodes < 2 or chunks < 1 or seed < 0:
        raise ValueError(
            f"got episodes={episodes}, chunks={chunks}, seed={seed}; wanted at least 2 episodes (one drives the other in the control "
            "'shuffled'), at least 1 chunk and a seed of 0 or more"
        )
    seeds = [HELD_OUT + seed + i for i in range(episodes)]
    scenes = sample_scenes(seeds, device)
    starts = sample_starts(scenes, seeds)
    twists = sample_twists(scenes, starts, seeds, chunks)
    origin = torch.eye(4, dtype=torch.float64, device=starts.device).expand(episodes, 4, 4)
    driven = {"world": twists, "shuffled": twists.roll(-1, 0), "reversed": -twists}
    drives = {name: twist_paths(origin, t)[:, 1:].unflatten(1, (chunks, -1)) for name, t in driven.items()}
    return Plan(seeds, scenes, twist_paths(starts, twists), drives)


def reconstruct(world: WorldModel, video: Tensor) -> Tensor:
    """Encodes and decodes a true video, uint8 (B, 1 + 8n, H, W, 3), one episode at a time to save memory. Same shape."""

    def one(frames: Tensor) -> Tensor:  # (1, F, H, W, 3)
        latents = world.autoencoder.encode(frames.movedim(-1, 1).float() / 127.5 - 1)
        decoded, _ = world.autoencoder.decode(latents)
        return ((decoded.movedim(1, -1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    return torch.cat([one(frames[None]) for frames in video])


@torch.inference_mode()
def imagine(world: WorldModel, batch: Plan) -> Iterator[tuple[dict[str, Tensor], Render, Tensor, bool]]:
    """Plays a batch of episodes chunk by chunk.

    The true video of the batch is held in memory, imagined frames one chunk at a time.

    Yields:
        frames of each of `CONDITIONS` that there is a drive for, uint8 (B, F, H, W, 3); the truth of the chunk; bool (B, F, H, W) visible
        in the first frame; whether all carried states are finite.
    """
    size = world.config.image_size
    intrinsics = torch.tensor(default_intrinsics(size)).expand(len(batch.seeds), 4)
    truth = render(batch.scenes, batch.path, intrinsics, size)
    rebuilt = reconstruct(world, truth.rgb)
    first = truth.rgb[:, 0]
    generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
    states = dict.fromkeys(batch.drives, world.start(first, intrinsics, batch.scenes.captions, generators))
    for k in range(batch.drives["world"].shape[1]):
        now = slice(1 + CHUNK_FRAMES * k, 1 + CHUNK_FRAMES * (k + 1))
        frames = {"autoencoder": rebuilt[:, now], "still": first[:, None].expand(-1, CHUNK_FRAMES, -1, -1, -1)}
        for name, drive in batch.drives.items():
            frames[name], states[name] = world.step(states[name], drive[:, k])
        visible = metrics.visible_in_first(truth.depth_m[:, now], batch.path[:, now], truth.depth_m[:, 0], batch.path[:, 0], intrinsics)
        finite = all(bool(t.isfinite().all()) for state in states.values() for t in tensors_of(state))
        yield frames, Render(truth.rgb[:, now], truth.depth_m[:, now]), visible, finite


def compare(frames: Tensor, truth: Tensor, visible: Tensor, counted: Tensor) -> dict[str, np.ndarray]:
    """The figures of one condition and chunk: per-frame values, averaged over the counted frames (B, F) of each episode -> (B,)."""
    similarity = metrics.ssim_map(frames, truth)  # once for both masks: it is what takes the time
    values = {
        "psnr_db": metrics.psnr(frames, truth),
        "ssim": metrics.masked_mean(similarity),
        "psnr_visible_db": metrics.psnr(frames, truth, visible),
        "ssim_visible": metrics.masked_mean(similarity, visible[..., 5:-5, 5:-5]),
        "histogram_overlap": metrics.histogram_overlap(frames, truth),
    }
    return {name: value.masked_fill(~counted, math.nan).nanmean(1).cpu().numpy() for name, value in values.items()}


def measure(world: WorldModel, episodes: Plan, batch: int = 8) -> Measured:
    """Imagines all episodes and compares them with the truth.

    Frames whose truth equals the first frame in every pixel (the camera has not moved yet) are left out of the fidelity figures:
    `still` would be exact there, and its PSNR a matter of definition.
    """
    n, chunks = len(episodes.seeds), episodes.drives["world"].shape[1]
    figures = {(condition, figure): np.full((n, chunks), np.nan) for condition in CONDITIONS for figure in FIGURES}
    contrast = {name: np.full((n, chunks), np.nan) for name in ("world", "truth")}
    visible_share, finite = np.full((n, chunks), np.nan), True
    tiles: list[list[np.ndarray]] = [[] for _ in range(min(n, SHEET_ROWS))]
    shown = spread(chunks, SHEET_CHUNKS)
    with tqdm(total=n * chunks, unit="chunk", desc="fidelity") as bar:
        for start in range(0, n, batch):
            rows = slice(start, min(start + batch, n))
            for k, (frames, truth, visible, good) in enumerate(imagine(world, episodes[rows])):
                moved = (frames["still"] != truth.rgb).flatten(2).any(-1)  # (B, F)
                for condition, video in frames.items():
                    for figure, value in compare(video, truth.rgb, visible, moved).items():
                        figures[condition, figure][rows, k] = value
                for name, video in (("world", frames["world"]), ("truth", truth.rgb)):
                    contrast[name][rows, k] = metrics.contrast(video).mean(1).cpu()
                visible_share[rows, k] = visible.double().mean((1, 2, 3)).cpu()
                finite = finite and good
                if k in shown:
                    for i, row in enumerate(tiles[rows]):
                        row += [video[i, -1].cpu().numpy() for video in (truth.rgb, frames["world"], frames["still"])]
                bar.update(rows.stop - rows.start)
    return Measured(figures, contrast, visible_share, tiles, finite)


def spread(chunks: int, most: int) -> list[int]:
    """At most `most` chunk indices, evenly spread from the first to the last."""
    return sorted({round(i) for i in np.linspace(0, chunks - 1, min(chunks, most))})


def share_closed(world: float | None, still: float | None, autoencoder: float | None) -> float | None:
    """Which share of the distance in dB from `still` (0) to `autoencoder` (1) the world closes; None where there is no such distance."""
    if world is None or still is None or autoencoder is None or autoencoder <= still:
        return None
    return (world - still) / (autoencoder - still)


def weights_digest(world: WorldModel) -> str:
    """SHA-256 over names and values of all weights, so that a report names the very network it measured."""
    digest = hashlib.sha256()
    for part in (world.autoencoder, world.transformer):
        for name, value in sorted(part.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def report(measured: Measured) -> dict:
    """The figures per chunk as plain numbers: means over episodes with standard errors and 95 % intervals."""

    def per_chunk(values: np.ndarray) -> list[dict]:
        return [metrics.estimate(column).to_dict() for column in values.T]

    figures = {f: {c: per_chunk(measured.figures[c, f]) for c in CONDITIONS} for f in FIGURES}
    share = {
        f: [
            share_closed(*(figures[f][c][k]["mean"] for c in ("world", "still", "autoencoder")))
            for k in range(measured.visible_share.shape[1])
        ]
        for f in ("psnr_db", "psnr_visible_db")
    }
    # Paired: the difference within each episode, whose spread is far smaller than that between rooms.
    lead = {c: per_chunk(measured.figures["world", "psnr_db"] - measured.figures[c, "psnr_db"]) for c in CONDITIONS if c != "world"}
    contrast: dict[str, list] = {name: per_chunk(values) for name, values in measured.contrast.items()}
    for name, values in measured.contrast.items():
        contrast[f"{name}_ratio_to_chunk_1"] = [float(x / values[:, 0].mean()) if values[:, 0].any() else None for x in values.mean(0)]
    return {
        "figures": figures,
        "share_of_distance_closed": share,
        "world_minus_control_psnr_db": lead,
        "frame_standard_deviation": contrast,
        "visible_share": per_chunk(measured.visible_share),
        "finite": measured.finite,
    }


def table(result: dict, chunks: int) -> str:
    """The report as text: one column per chunk (eight at most), mean and half width of the 95 % interval."""
    shown = spread(chunks, 8)
    lines = [" " * 26 + "".join(f"{'chunk ' + str(k + 1):>14}" for k in shown)]

    def row(label: str, cells: list) -> None:
        lines.append(f"  {label:<24}" + "".join(f"{cell:>14}" for cell in (_cell(cells[k]) for k in shown)))

    for figure, conditions in result["figures"].items():
        lines.append(figure)
        for condition, cells in conditions.items():
            row(condition, cells)
    for title in ("share_of_distance_closed", "world_minus_control_psnr_db", "frame_standard_deviation"):
        lines.append(title)
        for label, cells in result[title].items():
            row(label, cells)
    row("visible_share", result["visible_share"])
    return "\n".join(lines)


def _cell(value: dict | float | None) -> str:
    if isinstance(value, dict):
        mean, high = value["mean"], value["high"]
        return "-" if mean is None else f"{mean:.2f}" if high is None else f"{mean:.2f} ±{high - mean:.2f}"
    return "-" if value is None else f"{value:.2f}"


def run(config: FidelityConfig) -> int:
    """Measures a world, prints the table, writes report, page, curves and contact sheet. Returns 1 if a state was not finite, else 0.

    Two runs on one machine write equal bytes: the report holds no times.
    """
    from . import report as reports
    from .contact_sheet import contact_sheet

    if config.batch < 1:
        raise ValueError(f"got batch={config.batch}; wanted at least 1")
    episodes = plan(config.episodes, config.chunks, config.seed, config.device)
    world = WorldModel.load(config.world, device=config.device)
    measured = measure(world, episodes, config.batch)
    result = report(measured)
    header = {
        "config": {k: v for k, v in asdict(config).items() if k not in ("json", "out")},
        "held_out_seeds": [episodes.seeds[0], episodes.seeds[-1]],
    } | reports.provenance(world)
    config.json.parent.mkdir(parents=True, exist_ok=True)
    config.json.write_text(json.dumps(header | result, indent=1, allow_nan=False) + "\n")
    columns = [f"{k + 1}: {name}" for k in spread(config.chunks, SHEET_CHUNKS) for name in ("truth", "world", "still")]
    sheet = (config.out or config.json.parent) / f"{config.json.stem}.png"
    sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(measured.tiles, [f"room {config.seed + i}" for i in range(len(measured.tiles))], columns).save(sheet)
    curves, page = (config.json.with_name(config.json.stem + end) for end in ("-curves.png", ".md"))
    titles = {"psnr_db": "PSNR to the truth, dB", "ssim": "SSIM to the truth"}
    reports.plot_over_time({title: {c: measured.figures[c, f] for c in CONDITIONS} for f, title in titles.items()}, "chunk", curves)
    text = table(result, config.chunks)
    reports.write_page(page, "Fidelity", header, [("Figures", f"```\n{text}\n```")], [curves, sheet])
    print(text)
    print(f"wrote {config.json}, {page} and {sheet}")
    if not measured.finite:
        print("NaN or infinity in the carried state: the figures are void")
    return 0 if measured.finite else 1
