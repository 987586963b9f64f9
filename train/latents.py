"""Clips as latents: encoded once by the trained autoencoder, then cut into windows by every stage of the transformer."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from sana_wm_env.model.autoencoder import TEMPORAL_STRIDE, Autoencoder, group
from sana_wm_env.model.cameras import camera_inputs
from sana_wm_env.model.text import TextEncoder, TextEncoderConfig

from .data import Clips, read_shard, shard_path
from .optim import barrier, rank, world_size


@dataclass(frozen=True)
class Window:
    """A batch of clips of T latent frames that each begin at some latent frame of a longer one.

    latents (B, C, T, h, w), the first frame encoded as the still image that opens a clip; camera (B, T, 20) and plucker (B, 48, T, h, w)
    as the network takes them, relative to the window's own first frame; text (B, L, W) and text_mask (B, L).
    """

    latents: Tensor
    camera: Tensor
    plucker: Tensor
    text: Tensor
    text_mask: Tensor


class LatentClips:
    """All clips of a data folder in memory: latents (N, T, C, h, w) of every latent frame as a still and in motion, poses, text."""

    def __init__(self, folder: Path, shards: int, size: tuple[int, int], text: TextEncoderConfig, device: str):
        self.size, self.device = size, device
        parts = [load_file(_latent_path(folder, index)) for index in range(shards)]
        captions = [caption for index in range(shards) for caption in read_shard(shard_path(folder, index)).captions]
        self.stills, self.moving, self.c2w, self.intrinsics_px = (
            torch.cat([part[key] for part in parts]).to(device) for key in ("stills", "moving", "c2w", "intrinsics_px")
        )
        encoder = TextEncoder(text)
        self.text, self.text_mask = (value.to(device) for value in encoder.encode(captions))
        self.null, self.null_mask = (value.to(device) for value in encoder.encode([""]))

    def draw(self, batch: int, frames: int, generator: torch.Generator, text_drop: float = 0.1, origin: Tensor | None = None) -> Window:
        """A window of `frames` latent frames from each of `batch` random clips; the caption is dropped with probability text_drop.

        `origin` (B, 4, 4) is where the first camera stands in the frame that poses refer to, the identity if not given.
        """
        clips, longest = self.stills.shape[:2]
        if frames > longest:
            raise ValueError(f"a window of {frames} latent frames was asked for, the clips have {longest}")
        kwargs = {"generator": generator, "device": self.device}
        clip = torch.randint(clips, (batch,), **kwargs)
        start = torch.randint(longest - frames + 1, (batch,), **kwargs)
        keep = torch.rand(batch, **kwargs) >= text_drop
        return self.window(clip, start, frames, keep, origin)

    def window(self, clip: Tensor, start: Tensor, frames: int, keep_text: Tensor, origin: Tensor | None = None) -> Window:
        """The windows that begin at latent frame start (B,) of clips (B,)."""
        index = start[:, None] + torch.arange(frames, device=self.device)  # (B, T)
        latents = self.moving[clip[:, None], index]
        latents[:, 0] = self.stills[clip, start]
        raw = TEMPORAL_STRIDE * start[:, None] + torch.arange(TEMPORAL_STRIDE * (frames - 1) + 1, device=self.device)
        c2w = self.c2w[clip[:, None], raw]  # (B, F, 4, 4)
        c2w = (torch.linalg.inv(c2w[:, :1]) @ c2w).float()
        if origin is not None:
            c2w = origin[:, None] @ c2w
        camera, plucker = camera_inputs(c2w, self.intrinsics_px[clip], self.size, tuple(latents.shape[-2:]))
        text = torch.where(keep_text[:, None, None], self.text[clip], self.null)
        text_mask = torch.where(keep_text[:, None], self.text_mask[clip], self.null_mask)
        return Window(latents.float().transpose(1, 2), camera, plucker, text, text_mask)


@torch.inference_mode()
def encode_shards(folder: Path, indices: range, autoencoder: Autoencoder, device: str = "cpu") -> None:
    """Writes the latents of shards that have none yet, half precision, beside them, shared among the processes."""
    missing = [index for index in indices if not _latent_path(folder, index).exists()]
    barrier()
    for index in tqdm(missing[rank() :: world_size()], desc="encoding rooms", unit="shard", disable=not missing):
        clips = read_shard(shard_path(folder, index))
        stills, moving = zip(*(_encode(clips, row, autoencoder, device) for row in range(len(clips.captions))), strict=True)
        path = _latent_path(folder, index)
        tensors = {"stills": torch.stack(stills), "moving": torch.stack(moving), "c2w": clips.c2w, "intrinsics_px": clips.intrinsics_px}
        save_file(tensors, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    barrier()


def _encode(clips: Clips, row: int, autoencoder: Autoencoder, device: str) -> tuple[Tensor, Tensor]:
    """Latents of one clip, (T, C, h, w) each: every eighth frame as a still, and the clip itself."""
    video = clips.frames[row].to(device).permute(3, 0, 1, 2).float()[None] / 127.5 - 1  # (1, 3, F, H, W)
    stills = group(video[:, :, ::TEMPORAL_STRIDE].repeat_interleave(TEMPORAL_STRIDE, 2))
    moving = autoencoder.encode(video)[0].transpose(0, 1)
    stills = autoencoder.normalise(autoencoder.encode_groups(stills))[0]
    return stills.half().cpu().contiguous(), moving.half().cpu().contiguous()


def _latent_path(folder: Path, index: int) -> Path:
    return folder / f"latents-{index:05d}.safetensors"
