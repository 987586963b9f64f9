"""The compiled operations of cpu.cpp as Python functions."""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sana_wm_env.native import load_library

# Pointers: x activations, w float32, p anything else; None is null. Numbers: l a long, i an int, f a float.
SIGNATURES = {
    "normalise": "xlwxllfif",
    "normalise_backward": "xxlwxwllfif",
    "modulate": "xwwlxwlll",
    "modulate_backward": "xxwlwxwwlll",
    "gated_sum": "xlxxxll",
    "gated_sum_backward": "xxxxxxl",
    "move": "xlwwxlllf",
    "short_conv": "xlxxwpxllll",
    "short_conv_backward": "xxlxxwpxxxwllll",
    "gated_mix": "xwwxxllll",
    "gated_mix_backward": "xxxwxxwwllll",
    "delta": "xxxlwwwwwpxwwlllll",
    "delta_backward": "xwwxxxwwwwwpxxxwwwwlllll",
    "mean_growth": "xxwllll",
    "attend": "xpppppplpxllllf",
    "attend_backward": "xxxxpxxxlllllf",
    "round_rows": "xlpwll",
    "scale_sums": "pwwwxxlli",
}
SOURCE = Path(__file__).with_name("cpu.cpp")
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@cache
def lanes(size: int) -> int:
    """Numbers in a vector of the compiled operations for tensors whose last axis is `size`; 0 where there are
    none for it.
    """
    library = load_library(SOURCE)
    widest = library.lanes() if library else 0
    return next((n for n in (16, 8, 4) if n <= widest and size % n == 0), 0)


@cache
def function(name: str, dtype: torch.dtype, size: int) -> Callable[..., None]:
    """The operation `name` for activations of a dtype whose last axis is `size`.

    Tensors are passed as they lie: the caller sees to strides and sizes.
    """
    widest, wanted = load_library(SOURCE), lanes(size)
    assert widest is not None  # who calls this has asked `lanes`
    library = widest if wanted == widest.lanes() else load_library(SOURCE, f"LANES={wanted}")
    compiled = getattr(library, f"{name}_{NAMES[dtype]}")
    kinds = {"l": ctypes.c_long, "i": ctypes.c_int, "f": ctypes.c_float}
    compiled.argtypes = [kinds.get(kind, ctypes.c_void_p) for kind in SIGNATURES[name]]
    compiled.restype = None
    dtypes = [{"x": dtype, "w": torch.float32}.get(kind) for kind in SIGNATURES[name]]

    def call(*arguments: Any) -> None:
        compiled(
            *[
                _address(a, wanted) if isinstance(a, Tensor) else a
                for a, wanted in zip(arguments, dtypes, strict=True)
            ]
        )

    return call


def _address(tensor: Tensor, dtype: torch.dtype | None) -> int:
    if dtype is not None and tensor.dtype != dtype:  # C++ would read and write beyond its end
        raise TypeError(f"got a tensor of {tensor.dtype}; wanted {dtype}")
    return tensor.data_ptr()


def offsets(*values: int) -> ctypes.Array:
    """Integers as C reads them."""
    return (ctypes.c_int64 * len(values))(*values)


def span_ends(spans: tuple[tuple[int, int], ...]) -> ctypes.Array:
    """For every frame where its span ends."""
    return offsets(*(stop for start, stop in spans for _ in range(start, stop)))
