"""Videos of any model against their commands: what is placed is compared, what is not counts against them."""

import json
import re

import numpy as np
import pytest
import torch
from textured_videos import render_walk, write_frames

from sana_wm_env import cli
from sana_wm_env.camera import twist_path
from sana_wm_env.evaluation.video import VideoConfig, run, score_path
from sana_wm_env.rooms import HOME, default_intrinsics
from sana_wm_env.rooms.render import render
from sana_wm_env.rooms.room import open_room
from sana_wm_env.train.annotate.poses import PoseEstimate

PATH = np.concatenate([np.eye(4)[None], twist_path([0.5, 0.1, 0.3, 0.05, 0.2, 0], 24)])


def estimated(c2w: np.ndarray, sigma: float = np.nan) -> PoseEstimate:
    made = PoseEstimate.without_points(c2w, np.ones((len(c2w), 4)), False, "test")
    made.rot_sigma_deg[:], made.trans_sigma[:] = sigma, sigma
    return made


def in_units(metres_per_unit: float) -> np.ndarray:
    c2w = PATH.copy()
    c2w[:, :3, 3] /= metres_per_unit
    return twist_path([1, 2, 3, 0.5, 1, 0], 1) @ c2w


def test_a_video_that_follows_has_no_error_whatever_the_unit():
    score = score_path(estimated(in_units(0.05), sigma=0.4), PATH, "scale")
    assert score.rot_err_deg.max() < 1e-6 and score.trans_err_m.max() < 1e-9
    assert score.scale == pytest.approx(0.05)
    assert score.rot_sigma_deg == pytest.approx(0.4) and score.trans_sigma_m == pytest.approx(0.02)


def test_frames_that_are_not_placed_count_as_those_of_a_still_camera():
    c2w = in_units(0.05)
    c2w[15:] = np.nan
    score = score_path(estimated(c2w), PATH, "scale")
    away = np.linalg.norm(PATH[:, :3, 3], axis=1)
    assert score.placed.sum() == 15
    assert score.trans_err_m[:15].max() < 1e-9 and np.allclose(score.trans_err_m[15:], away[15:])
    nothing = score_path(estimated(np.full_like(PATH, np.nan)), PATH, "scale", "no model")
    assert np.allclose(nothing.trans_err_m, away) and nothing.summary()["placed"] == 0
    assert nothing.summary()["note"] == "no model" and nothing.summary()["rot_sigma_deg"] is None


def test_the_tracker_scores_a_room_with_its_own_uncertainty(tmp_path, capsys):
    room, size = open_room(HOME[3]), (64, 64)
    c2w = torch.from_numpy(room.start @ PATH)[None]
    frames = render(room.scenes, c2w, default_intrinsics(size), size).rgb[0].numpy()
    write_frames(tmp_path / "a.mp4", frames)
    np.savez(tmp_path / "a.npz", c2w=PATH)
    config = VideoConfig(tmp_path / "a.mp4", None, "tracker", HOME[3], json=tmp_path / "a.json")
    assert run(config) == 0
    (row,) = json.loads((tmp_path / "a.json").read_text())["videos"].values()
    assert row["rot_err_deg"] < 1.5 and row["trans_err_m"] < 0.06 and (row["placed"], row["frames"]) == (4, 4)
    assert 0 < row["rot_sigma_deg"] < 5
    assert "alignment none" in capsys.readouterr().out and (tmp_path / "a.md").exists()
    mirrored = np.diag([-1.0, 1, 1, 1]) @ PATH @ np.diag([-1.0, 1, 1, 1])
    np.savez(tmp_path / "other.npz", c2w=mirrored)
    config = VideoConfig(
        tmp_path / "a.mp4", tmp_path / "other.npz", "tracker", HOME[3], json=tmp_path / "b.json"
    )
    assert run(config) == 0
    (other,) = json.loads((tmp_path / "b.json").read_text())["videos"].values()
    assert other["trans_err_m"] > 3 * row["trans_err_m"]


@pytest.mark.slow
def test_a_folder_of_videos_gives_a_table(tmp_path, capsys):
    pytest.importorskip("pycolmap", reason="needs the extra annotate")
    walk = render_walk(frames=25)
    write_frames(tmp_path / "good.mp4", walk.frames)
    write_frames(tmp_path / "grey.mp4", np.full_like(walk.frames, 128))
    for name in ("good", "grey"):
        np.savez(tmp_path / f"{name}.npz", c2w=walk.c2w)
    assert cli.main(["evaluate", "video", str(tmp_path), "--json", str(tmp_path / "scores.json")]) == 0
    report = json.loads((tmp_path / "scores.json").read_text())
    good, grey = report["videos"]["good"], report["videos"]["grey"]
    assert good["placed"] == 25 and good["rot_err_deg"] < 0.5 and good["trans_err_m"] < 0.02
    assert grey["placed"] == 0 and "got no two frames" in grey["note"]
    assert grey["trans_err_m"] == pytest.approx(np.linalg.norm(walk.c2w[:, :3, 3], axis=1).mean())
    assert "| mean" in capsys.readouterr().out


WRONG = {
    "another length": (["--commanded", "short.npz"], "9 commanded poses in .* for the 25 frames"),
    "no path": ([], "no commanded poses for a.mp4"),
    "no room": (["--backend", "tracker"], "without --scene-seed"),
    "no scale": (["--align", "none"], "wanted one that finds the scale"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_scored_is_refused(kind, tmp_path, capsys, monkeypatch):
    pytest.importorskip("pycolmap", reason="needs the extra annotate")
    monkeypatch.chdir(tmp_path)
    write_frames(tmp_path / "a.mp4", np.zeros((25, 64, 64, 3), np.uint8))
    np.savez(tmp_path / "short.npz", c2w=PATH[:9])
    flags, said = WRONG[kind]
    assert cli.main(["evaluate", "video", "a.mp4", *flags]) == 2
    assert re.search(said, capsys.readouterr().err)
