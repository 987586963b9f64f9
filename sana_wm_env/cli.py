"""The `sana-wm` command.

A table names every sub-command and the function behind it, as text: only the one that is called gets imported, so that help is quick.
The function takes one config dataclass, whose fields become the flags, and returns the exit code (None counts as 0).

Exit codes: 0 done; 1 a check failed; 2 wrong input, said in one line (set SANA_WM_TRACEBACK=1 to see where); 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import tyro


class Command(NamedTuple):
    """help: one line. target: "module:function" below this package."""

    help: str
    target: str


class Group(NamedTuple):
    """help: one line. members: commands by name."""

    help: str
    members: dict[str, Command]


COMMANDS: dict[str, Command | Group] = {
    "generate": Command("A video along a camera path, by any variant of a world; beside the truth if asked.", "commands.generate:run"),
    "actions": Group(
        "Paths of keys.",
        {"explain": Command("Say what a string of keys does, segment by segment, in each scheme.", "commands.explain:run")},
    ),
    "evaluate": Group(
        "Measure a world.",
        {
            "fidelity": Command("Imagined frames of held-out rooms against the true rendering.", "evaluation.fidelity:run"),
            "follow": Command("Does the imagined camera go where it was told? Against controls and the truth.", "evaluation.follow:run"),
            "revisit": Command("Is a view still there when the camera comes back? Against one that never left.", "evaluation.memory:run"),
            "benchmark": Command("The one-minute benchmark, on rooms or on the published scenes; resumable.", "evaluation.benchmark:run"),
            "precision": Command("What FP8, NVFP4, MXFP8 and INT8 cost, against truth and wide world.", "evaluation.precision:run"),
            "poses": Command("An estimated camera path against the commanded one, in RotErr, TransErr, CamMC.", "evaluation.poses:run"),
        },
    ),
    "data": Group(
        "Train on your own videos: check them, pack them, encode them.",
        {
            "validate": Command("Check videos and their poses; name what is wrong and how to fix it.", "train.data.command:validate"),
            "pack": Command("Videos with poses to webdataset shards, at the size and rate that a world sees.", "train.data.command:pack"),
            "latents": Command("Packed clips to latents, for --data of the training stages.", "train.data.command:latents"),
        },
    ),
    "train": Group(
        "Train a world, stage by stage.",
        {
            "ladder": Command("All stages of a recipe, to a scored and packed world; resumable.", "train.ladder:run"),
            "autoencoder": Command("Stage 1: the causal video autoencoder.", "train.autoencoder:run"),
            "bidirectional": Command("Stage 2: the transformer on whole clips.", "train.bidirectional:run"),
            "causal": Command("Stage 3: the transformer chunk by chunk.", "train.causal:run"),
            "ode": Command("Stage 4: few steps, by regression on a teacher's trajectories.", "train.ode:run"),
            "self-forcing": Command("Stage 5: few-step streaming, by distribution matching.", "train.self_forcing:run"),
            "distill": Command("Stages 4 and 5 in short: few-step streaming, by regression on the truth.", "train.distill:run"),
            "ablations": Command("What each choice of the design is worth, in small.", "train.ablations:run"),
            "plan": Command("Bytes, operations and days of training at scale, on paper, beside the published ones.", "train.scale:run"),
            "export": Command("Write the trained weights as a world folder.", "train.export:export"),
            "pack": Command("The former name of export.", "train.export:export"),
        },
    ),
    "doctor": Command("What this machine has, and which worlds run on it.", "commands.doctor:run"),
    "roofline": Command("The least time of a step on named GPUs, by precision, on paper.", "commands.roofline:run"),
    "download": Command("Fetch a published checkpoint; --dry-run lists files, bytes and licences first.", "commands.download:run"),
    "checkpoint": Group(
        "Weights in files: the names they must have, what they hold, other layouts.",
        {
            "keys": Command("Names and shapes that a checkpoint of a preset has.", "commands.checkpoint:keys"),
            "inspect": Command("What a checkpoint holds, and whether it fits the network.", "commands.checkpoint:inspect"),
            "convert": Command("The same weights in another layout.", "commands.checkpoint:convert_command"),
            "quantize": Command("The same world in few bits: FP8, NVFP4, MXFP8 or INT8.", "commands.checkpoint:quantize_command"),
        },
    ),
    "agents": Group(
        "Scripts, planners and policies in the environments.",
        {
            "run": Command("Play one episode, say what happens, write the video.", "agents.run:run"),
            "train": Command("Train a policy with PPO, in imagination or in the truth; resumable.", "agents.ppo:train"),
            "evaluate": Command("Play many episodes: success, return, path, with 95 % intervals.", "agents.evaluate:run"),
            "planning": Command("What planning with a model is worth, in it and in the truth; resumable.", "agents.planning:run"),
            "transfer": Command("Does what is learned or judged in imagination hold in truth? Resumable.", "agents.transfer:run"),
        },
    ),
    "parity": Command("Run a network on golden files and compare every number; exit 1 above tolerance.", "cli:parity"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: that of the process) and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        _check_device(argv)
        return _dispatch(COMMANDS, argv, "sana-wm", "SANA-WM, a camera-controlled video world model.") or 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        if os.environ.get("SANA_WM_TRACEBACK"):
            raise
        print(f"sana-wm: {error}", file=sys.stderr)
        return 2


def _dispatch(commands: dict[str, Any], argv: list[str], program: str, description: str) -> int | None:
    chosen = commands.get(argv[0]) if argv else None
    if isinstance(chosen, Group):
        return _dispatch(chosen.members, argv[1:], f"{program} {argv[0]}", chosen.help)
    table = {name: _load(command) if command is chosen else _placeholder(command) for name, command in commands.items()}
    return tyro.extras.subcommand_cli_from_dict(
        table, prog=program, description=description, args=argv or ["--help"], config=(tyro.conf.OmitArgPrefixes,)
    )


def _check_device(argv: list[str]) -> None:
    """All commands name their device alike, so one that is not there is refused here, before anything is loaded or written."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device", nargs="?")
    device = parser.parse_known_args(argv)[0].device
    if device in (None, "cpu"):
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"got --device {device}, which torch {torch.__version__} cannot use: {reason}. Use --device cpu") from None


def _load(command: Command) -> Callable[..., int | None]:
    module, function = command.target.split(":")
    return getattr(import_module(f"sana_wm_env.{module}"), function)


def _placeholder(command: Command | Group) -> Callable[[], None]:
    def unloaded() -> None:
        raise AssertionError("only a chosen command is called")

    unloaded.__doc__ = command.help
    return unloaded


def parity(files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...")]) -> int:
    """Run a network on golden files and compare every number.

    Each file brings a tiny network, its inputs and its exact outputs (format: model/README.md section 13). Prints the largest absolute
    errors in float64 and float32; the exit code is 1 if any is above its tolerance.

    Args:
        files: golden files, .safetensors
    """
    from sana_wm_env.commands.parity import run

    if not files:
        raise ValueError("got no golden file; wanted at least one: sana-wm parity FILE...")
    return run(list(files))


if __name__ == "__main__":
    sys.exit(main())
