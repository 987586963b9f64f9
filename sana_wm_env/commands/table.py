"""Every command of `sana-wm`: one line about it, and the function behind it as text."""

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple


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


def load_function(command: Command) -> Callable[..., int | None]:
    """Imports the function behind a command."""
    module, function = command.target.split(":")
    return getattr(import_module(f"sana_wm_env.{module}"), function)
