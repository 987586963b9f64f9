"""A linear layer in few bits: packed weights, activations rounded to the same format before every product,
sums in float32.

On a CPU, and wherever it is asked to be exact, the rounded values are multiplied as they are; on a GPU
tensor cores multiply the codes.
Letters: B sessions, K inputs, N outputs.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import integers, tensor_cores
from .formats import FORMATS, Parts, Precision, apply_block_scales, pack, unpack
from .operations import Packed

_here = threading.local()  # several forwards may run at once, each at a noise level of its own


@contextmanager
def wide_activations(wide: bool) -> Iterator[None]:
    """Inside, in this thread, quantised layers take activations as they are if `wide`; weights stay as they
    are stored.
    """
    before, _here.wide = getattr(_here, "wide", False), wide
    try:
        yield
    finally:
        _here.wide = before


class QuantizedLinear(Packed, nn.Module):
    """In place of a `Linear` or a `Pointwise`. Its buffers are what a file holds, and keep their dtypes when
    the network gets another.

    weight           codes: uint8 (N, K/2) of two each for "nvfp4", else (N, K) float8_e4m3fn or int8
    weight_scale     of the blocks (N, K/b), or of rows (N, 1) where blocks have none
    weight_scale_2   "nvfp4": float32 (), one for the whole weight
    """

    NAMES = ("weight", "weight_scale", "weight_scale_2")
    precision: Precision
    weight_scale: Tensor

    def __init__(
        self, weight: Tensor, bias: nn.Parameter | None, precision: Precision, exact: bool = False
    ) -> None:
        super().__init__()
        self.precision, self.exact, self.bias = precision, exact, bias
        self.outputs, self.inputs = weight.shape
        for name, part in zip(
            self.NAMES, filter(lambda part: part is not None, pack(weight, precision)), strict=False
        ):
            self.register_buffer(name, part)
        self._swizzled: tuple[Parts, int] | None = None

    @property
    def parts(self) -> Parts:
        """The weight as `formats.pack` makes it."""
        first, second = self._buffers["weight_scale"], self._buffers.get("weight_scale_2")
        return (
            Parts(self.weight, None, first)
            if FORMATS[self.precision].block == 1
            else Parts(self.weight, first, second)
        )

    def unpacked(self) -> Tensor:
        """The values of codes and block scales, float32 (N, K)."""
        return unpack(self.weight, self.parts.block_scales, self.precision)

    def pack(self) -> None:
        """As any layer's. Integers are multiplied as they are stored."""
        if self.precision != "int8":
            super().pack()

    def forward(self, x: Tensor) -> Tensor:
        return self._by_integers(x) if self._has_integers(x) else self._multiply(x).to(x.dtype)

    def forward_silu(self, x: Tensor) -> Tensor:
        return (
            self._by_integers(x, silu=True)
            if self._has_integers(x)
            else F.silu(self._multiply(x)).to(x.dtype)
        )

    def forward_onto(self, base: Tensor, x: Tensor) -> Tensor:
        return (
            self._by_integers(x, base) if self._has_integers(x) else (base + self._multiply(x)).to(base.dtype)
        )

    def _has_integers(self, x: Tensor) -> bool:
        """Returns True if the compiled path takes these activations."""
        if self.precision != "int8" or getattr(_here, "wide", False) or torch.is_grad_enabled():
            return False
        return integers.can_multiply(x, self.outputs)

    def _by_integers(self, x: Tensor, base: Tensor | None = None, silu: bool = False) -> Tensor:
        return integers.multiply(x, self.weight, self.weight_scale, self.bias, base, silu)

    def _multiply(self, x: Tensor) -> Tensor:
        """X (B, ..., K) -> (B, ..., N) in float32, in bfloat16 from tensor cores."""
        if x.is_cuda and not self.exact and not getattr(_here, "wide", False) and self.precision != "int8":
            return tensor_cores.multiply(x, self._for_tensor_cores(), self.bias, self.precision)
        out, scale = self._product(x)
        # the weight's first: with it a product is no larger than its result, codes of both sides could leave
        # float32
        if (of_weight := self.parts.scale) is not None:
            out *= of_weight.flatten()  # (N, 1) or () -> along the outputs
        if scale is not None:
            out *= scale
        return out if self.bias is None else out.add_(self.bias)

    def _product(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The product without the scales of whole rows and tensors, and that of the activations."""
        if getattr(_here, "wide", False):
            return self.ops.linear(x.float(), self.matrix), None
        numbers, block_scales, scale = FORMATS[self.precision].cut(x)
        if self.precision == "int8":  # sums of integers: float32 would round them
            out = torch._int_mm(numbers.to(torch.int8).flatten(0, -2), self.weight.t())  # pyright: ignore[reportPrivateImportUsage]  # as in `integers`
            return out.unflatten(0, x.shape[:-1]).float(), scale
        return self.ops.linear(apply_block_scales(numbers, block_scales), self.matrix), scale

    def _for_tensor_cores(self) -> Parts:
        if self._swizzled is None or self._swizzled[1] != self.weight.data_ptr():
            tensor_cores.check_card(self.precision, self.weight.device)
            parts = self.parts
            blocks = None if parts.block_scales is None else tensor_cores.swizzle(parts.block_scales)
            self._swizzled = parts._replace(block_scales=blocks), self.weight.data_ptr()
        return self._swizzled[0]

    def _apply(self, fn, recurse=True):  # what `to` and its like call
        kept = {name: self._buffers[name] for name in self.NAMES if name in self._buffers}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            moved = self._buffers[name]
            if moved is not None and before is not None and moved.dtype != before.dtype:
                self._buffers[name] = before.to(moved.device)
        return self

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, {self.precision}"
