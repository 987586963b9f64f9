"""Your own videos: every way to state poses gives the same ones, every broken clip is named, nothing is lost
silently.
"""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from own_videos import INTRINSICS, SIZE, path_of, write_clip, write_video

import sana_wm_env
from sana_wm_env import cli
from sana_wm_env.camera import from_unreal_cm, relative_to_first
from sana_wm_env.train.data.command import PackVideosConfig, pack
from sana_wm_env.train.data.packed import packed_paths, packed_tars, read_packed
from sana_wm_env.train.data.sidecars import ClipError
from sana_wm_env.train.data.videos import at_rate, cut_video, inspect_video, split_frames


def in_opengl(c2w: np.ndarray) -> np.ndarray:
    """Columns of the rotation: right, up, backward."""
    return np.concatenate([c2w[..., :1], -c2w[..., 1:3], c2w[..., 3:]], -1)


def in_unreal(c2w: np.ndarray) -> np.ndarray:
    """The same camera in axes forward, right, up and centimetres, on either side of the matrix."""
    order, sign = [2, 0, 1, 3], np.array([1, 1, -1, 1])
    moved = (c2w * sign[[0, 2, 1, 3]][:, None] * sign[[0, 2, 1, 3]])[..., order, :][..., order]
    moved[..., :3, 3] *= 100
    return moved


STATED = {
    "opencv c2w": {},
    "opencv w2c": {"c2w": None, "w2c": np.linalg.inv(path_of(33))},
    "opengl c2w": {"c2w": in_opengl(path_of(33)), "convention": "opengl"},
    "opengl w2c": {"c2w": None, "w2c": np.linalg.inv(in_opengl(path_of(33))), "convention": "opengl"},
    "unreal": {"c2w": in_unreal(path_of(33)), "convention": "unreal_cm"},
    "matrix": {"intrinsics_px": [[60.0, 0, 42], [0, 60, 23], [0, 0, 1]]},
    "per frame": {"intrinsics_px": [INTRINSICS] * 33},
    "larger image": {"intrinsics_px": [120.0, 120, 84, 46], "image_size": [96, 160]},
    "caption, rate": {"caption": "a corridor", "fps": 16},
}


@pytest.mark.parametrize("stated", STATED)
@pytest.mark.parametrize("json_", [True, False])
def test_one_camera_stated_in_many_ways_is_one_camera(stated, json_, tmp_path):
    footage = inspect_video("a", write_clip(tmp_path, "a", json_=json_, **STATED[stated]))
    assert np.allclose(relative_to_first(footage.cameras.c2w), relative_to_first(path_of(33)), atol=1e-9)
    assert np.allclose(footage.cameras.intrinsics_px, INTRINSICS)
    assert footage.cameras.caption == STATED[stated].get("caption", "")


def test_unreal_axes():
    """Forward in Unreal is +x and becomes +z; right is +y and becomes +x; up is +z and becomes -y."""
    moved = np.tile(np.eye(4), (3, 1, 1))
    moved[[0, 1, 2], [0, 1, 2], 3] = 100
    assert from_unreal_cm(moved)[:, :3, 3].tolist() == [[0, 0, 1], [1, 0, 0], [0, -1, 0]]


def with_row(row: int, value: float) -> np.ndarray:
    poses = path_of(33)
    poses[row, 1] = value
    return poses


BROKEN = {
    "a row of the matrix is missing": ({"c2w": path_of(33)[:, :3]}, "poses", "append the row 0 0 0 1"),
    "a pose is missing": ({"c2w": path_of(32)}, "frame count", "32 poses for a video of 33 frames"),
    "some poses are null": (
        {"c2w": [*path_of(31).tolist(), None, None]},
        "poses",
        "no pose for 2 of 33 frames, first for frame 31.*Slerp",
    ),
    "transposed": ({"c2w": path_of(33).mT}, "poses", "is transposed.*Pass pose.T"),
    "not orthonormal": ({"c2w": with_row(7, 0.3)}, "poses", r"c2w\[7\].*not orthonormal"),
    "scaled": ({"c2w": path_of(33) * [[2, 2, 2, 1]] * [[1], [1], [1], [1]]}, "poses", "scaled by 2"),
    "mirrored": ({"c2w": path_of(33) @ np.diag([1.0, -1, 1, 1])}, "poses", "mirrored.*diag"),
    "no number": ({"c2w": with_row(3, float("nan"))}, "poses", r"NaN or infinity at index \(3, 1, 0\)"),
    "no convention": (
        {"convention": None},
        "convention",
        "no stated convention; wanted .*opencv, opengl, unreal_cm",
    ),
    "unknown convention": ({"convention": "blender"}, "convention", "'blender'"),
    "no direction": (
        {"c2w": None, "poses": [1]},
        "poses",
        "neither c2w nor w2c, but convention, image_size, intrinsics_px, poses",
    ),
    "both directions": ({"w2c": path_of(33)}, "poses", "both c2w and w2c"),
    "no intrinsics": ({"intrinsics_px": None}, "intrinsics", "no intrinsics_px; wanted"),
    "no image size": ({"image_size": None}, "intrinsics", "no image_size; wanted"),
    "normalised intrinsics": ({"intrinsics_px": [0.8, 0.8, 0.5, 0.5]}, "intrinsics", "look normalised"),
    "intrinsics of some frames": (
        {"intrinsics_px": [INTRINSICS] * 5},
        "intrinsics",
        r"shape \(5, 4\); wanted",
    ),
    "width first": ({"image_size": SIZE[::-1]}, "intrinsics", "proportions differ; .*height first"),
    "millimetres": (
        {"c2w": path_of(33) * np.array([1, 1, 1, 1e5])[None, None] ** np.array([1, 1, 1, 0])[:, None]},
        "speed",
        "metres",
    ),
    "a rate that is none": ({"fps": "16"}, "frame rate", "got fps '16'"),
    "slow": ({"rate": 4}, "frame rate", "4 frames per second; wanted at least 8"),
    "slow, says its sidecar": ({"fps": 4.0}, "frame rate", "4 frames per second; wanted at least 8"),
    "too short": (
        {"frames": 20},
        "too short",
        "20 frames, 20 at 16 per second; wanted 25 or more: record longer",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_clip_is_named_with_its_fix(kind, tmp_path):
    changes, reason, message = BROKEN[kind]
    video = write_clip(tmp_path, "a", **changes)
    with pytest.raises(ClipError, match=f"(?s){message}") as caught:
        inspect_video("a", video)
    assert caught.value.reason == reason and str(caught.value).startswith("got")


def test_broken_files_are_named(tmp_path):
    video = write_clip(tmp_path, "a")
    video.with_suffix(".json").rename(tmp_path / "b.json")
    with pytest.raises(ClipError, match=r"got no poses; wanted a.npz or a.json"):
        inspect_video("a", video)
    video.with_suffix(".json").write_text("{")
    with pytest.raises(ClipError, match=r"a.json, which cannot be read"):
        inspect_video("a", video)
    video.with_suffix(".npz").write_bytes(b"x")
    with pytest.raises(ClipError, match=r"both a.npz and a.json"):
        inspect_video("a", video)
    video.write_bytes(video.read_bytes()[:400])
    with pytest.raises(ClipError, match=r"a.mp4, which cannot be decoded") as caught:
        inspect_video("a", video)
    assert caught.value.reason == "video"


def test_other_rates_keep_every_picture_with_its_own_pose(tmp_path):
    video = write_clip(tmp_path, "a", frames=61, rate=30)
    footage = inspect_video("a", video)
    assert footage.chosen.tolist() == [round(k * 30 / 16 + 1e-9) for k in range(33)]
    assert "30 -> 16 frames per second" in footage.notes
    (clip,) = cut_video(footage, (48, 80), 961, 25)
    assert np.allclose(clip.c2w, relative_to_first(path_of(61)[footage.chosen]))
    assert np.abs(clip.frames[:, 5, 5, 0] - (20.0 + 2 * footage.chosen)).max() <= 2  # the video is compressed
    slow = inspect_video("a", write_clip(tmp_path, "a", frames=33, rate=12))
    assert len(slow.chosen) == 43 and "10 frames are shown twice" in slow.notes


def test_frames_of_uneven_length_are_taken_by_their_time():
    times = np.array([0, 0.06, 0.13, 0.50, 0.51])
    assert at_rate(times).tolist() == [
        0,
        1,
        2,
        2,
        2,
        2,
        3,
        3,
        3,
    ]  # 5 / 16 s is nearer to 0.13 s than to 0.50 s


def test_size_and_intrinsics_follow_the_rule_for_images(tmp_path):
    """48 x 80 covers 64 x 64 at 4 / 3, 64 x 107; 21 columns are left off on the left."""
    (clip,) = cut_video(inspect_video("a", write_clip(tmp_path, "a")), (64, 64), 961, 25)
    assert clip.frames.shape == (33, 64, 64, 3)
    across, down = 107 / 80, 64 / 48
    assert np.allclose(clip.intrinsics_px, [60 * across, 60 * down, 42 * across - 21, 23 * down], atol=1e-4)


def test_long_videos_are_cut_where_they_share_a_frame(tmp_path):
    assert split_frames(100, 49, 25) == [range(0, 49), range(48, 97)]
    assert split_frames(1000, 961, 25) == [range(0, 961), range(960, 993)]
    assert split_frames(25, 961, 25) == [range(0, 25)] and split_frames(24, 961, 25) == []
    first, second = cut_video(inspect_video("a", write_clip(tmp_path, "a", frames=60)), (48, 80), 33, 25)
    assert (first.key, second.key) == ("a-000", "a-001")
    assert np.array_equal(first.frames[-1], second.frames[0])
    assert np.allclose(first.c2w[-1] @ second.c2w[1], relative_to_first(path_of(60))[33])


def test_what_record_chunks_writes_is_taken_as_it_is(tmp_path):
    env = sana_wm_env.RecordChunks(gym.make("SanaWM-Rooms-v0"), tmp_path)
    intrinsics = [
        41.6,
        41.6,
        20,
        36,
    ]  # far from the centre, so that a guess at the size they belong to would fail
    obs, _ = env.reset(seed=3, options={"intrinsics": intrinsics})
    frames, *_, later = env.step(np.array([0, 0, 0.5, 0, 1, 0], np.float32))
    env.close()
    assert cli.main(["data", "validate", str(tmp_path)]) == 0
    (clip,) = cut_video(inspect_video("a", tmp_path / "episode-0000.mp4"), (64, 64), 961, 25)
    assert np.allclose(clip.c2w[1:], later["c2w"])
    assert np.allclose(clip.intrinsics_px, intrinsics)  # those of the frames, which the video shows enlarged
    truth = np.concatenate([obs[-1:], frames])
    assert 10 * np.log10(255**2 / np.square(clip.frames.astype(float) - truth).mean()) > 38


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Two good videos, one of them in a folder below, and three that are not."""
    folder = tmp_path / "videos"
    (folder / "below").mkdir(parents=True)
    write_clip(folder, "good", caption="a hall")
    write_clip(folder / "below", "fine.2", frames=36)
    write_clip(folder, "nameless", convention=None)
    write_clip(folder, "turned", c2w=path_of(33).mT)
    write_video(folder / "alone.mp4", 33)
    return folder


def test_validate_names_every_clip(mixed, capsys):
    assert cli.main(["data", "validate", str(mixed)]) == 1
    said = capsys.readouterr().out
    assert "good  good: 33 frames, 80 x 48" in said and "good  below_fine_2" in said
    assert "BAD   nameless (convention): got no stated convention" in said
    assert "2 of 5 videos can be used, 3 cannot (no sidecar: 1, convention: 1, poses: 1)" in said
    for name in ("alone", "nameless", "turned"):
        (mixed / f"{name}.mp4").unlink()
    assert cli.main(["data", "validate", str(mixed)]) == 0


def test_pack_stops_or_skips_and_says_where_everything_went(mixed, tmp_path, capsys):
    out = tmp_path / "packed"
    assert cli.main(["data", "pack", str(mixed), "--out", str(out)]) == 2
    assert "turned (poses): got c2w[0]" in (said := capsys.readouterr().err) and "nothing was written" in said
    assert not out.exists()
    assert not cli.main(
        [
            "data",
            "pack",
            str(mixed),
            "--out",
            str(out),
            "--size",
            "48",
            "80",
            "--on-error",
            "skip",
            "--per-shard",
            "1",
        ]
    )
    said = capsys.readouterr().out
    assert "skipped alone (no sidecar)" in said and "wrote 2 clips" in said and "3 frames at the ends" in said
    report = json.loads((out / "report.json").read_text())
    assert (report["videos"], report["clips"], sorted(report["skipped"])) == (
        5,
        2,
        ["alone", "nameless", "turned"],
    )
    assert report["frames_left_off"] == {"below_fine_2": 3, "good": 0}
    fine, good = (clip for tar in packed_tars(out) for clip in read_packed(tar))
    assert (good.key, good.caption, fine.frames.shape) == ("good", "a hall", (33, 48, 80, 3))
    assert np.array_equal(good.c2w[0], np.eye(4)) and good.intrinsics_px.dtype == np.float32
    (direct,) = cut_video(inspect_video("good", mixed / "good.mp4"), (48, 80), 961, 25)
    assert np.array_equal(direct.frames, good.frames)  # packed without loss
    assert [len(path) for path in packed_paths(out)] == [33, 33]


def test_settings_that_cannot_be_are_refused(mixed, tmp_path):
    with pytest.raises(ValueError, match="multiples of 8"):
        pack(PackVideosConfig(mixed, tmp_path / "out", size=(60, 64)))
    with pytest.raises(ValueError, match="was not packed by this command"):
        pack(PackVideosConfig(mixed, mixed))
    with pytest.raises(ValueError, match="there is no such folder"):
        pack(PackVideosConfig(tmp_path / "nowhere", tmp_path / "out"))
    with pytest.raises(ValueError, match=r"without videos; wanted .mp4"):
        (tmp_path / "empty").mkdir()
        pack(PackVideosConfig(tmp_path / "empty", tmp_path / "out"))
