"""The scenes of the one-minute benchmark: the published layout is read, the rooms edition keeps the published
rules.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from sana_wm_env.camera import FPS
from sana_wm_env.evaluation.benchmark_scenes import (
    EXPORT,
    FRAMES,
    MARGIN_M,
    SPEED_M_S,
    SPLITS,
    TURN_DEG_S,
    BenchmarkScene,
    read_scenes,
    scene_names,
    write_rooms,
)
from sana_wm_env.rooms import HELD_OUT
from sana_wm_env.rooms.paths import clear
from sana_wm_env.rooms.scene import sample_scenes

SIZE = (32, 48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rooms")
    write_rooms(path, 2, seed=5, size=SIZE)
    return path


@pytest.fixture(scope="module")
def scenes(folder) -> dict[str, list[BenchmarkScene]]:
    return {split: list(read_scenes(folder, split)) for split in SPLITS}


def test_files_lie_where_the_published_ones_do(folder, scenes):
    assert scene_names(folder) == ["room_001", "room_002"]
    for directory in SPLITS.values():
        for name in scene_names(folder):
            with np.load(folder / directory / EXPORT / f"{name}.npz") as file:
                assert file["c2w"].shape == (FRAMES, 4, 4) and file["intrinsics"].shape == (FRAMES, 3, 3)
                assert (float(file["fps"]), int(file["num_frames"])) == (FPS, FRAMES)
        row = json.loads((folder / directory / EXPORT / "run_manifest.jsonl").read_text().splitlines()[0])
        assert (
            row["camera_path"] == f"{directory}/{EXPORT}/room_001.npz"
            and (folder / row["image_path"]).exists()
        )


def test_a_scene_is_its_room(scenes):
    for split, read in scenes.items():
        assert [scene.room_seed for scene in read] == [HELD_OUT + 5, HELD_OUT + 6]
        for scene in read:
            assert scene.split == split and scene.image.shape == (*SIZE, 3)
            assert scene.prompt == sample_scenes([scene.room_seed]).captions[0]
            assert np.array_equal(scene.c2w[0], np.eye(4))
            assert np.array_equal(scene.truth(slice(0, 1), SIZE)[0].numpy(), scene.image)
            assert not np.array_equal(scene.truth(slice(300, 301), SIZE)[0].numpy(), scene.image)


def test_paths_keep_the_published_rules(scenes):
    for split, read in scenes.items():
        for scene in read:
            steps = np.linalg.norm(np.diff(scene.c2w[:, :3, 3], axis=0), axis=1) * FPS
            turns = (
                Rotation.from_matrix(
                    scene.c2w[:-1, :3, :3].swapaxes(1, 2) @ scene.c2w[1:, :3, :3]
                ).magnitude()
                * FPS
            )
            assert 0.01 < steps.max() <= SPEED_M_S + 1e-6 and np.degrees(turns.max()) <= TURN_DEG_S + 1e-6
            positions = torch.from_numpy((scene.start @ scene.c2w)[None, :, :3, 3])
            assert clear(sample_scenes([scene.room_seed]), positions, MARGIN_M - 1e-4).all()
            widest = np.degrees(Rotation.from_matrix(scene.c2w[:, :3, :3]).magnitude().max())
            assert widest > 25 if split == "hard" else widest < 25


def test_the_same_seed_makes_the_same_scenes_however_many(tmp_path, folder, scenes):
    write_rooms(tmp_path, 1, seed=5, size=SIZE)
    for split, read in scenes.items():
        (again,) = read_scenes(tmp_path, split)
        assert np.array_equal(again.c2w, read[0].c2w) and np.array_equal(again.image, read[0].image)
    write_rooms(folder, 1, seed=5, size=SIZE)  # asked for fewer, the list is shorter and nothing else changes
    assert scene_names(folder) == ["room_001"] and (folder / "images" / "room_002.png").exists()
    write_rooms(folder, 2, seed=5, size=SIZE)
    with pytest.raises(ValueError, match="give another folder"):
        write_rooms(folder, 2, seed=6, size=SIZE)


@pytest.fixture
def published(tmp_path):
    """A folder as downloaded: another frame of the world, large pictures, single precision, no prompts."""
    first = np.eye(4)
    first[:3, :3], first[:3, 3] = Rotation.from_euler("y", 40, degrees=True).as_matrix(), (1, 2, 3)
    relative = np.tile(np.eye(4), (FRAMES, 1, 1))
    relative[:, 2, 3] = np.linspace(0, 4, FRAMES)
    arrays = {"c2w": (first @ relative).astype(np.float32), "fps": 16, "num_frames": FRAMES}
    arrays["intrinsics"] = np.tile(
        np.array([[900, 0, 640], [0, 900, 360], [0, 0, 1]], np.float32), (FRAMES, 1, 1)
    )
    (tmp_path / "images").mkdir()
    Image.new("RGB", (1280, 720), (10, 20, 30)).save(tmp_path / "images" / "game_style_001.png")
    (tmp_path / "scene_set").mkdir()
    (tmp_path / "scene_set" / "kept_scenes.txt").write_text("game_style_001\n")
    export = tmp_path / SPLITS["simple"] / EXPORT
    export.mkdir(parents=True)
    row = {
        "image_path": "images/game_style_001.png",
        "camera_path": f"{SPLITS['simple']}/{EXPORT}/game_style_001.npz",
    }
    (export / "run_manifest.jsonl").write_text(json.dumps(row) + "\n")
    np.savez(export / "game_style_001.npz", **arrays)
    return tmp_path, export / "game_style_001.npz", arrays


def test_the_published_layout_is_read(published):
    (scene,) = read_scenes(published[0], "simple")
    assert (scene.name, scene.prompt, scene.image.shape) == ("game_style_001", "", (720, 1280, 3))
    np.testing.assert_allclose(scene.intrinsics_px, [900, 900, 640, 360])
    np.testing.assert_allclose(scene.c2w[-1, :3, 3], [0, 0, 4], atol=1e-5)
    assert scene.truth(slice(0, 1), SIZE) is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"fps": 24}, "wanted 16"),
        ({"c2w": np.tile(np.eye(4), (900, 1, 1))}, "wanted 961"),
        ({"intrinsics": np.linspace(1, 2, FRAMES)[:, None, None] * np.eye(3)}, "that change"),
        ({"c2w": np.tile(np.diag([1.0, 1, -1, 1]), (FRAMES, 1, 1))}, "mirrored"),
    ],
)
def test_files_that_are_not_as_described_are_refused(published, wrong, says):
    folder, path, arrays = published
    np.savez(path, **(arrays | wrong))
    with pytest.raises(ValueError, match=says):
        list(read_scenes(folder, "simple"))


def test_what_is_missing_is_named(tmp_path, published):
    with pytest.raises(FileNotFoundError, match="huggingface-cli download"):
        scene_names(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"game_style_001\.npz"):
        list(read_scenes(published[0], "hard"))
    with pytest.raises(ValueError, match="wanted one of simple, hard"):
        list(read_scenes(published[0], "easy"))
    with pytest.raises(ValueError, match="scenes that are not rooms"):
        write_rooms(published[0], 1, seed=0, size=SIZE)


@pytest.mark.parametrize("data", [b"", b"PK", b"\x93NUMPY\x01", b"rubbish" * 9])
def test_files_of_scenes_that_broke_are_named(data, tmp_path):
    write_rooms(tmp_path, 1, 50, (16, 24))
    export = tmp_path / SPLITS["simple"] / EXPORT
    (camera,) = export.glob("*.npz")
    whole = camera.read_bytes()
    camera.write_bytes(data)
    with pytest.raises(ValueError, match=rf"got .*{camera.name}, which cannot be read"):
        list(read_scenes(tmp_path, "simple"))
    np.savez(camera, c2w=np.eye(4))
    with pytest.raises(ValueError, match=rf"{camera.name} without fps, intrinsics"):
        list(read_scenes(tmp_path, "simple"))
    camera.write_bytes(whole)
    for name in ("run_manifest.jsonl", f"../../images/{camera.stem}.png"):
        kept = (export / name).read_bytes()
        (export / name).write_bytes(data or b"[")
        with pytest.raises(ValueError, match=r"got .*(no list of scenes|not an image)"):
            list(read_scenes(tmp_path, "simple"))
        (export / name).write_bytes(kept)
