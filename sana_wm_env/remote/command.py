"""`sana-wm serve`: a world for clients on other machines."""

from __future__ import annotations

import asyncio
import os
import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..extras import check_installed
from ..machine import free_memory
from ..serving import open_port, serve
from ..settings import check_settings
from . import TOKEN

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class ServeConfig:
    """Serves a world over the network, until Ctrl-C: `gym.make("SanaWM-v0", world="ws://host:port")`."""

    world: str = "tiny-rooms"
    """a bundled world, a folder, or a downloaded repository"""
    host: str = "127.0.0.1"
    """where to listen; 0.0.0.0 for all networks, which wants --cert"""
    port: int = 8765
    """0 for a free one"""
    token: str = ""
    """what clients show (default: that in SANA_WM_TOKEN, or one is made and printed)"""
    tokens: Path | None = None
    """file of tokens, one per line: each is a user, who sees no other's sessions"""
    cert: Path | None = None
    """your certificate chain (PEM), for wss://"""
    key: Path | None = None
    """its private key (PEM; default: in the same file)"""
    plain: bool = False
    """listen beyond this machine without --cert, behind a proxy that has one"""
    sessions: int = 16
    """open at once, per token; each environment is one"""
    memory_mib: float = 0.0
    """of states that a token keeps (default: a quarter of what is free)"""
    keep: float = 600.0
    """seconds that a session is kept for a client that was cut off"""
    largest_mib: float = 256.0
    """longest message that is read: a saved state, or a picture"""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] | None = None
    """of all weights (default: the world's own)"""
    precision: Literal["fp8", "nvfp4", "mxfp8", "int8"] | None = None
    """quantise the transformer (default: as the world is stored)"""
    refiner: str | None = None
    """"auto" for the world's second stage, or the folder of one"""

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(
            self,
            port="[0, 65535]",
            sessions="[1, 4096]",
            memory_mib="[0, inf)",
            keep="(0, inf)",
            largest_mib="(0, inf)",
        )


def run(config: ServeConfig) -> int:
    """Serves until a signal ends it. Returns the code for that: 130 after Ctrl-C."""
    for library in ("msgspec", "websockets", "prometheus_client", "aiohttp"):
        check_installed(library, "sana-wm serve")
    check_flags(config)
    tokens, made = choose_tokens(config)
    tls = open_certificate(config)
    from ..env import SanaWMEnv
    from .server import Server
    from .session import Limits
    from .worker import Worker

    env = SanaWMEnv(
        config.world, config.device, dtype=config.dtype, precision=config.precision, refiner=config.refiner
    )
    limits = Limits(config.sessions, keep_s=config.keep, message_bytes=int(config.largest_mib * 2**20))
    memory = int(config.memory_mib * 2**20) or free_memory(config.device) // 4
    with open_port(config.port, config.host) as listening:
        name, port = listening.getsockname()[:2]
        name = f"[{name}]" if ":" in name else name
        print(f"{'wss' if tls else 'ws'}://{name}:{port}", flush=True)
        if made:
            print(f"{TOKEN}={tokens[0]}", flush=True)
        print("Ctrl-C ends it", flush=True)
        server = Server(Worker(env), tokens, limits, memory)
        return 128 + asyncio.run(serve(server.application(), listening, tls, server.wait_loaded()))


def check_flags(config: ServeConfig) -> None:
    """ValueError for flags that cannot be, before anything is loaded."""
    if config.host not in LOOPBACK and config.cert is None and not config.plain:
        raise ValueError(
            f"got --host {config.host} without --cert, so that tokens would be read on the way; wanted "
            "--cert and --key, or --plain behind a proxy that has them"
        )
    if config.key is not None and config.cert is None:
        raise ValueError("got --key without --cert; wanted both")


def choose_tokens(config: ServeConfig) -> tuple[list[str], bool]:
    """Returns the tokens of the users, and whether one was made here. ValueError for one that can be
    guessed.
    """
    if config.tokens is not None:
        if not config.tokens.is_file():
            raise FileNotFoundError(f"got --tokens {config.tokens}; there is no such file")
        lines = (line.strip() for line in config.tokens.read_text().splitlines())
        given = [line for line in lines if line and not line.startswith("#")]
    else:
        given = [token for token in (config.token or os.environ.get(TOKEN, ""),) if token]
        if not given:
            return [secrets.token_urlsafe(24)], True
    if not given:
        raise ValueError(f"got --tokens {config.tokens} without a token; wanted one per line")
    for place, token in enumerate(given, 1):
        if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError(
                f"got a token of {len(token)} characters (number {place}); wanted {SHORTEST_TOKEN} or more "
                "letters, digits and signs: python -c 'import secrets; print(secrets.token_urlsafe(24))'"
            )
    if len(set(given)) < len(given):
        raise ValueError(f"got the same token twice in {config.tokens}; wanted one per user")
    return given, False


def open_certificate(config: ServeConfig) -> ssl.SSLContext | None:
    """Returns what TLS needs, None without a certificate. ValueError for files that are none."""
    if config.cert is None:
        return None
    for path in (config.cert, config.key or config.cert):
        if not path.is_file():
            raise FileNotFoundError(f"got {path} for TLS; there is no such file")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.cert, config.key)
    except (ssl.SSLError, OSError) as error:
        raise ValueError(
            f"got --cert {config.cert} and --key {config.key or config.cert}, which are no pair of PEM files "
            f"({error})"
        ) from None
    return context
