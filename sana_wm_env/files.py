"""Files and folders that appear whole or not at all: written beside, then renamed. Below everything else."""

import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write a file to; at the end it becomes `path`, whose folders are made. An error leaves the
    old file as it was. It may be read by whom the old file could be, a new one by whom the umask lets.

    The name ends in .part whatever the format is, so that nobody takes it for the file. Processes may write
    the same file at the same time: the last one wins. Files that belong together are written in one `with`
    statement, and are renamed together at its end.

    Raises:
        OSError: names the file that was asked for, not the one beside it.
    """
    path = to_path(path)
    part = name_part(path)
    new = [folder for folder in path.parents if not os.path.exists(folder)]
    try:
        with _naming(path, part):
            if os.path.isdir(path):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            _make_folder(path.parent, path)
            mode = _find_mode(path, part)
            yield part
            with suppress(OSError):  # not every file system has them
                part.chmod(mode)  # safetensors makes files that are for their owner alone
            part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        for folder in new:  # the deepest first; one that others have used by now stays
            with suppress(OSError):
                folder.rmdir()
        raise


def _find_mode(path: Path, part: Path) -> int:
    """Permissions that `open(path, "w")` would leave."""
    if not path.exists():  # the umask cannot be read without changing it for all threads
        path = part
        part.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    part.unlink(missing_ok=True)
    return mode


def to_path(path: Any, folder: bool = False) -> Path:
    """A path out of what a user gives; ValueError for what names no file, or no folder."""
    given = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(given, str) or "\0" in given or not (given if folder else Path(given).name):
        kind = "folder" if folder else "file"
        raise ValueError(f"got the path {path!r}; wanted the name of a {kind}, as a text or a Path")
    return Path(given)


def _make_folder(folder: Path, target: Path) -> None:
    """A folder for what is to be written; its errors name the target, as all do."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        taken = isinstance(error, FileExistsError)  # by a file, where a folder should be
        number = errno.ENOTDIR if taken else error.errno or errno.EIO
        raise OSError(number, os.strerror(number), str(target)) from None


def name_part(path: Path) -> Path:
    """A name beside `path` that nobody else has, and no longer than a file system takes: 255 bytes."""
    begin = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f"{begin}.{secrets.token_hex(4)}.part")


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """`write(part)` makes the file, see `replacing`."""
    with replacing(path) as part:
        write(part)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8, see `replacing`. What UTF-8 cannot say (odd file names) is written as escapes."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes plain values as JSON with an indent of 1. ValueError for NaN and infinity, unknown to JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_parts(path: Path) -> list[Path]:
    """What writers of `path` that were killed have left beside it, complete or not."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.*.part"))


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write into; at the end it becomes `path`, and what was there is gone. An error
    leaves the old folder as it was.

    It lies beside at PATH.part; what a killed run has left there is cleared away first.
    """
    part = path.with_name(path.name + ".part")
    _clear(part)
    _make_folder(part, path)
    try:
        yield part
    except BaseException:
        _clear(part)
        raise
    replace_folder(part, path)


def replace_folder(part: Path, path: Path) -> None:
    """Renames the folder `part` to `path`; what was there is gone."""
    if not path.exists():
        part.rename(path)
    elif _exchange(part, path):
        _clear(part)
    else:  # no such call here: a kill between these lines leaves the old folder under another name
        old = path.with_name(path.name + ".old")
        _clear(old)
        path.rename(old)
        part.rename(path)
        _clear(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one move, where the system can (Linux)."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _means(name: Any, part: Path) -> bool:
    """Whether an error's file name is that of the file beside, or none; FFmpeg says file:PATH."""
    return name is None or os.fsdecode(name).removeprefix("file:") in (str(part), str(part.absolute()))


@contextmanager
def _naming(path: Path, part: Path) -> Iterator[None]:
    """Errors about the file beside name the file that was asked for."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not _means(error.filename, part):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except Exception as error:
        # safetensors has an error of its own, whose text alone has the number
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise
