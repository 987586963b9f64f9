"""This tree against another one, interleaved in one run: python tests/benchmarks/compare_trees.py --other
FOLDER [--what step ...].

    git worktree add ../before 6413190
    python tests/benchmarks/compare_trees.py --other ../before --threads 1

Each tree has a process of its own for every row, which does one unit of work when told and says how long it
took; the two take turns. The rows named fp32 and auto let this tree compute in float32 and in the dtype that
it chooses; the other tree does what it does. A step is timed with the clean pass that the next one needs; for
a caller who thinks between two steps it is made in the meantime.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from tqdm import tqdm

HERE = Path(__file__).resolve().parents[2]
ROWS = {
    # row: (unit of work, precision of this tree, rounds)
    "step, fp32": ("step", "fp32", 15),
    "step, auto": ("step", "auto", 15),
    "what a caller who thinks waits for, fp32": ("thinking", "fp32", 15),
    "what a caller who thinks waits for, auto": ("thinking", "auto", 15),
    "vector of 4, fp32": ("vector", "fp32", 6),
    "vector of 4, auto": ("vector", "auto", 6),
    "training step of bidirectional, fp32": ("bidirectional", "fp32", 5),
    "training step of bidirectional, auto": ("bidirectional", "auto", 5),
    "training step of distill, fp32": ("distill", "fp32", 4),
    "training step of distill, auto": ("distill", "auto", 4),
    "render 97 frames": ("render", "auto", 12),
}
WARM_UP = 3
BATCH = 8


@dataclass(frozen=True)
class CompareConfig:
    """What is compared."""

    other: Path
    """root of the other tree"""
    threads: int = 0
    """cores and torch threads of a process; 0 for all, with torch's own choice"""
    what: tuple[str, ...] = ("step", "thinking", "vector", "bidirectional", "distill", "render")
    """units of work"""
    worker: str = ""
    """internal: be the process that does this unit of work"""
    precision: str = "auto"
    """internal: of the worker"""


# ---- units of work; they run in either tree, so they use what both have


def stepping(precision: str, to_the_end: bool = True) -> Callable[[], Any]:
    """One step of `SanaWM-v0`, the clean pass included if asked."""
    import gymnasium as gym

    import sana_wm_env  # noqa: F401  # registers the ids

    env = gym.make("SanaWM-v0", max_episode_steps=None, **of_env(precision))
    env.reset(seed=0)
    env.action_space.seed(0)

    def step() -> None:
        env.step(env.action_space.sample())
        if to_the_end:
            env.unwrapped.save_state().transformer  # noqa: B018  # waits for it

    return step


def stepping_four(precision: str) -> Callable[[], Any]:
    """One step of four environments in a vector."""
    import gymnasium as gym

    import sana_wm_env  # noqa: F401

    env = gym.make_vec("SanaWM-v0", num_envs=4, **of_env(precision))
    env.reset(seed=0)
    env.action_space.seed(0)
    return lambda: env.step(env.action_space.sample())


def training(stage_name: str, precision: str) -> Callable[[], Any]:
    """One optimiser step of a stage, batch 8, that begins with the bundled world."""
    from sana_wm_env.model.world import WorldModel
    from sana_wm_env.train import bidirectional, checkpoints, distill
    from sana_wm_env.train.loop import LoopConfig, _step
    from sana_wm_env.train.optim import optimisers
    from sana_wm_env.train.processes import start_processes

    start_processes()
    runs = Path(tempfile.gettempdir()) / "sana-wm-compare-trees"
    home = runs / "rooms" / "autoencoder"
    if not (home / "autoencoder.pt").exists():
        home.mkdir(parents=True, exist_ok=True)
        autoencoder = WorldModel.load("rooms").autoencoder
        torch.save(
            {"config": asdict(autoencoder.config), "weights": autoencoder.state_dict()},
            home / "autoencoder.pt",
        )
    has_precision = "precision" in {field.name for field in fields(LoopConfig)}
    loop = LoopConfig(batch=BATCH, **({"precision": precision} if has_precision else {}))
    common = {"runs": runs, "shards": 1, "loop": loop, "init_from": "rooms"}
    if stage_name == "bidirectional":
        stage: Any = bidirectional.BidirectionalStage(bidirectional.BidirectionalConfig(**common))
    else:
        stage = distill.DistillStage(distill.DistillConfig(**common, sessions=1))
    of_training = getattr(checkpoints, "Training", None) or checkpoints.Run  # what older trees call it
    training = of_training(runs / "unused", loop, stage, optimisers(stage.model, loop.optim, stage.parts), {})
    count = iter(range(10**6))
    return lambda: _step(training, next(count), BATCH)


def rendering(precision: str) -> Callable[[], Any]:
    """One clip of 97 frames at 64 x 64, room and path included."""
    from sana_wm_env.train.data.rooms import render_clips

    seeds = iter(range(10**6))
    return lambda: render_clips([next(seeds)], (64, 64))


def of_env(precision: str) -> dict[str, str]:
    """The arguments of an environment that computes so, as far as the tree knows them."""
    import inspect

    from sana_wm_env.env import SanaWMEnv

    return (
        {"dtype": "float32"}
        if precision == "fp32" and "dtype" in inspect.signature(SanaWMEnv).parameters
        else {}
    )


UNITS: dict[str, Callable[[str], Callable[[], Any]]] = {
    "step": stepping,
    "thinking": lambda precision: stepping(precision, to_the_end=False),
    "vector": stepping_four,
    "bidirectional": lambda precision: training("bidirectional", precision),
    "distill": lambda precision: training("distill", precision),
    "render": rendering,
}


# ---- the two processes of a row


def work(unit: str, precision: str) -> None:
    """Do a unit of work for every line of standard input; print the seconds."""
    call = UNITS[unit](precision)
    for _ in range(WARM_UP):
        call()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        call()
        print(time.perf_counter() - began, flush=True)


def importable(tree: Path) -> Path:
    """A folder to import a tree from, as an installation would lay it out, whatever is installed
    otherwise.
    """
    package = Path(tempfile.mkdtemp()) / "sana_wm_env"
    package.mkdir()
    for entry in [*(tree / "sana_wm_env").iterdir(), *(tree / name for name in ("model", "train", "agents"))]:
        (package / entry.name).symlink_to(entry.resolve())
    return package.parent


class Worker:
    """A process that works in a tree."""

    def __init__(self, tree: Path, unit: str, precision: str, threads: int):
        environment = os.environ | {"PYTHONPATH": str(importable(tree))}
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        command = [sys.executable, __file__, "--other", str(tree), "--worker", unit, "--precision", precision]
        pipes: dict[str, Any] = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.DEVNULL,
            "text": True,
        }
        self.process = subprocess.Popen(command, env=environment, cwd=tempfile.gettempdir(), **pipes)
        if threads:
            os.sched_setaffinity(self.process.pid, set(list(os.sched_getaffinity(0))[:threads]))
        while (line := self.process.stdout.readline()) and line != "ready\n":
            pass
        if not line:
            raise RuntimeError(
                f"PYTHONPATH={environment['PYTHONPATH']} {' '.join(command)} ended; run it by hand to see why"
            )

    def time(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(unit: str, precision: str, rounds: int, config: CompareConfig) -> tuple[float, float, float]:
    """Median seconds in the other tree and in this one, and the median of the ratios of neighbours in
    time.
    """
    workers = [Worker(tree, unit, precision, config.threads) for tree in (config.other, HERE)]
    pairs = [
        tuple(worker.time() for worker in workers)
        for _ in tqdm(range(rounds), desc=f"{unit}, {precision}", leave=False)
    ]
    for worker in workers:
        worker.end()
    before, after = (median(column) for column in zip(*pairs, strict=True))
    return before, after, median(a / b for a, b in pairs)


def main(config: CompareConfig) -> None:
    """Prints one row after the other."""
    from step_time import processor

    print(f"{processor('cpu')}, {config.threads or 'all'} cores, torch {torch.__version__}; median seconds\n")
    print("| | before | now | times as fast |\n|---|---|---|---|", flush=True)
    for row, (unit, precision, rounds) in ROWS.items():
        if unit in config.what:
            before, after, ratio = compare(unit, precision, rounds, config)
            print(f"| {row} | {before:.3f} | {after:.3f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    chosen = tyro.cli(CompareConfig, description=__doc__)
    work(chosen.worker, chosen.precision) if chosen.worker else main(chosen)
