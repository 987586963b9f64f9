"""Memory that a world needs, stage by stage, computed from its configuration on the meta device."""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sana_wm_env.machine import free_memory

from .codecs.gemma import GemmaConfig
from .codecs.open import build_autoencoder, text_config
from .config import TransformerConfig, WorldConfig
from .contexts import CameraContext, TextContext
from .kernels.formats import Precision
from .kernels.select import choose_dtype
from .network.refiner import RefinerConfig, RefinerNetwork, Rotation
from .network.transformer import PLUCKER_CHANNELS, Transformer
from .quantize import count_bytes, quantize
from .refiner import Pass, remember
from .state import KeysValues, RefinerState, TransformerState
from .storage.hub import AUTOENCODER_PARAMETERS, GEMMA_PARAMETERS, REFINER_TEXT_PARAMETERS
from .storage.worlds import CheckpointError, known_worlds, load_config, resolve_world
from .tree import tensors_of

GB = 10**9
REFINER_WORDS = 1024  # places of a prompt of the published refiner
PUBLISHED_WORDS = RefinerConfig().caption_channels  # features of each
# Numbers per pixel of a frame that the published LTX-2 decoder carries, and holds at most beside that for a
# chunk of three latents: what `decoder_bytes` finds with diffusers, kept so that neither diffusers nor its
# seconds are needed to say what fits.
LTX2_CARRIED, LTX2_PEAK = 330.25, 1310.0
Result = TypeVar("Result")


@dataclass(frozen=True)
class Need:
    """Bytes of one session of a world, by what they hold. torch itself and its libraries come on top.

    Attributes:
        transformer, autoencoder, text_encoder: weights.
        state: what the session carries from step to step once its attention window is full, but for the
            decoder's part.
        decoder: what the decoder carries.
        forward: the most that a pass of the network holds beside weights and state; the clean pass, in which
            the next state is made.
        decode: the same of decoding a chunk.
        refiner: weights of the refiner; 0, like what follows, where there is none.
        refiner_by_blocks: what is in memory of them where its blocks stay in their files.
        window: what the refiner carries of a session.
        refine: the most that it holds beside that.
        refiner_text: Gemma-3 and the connectors, which read its prompts at the published size.
    """

    transformer: int
    autoencoder: int
    text_encoder: int
    state: int
    decoder: int
    forward: int
    decode: int
    refiner: int = 0
    refiner_by_blocks: int = 0
    window: int = 0
    refine: int = 0
    refiner_text: int = 0


def need(
    config: WorldConfig,
    dtype: torch.dtype,
    precision: Precision | None = None,
    refiner: RefinerConfig | None = None,
) -> Need:
    """Computes the bytes of one session of a world with weights in `dtype`, or in `precision` where it has
    packed ones.

    "auto" worlds keep their autoencoder in float32. Takes a second; no weight is read or made. The transient
    of a quantised pass is that of the exact product, which holds a layer's values in float32; tensor cores
    hold less.
    """
    state, forward = session_bytes(config.transformer, config.grid, dtype, precision)
    decoder, decode, of_autoencoder = decoder_bytes(
        config, torch.float32 if config.dtype == "auto" else dtype
    )
    # the other kind of text encoder has no weights
    of_text = GEMMA_PARAMETERS * dtype.itemsize if isinstance(text_config(config.text), GemmaConfig) else 0
    weights = weight_bytes(config.transformer, dtype, precision)
    of_refiner = refiner_bytes(refiner, config.grid, dtype) if refiner else ()
    if refiner and refiner.caption_channels == PUBLISHED_WORDS:  # a small one reads prompts as its world does
        of_refiner += (REFINER_TEXT_PARAMETERS * dtype.itemsize,)
    carried = state + record_bytes(config)
    return Need(weights, of_autoencoder, of_text, carried, decoder, forward, decode, *of_refiner)


def bytes_by_device(needed: Need, device: str, offload: Mapping[str, str] | None = None) -> dict[str, int]:
    """Returns the peak bytes of a session on each device, `offload` being that of `WorldModel.load`.

    The stages of a step run one after the other, so only the largest transient counts. A text encoder that is
    released is there at the start of an episode and not in its steps; the refiner's own lies where the
    refiner does.
    """
    places = {"autoencoder": device, "text": device, "refiner": device, **(offload or {})}
    of_refiner = needed.refiner
    if places["refiner"] == "blocks":
        places["refiner"], of_refiner = device, needed.refiner_by_blocks
    peaks = {}
    for place in dict.fromkeys((device, *places.values())):
        if place == "release":
            continue
        network, autoencoder, refiner = (
            place == where for where in (device, places["autoencoder"], places["refiner"])
        )
        weights = network * needed.transformer + autoencoder * needed.autoencoder + refiner * of_refiner
        session = (
            network * needed.state
            + autoencoder * needed.decoder
            + refiner * needed.window
            + max(network * needed.forward, autoencoder * needed.decode, refiner * needed.refine)
        )
        if place == places["text"]:
            weights += needed.text_encoder
        released = (0, 0)
        if places["text"] == "release":
            released = network * needed.text_encoder, refiner * needed.refiner_text
        else:
            weights += refiner * needed.refiner_text
        peaks[place] = weights + max(session, *released)
    return peaks


def ways_to_run(needed: Need, device: str) -> dict[str, int]:
    """Peak bytes on `device` by what is done to save memory there, the plain way first."""
    ways: list[dict[str, str]] = [{}]
    if needed.text_encoder:
        ways.append({"text": "release"})
        if torch.device(device).type != "cpu":
            ways += [{"text": "cpu"}, {"autoencoder": "cpu", "text": "cpu"}]
    if needed.refiner:
        ways += [way | {"refiner": "blocks"} for way in ways]
    return {
        f"offload={way}" if way else "everything on the device": bytes_by_device(needed, device, way)[device]
        for way in ways
    }


def check_fits(
    config: WorldConfig,
    dtype: torch.dtype,
    device: str,
    offload: Mapping[str, str] | None = None,
    precision: Precision | None = None,
    refiner: RefinerConfig | None = None,
) -> None:
    """Refuse a world that has no room, before any of its weights is read.

    A world with less than a gigabyte of weights is let through: looking would take longer than loading it.

    Raises:
        CheckpointError: says how much is needed and free on which device, what would save enough, and which
            bundled world fits.
    """
    if weight_bytes(config.transformer, dtype, precision) < GB and refiner is None:
        return
    needed = need(config, dtype, precision, refiner)
    for place, size in bytes_by_device(needed, device, offload).items():
        free = free_memory(place)
        if size <= free:
            continue
        parts = ", ".join(f"{name.replace('_', ' ')} {part / GB:.1f}" for name, part in vars(needed).items())
        saving = [
            way for way, less in ways_to_run(needed, device).items() if less <= free and place == device
        ]
        advice = f"{saving[0]} would do; {nearest(free, device)}" if saving else nearest(free, device)
        raise CheckpointError(
            f"the world {config.name!r} needs {size / GB:.1f} GB on {place}, where {free / GB:.1f} GB are "
            f"free (in GB: {parts}); {advice}"
        )


def nearest(free: int, device: str) -> str:
    """Names the largest bundled world that takes no more than `free` bytes of a device, as a phrase."""
    settings = {name: load_config(resolve_world(name)) for name in known_worlds()}
    sizes = {
        name: max(ways_to_run(need(world, choose_dtype(world.dtype, device)), device).values())
        for name, world in settings.items()
    }
    fitting = [name for name, size in sizes.items() if size <= free]
    return (
        f"the nearest world that fits is {max(fitting, key=sizes.__getitem__)!r}"
        if fitting
        else "no bundled world fits either"
    )


def weight_bytes(config: TransformerConfig, dtype: torch.dtype, precision: Precision | None = None) -> int:
    """Bytes of the transformer's parameters and buffers, in `dtype` or packed."""
    with torch.device("meta"):
        network = Transformer(config)
    return count_bytes(quantize(network, precision, exact=True) if precision else network, dtype)


def refiner_bytes(
    config: RefinerConfig, grid: tuple[int, int], dtype: torch.dtype
) -> tuple[int, int, int, int]:
    """Bytes of a refiner's weights, of those in memory where its blocks stay in their files, of what it
    carries once its window is full, and the most that a pass holds beside all that.
    """
    with torch.device("meta"), _FusedAttention(), torch.no_grad():
        network = RefinerNetwork(config).to(dtype)
        weights, block = (
            sum(t.nbytes for t in module.state_dict().values())
            for module in (network, next(iter(network.transformer_blocks)))
        )
        tokens, heads = grid[0] * grid[1], (config.num_attention_heads, config.attention_head_dim)
        text, mask = torch.empty(1, REFINER_WORDS, config.width, dtype=dtype), torch.empty(1, REFINER_WORDS)
        kept = torch.empty(1, heads[0], config.window * tokens, heads[1], dtype=dtype)
        state = RefinerState(
            window=tuple(
                KeysValues(torch.empty_like(kept), torch.empty_like(kept)) for _ in range(config.num_layers)
            ),
            text=text,
            mask=mask.bool(),
            frames=torch.zeros(1, dtype=torch.int64),
            generators=torch.empty(1, torch.Generator().get_state().numel(), dtype=torch.uint8),
            weights="",
        )
        latents = torch.empty(1, config.in_channels, config.block, *grid, dtype=torch.float32)
        places = torch.empty(heads[0], (config.window + config.block) * tokens, heads[1] // 2)
        run = Pass(network, text, state.mask, Rotation(places, places), state.window)
        peak, _ = peak_of(lambda: remember(latents, run, state, config.window))
    return weights, weights - block * (config.num_layers - 2), state.nbytes, peak + 2 * places.nbytes


def record_bytes(config: WorldConfig) -> int:
    """Returns the bytes of a `WorldState` beside network and decoder: newest frame, first latent, poses,
    intrinsics, generator, counters.
    """
    (height, width), cells = config.image_size, config.grid[0] * config.grid[1]
    in_float64 = 16 + 4
    return (
        3 * height * width
        + 4 * config.transformer.in_channels * cells
        + 8 * in_float64
        + torch.Generator().get_state().nbytes
        + 2 * 8
    )


def session_bytes(
    config: TransformerConfig, grid: tuple[int, int], dtype: torch.dtype, precision: Precision | None = None
) -> tuple[int, int]:
    """Bytes of the network's state and of the prompt once the window is full, and the most that a pass holds
    beside weights and state.

    One block of each kind is run, for as many chunks as fill the window (three where it never fills): the
    others are like them.
    """
    softmaxes = sum(config.is_softmax(i) for i in range(config.depth))
    like = (
        config.depth - softmaxes,
        softmaxes,
    )  # blocks of the kind of the first and of the second block below
    small = replace(config, depth=2, softmax_every=2 if softmaxes else 0)
    with torch.device("meta"), _FusedAttention(), torch.no_grad():
        network = Transformer(small).to(dtype)  # not by a default dtype, which other threads would see
        if precision:
            quantize(network, precision, exact=True)
        chunk, state = empty_session(network, grid)
        text = chunk[1]
        peak, after = peak_of(lambda: network.commit(*chunk, state))
    kept = [set(map(id, tensors_of(block))) for block in state.blocks]
    made = [
        sum(t.nbytes for t in tensors_of(block) if id(t) not in old)
        for block, old in zip(after.blocks, kept, strict=True)
    ]
    carried = [
        sum(t.nbytes for t in (*tensors_of(b), k, v))
        for b, k, v in zip(after.blocks, text.keys, text.values, strict=True)
    ]
    rays = [t.nbytes for t in chunk[2].plucker]
    shared = text.mask.nbytes + after.next_frame.nbytes
    tables = sum(t.nbytes for t in tensors_of(chunk[2])) - sum(rays)
    # the old state lives until the new one is complete, so what all blocks make counts, and the pass above
    # has counted two of them
    return _times(like, carried) + shared, peak - sum(made) + _times(like, made) + _times(like, rays) + tables


def empty_session(
    network: Transformer, grid: tuple[int, int]
) -> tuple[tuple[Tensor, TextContext, CameraContext], TransformerState]:
    """A chunk for a network on the meta device, and the state before it, whose window is full: sizes without
    values.
    """
    config = network.config
    with torch.device("meta"), torch.no_grad():
        words = torch.empty(1, config.text_tokens, config.text_width, dtype=network.dtype)
        text = network.text_context(words, torch.ones(1, config.text_tokens, dtype=network.dtype))
        state = network.commit(*make_chunk(network, config.chunk + 1, grid, text, None), None)
        for _ in range(max(config.num_cached_blocks, 2) - 1):
            state = network.commit(*make_chunk(network, config.chunk, grid, text, state), state)
        return make_chunk(network, config.chunk, grid, text, state), state


def decoder_bytes(config: WorldConfig, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes that the decoder carries, the most that it holds beside that and its weights to decode a chunk,
    and the weights' own.
    """
    if config.autoencoder == {"kind": "ltx2"}:  # the published one
        numbers = config.image_size[0] * config.image_size[1] * dtype.itemsize
        return (
            round(LTX2_CARRIED * numbers),
            round(LTX2_PEAK * numbers),
            dtype.itemsize * AUTOENCODER_PARAMETERS,
        )
    with torch.device("meta"), torch.no_grad():
        autoencoder = build_autoencoder(config.autoencoder).to(dtype)
        first = torch.empty(1, config.transformer.in_channels, 1, *config.grid, dtype=dtype)
        _, state = autoencoder.decode(first)
        chunk = first.expand(-1, -1, config.transformer.chunk, -1, -1).contiguous()
        peak, (_, state) = peak_of(lambda: autoencoder.decode(chunk, state))
    return sum(t.nbytes for t in state), peak, sum(t.nbytes for t in autoencoder.state_dict().values())


def make_chunk(
    network: Transformer,
    frames: int,
    grid: tuple[int, int],
    text: TextContext,
    state: TransformerState | None,
) -> tuple[Tensor, TextContext, CameraContext]:
    """Latents, text and cameras of a chunk of `frames` latent frames that follows a state; under a meta
    device, sizes only.
    """
    camera = torch.empty(1, frames, 20, dtype=torch.float32)
    plucker = torch.empty(1, PLUCKER_CHANNELS, frames, *grid, dtype=network.dtype)
    cameras = network.camera_context(camera, plucker, 0 if state is None else state.next_frame)
    return torch.empty(1, network.config.in_channels, frames, *grid, dtype=network.dtype), text, cameras


def _times(like: tuple[int, int], sizes: list[int]) -> int:
    return sum(count * size for count, size in zip(like, sizes, strict=True))


def peak_of(run: Callable[[], Result]) -> tuple[int, Result]:
    """Returns the peak bytes of the tensors that `run` made, and its result. Meant for tensors on the meta
    device.
    """
    with _Held() as held:
        result = run()
    return held.peak, result


class _FusedAttention(TorchFunctionMode):
    """Attention that makes nothing but its result, as the fused kernels do. The meta device would take the
    path that keeps every score.
    """

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
            if (
                isinstance(t, Tensor)
                and (key := t.untyped_storage()._cdata) not in given
                and key not in self.known
            ):
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
