"""The way to one page: JSON, and frames."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

HOLD = 256 * 1024
"""Bytes that may lie unsent before a page counts as slow."""
PATIENCE = 30.0
"""Seconds without any progress after which a page is given up."""
REFUSALS_PER_SECOND = 20
"""Error messages that a page is sent; the others are dropped."""


class Page:
    """The `Link` to one page."""

    def __init__(self, socket: web.WebSocketResponse):
        self.socket, self.stride = socket, 1
        self._refused, self._second = 0, 0.0

    async def tell(self, message: dict[str, Any]) -> None:
        """Sends a JSON object."""
        await self._in_time(self.socket.send_str(json.dumps(message)))

    async def show(self, frames: list[bytes]) -> None:
        """Sends frames."""
        for frame in frames:
            await self._in_time(self.socket.send_bytes(frame))

    async def _in_time(self, sending: Coroutine[Any, Any, None]) -> None:
        """Waits until something is sent. ConnectionError for a page that takes nothing any more."""
        try:
            await asyncio.wait_for(sending, PATIENCE)
        except TimeoutError:
            raise ConnectionResetError("the page takes nothing any more") from None

    async def refuse(self, reason: str) -> None:
        """Says what was wrong with a message, some times per second."""
        now = time.monotonic()
        if now - self._second > 1:
            self._second, self._refused = now, 0
        self._refused += 1
        if self._refused <= REFUSALS_PER_SECOND:
            await self.tell({"kind": "refused", "text": reason[:500]})
