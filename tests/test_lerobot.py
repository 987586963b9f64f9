"""Episodes as LeRobotDataset v3: ranges, timestamps, alignment, crashes; and back."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import sana_wm_env
from sana_wm_env import cli

pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'sana-wm-env[lerobot]'")

import pyarrow.parquet as pq

from sana_wm_env.lerobot import LeRobotWriter, find_faults, read_episodes
from sana_wm_env.lerobot.layout import CAMERA, Recorded
from sana_wm_env.lerobot.reader import video_of
from sana_wm_env.lerobot.sources import read_frames
from sana_wm_env.lerobot.writer import read_episode_rows, read_info


def episode(number: int, chunks: int = 2, action_mode: str = "chunk") -> Recorded:
    """An exact room, as the environment shows it."""
    env = gym.make("SanaWM-Rooms-v0", image_size=(48, 64), action_mode=action_mode, task="goal")
    obs, info = env.reset(seed=number)
    frames, c2w, actions, rewards = [obs[-1:]], [info["c2w"][-1:]], [], []
    env.action_space.seed(number)
    for _ in range(chunks):
        actions.append(env.action_space.sample())
        obs, reward, _, _, info = env.step(actions[-1])
        frames.append(obs), c2w.append(info["c2w"]), rewards.append(reward)
    k = info["intrinsics_px"]
    four = np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]])
    return Recorded(
        np.concatenate(frames),
        np.concatenate(c2w),
        four,
        np.stack(actions),
        np.array(rewards),
        "walk",
        number,
    )


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = ((one.astype(float) - other) ** 2).mean()
    return 99.0 if error == 0 else 10 * np.log10(255**2 / error)


@pytest.mark.parametrize("limit", [1e-6, 100], ids=["a file for each episode", "one file"])
def test_rows_ranges_and_frames_hold_across_files(tmp_path, limit):
    """Timestamps into the wrong file or past its end, and ranges that are scrambled where a file ends."""
    written = [episode(n, chunks) for n, chunks in enumerate((2, 1, 3))]
    writer = LeRobotWriter(tmp_path / "set", data_mb=limit, video_mb=limit)
    for one in written:
        writer.add(one)
    root, info, rows = tmp_path / "set", read_info(tmp_path / "set"), read_episode_rows(tmp_path / "set")
    assert find_faults(root) == []
    files = {row["data/file_index"] for row in rows}, {row[f"videos/{CAMERA}/file_index"] for row in rows}
    assert files == ({0, 1, 2}, {0, 1, 2}) if limit < 1 else files == ({0}, {0})
    begin = 0
    for row, one in zip(rows, written, strict=True):
        assert (row["dataset_from_index"], row["length"]) == (begin, len(one.frames))
        begin = row["dataset_to_index"]
        table = pq.read_table(root / info["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )).to_pydict()  # fmt: skip
        mine = np.array(table["episode_index"]) == row["episode_index"]
        times, frames = np.array(table["timestamp"])[mine], np.array(table["frame_index"])[mine]
        assert np.array_equal(times, (frames / 16).astype(np.float32))
        first = round(row[f"videos/{CAMERA}/from_timestamp"] * 16)
        shown = read_frames(video_of(root, info, row, CAMERA), first, first + len(one.frames))
        quality = [psnr(a, b) for a, b in zip(shown, one.frames, strict=True)]
        assert min(quality) > 28
        # another frame is further away
        assert psnr(shown[24], one.frames[24]) > psnr(shown[24], one.frames[20]) + 3


@pytest.mark.parametrize("mode", ["chunk", "per_latent", "per_frame"])
def test_what_is_written_comes_back(tmp_path, mode):
    one = episode(4, 2, mode)
    LeRobotWriter(tmp_path / "set", crf=0).add(one)
    (back,) = read_episodes(tmp_path / "set")
    for name in ("c2w", "intrinsics_px", "actions", "rewards"):
        assert np.array_equal(getattr(back, name), getattr(one, name)), name
    assert (back.task, back.seed) == (one.task, one.seed)


def test_an_action_stands_beside_the_frame_before_it_and_red_stays_red(tmp_path):
    """Turn right, away from a wall that is red."""
    red = np.zeros((25, 32, 32, 3), np.uint8)
    red[0, ..., 0] = 200  # the wall fills the first frame alone
    action = np.array([[0, 0, 0, 0, 1, 0]], np.float32)
    turned = Recorded(red, np.tile(np.eye(4), (25, 1, 1)), np.ones(4), action, np.array([0.5]), "turn right")
    LeRobotWriter(tmp_path / "set").add(turned)
    info, (row,) = read_info(tmp_path / "set"), read_episode_rows(tmp_path / "set")
    table = pq.read_table(tmp_path / "set" / "data/chunk-000/file-000.parquet").to_pydict()
    assert table["action"][0][4] == 1 and table["action"][23][4] == 1
    assert table["action"][24] == [0] * 6 and not table["has_action"][24]
    assert table["next.reward"][23] == 0.5 and sum(table["next.reward"]) == 0.5
    frames = read_frames(video_of(tmp_path / "set", info, row, CAMERA))
    assert (abs(frames[0].reshape(-1, 3).mean(0) - [200, 0, 0]) < 12).all() and frames[1].max() < 30
    assert read_info(tmp_path / "set")["features"]["action"]["names"][4] == "turn_right"


@pytest.mark.parametrize("moment", ["_append_rows", "_append_video", "_write_meta", "replace_folder"])
def test_a_killed_writer_leaves_the_episodes_before(tmp_path, moment):
    """Kill -9 in the third episode, wherever it is; the next writer goes on."""
    code = f"""
import os, signal, sys
sys.path[:0] = {[*sys.path]!r}
from pathlib import Path
from tests_lerobot import episode
from sana_wm_env import files
from sana_wm_env.lerobot import writer
w = writer.LeRobotWriter(Path({str(tmp_path / "set")!r}))
w.add(episode(0)); w.add(episode(1))
home = files if {moment!r} == "replace_folder" else writer
do = getattr(home, {moment!r})
def die(*args):
    if {moment!r} != "replace_folder":
        do(*args)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(home, {moment!r}, die)
w.add(episode(2))
"""
    (tmp_path / "tests_lerobot.py").write_text(Path(__file__).read_text())
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert find_faults(tmp_path / "set") == []
    assert len(list(read_episodes(tmp_path / "set"))) == 2
    LeRobotWriter(tmp_path / "set").add(episode(2))
    assert find_faults(tmp_path / "set") == []
    assert [one.seed for one in read_episodes(tmp_path / "set")] == [0, 1, 2]


def test_commands_there_and_back(tmp_path, capsys):
    env = sana_wm_env.RecordChunks(gym.make("SanaWM-Rooms-v0", image_size=(48, 64)), f"{tmp_path / 'walks'}/")
    for seed in (1, 2):
        env.reset(seed=seed)
        env.step(np.array([0, 0, 0.5, 0, 0.5, 0], np.float32))
    env.close()
    assert cli.main(["dataset", "export", str(tmp_path / "walks"), "--out", str(tmp_path / "set")]) == 0
    assert cli.main(["dataset", "export", str(tmp_path / "walks"), "--out", str(tmp_path / "set")]) == 0
    assert "2 episodes, 0 of them new" in capsys.readouterr().out
    assert cli.main(["dataset", "validate", str(tmp_path / "set")]) == 0
    assert cli.main(["dataset", "import", str(tmp_path / "set"), "--out", str(tmp_path / "again")]) == 0
    for name in ("episode-0000.npz", "episode-0001.npz"):
        ours, theirs = (np.load(tmp_path / folder / name) for folder in ("walks", "again"))
        for key in ("c2w", "intrinsics_px", "image_size", "actions", "rewards", "seed"):
            assert np.array_equal(ours[key], theirs[key]), key


def test_faults_are_found(tmp_path, capsys):
    LeRobotWriter(tmp_path / "set").add(episode(0))
    LeRobotWriter(tmp_path / "set").add(episode(1))
    path = tmp_path / "set/meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path).to_pylist()
    table[1]["dataset_from_index"] += 1
    table[1][f"videos/{CAMERA}/to_timestamp"] += 2
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(table), path)
    assert cli.main(["dataset", "validate", str(tmp_path / "set")]) == 1
    said = capsys.readouterr().out
    assert "begins at row" in said and "past the end" in said
    with pytest.raises(ValueError, match="no readable"):
        find_faults(tmp_path)
    with pytest.raises(ValueError, match="one size"):
        LeRobotWriter(tmp_path / "set").add(replace(episode(0), frames=np.zeros((49, 16, 16, 3), np.uint8)))
