"""Pictures as users have them, from files, Pillow and arrays: uint8 (H, W, 3), or one sentence that says
why not.

What is decided here, once for all who take a picture:

* of an animation or a file of several pages, the first picture counts;
* what is transparent is laid over WHITE;
* a camera's rotation tag (EXIF) is obeyed, in files and in Pillow's images;
* 16 bits of grey are scaled to 8; pictures of 32-bit or float values are refused, because their scale is
  not known;
* at most MAX_PIXELS, said by the file before a pixel is decoded.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Picture = NDArray[np.uint8]

MAX_PIXELS = 100_000_000
"""A hundred megapixels: more than phones and cameras make in one shot, 300 MB in memory."""

WHITE = (255, 255, 255)

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is opened as a picture. Others that Pillow knows run programs (EPS) or can be mistaken for anything
(TGA).
"""

EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
"""Pillow's modes whose values have a known scale of 8 bits."""

WANTED = "wanted uint8 (H, W, 3), a picture of Pillow or the path of a file"


def read_image(image: Any) -> Picture:
    """An image as uint8 (H, W, 3), from a path, an image of Pillow, an array or a tensor.

    Raises:
        FileNotFoundError: no file of that name.
        ValueError: an array of another shape or dtype (the message says how to convert it), or a file that
            holds no picture, a broken one, one that is too large or one whose values have no known scale.
    """
    if isinstance(image, str | os.PathLike):
        return _from_file(os.fspath(image))
    if _is_of_pillow(image):
        with _one_sentence(f"got a picture of Pillow ({image.mode}, {image.width} x {image.height})"):
            return _from_pillow(image, "a picture of Pillow")
    if (torch := sys.modules.get("torch")) and isinstance(image, torch.Tensor):
        return _from_array(_array_of_tensor(image))
    return _from_array(image)


def _from_file(name: str | bytes) -> Picture:
    text = os.fsdecode(name)
    shown = text if len(text) <= 200 else f"{text[:200]}..."
    try:
        kind = os.stat(text).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, PermissionError):
            raise ValueError(f"got the image '{shown}', which may not be read: permission denied") from None
        hint = "; download it first" if "://" in text else ""
        raise FileNotFoundError(f"got the image '{shown}'; there is no such file{hint}") from None
    if os.path.isdir(text):
        raise ValueError(f"got the image '{shown}', which is a folder; wanted a file in it")
    if not os.path.isfile(text):
        raise ValueError(f"got the image '{shown}', which is no plain file (mode {kind:o}); wanted a picture")
    from PIL import Image  # comes with imageio; only those who bring an image pay for the import

    with _one_sentence(f"got the file '{shown}'"), Image.open(text, formats=FORMATS) as picture:
        return _from_pillow(picture, f"the file '{shown}'")


@contextmanager
def _one_sentence(given: str) -> Iterator[None]:
    """What Pillow raises on a broken picture, of a dozen types, as one ValueError; and no warnings of its
    own.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own limit, of odd tags: what matters is refused here
            yield
    except _Refused:
        raise
    except UnidentifiedImageError:
        raise _Refused(
            f"{given}; it is not an image that can be read ({', '.join(FORMATS)}): export it as PNG or JPEG"
        ) from None
    except Image.DecompressionBombError:
        raise _Refused(
            f"{given}; it has more than {MAX_PIXELS / 1e6:.0f} megapixels: scale it down"
        ) from None
    except PermissionError:
        raise _Refused(f"{given}, which may not be read: permission denied") from None
    except Exception as error:  # truncated, broken tags, absurd sizes: a dozen types
        cause = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise _Refused(f"{given}; it is not an image that can be read to its end ({cause})") from None


class _Refused(ValueError):
    """Said by us, so it is not said again."""


def _from_pillow(picture: Any, given: str) -> Picture:
    """A picture of Pillow as uint8 (H, W, 3), upright and opaque."""
    from PIL import Image, ImageOps

    if picture.width * picture.height > MAX_PIXELS:
        raise _Refused(
            f"got {given} of {picture.width} x {picture.height} pixels; wanted at most "
            f"{MAX_PIXELS / 1e6:.0f} megapixels: scale it down"
        )
    if 0 in picture.size:
        raise _Refused(f"got {given} of {picture.width} x {picture.height} pixels; {WANTED}")
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray(_eight_bits(picture))
    elif picture.mode not in EIGHT_BITS:
        kind = {"F": "32-bit floats", "I": "32-bit integers"}.get(picture.mode, f"the mode {picture.mode}")
        raise _Refused(
            f"got {given} with {kind}, whose black and white are not known; wanted 8 bits: scale the "
            "values to 0..255 and save it again"
        )
    if picture.has_transparency_data:
        opaque = Image.new("RGBA", picture.size, (*WHITE, 255))
        picture = Image.alpha_composite(opaque, picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))


def _eight_bits(picture: Any) -> Picture:
    """Grey of 16 bits as uint8 (H, W): 65535 becomes 255; the level that counts as transparent becomes
    white.
    """
    levels = np.asarray(picture)
    scaled = (levels / 257).round().astype(np.uint8)
    clear = picture.info.get("transparency")
    return scaled if clear is None else np.where(levels == clear, np.uint8(WHITE[0]), scaled)


def _is_of_pillow(image: Any) -> bool:
    """Whether it is one of Pillow's images, without importing Pillow for those who have none."""
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in type(image).__mro__)


def _array_of_tensor(image: torch.Tensor) -> NDArray[Any]:
    """The values of a tensor on any device; a dtype that numpy lacks is refused here."""
    if image.is_meta:
        raise ValueError(f"got an image on the meta device, which has no values; {WANTED}")
    if (name := str(image.dtype).removeprefix("torch.")) != "uint8":
        return _wrong_dtype(name, image.dtype.is_floating_point)
    try:
        return image.detach().cpu().numpy()
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"got an image as a tensor without plain values ({error}); {WANTED}") from None


def _from_array(image: Any) -> Picture:
    if image is None or isinstance(image, bytes | bytearray | memoryview | Path):
        hint = "" if image is None else ": PIL.Image.open(io.BytesIO(data)) reads bytes"
        raise ValueError(f"got an image of type {type(image).__name__}; {WANTED}{hint}")
    if isinstance(image, np.ma.MaskedArray) and np.ma.is_masked(image):
        raise ValueError(f"got an image with masked pixels; {WANTED}: image.filled(0) fills them")
    try:
        array = np.asarray(image)
    except Exception:  # ragged lists, objects whose __array__ fails
        raise ValueError(f"got an image of type {type(image).__name__} that is no array; {WANTED}") from None
    shape = f"got an image of shape {array.shape}"
    if array.ndim == 0 and array.dtype.kind in "OUSV":
        raise ValueError(f"got an image of type {type(image).__name__}; {WANTED}")
    if array.ndim == 4 and len(array) == 1:
        raise ValueError(f"{shape}; {WANTED}: take the first of the batch, image[0]")
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        raise ValueError(f"{shape}; {WANTED}: channels come last, use image.transpose(1, 2, 0)")
    if array.ndim == 3 and array.shape[2] == 4:
        raise ValueError(f"{shape}; {WANTED}: image[..., :3] drops alpha")
    if array.ndim == 2 and array.size:
        raise ValueError(f"{shape}; {WANTED}: image[..., None].repeat(3, -1) makes grey colours")
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"{shape}; {WANTED}")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ValueError(f"{shape}; wanted at most {MAX_PIXELS / 1e6:.0f} megapixels: scale it down")
    if array.dtype != np.uint8:
        return _wrong_dtype(str(array.dtype), array.dtype.kind == "f")
    return np.asarray(array, np.uint8)


def _wrong_dtype(dtype: str, floating: bool) -> Any:
    cure = ": for values in [0, 255] use np.asarray(image, 'uint8')"
    if floating or dtype == "bfloat16":
        cure = ": for values in [0, 1] use (image * 255).round().astype('uint8')"
    elif dtype == "uint16":
        cure = ": for values up to 65535 use (image / 257).round().astype('uint8')"
    elif dtype == "bool":
        cure = ": image.astype('uint8') * 255"
    elif dtype not in ("int8", "int16", "int32", "int64", "uint32", "uint64"):
        cure = ""
    raise ValueError(f"got an image of {dtype}; {WANTED}{cure}")
