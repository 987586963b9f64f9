import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example_runs_and_keeps_its_promise(name, tmp_path):
    world = gym.registry["SanaWM-v0"].kwargs.get("world", "rooms")
    result = subprocess.run([sys.executable, "-W", "error", EXAMPLES / name, world], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    for written in [word for word in result.stdout.split("wrote ")[-1].split() if word.startswith("out/")]:
        assert (tmp_path / written).stat().st_size > 1000
