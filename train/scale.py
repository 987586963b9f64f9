"""What training at scale would take, on paper: bytes per GPU, floating-point operations, days, beside what
was published.

Operations are counted from the config (`forward_flops`, held against torch's own counter in a test).
Activations are those that the network itself keeps for its backward pass, found by running it on tensors
without storage. Only the share of a GPU's peak that training reaches cannot be computed; it is stated, and
the one that the published days imply is printed beside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from sana_wm_env.model.config import TransformerConfig, preset
from sana_wm_env.model.network.execution import Rule, chunk_spans
from sana_wm_env.model.network.transformer import PLUCKER_CHANNELS, TimeEmbedding, Transformer
from sana_wm_env.settings import check_settings

from .parallel import segment_borders

FPS = 16
TEMPORAL, SPATIAL = 8, 32  # strides of the LTX-2 autoencoder


@dataclass(frozen=True)
class Row:
    """One row of the paper's table 7: seconds of video per clip, clips per step over all GPUs, steps, days on
    64 H100.

    softmax and cameras say what the network has by then.
    """

    name: str
    seconds: int
    clips: int
    steps: int
    days: float
    softmax: bool = True
    cameras: bool = True


TABLE_7 = (
    Row("S1 delta rule", 5, 64, 30_000, 2.75, softmax=False, cameras=False),
    Row("S2 hybrid", 5, 64, 30_000, 2.0, cameras=False),
    Row("S3 minute + camera", 60, 32, 31_000, 8.0),
    Row("S4 fine-tuning", 60, 32, 10_000, 2.5),
)
PUBLISHED_GPUS = 64


@dataclass(frozen=True)
class PlanConfig:
    """Estimates the cost of training: bytes per GPU, tokens per second, days per stage of the paper's table
    7.

    Attributes:
        world: preset of the network.
        gpus: how many.
        context: GPUs that share a clip of a minute.
        frames: video frames of the clip that memory is planned for.
        size: height and width in pixels.
        utilisation: share of the peak that training reaches, recomputation not counted as work; 0.1 is what
            the published days of the stages at minute length imply.
        peak_tflops: dense bfloat16 peak of one GPU (989 for an H100).
        memory_gb: of one GPU.
        ema: whether averaged weights are kept; the published runs keep none, `sana-wm train` does.
    """

    world: str = "2.6b"
    gpus: int = 64
    context: int = 2
    frames: int = 961
    size: tuple[int, int] = (704, 1280)
    utilisation: float = 0.10
    peak_tflops: float = 989.0
    memory_gb: float = 80.0
    ema: bool = True

    def __post_init__(self) -> None:
        check_settings(
            self,
            gpus="[1, inf)",
            context="[1, inf)",
            frames="[1, inf)",
            size="[1, inf)",
            utilisation="(0, 1]",
            peak_tflops="(0, inf)",
            memory_gb="(0, inf)",
        )
        if self.gpus % self.context:
            raise ValueError(
                f"{self.gpus} GPUs do not divide into groups of {self.context} that share a clip"
            )
        if (self.frames - 1) % TEMPORAL:
            raise ValueError(f"frames is {self.frames}; a clip has 1 + {TEMPORAL} n frames, such as 961")
        if any(side % SPATIAL for side in self.size):
            raise ValueError(f"size is {self.size}; both must be multiples of {SPATIAL}")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width in latent cells."""
        return self.size[0] // SPATIAL, self.size[1] // SPATIAL


def latent_frames(frames: int) -> int:
    """Latent frames of a clip of so many video frames."""
    return (frames - 1) // TEMPORAL + 1


def forward_flops(
    config: TransformerConfig, frames: int, tokens: int, rule: Rule = "bidirectional", cameras: bool = True
) -> int:
    """Operations (two per multiply-add) of one forward pass over `frames` latent frames of `tokens` tokens
    each, prompt included.

    Products only, as is the custom: norms, gates and rotations are not counted. Without `cameras`, the
    network before it got them.
    """
    n, c, d, h = frames * tokens, config.width, config.head_dim, config.heads
    hidden, words, branches = config.ffn_width, config.text_tokens, 2 if cameras else 1
    # every block: q k v, output gate and projection; the same of the camera branch without a gate; text;
    # feed-forward
    block = 2 * n * c * c * (5 + 4 * (branches - 1) + 2) + 2 * words * c * 2 * c + 4 * n * words * c
    block += 2 * n * c * 3 * hidden + 2 * n * 9 * 2 * hidden + 2 * n * 3 * c * c
    if cameras:  # ray embedding (two products in one) and 4 x 4 matrices on half of q, k, v and output
        block += 2 * n * PLUCKER_CHANNELS * c + 2 * c * c * (PLUCKER_CHANNELS + 1) + 4 * 2 * n * 4 * c // 2
    # delta rule: transitions (the main branch has two, for the normaliser's keys are not turned), writes,
    # reads; the scans both ways
    delta = 2 * n * c * d * (branches + 1) + 2 * 2 * n * c * d * branches + 2 * n * c
    delta += 2 * _scan_steps(config, frames, rule) * h * (branches * d**3 + d**2)
    delta += 2 * n * c * h + 2 * frames * c * h + branches * 2 * n * 7 * c  # gates, short convolutions
    softmax = branches * 4 * c * tokens**2 * _visible(config, frames, rule)
    head = 4 * n * config.in_channels * c + 2 * frames * (TimeEmbedding.FEATURES * c + 7 * c * c)
    head += 2 * words * (config.text_width * c + c * c)
    softmaxes = sum(config.is_softmax(i) for i in range(config.depth))
    return config.depth * block + (config.depth - softmaxes) * delta + softmaxes * softmax + head


def _scan_steps(config: TransformerConfig, frames: int, rule: Rule) -> int:
    """Products with a transition, forward over all frames but the first and backward inside each horizon."""
    spans = ((0, frames),) if rule == "bidirectional" else chunk_spans(frames, config.chunk)
    return frames - 1 + sum(max(b - a - 2, 0) for a, b in spans)


def _visible(config: TransformerConfig, frames: int, rule: Rule) -> int:
    """Pairs (query frame, key frame) of softmax attention."""
    spans = ((0, frames),) if rule == "bidirectional" else chunk_spans(frames, config.chunk)
    return sum((b - a) * b for a, b in spans)


def kept_bytes(config: TransformerConfig, frames: int, grid: tuple[int, int]) -> int:
    """Bytes that the blocks of one period (three by the delta rule, one softmax) keep for the backward pass
    of one clip, in bfloat16.

    Runs the network on tensors that have sizes only. Parameters are not counted, nor what other ranks send.
    """
    config = replace(config, depth=config.softmax_every or 1)
    seen: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage._cdata] = storage
        return tensor

    with FakeTensorMode(), _made_in(torch.bfloat16):
        network = Transformer(config)
        x = torch.empty(1, config.in_channels, frames, *grid)
        text = network.text_context(
            torch.empty(1, config.text_tokens, config.text_width), torch.ones(1, config.text_tokens)
        )
        cameras = network.camera_context(
            torch.empty(1, frames, 20), torch.empty(1, PLUCKER_CHANNELS, frames, *grid)
        )
        with saved_tensors_hooks(note, lambda tensor: tensor):
            velocity = network(x, torch.empty(1, frames), text, cameras)
        parameters = {p.untyped_storage()._cdata for p in network.parameters()}
        total = sum(storage.nbytes() for key, storage in seen.items() if key not in parameters)
        del velocity
    return total


@contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """New tensors get this type; sizes-only weights cannot be converted afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def memory(config: PlanConfig) -> dict[str, float]:
    """Bytes on one GPU for one clip per group, by what they hold. Weights as FSDP2 shards them: float32,
    gathered in bfloat16 by blocks.
    """
    network = preset(config.world)
    with torch.device("meta"):
        transformer = Transformer(network)
    parameters, block = (
        sum(p.numel() for p in module.parameters()) for module in (transformer, transformer.blocks[0])
    )
    borders = segment_borders(latent_frames(config.frames), network.chunk, config.context)
    frames, tokens = max(b - a for a, b in pairwise(borders)), config.grid[0] * config.grid[1]
    period, sample = network.softmax_every or 1, min(frames, 4)
    kept = kept_bytes(network, sample, config.grid) / sample * frames
    stream = 2 * frames * tokens * network.width  # the tokens of one rank, bfloat16
    softmaxes = sum(network.is_softmax(i) for i in range(network.depth))
    gathered = (
        4 * borders[-1] * tokens * network.width * 2 if config.context > 1 else 0
    )  # keys and values, two branches
    return {
        "parameters, float32 shard": 4 * parameters / config.gpus,
        "gradients, float32 shard": 4 * parameters / config.gpus,
        "AdamW's two moments, float32 shard": 8 * parameters / config.gpus,
        "averaged weights, float32 shard": 4 * parameters / config.gpus * config.ema,
        "two blocks and the rest in bfloat16, with gradients": 4
        * (2 * block + parameters - network.depth * block),
        "activations, recomputed": 2 * network.depth * stream + kept / period + gathered,
        "activations, all kept": kept * network.depth / period + gathered * softmaxes,
    }


def row_flops(row: Row, config: PlanConfig) -> tuple[int, int]:
    """Tokens of a clip, and operations of a forward and a backward pass over it (three forward passes)."""
    network, frames = preset(config.world), latent_frames(row.seconds * FPS + 1)
    network = network if row.softmax else replace(network, softmax_every=0)
    tokens = config.grid[0] * config.grid[1]
    return frames * tokens, 3 * forward_flops(network, frames, tokens, cameras=row.cameras)


def run(config: PlanConfig) -> None:
    """Prints what training would take on so many GPUs, and the published figures beside it."""
    bytes_by_part = memory(config)
    frames, (height, width) = latent_frames(config.frames), config.grid
    clip = f"{config.frames} frames of {config.size[0]} x {config.size[1]}"
    print(
        f"{config.world}, {clip}: {frames} latent frames x {height} x {width} cells = "
        f"{frames * height * width:,} tokens"
    )
    print(f"\nper GPU of {config.gpus}, {config.context} to a clip (GB of {config.memory_gb:g}):")
    for name, size in bytes_by_part.items():
        print(f"  {name:<52}{size / 1e9:9.2f}")
    *weights, recomputed, kept = bytes_by_part.values()
    for name, activations in (("recomputing blocks", recomputed), ("keeping all", kept)):
        total = (sum(weights) + activations) / 1e9
        print(f"  sum, {name:<47}{total:9.2f}  {'fits' if total < config.memory_gb else 'does not fit'}")
    print(
        f"\nassumed: {config.utilisation:.0%} of {config.peak_tflops:g} TFLOP/s per GPU; S1 and S2 at the "
        "same size in pixels"
    )
    print(
        f"{'stage':<22}{'tokens/clip':>12}{'PFLOP/clip':>12}{'s/step':>8}{'tokens/s':>12}"
        f"{'days':>8}{'published':>11}{'implied share':>15}"
    )
    total = published = work = capacity = 0.0
    for row in TABLE_7:
        tokens, flops = row_flops(row, config)
        seconds = flops * row.clips / (config.gpus * config.peak_tflops * 1e12 * config.utilisation)
        days = row.steps * seconds / 86400
        ideal = PUBLISHED_GPUS * config.peak_tflops * 1e12 * row.days * 86400
        share = flops * row.clips * row.steps / ideal
        print(
            f"{row.name:<22}{tokens:>12,}{flops / 1e15:>12.2f}{seconds:>8.2f}"
            f"{row.clips * tokens / seconds:>12,.0f}{days:>8.2f}{row.days:>11.2f}{share:>15.1%}"
        )
        total, published, work, capacity = (
            total + days,
            published + row.days,
            work + flops * row.clips * row.steps,
            capacity + ideal,
        )
    print(f"{'sum':<54}{'':>12}{total:>8.2f}{published:>11.2f}{work / capacity:>15.1%}")
    print(
        f"\nThe published days are those of {PUBLISHED_GPUS} H100. The implied share is what would make both "
        "columns equal on as many\n"
        "GPUs; recomputing blocks adds a third to the work that the hardware does. S1 and S2 encode their "
        "videos while they train,\n"
        "which is not counted. Not in table 7: autoencoder, chunk-causal, ODE, self-forcing."
    )
