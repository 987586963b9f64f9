"""The adapter against a server that speaks as SGLang 0.5.23 does (`realtime_video_api.py` and
`realtime_output_adapter.py` of its wheel). The service itself needs a GPU and was not run.
"""

import contextlib
import io
import threading

import numpy as np
import pytest

for library in ("websockets", "msgspec"):
    pytest.importorskip(library, reason="needs the extra remote")
import msgspec  # noqa: E402
from PIL import Image  # noqa: E402
from websockets.sync.server import serve  # noqa: E402

from sana_wm_env.remote.sglang import PATH, REFUSED, SGLangWorld  # noqa: E402

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
POSES = np.tile(np.eye(4), (49, 1, 1))
POSES[:, 2, 3] = np.linspace(0, 1, 49)
CLIP = np.random.default_rng(1).integers(0, 256, (49, 32, 64, 3), np.uint8)


@contextlib.contextmanager
def service(answer):
    """A server that answers a request by what `answer(request, send)` sends; yields its address and the
    requests.
    """
    requests = []

    def handle(link):
        requests.append(msgspec.msgpack.decode(link.recv()) | {"path": link.request.path})
        answer(
            requests[-1], lambda message: link.send(message if isinstance(message, bytes) else pack(message))
        )

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}", requests
        server.shutdown()


def pack(message):
    return msgspec.msgpack.encode(message)


def show(frames, send, apart: bool, **changed):
    """Frames as the service sends them: small ones in one message, large ones after their header."""
    header = {
        "type": "frame_batch_header", "request_id": "r", "chunk_index": 0, "content_type": "raw-rgb",
        "num_frames": len(frames), "height": frames.shape[1], "width": frames.shape[2], "channels": 3,
        "format": "rgb24", "encoding": "raw", "bytes_per_frame": frames[0].nbytes, "raw_size": frames.nbytes,
        "total_size": frames.nbytes, "frame_batch_index": 0, "num_frame_batches": 1,
    } | changed  # fmt: skip
    if apart:
        send(header), send(frames.tobytes())
    else:
        send(header | {"type": "frame_batch", "payload": frames.tobytes()})


def play(address, **changed):
    arguments = {"image": PICTURE, "intrinsics": (50, 50, 30, 20), "prompt": "a hall", "c2w": POSES} | changed
    return SGLangWorld(address, patience_s=5).play(**arguments)


def test_a_clip_comes_whole_and_in_order():
    def answer(request, send):
        show(CLIP[:25], send, apart=True)
        send({"type": "chunk_stats", "chunk_index": 0})
        show(CLIP[25:41], send, apart=False)
        show(CLIP[41:], send, apart=True)

    with service(answer) as (address, requests):
        shown = np.concatenate(list(play(address, seed=3, size=(32, 64))))
    assert np.array_equal(shown, CLIP)
    (request,) = requests
    assert (request["path"], request["type"], request["max_chunks"]) == (PATH, "init", 2)
    assert (request["num_frames"], request["size"], request["seed"]) == (49, "64x32", 3)
    assert np.array_equal(request["condition_inputs"]["camera"], POSES)
    assert request["condition_inputs"]["intrinsics"] == [50, 50, 30, 20]
    assert np.array_equal(Image.open(io.BytesIO(request["first_frame"])), PICTURE)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_service_cannot_do_is_refused_by_name(name):
    with pytest.raises(NotImplementedError, match=f"no {name}.*sana-wm serve"):
        getattr(SGLangWorld("ws://localhost:1"), name)


@pytest.mark.parametrize(
    ("message", "error", "said"),
    [
        ({"type": "error", "content": "invalid generate request"}, ValueError, "refuses: invalid generate"),
        ({"type": "error", "content": "another realtime session is already active"}, ConnectionError, "busy"),
        (b"\xc1", ValueError, "no message"),
        ([1], ValueError, "wanted a map"),
    ],
)
def test_what_it_says_is_passed_on(message, error, said):
    with service(lambda request, send: send(message)) as (address, _), pytest.raises(error, match=said):
        list(play(address))


@pytest.mark.parametrize("changed", [{"num_frames": 3}, {"height": "tall"}, {"encoding": "webp"}])
def test_frames_that_do_not_fit_their_header_are_refused(changed):
    def answer(request, send):
        show(CLIP[:25], send, True, **changed)

    with service(answer) as (address, _), pytest.raises(ValueError, match="frames"):
        list(play(address))


def test_a_service_that_ends_early_says_how_far_it_came():
    early = pytest.raises(ConnectionError, match="after 25 of 49 frames")
    with service(lambda request, send: show(CLIP[:25], send, False)) as (address, _), early:
        list(play(address))
    with pytest.raises(ConnectionError):
        list(play(address))


@pytest.mark.parametrize(
    "changed",
    [
        {"c2w": POSES[:30]},
        {"c2w": POSES[:1]},
        {"c2w": 2 * POSES},
        {"intrinsics": (1, 2)},
        {"seed": -1},
        {"steps": 0},
        {"size": (0, 64)},
        {"image": "nowhere.png"},
    ],
)
def test_bad_arguments_are_refused_before_anything_is_sent(changed):
    refused = pytest.raises((ValueError, FileNotFoundError))
    with service(lambda request, send: None) as (address, requests), refused:
        play(address, **changed)
    assert not requests
