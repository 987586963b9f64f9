"""The client: `RemoteWorld` asks a server, and asks again after a cut; `RemoteState` names a session there.
Needs no torch.
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from ..backends import SCHEMES
from ..camera import CHUNK_FRAMES, Array
from ..files import to_path, write_whole
from ..numbers import to_number
from ..observations import Frames
from . import TOKEN, wire

if TYPE_CHECKING:
    from sana_wm_env.model.state import WorldState

PATIENCE_S = 60.0
LONGEST_PAUSE_S = 5.0
"""Between two attempts to connect."""
ERRORS: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "TypeError": TypeError,
    "FileNotFoundError": FileNotFoundError,
    "ImportError": ImportError,
    "MemoryError": MemoryError,
    "LookupError": LookupError,
}
"""That the server may name; any other is a RuntimeError."""
Answered = TypeVar("Answered", bound=wire.Answer)


class SessionLost(ConnectionError):
    """The server does not have this client's states any more. A reset begins anew."""


class Held:
    """What lies at the server under a number, for as long as somebody here has it."""

    def __init__(self, world: RemoteWorld, number: int):
        self.number, self.session = number, world.session
        self._end = weakref.finalize(self, world.let_go, number, world.session)
        self._end.atexit = False  # the session ends then anyway


@dataclass(frozen=True, eq=False)
class RemoteState:
    """One imagined session that lies at a server: the counterpart of a `WorldState`, and as immutable.

    Pickles and copies into other processes carry the whole session.

    Attributes:
        world: where it lies.
        held: under which number.
        c2w: (4, 4) float64, pose of the newest frame relative to the first.
        intrinsics_px: (4,) float64 fx, fy, cx, cy in pixels of the frames.
        frame: uint8 (H, W, 3), the newest one.
        chunk_index: chunks since the reset.
        task: what the task keeps with it.
    """

    world: RemoteWorld
    held: Held
    c2w: Array
    intrinsics_px: Array
    frame: Frames
    chunk_index: int = 0
    task: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file that `WorldState.save` would: it opens there, here, and in any process that has the
        same world.

        Raises:
            OSError: nothing can be written there; names the file.
            SessionLost: the server does not have it any more.
        """
        data = self.to_bytes()
        write_whole(path, lambda part: Path(part).write_bytes(data))

    def to_bytes(self) -> bytes:
        """The content of that file."""
        task = {name: wire.to_wire(value) for name, value in self.task.items()}
        return self.world.ask(wire.Save(self.world.number(self.held), task), wire.Saved).data

    def to_local(self) -> WorldState:
        """The same session as a `WorldState` in this process. Needs torch."""
        from sana_wm_env.model.state import WorldState

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.safetensors"
            path.write_bytes(self.to_bytes())
            return WorldState.load(path)

    def moved(self, held: Held, c2w: Array, frame: Frames) -> RemoteState:
        """What it became by one step."""
        return replace(self, held=held, c2w=c2w.copy(), frame=frame.copy(), chunk_index=self.chunk_index + 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> Any:
        return (open_state, (self.world, self.to_bytes()))


class RemoteWorld:
    """A world at a server: what an environment asks of a `WorldModel`, with arrays in place of tensors.

    A cut connection is made again, and the call that was under way is asked again: it is done once. One call
    is under way at a time; threads wait for each other.

    Args:
        address: "wss://host:port", or "ws://" without TLS. The certificate is checked against the system's,
            or those of the file in SSL_CERT_FILE.
        token: that the server knows; None for that in the environment variable SANA_WM_TOKEN.
        patience_s: seconds without a connection after which a call fails.

    Attributes:
        info: what the server said of the world.
        session: name of the session there.

    Raises:
        ValueError: no address, or no token.
        PermissionError: the server does not know the token.
        ConnectionError: nobody answers there, or not as such a server.
    """

    def __init__(self, address: str, token: str | None = None, patience_s: float = PATIENCE_S):
        self.address = check_address(address)
        self._given = token
        self.patience_s = to_number(patience_s, "patience_s", "seconds")
        self._token = os.environ.get(TOKEN, "") if token is None else token
        if not self._token:
            raise ValueError(
                f"got no token for {self.address}; wanted the one that `sana-wm serve` was given or has "
                f"printed, in the environment variable {TOKEN}, or RemoteWorld(address, token)"
            )
        self._begin()
        self.info = self._connected()[1]

    def _begin(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()
        self._link: ClientConnection | None = None
        self._forgotten: deque[tuple[int, str | None]] = deque()
        self.session: str | None = None
        self._number, self._abandoned = 0, False

    # ---- the world

    def start(self, prepared: Held, seeds: tuple[int, int, int]) -> RemoteState:
        """Opens an episode from checked options and its draws."""
        answer = self.ask(wire.Start(self.number(prepared), seeds), wire.Started)
        frame = wire.from_wire(answer.frame, "uint8", (*self.info.image_size, 3))
        intrinsics = wire.from_wire(answer.intrinsics_px, "float64", (4,))
        return RemoteState(self, Held(self, answer.state), np.eye(4), intrinsics, frame)

    def prepare(self, call: wire.Prepare) -> Held:
        """Has the options of a reset checked. ValueError, FileNotFoundError, ImportError for bad ones."""
        return Held(self, self.ask(call, wire.Held).numbers[0])

    def is_clear(self, prepared: Held, seeds: tuple[int, int, int], c2w: Array) -> NDArray[np.bool_]:
        """Whether a camera may stand at poses (F, 4, 4) of an episode that begins so: (F,)."""
        call = wire.IsClear(self.number(prepared), seeds, wire.to_wire(c2w))
        return wire.from_wire(self.ask(call, wire.Value).value, "bool", (len(c2w),))

    def step_each(self, states: list[RemoteState], c2w: Array) -> list[tuple[Frames, RemoteState]]:
        """Moves N states along poses (N, 24, 4, 4), in one forward: frames uint8 (24, H, W, 3) and the next
        state of each. The states stay as they are.
        """
        call = wire.Step([self.number(state.held) for state in states], wire.to_wire(c2w))
        answer = self.ask(call, wire.Stepped)
        shape = (len(states), c2w.shape[1], *self.info.image_size, 3)
        frames = wire.from_wire(answer.frames, "uint8", shape)
        return [
            (shown, state.moved(Held(self, number), path[-1], shown[-1]))
            for shown, state, number, path in zip(frames, states, answer.states, c2w, strict=True)
        ]

    def branch(self, state: RemoteState, n: int) -> list[RemoteState]:
        """States that differ from one in their noise from here on."""
        numbers = self.ask(wire.Branch(self.number(state.held), n), wire.Held).numbers
        return [replace(state, held=Held(self, number)) for number in numbers]

    def measure(self, state: RemoteState, refine: bool) -> int:
        """Bytes that a candidate takes at the server."""
        answer = self.ask(wire.Measure(self.number(state.held), refine), wire.Value)
        return int(wire.from_wire(answer.value, "int64", ()))

    def play(
        self,
        state: RemoteState,
        c2w: Array,
        show: wire.Show = "all",
        refine: bool = True,
        own_noise: bool = False,
        first: int = 0,
    ) -> Any:
        """Imagines n sequences from one state along poses (n, 24 K, 4, 4). Yields latents float32 (n, C, T,
        h, w) and frames uint8 (n, F, H, W, 3) of each chunk: F = 0, 1 or 24 as `show` says.
        """
        call = wire.Play(self.number(state.held), wire.to_wire(c2w), show, refine, own_noise, first)
        playing = Held(self, self.ask(call, wire.Held).numbers[0])
        for _ in range(c2w.shape[1] // CHUNK_FRAMES):
            chunk = self.ask(wire.Next(self.number(playing)), wire.Chunk)
            yield wire.from_wire(chunk.latents, "float32"), wire.from_wire(chunk.frames, "uint8")

    def encode(self, frames: Frames) -> NDArray[np.float32]:
        """Latents float32 (B, C, 1 + k, h, w) of frames uint8 (B, 1 + 8 k, H, W, 3)."""
        return wire.from_wire(self.ask(wire.Encode(wire.to_wire(frames)), wire.Value).value, "float32")

    def accept(self, state: Any) -> RemoteState:
        """A session for this world: one that lies here, or a `WorldState`, the bytes or the path of a saved
        one, which go to the server.

        Raises:
            ValueError: it is none, or of another world; says which.
            FileNotFoundError: there is no such file.
        """
        if isinstance(state, RemoteState):
            if state.world is self:
                self.number(state.held)
                return state
            return self._upload(state.to_bytes())
        if isinstance(state, bytes):
            return self._upload(state)
        if isinstance(state, str | os.PathLike):
            if not (path := to_path(state)).is_file():
                raise FileNotFoundError(f"got {str(path)!r}, which is no file; wanted a saved state")
            return self._upload(path.read_bytes())
        if type(state).__name__ == "WorldState" and hasattr(state, "save"):
            with tempfile.TemporaryDirectory() as folder:
                state.save(path := Path(folder) / "state.safetensors")
                return self._upload(path.read_bytes())
        raise ValueError(
            f"got a {type(state).__name__}; wanted a RemoteState or WorldState, from save_state, or the path "
            "of a saved one"
        )

    def _upload(self, data: bytes) -> RemoteState:
        answer = self.ask(wire.Restore(data), wire.Restored)
        return RemoteState(
            self,
            Held(self, answer.state),
            wire.from_wire(answer.c2w, "float64", (4, 4)),
            wire.from_wire(answer.intrinsics_px, "float64", (4,)),
            wire.from_wire(answer.frame, "uint8", (*self.info.image_size, 3)),
            answer.chunk_index,
            {name: wire.from_wire(value) for name, value in answer.task.items()},
        )

    # ---- the connection

    def number(self, held: Held) -> int:
        """What the server calls it. SessionLost if it lay in another session."""
        if held.session != self.session or self._process != os.getpid():
            raise SessionLost(
                f"the state lay in a session with {self.address} that is over, or is another process's; "
                "reset, or restore one that was saved"
            )
        return held.number

    def let_go(self, number: int, session: str | None) -> None:
        """Has the server free something with the next call. Takes no lock: it may run at any moment."""
        self._forgotten.append((number, session))

    def ask(self, call: wire.Call, kind: type[Answered]) -> Answered:
        """Makes a call, once, however often the connection is cut.

        Raises:
            ValueError and others: what the server says is wrong with the call; nothing has changed.
            SessionLost: the server does not know this session any more.
            ConnectionError: no connection for `patience_s`.
        """
        if self._process != os.getpid():  # a forked process has its parent's socket, and may not use it
            self._begin()
        with self._lock:
            self._connected()  # a call is made in the session that its numbers are of, or not at all
            self._number += 1
            forgotten = [self._forgotten.popleft() for _ in range(len(self._forgotten))]
            forget = [number for number, session in forgotten if session == self.session]
            request = wire.Request(self._number, call, forget, self._abandoned)
            self._abandoned = True  # until the answer is here
            answer = self._exchange(request)
            self._abandoned = False
        if isinstance(answer, wire.Failure):
            raise _error(answer)
        if not isinstance(answer, kind):
            raise ConnectionError(
                f"{self.address} answered {type(call).__name__} with another kind of message"
            )
        return answer

    def _exchange(self, request: wire.Request) -> wire.Answer:
        """Sends a request until its reply comes."""
        data = wire.encode(request)
        while True:
            link, _ = self._connected()
            try:
                link.send(data)
                while True:  # replies to a call that was given up are passed over
                    message = wire.read_server(_binary(link.recv()))
                    if isinstance(message, wire.Failure):
                        raise _error(message)
                    if isinstance(message, wire.Reply) and message.number == request.number:
                        return message.answer
            except (ConnectionClosed, OSError):
                self._hang_up()
            except BaseException:  # interrupted: what comes next here is no answer to the next call
                self._hang_up()
                raise

    def _connected(self) -> tuple[ClientConnection, wire.Welcome]:
        """The connection, made again if it was cut, and what the server said of itself."""
        if self._link is not None:
            return self._link, self.info
        end, pause, why = time.monotonic() + self.patience_s, 0.05, "no answer"
        while True:
            try:
                return self._connect(max(1.0, end - time.monotonic()))
            except InvalidStatus as error:
                status, said = (
                    error.response.status_code,
                    bytes(error.response.body or b"").decode(errors="replace"),
                )
                if status in (401, 403):
                    raise PermissionError(f"{self.address} refuses: {said.strip()}") from None
                why = f"{status} {said.strip()[:200]}"
                if status not in (502, 503, 504):
                    raise ConnectionError(f"{self.address} is no server of a world: {why}") from None
            except SessionLost:
                raise
            except (InvalidHandshake, ConnectionClosed, OSError, EOFError) as error:
                if "certificate" in str(error).lower():
                    raise ConnectionError(
                        f"{self.address} shows a certificate that is not trusted here ({error}); "
                        "SSL_CERT_FILE names a file of those that are"
                    ) from None
                why = str(error) or type(error).__name__
            if (left := end - time.monotonic()) <= 0:
                raise ConnectionError(
                    f"no connection to {self.address} for {self.patience_s:g} s ({why}); the episode is "
                    "where it was, and goes on if the server is back in time"
                )
            time.sleep(min(left, pause * random.uniform(0.5, 1)))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _connect(self, timeout_s: float) -> tuple[ClientConnection, wire.Welcome]:
        opening = connect(
            self.address + wire.LINK,
            additional_headers={"Authorization": f"Bearer {self._token}"},
            compression=None,
            max_size=None,
            open_timeout=timeout_s,
            user_agent_header="sana-wm-env",
        )
        link = ExitStack().enter_context(opening)  # it stays open from call to call, not for one block
        try:
            link.send(wire.encode(wire.Hello(wire.PROTOCOL, self.session)))
            message = wire.read_server(_binary(link.recv(timeout_s)))
            if isinstance(message, wire.Failure) and message.kind == "LookupError":
                self.session, self._number, self._abandoned = None, 0, False
                raise SessionLost(f"{self.address}: {message.text}")
            if isinstance(message, wire.Failure):
                raise _error(message)
            if not isinstance(message, wire.Welcome):
                raise ConnectionError(f"{self.address} did not say hello as a world")
        except BaseException:
            link.close_socket()
            raise
        known = getattr(self, "info", message)
        if message.weights != known.weights:
            link.close()
            raise SessionLost(
                f"{self.address} has another world now, {message.world!r}; make the environment anew"
            )
        self._link, self.session = link, message.session
        return link, message

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.close_socket()
            self._link = None

    def close(self) -> None:
        """Ends the session; what lies at the server is freed. A later call begins a new one."""
        with self._lock:
            if self._link is not None and self._process == os.getpid():
                try:
                    self._link.send(wire.encode(wire.Goodbye()))
                    self._link.close()
                except (ConnectionClosed, OSError):
                    pass
            self._link, self.session, self._number, self._abandoned = None, None, 0, False

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __copy__(self) -> Self:
        return self

    def __reduce__(self) -> Any:
        return (RemoteWorld, (self.address, self._given, self.patience_s))


def open_state(world: RemoteWorld, data: bytes) -> RemoteState:
    """The session of a pickle."""
    return world.accept(data)


def check_address(address: Any) -> str:
    """Returns where a server listens. ValueError for anything else."""
    try:
        parts = urlsplit(address) if isinstance(address, str) else None
        fits = parts is not None and parts.scheme.lower() in SCHEMES and parts.hostname and parts.port != 0
    except ValueError:
        fits = False
    if not fits or parts is None or parts.username or parts.query or parts.fragment:
        raise ValueError(f"got the address {address!r}; wanted wss://host:port of a `sana-wm serve`")
    return address.rstrip("/")


def _binary(message: str | bytes) -> bytes:
    return message if isinstance(message, bytes) else b""


def _error(failure: wire.Failure) -> Exception:
    return ERRORS.get(failure.kind, RuntimeError)(failure.text)
