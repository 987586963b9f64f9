"""What a run leaves on disk: one file where every process holds all weights, a folder of shards where they are sharded.

Both are written beside the old one and then renamed, so that a run that dies while saving leaves the last good checkpoint. A sharded one
may be resumed by another number of ranks (torch.distributed.checkpoint), and unsharded weights can be read from it by one process.
"""

import shutil
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from .processes import barrier, gathered, rank, world_size
from .stage import Stage

if TYPE_CHECKING:
    from .loop import LoopConfig

FILE, SHARDS, REST = "checkpoint.pt", "checkpoint-{:09d}", "rest.pt"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: steps taken, those that were skipped among them.
        seconds: training time.
        skipped: steps without an update, as their gradient was not finite.
        in_a_row: skipped steps since the last update.
        retreats: times that the run went back to a checkpoint; each halves the rates and draws other data.
    """

    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    in_a_row: int = 0
    retreats: int = 0


class Run(NamedTuple):
    """A run in progress: its folder and settings, and what is saved of it: the stage, its optimisers, the averaged weights."""

    home: Path
    config: "LoopConfig"
    stage: Stage
    optimiser: list[torch.optim.Optimizer]
    average: dict[str, Tensor]


def latest(out: Path) -> Path | None:
    """The last complete checkpoint in the folder of a run: a file, a folder of shards, or None."""
    folders, file = _folders(Path(out)), Path(out) / FILE
    return folders[-1] if folders else file if file.exists() else None


def save(run: Run, progress: Progress) -> None:
    """Writes where the run stands; all processes have to call. Raises OSError where the folder cannot be written."""
    # a file in the file: whoever wants the weights alone need not know what the stage keeps
    torch.save(run.stage.carried, carried := BytesIO())
    rest = {"carried": gathered(carried.getvalue()), **asdict(progress), "processes": world_size()}
    rest["config"] = {k: str(v) for k, v in asdict(run.config).items()}
    out = run.home
    out.mkdir(parents=True, exist_ok=True)
    if run.config.parallel.shard:
        _save_shards(out / SHARDS.format(progress.step), run, rest)
    elif rank() == 0:
        optimiser = [one.state_dict() for one in run.optimiser]
        state = {"model": run.stage.model.state_dict(), "optimiser": optimiser, "average": run.average, **rest}
        part = out / (FILE + ".part")
        torch.save(state, part)
        part.rename(out / FILE)


def resume(run: Run) -> Progress:
    """Puts the last checkpoint into the run, and returns how far it had come; zeros if there is none.

    ValueError if it was written sharded and the run is not, or the other way round.
    """
    path = latest(run.home)
    if path is None:
        return Progress()
    if path.is_dir() != run.config.parallel.shard:
        raise ValueError(
            f"{path} was written {'with' if path.is_dir() else 'without'} --shard; resume it the same way, or name another run"
        )
    if path.is_dir():
        rest = _resume_shards(path, run)
    else:
        rest = torch.load(path, map_location=run.config.device, weights_only=True)
        run.stage.model.load_state_dict(rest["model"])
        for one, state in zip(run.optimiser, rest["optimiser"], strict=True):
            one.load_state_dict(state)
        for name, value in rest["average"].items():
            run.average[name].copy_(value)
    if len(rest["carried"]) == world_size():  # with another number of processes each starts anew
        carried = rest["carried"][rank()]
        if isinstance(carried, bytes):  # files of the first version hold the value itself
            carried = torch.load(BytesIO(carried), map_location=run.config.device, weights_only=True)
        run.stage.carried = carried
    return _progress(rest)


def read_rest(path: Path) -> tuple[Progress, int]:
    """How far the run of a checkpoint had come, and the samples of a step; no weights are read."""
    rest = torch.load(path / REST if path.is_dir() else path, map_location="cpu", weights_only=True, mmap=path.is_file())
    return _progress(rest), int(rest["config"]["batch"])


def _progress(rest: dict[str, Any]) -> Progress:
    return Progress(**{field.name: rest[field.name] for field in fields(Progress) if field.name in rest})


def load_average(out: Path, part: str = "") -> dict[str, Tensor]:
    """The averaged weights of a run; of its submodule `part`, where the stage has several networks.

    Raises FileNotFoundError that says which stage has to run first.
    """
    path = latest(out)
    if path is None:
        raise FileNotFoundError(f"{Path(out) / FILE} does not exist: run `sana-wm train {Path(out).name}` first")
    average = _whole_average(path) if path.is_dir() else torch.load(path, map_location="cpu", weights_only=True)["average"]
    inside = {name.removeprefix(f"{part}."): value for name, value in average.items() if part and name.startswith(f"{part}.")}
    return inside or average


# ---- shards


def _folders(out: Path) -> list[Path]:
    """Complete sharded checkpoints, oldest first."""
    return sorted(out.glob(SHARDS.format(0).replace("0", "[0-9]")))


def _tensors(run: Run) -> dict[str, Any]:
    """What all ranks hold together. Optimisers are named by what they optimise, not by position, which differs from rank to rank."""
    return {
        "model": run.stage.model.state_dict(),
        "optimiser": get_optimizer_state_dict(run.stage.model, run.optimiser),
        "average": run.average,
    }


def _save_shards(path: Path, run: Run, rest: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    if rank() == 0:
        shutil.rmtree(part, ignore_errors=True)
    barrier()
    dcp.save(_tensors(run), checkpoint_id=part)
    if rank() == 0:
        torch.save(rest, part / REST)
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
        for older in _folders(path.parent)[:-1]:
            shutil.rmtree(older)
    barrier()


def _resume_shards(path: Path, run: Run) -> dict[str, Any]:
    state = _tensors(run)  # model and average are the run's own tensors, filled in place
    dcp.load(state, checkpoint_id=path)
    set_optimizer_state_dict(run.stage.model, run.optimiser, state["optimiser"])
    return torch.load(path / REST, map_location=run.config.device, weights_only=True)


def _whole_average(path: Path) -> dict[str, Tensor]:
    """The averaged weights in one piece, read by one process."""
    known = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    names = [name for name in known if name.startswith("average.")]
    average = {name: torch.empty(known[name].size, dtype=known[name].properties.dtype) for name in names}
    dcp.load(average, checkpoint_id=path, no_dist=True)
    return {name.removeprefix("average."): value for name, value in average.items()}
