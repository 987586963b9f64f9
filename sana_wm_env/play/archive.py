"""Sessions as files: the present state and how the episode was begun, in one zip. What is opened is checked
as that of a stranger: no part of it is code, and nothing is read beyond what was announced.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .worlds import Opening, load_episode, room_of, save_episode

if TYPE_CHECKING:
    from ..base import CameraEnv
    from ..episode import Episode
    from ..rooms.room import Room

ABOUT, STATE = "about.json", "state"
LARGEST = 2**30
"""Bytes of a state."""
LONGEST_ABOUT = 16384


def save_archive(path: Path, env: CameraEnv, episode: Episode, opening: Opening) -> None:
    """Writes an episode, see `open_archive`."""
    from ..files import replacing

    room = opening.options.get("room")
    about = {
        "world": env.rules.world,
        "seed": opening.seed,
        "room": room if room is None or isinstance(room, int | str) else None,
        "knows_room": opening.room is not None,
        "caption": opening.caption,
    }
    with tempfile.TemporaryDirectory() as folder, replacing(path) as part:
        save_episode(env, episode, Path(folder) / STATE)
        with zipfile.ZipFile(part, "w") as archive:
            archive.writestr(ABOUT, json.dumps(about))
            archive.write(Path(folder) / STATE, STATE)


def open_archive(path: Path, env: CameraEnv) -> tuple[Episode, Opening]:
    """Reads what `save_archive` wrote, or a state alone, as `WorldState.save` writes it.

    Raises:
        ValueError: another kind of file, a damaged one, a state of another world, task or size, or what no
            session can be.
    """
    if not zipfile.is_zipfile(path) or _is_npz(path):
        episode = load_episode(env, path)
        return episode, Opening(0, {"file": True}, _room_behind(env, episode, None), "")
    with tempfile.TemporaryDirectory() as folder:
        about = _unpack(path, Path(folder) / STATE)
        episode = load_episode(env, Path(folder) / STATE)
    options = {"file": True, "room": about["room"]}
    return episode, Opening(about["seed"], options, _room_behind(env, episode, about), about["caption"])


def _room_behind(env: CameraEnv, episode: Episode, about: dict[str, Any] | None) -> Room | None:
    """The room of exact rooms, or the one that a file names; None if nobody knows it."""
    from ..rooms.env import RoomsEnv

    if isinstance(env, RoomsEnv):
        return episode.state
    return room_of(env, about["seed"], about["room"]) if about and about["knows_room"] else None


def _is_npz(path: Path) -> bool:
    """Whether a zip is the state of exact rooms alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            return ABOUT not in archive.namelist()
    except zipfile.BadZipFile:
        return True


def _unpack(path: Path, state: Path) -> dict[str, Any]:
    """Writes the state of an archive to a file and returns what it says about itself, checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if set(members) != {ABOUT, STATE} or len(archive.infolist()) != 2:
                raise ValueError(f"it holds {', '.join(sorted(members))[:80]}")
            if members[ABOUT].file_size > LONGEST_ABOUT or members[STATE].file_size > LARGEST:
                raise ValueError("it declares more than a session has")
            about = json.loads(archive.read(ABOUT))
            with archive.open(STATE) as source, state.open("wb") as target:
                while block := source.read(2**20):
                    target.write(block)
    except (
        OSError,
        RecursionError,
        ValueError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise ValueError(
            f"got a file that is damaged or no saved session ({error or type(error).__name__})"
        ) from None
    return check_about(about)


def check_about(about: Any) -> dict[str, Any]:
    """Returns what a file says of its session; ValueError for what none can say."""
    from ..numbers import to_whole
    from ..rooms import check_room_option

    names = {"world", "seed", "room", "knows_room", "caption"}
    if not isinstance(about, dict) or set(about) != names:
        raise ValueError("got a file whose about.json is not that of a session")
    to_whole(about["seed"], "seed", 0, 2**62)
    check_room_option(about["room"])
    if type(about["knows_room"]) is not bool or not isinstance(about["caption"], str):
        raise ValueError("got a file whose about.json has values of other types than a session's")
    return about | {"caption": about["caption"][:1000]}
