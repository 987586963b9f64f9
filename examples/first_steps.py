"""The first five minutes: make the environment, walk, look at what came out, keep a video. Takes some seconds
on a CPU.

python examples/first_steps.py [WORLD]
"""

import sys

import gymnasium as gym
import numpy as np

import sana_wm_env
from sana_wm_env.camera import intrinsics_from_fov

world = (
    sys.argv[1] if len(sys.argv) > 1 else "tiny-rooms"
)  # a bundled world's name, or the folder of one you trained

# A world model is a Gymnasium environment. One step is one chunk of imagined video: 24 frames, 1.5 seconds.
env = gym.make("SanaWM-v0", world=world)
env = sana_wm_env.RecordChunks(env, "out/first_steps.mp4")  # every frame, and the poses beside it as .npz

obs, info = env.reset(seed=7)  # a room that training has never seen
print("observation:", obs.dtype, obs.shape, "| action:", env.action_space)

# An action is the camera's twist during the chunk, in its own frame: right, down, forward; look up, turn
# right, roll. 1 stands for the largest motion that the world was trained with.
walk, turn, stand = np.eye(6, dtype=np.float32)[2], np.eye(6, dtype=np.float32)[4], np.zeros(6, np.float32)
for action in (0.5 * walk, turn, turn, 0.5 * walk, stand):
    obs, reward, terminated, truncated, info = env.step(action)
    x, y, z = info["c2w"][-1][:3, 3]  # where the camera is now, in metres from where it began
    print(f"chunk {info['chunk_index']}: {x:+.2f} m right, {y:+.2f} m down, {z:+.2f} m forward of the start")

# Your own first frame works as well: the picture, the camera that took it, and a few words about what is in
# it.
picture = obs[-1]
options = {
    "image": picture,
    "intrinsics": intrinsics_from_fov(picture.shape[:2], fov_deg=75),
    "prompt": "a room",
}
env.reset(seed=7, options=options)
env.step(walk)

env.close()
print("wrote out/first_steps.mp4 (121 frames) and out/first_steps-1.mp4 (25 frames)")
