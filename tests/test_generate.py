import json
from pathlib import Path

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest

from sana_wm_env.actions import action_path
from sana_wm_env.camera import compose
from sana_wm_env.cli import main
from sana_wm_env.commands import generate
from sana_wm_env.contact_sheet import LABEL_PX, MARGIN_PX
from sana_wm_env.keys import keys_to_path
from sana_wm_env.model.config import VARIANTS
from sana_wm_env.model.storage.worlds import load_config, resolve_world
from sana_wm_env.rooms.floor_plan import CAMERA, draw_floor_plan
from sana_wm_env.rooms.room import look, stands_clear

WORLD = gym.registry["SanaWM-v0"].kwargs.get("world", "tiny-rooms")
KEYS = "w-24,d-24"
PATH = keys_to_path(KEYS, "sana-v2")


@pytest.fixture
def walk(tmp_path) -> list[str]:
    """A short walk in the world that SanaWM-v0 has, in one step per chunk."""
    return [
        "generate",
        "--actions",
        KEYS,
        "--scheme",
        "sana-v2",
        "--world",
        WORLD,
        "--steps",
        "1",
        "--out",
        str(tmp_path / "a.mp4"),
    ]


def video(folder: Path) -> np.ndarray:
    """Frames of the video that was written, uint8 (F, H, W, 3)."""
    return iio.imread(folder / "a.mp4", plugin="pyav")


def written(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "a.mp4").read_bytes(), (folder / "a.npz").read_bytes()


def test_it_writes_every_frame_and_its_pose(walk, tmp_path, capsys):
    assert main(walk) == 0
    assert video(tmp_path).shape == (49, 256, 256, 3)
    sidecar = np.load(tmp_path / "a.npz")
    assert np.array_equal(sidecar["c2w"], PATH)
    assert sidecar["intrinsics_px"].shape == (3, 3) and sidecar["image_size"].tolist() == [64, 64]
    assert (sidecar["keys"], sidecar["scheme"], sidecar["seed"], sidecar["variant"]) == (
        KEYS,
        "sana-v2",
        0,
        "streaming",
    )
    assert sidecar["sigmas"].tolist() == [1, 0] and "room" in str(sidecar["caption"])
    out = capsys.readouterr().out
    assert (
        "49 frames, 3.0 s, streaming, 1 steps, guidance 1: forward 24, turn right 24" in out
        and "frames per second" in out
    )


@pytest.mark.parametrize(
    ("variant", "frames"), [("streaming", 25), ("bidirectional", 17), ("chunk_causal", 49)]
)
def test_every_variant_from_one_command_to_a_video_that_repeats_itself(walk, tmp_path, variant, frames):
    walk += ["--variant", variant, "--frames", str(frames)]
    assert main(walk) == 0
    first, shown = written(tmp_path), video(tmp_path)
    assert len(shown) == frames and shown[-1].std() > 5
    sidecar = np.load(tmp_path / "a.npz")
    assert (sidecar["variant"], sidecar["guidance"]) == (variant, 1 if variant == "streaming" else 5)
    assert np.array_equal(sidecar["c2w"], PATH[:frames])
    assert main(walk) == 0
    assert written(tmp_path) == first
    assert main([*walk, "--steps", "2"]) == 0
    other = np.abs(video(tmp_path) - shown.astype(int)).mean((1, 2, 3))
    assert other[0] < 0.5 < other[-1]  # the first frame is given, and the video compressed
    assert len(np.load(tmp_path / "a.npz")["sigmas"]) == 3


def test_variants_seeds_and_dtypes_differ(walk, tmp_path):
    videos = []
    wide, half = ["--dtype", "float32"], ["--dtype", "bfloat16", "--offload", "text", "release"]
    clip = ["--variant", "bidirectional"]
    for more in (["--variant", "streaming"], [*clip, *wide], [*clip, *half], ["--seed", "1"]):
        assert main([*walk, "--frames", "25", *more]) == 0
        videos.append(video(tmp_path))
    assert len({frames[-1].tobytes() for frames in videos}) == 4
    assert np.abs(videos[1] - videos[2].astype(int)).mean() < 3  # the same but for rounding


def test_truth_stands_on_the_right(walk, tmp_path, capsys):
    assert main([*walk, "--truth", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    scores = next(line for line in out.splitlines() if line.startswith("PSNR")).split(": ")[1].split()
    assert len(scores) == 2
    frames = video(tmp_path)
    assert frames.shape == (49, LABEL_PX + 320, 2 * 320 + MARGIN_PX, 3)
    truth = look(generate.find_room(3, PATH), PATH, np.array([41.6, 41.6, 32, 32]), (64, 64))
    right = frames[:, LABEL_PX + 2 :: 5, 320 + MARGIN_PX + 2 :: 5]
    left = frames[:, LABEL_PX + 2 :: 5, 2:320:5]
    assert np.abs(right - truth.astype(int)).mean() < 3
    assert np.abs(left[0] - truth[0].astype(int)).mean() < 3  # both start from the same picture
    mse = np.square(left[1:25].astype(float) - truth[1:25]).mean((1, 2, 3))
    assert (10 * np.log10(255**2 / mse)).mean() == pytest.approx(
        float(scores[0]), abs=0.6
    )  # the video is compressed


def test_the_plan_shows_where_the_camera_is(walk, tmp_path):
    assert main([*walk, "--frames", "25", "--plan", "--rooms", "held-out", "--seed", "3"]) == 0
    frames = video(tmp_path)
    assert frames.shape == (25, LABEL_PX + 320, 2 * 320 + MARGIN_PX, 3)
    plan = draw_floor_plan(generate.find_room(3, PATH[:25], "held-out"), PATH[:25], 320)
    assert np.abs(frames[:, LABEL_PX:, 320 + MARGIN_PX :] - plan.astype(int)).mean() < 4
    first, last = (
        np.argwhere((plan[i] == CAMERA).all(-1)).mean(0) for i in (0, -1)
    )  # (row, column) of the camera
    room = generate.find_room(3, PATH[:25], "held-out")
    moved = (room.start @ PATH[24])[:3, 3] - room.start[:3, 3]
    assert (
        np.abs(last - first).max() > 3
        and np.sign(last - first).tolist() == np.sign([-moved[2], moved[0]]).tolist()
    )


def test_the_room_is_one_the_path_does_not_leave(capsys):
    path = keys_to_path("w-96", "sana-v2")
    for seed in range(20):
        assert stands_clear(generate.find_room(seed, path), path).all()
    assert "taking room" in capsys.readouterr().out  # twenty rooms in a row with 2.4 m ahead would be luck


def test_a_path_that_fits_no_room_is_shown_and_said(capsys):
    generate.find_room(2, keys_to_path("w-960", "sana-v2"))
    assert "in each of the rooms 2 to 65" in capsys.readouterr().out


def test_a_picture_of_ones_own(walk, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    iio.imwrite(tmp_path / "in.png", picture)
    walk += ["--frames", "25", "--image", str(tmp_path / "in.png"), "--prompt", "a red room"]
    assert main([*walk, "--intrinsics", "100", "100", "64", "48"]) == 0
    sidecar = np.load(tmp_path / "a.npz")
    # 96 x 128 becomes 64 x 85, of which 10 columns left and 11 right are cut off.
    assert sidecar["intrinsics_px"][0] == pytest.approx([100 * 85 / 128, 0, 64 * 85 / 128 - 10])
    assert sidecar["caption"] == "a red room"
    assert main([*walk, "--fov-deg", str(np.rad2deg(2 * np.arctan(64 / 100)))]) == 0
    assert np.load(tmp_path / "a.npz")["intrinsics_px"] == pytest.approx(sidecar["intrinsics_px"])


@pytest.mark.parametrize("pieces", [1, 3])
def test_actions_move_the_camera_as_in_the_environment(walk, tmp_path, pieces):
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 6 * pieces)).astype(np.float32)
    np.savez(tmp_path / "in.npz", actions=actions)  # as RecordChunks writes them
    assert main([*walk, "--actions", str(tmp_path / "in.npz")]) == 0
    path = np.load(tmp_path / "a.npz")["c2w"]
    settings = load_config(resolve_world(WORLD))
    limits = (settings.max_translation_m, settings.max_rotation_rad)
    mode = {1: "chunk", 3: "per_latent"}[pieces]
    one, two = (action_path(action, mode, limits) for action in actions)
    assert path.shape == (49, 4, 4) and path[1:] == pytest.approx(
        np.concatenate([one, compose(one[-1], two)])
    )


def test_a_camera_path_begins_where_its_first_pose_is(walk, tmp_path):
    np.save(tmp_path / "in.npy", compose(keys_to_path("aw-40", "sana-v2")[-1], PATH))
    assert main([*walk, "--camera", str(tmp_path / "in.npy"), "--frames", "25"]) == 0
    assert np.load(tmp_path / "a.npz")["c2w"] == pytest.approx(PATH[:25])
    assert "keys" not in np.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            ["--actions", "w-25"],
            "got 26 frames; streaming makes 24 k + 1, the first of which is given: the nearest are 25 and 49",
        ),
        (["--frames", "48"], "the nearest are 25 and 49"),
        (["--frames", "1"], "the nearest are 25 and 49"),
        (
            ["--frames", "28", "--variant", "bidirectional"],
            "bidirectional makes 8 k + 1, the first of which is given: the nearest are 25",
        ),
        (
            ["--frames", "73"],
            "got a path of 49 poses, the first of them that of the first frame; --frames 73 wants 73",
        ),
        (["--actions", "x-24"], "got the key 'x'"),
        (["--actions", "none.npy"], "got --actions none.npy; there is no such file"),
        (
            ["--actions", "{wrong}/transposed.npy"],
            "got actions of shape (25, 4, 4); wanted (K, 6) or (K, 18) or (K, 144)",
        ),
        (["--camera", "none.npy"], "got --camera none.npy; there is no such file"),
        (["--camera", "{wrong}/transposed.npy"], "transposed"),
        (["--camera", "{wrong}/text.npy"], "which cannot be read"),
        (["--camera", "{wrong}/in.npz"], "wanted an array as .npy, or an .npz with 'c2w'"),
        (["--world", "nowhere"], "unknown world 'nowhere'"),
        (
            ["--world", "{wrong}/streaming", "--variant", "chunk_causal"],
            "has no variant 'chunk_causal'; it has streaming",
        ),
        (["--world", "{wrong}/incomplete", "--variant", "chunk_causal"], "it has no autoencoder.safetensors"),
        (["--guidance", "3"], "streaming was distilled with guidance built in"),
        (["--guidance", "nan", "--variant", "bidirectional"], "got --guidance nan; wanted a number"),
        (["--steps", "0"], "got --steps 0; wanted a whole number, 1 or more"),
        (["--shift", "0", "--variant", "bidirectional"], "got --shift 0.0; wanted a number, more than 0"),
        (["--seed", "-1"], "wanted 0 or more"),
        (["--intrinsics", "1", "2", "3", "4"], "without --image"),
        (["--image", "none.png"], "with neither of --intrinsics and --fov-deg"),
        (["--image", "none.png", "--fov-deg", "60", "--intrinsics", "1", "2", "3", "4"], "with both of"),
        (
            ["--image", "none.png", "--fov-deg", "60", "--truth"],
            "got --truth with --image; nobody knows the truth",
        ),
        (
            ["--image", "none.png", "--fov-deg", "60", "--plan"],
            "got --plan with --image; nobody knows the truth",
        ),
        (["--image", "none.png", "--fov-deg", "60"], "there is no such file"),
        (["--out", "a.avi"], "ends in .mp4"),
        (["--offload", "eyes", "cpu"], "wanted a device for 'autoencoder', 'text' or 'refiner'"),
    ],
)
def test_wrong_input_is_said_and_exits_2_and_writes_nothing(walk, wrongs, tmp_path, capsys, wrong, message):
    assert main([*walk, *(word.format(wrong=wrongs) for word in wrong)]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def wrongs(tmp_path_factory) -> Path:
    """Files and worlds that are refused."""
    folder = tmp_path_factory.mktemp("wrong")
    np.save(folder / "transposed.npy", PATH[:25].swapaxes(1, 2))
    np.savez(folder / "in.npz", poses=PATH)
    (folder / "text.npy").write_text("1, 0, 0")
    settings = json.loads((resolve_world(WORLD) / "config.json").read_text())
    for name, variants in {"streaming": ["streaming"], "incomplete": list(VARIANTS)}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({**settings, "variants": variants}))
    return folder


def test_a_world_without_first_frames_wants_a_picture(walk, wrongs, capsys):
    settings = json.loads((wrongs / "streaming" / "config.json").read_text())
    (wrongs / "blind").mkdir()
    (wrongs / "blind" / "config.json").write_text(json.dumps({**settings, "first_frames": None}))
    assert main([*walk, "--world", str(wrongs / "blind")]) == 2
    assert "has no first frames of its own: wanted --image with --intrinsics" in capsys.readouterr().err


def test_an_unknown_variant_lists_the_known(walk, tmp_path, capsys):
    assert main([*walk, "--variant", "sideways"]) == 2
    error = capsys.readouterr().err
    assert all(variant in error for variant in VARIANTS)
    assert not list(tmp_path.iterdir())
