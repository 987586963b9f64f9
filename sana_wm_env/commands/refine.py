"""`sana-wm refine`: the second stage on a video that is there already, or on its latents.

A recording is encoded by the world's autoencoder, refined block by block from its first frame on, and decoded
again. Latents, as `Imagined.latents` or a training run has them, skip the first step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from av.error import FFmpegError
from torch import Tensor
from torch.nn import functional as F

from sana_wm_env.model.base import as_frames
from sana_wm_env.model.camera_inputs import STRIDE
from sana_wm_env.model.storage.worlds import load_config, resolve_world
from sana_wm_env.model.world import WorldModel

from ..arrays import read_array, read_npz, write_array
from ..outputs import Output, check_outputs
from ..progress import progress
from ..video import VideoWriter, open_video

LATENTS = (".npy", ".npz")


@dataclass(frozen=True)
class RefineConfig:
    """What is refined, and where it goes."""

    source: Annotated[Path, tyro.conf.Positional]
    """a video that an environment or sana-wm generate has written, or the .npz beside it; or latents (C, T,
    h, w) in a .npy, or as `latents` in a .npz, the first of them that of the first frame
    """
    out: Path = Path("refined.mp4")
    """the video; or .npy for refined latents"""
    world: str = "tiny-rooms"
    """the world that imagined it"""
    refiner: str = "auto"
    """the world's own, or the folder of one"""
    prompt: str | None = None
    """describes the scene (default: the caption in the .npz beside a video, else none)"""
    whole: bool = False
    """refine all frames together instead of block by block: memory and time grow with the length"""
    device: str = "cpu"


def run(config: RefineConfig) -> int:
    """Refines, writes, says what was done. Returns 0."""
    check_outputs(Output("--out", config.out, (".mp4", ".npy")), inputs=(config.source,))
    settings = load_config(resolve_world(config.world))
    video, caption = find_video(config.source)
    world = WorldModel.load(config.world, config.device, refiner=config.refiner)
    if video is None:
        latents = read_latents(config.source, (settings.transformer.in_channels, *settings.grid))
    else:
        latents = world.encode(read_video(video, settings.image_size)).cpu()
    refined = refine_latents(
        world, latents, caption if config.prompt is None else config.prompt, config.whole
    )
    if config.out.suffix == ".npy":
        write_array(config.out, refined[0].numpy())
    else:
        write_frames(world, refined, config.out)
    frames = 1 + STRIDE * (refined.shape[2] - 1)
    print(f"wrote {config.out}: {refined.shape[2] - 1} latent frames refined, {frames} frames")
    return 0


def find_video(source: Path) -> tuple[Path | None, str]:
    """The video behind a path and its caption; None where the path has latents."""
    beside = source.with_suffix(".npz")
    about = read_npz(beside) if beside.is_file() and source.suffix != ".npy" else {}
    caption = str(about["caption"]) if "caption" in about else ""
    if source.suffix not in LATENTS:
        return source, caption
    is_sidecar = source.suffix == ".npz" and "latents" not in about and "c2w" in about
    return (source.with_suffix(".mp4") if is_sidecar else None), caption


def read_latents(path: Path, wanted: tuple[int, int, int]) -> Tensor:
    """Latents (1, C, T, h, w) float32. ValueError for another shape, or what is not finite."""
    array = read_array(path, "latents", "the latents")
    channels, *grid = wanted
    shape = array.shape[1:] if array.ndim == 5 and len(array) == 1 else array.shape
    if len(shape) != 4 or (shape[0], *shape[2:]) != (channels, *grid) or shape[1] < 2:
        raise ValueError(
            f"got latents {array.shape} in {path}; wanted ({channels}, T >= 2, {grid[0]}, {grid[1]})"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"got NaN or infinity in the latents of {path}; wanted finite numbers")
    return torch.from_numpy(array.astype(np.float32)).reshape(1, *shape)


def read_video(path: Path, size: tuple[int, int]) -> Tensor:
    """Frames uint8 (1, 1 + 8 k, H, W, 3) of a video at a world's size; the last few are left out where it has
    others than 1 + 8 k.

    ValueError for a file that is no video, one of another shape, or of fewer than 9 frames.
    """
    if not path.is_file():
        raise FileNotFoundError(f"got {path}; there is no such file")
    try:
        with open_video(path) as container:
            frames = [
                _fit(frame.to_ndarray(format="rgb24"), size, path) for frame in container.decode(video=0)
            ]
    except (FFmpegError, IndexError) as error:  # IndexError: no pictures in it
        raise ValueError(f"got {path}, which cannot be read as a video: {error}") from None
    if len(frames) <= STRIDE:
        raise ValueError(f"got {path} with {len(frames)} frames; wanted {STRIDE + 1} or more")
    return torch.stack(frames[: 1 + (len(frames) - 1) // STRIDE * STRIDE])[None]


def _fit(picture: np.ndarray, size: tuple[int, int], path: Path) -> Tensor:
    """A picture (H, W, 3) at a world's size; videos of small worlds are written enlarged."""
    height, width = picture.shape[:2]
    if height * size[1] != width * size[0]:
        raise ValueError(
            f"got {path} of {height}x{width}; wanted the shape of the world, {size[0]}x{size[1]}, or a "
            "multiple of it: was it shown beside something?"
        )
    pixels = torch.from_numpy(picture)
    if (height, width) == size:
        return pixels
    small = F.interpolate(pixels.permute(2, 0, 1)[None].float(), size, mode="area")
    return small[0].permute(1, 2, 0).round().to(torch.uint8)


@torch.inference_mode()
def refine_latents(world: WorldModel, latents: Tensor, prompt: str, whole: bool = False) -> Tensor:
    """Refined latents (1, C, T, h, w) on the CPU; the first frame stays."""
    refiner = world.refiner
    assert refiner is not None  # loaded with one
    state = refiner.start(latents[:, :, :1], [prompt])
    done, rest = [latents[:, :, :1].float()], latents[:, :, 1:]
    blocks = (rest,) if whole else rest.split(refiner.config.block, 2)
    for block in progress(blocks, desc="refining", unit="block"):
        refined, next_state = refiner.refine(block, state)
        done.append(refined.cpu())
        state = state if whole else next_state()
    return torch.cat(done, 2)


@torch.inference_mode()
def write_frames(world: WorldModel, latents: Tensor, path: Path) -> None:
    """Decodes latents (1, C, T, h, w) into a video, a chunk at a time."""
    home, decoder = world.autoencoder.latents_mean, None
    with VideoWriter(path, world.config.fps) as video:
        for block in (latents[:, :, :1], *latents[:, :, 1:].split(world.latents_per_step, 2)):
            frames, decoder = world.autoencoder.decode(block.to(home), decoder)
            video.write(as_frames(frames)[0].cpu().numpy())
