"""Messages between `RemoteWorld` and `sana-wm serve`: msgpack in WebSocket messages.

A client opens a session (`Hello`, answered by `Welcome`), and then makes one call at a time: `Request`, whose
number counts up by one, answered by `Reply`. A call that may have been lost is sent again under its number;
it is done once, and its answer is kept until the next. States lie at the server and are named by numbers; the
client says which it has let go.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

PROTOCOL = 1
"""Raised when a message changes its meaning; both sides must speak the same."""
LINK = "/link"
"""Path of the WebSocket."""
DTYPES = ("bool", "uint8", "int32", "int64", "float32", "float64")
"""Of arrays on the wire."""
MOST_AXES = 8


class Array(Struct, array_like=True):
    """An array in C order, little-endian."""

    dtype: str
    shape: list[int]
    data: bytes


Arrays = dict[str, Array]
Show = Literal["nothing", "last", "all"]


# ---- calls: what is done is what the method of that name does in `WorldModel` or `SanaWMEnv`


class Prepare(Struct, tag=True, forbid_unknown_fields=True):
    """Checks the options of a reset. Answered by `Held`, of what `Start` takes."""

    room: int | str | None = None
    image: Array | None = None
    intrinsics: Array | str | None = None
    prompt: str | None = None
    look_around: bool | None = None


class Start(Struct, tag=True, forbid_unknown_fields=True):
    """Opens an episode from what was prepared, with its draws (room, noise, task). Answered by `Started`."""

    prepared: int
    seeds: tuple[int, int, int]


class IsClear(Struct, tag=True, forbid_unknown_fields=True):
    """Whether a camera may stand at poses (F, 4, 4) of an episode opened so. Answered by `Value`, bool
    (F,).
    """

    prepared: int
    seeds: tuple[int, int, int]
    c2w: Array


class Step(Struct, tag=True, forbid_unknown_fields=True):
    """Moves N states along poses (N, 24, 4, 4); with more than one, in one forward. Answered by `Stepped`."""

    states: list[int]
    c2w: Array


class Branch(Struct, tag=True, forbid_unknown_fields=True):
    """Makes n states of one, whose noise differs from here on. Answered by `Held`."""

    state: int
    n: int


class Measure(Struct, tag=True, forbid_unknown_fields=True):
    """Bytes that a candidate takes that goes on from a state, refined or not. Answered by `Value`, int64
    ().
    """

    state: int
    refine: bool


class Play(Struct, tag=True, forbid_unknown_fields=True):
    """Begins to imagine n sequences from one state along poses (n, 24 K, 4, 4). Answered by `Held`, of what
    `Next` takes.

    show: which frames are wanted of a chunk.
    own_noise: whether sequences differ in noise; `first` is the place of the first among all candidates.
    """

    state: int
    c2w: Array
    show: Show
    refine: bool
    own_noise: bool
    first: int


class Next(Struct, tag=True, forbid_unknown_fields=True):
    """The next chunk of what is being played. Answered by `Chunk`."""

    playing: int


class Encode(Struct, tag=True, forbid_unknown_fields=True):
    """Latents of frames uint8 (B, 1 + 8 k, H, W, 3). Answered by `Value`, float32 (B, C, 1 + k, h, w)."""

    frames: Array


class Save(Struct, tag=True, forbid_unknown_fields=True):
    """A state as the file that `WorldState.save` writes, with what a task keeps. Answered by `Saved`."""

    state: int
    task: Arrays


class Restore(Struct, tag=True, forbid_unknown_fields=True):
    """A state from such a file. Answered by `Restored`."""

    data: bytes


Call = Prepare | Start | IsClear | Step | Branch | Measure | Play | Next | Encode | Save | Restore


# ---- answers


class Held(Struct, tag=True):
    """Numbers of what now lies at the server."""

    numbers: list[int]


class Started(Struct, tag=True):
    """Frame uint8 (H, W, 3), intrinsics (4,) and state of a new episode."""

    state: int
    frame: Array
    intrinsics_px: Array


class Stepped(Struct, tag=True):
    """Frames uint8 (N, 24, H, W, 3) and states after a step."""

    states: list[int]
    frames: Array


class Chunk(Struct, tag=True):
    """Latents float32 (n, C, T, h, w) and frames uint8 (n, F, H, W, 3): F = 0, 1 or 24, as was asked."""

    latents: Array
    frames: Array


class Saved(Struct, tag=True):
    """Bytes of a file."""

    data: bytes


class Restored(Struct, tag=True):
    """A session: pose (4, 4), intrinsics (4,), newest frame (H, W, 3), chunks so far, and the task's part."""

    state: int
    frame: Array
    c2w: Array
    intrinsics_px: Array
    chunk_index: int
    task: Arrays


class Value(Struct, tag=True):
    """An array."""

    value: Array


class Failure(Struct, tag=True):
    """Why a call was refused; it changed nothing. kind: name of the error that the client raises."""

    kind: str
    text: str


Answer = Held | Started | Stepped | Chunk | Saved | Restored | Value | Failure


# ---- envelopes


class Hello(Struct, tag=True, forbid_unknown_fields=True):
    """The client's first message on a connection: a new session, or one to go on with."""

    protocol: int
    session: str | None = None


class Request(Struct, tag=True, forbid_unknown_fields=True):
    """A call.

    number: one more than that of the call before; the same if it is sent once more.
    forget: numbers of what the client has let go.
    abandoned: the client did not wait for the answer before; what it named is let go.
    """

    number: int
    call: Call
    forget: list[int] = []
    abandoned: bool = False


class Goodbye(Struct, tag=True, forbid_unknown_fields=True):
    """Ends a session and frees what it has."""


class Welcome(Struct, tag=True):
    """The server's first message.

    session: its name, a secret.
    world, image_size, max_translation_m, max_rotation_rad: of the environment.
    weights: fingerprint of the world, which is that of its states.
    """

    session: str
    world: str
    image_size: tuple[int, int]
    max_translation_m: float
    max_rotation_rad: float
    weights: str


class Reply(Struct, tag=True):
    """The answer to the call of that number."""

    number: int
    answer: Answer


_encoder = msgspec.msgpack.Encoder()
_of_client = msgspec.msgpack.Decoder(Hello | Request | Goodbye)
_of_server = msgspec.msgpack.Decoder(Welcome | Reply | Failure)


def encode(message: Struct) -> bytes:
    """A message as bytes."""
    return _encoder.encode(message)


def read_client(data: bytes) -> Hello | Request | Goodbye:
    """A client's message. ValueError for anything else."""
    try:
        return _of_client.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"got no message of protocol {PROTOCOL}: {error}") from None


def read_server(data: bytes) -> Welcome | Reply | Failure:
    """A server's message. ValueError for anything else."""
    try:
        return _of_server.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"got no message of protocol {PROTOCOL} from the server: {error}") from None


def to_wire(array: Any) -> Array:
    """An array, or what numpy makes one of, as it crosses. ValueError for a dtype that does not."""
    given = np.asarray(array)
    if given.dtype.name not in DTYPES:
        raise ValueError(f"got an array of {given.dtype}; wanted one of {', '.join(DTYPES)}")
    given = np.ascontiguousarray(given, given.dtype.newbyteorder("<")).reshape(given.shape)
    return Array(given.dtype.name, list(given.shape), given.tobytes())


def from_wire(
    array: Array, dtype: str | None = None, shape: tuple[int | None, ...] | None = None
) -> NDArray[Any]:
    """An array as it came, in memory of its own.

    dtype, shape: what is wanted, None in a place for any.

    Raises:
        ValueError: another one, or bytes that are no such array.
    """
    if array.dtype not in DTYPES:
        raise ValueError(f"got an array of {array.dtype[:20]!r}; wanted one of {', '.join(DTYPES)}")
    if len(array.shape) > MOST_AXES or any(not 0 <= size < 2**31 for size in array.shape):
        raise ValueError(f"got an array of shape {array.shape[: MOST_AXES + 1]}; wanted {shape or 'a shape'}")
    kind = np.dtype(array.dtype).newbyteorder("<")
    count = int(np.prod(array.shape, dtype=object))  # no overflow
    if count * kind.itemsize != len(array.data):
        raise ValueError(f"got {len(array.data)} bytes for an array of {array.dtype} {tuple(array.shape)}")
    fits = shape is None or (
        len(shape) == len(array.shape)
        and all(want in (None, size) for want, size in zip(shape, array.shape, strict=True))
    )
    if not fits or dtype not in (None, array.dtype):
        wanted = f"{dtype or 'an array'} {shape or ''}".rstrip().replace("None", "any")
        raise ValueError(f"got {array.dtype} {tuple(array.shape)}; wanted {wanted}")
    values = np.frombuffer(array.data, np.uint8 if array.dtype == "bool" else kind)
    return values.astype(array.dtype, copy=True).reshape(array.shape)  # any byte but 0 is True
