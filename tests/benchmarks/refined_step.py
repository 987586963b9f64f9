"""A step with the second stage against one without, taking turns: python tests/benchmarks/refined_step.py
[--refiner FOLDER] [--steps 40]. The clean passes of both are counted.
"""

import argparse
import statistics

import gymnasium as gym
import numpy as np
from timing import seconds

import sana_wm_env  # noqa: F401  # registers the ids


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--world", default="tiny-rooms")
    parser.add_argument("--refiner", default="auto")
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    action = np.array([0.3, 0, 0.5, 0, 0.4, 0], np.float32)
    envs = [gym.make("SanaWM-v0", world=given.world, refiner=r).unwrapped for r in (None, given.refiner)]
    for env in envs:
        env.reset(seed=0)

    def step(env) -> None:
        env.step(action)
        env.save_state()  # waits for the clean pass

    spent: list[list[float]] = [[], []]
    for i in range(given.steps + 3):
        for env, times in zip(envs, spent, strict=True):
            took = seconds(lambda env=env: step(env))
            if i >= 3:
                times.append(took)
    plain, refined = (1000 * statistics.median(times) for times in spent)
    print(f"{given.steps} steps: {plain:.0f} ms, {refined:.0f} ms refined, {refined / plain:.2f} times")


if __name__ == "__main__":
    main()
