"""Twenty steps of every stage at the bundled world's real size, one after the other from nothing.

Prints seconds, and the loss of one batch before and after.

python tests/benchmarks/twenty_steps.py [--steps 20] [--batch 4] [--runs FOLDER]
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from sana_wm_env.train import autoencoder, bidirectional, causal, distill, ode, self_forcing
from sana_wm_env.train.data.latents import encoded_rooms
from sana_wm_env.train.loop import LoopConfig, Stage, train
from sana_wm_env.train.optim import OptimConfig

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--runs", type=Path, help="folder of the runs; a new temporary one if not given")
args = parser.parse_args()
runs = args.runs or Path(tempfile.mkdtemp())
schedule = LoopConfig(steps=args.steps, batch=args.batch, preview=0, optim=OptimConfig(warmup=2, decay=0.0))
common = {"runs": runs, "shards": 1, "loop": schedule}


def loss_of_one_batch(stage: Stage) -> float:
    """Of the same 16 samples, levels and noise whenever it is asked: batches differ by more than twenty steps
    can change.
    """
    total, scalars = stage.loss(16, torch.Generator().manual_seed(1))
    return scalars.get(
        "critic", total.item()
    )  # self-forcing: the generator's loss is a direction, not a distance


def timed(name: str, stage: Stage, home: Path) -> None:
    fresh = stage.carried  # one batch is only the same if what steps hand on to each other is
    before, stage.carried = loss_of_one_batch(stage), fresh
    start = time.perf_counter()
    train(stage, schedule, home)
    seconds = time.perf_counter() - start
    stage.carried = fresh
    print(f"{name:<15}{seconds:>9.1f}{before:>12.4f}{loss_of_one_batch(stage):>12.4f}", flush=True)


print(f"{'stage':<15}{'seconds':>9}{'before':>12}{'after':>12}")
config = autoencoder.AutoencoderStageConfig(**common)
timed("autoencoder", autoencoder.AutoencoderStage(config), runs / "rooms" / "autoencoder")
autoencoder.run(config)  # nothing left to train: measures the spread of the latents and writes the result
encoded_rooms(
    runs / "data",
    {"clips": 1, "sessions": 1},
    (64, 64),
    autoencoder.load_trained(runs / "rooms" / "autoencoder", "cpu"),
    "cpu",
)
for stage, config in (
    (bidirectional.BidirectionalStage, bidirectional.BidirectionalConfig(**common)),
    (causal.CausalStage, causal.CausalConfig(**common)),
    (ode.OdeStage, ode.OdeConfig(**common, trajectories=16, teacher_steps=20)),
    (self_forcing.SelfForcingStage, self_forcing.SelfForcingConfig(**common, frames=7)),
    (distill.DistillStage, distill.DistillConfig(**common, sessions=1)),
):
    timed(config.stage, stage(config), config.home)
