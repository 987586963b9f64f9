"""Videos without poses become clips with metric ones, and what cannot become one is rejected by name."""

import json

import numpy as np
import pytest
from textured_videos import STILL, TURN, render_walk, write_depth, write_frames

from sana_wm_env import cli
from sana_wm_env.evaluation.poses import pose_errors
from sana_wm_env.train.annotate.command import AnnotateConfig, annotate

pytest.importorskip("pycolmap", reason="needs the extra annotate")
pytest.importorskip("scenedetect", reason="needs the extra annotate")


@pytest.fixture(scope="module")
def walk():
    return render_walk()


@pytest.fixture(scope="module")
def phone():
    """Upright, and walks ahead."""
    return render_walk((0.3, 0, 0.4, 0, 0.1, 0), size=(192, 128), room=5)


@pytest.fixture(scope="module")
def annotated(walk, phone, tmp_path_factory):
    """The folder of a run over a plain video and one of a phone, with depth that errs by a tenth."""
    folder = tmp_path_factory.mktemp("annotated")
    write_frames(folder / "videos/plain.mp4", walk.frames)
    write_depth(folder / "depth/plain.npz", walk)
    write_frames(folder / "videos/phone.mov", phone.frames, turn=1)
    write_depth(folder / "depth/phone.npz", phone, turn=1)
    command = [
        "annotate",
        str(folder / "videos"),
        "--out",
        str(folder / "out"),
        "--depth",
        str(folder / "depth"),
    ]
    assert cli.main([*command, "--backend", "pycolmap"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "phone"])
def test_a_video_gets_the_poses_that_its_camera_had(name, annotated, walk, phone):
    truth = {"plain": walk, "phone": phone}[name]
    found = np.load(annotated / f"out/clips/{name}.npz")
    assert found["image_size"].tolist() == list(truth.frames.shape[1:3])
    assert found["intrinsics_px"][0] == pytest.approx(truth.intrinsics_px, rel=0.05)
    errors = pose_errors(found["c2w"], truth.c2w, "none")
    assert errors.rot_err_deg.mean() < 0.5
    assert errors.trans_err_m[-1] < 0.1 * np.linalg.norm(truth.c2w[-1, :3, 3])  # a tenth, metres included


@pytest.mark.slow
def test_what_comes_out_is_packed_as_it_is(annotated, tmp_path, capsys):
    clips = str(annotated / "out/clips")
    assert cli.main(["data", "validate", clips]) == 0
    assert cli.main(["data", "pack", clips, "--out", str(tmp_path / "packed")]) == 0
    assert "2 of 2 videos can be used" in capsys.readouterr().out


@pytest.mark.slow
def test_manifest_and_page_say_what_was_done(annotated):
    rows = [json.loads(line) for line in (annotated / "out/manifest.jsonl").read_text().splitlines()]
    stages = [row["stage"] for row in rows if row["clip"] == "plain"]
    assert stages == ["shots", "masks", "motion", "poses", "scale", "guards", "caption", "sidecar"]
    assert {row["status"] for row in rows} == {"done"}
    page = (annotated / "out/report.md").read_text()
    assert "| plain" in page and "33 of 33" in page and "clips per hour" in page
    assert (annotated / "out/pictures/plain.png").stat().st_size > 1000
    assert not list((annotated / "out/work").glob("*/backend"))


def rejection(folder, frames, fps=16, **settings):
    """Reason and cause of the one clip of a video."""
    write_frames(folder / "videos/a.mp4", frames, fps)
    assert annotate(AnnotateConfig(folder / "videos", folder / "out", "pycolmap", **settings)) == 1
    (*_, last) = (json.loads(line) for line in (folder / "out/manifest.jsonl").read_text().splitlines())
    assert last["status"] == "rejected"
    assert not (folder / "out/clips").exists()
    return last["reason"], last["cause"]


def blurred(frames):
    import cv2

    return np.stack([cv2.GaussianBlur(frame, (0, 0), 4) for frame in frames])


def faded(one, other):
    """One video goes over into another within nine frames."""
    share = np.linspace(0, 1, 9)[:, None, None, None]
    between = (1 - share) * one[-9:] + share * other[:9]
    return np.concatenate([one[:-9], between.astype(np.uint8), other[9:]])


SEEN = {
    "still": ("still camera", "move by 0.00% of their width"),
    "turning": ("pure rotation", "a turn has no scale"),
    "cut": ("cut", "cut at frame 20"),
    "short": ("too short", "got 20 frames"),
    "dark": ("dark", "darker than 20 of 255"),
    "blurred": ("blur", "blurred beyond"),
    "two scenes": ("scene change", "becomes another one"),
    "plain wall": ("no texture", "without corners"),
}


@pytest.mark.parametrize("kind", SEEN)
def test_what_pixels_alone_give_away_is_rejected_by_name(kind, walk, tmp_path):
    settings = {}
    match kind:
        case "still":
            frames = render_walk(STILL).frames
        case "turning":
            frames = render_walk(TURN).frames
        case "cut":
            frames = np.concatenate([walk.frames[:20], render_walk(room=9).frames])
            settings = {"cuts": "refuse"}
        case "short":
            frames = walk.frames[:20]
        case "dark":
            frames = walk.frames // 12
        case "blurred":
            frames = blurred(walk.frames)
        case "two scenes":
            frames = faded(walk.frames, render_walk(room=7).frames)
        case _:
            frames = np.full((33, 160, 160, 3), 128, np.uint8)
    reason, cause = rejection(tmp_path, frames, **settings)
    wanted, part = SEEN[kind]
    assert reason == wanted and part in cause


def moving_thing(walk, share: float) -> np.ndarray:
    """A poster that moves through the picture on its own and covers a share of it."""
    poster = render_walk(STILL, 1, (400, 400), room=11).frames[0]
    frames, side = walk.frames.copy(), round(160 * share**0.5)
    first = (160 - side) // 2
    for index, frame in enumerate(frames):
        frame[first : first + side, first : first + side] = poster[
            60 + 3 * index : 60 + 3 * index + side, 200 - 4 * index : 200 - 4 * index + side
        ]
    return frames


@pytest.mark.slow
def test_a_thing_that_moves_and_fills_the_picture_is_rejected(walk, tmp_path):
    reason, cause = rejection(tmp_path, moving_thing(walk, 0.75))
    assert reason in ("several models", "missing poses", "moving things", "residual", "no model"), cause


def test_masks_that_leave_nothing_are_rejected(walk, tmp_path):
    (tmp_path / "masks").mkdir()
    moving = np.ones((33, 40, 40), np.uint8)
    moving[:, :5, :5] = 0
    np.savez(tmp_path / "masks/a.npz", moving=moving)
    reason, cause = rejection(tmp_path, walk.frames, masks=tmp_path / "masks")
    assert reason == "moving things" and "cover 98% of the picture" in cause


@pytest.mark.slow
def test_a_video_with_a_cut_becomes_two_clips(walk, phone, tmp_path):
    other = render_walk(room=9)
    write_frames(tmp_path / "videos/a.mp4", np.concatenate([walk.frames, other.frames[:20]]))
    assert annotate(AnnotateConfig(tmp_path / "videos", tmp_path / "out", "pycolmap")) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    last = {row["clip"]: row for row in rows}
    assert last["a-000"]["status"] == "done" and last["a-000"]["stage"] == "sidecar"
    assert (last["a-001"]["reason"], last["a-001"]["clip_frames"]) == ("too short", 20)
    fields = np.load(tmp_path / "out/clips/a-000.npz")
    assert len(fields["c2w"]) == 33 and not fields["metric"]  # no source of metres: packing asks for consent


def test_given_poses_are_scaled_and_checked_alone(walk, tmp_path):
    write_frames(tmp_path / "videos/a.mp4", walk.frames)
    units = walk.c2w.copy()
    units[:, :3, 3] /= 0.37
    np.savez(
        tmp_path / "videos/a.npz",
        c2w=units,
        convention="opencv",
        intrinsics_px=walk.intrinsics_px,
        image_size=(160, 160),
        metric=False,
    )
    (tmp_path / "metric").mkdir()
    metric = walk.c2w.copy()
    metric[[4, 20], :3, 3] += 0.5  # what the best 80 % leave out
    np.savez(tmp_path / "metric/a.npz", c2w=metric)
    config = AnnotateConfig(tmp_path / "videos", tmp_path / "out", "poses", metric_poses=tmp_path / "metric")
    assert annotate(config) == 0
    found = np.load(tmp_path / "out/clips/a.npz")
    assert found["metric"] and np.allclose(found["c2w"], walk.c2w, atol=1e-6)


WRONG = {
    "two sources": ({"baseline": 1.0, "camera_height": 1.5}, "one source of metres"),
    "no folder": ({"depth": "nowhere"}, "--depth nowhere; wanted a folder or moge"),
    "no metres": ({"baseline": -1.0}, "--baseline -1.0; wanted a number, more than 0"),
    "half a caption": ({"caption_url": "http://127.0.0.1:1/v1"}, "wanted both"),
    "unknown filters": ({"filters": "everything"}, "filters 'everything'"),
    "too few frames": ({"min_frames": 10}, "--min-frames"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_settings_that_cannot_be_are_refused_before_any_work(kind, walk, tmp_path):
    write_frames(tmp_path / "videos/a.mp4", walk.frames[:3])
    settings, said = WRONG[kind]
    with pytest.raises(ValueError, match=said):
        annotate(AnnotateConfig(tmp_path / "videos", tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()


def test_other_settings_want_another_folder(walk, tmp_path):
    write_frames(tmp_path / "videos/a.mp4", walk.frames[:20])
    assert annotate(AnnotateConfig(tmp_path / "videos", tmp_path / "out", "pycolmap")) == 1
    with pytest.raises(ValueError, match=r"other settings \(crf\)"):
        annotate(AnnotateConfig(tmp_path / "videos", tmp_path / "out", "pycolmap", crf=9))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("keep me")
    with pytest.raises(ValueError, match="no work of this command"):
        annotate(AnnotateConfig(tmp_path / "videos", tmp_path / "mine", "pycolmap"))
    with pytest.raises(ValueError, match="in which the videos lie"):
        annotate(AnnotateConfig(tmp_path / "videos", tmp_path, "pycolmap"))
