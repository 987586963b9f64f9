"""A run that is killed at any stage goes on where it was: the same result, and nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from textured_videos import TURN, render_walk, write_depth, write_frames

from sana_wm_env.train.annotate.records import STAGES

pytest.importorskip("pycolmap", reason="needs the extra annotate")
pytest.importorskip("scenedetect", reason="needs the extra annotate")
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")


def start(folder: Path, out: str) -> subprocess.Popen:
    command = ["annotate", "videos", "--out", out, "--depth", "depth", "--backend", "pycolmap"]
    return subprocess.Popen(
        [sys.executable, "-m", "sana_wm_env.cli", *command],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def records(out: Path) -> dict[str, tuple[int, bytes]]:
    """Every record, and when it was written."""
    files = [*out.glob("work/*/*.json"), *out.glob("work/*/*.npz")]
    return {str(path.relative_to(out)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def rows(out: Path) -> list[dict]:
    """The manifest without what a clock says."""
    lines = (out / "manifest.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.mark.heavy
def test_killed_at_every_stage_it_goes_on(tmp_path):
    walk = render_walk(frames=25)
    write_frames(tmp_path / "videos/a.mp4", walk.frames)
    write_depth(tmp_path / "depth/a.npz", walk)
    write_frames(tmp_path / "videos/b.mp4", render_walk(TURN, 25).frames)
    assert start(tmp_path, "whole").wait() == 0

    out, killed, done = tmp_path / "killed", [], {}
    for stage in STAGES:
        before = STAGES[STAGES.index(stage) - 1] if stage != STAGES[0] else None
        awaited = out / "work/a" / f"{before}.json" if before else out / "settings.json"
        if (out / "work/a" / f"{stage}.json").exists():
            continue  # the run was faster than the one who kills it
        run = start(tmp_path, "killed")
        while not awaited.exists() and run.poll() is None:
            time.sleep(0.002)
        run.send_signal(signal.SIGKILL)
        run.wait()
        killed.append(stage)
        there = records(out)
        assert {name: there.get(name) for name in done} == done
        done = {name: kept for name, kept in there.items() if name.endswith(".json")}
    assert "poses" in killed and len(killed) > 3
    assert start(tmp_path, "killed").wait() == 0

    assert {name: records(out).get(name) for name in done} == done  # nothing that was there was done again
    assert rows(out) == rows(tmp_path / "whole")
    # what a killed writer has left beside its file is in nobody's way
    files = (path for path in out.rglob("*") if path.is_file() and path.suffix != ".part")
    names = sorted(str(path.relative_to(out)) for path in files)
    whole = tmp_path / "whole"
    assert names == sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    for kind in ("clips/*", "pictures/*", "work/*/*.npz"):
        for path in whole.glob(kind):
            assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes(), path


@pytest.mark.slow
def test_a_finished_run_does_nothing_again(tmp_path):
    write_frames(tmp_path / "videos/b.mp4", render_walk(TURN, 25).frames)
    (tmp_path / "depth").mkdir()
    assert start(tmp_path, "out").wait() == 1  # a camera that only turns
    before = records(tmp_path / "out")
    assert start(tmp_path, "out").wait() == 1
    assert records(tmp_path / "out") == before


def test_pycolmap_leaves_sigterm_to_whoever_had_it():
    pytest.importorskip("pycolmap")
    program = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
from sana_wm_env.train.annotate.colmap import load_pycolmap
load_pycolmap().set_random_seed(0)
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (143, "")
