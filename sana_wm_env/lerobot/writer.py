"""Writes LeRobotDataset v3. Every episode makes a new folder out of links to the files that stay and new
files for those that change, and the two folders swap names in one move: a reader, and whoever comes after a
crash, finds whole episodes alone.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..camera import FPS
from ..files import replacing_folder, write_json
from ..numbers import to_number
from ..video import check_crf, name_literally, open_video
from .layout import (
    CAMERA,
    DATA,
    EPISODES,
    FILE,
    FILES_PER_CHUNK,
    INFO,
    STATS,
    TASKS,
    VERSION,
    VIDEO,
    Recorded,
    describe_features,
    to_table,
)

MIB = 2**20


class LeRobotWriter:
    """Adds episodes to a dataset, a new one or one that this class has begun.

    Args:
        root: the dataset's folder.
        data_mb, video_mb: MiB after which the next episode begins a new file. The newest file is written anew
            with each episode, so large ones cost time.
        crf: x264's constant rate factor; 12 looks lossless.

    Raises:
        ValueError: a folder that holds something else, or another version.
    """

    def __init__(self, root: str | Path, *, data_mb: float = 32, video_mb: float = 32, crf: int = 12):
        self.root, self.crf = Path(root), check_crf(crf)
        self.data_mb, self.video_mb = to_number(data_mb, "data_mb"), to_number(video_mb, "video_mb")
        self.episodes: list[dict[str, Any]] = []
        self.tasks: list[str] = []
        if self.root.exists() and any(self.root.iterdir()):
            info = read_info(self.root)
            self.episodes = read_episode_rows(self.root)
            self.tasks = read_tasks(self.root)
            _, height, width = None, *info["features"][CAMERA]["shape"][:2]
            self.size: tuple[int, int] | None = (height, width)
        else:
            self.size = None

    def add(self, episode: Recorded) -> None:
        """Adds an episode; when this returns it is there, and before not a byte of it.

        Raises:
            ValueError: frames of another size than those before.
        """
        frames = _even(episode.frames)
        size = frames.shape[1], frames.shape[2]
        if self.size not in (None, size):
            raise ValueError(
                f"got frames of {size} pixels after frames of {self.size}; a dataset has one size"
            )
        tasks = self.tasks if episode.task in self.tasks else [*self.tasks, episode.task]
        last = self.episodes[-1] if self.episodes else None
        number, first = len(self.episodes), last["dataset_to_index"] if last else 0
        columns = episode.columns(number, first, tasks.index(episode.task))
        with replacing_folder(self.root) as part:
            _link(self.root, part)
            data = self._place(part, DATA, "data", self.data_mb)
            _append_rows(part / DATA.format(**data), to_table(columns))
            video = self._place(part, VIDEO, f"videos/{CAMERA}", self.video_mb)
            path = part / VIDEO.format(video_key=CAMERA, **video)
            began = _append_video(path, frames, self.crf)
            row = {
                "episode_index": number,
                "tasks": [episode.task],
                "length": len(frames),
                "data/chunk_index": data["chunk_index"],
                "data/file_index": data["file_index"],
                "dataset_from_index": first,
                "dataset_to_index": first + len(frames),
                f"videos/{CAMERA}/chunk_index": video["chunk_index"],
                f"videos/{CAMERA}/file_index": video["file_index"],
                f"videos/{CAMERA}/from_timestamp": began / FPS,
                f"videos/{CAMERA}/to_timestamp": (began + len(frames)) / FPS,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                "seed": episode.seed,
                **_flatten(describe(columns, frames)),
            }
            episodes = [*self.episodes, row]
            _write_meta(part, episodes, tasks, size, (self.data_mb, self.video_mb))
        self.episodes, self.tasks, self.size = episodes, tasks, size

    def _place(self, part: Path, pattern: str, key: str, limit_mb: float) -> dict[str, int]:
        """Where the next episode goes: the newest file, or one after it where that one is full."""
        if not self.episodes:
            return {"chunk_index": 0, "file_index": 0}
        last = self.episodes[-1]
        place = {"chunk_index": last[f"{key}/chunk_index"], "file_index": last[f"{key}/file_index"]}
        path = part / pattern.format(video_key=CAMERA, **place)
        if path.stat().st_size < limit_mb * MIB:
            return place
        number = place["chunk_index"] * FILES_PER_CHUNK + place["file_index"] + 1
        return {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}


def read_info(root: Path) -> dict[str, Any]:
    """info.json of a dataset; ValueError for a folder that is none, or of another version."""
    try:
        info = json.loads((root / INFO).read_text())
        version, _ = info["codebase_version"], info["features"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"got {root}, which has no readable {INFO}; wanted a LeRobotDataset {VERSION}"
        ) from None
    if version != VERSION:
        raise ValueError(f"got {root} of version {version}; wanted {VERSION}: lerobot converts older ones")
    return info


def read_episode_rows(root: Path) -> list[dict[str, Any]]:
    """The rows of meta/episodes, in order."""
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def read_tasks(root: Path) -> list[str]:
    """Tasks by their index; the name of the column differs between versions of lerobot."""
    table = pq.read_table(root / TASKS)
    names = next(column for column in table.column_names if column != "task_index")
    order = table["task_index"].to_pylist()
    return [task for _, task in sorted(zip(order, table[names].to_pylist(), strict=True))]


def describe(columns: dict[str, np.ndarray], frames: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """min, max, mean, std and count of every column, and of the pictures by channel, (3, 1, 1) in [0, 1]."""
    stats = {}
    for name, values in columns.items():
        rows = values.reshape(len(values), -1).astype(np.float64)
        stats[name] = _moments(rows, (-1,))
    pixels = frames[:: max(1, len(frames) // 32), ::4, ::4].reshape(-1, 3) / 255
    stats[CAMERA] = _moments(pixels, (3, 1, 1)) | {"count": np.array([len(frames)])}
    return stats


def _moments(rows: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    parts = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    return {name: part.reshape(shape) for name, part in parts.items()} | {"count": np.array([len(rows)])}


def _combine(episodes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Statistics of all episodes out of those of each."""
    names = {key.split("/")[1] for key in episodes[0] if key.startswith("stats/")}
    whole = {}
    for name in sorted(names):
        of = {
            part: np.array([row[f"stats/{name}/{part}"] for row in episodes])
            for part in ("min", "max", "mean", "std", "count")
        }
        share = of["count"].reshape(-1, *[1] * (of["mean"].ndim - 1)) / of["count"].sum()
        mean = (share * of["mean"]).sum(0)
        variance = (share * (of["std"] ** 2 + (of["mean"] - mean) ** 2)).sum(0)
        whole[name] = {
            "min": of["min"].min(0).tolist(),
            "max": of["max"].max(0).tolist(),
            "mean": mean.tolist(),
            "std": np.sqrt(variance).tolist(),
            "count": [int(of["count"].sum())],
        }
    return whole


def _flatten(stats: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    return {
        f"stats/{name}/{part}": value.tolist()
        for name, parts in stats.items()
        for part, value in parts.items()
    }


def _write_meta(
    root: Path,
    episodes: list[dict[str, Any]],
    tasks: list[str],
    size: tuple[int, int],
    limits: tuple[float, float],
) -> None:
    path = root / EPISODES.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_parquet(path, pa.Table.from_pylist(episodes))
    table = pa.table({"task": tasks, "task_index": pa.array(range(len(tasks)), pa.int64())})
    _write_parquet(root / TASKS, table.replace_schema_metadata({"pandas": _INDEX_BY_TASK}))
    write_json(root / STATS, _combine(episodes))
    frames = episodes[-1]["dataset_to_index"]
    info = {
        "codebase_version": VERSION,
        "robot_type": "camera",
        "total_episodes": len(episodes),
        "total_frames": frames,
        "total_tasks": len(tasks),
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": limits[0],
        "video_files_size_in_mb": limits[1],
        "fps": FPS,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": DATA,
        "video_path": f"videos/{{video_key}}/{FILE}.mp4",
        "features": describe_features(*size),
    }
    write_json(root / INFO, info)


_INDEX_BY_TASK = json.dumps(
    {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {
                "name": "task_index",
                "field_name": "task_index",
                "pandas_type": "int64",
                "numpy_type": "int64",
                "metadata": None,
            },
            {
                "name": "task",
                "field_name": "task",
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": None,
            },
        ],
        "pandas_version": "2.0.0",
    }
)
"""What tells pandas that rows are found by their task."""


def _link(old: Path, new: Path) -> None:
    """The files of a dataset under another name, without copying where the file system can."""
    for path in sorted(old.rglob("*")) if old.is_dir() else []:
        if path.is_file():
            target = new / path.relative_to(old)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:
                target.write_bytes(path.read_bytes())


def _write_parquet(path: Path, table: pa.Table) -> None:
    """A new file: what has the name may be a link to a file of the old folder."""
    with suppress(FileNotFoundError):
        path.unlink()
    pq.write_table(table, path, compression="snappy", use_dictionary=True)


def _append_rows(path: Path, table: pa.Table) -> None:
    """One row group for each episode."""
    groups = []
    if path.exists():
        file = pq.ParquetFile(path)
        groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, table.schema, compression="snappy") as writer:
        for group in [*groups, table]:
            writer.write_table(group)


def _append_video(path: Path, frames: np.ndarray, crf: int) -> int:
    """Adds frames to a video, whose packets so far are taken as they are; returns how many frames it had.

    A key frame every other frame and none that looks ahead: any frame is found quickly, and files are joined
    without decoding.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    newest, whole = path.with_suffix(".newest"), path.with_suffix(".whole")
    _encode(newest, frames, crf)
    if not path.exists():
        newest.replace(path)
        return 0
    with (
        open_video(path) as old,
        open_video(newest) as new,
        av.open(name_literally(whole), "w", format="mp4", options={"movflags": "+faststart"}) as out,
    ):
        stream = out.add_stream_from_template(old.streams.video[0])
        count = _copy_packets(old, out, stream, 0)
        _copy_packets(new, out, stream, count)
    newest.unlink()
    whole.replace(path)
    return count


def _encode(path: Path, frames: np.ndarray, crf: int) -> None:
    options = {"crf": str(crf), "g": "2", "bf": "0"}
    with av.open(name_literally(path), "w", format="mp4") as out:
        stream: Any = out.add_stream("libx264", rate=FPS, options=options)
        stream.pix_fmt, stream.height, stream.width = "yuv420p", *frames.shape[1:3]
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))


def _copy_packets(source: Any, out: Any, stream: Any, first: int) -> int:
    """Packets as they are, the first of them at frame `first`; returns how many."""
    count = 0
    for packet in source.demux(source.streams.video[0]):
        if packet.dts is not None:
            packet.pts = packet.dts = round((first + count) / FPS / packet.time_base)
            packet.stream = stream
            out.mux(packet)
            count += 1
    return count


def _even(frames: np.ndarray) -> np.ndarray:
    """Frames whose height and width are even, as yuv420p wants: the last line is repeated."""
    odd = frames.shape[1] % 2, frames.shape[2] % 2
    return np.pad(frames, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)), mode="edge") if any(odd) else frames
