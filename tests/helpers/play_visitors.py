"""A page without a browser: it shows what it is sent at once, or at 16 frames per second, and says so."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
from aiohttp import ClientSession, WSMsgType, web
from PIL import Image

from sana_wm_env.play.messages import BRANCHES, STILL, WALK, unpack_frame
from sana_wm_env.play.server import Server, ServerChoice
from sana_wm_env.play.worlds import WorldChoice, open_world

PATIENCE = 90.0
FRAMES = 24


class Place:
    """A running server."""

    def __init__(self, server: Server, port: int, http: ClientSession):
        self.server, self.port, self.http = server, port, http
        self.address = f"http://127.0.0.1:{port}"
        self.base = f"{self.address}/t/{server.choice.token}"

    @property
    def visitors(self) -> Any:
        return self.server.visitors

    @asynccontextmanager
    async def visitor(self, session: str | None = None, seconds: float = 0.0) -> AsyncIterator[Visitor]:
        visitor = Visitor(self, seconds)
        await visitor.enter(session)
        try:
            yield visitor
        finally:
            await visitor.leave()


@asynccontextmanager
async def playing(
    world: WorldChoice | None = None, opens: Callable[..., Any] = open_world, **choice: Any
) -> AsyncIterator[Place]:
    """A server on a free port, by default of the dummy world without delay."""
    world = WorldChoice("dummy", delay=0.0) if world is None else world
    server = Server(world, ServerChoice(**choice), opens)
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with ClientSession() as http:
            yield Place(server, port, http)
    finally:
        await runner.cleanup()


class Visitor:
    """A page. Its walks end at no wall: rooms are drawn, and in some of them one begins right before a wall.

    Args:
        place: where.
        seconds: that a chunk is shown; 0 for no time at all.
    """

    def __init__(self, place: Place, seconds: float):
        self.place, self.seconds = place, seconds
        self.told: list[dict[str, Any]] = []
        self.frames: list[dict[str, Any]] = []  # of chunks, in the order in which they were shown
        self.stills: list[dict[str, Any]] = []
        self.futures: list[dict[str, Any]] = []
        self.seq = self.showing = self.take = self.epoch = 0
        self.holds = False  # shows nothing new
        self.awaited = (0, 0, 0.0)  # a chunk that is not begun before this take of it is here, and until when
        self.waiting: list[dict[str, Any]] = []
        self.news, self.came = asyncio.Event(), asyncio.Event()

    async def enter(self, session: str | None = None) -> None:
        address = f"{self.place.base}/link?session={session or ''}"
        self.socket = await self.place.http.ws_connect(address, max_msg_size=2**26)
        self.reader = asyncio.create_task(self._read())
        await self.say("set", name="walls", on=False)

    async def leave(self) -> None:
        self.reader.cancel()
        with suppress(asyncio.CancelledError):
            await self.reader
        await self.socket.close()

    # ---- what it says

    async def say(self, kind: str, **fields: Any) -> None:
        await self.socket.send_str(json.dumps({"kind": kind, **fields}))

    async def hold(self, *keys: str, tapped: tuple[str, ...] = (), **fields: Any) -> int:
        """Says which keys are down; returns the number of the message."""
        self.seq += 1
        state = {"look": [0, 0], "axes": [0, 0, 0, 0], "showing": self.showing} | fields
        at = 1000 * time.monotonic()
        self.awaited = (self.showing + 1, 1, time.monotonic() + 1)  # until the server says where it counts
        await self.say("control", seq=self.seq, at=at, held=list(keys), tapped=list(tapped), **state)
        return self.seq

    async def flow(self, on: bool = True) -> None:
        await self.say("set", name="flow", on=on)

    # ---- what it waits for

    async def until(self, fits: Callable[[], Any], patience: float = PATIENCE) -> Any:
        """Waits until something is true, and returns it."""
        async with asyncio.timeout(patience):
            while not (found := fits()):
                self.news.clear()
                with suppress(TimeoutError):  # what the server does without a word is seen as well
                    await asyncio.wait_for(self.news.wait(), 0.05)
        return found

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.told if message["kind"] == kind]

    async def hears(self, kind: str, count: int = 1) -> dict[str, Any]:
        """The message of a kind that came as the count-th."""
        return await self.until(lambda: self.all(kind)[count - 1] if len(self.all(kind)) >= count else None)

    async def sees(self, chunks: int, patience: float = PATIENCE) -> None:
        """Waits until so many chunks have been shown in all."""
        await self.until(lambda: sum(f["frame"] == FRAMES - 1 for f in self.frames) >= chunks, patience)

    # ---- what it does

    async def _read(self) -> None:
        shower = asyncio.create_task(self._show())
        try:
            while True:
                message = await self.socket.receive()
                if message.type == WSMsgType.TEXT:
                    self._hear(json.loads(message.data))
                elif message.type == WSMsgType.BINARY:
                    self._take(message.data)
                else:
                    break
                self.news.set()
        finally:
            shower.cancel()
            self.news.set()

    def _hear(self, message: dict[str, Any]) -> None:
        self.told.append({**message, "heard": time.monotonic()})
        if message["kind"] == "received" and message["epoch"] == self.epoch:
            waits = message["take"] > 0 and message["chunk"] == self.showing + 1
            self.awaited = (
                (message["chunk"], message["take"], time.monotonic() + 1.5) if waits else (0, 0, 0.0)
            )
            self.came.set()
        if message["kind"] in ("welcome", "jumped", "futures"):
            self.epoch = message["epoch"]
            self.waiting.clear()
            if message["kind"] == "jumped":
                self.showing = message["chunk"]
            elif message["kind"] == "welcome":
                ids = {moment["id"]: moment for moment in message["moments"]}
                self.showing = ids[message["present"]]["chunk"]

    def _take(self, data: bytes) -> None:
        numbers, pose, pictures = unpack_frame(data)
        frame = {**numbers, "pose": pose, "pictures": pictures, "came": time.monotonic()}
        if frame["stream"] == STILL:
            self.stills.append(frame)
        elif frame["stream"] == BRANCHES:
            self.futures.append(frame)
        elif frame["stream"] == WALK and frame["epoch"] == self.epoch:
            self._keep(frame)
            self.came.set()

    def _keep(self, frame: dict[str, Any]) -> None:
        """Keeps a frame to show, in place of those of an earlier take; a chunk that is begun stays as it
        is.
        """
        chunk, take = frame["chunk"], frame["take"]
        if chunk < self.showing or (chunk == self.showing and take != self.take):
            return
        self.waiting[:] = [f for f in self.waiting if f["chunk"] != chunk or f["take"] >= take]
        self.waiting.append(frame)

    async def _show(self) -> None:
        """Shows frame after frame; reports the first and the end of each chunk."""
        while True:
            while not self.waiting or self.holds or self._awaits(self.waiting[0]):
                self.came.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.came.wait(), 0.02)
            await self._show_one(self.waiting.pop(0))

    def _awaits(self, frame: dict[str, Any]) -> bool:
        chunk, take, end = self.awaited
        return frame["chunk"] == chunk > self.showing and frame["take"] < take and time.monotonic() < end

    async def _show_one(self, frame: dict[str, Any]) -> None:
        if frame["chunk"] > self.showing:
            self.showing, self.take = frame["chunk"], frame["take"]
            await self.say("begun", epoch=self.epoch, chunk=frame["chunk"])
        self.frames.append({**frame, "shown": time.monotonic()})
        self.news.set()
        if self.seconds:
            await asyncio.sleep(self.seconds / FRAMES)
        if frame["frame"] == FRAMES - 1:
            await self.say("ended", epoch=self.epoch, chunk=frame["chunk"])


def decode(picture: bytes) -> np.ndarray:
    """A picture as uint8 (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
