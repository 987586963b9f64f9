"""Reads LeRobotDataset v3: episodes back, and what is wrong with a dataset, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..video import open_video
from .layout import CAMERA, COLUMNS, Recorded
from .sources import read_frames
from .writer import read_episode_rows, read_info, read_tasks

MOST_FAULTS = 20
OURS = ("camera.c2w", "camera.intrinsics_px", "action", "next.reward", "has_action")


def read_episodes(root: str | Path) -> Iterator[Recorded]:
    """Episodes of a dataset that was exported here. Frames are what the video still has of them.

    Raises:
        ValueError: no dataset of version 3, or one without the columns that say where the camera was.
    """
    root = Path(root)
    info = read_info(root)
    if missing := [name for name in (*OURS, CAMERA) if name not in info["features"]]:
        raise ValueError(
            f"got {root} without {', '.join(missing)}; wanted a dataset that `sana-wm dataset export` wrote: "
            "others do not say where the camera was"
        )
    tasks = read_tasks(root)
    for row in read_episode_rows(root):
        columns = read_columns(root, info, row)
        began = round(row[f"videos/{CAMERA}/from_timestamp"] * info["fps"])
        frames = read_frames(video_of(root, info, row, CAMERA), began, began + row["length"])
        yield _to_recorded(columns, frames, tasks, row)


def read_columns(root: Path, info: dict[str, Any], row: dict[str, Any]) -> dict[str, np.ndarray]:
    """The rows of one episode by column, (F,) or (F, n)."""
    place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
    table = pq.read_table(root / info["data_path"].format(**place))
    table = table.filter(pa.array(table["episode_index"].to_numpy() == row["episode_index"]))
    return {name: np.array(table[name].to_pylist()) for name in table.column_names if name in COLUMNS}


def video_of(root: Path, info: dict[str, Any], row: dict[str, Any], key: str) -> Path:
    """The video that an episode lies in."""
    place = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
    return root / info["video_path"].format(video_key=key, **place)


def _to_recorded(
    columns: dict[str, np.ndarray], frames: np.ndarray, tasks: list[str], row: dict[str, Any]
) -> Recorded:
    driven = columns["action"][columns["has_action"].astype(bool)].astype(np.float32)
    per_step = 24
    chunks = driven.reshape(-1, per_step, 6)
    pieces = next(
        n for n in (1, 3, per_step) if (chunks == chunks[:, :: per_step // n].repeat(per_step // n, 1)).all()
    )
    return Recorded(
        frames,
        columns["camera.c2w"].reshape(-1, 4, 4),
        columns["camera.intrinsics_px"][0],
        chunks[:, :: per_step // pieces].reshape(len(chunks), -1),
        columns["next.reward"][per_step - 1 :: per_step],
        tasks[int(columns["task_index"][0])],
        int(row.get("seed") or 0) if row.get("seed") is not None else -1,
    )


def find_faults(root: str | Path) -> list[str]:
    """What is wrong with a dataset, a line each; nothing is a good sign. Every video is decoded.

    Raises:
        ValueError: no dataset of version 3 at all.
    """
    root = Path(root)
    info = read_info(root)
    rows, faults = read_episode_rows(root), []
    if len(rows) != info["total_episodes"]:
        faults.append(f"info.json counts {info['total_episodes']} episodes; meta/episodes has {len(rows)}")
    expected, ends = 0, {}
    for number, row in enumerate(rows):
        name = f"episode {number}"
        if row["episode_index"] != number:
            faults.append(f"{name} has the number {row['episode_index']}")
        if row["dataset_from_index"] != expected:
            faults.append(
                f"{name} begins at row {row['dataset_from_index']}; the one before ends at {expected}"
            )
        expected = row["dataset_to_index"]
        faults += [f"{name}: {fault}" for fault in _check_rows(root, info, row)]
        for key in (key for key, feature in info["features"].items() if feature["dtype"] == "video"):
            faults += [f"{name}: {fault}" for fault in _check_video(root, info, row, key, ends)]
    if expected != info["total_frames"]:
        faults.append(f"info.json counts {info['total_frames']} frames; the episodes have {expected}")
    found = sum(pq.read_metadata(file).num_rows for file in (root / "data").glob("*/*.parquet"))
    if found != expected:
        faults.append(f"data/ holds {found} rows; the episodes have {expected}")
    return faults


def _check_rows(root: Path, info: dict[str, Any], row: dict[str, Any]) -> list[str]:
    try:
        columns = read_columns(root, info, row)
    except (OSError, pa.ArrowException) as error:
        return [f"its rows cannot be read ({str(error).splitlines()[0]})"]
    count, faults = row["length"], []
    if row["dataset_to_index"] - row["dataset_from_index"] != count or len(columns["index"]) != count:
        return [f"has {len(columns['index'])} rows; its length is {count}"]
    wanted = np.arange(count)
    if not np.array_equal(columns["frame_index"], wanted):
        faults.append(f"frame_index is not 0 to {count - 1}")
    if not np.array_equal(columns["index"], row["dataset_from_index"] + wanted):
        faults.append("index does not count on from dataset_from_index")
    if np.abs(columns["timestamp"] - wanted / info["fps"]).max() > 1e-4:
        faults.append(f"timestamp is not frame_index / {info['fps']}")
    return faults


def _check_video(
    root: Path, info: dict[str, Any], row: dict[str, Any], key: str, ends: dict[Path, float]
) -> list[str]:
    """ends: of what was found so far in each file."""
    path = video_of(root, info, row, key)
    begin, end = row[f"videos/{key}/from_timestamp"], row[f"videos/{key}/to_timestamp"]
    faults = []
    if abs(begin - ends.get(path, 0.0)) > 0.5 / info["fps"]:
        faults.append(
            f"begins at {begin:g} s of {path.name}; what is before it ends at {ends.get(path, 0.0):g} s"
        )
    ends[path] = end
    if abs((end - begin) * info["fps"] - row["length"]) > 0.5:
        faults.append(
            f"lasts {end - begin:g} s of video, {row['length']} frames last {row['length'] / info['fps']:g}"
        )
    try:
        with open_video(path) as container:
            count = sum(1 for _ in container.decode(container.streams.video[0]))
    except (OSError, ValueError, IndexError) as error:
        return [*faults, f"{path.name} cannot be read ({error})"]
    if end * info["fps"] > count + 0.5:
        faults.append(f"ends at {end:g} s, past the end of {path.name} with {count / info['fps']:g} s")
    return faults
