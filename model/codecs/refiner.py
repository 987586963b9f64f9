"""The refiner of a world: where its files lie, and how it gets into memory.

A world folder may hold `refiner/transformer` (settings and weights, as diffusers writes them). Beside the
published ones lie the connectors and the Gemma-3 that read prompts; a small one reads prompts as its world
does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..network.refiner import RefinerConfig, RefinerNetwork
from ..refiner import Encoder, Refiner
from ..storage.hub import downloaded
from ..storage.layouts import CONFIG, CONNECTORS, OWNER, REFINER, find_layout, read_settings
from ..storage.weights import CheckpointError, WeightFiles, indexed_files, load
from .gemma3 import Gemma3TextEncoder

NETWORK = "transformer"
WEIGHTS = "diffusion_pytorch_model.safetensors"
HOMES = (REFINER, "refiner_diffusers")
GEMMA = ("text_encoder", "../gemma3_12b")  # seen from there


@dataclass(frozen=True)
class RefinerFiles:
    """A refiner that was found; no weight is read yet.

    Attributes:
        folder: with `transformer` inside, and `connectors` where it has a text encoder of its own.
        config: settings of its network.
        weights: its files.
    """

    folder: Path
    config: RefinerConfig
    weights: WeightFiles


def find_refiner(world: Path, refiner: str | Path) -> RefinerFiles:
    """Finds the refiner of a world's folder ("auto"), or the one in a folder.

    Raises:
        CheckpointError: there is none, or its settings cannot be used; says what to do.
    """
    folder = _home_of(world) if refiner == "auto" else Path(refiner)
    network = folder / NETWORK
    if not (network / CONFIG).is_file():
        raise CheckpointError(
            f"got refiner={str(refiner)!r}; {folder} has no {NETWORK}/{CONFIG}: wanted the folder of a "
            "refiner, 'auto' or None"
        )
    index = network / f"{WEIGHTS}.index.json"
    files = indexed_files(index) if index.is_file() else (network / WEIGHTS,)
    try:
        config = RefinerConfig.from_settings(read_settings(network / CONFIG))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{network / CONFIG}: {error}") from None
    return RefinerFiles(folder, config, WeightFiles(files))


def open_refiner(
    files: RefinerFiles,
    text_encoder: Encoder,
    dtype: torch.dtype,
    device: str | torch.device,
    place: str | torch.device,
    release: bool = False,
) -> Refiner:
    """Reads a refiner into memory.

    Args:
        files: which one.
        text_encoder: of the world, for a refiner that has none of its own.
        dtype: of weights.
        device: of the world's transformer.
        place: where the network runs; "blocks" for `device` with its blocks left in the files.
        release: whether a text encoder of its own is let go after every start.

    Raises:
        CheckpointError: files that are missing or do not fit; every name is listed, before weights are read.
    """
    on = torch.device(device if place == "blocks" else place)
    with torch.device("meta"):
        network = RefinerNetwork(files.config)
    if place == "blocks":
        network.transformer_blocks = BlocksInFiles(network, files.weights, dtype, on)
    load(network, files.weights, dtype, on, ignored=partial(_is_ignored, place == "blocks"))
    own = files.folder / CONNECTORS
    if own.is_dir():
        model = next((path for name in GEMMA if (path := files.folder / name).is_dir()), None)
        if model is None:
            raise CheckpointError(f"{files.folder} has connectors and no Gemma-3 (text_encoder)")
        text_encoder = Gemma3TextEncoder(model, own, dtype=dtype, device=on, keep=not release)
    wants = files.config.caption_channels
    width = getattr(getattr(text_encoder, "config", None), "width", wants)
    if width != wants:
        raise CheckpointError(f"{files.folder} reads prompts of {wants} features; the encoder has {width}")
    return Refiner(network, text_encoder)


class BlocksInFiles(nn.Module):
    """The blocks of a network, one at a time in memory: each is read from its file when its turn comes."""

    def __init__(
        self, network: RefinerNetwork, files: WeightFiles, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self._block: Any = [next(iter(network.transformer_blocks))]  # in a list: no part of the network
        self.count, self.files, self.dtype, self.device = network.config.num_layers, files, dtype, device

    def __iter__(self) -> Iterator[nn.Module]:
        (block,) = self._block
        for i in range(self.count):
            begin = f"transformer_blocks.{i}."
            read = self.files.tensors(lambda name, begin=begin: name.startswith(begin) and not is_sound(name))
            tensors = {name.removeprefix(begin): t.to(self.device, self.dtype) for name, t in read}
            block.load_state_dict(tensors, assign=True)
            yield block.eval().requires_grad_(False)


def is_sound(name: str) -> bool:
    """Returns True for weights of LTX-2 that pictures do without."""
    return "audio" in name or name.startswith("av_cross_attn") or "video_a2v" in name


def _is_ignored(blocks_too: bool, name: str) -> bool:
    return is_sound(name) or (blocks_too and name.startswith("transformer_blocks."))


def _home_of(world: Path) -> Path:
    for name in HOMES:
        if (world / name).is_dir():
            return world / name
    if find_layout(world) != "world":
        for name in HOMES:
            if (folder := downloaded(f"{OWNER}/SANA-WM_streaming") / name).is_dir():
                return folder
        raise CheckpointError(
            f"the refiner is not on this machine: `sana-wm download {OWNER}/SANA-WM_streaming --optional`"
        )
    raise CheckpointError(
        f"the world in {world} comes without a refiner (no folder {HOMES[0]}): wanted refiner=None, or the "
        "folder of one; `sana-wm train refiner` makes one"
    )
