"""The one-minute benchmark end to end on the bundled world, cut to a chunk: killed and resumed, and on scenes
that are not rooms.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from sana_wm_env import cli
from sana_wm_env.evaluation.benchmark_report import COLUMNS
from sana_wm_env.evaluation.benchmark_scenes import SPLITS
from sana_wm_env.evaluation.paper_results import PUBLISHED

SCENES = 2
SETTINGS = f"evaluate benchmark --scenes {SCENES} --split simple --chunks 1 --batch 1 --seed 50"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("benchmark") / "whole"
    assert cli.main([*SETTINGS.split(), "--out", str(out)]) == 0
    return out


def test_a_run_that_was_killed_goes_on_and_ends_the_same(whole, tmp_path):
    out = tmp_path / "killed"
    shutil.copytree(whole / "scenes", out / "scenes")
    command = [sys.executable, "-m", "sana_wm_env.cli", *SETTINGS.split(), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((out / "simple").glob("*.json")):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in (out / "simple").glob("*.json")}
    assert 0 < len(done) < SCENES and not (out / "benchmark.json").exists()
    assert cli.main([*SETTINGS.split(), "--out", str(out)]) == 0
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())  # not done twice
    assert (out / "benchmark.json").read_bytes() == (whole / "benchmark.json").read_bytes()


def test_the_report_has_figures_bounds_and_the_published_rows(whole):
    report = json.loads((whole / "benchmark.json").read_text())
    simple = report["splits"]["simple"]
    assert list(report["splits"]) == ["simple"] and simple["scenes"] == SCENES
    for figure in ("rot_err_deg", "trans_err_m", "cam_mc"):
        world, truth = (simple[of]["poses"]["none"][figure]["mean"] for of in ("world", "truth"))
        assert truth < world
    assert simple["truth"]["drift"]["sharpness"]["kept"]["mean"] == pytest.approx(1, abs=0.2)
    assert len(simple["world"]["psnr_db_per_chunk"]) == 1 and simple["world"]["psnr_db_per_chunk"][0] > 20
    page = (whole / "benchmark.md").read_text()
    assert all(column in page for column in COLUMNS) and "do not rank it" in page
    assert all(row.method in page for row in PUBLISHED["simple"])
    assert (whole / "benchmark-frames.png").stat().st_size > 1000


def test_videos_lie_with_the_poses_they_were_to_take(whole):
    with av.open(str(whole / "simple" / "room_001.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 25
    with (
        np.load(whole / "simple" / "room_001.npz") as sidecar,
        np.load(whole / "scenes" / SPLITS["simple"] / "sanawm_export_v2" / "room_001.npz") as scene,
    ):
        np.testing.assert_allclose(sidecar["c2w"], scene["c2w"][:25])
        assert sidecar["estimated_c2w_world"].shape == (4, 4, 4)


def test_results_of_another_run_are_not_mixed_in(whole, capsys):
    assert cli.main([*SETTINGS.replace("--seed 50", "--seed 51").split(), "--out", str(whole)]) == 2
    assert "seed 50 -> 51" in capsys.readouterr().err
    assert cli.main([*SETTINGS.replace("--chunks 1", "--chunks 41").split(), "--out", str(whole)]) == 2


def test_scenes_that_are_not_rooms_are_imagined_without_poses(whole, tmp_path):
    """The published dataset's files hold no room: what remains are videos, revisits and drift."""
    folder, out = tmp_path / "published", tmp_path / "out"
    shutil.copytree(whole / "scenes", folder)
    (folder / "rooms.json").unlink()
    for path in folder.glob("*/sanawm_export_v2/*.npz"):
        with np.load(path) as file:
            kept = {name: file[name] for name in ("c2w", "intrinsics", "fps", "num_frames")}
        np.savez(path, **kept)
    settings = SETTINGS.replace(f"--scenes {SCENES}", "--scenes 1").split()
    assert cli.main([*settings, "--scene-folder", str(folder), "--out", str(out), "--no-videos"]) == 0
    simple = json.loads((out / "benchmark.json").read_text())["splits"]["simple"]
    assert "truth" not in simple and "poses" not in simple["world"] and not list(out.glob("simple/*.mp4"))
    # The same room, path and noise: drift is that of the scene in the rooms edition.
    with (whole / "simple" / "room_001.json").open() as file:
        wanted = json.load(file)["world"]["drift"]["contrast"]["kept"]
    assert simple["world"]["drift"]["contrast"]["kept"]["mean"] == pytest.approx(wanted)
