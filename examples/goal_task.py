"""Find the place from which a picture was taken: a task, its reward, and two agents. Takes some seconds on a
CPU.

python examples/goal_task.py [WORLD]
"""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image

import sana_wm_env  # noqa: F401  # registers the environments
from sana_wm_env.camera import step_twists
from sana_wm_env.contact_sheet import side_by_side

world = (
    sys.argv[1] if len(sys.argv) > 1 else "tiny-rooms"
)  # a bundled world's name, or the folder of one you trained

# The observation is a dict: the newest frame and the camera's pose, the goal image and the goal's pose as
# seen from the camera.
env = gym.make("SanaWM-Goal-v0", world=world)
print("observation:", {key: space.shape for key, space in env.observation_space.items()})
limits = np.repeat([env.unwrapped.max_translation_m, env.unwrapped.max_rotation_rad], 3)


def straight_there(obs: dict[str, np.ndarray]) -> np.ndarray:
    """The action whose twist leads to the goal, or as far that way as one chunk may go."""
    position, x_axis, y_axis = obs["goal_pose"].astype(np.float64).reshape(3, 3)
    goal = np.eye(4)
    goal[:3] = np.stack([x_axis, y_axis, np.cross(x_axis, y_axis), position], axis=1)
    action = step_twists(np.stack([np.eye(4), goal]))[0] / limits
    return np.float32(action / max(1, np.abs(action).max()))


def at_random(obs: dict[str, np.ndarray]) -> np.ndarray:
    """Any action."""
    return env.action_space.sample()


env.action_space.seed(0)
for agent in (at_random, straight_there):
    obs, info = env.reset(seed=6)  # the same room, path and goal for both
    total, terminated = 0.0, False
    while not terminated and info["chunk_index"] < 5:
        obs, reward, terminated, truncated, info = env.step(agent(obs))
        total += reward
    outcome = "arrived" if info["is_success"] else "gave up"
    print(
        f"{agent.__name__}: {outcome} after {info['chunk_index']} chunks, {info['distance_m']:.2f} m away; "
        f"return {total:+.2f}"
    )

Path("out").mkdir(exist_ok=True)
Image.fromarray(side_by_side([obs["image"][None], obs["goal_image"][None]], ("arrived", "goal"))[0]).save(
    "out/goal_task.png"
)
env.close()
print("wrote out/goal_task.png")
