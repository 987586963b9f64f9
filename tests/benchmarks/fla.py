"""Whether parts of flash-linear-attention serve a step faster than ours: python tests/benchmarks/fla.py
[--grid 22 40] (needs CUDA).

Interleaved on one GPU at the sizes of the 2.6b network, with the largest difference of the results. Nothing
of it is used unless a run of this shows that it is faster: no such run has been made yet. pip install
'sana-wm-env[gpu]'.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median

import torch
import tyro
from torch import Tensor, nn
from tqdm import trange

from sana_wm_env.model.config import preset
from sana_wm_env.model.network.gated_delta import scan, short_conv, transitions

Pair = tuple[Callable[[], Tensor], Callable[[], Tensor]]


@dataclass(frozen=True)
class FlaConfig:
    """What is timed."""

    grid: tuple[int, int] = (22, 40)
    """latent height and width"""
    rounds: int = 50
    """interleaved repetitions"""
    device: str = "cuda"
    """a CUDA device"""


def pairs(config: FlaConfig) -> dict[str, Pair]:
    """Ours and theirs, called without arguments."""
    from fla.modules import RMSNorm, ShortConvolution  # pyright: ignore[reportMissingImports]
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # pyright: ignore[reportMissingImports]

    network, tokens = preset("2.6b"), config.grid[0] * config.grid[1]
    width, heads, head_dim, frames = network.width, network.heads, network.head_dim, network.chunk
    made = torch.Generator(config.device).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, generator=made, device=config.device, dtype=dtype)

    x = normal(1, frames, tokens, width)
    norm = nn.RMSNorm(width, eps=1e-5, device=config.device, dtype=torch.bfloat16)
    their_norm = RMSNorm(width, eps=1e-5, device=config.device, dtype=torch.bfloat16)

    past, weight = normal(1, 3, tokens, width), normal(width, 1, 4)
    causal = ShortConvolution(width, 4, activation=None, device=config.device, dtype=torch.bfloat16)
    causal.weight.data.copy_(weight)

    def both_ways() -> Tensor:
        """Theirs looks back only: once forward after the past, once from the end, and the present is not
        counted twice.
        """
        columns, before = x[0].transpose(0, 1).contiguous(), past[0].transpose(0, 1)  # (S, T, C), (S, 3, C)
        forward = causal(torch.cat([before, columns], 1))[0][:, 3:]
        backward = causal(columns.flip(1))[0].flip(1)
        return (forward + backward - columns * weight[:, 0, -1]).transpose(0, 1)[None]

    k = (
        nn.functional.normalize(normal(1, frames, heads, tokens, head_dim, dtype=torch.float32), dim=-1)
        / tokens**0.5
    )
    q = normal(1, frames, heads, tokens, head_dim, dtype=torch.float32)
    v = normal(1, frames, heads, tokens, head_dim, dtype=torch.float32)
    beta = torch.rand(1, frames, heads, tokens, device=config.device)
    decay = torch.rand(1, frames, heads, device=config.device)
    initial = normal(1, heads, head_dim, head_dim, dtype=torch.float32)
    fade = nn.functional.pad(decay.log()[..., None], (0, tokens - 1))  # (1, T, h, S)
    token = {
        name: t.transpose(2, 3).flatten(1, 2).bfloat16()
        for name, t in {"q": q, "k": k, "v": v, "beta": beta}.items()
    }
    fades, first = fade.transpose(2, 3).flatten(1, 2).contiguous(), initial.mT.contiguous()

    def ours() -> Tensor:
        transition, weighted = transitions(k, beta, decay)
        states, _ = scan(transition, v.mT @ weighted, ((0, frames),), initial)
        return q @ states.mT

    def theirs() -> Tensor:
        read, _ = chunk_gated_delta_rule(
            **token, g=fades, scale=1.0, initial_state=first, output_final_state=True
        )
        return read.unflatten(1, (frames, tokens)).transpose(2, 3)

    return {
        "RMS norm": (lambda: norm(x), lambda: their_norm(x)),
        "short convolution": (lambda: short_conv(x, weight, ((0, frames),), past), both_ways),
        "delta rule (theirs writes token by token: another function, for its cost only)": (ours, theirs),
    }


def milliseconds(function: Callable[[], Tensor]) -> float:
    """How long the GPU takes for one call."""
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began.record()
    function()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended)


@torch.inference_mode()
def measure(config: FlaConfig) -> None:
    """Prints the figures."""
    print(
        f"{torch.cuda.get_device_name(config.device)}, torch {torch.__version__}, grid {config.grid[0]} x "
        f"{config.grid[1]}"
    )
    for name, (ours, theirs) in pairs(config).items():
        difference = (ours().float() - theirs().float()).abs().max().item()
        times: tuple[list[float], list[float]] = ([], [])
        for _ in trange(config.rounds, desc=name[:20]):
            for function, spent in zip((ours, theirs), times, strict=True):
                spent.append(milliseconds(function))
        a, b = (median(spent) for spent in times)
        print(
            f"{name}: ours {a:.3f} ms, theirs {b:.3f} ms, ratio {a / b:.2f}; largest difference "
            f"{difference:.2g}"
        )


if __name__ == "__main__":
    config = tyro.cli(FlaConfig, description=__doc__)
    absent = [package for package in ("fla", "triton") if find_spec(package) is None]
    if not torch.cuda.is_available() or absent:
        sys.exit(
            f"needs a CUDA device and the gpu extra; CUDA: {torch.cuda.is_available()}, not installed: "
            f"{absent or 'nothing'}"
        )
    measure(config)
