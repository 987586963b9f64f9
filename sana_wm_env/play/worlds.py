"""The environment that is played, the room behind it if it is known, and that room from above."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..base import CameraEnv
    from ..episode import Episode
    from ..observations import Frames
    from ..rooms.env import RoomsEnv
    from ..rooms.room import Room

DUMMY = "dummy"
WARM_UP = 3
"""Chunks that are imagined before the first visitor comes: the first ones take longer."""
ROOMS = 48


@dataclass(frozen=True)
class WorldChoice:
    """Which environment, and how it is made.

    Attributes:
        env: id of an environment, or "dummy".
        world: of an imagined one: a bundled world, the folder of a trained one, a downloaded repository.
        device: where it runs.
        dtype: see `SanaWMEnv`.
        precision: see `SanaWMEnv`.
        refiner: see `SanaWMEnv`.
        delay: of "dummy": seconds that a chunk takes.
    """

    env: str = "SanaWM-v0"
    world: str = "tiny-rooms"
    device: str = "cpu"
    dtype: str | None = None
    precision: str | None = None
    refiner: str | None = None
    delay: float = 0.2

    @property
    def imagines(self) -> bool:
        """Whether a model imagines what is seen."""
        return self.env != DUMMY and "Rooms" not in self.env

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of `gymnasium.make`."""
        if not self.imagines:
            return {"obs_mode": "dict", "device": self.device}
        chosen = {"dtype": self.dtype, "precision": self.precision, "refiner": self.refiner}
        given = {name: value for name, value in chosen.items() if value is not None}
        return {"obs_mode": "dict", "world": self.world, "device": self.device, **given}


def check_env(name: str) -> None:
    """ValueError for what is neither the id of an environment of this package nor "dummy"."""
    import gymnasium as gym

    known = [entry for entry in gym.registry if entry.startswith("SanaWM-")]
    if name not in (*known, DUMMY):
        raise ValueError(f"got --env {name}; wanted one of {', '.join(known)}, or {DUMMY}")


def open_world(choice: WorldChoice, report: Callable[[str], None]) -> CameraEnv:
    """Returns the environment of a choice, ready to be stepped.

    Args:
        choice: which one.
        report: is told what is being done, in words for whoever waits.

    Raises:
        ValueError, FileNotFoundError, ImportError: as `gymnasium.make` and the first reset.
    """
    report("Waking up PyTorch")
    import gymnasium as gym

    from .. import env as _  # noqa: F401  # torch and all that follows, while the page shows what is going on

    if choice.env == DUMMY:
        from .dummy import DummyEnv

        return DummyEnv(choice.delay, obs_mode="dict", device=choice.device)
    check_env(choice.env)
    env: Any = gym.make(choice.env, disable_env_checker=True, **choice.arguments()).unwrapped
    if choice.imagines:
        report(f"Loading the weights of {env.world}")
        first_frames = env.model.config.first_frames
        if first_frames == "rooms":
            report("Imagining a first chunk")
            warm_up(env)
    return env


def warm_up(env: CameraEnv) -> None:
    """Imagines some chunks that nobody sees, so that a visitor's first ones are fast."""
    other = env.twin()
    other.reset(seed=0)
    for _ in range(WARM_UP):
        other.step(np.zeros(other.action_space.shape, np.float32))


def begins_in_rooms(env: CameraEnv) -> bool:
    """Returns True if the environment has first frames of its own."""
    from ..env import SanaWMEnv

    return not isinstance(env, SanaWMEnv) or env.model.config.first_frames == "rooms"


@dataclass(frozen=True)
class Opening:
    """How an episode was begun: all that it takes to begin it so again, and the room behind it.

    Attributes:
        seed: of the reset.
        options: of the reset.
        room: None where nobody knows what is behind the picture.
        caption: what the world was told to imagine.
    """

    seed: int
    options: dict[str, Any]
    room: Room | None
    caption: str


def begin(env: CameraEnv, seed: int, options: dict[str, Any]) -> Opening:
    """Resets an environment. Raises as its `reset` does, and then leaves it as it was."""
    env.reset(seed=seed, options={**options, "keep_options": False})
    room = None if options.get("image") is not None else room_of(env, seed, options.get("room"))
    caption = options.get("prompt")
    if caption is None:
        caption = "" if room is None else room.caption
    return Opening(seed, options, room, caption)


def room_of(env: CameraEnv, seed: int, wish: Any) -> Room:
    """The room in which an environment begins with a seed: the exact rooms begin in the same one."""
    from ..rooms.env import RoomsEnv

    if isinstance(env, RoomsEnv):
        return env.episode.state
    exact: RoomsEnv = RoomsEnv(image_size=(16, 16))
    exact.reset(seed=seed, options={} if wish is None else {"room": wish})
    return exact.episode.state


def shows_truth_itself(env: CameraEnv) -> bool:
    """Returns True if the environment is the truth."""
    from ..rooms.env import RoomsEnv

    return isinstance(env, RoomsEnv)


def true_frames(room: Room, c2w: np.ndarray, episode: Episode, size: tuple[int, int]) -> Frames:
    """What the room really shows from poses (F, 4, 4): uint8 (F, H, W, 3)."""
    from ..rooms.room import look

    return look(room, c2w, episode.intrinsics_px, size)


def stands_in_the_open(room: Room | None, c2w: np.ndarray) -> bool:
    """Returns False if the camera (4, 4) is inside something solid."""
    from ..rooms.room import stands_clear

    return True if room is None else bool(stands_clear(room, c2w[None])[0])


def keep_clear(env: CameraEnv, room: Room, action: np.ndarray) -> np.ndarray:
    """Returns an action (6,) that turns as before, and walks as far as nothing solid is near."""
    from ..rooms.room import stands_clear

    for share in (1.0, 0.66, 0.33):
        shorter = action * np.repeat(np.array([share, 1], np.float32), 3)
        if stands_clear(room, env.rules.wish(env.episode, shorter)[[11, 23]]).all():
            return shorter
    if not stands_clear(room, env.episode.c2w[None])[0]:
        return action  # who is inside may walk out
    return action * np.repeat(np.array([0, 1], np.float32), 3)


def map_of(room: Room | None) -> dict[str, Any] | None:
    """The room from above as plain values, metres in its own frame (x to the right, z up): `air` and `solids`
    as [x0, z0, x1, z1], a colour behind each, and where the camera first stood as (4, 4) in rows.
    """
    from ..rooms.floor_plan import read_plan

    if room is None:
        return None
    plan = read_plan(room)

    def rows(boxes: np.ndarray) -> list[list[float]]:
        return [[round(float(v), 3) for v in (*box[0, [0, 2]], *box[1, [0, 2]])] for box in boxes]

    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in plan.colours]
    return {
        "air": rows(plan.air),
        "solids": [[*box, colour] for box, colour in zip(rows(plan.solids), colours, strict=False)],
        "floor": "#{:02x}{:02x}{:02x}".format(*plan.floor),
        "start": room.start.tolist(),
    }


def picture_of_room(number: int, side: int = 64) -> Frames:
    """A home room as its episodes may begin: uint8 (side, side, 3). For the list of rooms."""
    from ..first_frame import FirstFrame
    from ..rooms.room import choose_room

    return FirstFrame.of_room(choose_room(number, number), (side, side)).image


def save_episode(env: CameraEnv, episode: Episode, path: Any) -> None:
    """Writes the state of an episode as `save_state` of its environment has it."""
    from ..base import Start

    other: Any = env.twin()
    other.begin(Start(episode), None)
    other.save_state().save(path)


def load_episode(env: CameraEnv, path: Any) -> Episode:
    """Reads what `save_episode` wrote, as from a stranger.

    Raises:
        ValueError, FileNotFoundError: as the state's `load`, or a state of another world, task or size.
    """
    from ..rooms.env import RoomsEnv
    from ..rooms.state import RoomsState

    kind: Any = RoomsState
    if not isinstance(env, RoomsEnv):
        from sana_wm_env.model.state import WorldState

        kind = WorldState
    return env.twin().check_options({"state": kind.load(path)}).how
