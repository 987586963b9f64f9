"""One client's session at the server: the states that it has here, and its answers, each computed once."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from . import wire

NAMED = (ValueError, TypeError, FileNotFoundError, ImportError, MemoryError, LookupError)
"""Errors that a client raises under their own names; others are a RuntimeError there."""


@dataclass(frozen=True)
class Limits:
    """How much one token may have.

    Attributes:
        sessions: open at once.
        states: kept at once in all of them.
        keep_s: seconds that a session is kept without a connection.
        message_bytes: of the longest message that is read.
    """

    sessions: int = 16
    states: int = 4096
    keep_s: float = 600.0
    message_bytes: int = 256 * 2**20


@dataclass
class Owner:
    """Whoever has a token: their sessions by name, and how many states these keep."""

    limits: Limits
    sessions: dict[str, Session] = field(default_factory=dict)
    kept: int = 0
    # the world's thread keeps, the server's frees
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> Session:
        """Opens a session; where there are too many, in the place of the one whose client has been gone
        longest. MemoryError if all have their clients.
        """
        left = [session for session in self.sessions.values() if not session.connections]
        if len(self.sessions) >= self.limits.sessions and left:
            self.close(min(left, key=lambda session: session.left))
        if len(self.sessions) >= self.limits.sessions:
            raise MemoryError(
                f"got {self.limits.sessions} open sessions of this token; wanted fewer: close an "
                "environment, or serve with more --sessions"
            )
        session = Session(self)
        self.sessions[session.name] = session
        return session

    def close(self, session: Session) -> None:
        """Ends a session and frees what it keeps."""
        with self.lock:
            session.over = True  # a call that is still under way keeps nothing any more
            held = list(session.held)
        session.let_go(held)
        self.sessions.pop(session.name, None)


class Session:
    """What a client may come back to after a cut.

    Attributes:
        name: a secret that the client goes on with.
        held: what lies here, by number.
        connections: how many are open; more than one only while an old one is found to be dead.
        left: when the last one went (time.monotonic).
        over: whether it was ended.
    """

    def __init__(self, owner: Owner):
        self.owner, self.name = owner, secrets.token_urlsafe(18)
        self.held: dict[int, tuple[Any, int]] = {}  # each with its size, in states
        self.connections, self.left, self.over = 0, time.monotonic(), False
        self._numbers = itertools.count(1)
        self._last, self._reply, self._made = 0, None, []

    _reply: asyncio.Task[bytes] | None
    _made: list[int]

    def hold(self, things: Iterable[tuple[Any, int]]) -> list[int]:
        """Keeps things of so many states; returns their numbers. MemoryError if that is too much, LookupError
        if the session is over.
        """
        things = list(things)
        size = sum(size for _, size in things)
        with self.owner.lock:
            if self.over:
                raise LookupError("got a call of a session that has ended meanwhile")
            if self.owner.kept + size > self.owner.limits.states:
                raise MemoryError(
                    f"got {self.owner.kept} states of this token at the server, and {size} more to keep; "
                    f"wanted {self.owner.limits.states} at most: let some go, try fewer candidates at a time "
                    "(memory_mib), or serve with more --memory-mib"
                )
            numbers = [next(self._numbers) for _ in things]
            self.held |= dict(zip(numbers, things, strict=True))
            self.owner.kept += size
        self._made += numbers
        return numbers

    def get(self, number: int, kind: type) -> Any:
        """What lies here under a number. LookupError for none of that kind."""
        thing, _ = self.held.get(number, (None, 0))
        if not isinstance(thing, kind):
            raise LookupError(
                f"got the number {number}, under which this session keeps no {kind.__name__}; it was let go, "
                "or belongs to another session"
            )
        return thing

    def let_go(self, numbers: Iterable[int]) -> None:
        """Frees what lies under these numbers; those of nothing are passed over."""
        with self.owner.lock:
            for number in numbers:
                _, size = self.held.pop(number, (None, 0))
                self.owner.kept -= size

    def knows(self, number: int) -> bool:
        """Whether this is the last call, once more."""
        return number == self._last and self._reply is not None

    async def answer(
        self, request: wire.Request, work: Callable[[Session, wire.Call], Awaitable[wire.Answer]]
    ) -> bytes:
        """The reply to a request: computed now, or the one that was computed before.

        Raises:
            ValueError: a number that is neither the last one nor the next.
        """
        if self._reply is not None and self.knows(request.number):
            return await asyncio.shield(self._reply)
        after_gap = request.abandoned and request.number > self._last  # one that never came was given up
        if request.number != self._last + 1 and not after_gap:
            raise ValueError(
                f"got the call {request.number}; wanted {self._last + 1}, or {self._last} once more"
            )
        before, self._last = self._reply, request.number
        self._reply = asyncio.create_task(self._compute(request, work, before))
        return await asyncio.shield(self._reply)  # a cut connection does not end it

    async def _compute(
        self,
        request: wire.Request,
        work: Callable[[Session, wire.Call], Awaitable[wire.Answer]],
        before: asyncio.Task[bytes] | None,
    ) -> bytes:
        if before is not None:  # the client was interrupted and has not waited for it
            await before
        if request.abandoned:
            self.let_go(self._made)
        self.let_go(request.forget)
        self._made = []
        try:
            answer = await work(self, request.call)
        except Exception as error:
            self.let_go(self._made)
            answer = describe(error)
        return wire.encode(wire.Reply(request.number, answer))


def describe(error: Exception) -> wire.Failure:
    """An error as the client is told."""
    kind = next((kind.__name__ for kind in NAMED if isinstance(error, kind)), "RuntimeError")
    text = str(error.args[0]) if isinstance(error, LookupError) and error.args else str(error)
    return wire.Failure(kind, (text or type(error).__name__)[:2000])
