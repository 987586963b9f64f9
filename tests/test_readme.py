"""The README's examples run as they stand."""

import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import sana_wm_env

EXAMPLES = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


def example(start: str) -> str:
    """The one example that begins with `start`."""
    (found,) = (code for code in EXAMPLES if code.startswith(start))
    return found


def test_first_example():
    names = {}
    exec(example("import gymnasium"), names)
    assert names["obs"].shape[0] == 24 and names["info"]["c2w"].shape == (24, 4, 4)


@pytest.mark.slow
def test_sessions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"env": gym.make("SanaWM-v0"), "gym": gym, "np": np, "sana_wm_env": sana_wm_env}
    names["env"].reset(seed=7)
    exec(example("state = "), names)
    assert names["futures"].frames.shape == (16, 3, 64, 64, 3) and names["branches"].num_envs == 8
