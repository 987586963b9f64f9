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
from .processes import barrier, rank, world_size


@dataclass(frozen=True)
class Window:
    """A batch of stretches of T latent frames.

    latents (B, C, T, h, w); camera (B, T, 20) and plucker (B, 48, T, h, w) as the network takes them, relative to the first frame of the
    session that the stretch belongs to; text (B, L, W) and text_mask (B, L). The latent that opens a session is encoded as a still image.
    """

    latents: Tensor
    camera: Tensor
    plucker: Tensor
    text: Tensor
    text_mask: Tensor


@dataclass(frozen=True)
class Sessions:
    """Where B sessions lie in the clips: clip and start (B,) int64, the latent frame of the clip that opens them; keep_text (B,) bool."""

    clip: Tensor
    start: Tensor
    keep_text: Tensor


class LatentClips:
    """All clips of a data folder in memory, end to end: latents of every latent frame as a still and in motion, poses, text.

    `shards` says how many shards of which kind are read; clips may differ in length.
    """

    def __init__(self, folder: Path, shards: dict[str, int], size: tuple[int, int], text: TextEncoderConfig, device: str):
        self.size, self.device = size, device
        names = [(kind, index) for kind, count in shards.items() for index in range(count)]
        parts = [load_file(latents_path(folder, *name)) for name in names]
        captions = [caption for name in names for caption in read_shard(shard_path(folder, *name)).captions]
        lengths = torch.tensor([part["moving"].shape[1] for part in parts for _ in part["moving"]])
        self.lengths, self.first = lengths.to(device), (lengths.cumsum(0) - lengths).to(device)  # in latent frames
        self.stills, self.moving = (torch.cat([part[key].flatten(0, 1) for part in parts]).to(device) for key in ("stills", "moving"))
        # eight poses per latent frame; the last seven of every clip are only there to make it even
        self.c2w = torch.cat([_even(part["c2w"]).flatten(0, 1) for part in parts]).to(device)
        self.intrinsics_px = torch.cat([part["intrinsics_px"] for part in parts]).to(device)
        encoder = TextEncoder(text)
        self.text, self.text_mask = (value.to(device) for value in encoder.encode(captions))
        self.null, self.null_mask = (value.to(device) for value in encoder.encode([""]))

    def draw(self, batch: int, frames: int, generator: torch.Generator, text_drop: float = 0.1) -> Sessions:
        """Sessions with at least `frames` latent frames to go, uniform among all. The caption is dropped with probability text_drop."""
        places = (self.lengths - frames + 1).clamp(min=0).cumsum(0)
        if places[-1] == 0:
            raise ValueError(f"a window of {frames} latent frames was asked for, the clips have {int(self.lengths.max())}")
        kwargs = {"generator": generator, "device": self.device}
        place = (torch.rand(batch, dtype=torch.float64, **kwargs) * places[-1]).long()
        clip = torch.searchsorted(places, place, right=True)
        start = place - torch.where(clip > 0, places[clip - 1], 0)
        return Sessions(clip, start, torch.rand(batch, **kwargs) >= text_drop)

    def left(self, sessions: Sessions) -> Tensor:
        """Latent frames (B,) that the clips have from the beginning of the sessions on."""
        return self.lengths[sessions.clip] - sessions.start

    def window(self, sessions: Sessions, frames: int, begin: Tensor | None = None) -> Window:
        """Latent frames begin, begin + 1, .. of the sessions; begin (B,) > 0, or None for their first frames."""
        opens = begin is None
        origin = self.first[sessions.clip] + sessions.start
        first = origin if begin is None else origin + begin
        latents = self.moving[first[:, None] + torch.arange(frames, device=self.device)]  # (B, T, C, h, w)
        if opens:
            latents[:, 0] = self.stills[origin]
        stop = TEMPORAL_STRIDE * (frames - 1) + 1
        raw = torch.arange(0 if opens else 1 - TEMPORAL_STRIDE, stop, device=self.device)
        c2w = self.c2w[TEMPORAL_STRIDE * first[:, None] + raw]  # (B, F, 4, 4)
        c2w = (torch.linalg.inv(self.c2w[TEMPORAL_STRIDE * origin])[:, None] @ c2w).float()
        camera, plucker = camera_inputs(c2w, self.intrinsics_px[sessions.clip], self.size, tuple(latents.shape[-2:]), opens)
        text = torch.where(sessions.keep_text[:, None, None], self.text[sessions.clip], self.null)
        text_mask = torch.where(sessions.keep_text[:, None], self.text_mask[sessions.clip], self.null_mask)
        return Window(latents.float().transpose(1, 2), camera, plucker, text, text_mask)


@torch.inference_mode()
def encode_shards(folder: Path, kind: str, count: int, autoencoder: Autoencoder, device: str = "cpu") -> None:
    """Writes the latents of those of the first `count` shards that have none yet, half precision, shared among the processes."""
    missing = [index for index in range(count) if not latents_path(folder, kind, index).exists()]
    barrier()
    for index in tqdm(missing[rank() :: world_size()], desc=f"encoding {kind}", unit="shard", disable=not missing):
        clips = read_shard(shard_path(folder, kind, index))
        stills, moving = zip(*(_encode(clips, row, autoencoder, device) for row in range(len(clips.captions))), strict=True)
        path = latents_path(folder, kind, index)
        tensors = {"stills": torch.stack(stills), "moving": torch.stack(moving), "c2w": clips.c2w, "intrinsics_px": clips.intrinsics_px}
        save_file(tensors, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    barrier()


def latents_path(folder: Path, kind: str, index: int) -> Path:
    return folder / f"{kind}-{index:05d}.latents.safetensors"


def _encode(clips: Clips, row: int, autoencoder: Autoencoder, device: str) -> tuple[Tensor, Tensor]:
    """Latents of one clip, (T, C, h, w) each: every eighth frame as a still, and the clip itself."""
    video = clips.frames[row].to(device).permute(3, 0, 1, 2).float()[None] / 127.5 - 1  # (1, 3, F, H, W)
    stills = group(video[:, :, ::TEMPORAL_STRIDE].repeat_interleave(TEMPORAL_STRIDE, 2))
    moving = autoencoder.encode(video)[0].transpose(0, 1)
    stills = autoencoder.normalise(autoencoder.encode_groups(stills))[0]
    return stills.half().cpu().contiguous(), moving.half().cpu().contiguous()


def _even(c2w: Tensor) -> Tensor:
    """Poses (N, 8 (T - 1) + 1, 4, 4), the last repeated: (N, 8 T, 4, 4)."""
    return torch.cat([c2w, c2w[:, -1:].expand(-1, TEMPORAL_STRIDE - 1, -1, -1)], 1)
