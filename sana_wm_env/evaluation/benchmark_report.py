"""The results of the one-minute benchmark as one table beside the published ones, one page, plots and
frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..contact_sheet import contact_sheet
from ..files import write_json
from . import metrics, report
from .benchmark_scenes import SPLITS
from .fidelity import SHEET_CHUNKS, SHEET_ROWS, spread_evenly
from .paper_results import PUBLISHED
from .poses import ALIGNMENTS, FIGURES

COLUMNS = [
    "method",
    "RotErr °",
    "TransErr",
    "CamMC",
    "revisit PSNR",
    "SSIM",
    "LPIPS",
    "contrast kept",
    "sharpness kept",
    "videos/h",
]
COMPARABLE = """The formulas of RotErr, TransErr and CamMC, of the alignment `rotation_product`, of PSNR and
of SSIM are those of the published benchmark, and so are length, frame rate and layout of the scenes.
Everything else differs where the scenes are rooms: these are small and synthetic, frames have the world's
size and not 720p, paths are as long as a room allows, and poses come from tracking with the room's depth,
every eighth frame, not from Pi3, every fourth. So our rows say how this world compares with the exact
rendering (`truth`: the best that can be reached, and the estimator's own error), and with itself over time.
They do not rank it among the published methods, which stand here to show what such figures look like.
TransErr and CamMC grow with the length of a path, PSNR and SSIM of revisits are higher for plain and for
blurred pictures, and throughput is that of one process on this machine. VBench is not run here."""


def write_results(out: Path, header: dict, results: list[dict[str, Any]]) -> str:
    """Writes benchmark.json, benchmark.md and pictures to `out`; returns the table and file names."""
    figures = summarise(results)
    write_json(out / "benchmark.json", header | {"splits": figures})
    text = "\n\n".join(
        f"{split}, {figures[split]['scenes']} scenes\n\n{table(split, figures[split], results)}"
        for split in figures
    )
    curves, sheet = out / "benchmark-curves.png", out / "benchmark-frames.png"
    report.plot_over_time(_panels(results), "chunk", curves)
    _contact_sheet(out, results, sheet)
    seconds = np.mean([r["times"]["seconds"] for r in results])
    chunks = len(results[0]["times"]["step_seconds"])
    batches = sorted({r["times"]["batch"] for r in results})
    speed = (
        f"{seconds:.1f} s a video, {seconds / chunks:.2f} s a chunk, imagined in batches of "
        f"{', '.join(map(str, batches))}"
    )
    sections = [
        ("Results", text),
        ("What is comparable", COMPARABLE),
        ("Poses by alignment", alignments(figures)),
        ("Time", speed),
    ]
    report.write_page(out / "benchmark.md", "The one-minute benchmark", header, sections, [curves, sheet])
    return f"{text}\n\n{speed}\nwrote {out / 'benchmark.json'}, {out / 'benchmark.md'}"


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over scenes with intervals, per split; holds no times, so that a run that was killed ends with
    the same.
    """
    summary: dict[str, Any] = {}
    for split in [s for s in SPLITS if any(r["split"] == s for r in results)]:
        rows = [r for r in results if r["split"] == split]
        summary[split] = {"scenes": len(rows), "scenes_with_revisits": sum(r["pairs"] > 0 for r in rows)}
        for condition in [c for c in ("world", "truth") if c in rows[0]]:
            of = [row[condition] for row in rows]
            summary[split][condition] = {
                "revisit": {
                    k: _estimate([o["revisit"][k] for o in of]) for k in ("psnr_db", "ssim", "lpips")
                },
                "drift": {
                    measure: {
                        k: _estimate([o["drift"][measure][k] for o in of]) for k in ("first", "last", "kept")
                    }
                    for measure in ("contrast", "sharpness")
                },
            }
            if "poses" in of[0]:
                summary[split][condition]["poses"] = {
                    a: {f: _estimate([o["poses"][a][f] for o in of]) for f in FIGURES} for a in ALIGNMENTS
                }
            for name in ("psnr_db", "ssim"):
                if name in of[0].get("per_chunk", {}):
                    summary[split][condition][f"{name}_per_chunk"] = np.mean(
                        [o["per_chunk"][name] for o in of], axis=0
                    ).tolist()
    return summary


def _estimate(values: list[float | None]) -> dict:
    return metrics.estimate_mean(np.array([np.nan if v is None else v for v in values])).to_dict()


def table(split: str, figures: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """Ours in two alignments beside the published rows."""
    rows = []
    seconds = np.mean([r["times"]["seconds"] for r in results if r["split"] == split])
    for condition, label in (("world", "this world"), ("truth", "exact rendering (truth)")):
        if condition not in figures:
            continue
        of = figures[condition]
        columns = [
            _cell(of["revisit"]["psnr_db"], 2),
            _cell(of["revisit"]["ssim"], 3),
            _cell(of["revisit"]["lpips"], 3),
        ]
        columns += [_cell(of["drift"][name]["kept"], 2) for name in ("contrast", "sharpness")]
        columns += [f"{3600 / seconds:.0f} (this machine)" if condition == "world" else "-"]
        for alignment in ("rotation_product", "sim3") if "poses" in of else ("",):
            poses = [_cell(of["poses"][alignment][f], 2) for f in FIGURES] if alignment else ["-"] * 3
            rows.append(
                [
                    f"{label}, {alignment}" if alignment else label,
                    *poses,
                    *(columns if alignment in ("", "rotation_product") else [""] * 6),
                ]
            )
    for row in PUBLISHED[split]:
        poses = [f"{v:.2f}" for v in (row.rot_err_deg, row.trans_err, row.cam_mc)]
        speed = "-" if row.videos_per_hour is None else f"{row.videos_per_hour:g} (8 H100)"
        rows.append(
            [
                f"published: {row.method}",
                *poses,
                f"{row.psnr_db:.2f}",
                f"{row.ssim:.3f}",
                f"{row.lpips:.3f}",
                "-",
                "-",
                speed,
            ]
        )
    return report.markdown_table(COLUMNS, rows)


def alignments(figures: dict[str, Any]) -> str:
    """RotErr, TransErr and CamMC of the world and of the exact rendering in every alignment."""
    rows = [
        [
            split,
            condition,
            alignment,
            *(_cell(figures[split][condition]["poses"][alignment][f], 2) for f in FIGURES),
        ]
        for split in figures
        for condition in ("world", "truth")
        if "poses" in figures[split].get(condition, {})
        for alignment in ALIGNMENTS
    ]
    return (
        report.markdown_table(["split", "video", "alignment", "RotErr °", "TransErr m", "CamMC"], rows)
        if rows
        else "No poses."
    )


def _cell(value: dict, digits: int) -> str:
    return report.cell(metrics.Estimate(**value), digits)


def _panels(results: list[dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Curves over chunks: fidelity and pose errors where they were measured, and the time of a step for each
    scene of its batch.
    """
    panels: dict[str, dict[str, np.ndarray]] = {}
    titles = {
        "psnr_db": "PSNR to the truth, dB",
        "ssim": "SSIM to the truth",
        "rot_err_deg": "RotErr °",
        "trans_err_m": "TransErr m",
    }
    for split in [s for s in SPLITS if any(r["split"] == s for r in results)]:
        rows = [r for r in results if r["split"] == split]
        for name, title in titles.items():
            for condition in ("world", "truth"):
                values = [
                    row[condition]["per_chunk"][name]
                    for row in rows
                    if name in row.get(condition, {}).get("per_chunk", {})
                ]
                if values:
                    panels.setdefault(title, {})[f"{split}: {condition}"] = np.array(values)
        panels.setdefault("seconds a step and scene", {})[split] = np.array(
            [row["times"]["step_seconds"] for row in rows]
        )
    return panels


def _contact_sheet(out: Path, results: list[dict[str, Any]], path: Path) -> None:
    chosen = [results[i] for i in spread_evenly(len(results), SHEET_ROWS)]
    rows = [list(np.load(out / r["split"] / f"{r['scene']}.frames.npy")) for r in chosen]
    names = ("truth", "world") if "truth" in chosen[0] else ("world",)
    columns = [
        f"{k + 1}: {name}"
        for k in spread_evenly(len(chosen[0]["times"]["step_seconds"]), SHEET_CHUNKS)
        for name in names
    ]
    report.save_picture(contact_sheet(rows, [f"{r['split']} {r['scene']}" for r in chosen], columns), path)
