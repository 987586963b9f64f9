"""What a run leaves on disk: one file where every process holds all weights, a folder of shards where they
are sharded.

Both are written beside the old one and then renamed, so that a run that dies while saving leaves the last
good checkpoint. A sharded one may be resumed by another number of ranks (torch.distributed.checkpoint), and
unsharded weights can be read from it by one process.
"""

import shutil
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from sana_wm_env.files import replace_folder, write_whole

from .processes import barrier, gathered, rank, world_size
from .stage import Stage

if TYPE_CHECKING:
    from .loop import LoopConfig

FILE, SHARDS, REST = "checkpoint.pt", "checkpoint-{:09d}", "rest.pt"


@dataclass
class Progress:
    """Progress of a run.

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


class Training(NamedTuple):
    """A training in progress: its folder and settings, and what is saved of it: the stage, its optimisers,
    the averaged weights.
    """

    home: Path
    config: "LoopConfig"
    stage: Stage
    optimiser: list[torch.optim.Optimizer]
    average: dict[str, Tensor]


def latest(out: Path) -> Path | None:
    """The last complete checkpoint in the folder of a run: a file, a folder of shards, or None."""
    folders, file = _folders(Path(out)), Path(out) / FILE
    return folders[-1] if folders else file if file.exists() else None


def save(training: Training, progress: Progress) -> None:
    """Writes a checkpoint; all processes have to call. Raises OSError where the folder cannot be written."""
    # a file in the file: whoever wants the weights alone need not know what the stage keeps
    torch.save(training.stage.carried, carried := BytesIO())
    header = {"carried": gathered(carried.getvalue()), **asdict(progress), "processes": world_size()}
    header["config"] = {k: str(v) for k, v in asdict(training.config).items()}
    out = training.home
    out.mkdir(parents=True, exist_ok=True)
    if training.config.parallel.shard:
        _save_shards(out / SHARDS.format(progress.step), training, header)
    elif rank() == 0:
        state = {
            "model": training.stage.model.state_dict(),
            "optimiser": [optimiser.state_dict() for optimiser in training.optimiser],
            "average": training.average,
            **header,
        }
        write_whole(out / FILE, lambda part: torch.save(state, part))


def resume(training: Training) -> Progress:
    """Loads the last checkpoint into the training and returns its progress; zeros if there is none.

    ValueError if it was written sharded and the training is not, or the other way round.
    """
    path = latest(training.home)
    if path is None:
        return Progress()
    if path.is_dir() != training.config.parallel.shard:
        raise ValueError(
            f"{path} was written {'with' if path.is_dir() else 'without'} --shard; resume it the same way, "
            "or name another run"
        )
    if path.is_dir():
        header = _resume_shards(path, training)
    else:
        header = torch.load(path, map_location=training.config.device, weights_only=True)
        training.stage.model.load_state_dict(header["model"])
        for optimiser, state in zip(training.optimiser, header["optimiser"], strict=True):
            optimiser.load_state_dict(state)
        for name, value in header["average"].items():
            training.average[name].copy_(value)
    if len(header["carried"]) == world_size():  # with another number of processes each starts anew
        carried = header["carried"][rank()]
        if isinstance(carried, bytes):  # files of the first version hold the value itself
            carried = torch.load(BytesIO(carried), map_location=training.config.device, weights_only=True)
        training.stage.carried = carried
    return _progress(header)


def read_rest(path: Path) -> tuple[Progress, int]:
    """Reads the progress of a checkpoint and the samples of a step; reads no weights."""
    header = torch.load(
        path / REST if path.is_dir() else path, map_location="cpu", weights_only=True, mmap=path.is_file()
    )
    return _progress(header), int(header["config"]["batch"])


def _progress(header: dict[str, Any]) -> Progress:
    return Progress(**{field.name: header[field.name] for field in fields(Progress) if field.name in header})


def load_average(out: Path, part: str = "") -> dict[str, Tensor]:
    """The averaged weights of a run; of its submodule `part`, where the stage has several networks.

    Raises FileNotFoundError that says which stage has to run first.
    """
    path = latest(out)
    if path is None:
        raise FileNotFoundError(
            f"{Path(out) / FILE} does not exist: run `sana-wm train {Path(out).name}` first"
        )
    average = (
        _whole_average(path)
        if path.is_dir()
        else torch.load(path, map_location="cpu", weights_only=True)["average"]
    )
    inside = {
        name.removeprefix(f"{part}."): value
        for name, value in average.items()
        if part and name.startswith(f"{part}.")
    }
    return inside or average


# ---- shards


def _folders(out: Path) -> list[Path]:
    """Complete sharded checkpoints, oldest first."""
    return sorted(out.glob(SHARDS.format(0).replace("0", "[0-9]")))


def _tensors(training: Training) -> dict[str, Any]:
    """The state that all ranks hold together. Optimisers are named by what they optimise, not by position,
    which differs from rank to rank.
    """
    return {
        "model": training.stage.model.state_dict(),
        "optimiser": get_optimizer_state_dict(training.stage.model, training.optimiser),
        "average": training.average,
    }


def _save_shards(path: Path, training: Training, header: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    if rank() == 0:
        shutil.rmtree(part, ignore_errors=True)
    barrier()
    save_shards(_tensors(training), checkpoint_id=part)
    if rank() == 0:
        torch.save(header, part / REST)
        replace_folder(part, path)
        for older in _folders(path.parent)[:-1]:
            shutil.rmtree(older)
    barrier()


def _resume_shards(path: Path, training: Training) -> dict[str, Any]:
    state = _tensors(training)  # model and average are the run's own tensors, filled in place
    load_shards(state, checkpoint_id=path)
    set_optimizer_state_dict(training.stage.model, training.optimiser, state["optimiser"])
    return torch.load(path / REST, map_location=training.config.device, weights_only=True)


def _whole_average(path: Path) -> dict[str, Tensor]:
    """The averaged weights in one piece, read by one process."""
    known = FileSystemReader(path).read_metadata().state_dict_metadata
    stored = {
        name: cast(TensorStorageMetadata, what) for name, what in known.items() if name.startswith("average.")
    }
    average = {name: torch.empty(what.size, dtype=what.properties.dtype) for name, what in stored.items()}
    load_shards(average, checkpoint_id=path, no_dist=True)
    return {name.removeprefix("average."): value for name, value in average.items()}
