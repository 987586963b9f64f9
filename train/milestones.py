"""What a ladder measures at its milestones: the same few figures each time, and the page that shows their
growth.

Rooms are measured by `sana-wm evaluate fidelity` and `follow` themselves, on paths of their own; a world of
your own videos by how close it comes to the clips that it is given for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sana_wm_env.camera import CHUNK_FRAMES
from sana_wm_env.contact_sheet import contact_sheet
from sana_wm_env.evaluation import metrics, report
from sana_wm_env.evaluation.episodes import Rooms, draw_episodes, label_rooms, spread_evenly
from sana_wm_env.evaluation.fidelity import (
    SHEET_CHUNKS,
    SHEET_ROWS,
    measure_fidelity,
    reconstruct,
    share_closed,
)
from sana_wm_env.evaluation.follow import score, watch
from sana_wm_env.files import write_whole
from sana_wm_env.model.world import WorldModel
from sana_wm_env.progress import progress, write_line

from .data.packed import packed_tars, read_packed

ROOMS: tuple[Rooms, ...] = ("home", "held-out")
CHUNKS = (1, 4, 10)
FIRST_ROOM = 5000
"""Number of the first room that ladders are scored on: not those of the published tables, as the best of many
scores is chosen by it.
"""


@dataclass(frozen=True)
class Measurement:
    """Scores of a world.

    Attributes:
        closed: kind of rooms, or "clips" -> share of the distance from standing still to the autoencoder that
            it closes, after each of `CHUNKS` (those that there are).
        contrast: likewise -> its frames' contrast over the truth's, in the last chunk.
        rot_err_deg: kind of rooms -> error of the camera's rotation over the first ten chunks.
        tiles, labels, columns: pictures for a contact sheet.
    """

    closed: dict[str, list[float]]
    contrast: dict[str, float]
    rot_err_deg: dict[str, float]
    tiles: list[list[np.ndarray]]
    labels: list[str]
    columns: list[str]

    @property
    def mean(self) -> float:
        """The mean share closed, by which worlds are compared."""
        return float(np.mean([share for shares in self.closed.values() for share in shares]))


def measure_in_rooms(world: WorldModel, episodes: int, chunks: int) -> Measurement:
    """Plays `episodes` paths at home and as many in held-out rooms."""
    result = Measurement(
        {},
        {},
        {},
        [],
        [],
        [f"{k + 1}: {name}" for k in spread_evenly(chunks, SHEET_CHUNKS) for name in ("truth", "world")],
    )
    for rooms in ROOMS:
        drawn = draw_episodes(episodes, chunks, FIRST_ROOM, rooms)
        drawn = replace(drawn, drives={"world": drawn.drives["world"]})
        measured = measure_fidelity(world, drawn, label=rooms)
        means = {c: np.nanmean(measured.figures[c, "psnr_db"], 0) for c in ("world", "still", "autoencoder")}
        shares = [share_closed(*(float(means[c][k - 1]) for c in means)) for k in CHUNKS if k <= chunks]
        result.closed[rooms] = [0.0 if share is None else share for share in shares]
        contrast = {
            name: measured.sharpness["frame_standard_deviation", name][:, -1].mean()
            for name in ("world", "truth")
        }
        result.contrast[rooms] = float(contrast["world"] / contrast["truth"])
        with progress(total=episodes * chunks, unit="chunk", desc=f"follow {rooms}") as bar:
            followed = watch(world, drawn, 8, bar, tracks=("world",))
        result.rot_err_deg[rooms] = float(score(followed, chunks, "none")["world"]["rot_err_deg"].mean())
        rows = [
            [tile for i, tile in enumerate(row) if i % 3 != 2] for row in measured.tiles[: SHEET_ROWS // 2]
        ]  # without `still`
        result.tiles.extend(rows)
        result.labels.extend(label_rooms(rooms, FIRST_ROOM, len(rows)))
    return result


@torch.inference_mode()
def measure_on_clips(world: WorldModel, folder: Path, most: int, chunks: int) -> Measurement:
    """Plays the paths of the first `most` packed clips of a folder from their first frames. ValueError if
    none has a chunk.
    """
    psnr: dict[str, list[list[float]]] = {"world": [], "still": [], "autoencoder": []}
    contrast, tiles, labels = [], [], []
    clips = (
        clip for tar in packed_tars(folder) for clip in read_packed(tar) if len(clip.frames) > CHUNK_FRAMES
    )
    shown = progress(clips, total=most, unit="clip", desc="clips")
    for number, clip in zip(range(most), shown, strict=False):
        count = min(chunks, (len(clip.frames) - 1) // CHUNK_FRAMES)
        video = torch.from_numpy(clip.frames[None, : 1 + count * CHUNK_FRAMES])
        generators = [torch.Generator().manual_seed(number)]
        state = world.start(video[:, 0], torch.from_numpy(clip.intrinsics_px[:1]), [clip.caption], generators)
        relative = torch.from_numpy(np.linalg.inv(clip.c2w[0]) @ clip.c2w)[
            None, 1 : video.shape[1]
        ].unflatten(1, (count, -1))
        truth, imagined = video[:, 1:].unflatten(1, (count, -1)), []
        for k in range(count):
            frames, state = world.step(state, relative[:, k])
            imagined.append(frames)
        rebuilt = reconstruct(world, video)[:, 1:].unflatten(1, (count, -1))
        shown = {
            "world": torch.stack(imagined, 1),
            "still": video[:, :1, None].expand_as(truth),
            "autoencoder": rebuilt,
        }
        for name, frames in shown.items():
            psnr[name].append([float(metrics.psnr(frames[:, k], truth[:, k]).mean()) for k in range(count)])
        contrast.append([float(metrics.contrast(frames[:, -1]).mean()) for frames in (shown["world"], truth)])
        if len(tiles) < SHEET_ROWS:
            tiles.append(
                [
                    frames[0, k, -1].numpy()
                    for k in spread_evenly(count, SHEET_CHUNKS)
                    for frames in (truth, shown["world"])
                ]
            )
            labels.append(clip.key)
    if not contrast:
        raise ValueError(
            f"got no clip of {CHUNK_FRAMES + 1} frames in {folder}; wanted one to score the world on"
        )
    closed = []
    for k in CHUNKS:
        means = [
            np.mean([row[k - 1] for row in psnr[name] if len(row) >= k])
            for name in psnr
            if any(len(row) >= k for row in psnr[name])
        ]
        if means and (share := share_closed(*map(float, means))) is not None:
            closed.append(share)
    world_contrast, true_contrast = np.mean(contrast, 0)
    widest = max(map(len, tiles))
    columns = [name for _ in range(widest // 2) for name in ("truth", "world")]
    tiles = [row + [np.zeros_like(row[0])] * (widest - len(row)) for row in tiles]
    return Measurement(
        {"clips": closed}, {"clips": float(world_contrast / true_contrast)}, {}, tiles, labels, columns
    )


def write_progress(path: Path, title: str, rows: Sequence[dict], newest: Measurement | None) -> None:
    """Writes the page of a ladder: one row per milestone, the curves against samples and hours, pictures of
    the newest.

    rows: dicts of stage, step, samples, hours, seconds since; closed, contrast, rot_err_deg, mean as in
    `Measurement`; kept (bool).
    """
    sheet, curves = path.with_name(f"{path.stem}-frames.png"), path.with_name(f"{path.stem}-curves.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    if newest is not None:
        report.save_picture(contact_sheet(newest.tiles, newest.labels, newest.columns), sheet)
    kinds = list(rows[-1]["closed"]) if rows else []
    header = ["stage", "step", "samples", "hours"]
    header += [
        f"{kind}: closed at {', '.join(map(str, CHUNKS[: len(rows[-1]['closed'][kind])]))}" for kind in kinds
    ]
    header += (
        [f"{kind}: contrast" for kind in kinds]
        + [f"{kind}: RotErr" for kind in (rows[-1]["rot_err_deg"] if rows else ())]
        + ["mean"]
    )
    table = []
    for row in rows:
        cells = [row["stage"], f"{row['step']:,}", f"{row['samples']:,}", f"{row['hours']:.2f}"]
        cells += [" / ".join(f"{100 * share:.0f}" for share in row["closed"][kind]) + " %" for kind in kinds]
        cells += [f"{100 * row['contrast'][kind]:.0f} %" for kind in kinds] + [
            f"{value:.1f} °" for value in row["rot_err_deg"].values()
        ]
        table.append([*cells, f"{100 * row['mean']:.1f} %" + (" (best)" if row["kept"] else "")])
    _plot(rows, kinds, curves)
    text = (
        "Share of the distance from standing still to the autoencoder's own picture that the averaged "
        "weights close, in PSNR; contrast of "
        "the last chunk over the truth's; error of the camera's rotation over all chunks.\n\n"
        + report.markdown_table(header, table)
    )
    report.write_page(path, title, {}, [("Milestones", text)], [curves, sheet])


def _plot(rows: Sequence[dict], kinds: Sequence[str], path: Path) -> None:
    """Shares against samples and against hours."""
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
        from matplotlib.ticker import EngFormatter
    except ImportError:
        write_line("matplotlib is not installed (pip install 'sana-wm-env[train]'): no curve is drawn")
        return
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharey=True)
    for axis, key, label in zip(
        axes, ("samples", "hours"), ("samples seen", "hours of training"), strict=True
    ):
        for kind, style in zip(kinds, ("-", "--"), strict=False):
            for i, colour in zip(range(len(rows[-1]["closed"][kind])), ("C0", "C1", "C2"), strict=False):
                places, shares = [row[key] for row in rows], [100 * row["closed"][kind][i] for row in rows]
                axis.plot(places, shares, colour + style, marker=".", label=f"{kind}, chunk {CHUNKS[i]}")
        axis.set_xlabel(label)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("distance closed, %")
    axes[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    write_whole(path, lambda part: figure.savefig(part, dpi=110, format="png"))
    plt.close(figure)
