"""Packed clips of your own: webdataset shards with a video, its cameras and its caption per clip.

`clips-000000.tar` holds, for every clip, `KEY.mp4` (16 frames per second, at the size that the world sees), `KEY.npz` (`c2w` (F, 4, 4)
float64 relative to the first frame, OpenCV axes, metres; `intrinsics_px` (F, 4) float32 in pixels of the video) and `KEY.json` (`caption`,
`width`, `height`, `frames`). Any reader of webdataset can open them.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tarfile import TarError
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from sana_wm_env.actions import FPS
from sana_wm_env.camera import Array

PATTERN, PACKED = "clips-%06d.tar", "clips-*.tar"


@dataclass(frozen=True)
class PackedClip:
    """frames (F, H, W, 3) uint8; c2w (F, 4, 4) float64 relative to frame 0; intrinsics_px (F, 4) float32 in pixels of the frames."""

    key: str
    frames: NDArray[np.uint8]
    c2w: Array
    intrinsics_px: NDArray[np.float32]
    caption: str


def write_packed(folder: Path, clips: Iterable[PackedClip], per_shard: int, crf: int = 0) -> int:
    """Writes shards of `per_shard` clips into an existing folder and returns how many clips there were.

    crf: quality of the video; 0 keeps every pixel as it is (RGB; players that only know yuv420p refuse it), 12 looks the same.
    """
    from webdataset.writer import ShardWriter

    count = 0
    with ShardWriter(str(folder / PATTERN), maxcount=per_shard, maxsize=2**40, verbose=0, mtime=0) as writer:
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


def packed_shards(folder: Path) -> list[Path]:
    """The shards in a folder, in order. FileNotFoundError that says what to run if there are none."""
    found = sorted(Path(folder).glob(PACKED))
    if not found:
        raise FileNotFoundError(f"got '{folder}', which holds no packed clips (clips-*.tar): run `sana-wm data pack VIDEOS --out {folder}`")
    return found


def read_packed(shard: Path) -> Iterator[PackedClip]:
    """The clips of a shard. ValueError if it was cut off, or if a part of a clip is missing or does not fit the rest."""
    for sample in _samples(shard, (".mp4", ".npz", ".json")):
        key = sample["__key__"]
        if missing := {"mp4", "npz", "json"} - set(sample):
            raise ValueError(f"{shard}: the clip {key} has no {' and no '.join(sorted(missing))}; pack again")
        frames, cameras = decode_video(sample["mp4"]), sample["npz"]
        if not len(frames) == len(cameras["c2w"]) == len(cameras["intrinsics_px"]) == sample["json"]["frames"]:
            raise ValueError(f"{shard}: the clip {key} has {len(frames)} frames and {len(cameras['c2w'])} poses; pack again")
        yield PackedClip(key, frames, cameras["c2w"], cameras["intrinsics_px"], sample["json"]["caption"])


def packed_paths(folder: Path) -> Iterator[Array]:
    """The poses (F, 4, 4) of every clip, without decoding a video."""
    return (sample["npz"]["c2w"] for shard in packed_shards(folder) for sample in _samples(shard, (".npz",)))


def _samples(shard: Path, endings: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The clips of a shard with those of their files that have one of the endings; arrays and texts are decoded, videos are not."""
    from webdataset.autodecode import basichandlers
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with shard.open("rb") as stream:  # the library's own way through WebDataset leaves the file open
        source = [{"url": str(shard), "stream": stream}]
        try:
            for sample in group_by_keys(tar_file_expander(source, select_files=lambda name: name.endswith(endings))):
                yield sample | {name: basichandlers(name, sample[name]) for name in ("npz", "json") if name in sample}
        except TarError as error:
            raise ValueError(f"got {shard}, which cannot be read to its end ({error.args[0]}); pack again") from None


def encode_video(frames: NDArray[np.uint8], crf: int = 0) -> bytes:
    """H.264 in an mp4 of 16 frames per second: uint8 (F, H, W, 3), lossless with crf 0, yuv420p otherwise."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264" if crf else "libx264rgb", rate=FPS, options={"crf": str(crf)})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p" if crf else "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def decode_video(data: bytes) -> NDArray[np.uint8]:
    """The frames (F, H, W, 3) of an mp4."""
    with av.open(io.BytesIO(data), "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.uint8, copy=False)
