"""The `sana-wm` command.

A table (`commands/table.py`) names every sub-command and the function behind it, as text: only the one that
is called gets imported. The function takes one config dataclass, whose fields become the flags, and returns
the exit code (None counts as 0). Help is text that lies ready (`commands/help.py`), so that it is there at
once.

Exit codes: 0 done; 1 a check failed, or training was stopped before its end and saved; 2 wrong input,
explained in one line (set SANA_WM_TRACEBACK=1 to see where); 130 interrupted by Ctrl-C, 143 ended by SIGTERM,
129 by a terminal that was closed: the old files stay, and commands that are resumable go on. Where nobody
reads the output any more (`| head`), the work goes on in silence and the code is that of the work.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from itertools import takewhile
from typing import Any, TextIO, get_type_hints

from .commands.table import COMMANDS, Group, load_function

MOST_SEED = 2**62
"""Seeds are counted on from the one that is given, in 64 bits."""


class Ended(BaseException):
    """A signal asked the process to end. Passes every `except Exception`, as KeyboardInterrupt does."""

    def __init__(self, number: int):
        super().__init__(number)
        self.code = 128 + number


class Pipe:
    """A text stream that goes on into nothing where its reader has gone."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes, or lets it fall."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._turn_away()
            return len(text)

    def flush(self) -> None:
        """Flushes, or lets it fall."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._turn_away()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _turn_away(self) -> None:
        """What is still held back goes into nothing, too, so that the end of the process is quiet."""
        with suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: that of the process) and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with _forgiving_streams(), _ending_by_signals():
        try:
            return _run(argv)
        except KeyboardInterrupt:
            return 130
        except Ended as end:
            return end.code


def _run(argv: list[str]) -> int:
    try:
        _check_device(argv)
        _check_seed(argv)
        _check_runs(argv)
        return _dispatch(COMMANDS, argv, "sana-wm", "SANA-WM, a camera-controlled video world model.") or 0
    except Exception as error:
        if os.environ.get("SANA_WM_TRACEBACK"):
            raise
        print(f"sana-wm: {describe(error)}", file=sys.stderr)
        return 2


def describe(error: Exception) -> str:
    """What an error says to whoever typed the command."""
    from .extras import describe_missing

    if isinstance(error, ModuleNotFoundError) and (missing := describe_missing(error)):
        return missing
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        beside = f" -> {os.fsdecode(error.filename2)}" if error.filename2 is not None else ""
        name = error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename)
        return f"{name}{beside}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    text = str(error).strip()
    if isinstance(error, KeyError) and " " in str(error.args[:1]):  # whose text is quoted once more
        return str(error.args[0])
    if isinstance(error, ValueError | OSError | ImportError | FloatingPointError) and text:
        return text
    if isinstance(error, MemoryError):
        return f"there is not enough memory{f' ({text})' if text else ''}; wanted fewer or smaller frames"
    first = text.splitlines()[0][:300] if text else "no reason given"
    return f"{type(error).__name__}: {first} (SANA_WM_TRACEBACK=1 shows where)"


def _dispatch(commands: dict[str, Any], argv: list[str], program: str, description: str) -> int | None:
    """Runs the command that the first word names. ValueError for words that name none."""
    from .commands import help as help_texts

    if program == "sana-wm" and argv[:1] in (["--version"], ["-V"]):
        from . import __version__

        print(f"sana-wm {__version__}")
        return 0
    if not argv or argv[0] in ("--help", "-h"):
        print(help_texts.list_commands(commands, program, description))
        return 0
    chosen = commands.get(argv[0])
    program = f"{program} {argv[0]}"
    if isinstance(chosen, Group):
        return _dispatch(chosen.members, argv[1:], program, chosen.help)
    if chosen is None:
        near = difflib.get_close_matches(argv[0], commands, 1)
        meant = f"did you mean {near[0]}?" if near else f"wanted one of {', '.join(commands)}"
        raise ValueError(f"got {program!r}, which is no command; {meant}")
    if {"--help", "-h"} & set(argv[1:]):
        print(help_texts.read_help(program.split()[1:]))
        return 0
    function = load_function(chosen)
    return function(_parse(function, argv[1:], program))


def _parse(function: Callable[..., Any], argv: list[str], program: str) -> Any:
    """The config that the flags make. ValueError if they make none."""
    import tyro

    config_type = get_type_hints(function)["config"]
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    try:
        with redirect_stderr(said):
            return tyro.cli(config_type, prog=program, args=argv, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as end:
        if not end.code:
            raise
        said.seek(0)
        raise ValueError(_complaint(said.read(), program)) from None


def _complaint(box: str, program: str) -> str:
    """The words that tyro draws a box around, in one line: what is wrong, and the flag that may be meant."""
    stripped = (line.strip("│╭╮╰╯─ ") for line in box.splitlines()[1:])  # the first has the title
    lines = [text if text.strip("-") else "" for text in stripped]
    lines = lines[1:] if lines[:1] == [""] else lines  # without corners a rule is drawn below the title
    wrong = " ".join(takewhile(bool, lines)) or "got flags that cannot be read"
    wrong = re.sub(r"^Error parsing [\w.]+: ", "", wrong)  # of a config that refuses its values
    meant = [line.split()[0] for line in lines[len(lines) - 1 : 0 : -1] if line.startswith("--")]
    near = f"; did you mean {meant[-1]}?" if meant and "Perhaps you meant:" in lines else ";"
    return f"{wrong}{near} {program} --help lists the flags"


def _flag(argv: list[str], name: str) -> str | None:
    """The text that a flag is given, whatever command it belongs to."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, nargs="?", dest="value")
    return parser.parse_known_args(argv)[0].value


def _check_device(argv: list[str]) -> None:
    """Refuses a --device that does not exist, for all commands, before anything is loaded or written."""
    device = _flag(argv, "--device")
    if device in (None, "cpu") or argv[:1] == ["plan"]:  # that of a plan need not be here
        return
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"got --device {device}, which torch {torch.__version__} cannot use: {reason}. Use --device cpu"
        ) from None


def _check_seed(argv: list[str]) -> None:
    """The same for seeds, which generators of several libraries have to take. What is no number is left to
    whoever parses it.
    """
    text = _flag(argv, "--seed") or "0"
    if text.lstrip("+-").isdecimal() and (len(text) > 40 or not 0 <= int(text) <= MOST_SEED):
        raise ValueError(f"got --seed {text[:40]}; wanted 0 or more, and at most 2**62 = {MOST_SEED}")


def _check_runs(argv: list[str]) -> None:
    """All training stages keep their runs alike, for hours: where nothing can be written none begins."""
    from .outputs import Output, check_outputs

    trains = argv[:1] == ["train"] and argv[1:2] not in ([], ["plan"], ["export"], ["pack"])
    if trains and not {"--help", "-h"} & set(argv):
        check_outputs(Output("--runs", _flag(argv, "--runs") or "runs", folder=True))


@contextmanager
def _forgiving_streams() -> Iterator[None]:
    """Standard streams that write "?" for what a terminal cannot show, and survive a reader that goes."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            with suppress(ValueError, OSError):  # closed
                stream.reconfigure(errors="replace")
    sys.stdout, sys.stderr = (stream if stream is None else Pipe(stream) for stream in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Pipe):
                with suppress(ValueError):  # closed
                    stream.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def _ending_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed, end the work as Ctrl-C does: what cleans up, cleans
    up. A signal that whoever started us wants ignored (nohup) is ignored.
    """

    def end(number: int, _frame: object) -> None:
        raise Ended(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
