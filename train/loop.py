"""The one training loop: every stage brings a model and a loss, the loop brings steps, averaging, checkpoints
and a progress bar.

The batch of a step is a function of (seed, step, process) and of what the stage carries, which is saved, so a
run that was killed resumes exactly as if it had not been. A step whose gradient is not finite is skipped. If
the next one is no better, the run goes back to its last checkpoint and takes other data at half the rates.
"""

import math
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from sana_wm_env.progress import progress, write_line
from sana_wm_env.settings import check_choice, check_settings

from .checkpoints import Progress, Training, latest, resume, save
from .checkpoints import load_average as load_average
from .optim import OptimConfig, optimisers, schedule
from .parallel import ParallelConfig, distribute
from .precision import Precision
from .processes import (
    answering,
    any_process,
    average_gradients,
    complete_gradients,
    full_tensor,
    limit_waiting,
    local_part,
    mean,
    rank,
    world_size,
)
from .stage import Stage

RETREATS = 5
"""How often a run goes back to a checkpoint before it gives up."""


@dataclass(frozen=True)
class LoopConfig:
    """Settings of every stage.

    Attributes:
        steps: optimiser steps of the whole run; may be raised on resume only before the learning rate has
            begun to fall.
        hours: training time of the whole run, which then ends, rates fallen, when steps or hours are over; 0
            for no limit.
        minutes: time after which this process saves and ends, whatever the run has left; the same command
            resumes. 0 for no limit.
        batch: samples per step over all processes.
        accumulate: parts of a batch that are run one after the other before the weights are updated, where
            memory is short.
        seed: of the parameters and of the data order.
        ema: decay of the averaged weights that are kept as the result.
        save_minutes: time between checkpoints.
        preview: steps between sample pictures (0 for none).
        precision: dtype of activations; "auto" for bfloat16 where the device is faster at it.
        compile: let torch.compile make one program of each block; for GPUs, and long runs.
    """

    steps: int = 1000
    hours: float = 0.0
    minutes: float = 0.0
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

    def __post_init__(self) -> None:
        check_settings(
            self,
            steps="[0, inf)",
            hours="[0, inf)",
            minutes="[0, inf)",
            batch="[1, inf)",
            accumulate="[1, inf)",
            seed="[0, 9223372036854775807]",
            ema="[0, 1)",
            save_minutes="[0, inf)",
            preview="[0, inf)",
        )
        check_choice("--precision", self.precision, get_args(Precision))


def train(stage: Stage, config: LoopConfig, out: Path) -> nn.Module:
    """Trains to config.steps and returns the model with its averaged weights. SIGTERM and Ctrl-C save, then
    end the run.

    Args:
        stage: model and loss.
        config: steps, rates, device.
        out: folder of the run (checkpoint, TensorBoard events); a run found there is resumed.

    Raises ValueError for settings that do not fit each other, FloatingPointError if going back `RETREATS`
    times did not help against gradients that are not finite, ConnectionError if another process is gone or
    does not answer within config.parallel.timeout_s; the last checkpoint stays.
    """
    share = _share(stage, config)
    torch.manual_seed(config.seed)
    model = stage.model
    distribute(model, config.parallel, config.device)
    limit_waiting(config.parallel.timeout_s)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    training = Training(out, config, stage, optimisers(model, config.optim, stage.parts), average)
    at, stop, writer = resume(training), _catch_sigterm(config.minutes), _writer(out)
    bar = progress(
        total=config.steps, initial=at.step, desc=out.name, unit="step", disable=rank() > 0, smoothing=0.05
    )
    began, saved = time.monotonic() - at.seconds, time.monotonic()
    with (
        stop,
        answering(config.parallel.timeout_s, lambda: f"step {at.step}: the last checkpoint is {latest(out)}"),
    ):
        if (
            latest(out) is None and not config.parallel.shard
        ):  # gathering the state of a sharded optimiser counts as a step of it
            save(training, at)  # something to go back to
        while (done := _done(at, config)) < 1 and not stop.asked():
            scalars = _step(training, at, done, share)
            at.step, at.seconds = at.step + 1, mean(time.monotonic() - began)
            if scalars is None:
                at = _skip(training, at)
                continue
            at.in_a_row = 0
            _average(training.average, model, min(config.ema, (1 + at.step) / (10 + at.step)))
            bar.update(at.step - bar.n)
            rate = config.batch * (bar.format_dict["rate"] or 0)
            bar.set_postfix({k: f"{v:.4g}" for k, v in scalars.items()} | {"samples/s": f"{rate:.1f}"})
            _log(writer, training, scalars, at.step)
            if any_process(time.monotonic() - saved > 60 * config.save_minutes or _done(at, config) >= 1):
                save(training, at)
                saved = time.monotonic()
        bar.close()
        if _done(at, config) < 1:
            save(training, at)
            sys.exit(f"stopped at step {at.step}; the same command resumes from {latest(out)}")
    if at.skipped:
        write_line(
            f"{at.skipped} of {at.step} steps were skipped as their gradients were not finite, {at.retreats} "
            "times the run went back"
        )
    model.load_state_dict(training.average)
    return model


def _done(at: Progress, config: LoopConfig) -> float:
    """The share of the run that is over; 1 at its end."""
    hours = at.seconds / (3600 * config.hours) if config.hours else 0.0
    return max(at.step / config.steps if config.steps else 1.0, hours)


def _skip(training: Training, at: Progress) -> Progress:
    """Reports a skipped step. Returns where training goes on: there, or after the second in a row at the last
    checkpoint.

    FloatingPointError after `RETREATS` such returns.
    """
    at.skipped, at.in_a_row = at.skipped + 1, at.in_a_row + 1
    what = f"{training.home.name}: step {at.step - 1} was skipped, its gradient was not finite"
    training.stage.let_go()
    if at.in_a_row == 1:
        _say(what)
        return at
    if at.retreats == RETREATS:
        raise FloatingPointError(
            f"{what}, nor was that of the step before, after going back {RETREATS} times; the last good "
            f"checkpoint is {latest(training.home)}. "
            "Lower the rate (--lr, --adam-lr)."
        )
    checkpoint = resume(training) if latest(training.home) else at
    training.stage.let_go()
    back = replace(checkpoint, seconds=at.seconds, skipped=at.skipped, in_a_row=0, retreats=at.retreats + 1)
    _say(
        f"{what}, the second in a row: back to step {back.step}, other data, "
        f"{0.5**back.retreats:g} of the rates"
    )
    save(training, back)
    return back


def _say(what: str) -> None:
    if rank() == 0:
        write_line(what, file=sys.stderr)


def _share(stage: Stage, config: LoopConfig) -> int:
    """Samples that this process draws at a time. ValueError if the settings do not fit each other."""
    context = config.parallel.context
    if world_size() % context:
        raise ValueError(
            f"{world_size()} processes do not divide into groups of {context} that share a "
            "clip; start a multiple"
        )
    if context > 1 and not stage.divides_clips:
        raise ValueError(
            f"{type(stage).__name__} does not divide its clips in time; leave out --context {context}"
        )
    if config.parallel.shard and config.optim.method != "adamw":
        raise ValueError(
            f"--method {config.optim.method} needs whole matrices, --shard keeps a part on each rank; add "
            "--method adamw"
        )
    parts = world_size() // context * config.accumulate
    if not (config.batch > 0 and config.accumulate > 0) or config.batch % parts:
        groups = "" if context == 1 else f" in groups of {context} that share a clip"
        times = "" if config.accumulate == 1 else f", {config.accumulate} times per step"
        raise ValueError(
            f"batch {config.batch} does not divide among {world_size()} processes{groups}{times}; give a "
            f"multiple of {max(parts, 1)}"
        )
    return config.batch // parts


def _step(training: Training, at: Progress, done: float, share: int) -> dict[str, float] | None:
    """One update of the weights. Returns scalars worth logging; None, and no update, if the gradient is not
    finite.
    """
    stage, model, config = training.stage, training.stage.model, training.config
    draw = (config.seed + 7919 * at.retreats) * 1_000_003 + at.step
    seed = draw * 4096 + rank() // config.parallel.context  # ranks that share a clip draw the same one
    generator = torch.Generator(config.device).manual_seed(seed % 2**63)
    for optimiser in training.optimiser:
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * schedule(at.step, done, config.optim) * 0.5**at.retreats
        optimiser.zero_grad(set_to_none=True)
    total, scalars = 0.0, {}
    for _ in range(config.accumulate):
        loss, scalars = stage.loss(share, generator)
        (loss / config.accumulate).backward()
        total += loss.item() / config.accumulate
    complete_gradients(model)
    if not config.parallel.shard:  # which has averaged them already
        average_gradients(model)
    norm = full_tensor(nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip))
    if not torch.isfinite(norm):
        return None
    for optimiser in training.optimiser:
        optimiser.step()
    return {"loss": mean(total), **scalars, "gradient_norm": norm.item()}


def _average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Moves the averaged weights towards those of the model; what is not a floating-point number is taken
    over.
    """
    values = {name: local_part(value) for name, value in model.state_dict().items()}
    moving = [name for name, value in values.items() if value.is_floating_point()]
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]  # nothing public moves many at once
        [local_part(average[name]) for name in moving], [values[name] for name in moving], 1 - decay
    )
    for name in values.keys() - set(moving):
        local_part(average[name]).copy_(values[name])


class _catch_sigterm:
    """Remembers that the process was asked to end, by a signal or by the clock, so that the loop can save
    first.

    All processes agree before they stop.
    """

    def __init__(self, minutes: float):
        self.signal = False
        self.end = time.monotonic() + 60 * minutes if minutes else math.inf
        self.before = {which: signal.signal(which, self._note) for which in (signal.SIGTERM, signal.SIGINT)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """What comes after the loop, packing or scoring, ends at once again."""
        for which, handler in self.before.items():
            signal.signal(which, handler)

    def _note(self, *_):
        self.signal = True

    def asked(self) -> bool:
        return any_process(self.signal or time.monotonic() >= self.end)


def _writer(out: Path):
    if rank() > 0:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        write_line(
            "TensorBoard is not installed (pip install 'sana-wm-env[train]'): no scalars or "
            "pictures are written"
        )
        return None
    return SummaryWriter(out)


def _log(writer, training: Training, scalars: dict[str, float], step: int) -> None:
    """Scalars at every tenth step, and now and then a picture, which needs all ranks where the model is
    sharded.
    """
    model, config = training.stage.model, training.config
    if writer is not None and step % 10 == 0:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)
    if config.preview and step % config.preview == 0 and (writer is not None or config.parallel.shard):
        current = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(training.average)
        picture = training.stage.preview(model)
        model.load_state_dict(current)
        if writer is not None and picture is not None:
            writer.add_image("samples", picture, step)
