"""Resources of the machine. Imports nothing of this package, and torch where a device is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def check_device(device: Any, name: str = "device") -> str:
    """Returns the device as text; ValueError unless it is "cpu", "cuda" or one of several, such as "cuda:1".

    Whether there is such a card is not asked: that would touch it, and workers could not be forked any more.
    """
    import torch

    try:
        given = torch.device(device) if isinstance(device, str | torch.device) else None
    except RuntimeError:
        given = None
    if given is None or given.type not in ("cpu", "cuda"):
        raise ValueError(f"got {name}={device!r}; wanted 'cpu', 'cuda', or one of several such as 'cuda:1'")
    return str(device)


def free_memory(device: str | torch.device) -> int:
    """Returns the bytes that a new tensor could take on a device: CUDA's own count, or what the operating
    system calls available.
    """
    if str(device).startswith("cuda"):
        import torch

        # what torch has and would give out again
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_fits(needed: int, what: str, cure: str) -> None:
    """Raises ValueError if more bytes are needed than are free: said before, as the system would only kill.

    Args:
        needed: bytes.
        what: was given, for the message.
        cure: what to do.
    """
    if needed > (free := free_memory("cpu")):
        raise ValueError(
            f"got {what}, which would take {needed / 2**30:.3g} GiB; {free / 2**30:.3g} GiB are free: {cure}"
        )


def free_disk(folder: Path) -> int:
    """Bytes that are free on the disk where a folder is, or would be made."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    return shutil.disk_usage(there).free
