"""Values made of tensors: walking them, measuring them, and writing them to a file.

A value is a tensor, or a tuple, dict or dataclass of values. Tensors are batch-first.
"""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from torch import Tensor

Value = TypeVar("Value")


def map_tensors(fn: Callable[..., Tensor], first: Value, *others: Value) -> Value:
    """`first` with every tensor replaced by fn(tensor, *tensors at the same place in `others`).

    Walks dataclasses, tuples, dicts and None; anything else is kept from `first`. With one value this moves,
    slices or detaches a state; with several it stacks them.
    """
    return _mapped(fn, first, *others)


def _mapped(fn: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """`map_tensors`; no type follows that what is made here is of the type of `first`."""
    if isinstance(first, Tensor):
        return fn(first, *others)
    if isinstance(first, tuple):
        row = [_mapped(fn, *values) for values in zip(first, *others, strict=True)]
        return type(first)(*row) if hasattr(first, "_fields") else tuple(row)
    if isinstance(first, dict):
        return {key: _mapped(fn, value, *(other[key] for other in others)) for key, value in first.items()}
    if hasattr(first, "__dataclass_fields__") and not isinstance(first, type):
        made = object.__new__(type(first))  # half of the time of `replace`, and a fork makes thousands
        for name in first.__dataclass_fields__:
            made.__dict__[name] = _mapped(fn, getattr(first, name), *(getattr(o, name) for o in others))
        return made
    return first


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor inside `value`, in the order of its fields."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple):
        inside: Any = value
    elif isinstance(value, dict):
        inside = value.values()
    elif hasattr(value, "__dataclass_fields__"):
        inside = (getattr(value, name) for name in value.__dataclass_fields__)
    else:
        return []
    return [tensor for part in inside for tensor in tensors_of(part)]


class Mappable:
    """Methods that every state value shares."""

    def map(self: Value, fn: Callable[[Tensor], Tensor]) -> Value:
        """The same value with `fn` applied to each tensor."""
        return map_tensors(fn, self)

    @property
    def nbytes(self) -> int:
        """Bytes that the shapes and dtypes of all tensors inside come to."""
        return sum(t.numel() * t.element_size() for t in tensors_of(self))

    @property
    def nbytes_shared(self) -> int:
        """Bytes among `nbytes` that take no memory, because they are counted elsewhere in this value.

        A tensor that occurs twice shares the second time; n rows that are views of one share n - 1 times.
        """
        return self.nbytes - sum(places_of(self).values())


def places_of(value: Any) -> dict[Any, int]:
    """Where the tensors inside `value` lie, and the bytes that they take there. Tensors that share memory
    have one place, in several values as well, as long as those live.
    """
    return {_place(t): _bytes_held(t) for t in tensors_of(value)}


def _place(t: Tensor) -> tuple[Any, ...]:
    return t.device, t.data_ptr(), tuple(_extent(t))


def _bytes_held(t: Tensor) -> int:
    return t.element_size() * math.prod(size for size, _ in _extent(t))


def _extent(t: Tensor) -> list[tuple[int, int]]:
    """(size, stride) of the axes along which memory differs."""
    return [(size, stride) for size, stride in zip(t.shape, t.stride(), strict=True) if stride and size != 1]


def to_outline(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as nested JSON with "tensor" where one is; the tensors are put into `tensors` under the path to
    their place.
    """
    if isinstance(value, Tensor):
        tensors[path] = value
        return "tensor"
    if isinstance(value, tuple):
        return [to_outline(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {"dict": {key: to_outline(item, f"{path}.{key}", tensors) for key, item in value.items()}}
    if is_dataclass(value):
        parts = {
            f.name: to_outline(getattr(value, f.name), f"{path}.{f.name}", tensors) for f in fields(value)
        }
        return {type(value).__name__: parts}
    return {"plain": value}


def from_outline(outline: Any, path: str, tensors: dict[str, Tensor], kinds: dict[str, type]) -> Any:
    """The inverse of `to_outline`; `kinds` are the dataclasses that may occur, by name.

    Raises KeyError, TypeError or ValueError for an outline that fits neither them nor the tensors.
    """
    if outline == "tensor":
        return tensors[path]
    if isinstance(outline, list):
        return tuple(from_outline(item, f"{path}.{i}", tensors, kinds) for i, item in enumerate(outline))
    ((kind, value),) = outline.items()
    if kind == "plain":
        return value
    parts = {key: from_outline(item, f"{path}.{key}", tensors, kinds) for key, item in value.items()}
    return parts if kind == "dict" else kinds[kind](**parts)
