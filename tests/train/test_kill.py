"""A run that is killed without warning goes on, bit for bit, as if it had not been: every stage."""

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
from sana_wm_env.train.data import rooms as data

STEPS = 8
BEFORE = {
    "autoencoder": [],
    "bidirectional": [],
    "causal": ["bidirectional"],
    "ode": ["bidirectional", "causal"],
}
BEFORE |= {"self-forcing": ["bidirectional", "ode"], "distill": ["causal"], "teacher-forcing": ["causal"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Runs of all stages that nobody has interrupted."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "KINDS", small_ladder.KINDS)
        patch.setitem(PRESETS, "tiny", small_ladder.TINY)
        for stage in BEFORE:
            small_ladder.train(stage, runs, STEPS)
        yield runs


def start(stage: str, whole: Path, runs: Path) -> subprocess.Popen:
    """A process that trains the stage in a folder of its own, beside links to what it begins with."""
    (runs / "tiny").mkdir(parents=True)
    for name in [
        "data",
        *(f"tiny/{name}" for name in BEFORE[stage] + ["autoencoder"] * (stage != "autoencoder")),
    ]:
        (runs / name).symlink_to(whole / name)
    command = [sys.executable, small_ladder.__file__, stage, str(runs), str(STEPS)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        command, env=os.environ | threads, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def saved(runs: Path, stage: str) -> dict:
    return torch.load(runs / "tiny" / stage / "checkpoint.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("stage", BEFORE)
def test_a_killed_run_goes_on_bit_for_bit(stage, whole, tmp_path):
    process, checkpoint = start(stage, whole, tmp_path), tmp_path / "tiny" / stage / "checkpoint.pt"
    while process.poll() is None and not (checkpoint.exists() and saved(tmp_path, stage)["step"] >= 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= saved(tmp_path, stage)["step"] < STEPS
    small_ladder.train(stage, tmp_path, STEPS)
    one, other = saved(whole, stage), saved(tmp_path, stage)
    assert one["step"] == other["step"] == STEPS
    for part in ("model", "average"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part]), part
