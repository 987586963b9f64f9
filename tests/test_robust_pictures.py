"""Pictures as users have them: right, or refused in one sentence; never a wrong picture, never a raw
error.
"""

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import tally
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from sana_wm_env.camera import check_intrinsics, intrinsics_from_fov
from sana_wm_env.first_frame import FirstFrame, fit_image, intrinsics_of_image
from sana_wm_env.pictures import MAX_PIXELS, read_image

RED, GREEN = (250, 10, 20), (10, 240, 30)
RGB = np.zeros((6, 8, 3), np.uint8)
RGB[:, :4], RGB[:, 4:] = RED, GREEN
TURNED = Image.Exif()
TURNED[0x0112] = 6  # the camera was held upright


def saved(folder: Path, name: str, picture, **how) -> Path:
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(folder / name, **how)
    return folder / name


def transparent() -> Image.Image:
    """Red where it is opaque, on the left; green that is not seen, on the right."""
    alpha = np.full((6, 8, 1), 255, np.uint8)
    alpha[:, 4:] = 0
    return Image.fromarray(np.concatenate([RGB, alpha], -1))


def white_right() -> np.ndarray:
    shown = RGB.copy()
    shown[:, 4:] = 255
    return shown


def palette(picture: Image.Image) -> Image.Image:
    return picture.convert("RGB").quantize(8)


LOSSLESS = {
    "png": ("a.png", lambda: Image.fromarray(RGB), {}),
    "palette png": ("a.png", lambda: palette(Image.fromarray(RGB)), {}),
    "bmp": ("a.bmp", lambda: Image.fromarray(RGB), {}),
    "ppm": ("a.ppm", lambda: Image.fromarray(RGB), {}),
    "tiff": ("a.tiff", lambda: Image.fromarray(RGB), {}),
    "tiff of deflate": ("a.tif", lambda: Image.fromarray(RGB), {"compression": "tiff_deflate"}),
    "webp": ("a.webp", lambda: Image.fromarray(RGB), {"lossless": True}),
    "gif": ("a.gif", lambda: palette(Image.fromarray(RGB)), {}),
    "jpeg2000": ("a.jp2", lambda: Image.fromarray(RGB), {}),
    "name in capitals": ("A.PNG", lambda: Image.fromarray(RGB), {}),
    "wrong suffix": ("a.jpg", lambda: Image.fromarray(RGB), {"format": "PNG"}),
    "no suffix": ("a", lambda: Image.fromarray(RGB), {"format": "PNG"}),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_formats_give_the_picture(kind, tmp_path):
    name, make, how = LOSSLESS[kind]
    assert np.abs(read_image(saved(tmp_path, name, make(), **how)).astype(int) - RGB).max() <= 2


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_the_first_picture_of_many_counts(kind, tmp_path):
    first, second = Image.fromarray(RGB), Image.fromarray(RGB[:, ::-1].copy())
    how = {"lossless": True} if kind == "webp" else {}
    path = saved(tmp_path, f"a.{kind}", first, save_all=True, append_images=[second], **how)
    assert Image.open(path).n_frames == 2
    assert np.abs(read_image(path).astype(int) - RGB).max() <= 2


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "LA", "palette", "tRNS", "gif"])
def test_what_is_transparent_lies_over_white(kind, tmp_path):
    picture, shown = transparent(), white_right()
    if kind == "LA":
        path, shown = saved(tmp_path, "a.png", picture.convert("LA")), None
    elif kind == "palette":
        path = saved(tmp_path, "a.png", picture.quantize(8, method=Image.Quantize.FASTOCTREE))
    elif kind == "tRNS":
        path = saved(tmp_path, "a.png", RGB, transparency=GREEN)
    elif kind == "gif":
        path = saved(tmp_path, "a.gif", picture)
    else:
        path = saved(tmp_path, f"a.{kind}", picture, **({"lossless": True} if kind == "webp" else {}))
    read = read_image(path)
    assert (read[:, 4:] == 255).all() and (read[:, :4] < 255).any()
    if shown is not None and kind not in ("palette", "gif"):
        assert np.array_equal(read, shown)
    with Image.open(path) as opened:
        assert np.array_equal(read_image(opened), read)


def test_half_transparent_is_half_white(tmp_path):
    picture = Image.new("RGBA", (4, 4), (0, 100, 200, 128))
    assert np.abs(read_image(saved(tmp_path, "a.png", picture)).astype(int) - [127, 177, 227]).max() <= 1


def test_sixteen_bits_of_grey_are_scaled(tmp_path):
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    for name in ("a.png", "a.tiff"):
        grey = read_image(saved(tmp_path, name, levels))
        assert grey.tolist() == [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]
    big = Image.frombytes("I;16B", (4, 1), levels.astype(">u2").tobytes())
    assert read_image(big)[0, :, 0].tolist() == [0, 1, 128, 255]


REFUSED = {
    "int32 tiff": ("a.tiff", np.full((4, 4), 70000, np.int32), "32-bit integers, whose black and white"),
    "float tiff": ("a.tiff", np.full((4, 4), 0.5, np.float32), "32-bit floats, whose black and white"),
    "lab": ("a.tiff", Image.new("LAB", (4, 4)), "the mode LAB"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_values_of_unknown_scale_are_refused(kind, tmp_path):
    name, picture, said = REFUSED[kind]
    with pytest.raises(ValueError, match=rf"got the file .*{said}"):
        read_image(saved(tmp_path, name, picture))
    with pytest.raises(ValueError, match=rf"got a picture of Pillow.*{said}"):
        read_image(Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture)


def test_cmyk_is_turned_into_colours(tmp_path):
    for name, how in (("a.jpg", {"quality": 95}), ("a.tiff", {})):
        read = read_image(
            saved(tmp_path, name, Image.fromarray(RGB.repeat(8, 0).repeat(8, 1)).convert("CMYK"), **how)
        )
        assert (
            np.abs(read[4, 4].astype(int) - RED).max() < 12
            and np.abs(read[4, -4].astype(int) - GREEN).max() < 12
        )


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr", "HSV", "CMYK", "RGBX"])
def test_modes_of_eight_bits_are_read(mode):
    picture = Image.fromarray(RGB)
    picture = palette(picture) if mode == "P" else picture.convert(mode)
    assert np.array_equal(read_image(picture), np.array(picture.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotation_tag_is_obeyed_in_files_and_in_pictures(orientation, tmp_path):
    tag = Image.Exif()
    tag[0x0112] = orientation
    base = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    upright = [base, base[:, ::-1], base[::-1, ::-1], base[::-1], base.transpose(1, 0, 2)]
    upright += [np.rot90(base, -1), np.rot90(base, 2).transpose(1, 0, 2), np.rot90(base)]
    path = saved(tmp_path, "a.png", base, exif=tag)
    assert np.array_equal(read_image(path), upright[orientation - 1])
    with Image.open(path) as picture:
        assert np.array_equal(read_image(picture), upright[orientation - 1])
    grey = saved(tmp_path, "b.png", base[..., 0].astype(np.uint16) * 257, exif=tag)
    assert np.array_equal(read_image(grey)[..., 0], upright[orientation - 1][..., 0])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(width: int, height: int) -> bytes:
    """A picture that declares so many pixels, of a few bytes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


BOMBS = {
    "wide": (20000, 20000),
    "one line": (2**31 - 1, 1),
    "all": (2**31 - 1, 2**31 - 1),
    "just": (10001, 10000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_before_they_are_decoded(kind, tmp_path):
    (tmp_path / "a.png").write_bytes(huge_png(*BOMBS[kind]))
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"megapixels|cannot|can be read"):
        read_image(tmp_path / "a.png")
    assert time.perf_counter() - began < 2


def test_a_hundred_megapixels_are_the_limit():
    with pytest.raises(ValueError, match="wanted at most 100 megapixels"):
        read_image(np.broadcast_to(np.uint8(0), (10001, 10000, 3)))
    assert MAX_PIXELS == 10**8


BROKEN = {
    "text": b"no picture",
    "empty": b"",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "pdf": b"%PDF-1.4\n",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "mp4": b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41",
    "png without pixels": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)),
    "nothing but a beginning": b"\x89PNG\r\n\x1a\n",
    "no width": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 8, 8, 2, 0, 0, 0)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_files_that_hold_no_picture_are_named(kind, tmp_path):
    (tmp_path / "a.png").write_bytes(BROKEN[kind])
    with pytest.raises(ValueError, match=r"got the file '.*a\.png'; it is not an image that can be read"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp", "a.tiff", "a.bmp"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_files_that_were_cut_off_are_refused(name, share, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path, name, noise)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match="not an image that can be read"):
        read_image(path)


def test_places_that_are_no_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="which is a folder; wanted a file in it"):
        read_image(tmp_path)
    with pytest.raises(ValueError, match="which is a folder"):
        read_image(".")
    for name in ("none.png", "", "a\0b", "x" * 5000, "data:image/png;base64," + "A" * 3000):
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            read_image(name)
    with pytest.raises(FileNotFoundError, match="download it first"):
        read_image("https://example.org/a.png")
    with pytest.raises(ValueError, match="no plain file"):
        read_image("/dev/null")


ARRAYS = {
    "None": (None, "type NoneType"),
    "bytes": (b"\x89PNG", "type bytes.*BytesIO"),
    "a dict": ({}, "type dict"),
    "an object": (object(), "type object"),
    "a ragged list": ([[1, 2], [3]], "type list that is no array"),
    "a list": (RGB.tolist(), "of int64; .*asarray"),
    "bool": (RGB > 9, r"bool; .*image.astype\('uint8'\) \* 255"),
    "int8": (RGB.astype(np.int8), "int8"),
    "uint16": (RGB.astype(np.uint16), "uint16; .*257"),
    "int32": (RGB.astype(np.int32), r"int32; .*\[0, 255\]"),
    "float16": (RGB.astype(np.float16), r"float16; .*\[0, 1\]"),
    "float32": (RGB / np.float32(255), r"float32; .*\[0, 1\]"),
    "complex": (RGB.astype(complex), "complex128"),
    "text": (RGB.astype(str), "<U3"),
    "bytes in an array": (RGB.astype("S3"), r"\|S3"),
    "objects": (RGB.astype(object), "object"),
    "dates": (RGB.astype("M8[s]"), "datetime64"),
    "structured": (np.zeros((4, 4, 3), [("r", np.uint8)]), "wanted uint8"),
    "masked": (np.ma.MaskedArray(RGB, RGB > 100), "masked pixels"),
    "a batch": (RGB[None], r"image\[0\]"),
    "channels first": (RGB.transpose(2, 0, 1), "transpose"),
    "alpha": (np.zeros((4, 4, 4), np.uint8), "drops alpha"),
    "grey": (RGB[..., 0], "repeat"),
    "two channels": (RGB[..., :2], r"shape \(6, 8, 2\)"),
    "one channel": (RGB[..., :1], r"shape \(6, 8, 1\)"),
    "nothing": (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
    "a number": (7, r"shape \(\)"),
    "tensor of floats": (torch.zeros(4, 4, 3, requires_grad=True), r"float32; .*\[0, 1\]"),
    "tensor of bfloat16": (torch.zeros(4, 4, 3, dtype=torch.bfloat16), r"bfloat16; .*\[0, 1\]"),
    "tensor of bool": (torch.zeros(4, 4, 3, dtype=torch.bool), "bool"),
    "tensor of int64": (torch.zeros(4, 4, 3, dtype=torch.int64), "int64"),
    "tensor, channels first": (torch.zeros(3, 4, 4, dtype=torch.uint8), "transpose"),
    "meta tensor": (torch.zeros(4, 4, 3, dtype=torch.uint8, device="meta"), "meta device"),
    "sparse tensor": (torch.zeros(4, 4, 3, dtype=torch.uint8).to_sparse(), "without plain values"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_other_kinds_are_refused_with_the_cure(kind):
    image, said = ARRAYS[kind]
    with pytest.raises(ValueError, match=f"(?s)got an image.*{said}"):
        read_image(image)


def test_arrays_that_are_pictures_are_taken():
    for same in (
        RGB,
        torch.from_numpy(RGB),
        np.asfortranarray(RGB),
        np.ma.MaskedArray(RGB),
        Image.fromarray(RGB),
    ):
        assert np.array_equal(read_image(same), RGB)
    assert np.array_equal(read_image(RGB[::-1, ::-1]), RGB[::-1, ::-1])
    assert np.array_equal(read_image(torch.from_numpy(RGB).permute(1, 0, 2)), RGB.transpose(1, 0, 2))


def test_a_strip_does_not_grow_beyond_all_bounds():
    assert fit_image(np.zeros((1, 500, 3), np.uint8), np.ones(4), (64, 64))[0].shape == (64, 64, 3)
    with pytest.raises(ValueError, match="proportions are nearer"):
        fit_image(np.zeros((1, 20000, 3), np.uint8), np.ones(4), (704, 1280))


# ---- intrinsics

K = [50.0, 50, 32, 24]
MATRIX = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
BAD_INTRINSICS = {
    "texts": (["50", "50", "32", "24"], "holds str"),
    "bytes": ([b"50"] * 4, "holds bytes"),
    "array of texts": (np.array(["50", "50", "32", "24"]), "<U2"),
    "complex": ([50 + 0j, 50, 32, 24], "holds complex"),
    "array of complex": (np.array(K, complex), "complex128"),
    "bool": ([True, 50.0, 32, 24], "holds bool"),
    "array of bool": (np.ones(4, bool), "dtype bool"),
    "None": ([None, 50, 32, 24], "holds NoneType"),
    "objects": (np.array(K, object), "object"),
    "dates": (np.array([1, 2, 3, 4], "M8[s]"), "datetime64"),
    "masked": (np.ma.MaskedArray(K, [1, 0, 0, 0]), "MaskedArray"),
    "dict": ({"fx": 50}, "type dict"),
    "ragged": ([[50, 0], [0]], "type list"),
    "NaN": ([np.nan, 50, 32, 24], r"NaN or infinity at index \(0,\)"),
    "infinity": ([np.inf, 50, 32, 24], "NaN or infinity"),
    "huge whole numbers": ([10**400, 50, 32, 24], "object"),
    "five": ([50, 50, 32, 24, 0], r"shape \(5,\)"),
    "4x4": (np.eye(4), r"shape \(4, 4\)"),
    "focal 1e12": ([1e12, 1e12, 32, 24], "below 1 degree"),
    "one focal of 1e12": ([50, 1e12, 32, 24], "below 1 degree"),
    "focal 1e300": ([1e300, 50, 32, 24], "below 1 degree"),
    "focal 4000 on 64": ([4000, 4000, 32, 24], "below 1 degree"),
    "focal zero": ([0, 50, 32, 24], "positive"),
    "negative": ([50, -50, 32, 24], "positive"),
    "normalised": ([0.8, 0.8, 0.5, 0.5], "look normalised"),
    "fisheye": ([2, 2, 32, 24], "look normalised"),
    "centre outside": ([50, 50, 65, 24], "principal point"),
    "centre negative": ([50, 50, -1, 24], "principal point"),
    "skew": (MATRIX + np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]]), "skew 1"),
    "skew below": (MATRIX + np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0]]), "skew 1"),
    "transposed": (MATRIX.T, "transposed"),
    "last row": (MATRIX * [[1], [1], [2]], "last row"),
    "meta tensor": (torch.zeros(4, device="meta"), "type Tensor"),
}


@pytest.mark.parametrize("kind", BAD_INTRINSICS)
def test_intrinsics_that_no_camera_has_are_refused(kind):
    given_, said = BAD_INTRINSICS[kind]
    with pytest.raises(ValueError, match=f"got intrinsics .*{said}"):
        check_intrinsics(given_, (48, 64))


@pytest.mark.parametrize("skew", [1e-12, -1e-9, 1e-6, 1e-3])
def test_a_skew_of_rounding_is_none(skew):
    matrix = MATRIX.copy()
    matrix[0, 1] = skew
    assert check_intrinsics(matrix, (48, 64)).tolist() == K


def test_intrinsics_that_cameras_have_are_taken():
    for same in (K, tuple(K), np.float32(K), torch.tensor(K, requires_grad=True), [50, 50, 32, 24], MATRIX):
        assert check_intrinsics(same, (48, 64)).tolist() == K
    for fov in (1, 2, 25, 65, 120, 169):
        check_intrinsics(intrinsics_from_fov((48, 64), fov), (48, 64))


FOVS = [1e-9, 0, -5, 0.5, 170, 180, 1e9, float("nan"), float("inf"), -float("inf"), 10**400]
FOVS += [True, "65", 65 + 0j, np.complex128(65), [65], np.array(65.0), torch.tensor(65.0), b"65"]


@pytest.mark.parametrize("fov", FOVS, ids=repr)
def test_fields_of_view_that_no_camera_has_are_refused(fov):
    with pytest.raises(ValueError, match=r"field of view|fov_deg"):
        intrinsics_of_image(RGB, fov_deg=fov)


@pytest.mark.parametrize("fov", [65, 65.0, np.float32(65), np.int64(65)])
def test_fields_of_view_of_any_number_type(fov):
    assert np.allclose(intrinsics_of_image(RGB, fov_deg=fov), intrinsics_from_fov((6, 8), 65))


# ---- fuzzing


def seeds() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    found = []
    for kind, how in {
        "PNG": {}, "JPEG": {}, "GIF": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {},
        "PPM": {}, "JPEG2000": {}, "AVIF": {},
    }.items():  # fmt: skip
        file = io.BytesIO()
        Image.fromarray(noise).save(
            file, kind, **({"exif": TURNED} if kind in ("PNG", "JPEG") else {}), **how
        )
        found.append(file.getvalue())
    file = io.BytesIO()
    transparent().save(file, "GIF", save_all=True, append_images=[Image.fromarray(RGB)])
    return [*found, file.getvalue()]


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """One to eight bytes changed, a piece cut out, doubled or blown up to the largest numbers."""
    data = bytearray(data)
    for _ in range(random.integers(1, 9)):
        place, kind = int(random.integers(len(data))), random.integers(6)
        if kind < 3:
            data[place] = random.integers(256) if kind else data[place] ^ 1 << int(random.integers(8))
        elif kind == 3:
            data[place : place + 4] = random.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"])
        elif kind == 4 and len(data) > 20:
            del data[place : place + int(random.integers(1, 16))]
        else:
            data[place:place] = data[place : place + int(random.integers(1, 16))]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


def fuzz_files(folder: Path, count: int) -> dict[str, int]:
    random, told, whole = np.random.default_rng(1), {"read": 0, "refused": 0}, seeds()
    for index in range(count):
        (folder / "a").write_bytes(mutated(whole[index % len(whole)], random))
        began = time.perf_counter()
        try:
            image = read_image(folder / "a")
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            told["read"] += 1
        except ValueError as error:
            assert str(error).startswith("got the file") and "\n" not in str(error)
            told["refused"] += 1
        assert time.perf_counter() - began < 5
    tally.count(told["refused"], told["read"])
    return told


def test_changed_files_are_read_or_refused(tmp_path):
    told = fuzz_files(tmp_path, 100)
    assert told["read"] and told["refused"]


@pytest.mark.heavy
def test_a_thousand_changed_files_are_read_or_refused(tmp_path):
    assert sum(fuzz_files(tmp_path, 1000).values()) == 1000


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary(),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(), st.none()), max_size=6),
    hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=4, max_side=5)),
    hnp.arrays(st.sampled_from(["u1", "f4", "i8", "U2", "O"]), st.sampled_from([(4, 5, 3), (4, 5)])),
)  # fmt: skip


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(anything)
def test_whatever_is_given_as_a_picture(image):
    try:
        read = read_image(image)
    except (ValueError, FileNotFoundError) as error:
        assert str(error).startswith("got ")
        tally.count(refused=1)
    else:
        tally.count(right=1)
        assert np.array_equal(read, image) and read.dtype == np.uint8


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(anything)
def test_whatever_is_given_as_intrinsics(intrinsics):
    try:
        fx, fy, cx, cy = check_intrinsics(intrinsics, (48, 64))
    except ValueError as error:
        assert str(error).startswith("got intrinsics")
        tally.count(refused=1)
    else:
        tally.count(right=1)
        assert 0 < fx < 5000 and 0 < fy < 5000 and 0 <= cx <= 64 and 0 <= cy <= 48


@pytest.mark.heavy
@settings(max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
@given(anything, anything, anything)
def test_a_thousand_first_frames(image, intrinsics, fov):
    try:
        FirstFrame.of_picture(image, (16, 16), intrinsics, fov)
        tally.count(right=1)
    except (ValueError, FileNotFoundError, ImportError) as error:
        assert str(error)
        tally.count(refused=1)
