"""A step on an idle and on a busy machine, default settings: python tests/benchmarks/busy.py [--steps 20].

Busy: as many other processes as there are cores do nothing but count. The rounds take turns. What a process
can expect is half of a core, so twice the time; threads that wait for each other by spinning take fifty times
as long.
"""

import multiprocessing
import os
import time
from dataclasses import dataclass
from statistics import median

import gymnasium as gym
import tyro
from tqdm import trange

import sana_wm_env  # noqa: F401  # registers the ids


@dataclass(frozen=True)
class BusyConfig:
    """What is measured."""

    rounds: int = 4
    """times that the machine becomes busy and idle again"""
    steps: int = 5
    """steps of each"""
    world: str = "rooms"
    """name of a bundled world, or the folder of a trained one"""


def spin() -> None:
    """Keeps a core busy until it is ended."""
    while True:
        sum(range(10**6))


def seconds_of(env: gym.Env, steps: int) -> list[float]:
    """What single steps take."""
    found = []
    for _ in range(steps):
        began = time.perf_counter()
        env.step(env.action_space.sample())
        found.append(time.perf_counter() - began)
    return found


def main(config: BusyConfig) -> None:
    """Prints the median step of both, and the ratio."""
    env = gym.make("SanaWM-v0", world=config.world, max_episode_steps=None)
    env.reset(seed=0)
    seconds_of(env, 3)
    idle, busy = [], []
    others, cores = multiprocessing.get_context("spawn"), len(os.sched_getaffinity(0))
    for _ in trange(config.rounds, desc="rounds"):
        idle += seconds_of(env, config.steps)
        spinning = [others.Process(target=spin, daemon=True) for _ in range(cores)]
        for process in spinning:
            process.start()
        time.sleep(3)  # until they have started
        busy += seconds_of(env, config.steps)
        for process in spinning:
            process.terminate()
            process.join()
    idle_ms, busy_ms = 1000 * median(idle), 1000 * median(busy)
    print(
        f"{cores} cores: idle {idle_ms:.0f} ms, busy {busy_ms:.0f} ms: {busy_ms / idle_ms:.2f} times as long"
    )


if __name__ == "__main__":
    main(tyro.cli(BusyConfig, description=__doc__))
