"""The autoencoder and the text encoder of a world: which ones they are, and where their files lie.

A published transformer needs parts that other repositories hold; a world that was saved here has all of them
in its own folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..config import WorldConfig
from ..storage.hub import REPOSITORIES, downloaded
from ..storage.layouts import CONFIG, LAYOUTS, OWNER, find_layout, read_settings
from ..storage.worlds import AUTOENCODER, load_weights
from .autoencoder import Autoencoder, AutoencoderConfig
from .gemma import GemmaConfig, GemmaTextEncoder
from .ltx2 import LTX2Autoencoder
from .text import TextEncoder, TextEncoderConfig

AnyAutoencoder = Autoencoder | LTX2Autoencoder
AnyTextEncoder = TextEncoder | GemmaTextEncoder
Device = str | torch.device

LTX2_FOLDERS = ("ltx2_causal_vae", "vae")  # the causal one, which can stream, first
LTX2_WEIGHTS = "diffusion_pytorch_model.safetensors"
GEMMA, TOKENIZER = "text_encoder", "tokenizer"


def open_autoencoder(folder: Path, config: WorldConfig, dtype: torch.dtype, device: Device) -> AnyAutoencoder:
    """The autoencoder of a world on `device`; CheckpointError that names a missing file, or what does not
    fit.
    """
    settings, weights = config.autoencoder, folder / AUTOENCODER
    if settings.get("kind") == "ltx2" and not weights.is_file():
        published = _part(folder, "autoencoder", LTX2_FOLDERS)
        weights, settings = published / LTX2_WEIGHTS, read_settings(published / CONFIG) | settings
    with torch.device("meta"):
        autoencoder = build_autoencoder(settings)
    cells = tuple(autoencoder.spatial_stride * side for side in config.grid)
    _check_equal(
        "latent channels (autoencoder, transformer)",
        autoencoder.latent_channels,
        config.transformer.in_channels,
    )
    _check_equal("image size (autoencoder's for this grid, configured)", cells, config.image_size)
    load_weights(autoencoder, weights, dtype, device)
    return autoencoder


def open_text_encoder(
    folder: Path, config: WorldConfig, dtype: torch.dtype, device: Device, keep: bool = True
) -> AnyTextEncoder:
    """The text encoder of a world. A Gemma reads its weights when a prompt needs them, and forgets them after
    it unless `keep`.
    """
    encoder_config = text_config(config.text)
    _check_equal("text width (encoder, transformer)", encoder_config.width, config.transformer.text_width)
    if isinstance(encoder_config, TextEncoderConfig):
        return TextEncoder(encoder_config)
    model = _part(folder, "text encoder", (GEMMA,))
    tokenizer = model.parent / TOKENIZER
    return GemmaTextEncoder(
        encoder_config, model, tokenizer if tokenizer.is_dir() else None, device, dtype, keep=keep
    )


def build_autoencoder(settings: Mapping[str, Any]) -> AnyAutoencoder:
    """An untrained autoencoder, by the settings that `WorldConfig.autoencoder` has."""
    kind, options = _kind(settings, ("bundled", "ltx2"))
    return LTX2Autoencoder(options) if kind == "ltx2" else Autoencoder(AutoencoderConfig(**options))


def text_config(settings: Mapping[str, Any]) -> TextEncoderConfig | GemmaConfig:
    """The settings that `WorldConfig.text` has, as those of one text encoder."""
    kind, options = _kind(settings, ("hash", "gemma2"))
    return GemmaConfig(**options) if kind == "gemma2" else TextEncoderConfig(**options)


def _kind(settings: Mapping[str, Any], known: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """`kind` of a part, by default the first that is known, and its other settings."""
    options = dict(settings)
    kind = options.pop("kind", known[0])
    if kind not in known:
        raise ValueError(f"got a part of kind {kind!r}; wanted one of {', '.join(known)}")
    return kind, options


def _part(folder: Path, what: str, names: tuple[str, ...]) -> Path:
    """Folder of a part: inside the world's own, or in the downloaded repository that the published worlds of
    its layout take it from.
    """
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    home = LAYOUTS[find_layout(folder)].home or f"{OWNER}/SANA-WM_streaming"
    part = next(part for part in REPOSITORIES[home] if part.what == what)
    return downloaded(part.repository) / part.files[0].rpartition("/")[0]


def _check_equal(what: str, one: Any, other: Any) -> None:
    if one != other:
        raise ValueError(f"{what} differ: {one} and {other}")
