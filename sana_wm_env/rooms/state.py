"""A session in an exact room as a value: which room, where the camera is, what the task remembers."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import read_npz
from ..camera import Array, check_intrinsics, check_poses
from ..files import replacing, to_path
from ..numbers import to_whole

FORMAT = "sana-wm-rooms-state-1"
FIELDS = ("c2w", "intrinsics_px", "frame")
ABOUT = ("room_seed", "place", "chunk_index")


@dataclass(frozen=True)
class RoomsState:
    """What `SanaWM-Rooms-v0` needs to go on.

    Attributes:
        room_seed: the room.
        place: the number that drew where the camera first stood; None for the room's own place.
        c2w: (4, 4) float64 pose of the newest frame, relative to the first.
        intrinsics_px: (4,) float64 fx, fy, cx, cy in pixels of the frames.
        frame: uint8 (H, W, 3), the newest frame.
        chunk_index: chunks since the reset.
        task: what the task remembers, arrays by name.
    """

    room_seed: int
    place: int | None
    c2w: Array
    intrinsics_px: Array
    frame: NDArray[np.uint8]
    chunk_index: int
    task: dict[str, NDArray[Any]] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an .npz without anything that is code. It appears whole or not at all; folders are made."""
        arrays = {name: getattr(self, name) for name in FIELDS}
        arrays |= {f"task.{key}": value for key, value in self.task.items()}
        arrays["format"] = np.array(FORMAT)
        arrays["about"] = np.array(json.dumps({name: getattr(self, name) for name in ABOUT}))
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "RoomsState":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or holds what no session can be.
        """
        name = str(to_path(path))
        if not os.path.isfile(path):
            raise FileNotFoundError(f"got {name!r}, which is no file; wanted one that RoomsState.save wrote")
        try:
            file = read_npz(Path(path))
            if str(file["format"]) != FORMAT:
                raise ValueError(f"its format is {str(file['format'])!r}")
            task = {key.removeprefix("task."): file[key] for key in file if key.startswith("task.")}
            about = json.loads(str(file["about"]))
            c2w, intrinsics_px, frame = (file[key] for key in FIELDS)
            room, place, chunks = (about[key] for key in ABOUT)
            state = cls(room, place, c2w, intrinsics_px, frame, chunks, task)
            check_rooms_state(state)
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"got {name!r}, which is damaged or no saved session ({error}); save the state again"
            ) from None
        return state


def check_is_rooms_state(state: Any) -> RoomsState:
    """Returns `state`; ValueError if it is none."""
    if not isinstance(state, RoomsState):
        raise ValueError(
            f"got a {type(state).__name__}; wanted a RoomsState, from save_state or RoomsState.load"
        )
    return state


def check_rooms_state(state: RoomsState) -> None:
    """Refuses what no session can be: ValueError that names the field."""
    for name, value in (
        ("room_seed", state.room_seed),
        ("place", state.place),
        ("chunk_index", state.chunk_index),
    ):
        if not (name == "place" and value is None):
            to_whole(value, name, 0, 2**63 - 1)
    for name in FIELDS:
        if not isinstance(getattr(state, name), np.ndarray):
            raise ValueError(f"got {name} of type {type(getattr(state, name)).__name__}; wanted an array")
    check_poses(state.c2w[None], 1, "c2w")
    frame = state.frame
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or 0 in frame.shape:
        raise ValueError(f"got frame of {frame.dtype} {frame.shape}; wanted uint8 (H, W, 3)")
    check_intrinsics(state.intrinsics_px, (frame.shape[0], frame.shape[1]), "intrinsics_px")
    if not isinstance(state.task, dict) or not all(
        isinstance(key, str) and isinstance(value, np.ndarray) for key, value in state.task.items()
    ):
        raise ValueError("got a task that is no dict of arrays by name; wanted what save_state gives")
