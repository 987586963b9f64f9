"""Learn in imagination: PPO in worlds that share one set of weights, then play the policy in imagination and
in the truth.

python examples/rl_ppo.py [WORLD] [STEPS]

With the 16 steps of the default, a quarter of a minute on a CPU, nothing is learned; agents/README.md says
what it takes.
"""

import sys
from pathlib import Path

from sana_wm_env.agents.choose import EnvConfig
from sana_wm_env.agents.evaluate import play, summarise, table
from sana_wm_env.agents.policy.ppo import PPOAgent
from sana_wm_env.agents.policy.train_ppo import TrainConfig, train
from sana_wm_env.agents.random_agent import RandomAgent

world = (
    sys.argv[1] if len(sys.argv) > 1 else "tiny-rooms"
)  # a bundled world's name, or the folder of one you trained
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 16

# The task "redness" pays for turning and walking to where the picture is red, so the policy has to look.
imagined = EnvConfig(env="SanaWM-v0", task="redness", chunks=2, world=world)
truth = EnvConfig(env="SanaWM-Rooms-v0", task="redness", chunks=2)

# Four worlds, one forward of the network per step. The same call goes on with what it finds in the folder, up
# to `steps`.
out = Path("out/rl_ppo")
train(TrainConfig(where=imagined, out=out, steps=steps, envs=4, rollout=2, batch=8))

agents = {"random": RandomAgent(), "ppo": PPOAgent.load(out / "policy.zip")}
rows = {}
for where in (imagined, truth):
    env = where.make()
    for name, agent in agents.items():
        rows[f"{name} in {where.env}"] = summarise(
            [play(agent, env, seed) for seed in range(2)]
        )  # the same rooms for both
    env.close()
print(table(rows))
print("wrote out/rl_ppo/policy.zip")
