"""Tests that are coroutines."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any


def run(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs a test that is a coroutine, for eight minutes at most. Fixtures come by name, as always."""

    @functools.wraps(test)
    def call(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 480))

    return call
