"""Which tool wrote a file, and its reader."""

import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sana_wm_env.camera import check_poses

from .colmap import find_model, read_colmap
from .fields import FormatError, Track, read_json
from .nerfstudio import read_nerfstudio
from .phones import find_arkit_pose, read_arkit, read_record3d
from .realestate10k import read_realestate10k


def read_track(source: Path, kind: str, size: tuple[int, int] | None = None, bent: bool = False) -> Track:
    """The cameras in a file or a folder of another tool.

    Args:
        source: what the tool wrote.
        kind: one of `FORMATS`, or "auto" to have it recognised.
        size: (height, width) of the pictures, for formats that do not say.
        bent: take lenses with distortion for pinholes.

    Raises:
        ValueError: another format, a broken file, cameras that no pinhole is.
    """
    if kind == "auto":
        kind = recognise(source) or ""
        if not kind:
            raise ValueError(
                f"got {source}, which is none of {', '.join(FORMATS)}; wanted one, or --from FORMAT"
            )
    if kind not in FORMATS:
        raise ValueError(f"got the format {kind!r}; wanted one of {', '.join(FORMATS)}")
    if not source.exists():
        raise ValueError(f"got {source}; there is no such file or folder")
    try:
        track = FORMATS[kind](source, size, bent)
        return replace(track, c2w=check_poses(track.c2w, name=f"{kind} poses"))
    except FormatError as error:
        raise ValueError(f"{source}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{source}: {_in_one_line(error)}; wanted what {kind} writes") from None
    except (
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        OverflowError,
        struct.error,
        RecursionError,
    ) as error:
        raise ValueError(f"{source}: a part is missing or of another kind ({_in_one_line(error)})") from None
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{source}: cannot be read ({_in_one_line(error)})") from None


def recognise(source: Path) -> str | None:
    """Which of `FORMATS` a file or a folder holds, None if none."""
    if source.is_dir():
        if (source / "transforms.json").is_file():
            return "nerfstudio"
        if (source / "metadata.json").is_file() or (source / "metadata").is_file():
            return "record3d"
        return "colmap" if find_model(source) else None
    if source.suffix == ".r3d":
        return "record3d"
    if source.name in ("images.txt", "images.bin", "cameras.txt", "cameras.bin"):
        return "colmap"
    if source.suffix == ".txt" and source.is_file():
        with source.open("rb") as file:
            head = file.read(4096).decode(errors="replace").splitlines()
        rows = [line.split() for line in head if line.strip()]
        return "realestate10k" if len(rows) > 1 and any(len(row) == 19 for row in rows[:3]) else None
    try:
        return recognise_fields(read_json(source))
    except (ValueError, OSError, RecursionError):
        return None


def recognise_fields(fields: Any) -> str | None:
    """Which of `FORMATS` the content of a .json is, None if none."""
    if isinstance(fields, list) and fields and isinstance(fields[0], dict) and find_arkit_pose(fields[0]):
        return "arkit"
    if not isinstance(fields, dict) or "c2w" in fields or "w2c" in fields:
        return None
    if "poses" in fields and ("K" in fields or "perFrameIntrinsicCoeffs" in fields):
        return "record3d"
    frames = fields.get("frames")
    if not (isinstance(frames, list) and frames and isinstance(frames[0], dict)):
        return None
    if "transform_matrix" in frames[0]:
        return "nerfstudio"
    return "arkit" if find_arkit_pose(frames[0]) else None


def hint_beside(video: Path) -> str:
    """What to run where a video has no sidecar but cameras of another tool beside it; "" otherwise."""
    beside = [video.with_suffix(".txt"), video.parent / "transforms.json", video.parent / "images.txt"]
    beside += [video.parent / "images.bin", video.parent / "sparse" / "0", video.parent / "metadata.json"]
    beside += [video.with_suffix(".r3d")]
    for source in beside:
        if source.exists() and (kind := recognise(source)):
            command = f"sana-wm data import {source} --from {kind} --video {video}"
            return f"; {source.name} holds the cameras of {kind}: `{command}`"
    return ""


def _in_one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:400]


FORMATS: dict[str, Callable[[Path, tuple[int, int] | None, bool], Track]] = {
    "nerfstudio": read_nerfstudio,
    "colmap": read_colmap,
    "realestate10k": read_realestate10k,
    "record3d": read_record3d,
    "arkit": read_arkit,
}
"""What can be read, by the name that `--from` takes."""
