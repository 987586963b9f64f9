"""What a page may say, checked in one place; and how pictures are packed for it.

A message of a page is a JSON object with a `kind` out of `KINDS` and exactly the fields named there. What
does not fit is refused by name, and changes nothing.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .controls import AXES, KEYS

LONGEST = 4096
"""Bytes of a message."""
LONGEST_PROMPT = 1000
MOST = 2**53
"""Whole numbers beyond it are not exact in a browser."""
AGENTS = ("random", "orbit", "look-around", "lawnmower", "go-to-goal", "cem", "ppo")
FUTURES = ("actions", "noises")

WALK, BRANCHES, STILL = 0, 1, 2
"""Streams of pictures: chunks to be played, futures to be chosen from, one picture to be shown at once."""
HEADER = struct.Struct("<BBHIIB3x12f")
"""stream, take, frame within the chunk, epoch, chunk, number of pictures, camera-to-world (3, 4) in rows."""
SMALL = 160
"""Pictures of up to this height are sent without loss."""


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _number(most: float) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value) and abs(value) <= most

    return fits


def _row(length: int, most: float) -> Callable[[Any], bool]:
    fits = _number(most)
    return lambda value: type(value) is list and len(value) == length and all(map(fits, value))


def _keys(value: Any) -> bool:
    return (
        type(value) is list and len(value) <= len(KEYS) and all(type(k) is str and k in KEYS for k in value)
    )


def _flag(value: Any) -> bool:
    return type(value) is bool


def _choice(*names: str) -> Callable[[Any], bool]:
    return lambda value: type(value) is str and value in names


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _text(value: Any) -> bool:
    return type(value) is str and len(value) <= LONGEST_PROMPT


def _room(value: Any) -> bool:
    return _whole(0, 10**6)(value) or _choice("held-out")(value)


_counter = _whole(0, MOST)
KINDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "control": {
        "seq": _whole(1, MOST),
        "at": _number(1e15),
        "held": _keys,
        "tapped": _keys,
        "look": _row(2, 1e4),
        "axes": _row(len(AXES), 1.0),
        "showing": _counter,
    },
    "release": {"seq": _whole(1, MOST), "at": _number(1e15)},
    "begun": {"epoch": _counter, "chunk": _counter},
    "ended": {"epoch": _counter, "chunk": _counter},
    "start": {"room": _or_none(_room), "seed": _or_none(_whole(0, 2**62)), "prompt": _or_none(_text)},
    "go": {"moment": _counter},
    "futures": {"by": _choice(*FUTURES)},
    "pick": {"future": _or_none(_whole(0, 3))},
    "agent": {"name": _or_none(_choice(*AGENTS))},
    "set": {"name": _choice("flow", "paused", "truth", "walls"), "on": _flag},
    "record": {"on": _flag},
    "export": {},
}
"""Kind -> field -> check."""


def read_message(text: str) -> dict[str, Any]:
    """Returns a checked message of a page. ValueError that says what is wrong with it."""
    if len(text) > LONGEST:
        raise ValueError(f"got a message of {len(text)} characters; wanted at most {LONGEST}")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("got a message that is no JSON") from None
    kind = message.get("kind") if isinstance(message, dict) else None
    fields = KINDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise ValueError(f"got a message of kind {str(kind)[:40]!r}; wanted one of {', '.join(KINDS)}")
    if odd := sorted(map(str, message.keys() ^ {"kind", *fields})):
        raise ValueError(
            f"got a {kind!r} message with or without {odd[0][:40]!r}; wanted {', '.join(fields)}"
        )
    for name, fits in fields.items():
        if not fits(message[name]):
            raise ValueError(
                f"got {name}={str(message[name])[:60]!r} in a {kind!r} message, which is not allowed"
            )
    return message


def encode_picture(frame: NDArray[np.uint8]) -> bytes:
    """One picture (H, W, 3) as a browser shows it: PNG where that is small, else JPEG with full colour."""
    from PIL import Image

    out = io.BytesIO()
    if frame.shape[0] <= SMALL:
        Image.fromarray(frame).save(out, "PNG", compress_level=3)
    else:
        Image.fromarray(frame).save(out, "JPEG", quality=90, subsampling=0)
    return out.getvalue()


def encode_thumbnail(frame: NDArray[np.uint8]) -> bytes:
    """A picture (H, W, 3) for the timeline, 96 pixels high at most."""
    step = max(1, frame.shape[0] // 96)
    return encode_picture(np.ascontiguousarray(frame[step // 2 :: step, step // 2 :: step]))


def pack_frame(
    stream: int,
    epoch: int,
    chunk: int,
    take: int,
    frame: int,
    pose: NDArray[np.float64],
    pictures: Sequence[bytes],
) -> bytes:
    """One binary message: `HEADER`, the length of each picture as uint32, the pictures."""
    header = HEADER.pack(stream, take, frame, epoch, chunk, len(pictures), *pose[:3].ravel().tolist())
    return b"".join([header, struct.pack(f"<{len(pictures)}I", *map(len, pictures)), *pictures])


def unpack_frame(data: bytes) -> tuple[dict[str, int], NDArray[np.float64], list[bytes]]:
    """The inverse of `pack_frame`: numbers by name, pose (4, 4), pictures."""
    stream, take, frame, epoch, chunk, count, *rows = HEADER.unpack_from(data)
    lengths = struct.unpack_from(f"<{count}I", data, HEADER.size)
    pictures, at = [], HEADER.size + 4 * count
    for length in lengths:
        pictures.append(data[at : at + length])
        at += length
    numbers = {"stream": stream, "take": take, "frame": frame, "epoch": epoch, "chunk": chunk}
    return numbers, np.vstack([np.reshape(rows, (3, 4)), [0, 0, 0, 1]]), pictures
