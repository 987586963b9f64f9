"""The parts of the pipeline, each against what is known: scale, windows, guards, masks, files of other
engines.
"""

import json
import os
import stat
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sana_wm_env.camera import twist_path
from sana_wm_env.train.annotate import guards
from sana_wm_env.train.annotate.depth import read_depth
from sana_wm_env.train.annotate.external import Pi3XMoGe, Vipe, read_pi3x, read_vipe
from sana_wm_env.train.annotate.poses import Clip, Points, PoseEstimate, fill_gaps, open_backend
from sana_wm_env.train.annotate.scale import (
    scale_from_baseline,
    scale_from_depth,
    scale_from_height,
    scale_from_poses,
    smooth,
)
from sana_wm_env.train.annotate.scores import read_scores
from sana_wm_env.train.annotate.shots import Footage, split_shots
from sana_wm_env.train.annotate.windows import fit_similarity, join_windows, split_windows
from sana_wm_env.train.data.filters import FILTERS
from sana_wm_env.train.data.sidecars import ClipError


def path_of(frames: int) -> np.ndarray:
    steps = [twist_path([0.4, 0.05, 0.3, 0.02, 0.3 * (-1) ** k, 0.01], 24) for k in range(-(-frames // 24))]
    poses = [np.eye(4)[None]]
    for step in steps:
        poses.append(poses[-1][-1] @ step)
    return np.concatenate(poses)[:frames]


def clip_of(frames: int, size=(100, 200)) -> Clip:
    return Clip("a", Path("a.mp4"), frames, size, np.arange(frames), 0, Path("a.mp4"))


def seen(c2w: np.ndarray, places: np.ndarray, intrinsics: np.ndarray) -> Points:
    """Where the cameras see places, those behind them left out."""
    columns = []
    for frame, pose in enumerate(c2w):
        local = (places - pose[:3, 3]) @ pose[:3, :3]
        ahead = local[:, 2] > 0.1
        local = local[ahead]
        xy = local[:, :2] / local[:, 2:] * intrinsics[:2] + intrinsics[2:]
        columns.append((np.full(len(local), frame), xy, local[:, 2]))
    return Points(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def estimate_of(c2w: np.ndarray, points: Points | None = None, **changes) -> PoseEstimate:
    frames = len(c2w)
    values = {
        "c2w": c2w,
        "intrinsics_px": np.tile([120.0, 120, 100, 50], (frames, 1)),
        "metric": False,
        "points": points or Points.none(),
        "residual_px": np.full(frames, 0.3),
        "rot_sigma_deg": np.zeros(frames),
        "trans_sigma": np.zeros(frames),
        "models": (frames,),
        "backend": "test",
    }
    return PoseEstimate(**(values | changes))


# ---- metres


def depth_points(rng, frames=80, each=300, unit=0.37):
    """Random places, their relative depth, and a map of their true one."""
    maps = rng.uniform(1, 6, (frames, 20, 40))
    frame = np.repeat(np.arange(frames), each)
    xy = rng.uniform([0, 0], [200, 100], (len(frame), 2))
    metric = maps[frame, (xy[:, 1] / 5).astype(int), (xy[:, 0] / 5).astype(int)]
    return Points(frame, xy, metric / unit), maps


def test_scale_is_the_weighted_least_squares_of_the_paper():
    rng = np.random.default_rng(0)
    points, maps = depth_points(rng)
    noisy = maps * (1 + 0.1 * rng.standard_normal(maps.shape))
    scale = scale_from_depth(points, noisy, (100, 200), "test")
    assert scale.metres_per_unit == pytest.approx(0.37, rel=0.005)
    per_frame = np.nanmean(scale.per_frame)
    assert per_frame == pytest.approx(0.37, rel=0.005) and 0 < scale.variation < 0.02


def test_a_few_points_far_too_deep_do_not_decide_the_scale():
    rng = np.random.default_rng(1)
    points, maps = depth_points(rng)
    wrong = rng.random(len(points.depth)) < 0.05
    depth = np.where(wrong, points.depth * 50, points.depth)
    scale = scale_from_depth(Points(points.frame, points.xy_px, depth), maps, (100, 200), "test")
    assert scale.metres_per_unit == pytest.approx(0.37, rel=1e-3)


def test_frames_with_fewer_than_200_points_say_nothing():
    points, maps = depth_points(np.random.default_rng(2), each=199)
    with pytest.raises(ClipError, match=r"199 points .* wanted 200"):
        scale_from_depth(points, maps, (100, 200), "test")


def test_the_average_forgets_by_a_hundredth_and_skips_what_is_unknown():
    assert smooth(np.array([2.0, np.nan, 2.0]), 1.0).tolist() == pytest.approx([1.01, 1.01, 1.0199])


def test_given_poses_are_scaled_by_the_best_four_fifths():
    metric = path_of(60)
    given = metric.copy()
    given[:, :3, :3] = Rotation.from_euler("y", 40, degrees=True).as_matrix() @ given[:, :3, :3]
    given[:, :3, 3] = metric[:, :3, 3] @ Rotation.from_euler("y", -40, degrees=True).as_matrix() / 1.41
    metric = metric.copy()
    metric[[3, 30, 50], :3, 3] += [2, -1, 3]
    assert scale_from_poses(given, metric, "test").metres_per_unit == pytest.approx(1.41, rel=1e-6)


def test_known_lengths():
    c2w = path_of(40)
    c2w[:, :3, 3] *= 4
    baseline = float(np.linalg.norm(c2w[-1, :3, 3])) / 4
    assert scale_from_baseline(c2w, baseline).metres_per_unit == pytest.approx(0.25)
    rng = np.random.default_rng(0)
    floor = np.column_stack([rng.uniform(-8, 8, 600), np.full(600, 6.0), rng.uniform(2, 14, 600)])
    wall = np.column_stack([rng.uniform(-8, 8, 600), rng.uniform(-4, 6, 600), np.full(600, 14.0)])
    lens = np.array([120.0, 120, 100, 50])
    level = np.tile(np.eye(4), (20, 1, 1))
    level[:, 2, 3] = np.linspace(0, 1, 20)
    points = seen(level, np.concatenate([floor, wall]), lens)
    scale = scale_from_height(level, np.tile(lens, (20, 1)), points, 1.5)
    assert scale.metres_per_unit == pytest.approx(0.25, rel=0.02)
    with pytest.raises(ClipError, match="no floor"):
        scale_from_height(level, np.tile(lens, (20, 1)), seen(level, wall[wall[:, 1] < 0], lens), 1.5)


def test_depth_of_a_video_follows_its_cuts_and_turns(tmp_path):
    maps = np.random.default_rng(0).uniform(1, 5, (30, 4, 6))
    np.savez(tmp_path / "film.npz", depth_m=maps)
    clip = Clip("film-001", Path("x.mp4"), 10, (6, 4), np.arange(20, 30), 1, Path("film.mp4"))
    assert np.array_equal(read_depth(tmp_path, clip, "film"), np.rot90(maps[20:], 1, (1, 2)))
    np.savez(tmp_path / "film-001.npz", depth_m=maps[:9])
    with pytest.raises(ClipError, match=r"9 depth maps .* 10 frames of the clip"):
        read_depth(tmp_path, clip, "film")


# ---- windows


def test_windows_are_those_of_the_authors():
    assert split_windows(200) == [range(200)]
    windows = split_windows(961)
    assert all(len(window) == 200 for window in windows)
    assert windows[-1].stop == 961
    assert min(a.stop - b.start for a, b in pairwise(windows)) >= 50


@pytest.mark.parametrize("with_points", [True, False])
def test_windows_in_other_units_and_axes_become_one_path(with_points):
    frames, rng = 450, np.random.default_rng(0)
    truth = path_of(frames)
    places = rng.uniform(-30, 30, (400, 3))
    windows, parts = split_windows(frames), []
    for number, window in enumerate(windows):
        turn = Rotation.from_euler("xyz", rng.uniform(-1, 1, 3)).as_matrix() if number else np.eye(3)
        factor, shift = (rng.uniform(0.3, 3), rng.uniform(-2, 2, 3)) if number else (1.0, np.zeros(3))
        c2w = truth[window.start : window.stop].copy()
        points = seen(c2w, places, np.array([120.0, 120, 100, 50])) if with_points else Points.none()
        c2w[:, :3, :3] = turn @ c2w[:, :3, :3]
        c2w[:, :3, 3] = factor * c2w[:, :3, 3] @ turn.T + shift
        parts.append(estimate_of(c2w, points.scaled(factor)))
    joined = join_windows(frames, windows, parts)
    assert np.abs(joined.c2w - truth).max() < 1e-6
    if with_points:
        here = joined.points.frame == 440
        assert here.any() and np.allclose(
            np.sort(joined.points.depth[here]),
            np.sort(seen(truth[440:441], places, np.array([120.0, 120, 100, 50])).depth),
        )


def test_a_similarity_lets_go_of_frames_that_lie_off():
    source = path_of(50)
    target = source.copy()
    target[:, :3, 3] *= 2
    target[10, :3, 3] += 5
    factor, turn, shift = fit_similarity(source, target)
    assert factor == pytest.approx(2, rel=0.05) and np.allclose(turn, np.eye(3), atol=1e-6)
    assert np.abs(shift).max() < 0.1


def test_windows_that_share_nothing_are_told():
    c2w = path_of(300)
    first, second = c2w[:200].copy(), c2w[100:].copy()
    first[100:] = np.nan
    with pytest.raises(ClipError, match="cut the video there"):
        join_windows(300, [range(200), range(100, 300)], [estimate_of(first), estimate_of(second)])


# ---- guards


def evidence(**changes) -> guards.Evidence:
    c2w = changes.pop("c2w", path_of(60))
    estimate = estimate_of(c2w, **changes.pop("estimate", {}))
    values = {"metric": True, "scale_variation": 0.1, "strays": 0.0} | changes
    return guards.Evidence(clip_of(len(c2w)), estimate, c2w, estimate.intrinsics_px, **values)


def with_jump(at: int, metres: float) -> np.ndarray:
    c2w = path_of(60)
    c2w[at:, 0, 3] += metres
    return c2w


OFF = np.where(np.arange(60) < 18, 2.0, 0.3)


REFUSED = {
    "a jump": (evidence(c2w=with_jump(30, 0.6)), "pose jump", "from frame 29 to frame 30"),
    "frames that lie off": (
        evidence(estimate={"residual_px": OFF}),
        "outliers",
        "30% of the frames .* 18 in a row",
    ),
    "a residual": (evidence(estimate={"residual_px": np.full(60, 1.1)}), "residual", "0.55% of the width"),
    "a wide lens": (
        evidence(estimate={"intrinsics_px": np.tile([20.0, 20, 100, 50], (60, 1))}),
        "camera",
        "25 to 120 degrees",
    ),
    "other pixels": (
        evidence(estimate={"intrinsics_px": np.tile([120.0, 160, 100, 50], (60, 1))}),
        "camera",
        "differ by more than 20%",
    ),
    "a scale that varies": (evidence(scale_variation=2.1), "scale", "2.10 times its mean"),
    "things that move": (evidence(strays=0.5), "moving things", "50% of the picture moving otherwise"),
}


def test_an_honest_path_passes():
    guards.check_estimate(evidence())
    guards.check_registration(estimate_of(path_of(60)))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_guard_lets_through(kind):
    given, reason, said = REFUSED[kind]
    with pytest.raises(ClipError, match=said) as error:
        guards.check_estimate(given)
    assert error.value.reason == reason


def without(*rows: slice) -> np.ndarray:
    c2w = path_of(60)
    for part in rows:
        c2w[part] = np.nan
    return c2w


MISSING = {
    "a tenth and more": (without(slice(0, 60, 8)), (52,), "missing poses", "8 of 60"),
    "six in a row": (without(slice(20, 26)), (54,), "missing poses", "6 frames in a row"),
    "another scene": (without(slice(30, 60)), (30, 28), "several models", "2 models of 30, 28 frames"),
}


@pytest.mark.parametrize("kind", MISSING)
def test_frames_without_poses(kind):
    c2w, models, reason, said = MISSING[kind]
    with pytest.raises(ClipError, match=said) as error:
        guards.check_registration(estimate_of(c2w, models=models))
    assert error.value.reason == reason


def test_small_gaps_are_filled_between_their_neighbours():
    truth = path_of(60)
    filled = fill_gaps(without(slice(20, 24)))
    assert np.abs(filled - truth).max() < 0.01
    assert np.array_equal(filled[:20], truth[:20])


# ---- shots and scores


def test_shots_are_resampled_and_long_ones_cut():
    footage = Footage(np.arange(600) / 30, (100, 200), 0, (300,), np.full(600, 90.0), np.full(600, 0.3))
    shots = split_shots(footage, 25, 100)
    assert [len(shot.chosen) for shot in shots] == [80, 80, 80, 80]
    assert all(shot.fault is None for shot in shots)
    assert shots[1].chosen[-1] < 300 <= shots[2].chosen[0]


def test_scores_of_files(tmp_path):
    (tmp_path / "set_dover.json").write_text(json.dumps({"a": 0.5}))
    (tmp_path / "set_unimatch.jsonl").write_text('{"key": "a", "score": 20}\n{"key": "b", "score": 1}\n')
    scores = read_scores(tmp_path, FILTERS["miradata"])
    assert scores["dover"] == {"a": 0.5} and scores["unimatch"] == {"a": 20.0, "b": 1.0}
    kept = {"vmafmotion": 3.0, "unimatch": 20.0, "dover": 0.5, "colorsat": 90.0, "cuts": 0.0}
    guards.check_scores(kept, FILTERS["miradata"])
    with pytest.raises(ClipError, match="unimatch outside 3 to 80"):
        guards.check_scores(kept | {"unimatch": 1.0}, FILTERS["miradata"])
    (tmp_path / "set_dover.json").write_text("[]")
    with pytest.raises(ValueError, match=r"set_dover\.json, which holds no scores"):
        read_scores(tmp_path, FILTERS["miradata"])


# ---- engines of others


def program(folder: Path, name: str, says: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{says}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_engines_that_are_not_installed_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="needs the command vipe, which is not installed"):
        open_backend("vipe")
    program(tmp_path, "vipe", "print('a viewer of workflows')")
    with pytest.raises(ValueError, match="which is not NVIDIA's ViPE"):
        open_backend("vipe")
    monkeypatch.delenv("SANA_WM_PI3X_PYTHON", raising=False)
    with pytest.raises(ValueError, match="needs Pi3X and MoGe"):
        open_backend("pi3x-moge")
    monkeypatch.setenv("SANA_WM_PI3X_PYTHON", str(tmp_path / "no-python"))
    with pytest.raises(ValueError, match="no-python: No such file"):
        Pi3XMoGe().check()
    with pytest.raises(ValueError, match="wanted one of auto, pycolmap"):
        open_backend("orbslam")  # type: ignore[arg-type]


def write_vipe(folder: Path, c2w: np.ndarray, inds: np.ndarray) -> None:
    for name, data in (("pose", c2w), ("intrinsics", np.tile([120.0, 120, 100, 50], (len(c2w), 1)))):
        (folder / name).mkdir(parents=True)
        np.savez(folder / name / "clip.npz", data=data, inds=inds)


def test_vipe_is_started_and_its_files_are_read(tmp_path, monkeypatch):
    """A command that stands for ViPE takes its arguments and writes its layout: the engine is not run
    here.
    """
    says = """
import sys, shutil
if "--help" in sys.argv:
    print("NVIDIA Video Pose Engine (ViPE) CLI")
elif sys.argv[1] == "infer" and sys.argv[3] == "--output" and sys.argv[5:] == ["--pipeline", "default"]:
    shutil.copytree(sys.argv[0] + ".made", sys.argv[4], dirs_exist_ok=True)
else:
    sys.exit("vipe: out of memory")
"""
    program(tmp_path, "vipe", says)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    inds = np.array([0, 1, 2, 5, 6])
    write_vipe(tmp_path / "vipe.made", path_of(7)[inds], inds)
    (tmp_path / "work").mkdir()
    clip = Clip("a", tmp_path / "clip.mp4", 7, (100, 200), np.arange(7), 0, tmp_path / "clip.mp4")
    vipe = open_backend("vipe")
    estimate = vipe.estimate(clip, tmp_path / "work")
    assert estimate.metric and estimate.registered.tolist() == [True, True, True, False, False, True, True]
    assert np.allclose(estimate.c2w[5], path_of(7)[5])
    with pytest.raises(ClipError, match="ended with 1: vipe: out of memory"):
        Vipe("other").estimate(clip, tmp_path / "work")


def test_files_of_engines_that_are_wrong_are_told(tmp_path):
    with pytest.raises(ClipError, match=r"no clip.npz that can be read"):
        read_vipe(tmp_path, "clip", 7)
    write_vipe(tmp_path, path_of(9), np.arange(9))
    with pytest.raises(ClipError, match="frames up to 8"):
        read_vipe(tmp_path, "clip", 7)
    fields = {
        "c2w": path_of(7),
        "intrinsics": np.array([0.6, 1.2, 0.5, 0.5]),
        "frame": np.array([0, 3]),
        "xy": np.array([[0.5, 0.5], [0.25, 0.75]]),
        "depth": np.array([1.0, 2.0]),
    }
    np.savez(tmp_path / "000000.npz", **fields)
    estimate = read_pi3x(tmp_path / "000000.npz", 7, (100, 200))
    assert estimate.intrinsics_px[0].tolist() == [120, 120, 100, 50]
    assert estimate.points.xy_px.tolist() == [[100, 50], [50, 75]]
    with pytest.raises(ClipError, match=r"shape \(7, 4, 4\); wanted \(8, 4, 4\)"):
        read_pi3x(tmp_path / "000000.npz", 8, (100, 200))
