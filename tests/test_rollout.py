import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
import torch

from sana_wm_env import rollout
from sana_wm_env.cli import main
from sana_wm_env.evaluation.contact_sheet import LABEL_PX, MARGIN_PX
from sana_wm_env.keys import keys_to_path
from sana_wm_env.rooms.env import look
from sana_wm_env.rooms.paths import clear

WALK = ["rollout", "--actions", "w-24,d-24", "--scheme", "sana-v2"]


@pytest.fixture
def walk(tmp_path) -> list[str]:
    """A short rollout in the world that SanaWM-v0 has."""
    return [*WALK, "--world", gym.registry["SanaWM-v0"].kwargs.get("world", "rooms"), "--out", str(tmp_path / "a.mp4")]


def video(folder) -> np.ndarray:
    """Frames of the video that was written, uint8 (F, H, W, 3)."""
    return iio.imread(folder / "a.mp4", plugin="pyav")


def test_rollout_writes_every_frame_and_its_pose(walk, tmp_path, capsys):
    assert main(walk) == 0
    assert video(tmp_path).shape == (49, 256, 256, 3)
    sidecar = np.load(tmp_path / "a.npz")
    assert np.array_equal(sidecar["c2w"], keys_to_path("w-24,d-24", "sana-v2"))
    assert sidecar["intrinsics_px"].shape == (3, 3)
    assert (sidecar["keys"], sidecar["scheme"], sidecar["seed"]) == ("w-24,d-24", "sana-v2", 0)
    assert "forward 24, turn right 24" in capsys.readouterr().out


def test_rollout_repeats_itself(walk, tmp_path):
    main(walk)
    first = video(tmp_path)
    main(walk)
    assert np.array_equal(first, video(tmp_path))
    main([*walk, "--seed", "1"])
    assert not np.array_equal(first, video(tmp_path))


def test_truth_stands_on_the_right(walk, tmp_path, capsys):
    assert main([*walk, "--truth", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    scores = next(line for line in out.splitlines() if line.startswith("PSNR")).split(": ")[1].split()
    assert len(scores) == 2
    frames = video(tmp_path)
    assert frames.shape == (49, LABEL_PX + 256, 2 * 256 + MARGIN_PX, 3)
    path = keys_to_path("w-24,d-24", "sana-v2")
    truth = look(rollout.find_room(3, path), path, np.array([41.6, 41.6, 32, 32]), (64, 64))
    right, left = frames[:, LABEL_PX + 1 :: 4, 256 + MARGIN_PX + 1 :: 4], frames[:, LABEL_PX + 1 :: 4, 1:256:4]
    assert np.abs(right - truth.astype(int)).mean() < 3
    assert np.abs(left[0] - truth[0].astype(int)).mean() < 3  # both start from the same picture
    mse = np.square(left[1:25].astype(float) - truth[1:25]).mean((1, 2, 3))
    assert (10 * np.log10(255**2 / mse)).mean() == pytest.approx(float(scores[0]), abs=0.6)  # the video is compressed


def test_the_room_is_one_the_path_does_not_leave(capsys):
    path = keys_to_path("w-96", "sana-v2")
    rooms = [rollout.find_room(seed, path) for seed in range(6)]
    for room in rooms:
        assert clear(room.scenes, torch.from_numpy(room.start @ path)[None, :, :3, 3]).all()
    assert "taking room" in capsys.readouterr().out  # six rooms in a row with 2.4 m ahead would be luck


def test_a_path_that_fits_no_room_is_shown_and_said(capsys):
    rollout.find_room(2, keys_to_path("w-960", "sana-v2"))
    assert "in each of the rooms 2 to 65" in capsys.readouterr().out


def test_a_picture_of_ones_own(walk, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    iio.imwrite(tmp_path / "in.png", picture)
    assert main([*walk, "--image", str(tmp_path / "in.png"), "--intrinsics", "100,100,64,48", "--prompt", "a red room"]) == 0
    sidecar = np.load(tmp_path / "a.npz")
    # 96 x 128 becomes 64 x 85, of which 10 columns left and 11 right are cut off.
    assert sidecar["intrinsics_px"][0] == pytest.approx([100 * 85 / 128, 0, 64 * 85 / 128 - 10])
    assert sidecar["prompt"] == "a red room"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--actions", "w-25"], "the nearest are 24 and 48"),
        (["--actions", "x-24"], "got the key 'x'"),
        (["--world", "nowhere"], "unknown world 'nowhere'"),
        (["--seed", "-1"], "wanted 0 or more"),
        (["--intrinsics", "1,2,3,4"], "without --image"),
        (["--image", "none.png"], "without --intrinsics"),
        (["--image", "none.png", "--intrinsics", "1,2,3,4", "--truth"], "nobody knows the truth"),
        (["--image", "none.png", "--intrinsics", "1,2,3,4"], "there is no such file"),
        (["--out", "a.avi"], "ends in .mp4"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(walk, tmp_path, capsys, wrong, message):
    assert main([*walk, *wrong]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())
