import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from sana_wm_env.evaluation import metrics
from sana_wm_env.evaluation.revisit import (
    AWAY_S,
    MAX_PAIRS,
    NEAR_DEG,
    NEAR_M,
    drift,
    lpips_distance,
    revisit_consistency,
    revisit_pairs,
    sharpness,
)


def along(z_m: np.ndarray, yaw_deg: np.ndarray | float = 0.0) -> np.ndarray:
    path = np.tile(np.eye(4), (len(z_m), 1, 1))
    path[:, 2, 3] = z_m
    path[:, :3, :3] = Rotation.from_rotvec(
        np.radians(np.broadcast_to(yaw_deg, len(z_m)))[:, None] * [0, 1, 0]
    ).as_matrix()
    return path


there_and_back = along(np.r_[np.linspace(0, 3, 240), np.linspace(3, 0, 241)])


def test_pairs_are_near_late_and_away_in_between():
    pairs = revisit_pairs(there_and_back)
    assert 0 < len(pairs) <= MAX_PAIRS and (0, 480) in pairs
    z = there_and_back[:, 2, 3]
    for i, j in pairs:
        assert abs(z[i] - z[j]) < NEAR_M and j - i >= AWAY_S * 16
        assert np.abs(z[i : j + 1] - z[i]).max() >= NEAR_M


def test_a_camera_that_stays_or_goes_straight_on_never_comes_back():
    assert revisit_pairs(along(np.zeros(481))) == []
    assert revisit_pairs(along(np.linspace(0, 4, 481))) == []


def test_looking_elsewhere_is_no_revisit_and_looking_back_is():
    turned = along(there_and_back[:, 2, 3], np.r_[np.zeros(240), np.full(241, NEAR_DEG + 5)])
    assert revisit_pairs(turned) == []
    looked_away = along(np.zeros(481), np.r_[np.linspace(0, 90, 240), np.linspace(90, 0, 241)])
    assert (0, 480) in revisit_pairs(looked_away)


def noise(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (frames, 20, 24, 3), dtype=np.uint8))


def test_consistency_compares_the_frames_of_each_pair():
    video = noise(10)
    video[7] = video[2]
    same, mixed = revisit_consistency(video, [(2, 7)]), revisit_consistency(video, [(2, 7), (0, 9)])
    assert same["psnr_db"] == pytest.approx(metrics.PSNR_CEILING_DB) and same["ssim"] == pytest.approx(1)
    assert mixed["psnr_db"] == pytest.approx((same["psnr_db"] + metrics.psnr(video[0], video[9]).item()) / 2)
    assert revisit_consistency(video, []) == {"psnr_db": None, "ssim": None, "lpips": None}
    if lpips_distance() is None:
        assert same["lpips"] is None  # and nothing was downloaded


def test_sharpness_of_stripes():
    stripes = torch.zeros(8, 8, 3, dtype=torch.uint8)
    stripes[:, ::2] = 100
    assert sharpness(stripes).item() == pytest.approx(50)  # 100 between all columns, 0 between rows
    assert sharpness(torch.full_like(stripes, 9)).item() == 0


def test_drift_is_what_is_left_at_the_end():
    video = noise(400)
    video[240:] = 128
    result = drift(video)
    assert result["contrast"]["kept"] == result["sharpness"]["kept"] == 0
    fading = torch.cat([noise(200), (noise(200).float() * 0.5).to(torch.uint8)])
    assert drift(fading)["contrast"]["kept"] == pytest.approx(0.5, abs=0.01)
