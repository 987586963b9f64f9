"""Who is here: at most so many at once; the memory of those who have gone goes to disk, and after a while
they are forgotten.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from . import jobs
from .pool import Pool
from .session import Session

if TYPE_CHECKING:
    from ..base import CameraEnv

SESSION_ID = re.compile(r"[0-9a-f]{16}")
LOOK_EVERY = 5.0
"""Seconds between two looks for sessions that nobody uses."""
PARKED = 32
"""Sessions without a page that are kept, at most."""


class Visitors:
    """All sessions of one world.

    Args:
        env: what they play; each gets an environment of its own on the same weights.
        most: pages at once.
        idle: seconds without a page after which a session's states go to disk.
        forget: seconds without a page after which it is forgotten.
    """

    def __init__(self, env: CameraEnv, most: int, idle: float, forget: float):
        self.env, self.most, self.idle, self.forget = env, most, idle, forget
        self.pool = Pool(env)
        self.sessions: dict[str, Session] = {}
        self.parked: set[str] = set()
        self.folder = Path(tempfile.mkdtemp(prefix="sana-wm-play-"))
        self._moving = asyncio.Lock()  # nobody comes back while the states are on their way
        self._watch: asyncio.Task[None] | None = None

    def begin_watch(self) -> None:
        """Looks for sessions that nobody uses, from now on."""
        self._watch = asyncio.create_task(self._park_idle())

    @property
    def present(self) -> int:
        """Sessions that have a page."""
        return sum(session.link is not None for session in self.sessions.values())

    async def enter(self, id: str | None) -> Session | None:
        """Returns the session of that id, or a new one; None if too many are here."""
        async with self._moving:
            return await self._enter(id)

    async def _enter(self, id: str | None) -> Session | None:
        session = self.sessions.get(id or "")
        if (session is None or session.link is None) and self.present >= self.most:
            return None
        if session is None:
            session = self._make()
        elif session.id in self.parked:
            self.parked.discard(session.id)
            await jobs.unpark(session)
        return session

    def _make(self) -> Session:
        away = sorted((s for s in self.sessions.values() if s.link is None), key=lambda s: s.left_at)
        for old in away[: max(0, len(away) - PARKED + 1)]:
            self._forget(old)
        session = Session(secrets.token_hex(8), self.env.twin(), self.pool, self.folder)
        self.sessions[session.id] = session
        return session

    def _forget(self, session: Session) -> None:
        self.sessions.pop(session.id, None)
        self.parked.discard(session.id)
        self._closing = asyncio.ensure_future(session.close())
        for path in self._files_of(session):
            path.unlink(missing_ok=True)

    def _files_of(self, session: Session) -> Iterator[Path]:
        return self.folder.glob(f"{session.id}*")

    async def _park_idle(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_EVERY, self.idle))
            await self.park_idle()

    async def park_idle(self) -> None:
        """Moves the states of those who have been away to disk, and forgets those away for longer."""
        now = time.monotonic()
        for session in list(self.sessions.values()):
            away = 0.0 if session.link is not None else now - session.left_at
            if away > self.forget:
                self._forget(session)
            elif away > self.idle and session.id not in self.parked:
                async with self._moving:
                    await session.close()
                    await jobs.park(session)
                    self.parked.add(session.id)

    async def close(self) -> None:
        """Ends all sessions, and removes what they left on disk."""
        if self._watch is not None:
            self._watch.cancel()
        for session in self.sessions.values():
            await session.close()
        self.pool.close()
        shutil.rmtree(self.folder, ignore_errors=True)
