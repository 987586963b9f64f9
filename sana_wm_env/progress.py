"""One way to show how far a long command is: a bar where a person looks on, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 10.0
"""Between two lines of a log."""


class Progress(tqdm):
    """tqdm, which draws its bar on a terminal alone. Elsewhere (a file, a pipe, the log of a cluster) it
    writes a whole line every `LINE_SECONDS`, and nothing for work that is over sooner.

    Arguments are those of tqdm. Its lock is shared with forked processes, and one that is killed while it
    holds the lock would stop the bars of all others for good; this one belongs to the process alone.
    """

    _lock = threading.RLock()

    def __init__(self, *args: Any, **kwargs: Any):
        stream = kwargs.get("file") or sys.stderr
        self.draws, self._said = _is_terminal(stream), time.monotonic()
        kwargs["disable"] = kwargs.get("disable", False) or stream is None
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Draws the bar, or writes the next line if it is time."""
        if self.draws:
            return super().display(msg, pos)
        if time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            self.fp.write(f"{msg or describe(self.format_dict)}\n")
            self.fp.flush()
        return True

    def close(self) -> None:
        """Ends the bar. A log has nothing to end."""
        if self.draws or self.disable:
            super().close()
            return
        self.disable = True
        self._decr_instances(self)  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):  # the thread that holds it is not in the child
    os.register_at_fork(after_in_child=lambda: Progress.set_lock(threading.RLock()))


def progress(iterable: Iterable[Any] | None = None, **options: Any) -> Progress:
    """A `Progress` over an iterable, or one that is told by `update`. Options are tqdm's: total, desc, unit,
    initial, disable.
    """
    return Progress(iterable, **options)


def write_line(text: str, file: Any = None) -> None:
    """Prints a line without tearing a bar that is being drawn; to the standard output by default."""
    Progress.write(text, file=file)


def describe(state: Mapping[str, Any]) -> str:
    """A line such as "imagining: 12 of 40 chunks, 31 s" from tqdm's `format_dict`."""
    total = f" of {state['total']}" if state["total"] else ""
    more = f", {state['postfix']}" if state["postfix"] else ""
    desc = str(state["prefix"] or "").removesuffix(": ")
    said = f"{state['n']}{total} {state['unit'].strip()}s, {state['elapsed']:.0f} s{more}"
    return f"{desc}: {said}" if desc else said


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # nothing to write to, or closed
        return False
