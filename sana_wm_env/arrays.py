"""Arrays in files that people bring, .npy or .npz, in bounded memory: what one declares is checked first."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from .files import write_whole

MAX_BYTES = 2**28
"""256 MiB of arrays per file: the cameras of a day at 16 frames per second are less."""


def read_array(path: str | os.PathLike[str], key: str, name: str = "the file") -> NDArray[Any]:
    """The array of a .npy file, or that called `key` of an .npz.

    Args:
        path: the file. What it holds decides how it is read, not its ending; no code in it is run.
        key: of the array in an .npz.
        name: what the message calls it, such as "--camera".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, another kind of file, a broken one, no such array, or one without numbers.
    """
    path, wanted = Path(path), f"wanted an array as .npy, or an .npz with {key!r}"
    if path.is_dir():
        raise ValueError(f"got {name} {path}, which is a folder; {wanted}")
    if not path.is_file():
        raise FileNotFoundError(f"got {name} {path}; there is no such file")
    with path.open("rb") as file:
        begin = file.read(6)
    if begin[:2] != b"PK" and begin != b"\x93NUMPY":
        what = (
            "is empty"
            if not begin
            else f"cannot be read: it is no array but another kind of file ({path.suffix or 'no ending'})"
        )
        raise ValueError(f"got {name} {path}, which {what}; {wanted}")
    try:
        if begin[:2] == b"PK":
            arrays = read_npz(path)
        elif path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
        else:
            arrays = {key: _read_npy(path.read_bytes())}
    except Exception as error:  # a broken header fails in ast or numpy, each in its own way
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"got {name} {path}, which cannot be read: {lines[0][:120] if lines else 'it is broken'}; "
            f"{wanted}"
        ) from None
    array = arrays.get(key)
    if array is None:
        there = ", ".join(list(arrays)[:8]) or "nothing"
        raise ValueError(f"got {name} {path}, which holds {there}; wanted an array {key!r} ({wanted})")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"got {name} {path}, which holds {array.dtype}; wanted numbers")
    return array


def read_npz(source: Path | bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz, a file or its bytes, by name.

    Raises:
        ValueError: no .npz, a broken one, one with Python objects, or one that declares more than MAX_BYTES.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if sum(info.file_size for info in members) > MAX_BYTES:
                raise ValueError(f"it declares more than {MAX_BYTES >> 20} MiB")
            return {info.filename.removesuffix(".npy"): _read_npy(archive.read(info)) for info in members}
    except ValueError:
        raise
    except Exception as error:  # BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ...
        raise ValueError(f"{error or type(error).__name__}") from None


def _read_npy(data: bytes) -> NDArray[Any]:
    """One array out of the bytes of an .npy, which hold as many numbers as its header says."""
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its arrays are of version {version[0]}.{version[1]}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, columns_first, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects; wanted arrays of numbers and texts")
    numbers, rest = 1, len(data) - stream.tell()
    for side in shape:
        numbers *= side
    if not 0 <= numbers * dtype.itemsize <= rest:
        raise ValueError(f"it declares an array of {shape} and holds {rest} bytes")
    array = np.frombuffer(data, np.uint8, numbers * dtype.itemsize, stream.tell()).view(dtype)
    return array.reshape(shape, order="F" if columns_first else "C").copy()


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Writes a .npy, whole or not at all; the name stays as it is."""

    def write(part: Path) -> None:
        with part.open("wb") as file:  # by a name it would append .npy
            np.save(file, array)

    write_whole(path, write)
