"""Intrinsics of an image whose camera nobody knows, by an estimator that the user names."""

from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

MOGE = "Ruicheng/moge-2-vitl"
FOV_DEG = (25.0, 120.0)  # what the official code accepts from its own estimator (model/README.md section 6.5)


def estimate_intrinsics(image: NDArray[np.uint8], estimator: str = "moge", device: str = "cpu") -> NDArray[np.float64]:
    """Intrinsics (fx, fy, cx, cy) in pixels of an image (H, W, 3), as MoGe-2 sees them.

    The estimator's weights are read from this machine, never downloaded.

    Raises:
        ValueError: an unknown estimator, or an estimate outside fields of view of 25 to 120 degrees.
        ImportError: MoGe is not installed.
        FileNotFoundError: its weights are not on this machine.
    """
    if estimator != "moge":
        raise ValueError(f"got intrinsics={estimator!r}; wanted (fx, fy, cx, cy) in pixels, a (3, 3) matrix, or 'moge'")
    if find_spec("moge") is None:
        raise ImportError(
            "intrinsics='moge' needs MoGe: pip install git+https://github.com/microsoft/MoGe.git; or give the intrinsics, or fov_deg"
        )
    from moge.model.v2 import MoGeModel

    try:
        model = MoGeModel.from_pretrained(MOGE, local_files_only=True).to(device).eval()
    except OSError as error:
        raise FileNotFoundError(f"the weights of {MOGE} are not on this machine: `hf download {MOGE} model.pt` gets them") from error
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1) / 255  # (3, H, W) in [0, 1]
    normalised = model.infer(pixels, use_fp16=torch.device(device).type == "cuda")["intrinsics"]
    return pixel_intrinsics(normalised.double().cpu().numpy(), (image.shape[0], image.shape[1]))


def pixel_intrinsics(normalised: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """A matrix (3, 3) in image widths and heights -> (fx, fy, cx, cy) in pixels; ValueError if no usual camera looks like that."""
    height, width = size
    fx, fy = normalised[0, 0], normalised[1, 1]
    fov = float(np.degrees(2 * np.arctan(0.5 / fx))) if fx > 0 else float("nan")
    if not FOV_DEG[0] <= fov <= FOV_DEG[1]:
        raise ValueError(
            f"the estimated horizontal field of view is {fov:.0f} degrees; estimates outside {FOV_DEG[0]:.0f} to {FOV_DEG[1]:.0f} are not "
            "trusted: give the intrinsics, or fov_deg"
        )
    return np.array([fx * width, fy * height, normalised[0, 2] * width, normalised[1, 2] * height])
