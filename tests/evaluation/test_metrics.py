import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, uniform_filter

from sana_wm_env.evaluation import metrics


def grey(level: int, size: int = 16) -> torch.Tensor:
    return torch.full((size, size, 3), level, dtype=torch.uint8)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("step", [1, 10, 255])
def test_psnr_of_a_constant_difference(step):
    assert metrics.psnr(grey(0), grey(step)).item() == pytest.approx(20 * math.log10(255 / step))


def test_psnr_is_averaged_over_frames_not_over_errors():
    a, b = torch.stack([grey(0), grey(0)]), torch.stack([grey(1), grey(100)])
    assert metrics.psnr(a, b).mean().item() == pytest.approx(
        10 * math.log10(255**2 / 1) / 2 + 10 * math.log10(255**2 / 100**2) / 2
    )


def test_psnr_of_equal_images_is_the_error_of_rounding():
    values = np.random.default_rng(0).uniform(0, 255, 200_000)
    error = np.mean((values - values.round()) ** 2)
    assert metrics.psnr(grey(7), grey(7)).item() == pytest.approx(10 * math.log10(255**2 / error), abs=0.05)


def test_masked_psnr_counts_only_the_mask():
    a, b = grey(0), grey(0)
    b[:8] = 50
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:8] = True
    assert metrics.psnr(a, b, mask).item() == pytest.approx(20 * math.log10(255 / 50))
    assert metrics.psnr(a, b, ~mask).item() == metrics.PSNR_CEILING_DB
    assert math.isnan(metrics.psnr(a, b, torch.zeros_like(mask)).item())


def test_metrics_refuse_floats_and_unequal_shapes():
    with pytest.raises(ValueError, match="uint8"):
        metrics.psnr(grey(0).float(), grey(0).float())
    with pytest.raises(ValueError, match="equal shape"):
        metrics.ssim(grey(0, 16), grey(0, 17))
    with pytest.raises(ValueError, match="11x11"):
        metrics.ssim(grey(0, 10), grey(0, 10))


def test_histograms_overlap_by_colours_not_by_places():
    image = noise(2, 20, 24, 3)
    assert torch.allclose(metrics.histogram_overlap(image, image.flip(1)), torch.ones(2, dtype=torch.float64))
    half = grey(0)
    half[:8] = 255
    half[..., 2] = 0  # two channels share half of their pixels with black, the third all
    assert metrics.histogram_overlap(half, grey(0)).item() == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert (
        metrics.histogram_overlap(grey(15), grey(16)).item()
        == 0
        == metrics.histogram_overlap(grey(0), grey(255)).item()
    )
    by_numpy = [
        np.minimum(*(np.histogram(frame[..., c], 16, (0, 256))[0] / 480 for frame in image.numpy())).sum()
        for c in range(3)
    ]
    assert metrics.histogram_overlap(image[0], image[1]).item() == pytest.approx(np.mean(by_numpy))


def test_ssim_of_an_image_with_itself_is_one():
    image = noise(3, 20, 24, 3)
    assert torch.allclose(metrics.ssim(image, image), torch.ones(3, dtype=torch.float64))


def test_ssim_of_flat_images_is_the_luminance_term():
    c1 = (0.01 * 255) ** 2
    assert metrics.ssim(grey(60), grey(180)).item() == pytest.approx(
        (2 * 60 * 180 + c1) / (60**2 + 180**2 + c1)
    )


def test_ssim_of_a_negative_is_negative():
    image = noise(32, 32, 3)
    assert metrics.ssim(image, 255 - image).item() < -0.9


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_ssim_agrees_with_an_independent_filter(window):
    a, b = noise(32, 40, 3, seed=1), noise(32, 40, 3, seed=2)
    b = ((a.int() * 3 + b.int()) // 4).to(torch.uint8)
    x, y = a.double().numpy(), b.double().numpy()

    def blur(image: np.ndarray) -> np.ndarray:  # truncate=3.5 gives the 11 taps of the paper
        blurred = (
            gaussian_filter(image, (1.5, 1.5, 0), truncate=3.5)
            if window == "gaussian"
            else uniform_filter(image, (11, 11, 1))
        )
        return blurred[5:-5, 5:-5]

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 2.55**2, 7.65**2
    wanted = ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    assert metrics.ssim_map(a, b, window).mean().item() == pytest.approx(wanted, abs=1e-9)


def test_masked_ssim_counts_only_windows_centred_in_the_mask():
    a = noise(40, 20, 3)
    b = a.clone()
    b[:14] = 255 - b[:14]
    mask = torch.zeros(40, 20, dtype=torch.bool)
    mask[19:] = True  # windows centred from row 19 on reach up to row 14
    assert metrics.ssim(a, b, mask).item() == pytest.approx(1.0)
    assert metrics.ssim(a, b, ~mask).item() < 0.5


def test_contrast_of_flat_and_of_half_black_half_white():
    image = grey(0)
    image[:8] = 200
    assert metrics.contrast(torch.stack([grey(90), image])).tolist() == pytest.approx([0.0, 100.0])


INTRINSICS = torch.tensor([32.0, 32.0, 32.0, 32.0])


def shifted(**metres: float) -> torch.Tensor:
    pose = torch.eye(4, dtype=torch.float64)
    for axis, value in metres.items():
        pose["xyz".index(axis), 3] = value
    return pose


def test_a_view_sees_all_of_itself():
    depth = torch.rand(1, 1, 64, 64) + 2
    visible = metrics.visible_in_first(depth, shifted()[None, None], depth[:, 0], shifted()[None], INTRINSICS)
    assert visible.all()


def test_sideways_motion_past_a_wall_uncovers_a_known_strip():
    depth = torch.full((1, 1, 64, 64), 4.0)
    # 1 m to the right at 4 m distance moves the image by 32 * 1 / 4 = 8 pixels: the 8 rightmost columns are
    # new.
    visible = metrics.visible_in_first(
        depth, shifted(x=1.0)[None, None], depth[:, 0], shifted()[None], INTRINSICS
    )
    assert visible[..., :56].all() and not visible[..., 56:].any()


def test_what_stood_behind_a_box_is_not_visible():
    first = torch.full((1, 64, 64), 4.0)
    first[:, :, 20:44] = 2.0  # a box in front of the wall
    later = torch.full((1, 1, 64, 64), 4.0)  # the wall alone, as if seen through the box
    visible = metrics.visible_in_first(later, shifted()[None, None], first, shifted()[None], INTRINSICS)
    assert not visible[..., 20:44].any() and visible[..., :20].all() and visible[..., 44:].all()


def test_walking_backwards_shows_what_was_outside_the_image():
    depth = torch.full((1, 1, 64, 64), 4.0)
    visible = metrics.visible_in_first(
        depth, shifted(z=-4.0)[None, None], depth[:, 0], shifted()[None], INTRINSICS
    )
    assert not visible.any()  # the wall would have to stand at the first camera's own place

    far = torch.full((1, 1, 64, 64), 8.0)
    visible = metrics.visible_in_first(
        far, shifted(z=-4.0)[None, None], depth[:, 0], shifted()[None], INTRINSICS
    )
    assert visible[..., 16:48, 16:48].all() and visible.sum() == 32 * 32  # half the size in the middle


def test_a_slanted_floor_stays_visible():
    v = torch.arange(64) + 0.5
    floor = torch.where(v > 34, 1.5 * 32 / (v - 32).clamp(min=1), torch.tensor(30.0))[:, None].expand(64, 64)[
        None, None
    ]
    c2w = shifted(x=0.3)[None, None]
    visible = metrics.visible_in_first(floor, c2w, floor[:, 0], shifted()[None], INTRINSICS)
    assert visible[0, 0, 36:, :40].all()


def test_estimate_known_numbers():
    result = metrics.estimate_mean(np.array([1.0, 2.0, 3.0, math.nan]))
    assert (result.mean, result.episodes) == (2.0, 3)
    assert result.standard_error == pytest.approx(1 / math.sqrt(3))
    assert result.high - result.mean == pytest.approx(
        4.302653 / math.sqrt(3), rel=1e-6
    )  # t of two degrees of freedom
    assert result.low + result.high == pytest.approx(4.0)


def test_estimate_of_one_and_of_none():
    assert metrics.estimate_mean(np.array([5.0])).to_dict() == {
        "mean": 5.0,
        "standard_error": None,
        "low": None,
        "high": None,
        "episodes": 1,
    }
    assert metrics.estimate_mean(np.array([math.nan])).mean is None
