"""Plan in imagination: try out paths in the world model, take the one that shows the goal image. About half a
minute on a CPU.

python examples/plan_cem.py [WORLD]
"""

import sys
from pathlib import Path

import gymnasium as gym

import sana_wm_env  # noqa: F401  # registers the environments
from sana_wm_env.agents.planning.cem import CEMAgent
from sana_wm_env.agents.planning.planner import PlannerConfig
from sana_wm_env.contact_sheet import contact_sheet

world = (
    sys.argv[1] if len(sys.argv) > 1 else "tiny-rooms"
)  # a bundled world's name, or the folder of one you trained

env = gym.make("SanaWM-Goal-v0", world=world)
obs, info = env.reset(seed=3)  # a goal within one to three chunks; the agent is shown a picture from there

# "frames": imagine every candidate, compare its newest frame with the goal image. The planner is not told
# where the goal lies. "reward" would plan for the task's reward, which is paid by distance: it needs no
# imagination and no time, and shows nothing of the world.
config = PlannerConfig(horizon=1, candidates=12, iterations=3, axes=(2, 4))  # walks and turns
agent = CEMAgent(config, objective="frames", elites=0.25)
agent.reset(seed=0)

pictures, terminated = [obs["image"]], False
while not terminated and info["chunk_index"] < 2:
    action = agent.act(obs, env.unwrapped)
    obs, reward, terminated, truncated, info = env.step(action)
    pictures.append(obs["image"])
    print(
        f"chunk {info['chunk_index']}: {info['distance_m']:.2f} m and {info['angle_rad']:.2f} rad from the "
        f"goal, reward {reward:+.2f}"
    )

report = agent.report()
print(
    "arrived" if info["is_success"] else "gave up",
    f"after {report['plans']} plans, {report['imagined_chunks']} imagined chunks",
)
Path("out").mkdir(exist_ok=True)
columns = ["start", *(f"after plan {i}" for i in range(1, len(pictures))), "goal"]
contact_sheet([[*pictures, obs["goal_image"]]], ["seen"], columns).save("out/plan_cem.png")
env.close()
print("wrote out/plan_cem.png")
