"""A server of the bundled world in a thread of this process, and a way to it that is cut again and again."""

import asyncio
import contextlib
import random
import socket
import ssl
import threading
import urllib.error
import urllib.request

from aiohttp import web

from sana_wm_env.env import SanaWMEnv
from sana_wm_env.remote import wire
from sana_wm_env.remote.server import Server
from sana_wm_env.remote.session import Limits
from sana_wm_env.remote.worker import Worker

ALICE, BOB = "alice-" + 20 * "a", "bob-" + 20 * "b"


class Serving:
    """A running server.

    Attributes:
        address: for clients.
        server: itself; look, do not touch.
    """

    def __init__(
        self,
        env: SanaWMEnv | None = None,
        limits: Limits | None = None,
        memory_bytes: int | None = None,
        tls: ssl.SSLContext | None = None,
    ):
        self.worker = Worker(env or SanaWMEnv())
        self._limits, self._memory, self._tls = limits or Limits(), memory_bytes, tls
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.address = f"{'wss' if tls else 'ws'}://localhost:{self.port}"
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> "Serving":
        self._thread.start()
        assert self._up.wait(60)
        return self

    def __exit__(self, *_) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self.server = Server(self.worker, [ALICE, BOB], self._limits, self._memory)
        runner = web.AppRunner(self.server.application(), access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        await web.SockSite(runner, self._listening, ssl_context=self._tls).start()
        await self.server.wait_loaded()
        self._up.set()
        await self._over.wait()
        await runner.cleanup()

    def get(self, page: str, token: str | None = ALICE) -> tuple[int, str]:
        """Status and text of a page."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{page}")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """What Prometheus would read."""
        return self.server.metrics.registry.get_sample_value(name, labels) or 0.0


class Cutter:
    """A way to a server that is cut after so many bytes, drawn anew for every connection.

    Args:
        port: of the server on this machine.
        cuts: how many; later connections are left alone.
        most: bytes, in both directions together, that a connection carries at most.
    """

    def __init__(self, port: int, cuts: int, most: int, seed: int = 0):
        self.port, self.left, self.most = port, cuts, most
        self.cut = 0
        self._draw = random.Random(seed)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"ws://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> "Cutter":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self.port))
                budget = [self._draw.randrange(1, self.most)] if self.left > 0 else None
                self.left -= 1
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(*pair, budget), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, budget: list[int] | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if budget is None:
                    target.sendall(data)
                    continue
                allowed, budget[0] = budget[0], budget[0] - len(data)
                target.sendall(data[: max(0, allowed)])
                if budget[0] <= 0:
                    self.cut += 1
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def pack(*messages: object) -> list[bytes]:
    """Messages as bytes."""
    return [wire.encode(message) for message in messages]
