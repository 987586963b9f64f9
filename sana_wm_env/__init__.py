"""SANA-WM, a camera-controlled video world model, as a Gymnasium environment.

Importing this package registers the environments and nothing more: torch is loaded by `gymnasium.make`.

In reading order:

env, episode, imagine      the imagined environment; the rules of a step as pure functions; what-ifs
base, base_vector, vector  Gymnasium's shell around the rules; N of them in one; N sessions in one forward
candidates                 what sequences of actions led to, and playing them
camera                     poses, twists, intrinsics: conventions and checks
actions, keys              from actions and key strings to camera paths
observations, first_frame  what an agent sees; a picture or a room as the start of an episode
pictures                   files, arrays and images of Pillow as uint8 (H, W, 3)
tasks, walks               goal, reward and end of an episode; random walks for them
wrappers, recorder, video  pictures for policies; every frame as mp4 with poses
backends, ray/, remote/    what `make` and `make_vec` make: here, on a cluster, at a server; serving
sb3, minari, minari_files  adapters for Stable-Baselines3 and Minari; datasets that no kill breaks
lerobot/                   episodes as LeRobotDataset v3, and back
rooms/                     procedural rooms, their exact renderer, `SanaWM-Rooms-v0`
worlds/                    bundled weights with their card
evaluation/                measurements against the exact rooms
cli, commands/             `sana-wm`: the table of commands, and those with no folder of their own
arrays                     .npy and .npz of strangers, in bounded memory
outputs, progress, extras  what a command will write, checked first; bars; packages that are not installed
contact_sheet              labelled pictures for reports
files, numbers, machine    whole files, numbers from anything, free memory; native: compiled C++
settings                   the numbers in the flags of commands, checked when they are constructed
model/                     the network and its state (installed from ../model), model/README.md has a map
train/                     training a world (from ../train)
play/                      walking through a world in a browser
agents/                    scripts, planners and policies (from ../agents)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register

from . import _moved  # noqa: F401  # old names of modules go on working

if TYPE_CHECKING:
    from sana_wm_env.model.state import WorldState
    from sana_wm_env.model.world import WorldModel

    from .env import SanaWMEnv
    from .keys import keys_to_path
    from .recorder import RecordChunks, RecordVectorChunks
    from .rooms.env import RoomsEnv
    from .rooms.state import RoomsState
    from .tasks import Task
    from .vector import SanaWMVectorEnv
    from .wrappers import ChunkToChannels, DiscreteKeys, LastFrame, PoseObservation, restore

__all__ = [
    "ChunkToChannels",
    "DiscreteKeys",
    "LastFrame",
    "PoseObservation",
    "RecordChunks",
    "RecordVectorChunks",
    "RoomsEnv",
    "RoomsState",
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
_IMAGINED: dict[str, Any] = {
    "entry_point": "sana_wm_env.backends:make_one",
    "vector_entry_point": "sana_wm_env.backends:make_imagined",
    # Gymnasium's passive checker loses its place when the first reset is refused; tests run the full one
    "disable_env_checker": True,
}
_EXACT: dict[str, Any] = _IMAGINED | {
    "entry_point": "sana_wm_env.rooms.env:RoomsEnv",
    "vector_entry_point": "sana_wm_env.backends:make_exact",
}
register(id="SanaWM-v0", max_episode_steps=40, **_IMAGINED)
register(id="SanaWM-Rooms-v0", max_episode_steps=40, **_EXACT)
for _task in ("goal", "follow"):
    _options = {"task": _task, "obs_mode": "dict"}
    register(id=f"SanaWM-{_task.title()}-v0", max_episode_steps=40, kwargs=_options, **_IMAGINED)
    register(id=f"SanaWM-Rooms{_task.title()}-v0", max_episode_steps=40, kwargs=_options, **_EXACT)

_HOME = {
    "ChunkToChannels": "wrappers",
    "DiscreteKeys": "wrappers",
    "LastFrame": "wrappers",
    "PoseObservation": "wrappers",
    "RecordChunks": "recorder",
    "RecordVectorChunks": "recorder",
    "RoomsEnv": "rooms.env",
    "RoomsState": "rooms.state",
    "SanaWMEnv": "env",
    "SanaWMVectorEnv": "vector",
    "Task": "tasks",
    "WorldModel": "model.world",
    "WorldState": "model.state",
    "keys_to_path": "keys",
    "restore": "wrappers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
