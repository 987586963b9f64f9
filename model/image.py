"""How an image of any size becomes the first frame of a world."""

from pathlib import Path
from typing import Any

import numpy as np


def read_image(image: Any) -> np.ndarray:
    """An image as uint8 (H, W, 3), from such an array or from a file.

    Raises:
        FileNotFoundError: no file of that name.
        ValueError: an array of another shape or type (the message says how to convert it), or a file that holds no image.
    """
    if isinstance(image, str | Path):
        if not Path(image).is_file():
            raise FileNotFoundError(f"got the image '{image}'; there is no such file")
        import imageio.v3 as iio

        try:
            return np.asarray(iio.imread(image, plugin="pillow", mode="RGB", rotate=True))  # rotate: as the camera's tag says
        except OSError as error:
            raise ValueError(f"got the file '{image}'; it is not an image that Pillow can read") from error
    array = np.asarray(image)
    wanted = "wanted uint8 (H, W, 3) or the path of a file"
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        raise ValueError(f"got an image of shape {array.shape}; {wanted}: channels come last, use image.transpose(1, 2, 0)")
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"got an image of shape {array.shape}; {wanted}")
    if array.dtype != np.uint8:
        raise ValueError(f"got an image of {array.dtype}; {wanted}: for values in [0, 1] use (image * 255).round().astype('uint8')")
    return array


def fit_image(image: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Scales an image until it covers `size`, crops its centre, and lets the intrinsics follow.

    Source: the preprocessing of the official inference code (NVlabs/Sana, docs/sana_wm.md): LANCZOS, rounded new size, floored offsets.

    Args:
        image: uint8 (H0, W0, 3).
        intrinsics: (4,) as fx, fy, cx, cy in pixels of that image.
        size: (height, width) that the world sees.

    Returns:
        uint8 (height, width, 3) and float64 (4,) in its pixels, both fresh.
    """
    from PIL import Image  # comes with imageio; only those who bring an image pay for the import

    height, width = size
    height0, width0 = image.shape[:2]
    scale = max(height / height0, width / width0)
    height1, width1 = round(height0 * scale), round(width0 * scale)
    left, top = (width1 - width) // 2, (height1 - height) // 2
    scaled = np.asarray(Image.fromarray(image).resize((width1, height1), Image.Resampling.LANCZOS))
    ratio_x, ratio_y = width1 / width0, height1 / height0
    moved = np.asarray(intrinsics, np.float64) * [ratio_x, ratio_y, ratio_x, ratio_y] - [0, 0, left, top]
    return scaled[top : top + height, left : left + width].copy(), moved
