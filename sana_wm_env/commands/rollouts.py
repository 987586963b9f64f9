"""`sana-wm plan rollouts`: what so many chunks take of machines, hours, network and storage, and where many
workers stop being faster.

Seconds per chunk are yours if you have measured them (`--chunk-s`), else the roofline's: the least that the
card's rates allow, decoding not counted. The rest is counted from the network's sizes. `simulate` then
plays the workers one event after the other: each imagines, fails now and then, comes back from its last
checkpoint, and hands what it has made to one learner through one network.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from sana_wm_env.model.config import preset
from sana_wm_env.model.kernels.formats import PRECISIONS
from sana_wm_env.model.kernels.tensor_cores import refuse
from sana_wm_env.model.memory import need
from sana_wm_env.model.storage.layouts import published_world

from ..settings import check_settings
from .roofline import CARDS, CHUNK_S, bound_seconds, count_pass

FRAMES = 24


@dataclass(frozen=True)
class RolloutsConfig:
    """Machines, hours, network and storage for so many chunks, and many workers simulated, with failures.

    Attributes:
        chunks: how many in all, such as 1e9.
        device: h100, b200 or rtx5090.
        workers: one GPU each.
        preset: row of the preset table.
        precision: of the transformer; bfloat16, or what the card multiplies.
        grid: latent height and width; 22 40 is 704 x 1280.
        chunk_s: seconds per chunk that were measured; None for the roofline's bound.
        slots: sessions on one worker.
        keep: what is kept of a chunk: "frames" raw, "video" as H.264, "latents" in 16 bits.
        video_mb: megabytes of a minute of video, for keep=video.
        gpus_per_machine: GPUs in a machine.
        network_gbps: gigabits per second into the learner.
        learner_s: seconds that the learner spends on a chunk; 0 where chunks are only stored.
        failure_hours: hours between two failures of one worker, on average.
        restart_s: seconds until a new worker has loaded its weights.
        checkpoint_every: chunks between two saved conditions.
        hours: simulated.
        seed: of the simulation.
    """

    chunks: float = 1e9
    device: str = "h100"
    workers: int = 1000
    preset: str = "2.6b"
    precision: str = "bfloat16"
    grid: tuple[int, int] = (22, 40)
    chunk_s: float | None = None
    slots: int = 1
    keep: Literal["frames", "video", "latents"] = "video"
    video_mb: float = 60
    gpus_per_machine: int = 8
    network_gbps: float = 100
    learner_s: float = 0
    failure_hours: float = 500
    restart_s: float = 120
    checkpoint_every: int = 4
    hours: float = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        counts = ("workers", "slots", "gpus_per_machine", "checkpoint_every", "grid")
        positive = ("chunks", "chunk_s", "video_mb", "network_gbps", "failure_hours", "hours")
        intervals = dict.fromkeys(counts, "[1, inf)") | dict.fromkeys(positive, "(0, inf)")
        check_settings(self, seed="[0, inf)", learner_s="[0, inf)", restart_s="[0, inf)", **intervals)
        if self.device not in CARDS:
            raise ValueError(f"got --device {self.device}; wanted one of {', '.join(CARDS)}")
        if self.precision not in ("bfloat16", *PRECISIONS):
            raise ValueError(
                f"got --precision {self.precision}; wanted bfloat16 or one of {', '.join(PRECISIONS)}"
            )


class Sizes(NamedTuple):
    """Bytes of one chunk that is kept, of one session's condition, and of the weights; seconds of a chunk."""

    kept: float
    condition: float
    weights: float
    seconds: float


class Simulated(NamedTuple):
    """What came of a simulation.

    Attributes:
        chunks: that arrived at the learner.
        failures: of workers.
        lost_s: worker seconds that went into starting again and into doing chunks twice.
        waited_s: worker seconds spent waiting for the network or the learner.
        network: share of the time that the network was busy, and learner: the learner.
    """

    chunks: int
    failures: int
    lost_s: float
    waited_s: float
    network: float
    learner: float


def measure_sizes(config: RolloutsConfig) -> Sizes:
    """Bytes and seconds from the network's sizes, and from the roofline where nothing was measured."""
    world = published_world(config.preset, preset(config.preset))
    precision = None if config.precision == "bfloat16" else config.precision
    card = CARDS[config.device]
    if precision and refuse(precision, card.name, card.capability, True):  # type: ignore[arg-type]
        raise ValueError(
            f"got --precision {precision}, which the tensor cores of {card.name} do not multiply"
        )
    needed = need(world, torch.bfloat16, precision)  # type: ignore[arg-type]
    cells, transformer = config.grid[0] * config.grid[1], world.transformer
    kept = {
        "frames": FRAMES * cells * 32 * 32 * 3.0,
        "video": config.video_mb * 1e6 * CHUNK_S / 60,
        "latents": 2.0 * transformer.in_channels * transformer.chunk * cells,
    }[config.keep]
    seconds = config.chunk_s
    if seconds is None:
        work = count_pass(transformer, config.grid, needed.state, precision)  # type: ignore[arg-type]
        seconds = len(world.sigmas) * bound_seconds(work, card, precision)  # type: ignore[arg-type]
    return Sizes(kept, needed.state, needed.transformer, seconds)


def simulate(config: RolloutsConfig, sizes: Sizes, workers: int) -> Simulated:
    """Plays workers for some hours, event by event.

    A worker imagines a chunk of every slot, and then sends them; the network takes one sender after the
    other, and the learner one batch after the other. A worker has one batch under way: it waits until the
    network and the learner have taken its last. Failures come by chance, evenly in time; a worker that failed
    is away for `restart_s`, and does the chunks since its last checkpoint once more.
    """
    rng, horizon = np.random.default_rng(config.seed), config.hours * 3600
    transfer = config.slots * sizes.kept * 8 / (config.network_gbps * 1e9)
    saving = config.slots * sizes.condition * 8 / (config.network_gbps * 1e9)
    learning, making = config.slots * config.learner_s, config.slots * sizes.seconds
    fails = rng.exponential(config.failure_hours * 3600, workers)
    since = np.zeros(workers, np.int64)  # chunks since the last checkpoint
    events = [(making * (1 + i / workers), i) for i in range(workers)]  # spread over the first chunk
    heapq.heapify(events)
    network_free = learner_free = network_busy = learner_busy = lost = waited = 0.0
    arrived = failures = 0
    while events and events[0][0] < horizon:
        now, i = heapq.heappop(events)
        if fails[i] <= now:  # before this chunk was whole
            failures += 1
            again = config.restart_s + since[i] * making
            lost += again + (now - max(fails[i], now - making))
            back = max(fails[i], now - making) + again
            fails[i] = back + rng.exponential(config.failure_hours * 3600)
            heapq.heappush(events, (back + making, i))
            continue
        since[i] += 1
        size = transfer
        if since[i] >= config.checkpoint_every:
            since[i], size = 0, transfer + saving
        network_free = max(now, network_free) + size
        network_busy += size
        learner_free = max(network_free, learner_free) + learning
        learner_busy += learning
        waited += min(learner_free, horizon) - now
        if learner_free < horizon:
            arrived += config.slots
        heapq.heappush(events, (learner_free + making, i))
    shares = min(1.0, network_busy / horizon), min(1.0, learner_busy / horizon)
    return Simulated(arrived, failures, lost, waited, *shares)


def find_saturation(config: RolloutsConfig, sizes: Sizes) -> tuple[float, str]:
    """Workers at which the first shared part is busy all the time, and which part that is; infinite where
    none is shared.
    """
    making = sizes.seconds + sizes.kept * 8 / (config.network_gbps * 1e9)
    per_chunk = (sizes.kept + sizes.condition / config.checkpoint_every) * 8 / (config.network_gbps * 1e9)
    parts = {"the network into the learner": per_chunk, "the learner": config.learner_s}
    name = max(parts, key=lambda part: parts[part])
    return (making / parts[name] if parts[name] else float("inf")), name


def run(config: RolloutsConfig) -> None:
    """Prints the plan and the simulation."""
    sizes, card = measure_sizes(config), CARDS[config.device]
    source = (
        "measured, as you say" if config.chunk_s is not None else "roofline: at least, decoding not counted"
    )
    hours = config.chunks * sizes.seconds / config.workers / 3600
    machines = -(-config.workers // config.gpus_per_machine)
    print(f"{config.preset} on {card.name}, {config.precision}, {config.grid[0]} x {config.grid[1]} cells")
    print(f"seconds per chunk  {sizes.seconds:12.3f}   ({source})")
    print(
        f"GPU hours          {config.chunks * sizes.seconds / 3600:12,.0f}   for {config.chunks:,.0f} chunks"
    )
    print(
        f"machines           {machines:12,}   of {config.gpus_per_machine} GPUs, {config.workers:,} workers"
    )
    print(f"hours              {hours:12,.1f}   without failures or waiting")
    rate = config.workers * sizes.kept / sizes.seconds
    print(
        f"network            {rate * 8 / 1e9:12,.2f}   Gbit/s of {config.keep}, "
        f"{sizes.kept / 1e6:.2f} MB a chunk"
    )
    states = config.workers * sizes.condition / sizes.seconds / config.checkpoint_every
    print(
        f"checkpoints        {states * 8 / 1e9:12,.2f}   Gbit/s, {sizes.condition / 1e9:.2f} GB a session "
        f"every "
        f"{config.checkpoint_every} chunks"
    )
    print(
        f"weights            {machines * sizes.weights / 1e9:12,.1f}   GB once, "
        f"{sizes.weights / 1e9:.1f} a machine"
    )
    print(f"storage            {config.chunks * sizes.kept / 1e12:12,.1f}   TB of {config.keep}")
    print(
        f"\nsimulated: {config.hours:g} h, a failure of each worker every {config.failure_hours:g} h, "
        f"{config.restart_s:g} s to start, {config.network_gbps:g} Gbit/s, {config.learner_s:g} s of learner "
        "a chunk"
    )
    print(
        f"{'workers':>9}{'chunks/s':>11}{'of ideal':>10}{'failures':>10}{'lost':>8}"
        f"{'waiting':>9}{'network':>9}{'learner':>9}"
    )
    for workers in _ladder(config.workers):
        done = simulate(config, sizes, workers)
        time = config.hours * 3600 * workers
        ideal = workers / sizes.seconds
        print(
            f"{workers:>9,}{done.chunks / config.hours / 3600:>11,.2f}"
            f"{done.chunks / config.hours / 3600 / ideal:>10.1%}{done.failures:>10}{done.lost_s / time:>8.2%}"
            f"{done.waited_s / time:>9.1%}{done.network:>9.1%}{done.learner:>9.1%}"
        )
    limit, part = find_saturation(config, sizes)
    print(
        f"\nIt saturates at about {limit:,.0f} workers, where {part} is busy all the time."
        if limit < float("inf")
        else "\nIt does not saturate: nothing is shared."
    )


def _ladder(workers: int) -> list[int]:
    """Numbers of workers up to this one, and twice as many."""
    steps = sorted(
        {max(1, workers // 100), max(1, workers // 10), max(1, workers // 2), workers, 2 * workers}
    )
    return steps
