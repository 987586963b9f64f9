"""What servers of this package share: the socket, and running until a signal comes."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web


def open_port(port: int, host: str = "127.0.0.1") -> socket.socket:
    """Returns a socket that listens. ValueError if the port is taken, or the host is not this machine's."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"got --host {host}, which is no address here ({error.strerror})") from None
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(64)
    except OSError as error:
        listening.close()
        raise ValueError(
            f"got --port {port}, which cannot be had ({error.strerror}); --port 0 takes a free one"
        ) from None
    return listening


async def serve(
    application: web.Application,
    listening: socket.socket,
    tls: ssl.SSLContext | None = None,
    ready: Coroutine[Any, Any, None] | None = None,
) -> int:
    """Serves an application on a socket until a signal comes, whose number it returns, or until `ready`
    raises an error, which goes on.

    The loop itself takes the signals: one that is raised in the middle of a write would be lost there.
    """
    from aiohttp import web

    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        with suppress(AttributeError, NotImplementedError, ValueError):  # Windows, another thread
            number = signal.Signals[name]
            if signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, _end, ended, int(number))
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.SockSite(runner, listening, ssl_context=tls).start()
    try:
        if ready is not None:
            loading = loop.create_task(ready)
            await asyncio.wait((loading, ended), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
            else:
                loading.cancel()
        return await ended
    finally:
        await runner.cleanup()


def _end(ended: asyncio.Future[int], number: int) -> None:
    if not ended.done():
        ended.set_result(number)
