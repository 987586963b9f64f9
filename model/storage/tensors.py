"""Tensors in .safetensors files that a run left, or somebody gave: whole, of the right names, finite."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor


@contextmanager
def open_tensors(path: Path, cure: str) -> Iterator[Any]:
    """`safetensors.safe_open`; a file that cannot be read, or does not hold what is asked for, is named.

    Args:
        path: the file. What it declares is never allocated before it is known to be there.
        cure: what to do about a broken one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or something is missing in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"got {path}; there is no such file: {cure}")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError, KeyError, TypeError, IndexError, RuntimeError) as error:
        cause = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise ValueError(f"got {path}, which is damaged or another kind of file ({cause}): {cure}") from None


def read_tensors(path: Path, cure: str, names: Iterable[str] = ()) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU.

    Args:
        path: see `open_tensors`.
        cure: see there.
        names: of tensors that have to be among them.

    Raises:
        FileNotFoundError, ValueError: as there; NaN or infinity in a tensor.
    """
    with open_tensors(path, cure) as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if missing := sorted(set(names) - set(found)):
        raise ValueError(f"got {path} without {', '.join(missing)}: {cure}")
    for name, tensor in found.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"got {path} with NaN or infinity in {name}: {cure}")
    return found
