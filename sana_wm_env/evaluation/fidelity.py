"""How close the imagined world is to the truth: frames of rooms, at home and held out, against the exact
render along the same path.

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

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sana_wm_env.model.base import as_frames, as_video
from sana_wm_env.model.tree import tensors_of
from sana_wm_env.model.world import WorldModel

from ..files import write_json
from ..outputs import Output, check_outputs, name_beside
from ..progress import progress
from ..rooms import default_intrinsics
from ..rooms.paths import CHUNK_FRAMES
from ..rooms.render import Render, render
from ..settings import check_settings
from . import metrics, report
from .episodes import (
    Episodes,
    Rooms,
    check_rooms,
    draw_episodes,
    label_rooms,
    open_sessions,
    spread_evenly,
)
from .revisit import sharpness as sharpness_of

FIGURES = ("psnr_db", "ssim", "psnr_visible_db", "ssim_visible", "histogram_overlap")
CONDITIONS = ("autoencoder", "world", "still", "shuffled", "reversed")
SHARPNESS = {"frame_standard_deviation": metrics.contrast, "edge_energy": sharpness_of}
SHEET_ROWS, SHEET_CHUNKS = 8, 5


@dataclass(frozen=True)
class FidelityConfig:
    """Episodes to measure, and the files of the report."""

    world: str = "rooms"
    """name of a bundled world, or the folder of a trained one"""
    refiner: str | None = None
    """auto for the world's second stage, or the folder of one (default: stage 1 alone)"""
    rooms: tuple[Rooms, ...] = ("home", "held-out")
    """home rooms, which the bundled world was trained in most, on paths it never saw; or rooms that training
    never saw; or both
    """
    episodes: int = 64
    """of each kind of rooms; at least 2"""
    chunks: int = 4
    """chunks of 24 frames per episode"""
    seed: int = 1000
    """episode i takes the room number seed + i"""
    json: Path = Path("fidelity.json")
    """the report"""
    out: Path | None = None
    """folder of the contact sheet (default: beside the report, of the same name, as .png)"""
    batch: int = 8
    """episodes that are imagined at the same time"""
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, episodes="[2, inf)", chunks="[1, inf)", seed="[0, inf)", batch="[1, inf)")


@dataclass(frozen=True)
class Measured:
    """Results per episode and chunk.

    Attributes:
        figures: (condition, figure of `FIGURES`) -> (N, K) means over the frames of a chunk; NaN where
            nothing was measured.
        sharpness: (figure of `SHARPNESS`, "world" or "truth") -> (N, K) means over frames: the standard
            deviation of a frame's grey values, and how much neighbouring ones differ.
        visible_share: (N, K) share of true pixels that the first frame shows too.
        tiles: rows of pictures for the contact sheet.
        finite: no NaN or infinity in any carried state.
    """

    figures: dict[tuple[str, str], np.ndarray]
    sharpness: dict[tuple[str, str], np.ndarray]
    visible_share: np.ndarray
    tiles: list[list[np.ndarray]]
    finite: bool


def reconstruct(world: WorldModel, video: Tensor) -> Tensor:
    """Encodes and decodes a true video, uint8 (B, 1 + 8n, H, W, 3), one episode at a time to save memory.
    Same shape.
    """

    def reconstruct_episode(frames: Tensor) -> Tensor:  # (1, F, H, W, 3)
        decoded, _ = world.autoencoder.decode(world.autoencoder.encode(as_video(frames)))
        return as_frames(decoded)

    return torch.cat([reconstruct_episode(frames[None]) for frames in video])


@torch.inference_mode()
def imagine(world: WorldModel, batch: Episodes) -> Iterator[tuple[dict[str, Tensor], Render, Tensor, bool]]:
    """Plays a batch of episodes chunk by chunk.

    The true video of the batch is held in memory, imagined frames one chunk at a time.

    Yields:
        frames of each of `CONDITIONS` that there is a drive for, uint8 (B, F, H, W, 3); the truth of the
        chunk; bool (B, F, H, W) visible in the first frame; whether all carried states are finite.
    """
    size = world.config.image_size
    lens = torch.tensor(default_intrinsics(size))
    intrinsics = lens.expand(len(batch.seeds), 4)
    truth = render(batch.scenes, batch.path, intrinsics, size)
    rebuilt = reconstruct(world, truth.rgb)
    first = truth.rgb[:, 0]
    state = open_sessions(world, batch, batch.path[:, 0], first, lens)
    played = {name: world.play(state, drive.flatten(1, 2)) for name, drive in batch.drives.items()}
    for k in range(batch.drives["world"].shape[1]):
        now = slice(1 + CHUNK_FRAMES * k, 1 + CHUNK_FRAMES * (k + 1))
        frames = {
            "autoencoder": rebuilt[:, now],
            "still": first[:, None].expand(-1, CHUNK_FRAMES, -1, -1, -1),
        }
        chunks = {name: next(chunks) for name, chunks in played.items()}
        frames |= {name: chunk.frames for name, chunk in chunks.items()}
        visible = metrics.visible_in_first(
            truth.depth_m[:, now], batch.path[:, now], truth.depth_m[:, 0], batch.path[:, 0], intrinsics
        )
        finite = all(
            bool(t.isfinite().all()) for chunk in chunks.values() for t in tensors_of(tuple(chunk.states))
        )
        yield frames, Render(truth.rgb[:, now], truth.depth_m[:, now]), visible, finite


def compare_frames(frames: Tensor, truth: Tensor, visible: Tensor, counted: Tensor) -> dict[str, np.ndarray]:
    """Computes the figures of one condition and chunk: per-frame values, averaged over the counted frames (B,
    F) of each episode -> (B,).
    """
    similarity = metrics.ssim_map(frames, truth)  # once for both masks: it is what takes the time
    values = {
        "psnr_db": metrics.psnr(frames, truth),
        "ssim": metrics.masked_mean(similarity),
        "psnr_visible_db": metrics.psnr(frames, truth, visible),
        "ssim_visible": metrics.masked_mean(similarity, visible[..., 5:-5, 5:-5]),
        "histogram_overlap": metrics.histogram_overlap(frames, truth),
    }
    return {
        name: value.masked_fill(~counted, math.nan).nanmean(1).cpu().numpy() for name, value in values.items()
    }


def measure_fidelity(world: WorldModel, episodes: Episodes, batch: int = 8, label: str = "") -> Measured:
    """Imagines all episodes and compares them with the truth.

    Frames whose truth equals the first frame in every pixel (the camera has not moved yet) are left out of
    the fidelity figures: `still` would be exact there, and its PSNR a matter of definition.
    """
    n, chunks = len(episodes.seeds), episodes.drives["world"].shape[1]
    figures = {
        (condition, figure): np.full((n, chunks), np.nan) for condition in CONDITIONS for figure in FIGURES
    }
    sharpness = {
        (figure, name): np.full((n, chunks), np.nan) for figure in SHARPNESS for name in ("world", "truth")
    }
    visible_share, finite = np.full((n, chunks), np.nan), True
    tiles: list[list[np.ndarray]] = [[] for _ in range(min(n, SHEET_ROWS))]
    shown = spread_evenly(chunks, SHEET_CHUNKS)
    with progress(total=n * chunks, unit="chunk", desc=f"fidelity {label}".strip()) as bar:
        for start in range(0, n, batch):
            rows = slice(start, min(start + batch, n))
            for k, (frames, truth, visible, good) in enumerate(imagine(world, episodes[rows])):
                moved = (frames["still"] != truth.rgb).flatten(2).any(-1)  # (B, F)
                for condition, video in frames.items():
                    for figure, value in compare_frames(video, truth.rgb, visible, moved).items():
                        figures[condition, figure][rows, k] = value
                for (figure, name), values in sharpness.items():
                    values[rows, k] = (
                        SHARPNESS[figure](frames["world"] if name == "world" else truth.rgb).mean(1).cpu()
                    )
                visible_share[rows, k] = visible.double().mean((1, 2, 3)).cpu()
                finite = finite and good
                if k in shown:
                    for i, row in enumerate(tiles[rows]):
                        row += [
                            video[i, -1].cpu().numpy()
                            for video in (truth.rgb, frames["world"], frames["still"])
                        ]
                bar.update(rows.stop - rows.start)
    return Measured(figures, sharpness, visible_share, tiles, finite)


def share_closed(world: float | None, still: float | None, autoencoder: float | None) -> float | None:
    """Returns the share of the distance in dB from `still` (0) to `autoencoder` (1) that the world closes;
    None where there is no such distance.
    """
    if world is None or still is None or autoencoder is None or autoencoder <= still:
        return None
    return (world - still) / (autoencoder - still)


def summarise(measured: Measured) -> dict:
    """The figures per chunk as plain numbers: means over episodes with standard errors and 95 % intervals."""

    def per_chunk(values: np.ndarray) -> list[dict]:
        return [metrics.estimate_mean(column).to_dict() for column in values.T]

    figures = {f: {c: per_chunk(measured.figures[c, f]) for c in CONDITIONS} for f in FIGURES}
    share = {
        f: [
            share_closed(*(figures[f][c][k]["mean"] for c in ("world", "still", "autoencoder")))
            for k in range(measured.visible_share.shape[1])
        ]
        for f in ("psnr_db", "psnr_visible_db")
    }
    # Paired: the difference within each episode, whose spread is far smaller than that between rooms.
    lead = {
        c: per_chunk(measured.figures["world", "psnr_db"] - measured.figures[c, "psnr_db"])
        for c in CONDITIONS
        if c != "world"
    }
    sharpness: dict[str, dict[str, list]] = {figure: {} for figure in SHARPNESS}
    for (figure, name), values in measured.sharpness.items():
        sharpness[figure][name] = per_chunk(values)
    for figure, rows in sharpness.items():
        world, truth = (measured.sharpness[figure, name].mean(0) for name in ("world", "truth"))
        rows["world_over_truth"] = [float(w / t) if t else None for w, t in zip(world, truth, strict=True)]
    return {
        "figures": figures,
        "share_of_distance_closed": share,
        "world_minus_control_psnr_db": lead,
        **sharpness,
        "visible_share": per_chunk(measured.visible_share),
        "finite": measured.finite,
    }


def table(result: dict, chunks: int) -> str:
    """The report as text: one column per chunk (eight at most), mean and half width of the 95 % interval."""
    shown = spread_evenly(chunks, 8)
    lines = [" " * 26 + "".join(f"{'chunk ' + str(k + 1):>14}" for k in shown)]

    def row(label: str, cells: list) -> None:
        lines.append(f"  {label:<24}" + "".join(f"{cell:>14}" for cell in (_cell(cells[k]) for k in shown)))

    for figure, conditions in result["figures"].items():
        lines.append(figure)
        for condition, cells in conditions.items():
            row(condition, cells)
    for title in ("share_of_distance_closed", "world_minus_control_psnr_db", *SHARPNESS):
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


def share_table(results: dict[str, dict], chunks: int) -> str:
    """The share of the distance closed, one row per kind of rooms, side by side."""
    shown = spread_evenly(chunks, 8)
    rows = [
        [rooms, *(_percent(result["share_of_distance_closed"]["psnr_db"][k]) for k in shown)]
        for rooms, result in results.items()
    ]
    return report.markdown_table(["distance closed", *(f"chunk {k + 1}" for k in shown)], rows)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def run(config: FidelityConfig) -> int:
    """Measures a world, prints the tables, writes report, page, curves and contact sheets. Returns 1 if a
    state was not finite, else 0.

    Two runs on one machine write equal bytes: the report holds no times.
    """
    from ..contact_sheet import contact_sheet

    check_rooms(config.rooms)
    folder = config.out or config.json.parent
    sheets = {rooms: folder / f"{config.json.stem}-{rooms}.png" for rooms in config.rooms}
    plots = {rooms: name_beside(config.json, f"-{rooms}-curves.png") for rooms in config.rooms}
    check_outputs(Output("--out", config.out, folder=True))
    report.check_report(config.json, (*sheets.values(), *plots.values()))
    drawn = {
        rooms: draw_episodes(config.episodes, config.chunks, config.seed, rooms, config.device)
        for rooms in config.rooms
    }
    world = WorldModel.load(config.world, device=config.device, refiner=config.refiner)
    header = {
        "config": {k: v for k, v in asdict(config).items() if k not in ("json", "out")}
    } | report.provenance(world)
    columns = [
        f"{k + 1}: {name}"
        for k in spread_evenly(config.chunks, SHEET_CHUNKS)
        for name in ("truth", "world", "still")
    ]
    titles = {"psnr_db": "PSNR to the truth, dB", "ssim": "SSIM to the truth"}
    results, sections, pictures = {}, [], []
    for rooms in config.rooms:
        measured = measure_fidelity(world, drawn[rooms], config.batch, rooms)
        results[rooms] = summarise(measured)
        sheet, curves = sheets[rooms], plots[rooms]
        labels = label_rooms(rooms, config.seed, len(measured.tiles))
        report.save_picture(contact_sheet(measured.tiles, labels, columns), sheet)
        report.plot_over_time(
            {title: {c: measured.figures[c, f] for c in CONDITIONS} for f, title in titles.items()},
            "chunk",
            curves,
        )
        sections.append((f"Rooms: {rooms}", f"```\n{table(results[rooms], config.chunks)}\n```"))
        pictures += [curves, sheet]
    write_json(config.json, header | results)
    text = share_table(results, config.chunks)
    report.write_page(
        page := config.json.with_suffix(".md"),
        "Fidelity",
        header,
        [("Distance closed", text), *sections],
        pictures,
    )
    for heading, figures in sections:
        print(f"{heading}\n{figures.strip('`').strip()}\n")
    print(f"{text}\nwrote {config.json}, {page}, {', '.join(map(str, pictures[1::2]))}")
    finite = all(result["finite"] for result in results.values())
    if not finite:
        print("NaN or infinity in the carried state: the figures are void")
    return 0 if finite else 1
