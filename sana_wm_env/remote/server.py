"""The server of a world: who may come in, what they may have, and how it is doing.

One token is one user. Users see neither each other's sessions nor how many there are. The world does one call
after the other, in the order in which they came; as a session has one call at a time, users take turns.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from aiohttp import WSCloseCode, WSMsgType, web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from . import wire
from .session import NAMED, Limits, Owner, Session, describe
from .worker import Worker

HEARTBEAT_S = 20.0
"""A client that answers no ping for so long is taken for gone."""
WAITING = 2
"""Calls of a connection that may be under way: one, and one that follows an interrupted one."""
PATIENCE_S = 30.0
"""Seconds for a client's first message."""


class Metrics:
    """What Prometheus is told."""

    def __init__(self) -> None:
        self.registry = of = CollectorRegistry()
        self.calls = Counter(
            "sana_wm_calls", "Calls done, by kind and outcome", ["call", "outcome"], registry=of
        )
        self.seconds = Histogram(
            "sana_wm_call_seconds",
            "Seconds that the world worked on a call",
            ["call"],
            buckets=(0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60),
            registry=of,
        )
        self.waited = Histogram(
            "sana_wm_wait_seconds", "Seconds that a call waited for the world", registry=of
        )
        self.chunks = Counter("sana_wm_chunks", "Chunks imagined, candidates included", registry=of)
        self.repeated = Counter("sana_wm_calls_repeated", "Calls that came again after a cut", registry=of)
        self.resumed = Counter("sana_wm_sessions_resumed", "Sessions that went on after a cut", registry=of)
        self.refused = Counter("sana_wm_refused", "Connections refused", ["why"], registry=of)
        self.connections = Gauge("sana_wm_connections", "Open connections", registry=of)
        self.sessions = Gauge("sana_wm_sessions", "Sessions that are kept", registry=of)
        self.states = Gauge("sana_wm_states", "States that are kept", registry=of)


class Snapshot(NamedTuple):
    """Sessions and states of all users that are kept, and open connections."""

    sessions: int
    states: int
    connections: int


class Server:
    """The application around one world.

    Args:
        worker: does the calls.
        tokens: each is a user.
        limits: of every user; those states fit that `memory_bytes` hold.
        memory_bytes: of states that one user may keep; None for what `limits` says.
    """

    def __init__(
        self, worker: Worker, tokens: Iterable[str], limits: Limits, memory_bytes: int | None = None
    ):
        self.worker, self.limits, self.memory_bytes = worker, limits, memory_bytes
        self.metrics = Metrics()
        self.stage = "loading"
        self.failure: Exception | None = None
        self._owners = {_digest(token): Owner(limits) for token in tokens}
        self._thread = ThreadPoolExecutor(1, "sana-wm-serve")
        self._over = asyncio.Event()  # the loading
        self._open: set[web.WebSocketResponse] = set()

    def application(self) -> web.Application:
        """Returns the aiohttp application; the world is loaded once it runs."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get(wire.LINK, self._link)
        app.cleanup_ctx.append(self._run)
        app.on_shutdown.append(self._hang_up)
        return app

    async def wait_loaded(self) -> None:
        """Returns once clients may come in. Raises what kept the world from being loaded."""
        await self._over.wait()
        if self.failure is not None:
            raise self.failure

    async def _run(self, app: web.Application) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._load()), asyncio.create_task(self._sweep())]
        yield
        for task in tasks:
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self.worker.load)
        except Exception as error:
            self.stage, self.failure = "failed", error
            self._over.set()
            return
        if self.memory_bytes is not None:
            states = max(1, self.memory_bytes // self.worker.state_bytes())
            limits = Limits(self.limits.sessions, states, self.limits.keep_s, self.limits.message_bytes)
            for owner in self._owners.values():
                owner.limits = limits
        self.stage = "ready"
        self._over.set()

    async def _sweep(self) -> None:
        """Ends sessions that nobody came back to."""
        while True:
            await asyncio.sleep(min(5.0, self.limits.keep_s / 4))
            before = time.monotonic() - self.limits.keep_s
            for owner in self._owners.values():
                for session in list(owner.sessions.values()):
                    if not session.connections and session.left < before:
                        owner.close(session)

    async def _hang_up(self, app: web.Application) -> None:
        for socket in list(self._open):
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server ends")

    def snapshot(self) -> Snapshot:
        """Returns how much is kept now."""
        owners = self._owners.values()
        return Snapshot(
            sum(len(owner.sessions) for owner in owners),
            sum(owner.kept for owner in owners),
            len(self._open),
        )

    # ---- pages

    async def _health(self, request: web.Request) -> web.Response:
        """For load balancers: 200 once the world is loaded. Says nothing of users."""
        told = {"stage": self.stage, "protocol": wire.PROTOCOL}
        return web.json_response(told, status=200 if self.stage == "ready" else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        if self._owner(request) is None:
            return self._refuse("token", 401, "The token is missing or wrong")
        now, told = self.snapshot(), self.metrics
        for gauge, value in zip((told.sessions, told.states, told.connections), now, strict=True):
            gauge.set(value)
        text = generate_latest(self.metrics.registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _owner(self, request: web.Request) -> Owner | None:
        """Whose token came with a request."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        given, found = _digest(token.strip()) if kind.lower() == "bearer" else "", None
        for digest, owner in self._owners.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(digest, given):
                found = owner
        return found

    def _refuse(self, why: str, status: int, text: str) -> web.Response:
        self.metrics.refused.labels(why).inc()
        return web.Response(status=status, text=text + "\n")

    # ---- connections

    async def _link(self, request: web.Request) -> web.StreamResponse:
        owner = self._owner(request)
        if owner is None:
            return self._refuse("token", 401, "The token is missing or wrong")
        if request.headers.get("Origin"):
            return self._refuse("origin", 403, "No page of a browser may connect")
        if self.stage != "ready":
            return self._refuse("loading", 503, f"The world is {self.stage}")
        socket = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, max_msg_size=owner.limits.message_bytes, compress=False
        )
        await socket.prepare(request)
        self._open.add(socket)
        try:
            session = await self._welcome(socket, owner)
            if session is not None:
                await self._listen(socket, owner, session)
        except ConnectionError:
            pass
        finally:
            self._open.discard(socket)
        return socket

    async def _welcome(self, socket: web.WebSocketResponse, owner: Owner) -> Session | None:
        """Opens a session, or finds that of a client that comes back."""
        try:
            first = await socket.receive(PATIENCE_S)
            hello = wire.read_client(first.data if first.type is WSMsgType.BINARY else b"")
            if not isinstance(hello, wire.Hello):
                raise ValueError(f"got {type(hello).__name__}; wanted Hello first")
            if hello.protocol != wire.PROTOCOL:
                raise ValueError(
                    f"got protocol {hello.protocol}; this server speaks {wire.PROTOCOL}: install the same "
                    "version of sana-wm-env on both sides"
                )
            if hello.session is None:
                session = owner.open()
            else:
                session = owner.sessions.get(hello.session)
                if session is None:
                    raise LookupError(
                        "the server does not know this session any more: it was started anew, or nobody came "
                        "back for too long. Reset, or restore a state that was saved to a file"
                    )
                self.metrics.resumed.inc()
        except TimeoutError:
            await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"no message came")
            return None
        except (ValueError, MemoryError, LookupError) as error:
            self.metrics.refused.labels("hello").inc()
            await socket.send_bytes(wire.encode(describe(error)))
            await socket.close()
            return None
        await socket.send_bytes(wire.encode(self.worker.welcome(session)))
        return session

    async def _listen(self, socket: web.WebSocketResponse, owner: Owner, session: Session) -> None:
        """Answers calls until the connection ends."""
        session.connections += 1
        answering: set[asyncio.Task[None]] = set()
        try:
            async for message in socket:  # goes on while a call is under way, so that pings are answered
                if message.type is not WSMsgType.BINARY:
                    raise ValueError("got a message that is not binary")
                request = wire.read_client(message.data)
                if isinstance(request, wire.Goodbye):
                    owner.close(session)
                    break
                if not isinstance(request, wire.Request):
                    raise ValueError(f"got {type(request).__name__}; wanted Request")
                if len(answering) >= WAITING:
                    raise ValueError("got a call while others are under way; wanted one at a time")
                task = asyncio.create_task(self._answer(socket, session, request))
                answering.add(task)
                task.add_done_callback(answering.discard)
        except ValueError as error:
            self.metrics.refused.labels("message").inc()
            await socket.send_bytes(wire.encode(describe(error)))
            await socket.close(code=WSCloseCode.POLICY_VIOLATION)
        finally:
            for task in answering:
                task.cancel()  # of the sending alone: what is being computed goes on
            session.connections -= 1
            session.left = time.monotonic()

    async def _answer(self, socket: web.WebSocketResponse, session: Session, request: wire.Request) -> None:
        if session.knows(request.number):
            self.metrics.repeated.inc()
        with suppress(ConnectionError):  # cut; the reply waits for whoever comes back
            try:
                await socket.send_bytes(await session.answer(request, self._work))
            except ValueError as error:
                await socket.send_bytes(wire.encode(describe(error)))
                await socket.close(code=WSCloseCode.POLICY_VIOLATION)

    async def _work(self, session: Session, call: wire.Call) -> wire.Answer:
        """Has the world do a call, when it is its turn."""
        kind, asked = type(call).__name__, time.perf_counter()
        began = asked

        def work() -> wire.Answer:
            nonlocal began
            began = time.perf_counter()
            return self.worker.answer(session, call)

        outcome = "failed"
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._thread, work)
            outcome = "done"
        except NAMED:
            outcome = "refused"
            raise
        except Exception:
            logging.getLogger(__name__).exception("%s failed", kind)
            raise
        finally:
            self.metrics.calls.labels(kind, outcome).inc()
            self.metrics.waited.observe(began - asked)
            self.metrics.seconds.labels(kind).observe(time.perf_counter() - began)
        if isinstance(answer, wire.Stepped):
            self.metrics.chunks.inc(len(answer.states))
        elif isinstance(answer, wire.Chunk):
            self.metrics.chunks.inc(answer.latents.shape[0])
        return answer


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
