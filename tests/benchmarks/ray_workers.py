"""Steps per second of N workers on two nodes of this machine against one vector environment, and what
replacing a worker costs.

    python tests/benchmarks/ray_workers.py --workers 1 2 4
"""

import argparse
import os
import signal
import tempfile
import time

import gymnasium as gym
import numpy as np
import ray
from ray.cluster_utils import Cluster

import sana_wm_env  # noqa: F401  # registers the ids


def rate(envs, steps: int) -> float:
    """Chunks per second over all slots, after an episode's beginning."""
    actions = np.zeros((envs.num_envs, 6), np.float32)
    envs.reset(seed=0)
    envs.step(actions), envs.step(actions)
    began = time.perf_counter()
    for _ in range(steps):
        envs.step(actions)
    return steps * envs.num_envs / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    config = parser.parse_args()
    setting = {"id": "SanaWM-v0", "num_envs": config.slots, "obs_mode": "last"}
    cluster = Cluster()
    for _ in range(2):
        cache = tempfile.mkdtemp()
        cluster.add_node(num_cpus=4, object_store_memory=200 * 2**20, env_vars={"XDG_CACHE_HOME": cache})
    ray.init(address=cluster.address, log_to_driver=False)
    here = gym.make_vec(**setting)
    for count in config.workers:
        there = gym.make_vec(**setting, backend="ray", workers=count, checkpoint_every=4)
        ours, theirs = rate(here, config.steps), rate(there, config.steps)
        fetched = [about["node"] for about in there.workers if about["fetched"]]
        os.kill(there.workers[0]["pid"], signal.SIGKILL)
        began = time.perf_counter()
        there.step(np.zeros((config.slots, 6), np.float32))
        print(
            f"{count} workers {theirs:.2f} chunks/s, one vector environment {ours:.2f}: {theirs / ours:.2f} "
            f"times; weights fetched {len(fetched)} times by {len(set(fetched))} nodes; "
            f"a step with a killed worker {time.perf_counter() - began:.1f} s; "
            f"a condition has {len(there._pool.seats[0].condition) / 2**20:.1f} MiB",
            flush=True,
        )
        there.close()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
