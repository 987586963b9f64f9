"""The `sana-wm` command.

A table names every sub-command and the function behind it, as text: only the one that is called gets
imported. The function takes one config dataclass, whose fields become the flags, and returns the exit code
(None counts as 0). Help is text that lies ready (`commands/help.py`), so that it is there at once.

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
from importlib import import_module
from itertools import takewhile
from typing import Any, NamedTuple, TextIO, get_type_hints

MOST_SEED = 2**62
"""Seeds are counted on from the one that is given, in 64 bits."""


class Command(NamedTuple):
    """help: one line. target: "module:function" below this package."""

    help: str
    target: str


class Group(NamedTuple):
    """help: one line. members: commands by name."""

    help: str
    members: dict[str, Command]


COMMANDS: dict[str, Command | Group] = {
    "refine": Command(
        "Sharpen a recorded video, or latents, by the world's second stage.", "commands.refine:run"
    ),
    "generate": Command(
        "Imagine a video along a camera path, by any variant of a world; beside the truth if asked.",
        "commands.generate:run",
    ),
    "play": Command(
        "Walk through a world in a browser, go back in time, branch the present.", "play.command:run"
    ),
    "serve": Command(
        "A world for environments on other machines: gym.make(..., world='wss://host').",
        "remote.command:run",
    ),
    "actions": Group(
        "Paths of keys.",
        {
            "explain": Command(
                "Say what a string of keys does, segment by segment, in each scheme.", "commands.explain:run"
            )
        },
    ),
    "evaluate": Group(
        "Measure a world.",
        {
            "fidelity": Command(
                "Imagined frames of held-out rooms against the true rendering.", "evaluation.fidelity:run"
            ),
            "follow": Command(
                "Does the imagined camera follow its commands? Against controls and the truth.",
                "evaluation.follow:run",
            ),
            "revisit": Command(
                "Is a view still there when the camera comes back? Against one that never left.",
                "evaluation.memory:run",
            ),
            "benchmark": Command(
                "The one-minute benchmark, on rooms or on the published scenes; resumable.",
                "evaluation.benchmark:run",
            ),
            "precision": Command(
                "The cost of FP8, NVFP4, MXFP8 and INT8, against the truth and the wide world.",
                "evaluation.precision:run",
            ),
            "refining": Command(
                "What the second stage does to fidelity, sharpness, following and revisits.",
                "evaluation.refining:run",
            ),
            "poses": Command(
                "An estimated camera path against the commanded one, in RotErr, TransErr, CamMC.",
                "evaluation.poses:run",
            ),
            "video": Command(
                "The camera of any model's videos, estimated from their frames, against its commands.",
                "evaluation.video:run",
            ),
        },
    ),
    "dataset": Group(
        "Exchange episodes with LeRobot (v3).",
        {
            "export": Command(
                "Recordings or a Minari dataset as a LeRobotDataset v3; resumable.", "lerobot.command:export"
            ),
            "import": Command("An exported dataset as recordings: mp4 + npz.", "lerobot.command:import_"),
            "validate": Command(
                "Check a LeRobotDataset v3 to its last frame; exit 1 if anything is wrong.",
                "lerobot.command:validate",
            ),
        },
    ),
    "plan": Group(
        "What a project would take, on paper.",
        {
            "rollouts": Command(
                "Machines, hours, network and storage for so many chunks, with failures simulated.",
                "commands.rollouts:run",
            ),
        },
    ),
    "data": Group(
        "Train on your own videos: check them, pack them, encode them.",
        {
            "validate": Command(
                "Check videos and their poses; name what is wrong and how to fix it.",
                "train.data.command:validate",
            ),
            "import": Command(
                "Cameras of nerfstudio, COLMAP, RealEstate10K, Record3D or ARKit to a sidecar.",
                "train.data.command:import_cameras",
            ),
            "pack": Command(
                "Videos with poses to webdataset tars, at the size and rate that a world sees.",
                "train.data.command:pack",
            ),
            "latents": Command(
                "Packed clips to latents, for --data of the training stages.", "train.data.command:latents"
            ),
        },
    ),
    "annotate": Command(
        "Camera poses for videos that have none, as `data pack` takes them; resumable.",
        "train.annotate.command:annotate",
    ),
    "train": Group(
        "Train a world, stage by stage.",
        {
            "ladder": Command(
                "All stages of a recipe, to a scored and packed world; resumable.", "train.ladder:run"
            ),
            "autoencoder": Command("Stage 1: the causal video autoencoder.", "train.autoencoder:run"),
            "bidirectional": Command("Stage 2: the transformer on whole clips.", "train.bidirectional:run"),
            "causal": Command("Stage 3: the transformer chunk by chunk.", "train.causal:run"),
            "teacher-forcing": Command(
                "Stage 3 on long clips: each chunk on top of the carried state.",
                "train.teacher_forcing:run",
            ),
            "ode": Command("Stage 4: few steps, by regression on a teacher's trajectories.", "train.ode:run"),
            "self-forcing": Command(
                "Stage 5: few-step streaming, by distribution matching.", "train.self_forcing:run"
            ),
            "distill": Command(
                "Stages 4 and 5 in short: few-step streaming, by regression on the truth.",
                "train.distill:run",
            ),
            "refiner": Command(
                "The second stage, which sharpens what the world imagines, in three phases.",
                "train.refiner:run",
            ),
            "ablations": Command("Ablations of the design, in small.", "train.ablations:run"),
            "plan": Command(
                "Bytes, operations and days of training at scale, on paper, beside the published ones.",
                "train.scale:run",
            ),
            "export": Command("Write the trained weights as a world folder.", "train.export:export"),
            "pack": Command("The former name of export.", "train.export:export"),
        },
    ),
    "doctor": Command("What this machine has, and which worlds run on it.", "commands.doctor:run"),
    "roofline": Command(
        "The least time of a step on named GPUs, by precision, on paper.", "commands.roofline:run"
    ),
    "download": Command(
        "Fetch a published checkpoint; --dry-run lists files, bytes and licences first.",
        "commands.download:run",
    ),
    "checkpoint": Group(
        "Weights in files: the names they must have, what they hold, other layouts.",
        {
            "keys": Command(
                "Names and shapes that a checkpoint of a preset has.", "commands.checkpoint:keys"
            ),
            "inspect": Command(
                "What a checkpoint holds, and whether it fits the network.",
                "commands.checkpoint:inspect_command",
            ),
            "convert": Command("The same weights in another layout.", "commands.checkpoint:convert_command"),
            "quantize": Command(
                "The same world in few bits: FP8, NVFP4, MXFP8 or INT8.",
                "commands.checkpoint:quantize_command",
            ),
        },
    ),
    "agents": Group(
        "Scripts, planners and policies in the environments.",
        {
            "run": Command("Play one episode, print its course, write the video.", "agents.run:run"),
            "train": Command(
                "Train a policy with PPO, in imagination or in the truth; resumable.",
                "agents.policy.train_ppo:train",
            ),
            "evaluate": Command(
                "Play many episodes: success, return, path, with 95 % intervals.", "agents.evaluate:run"
            ),
            "planning": Command(
                "Score planners, in the model and in the truth; resumable.",
                "agents.planning.report:run",
            ),
            "transfer": Command(
                "Does what is learned in imagination hold in truth? Resumable.",
                "agents.policy.transfer:run",
            ),
        },
    ),
    "parity": Command(
        "Run a network on golden files and compare every number; exit 1 above tolerance.",
        "commands.parity:check_files",
    ),
}


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


def load_function(command: Command) -> Callable[..., int | None]:
    """Imports the function behind a command."""
    module, function = command.target.split(":")
    return getattr(import_module(f"sana_wm_env.{module}"), function)


if __name__ == "__main__":
    sys.exit(main())
