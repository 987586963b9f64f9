"""What others reached on the published one-minute benchmark (SANA-WM, arXiv 2605.15178, tables 2, 5, 8 and
9), to stand beside ours.

RotErr in degrees, TransErr and CamMC after the authors' alignment, revisit PSNR in dB, SSIM and LPIPS, videos
per hour on eight H100. None of these rows is of a distilled, streaming or quantised model: none has been
published.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """One method on one split; None where the paper has no figure."""

    method: str
    rot_err_deg: float
    trans_err: float
    cam_mc: float
    psnr_db: float
    ssim: float
    lpips: float
    videos_per_hour: float | None


PUBLISHED: dict[str, list[Published]] = {
    "simple": [
        Published("Infinite-World 1.3B, 480p", 16.55, 1.98, 2.08, 12.60, 0.284, 0.595, 5.9),
        Published("LingBot-World 14B+14B, 480p", 10.47, 2.01, 2.05, 14.59, 0.366, 0.394, 0.6),
        Published("HY-WorldPlay 8B, 480p", 17.89, 2.36, 2.45, 12.83, 0.321, 0.616, 1.1),
        Published("Matrix-Game 3.0 5B, 720p", 12.96, 1.83, 1.92, 12.29, 0.326, 0.553, 3.1),
        Published("SANA-WM chunk-causal, 60 steps", 7.59, 1.59, 1.63, 14.16, 0.333, 0.458, 24.1),
        Published("SANA-WM chunk-causal + refiner", 4.50, 1.39, 1.41, 14.46, 0.292, 0.479, 22.0),
        Published("SANA-WM bidirectional", 3.11, 1.08, 1.09, 13.74, 0.346, 0.425, 29.5),
    ],
    "hard": [
        Published("Infinite-World 1.3B, 480p", 41.31, 2.49, 2.84, 12.04, 0.248, 0.617, None),
        Published("LingBot-World 14B+14B, 480p", 18.99, 1.65, 1.81, 14.08, 0.332, 0.436, None),
        Published("HY-WorldPlay 8B, 480p", 35.46, 2.34, 2.64, 13.72, 0.328, 0.654, None),
        Published("Matrix-Game 3.0 5B, 720p", 18.79, 1.67, 1.82, 12.17, 0.317, 0.556, None),
        Published("SANA-WM chunk-causal, 60 steps", 10.02, 1.66, 1.72, 14.10, 0.327, 0.469, None),
        Published("SANA-WM chunk-causal + refiner", 8.34, 1.39, 1.44, 14.80, 0.312, 0.458, None),
        Published("SANA-WM bidirectional", 3.17, 1.08, 1.09, 13.78, 0.342, 0.432, None),
    ],
}
