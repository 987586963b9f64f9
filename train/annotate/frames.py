"""Frames of videos, one after the other, and pictures of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.videos import decode_frames

Frame = NDArray[np.uint8]


def read_frames(video: Path, turn: int = 0) -> Iterator[Frame]:
    """Frames uint8 (H, W, 3) of a video in their order, turned to the left by quarter turns. ClipError if
    it cannot be decoded.
    """
    for frame in decode_frames(video):
        yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turn))


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """A picture (H, W, 3) or (H, W), packed lightly."""
    Image.fromarray(picture).save(path, compress_level=1)
