"""What the second stage does: the same episodes as stage 1 imagines them and as the refiner shows them,
against the truth.

Compared in pairs: both see the same rooms, paths and noise, and the same latents of stage 1. Every path goes
half of its chunks out and comes back the same way, so that each episode also revisits where it began.

Letters: N episodes, K chunks, F = 1 + 24 K frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sana_wm_env.model.world import WorldModel

from ..camera import CHUNK_FRAMES, relative_to_first
from ..contact_sheet import contact_sheet
from ..files import write_json
from ..outputs import name_beside
from ..progress import progress
from ..rooms import default_intrinsics
from ..rooms.render import render
from ..settings import check_settings
from . import metrics, report
from .episodes import Episodes, Rooms, check_rooms, draw_episodes, label_rooms, spread_evenly
from .poses import compare_paths
from .precision import go_and_return, imagine
from .revisit import revisit_consistency, revisit_pairs, sharpness
from .tracking import GAP, track

FIGURES = {  # name: (title, digits)
    "psnr_db": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "contrast": ("contrast, % of the truth's", 1),
    "edge_energy": ("edge energy, % of the truth's", 1),
    "rot_err_deg": ("RotErr so far, °", 2),
    "trans_err_m": ("TransErr so far, m", 3),
}
HORIZONS = (1, 4, 10, 40)
SHEET_ROWS, SHEET_CHUNKS = 6, 5


@dataclass(frozen=True)
class RefiningConfig:
    """Episodes to measure, and the files of the report."""

    world: str = "rooms"
    """name of a bundled world, or the folder of a trained one"""
    refiner: str = "auto"
    """the world's own, or the folder of one"""
    rooms: tuple[Rooms, ...] = ("home", "held-out")
    """rooms that training saw most; or rooms that it never saw; or both"""
    episodes: int = 64
    """of each kind of rooms; at least 2"""
    chunks: int = 40
    """chunks of 24 frames per episode, an even number: half of them out, half of them back"""
    seed: int = 1000
    """episode i takes the room number seed + i"""
    json: Path = Path("refining.json")
    """the report; a page (.md) and a picture (.png) for each kind of rooms go beside it"""
    batch: int = 8
    """episodes that are imagined at the same time"""
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, episodes="[2, inf)", chunks="[2, inf)", seed="[0, inf)", batch="[1, inf)")


def measure(video: Tensor, truth: Tensor, episodes: Episodes) -> dict[str, np.ndarray]:
    """Figures of `FIGURES`, (N, K) by chunk, and `revisit_psnr_db` (N,), of videos (N, F, H, W, 3) against
    the exact rendering.
    """
    lens = torch.tensor(default_intrinsics((video.shape[2], video.shape[3]))).expand(len(video), 4)
    paths = track(video[:, ::GAP], episodes.scenes, episodes.path[:, 0], lens)
    commanded = [relative_to_first(path) for path in episodes.path.cpu().numpy()]
    errors = [compare_paths(path, c2w[::GAP], "none") for path, c2w in zip(paths, commanded, strict=True)]
    pairs = list(zip(video[:, 1:], truth[:, 1:], strict=True))

    def by_chunk(figure: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
        """Episode by episode: a minute in float64 is much larger than its frames."""
        values = torch.stack([figure(seen, true) for seen, true in pairs])
        return values.unflatten(1, (-1, CHUNK_FRAMES)).mean(2).cpu().numpy()

    def share(figure: Callable[[Tensor], Tensor]) -> np.ndarray:
        return 100 * by_chunk(lambda seen, _: figure(seen)) / by_chunk(lambda _, true: figure(true))

    def so_far(values: np.ndarray) -> np.ndarray:
        """Mean of the errors up to the end of each chunk."""
        count = np.arange(1, len(values))
        return (np.cumsum(values[1:]) / count)[CHUNK_FRAMES // GAP - 1 :: CHUNK_FRAMES // GAP]

    revisits = [
        revisit_consistency(v, revisit_pairs(c2w))["psnr_db"] for v, c2w in zip(video, commanded, strict=True)
    ]
    return {
        "psnr_db": by_chunk(metrics.psnr),
        "ssim": by_chunk(metrics.ssim),
        "contrast": share(metrics.contrast),
        "edge_energy": share(sharpness),
        "rot_err_deg": np.stack([so_far(error.rot_err_deg) for error in errors]),
        "trans_err_m": np.stack([so_far(error.trans_err_m) for error in errors]),
        "revisit_psnr_db": np.array([np.nan if psnr is None else psnr for psnr in revisits]),
    }


def compare(plain: dict[str, np.ndarray], refined: dict[str, np.ndarray], chunks: int) -> dict[str, dict]:
    """Horizon -> figure -> estimates of stage 1, of the refined, and of their difference within episodes."""
    summary = {}
    for horizon in [h for h in HORIZONS if h < chunks] + [chunks]:
        columns = {name: (plain[name][:, horizon - 1], refined[name][:, horizon - 1]) for name in FIGURES}
        if horizon == chunks:
            columns["revisit_psnr_db"] = (plain["revisit_psnr_db"], refined["revisit_psnr_db"])
        summary[str(horizon)] = {
            name: {
                "stage1": metrics.estimate_mean(before).to_dict(),
                "refined": metrics.estimate_mean(after).to_dict(),
                "difference": metrics.estimate_mean(after - before).to_dict(),
            }
            for name, (before, after) in columns.items()
        }
    return summary


def table(summary: dict[str, dict]) -> str:
    """A row per figure, a column per horizon: stage 1 -> refined (difference ± half width of interval)."""
    titles = FIGURES | {"revisit_psnr_db": ("PSNR of a view seen again, dB", 2)}

    def cell(figures: dict[str, dict], name: str, digits: int) -> str:
        if name not in figures:
            return ""
        before, after, difference = (
            metrics.Estimate(**figures[name][part]) for part in ("stage1", "refined", "difference")
        )
        if before.mean is None or after.mean is None or difference.mean is None:
            return "-"
        sign = "+" * (difference.mean >= 0)
        return (
            f"{before.mean:.{digits}f} -> {after.mean:.{digits}f} ({sign}{report.cell(difference, digits)})"
        )

    rows = [
        [title, *(cell(figures, name, digits) for figures in summary.values())]
        for name, (title, digits) in titles.items()
    ]
    return report.markdown_table(["after chunk", *summary], rows)


SAYS = (
    "Means over episodes: stage 1 -> refined, and in brackets the difference within episodes with its 95 % "
    "interval. Half of every path leads back the way it came."
)


def run(config: RefiningConfig) -> int:
    """Measures, prints the tables, writes report, page and pictures."""
    if config.chunks % 2:
        raise ValueError(f"got --chunks {config.chunks}; wanted an even number")
    check_rooms(config.rooms)
    sheets: dict[Rooms, Path] = {rooms: name_beside(config.json, f"-{rooms}.png") for rooms in config.rooms}
    report.check_report(config.json, sheets.values())
    plain, refined = (
        WorldModel.load(config.world, config.device, refiner=refiner) for refiner in (None, config.refiner)
    )
    header = {"config": {k: v for k, v in asdict(config).items() if k != "json"}} | report.provenance(refined)
    lens, results, sections = default_intrinsics(plain.config.image_size), {}, []
    for rooms, sheet in sheets.items():
        episodes = go_and_return(
            draw_episodes(config.episodes, config.chunks // 2, config.seed, rooms, config.device)
        )
        count = len(episodes.seeds)
        size = plain.config.image_size
        truth = render(episodes.scenes, episodes.path, torch.tensor(lens).expand(count, 4), size).rgb.cpu()
        with progress(total=2 * count * config.chunks, unit="chunk", desc=f"refining {rooms}") as bar:
            videos = [imagine(world, episodes, config.batch, bar) for world in (plain, refined)]
        before, after = (measure(video, truth, episodes) for video in videos)
        results[rooms] = compare(before, after, config.chunks)
        sections.append((f"Rooms: {rooms}", table(results[rooms])))
        report.save_picture(_sheet((truth, *videos), rooms, config), sheet)
    write_json(config.json, header | results)
    page = config.json.with_suffix(".md")
    text = "\n\n".join(f"{title}\n\n{rows}" for title, rows in sections)
    report.write_page(
        page, "Refining", header, [("What is compared", SAYS), *sections], list(sheets.values())
    )
    print(f"{text}\n{SAYS}\nwrote {config.json}, {page}")
    return 0


def _sheet(videos: tuple[Tensor, ...], rooms: Rooms, config: RefiningConfig):
    """Truth, stage 1 and refined, side by side at some chunks."""
    shown = spread_evenly(config.chunks, SHEET_CHUNKS)
    rows = min(SHEET_ROWS, config.episodes)
    tiles = [
        [video[row, (k + 1) * CHUNK_FRAMES].numpy() for k in shown for video in videos] for row in range(rows)
    ]
    columns = [f"{k + 1}: {name}" for k in shown for name in ("truth", "stage 1", "refined")]
    return contact_sheet(tiles, label_rooms(rooms, config.seed, rows), columns)
