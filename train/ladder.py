"""The ladder: one command from nothing, or from a world, to a packed and scored world.

It runs the stages of a recipe one after the other, each as `sana-wm train STAGE` in processes of its own and
for its share of the hours. At milestones it pauses, scores the averaged weights, keeps the best world and
writes a page. Everything it knows lies in runs/WORLD/ladder.json and in the stages' own checkpoints, so the
same command goes on wherever it was cut.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sana_wm_env.evaluation.report import weights_digest
from sana_wm_env.files import replacing_folder, write_json
from sana_wm_env.model.codecs.refiner import HOMES, NETWORK
from sana_wm_env.model.storage.worlds import CONFIG, is_bundled, load_config, resolve_world, save_world
from sana_wm_env.model.world import WorldModel
from sana_wm_env.progress import write_line
from sana_wm_env.settings import check_settings

from .autoencoder import load_trained, result_path
from .checkpoints import Progress, latest, read_rest
from .data.source import encode_packed
from .export import ExportConfig, assemble
from .milestones import CHUNKS, Measurement, measure_in_rooms, measure_on_clips, write_progress
from .processes import PARENT
from .recipe import FOLDER, Rung, read_recipe

PACKS = ("teacher-forcing", "distill", "self-forcing")
"""Stages that would write a world folder themselves."""
APART = ("autoencoder", "refiner")
"""Stages that do not train the transformer."""
AS_GOOD = 0.005
"""Share of the distance closed, on average, that a refiner may cost; it is there to sharpen."""
START = "start"
"""Stage of the row that scores what a ladder begins with."""


@dataclass(frozen=True)
class LadderConfig:
    """Trains a world, stage by stage, to the hours given; scores it on the way, keeps the best, and never
    replaces a better world.

    Attributes:
        world: name of the preset; everything lies in RUNS/WORLD.
        recipe: file that names the stages; in train/recipes, if not given: rooms.toml, further.toml with
            --init-from, own.toml with --data.
        hours: of training, all stages together. Scoring and preparing data come on top.
        until: time of day (HH:MM) at which this process stops, saved; the same command goes on.
        init_from: world to begin with, by bundled name or by folder, or a safetensors file of a transformer's
            weights; then the bundled autoencoder goes with it. From nothing if not given.
        runs: folder of all runs.
        out: folder of the finished world (RUNS/WORLD/world if not given). A better world that lies there
            stays.
        data: folder of your own packed clips; rooms if not given.
        scored_on: folder of packed clips to score on, which training does not see; those of --data if not
            given.
        processes: that train together; 0 for one per core on a CPU, one otherwise.
        nice: added to the niceness of those processes, so that other work goes first.
        score_minutes: training time between milestones.
        episodes: paths that a milestone plays in each kind of rooms.
        chunks: of each of these paths.
    """

    world: str = "rooms"
    recipe: Path | None = None
    hours: float = 15.0
    until: str = ""
    init_from: str = ""
    runs: Path = Path("runs")
    out: Path | None = None
    data: Path | None = None
    scored_on: Path | None = None
    processes: int = 0
    nice: int = 0
    score_minutes: float = 45.0
    episodes: int = 24
    chunks: int = CHUNKS[-1]
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_settings(
            self,
            hours="(0, inf)",
            processes="[0, 4096]",
            nice="[0, 19]",
            score_minutes="(0, inf)",
            episodes="[2, inf)",
            chunks="[1, inf)",
        )

    @property
    def home(self) -> Path:
        return self.runs / self.world


@dataclass
class Ladder:
    """State of a ladder besides the checkpoints of its stages.

    Attributes:
        scores: milestones in order, the rows of `write_progress`.
        finished: names of the stages that are over.
        settings: what decides the result; the same command may not change them.
    """

    settings: dict[str, Any]
    scores: list[dict[str, Any]] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))


def run(config: LadderConfig) -> None:
    """Trains stage by stage, or resumes, and packs the best world.

    Raises ValueError for settings that do not fit, ChildProcessError if a stage ends without having got
    further.
    """
    _check(config)
    recipe = config.recipe or FOLDER / (
        "own.toml" if config.data else "further.toml" if config.init_from else "rooms.toml"
    )
    rungs = read_recipe(recipe, without_autoencoder=bool(config.init_from))
    if config.data and any(rung.stage == "refiner" for rung in rungs):
        raise ValueError(
            f"got a refiner in {recipe} with --data; wanted none: it learns from rooms alone so far"
        )
    path = config.home / "ladder.json"
    ladder = _open(path, config, rungs)
    end = _end(config.until)
    if config.init_from:
        _take_autoencoder(config)
        if not ladder.scores and not ladder.finished:
            _score_start(config, ladder, _size(rungs[0]))
            ladder.save(path)
    before = config.init_from
    for rung in rungs:
        hours = config.hours * rung.share
        while rung.name not in ladder.finished:
            if rung.stage != "autoencoder" and config.data:  # what is encoded already is left as it is
                encode_packed(
                    config.data, load_trained(config.home / "autoencoder", config.device), config.device
                )
            if (left := end - time.time()) <= 0:
                print(f"stopped at {config.until}; the same command goes on")
                return
            progress = _train(config, rung, before, hours, min(60 * config.score_minutes, left))
            if progress.seconds >= 3600 * hours:
                ladder.finished.append(rung.name)
            if rung.stage not in APART:
                _score(config, ladder, rungs, rung)
            ladder.save(path)
        before = rung.name if rung.stage not in APART else before
    _finish(config, ladder, next((rung for rung in reversed(rungs) if rung.stage == "refiner"), None))


def _check(config: LadderConfig) -> None:
    if config.scored_on is not None and config.data is None:
        raise ValueError("got --scored-on without --data; a world of rooms is scored in rooms")


def _open(path: Path, config: LadderConfig, rungs: Sequence[Rung]) -> Ladder:
    """The ladder as it was left, or a new one. ValueError if this command would make another world of it."""
    settings = {"init_from": config.init_from, "data": str(config.data or ""), "hours": config.hours}
    settings |= {
        "stages": [asdict(rung) for rung in rungs],
        "scored_on": str(config.scored_on or ""),
        "episodes": config.episodes,
        "chunks": config.chunks,
    }
    if not path.exists():
        return Ladder(settings)
    ladder = Ladder(**json.loads(path.read_text()))
    if changed := [name for name in settings if settings[name] != ladder.settings.get(name)]:
        changes = ", ".join(
            f"{name} = {settings[name]!r} (was {ladder.settings.get(name)!r})"
            for name in changed
            if name != "stages"
        )
        raise ValueError(
            f"got another {changes or 'recipe'} than {path} was begun with; give the same, or another --runs"
        )
    return ladder


def _end(until: str) -> float:
    """The next time that the clock shows HH:MM, in seconds since 1970; infinity for no text."""
    if not until:
        return float("inf")
    try:
        wanted = datetime.strptime(until, "%H:%M").time()
    except ValueError:
        raise ValueError(f"got --until {until}; wanted a time of day such as 18:30") from None
    now = datetime.now()
    end = datetime.combine(now.date(), wanted)
    return (end if end > now else end + timedelta(days=1)).timestamp()


# ---- stages


def _take_autoencoder(config: LadderConfig) -> None:
    """Takes the autoencoder of the world that the ladder begins with."""
    source = _first_world(config) or "rooms"
    if not result_path(config.home / "autoencoder").exists():
        flags = [
            "--world",
            config.world,
            "--runs",
            str(config.runs),
            "--start-from",
            source,
            "--steps",
            "0",
            "--shards",
            "0",
        ]
        if code := _launch(
            config, ["autoencoder", *flags, *(["--data", str(config.data)] if config.data else [])], 1
        ):
            raise ChildProcessError(f"taking the autoencoder of {source} ended with code {code}, see above")


def _train(config: LadderConfig, rung: Rung, before: str, hours: float, seconds: float) -> Progress:
    """Runs a stage for so many seconds, or to its end. Returns how far it is; ChildProcessError if it got no
    further.
    """
    home, autoencoder = config.home / rung.name, rung.stage == "autoencoder"
    flags = ["--world", config.world, "--runs", str(config.runs), "--device", config.device]
    flags += ["--hours", repr(hours), "--minutes", f"{seconds / 60:.6g}", "--steps", str(10**9)]
    flags += [] if autoencoder else ["--name", rung.name]
    flags += ["--no-pack"] if rung.stage in PACKS else []
    flags += ["--init-from", before] if before and rung.stage not in APART else []
    flags += ["--stage1", str(config.home / "best")] if rung.stage == "refiner" else []
    flags += ["--data", str(config.data)] if config.data else []
    started = _progress(home)
    processes = config.processes or (os.cpu_count() or 1 if config.device == "cpu" else 1)
    code = _launch(config, [rung.stage, *flags, *rung.arguments], processes)
    progress = _progress(home)
    if progress.seconds <= started.seconds:
        raise ChildProcessError(
            f"{rung.name} ended with code {code} and no progress, see above; the same command goes on"
        )
    return progress


def _progress(home: Path) -> Progress:
    path = latest(home)
    return Progress() if path is None else read_rest(path)[0]


def _launch(config: LadderConfig, arguments: Sequence[str], processes: int) -> int:
    """Runs `sana-wm train ARGUMENTS` in so many processes that train together; the first code that is not 0.
    They end with this one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // processes)
    shared = {
        "WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": threads,
        PARENT: os.getpid(),
    }
    command = [sys.executable, "-m", "sana_wm_env.cli", "train", *arguments]
    if config.nice:
        command = ["nice", "-n", str(config.nice), *command]
    workers = []
    for rank in range(processes):
        ranks = {key: str(value) for key, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        workers.append(subprocess.Popen(command, env=os.environ | ranks))
    try:
        codes = [worker.wait() for worker in workers]  # where one is gone the others notice, and end
    except BaseException:
        for worker in workers:
            worker.terminate()  # saves first
        for worker in workers:
            worker.wait()
        raise
    return next((code for code in codes if code), 0)


# ---- scores


def _score_start(config: LadderConfig, ladder: Ladder, size: tuple[int, int]) -> None:
    """Scores what the ladder begins with, if it is of the size that is trained: the first row, which stages
    have to do better than.
    """
    source = config.init_from
    if _first_world(config):
        world = WorldModel.load(source, device=config.device)
    else:
        world = assemble(_pack(config, source, size))
    if tuple(world.config.image_size) != size:
        return
    measured = _measure(config, world)
    numbers = dict.fromkeys(("step", "batch", "seconds", "hours", "samples", "skipped", "retreats"), 0)
    ladder.scores.append({"stage": START, **numbers, **_row(measured)})
    write_progress(config.home / "ladder.md", f"Ladder of {config.world}", ladder.scores, measured)
    write_line(f"{source}, from which it begins: distance closed at chunks {_shares(measured)}")


def _row(measured: Measurement) -> dict[str, Any]:
    """Scores as a row of `write_progress` has them."""
    return {
        "closed": measured.closed,
        "contrast": measured.contrast,
        "rot_err_deg": measured.rot_err_deg,
        "mean": measured.mean,
        "kept": False,
    }


def _shares(measured: Measurement) -> str:
    kinds = (
        f"{kind} " + " / ".join(f"{100 * share:.0f} %" for share in row)
        for kind, row in measured.closed.items()
    )
    return f"{', '.join(map(str, CHUNKS))}: {'; '.join(kinds)}"


def _score(config: LadderConfig, ladder: Ladder, rungs: Sequence[Rung], rung: Rung) -> None:
    """Scores what a stage has come to, adds the row and the page, and keeps the world if it is the best so
    far.
    """
    world = assemble(_pack(config, rung.name, _size(rung)))
    measured = _measure(config, world)
    path = latest(config.home / rung.name)
    assert path is not None  # the stage has come further, so it has saved
    progress, batch = read_rest(path)
    earlier = [row for row in ladder.scores if row["stage"] != rung.name]
    done = {row["stage"]: row for row in earlier}.values()  # the last row of each earlier stage
    rivals = [row["mean"] for row in ladder.scores if row["stage"] != START]
    kept = measured.mean > max(rivals, default=float("-inf"))
    hours = progress.seconds / 3600 + sum(row["seconds"] for row in done) / 3600
    samples = progress.step * batch + sum(row["step"] * row["batch"] for row in done)
    row = {
        "stage": rung.name,
        "step": progress.step,
        "batch": batch,
        "seconds": progress.seconds,
        "hours": hours,
        "samples": samples,
    }
    row |= {"skipped": progress.skipped, "retreats": progress.retreats}
    ladder.scores.append(row | _row(measured))
    if kept:
        for other in ladder.scores:
            other["kept"] = False
        ladder.scores[-1]["kept"] = True
        _replace_world(config.home / "best", world)
    write_progress(config.home / "ladder.md", f"Ladder of {config.world}", ladder.scores, measured)
    write_line(
        f"{rung.name}, step {progress.step}, {samples:,} samples, {hours:.2f} hours: "
        f"distance closed at chunks {_shares(measured)}{'; the best so far' if kept else ''}"
    )


def _pack(config: LadderConfig, stage: str, size: tuple[int, int]) -> ExportConfig:
    """How the weights of a stage become a world: one that samples as that which the ladder begins with."""
    pack = ExportConfig(config.world, config.runs, stage, size=size, data=config.data)
    if first := _first_world(config):
        like = load_config(resolve_world(first))
        of = like.transformer
        pack = replace(
            pack,
            sigmas=like.sigmas,
            cached=of.num_cached_blocks,
            sinks=of.num_sink_blocks,
            looks_around=like.looks_around,
        )
    return pack


def _first_world(config: LadderConfig) -> str | None:
    """The world that the ladder begins with, None if it begins with weights or from nothing."""
    source = config.init_from
    return source if source and ((Path(source) / CONFIG).is_file() or is_bundled(source)) else None


def _choose_refiner(config: LadderConfig, folder: Path) -> Path | None:
    """The folder of a refiner, if the best world is sharper with it and about as close to the truth."""
    best = str(config.home / "best")
    plain, refined = (_measure(config, WorldModel.load(best, refiner=refiner)) for refiner in (None, folder))
    contrasts = [sum(measured.contrast.values()) / len(measured.contrast) for measured in (plain, refined)]
    helps = contrasts[1] > contrasts[0] and refined.mean > plain.mean - AS_GOOD
    print(
        f"the refiner: contrast {100 * contrasts[0]:.0f} -> {100 * contrasts[1]:.0f} % of the truth's, "
        f"distance closed {100 * plain.mean:.1f} -> {100 * refined.mean:.1f} %; "
        + ("it goes with the world" if helps else "it stays behind")
    )
    return folder if helps else None


def _measure(config: LadderConfig, world: WorldModel) -> Measurement:
    if config.data is not None:
        return measure_on_clips(world, config.scored_on or config.data, config.episodes, config.chunks)
    return measure_in_rooms(world, config.episodes, config.chunks)


def _size(rung: Rung) -> tuple[int, int]:
    """Height and width among the arguments of a stage, 64 x 64 by default."""
    if "--size" not in rung.arguments:
        return 64, 64
    at = rung.arguments.index("--size")
    return int(rung.arguments[at + 1]), int(rung.arguments[at + 2])


def _replace_world(folder: Path, world: WorldModel) -> None:
    """Writes the world beside, then renames: a folder is whole or as it was."""
    with replacing_folder(folder) as part:
        save_world(part, world.config, world.transformer, world.autoencoder)


def _finish(config: LadderConfig, ladder: Ladder, refining: Rung | None) -> None:
    """Packs the best world as the result, unless a better one lies there."""
    best, out = config.home / "best", config.out or config.home / "world"
    row = next(row for row in ladder.scores if row["kept"])
    summary = (
        f"the best world ({row['stage']}, {100 * row['mean']:.1f} % of the distance closed on average, "
        f"see {config.home / 'ladder.md'})"
    )
    first = ladder.scores[0]
    if first["stage"] == START and first["mean"] >= row["mean"]:
        summary += (
            f", no better than {config.init_from}, from which it began ({100 * first['mean']:.1f} %): "
            "train longer"
        )
    if (out / CONFIG).is_file():
        there, new = WorldModel.load(str(out)), WorldModel.load(str(best))
        if weights_digest(there) == weights_digest(new):
            print(f"{out} is {summary}")
            return
        mean = _measure(config, there).mean
        if mean >= row["mean"]:
            print(
                f"{out} stays as it was: it closes {100 * mean:.1f} %, {summary} in {best} does not do better"
            )
            return
    refiner = None if refining is None else _choose_refiner(config, config.home / refining.name)
    with replacing_folder(out) as part:
        shutil.copytree(best, part, dirs_exist_ok=True)
        if refiner:
            shutil.copytree(refiner / NETWORK, part / HOMES[0] / NETWORK)
    print(f"wrote {out}: {summary}; gym.make('SanaWM-v0', world='{out}') opens it")
