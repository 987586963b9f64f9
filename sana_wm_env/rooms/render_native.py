"""The renderer of render.cpp as a Python function."""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..native import load_library
from .scene import ALCOVES, MATERIAL_FIELDS, MATERIALS, SOLIDS, Scenes

SOURCE = Path(__file__).with_name("render.cpp")
PIXELS_PER_THREAD = 2**18  # some milliseconds of work: below that, starting a thread is not worth it


def available() -> bool:
    """Returns True if `render` can be called: there is a compiler, and it is not switched off."""
    return _library() is not None


def render(
    scenes: Scenes, c2w: Tensor, intrinsics_px: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """`render_reference` of render.py for rooms on a CPU; intrinsics_px (4,) or (B, 4)."""
    batch, frames = c2w.shape[:2]
    height, width = (int(side) for side in size)
    inputs = [
        _floats(c2w[:, :, :3], (batch, frames, 3, 4)),
        _floats(intrinsics_px.expand(batch, 4), (batch, 4)),
        _floats(scenes.air[:batch], (batch, 1 + ALCOVES, 2, 3)),
        _floats(scenes.solids[:batch], (batch, SOLIDS, 2, 3)),
        _floats(scenes.materials[:batch], (batch, MATERIALS, MATERIAL_FIELDS)),
        _floats(scenes.lamp[:batch], (batch, 3)),
    ]
    rgb = torch.empty(batch, frames, height, width, 3, dtype=torch.uint8, device="cpu")
    depth_m = torch.empty(batch, frames, height, width, dtype=torch.float32, device="cpu")
    pointers = [tensor.data_ptr() for tensor in (*inputs, rgb, depth_m)]

    def work(first: int, last: int) -> None:
        _render_frames()(first, last, frames, height, width, *pointers)

    total = batch * frames
    threads = max(1, min(torch.get_num_threads(), total, total * height * width // PIXELS_PER_THREAD))
    if threads == 1:
        work(0, total)
    else:
        bounds = [total * index // threads for index in range(threads + 1)]
        with ThreadPoolExecutor(
            threads
        ) as pool:  # a new one at every call: kept, it would hang a forked process
            list(pool.map(work, bounds[:-1], bounds[1:]))
    return rgb, depth_m


def _floats(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The numbers as C++ reads them, from a tensor that must have this shape."""
    if tensor.shape != shape:
        raise ValueError(f"a part of the rooms or their cameras has shape {tuple(tensor.shape)}, not {shape}")
    return tensor.to("cpu", torch.float32).contiguous()


def _library() -> ctypes.CDLL | None:
    return load_library(
        SOURCE, f"ALCOVES={ALCOVES}", f"SOLIDS={SOLIDS}", f"MATERIAL_FIELDS={MATERIAL_FIELDS}"
    )


@cache
def _render_frames() -> Callable[..., None]:
    function = getattr(_library(), "render_frames")  # noqa: B009 (the caller has asked `available`)
    function.argtypes = [ctypes.c_int64] * 5 + [ctypes.c_void_p] * 8
    function.restype = None
    return function
