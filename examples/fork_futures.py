"""One present, eight futures, one picture: branch an imagined world and let each branch go another way. Takes
some seconds on a CPU.

python examples/fork_futures.py [WORLD]
"""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np

import sana_wm_env  # noqa: F401  # registers the environments
from sana_wm_env.contact_sheet import contact_sheet

world = (
    sys.argv[1] if len(sys.argv) > 1 else "tiny-rooms"
)  # a bundled world's name, or the folder of one you trained

env = gym.make("SanaWM-v0", world=world, obs_mode="last")
env.reset(seed=7)
present, *_ = env.step(
    np.float32([0, 0, 0.5, 0, 0, 0])
)  # half a chunk's way forward: the past that all futures share

# (right, down, forward, look up, turn right, roll clockwise), each from -1 to 1.
futures = {
    "stay": [0, 0, 0, 0, 0, 0],
    "forward": [0, 0, 1, 0, 0, 0],
    "back": [0, 0, -1, 0, 0, 0],
    "step left": [-1, 0, 0, 0, 0, 0],
    "step right": [1, 0, 0, 0, 0, 0],
    "turn left": [0, 0, 0, 0, -1, 0],
    "turn right": [0, 0, 0, 0, 1, 0],
    "look up": [0, 0, 0, 1, 0, 0],
}

# The branches share the past and the weights; one step moves all of them in one forward of the network.
branches = env.unwrapped.fork(len(futures))
pictures = [[present] for _ in futures]
for _ in range(2):
    frames, *_ = branches.step(np.array(list(futures.values()), np.float32))
    for row, frame in zip(pictures, frames, strict=True):
        row.append(frame)

rows = list(np.array(pictures).swapaxes(0, 1))  # one row per moment, one column per future
Path("out").mkdir(exist_ok=True)
contact_sheet(rows, ["present", "1.5 s later", "3 s later"], list(futures)).save("out/fork_futures.png")

same, *_ = env.step(
    np.zeros(6, np.float32)
)  # the present has not moved: its own next step is that of the branch that stays
print(
    "the branch that stays differs from the trunk by",
    np.abs(same.astype(int) - pictures[0][1]).max(),
    "grey levels",
)
branches.close()
env.close()
print("wrote out/fork_futures.png")
