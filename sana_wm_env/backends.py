"""What `gymnasium.make` and `make_vec` make of an id: an environment in this process, one whose world is
imagined at a server, or one whose slots are shared out among workers.
"""

from __future__ import annotations

from typing import Any

from gymnasium.vector import VectorEnv

from .base import CameraEnv
from .base_vector import CameraVectorEnv

BACKENDS = (None, "ray")
SCHEMES = ("ws", "wss")


def make_one(world: Any = "tiny-rooms", **kwargs: Any) -> CameraEnv:
    """`SanaWMEnv`, or `sana_wm_env.remote.RemoteEnv` for a world that is named by its address."""
    if is_served(world):
        from .remote import RemoteEnv

        return RemoteEnv(world, **kwargs)
    from .env import SanaWMEnv

    return SanaWMEnv(world, **kwargs)


make_one.metadata = CameraEnv.metadata  # type: ignore[attr-defined]  # where Gymnasium looks for render modes


def make_imagined(
    num_envs: int = 1, *, backend: str | None = None, world: Any = "tiny-rooms", **kwargs: Any
) -> VectorEnv:
    """`SanaWMVectorEnv`, `RemoteVectorEnv` for a world at a server, or with backend="ray"
    `sana_wm_env.ray.RayVectorEnv`.
    """
    kind: type[CameraVectorEnv]
    if is_served(world):
        from .remote import RemoteVectorEnv as kind
    else:
        from .vector import SanaWMVectorEnv as kind
    return _make(kind, num_envs, backend, {"world": world, **kwargs})


def make_exact(num_envs: int = 1, *, backend: str | None = None, **kwargs: Any) -> VectorEnv:
    """`RoomsVectorEnv`, or `sana_wm_env.ray.RayVectorEnv` of it with backend="ray"."""
    from .rooms.vector import RoomsVectorEnv

    return _make(RoomsVectorEnv, num_envs, backend, kwargs)


def is_served(world: Any) -> bool:
    """Whether a world is imagined at a server: named by an address, or a `RemoteWorld`."""
    if isinstance(world, str):
        return world.partition("://")[0].lower() in SCHEMES
    return type(world).__name__ == "RemoteWorld"


def _make(
    kind: type[CameraVectorEnv], num_envs: int, backend: str | None, kwargs: dict[str, Any]
) -> VectorEnv:
    if backend not in BACKENDS:
        raise ValueError(f"got backend={backend!r}; wanted 'ray', or None for this process")
    if backend is None:
        return kind(num_envs, **kwargs)
    from .ray import RayVectorEnv

    return RayVectorEnv(num_envs, kind=kind, **kwargs)
