"""Stable-Baselines3's algorithms on the imagined world, every warning an error.

python tests/benchmarks/sb3_algorithms.py [--steps N] [--world WORLD] [--device DEVICE] [NAME ...]
"""

import argparse
import time
import warnings

import gymnasium as gym
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.vec_env import VecMonitor

from sana_wm_env import DiscreteKeys
from sana_wm_env.sb3 import SB3VecEnv, check_replay_buffer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument(
    "names", nargs="*", metavar="NAME", help="ppo-dict, ppo-last, dqn-keys, sac-last (default: all)"
)
parser.add_argument("--steps", type=int, default=256)
parser.add_argument("--world", default="rooms")
parser.add_argument("--device", default="cpu")
args = parser.parse_args()


def follow(obs_mode: str) -> gym.Env:
    """One world, with the task that rewards every step."""
    return gym.make("SanaWM-Follow-v0", world=args.world, device=args.device, obs_mode=obs_mode)


def four_worlds() -> VecMonitor:
    """Four on one set of weights."""
    return VecMonitor(
        SB3VecEnv(
            gym.make_vec(
                "SanaWM-Follow-v0",
                num_envs=4,
                world=args.world,
                device=args.device,
                obs_mode="last",
                autoreset_mode="SameStep",
            )
        )
    )


def off_policy(algorithm: type, env: gym.Env) -> DQN | SAC:
    """DQN or SAC with a replay buffer that fits into memory."""
    buffer_size = check_replay_buffer(10_000, env)
    return algorithm(
        "CnnPolicy",
        env,
        buffer_size=buffer_size,
        learning_starts=32,
        batch_size=32,
        train_freq=4,
        device=args.device,
    )


ALGORITHMS = {
    "ppo-dict": lambda: PPO(
        "MultiInputPolicy", follow("dict"), n_steps=64, batch_size=64, device=args.device
    ),
    "ppo-last": lambda: PPO("CnnPolicy", four_worlds(), n_steps=16, batch_size=64, device=args.device),
    "dqn-keys": lambda: off_policy(DQN, DiscreteKeys(follow("last"))),
    "sac-last": lambda: off_policy(SAC, follow("last")),
}

warnings.simplefilter("error")
for name in args.names or ALGORITHMS:
    agent = ALGORITHMS[name]()
    start = time.perf_counter()
    agent.learn(args.steps)
    seconds = time.perf_counter() - start
    finished = len(agent.ep_info_buffer or ())
    print(
        f"{name}: {agent.num_timesteps} steps in {seconds:.0f} s "
        f"({agent.num_timesteps / seconds:.2f} per second), "
        f"{finished} episodes, no warning",
        flush=True,
    )
    agent.get_env().close()
