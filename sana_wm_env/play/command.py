"""`sana-wm play`: walk through a world in a browser."""

from __future__ import annotations

import asyncio
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..extras import check_installed
from ..serving import open_port, serve
from ..settings import check_settings
from .worlds import WorldChoice, check_env


@dataclass(frozen=True)
class PlayConfig:
    """The world, and how the page is served: on this machine alone, at an address with a token."""

    world: str = "tiny-rooms"
    """name of a bundled world, folder of a trained one, or a downloaded repository"""
    env: str = "SanaWM-v0"
    """id of an environment: SanaWM-v0 is imagined, SanaWM-Rooms-v0 the truth, SanaWM-Goal-v0 has a task;
    dummy is a slow one without a model
    """
    port: int = 8765
    """of the page; 0 takes a free one"""
    truth: bool = False
    """show the true picture beside the imagined one from the start, where it is known"""
    browser: bool = True
    """open the page in a browser"""
    sessions: int = 8
    """visitors at once"""
    idle: float = 120.0
    """seconds without a page after which a visitor's states go to disk"""
    policy: Path | None = None
    """a policy that `sana-wm agents train` wrote, as an agent; such a file can hold code"""
    delay: float = 0.2
    """seconds that a chunk of the world dummy takes"""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] | None = None
    """of all weights (default: the world's own)"""
    precision: Literal["fp8", "nvfp4", "mxfp8", "int8"] | None = None
    """quantise the transformer (default: as the world is stored)"""
    refiner: str | None = None
    """show all frames through a second stage: "auto" for the world's own, or the folder of one (default:
    none)
    """

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, port="[0, 65535]", sessions="[1, 64]", idle="(0, inf)", delay="[0, 60]")


def run(config: PlayConfig) -> int:
    """Serves the page until a signal ends it. Returns the code for that: 130 after Ctrl-C."""
    check_installed("aiohttp", "sana-wm play")
    check_flags(config)
    from .server import Server, ServerChoice

    world = choose_world(config)
    choice = ServerChoice(config.truth, config.sessions, config.idle, policy=config.policy)
    with open_port(config.port) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/?token={choice.token}"
        print(address, flush=True)
        print("Ctrl-C ends it", flush=True)
        if config.browser:
            webbrowser.open(address)
        return 128 + asyncio.run(serve(Server(world, choice).application(), listening))


def choose_world(config: PlayConfig) -> WorldChoice:
    """Returns the part of the settings that says what is played."""
    return WorldChoice(
        config.env,
        config.world,
        config.device,
        config.dtype,
        config.precision,
        config.refiner,
        config.delay,
    )


def check_flags(config: PlayConfig) -> None:
    """ValueError for flags that cannot be, before anything is loaded."""
    check_env(config.env)
    if not choose_world(config).imagines:
        for name in ("world", "dtype", "precision", "refiner"):
            if (given := getattr(config, name)) != getattr(PlayConfig, name):
                raise ValueError(
                    f"got --{name} {given} with --env {config.env}, which has no model; wanted an "
                    f"environment that imagines, SanaWM-v0, or no --{name}"
                )
    if config.policy is not None and not config.policy.is_file():
        raise FileNotFoundError(f"got --policy {config.policy}; there is no such file")
