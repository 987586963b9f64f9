import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

import sana_wm_env  # noqa: F401  # registers the environments

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example_runs_and_keeps_its_promise(name, tmp_path):
    if name == "annotate_your_own.py":
        pytest.importorskip("pycolmap", reason="needs the extra annotate")
        pytest.importorskip("scenedetect", reason="needs the extra annotate")
    world = gym.registry["SanaWM-v0"].kwargs.get("world", "tiny-rooms")
    arguments = {
        "train_your_own.py": ["--steps", "1", "--batch", "2"],
        "annotate_your_own.py": ["--steps", "1"],
    }.get(name, [world])
    result = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    lines = [
        line
        for line in re.split("[\r\n]", result.stderr)
        if line and not re.search(r"\d+/\d+ \[|\d+step \[|: \d+( of \d+)? \w+s, \d+ s", line)
    ]  # progress, as bars or as lines of a log
    assert (result.returncode, lines) == (0, [])
    for written in [word for word in result.stdout.split("wrote ")[-1].split() if word.startswith("out/")]:
        assert (tmp_path / written).stat().st_size > 1000
