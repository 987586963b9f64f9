"""What branching the present costs, and what it saves: python tests/benchmarks/fork.py [--branches 64]
[--candidates 8] [--depth 40].
"""

from dataclasses import dataclass
from statistics import median

import gymnasium as gym
import numpy as np
import torch
import tyro
from timing import seconds
from tqdm import trange

import sana_wm_env  # noqa: F401  # registers the ids
from sana_wm_env.model.state import concatenate

MIB = 2**20


@dataclass(frozen=True)
class ForkConfig:
    """What is timed."""

    branches: int = 64
    """branches whose making is timed"""
    candidates: int = 8
    """candidates that are tried for one step"""
    depth: int = 40
    """chunk at which they branch"""
    rounds: int = 5
    """interleaved repetitions of the short measurements; the replays are timed once"""
    threads: int = 0
    """torch threads, 0 for torch's own choice"""


def measure(config: ForkConfig) -> None:
    """Prints the figures."""
    if config.threads:
        torch.set_num_threads(config.threads)
    env = gym.make("SanaWM-v0", max_episode_steps=None).unwrapped
    actions = (
        np.random.default_rng(0).uniform(-1, 1, (config.depth + config.candidates, 6)).astype(np.float32)
    )

    def replay() -> None:
        env.reset(seed=0)
        for action in actions[: config.depth]:
            env.step(action)

    replay()
    state = env.save_state()
    candidates = actions[config.depth :, None]
    times: dict[str, list[float]] = {"fork": [], "step": [], "branches": []}
    for _ in trange(config.rounds, desc="fork, step, branches"):
        times["fork"].append(seconds(lambda: env.fork(config.branches)))
        env.restore_state(state)
        times["step"].append(seconds(lambda: env.step(actions[0])))
        env.restore_state(state)
        times["branches"].append(seconds(lambda: env.imagine(candidates, decode="frames")))
    fork, step, branches = (median(values) for values in times.values())
    replayed = 0.0
    for candidate in trange(config.candidates, desc="replays"):
        replayed += seconds(replay) + seconds(lambda candidate=candidate: env.step(candidates[candidate, 0]))
    env.restore_state(state)
    forks = env.fork(config.branches)
    before = concatenate(forks.save_state())
    forks.step(np.repeat(actions[:1], config.branches, 0))
    after = concatenate(forks.save_state())
    print(
        f"one session: {state.nbytes / MIB:.1f} MiB; one step {1000 * step:.0f} ms, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"fork({config.branches}): {1000 * fork:.1f} ms, {fork / step:.1%} of a step")
    copied = before.nbytes - before.nbytes_shared - state.nbytes
    print(f"  {before.nbytes_shared / MIB:.0f} of {before.nbytes / MIB:.0f} MiB shared, {copied} B copied")
    print(f"  after one step of each: {after.nbytes_shared / MIB:.0f} of {after.nbytes / MIB:.0f} MiB shared")
    print(
        f"{config.candidates} candidates, one step each, from chunk {config.depth}: {branches:.2f} s",
        end="; ",
    )
    print(f"by replaying from the reset: {replayed:.1f} s, {replayed / branches:.1f} times as long")


if __name__ == "__main__":
    measure(tyro.cli(ForkConfig, description=__doc__))
