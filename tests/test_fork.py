"""Processes forked after a step: `AsyncVectorEnv` forks by default, and OpenMP's threads do not survive
that.
"""

import os
import subprocess
import sys

import pytest

CODE = """
import sys, gymnasium as gym, torch, sana_wm_env
torch.set_num_threads(2)
env = gym.make({id!r})
env.reset(seed=0)
frames = lambda observation: observation["image"] if isinstance(observation, dict) else observation
first = frames(env.step(env.action_space.sample() * 0)[0])
assert torch.get_num_threads() == 2
workers = gym.vector.AsyncVectorEnv([lambda: gym.make({id!r})] * 2)
workers.reset(seed=[0, 1])
found = frames(workers.step(workers.action_space.sample() * 0)[0])
workers.close()
print((found[0] == first).all(), len(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there is forking the default")
@pytest.mark.parametrize("id", ["SanaWM-v0", "SanaWM-Goal-v0", "SanaWM-Rooms-v0"])
@pytest.mark.parametrize("native", ["1", "0"], ids=["compiled", "plain"])
def test_async_vector_env_works_after_a_step_in_the_parent(id, native, tmp_path):
    environment = {**os.environ, "SANA_WM_NATIVE": native}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(id=id)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment,
    )
    assert done.stdout.split() == ["True", "2"], done.stderr[-2000:]
