"""A step at a server of this machine against a step here, one after the other, and what of it is the network.

python tests/benchmarks/remote.py --steps 40
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np

import sana_wm_env  # noqa: F401  # registers the ids

TOKEN = "benchmark-" + 20 * "x"


def seconds(env: gym.Env, action: np.ndarray) -> float:
    began = time.perf_counter()
    env.step(action)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    os.environ["SANA_WM_TOKEN"] = TOKEN
    command = [sys.executable, "-m", "sana_wm_env.cli", "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    far = gym.make("SanaWM-v0", world=address, max_episode_steps=None)
    near = gym.make("SanaWM-v0", max_episode_steps=None)
    action = np.array([0.3, 0, 0.5, 0, 0.4, 0], np.float32)
    for env in (far, near):
        env.reset(seed=0)
        for _ in range(3):
            env.step(action)
    there, here = [], []
    for _ in range(steps):
        there.append(seconds(far, action))
        here.append(seconds(near, action))
    calls = []
    remote = far.unwrapped.remote
    state = far.unwrapped.save_state()
    for _ in range(steps):
        began = time.perf_counter()
        remote.measure(state, refine=False)
        calls.append(time.perf_counter() - began)
    far_ms, near_ms, call_ms = (1000 * statistics.median(each) for each in (there, here, calls))
    print(
        f"{steps} steps: {far_ms:.0f} ms there, {near_ms:.0f} ms here, {far_ms / near_ms:.2f} times; "
        f"{far_ms - near_ms:+.1f} ms a step; an empty call {call_ms:.1f} ms"
    )
    far.close()
    server.send_signal(signal.SIGINT)
    server.wait(30)


if __name__ == "__main__":
    main()
