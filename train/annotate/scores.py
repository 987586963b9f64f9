"""Scores by which the paper's table keeps or drops clips: VMAF's motion by FFmpeg where it is built in,
the others from files that other tools have written.

A file is `NAME_SUFFIX.json` (key -> score) or `.jsonl` (a line {"key": ..., "score": ...} per clip) in a
folder, the suffix that of `train/data/filters.py`, the key that of a clip or of its video.
"""

from __future__ import annotations

import json
from pathlib import Path

import av.filter
import numpy as np

from sana_wm_env.video import open_video

from ..data.filters import Ranges


def measure_motion(video: Path) -> float | None:
    """VMAF's motion score, mean over frames; None where FFmpeg was built without it."""
    if "vmafmotion" not in av.filter.filters_available:
        return None
    scores = []
    with open_video(video) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        source, motion, sink = (
            graph.add_buffer(template=stream),
            graph.add("vmafmotion"),
            graph.add("buffersink"),
        )
        source.link_to(motion)
        motion.link_to(sink)
        graph.configure()
        for frame in container.decode(stream):
            source.push(frame)
            score = getattr(sink.pull(), "metadata", {}).get("lavfi.vmafmotion.score")
            scores += [] if score is None else [float(score)]
    return float(np.mean(scores)) if scores else None


def read_scores(folder: Path | None, ranges: Ranges) -> dict[str, dict[str, float]]:
    """Scores by suffix and key, of all files of a folder whose suffix a filter asks for.

    Raises:
        ValueError: a file that cannot be read.
    """
    scores: dict[str, dict[str, float]] = {suffix: {} for suffix in ranges}
    for path in sorted(folder.glob("*.json*")) if folder else []:
        suffix = next((suffix for suffix in ranges if path.stem.endswith(f"_{suffix}")), None)
        if suffix is not None:
            scores[suffix] |= _read(path)
    return scores


def _read(path: Path) -> dict[str, float]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return {key: float(value) for key, value in json.loads(text).items()}
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        return {str(row["key"]): float(row["score"]) for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"got {path}, which holds no scores by key ({error})") from None
