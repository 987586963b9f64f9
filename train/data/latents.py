"""Clips as latents: encoded once by the trained autoencoder, then cut into windows by every stage of the
transformer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sana_wm_env.files import write_whole
from sana_wm_env.model.camera_inputs import camera_inputs, raw_frames_of_latents
from sana_wm_env.model.codecs.autoencoder import TEMPORAL_STRIDE, Autoencoder, group
from sana_wm_env.model.codecs.text import TextEncoder, TextEncoderConfig
from sana_wm_env.model.storage.tensors import read_tensors
from sana_wm_env.progress import progress
from sana_wm_env.rooms import render_native
from sana_wm_env.rooms.scene import sample_scenes

from ..processes import barrier, rank, world_size
from .rooms import clip_file, read_clip_file, render_clip_file, rooms_of

COLUMNS = ("moving", "stills", "c2w", "intrinsics_px")
ANEW = "delete it, it is encoded anew"


@dataclass(frozen=True)
class Window:
    """A batch of windows of T latent frames, cut from clips.

    latents (B, C, T, h, w); camera (B, T, 20) and plucker (B, 48, T, h, w) as the network takes them,
    relative to the first frame of the session that the window belongs to; text (B, L, W) and text_mask (B,
    L). The latent that opens a session is encoded as a still image.
    """

    latents: Tensor
    camera: Tensor
    plucker: Tensor
    text: Tensor
    text_mask: Tensor


@dataclass(frozen=True)
class Sessions:
    """Places of B sessions in the clips: clip and start (B,) int64, the latent frame of the clip that opens
    them; keep_text (B,) bool.
    """

    clip: Tensor
    start: Tensor
    keep_text: Tensor


@dataclass(frozen=True)
class LatentClip:
    """One clip of T latent frames, F = 8 (T - 1) + 1 raw frames.

    moving (T, C, h, w): the latents of the clip. stills (S, C, h, w), S = T or 1: its first S latent frames,
    each encoded as a still image; those are the frames that a session may open with. c2w (F, 4, 4) float64
    camera-to-world in OpenCV axes, metres; intrinsics_px (4,) or (F, 4) float32 as fx, fy, cx, cy.
    """

    moving: Tensor
    stills: Tensor
    c2w: Tensor
    intrinsics_px: Tensor
    caption: str


class LatentClips:
    """Clips in memory, end to end: latents of every latent frame as a still and in motion, cameras, text.
    Clips may differ in length.

    Args:
        clips: rooms (`room_clips`), your own or published ones (`read_own`).
        size: (height, width) of the image that the intrinsics belong to.
        text: what encodes the captions.
        device: where everything is kept.

    Raises:
        ValueError: no clips, clips whose latents differ in shape, or cameras that do not fit the latents.
    """

    def __init__(
        self, clips: Sequence[LatentClip], size: tuple[int, int], text: TextEncoderConfig, device: str
    ):
        _check(clips)
        self.size, self.device = size, device
        lengths, stills = (
            torch.tensor([len(values) for values in column])
            for column in ([c.moving for c in clips], [c.stills for c in clips])
        )
        self.lengths, self.first = (
            lengths.to(device),
            (lengths.cumsum(0) - lengths).to(device),
        )  # in latent frames
        self.openings, self.first_still = stills.to(device), (stills.cumsum(0) - stills).to(device)
        self.moving, self.stills = (
            torch.cat(latents).to(device)
            for latents in ([c.moving for c in clips], [c.stills for c in clips])
        )
        # eight cameras per latent frame; the last seven of every clip are only there to make it even
        self.c2w = torch.cat([_even(clip.c2w) for clip in clips]).to(device)
        self.intrinsics_px = torch.cat(
            [_even(clip.intrinsics_px.expand(len(clip.c2w), 4)) for clip in clips]
        ).to(device)
        self.zooms = any((clip.intrinsics_px != clip.intrinsics_px.reshape(-1, 4)[0]).any() for clip in clips)
        encoder = TextEncoder(text)
        self.text, self.text_mask = (
            value.to(device) for value in encoder.encode([clip.caption for clip in clips])
        )
        self.null, self.null_mask = (value.to(device) for value in encoder.encode([""]))

    def draw(self, batch: int, frames: int, generator: torch.Generator, text_drop: float = 0.1) -> Sessions:
        """Sessions with at least `frames` latent frames to go, uniform among all places that may open one.

        The caption is dropped with probability text_drop.
        """
        places = torch.minimum(self.lengths - frames + 1, self.openings).clamp(min=0).cumsum(0)
        if places[-1] == 0:
            raise ValueError(
                f"a window of {frames} latent frames was asked for, the clips have {int(self.lengths.max())}"
            )
        kwargs = {"generator": generator, "device": self.device}
        place = (torch.rand(batch, dtype=torch.float64, **kwargs) * places[-1]).long()
        clip = torch.searchsorted(places, place, right=True)
        start = place - torch.where(clip > 0, places[clip - 1], 0)
        return Sessions(clip, start, torch.rand(batch, **kwargs) >= text_drop)

    def left(self, sessions: Sessions) -> Tensor:
        """Latent frames (B,) that the clips have from the beginning of the sessions on."""
        return self.lengths[sessions.clip] - sessions.start

    def window(self, sessions: Sessions, frames: int, begin: Tensor | None = None) -> Window:
        """Latent frames begin, begin + 1, .. of the sessions; begin (B,) > 0, or None for their first
        frames.
        """
        opens = begin is None
        origin = self.first[sessions.clip] + sessions.start
        first = origin if begin is None else origin + begin
        latents = self.moving[first[:, None] + torch.arange(frames, device=self.device)]  # (B, T, C, h, w)
        if opens:
            latents[:, 0] = self.stills[self.first_still[sessions.clip] + sessions.start]
        stop = TEMPORAL_STRIDE * (frames - 1) + 1
        raw = torch.arange(0 if opens else 1 - TEMPORAL_STRIDE, stop, device=self.device)
        place = TEMPORAL_STRIDE * first[:, None] + raw
        c2w, intrinsics = self.c2w[place], self.intrinsics_px[place]  # (B, F, 4, 4), (B, F, 4)
        c2w = (torch.linalg.inv(self.c2w[TEMPORAL_STRIDE * origin])[:, None] @ c2w).float()
        grid = (latents.shape[-2], latents.shape[-1])
        if self.zooms:
            camera, plucker = zooming_camera_inputs(c2w, intrinsics, self.size, grid, opens)
        else:
            camera, plucker = camera_inputs(c2w, intrinsics[:, 0], self.size, grid, opens)
        text = torch.where(sessions.keep_text[:, None, None], self.text[sessions.clip], self.null)
        text_mask = torch.where(sessions.keep_text[:, None], self.text_mask[sessions.clip], self.null_mask)
        return Window(latents.float().transpose(1, 2), camera, plucker, text, text_mask)


def zooming_camera_inputs(
    c2w: Tensor, intrinsics_px: Tensor, image_size: tuple[int, int], grid: tuple[int, int], opens: bool = True
) -> tuple[Tensor, Tensor]:
    """`camera_inputs` for intrinsics (B, F, 4) that differ from frame to frame; equal to it where they do
    not.

    A latent frame gets the focal length of the raw frame whose pose it gets, a ray the one of its own raw
    frame.
    """
    batch, frames = c2w.shape[:2]
    # every raw frame as a clip of its own: (B F, 1, 20) and eight times the same rays
    camera, rays = camera_inputs(c2w.flatten(0, 1)[:, None], intrinsics_px.flatten(0, 1), image_size, grid)
    camera, rays = (
        camera.view(batch, frames, -1),
        rays[:, :6, 0].unflatten(0, (batch, frames)),
    )  # (B, F, 20), (B, F, 6, h, w)
    packed = rays[:, raw_frames_of_latents(frames, opens).to(rays.device)]  # (B, T, 8, 6, h, w)
    return camera[:, 0 if opens else TEMPORAL_STRIDE - 1 :: TEMPORAL_STRIDE], packed.flatten(2, 3).transpose(
        1, 2
    ).contiguous()


def encoded_rooms(
    folder: Path, counts: dict[str, int], size: tuple[int, int], autoencoder: Autoencoder, device: str = "cpu"
) -> list[LatentClip]:
    """Reads the latents of the first clip files, `counts` of them by kind; renders and encodes missing
    ones.
    """
    for kind, count in counts.items():
        encode_clip_files(folder, kind, count, size, autoencoder, device)
    return room_clips(folder, counts)


def room_clips(folder: Path, counts: dict[str, int]) -> list[LatentClip]:
    """Reads the latents of the first clip files, `counts` of them by kind, which `encode_clip_files`
    wrote.
    """
    clips = []
    for kind, index in ((kind, index) for kind, count in counts.items() for index in range(count)):
        part = read_tensors(latents_path(folder, kind, index), ANEW, COLUMNS)
        captions = sample_scenes(rooms_of(kind, index)).captions
        columns = (*(part[name] for name in COLUMNS), captions)
        if any(len(column) != len(captions) for column in columns):
            raise ValueError(
                f"got {latents_path(folder, kind, index)} with other than {len(captions)} clips: {ANEW}"
            )
        clips += [LatentClip(*row) for row in zip(*columns, strict=True)]
    return clips


@torch.inference_mode()
def encode_clip_files(
    folder: Path,
    kind: str,
    count: int,
    size: tuple[int, int],
    autoencoder: Autoencoder,
    device: str = "cpu",
    share: tuple[int, int] | None = None,
) -> None:
    """Writes the missing latents of the first `count` clip files, in half precision; of them the `share`
    (number, shares) of this process, by default as those that train together divide them.

    Frames are read where the autoencoder's stage has left them, else rendered, and not kept: they take seven
    times the space. The compiled renderer goes before a GPU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number, shares = share or (rank(), world_size())
    own = range(number, count, shares)
    missing = [index for index in own if not latents_path(folder, kind, index).exists()]
    renders_on = "cpu" if render_native.available() else device
    for index in progress(missing, desc=f"encoding {kind}", unit="file", disable=not missing):
        file = clip_file(folder, kind, index)
        clips = read_clip_file(file) if file.exists() else render_clip_file(kind, index, size, renders_on)
        stills, moving = zip(
            *(encode_clip(frames, autoencoder, device) for frames in clips.frames), strict=True
        )
        path = latents_path(folder, kind, index)
        tensors = {
            "stills": torch.stack(stills),
            "moving": torch.stack(moving),
            "c2w": clips.c2w.cpu(),
            "intrinsics_px": clips.intrinsics_px,
        }
        write_whole(path, partial(save_file, tensors))
    barrier()


def latents_path(folder: Path, kind: str, index: int) -> Path:
    return folder / f"{kind}-{index:05d}.latents.safetensors"


def encode_clip(frames: Tensor, autoencoder: Autoencoder, device: str) -> tuple[Tensor, Tensor]:
    """Latents of frames (F, H, W, 3) uint8, (T, C, h, w) float16 each: every eighth frame as a still, and the
    clip itself.
    """
    video = frames.to(device).permute(3, 0, 1, 2).float()[None] / 127.5 - 1  # (1, 3, F, H, W)
    stills = group(video[:, :, ::TEMPORAL_STRIDE].repeat_interleave(TEMPORAL_STRIDE, 2))
    moving = autoencoder.encode(video)[0].transpose(0, 1)
    stills = autoencoder.normalise(autoencoder.encode_groups(stills))[0]
    return stills.half().cpu().contiguous(), moving.half().cpu().contiguous()


def _check(clips: Sequence[LatentClip]) -> None:
    if not clips:
        raise ValueError("got no clips to train on")
    for clip in clips:
        frames = TEMPORAL_STRIDE * (len(clip.moving) - 1) + 1
        if clip.moving.shape[1:] != clips[0].moving.shape[1:]:
            raise ValueError(
                f"got latents of {tuple(clip.moving.shape[1:])} beside {tuple(clips[0].moving.shape[1:])}; "
                "wanted one shape"
            )
        if len(clip.c2w) != frames:
            raise ValueError(
                f"got {len(clip.c2w)} poses for {len(clip.moving)} latent frames; wanted {frames}"
            )


def _even(cameras: Tensor) -> Tensor:
    """Cameras of 8 (T - 1) + 1 frames, the last repeated: 8 T."""
    return torch.cat([cameras, cameras[-1:].expand(TEMPORAL_STRIDE - 1, *cameras.shape[1:])])
