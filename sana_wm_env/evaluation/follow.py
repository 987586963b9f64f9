"""Does the imagined camera follow its commands? Poses are estimated from the frames and compared with the
commanded ones.

Letters: N episodes, K chunks, E = 1 + 3K frames that the estimator sees (every eighth, frame 0 first), H, W
pixels.

Each path is imagined once. What it is compared with:

| condition   | estimated path                                                              | says                               |
|-------------|-----------------------------------------------------------------------------|------------------------------------|
| `world`     | from the imagined frames                                                    | the result                         |
| `truth`     | from exact renderings of the commanded path                                 | the estimator's own error          |
| `shuffled`  | that of `world` in the next episode                                         | whether commands matter at all     |
| `reversed`  | that of `world`, each motion inverted                                       | whether their direction matters    |
| `mirrored`  | that of `world`, left and right exchanged                                   | whether left is left               |
| `still`     | none: the camera stays where it was                                         | what doing nothing is worth        |
| `by frames` | from the frames and the room's depth alone, without the room's pictures     | whether these pictures decide      |

Controls change the estimate and leave the commands alone, so that an alignment treats all conditions alike.
Poses come from `sana_wm_env.evaluation.tracking`, which knows the room and the first pose, but not the
command. A figure no larger than that of `truth` says no more than that. What the world imagines in place of
the room disturbs the estimate, too: then the error is not all the world's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from sana_wm_env.model.world import World, WorldModel

from ..camera import Array, relative_to_first
from ..files import write_json
from ..outputs import name_beside
from ..progress import Progress, progress
from ..rooms import default_intrinsics
from ..rooms.paths import CHUNK_FRAMES
from ..rooms.render import render
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
from .fidelity import SHEET_CHUNKS, SHEET_ROWS
from .poses import ALIGNMENTS, FIGURES, Alignment, compare_paths
from .tracking import GAP, track

HORIZONS = (1, 10, 40)
CONTROLS = ("shuffled", "reversed", "mirrored", "still")
BY_FRAMES = ", by frames"
TRACKS = ("world", "truth", "world" + BY_FRAMES, "truth" + BY_FRAMES)
CONDITIONS = ("world", "truth", *CONTROLS, "world" + BY_FRAMES, "truth" + BY_FRAMES)
MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
NAMES = {"rot_err_deg": "RotErr °", "trans_err_m": "TransErr m", "cam_mc": "CamMC"}
BOOTSTRAPS = 2000


@dataclass(frozen=True)
class FollowConfig:
    """Episodes to measure, and the files of the report."""

    world: str = "rooms"
    """name of a bundled world, or the folder of a trained one"""
    refiner: str | None = None
    """auto for the world's second stage, or the folder of one (default: stage 1 alone)"""
    rooms: tuple[Rooms, ...] = ("home", "held-out")
    """home rooms, which the bundled world was trained in most, on paths it never saw; or rooms that training
    never saw; or both
    """
    episodes: int = 8
    """per seed and kind of rooms; at least 2 in all"""
    chunks: int = 40
    """chunks of 24 frames per episode"""
    seeds: int = 3
    """repeats, each with rooms, paths and noise of its own; the interval is over the episodes of all"""
    seed: int = 1000
    """number of the first room"""
    json: Path = Path("follow.json")
    """the report; a page (.md) and pictures (.png) of the same name go beside it"""
    alignment: Alignment = "none"
    """of the printed table; the report has all of them"""
    batch: int = 8
    """episodes that are imagined at the same time"""
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        counts = dict.fromkeys(("episodes", "chunks", "seeds", "batch"), "[1, inf)")
        check_settings(self, seed="[0, inf)", **counts)


@dataclass(frozen=True)
class Followed:
    """Commanded and estimated paths.

    Attributes:
        commanded: (N, E, 4, 4) camera-to-world relative to the first frame, metres.
        estimated: condition -> (N, E, 4, 4), likewise.
        tiles: rows of pictures for the contact sheet: truth and world by turns.
    """

    commanded: Array
    estimated: dict[str, Array]
    tiles: list[list[np.ndarray]]


def reverse(path: Array) -> Array:
    """The path whose every motion is the inverse of the given one: (N, E, 4, 4) -> the same."""
    steps = np.linalg.inv(path[:, 1:]) @ path[:, :-1]  # inverse of each motion, in the body frame
    backwards = [path[:, 0]]
    for i in range(steps.shape[1]):
        backwards.append(backwards[-1] @ steps[:, i])
    return np.stack(backwards, 1)


def controls(estimated: Array) -> dict[str, Array]:
    """Returns the estimates (N, E, 4, 4) of the world as each of `CONTROLS` changes them."""
    return {
        "shuffled": np.roll(estimated, -1, axis=0),
        "reversed": reverse(estimated),
        "mirrored": MIRROR @ estimated @ MIRROR,
        "still": np.broadcast_to(np.eye(4), estimated.shape).copy(),
    }


@torch.inference_mode()
def watch(
    world: World, episodes: Episodes, batch: int, bar: Progress, tracks: Sequence[str] = TRACKS
) -> Followed:
    """Imagines all episodes along their commanded paths, and estimates poses from every `GAP`-th frame.

    tracks: which of `TRACKS` are estimated, "world" among them; each takes as long as the imagination.
    """
    chunks, size = episodes.drives["world"].shape[1], world.config.image_size
    shown = [3 * (k + 1) for k in spread_evenly(chunks, SHEET_CHUNKS)]  # the last frame of these chunks
    paths: dict[str, list[Array]] = {}
    tiles: list[list[np.ndarray]] = []
    for start in range(0, len(episodes.seeds), batch):
        part = episodes[start : start + batch]
        lens = torch.tensor(default_intrinsics(size))
        intrinsics = lens.expand(len(part.seeds), 4)
        videos = {"truth": render(part.scenes, part.path[:, ::GAP], intrinsics, size).rgb}
        first = videos["truth"][:, 0]
        state = open_sessions(world, part, part.path[:, 0], first, lens)
        imagined = [videos["truth"][:, :1]]
        for chunk in world.play(state, part.drives["world"].flatten(1, 2)):
            imagined.append(chunk.frames[:, GAP - 1 :: GAP])
            bar.update(len(part.seeds))
        videos["world"] = torch.cat(imagined, 1)  # (B, E, H, W, 3)
        for label in tracks:
            video, with_room = videos[label.removesuffix(BY_FRAMES)], not label.endswith(BY_FRAMES)
            paths.setdefault(label, []).append(
                track(video, part.scenes, part.path[:, 0], intrinsics, with_room)
            )
        for i in range(min(len(part.seeds), SHEET_ROWS - len(tiles))):
            tiles.append([videos[name][i, e].cpu().numpy() for e in shown for name in ("truth", "world")])
    commanded = np.stack([relative_to_first(path) for path in episodes.path[:, ::GAP].cpu().numpy()])
    estimated = {name: np.concatenate(parts) for name, parts in paths.items()}
    return Followed(commanded, estimated | controls(estimated["world"]), tiles)


def score(followed: Followed, horizon: int, alignment: Alignment) -> dict[str, dict[str, Array]]:
    """Errors up to a horizon: condition -> figure of `FIGURES` -> (N,), mean over the estimated frames after
    the first.

    The alignment is fitted to the frames up to the horizon.
    """
    ends = 1 + horizon * CHUNK_FRAMES // GAP
    result: dict[str, dict[str, Array]] = {}
    for condition, paths in followed.estimated.items():
        errors = [
            compare_paths(p[:ends], c[:ends], alignment)
            for p, c in zip(paths, followed.commanded, strict=True)
        ]
        result[condition] = {
            figure: np.array([getattr(e, figure)[1:].mean() for e in errors]) for figure in FIGURES
        }
    return result


def ratio(control: Array, world: Array) -> dict[str, float | None]:
    """Returns the control's mean error over the world's, (N,) each, with a 95 % interval by paired bootstrap
    over episodes.
    """
    if len(world) < 2 or not (control.mean() > 0 and world.mean() > 0):
        return {"factor": None, "low": None, "high": None}
    chosen = np.random.default_rng(0).integers(len(world), size=(BOOTSTRAPS, len(world)))
    low, high = np.percentile(control[chosen].mean(1) / world[chosen].mean(1), [2.5, 97.5])
    return {"factor": float(control.mean() / world.mean()), "low": float(low), "high": float(high)}


def summarise(followed: Followed, horizons: Sequence[int], seeds: int) -> dict:
    """All figures as plain numbers: alignment -> horizon -> figure -> condition."""
    result: dict = {}
    for alignment in ALIGNMENTS:
        for horizon in horizons:
            scores = score(followed, horizon, alignment)
            for figure in FIGURES:
                values = {condition: scores[condition][figure] for condition in scores}
                floor = metrics.estimate_mean(values["truth"])
                result.setdefault(alignment, {}).setdefault(str(horizon), {})[figure] = {
                    "conditions": {c: metrics.estimate_mean(v).to_dict() for c, v in values.items()},
                    "world_per_seed": [float(part.mean()) for part in np.split(values["world"], seeds)],
                    "control_over_world": {c: ratio(values[c], values["world"]) for c in CONTROLS},
                    "within_estimator_error": bool(
                        values["world"].mean() <= (floor.mean if floor.high is None else floor.high)
                    ),
                }
    return result


def table(result: dict, alignment: Alignment) -> str:
    """Rows: figure and condition; columns: horizons. `*` marks a score that the estimator's own error
    explains.
    """
    horizons = list(result[alignment])
    rows = []
    for figure in FIGURES:
        at = {h: result[alignment][h][figure] for h in horizons}
        digits = 1 if figure == "rot_err_deg" else 2
        for condition in CONDITIONS:
            cells = []
            for h in horizons:
                text = report.cell(metrics.Estimate(**at[h]["conditions"][condition]), digits)
                if condition == "world" and at[h]["within_estimator_error"]:
                    text += " *"
                factor = at[h]["control_over_world"].get(condition, {"factor": None})
                if factor["factor"] is not None:
                    text += f" ({factor['factor']:.1f}x, {factor['low']:.1f} to {factor['high']:.1f})"
                cells.append(text)
            rows.append([NAMES[figure] if condition == "world" else "", condition, *cells])
    return report.markdown_table(
        ["figure", "path", *(f"{h} chunk{'s' * (h != '1')}" for h in horizons)], rows
    )


def explain_table(alignment: Alignment, rows: int) -> str:
    """Explains how to read the table."""
    return (
        f"Mean over frames up to the horizon, then over {rows} episodes, ± 95 % interval; alignment "
        f"`{alignment}`. "
        "`truth` is the estimator's own error on exact renderings. In brackets: the error as a multiple of "
        "that of `world`, with the 95 % "
        "interval of that factor (bootstrap over episodes). `*`: within the estimator's own error."
    )


def run(config: FollowConfig) -> int:
    """Measures, prints the tables, writes report, page, plots and contact sheets. Two runs write an equal
    report.
    """
    from ..contact_sheet import contact_sheet

    check_rooms(config.rooms)
    files = {
        rooms: [name_beside(config.json, f"-{rooms}-{end}.png") for end in ("frames", "errors")]
        for rooms in config.rooms
    }
    report.check_report(config.json, (path for pair in files.values() for path in pair))
    horizons = [h for h in HORIZONS if h < config.chunks] + [config.chunks]
    count = config.seeds * config.episodes
    drawn = {
        rooms: draw_episodes(count, config.chunks, config.seed, rooms, config.device)
        for rooms in config.rooms
    }
    world = WorldModel.load(config.world, device=config.device, refiner=config.refiner)
    header = {
        "config": {k: v for k, v in asdict(config).items() if k != "json"},
        "estimator": "dense tracking against the frame before and the exact room; 'by frames' against the "
        "frame before alone",
        "frame_indices": [0, config.chunks * CHUNK_FRAMES, GAP],
        "intrinsics_px": list(default_intrinsics(world.config.image_size)),
    } | report.provenance(world)
    columns = [
        f"{k + 1}: {name}" for k in spread_evenly(config.chunks, SHEET_CHUNKS) for name in ("truth", "world")
    ]
    places = np.arange(1, 1 + config.chunks * CHUNK_FRAMES // GAP) * GAP / CHUNK_FRAMES
    results, sections, pictures = {}, [], []
    for rooms in config.rooms:
        with progress(total=count * config.chunks, unit="chunk", desc=f"follow {rooms}") as bar:
            followed = watch(world, drawn[rooms], config.batch, bar)
        results[rooms] = {"errors": summarise(followed, horizons, config.seeds)}
        sheet, curves = files[rooms]
        labels = label_rooms(rooms, config.seed, len(followed.tiles))
        report.save_picture(contact_sheet(followed.tiles, labels, columns), sheet)
        report.plot_over_time(curve_panels(followed, config.alignment), "chunk", curves, places)
        text = table(results[rooms]["errors"], config.alignment)
        sections.append((f"Rooms: {rooms}", text))
        pictures += [curves, sheet]
        print(f"Rooms: {rooms}\n{text}\n")
    write_json(config.json, header | results)
    page = config.json.with_suffix(".md")
    report.write_page(
        page,
        "Action following",
        header,
        [("How to read this", explain_table(config.alignment, count)), *sections],
        pictures,
    )
    print(explain_table(config.alignment, count))
    print(f"wrote {config.json}, {page}")
    return 0


def curve_panels(followed: Followed, alignment: Alignment) -> dict[str, dict[str, Array]]:
    """Errors frame by frame for the plot: title -> condition -> (N, E - 1)."""
    panels: dict[str, dict[str, Array]] = {}
    for condition, paths in followed.estimated.items():
        errors = [compare_paths(p, c, alignment) for p, c in zip(paths, followed.commanded, strict=True)]
        for figure in FIGURES:
            panels.setdefault(f"{NAMES[figure]} ({alignment})", {})[condition] = np.stack(
                [getattr(e, figure)[1:] for e in errors]
            )
    return panels
