"""What workers return, joined in the order of their slots, in memory of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def join(parts: Sequence[Any]) -> Any:
    """Observations of consecutive slots as one batch: arrays (n, ...), or dicts or tuples of them."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {key: join([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        return tuple(join(column) for column in zip(*parts, strict=True))
    return np.concatenate(parts)


def join_infos(parts: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """Infos of consecutive slots as one, as Gymnasium's vector environments lay them out.

    Args:
        parts: of each worker: arrays (n, ...), or dicts of them. What a worker does not mention is filled as
            Gymnasium does: zeros, False, or None in arrays of objects.
        sizes: slots n of each.
    """
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part.get(key) for part in parts]
        known = next(value for value in values if value is not None)
        if isinstance(known, Mapping):
            joined[key] = join_infos([value or {} for value in values], sizes)
        else:
            joined[key] = _join_arrays(values, known, sizes)
    return joined


def _join_arrays(values: Sequence[Any], known: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    whole = np.zeros((sum(sizes), *known.shape[1:]), known.dtype)
    if whole.dtype == object:
        whole[:] = None
    first = 0
    for value, size in zip(values, sizes, strict=True):
        if value is not None:
            whole[first : first + size] = value
        first += size
    return whole
