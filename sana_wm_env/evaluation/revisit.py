"""What a minute does to a world: whether a place looks the same when the camera comes back, and whether the
picture decays.

Letters: F frames of a video, P pairs, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..camera import FPS, Array
from . import metrics

NEAR_M, NEAR_DEG = 0.5, 20.0
"""Two poses nearer than this see the same (the published definition of a revisit)."""
AWAY_S = 5.0
"""A revisit has to be at least this much later; the published definition does not say."""
MAX_PAIRS = 5
WINDOW_S = 10.0
"""First against last window of a video (the published drift takes ten seconds, too)."""


def revisit_pairs(c2w: Array, every: int = 8) -> list[tuple[int, int]]:
    """Pairs of frames from nearly the same pose, between which the camera has been elsewhere.

    Args:
        c2w: (F, 4, 4) camera-to-world, metres.
        every: frames looked at: one of so many.

    Returns:
        At most `MAX_PAIRS` pairs (earlier, later), the nearest poses first, each at least two seconds from
        those before it. The distance that counts is metres / `NEAR_M` + degrees / `NEAR_DEG`.
    """
    frames = np.arange(0, len(c2w), every)
    at = c2w[frames]
    metres = np.linalg.norm(at[:, None, :3, 3] - at[None, :, :3, 3], axis=-1)
    turns = at[:, None, :3, :3].swapaxes(-1, -2) @ at[None, :, :3, :3]
    degrees = np.degrees(Rotation.from_matrix(turns.reshape(-1, 3, 3)).magnitude()).reshape(metres.shape)
    near = (metres < NEAR_M) & (degrees < NEAR_DEG)
    # The camera has been away if some frame between the two is not near the earlier one.
    away = np.stack(
        [np.maximum.accumulate(np.where(np.arange(len(at)) > i, ~near[i], False)) for i in range(len(at))]
    )
    late = frames[None] - frames[:, None] >= AWAY_S * FPS
    first, second = np.nonzero(near & away & late)
    order = np.argsort(metres[first, second] / NEAR_M + degrees[first, second] / NEAR_DEG, kind="stable")
    pairs: list[tuple[int, int]] = []
    for i, j in zip(frames[first[order]], frames[second[order]], strict=True):
        if all(abs(i - a) + abs(j - b) >= 2 * FPS for a, b in pairs):
            pairs.append((int(i), int(j)))
        if len(pairs) == MAX_PAIRS:
            break
    return pairs


def revisit_consistency(video: Tensor, pairs: list[tuple[int, int]]) -> dict[str, float | None]:
    """Returns the similarity of the frames of each pair, mean over pairs; None where there is no pair, or no
    LPIPS.

    Args:
        video: uint8 (F, H, W, 3).
        pairs: of frame indices.

    Returns:
        psnr_db; ssim, with the 11 x 11 uniform window of the published tables; lpips (AlexNet).
    """
    if not pairs:
        return {"psnr_db": None, "ssim": None, "lpips": None}
    first, second = (video[list(indices)] for indices in zip(*pairs, strict=True))
    perceptual = lpips_distance()
    return {
        "psnr_db": float(metrics.psnr(first, second).mean()),
        "ssim": float(metrics.ssim_map(first, second, window="uniform").mean()),
        "lpips": None if perceptual is None else float(perceptual(first, second).mean()),
    }


@cache
def lpips_distance() -> Callable[[Tensor, Tensor], Tensor] | None:
    """LPIPS with AlexNet on uint8 (P, H, W, 3) -> (P,), or None: the package or AlexNet's weights are not on
    this machine.

    Nothing is downloaded: `pip install lpips`, and torchvision's `alexnet-owt-7be5be79.pth` in torch's hub
    folder.
    """
    if not (Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth").exists():
        return None
    try:
        import lpips  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    network = lpips.LPIPS(net="alex", verbose=False).eval()

    @torch.inference_mode()
    def distance(a: Tensor, b: Tensor) -> Tensor:
        return network(*(x.movedim(-1, 1).float() / 127.5 - 1 for x in (a, b))).flatten()

    return distance


def sharpness(frames: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring grey values, which blur lowers first: uint8 (..., H, W, 3) ->
    float64 (...).
    """
    grey = frames.double().mean(-1)
    return (grey.diff(dim=-1).abs().mean((-2, -1)) + grey.diff(dim=-2).abs().mean((-2, -1))) / 2


def drift(video: Tensor) -> dict[str, dict[str, float]]:
    """Measures contrast and sharpness in the first and in the last ten seconds (in halves, where a video is
    shorter), and the share that is kept.

    Args:
        video: uint8 (F, H, W, 3).

    Returns:
        contrast, sharpness -> first, last (grey levels), kept (last / first).
    """
    length = min(int(WINDOW_S * FPS), len(video) // 2)
    result = {}
    for name, measure in (("contrast", metrics.contrast), ("sharpness", sharpness)):
        first, last = (float(measure(part).mean()) for part in (video[:length], video[-length:]))
        result[name] = {"first": first, "last": last, "kept": last / max(first, 1e-9)}
    return result
