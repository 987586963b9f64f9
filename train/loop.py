"""The one training loop: every stage brings a model and a loss, the loop brings steps, averaging, checkpoints and a progress bar.

The batch of a step is a function of (seed, step, process) and of what the stage carries, which is saved, so a run that was killed goes on
exactly as if it had not been.
"""

import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .optim import OptimConfig, optimisers, schedule
from .processes import any_process, average_gradients, gathered, rank, world_size


@dataclass(frozen=True)
class LoopConfig:
    """What all stages share.

    Attributes:
        steps: optimiser steps of the whole run; may be raised on resume only before the learning rate has begun to fall.
        batch: samples per step over all processes.
        seed: of the parameters and of the data order.
        ema: decay of the averaged weights that are kept as the result.
        save_minutes: time between checkpoints.
        preview: steps between sample pictures (0 for none).
    """

    steps: int = 1000
    batch: int = 16
    seed: int = 0
    device: str = "cpu"
    ema: float = 0.995
    save_minutes: float = 3.0
    preview: int = 200
    optim: OptimConfig = field(default_factory=OptimConfig)


class Stage(Protocol):
    """What a stage brings to the loop.

    Attributes:
        model: what is trained.
        carried: what this process keeps from step to step besides weights: None, or dataclasses of tensors that `torch.load` may make.
        parts: None, or where the model is several networks, the factor on the rates of each, see `optimisers`. One that is frozen
            (`requires_grad_(False)`) when a step ends is not touched by it.
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
    """
    if not config.batch > 0 or config.batch % world_size():
        raise ValueError(f"batch {config.batch} does not divide among {world_size()} processes; give a multiple of {world_size()}")
    torch.manual_seed(config.seed)
    model, optimiser = stage.model, optimisers(stage.model, config.optim, stage.parts)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    path = out / "checkpoint.pt"
    step, seconds = _resume(path, stage, optimiser, average, config)
    stop = _catch_sigterm()
    writer = _writer(out)
    bar = tqdm(total=config.steps, initial=step, desc=out.name, unit="step", disable=rank() > 0, smoothing=0.05)
    began = saved = time.monotonic()
    while step < config.steps and not stop.asked():
        generator = torch.Generator(config.device).manual_seed(((config.seed * 1_000_003 + step) * 4096 + rank()) % 2**63)
        for one in optimiser:
            for group in one.param_groups:
                group["lr"] = group.setdefault("peak", group["lr"]) * schedule(step, config.steps, config.optim)
            one.zero_grad(set_to_none=True)
        loss, scalars = stage.loss(config.batch // world_size(), generator)
        loss.backward()
        average_gradients(model)
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"step {step}: gradient norm {norm.item()}; the last good checkpoint is {path}. Lower the rate or the batch's noise."
            )
        for one in optimiser:
            one.step()
        step += 1
        _average(average, model, min(config.ema, (1 + step) / (10 + step)))
        now = time.monotonic()
        scalars = {"loss": loss.item(), **scalars, "gradient_norm": norm.item()}
        bar.update()
        bar.set_postfix(
            {k: f"{v:.4g}" for k, v in scalars.items()}
            | {"samples/s": f"{config.batch * bar.format_dict['n'] and config.batch * (bar.format_dict['rate'] or 0):.1f}"}
        )
        _log(writer, stage, model, average, scalars, step, config)
        if any_process(now - saved > 60 * config.save_minutes or step == config.steps):
            _save(path, stage, optimiser, average, step, seconds + now - began, config)
            saved = now
    bar.close()
    if stop.asked():
        _save(path, stage, optimiser, average, step, seconds + time.monotonic() - began, config)
        sys.exit(f"stopped at step {step}; the same command resumes from {path}")
    model.load_state_dict(average)
    return model


def _average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def _resume(path: Path, stage: Stage, optimiser: list, average: dict[str, Tensor], config: LoopConfig) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    saved = torch.load(path, map_location=config.device, weights_only=True)
    stage.model.load_state_dict(saved["model"])
    for one, state in zip(optimiser, saved["optimiser"], strict=True):
        one.load_state_dict(state)
    for name, value in saved["average"].items():
        average[name].copy_(value)
    if len(saved["carried"]) == world_size():  # with another number of processes each starts anew
        stage.carried = torch.load(BytesIO(saved["carried"][rank()]), map_location=config.device, weights_only=True)
    return saved["step"], saved["seconds"]


def _save(path: Path, stage: Stage, optimiser: list, average: dict[str, Tensor], step: int, seconds: float, config: LoopConfig) -> None:
    # a file in the file: whoever wants the weights alone need not know what the stage keeps
    torch.save(stage.carried, own := BytesIO())
    carried = gathered(own.getvalue())
    if rank() > 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": stage.model.state_dict(),
        "optimiser": [o.state_dict() for o in optimiser],
        "average": average,
        "carried": carried,
        "step": step,
        "seconds": seconds,
    }
    state["processes"], state["config"] = world_size(), {k: str(v) for k, v in asdict(config).items()}
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def load_average(out: Path, part: str = "") -> dict[str, Tensor]:
    """The averaged weights of a run; of its submodule `part`, where the stage has several networks.

    Raises FileNotFoundError that says which stage has to run first.
    """
    path = Path(out) / "checkpoint.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run `sana-wm train {Path(out).name}` first")
    average = torch.load(path, map_location="cpu", weights_only=True)["average"]
    inside = {name.removeprefix(f"{part}."): value for name, value in average.items() if part and name.startswith(f"{part}.")}
    return inside or average


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


def _log(
    writer, stage: Stage, model: nn.Module, average: dict[str, Tensor], scalars: dict[str, float], step: int, config: LoopConfig
) -> None:
    if writer is None:
        return
    if step % 10 == 0:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)
    if config.preview and step % config.preview == 0:
        current = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(average)
        picture = stage.preview(model)
        model.load_state_dict(current)
        if picture is not None:
            writer.add_image("samples", picture, step)
