"""SANA-WM, a camera-controlled video world model, as a Gymnasium environment.

Importing this package registers the environments and nothing more: torch is loaded by `gymnasium.make`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register

from . import _moved  # noqa: F401  # old names of modules go on working

if TYPE_CHECKING:
    from sana_wm_env.model.state import WorldState
    from sana_wm_env.model.world import WorldModel

    from .env import SanaWMEnv, restore
    from .keys import keys_to_path
    from .recorder import RecordChunks
    from .rooms.env import RoomsEnv
    from .tasks import Task
    from .vector import SanaWMVectorEnv
    from .wrappers import ChunkToChannels, DiscreteKeys, LastFrame, PoseObservation

__all__ = [
    "ChunkToChannels",
    "DiscreteKeys",
    "LastFrame",
    "PoseObservation",
    "RecordChunks",
    "RoomsEnv",
    "SanaWMEnv",
    "SanaWMVectorEnv",
    "Task",
    "WorldModel",
    "WorldState",
    "keys_to_path",
    "restore",
]
__version__ = "0.1.0"

# One minute: 40 chunks of 1.5 s. Strings as entry points keep this import light and the specs serialisable.
_IMAGINED: dict[str, Any] = {"entry_point": "sana_wm_env.env:SanaWMEnv", "vector_entry_point": "sana_wm_env.vector:SanaWMVectorEnv"}
register(id="SanaWM-v0", max_episode_steps=40, **_IMAGINED)
register(id="SanaWM-Rooms-v0", entry_point="sana_wm_env.rooms.env:RoomsEnv", max_episode_steps=40)
for _task in ("goal", "follow"):
    _options = {"task": _task, "obs_mode": "dict"}
    register(id=f"SanaWM-{_task.title()}-v0", max_episode_steps=40, kwargs=_options, **_IMAGINED)
    register(id=f"SanaWM-Rooms{_task.title()}-v0", entry_point="sana_wm_env.rooms.env:RoomsEnv", max_episode_steps=40, kwargs=_options)

_HOME = {
    "ChunkToChannels": "wrappers",
    "DiscreteKeys": "wrappers",
    "LastFrame": "wrappers",
    "PoseObservation": "wrappers",
    "RecordChunks": "recorder",
    "RoomsEnv": "rooms.env",
    "SanaWMEnv": "env",
    "SanaWMVectorEnv": "vector",
    "Task": "tasks",
    "WorldModel": "model.world",
    "WorldState": "model.state",
    "keys_to_path": "keys",
    "restore": "env",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
