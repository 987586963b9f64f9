"""Compare the network with golden files: exact outputs of tiny random networks (format: model/README.md
section 13).

`sana-wm parity FILE...` builds each network from its file alone, streams the clip in float64 and float32 and
prints the largest absolute errors.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sana_wm_env.model.config import TransformerConfig
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.sampler import euler
from sana_wm_env.model.state import BlockState, DeltaState, TransformerState
from sana_wm_env.model.storage.weights import CheckpointError, fill

COLUMNS = ("velocities", "latents", "states", "bidirectional")
TOLERANCES = {
    torch.float64: dict.fromkeys(COLUMNS, 1e-5),
    torch.float32: {"velocities": 5e-5, "latents": 2e-4, "states": 2e-4, "bidirectional": 5e-5},
}
VARIANTS = {
    "nvlabs": {"cam_rms_clamp": "none", "softmax_scale": "true", "cam_conv_carry": True},
    "nvlabs-v1": {"cam_rms_clamp": "none", "softmax_scale": "padded128", "cam_conv_carry": False},
    "sglang": {"cam_rms_clamp": "all", "softmax_scale": "padded128", "cam_conv_carry": False},
}
WINDOWS = {
    "first chunk + previous chunk": {"sink": True, "num_cached_blocks": 2},
    "first chunk": {"sink": True, "num_cached_blocks": 1},
    "previous chunk": {"sink": False, "num_cached_blocks": 1},
    "previous 2 chunks": {"sink": False, "num_cached_blocks": 2},
    "all chunks": {"sink": True, "num_cached_blocks": -1},
}
TYPE_MARKER = "6"  # a slot that only says which kind of block it is


class GoldenError(ValueError):
    """A golden file that cannot be used."""


@dataclass(frozen=True)
class Golden:
    """One golden file: configuration, noise levels, latent frames per chunk, and all tensors that are not
    weights.
    """

    name: str
    config: TransformerConfig
    sigmas: tuple[float, ...]
    chunks: tuple[int, ...]
    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]


def run(files: Sequence[str]) -> int:
    """Print a table of errors. Returns 0, 1 if any is above its tolerance, 2 if any file cannot be used.

    ValueError if there are no files.
    """
    if not files:
        raise ValueError("parity needs at least one golden file")
    code, width = 0, max([len(Path(f).name) for f in files], default=4)
    print(f"{'file':<{width}}  {'dtype':<8}" + "".join(f"{column:>15}" for column in COLUMNS))
    for file in files:
        try:
            golden = read_golden(Path(file))
            rows = [(dtype, measure_errors(golden, dtype)) for dtype in TOLERANCES]
        except (GoldenError, CheckpointError) as error:
            print(f"{file}: {error}", file=sys.stderr)
            code = 2
            continue
        for dtype, errors in rows:
            # written so that NaN counts as too large
            failed = {name: not error <= TOLERANCES[dtype][name] for name, error in errors.items()}
            cells = [f"{errors[c]:.2e}{'!' if failed[c] else ' '}" if c in errors else "- " for c in COLUMNS]
            print(
                f"{Path(file).name:<{width}}  {str(dtype).removeprefix('torch.'):<8}"
                + "".join(f"{cell:>15}" for cell in cells)
            )
            code = max(code, int(any(failed.values())))
    print(
        "largest absolute errors; ! is above tolerance: float64 1e-5; float32 5e-5 (velocities, "
        "bidirectional), 2e-4 (latents, states)"
    )
    return code


def read_golden(path: Path) -> Golden:
    """Read and check a golden file; GoldenError says what is wrong with it."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise GoldenError(f"cannot be read as safetensors: {error}") from None
    weights = {
        key.removeprefix("weights."): tensors.pop(key) for key in list(tensors) if key.startswith("weights.")
    }
    for name in (
        "inputs.x0",
        "inputs.noise",
        "inputs.text",
        "inputs.text_mask",
        "inputs.camera",
        "inputs.plucker",
        "outputs.latents",
    ):
        if name not in tensors:
            raise GoldenError(f"has no tensor {name}")
    sigmas = _floats(metadata, "sigmas")
    if len(sigmas) < 2:
        raise GoldenError(f"metadata sigmas is {metadata['sigmas']!r}; wanted at least two levels")
    if tensors["inputs.text"].dim() != 4 or tensors["inputs.noise"].dim() != 5:
        raise GoldenError("inputs.text must have 4 axes (B, 1, L, width), inputs.noise 5 (B, C, T, H, W)")
    config = _config(metadata, tensors["inputs.text"].shape[2])
    golden = Golden(path.name, config, sigmas, _chunks(tensors, len(sigmas) - 1), weights, tensors)
    _check_shapes(golden, metadata)
    return golden


def measure_errors(golden: Golden, dtype: torch.dtype) -> dict[str, float]:
    """Largest absolute error per column of the table, the network and its inputs being cast to `dtype`."""
    with torch.device("meta"):
        network = Transformer(golden.config)
    fill(network, {key: t.to(dtype) for key, t in golden.weights.items()}, golden.name)
    with torch.inference_mode():
        return _measure(golden, network.prepare(), dtype)


def _measure(golden: Golden, network: Transformer, dtype: torch.dtype) -> dict[str, float]:
    x0, noise, camera, plucker = (
        golden.tensors[f"inputs.{name}"].to(dtype) for name in ("x0", "noise", "camera", "plucker")
    )
    text = network.text_context(
        golden.tensors["inputs.text"][:, 0].to(dtype), golden.tensors["inputs.text_mask"]
    )
    errors: dict[str, float] = dict.fromkeys(COLUMNS[:3], 0.0)
    state: TransformerState | None = None
    latents, start = [], 0
    for n, size in enumerate(golden.chunks):
        frames = slice(start, start + size)
        cameras = network.camera_context(camera[:, frames], plucker[:, :, frames], start)
        velocities: list[Tensor] = []

        def velocity(x: Tensor, t: Tensor, cameras=cameras, state=state, velocities=velocities) -> Tensor:
            velocities.append(network.stream(x, t, text, cameras, state))
            return velocities[-1]

        x = euler(velocity, noise[:, :, frames], golden.sigmas, x0 if n == 0 else None)
        for i, v in enumerate(velocities):
            errors["velocities"] = max(
                errors["velocities"], _error(v, golden.tensors[f"trace.chunk{n}.step{i}.v"])
            )
        state = network.commit(x, text, cameras, state)
        errors["states"] = max(errors["states"], _state_error(golden, n, state))
        latents.append(x)
        start += size
    errors["latents"] = _error(torch.cat(latents, 2), golden.tensors["outputs.latents"])
    if "outputs.dense_velocity" in golden.tensors:
        clip = golden.tensors["outputs.latents"].to(dtype)
        timestep = golden.tensors["inputs.dense_timestep"].reshape(clip.shape[0], -1)
        v = network(clip, timestep, text, network.camera_context(camera, plucker))
        errors["bidirectional"] = _error(v, golden.tensors["outputs.dense_velocity"])
    return errors


def _state_error(golden: Golden, chunk: int, state: TransformerState) -> float:
    worst = 0.0
    for b, block in enumerate(state.blocks):
        slots = _slots(block)
        prefix = f"trace.chunk{chunk}.block{b}.slot"
        for key in golden.tensors:
            slot = key.removeprefix(prefix)
            if key.startswith(prefix) and slot != TYPE_MARKER:
                ours = slots.get(slot)
                worst = max(worst, float("inf") if ours is None else _error(ours, golden.tensors[key]))
    return worst


def _slots(block: BlockState) -> dict[str, Tensor]:
    """One block's state in the slots and layouts of the official sampler (model/README.md section 8)."""

    def by_place(tail: Tensor) -> Tensor:
        return tail.transpose(1, 2).flatten(0, 1)  # (B, 3, S, C) -> (B * S, 3, C)

    slots = {"9": block.ffn_tail.mT[:, :, None]}  # (B, S, C) -> (B, C, 1, S)
    attention = block.attention
    if isinstance(attention, DeltaState):
        slots |= {"0": attention.matrix, "1": attention.normaliser[..., None], "2": attention.camera_matrix}
        slots["4"] = by_place(attention.conv_tail)
        if attention.camera_conv_tail is not None:
            slots["3"] = by_place(attention.camera_conv_tail)
    elif attention.entries:
        newest = attention.entries[-1]
        for i, t in enumerate((newest.key, newest.value, newest.camera_key, newest.camera_value)):
            slots[str(i)] = t.transpose(1, 2)  # (B, h, N, D) -> (B, N, h, D)
    return slots


def _error(ours: Tensor, theirs: Tensor) -> float:
    """Returns the largest absolute difference; infinite where shapes differ or a value is NaN."""
    if ours.shape != theirs.shape:
        return float("inf")
    return (ours.double() - theirs.double()).abs().nan_to_num(nan=float("inf")).max().item()


def _config(metadata: dict[str, str], text_tokens: int) -> TransformerConfig:
    variant, window = _choice(metadata, "variant", VARIANTS), _choice(metadata, "softmax_window", WINDOWS)
    width, heads, head_dim = (_integer(metadata, name) for name in ("width", "heads", "head_dim"))
    if width != heads * head_dim:
        raise GoldenError(f"metadata: width {width} is not heads {heads} times head_dim {head_dim}")
    try:
        return TransformerConfig(
            depth=_integer(metadata, "layers"),
            width=width,
            heads=heads,
            in_channels=_integer(metadata, "latent_channels"),
            mlp_ratio=_floats(metadata, "mlp_ratio")[0],
            text_width=_integer(metadata, "caption_channels"),
            text_tokens=text_tokens,
            softmax_every=_integer(metadata, "softmax_every"),
            chunk=_integer(metadata, "chunk"),
            **variant,
            **window,
        )
    except ValueError as error:
        raise GoldenError(f"metadata: {error}") from None


def _chunks(tensors: dict[str, Tensor], steps: int) -> tuple[int, ...]:
    """Latent frames of each chunk, as the trace has them."""
    sizes: list[int] = []
    while (first := f"trace.chunk{len(sizes)}.step0.v") in tensors:
        for i in range(steps):
            if (name := first.replace("step0", f"step{i}")) not in tensors:
                raise GoldenError(f"has no tensor {name}, though its sigmas make {steps} steps per chunk")
        sizes.append(tensors[first].shape[2])
    frames = tensors["inputs.noise"].shape[2]
    if sum(sizes) != frames:
        raise GoldenError(
            f"its trace covers {sum(sizes)} latent frames (chunks {sizes}), its noise has {frames}"
        )
    return tuple(sizes)


def _check_shapes(golden: Golden, metadata: dict[str, str]) -> None:
    grid = _text(metadata, "grid")
    try:
        height, width = (int(side) for side in grid.split("x"))
    except ValueError:
        raise GoldenError(f"metadata grid is {grid!r}; wanted HxW") from None
    frames = _integer(metadata, "latent_frames")
    batch = golden.tensors["inputs.noise"].shape[0]
    channels = golden.config.in_channels
    tokens = golden.config.text_tokens
    wanted = {
        "inputs.noise": (batch, channels, frames, height, width),
        "outputs.latents": (batch, channels, frames, height, width),
        "inputs.x0": (batch, channels, 1, height, width),
        "inputs.camera": (batch, frames, 20),
        "inputs.plucker": (batch, 48, frames, height, width),
        "inputs.text": (batch, 1, tokens, golden.config.text_width),
        "inputs.text_mask": (batch, tokens),
    }
    for name, shape in wanted.items():
        if tuple(golden.tensors[name].shape) != shape:
            raise GoldenError(f"{name} is {tuple(golden.tensors[name].shape)}; its metadata makes it {shape}")
    if "outputs.dense_velocity" in golden.tensors and "inputs.dense_timestep" not in golden.tensors:
        raise GoldenError("has outputs.dense_velocity but no inputs.dense_timestep")


def _text(metadata: dict[str, str], name: str) -> str:
    if name not in metadata:
        raise GoldenError(f"metadata has no {name}")
    return metadata[name]


def _choice(metadata: dict[str, str], name: str, table: dict[str, dict]) -> dict:
    value = _text(metadata, name)
    if value not in table:
        raise GoldenError(f"metadata {name} is {value!r}; known are {', '.join(table)}")
    return table[value]


def _integer(metadata: dict[str, str], name: str) -> int:
    text = _text(metadata, name)
    try:
        return int(text)
    except ValueError:
        raise GoldenError(f"metadata {name} is {text!r}; wanted a whole number") from None


def _floats(metadata: dict[str, str], name: str) -> tuple[float, ...]:
    text = _text(metadata, name)
    try:
        return tuple(float(value) for value in text.split(","))
    except ValueError:
        raise GoldenError(f"metadata {name} is {text!r}; wanted numbers joined by commas") from None


@dataclass(frozen=True)
class ParityConfig:
    """Each file brings a tiny network, its inputs and its exact outputs (format: model/README.md section 13).
    Prints the largest absolute errors in float64 and float32.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...")] = ()
    """golden files, .safetensors"""


def check_files(config: ParityConfig) -> int:
    """Runs a network on golden files and compares every number. Returns 1 if any is above its tolerance."""
    if not config.files:
        raise ValueError("got no golden file; wanted at least one: sana-wm parity FILE...")
    return run(config.files)
