"""Several processes that train together on one machine, and a stage that needs no data on disk. Imported by
every process.
"""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_networks import clip, tiny_config
from torch import Tensor

from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.train.causal import CausalConfig, CausalStage
from sana_wm_env.train.data.latents import Window
from sana_wm_env.train.flow import FlowStage
from sana_wm_env.train.loop import LoopConfig, train
from sana_wm_env.train.optim import PUBLISHED
from sana_wm_env.train.parallel import ParallelConfig, context_group

FRAMES = 17  # chunks of 4, 3, 3, 3, 4: neither two nor four ranks hold equally many frames


def on_ranks(world: int, folder: Path, work, *args) -> list:
    """What work(*args) returns in each of `world` processes, in the order of their ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_enter, (world, folder, work, args), nprocs=world)
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(world)]


def _enter(rank: int, world: int, folder: Path, work, args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save(work(*args), folder / f"result-{rank}.pt")
    dist.destroy_process_group()


# ---- networks and stages


def network(dtype: torch.dtype) -> Transformer:
    """A tiny network none of whose weights is zero."""
    torch.manual_seed(0)
    made = Transformer(tiny_config()).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


class Noise:
    """In place of `LatentClips`: latents of nothing along one path."""

    def draw(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        return torch.randn(batch, 4, frames, 2, 3, generator=generator)

    def window(self, drawn: Tensor, frames: int) -> Window:
        given = clip(frames, len(drawn), torch.float32)
        return Window(drawn, given["camera"], given["plucker"], given["text"], given["mask"])


def stage_on_noise(loop: LoopConfig, rule: str = "bidirectional", dtype: torch.dtype = torch.float32):
    """A stage of the ladder with a tiny network and `Noise`; `seen` collects the losses that it returns."""
    base = CausalStage if rule == "chunk_causal" else FlowStage

    class OnNoise(base):
        loss = base.loss
        divides_clips = True

        def __init__(self):
            self.config = CausalConfig(loop=loop, frames=FRAMES)
            self.context = context_group(loop.parallel.context)
            self.model = self.network = network(dtype)
            self.clips, self.seen = Noise(), []

    stage = OnNoise()
    original = stage.loss

    def loss(batch, generator):
        value, scalars = original(batch, generator)
        stage.seen.append(value.item())
        return value, scalars

    stage.loss = loss
    return stage


def loop_config(steps: int = 5, batch: int = 2, **parallel) -> LoopConfig:
    return LoopConfig(
        steps=steps, batch=batch, preview=0, optim=PUBLISHED, parallel=ParallelConfig(**parallel)
    )


# ---- work of the ranks


@dataclass
class Difference:
    """Largest differences of a divided clip from a whole one, as shares of the largest number, and the
    borders.
    """

    borders: tuple[int, ...]
    velocity: float
    gradient: float


def divided_clips() -> dict[tuple[int, str, torch.dtype], Difference]:
    """Velocities and gradients of clips on two and on four ranks, against this rank alone."""
    found = {}
    groups = {size: context_group(size) for size in (2, 4)}
    for rule in ("bidirectional", "chunk_causal"):
        for dtype in (torch.float32, torch.float64):
            given, net = clip(FRAMES, 2, dtype), network(dtype)
            target = torch.randn(given["x"].shape, dtype=dtype, generator=torch.Generator().manual_seed(5))
            whole, gradient = velocity_and_gradient(net, given, target, rule, None)
            for size, group in groups.items():
                for block in net.blocks:
                    block.recompute = size == 4
                segment = group.segment(FRAMES, 3)
                part, share = velocity_and_gradient(net, given, target, rule, segment)
                dist.all_reduce(share, group=group.group)
                found[size, rule, dtype] = Difference(
                    segment.borders, distance(part, whole[:, :, segment.local]), distance(share, gradient)
                )
    return found


def velocity_and_gradient(
    net: Transformer, given: dict[str, Tensor], target: Tensor, rule: str, segment
) -> tuple[Tensor, Tensor]:
    own, first = (slice(None), 0) if segment is None else (segment.local, segment.first)
    x = given["x"].clone().requires_grad_()
    times = torch.linspace(0, 900, FRAMES).expand(len(x), -1)
    text = net.text_context(given["text"], given["mask"])
    cameras = net.camera_context(given["camera"][:, own], given["plucker"][:, :, own], first)
    velocity = net(x[:, :, own], times[:, own], text, cameras, rule, segment)
    net.zero_grad()
    ((velocity - target[:, :, own]).square().sum() / target.numel()).backward()
    gradients = [x.grad, *(p.grad for p in net.parameters() if p.grad is not None)]
    return velocity.detach(), torch.cat([g.flatten() for g in gradients])


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def parameters_after(config: LoopConfig, out: Path, rule: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights after a training run, in one piece."""
    model = train(stage_on_noise(config, rule, dtype), config, out)
    return {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in model.named_parameters()}


def sharded_runs(out: Path) -> dict:
    """Two sharded ranks: weights after five steps, losses of a whole and of an interrupted run, a run in
    bfloat16.
    """
    ends = {}
    for context, rule, dtype in (
        (1, "bidirectional", torch.float32),
        (2, "bidirectional", torch.float32),
        (2, "chunk_causal", torch.float64),
    ):
        config = loop_config(context=context, shard=True, recompute=context == 2)
        ends[context, rule, dtype] = parameters_after(config, out / f"{context}-{rule}", rule, dtype)
    losses = {name: resumed_losses(out / name, stops) for name, stops in (("whole", [9]), ("parts", [2, 9]))}
    stage = stage_on_noise(loop_config(2, shard=True, bf16=True, context=2))
    train(stage, stage.config.loop, out / "bf16")
    return {"ends": ends, "losses": losses, "bf16": stage.seen}


def resumed_losses(out: Path, stops: list[int]) -> list[float]:
    """Losses of four steps with falling rates, in a run that SIGTERM ends after so many steps and the same
    command resumes.
    """
    seen = []
    for stop in stops:
        config = loop_config(4, shard=True)
        stage = stage_on_noise(replace(config, optim=replace(config.optim, decay=1.0)))
        original = stage.loss

        def loss(batch, generator, stage=stage, original=original, stop=stop):
            if len(stage.seen) == stop - 1:
                signal.raise_signal(signal.SIGTERM)
            return original(batch, generator)

        stage.loss = loss
        with suppress(SystemExit):
            train(stage, stage.config.loop, out)
        seen += stage.seen
    return seen


# ---- a rank that is lost


def run_until_lost(folder: Path, how: str, shard: bool) -> list[str]:
    """Two ranks train; at the fourth step the second is killed, or falls asleep. Returns what the first said
    in the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = mp.get_context("spawn")
    ranks = [context.Process(target=_train_until_lost, args=(rank, folder, how, shard)) for rank in range(2)]
    for one in ranks:
        one.start()
    ranks[0].join(60)
    ranks[1].kill()
    ranks[1].join()
    return (folder / "said").read_text().splitlines()


def _train_until_lost(rank: int, folder: Path, how: str, shard: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    config = replace(loop_config(100, shard=shard, timeout_s=3.0), save_minutes=0.0)
    stage = stage_on_noise(config)
    original, lost_at = stage.loss, []

    def loss(batch, generator):
        if len(stage.seen) == 3:
            lost_at.append(time.monotonic())
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL) if how == "killed" else time.sleep(120)
        return original(batch, generator)

    stage.loss = loss
    try:
        train(stage, config, folder / "run")
    except ConnectionError as error:
        (folder / "said").write_text(f"{time.monotonic() - lost_at[0]}\n{error}\n")
    os._exit(0)  # groups with a lost member cannot be taken down in order
