"""Whether a session may go on for ever: python tests/benchmarks/endless.py [--chunks 2000] [--cycles 10].

Step time late against early, memory growth after warm-up, and what make, step, close leave behind.
"""

import gc
import time
from dataclasses import dataclass
from statistics import median

import gymnasium as gym
import torch
import tyro
from tqdm import trange

import sana_wm_env  # noqa: F401  # registers the ids
from sana_wm_env.model.tree import tensors_of

MIB = 2**20


@dataclass(frozen=True)
class EndlessConfig:
    """What is measured."""

    chunks: int = 2000
    """chunks of one session, after the warm-up"""
    warm_up: int = 20
    """chunks before memory is looked at; step times are compared from the fifth on"""
    cycles: int = 10
    """how often an environment is made, stepped and closed"""


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def live_tensors() -> int:
    """Tensors that Python knows of."""
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


def session(config: EndlessConfig) -> None:
    """One long session."""
    env = gym.make("SanaWM-v0", max_episode_steps=None).unwrapped
    env.reset(seed=0)
    env.action_space.seed(0)
    times, sizes, memory = [], set(), 0
    for chunk in trange(1, config.warm_up + config.chunks + 1, desc="chunks"):
        began = time.perf_counter()
        obs, *_ = env.step(env.action_space.sample())
        times.append(time.perf_counter() - began)
        if chunk >= config.warm_up:
            state = env.save_state()
            sizes.add(state.nbytes)
            memory = memory or resident()
    finite = all(bool(t.isfinite().all()) for t in tensors_of(state) if t.is_floating_point())
    grown = resident() - memory
    late = times[-10:]
    print(
        f"{len(times)} chunks, {state.transformer.next_frame.item()} latent frames; all carried numbers "
        f"finite: {finite}"
    )
    print(
        f"step: median {1000 * median(times[4:14]):.0f} ms over chunks 5-14, {1000 * median(late):.0f} ms "
        "over the last 10;",
        end=" ",
    )
    print(
        f"ratio {median(late) / median(times[4:14]):.3f}; state "
        f"{'constant' if len(sizes) == 1 else sorted(sizes)} bytes"
    )
    print(
        f"resident memory after {config.warm_up} chunks {memory / MIB:.1f} MiB, grown by "
        f"{grown / MIB:.2f} MiB"
    )
    print(f"standard deviation of the last frame {obs[-1].std():.1f}")


def cycles(config: EndlessConfig) -> None:
    """Make, step, close, again and again."""
    tensors, memory = [], []
    for _ in trange(config.cycles + 1, desc="make, step, close"):
        env = gym.make("SanaWM-v0")
        env.reset(seed=0)
        env.step(env.action_space.sample())
        env.close()
        del env
        tensors.append(live_tensors())
        memory.append(resident() / MIB)
    print(
        f"after make, step, close: {tensors[0]} tensors after the first, {tensors[-1]} after "
        f"{config.cycles} more;",
        end=" ",
    )
    print(f"resident {memory[0]:.0f} MiB, then {memory[-1]:.0f} MiB")


if __name__ == "__main__":
    config = tyro.cli(EndlessConfig, description=__doc__)
    session(config)
    cycles(config)
