"""The page of a run: what became of every clip, where the time went, and a picture of each path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sana_wm_env.camera import FPS, Array
from sana_wm_env.evaluation.report import markdown_table, save_picture, write_page
from sana_wm_env.files import write_json

from .frames import Frame, read_frames
from .poses import Clip
from .records import STAGES, Record, Records

SIDE = 240
BACKGROUND, INK, PATH, VIEW = (250, 250, 250), (40, 40, 40), (30, 90, 200), (220, 120, 40)


def write_report(records: Records, settings: Mapping[str, Any]) -> Path:
    """Writes report.md and report.json."""
    every = list(records.each())
    last = {
        record.clip: record for record in every if "clip_frames" in record.values or record.stage != "shots"
    }
    accepted = [record for record in last.values() if record.status == "done" and record.stage == STAGES[-1]]
    rejected = [record for record in last.values() if record.status == "rejected"]
    seconds = {stage: sum(r.seconds for r in every if r.stage == stage) for stage in STAGES}
    total = sum(seconds.values())
    counts = Counter(f"{record.stage}: {record.reason}" for record in rejected)
    summary = {
        "clips": len(accepted) + len(rejected),
        "accepted": len(accepted),
        "rejected": dict(counts),
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
        "clips_per_hour": round(3600 * (len(accepted) + len(rejected)) / total, 1) if total else None,
    }
    write_json(records.out / "report.json", summary)
    sections = [
        ("Clips with poses", _accepted_table(records, accepted)),
        ("Rejected", _rejected_table(rejected)),
        ("Time", _time_table(seconds, len(last))),
    ]
    pictures = [records.out / "pictures" / f"{record.clip}.png" for record in accepted]
    page = records.out / "report.md"
    header = {"settings": {name: value for name, value in settings.items() if value not in (None, "")}}
    header |= {"clips": f"{len(accepted)} with poses, {len(rejected)} rejected"}
    write_page(page, "Annotation", header, sections, pictures)
    return page


def draw_clip(path: Path, clip: Clip, c2w: Array, metric: bool) -> None:
    """Draws the first, the middle and the last frame of a clip, and its path from above."""
    wanted = (0, clip.frames // 2, clip.frames - 1)
    shown = [_tile(frame) for index, frame in enumerate(read_frames(clip.video)) if index in wanted]
    tiles = [*shown, draw_path(c2w, metric)]
    sheet = Image.new("RGB", (sum(tile.width + 4 for tile in tiles) - 4, SIDE), BACKGROUND)
    left = 0
    for tile in tiles:
        sheet.paste(tile, (left, 0))
        left += tile.width + 4
    save_picture(sheet, path)


def draw_path(c2w: Array, metric: bool, side: int = SIDE) -> Image.Image:
    """A path (F, 4, 4) from above: ahead is up, a short line shows where the camera looks, every half
    second; below, the length of the bar.
    """
    picture = Image.new("RGB", (side, side), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    places = c2w[:, [0, 2], 3]
    extent = max(float(np.ptp(places, axis=0).max()), 1e-6)
    middle = (places.max(0) + places.min(0)) / 2
    scale = 0.66 * side / extent

    def pixel(place: Array) -> tuple[float, float]:
        x, y = (place - middle) * scale
        return side / 2 + x, side / 2 - y

    draw.line([pixel(place) for place in places], fill=PATH, width=2)
    for pose, place in zip(c2w[:: FPS // 2], places[:: FPS // 2], strict=True):
        ahead = pose[[0, 2], 2]
        x, y = pixel(place)
        draw.line([(x, y), (x + 0.06 * side * ahead[0], y - 0.06 * side * ahead[1])], fill=VIEW)
    x, y = pixel(places[0])
    draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=PATH)
    bar = 10 ** np.floor(np.log10(extent))
    draw.line([(8, side - 8), (8 + bar * scale, side - 8)], fill=INK, width=2)
    text = f"{bar:g} m" if metric else f"{bar:g} of no unit"
    draw.text((8, side - 24), text, fill=INK, font=ImageFont.load_default(size=11))
    return picture


def _tile(frame: Frame) -> Image.Image:
    image = Image.fromarray(frame)
    return image.resize((max(1, round(image.width * SIDE / image.height)), SIDE))


def _accepted_table(records: Records, accepted: list[Record]) -> str:
    rows = []
    for record in accepted:
        poses, scale = records.find(record.clip, "poses"), records.find(record.clip, "scale")
        guards = records.arrays(record.clip, "guards")
        assert poses is not None and scale is not None
        steps = np.linalg.norm(np.diff(guards["c2w"][:, :3, 3], axis=0), axis=1)
        width = records.find(record.clip, "shots").values["clip_size"][1]  # type: ignore[union-attr]
        fov = np.degrees(2 * np.arctan(width / 2 / np.median(guards["intrinsics_px"][:, 0])))
        residual = poses.values["residual_px"]
        rows.append(
            [
                record.clip,
                f"{poses.values['registered']} of {poses.values['frames']}",
                f"{steps.sum():.2f} {'m' if scale.values['metric'] else ''}".strip(),
                f"{fov:.1f}",
                "-" if residual is None else f"{residual:.2f}",
                scale.values["source"],
                poses.values["backend"],
            ]
        )
    titles = (
        "clip",
        "frames with poses",
        "path",
        "field of view °",
        "residual px",
        "metres from",
        "poses by",
    )
    return markdown_table(titles, rows) if rows else "None."


def _rejected_table(rejected: list[Record]) -> str:
    rows = [[record.clip, record.stage, record.reason, record.cause] for record in rejected]
    return markdown_table(("clip", "stage", "reason", "cause"), rows) if rows else "None."


def _time_table(seconds: Mapping[str, float], clips: int) -> str:
    total = sum(seconds.values())
    rows = [
        [stage, f"{value:.1f}", f"{value / total:.0%}" if total else "-", f"{value / max(1, clips):.2f}"]
        for stage, value in seconds.items()
    ]
    rows.append(["all", f"{total:.1f}", "100%", f"{total / max(1, clips):.2f}"])
    hourly = f"\n\n{3600 * clips / total:.0f} clips per hour of one process." if total else ""
    return markdown_table(("stage", "seconds", "share", "seconds per clip"), rows) + hourly
