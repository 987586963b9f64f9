"""Estimated intrinsics: units, limits, and what is said without the estimator."""

from importlib.util import find_spec

import numpy as np
import pytest

from sana_wm_env.camera import intrinsics_from_fov
from sana_wm_env.first_frame import estimate_intrinsics, intrinsics_of_image, pixel_intrinsics

IMAGE = np.zeros((60, 100, 3), np.uint8)


def normalised(fov_deg: float) -> np.ndarray:
    fx, fy, cx, cy = intrinsics_from_fov((60, 100), fov_deg)
    return np.array([[fx / 100, 0, cx / 100], [0, fy / 60, cy / 60], [0, 0, 1]])


def test_an_estimate_in_widths_and_heights_becomes_pixels():
    np.testing.assert_allclose(
        pixel_intrinsics(normalised(65), (60, 100)), intrinsics_from_fov((60, 100), 65)
    )


@pytest.mark.parametrize("fov_deg", [20, 130])
def test_an_estimate_that_no_usual_camera_has_is_refused(fov_deg):
    with pytest.raises(
        ValueError, match=f"field of view is {fov_deg} degrees; estimates outside 25 to 120 are not trusted"
    ):
        pixel_intrinsics(normalised(fov_deg), (60, 100))


def test_a_stated_field_of_view_is_taken_and_nothing_is_guessed():
    np.testing.assert_allclose(intrinsics_of_image(IMAGE, fov_deg=90), [50, 50, 50, 30])
    np.testing.assert_allclose(intrinsics_of_image(IMAGE, (40, 41, 50, 30)), [40, 41, 50, 30])
    with pytest.raises(ValueError, match="without intrinsics"):
        intrinsics_of_image(IMAGE)
    with pytest.raises(ValueError, match="fov_deg of type str"):
        intrinsics_of_image(IMAGE, fov_deg="65")  # type: ignore[arg-type]


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="got intrinsics='guess'; wanted"):
        estimate_intrinsics(IMAGE, "guess")


@pytest.mark.skipif(find_spec("moge") is not None, reason="MoGe is installed")
def test_without_moge_the_package_is_named():
    with pytest.raises(ImportError, match=r"needs MoGe: pip install git\+https://github\.com/microsoft/MoGe"):
        intrinsics_of_image(IMAGE, "moge")
