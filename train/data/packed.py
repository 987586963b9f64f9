"""Packed clips of your own: webdataset tars with a video, its cameras and its caption per clip.

`clips-000000.tar` holds, for every clip, `KEY.mp4` (16 frames per second, at the size that the world sees),
`KEY.npz` (`c2w` (F, 4, 4) float64 relative to the first frame, OpenCV axes, metres; `intrinsics_px` (F, 4)
float32 in pixels of the video) and `KEY.json` (`caption`, `width`, `height`, `frames`). Any reader of
webdataset can open them.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_wm_env.actions import FPS
from sana_wm_env.arrays import read_npz
from sana_wm_env.camera import Array, check_poses
from sana_wm_env.numbers import to_whole

PATTERN, PACKED = "clips-%06d.tar", "clips-*.tar"
MAX_SIDE, MAX_FRAMES = 8192, 2**20
"""What a clip may declare; a side of a frame, and frames."""


@dataclass(frozen=True)
class PackedClip:
    """frames (F, H, W, 3) uint8; c2w (F, 4, 4) float64 relative to frame 0; intrinsics_px (F, 4) float32 in
    pixels of the frames.
    """

    key: str
    frames: NDArray[np.uint8]
    c2w: Array
    intrinsics_px: NDArray[np.float32]
    caption: str


def write_packed(folder: Path, clips: Iterable[PackedClip], per_tar: int, crf: int = 0) -> int:
    """Writes tars of `per_tar` clips into an existing folder and returns how many clips there were.

    crf: quality of the video; 0 keeps every pixel as it is (RGB; players that only know yuv420p refuse it),
    12 looks the same.
    """
    from webdataset.writer import ShardWriter

    count = 0
    here = str(folder.resolve()).replace(
        "%", "%%"
    )  # the library formats names, and reads addresses out of them
    with ShardWriter(f"{here}/{PATTERN}", maxcount=per_tar, maxsize=2**40, verbose=0, mtime=0) as writer:
        for clip in clips:
            frames, height, width, _ = clip.frames.shape
            writer.write(
                {
                    "__key__": clip.key,
                    "mp4": encode_video(clip.frames, crf),
                    "npz": {"c2w": clip.c2w, "intrinsics_px": clip.intrinsics_px},
                    "json": {"caption": clip.caption, "width": width, "height": height, "frames": frames},
                }
            )
            count += 1
    return count


def packed_tars(folder: Path) -> list[Path]:
    """Lists the tars in a folder, in order. FileNotFoundError that says what to run if there are none."""
    tars = sorted(Path(folder).glob(PACKED))
    if not tars:
        raise FileNotFoundError(
            f"got '{folder}', which holds no packed clips (clips-*.tar): run `sana-wm data pack "
            f"VIDEOS --out {folder}`"
        )
    return tars


packed_shards = packed_tars  # the former name


def read_packed(tar: Path) -> Iterator[PackedClip]:
    """Reads the clips of a tar.

    Raises:
        ValueError: it was cut off, or a part of a clip is missing, broken or does not fit the rest; the
            clip is named.
    """
    for key, parts in _samples(tar, ("mp4", "npz", "json")):
        if missing := {"mp4", "npz", "json"} - set(parts):
            raise ValueError(f"{tar}: the clip {key} has no {' and no '.join(sorted(missing))}; pack again")
        try:
            yield _read_clip(key, parts)
        except (ValueError, OSError, RecursionError, OverflowError) as error:
            cause = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise ValueError(f"{tar}: the clip {key} is broken: {cause}; pack again") from None


def packed_paths(folder: Path) -> Iterator[Array]:
    """The poses (F, 4, 4) of every clip, without decoding a video. ValueError as `read_packed`."""
    for tar in packed_tars(folder):
        for key, parts in _samples(tar, ("npz",)):
            try:
                yield check_poses(read_npz(parts["npz"])["c2w"], name="c2w")
            except (ValueError, KeyError) as error:
                raise ValueError(f"{tar}: the clip {key} is broken: {error}; pack again") from None


def _read_clip(key: str, parts: dict[str, bytes]) -> PackedClip:
    about, cameras = json.loads(parts["json"]), read_npz(parts["npz"])
    if not isinstance(about, dict) or not isinstance(about.get("caption"), str):
        raise ValueError("got no caption; wanted one text")
    count = to_whole(about.get("frames"), "frames", 1, MAX_FRAMES)
    height, width = (to_whole(about.get(name), name, 1, MAX_SIDE) for name in ("height", "width"))
    if not {"c2w", "intrinsics_px"} <= set(cameras):
        raise ValueError(f"got the arrays {', '.join(cameras)}; wanted c2w and intrinsics_px")
    c2w, intrinsics = check_poses(cameras["c2w"], count, "c2w"), cameras["intrinsics_px"]
    if intrinsics.shape != (count, 4) or intrinsics.dtype.kind != "f" or not np.isfinite(intrinsics).all():
        raise ValueError(f"got intrinsics_px of {intrinsics.dtype} {intrinsics.shape}; wanted ({count}, 4)")
    frames = decode_video(parts["mp4"], (count, height, width))
    return PackedClip(key, frames, c2w, intrinsics.astype(np.float32), about["caption"])


def _samples(tar: Path, endings: tuple[str, ...]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Keys of the clips of a tar, each with those of its files that have one of the endings.

    As webdataset has it: files that stand one after the other under one name up to its first dot.
    """
    key, parts = "", {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                stem, _, ending = member.name.partition(".")
                if not member.isreg() or member.issparse() or ending not in endings:
                    continue
                if stem != key and parts:
                    yield key, parts
                    parts = {}
                file = archive.extractfile(member)
                data = file.read() if file else b""
                if len(data) != member.size:
                    raise tarfile.ReadError("unexpected end of data")
                key, parts[ending] = stem, data
    except (tarfile.TarError, OverflowError, EOFError) as error:
        raise ValueError(f"got {tar}, which cannot be read to its end ({error}); pack again") from None
    if parts:
        yield key, parts


def encode_video(frames: NDArray[np.uint8], crf: int = 0) -> bytes:
    """H.264 in an mp4 of 16 frames per second: uint8 (F, H, W, 3), lossless with crf 0, yuv420p otherwise."""
    import av  # here, as who trains on rooms needs no videos

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream(
            "libx264" if crf else "libx264rgb", rate=FPS, options={"crf": str(crf)}
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p" if crf else "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def decode_video(data: bytes, shape: tuple[int, int, int] | None = None) -> NDArray[np.uint8]:
    """The frames (F, H, W, 3) of an mp4. ValueError if it cannot be decoded, or if they do not have the
    stated (F, H, W).
    """
    import av
    from av.error import FFmpegError

    frames = []
    try:
        with av.open(io.BytesIO(data), "r") as container:
            if not container.streams.video:
                raise ValueError("got an mp4 without a video stream")
            for frame in container.decode(video=0):
                if shape and ((frame.height, frame.width) != shape[1:] or len(frames) == shape[0]):
                    raise ValueError(
                        f"got frames of {frame.height} x {frame.width}, {len(frames) + 1} or more; wanted "
                        f"{shape[0]} of {shape[1]} x {shape[2]}"
                    )
                frames.append(frame.to_ndarray(format="rgb24"))
    except FFmpegError as error:
        raise ValueError(str(error)) from None
    if not frames or (shape and len(frames) != shape[0]):
        raise ValueError(f"got {len(frames)} frames; wanted {shape[0] if shape else 'some'}")
    return np.stack(frames).astype(np.uint8, copy=False)
