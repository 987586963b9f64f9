"""What a command is to write, checked before it begins: a long run does not end at a name that cannot be."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .files import name_part

LONGEST_NAME, LONGEST_PATH = 255, 4000
"""Bytes that file systems take, with room for what is written beside."""


class Output(NamedTuple):
    """A file or folder that a run writes.

    Attributes:
        name: what the message calls it, such as "--out".
        path: None for what was not asked for.
        suffixes: endings that a file may have, in any case; none for any.
        folder: it is a folder, which is made if it is not there.
    """

    name: str
    path: str | os.PathLike[str] | None
    suffixes: tuple[str, ...] = ()
    folder: bool = False


def check_outputs(*outputs: Output, inputs: Iterable[str | os.PathLike[str] | None] = ()) -> None:
    """Refuses what could not be written at the end of a run, or would destroy something. Leaves nothing.

    Args:
        outputs: everything that the run writes, what lies beside the files that were named included.
        inputs: files that the run reads, which may not be written over.

    Raises:
        ValueError: says which output, why, and what was wanted.
    """
    asked = [output for output in outputs if output.path is not None]
    read = [Path(path) for path in inputs if path is not None]
    for number, output in enumerate(asked):
        _check(output)
        path = Path(os.fspath(output.path or ""))
        for other in read:
            if _is_same(path, other):
                raise ValueError(f"got {output.name} {path}, which is the input {other}: wanted another name")
        for other in asked[:number]:
            there = Path(os.fspath(other.path or ""))
            if not (output.folder and other.folder) and _is_same(path, there):
                raise ValueError(
                    f"got {output.name} {path} and {other.name} {there}, which are one file; wanted two names"
                )
            for file, inside, beside in ((other, path, output), (output, there, other)):
                if (
                    not file.folder
                    and Path(os.fspath(file.path or "")).absolute() in inside.absolute().parents
                ):
                    raise ValueError(
                        f"got {beside.name} {inside}, which would lie inside the file {file.path} of "
                        f"{file.name}; wanted another name"
                    )


def check_output(path: str | os.PathLike[str], suffixes: tuple[str, ...] = (), name: str = "--out") -> Path:
    """`check_outputs` of one file; returns its path."""
    check_outputs(Output(name, path, suffixes))
    return Path(path)


def name_beside(path: Path, ending: str) -> Path:
    """The file of the same name with another ending: a.mp4, ".npz" -> a.npz."""
    return path.parent / f"{path.stem}{ending}"


def check_suffix(path: str | os.PathLike[str], suffixes: tuple[str, ...], name: str) -> None:
    """ValueError if a path does not end in one of the suffixes, in whatever case."""
    if Path(path).suffix.lower() not in suffixes:
        raise ValueError(
            f"got {name} '{os.fspath(path)}'; wanted a name that ends in {' or '.join(suffixes)}"
        )


def _check(output: Output) -> None:
    text = os.fspath(output.path or "")
    path, said = Path(text), f"got {output.name} '{text}'"
    if "\0" in text:
        raise ValueError(f"got {output.name} {text!r}, which holds a zero byte; wanted a name")
    if not text.strip() or (not output.folder and path.name in ("", "..")):
        raise ValueError(f"{said}; wanted the name of a {'folder' if output.folder else 'file'}")
    longest = max(len(os.fsencode(part)) for part in path.parts) if path.parts else 0
    if longest > LONGEST_NAME or len(os.fsencode(path.absolute())) > LONGEST_PATH:
        raise ValueError(
            f"{said[:120]}..., which is too long; wanted names of at most {LONGEST_NAME} bytes, "
            f"{LONGEST_PATH} in all"
        )
    try:
        if output.suffixes and (path.suffix or not path.is_dir()):
            check_suffix(path, output.suffixes, output.name)
        if output.folder:
            if path.exists() and not path.is_dir():
                raise ValueError(f"{said}, which is a file; wanted a folder")
        elif path.is_dir():
            raise ValueError(f"{said}, which is a folder; wanted the name of a file")
        elif text.endswith(("/", os.sep)):
            raise ValueError(f"{said}, which names a folder; wanted the name of a file")
        elif path.exists() and not path.is_file():
            raise ValueError(f"{said}, which is no ordinary file; wanted the name of a file")
        elif path.exists() and not os.access(path, os.W_OK):
            raise ValueError(f"{said}, which is there and write-protected; wanted another name")
        _probe(path if output.folder else path.parent, said)
    except OSError as error:  # a name too long in all, a loop of links, a folder that may not be searched
        raise ValueError(f"{said}: {(error.strerror or str(error)).lower()}") from None


def _probe(folder: Path, said: str) -> None:
    """Writes a file into a folder, or into the nearest one above that is there, and takes it away again."""
    there = next((one for one in (folder, *folder.parents) if os.path.lexists(one)), Path())
    if not there.is_dir():
        raise ValueError(f"{said}, where {there} is no folder; wanted another place")
    probe = name_part(there / "probe")
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        reason = "no space left" if error.errno == errno.ENOSPC else (error.strerror or str(error)).lower()
        raise ValueError(
            f"{said}, where nothing can be written into {there.absolute()} ({reason}); wanted another place"
        ) from None
    finally:
        with suppress(OSError):
            probe.unlink()


def _is_same(one: Path, other: Path) -> bool:
    """Whether two names mean one file, by whatever links."""
    with suppress(OSError):
        if one.samefile(other):
            return True
    return os.path.normcase(os.path.realpath(one)) == os.path.normcase(os.path.realpath(other))
