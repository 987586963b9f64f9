"""The scenes of the one-minute benchmark: a first picture, a camera path of 961 frames, a prompt. Read from a
folder, or made of rooms.

The folder is laid out as the published dataset is (`Efficient-Large-Model/SANA-WM-Bench`, described in the
authors' guide "SANA-WM 80-Scene Benchmark"):

    images/<scene>.png
    scene_set/kept_scenes.txt                            one scene a line
    benchmark_v2_smooth_60s/sanawm_export_v2/            split "simple":
        <scene>.npz             c2w (961, 4, 4), intrinsics (961, 3, 3), fps, num_frames
        run_manifest.jsonl      a line per scene: image_path, camera_path, maybe prompt
    benchmark_v2_hard_60s/sanawm_export_v2/              split "hard", likewise

The rooms edition is written in the same layout, so one reader serves both. What its files hold besides:
`room_seed` and `start` (the first pose in the room), by which the exact video can be rendered. Its paths
follow the published rules, at the scale of a room: waypoints that are visited again, at most 0.4 m/s and 12
degrees a second, 0.3 m away from everything solid.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation

from ..arrays import read_npz
from ..camera import FPS, Array, check_intrinsics, check_poses, intrinsics_matrix, relative_to_first
from ..files import replacing, write_json, write_text
from ..first_frame import FirstFrame
from ..pictures import read_image
from ..progress import progress
from ..rooms import HELD_OUT
from ..rooms.paths import clear
from ..rooms.render import render
from ..rooms.room import open_room
from ..rooms.scene import Scenes, sample_scenes

FRAMES = 961
SPLITS = {"simple": "benchmark_v2_smooth_60s", "hard": "benchmark_v2_hard_60s"}
EXPORT = "sanawm_export_v2"
SPEED_M_S, TURN_DEG_S, MARGIN_M = 0.4, 12.0, 0.3
STOPS = {"simple": [0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 1], "hard": [0, 1, 2, 3, 1, 0, 4, 5, 4, 0, 6, 7, 2, 7, 0]}
"""Places of a room in the order in which they are visited, the first being the start; the published paths
have 11 to 15 stops.
"""
REACH_M = {"simple": 1.6, "hard": 1.2}
"""How far ahead a place lies at most; to the side half of it."""
TURNS_DEG = {"simple": (20.0, 4.0), "hard": (90.0, 12.0)}
"""Yaw to either side, and pitch up or down."""


@dataclass(frozen=True)
class BenchmarkScene:
    """One scene of one split.

    Attributes:
        name: as in the list of scenes.
        split: "simple" or "hard".
        image: uint8 (H, W, 3), the first frame.
        intrinsics_px: (4,) fx, fy, cx, cy in pixels of `image`.
        c2w: (961, 4, 4) camera-to-world relative to the first frame, OpenCV axes, metres.
        prompt: what is in the picture; "" where the folder does not say.
        room_seed: of a room, else None.
        start: (4, 4) the first pose in that room's frame, else None.
    """

    name: str
    split: str
    image: np.ndarray
    intrinsics_px: Array
    c2w: Array
    prompt: str
    room_seed: int | None = None
    start: Array | None = None

    def truth(self, frames: slice, size: tuple[int, int]) -> torch.Tensor | None:
        """Exact pictures uint8 (F, H, W, 3) of a room along the path; None for any other scene."""
        if self.room_seed is None or self.start is None:
            return None
        poses = torch.from_numpy(self.start @ self.c2w[frames])[None]
        return render(sample_scenes([self.room_seed]), poses, tuple(self.intrinsics_px), size).rgb[0]


def scene_names(folder: Path) -> list[str]:
    """Lists the scenes of a folder. FileNotFoundError that says what belongs there."""
    path = folder / "scene_set" / "kept_scenes.txt"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; wanted the benchmark as published (huggingface-cli download "
            "Efficient-Large-Model/SANA-WM-Bench "
            f"--repo-type dataset --local-dir {folder}) or as `sana-wm evaluate benchmark` makes it of rooms"
        )
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def read_scenes(folder: Path, split: str, count: int | None = None) -> Iterator[BenchmarkScene]:
    """Reads the first `count` scenes of a split (default: all), one at a time.

    Raises:
        ValueError: unknown split, a path of another length or rate, changing intrinsics, or poses that
            `camera.check_poses` refuses.
        FileNotFoundError: names the file.
    """
    if split not in SPLITS:
        raise ValueError(f"got split={split!r}; wanted one of {', '.join(SPLITS)}")
    export = folder / SPLITS[split] / EXPORT
    manifest = _manifest(export / "run_manifest.jsonl")
    for name in scene_names(folder)[:count]:
        row = manifest.get(name, {})
        camera = folder / row.get("camera_path", f"{SPLITS[split]}/{EXPORT}/{name}.npz")
        picture = folder / row.get("image_path", f"images/{name}.png")
        file = _read_camera(camera)
        fps, c2w = float(file["fps"]), check_poses(file["c2w"], FRAMES, f"{camera}: c2w")
        intrinsics = np.asarray(file["intrinsics"], np.float64)
        room, start = int(file["room_seed"]) if "room_seed" in file else None, file.get("start")
        if fps != FPS:
            raise ValueError(f"got {camera} at {fps:g} fps; wanted {FPS}")
        if intrinsics.shape != (FRAMES, 3, 3) or np.abs(intrinsics - intrinsics[0]).max() > 1e-3:
            raise ValueError(
                f"got {camera} with intrinsics {intrinsics.shape} that change or have another shape; wanted "
                f"({FRAMES}, 3, 3)"
            )
        image = read_image(picture)
        fixed = check_intrinsics(intrinsics[0], image.shape[:2], f"{camera}: intrinsics")
        yield BenchmarkScene(
            name, split, image, fixed, relative_to_first(c2w), str(row.get("prompt", "")), room, start
        )


def _read_camera(path: Path) -> dict[str, Any]:
    """The arrays of a scene's camera; an error names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"got no {path}; wanted the camera of a scene there")
    try:
        found = read_npz(path)
    except ValueError as error:
        raise ValueError(f"got {path}, which cannot be read ({error}); download it again") from None
    if missing := sorted({"fps", "c2w", "intrinsics"} - set(found)):
        raise ValueError(f"got {path} without {', '.join(missing)}; wanted fps, c2w and intrinsics")
    return found


def _manifest(path: Path) -> dict[str, dict]:
    """Rows by scene: the name of the file with the camera's path is the scene's name."""
    if not path.exists():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {Path(row["camera_path"]).stem: row for row in rows if "camera_path" in row}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"got {path}, which is no list of scenes ({error}); download it again") from None


# ---- the rooms edition


def write_rooms(folder: Path, count: int, seed: int, size: tuple[int, int]) -> None:
    """Makes the scenes of the rooms edition that are not there yet: the same seed always makes the same
    files.

    Args:
        folder: where; the layout is the published one.
        count: scenes, each with a path of either split.
        seed: scene i is the held-out room number seed + i.
        size: height and width of the first frames.

    Raises:
        ValueError: `folder` holds scenes of another seed or another size, or scenes that are not rooms.
    """
    settings = {"rooms_seed": seed, "size": list(size)}
    recipe = folder / "rooms.json"
    if recipe.exists() and json.loads(recipe.read_text()) != settings:
        raise ValueError(
            f"got {folder} with scenes made by {recipe.read_text().strip()}; wanted {settings}: give another "
            "folder, or that seed"
        )
    if not recipe.exists() and (folder / "scene_set").exists():
        raise ValueError(
            f"got {folder}, which holds scenes that are not rooms; to run them give it as --scene-folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(recipe, settings)
    names = [f"room_{i + 1:03d}" for i in range(count)]
    for i, name in enumerate(progress(names, desc="scenes", unit="scene", disable=count < 4)):
        if not (folder / SPLITS["hard"] / EXPORT / f"{name}.npz").exists():
            _write_room(folder, name, HELD_OUT + seed + i, size)
    for directory in SPLITS.values():
        rows = [
            {
                "image_path": f"images/{n}.png",
                "camera_path": f"{directory}/{EXPORT}/{n}.npz",
                "prompt": _prompt(HELD_OUT + seed + i),
            }
            for i, n in enumerate(names)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_text(folder / directory / EXPORT / "run_manifest.jsonl", lines)
    write_text(folder / "scene_set" / "kept_scenes.txt", "\n".join(names) + "\n")


def _prompt(room_seed: int) -> str:
    return open_room(room_seed).caption


def _write_room(folder: Path, name: str, room_seed: int, size: tuple[int, int]) -> None:
    room = open_room(room_seed)
    first = FirstFrame.of_room(room, size)
    with replacing(folder / "images" / f"{name}.png") as part:
        Image.fromarray(first.image).save(part, "png")
    for split, directory in SPLITS.items():
        c2w = relative_to_first(room_path(room.scenes, room.start, room_seed, split))
        path = folder / directory / EXPORT / f"{name}.npz"
        matrices = np.tile(intrinsics_matrix(first.intrinsics_px), (FRAMES, 1, 1))
        metadata = {"fps": FPS, "num_frames": FRAMES, "room_seed": room_seed, "start": room.start}
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, c2w=c2w, intrinsics=matrices, **metadata)


def room_path(scenes: Scenes, start: Array, seed: int, split: str) -> Array:
    """A path (961, 4, 4) in the room's frame that begins at `start`, goes through waypoints and comes back to
    several of them.

    `simple` walks out and back over five places, looking much the same way. `hard` visits eight places, turns
    up to a quarter circle to either side, looks up and down, and comes back to places out of order. Where a
    path would come too near to something solid or be too fast, it shrinks towards its start, by 30 % each
    time (published: slows by 30 %).
    """
    rng = np.random.default_rng([seed, 4, list(SPLITS).index(split)])
    order = np.array(STOPS[split])
    heading = np.arctan2(start[0, 2], start[2, 2])
    forward = np.array([np.sin(heading), 0, np.cos(heading)])
    side = np.array([np.cos(heading), 0, -np.sin(heading)])
    for attempt in range(64):
        drawn = rng.uniform(-1, 1, (order.max() + 1, 5))
        drawn[0] = 0  # the first place is the start
        shift = (
            np.abs(drawn[:, :1]) * forward
            + 0.5 * drawn[:, 1:2] * side
            + 0.12 * drawn[:, 2:3] * np.array([0, 1, 0])
        )
        shift, turns = REACH_M[split] * shift, drawn[:, 3:] * np.radians(TURNS_DEG[split])
        shrink = 0.7 ** (attempt // 8)
        path = _interpolate(start, shrink * shift[order], shrink * turns[order])
        if _fits(scenes, path):
            return path
    # obstacles on all sides: the camera only looks around
    return _interpolate(start, np.zeros((len(order), 3)), 0.05 * turns[order])


def _interpolate(start: Array, shifts: Array, turns: Array) -> Array:
    """Smooth poses through the stops: shifts (stops, 3) in metres, turns (stops, 2) as yaw to the right and
    pitch up, radians.

    Time is shared out by what each leg takes at full speed; a monotone cubic rests at turning points and
    never overshoots a place.
    """
    distances, angles = (np.diff(values, axis=0) for values in (shifts, np.degrees(turns)))
    legs = np.maximum(np.linalg.norm(distances, axis=1) / SPEED_M_S, np.abs(angles).max(1) / TURN_DEG_S)
    times = np.r_[0, np.cumsum(legs + 0.8)]
    times *= (FRAMES - 1) / FPS / times[-1]
    smooth = PchipInterpolator(times, np.concatenate([shifts, turns], 1))(np.arange(FRAMES) / FPS)  # (961, 5)
    poses = np.tile(start, (FRAMES, 1, 1))
    poses[:, :3, 3] += smooth[:, :3]
    # About the room's vertical, which points down: a positive angle turns to the right.
    yaw, pitch = (
        Rotation.from_rotvec(smooth[:, [column]] * axis).as_matrix()
        for column, axis in ((3, [0, 1, 0]), (4, [1, 0, 0]))
    )
    poses[:, :3, :3] = yaw @ start[:3, :3] @ pitch
    return poses


def _fits(scenes: Scenes, path: Array) -> bool:
    """Slow enough, and clear of everything solid."""
    speed = np.linalg.norm(np.diff(path[:, :3, 3], axis=0), axis=1).max() * FPS
    turning = (
        Rotation.from_matrix(path[:-1, :3, :3].swapaxes(1, 2) @ path[1:, :3, :3]).magnitude().max() * FPS
    )
    free = bool(clear(scenes, torch.from_numpy(path[None, :, :3, 3]), MARGIN_M).all())
    return speed <= SPEED_M_S and np.degrees(turning) <= TURN_DEG_S and free
