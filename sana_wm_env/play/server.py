"""Routes, and who may use them: one machine, one token, no other page's scripts.

Every request names the server as it is reachable (Host), carries the token, and comes from its own page
(Origin) where a browser says from which. What a page loads and sends carries the token in its path.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from . import jobs, worlds
from .link import HOLD, Page
from .messages import LONGEST, read_message
from .pilot import choices
from .session import Session
from .telling import snapshot
from .visitors import SESSION_ID, Visitors
from .worlds import WorldChoice

LARGEST_UPLOAD = 64 * 2**20
"""Bytes of a picture or a saved session."""
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self' ws://{host}; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
SAFE_HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


OpenWorld = Callable[[WorldChoice, Callable[[str], None]], Any]


@dataclass(frozen=True)
class ServerChoice:
    """How the server behaves.

    Attributes:
        truth: whether the truth is shown from the start, where it is known.
        sessions: pages at once.
        idle: seconds without a page after which a session goes to disk.
        forget: seconds without a page after which it is forgotten.
        policy: of the agent "ppo".
        token: what every request carries.
        hosts: names that the server may be called by.
    """

    truth: bool = False
    sessions: int = 8
    idle: float = 120.0
    forget: float = 3600.0
    policy: Path | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")


class Server:
    """The application around one world.

    Args:
        world: what is played.
        choice: how.
        open_world: what opens it, as `worlds.open_world`.
    """

    def __init__(self, world: WorldChoice, choice: ServerChoice, open_world: OpenWorld = worlds.open_world):
        self.world, self.choice, self.open_world = world, choice, open_world
        self.visitors: Visitors | None = None
        self.stage, self.failure = "Starting", ""
        self._loading: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    def application(self) -> web.Application:
        """Returns the aiohttp application; the world is loaded once it runs."""
        app = web.Application(middlewares=[self._guard], client_max_size=LARGEST_UPLOAD)
        base = f"/t/{self.choice.token}"
        app.router.add_get("/", self._index)
        app.router.add_get(base + "/link", self._link)
        app.router.add_get(base + "/rooms/{number:\\d{1,3}}", self._room)
        app.router.add_get(base + "/of/{session}/moment/{moment:\\d{1,12}}", self._thumbnail)
        app.router.add_get(base + "/of/{session}/save", self._save)
        app.router.add_get(base + "/of/{session}/video.{ending:mp4|npz}", self._video)
        app.router.add_post(base + "/of/{session}/open", self._open)
        app.router.add_post(base + "/of/{session}/picture", self._picture)
        app.router.add_get(base + "/{name:[a-z]+\\.(?:js|css|svg)}", self._asset)
        app.on_startup.append(self._begin)
        app.on_cleanup.append(self._end)
        return app

    # ---- who may come in

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        reason = self._refusal(request)
        if reason:
            return web.Response(status=403, text=f"{reason}\n", headers=SAFE_HEADERS)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(SAFE_HEADERS)
            raise
        except (ValueError, FileNotFoundError) as error:
            return web.json_response({"error": str(error)[:500]}, status=400, headers=SAFE_HEADERS)
        if not response.prepared:
            response.headers.update(SAFE_HEADERS)
        return response

    def _refusal(self, request: web.Request) -> str:
        """Why a request is refused; empty if it is not."""
        name, _, port = request.headers.get("Host", "").rpartition(":")
        here = request.transport.get_extra_info("sockname") if request.transport else None
        if name not in self.choice.hosts or (here and port != str(here[1])):
            return "This server is called 127.0.0.1, and by no other name"
        origin = request.headers.get("Origin")
        if origin is not None and origin != f"http://{request.headers['Host']}":
            return "This page belongs to another server"
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return "Another page has asked for this"
        given = request.query.get("token", "") if request.path == "/" else request.path.split("/")[2:3]
        given = given if isinstance(given, str) else "".join(given)
        if not hmac.compare_digest(given.encode(), self.choice.token.encode()):
            return "The token is missing or wrong: open the address that `sana-wm play` has printed"
        return ""

    # ---- loading

    async def _begin(self, app: web.Application) -> None:
        self._loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()

        def report(stage: str) -> None:
            loop.call_soon_threadsafe(setattr, self, "stage", stage)

        try:
            env = await asyncio.to_thread(self.open_world, self.world, report)
            choice = self.choice
            visitors = Visitors(env, choice.sessions, choice.idle, choice.forget)
            visitors.begin_watch()
            self.visitors = visitors
        except Exception as error:
            from ..cli import describe

            self.failure = describe(error)
            logging.getLogger("sana_wm_env.play").error("%s", self.failure)
        self._ready.set()

    async def _end(self, app: web.Application) -> None:
        if self._loading is not None:
            self._loading.cancel()
        if self.visitors is not None:
            await self.visitors.close()

    # ---- the page

    async def _index(self, request: web.Request) -> web.Response:
        text = _page_file("index.html").decode().replace("{base}", f"/t/{self.choice.token}/")
        policy = {"Content-Security-Policy": POLICY.format(host=request.headers["Host"])}
        return web.Response(text=text, content_type="text/html", headers=policy)

    async def _asset(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        try:
            body = _page_file(name)
        except FileNotFoundError:
            raise web.HTTPNotFound(text="There is no such file\n") from None
        return web.Response(body=body, content_type=TYPES[Path(name).suffix], charset="utf-8")

    async def _room(self, request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        if number >= worlds.ROOMS or not self._ready.is_set():
            raise web.HTTPNotFound(text="There is no such room\n")
        from .messages import encode_picture

        picture = await asyncio.to_thread(worlds.picture_of_room, number)
        return web.Response(body=encode_picture(picture), content_type="image/png")

    # ---- a visitor

    async def _link(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=LONGEST, heartbeat=20.0, compress=False)
        await socket.prepare(request)
        if request.transport is not None:
            request.transport.set_write_buffer_limits(high=HOLD)  # type: ignore[attr-defined]
        page = Page(socket)
        with suppress(ConnectionError, asyncio.TimeoutError):
            if await self._wait_until_loaded(page):
                await self._welcome(page, request.query.get("session"))
        await socket.close()
        return socket

    async def _wait_until_loaded(self, page: Page) -> bool:
        """Tells a page how far loading is; returns whether there is a world."""
        began = time.monotonic()
        while not self._ready.is_set():
            await page.tell({"kind": "loading", "stage": self.stage, "seconds": time.monotonic() - began})
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ready.wait(), 0.5)
            if page.socket.closed:
                return False
        if self.visitors is None:
            await page.tell({"kind": "failed", "text": self.failure})
        return self.visitors is not None

    async def _welcome(self, page: Page, wanted: str | None) -> None:
        assert self.visitors is not None
        id = wanted if wanted and SESSION_ID.fullmatch(wanted) else None
        session = await self.visitors.enter(id)
        if session is None:
            most = self.visitors.most
            await page.tell({"kind": "busy", "text": f"{most} visitors are here, which is as many as may be"})
            return
        before = session.attach(page)
        if isinstance(before, Page):
            with suppress(ConnectionError, asyncio.TimeoutError):
                await before.tell({"kind": "taken"})
                await before.socket.close()
        try:
            await self._greet(page, session)
            await self._listen(page, session)
        finally:
            session.detach(page)

    async def _greet(self, page: Page, session: Session) -> None:
        """What a page needs first: what this world offers, and its session as it stands."""
        has_rooms = worlds.begins_in_rooms(session.env)
        await page.tell(
            {
                "kind": "hello",
                "session": session.id,
                "rooms": worlds.ROOMS if has_rooms else 0,
                "pictures": not worlds.shows_truth_itself(session.env),
                "agents": choices(session.env, self.choice.policy),
                "size": list(session.env.rules.image_size),
            }
        )
        if session.timeline.moments:
            session.ask(lambda: self._show_again(session))
        elif has_rooms:
            session.shows_truth = self.choice.truth
            session.ask(lambda: jobs.start(session, None, {}))
        else:
            session.shows_truth = self.choice.truth
            await page.tell({"kind": "empty"})

    async def _show_again(self, session: Session) -> None:
        session.jump()
        await session.tell({"kind": "welcome", **snapshot(session)})
        await session.show_still()

    async def _listen(self, page: Page, session: Session) -> None:
        """Reads what the page says until it has gone. Nothing here waits for a frame."""
        async for given in page.socket:
            if given.type != WSMsgType.TEXT:
                await page.refuse("got a binary message; wanted JSON")
                continue
            try:
                told = self._obey(session, read_message(given.data))
            except ValueError as error:
                await page.refuse(str(error))
                continue
            if told is not None:
                await page.tell(told)

    def _obey(self, session: Session, message: dict[str, Any]) -> dict[str, Any] | None:
        """Takes in one checked message. Returns what the page is told at once."""
        kind = message["kind"]
        if kind in ("control", "release", "begun", "ended"):
            return session.hear(message)
        if kind == "set":
            session.hear(message)
            if message["name"] == "truth":
                session.ask(session.show_still)
            return None
        session.ask(self._job(session, message))
        return None

    def _job(self, session: Session, message: dict[str, Any]) -> Any:
        """What a message asks for, as something to be done between two chunks."""
        kind = message["kind"]
        if kind == "start":
            options = {"room": message["room"], "prompt": message["prompt"]}
            return lambda: _or_say(session, jobs.start(session, message["seed"], options))
        makes = {
            "go": lambda: jobs.go(session, message["moment"]),
            "futures": lambda: jobs.show_futures(session, message["by"]),
            "pick": lambda: jobs.pick(session, message["future"]),
            "agent": lambda: jobs.set_pilot(session, message["name"], self.choice.policy),
            "record": lambda: jobs.record(session, message["on"]),
            "export": lambda: jobs.export(session, self.world),
        }
        return lambda: _or_say(session, makes[kind]())

    # ---- files

    def _session(self, request: web.Request) -> Session:
        session = None if self.visitors is None else self.visitors.sessions.get(request.match_info["session"])
        if session is None:
            raise web.HTTPNotFound(text="There is no such session\n")
        if session.link is None:
            raise web.HTTPConflict(text="Nobody is in this session\n")
        return session

    async def _thumbnail(self, request: web.Request) -> web.Response:
        thumbnail = self._session(request).timeline.thumbnail(int(request.match_info["moment"]))
        if thumbnail is None:
            raise web.HTTPNotFound(text="There is no such moment\n")
        kind = "image/png" if thumbnail[:4] == b"\x89PNG" else "image/jpeg"
        return web.Response(body=thumbnail, content_type=kind)

    async def _save(self, request: web.Request) -> web.StreamResponse:
        session = self._session(request)
        path = session.folder / f"{session.id}.sana"
        await _between_chunks(session, jobs.save(session, path))
        chunk = session.timeline.now.chunk
        return web.FileResponse(path, headers=_as_file(f"session-{chunk}.sana"))

    async def _video(self, request: web.Request) -> web.StreamResponse:
        session = self._session(request)
        path = session.folder / f"{session.id}.{request.match_info['ending']}"
        if not path.is_file():
            raise web.HTTPNotFound(text="Nothing was recorded\n")
        return web.FileResponse(path, headers=_as_file(f"walk.{request.match_info['ending']}"))

    async def _open(self, request: web.Request) -> web.Response:
        session = self._session(request)
        with tempfile.TemporaryDirectory(dir=session.folder) as folder:
            path = Path(folder) / "given"
            path.write_bytes(await request.read())
            await _between_chunks(session, jobs.open_file(session, path))
        return web.json_response({})

    async def _picture(self, request: web.Request) -> web.Response:
        session = self._session(request)
        from ..numbers import to_number
        from ..pictures import read_image

        try:
            fov = to_number(float(request.query.get("fov", "65")), "the field of view")
        except (OverflowError, ValueError):
            raise ValueError("got a field of view that is no number; wanted degrees") from None
        prompt = request.query.get("prompt", "")[:1000]
        with tempfile.TemporaryDirectory(dir=session.folder) as folder:
            path = Path(folder) / "picture"
            path.write_bytes(await request.read())
            try:
                picture = await asyncio.to_thread(read_image, path)
            except ValueError as error:
                raise ValueError(str(error).replace(f" '{path}'", "")) from None
        await _between_chunks(session, jobs.begin_from_picture(session, picture, fov, prompt))
        return web.json_response({})


async def _or_say(session: Session, work: Any) -> None:
    """Does a job; what it refuses is told to the page."""
    try:
        await work
    except (ValueError, FileNotFoundError, ImportError, KeyError) as error:
        await session.tell({"kind": "refused", "text": str(error)[:500]})


async def _between_chunks(session: Session, work: Any) -> None:
    """Does a job in its turn, and raises here what it raises."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def job() -> None:
        try:
            await work
        except Exception as error:
            if not done.done():
                done.set_exception(error)
        else:
            if not done.done():
                done.set_result(None)

    try:
        session.ask(job)
    except ValueError:
        work.close()
        raise
    await asyncio.wait_for(done, 120)


def _as_file(name: str) -> dict[str, str]:
    return {**SAFE_HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}


def _page_file(name: str) -> bytes:
    return (resources.files("sana_wm_env.play") / "page" / name).read_bytes()
