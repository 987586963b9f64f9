"""The one training loop: every stage brings a model and a loss, the loop brings steps, averaging, checkpoints and a progress bar.

The batch of a step is a function of (seed, step, process) and of what the stage carries, which is saved, so a run that was killed goes on
exactly as if it had not been.
"""

import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoints import Run, latest, resume, save
from .checkpoints import load_average as load_average
from .optim import OptimConfig, optimisers, schedule
from .parallel import ParallelConfig, spread
from .precision import Precision
from .processes import answering, any_process, average_gradients, complete_gradients, limit_waiting, mean, own, rank, whole, world_size


@dataclass(frozen=True)
class LoopConfig:
    """What all stages share.

    Attributes:
        steps: optimiser steps of the whole run; may be raised on resume only before the learning rate has begun to fall.
        batch: samples per step over all processes.
        accumulate: parts of a batch that are run one after the other before the weights are updated, where memory is short.
        seed: of the parameters and of the data order.
        ema: decay of the averaged weights that are kept as the result.
        save_minutes: time between checkpoints.
        preview: steps between sample pictures (0 for none).
        precision: dtype of activations; "auto" for bfloat16 where the device is faster at it.
        compile: let torch.compile make one program of each block; for GPUs, and long runs.
    """

    steps: int = 1000
    batch: int = 16
    accumulate: int = 1
    seed: int = 0
    device: str = "cpu"
    ema: float = 0.995
    save_minutes: float = 3.0
    preview: int = 200
    precision: Precision = "auto"
    compile: bool = False
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


class Stage(Protocol):
    """What a stage brings to the loop.

    Attributes:
        model: what is trained.
        carried: what this process keeps from step to step besides weights: None, or dataclasses of tensors that `torch.load` may make.
        parts: None, or where the model is several networks, the factor on the rates of each, see `optimisers`. One that is frozen
            (`requires_grad_(False)`) when a step ends is not touched by it.
        divides_clips: whether the loss divides clips in time among `config.parallel.context` ranks; each then returns its frames' part
            such that the mean over all ranks is the loss. May be missing.
    """

    model: nn.Module
    carried: Any
    parts: dict[str, float] | None

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of `batch` samples drawn with the generator, and scalars worth logging."""
        ...

    def preview(self, model: nn.Module) -> Tensor | None:
        """A picture (3, H, W) uint8 that shows how far the averaged model has come."""
        ...


def train(stage: Stage, config: LoopConfig, out: Path) -> nn.Module:
    """Trains to config.steps and returns the model with its averaged weights. SIGTERM and Ctrl-C save, then end the run.

    Args:
        stage: model and loss.
        config: steps, rates, device.
        out: folder of the run (checkpoint, TensorBoard events); a run found there is resumed.

    Raises ValueError for settings that do not fit each other, FloatingPointError before a gradient that is no number spoils the weights,
    ConnectionError if another process is gone or does not answer within config.parallel.timeout_s; the last checkpoint stays.
    """
    share = _share(stage, config)
    torch.manual_seed(config.seed)
    model = stage.model
    spread(model, config.parallel, config.device)
    limit_waiting(config.parallel.timeout_s)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    run = Run(out, config, stage, optimisers(model, config.optim, stage.parts), average)
    step, seconds = resume(run)
    stop = _catch_sigterm()
    writer = _writer(out)
    bar = tqdm(total=config.steps, initial=step, desc=out.name, unit="step", disable=rank() > 0, smoothing=0.05)
    began = saved = time.monotonic()
    with answering(config.parallel.timeout_s, lambda: f"step {step}: the last checkpoint is {latest(out)}"):
        while step < config.steps and not stop.asked():
            scalars = _step(run, step, share)
            step += 1
            _average(run.average, model, min(config.ema, (1 + step) / (10 + step)))
            bar.update()
            rate = config.batch * (bar.format_dict["rate"] or 0)
            bar.set_postfix({k: f"{v:.4g}" for k, v in scalars.items()} | {"samples/s": f"{rate:.1f}"})
            _log(writer, run, scalars, step)
            now = time.monotonic()
            if any_process(now - saved > 60 * config.save_minutes or step == config.steps):
                save(run, step, seconds + now - began)
                saved = now
        bar.close()
        if stop.asked():
            save(run, step, seconds + time.monotonic() - began)
            sys.exit(f"stopped at step {step}; the same command resumes from {latest(out)}")
    model.load_state_dict(run.average)
    return model


def _share(stage: Stage, config: LoopConfig) -> int:
    """Samples that this process draws at a time. ValueError if the settings do not fit each other."""
    context = config.parallel.context
    if world_size() % context:
        raise ValueError(f"{world_size()} processes do not divide into groups of {context} that share a clip; start a multiple")
    if context > 1 and not getattr(stage, "divides_clips", False):
        raise ValueError(f"{type(stage).__name__} does not divide its clips in time; leave out --context {context}")
    if config.parallel.shard and config.optim.method != "adamw":
        raise ValueError(f"--method {config.optim.method} needs whole matrices, --shard keeps a part on each rank; add --method adamw")
    parts = world_size() // context * config.accumulate
    if not (config.batch > 0 and config.accumulate > 0) or config.batch % parts:
        groups = "" if context == 1 else f" in groups of {context} that share a clip"
        times = "" if config.accumulate == 1 else f", {config.accumulate} times per step"
        raise ValueError(
            f"batch {config.batch} does not divide among {world_size()} processes{groups}{times}; give a multiple of {max(parts, 1)}"
        )
    return config.batch // parts


def _step(run: Run, step: int, share: int) -> dict[str, float]:
    """One update of the weights. Returns scalars worth logging; FloatingPointError, and no update, if the gradient is no number."""
    stage, model, config = run.stage, run.stage.model, run.config
    seed = (config.seed * 1_000_003 + step) * 4096 + rank() // config.parallel.context  # ranks that share a clip draw the same one
    generator = torch.Generator(config.device).manual_seed(seed % 2**63)
    for one in run.optimiser:
        for group in one.param_groups:
            group["lr"] = group["peak"] * schedule(step, config.steps, config.optim)
        one.zero_grad(set_to_none=True)
    total, scalars = 0.0, {}
    for _ in range(config.accumulate):
        loss, scalars = stage.loss(share, generator)
        (loss / config.accumulate).backward()
        total += loss.item() / config.accumulate
    complete_gradients(model)
    if not config.parallel.shard:  # which has averaged them already
        average_gradients(model)
    norm = whole(nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip))
    if not torch.isfinite(norm):
        raise FloatingPointError(
            f"step {step}: gradient norm {norm.item()}; the last good checkpoint is {latest(run.home)}. "
            "Lower the rate or the batch's noise."
        )
    for one in run.optimiser:
        one.step()
    return {"loss": mean(total), **scalars, "gradient_norm": norm.item()}


def _average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Moves the averaged weights towards those of the model; what is not a floating-point number is taken over."""
    values = {name: own(value) for name, value in model.state_dict().items()}
    moving = [name for name, value in values.items() if value.is_floating_point()]
    torch._foreach_lerp_([own(average[name]) for name in moving], [values[name] for name in moving], 1 - decay)
    for name in values.keys() - set(moving):
        own(average[name]).copy_(values[name])


class _catch_sigterm:
    """Remembers that the process was asked to end, so that the loop can save first. All processes agree before they stop."""

    def __init__(self):
        self.signal = False
        for which in (signal.SIGTERM, signal.SIGINT):
            signal.signal(which, self._note)

    def _note(self, *_):
        self.signal = True

    def asked(self) -> bool:
        return any_process(self.signal)


def _writer(out: Path):
    if rank() > 0:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        tqdm.write("TensorBoard is not installed (pip install 'sana-wm-env[train]'): no scalars or pictures are written")
        return None
    return SummaryWriter(out)


def _log(writer, run: Run, scalars: dict[str, float], step: int) -> None:
    """Scalars at every tenth step, and now and then a picture, which needs all ranks where the model is sharded."""
    model, config = run.stage.model, run.config
    if writer is not None and step % 10 == 0:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)
    if config.preview and step % config.preview == 0 and (writer is not None or config.parallel.shard):
        current = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(run.average)
        picture = run.stage.preview(model)
        model.load_state_dict(current)
        if writer is not None and picture is not None:
            writer.add_image("samples", picture, step)
