import numpy as np
import pytest
from PIL import Image

from sana_wm_env.first_frame import fit_image, read_image


def test_same_size_is_unchanged_and_fresh():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    fitted, intrinsics = fit_image(image, np.array([50, 50, 32, 32]), (64, 64))
    assert (fitted == image).all() and not np.shares_memory(fitted, image)
    assert intrinsics.tolist() == [50, 50, 32, 32]


def test_wide_image_is_scaled_to_cover_then_cropped():
    """1600 x 400 onto 704 x 1280: scaled by 1.76 to 2816 x 704, 768 columns cut on each side."""
    fitted, intrinsics = fit_image(
        np.zeros((400, 1600, 3), np.uint8), np.array([1000, 1000, 800, 200]), (704, 1280)
    )
    assert fitted.shape == (704, 1280, 3) and fitted.dtype == np.uint8
    np.testing.assert_allclose(intrinsics, [1760, 1760, 1408 - 768, 352])


def test_odd_margin_is_floored():
    """37 x 20 onto 16 x 16: scaled to 30 x 16 (29.6 rounded), 14 columns too many, 7 off the left."""
    _, intrinsics = fit_image(np.zeros((20, 37, 3), np.uint8), np.array([10, 10, 18.5, 10]), (16, 16))
    np.testing.assert_allclose(intrinsics, [10 * 30 / 37, 8, 15 - 7, 8])


@pytest.mark.parametrize("shape", [(64, 64), (100, 80), (33, 97), (1, 500), (1000, 7)])
def test_any_shape_gives_the_wanted_size(shape):
    assert fit_image(np.zeros((*shape, 3), np.uint8), np.ones(4), (64, 48))[0].shape == (64, 48, 3)


def test_a_marked_pixel_moves_as_the_intrinsics_say():
    image = np.zeros((300, 500, 3), np.uint8)
    image[100:120, 300:320] = 255
    fitted, (_, _, cx, cy) = fit_image(image, np.array([400, 400, 310, 110]), (96, 96))
    rows, columns = np.nonzero(fitted[..., 0] > 127)
    assert abs(columns.mean() + 0.5 - cx) < 0.6 and abs(rows.mean() + 0.5 - cy) < 0.6


def test_files_and_colour_modes(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png") == grey[..., None]).all()
    Image.fromarray(np.full((6, 8, 4), 200, np.uint8), "RGBA").save(tmp_path / "alpha.png")
    assert read_image(str(tmp_path / "alpha.png")).shape == (6, 8, 3)
    tag = Image.Exif()
    tag[0x0112] = 6  # the camera was held upright
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=tag)
    assert read_image(tmp_path / "turned.jpg").shape == (8, 6, 3)


@pytest.mark.parametrize(
    "image, cause",
    [
        (np.zeros((8, 8, 3), np.float32), "float32.*astype"),
        (np.zeros((3, 8, 8), np.uint8), "transpose"),
        (np.zeros((8, 8), np.uint8), r"\(8, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\)"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\)"),
        (7, r"shape \(\)"),
    ],
)
def test_bad_images_are_refused(image, cause):
    with pytest.raises(ValueError, match=cause):
        read_image(image)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png.*not an image"):
        read_image(tmp_path / "text.png")
