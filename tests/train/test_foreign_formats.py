"""Cameras of other tools: each format is written from a known path by code of its own, by hand and by its
documentation, and read back as that path. Then every one of them broken.
"""

import json
import math
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tally
from own_videos import INTRINSICS, SIZE, path_of, write_clip, write_video
from PIL import Image

from sana_wm_env import cli
from sana_wm_env.camera import relative_to_first
from sana_wm_env.train.data.formats import FORMATS, read_track, recognise
from sana_wm_env.train.data.formats.fields import split_numbers
from sana_wm_env.train.data.sidecars import ClipError, read_cameras
from sana_wm_env.train.data.videos import inspect_video

FRAMES = 33
HEIGHT, WIDTH = SIZE
FX, FY, CX, CY = INTRINSICS


def quaternion(rotation) -> list[float]:
    """W x y z of a rotation matrix, by Shepperd's rule, in plain Python."""
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    squares = [1 + a + e + i, 1 + a - e - i, 1 - a + e - i, 1 - a - e + i]
    most = max(range(4), key=lambda k: squares[k])
    s = math.sqrt(squares[most]) / 2
    w = [s, (h - f) / 4 / s, (c - g) / 4 / s, (d - b) / 4 / s]
    x = [(h - f) / 4 / s, s, (b + d) / 4 / s, (c + g) / 4 / s]
    y = [(c - g) / 4 / s, (b + d) / 4 / s, s, (f + h) / 4 / s]
    z = [(d - b) / 4 / s, (c + g) / 4 / s, (f + h) / 4 / s, s]
    return [w, x, y, z][most]


def up_and_back(c2w) -> list[list[float]]:
    """The same camera with +y up and +z backward: its second and third column are turned round."""
    return [[row[0], -row[1], -row[2], row[3]] for row in c2w.tolist()]


def seen_from_camera(c2w) -> tuple[np.ndarray, np.ndarray]:
    """World-to-camera as rotation and translation: R = Rᵀ, t = -Rᵀ p."""
    return c2w[:3, :3].T, -c2w[:3, :3].T @ c2w[:3, 3]


def name(index: int) -> str:
    return (
        f"images/frame_{index + 1}.png"  # without zeros in front: sorted as text they would be out of order
    )


def nerfstudio(folder: Path, path, **changes) -> Path:
    frames = [{"file_path": name(k), "transform_matrix": up_and_back(pose)} for k, pose in enumerate(path)]
    fields = {
        "camera_model": "OPENCV", "fl_x": FX, "fl_y": FY, "cx": CX, "cy": CY, "w": WIDTH, "h": HEIGHT,
        "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0, "frames": frames[::-1],
    } | changes  # fmt: skip
    (folder / "transforms.json").write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    return folder / "transforms.json"


def colmap_text(folder: Path, path, model: str = f"PINHOLE {WIDTH} {HEIGHT} {FX} {FY} {CX} {CY}") -> Path:
    (folder / "cameras.txt").write_text(f"# Camera list\n#   CAMERA_ID, MODEL, ...\n7 {model}\n")
    lines = ["# Image list with two lines of data per image:"]
    for index in np.random.default_rng(0).permutation(len(path)):
        rotation, translation = seen_from_camera(path[index])
        numbers = " ".join(repr(float(value)) for value in (*quaternion(rotation), *translation))
        lines += [f"{index + 1} {numbers} 7 {name(index)}", "" if index % 2 else "1.5 2.5 -1 3.0 4.0 12"]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    (folder / "points3D.txt").write_text("")
    return folder


def colmap_binary(folder: Path, path, model: int = 1, parameters=(FX, FY, CX, CY)) -> Path:
    camera = struct.pack("<iiQQ", 7, model, WIDTH, HEIGHT) + struct.pack(f"<{len(parameters)}d", *parameters)
    (folder / "cameras.bin").write_bytes(struct.pack("<Q", 1) + camera)
    data = struct.pack("<Q", len(path))
    for index, pose in enumerate(path):
        rotation, translation = seen_from_camera(pose)
        data += struct.pack("<i7di", index + 1, *quaternion(rotation), *translation, 7) + name(index).encode()
        data += b"\0" + struct.pack("<Q", index % 3) + struct.pack("<ddq", 1.5, 2.5, -1) * (index % 3)
    (folder / "images.bin").write_bytes(data)
    return folder


def realestate10k(folder: Path, path, k1: float = 0.0) -> Path:
    lines = ["https://www.youtube.com/watch?v=none"]
    for index, pose in enumerate(path):
        rotation, translation = seen_from_camera(pose)
        lens = [FX / WIDTH, FY / HEIGHT, CX / WIDTH, CY / HEIGHT, k1, 0.0]
        numbers = [*lens, *np.concatenate([rotation, translation[:, None]], 1).ravel().tolist()]
        lines.append(" ".join([str(round(index * 62500)), *(repr(float(value)) for value in numbers)]))
    (folder / "rows.txt").write_text("\n".join(lines) + "\n")
    return folder / "rows.txt"


def record3d_fields(path, per_frame: bool = False) -> dict:
    poses = []
    for pose in path:
        w, x, y, z = quaternion(np.array(up_and_back(pose))[:3, :3])
        poses.append([x, y, z, w, *pose[:3, 3].tolist()])
    fields = {"w": WIDTH, "h": HEIGHT, "fps": 16, "K": [FX, 0, 0, 0, FY, 0, CX, CY, 1], "poses": poses}
    return fields | ({"perFrameIntrinsicCoeffs": [[FX, FY, CX, CY]] * len(path)} if per_frame else {})


def record3d(folder: Path, path) -> Path:
    (folder / "metadata.json").write_text(json.dumps(record3d_fields(path)))
    return folder / "metadata.json"


def record3d_archive(folder: Path, path) -> Path:
    with zipfile.ZipFile(folder / "scan.r3d", "w") as archive:
        archive.writestr("metadata", json.dumps(record3d_fields(path, per_frame=True)))
    return folder / "scan.r3d"


def arkit(folder: Path, path, by_columns: bool = True, listed: bool = False) -> Path:
    frames = []
    for pose in path:
        matrix, lens = np.array(up_and_back(pose)), np.array([[FX, 0, CX], [0, FY, CY], [0, 0, 1]])
        matrix, lens = (matrix.T, lens.T) if by_columns else (matrix, lens)
        frames.append(
            {
                "transform": matrix.ravel().tolist(),
                "intrinsics": lens.tolist(),
                "imageResolution": [WIDTH, HEIGHT],
            }
        )
    (folder / "arkit.json").write_text(json.dumps(frames if listed else {"frames": frames}))
    return folder / "arkit.json"


def blender(folder: Path, path) -> Path:
    """As Blender's exporters write it: an angle in place of focal lengths."""
    return nerfstudio(
        folder, path, fl_x=None, fl_y=None, cx=None, cy=None, camera_model=None,
        camera_angle_x=2 * math.atan(WIDTH / 2 / FX), camera_angle_y=2 * math.atan(HEIGHT / 2 / FY),
    )  # fmt: skip


WRITTEN = {
    "nerfstudio": ("nerfstudio", nerfstudio),
    "nerfstudio, a lens per frame": ("nerfstudio", nerfstudio),
    "blender": ("nerfstudio", blender),
    "colmap text": ("colmap", colmap_text),
    "colmap binary": ("colmap", colmap_binary),
    "realestate10k": ("realestate10k", realestate10k),
    "record3d": ("record3d", record3d),
    "record3d archive": ("record3d", record3d_archive),
    "arkit by columns": ("arkit", arkit),
    "arkit by rows": ("arkit", lambda folder, path: arkit(folder, path, by_columns=False, listed=True)),
}
METRIC = {"record3d", "arkit"}


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_format_gives_the_path_it_was_written_from(kind, tmp_path):
    called, write = WRITTEN[kind]
    path = path_of(FRAMES)
    source = write(tmp_path, path)
    assert recognise(source) == called
    for asked in (called, "auto"):
        track = read_track(source, asked, SIZE)
        assert np.allclose(relative_to_first(track.c2w), relative_to_first(path), atol=1e-9)
        expected = [FX, FY, WIDTH / 2, HEIGHT / 2] if kind == "blender" else INTRINSICS
        assert np.allclose(track.intrinsics_px, expected) and track.image_size == SIZE
        assert track.metric == (called in METRIC)
    assert {called for called, _ in WRITTEN.values()} == set(FORMATS)


def test_signs_by_hand(tmp_path):
    """A camera that walks 1 m forward and turns right, in each format as its documentation has it."""
    path = np.tile(np.eye(4), (3, 1, 1))
    path[1, 2, 3] = path[2, 2, 3] = 1
    path[2, :3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]  # looks to +x, as OpenCV counts
    source = nerfstudio(tmp_path, path)
    frames = json.loads(source.read_text())["frames"]
    assert [row[3] for row in frames[1]["transform_matrix"]] == [0, 0, 1, 1]
    assert [row[2] for row in frames[0]["transform_matrix"][:3]] == [-1, 0, 0]  # its back looks to -x
    colmap_text(tmp_path, path)
    row = next(line for line in (tmp_path / "images.txt").read_text().splitlines() if line.startswith("2 "))
    assert [float(value) for value in row.split()[1:8]] == [1, 0, 0, 0, 0, 0, -1]
    for kind in ("nerfstudio", "colmap"):
        track = read_track(source if kind == "nerfstudio" else tmp_path, kind)
        assert np.allclose(track.c2w, path)


def test_applied_scale_is_undone_and_the_world_may_be_turned(tmp_path):
    path, turned = path_of(FRAMES), path_of(FRAMES)
    world = np.array([[1, 0, 0, 2], [0, 0, 1, -3], [0, -1, 0, 1], [0, 0, 0, 1.0]])
    turned = world @ turned
    turned[:, :3, 3] *= 0.25
    source = nerfstudio(tmp_path, turned, applied_scale=0.25, applied_transform=world[:3].tolist())
    assert np.allclose(relative_to_first(read_track(source, "auto").c2w), relative_to_first(path), atol=1e-9)


@pytest.mark.parametrize("kind", WRITTEN)
def test_import_writes_a_sidecar_that_validates(kind, tmp_path, capsys):
    called, write = WRITTEN[kind]
    write_video(tmp_path / "a.mp4", FRAMES)
    source = write(tmp_path, path_of(FRAMES))
    run = [
        "data",
        "import",
        str(source),
        "--video",
        str(tmp_path / "a.mp4"),
        "--from",
        called,
        "--caption",
        "a hall",
    ]
    assert cli.main(run) == 0
    assert "wrote" in (said := capsys.readouterr().out) and "good  a: 33 frames" in said
    footage = inspect_video("a", tmp_path / "a.mp4")
    assert np.allclose(relative_to_first(footage.cameras.c2w), relative_to_first(path_of(FRAMES)), atol=1e-9)
    assert footage.cameras.caption == "a hall" and footage.cameras.metric == (called in METRIC)
    assert cli.main(run) == 2 and "has the sidecar a.npz" in capsys.readouterr().err
    pack = ["data", "pack", str(tmp_path / "a.mp4"), "--out", str(tmp_path / "packed")]
    if called in METRIC:
        assert cli.main(pack) == 0
    else:
        assert cli.main(pack) == 2 and "without a unit" in capsys.readouterr().err
        assert cli.main([*pack, "--any-scale"]) == 0


def test_a_stated_unit_makes_metres(tmp_path):
    write_video(tmp_path / "a.mp4", FRAMES)
    colmap_text(tmp_path, path_of(FRAMES))
    run = ["data", "import", str(tmp_path), "--video", str(tmp_path / "a.mp4"), "--metres-per-unit", "2.5"]
    assert cli.main(run) == 0
    cameras = inspect_video("a", tmp_path / "a.mp4").cameras
    moved = relative_to_first(path_of(FRAMES))
    assert cameras.metric and np.allclose(relative_to_first(cameras.c2w)[:, :3, 3], 2.5 * moved[:, :3, 3])
    assert cli.main(["data", "pack", str(tmp_path), "--out", str(tmp_path / "packed")]) == 0


def test_a_video_is_made_of_the_pictures(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for index in range(FRAMES):
        Image.fromarray(np.full((*SIZE, 3), 20 + 2 * index, np.uint8)).save(tmp_path / name(index))
    colmap_binary(tmp_path, path_of(FRAMES))
    run = [
        "data",
        "import",
        str(tmp_path),
        "--images",
        str(tmp_path / "images"),
        "--video",
        str(tmp_path / "a.mp4"),
    ]
    assert cli.main(run) == 0
    assert "good  a: 33 frames" in capsys.readouterr().out
    (tmp_path / "a.npz").unlink()
    assert cli.main(run) == 2 and "wanted a new .mp4" in capsys.readouterr().err
    (tmp_path / "a.mp4").unlink()
    (tmp_path / name(3)).unlink()
    assert cli.main(run) == 2 and "no picture images/frame_4.png" in capsys.readouterr().err
    assert not list(tmp_path.glob("a.*"))


def test_numbered_names_are_sorted_by_their_numbers():
    names = ["frame_10.png", "frame_9.png", "b/1.png", "a/2.png", "frame_9b.png", "10.png", "9.png", "x", ""]
    assert sorted(names, key=split_numbers)[1:4] == ["9.png", "10.png", "a/2.png"]


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_lies_beside_a_video_is_recognised(kind, tmp_path):
    called, write = WRITTEN[kind]
    video = tmp_path / "a.mp4"
    source = write(tmp_path, path_of(FRAMES))
    if source.suffix == ".json":
        for target in ("a.json",):
            (tmp_path / target).write_bytes(source.read_bytes())
        with pytest.raises(
            ClipError, match=rf"cameras of {called}; .*data import a.json --from {called}"
        ) as caught:
            read_cameras(video, FRAMES, SIZE)
        assert caught.value.reason == "format"
        (tmp_path / "a.json").unlink()
    if source.name == "rows.txt":
        source.rename(tmp_path / "a.txt")
    if source.suffix == ".r3d":
        source.rename(tmp_path / "a.r3d")
    if called != "arkit":
        with pytest.raises(
            ClipError, match=rf"no poses; .*holds the cameras of {called}: `sana-wm data import"
        ):
            read_cameras(video, FRAMES, SIZE)


MIRROR = np.diag([1, 1, -1, 1]).tolist()


def changed(field: str, value):
    def write(folder: Path, path) -> Path:
        return nerfstudio(folder, path, **{field: value})

    return write


def frame_changed(field: str, value, record=record3d):
    def write(folder: Path, path) -> Path:
        source = record(folder, path)
        fields = json.loads(source.read_text())
        (fields["frames"][3] if "frames" in fields else fields)[field] = value
        source.write_text(json.dumps(fields))
        return source

    return write


def cut_off(write, file: str, size: int):
    def short(folder: Path, path) -> Path:
        source = write(folder, path)
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[:size])
        return source

    return short


def line_changed(write, file: str, old: str, new: str):
    def other(folder: Path, path) -> Path:
        source = write(folder, path)
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))
        return source

    return other


BROKEN = {
    "nerfstudio, fisheye": ("nerfstudio", changed("camera_model", "OPENCV_FISHEYE"), "camera model "
                                                                                     "OPENCV_FISHEYE"),
    "nerfstudio, panorama": ("nerfstudio", changed("camera_model", "EQUIRECTANGULAR"), "undistort"),
    "nerfstudio, a bent lens": ("nerfstudio", changed("k1", 0.4), "shifts the corners by .*undistort"),
    "nerfstudio, a lens of text": ("nerfstudio", changed("k1", "0.4"), "'0.4' in the intrinsics"),
    "nerfstudio, no focal length": ("nerfstudio", changed("fl_x", None), "neither fl_x nor camera_angle_x"),
    "nerfstudio, focal of text": ("nerfstudio", changed("fl_x", "60"), "'60' in the intrinsics"),
    "nerfstudio, focal NaN": ("nerfstudio", changed("fl_x", float("nan")), "in the intrinsics"),
    "nerfstudio, no frames": ("nerfstudio", changed("frames", []), "no frames"),
    "nerfstudio, frames of numbers": ("nerfstudio", changed("frames", [1, 2]), "missing or of another kind"),
    "nerfstudio, frames a number": ("nerfstudio", changed("frames", 3), "missing or of another kind"),
    "nerfstudio, scale zero": ("nerfstudio", changed("applied_scale", 0), "applied_scale 0"),
    "nerfstudio, two sizes": ("nerfstudio", frame_changed("w", 64, nerfstudio), "2 sizes"),
    "nerfstudio, a size of text": ("nerfstudio", changed("w", "80"), "side 80 of a picture"),
    "nerfstudio, a matrix of 3 x 3": (
        "nerfstudio", frame_changed("transform_matrix", np.eye(3).tolist(), nerfstudio), "wanted what "
                                                                                         "nerfstudio"),
    "nerfstudio, a mirrored matrix": (
        "nerfstudio", frame_changed("transform_matrix", MIRROR, nerfstudio), "mirrored"),
    "nerfstudio, no matrix": (
        "nerfstudio", frame_changed("transform_matrix", None, nerfstudio), "wanted what|missing"),
    "colmap, fisheye": (
        "colmap", lambda f, p: colmap_text(f, p, f"OPENCV_FISHEYE {WIDTH} {HEIGHT} 60 60 40 24 0 0 0 "
                                                 "0"), "undistorter"),
    "colmap, bent": (
        "colmap", lambda f, p: colmap_text(f, p, f"SIMPLE_RADIAL {WIDTH} {HEIGHT} 60 40 24 "
                                                 "0.3"), "shifts the corners"),
    "colmap, unknown model": ("colmap", lambda f, p: colmap_text(f, p, f"CUBIC {WIDTH} {HEIGHT} "
                                                                       "60"), "model 'CUBIC'"),
    "colmap, parameters": (
        "colmap", lambda f, p: colmap_text(f, p, f"PINHOLE {WIDTH} {HEIGHT} 60 60 40"), "3 parameters of "
                                                                                        "PINHOLE"),
    "colmap, another camera": (
        "colmap", line_changed(colmap_text, "cameras.txt", "\n7 ", "\n8 "), "camera 7, which is not among"),
    "colmap, a short row": (
        "colmap", line_changed(colmap_text, "images.txt", " 7 images", " images"), "row of|wanted what"),
    "colmap, binary, cut off": ("colmap", cut_off(colmap_binary, "images.bin", 1000), "cut off|declared"),
    "colmap, binary, empty": ("colmap", cut_off(colmap_binary, "images.bin", 0), "cut off"),
    "colmap, binary cameras cut off": ("colmap", cut_off(colmap_binary, "cameras.bin", 30), "cut off"),
    "colmap, binary, model 99": ("colmap", lambda f, p: colmap_binary(f, p, 99), "camera model 99"),
    "realestate10k, a short row": (
        "realestate10k", line_changed(realestate10k, "rows.txt", "62500 ", ""), "18 fields in line 3"),
    "realestate10k, text": (
        "realestate10k", line_changed(realestate10k, "rows.txt", "62500 ", "x "), "wanted what "
                                                                                  "realestate10k"),
    "realestate10k, times": (
        "realestate10k", line_changed(realestate10k, "rows.txt", "\n62500 ", "\n0 "), "times that do not "
                                                                                      "rise at row 1"),
    "realestate10k, bent": ("realestate10k", lambda f, p: realestate10k(f, p, 0.5), "shifts the corners"),
    "record3d, six "
    "numbers": ("record3d", frame_changed("poses", [[0, 0, 0, 1, 0, 0]] * 33), r"shape \(33, 6\)"),
    "record3d, a quaternion of zeros": ("record3d", frame_changed("poses", [[0.0] * 7] * 33), "of length 1"),
    "record3d, K of four": ("record3d", frame_changed("K", [1, 2, 3, 4]), "wanted what record3d"),
    "record3d, no height": ("record3d", frame_changed("h", None), "side None"),
    "record3d, lenses": (
        "record3d", frame_changed("perFrameIntrinsicCoeffs", [[1, 2, 3, 4]]), "1 intrinsics for"),
    "arkit, no matrix": ("arkit", frame_changed("transform", [1, 2], arkit), "wanted what arkit"),
    "arkit, scaled": ("arkit", frame_changed("transform", [2, 0, 0, 0] * 4, arkit), "last rows other"),
    "arkit, standing": (
        "arkit", lambda f, p: arkit(f, np.tile(np.eye(4), (3, 1, 1))), "without translation"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_a_track_is_refused(kind, tmp_path):
    called, write, said = BROKEN[kind]
    source = write(tmp_path, path_of(FRAMES))
    with pytest.raises(ValueError, match=f"(?s){said}") as caught:
        read_track(source, called, SIZE)
    assert str(source) in str(caught.value)


def test_a_lens_may_be_taken_for_a_pinhole(tmp_path):
    assert len(read_track(nerfstudio(tmp_path, path_of(FRAMES), k1=0.4), "auto", None, True).c2w) == FRAMES
    assert len(read_track(nerfstudio(tmp_path, path_of(FRAMES), k1=0.01), "auto").c2w) == FRAMES


@pytest.mark.parametrize("wrong", ["nowhere", "empty", "text", "picture"])
def test_what_is_no_format_is_refused(wrong, tmp_path):
    source = tmp_path / "x.json"
    if wrong == "empty":
        source.mkdir()
    elif wrong != "nowhere":
        source.write_bytes(b"{}" if wrong == "text" else b"\x89PNG\r\n\xff")
    with pytest.raises(ValueError, match="none of nerfstudio"):
        read_track(source, "auto")
    for kind in FORMATS:
        with pytest.raises(ValueError, match=r"x\.json"):
            read_track(source, kind, SIZE)
    with pytest.raises(ValueError, match="got the format 'unity'"):
        read_track(source, "unity")


SETTINGS = {
    "no video": (["--video", "nowhere.mp4"], "no such file"),
    "no suffix": (["--video", "nowhere"], "wanted one of .mp4"),
    "scale zero": (["--metres-per-unit", "0"], "--metres-per-unit 0"),
    "scale NaN": (["--metres-per-unit", "nan"], "--metres-per-unit nan"),
    "negative": (["--metres-per-unit", "-2"], "--metres-per-unit -2"),
    "no pictures": (["--images", "nowhere", "--video", "new.mp4"], "--images nowhere"),
    "no rate": (["--images", ".", "--video", "new.mp4", "--fps", "0"], "--fps 0"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_of_import(kind, tmp_path, capsys):
    write_video(tmp_path / "a.mp4", FRAMES)
    run = ["data", "import", str(colmap_text(tmp_path, path_of(FRAMES))), "--video", str(tmp_path / "a.mp4")]
    assert cli.main([*run, *SETTINGS[kind][0]]) == 2
    assert SETTINGS[kind][1] in capsys.readouterr().err


def test_another_number_of_cameras_is_said(tmp_path, capsys):
    write_clip(tmp_path, "a", frames=36)
    (tmp_path / "a.json").unlink()
    run = ["data", "import", str(colmap_text(tmp_path, path_of(FRAMES))), "--video", str(tmp_path / "a.mp4")]
    assert cli.main(run) == 2
    assert "33 cameras in" in (said := capsys.readouterr().err) and "36 frames" in said and "--images" in said


def fuzz(folder: Path, count: int) -> dict[str, int]:
    """Bytes of every format changed: a track, or one sentence."""
    random, told = np.random.default_rng(2), {"read": 0, "refused": 0}
    kinds = list(WRITTEN.values())
    for index in range(count):
        called, write = kinds[index % len(kinds)]
        place = folder / f"{index % len(kinds)}"
        if not place.exists():
            place.mkdir()
            write(place, path_of(5))
            for file in list(place.iterdir()):
                (folder / f"whole-{index}-{file.name}").write_bytes(file.read_bytes())
        whole = [file for file in folder.glob(f"whole-{index % len(kinds)}-*") if file.stat().st_size]
        for file in whole:
            data = bytearray(file.read_bytes())
            for _ in range(random.integers(1, 6)):
                at = int(random.integers(len(data)))
                data[at : at + 1] = [
                    b"",
                    b"\xff",
                    bytes([data[at] ^ 1 << int(random.integers(8))]),
                    b"9" * 30,
                    b"[",
                ][random.integers(5)]
            (place / file.name.split("-", 2)[2]).write_bytes(bytes(data))
        source = place if called == "colmap" else next(iter(place.iterdir()))
        try:
            track = read_track(source, called, SIZE)
            assert track.c2w.shape == (len(track.intrinsics_px), 4, 4)
            told["read"] += 1
        except ValueError as error:
            assert str(error).startswith(str(source)), error
            told["refused"] += 1
        recognise(source)
    tally.count(told["refused"], told["read"])
    return told


def test_changed_files_of_every_format(tmp_path):
    told = fuzz(tmp_path, 200)
    assert told["read"] and told["refused"]


@pytest.mark.heavy
def test_a_thousand_changed_files_of_every_format(tmp_path):
    assert sum(fuzz(tmp_path, 1000).values()) == 1000
