"""Sidecars, shards and settings as they break: named with the frame, the cause and the cure, in bounded
time and memory; and honest clips pass.
"""

import io
import json
import shutil
import struct
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import av
import gymnasium as gym
import numpy as np
import pytest
import tally
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_videos import INTRINSICS, SIZE, path_of, write_clip

import sana_wm_env
from sana_wm_env import cli
from sana_wm_env.arrays import read_npz
from sana_wm_env.camera import relative_to_first, twist_path
from sana_wm_env.keys import keys_to_path
from sana_wm_env.rooms import paths
from sana_wm_env.rooms.render import render
from sana_wm_env.rooms.scene import sample_scenes
from sana_wm_env.train import causal, distill, flow, ode, self_forcing
from sana_wm_env.train.data.command import ImportConfig, PackVideosConfig, ValidateConfig, pack, validate
from sana_wm_env.train.data.motion import describe_fault
from sana_wm_env.train.data.packed import PackedClip, packed_paths, packed_tars, read_packed, write_packed
from sana_wm_env.train.data.sidecars import ClipError, read_cameras
from sana_wm_env.train.data.videos import STAGES_BY_FRAMES, cut_video, inspect_video
from sana_wm_env.video import VideoWriter

# ---- paths that no camera took


def roll(axis: int, degrees: float) -> np.ndarray:
    turned = np.zeros(6)
    turned[3 + axis] = np.radians(degrees)
    return twist_path(turned, 1)[0]


def moved(first: int, last: int, metres: float, axis: int = 0) -> np.ndarray:
    path = path_of(60)
    path[first:last, axis, 3] += metres
    return path


def swapped(one: int, other: int, frames: int = 60) -> np.ndarray:
    path = path_of(frames)
    path[[one, other]] = path[[other, one]]
    return path


def turned(first: int, last: int, by: np.ndarray, world: bool = False) -> np.ndarray:
    path = path_of(60)
    path[first:last] = by @ path[first:last] if world else path[first:last] @ by
    return path


def every_second(metres: float) -> np.ndarray:
    path = path_of(60)
    path[::2, 0, 3] += metres
    return path


def fast(path: np.ndarray) -> np.ndarray:
    """The same path ten times as large: four metres a second and more."""
    path = path.copy()
    path[:, :3, 3] *= 10
    return path


FAULTS = {
    "173 m in one frame": (
        moved(30, 60, 173),
        "jumps 173.0. m from frame 29 to frame 30.*a cut in the video",
    ),
    "half a metre": (moved(30, 60, 0.5), "jumps 0.5.* m from frame 29 to frame 30.*lost and found"),
    "at the second frame": (moved(1, 60, 1), "from frame 0 to frame 1"),
    "at the last frame": (moved(59, 60, 1), "from frame 58 to frame 59"),
    "one row": (moved(30, 31, 2), "frame 30 is elsewhere"),
    "a stretch": (moved(20, 31, 2, 1), "frames 20 to 30 are elsewhere"),
    "a stretch of a fast clip": (fast(moved(20, 31, 2, 1)), "frames 20 to 30 are elsewhere"),
    "backwards in time": (np.concatenate([path_of(60)[30:], path_of(60)[:30]]), "from frame 29 to frame 30"),
    "rows 10 and 40": (swapped(10, 40), "rows 10 and 40 are swapped"),
    "rows 10 and 11": (swapped(10, 11), "rows 10 and 11 are swapped"),
    "rows 0 and 59": (swapped(0, 59), "rows 0 and 59 are swapped"),
    "rows 3 and 7": (swapped(3, 7), "rows 3 and 7 are swapped"),
    "rows of a fast clip": (fast(swapped(30, 33)), "rows 30 and 33 are swapped"),
    "rows 20 to 40 by 90 degrees about y": (
        turned(20, 41, roll(1, 90)),
        "frames 20 to 40 are turned by 90 degrees",
    ),
    "about z": (turned(20, 41, roll(2, -90)), "frames 20 to 40 are turned by 90 degrees"),
    "about x": (turned(20, 41, roll(0, 90)), "frames 20 to 40 are turned by 90 degrees"),
    "in the world": (turned(20, 41, roll(2, 90), True), "frames 20 to 40 are turned by 90 degrees"),
    "upside down": (turned(20, 41, roll(2, 180)), "frames 20 to 40 are turned by 180 degrees"),
    "OpenGL's axes": (turned(20, 41, np.diag([1.0, -1, -1, 1])), "frames 20 to 40 are turned by 180 degrees"),
    "by 30 degrees": (turned(20, 41, roll(1, 30)), "turns .* degrees from frame 19 to frame 20"),
    "to the end": (turned(20, 60, roll(1, 90)), "turns 90 degrees from frame 19 to frame 20.*one shot"),
    "from the beginning": (turned(0, 20, roll(1, 90)), "turns 90 degrees from frame 19 to frame 20"),
    "one row turned": (turned(20, 21, roll(1, 90)), "frame 20 is turned by 90 degrees"),
    "sorted as text": (path_of(60)[sorted(range(60), key=str)], "sorted as text"),
    "sorted as text, from 1": (path_of(60)[sorted(range(60), key=lambda k: str(k + 1))], "sorted as text"),
    "shuffled": (path_of(60)[np.random.default_rng(0).permutation(60)], "back and forth|swapped"),
    "every second row elsewhere": (every_second(1.0), "back and forth by 0.99 m"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_paths_that_no_camera_took_are_refused_with_frame_and_cause(kind, tmp_path):
    path, said = FAULTS[kind]
    with pytest.raises(ClipError, match=f"(?s)got .*{said}") as caught:
        inspect_video("a", write_clip(tmp_path, "a", frames=60, c2w=path))
    assert caught.value.reason == "path" and "wanted" in str(caught.value)


@pytest.mark.parametrize("seed", range(60))
def test_any_two_rows_that_are_swapped_are_found(seed):
    random = np.random.default_rng(seed)
    one, other = sorted(random.choice(97, 2, replace=False))
    twist = np.concatenate([random.uniform(-1, 1, 3), random.uniform(-0.5, 0.5, 3)])
    path = np.concatenate([np.eye(4)[None], twist_path(twist * 4, 96)])
    assert describe_fault(path) is None
    path[[one, other]] = path[[other, one]]
    assert f"rows {one} and {other} are swapped" in (describe_fault(path) or "")


@pytest.mark.parametrize("seed", range(60))
def test_any_jump_and_any_turn_is_found_at_its_frame(seed):
    random = np.random.default_rng(seed)
    twist = np.concatenate([random.uniform(-1, 1, 3), random.uniform(-0.5, 0.5, 3)])
    path = np.concatenate([np.eye(4)[None], twist_path(twist * 4, 96)])
    first = int(random.integers(1, 90))
    jump = random.standard_normal(3)
    path[first:, :3, 3] += jump / np.linalg.norm(jump) * random.uniform(0.5, 200)
    assert f"from frame {first - 1} to frame {first} " in (describe_fault(path) or "")
    path = np.concatenate([np.eye(4)[None], twist_path(twist * 4, 96)])
    path[first:] = path[first:] @ roll(
        int(random.integers(3)), random.choice([-1, 1]) * random.uniform(30, 180)
    )
    assert f"from frame {first - 1} to frame {first} " in (describe_fault(path) or "")


def test_walks_through_rooms_are_honest():
    seeds = list(range(96))
    scenes = sample_scenes(seeds)
    starts = paths.sample_starts(scenes, seeds)
    for chunks in (4, 40):
        walks = paths.twist_paths(starts, paths.sample_twists(scenes, starts, seeds, chunks)).numpy()
        assert [fault for walk in walks if (fault := describe_fault(walk))] == []


@pytest.mark.parametrize("scheme", ["sana-v1", "sana-v2"])
def test_keys_are_honest(scheme):
    random = np.random.default_rng(0)
    for _ in range(100):
        keys = [
            "".join(random.choice(list("wasdijkl"), random.integers(1, 3), replace=False)) for _ in range(6)
        ]
        text = ",".join(f"{key}-{random.integers(1, 25)},none-{random.integers(1, 9)}" for key in keys)
        assert describe_fault(keys_to_path(text, scheme)) is None, text


def honest(kind: str) -> np.ndarray:
    frames, random = np.arange(97), np.random.default_rng(0)
    path = np.tile(np.eye(4), (97, 1, 1))
    if kind == "a car that starts":  # to 100 km/h in 6 s
        path[:, 2, 3] = 4.6 * (frames / 16) ** 2 / 2
    elif kind == "a hand that shakes":
        path[:, :3, 3] = frames[:, None] / 97 + random.normal(0, 0.01, (97, 3))
    elif kind == "a camera that stops at a wall":
        path[:, 2, 3] = np.minimum(frames, 40) * 0.05
    elif kind == "fast and slow by turns":
        path[:, 2, 3] = np.cumsum(np.where(frames // 24 % 2, 0.002, 0.4))
    elif kind == "a hand that turns":  # 180 degrees a second
        path = np.concatenate([np.eye(4)[None], twist_path([0, 0, 0, 0, np.pi, 0], 16)])
    elif kind == "a drone that brakes":
        path[:, 2, 3] = np.cumsum(np.clip(1.2 - np.maximum(frames - 60, 0) / 10, 0, None))
    elif kind == "a tripod":
        pass
    elif kind == "noise of a tripod":
        path[:, :3, 3] = random.normal(0, 0.002, (97, 3))
    return path


HONEST = [
    "a car that starts", "a hand that shakes", "a camera that stops at a wall", "fast and slow by turns",
    "a hand that turns", "a drone that brakes", "a tripod", "noise of a tripod",
]  # fmt: skip


@pytest.mark.parametrize("kind", HONEST)
@pytest.mark.parametrize("metric", [True, False])
def test_cameras_that_people_hold_are_honest(kind, metric):
    if kind == "noise of a tripod" and not metric:
        pytest.skip("without a unit noise is a path like any other")
    assert describe_fault(honest(kind), metric) is None


def test_without_a_unit_only_proportions_count(tmp_path):
    for scale in (1e-4, 1, 1e4):
        path = path_of(60)
        path[:, :3, 3] *= scale
        inspect_video("a", write_clip(tmp_path, "a", frames=60, c2w=path, metric=False))
        path[30:, 0, 3] += 0.5 * scale
        with pytest.raises(ClipError, match="from frame 29 to frame 30"):
            inspect_video("a", write_clip(tmp_path, "a", frames=60, c2w=path, metric=False))


def test_what_record_chunks_writes_is_honest(tmp_path):
    env = sana_wm_env.RecordChunks(gym.make("SanaWM-Rooms-v0"), tmp_path)
    env.action_space.seed(0)
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(4):
            env.step(env.action_space.sample())
    env.close()
    assert cli.main(["data", "validate", str(tmp_path)]) == 0


# ---- fields of other types

FIELDS = {
    "caption, a list": ({"caption": ["a", "hall"]}, "caption", "caption of type list; .*join"),
    "caption, null in a list": ({"caption": [None]}, "caption", "type list"),
    "caption, a number": ({"caption": 3}, "caption", "type int"),
    "caption, true": ({"caption": True}, "caption", "type bool"),
    "fps true": ({"fps": True}, "frame rate", "fps 'True'"),
    "fps text": ({"fps": "16"}, "frame rate", "fps '16'"),
    "fps a list": ({"fps": [16]}, "frame rate", "fps"),
    "fps zero": ({"fps": 0}, "frame rate", "fps '0'"),
    "fps negative": ({"fps": -16}, "frame rate", "fps '-16'"),
    "fps NaN": ({"fps": float("nan")}, "frame rate", "fps 'nan'"),
    "fps infinite": ({"fps": float("inf")}, "frame rate", "fps 'inf'"),
    "metric text": ({"metric": "yes"}, "poses", "metric 'yes'"),
    "metric 1": ({"metric": 1}, "poses", "metric '1'"),
    "convention a list": ({"convention": ["opencv"]}, "convention", "wanted \"convention\""),
    "convention a number": ({"convention": 1}, "convention", "wanted \"convention\""),
    "convention in capitals": ({"convention": "OpenCV"}, "convention", "'OpenCV'"),
    "poses text": ({"c2w": "identity"}, "poses", "type str"),
    "poses of text": ({"c2w": [[["1"] * 4] * 4] * 33}, "poses", "holds str"),
    "poses of bool": ({"c2w": [[[True] * 4] * 4] * 33}, "poses", "holds bool"),
    "poses a number": ({"c2w": 1}, "poses", r"shape \(\)"),
    "poses an object": ({"c2w": {"0": []}}, "poses", "type dict"),
    "poses ragged": ({"c2w": [[[1, 0]], [[1]]]}, "poses", "no array; wanted"),
    "poses empty": ({"c2w": []}, "poses", r"shape \(0,\)"),
    "one pose": ({"c2w": np.eye(4)}, "poses", "one pose"),
    "poses flat": ({"c2w": np.zeros((33, 16))}, "poses", r"shape \(33, 16\)"),
    "far away": ({"c2w": path_of(33) + np.eye(4, k=3) * 1e12}, "poses", "no camera is so far"),
    "intrinsics text": ({"intrinsics_px": "60"}, "intrinsics", "intrinsics_px"),
    "intrinsics of text": ({"intrinsics_px": ["60"] * 4}, "intrinsics", "holds str"),
    "intrinsics of bool": ({"intrinsics_px": [True, 60, 40, 24]}, "intrinsics", "holds bool"),
    "intrinsics ragged": ({"intrinsics_px": [[60, 60], [1]]}, "intrinsics", "unequal rows"),
    "intrinsics an object": ({"intrinsics_px": {"fx": 60}}, "intrinsics", r"shape \(\)"),
    "focal 1e12": ({"intrinsics_px": [1e12, 1e12, 40, 24]}, "intrinsics", "below 1 degree"),
    "focal of one frame": ({"intrinsics_px": [INTRINSICS] * 32 + [[-1, 60, 40, 24]]}, "intrinsics",
                           r"\[32\].*positive"),
    "image size, one side": ({"image_size": [48]}, "intrinsics", r"image_size \[48\]"),
    "image size, three": ({"image_size": [48, 80, 3]}, "intrinsics", "image_size"),
    "image size of text": ({"image_size": ["48", "80"]}, "intrinsics", "image_size"),
    "image size text": ({"image_size": "48x80"}, "intrinsics", "image_size 48x80"),
    "image size of fractions": ({"image_size": [48.5, 80]}, "intrinsics", "whole numbers"),
    "image size zero": ({"image_size": [0, 80]}, "intrinsics", "image_size"),
    "image size negative": ({"image_size": [-48, -80]}, "intrinsics", "image_size"),
    "image size NaN": ({"image_size": [float("nan"), 80]}, "intrinsics", "image_size"),
    "image size bool": ({"image_size": [True, True]}, "intrinsics", "image_size"),
    "image size huge": ({"image_size": [10**9, 10**9]}, "intrinsics", "image_size"),
    "image size a number": ({"image_size": 48}, "intrinsics", "image_size 48"),
}  # fmt: skip


@pytest.fixture(scope="module")
def footage_file(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("video"), "whole")


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("json_", [True, False])
def test_fields_of_other_types_are_refused_by_name(kind, json_, tmp_path):
    changes, reason, said = FIELDS[kind]
    if not json_:
        try:
            values = [np.asarray(value) for value in changes.values()]
        except ValueError:
            pytest.skip("no array holds it")
        if values[0].dtype == object or kind in ("metric 1", "image size bool", "focal of one frame"):
            pytest.skip("arrays hold no objects, and have one dtype")
    fields = {
        "c2w": path_of(33),
        "convention": "opencv",
        "intrinsics_px": INTRINSICS,
        "image_size": SIZE,
    } | changes
    if json_:
        plain = {key: np.asarray(v).tolist() if isinstance(v, np.ndarray) else v for key, v in fields.items()}
        (tmp_path / "a.json").write_text(json.dumps(plain))
    else:
        np.savez(tmp_path / "a.npz", **fields)
    # an array of texts has another name for its type
    said = said if json_ else said.replace("holds str", "dtype <U").replace("holds bool", "")
    said = said if json_ or kind not in ("caption, a list", "fps a list", "convention a list") else ""
    with pytest.raises(ClipError, match=f"(?s)got .*{said}") as caught:
        read_cameras(tmp_path / "a.mp4", 33, SIZE)
    assert caught.value.reason == reason


def archive(**files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files.items():
            made.writestr(f"{name}.npy", data)
    return file.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode() + data


FILES = {
    "deep nesting": ("json", b"[" * 100_000, "cannot be read"),
    "a list": ("json", b"[1]", "with a list"),
    "a number": ("json", b"5", "with a int"),
    "null": ("json", b"null", "with a NoneType"),
    "nothing": ("json", b"", "cannot be read"),
    "not utf-8": ("json", b'{"c2w": "\xff"}', "cannot be read"),
    "cut off": ("json", b'{"c2w": [[[1, 0', "cannot be read"),
    "a number of a million digits": ("json", b'{"c2w": ' + b"9" * 10**6 + b"}", "cannot be "
                                                                                "read|wanted|neither"),
    "no archive": ("npz", b"PK\x03\x04", "cannot be read"),
    "an npy": ("npz", header("{'descr': '<f8', 'fortran_order': False, 'shape': (), "
                             "}", bytes(8)), "cannot be read"),
    "a pickle": ("npz", b"\x80\x04N.", "cannot be read"),
    "objects": ("npz", archive(c2w=header("{'descr': '|O', 'fortran_order': False, 'shape': (3,), "
                                          "}")), "Python objects"),
    "an absurd shape": (
        "npz", archive(c2w=header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), "
                                  "}")), "declares"),
    "a negative shape": (
        "npz", archive(c2w=header("{'descr': '<f8', 'fortran_order': False, 'shape': (-4, 4), "
                                  "}")), "cannot be read"),
    "a bomb": ("npz", archive(c2w=bytes(300 * 2**20)), "declares more than 256 MiB"),
    "no header": ("npz", archive(c2w=b"rubbish"), "cannot be read"),
    "a header of code": ("npz", archive(c2w=header("__import__('os').system('true')")), "cannot be read"),
    "no arrays": ("npz", archive(), "neither c2w nor w2c, but nothing"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_sidecars_that_are_none_are_refused_in_bounded_time(kind, tmp_path):
    suffix, data, said = FILES[kind]
    (tmp_path / f"a.{suffix}").write_bytes(data)
    began = time.perf_counter()
    with pytest.raises(ClipError, match=f"got .*{said}"):
        read_cameras(tmp_path / "a.mp4", 33, SIZE)
    assert time.perf_counter() - began < 3


def test_a_sidecar_that_is_too_large_is_refused(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ClipError, match="more than 64 MiB"):
        read_cameras(tmp_path / "a.mp4", 33, SIZE)


def test_arrays_come_back_as_numpy_wrote_them():
    columns = np.asfortranarray(np.arange(6).reshape(2, 3))
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": columns, "c": np.array("x"),
              "d": np.zeros((0, 4)), "e": np.array(True), "f": np.arange(3, dtype=">i2")}  # fmt: skip
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    read = read_npz(file.getvalue())
    assert all(
        np.array_equal(read[name], value) and read[name].dtype == value.dtype
        for name, value in arrays.items()
    )


# ---- pairs of a video and its sidecar


def recorded(folder: Path, seed: int) -> Path:
    env = sana_wm_env.RecordChunks(gym.make("SanaWM-Rooms-v0"), folder / "a.mp4", min_height=0)
    env.reset(seed=seed)
    env.step(np.full(6, 0.3, np.float32))
    env.close()
    return folder / "a.mp4"


def test_a_sidecar_beside_another_video_is_refused(tmp_path, capsys):
    """Equally long, so that nothing else tells them apart."""
    (tmp_path / "other").mkdir()
    video, other = recorded(tmp_path, 0), recorded(tmp_path / "other", 1)
    run = ["data", "validate", str(video)]
    assert cli.main(run) == 0
    shutil.copy(video, part := tmp_path / "a.mp4.0badcafe.part")
    (tmp_path / "a.mp4.0badbabe.part").write_bytes(b"half a video")
    shutil.copy(other, video)
    capsys.readouterr()
    assert cli.main(run) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "wanted a.mp4.0badcafe.part renamed to a.mp4" in said and "killed" in said
    part.unlink()
    assert cli.main(run) == 1 and "--any-video" in capsys.readouterr().out
    assert cli.main([*run, "--any-video"]) == 0
    pack_it = ["data", "pack", str(video), "--out", str(tmp_path / "packed")]
    assert cli.main(pack_it) == 2 and cli.main([*pack_it, "--any-video"]) == 0


# ---- videos by name, places to write, settings


@pytest.mark.parametrize("suffix", [".MP4", ".mov", ".MOV", ".mkv", ".Mkv", ".m4v"])
def test_videos_of_other_names_are_read(suffix, tmp_path, capsys):
    write_clip(tmp_path, "a").rename(tmp_path / "b.mp4")
    inside = "matroska" if "k" in suffix.lower() else "mov" if "o" in suffix.lower() else "mp4"
    copy_stream(tmp_path / "b.mp4", tmp_path / f"a{suffix}", inside)
    (tmp_path / "b.mp4").unlink()
    assert cli.main(["data", "validate", str(tmp_path)]) == 0
    assert "good  a: 33 frames" in capsys.readouterr().out
    assert cli.main(["data", "validate", str(tmp_path / f"a{suffix}")]) == 0


def copy_stream(
    source: Path, target: Path, kind: str, degrees: int | None = None, mirrored: bool = False
) -> None:
    """The same frames in another container, with a tag of rotation if asked."""
    with av.open(str(source)) as read, av.open(str(target), "w", format=kind) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        if degrees is not None:
            stream.set_display_rotation(degrees, hflip=mirrored)
        for packet in read.demux(read.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                written.mux(packet)


def test_one_video_is_validated_and_packed(tmp_path, capsys):
    video = write_clip(tmp_path, "a")
    write_clip(tmp_path, "b", convention=None)
    assert cli.main(["data", "validate", str(video)]) == 0
    assert "1 of 1 videos can be used" in capsys.readouterr().out
    assert cli.main(["data", "pack", str(video), "--out", str(tmp_path / "packed")]) == 0
    assert cli.main(["data", "validate", str(tmp_path / "b.json")]) == 2
    assert "wanted a video" in capsys.readouterr().err
    (tmp_path / "._c.mp4").write_bytes(b"what macOS leaves")
    assert cli.main(["data", "validate", str(tmp_path)]) == 1
    assert "1 of 2 videos" in capsys.readouterr().out


def test_places_to_write(tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_clip(folder, "a")
    run = ["data", "pack", str(folder), "--out"]
    (tmp_path / "empty").mkdir()
    assert cli.main([*run, str(tmp_path / "empty")]) == 0
    assert cli.main([*run, str(tmp_path / "empty")]) == 0  # what it wrote, it replaces
    for name in ("p%dx", "100%", "2026-11-25T10:30:00", "file:x", "ä b"):
        assert cli.main([*run, str(tmp_path / name)]) == 0
        assert [clip.key for shard in packed_tars(tmp_path / name) for clip in read_packed(shard)] == ["a"]
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for name, said in (("file", "which is a file"), ("full", "not packed by this command")):
        assert cli.main([*run, str(tmp_path / name)]) == 2 and said in capsys.readouterr().err
    (tmp_path / "report.json").write_text("{}")
    assert cli.main([*run, str(tmp_path)]) == 2 and "in which the videos lie" in capsys.readouterr().err
    assert (folder / "a.mp4").exists() and (tmp_path / "full" / "mine.txt").exists()


SETTINGS = {
    "per shard 0": ({"per_shard": 0}, "--per-shard 0"),
    "per shard -1": ({"per_shard": -1}, "--per-shard -1"),
    "per shard true": ({"per_shard": True}, "--per-shard True"),
    "per shard a fraction": ({"per_shard": 1.5}, "--per-shard 1.5"),
    "crf 99": ({"crf": 99}, "--crf 99"),
    "crf 52": ({"crf": 52}, "--crf 52"),
    "crf -5": ({"crf": -5}, "--crf -5"),
    "crf a fraction": ({"crf": 0.5}, "--crf 0.5"),
    "size 0": ({"size": (0, 64)}, "--size"),
    "size -8": ({"size": (-8, 64)}, "--size"),
    "size 60": ({"size": (60, 64)}, "multiples of 8"),
    "size of fractions": ({"size": (64.0, 64)}, "--size"),
    "size huge": ({"size": (10**6, 64)}, "--size"),
    "min frames 0": ({"min_frames": 0}, "--min-frames 0"),
    "min frames 24": ({"min_frames": 24}, "--min-frames 24"),
    "min over max": ({"min_frames": 50, "max_frames": 49}, "--max-frames 49"),
    "max frames 0": ({"max_frames": 0}, "--max-frames 0"),
    "on error": ({"on_error": "ignore"}, "--on-error ignore"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_that_cannot_be_are_refused_by_name(kind, footage_file, tmp_path):
    changes, said = SETTINGS[kind]
    with pytest.raises(ValueError, match=f"got {said}|{said}"):
        pack(PackVideosConfig(footage_file, tmp_path / "out", **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("frames", [0, -1, True, 1.5])
def test_validate_refuses_frames_that_are_none(frames, footage_file):
    with pytest.raises(ValueError, match=f"got --min-frames {frames}"):
        validate(ValidateConfig(footage_file, frames))


@pytest.mark.parametrize("frames, named, unnamed", [(25, "causal, ode, "
                                                         "distill", ""), (48, "self-forcing", ""),
    (49, "self-forcing", "causal"), (72, "self-forcing", "causal"), (73, "", "too short")])  # fmt: skip
def test_what_a_clip_is_too_short_for_is_said(frames, named, unnamed, tmp_path, capsys):
    write_clip(tmp_path, "a", frames=frames)
    assert cli.main(["data", "validate", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert named in said and (not unnamed or unnamed not in said)


def test_the_lengths_are_those_that_the_stages_draw():
    wanted = {
        "causal": causal.CausalConfig, "ode": ode.OdeConfig, "distill": distill.DistillConfig,
        "self-forcing": self_forcing.SelfForcingConfig,
    }  # fmt: skip
    told = {stage: frames for frames, stages in STAGES_BY_FRAMES.items() for stage in stages}
    assert told == {stage: 8 * (config().frames - 1) + 1 for stage, config in wanted.items()}
    assert 8 * (flow.FlowConfig().frames - 1) + 1 == 25


def test_import_config_has_a_source():
    assert ImportConfig(Path("a"), Path("a.mp4")).from_ == "auto"


# ---- videos of phones


@pytest.fixture(scope="module")
def walk():
    """An upright walk of 33 frames, 96 x 64, that pitches and goes on: frames, poses, intrinsics off the
    centre.
    """
    scenes = sample_scenes([5])
    start = paths.sample_starts(scenes, [5])
    twist = np.array([[[0.1, 0.02, 0.5, 0.35, 0.1, 0.05]]])
    c2w = paths.twist_paths(start, start.new_tensor(twist).repeat(1, 2, 1))[:, :33]
    intrinsics = np.array([70.0, 72, 30, 50])
    frames = render(scenes, c2w, tuple(intrinsics), (96, 64)).rgb[0].numpy()
    return frames, c2w[0].numpy(), intrinsics


def write_phone(folder: Path, walk, degrees: int, cameras: str) -> Path:
    """The walk as a phone stores it: frames on their side and a tag that has players turn them by
    `degrees` to the left; poses and intrinsics of the frames as stored, written by hand, or of the upright
    ones.
    """
    frames, c2w, (fx, fy, cx, cy) = walk
    turns = degrees // 90 % 4
    stored = np.rot90(frames, -turns, (1, 2))
    height, width = frames.shape[1:3]
    # where the stored picture's right and down point to in the upright camera, and its lens
    right, down, lens = [
        ([1, 0, 0], [0, 1, 0], [fx, fy, cx, cy]),
        ([0, -1, 0], [1, 0, 0], [fy, fx, height - cy, cx]),
        ([-1, 0, 0], [0, -1, 0], [fx, fy, width - cx, height - cy]),
        ([0, 1, 0], [-1, 0, 0], [fy, fx, cy, width - cx]),
    ][turns]
    axes = np.eye(4)
    axes[:3, 0], axes[:3, 1] = right, down
    with VideoWriter(folder / "plain.mp4", 16, min_height=0, crf=1) as writer:
        writer.write(np.ascontiguousarray(stored))
    copy_stream(folder / "plain.mp4", folder / "a.mov", "mov", degrees)
    (folder / "plain.mp4").unlink()
    if cameras == "stored":
        fields = {"c2w": c2w @ axes, "intrinsics_px": lens, "image_size": stored.shape[1:3]}
    else:
        fields = {"c2w": c2w, "intrinsics_px": [fx, fy, cx, cy], "image_size": (height, width)}
    np.savez(folder / "a.npz", convention="opencv", **fields)
    return folder / "a.mov"


@pytest.mark.parametrize("degrees", [90, -90, 180])
@pytest.mark.parametrize("cameras", ["stored", "upright"])
def test_phone_videos_are_turned_with_their_poses_and_intrinsics(degrees, cameras, walk, tmp_path, capsys):
    if degrees == 180 and cameras == "upright":
        pytest.skip("both have one size: the cameras are taken for those of the stored frames")
    video = write_phone(tmp_path, walk, degrees, cameras)
    assert cli.main(["data", "validate", str(video)]) == 1
    assert "wanted --upright" in capsys.readouterr().out
    assert cli.main(["data", "validate", str(video), "--upright"]) == 0
    assert "33 frames, 64 x 96" in (said := capsys.readouterr().out) and "turned upright" in said
    frames, c2w, intrinsics = walk
    (clip,) = cut_video(inspect_video("a", video, upright=True), (96, 64), 961, 25)
    assert np.allclose(clip.c2w, relative_to_first(c2w), atol=1e-9)
    assert np.allclose(clip.intrinsics_px, intrinsics, atol=1e-4)
    assert 10 * np.log10(255**2 / np.square(clip.frames.astype(float) - frames).mean()) > 38
    # the geometry: rendering the cameras that were read shows the frames that were read
    scenes = sample_scenes([5])
    poses = scenes.air.new_tensor(c2w[0] @ clip.c2w)[None].double()
    seen = render(scenes, poses, tuple(clip.intrinsics_px[0].tolist()), (96, 64)).rgb[0].numpy()
    assert 10 * np.log10(255**2 / np.square(clip.frames.astype(float) - seen).mean()) > 36
    assert (
        cli.main(
            ["data", "pack", str(video), "--out", str(tmp_path / "out"), "--size", "96", "64", "--upright"]
        )
        == 0
    )
    (packed,) = read_packed(packed_tars(tmp_path / "out")[0])
    assert np.array_equal(packed.frames, clip.frames) and np.array_equal(packed.c2w, clip.c2w)


def test_a_camera_that_pitches_still_pitches(walk, tmp_path):
    """The walk looks up; turned frames with poses as they were would have it yaw."""
    video = write_phone(tmp_path, walk, 90, "stored")
    turned_ = relative_to_first(inspect_video("a", video, upright=True).cameras.c2w)
    untouched = np.load(tmp_path / "a.npz")["c2w"]
    forward, wrong = turned_[-1, :3, 2], relative_to_first(untouched)[-1, :3, 2]
    assert forward[1] < -0.3 and abs(forward[0]) < 0.3 and abs(wrong[0]) > 0.3


def test_upright_leaves_other_videos_as_they_are(footage_file):
    one, other = (inspect_video("a", footage_file, upright=upright) for upright in (False, True))
    assert np.array_equal(one.cameras.c2w, other.cameras.c2w) and one.turn == other.turn == 0


def test_other_angles_than_quarter_turns_are_refused(footage_file, tmp_path):
    copy_stream(footage_file, tmp_path / "a.mov", "mov", 45)
    shutil.copy(footage_file.with_suffix(".json"), tmp_path / "a.json")
    with pytest.raises(ClipError, match="other than quarter turns"):
        inspect_video("a", tmp_path / "a.mov", upright=True)


@pytest.mark.parametrize("degrees", [0, 90, 180])
def test_videos_that_players_mirror_are_refused(degrees, footage_file, tmp_path):
    """FFmpeg reports a mirrored frame as one that is turned by half a circle."""
    copy_stream(footage_file, tmp_path / "a.mov", "mov", degrees, mirrored=True)
    shutil.copy(footage_file.with_suffix(".json"), tmp_path / "a.json")
    for upright in (False, True):
        with pytest.raises(ClipError, match="players mirror"):
            inspect_video("a", tmp_path / "a.mov", upright=upright)


# ---- fuzzing

value = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=8,
)
NAMES = (
    "c2w",
    "w2c",
    "convention",
    "intrinsics_px",
    "image_size",
    "caption",
    "fps",
    "metric",
    "frames",
    "poses",
    "K",
)


def try_fields(folder: Path, changes: dict) -> None:
    good = {
        "c2w": path_of(4).tolist(),
        "convention": "opencv",
        "intrinsics_px": INTRINSICS,
        "image_size": list(SIZE),
    }
    (folder / "a.json").write_text(json.dumps(good | changes))
    try:
        cameras = read_cameras(folder / "a.mp4", 4, SIZE)
    except ClipError as error:
        assert str(error).startswith("got ") and len(str(error)) < 1500
        tally.count(refused=1)
    else:
        tally.count(right=1)
        assert cameras.c2w.shape == (4, 4, 4) and isinstance(cameras.caption, str)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(NAMES), value, max_size=3))
def test_whatever_stands_in_a_sidecar(tmp_path, changes):
    try_fields(tmp_path, changes)


@pytest.mark.heavy
@settings(
    max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.dictionaries(st.sampled_from(NAMES), value, max_size=3))
def test_a_thousand_sidecars(tmp_path, changes):
    try_fields(tmp_path, changes)


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """One to eight bytes changed, pieces cut out or doubled, the end cut off."""
    data = bytearray(data)
    for _ in range(random.integers(1, 9)):
        place, kind = int(random.integers(len(data))), random.integers(6)
        if kind < 2:
            data[place] ^= 1 << int(random.integers(8))
        elif kind == 2:
            data[place : place + 4] = b"\xff\xff\xff\xff"
        elif kind == 3 and len(data) > 20:
            del data[place : place + int(random.integers(1, 16))]
        elif kind == 4:
            data[place:place] = data[place : place + int(random.integers(1, 16))]
        elif random.integers(4) == 0 and len(data) > 20:
            del data[place + 1 :]
    return bytes(data)


def fuzz_sidecars(folder: Path, count: int) -> dict[str, int]:
    fields = {
        "c2w": path_of(4),
        "convention": "opencv",
        "intrinsics_px": INTRINSICS,
        "image_size": SIZE,
        "caption": "a",
    }
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, **fields)
    np.savez_compressed(packed, **fields)
    text = json.dumps({key: np.asarray(v).tolist() for key, v in fields.items()}).encode()
    random, told = np.random.default_rng(3), {"read": 0, "refused": 0}
    for index in range(count):
        suffix, data = [("json", text), ("npz", plain.getvalue()), ("npz", packed.getvalue())][index % 3]
        for old in folder.glob("a.*"):
            old.unlink()
        (folder / f"a.{suffix}").write_bytes(mutated(data, random))
        began = time.perf_counter()
        try:
            cameras = read_cameras(folder / "a.mp4", 4, SIZE)
            assert cameras.c2w.shape == (4, 4, 4)
            told["read"] += 1
        except ClipError as error:
            assert str(error).startswith("got ")
            told["refused"] += 1
        assert time.perf_counter() - began < 2
    tally.count(told["refused"], told["read"])
    return told


def test_changed_sidecars_are_read_or_refused(tmp_path):
    told = fuzz_sidecars(tmp_path, 300)
    assert told["read"] and told["refused"]


@pytest.mark.heavy
def test_a_thousand_changed_sidecars(tmp_path):
    assert sum(fuzz_sidecars(tmp_path, 1000).values()) == 1000


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    random = np.random.default_rng(0)
    clips = [
        PackedClip(key, random.integers(0, 256, (5, 16, 24, 3), np.uint8), relative_to_first(path_of(5)),
                   np.tile(np.float32([20, 20, 12, 8]), (5, 1)), "a hall")
        for key in ("one", "two")
    ]  # fmt: skip
    write_packed(folder, clips, 8)
    return packed_tars(folder)[0]


def fuzz_shards(shard: Path, folder: Path, count: int) -> dict[str, int]:
    random, told, whole = np.random.default_rng(4), {"read": 0, "refused": 0}, shard.read_bytes()
    target = folder / shard.name
    for _ in range(count):
        target.write_bytes(mutated(whole, random))
        began = time.perf_counter()
        for read in (lambda: list(read_packed(target)), lambda: list(packed_paths(folder))):
            try:
                read()
                told["read"] += 1
            except ValueError as error:
                assert str(target) in str(error)
                told["refused"] += 1
        assert time.perf_counter() - began < 5
    tally.count(told["refused"], told["read"])
    return told


def test_changed_shards_are_read_or_refused(shard, tmp_path):
    told = fuzz_shards(shard, tmp_path, 100)
    assert told["read"] and told["refused"]


@pytest.mark.heavy
def test_a_thousand_changed_shards(shard, tmp_path):
    assert sum(fuzz_shards(shard, tmp_path, 1000).values()) == 2000


def rewritten(shard: Path, folder: Path, changes: dict[str, bytes | None]) -> Path:
    """The shard with some of its files changed, or left out if None."""
    target = folder / shard.name
    with tarfile.open(shard) as read, tarfile.open(target, "w") as written:
        for member in read:
            data = read.extractfile(member).read() if member.name not in changes else changes[member.name]
            if data is not None:
                member.size = len(data)
                written.addfile(member, io.BytesIO(data))
    return target


def about(**changes) -> bytes:
    return json.dumps({"caption": "a", "width": 24, "height": 16, "frames": 5} | changes).encode()


def cameras_of(**changes) -> bytes:
    file = io.BytesIO()
    fields = {"c2w": path_of(5), "intrinsics_px": np.ones((5, 4), np.float32)} | changes
    np.savez(file, **{key: v for key, v in fields.items() if v is not None})
    return file.getvalue()


PARTS = {
    "no video": ({"one.mp4": None}, "clip one has no mp4"),
    "no cameras": ({"one.npz": None}, "clip one has no npz"),
    "a video of rubbish": ({"one.mp4": b"rubbish"}, "clip one is broken"),
    "an empty video": ({"one.mp4": b""}, "clip one is broken"),
    "cameras of rubbish": ({"one.npz": b"rubbish"}, "clip one is broken"),
    "a text of rubbish": ({"one.json": b"{"}, "clip one is broken"),
    "a text that nests": ({"one.json": b"[" * 10**5}, "clip one is broken"),
    "a text that is a list": ({"one.json": b"[]"}, "no caption"),
    "caption a list": ({"one.json": about(caption=["a"])}, "no caption"),
    "frames absurd": ({"one.json": about(frames=10**12)}, "got frames="),
    "frames text": ({"one.json": about(frames="5")}, "got frames="),
    "frames true": ({"one.json": about(frames=True)}, "got frames="),
    "width of another": ({"one.json": about(width=32)}, "frames of 16 x 24"),
    "a frame more": ({"one.json": about(frames=6),
                      "one.npz": cameras_of(c2w=path_of(6), intrinsics_px=np.ones((6, 4)))},
                     "got 5 frames; wanted 6"),
    "a pose less": ({"one.npz": cameras_of(c2w=path_of(4))}, "4 c2w; wanted 5"),
    "no poses": ({"one.npz": cameras_of(c2w=None)}, "wanted c2w and intrinsics_px"),
    "mirrored": ({"one.npz": cameras_of(c2w=path_of(5) * -1)}, "clip one is broken"),
    "intrinsics NaN": ({"one.npz": cameras_of(intrinsics_px=np.full((5, 4), np.nan))}, "intrinsics_px"),
    "intrinsics text": ({"one.npz": cameras_of(intrinsics_px=np.full((5, 4), "1"))}, "intrinsics_px"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PARTS)
def test_parts_of_a_clip_that_do_not_fit_are_named(kind, shard, tmp_path):
    changes, said = PARTS[kind]
    with pytest.raises(ValueError, match=rf"(?s){said}.*pack again"):
        list(read_packed(rewritten(shard, tmp_path, changes)))


def test_other_files_in_a_shard_are_passed_over(shard, tmp_path):
    target = rewritten(shard, tmp_path, {})
    with tarfile.open(target, "a") as archive_:
        for name in ("README", "three.txt"):
            archive_.addfile(tarfile.TarInfo(name))
    one, two = read_packed(target)
    assert (one.key, two.key) == ("one", "two") and replace(one, key="x").caption == "a hall"
