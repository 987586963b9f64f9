"""N sessions in one process against N processes: python tests/benchmarks/vector.py [--num-envs 4] [--rounds
5].

Steps per second, interleaved round by round, and memory: what is private to each process plus what they
share, once (PSS).
"""

import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import gymnasium as gym
import torch
import tyro
from tqdm import trange

import sana_wm_env  # noqa: F401  # registers the ids

MIB = 2**20


@dataclass(frozen=True)
class VectorConfig:
    """What is measured."""

    num_envs: int = 4
    """sessions"""
    rounds: int = 5
    """interleaved rounds"""
    steps: int = 3
    """steps of each environment per round"""
    threads: int = 0
    """torch threads of the one process, 0 for torch's own choice"""


class PinnedEnv(gym.Wrapper):
    """A worker's environment with one torch thread, on one core."""

    def __init__(self, env: gym.Env, core: int):
        super().__init__(env)
        if (
            multiprocessing.parent_process() is not None
        ):  # AsyncVectorEnv makes one here as well, to ask for its spaces
            torch.set_num_threads(1)
            os.sched_setaffinity(0, {core})


def pinned(core: int):
    """A function that makes an environment pinned to `core`."""
    return lambda: PinnedEnv(gym.make("SanaWM-v0", max_episode_steps=None), core)


def resident(pids: list[int]) -> float:
    """MiB of memory that the processes take together; shared pages count once (Linux)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total / MIB


def measure(config: VectorConfig) -> None:
    """Prints the figures."""
    cores = sorted(os.sched_getaffinity(0))
    n = config.num_envs
    if config.threads:
        torch.set_num_threads(config.threads)
    makers = {
        "one process": lambda: gym.make_vec("SanaWM-v0", num_envs=n, max_episode_steps=None),
        f"{n} processes, default threads": lambda: gym.vector.AsyncVectorEnv(
            [lambda: gym.make("SanaWM-v0", max_episode_steps=None)] * n, context="spawn"
        ),
        f"{n} processes, pinned, 1 thread": lambda: gym.vector.AsyncVectorEnv(
            [pinned(cores[i % len(cores)]) for i in range(n)], context="spawn"
        ),
    }
    envs, memory = {}, {}
    for name, make in makers.items():
        before = {child.pid for child in multiprocessing.active_children()}
        envs[name] = make()
        envs[name].reset(seed=0)
        for _ in range(3):  # until windows are full
            envs[name].step(envs[name].action_space.sample())
        workers = [child.pid for child in multiprocessing.active_children() if child.pid not in before]
        memory[name] = resident(workers or [os.getpid()])
    rates: dict[str, list[float]] = {name: [] for name in envs}
    for _ in trange(config.rounds, desc="rounds"):
        for name, env in envs.items():
            actions = env.action_space.sample()
            began = time.perf_counter()
            for _ in range(config.steps):
                env.step(actions)
            rates[name].append(n * config.steps / (time.perf_counter() - began))
    for env in envs.values():
        env.close()
    ours, ours_memory = median(rates["one process"]), memory["one process"]
    print(f"{n} sessions on {len(cores)} cores, {torch.get_num_threads()} threads in the one process")
    for name in envs:
        rate = median(rates[name])
        print(f"{name}: {rate:.2f} steps/s, {memory[name]:.0f} MiB;", end=" ")
        print(f"ours has {ours / rate:.2f} times the speed in {ours_memory / memory[name]:.0%} of the memory")


if __name__ == "__main__":
    measure(tyro.cli(VectorConfig, description=__doc__))
