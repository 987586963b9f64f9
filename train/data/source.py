"""Your own data where the stages read rooms otherwise: packed clips and their latents, or the published
latent layout.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sana_wm_env.files import replacing
from sana_wm_env.model.codecs.autoencoder import TEMPORAL_STRIDE, Autoencoder
from sana_wm_env.model.storage.tensors import open_tensors, read_tensors
from sana_wm_env.progress import progress, write_line
from sana_wm_env.settings import check_settings

from .filters import filter_ranges
from .latents import LatentClip, encode_clip
from .packed import PACKED, PackedClip, packed_tars, read_packed
from .published import PublishedLatents


@dataclass(frozen=True)
class OwnData:
    """Data to train on in place of rooms.

    Attributes:
        data: folder of your own data: what `sana-wm data latents` wrote, or the published latent layout;
            rooms if not given.
        filters: published layout: keep the clips whose scores lie in the ranges of this source, see
            filters.py; all if not given.
        min_mib: published layout: latents smaller than this many MiB count as broken; 0 for small worlds.
        captions: published layout: suffix of the caption files that replace the prompts.
    """

    data: Path | None = None
    filters: str = ""
    min_mib: float = 10.0
    captions: str = ""

    def __post_init__(self) -> None:
        check_settings(self, min_mib="[0, inf)")


def read_own(
    config: OwnData, size: tuple[int, int], autoencoder: Autoencoder, frames: int = 1
) -> list[LatentClip]:
    """Reads all clips of config.data, with intrinsics in pixels of `size` (height, width). Prints how many
    there are, and how many are too short.

    Raises:
        FileNotFoundError: neither of the two kinds of data lies there.
        ValueError: the latents are another autoencoder's, none passed the filters, or none has `frames`
            latent frames.
    """
    folder = config.data
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(f"got --data {folder}; there is no such folder")
    packed = any(folder.glob(PACKED))
    clips = (
        _read_packed_latents(folder, size, autoencoder)
        if packed
        else _read_published(config, folder, size, autoencoder)
    )
    short = sum(len(clip.moving) < frames for clip in clips)
    if short == len(clips):
        longest = max(len(clip.moving) for clip in clips)
        raise ValueError(
            f"got clips of at most {longest} latent frames in {folder}; wanted {frames}: add --frames "
            f"{1 + (longest - 1) // 3 * 3}"
        )
    write_line(
        f"{folder}: {len(clips)} clips"
        + (f", {short} of them shorter than {frames} latent frames and never drawn" if short else "")
    )
    return clips


def _read_packed_latents(folder: Path, size: tuple[int, int], autoencoder: Autoencoder) -> list[LatentClip]:
    return [clip for tar in packed_tars(folder) for clip in _read_encoded(tar, size, autoencoder)]


def _read_published(
    config: OwnData, folder: Path, size: tuple[int, int], autoencoder: Autoencoder
) -> list[LatentClip]:
    """The clips that pass; says how many do not, and why."""
    source = PublishedLatents(
        folder, size, filter_ranges(config.filters), int(config.min_mib * 2**20), config.captions
    )
    clips = list(progress(source.clips(), desc="reading latents", unit="clip"))
    lost = "; ".join(f"{count} dropped: {reason}" for reason, count in source.dropped.most_common())
    if not clips:
        raise ValueError(f"got no clips out of {folder}; {lost or 'it is empty'}")
    if lost:
        write_line(f"{folder}: {lost}")
    channels = autoencoder.config.latent_channels
    if clips[0].moving.shape[1] != channels:
        raise ValueError(
            f"got latents of {clips[0].moving.shape[1]} channels in {folder}; this world's "
            f"autoencoder has {channels}"
        )
    return clips


def encoded_path(tar: Path) -> Path:
    return tar.with_suffix(".latents.safetensors")


@torch.inference_mode()
def encode_packed(folder: Path, autoencoder: Autoencoder, device: str = "cpu") -> int:
    """Writes the latents of every packed tar beside it, unless this autoencoder's are there, and returns the
    number of clips.
    """
    count = 0
    for tar in progress(packed_tars(folder), desc="encoding", unit="tar"):
        if encoded_path(tar).exists() and _header(tar)["autoencoder"] == fingerprint(autoencoder):
            count += len(_header(tar)["captions"])
            continue
        count += _write_encoded(
            tar, encode_each(read_packed(tar), autoencoder, device), fingerprint(autoencoder)
        )
    return count


@torch.inference_mode()
def encode_each(
    clips: Iterable[PackedClip], autoencoder: Autoencoder, device: str = "cpu"
) -> Iterable[tuple[PackedClip, LatentClip]]:
    """Every packed clip with its latents."""
    for clip in clips:
        stills, moving = encode_clip(torch.from_numpy(clip.frames), autoencoder, device)
        yield (
            clip,
            LatentClip(
                moving, stills, torch.from_numpy(clip.c2w), torch.from_numpy(clip.intrinsics_px), clip.caption
            ),
        )


def fingerprint(module: nn.Module) -> str:
    """Returns a short name of a set of weights, the same wherever they lie."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _write_encoded(tar: Path, clips: Iterable[tuple[PackedClip, LatentClip]], encoder: str) -> int:
    """All clips end to end; F = 8 (T - 1) + 1 says where one begins."""
    packed, latents = zip(*clips, strict=True)
    tensors = {
        name: torch.cat([getattr(clip, name) for clip in latents])
        for name in ("moving", "stills", "c2w", "intrinsics_px")
    }
    tensors["lengths"] = torch.tensor([len(clip.moving) for clip in latents])
    header = {
        "autoencoder": encoder,
        "size": packed[0].frames.shape[1:3],
        "captions": [clip.caption for clip in latents],
    }
    with replacing(encoded_path(tar)) as part:
        save_file(tensors, part, metadata={"about": json.dumps(header)})
    return len(latents)


def _read_encoded(tar: Path, size: tuple[int, int], autoencoder: Autoencoder) -> list[LatentClip]:
    """The clips of a packed tar, if its latents are this autoencoder's."""
    again = f"run `sana-wm data latents {tar.parent}` with the same --world and --runs"
    if not encoded_path(tar).exists():
        raise FileNotFoundError(f"got {tar} without latents: {again}")
    header = _header(tar)
    if header["autoencoder"] != fingerprint(autoencoder):
        raise ValueError(
            f"got {encoded_path(tar)}, whose latents are those of another autoencoder than "
            f"this world's: {again}"
        )
    if tuple(header["size"]) != tuple(size):
        height, width = header["size"]
        raise ValueError(
            f"got clips of {height} x {width} pixels in {tar.parent}; wanted {size[0]} x {size[1]}: add "
            f"--size {height} {width}"
        )
    names = ("moving", "stills", "c2w", "intrinsics_px")
    found = read_tensors(encoded_path(tar), again, ("lengths", *names))
    lengths = found["lengths"]
    try:
        columns = [found[name].split(lengths.tolist()) for name in names[:2]]
        columns += [_split_frames(found[name], lengths) for name in names[2:]]
    except RuntimeError as error:
        raise ValueError(f"got {encoded_path(tar)}, whose lengths do not add up ({error}): {again}") from None
    return [LatentClip(*row) for row in zip(*columns, header["captions"], strict=True)]


def _split_frames(values: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    return values.split((TEMPORAL_STRIDE * (lengths - 1) + 1).tolist())


def _header(tar: Path) -> dict:
    with open_tensors(encoded_path(tar), "`sana-wm data latents` writes it anew") as file:
        return json.loads(file.metadata()["about"])
