"""A world at SGLang's realtime service: a clip along a camera path that is known in advance, and no more.

That service (0.5.23, `/v1/realtime_video/generate`) plays on by itself once it was started, for one client
at a time, and keeps its sessions to itself: there is no step that waits for an action, and nothing can be
saved, restored or branched. What it takes whole is a path of poses (`condition_inputs["camera"]`), so that is
what this adapter sends. `sana-wm serve` has the rest.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from ..camera import CHUNK_FRAMES, FPS, Array, check_intrinsics, check_poses
from ..numbers import to_number, to_whole
from ..observations import Frames
from ..pictures import read_image
from .client import check_address

PATH = "/v1/realtime_video/generate"
SIZE = (704, 1280)
REFUSED = {
    "start": "its sessions begin to play at once",
    "step": "it plays on by itself, and does not wait for an action",
    "step_each": "it plays on by itself, one session at a time",
    "save_state": "its sessions cannot be read",
    "restore_state": "its sessions cannot be set",
    "fork": "its sessions cannot be copied",
    "imagine": "its sessions cannot be copied",
    "encode": "it shows frames, never latents",
}
"""What `RemoteWorld` or its environment can do, and why this service cannot."""


class SGLangWorld:
    """A client of one service.

    Args:
        address: "ws://host:port" or "wss://".
        patience_s: seconds without a message after which a clip is given up.

    Raises:
        ValueError: no such address.
        NotImplementedError: when something is asked of it that the service cannot do; says why.
    """

    def __init__(self, address: str, patience_s: float = 120.0):
        self.address = check_address(address)
        self.patience_s = to_number(patience_s, "patience_s", "seconds")

    def __getattr__(self, name: str) -> Any:
        if name in REFUSED:
            raise NotImplementedError(
                f"SGLang's realtime service has no {name}: {REFUSED[name]}. It plays a path that is known in "
                "advance, play(image, intrinsics, prompt, c2w); `sana-wm serve` has environments"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def play(
        self,
        image: Any,
        intrinsics: Any,
        prompt: str,
        c2w: Array,
        *,
        seed: int = 0,
        size: tuple[int, int] = SIZE,
        steps: int = 4,
    ) -> Iterator[Frames]:
        """Has a clip played. The service draws its own noise: the same seed gives what it gave there before,
        and not what it gives in `SanaWM-v0`.

        Args:
            image: the first frame, what `read_image` takes.
            intrinsics: (4,) fx, fy, cx, cy in pixels of that image.
            prompt: describes the scene.
            c2w: (1 + 24 K, 4, 4) camera-to-world poses of all frames, OpenCV axes, metres, relative to the
                first.
            seed: of the service's noise.
            size: (height, width) that it shows.
            steps: of its sampler.

        Yields:
            uint8 (F, H, W, 3), as they come: 1 + 24 K frames in all, the first picture among them.

        Raises:
            ValueError: a bad argument, before anything is sent, or what the service finds wrong.
            ConnectionError: no such service, or it is busy with somebody else, or ends early.
        """
        picture = read_image(image)
        fx_fy_cx_cy = check_intrinsics(intrinsics, (picture.shape[0], picture.shape[1]))
        poses = check_poses(c2w, name="c2w")
        chunks, rest = divmod(len(poses) - 1, CHUNK_FRAMES)
        if chunks < 1 or rest:
            raise ValueError(f"got {len(poses)} poses; wanted 1 + {CHUNK_FRAMES} K, for K chunks")
        height, width = (to_whole(side, "size", 32, 4096) for side in size)
        request = {
            "type": "init",
            "prompt": prompt,
            "first_frame": _to_png(picture),
            "size": f"{width}x{height}",
            "num_frames": len(poses),
            "fps": FPS,
            "seed": to_whole(seed, "seed", 0, 2**63 - 1),
            "num_inference_steps": to_whole(steps, "steps", 1, 1000),
            "max_chunks": chunks,
            "realtime_output_format": "raw",
            "condition_inputs": {"camera": poses.tolist(), "intrinsics": fx_fy_cx_cy.tolist()},
        }
        return self._clip(request, len(poses))

    def _clip(self, request: dict[str, Any], wanted: int) -> Iterator[Frames]:
        shown = 0
        try:
            with connect(self.address + PATH, compression=None, max_size=None) as link:
                link.send(msgspec.msgpack.encode(request))
                while shown < wanted:
                    frames = self._read(link)
                    if frames is not None:
                        shown += len(frames)
                        yield frames
        except (ConnectionClosed, InvalidHandshake, OSError) as error:
            if isinstance(error, ConnectionError):
                raise
            raise ConnectionError(
                f"{self.address} ended after {shown} of {wanted} frames ({error or type(error).__name__})"
            ) from None

    def _read(self, link: ClientConnection) -> Frames | None:
        """The next frames; None for a message of something else."""
        message = _decode(link.recv(self.patience_s))
        kind = message.get("type")
        if kind == "error":
            said = str(message.get("content", ""))[:500]
            if "already active" in said:
                raise ConnectionError(f"{self.address} is busy: {said}; it serves one client at a time")
            raise ValueError(f"{self.address} refuses: {said}")
        if kind not in ("frame_batch", "frame_batch_header"):
            return None
        data = message.get("payload") if kind == "frame_batch" else link.recv(self.patience_s)
        if message.get("encoding") != "raw" or message.get("format") != "rgb24":
            given = message.get("content_type")
            raise ValueError(f"got frames in {given!r} from {self.address}; wanted raw RGB")
        if not isinstance(data, bytes):
            raise ValueError(f"got frames from {self.address} without their bytes")
        try:
            shape = tuple(int(message[name]) for name in ("num_frames", "height", "width", "channels"))
            return np.frombuffer(data, np.uint8).reshape(shape).copy()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"got frames from {self.address} whose header does not fit ({error})") from None


def _to_png(picture: Frames) -> bytes:
    from PIL import Image  # comes with imageio

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _decode(data: str | bytes) -> dict[str, Any]:
    try:
        message = msgspec.msgpack.decode(data if isinstance(data, bytes) else b"")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"got no message of SGLang's realtime service: {error}") from None
    if not isinstance(message, dict):
        raise ValueError(f"got a {type(message).__name__} from the service; wanted a map")
    return message
