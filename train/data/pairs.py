"""Pairs for the refiner: what stage 1 imagined of a session, beside what the room really shows.

Every session of the clip files is played by a world from its first frame on, for its whole minute. What comes
of it lies beside the true latents, in a folder that names the world's weights: other weights imagine other
pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from sana_wm_env.files import write_whole
from sana_wm_env.model.camera_inputs import STRIDE
from sana_wm_env.model.codecs.autoencoder import Autoencoder
from sana_wm_env.model.storage.tensors import read_tensors
from sana_wm_env.model.world import WorldModel
from sana_wm_env.progress import progress
from sana_wm_env.rooms.scene import sample_scenes

from ..processes import barrier, rank, world_size
from .latents import ANEW, COLUMNS, encode_clip_files, latents_path
from .rooms import rooms_of


@dataclass(frozen=True)
class Pairs:
    """Sessions of equal length.

    imagined and true (N, T, C, h, w) float16, the first frame of both being the session's own as a still;
    captions (N).
    """

    imagined: Tensor
    true: Tensor
    captions: list[str]


def encoded_pairs(folder: Path, counts: dict[str, int], world: WorldModel, device: str = "cpu") -> Pairs:
    """Reads the pairs of the first clip files, `counts` of them by kind; makes missing ones."""
    autoencoder = cast(Autoencoder, world.autoencoder)  # rooms have no other
    for kind, count in counts.items():
        encode_clip_files(folder, kind, count, world.config.image_size, autoencoder, device)
        imagine_clip_files(folder, kind, count, world)
    files = [(kind, index) for kind, count in counts.items() for index in range(count)]
    parts = [read_pairs(folder, kind, index, world) for kind, index in files]
    if not parts:
        raise ValueError("got no sessions to learn from; wanted --sessions or --home-sessions above 0")
    return Pairs(
        torch.cat([part.imagined for part in parts]),
        torch.cat([part.true for part in parts]),
        [caption for part in parts for caption in part.captions],
    )


def read_pairs(folder: Path, kind: str, index: int, world: WorldModel) -> Pairs:
    """Reads the pairs of one file."""
    true = read_tensors(latents_path(folder, kind, index), ANEW, COLUMNS)
    first, later = true["stills"][:, :1], true["moving"][:, 1:]
    path = pairs_path(folder, kind, index, world)
    imagined = read_tensors(path, "delete it, it is imagined anew", ("imagined",))["imagined"]
    if imagined.shape != later.shape:
        raise ValueError(f"got {path} of {tuple(imagined.shape)}; wanted {tuple(later.shape)}: delete it")
    captions = sample_scenes(rooms_of(kind, index)).captions
    return Pairs(torch.cat([first, imagined], 1), torch.cat([first, later], 1), captions)


def imagine_clip_files(folder: Path, kind: str, count: int, world: WorldModel) -> None:
    """Writes what a world imagines of the first `count` clip files, shared among the processes."""
    missing = [i for i in range(count) if not pairs_path(folder, kind, i, world).exists()]
    barrier()
    for index in progress(
        missing[rank() :: world_size()], desc=f"imagining {kind}", unit="file", disable=not missing
    ):
        part = read_tensors(latents_path(folder, kind, index), ANEW, COLUMNS)
        captions = sample_scenes(rooms_of(kind, index)).captions
        imagined = imagine_latents(world, part["stills"][:, 0], part["c2w"], part["intrinsics_px"], captions)
        path = pairs_path(folder, kind, index, world)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, partial(save_file, {"imagined": imagined.half().contiguous()}))
    barrier()


@torch.inference_mode()
def imagine_latents(
    world: WorldModel, first: Tensor, c2w: Tensor, intrinsics_px: Tensor, captions: Sequence[str]
) -> Tensor:
    """Stage 1's latents (N, T, C, h, w) of N sessions along c2w (N, 1 + 8 T, 4, 4), from first latent frames
    (N, C, h, w). Noise is seeded by the place in the batch.
    """
    count, chunk = len(first), STRIDE * world.latents_per_step
    blank = torch.zeros(count, *world.config.image_size, 3, dtype=torch.uint8)
    generators = [torch.Generator().manual_seed(row) for row in range(count)]
    state = world.start(blank, intrinsics_px, list(captions), generators)
    state = replace(state, image_latent=first[:, :, None].float().to(world.device))
    path = torch.linalg.inv(c2w[:, :1]) @ c2w[:, 1:]
    path = path[:, : path.shape[1] // chunk * chunk]
    chunks = [part.latents for part in world.play(state, path, decode=False)]
    return torch.cat(chunks, 2).transpose(1, 2).cpu()


def pairs_path(folder: Path, kind: str, index: int, world: WorldModel) -> Path:
    """The file of what a world imagined of a clip file."""
    return folder / f"pairs-{world.fingerprint[:12]}" / f"{kind}-{index:05d}.safetensors"
