"""The programs that torch.compile makes of blocks: which there are, and whether one computes what its block
does.

Compilers err, and what they make for a card runs on no CPU; a training by wrong gradients looks like any that
goes badly.
"""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sana_wm_env.model.config import preset
from sana_wm_env.model.kernels.operations import PLAIN, Computes
from sana_wm_env.model.network.block import Block
from sana_wm_env.model.network.execution import chunk_spans
from sana_wm_env.model.state import BlockState, WindowState
from sana_wm_env.model.tree import map_tensors, tensors_of

from .teacher_forcing import TeacherForcingConfig, TeacherForcingStage

Program = tuple[str, int, int, bool]
"""Class of the attention, frames, chunks that the block sees of the past, whether there is a gradient."""

Mix = Callable[..., tuple[Tensor, BlockState | None]]
MOST_OFF, MOST_OFF_PLAIN = 3.0, 0.3
"""The error that a program may have, over that of its plain block, and what this may have. Both round."""


def list_programs(config: TeacherForcingConfig) -> list[Program]:
    """All that a stage calls: those of softmax blocks differ by the chunks in their window."""
    chunk = preset(config.world).chunk
    longest = config.longest_lead + len(chunk_spans(config.frames, chunk)) - 1
    window = longest if config.cached < 0 else min(config.cached, longest)
    forms = [("GatedDeltaAttention", chunk + 1, 0), ("SoftmaxAttention", chunk + 1, 0)]
    if longest:
        forms.append(("GatedDeltaAttention", chunk, 1))
    forms += [("SoftmaxAttention", chunk, seen + 1) for seen in range(window)]
    return [(*form, gradient) for gradient, form in product((True, False), forms)]


def make_program(stage: TeacherForcingStage, wanted: Program) -> None:
    """Plays a session until a block wants the program, makes it and its gradient, and compares both with the
    block in plain float32 on the CPU. ArithmeticError if they differ by more than rounding,
    PlainBlockError if the plain block on this device does.
    """
    for block in stage.network.blocks:
        block.mix = _stop_at(block, wanted)
    loop, chunk = stage.config.loop, stage.network.config.chunk
    frames = 1 + (wanted[2] + 2) * chunk  # the last chunk is not imagined
    generator = torch.Generator(loop.device).manual_seed(0)
    window = stage.clips.window(stage.clips.draw(loop.batch, frames, generator), frames)
    chunks, text = stage.chunks(window), stage.network.text_context(window.text, window.text_mask)
    try:
        stage.imagine(chunks, text, torch.ones(loop.batch, device=loop.device), generator)
    except _Met as met:
        compare(met.block, met.mix, met.inputs, wanted)
        return
    raise LookupError(f"no block wanted the program {wanted}")


class PlainBlockError(ArithmeticError):
    """This device computes wrongly even without programs: nothing can be trained on it."""


class _Met(Exception):
    """A block that wants the program, and with what."""

    def __init__(self, block: Block, mix: Mix, inputs: tuple[Any, ...]):
        super().__init__()
        self.block, self.mix, self.inputs = block, mix, inputs


def _stop_at(block: Block, wanted: Program) -> Mix:
    mix, (*form, _) = block.mix, wanted

    def mix_or_stop(*inputs: Any) -> tuple[Tensor, BlockState | None]:
        x, *_, past = inputs
        seen = 0 if past is None else 1
        if past is not None and isinstance(past.attention, WindowState):
            seen = len(past.attention.entries)
        if [type(block.attn).__name__, x.shape[1], seen] == form:
            raise _Met(block, mix, inputs)
        with torch.compiler.set_stance("force_eager"):
            return mix(*inputs)

    return mix_or_stop


def compare(block: Block, mix: Mix, inputs: tuple[Any, ...], program: Program) -> None:
    """Prints how far the program `mix` of a block, and its plain form on the same device, are from float32 on
    the CPU, and their times. ArithmeticError if the program differs by more than rounding.
    """
    exact = deepcopy(block).float().cpu()
    exact.__dict__.pop("mix")
    for module in exact.modules():
        if isinstance(module, Computes):
            module.ops = PLAIN
    gradient = program[-1]
    wide = map_tensors(lambda t: _like(t, t.detach().cpu().to(_wide(t))), inputs)
    reference, _ = _results(exact.mix, exact, wide, gradient)
    compiled, seconds = _results(mix, block, inputs, gradient)
    with torch.compiler.set_stance("force_eager"):
        plain, plain_seconds = _results(mix, block, inputs, gradient)
    names = ("outputs", "gradients of inputs", "gradients of weights")[: len(reference)]
    errors = [
        [float((one - true).norm() / true.norm()) for one, true in zip(results, reference, strict=True)]
        for results in (compiled, plain)
    ]
    told = ", ".join(
        f"{name} {ours:.1e} ({theirs:.1e})" for name, ours, theirs in zip(names, *errors, strict=True)
    )
    print(
        f"{program}: {1e3 * seconds:.1f} ms (plain {1e3 * plain_seconds:.1f}); off by {told}",
        flush=True,
    )
    for name, ours, theirs in zip(names, *errors, strict=True):
        most = max(MOST_OFF * theirs, 1e-5)
        if not theirs <= MOST_OFF_PLAIN:  # NaN too
            raise PlainBlockError(f"plain blocks are off by {theirs:.1e} in {name}; wanted {MOST_OFF_PLAIN}")
        if not ours <= most:
            raise ArithmeticError(
                f"{program} is off by {ours:.1e} in {name}; wanted at most {most:.1e}, as the plain "
                f"block is off by {theirs:.1e}"
            )


def _results(mix: Mix, block: Block, inputs: tuple[Any, ...], gradient: bool) -> tuple[list[Tensor], float]:
    """Outputs, and gradients of inputs and of weights, each as one vector on the CPU; and the seconds of a
    pass, the fastest of three.
    """
    x, modulation, text, plucker, cameras, execution, past = inputs
    fastest, results, weights = float("inf"), [], []
    for _ in range(3):
        own = map_tensors(
            lambda t: t.detach().requires_grad_(t.requires_grad or (gradient and t.is_floating_point())),
            (x, modulation, text, plucker, past),
        )
        block.zero_grad()
        _wait(x.device)
        began = time.perf_counter()
        with torch.set_grad_enabled(gradient):
            kept = replace(execution, keep=True)
            out = tensors_of(mix(*own[:4], cameras, kept, own[4]))
            if gradient:
                weights = weights or [_weights(t) for t in out]  # drawn once: the later passes are timed
                torch.autograd.backward(out, weights)
        _wait(x.device)
        fastest = min(fastest, time.perf_counter() - began)
        results = [_vector(out)]
        if gradient:
            results.append(_vector([t.grad for t in tensors_of(own) if t.grad is not None]))
            results.append(_vector([p.grad for p in block.parameters() if p.grad is not None]))
    return results, fastest


def _weights(t: Tensor) -> Tensor:
    """Random numbers, the same on every device, by which an output counts."""
    return torch.randn(t.shape, generator=torch.Generator().manual_seed(t.numel())).to(t)


def _vector(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().cpu().float().flatten() for t in tensors])


def _wide(t: Tensor) -> torch.dtype:
    return torch.float32 if t.is_floating_point() else t.dtype


def _like(t: Tensor, other: Tensor) -> Tensor:
    return other.requires_grad_(t.requires_grad)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
