"""Whether anything grows that should not: python tests/benchmarks/soak.py [--minutes 60].

Environments, vectors, recorders, states, branches, what-ifs, copies and malformed inputs, round after round.
Prints a line a minute; exit code 1 if memory, threads, open files or tensors are not flat after the warm-up,
or something malformed was taken.
"""

import gc
import os
import pickle
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro

import sana_wm_env
from sana_wm_env import RecordChunks, RecordVectorChunks, RoomsState, WorldState

MIB = 2**20
ROOMS = 4
"""Seeds of episodes, few so that what is kept of rooms is there after the warm-up."""
NO_ACTIONS: list[Any] = [
    None, "left", 1.0, [True] * 6, np.zeros(5), np.zeros((1, 6)), np.full(6, np.nan), np.full(6, 1.5),
    np.zeros(6, complex), np.zeros(6, object), ["0"] * 6, torch.zeros(6, device="meta"), [[0] * 6, [0]],
]  # fmt: skip
NO_OPTIONS: list[Any] = [
    5, {"foo": 1}, {"room": -1}, {"room": "x"}, {"prompt": 5}, {"image": np.zeros((4, 4, 3), np.uint8)},
    {"image": "no such file", "fov_deg": 65.0}, {"image": np.zeros((4, 4)), "fov_deg": 65.0},
    {"intrinsics": "x"}, {"state": 5}, {"keep_options": "no"},
]  # fmt: skip


@dataclass(frozen=True)
class SoakConfig:
    """How long, and what counts as flat."""

    minutes: float = 60
    """of rounds"""
    warm_up: float = 0.25
    """share of the minutes before the figures count"""
    growth: float = 0.03
    """by which memory may differ between the first and the last third of what counts"""


class Figures(NamedTuple):
    """What may not grow: MiB of this process in memory, its threads, open files, and tensors that Python
    knows of.
    """

    memory: float
    threads: int
    files: int
    tensors: int


def look() -> Figures:
    """The figures of this process now (Linux)."""
    gc.collect()
    with open("/proc/self/statm") as file:
        memory = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
    threads = len(os.listdir("/proc/self/task"))
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    return Figures(memory, threads, len(os.listdir("/proc/self/fd")), tensors)


class Soak:
    """Rounds of everything, with a count of what was refused."""

    def __init__(self, folder: Path):
        self.folder, self.random = folder, random.Random(0)
        self.rounds = self.steps = self.refused = self.taken = 0

    def refuse(self, call: Callable[[], Any]) -> None:
        """Counts whether something malformed is refused."""
        try:
            call()
        except (ValueError, TypeError, OSError):
            self.refused += 1
        else:
            self.taken += 1

    def episode(self, name: str) -> None:
        """One environment: recorded, refused, saved, damaged, restored, branched, copied."""
        env = RecordChunks(gym.make(name), self.folder / "videos")
        env.reset(seed=self.rounds % ROOMS)
        inner: Any = env.unwrapped
        for action in NO_ACTIONS:
            self.refuse(lambda: env.step(action))  # noqa: B023
        for options in NO_OPTIONS:
            self.refuse(lambda: env.reset(options=options))  # noqa: B023
        for _ in range(3):
            env.step(env.action_space.sample())
        self.states(env, WorldState if name == "SanaWM-v0" else RoomsState)
        inner.imagine(np.random.default_rng(self.rounds).uniform(-1, 1, (4, 2, 6)), decode="last")
        branches = inner.fork(3)
        branches.step(branches.action_space.sample())
        branches.close()
        other = pickle.loads(pickle.dumps(env.env))
        other.step(other.action_space.sample())
        other.close()
        env.close()
        self.steps += 6

    def states(self, env: gym.Env, kind: Any) -> None:
        """A saved state is opened again; ten damaged copies are not."""
        path = self.folder / "state"
        env.unwrapped.save_state().save(path)  # type: ignore[attr-defined]
        sana_wm_env.restore(env, kind.load(path))
        whole = path.read_bytes()
        for _ in range(10):
            path.write_bytes(whole[: self.random.randrange(len(whole))])
            self.refuse(lambda: kind.load(path))

    def vector(self, name: str) -> None:
        """Slots that end and begin again, recorded, with a malformed action among them."""
        made = gym.make_vec(name, num_envs=3, max_episode_steps=2, autoreset_mode="SameStep")
        env = RecordVectorChunks(made, self.folder / "slots", slots=[0])
        picture = np.full((40, 60, 3), 90, np.uint8)
        own = {"image": picture, "fov_deg": 65.0} if name == "SanaWM-v0" else {"room": 3}
        env.reset(seed=self.rounds % ROOMS, options=own)
        for _ in range(3):
            env.step(env.action_space.sample())
            self.refuse(lambda: env.step([np.zeros(6), np.zeros(6), None]))
        self.steps += 9
        env.close()

    def round(self) -> None:
        """All of it once, and the files are gone."""
        for name in ("SanaWM-v0", "SanaWM-Rooms-v0"):
            self.episode(name)
            self.vector(name)
        for path in sorted(self.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.rounds += 1


def judge(rows: list[Figures], config: SoakConfig) -> list[str]:
    """What is not flat; nothing is said of less than six minutes."""
    counted = rows[round(config.warm_up * len(rows)) :]
    third = len(counted) // 3
    if third < 2:
        return []
    found = []
    for name in Figures._fields:
        values = [getattr(row, name) for row in counted]
        first, last = median(values[:third]), median(values[-third:])
        allowed = first * (1 + config.growth) if name in ("memory", "tensors") else first
        if last > allowed:
            found.append(f"{name} grew from {first:.0f} to {last:.0f}")
    return found


def main(config: SoakConfig) -> int:
    """Runs the rounds, prints the table, returns the exit code."""
    rows, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder))
        print("minute  rounds   steps  refused  taken  memory MiB  threads  files  tensors")
        while time.monotonic() - began < 60 * config.minutes:
            soak.round()
            if time.monotonic() - began >= 60 * (len(rows) + 1):
                rows.append(now := look())
                print(
                    f"{len(rows):6d}  {soak.rounds:6d}  {soak.steps:6d}  {soak.refused:7d}  {soak.taken:5d}  "
                    f"{now.memory:10.1f}  {now.threads:7d}  {now.files:5d}  {now.tensors:7d}",
                    flush=True,
                )
    found = judge(rows, config) + (["something malformed was taken"] if soak.taken else [])
    print("; ".join(found) or f"flat over {len(rows)} minutes; {threading.active_count()} threads of Python")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(SoakConfig, description=__doc__)))
