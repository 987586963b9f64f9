"""A run that is killed without warning goes on, bit for bit, as if it had not been: every stage, in processes of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_ladder
import torch

from sana_wm_env.model.config import PRESETS
from sana_wm_env.train import data
from sana_wm_env.train.loop import LoopConfig

STEPS = 8
BEFORE = {"autoencoder": [], "bidirectional": [], "causal": ["bidirectional"], "ode": ["bidirectional", "causal"]}
BEFORE |= {"self-forcing": ["bidirectional", "ode"], "distill": ["causal"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Runs of all stages that others begin with."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "KINDS", small_ladder.KINDS)
        patch.setitem(PRESETS, "tiny", small_ladder.TINY)
        for stage in ("autoencoder", "bidirectional", "causal", "ode"):
            run, config = small_ladder.configure(stage, runs, LoopConfig(steps=1, batch=2, preview=0))
            run(config)
    return runs


def start(stage: str, trained: Path, runs: Path) -> subprocess.Popen:
    """A process that trains the stage in a folder of its own, beside links to what it begins with."""
    (runs / "tiny").mkdir(parents=True, exist_ok=True)
    needed = ["data", *(f"tiny/{name}" for name in BEFORE[stage] + ["autoencoder"] * (stage != "autoencoder"))]
    for name in needed:
        if not (runs / name).exists():
            (runs / name).symlink_to(trained / name)
    command = [sys.executable, small_ladder.__file__, stage, str(runs), str(STEPS)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def saved(runs: Path, stage: str) -> dict:
    return torch.load(runs / "tiny" / stage / "checkpoint.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("stage", BEFORE)
def test_a_killed_run_goes_on_bit_for_bit(stage, trained, tmp_path):
    whole, killed = (start(stage, trained, tmp_path / name) for name in ("whole", "killed"))
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:  # until some steps are done
        time.sleep(0.02)
        if (tmp_path / "killed" / "tiny" / stage / "checkpoint.pt").exists() and saved(tmp_path / "killed", stage)["step"] >= 2:
            break
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 2 <= saved(tmp_path / "killed", stage)["step"] < STEPS
    assert start(stage, trained, tmp_path / "killed").wait(300) == 0 and whole.wait(300) == 0
    one, other = saved(tmp_path / "whole", stage), saved(tmp_path / "killed", stage)
    assert one["step"] == other["step"] == STEPS
    for part in ("model", "average"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part]), part
