"""Training clips of rooms, rendered on the training device and kept in clip files.

There are clips of 97 frames, from which everything is learned; sessions of 961 frames (a minute), on which
the streaming model learns to go on; returns, sessions that keep going back on their steps, where it learns to
remember; and tours, sessions that look all around before they go, where it learns to know a place. All of
them in rooms without end, each seen once, and at home, in the same 48 rooms again and again from everywhere
in them. A clip file is a function of its kind and index alone, so a data folder can be thrown away, extended
or made on another machine without changing what is trained on.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sana_wm_env.files import replacing
from sana_wm_env.model.storage.tensors import open_tensors
from sana_wm_env.progress import progress
from sana_wm_env.rooms import FOCAL, HELD_OUT, HOME, paths
from sana_wm_env.rooms.render import render
from sana_wm_env.rooms.scene import sample_scenes

from ..processes import barrier, rank, world_size


@dataclass(frozen=True)
class ClipFileKind:
    """Contents of the files of one kind: `count` clips of 1 + 24 * chunks frames each, with seeds from
    first_seed on.

    A clip's seed draws its walk; and its room, unless it is at home, where the rooms take turns. `retraced`
    walks are those of `retrace`; `toured` ones begin with `look_around`.
    """

    count: int
    chunks: int
    first_seed: int
    home: bool = False
    retraced: bool = False
    toured: bool = False


KINDS = {
    "clips": ClipFileKind(32, 4, 0),
    "sessions": ClipFileKind(4, 40, 2**30),
    "home-clips": ClipFileKind(32, 4, 0, home=True),
    "home-sessions": ClipFileKind(4, 40, 2**30, home=True),
    "returns": ClipFileKind(4, 40, 2**30 + 2**29, retraced=True),
    "home-returns": ClipFileKind(4, 40, 2**30 + 2**29, home=True, retraced=True),
    "tours": ClipFileKind(4, 40, 2**30 + 2**29 + 2**28, toured=True),
    "home-tours": ClipFileKind(4, 40, 2**30 + 2**29 + 2**28, home=True, toured=True),
}


@dataclass(frozen=True)
class Clips:
    """N clips: frames (N, F, H, W, 3) uint8; c2w (N, F, 4, 4) float64 relative to frame 0; intrinsics_px (N,
    4) float32; captions.
    """

    frames: Tensor
    c2w: Tensor
    intrinsics_px: Tensor
    captions: list[str]


def render_clips(
    seeds: list[int],
    size: tuple[int, int],
    device: str | torch.device = "cpu",
    chunks: int = 4,
    rooms: list[int] | None = None,
    retraced: bool = False,
    toured: bool = False,
) -> Clips:
    """Renders one clip of 1 + 24 * chunks frames per seed; the focal length varies by a tenth around the
    default.

    rooms: seed of the room of each clip, the clip's own if not given. retraced: the walks of `paths.retrace`.
    toured: they begin with `paths.look_around`.
    """
    scenes = sample_scenes(seeds if rooms is None else rooms, device)
    starts = paths.sample_starts(scenes, seeds)
    twists = paths.sample_twists(scenes, starts, seeds, chunks)
    if retraced:
        twists = paths.retrace(twists, seeds)
    if toured:
        twists = twists[:, : chunks - paths.LOOK_CHUNKS]
    c2w = paths.twist_paths(starts, twists)
    if toured:
        c2w = torch.cat([c2w[:, :1], paths.look_around(starts), c2w[:, 1:]], 1)
    focal = torch.tensor(
        [FOCAL * size[1] * np.random.default_rng([seed, 3]).uniform(0.9, 1.1) for seed in seeds]
    )
    height, width = size
    intrinsics = torch.stack(
        [focal, focal, torch.full_like(focal, width / 2), torch.full_like(focal, height / 2)], -1
    ).float()
    frames = render(scenes, c2w, intrinsics, size).rgb
    return Clips(frames, torch.linalg.inv(c2w[:, :1]) @ c2w, intrinsics, scenes.captions)


def render_clip_file(
    kind: str, index: int, size: tuple[int, int], device: str | torch.device = "cpu"
) -> Clips:
    """Renders the clips of one file. ValueError where it would use held-out rooms."""
    file = KINDS[kind]
    return render_clips(
        seeds_of(kind, index), size, device, file.chunks, rooms_of(kind, index), file.retraced, file.toured
    )


def clip_file(folder: Path, kind: str, index: int) -> Path:
    return folder / f"{kind}-{index:05d}.safetensors"


def write_clip_files(folder: Path, kind: str, count: int, size: tuple[int, int], device: str = "cpu") -> None:
    """Renders the missing ones of the first `count` clip files, shared among the processes.

    A half-written file never has the name of a whole one. ValueError where a file would use held-out rooms.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [index for index in range(count) if not clip_file(folder, kind, index).exists()]
    barrier()
    for index in progress(
        missing[rank() :: world_size()], desc=f"rendering {kind}", unit="file", disable=not missing
    ):
        clips = render_clip_file(kind, index, size, device)
        tensors = {"frames": clips.frames.cpu(), "c2w": clips.c2w.cpu(), "intrinsics_px": clips.intrinsics_px}
        with replacing(clip_file(folder, kind, index)) as part:
            save_file(tensors, part, metadata={"captions": "\n".join(clips.captions)})
    barrier()


def rooms_of(kind: str, index: int) -> list[int]:
    """Returns the seed of the room of each clip of one file, none of them held out."""
    seeds = seeds_of(kind, index)
    return [HOME[seed % len(HOME)] for seed in seeds] if KINDS[kind].home else seeds


def seeds_of(kind: str, index: int) -> list[int]:
    """Returns the seeds of the clips of one file, none of them of held-out rooms."""
    file = KINDS[kind]
    first = file.first_seed + index * file.count
    if first + file.count > HELD_OUT:
        last = (HELD_OUT - file.first_seed) // file.count - 1
        raise ValueError(
            f"file {index} of {kind} would use held-out rooms; those up to {last} are for training"
        )
    return list(range(first, first + file.count))


def read_clip_file(path: Path) -> Clips:
    """Reads a clip file (frames are mapped, not loaded, where the platform allows)."""
    with open_tensors(path, "delete it, it is rendered anew") as file:
        captions = file.metadata()["captions"].split("\n")
        return Clips(
            file.get_tensor("frames"), file.get_tensor("c2w"), file.get_tensor("intrinsics_px"), captions
        )
