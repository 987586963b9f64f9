"""Pose metrics on known answers, and ATE and RPE beside those of evo's command line where evo is
installed.
"""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sana_wm_env import cli
from sana_wm_env.camera import compose, twist_path
from sana_wm_env.evaluation.poses import ALIGNMENTS, FIGURES, pose_errors, read_poses, write_tum


def walk(frames: int = 40, seed: int = 0) -> np.ndarray:
    """A winding path (frames, 4, 4) that begins at the identity."""
    rng = np.random.default_rng(seed)
    path = [np.eye(4)]
    for _ in range(frames - 1):
        path.append(
            compose(
                path[-1], twist_path(np.r_[rng.normal([0.02, 0, 0.1], 0.05), rng.normal(0, 0.05, 3)], 1)[0]
            )
        )
    return np.stack(path)


def scaled(path: np.ndarray, factor: float) -> np.ndarray:
    copy = path.copy()
    copy[:, :3, 3] *= factor
    return copy


def pose(turn_deg=(0, 0, 0), move=(0, 0, 0)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    matrix[:3, 3] = move
    return matrix


straight = np.stack([pose(move=(0, 0, 0.1 * i)) for i in range(20)])
still = np.tile(np.eye(4), (20, 1, 1))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize(
    "path", [walk(), straight, still, still[:1]], ids=["winding", "straight", "still", "one frame"]
)
def test_identical_paths_have_no_error(path, alignment):
    errors = pose_errors(path, path, alignment)
    for name in (*FIGURES, "rpe_trans_m", "rpe_rot_deg"):
        assert np.abs(getattr(errors, name)).max(initial=0) < 1e-6
    assert errors.scale == pytest.approx(1)
    json.dumps(errors.summary(), allow_nan=False)


def test_ten_degrees_at_the_last_frame_only():
    path = walk()
    turned = path.copy()
    turned[-1] = path[-1] @ pose((0, 10, 0))
    for alignment in ("none", "scale", "se3", "sim3"):
        errors = pose_errors(turned, path, alignment)
        assert errors.rot_err_deg[-1] == pytest.approx(10, abs=0.01)
        assert errors.rot_err_deg[:-1].max() < 1e-6 and errors.trans_err_m.max() < 1e-6
        assert errors.summary()["rot_err_deg"] == pytest.approx(10 / len(path))
    # Frobenius norm of R - I is 2 sqrt(2) sin(angle / 2).
    assert pose_errors(turned, path).cam_mc[-1] == pytest.approx(2 * np.sqrt(2) * np.sin(np.radians(5)))
    # The released alignment shares the turn out among all frames: a fortieth of it each.
    shared = pose_errors(turned, path, "rotation_product").rot_err_deg
    assert shared[-1] == pytest.approx(9.75, abs=0.02) and shared[0] == pytest.approx(0.25, abs=0.02)


def test_a_scaled_copy_is_exact_where_the_alignment_finds_the_scale():
    path = walk()
    for alignment in ("scale", "sim3", "rotation_product"):
        errors = pose_errors(scaled(path, 3), path, alignment)
        assert errors.trans_err_m.max() < 1e-6 and errors.rot_err_deg.max() < 1e-6
        assert errors.scale == pytest.approx(1 / 3)
    unaligned = pose_errors(scaled(path, 3), path, "none")
    np.testing.assert_allclose(unaligned.trans_err_m, 2 * np.linalg.norm(path[:, :3, 3], axis=-1))
    assert pose_errors(scaled(path, 3), path, "se3").ate_m > 0.1


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_the_frame_of_the_world_does_not_matter(alignment):
    path, other = walk(), pose((20, -50, 10), (3, 2, -1)) @ walk()
    errors = pose_errors(other, path, alignment)
    assert errors.rot_err_deg.max() < 1e-6 and errors.trans_err_m.max() < 1e-6


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize(
    ("estimated", "reference"), [(still, walk(20)), (walk(20), still), (straight, still), (still, straight)]
)
def test_a_still_camera_gives_numbers(estimated, reference, alignment):
    errors = pose_errors(estimated, reference, alignment)
    for name in FIGURES:
        assert np.isfinite(getattr(errors, name)).all()
    assert np.isfinite(errors.scale) and errors.scale >= 0
    json.dumps(errors.summary(), allow_nan=False)


def test_sim3_takes_out_a_similarity_in_which_the_first_frame_is_wrong():
    path = walk()
    bad_start = path.copy()
    bad_start[0] = bad_start[0] @ pose(
        (0, 30, 0)
    )  # relative to it all later frames are turned; Umeyama sees the centres only
    assert pose_errors(bad_start, path, "sim3").rot_err_deg[1:].max() < 1e-6
    assert pose_errors(bad_start, path, "none").rot_err_deg[1:] == pytest.approx(30)


def test_a_path_driven_backwards_is_not_excused_by_a_negative_scale():
    backwards = scaled(straight, -1)
    assert pose_errors(backwards, straight, "scale").scale == 0
    assert pose_errors(backwards, straight, "none").trans_err_m[-1] == pytest.approx(3.8)


def test_rotation_product_against_its_formula_in_rows_of_world_to_camera():
    """The released code works on PyTorch3D cameras: x_camera = x_world R + T. Written out here in those
    terms.
    """
    reference, estimated = walk(seed=1), walk(seed=2)
    r, rr = estimated[:, :3, :3], reference[:, :3, :3]
    t, tt = (np.linalg.inv(p)[:, :3, 3] for p in (estimated, reference))
    u, _, vt = np.linalg.svd((r @ rr.swapaxes(1, 2)).mean(0))
    turn = (u @ vt).T
    a, b = (r @ t[..., None])[..., 0], (r @ tt[..., None])[..., 0]
    s = ((a - a.mean(0)) * (b - b.mean(0))).mean() / ((a - a.mean(0)) ** 2).mean()
    new_r = turn @ r
    new_t = ((b.mean(0) - s * a.mean(0)) @ r) + s * t
    centres = -(new_r @ new_t[..., None])[..., 0]
    errors = pose_errors(estimated, reference, "rotation_product")
    assert errors.scale == pytest.approx(s)
    np.testing.assert_allclose(
        errors.trans_err_m, np.linalg.norm(centres - reference[:, :3, 3], axis=-1), atol=1e-9
    )
    np.testing.assert_allclose(
        errors.rot_err_deg, np.degrees(Rotation.from_matrix(rr.swapaxes(1, 2) @ new_r).magnitude()), atol=1e-6
    )


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="wanted one of none, scale"):
        pose_errors(walk(), walk(), "umeyama")
    with pytest.raises(ValueError, match="got 39 estimated poses; wanted 40"):
        pose_errors(walk(39), walk(40))


@pytest.fixture
def files(tmp_path):
    rng, reference, estimated = np.random.default_rng(3), walk(seed=1), scaled(walk(seed=1), 1.7)
    estimated = pose((5, 40, 0), (1, 0, 2)) @ estimated
    for i in range(1, len(estimated)):  # noise, so that no error is zero
        estimated[i] = estimated[i] @ pose(rng.normal(0, 2, 3), rng.normal(0, 0.05, 3))
    np.save(tmp_path / "estimated.npy", estimated)
    np.savez(tmp_path / "reference.npz", c2w=reference)
    return tmp_path


def test_the_command_writes_equal_bytes_and_says_what_it_did(files, capsys):
    for name in ("a", "b"):
        command = f"{files}/estimated.npy {files}/reference.npz --estimator ours --json {files}/{name}.json"
        assert cli.main(["evaluate", "poses", *command.split()]) == 0
    assert (files / "a.json").read_bytes() == (files / "b.json").read_bytes()
    report = json.loads((files / "a.json").read_text())
    assert [result["alignment"] for result in report["results"]] == list(ALIGNMENTS)
    assert report["estimator"] == "ours" and report["frame_indices"] == list(range(40))
    sim3 = pose_errors(read_poses(files / "estimated.npy"), read_poses(files / "reference.npz"), "sim3")
    assert report["results"][3]["frames"]["rot_err_deg"] == sim3.rot_err_deg.tolist()
    assert f"{sim3.ate_m:.4f}" in capsys.readouterr().out


def test_every_takes_the_frames_that_a_slower_estimator_saw(tmp_path):
    np.save(tmp_path / "reference.npy", walk(41))
    np.save(tmp_path / "estimated.npy", walk(41)[::4])
    command = (
        f"{tmp_path}/estimated.npy {tmp_path}/reference.npy --every 4 --align none --json {tmp_path}/r.json"
    )
    assert cli.main(["evaluate", "poses", *command.split()]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["frame_indices"] == list(range(0, 41, 4)) and report["results"][0]["cam_mc"] < 1e-9


def test_a_file_without_poses_is_refused(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", poses=walk())
    assert cli.main(["evaluate", "poses", str(tmp_path / "a.npz"), str(tmp_path / "a.npz")]) == 2
    assert "wanted an array 'c2w'" in capsys.readouterr().err


EVO = shutil.which("evo_ape")


@pytest.mark.skipif(
    EVO is None, reason="evo is not installed (GPL: a command to compare with, never imported)"
)
@pytest.mark.slow
def test_ate_and_rpe_agree_with_evo(files):
    """Three alignments of the trajectory error, both parts of the relative one, on the same files."""
    assert (
        cli.main(
            [
                "evaluate",
                "poses",
                f"{files}/estimated.npy",
                f"{files}/reference.npz",
                "--tum",
                str(files / "tum"),
            ]
        )
        == 0
    )
    estimated, reference = read_poses(files / "estimated.npy"), read_poses(files / "reference.npz")
    pair = [str(files / "tum" / "reference.txt"), str(files / "tum" / "estimated.txt")]

    def evo(tool: str, *flags: str) -> float:
        done = subprocess.run(
            [EVO.replace("evo_ape", tool), "tum", *pair, *flags], capture_output=True, text=True, check=True
        )
        return float(re.search(r"rmse\s+([\d.]+)", done.stdout)[1])

    for alignment, flags in {"none": [], "se3": ["-a"], "sim3": ["-a", "-s"]}.items():
        ours = pose_errors(estimated, reference, alignment)
        assert evo("evo_ape", *flags) == pytest.approx(ours.ate_m, abs=2e-6)
    ours = pose_errors(estimated, reference, "none")
    assert evo("evo_rpe", "-d", "1", "-u", "f") == pytest.approx(ours.summary()["rpe_trans_rmse_m"], abs=2e-6)
    assert evo("evo_rpe", "-d", "1", "-u", "f", "-r", "angle_deg") == pytest.approx(
        ours.summary()["rpe_rot_rmse_deg"], abs=1e-4
    )


def test_tum_files_hold_time_position_and_quaternion(tmp_path):
    path = np.stack([np.eye(4), pose((0, 90, 0), (1, 2, 3))])
    write_tum(tmp_path / "a.txt", path, np.array([0.0, 0.5]))
    rows = np.loadtxt(tmp_path / "a.txt")
    np.testing.assert_allclose(
        rows, [[0, 0, 0, 0, 0, 0, 0, 1], [0.5, 1, 2, 3, 0, 0.5**0.5, 0, 0.5**0.5]], atol=1e-9
    )
