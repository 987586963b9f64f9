"""Worlds that another machine imagines: `sana-wm serve` there, `gym.make("SanaWM-v0", world="wss://...")`
here. The client needs no torch.

In reading order:

wire      messages and arrays as they cross the network
client    `RemoteWorld`, which asks, and asks again after a cut; `RemoteState`, a session that lies there
env       the environment around it, for one and for many
session   one client's states at the server, and its answers, each given once
worker    what a call does to the world
server    who may come in, how much they may have; health and metrics
command   `sana-wm serve`
sglang    SGLang's realtime service: clips along paths that are known in advance
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..extras import check_installed

if TYPE_CHECKING:
    from .client import RemoteState, RemoteWorld, SessionLost
    from .env import RemoteEnv, RemoteVectorEnv

TOKEN = "SANA_WM_TOKEN"
"""Environment variable of the token: what is written into code ends up in data sets and logs."""
_HOME = {
    "RemoteEnv": "env",
    "RemoteState": "client",
    "RemoteVectorEnv": "env",
    "RemoteWorld": "client",
    "SessionLost": "client",
}
__all__ = ["RemoteEnv", "RemoteState", "RemoteVectorEnv", "RemoteWorld", "SessionLost"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    check_installed("msgspec", "sana_wm_env.remote")
    check_installed("websockets", "sana_wm_env.remote")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
