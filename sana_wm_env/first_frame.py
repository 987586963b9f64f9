"""First frames of episodes and videos: a user's picture, or a room, becomes image, intrinsics and prompt."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from .camera import Array, check_intrinsics, intrinsics_from_fov
from .numbers import to_flag
from .observations import Frames
from .pictures import MAX_PIXELS, read_image
from .rooms import check_room_option, default_intrinsics

if TYPE_CHECKING:
    from .rooms.room import Room

MOGE = "Ruicheng/moge-2-vitl"
FOV_DEG = (25.0, 120.0)  # what the official code accepts from its own estimator (model/README.md section 6.5)


class FirstFrame(NamedTuple):
    """The start of an episode: uint8 (H, W, 3), (4,) in its pixels, a description of the scene."""

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
            image: what `read_image` takes.
            size: (height, width) that the world sees.
            intrinsics: as in `intrinsics_of_image`, in pixels of the picture.
            fov_deg: horizontal field of view in degrees, in place of them.
            prompt: describes the scene.
            device: where an estimator of the intrinsics runs.

        Raises:
            FileNotFoundError, ValueError, ImportError: as `read_image` and `intrinsics_of_image`.
        """
        picture = read_image(image)
        return cls(
            *fit_image(picture, intrinsics_of_image(picture, intrinsics, fov_deg, device), size), prompt or ""
        )

    @classmethod
    def of_room(cls, room: Room, size: tuple[int, int], prompt: str | None = None) -> Self:
        """A room as the camera first sees it at (height, width) pixels; its own description where there is no
        prompt.
        """
        from .rooms.room import look  # renders with torch, which pictures do without

        intrinsics = np.array(default_intrinsics(size), np.float64)
        return cls(
            look(room, np.eye(4)[None], intrinsics, size)[0],
            intrinsics,
            room.caption if prompt is None else prompt,
        )


def check_first_frame_options(options: dict[str, Any]) -> tuple[int | str | None, str | None]:
    """Returns the room and the prompt that a reset asks for. ValueError for a prompt that is no text, a room
    beside a picture, intrinsics without a picture, a look around in a picture.
    """
    room, prompt = check_room_option(options.get("room")), options.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(
            f"got a prompt of type {type(prompt).__name__}; wanted a str that describes the scene"
        )
    looks = options.get("look_around")
    if looks is not None:
        to_flag(looks, "look_around")
    if options.get("image") is not None:
        if room is not None:
            raise ValueError(f"got both an image and room={room!r}; wanted one of them")
        if looks:
            raise ValueError(
                "got look_around beside an image, of which nothing else is known; wanted a room, or "
                "env.unwrapped.observe(frames, c2w) after the reset with pictures of your own"
            )
    elif options.get("intrinsics") is not None or options.get("fov_deg") is not None:
        raise ValueError(
            "got intrinsics without an image; they are those of the image that options['image'] gives"
        )
    return room, prompt


def fit_image(image: Frames, intrinsics: Array, size: tuple[int, int]) -> tuple[Frames, Array]:
    """Scales an image until it covers `size`, crops its centre, and lets the intrinsics follow.

    Source: the preprocessing of the official inference code (NVlabs/Sana, docs/sana_wm.md): LANCZOS, rounded
    new size, floored offsets.

    Args:
        image: uint8 (H0, W0, 3).
        intrinsics: (4,) as fx, fy, cx, cy in pixels of that image.
        size: (height, width) that the world sees.

    Returns:
        uint8 (height, width, 3) and float64 (4,) in its pixels, both fresh.

    Raises:
        ValueError: a strip so narrow that it would have to grow beyond all bounds.
    """
    from PIL import Image  # comes with imageio; only those who bring an image pay for the import

    height, width = size
    height0, width0 = image.shape[:2]
    scale = max(height / height0, width / width0)
    height1, width1 = round(height0 * scale), round(width0 * scale)
    if height1 * width1 > MAX_PIXELS:
        raise ValueError(
            f"got an image of {width0} x {height0} pixels for a world of {width} x {height}; wanted one "
            "whose proportions are nearer to the world's: crop it"
        )
    left, top = (width1 - width) // 2, (height1 - height) // 2
    scaled = np.asarray(Image.fromarray(image).resize((width1, height1), Image.Resampling.LANCZOS))
    ratio_x, ratio_y = width1 / width0, height1 / height0
    moved = np.asarray(intrinsics, np.float64) * [ratio_x, ratio_y, ratio_x, ratio_y] - [0, 0, left, top]
    return scaled[top : top + height, left : left + width].copy(), moved


def intrinsics_of_image(
    image: NDArray[np.uint8], intrinsics: Any = None, fov_deg: float | None = None, device: str = "cpu"
) -> Array:
    """Intrinsics (fx, fy, cx, cy) in pixels of an image (H, W, 3), by what is known of its camera. Nothing is
    ever guessed.

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
        return check_intrinsics(intrinsics_from_fov(size, fov_deg), size)
    if intrinsics is None:
        raise ValueError(
            "got an image without intrinsics; wanted options['intrinsics'] = (fx, fy, cx, cy) in its pixels, "
            "or options['fov_deg'] = 65 if "
            "that is its horizontal field of view in degrees, or options['intrinsics'] = 'moge' "
            "to have them estimated"
        )
    if isinstance(intrinsics, str):
        return check_intrinsics(estimate_intrinsics(image, intrinsics, device), size)
    return check_intrinsics(intrinsics, size)


def estimate_intrinsics(
    image: NDArray[np.uint8], estimator: str = "moge", device: str = "cpu"
) -> NDArray[np.float64]:
    """Intrinsics (fx, fy, cx, cy) in pixels of an image (H, W, 3), as MoGe-2 sees them.

    The estimator's weights are read from this machine, never downloaded.

    Raises:
        ValueError: an unknown estimator, or an estimate outside fields of view of 25 to 120 degrees.
        ImportError: MoGe is not installed.
        FileNotFoundError: its weights are not on this machine.
    """
    if estimator != "moge":
        raise ValueError(
            f"got intrinsics={estimator!r}; wanted (fx, fy, cx, cy) in pixels, a (3, 3) matrix, or 'moge'"
        )
    if find_spec("moge") is None:
        raise ImportError(
            "intrinsics='moge' needs MoGe: pip install git+https://github.com/microsoft/MoGe.git; or give "
            "the intrinsics, or fov_deg"
        )
    import torch
    from moge.model.v2 import MoGeModel  # type: ignore[import-not-found]  # no package of any extra

    try:
        model = MoGeModel.from_pretrained(MOGE, local_files_only=True).to(device).eval()
    except OSError as error:
        raise FileNotFoundError(
            f"the weights of {MOGE} are not on this machine: `hf download {MOGE} model.pt` gets them"
        ) from error
    pixels = (
        torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1).float() / 255
    )  # (3, H, W) in [0, 1]
    normalised = model.infer(pixels, use_fp16=torch.device(device).type == "cuda")["intrinsics"]
    return pixel_intrinsics(normalised.double().cpu().numpy(), (image.shape[0], image.shape[1]))


def pixel_intrinsics(normalised: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """A matrix (3, 3) in image widths and heights -> (fx, fy, cx, cy) in pixels; ValueError if no usual
    camera looks like that.
    """
    height, width = size
    fx, fy = normalised[0, 0], normalised[1, 1]
    fov = float(np.degrees(2 * np.arctan(0.5 / fx))) if fx > 0 else float("nan")
    if not FOV_DEG[0] <= fov <= FOV_DEG[1]:
        raise ValueError(
            f"the estimated horizontal field of view is {fov:.0f} degrees; estimates outside "
            f"{FOV_DEG[0]:.0f} to {FOV_DEG[1]:.0f} are not "
            "trusted: give the intrinsics, or fov_deg"
        )
    return np.array([fx * width, fy * height, normalised[0, 2] * width, normalised[1, 2] * height])
