"""Is a view still there after the camera has turned away? A camera turns out of a view and back, against one
that never left.

Letters: N episodes, K chunks of 24 frames.

| condition  | the camera                                       | the last chunk shows                                |
|------------|--------------------------------------------------|-----------------------------------------------------|
| `returned` | turns away on the spot and back, then rests      | the first view, remembered                          |
| `stayed`   | rests for as long                                | the first view, never left: the best that can be    |
| `new`      | turns back from elsewhere, so it never was there | the same view, made up: what remembering is worth   |

All of them end at the same pose in the same room, so the truth is one picture, and their PSNR to it can be
compared. `new` begins at the far end of the turn.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sana_wm_env.model.world import World, WorldModel

from ..contact_sheet import contact_sheet
from ..files import write_json
from ..outputs import name_beside
from ..progress import Progress, progress
from ..rooms import default_intrinsics
from ..rooms.paths import CHUNK_FRAMES, MAX_ROTATION_RAD, twist_paths
from ..rooms.render import render
from ..settings import check_settings
from . import metrics, report
from .episodes import Episodes, Rooms, check_rooms, draw_episodes, label_rooms, open_sessions

CONDITIONS = ("returned", "stayed", "new")
YAW = 4
"""Where a body twist (vx, vy, vz, wx, wy, wz) has the turn to the right."""
SHEET_ROWS = 4


@dataclass(frozen=True)
class MemoryConfig:
    """Episodes to measure, and the files of the report."""

    world: str = "rooms"
    """name of a bundled world, or the folder of a trained one"""
    refiner: str | None = None
    """auto for the world's second stage, or the folder of one (default: stage 1 alone)"""
    rooms: tuple[Rooms, ...] = ("home", "held-out")
    """home rooms, which the bundled world was trained in most; or rooms that training never saw; or both"""
    episodes: int = 32
    """of each kind of rooms; at least 2"""
    away: int = 10
    """chunks from leaving the view to seeing it again, an even number; half of them turn away, half back"""
    seed: int = 1000
    """episode i takes the room number seed + i"""
    json: Path = Path("revisit.json")
    """the report; a page (.md) and a picture (.png) for each kind of rooms go beside it"""
    batch: int = 8
    """episodes that are imagined at the same time"""
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, episodes="[2, inf)", away="[2, inf)", seed="[0, inf)", batch="[1, inf)")


def turn_away(episodes: Episodes, away: int) -> dict[str, Tensor]:
    """Paths (N, 1 + 24K, 4, 4) in each room's frame, for each condition; K = away + 1, but away / 2 + 1 for
    `new`.

    Turns are the fastest that a world is trained on, to the right in every other episode, to the left in the
    rest.
    """
    if away < 2 or away % 2:
        raise ValueError(
            f"got away={away}; wanted an even number of chunks, 2 at least: half of them turn away, half back"
        )
    starts, count = episodes.path[:, 0], len(episodes.seeds)
    side = torch.tensor([1.0 if seed % 2 else -1.0 for seed in episodes.seeds], dtype=torch.float64)
    still = torch.zeros(count, 1, 6, dtype=torch.float64)
    turn = still.clone()
    turn[:, 0, YAW] = MAX_ROTATION_RAD * side
    there, back = turn.expand(-1, away // 2, -1), -turn.expand(-1, away // 2, -1)
    far = twist_paths(starts, there)[:, -1]
    return {
        "returned": twist_paths(starts, torch.cat([there, back, still], 1)),
        "stayed": twist_paths(starts, still.expand(-1, away + 1, -1)),
        "new": twist_paths(far, torch.cat([back, still], 1)),
    }


@torch.inference_mode()
def remember(
    world: World, episodes: Episodes, path: Tensor, batch: int, bar: Progress
) -> tuple[Tensor, Tensor]:
    """Imagines a path (N, 1 + 24K, 4, 4); returns PSNR (N,) in dB of its last chunk, and frames (N, K + 1, H,
    W, 3): first, chunk ends.
    """
    size, psnr, shown = world.config.image_size, [], []
    intrinsics = torch.tensor(default_intrinsics(size))
    for begin in range(0, len(path), batch):
        rows = slice(begin, begin + batch)
        part, scenes = path[rows], episodes.scenes[rows]
        ends = part[:, ::CHUNK_FRAMES]
        pictures = render(scenes, ends, intrinsics.expand(len(part), 4), size).rgb
        relative = (torch.linalg.inv(part[:, :1]) @ part)[:, 1:]
        state = open_sessions(world, episodes[rows], part[:, 0], pictures[:, 0], intrinsics)
        frames, seen = pictures[:, :1], [pictures[:, 0]]
        for chunk in world.play(state, relative):
            frames = chunk.frames
            seen.append(frames[:, -1])
            bar.update(len(part))
        psnr.append(
            metrics.psnr(frames, pictures[:, -1:].expand_as(frames)).mean(1)
        )  # the camera rests: one true picture
        shown.append(torch.stack(seen, 1))
    return torch.cat(psnr).double(), torch.cat(shown)


def run(config: MemoryConfig) -> int:
    """Measures, prints the table, writes report, page and pictures. Two runs write an equal report."""
    check_rooms(config.rooms)
    sheets = {rooms: name_beside(config.json, f"-{rooms}.png") for rooms in config.rooms}
    report.check_report(config.json, sheets.values())
    drawn = {
        rooms: draw_episodes(config.episodes, 1, config.seed, rooms, config.device) for rooms in config.rooms
    }
    paths = {rooms: turn_away(episodes, config.away) for rooms, episodes in drawn.items()}
    world = WorldModel.load(config.world, device=config.device, refiner=config.refiner)
    header = {"config": {k: v for k, v in asdict(config).items() if k != "json"}} | report.provenance(world)
    results, rows, pictures = {}, [], []
    for rooms in config.rooms:
        values: dict[str, np.ndarray] = {}
        tiles: list[list[np.ndarray]] = [[] for _ in range(min(SHEET_ROWS, config.episodes))]
        total = config.episodes * sum((path.shape[1] - 1) // CHUNK_FRAMES for path in paths[rooms].values())
        with progress(total=total, unit="chunk", desc=f"revisit {rooms}") as bar:
            for condition, path in paths[rooms].items():
                psnr, shown = remember(world, drawn[rooms], path, config.batch, bar)
                values[condition] = psnr.cpu().numpy()
                chosen = (
                    (0, config.away // 2, -1) if condition == "returned" else (-1,)
                )  # first view, far end, last view
                for i, row in enumerate(tiles):
                    row += [shown[i, at].cpu().numpy() for at in chosen]
        lost = metrics.estimate_mean(values["stayed"] - values["returned"])
        results[rooms] = {c: metrics.estimate_mean(v).to_dict() for c, v in values.items()} | {
            "lost_db": lost.to_dict()
        }
        rows.append(
            [rooms, *(report.cell(metrics.estimate_mean(values[c])) for c in CONDITIONS), report.cell(lost)]
        )
        sheet = sheets[rooms]
        columns = ["first view", "far end", "returned", "stayed", "new"]
        report.save_picture(contact_sheet(tiles, label_rooms(rooms, config.seed, len(tiles)), columns), sheet)
        pictures.append(sheet)
    write_json(config.json, header | results)
    text = report.markdown_table(["rooms", *CONDITIONS, "lost by leaving"], rows)
    caption = (
        f"PSNR in dB of the first view, {config.away} chunks after the camera left it; see "
        "`sana_wm_env/evaluation/memory.py`.\n\n"
    )
    report.write_page(
        page := config.json.with_suffix(".md"),
        "Revisits",
        header,
        [("Is it still there?", caption + text)],
        pictures,
    )
    print(f"{caption}{text}\nwrote {config.json}, {page}")
    return 0
