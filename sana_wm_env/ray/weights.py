"""A world's files on every node: sent once through the object store, then read by all workers of the node."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ..files import replacing_folder
from ..native import cache_folders

COPIES = "worlds"
"""Folder in the user's cache that holds the copies, by their digest."""


@dataclass(frozen=True)
class SharedWorld:
    """A world in the object store.

    Attributes:
        digest: SHA-256 over names and content of its files; names the copy on a node.
        files: a list with the reference to {name: uint8 content}; in a list, so that a worker fetches it
            only if its node has no copy.
    """

    digest: str
    files: list[Any]

    @classmethod
    def of(cls, folder: Path) -> SharedWorld:
        """Puts a world's folder into the object store."""
        contents = {
            path.relative_to(folder).as_posix(): np.fromfile(path, np.uint8)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        digest = hashlib.sha256()
        for name, content in contents.items():
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content.data)
        return cls(digest.hexdigest(), [ray.put(contents)])

    def open(self) -> tuple[Path, bool]:
        """The folder of this node's copy, and whether it had to be fetched. Workers that ask at the same time
        wait for the first of them.
        """
        folder = _home() / self.digest
        with _only_one(folder.with_name(f"{self.digest}.lock")):
            if folder.is_dir():
                return folder, False
            with replacing_folder(folder) as part:
                contents: Any = ray.get(self.files[0])
                for name, content in contents.items():
                    (part / name).parent.mkdir(parents=True, exist_ok=True)
                    content.tofile(part / name)
            return folder, True


def _home() -> Path:
    """The first cache folder that can be written."""
    for folder in cache_folders():
        try:
            (folder / COPIES).mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        return folder / COPIES
    raise OSError(f"nothing can be written into {', '.join(map(str, cache_folders()))}; set XDG_CACHE_HOME")


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
