"""Real numbers out of whatever a user gives, and nothing else: one rule for actions, poses, rewards,
settings.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NO_NUMBERS = None | str | bytes | bool | np.bool_ | complex | dict | set | np.ma.MaskedArray


def to_array(values: Any, name: str, wanted: str = "real numbers") -> Array:
    """Numbers as fresh float64: of numpy arrays, nested lists, and tensors of any device, dtype and gradient.

    Args:
        values: what was given. NaN and infinity are numbers here.
        name: what the caller calls it.
        wanted: what ought to be there, for the message.

    Raises:
        ValueError: None, bools, complex numbers, texts, dates, objects, structured or masked arrays, ragged
            lists; names the kind that was given.
    """
    if held := _find_no_number(values):
        inside = "" if held == type(values).__name__ else f" that holds {held}"
        raise ValueError(f"got {name} of type {type(values).__name__}{inside}; wanted {wanted}")
    try:
        given = np.asarray(_from_tensors(values))
    except Exception:  # ragged lists, tensors without values, objects that fail
        raise ValueError(f"got {name} of type {type(values).__name__}, no array; wanted {wanted}") from None
    if given.dtype.kind not in "fiu" or given.dtype.names:
        kind = "object" if given.dtype.kind == "O" else given.dtype
        raise ValueError(f"got {name} of dtype {kind}; wanted {wanted}")
    with np.errstate(all="ignore"):  # beyond float64 is infinity
        return np.array(given, np.float64)


def to_number(value: Any, name: str, wanted: str = "one finite number") -> float:
    """One finite number: a Python or numpy number, or an array or tensor without axes.

    Raises:
        ValueError: anything else, NaN and infinity among it.
    """
    number = to_array(value, name, wanted)
    if number.ndim:
        raise ValueError(f"got {name} of shape {number.shape}; wanted {wanted}")
    if not np.isfinite(number):
        raise ValueError(f"got {name}={float(number)}; wanted {wanted}")
    return float(number)


def to_whole(value: Any, name: str, least: int = 0, most: int | None = None) -> int:
    """A whole number from `least` to `most`: a Python or numpy integer, no bool.

    Raises:
        ValueError: anything else.
    """
    wanted = f"a whole number from {least}" + ("" if most is None else f" to {most}")
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ValueError(f"got {name}={value!r}; wanted {wanted}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"got {name}={value!r}; wanted {wanted}")
    return int(value)


def to_flag(value: Any, name: str) -> bool:
    """True or False: of Python or numpy, or an array or tensor without axes.

    Raises:
        ValueError: anything else: a text such as "no" would count as True.
    """
    if not isinstance(value, bool) and not (
        str(getattr(value, "dtype", "")).endswith("bool") and getattr(value, "ndim", 1) == 0
    ):
        raise ValueError(f"got {name}={value!r}; wanted True or False")
    return bool(value)


def _find_no_number(values: Any) -> str | None:
    """The type of what numpy would take for a number all the same, at any depth of lists."""
    if isinstance(values, list | tuple):
        return next((found for value in values if (found := _find_no_number(value))), None)
    return type(values).__name__ if isinstance(values, NO_NUMBERS) else None


def _from_tensors(values: Any) -> Any:
    """Tensors, at any depth of lists, as numpy arrays by value."""
    if isinstance(values, list | tuple):
        return [_from_tensors(value) for value in values]
    if not hasattr(values, "detach"):
        return values
    values = values.detach().cpu()
    is_short = values.dtype.is_floating_point and values.dtype.itemsize < 4  # numpy has no bfloat16
    return (values.float() if is_short else values).numpy()
