"""What a world needs in memory, stage by stage, computed from its configuration on tensors that have sizes only."""

import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .codecs.autoencoder import Autoencoder, AutoencoderConfig
from .codecs.ltx2 import LTX2Autoencoder
from .config import TransformerConfig, WorldConfig
from .kernels.formats import Precision
from .kernels.select import choose_dtype
from .network.transformer import PLUCKER_CHANNELS, Transformer
from .quantize import count_bytes, quantize
from .state import CameraContext, TextContext, TransformerState, tensors_of
from .storage.checkpoint import CheckpointError, known_worlds, load_config, resolve_world
from .storage.hub import AUTOENCODER_PARAMETERS, GEMMA_PARAMETERS

GB = 10**9
# Numbers per pixel of a frame that the published LTX-2 decoder carries, and holds at most beside that for a chunk of three latents: what
# `decoder_bytes` finds with diffusers at hand, kept because neither diffusers nor its seconds are needed to say what fits.
LTX2_CARRIED, LTX2_PEAK = 330.25, 1310.0
Result = TypeVar("Result")


@dataclass(frozen=True)
class Need:
    """Bytes of one session of a world, by what they hold. torch itself and its libraries come on top.

    state       what the session carries from step to step once its attention window is full, but for the decoder's part
    decoder     what the decoder carries
    forward     the most that a pass of the network holds beside weights and state; the clean pass, in which the next state is made
    decode      the same of decoding a chunk
    """

    transformer: int
    autoencoder: int
    text_encoder: int
    state: int
    decoder: int
    forward: int
    decode: int


def need(config: WorldConfig, dtype: torch.dtype, precision: Precision | None = None) -> Need:
    """What one session of a world needs with weights in `dtype`, or in `precision` where it has packed ones.

    "auto" worlds keep their autoencoder in float32. Takes a second; no weight is read or made. The transient of a quantised pass is that
    of the exact product, which holds a layer's values in float32; tensor cores hold less.
    """
    state, forward = session_bytes(config.transformer, config.grid, dtype, precision)
    decoder, decode, of_autoencoder = decoder_bytes(config, torch.float32 if config.dtype == "auto" else dtype)
    of_text = dtype.itemsize * GEMMA_PARAMETERS if config.text.get("kind") == "gemma2" else 0  # the other kind computes its features
    weights = weight_bytes(config.transformer, dtype, precision)
    return Need(weights, of_autoencoder, of_text, state + record_bytes(config), decoder, forward, decode)


def bytes_by_device(needed: Need, device: str, offload: Mapping[str, str] | None = None) -> dict[str, int]:
    """The most bytes that a session takes at once on each device, `offload` being that of `WorldModel.load`.

    The stages of a step run one after the other, so only the largest transient counts. A text encoder that is released is there at the
    start of an episode and not in its steps.
    """
    places = {"autoencoder": device, "text": device, **(offload or {})}
    found = {}
    for place in dict.fromkeys((device, *places.values())):
        if place == "release":
            continue
        network, autoencoder = place == device, place == places["autoencoder"]
        weights = network * needed.transformer + autoencoder * needed.autoencoder
        session = network * needed.state + autoencoder * needed.decoder + max(network * needed.forward, autoencoder * needed.decode)
        if place == places["text"]:
            weights += needed.text_encoder
        released = needed.text_encoder if network and places["text"] == "release" else 0
        found[place] = weights + max(session, released)
    return found


def ways_to_run(needed: Need, device: str) -> dict[str, int]:
    """Peak bytes on `device` by what is done to save memory there, the plain way first."""
    ways: list[dict[str, str]] = [{}]
    if needed.text_encoder:
        ways.append({"text": "release"})
        if torch.device(device).type != "cpu":
            ways += [{"text": "cpu"}, {"autoencoder": "cpu", "text": "cpu"}]
    return {f"offload={way}" if way else "everything on the device": bytes_by_device(needed, device, way)[device] for way in ways}


def check_fits(
    config: WorldConfig, dtype: torch.dtype, device: str, offload: Mapping[str, str] | None = None, precision: Precision | None = None
) -> None:
    """Refuse a world that has no room, before any of its weights is read.

    A world with less than a gigabyte of weights is let through: looking would take longer than loading it.

    Raises:
        CheckpointError: says how much is needed and free on which device, what would save enough, and which bundled world fits.
    """
    if weight_bytes(config.transformer, dtype, precision) < GB:
        return
    needed = need(config, dtype, precision)
    for place, size in bytes_by_device(needed, device, offload).items():
        free = free_memory(place)
        if size <= free:
            continue
        parts = ", ".join(f"{name.replace('_', ' ')} {part / GB:.1f}" for name, part in vars(needed).items())
        saving = [way for way, less in ways_to_run(needed, device).items() if less <= free and place == device]
        advice = f"{saving[0]} would do; {nearest(free, device)}" if saving else nearest(free, device)
        raise CheckpointError(
            f"the world {config.name!r} needs {size / GB:.1f} GB on {place}, where {free / GB:.1f} GB are free (in GB: {parts}); {advice}"
        )


def nearest(free: int, device: str) -> str:
    """In words, the largest bundled world that takes no more than `free` bytes of a device."""
    settings = [load_config(resolve_world(name)) for name in known_worlds()]
    sizes = {world.name: max(ways_to_run(need(world, choose_dtype(world.dtype, device)), device).values()) for world in settings}
    fitting = [name for name, size in sizes.items() if size <= free]
    return f"the nearest world that fits is {max(fitting, key=sizes.__getitem__)!r}" if fitting else "no bundled world fits either"


def weight_bytes(config: TransformerConfig, dtype: torch.dtype, precision: Precision | None = None) -> int:
    """Bytes of the transformer's parameters and buffers, in `dtype` or packed."""
    with torch.device("meta"):
        network = Transformer(config)
    return count_bytes(quantize(network, precision, exact=True) if precision else network, dtype)


def record_bytes(config: WorldConfig) -> int:
    """What a `WorldState` holds beside network and decoder: newest frame, first latent, poses, intrinsics, generator, counter."""
    (height, width), cells = config.image_size, config.grid[0] * config.grid[1]
    in_float64 = 16 + 4
    return 3 * height * width + 4 * config.transformer.in_channels * cells + 8 * in_float64 + torch.Generator().get_state().nbytes + 8


def session_bytes(
    config: TransformerConfig, grid: tuple[int, int], dtype: torch.dtype, precision: Precision | None = None
) -> tuple[int, int]:
    """Bytes of the network's state and of the prompt once the window is full, and the most that a pass holds beside weights and state.

    One block of each kind is run, for as many chunks as fill the window (three where it never fills): the others are like them.
    """
    softmaxes = sum(config.is_softmax(i) for i in range(config.depth))
    like = (config.depth - softmaxes, softmaxes)  # blocks of the kind of the first and of the second block below
    small = replace(config, depth=2, softmax_every=2 if softmaxes else 0)
    with torch.device("meta"), _FusedAttention(), torch.no_grad():
        network = Transformer(small).to(dtype)  # not by a default dtype, which other threads would see
        if precision:
            quantize(network, precision, exact=True)
        chunk, state = empty_session(network, grid)
        text = chunk[1]
        peak, after = peak_of(lambda: network.commit(*chunk, state))
    kept = [set(map(id, tensors_of(block))) for block in state.blocks]
    made = [sum(t.nbytes for t in tensors_of(block) if id(t) not in old) for block, old in zip(after.blocks, kept, strict=True)]
    carried = [sum(t.nbytes for t in (*tensors_of(b), k, v)) for b, k, v in zip(after.blocks, text.keys, text.values, strict=True)]
    rays = [t.nbytes for t in chunk[2].plucker]
    shared = text.mask.nbytes + after.next_frame.nbytes
    tables = sum(t.nbytes for t in tensors_of(chunk[2])) - sum(rays)
    # the old state lives until the new one is complete, so what all blocks make counts, and the pass above has counted two of them
    return _times(like, carried) + shared, peak - sum(made) + _times(like, made) + _times(like, rays) + tables


def empty_session(network: Transformer, grid: tuple[int, int]) -> tuple[tuple[Tensor, TextContext, CameraContext], TransformerState]:
    """A chunk for a network on the meta device, and the state before it, whose window is full: sizes without values."""
    config = network.config
    with torch.device("meta"), torch.no_grad():
        words = torch.empty(1, config.text_tokens, config.text_width, dtype=network.dtype)
        text = network.text_context(words, torch.ones(1, config.text_tokens, dtype=network.dtype))
        state = network.commit(*_chunk(network, config.chunk + 1, grid, text, None), None)
        for _ in range(max(config.num_cached_blocks, 2) - 1):
            state = network.commit(*_chunk(network, config.chunk, grid, text, state), state)
        return _chunk(network, config.chunk, grid, text, state), state


def decoder_bytes(config: WorldConfig, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes that the decoder carries, the most that it holds beside that and its weights to decode a chunk, and the weights' own."""
    settings = dict(config.autoencoder)
    kind = settings.pop("kind", "bundled")
    if kind == "ltx2" and not settings:
        numbers = config.image_size[0] * config.image_size[1] * dtype.itemsize
        return round(LTX2_CARRIED * numbers), round(LTX2_PEAK * numbers), dtype.itemsize * AUTOENCODER_PARAMETERS
    with torch.device("meta"), torch.no_grad():
        autoencoder = LTX2Autoencoder(settings) if kind == "ltx2" else Autoencoder(AutoencoderConfig(**settings))
        autoencoder = autoencoder.to(dtype)
        first = torch.empty(1, config.transformer.in_channels, 1, *config.grid, dtype=dtype)
        _, state = autoencoder.decode(first)
        chunk = first.expand(-1, -1, config.transformer.chunk, -1, -1).contiguous()
        peak, (_, state) = peak_of(lambda: autoencoder.decode(chunk, state))
    return sum(t.nbytes for t in state), peak, sum(t.nbytes for t in autoencoder.state_dict().values())


def _chunk(
    network: Transformer, frames: int, grid: tuple[int, int], text: TextContext, state: TransformerState | None
) -> tuple[Tensor, TextContext, CameraContext]:
    camera, plucker = torch.empty(1, frames, 20, dtype=torch.float32), torch.empty(1, PLUCKER_CHANNELS, frames, *grid, dtype=network.dtype)
    cameras = network.camera_context(camera, plucker, 0 if state is None else state.next_frame)
    return torch.empty(1, network.config.in_channels, frames, *grid, dtype=network.dtype), text, cameras


def _times(like: tuple[int, int], sizes: list[int]) -> int:
    return sum(count * size for count, size in zip(like, sizes, strict=True))


def peak_of(run: Callable[[], Result]) -> tuple[int, Result]:
    """The most bytes that were alive at once of what `run` made, and its result. Meant for tensors that have sizes only."""
    with _Held() as held:
        result = run()
    return held.peak, result


class _FusedAttention(TorchFunctionMode):
    """Attention that makes nothing but its result, as the fused kernels do. The meta device would take the path that keeps every score."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


class _Held(TorchDispatchMode):
    """Counts the storages that operations make, from their making to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and (key := t.untyped_storage()._cdata) not in given and key not in self.known:
                self._hold(key, t.untyped_storage())
        return out

    def _hold(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def free_memory(device: str | torch.device) -> int:
    """Bytes that a new tensor could take on a device: CUDA's own count, or what the operating system calls available."""
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, to be given out again
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
