"""A writer that is killed at any moment leaves the old content or the new one: never neither, never a
mixture that a reader takes for valid.

Every writer is killed at random moments and, one after the other, before and after each of its renames.
"""

import itertools
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import minari
import numpy as np
import pytest
import small_ladder
import torch
from own_videos import write_clip

from sana_wm_env import RecordChunks, RoomsState, WorldState, cli
from sana_wm_env.files import replacing_folder, write_json, write_whole
from sana_wm_env.minari import RecordMinari, replay
from sana_wm_env.model.config import PRESETS
from sana_wm_env.train.data import rooms as data
from sana_wm_env.train.data.packed import packed_tars, read_packed
from sana_wm_env.train.data.videos import survey
from sana_wm_env.video import describe_stranger

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore"),
]
FEW, MANY = 8, int(os.environ.get("SANA_WM_KILLS", "16"))
"""Kills of each writer, in every run and in the heavy ones; the long run has SANA_WM_KILLS=200."""
ENOUGH = 200
"""Kills of which some must come after the first write."""
ACTION = np.full(6, 0.5, np.float32)


class Writer(NamedTuple):
    """write: content number 0 or 1 to a path, over what is there. read: which one is there, or None; fails
    for anything but a whole one. heavy: too slow to be killed in every run.
    """

    write: Callable[[Path, int], object]
    read: Callable[[Path], int | None]
    heavy: bool = False
    target: str = "target"


# ---- states and files


def sessions(name: str) -> list:
    """A running session, and the same gone on."""
    env = gym.make(name).unwrapped
    env.reset(seed=0)
    before = env.save_state()
    env.step(ACTION)
    after = env.save_state()
    return [state.detached() if hasattr(state, "detached") else state for state in (before, after)]


def write_folder(path: Path, number: int) -> None:
    with replacing_folder(path) as part:
        for i in range(20):
            (part / f"{i}").write_text(str(number) * 1000)


def read_folder(path: Path) -> int:
    (number,) = {(path / f"{i}").read_text() for i in range(20)}
    return int(number[0])


# ---- pairs of a video and its sidecar


def record(path: Path, number: int) -> None:
    env = RecordChunks(gym.make("SanaWM-Rooms-v0", image_size=(16, 16)), path, min_height=0)
    env.reset(seed=number)
    env.step(ACTION)
    env.close()


def generate(path: Path, number: int) -> None:
    assert run(f"generate --actions w-24 --steps 1 --seed {number} --out {path}") == 0


def read_pair(video: Path) -> int:
    """The seed of a pair, after what its reader asks for is done: a video that was left is renamed."""

    def stranger() -> str | None:
        with np.load(video.with_suffix(".npz")) as sidecar:
            return describe_stranger(video, sidecar["video_sha256"].item())

    if said := stranger():
        part, name = re.search(r"wanted (.*) renamed to (.*)", said).groups()
        assert name == video.name
        (video.parent / part).rename(video)
        assert stranger() is None
    times, *_ = survey(video)
    with np.load(video.with_suffix(".npz")) as sidecar:
        assert len(sidecar["c2w"]) == len(times) == 25
        return int(sidecar["seed"])


# ---- commands


def run(line: str) -> int:
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        return cli.main(line.split())


def pack(path: Path, number: int) -> None:
    clips = path.parent / f"clips-{number}"
    if not clips.exists():
        clips.mkdir()
        for i in range(3):
            write_clip(clips, f"{i}", 33 + 8 * number)
    assert run(f"data pack {clips} --out {path} --size 32 48 --per-shard 1") == 0


def read_pack(path: Path) -> int:
    clips = [clip for tar in packed_tars(path) for clip in read_packed(tar)]
    assert len(clips) == 3 and json.loads((path / "report.json").read_text())["clips"] == 3
    ((frames,),) = [{len(clip.frames) for clip in clips}]
    return (frames - 33) // 8


def measure(path: Path, number: int) -> None:
    """Goes on with the benchmark of a folder, anew when it was complete."""
    if (path / "benchmark.json").exists():
        path.rename(path.with_name(f"{path.name}-{random.random()}"))
    assert run(f"evaluate benchmark --scenes 2 --split simple --chunks 1 --batch 1 --out {path}") == 0


def read_benchmark(path: Path) -> int | None:
    """Whether all is done; whatever has its name is whole."""
    for figures in path.glob("simple/*.json"):
        assert json.loads(figures.read_text())["world"]
        read_pair(figures.with_suffix(".mp4"))
        np.load(figures.with_suffix(".frames.npy"))
    report = path / "benchmark.json"
    return bool(json.loads(report.read_text())) if report.exists() else None


def train(path: Path, number: int) -> None:
    PRESETS["tiny"], data.KINDS = small_ladder.TINY, small_ladder.KINDS
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        small_ladder.train("autoencoder", path, 10**6)


def read_training(path: Path) -> int | None:
    """The step of the checkpoint."""
    checkpoint = path / "tiny" / "autoencoder" / "checkpoint.pt"
    return torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else None


def collect(path: Path, number: int) -> None:
    """A new dataset, or one more where there is one, to which episodes are added."""
    os.environ["MINARI_DATASETS_PATH"] = str(path)
    path.mkdir(exist_ok=True)
    number = len([name for name in path.iterdir() if name.name[0] != "."])
    about = dict.fromkeys(("author", "author_email", "description", "algorithm_name", "code_permalink"), "a")
    room = gym.make("SanaWM-Rooms-v0", image_size=(16, 20), obs_mode="last")
    env = RecordMinari(room, f"walks{number}-v0", **about)
    for seed in range(6):
        env.reset(seed=seed)
        env.step(ACTION)
    env.close()


def read_datasets(path: Path) -> int | None:
    """Episodes in all datasets; the newest is played again."""
    os.environ["MINARI_DATASETS_PATH"] = str(path)
    names = sorted(minari.list_local_datasets(), key=lambda name: int(re.findall(r"\d+", name)[0]))
    newest = [minari.load_dataset(name) for name in names[-2:]]
    for dataset in newest:
        assert [episode.id for episode in dataset] == list(range(dataset.total_episodes))
        assert all(played.exact for played in replay(dataset))
    return 6 * max(len(names) - 1, 0) + newest[-1].total_episodes if names else None


@pytest.fixture(scope="module")
def writers() -> dict[str, Writer]:
    world, rooms = sessions("SanaWM-v0"), sessions("SanaWM-Rooms-v0")
    numbers = [torch.full((500_000,), float(n)) for n in range(2)]
    return {
        "WorldState": Writer(lambda p, n: world[n].save(p), lambda p: int(WorldState.load(p).chunk_index[0])),
        "RoomsState": Writer(lambda p, n: rooms[n].save(p), lambda p: RoomsState.load(p).chunk_index),
        "JSON": Writer(lambda p, n: write_json(p, [n] * 50_000), lambda p: json.loads(p.read_text())[-1]),
        "tensors": Writer(
            lambda p, n: write_whole(p, lambda part: torch.save(numbers[n], part)),
            lambda p: int(torch.load(p, weights_only=True)[-1]),
        ),
        "folder": Writer(write_folder, read_folder),
        "recorder": Writer(record, read_pair, target="target.mp4"),
        "generate": Writer(generate, read_pair, True, "target.mp4"),
        "pack": Writer(pack, read_pack),
        "benchmark": Writer(measure, read_benchmark, heavy=True),
        "train": Writer(train, read_training, heavy=True),
        "Minari": Writer(collect, read_datasets),
    }


NAMES = (
    "WorldState RoomsState JSON tensors folder recorder generate pack benchmark train Minari".split()  # noqa: SIM905
)
NEVER_ENDS = ("train",)


def fork(work: Callable[[], object]) -> int:
    """A process that does it and ends."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.__stderr__, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def write_for_ever(write: Callable[[Path, int], object], path: Path, number: int) -> None:
    while True:
        number = 1 - number
        write(path, number)


def kill_while_writing(writer: Writer, path: Path, kills: int, longest: float) -> int:
    """The number of kills after which the content was another one than before."""
    drawn, changed, last = random.Random(0), 0, writer.read(path)
    for _ in range(kills):
        child = fork(lambda: write_for_ever(writer.write, path, last or 0))  # noqa: B023
        time.sleep(drawn.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it ended before it was killed"
        found = writer.read(path)
        changed, last = changed + (found != last), found
    return changed


def check(writers: dict[str, Writer], name: str, folder: Path, kills: int) -> None:
    writer, path, longest = writers[name], folder / writers[name].target, 8.0
    if name not in NEVER_ENDS:
        writer.write(path, 0)
        began = time.perf_counter()
        writer.write(path, 1)
        longest = 2 * (time.perf_counter() - began) + 0.05
    began = time.perf_counter()
    changed = kill_while_writing(writer, path, kills, longest)
    print(f"{name}: {kills} kills in {time.perf_counter() - began:.0f} s, {changed} left other content")
    assert changed or kills < ENOUGH  # few may come before the first write
    if name not in NEVER_ENDS:  # what the killed have left is in nobody's way
        writer.write(path, 0)
        writer.write(path, 1)
        assert writer.read(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_writer_leaves_old_or_new(writers, name, tmp_path, monkeypatch):
    if writers[name].heavy:
        pytest.skip("slow: among the heavy tests")
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    check(writers, name, tmp_path, FEW)


@pytest.mark.heavy
@pytest.mark.parametrize("name", NAMES)
def test_many_killed_writers_leave_old_or_new(writers, name, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    monkeypatch.setitem(PRESETS, "tiny", small_ladder.TINY)
    check(writers, name, tmp_path, MANY)


# ---- at every rename

RENAMES = ("rename", "replace", "unlink", "rmdir", "mkdir", "link")


def die_at(place: int) -> None:
    """Kills this process at the given move of a file or folder: before it if the number is even, after it if
    it is odd.
    """
    moves = itertools.count()

    def dying(move: Callable) -> Callable:
        def moved(*given, **named):
            number = next(moves)
            if 2 * number == place:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return move(*given, **named)
            finally:
                if 2 * number + 1 == place:
                    os.kill(os.getpid(), signal.SIGKILL)

        return moved

    for name in RENAMES:
        setattr(os, name, dying(getattr(os, name)))


def die_while_writing(writer: Writer, path: Path, number: int, place: int) -> None:
    die_at(place)
    writer.write(path, number)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("benchmark", "train")])
def test_a_writer_that_is_killed_at_any_move_of_a_file_leaves_old_or_new(
    writers, name, tmp_path, monkeypatch
):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    writer, path, last = writers[name], tmp_path / writers[name].target, 0
    writer.write(path, 0)
    before = writer.read(path)
    writer.write(path, 1)
    for place in itertools.count():
        child = fork(lambda: die_while_writing(writer, path, last, place))  # noqa: B023
        status = os.waitpid(child, 0)[1]
        last = writer.read(path)
        assert last is not None and (name == "Minari" or last in (0, 1))
        last = 1 - last if name != "Minari" else 0
        if status == 0:
            break
        assert status == signal.SIGKILL
    assert place >= 2 and before is not None
