"""What an episode or a video begins with: a user's picture, or a room, becomes image, intrinsics and prompt."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from .camera import Array, check_intrinsics, intrinsics_from_fov
from .observations import Frames
from .rooms import default_intrinsics
from .rooms.room import Room, look

MOGE = "Ruicheng/moge-2-vitl"
FOV_DEG = (25.0, 120.0)  # what the official code accepts from its own estimator (model/README.md section 6.5)


class FirstFrame(NamedTuple):
    """What an episode starts from: uint8 (H, W, 3), (4,) in its pixels, a description of the scene."""

    image: Frames
    intrinsics_px: Array
    prompt: str

    @classmethod
    def of_picture(
        cls,
        image: Any,
        size: tuple[int, int],
        intrinsics: Any = None,
        fov_deg: float | None = None,
        prompt: str | None = None,
        device: str = "cpu",
    ) -> Self:
        """A user's picture, fitted to a world.

        Args:
            image: uint8 (H0, W0, 3), or the path of a file.
            size: (height, width) that the world sees.
            intrinsics: as in `intrinsics_of_image`, in pixels of the picture.
            fov_deg: horizontal field of view in degrees, in place of them.
            prompt: describes the scene.
            device: where an estimator of the intrinsics runs.

        Raises:
            FileNotFoundError, ValueError, ImportError: as `read_image` and `intrinsics_of_image`.
        """
        picture = read_image(image)
        return cls(*fit_image(picture, intrinsics_of_image(picture, intrinsics, fov_deg, device), size), prompt or "")

    @classmethod
    def of_room(cls, room: Room, size: tuple[int, int], prompt: str | None = None) -> Self:
        """A room as the camera first sees it at (height, width) pixels; its own description where there is no prompt."""
        intrinsics = np.array(default_intrinsics(size), np.float64)
        return cls(look(room, np.eye(4)[None], intrinsics, size)[0], intrinsics, room.caption if prompt is None else prompt)


def read_image(image: Any) -> Frames:
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


def fit_image(image: Frames, intrinsics: Array, size: tuple[int, int]) -> tuple[Frames, Array]:
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


def intrinsics_of_image(image: NDArray[np.uint8], intrinsics: Any = None, fov_deg: float | None = None, device: str = "cpu") -> Array:
    """Intrinsics (fx, fy, cx, cy) in pixels of an image (H, W, 3), by what is known of its camera. Nothing is ever guessed.

    Args:
        image: uint8 (H, W, 3); only an estimator looks at more than its size.
        intrinsics: (4,) or (3, 3) in pixels, or "moge" to have them estimated from the image on `device`.
        fov_deg: horizontal field of view in degrees, in place of `intrinsics`.
        device: where the estimator runs.

    Raises:
        ValueError: neither is given, both are, or what is given makes no sense.
        ImportError: the estimator is not installed.
    """
    size = (image.shape[0], image.shape[1])
    if intrinsics is not None and fov_deg is not None:
        raise ValueError("got intrinsics and a field of view; wanted one of them")
    if fov_deg is not None:
        if isinstance(fov_deg, bool) or not isinstance(fov_deg, int | float | np.number):
            raise ValueError(f"got fov_deg of type {type(fov_deg).__name__}; wanted degrees")
        return intrinsics_from_fov(size, float(fov_deg))
    if intrinsics is None:
        raise ValueError(
            "got an image without intrinsics; wanted options['intrinsics'] = (fx, fy, cx, cy) in its pixels, or options['fov_deg'] = 65 if "
            "that is its horizontal field of view in degrees, or options['intrinsics'] = 'moge' to have them estimated"
        )
    if isinstance(intrinsics, str):
        return check_intrinsics(estimate_intrinsics(image, intrinsics, device), size)
    return check_intrinsics(intrinsics, size)


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
    from moge.model.v2 import MoGeModel  # type: ignore[import-not-found]  # no package of any extra

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
