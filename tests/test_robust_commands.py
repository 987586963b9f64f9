"""Whatever is typed: one line that says what is wrong, before any work, and nothing lost or left behind."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import tally
from PIL import Image

from sana_wm_env import cli
from sana_wm_env.arrays import read_array
from sana_wm_env.commands import generate
from sana_wm_env.commands import help as help_texts
from sana_wm_env.evaluation import poses
from sana_wm_env.keys import keys_to_path
from sana_wm_env.outputs import LONGEST_NAME, Output, check_output, check_outputs
from sana_wm_env.progress import Progress, progress
from sana_wm_env.video import open_video

PATH = keys_to_path("w-24", "sana-v2")
ODD = [
    "file:x",
    "2026-11-25T10:30:00",
    "p%dx",
    "-x",
    "a b",
    "é",
    "http:",
    "concat:a|b",
    "x'y\"z",
    "x;y&z",
    "%05d",
]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with a walk and files of every wrong kind."""
    monkeypatch.chdir(tmp_path)
    np.savez("walk.npz", c2w=PATH, actions=np.zeros((1, 6), np.float32))
    np.save("still.npy", np.tile(np.eye(4), (25, 1, 1)))
    Path("folder").mkdir()
    Path("folder.mp4").mkdir()
    Path("file").write_text("precious")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(line: str, capsys) -> tuple[int, str]:
    """Exit code and what stands on the error stream."""
    code = cli.main(line.split("|") if "|" in line else line.split())
    tally.count(refused=code == 2)
    return code, capsys.readouterr().err


# ---- outputs are checked first


PLACES = {
    "/proc/x{}": "nothing can be written",
    "/proc/new/x{}": "nothing can be written",
    "/dev/null/x{}": "is no folder",
    "file/x{}": "is no folder",
    "file/new/x{}": "is no folder",
    "folder/": "a folder",
    "a" * 300 + "{}": "too long",
    "a/" * 3000 + "x{}": "too long",
    "": "wanted the name",
    "..": "",
}
WRITERS = {
    "generate --actions w-24 --out": ".mp4",
    "agents run --out": ".mp4",
    "evaluate fidelity --json": ".json",
    "evaluate follow --json": ".json",
    "evaluate revisit --json": ".json",
    "evaluate precision --json": ".json",
    "evaluate poses walk.npz still.npy --json": ".json",
    "agents evaluate --json": ".json",
    "agents planning --json": ".json",
    "agents transfer --runs folder --json": ".json",
    "doctor --json": ".json",
    "checkpoint keys --json": ".json",
    "checkpoint inspect rooms --json": ".json",
    "actions explain w-24 --out": ".npy",
    "actions explain w-24 --plot": ".png",
}
OTHERS = (".md", ".avi", ".txt", ".json.gz", "", ".", ".mp4.part")


@pytest.mark.parametrize("command", WRITERS)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(command, place, monkeypatch, capsys):
    before, suffix = contents(place), WRITERS[command]
    for target, said in PLACES.items():
        target = target.format(suffix)
        code = cli.main([*command.split(), target])
        error = capsys.readouterr().err
        assert code == 2 and said in error and error.count("\n") == 1, (target, error)
        assert target[:20].rstrip("/") in error  # names the place
        tally.count(refused=1)
    for other in OTHERS:
        code = cli.main([*command.split(), f"x{other}"])
        error = capsys.readouterr().err
        assert code == 2 and f"ends in {suffix}" in error, (other, error)
        tally.count(refused=1)
    Path(f"taken{suffix}").mkdir()
    assert cli.main([*command.split(), f"taken{suffix}"]) == 2
    assert "which is a folder" in capsys.readouterr().err
    assert contents(place) == before


def test_the_output_is_checked_before_the_world_is_looked_for(place, capsys):
    for target in (*PLACES, "folder.mp4", "x", "x.avi"):
        line = ["generate", "--actions", "w-24", "--world", "nowhere", "--out", target.format(".mp4")]
        assert cli.main(line) == 2
        assert "got --out" in capsys.readouterr().err
        tally.count(refused=1)


@pytest.mark.parametrize(
    "command",
    [
        "evaluate benchmark --out",
        "agents train --out",
        "train ablations --out",
        "train causal --runs",
        "train ladder --runs",
        "evaluate fidelity --out",
        "evaluate poses walk.npz still.npy --tum",
        "checkpoint quantize rooms --precision fp8 --",
        "data latents folder --layout published --out",
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(command, place, capsys):
    before, words = contents(place), [word for word in command.split() if word != "--"]
    if words[1:2] == ["quantize"]:
        words = ["checkpoint", "quantize", "rooms", "{}", "--precision", "fp8"]
    else:
        words.append("{}")
    for target in ("/proc/x", "/dev/null/x", "file", "file/x", "a" * 300):
        assert cli.main([word.format(target) for word in words]) == 2, target
        assert capsys.readouterr().err.count("\n") == 1
    assert contents(place) == before


@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [
        ([("--out", "walk.npz")], ["walk.npz"]),
        ([("--out", "folder/../walk.npz")], ["walk.npz"]),
        ([("--out", "link.npz")], ["walk.npz"]),
        ([("--out", "hard.npz")], ["walk.npz"]),
        ([("--out", "{}/walk.npz")], ["walk.npz"]),
        ([("--json", "a.json"), ("the page", "a.json")], []),
        ([("--json", "a.json"), ("the page", "folder/../a.json")], []),
        ([("--json", "a.json"), ("--tum", "a.json/b.txt")], []),
        ([("--tum", "a.json/b.txt"), ("--json", "a.json")], []),
    ],
)
def test_what_would_be_written_over_is_refused(outputs, inputs, place):
    os.symlink("walk.npz", "link.npz")
    os.link("walk.npz", "hard.npz")
    given = [Output(name, path.format(place)) for name, path in outputs]
    with pytest.raises(ValueError, match="wanted"):
        check_outputs(*given, inputs=inputs)


@pytest.mark.parametrize("name", [*ODD, "x" * (LONGEST_NAME - 4), "ö" * 125, "up/../and/down/x"])
@pytest.mark.parametrize("suffix", [".mp4", ".MP4", ".Mp4"])
def test_odd_names_are_fine(name, suffix, place):
    before = contents(place)
    check_output(f"{name}{suffix}", (".mp4",))
    assert contents(place) == before


@pytest.mark.parametrize("name", ["a\0b.mp4", "loop/x.mp4", "fifo", "dead/x.mp4"])
def test_what_is_no_ordinary_place_is_refused(name, place):
    os.symlink("loop", "loop")
    os.symlink("nowhere", "dead")
    os.mkfifo("fifo")
    with pytest.raises(ValueError, match="got --out"):
        check_output(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_protected_files_and_folders_are_refused(place):
    Path("file").chmod(0o400)
    Path("folder").chmod(0o500)
    for name in ("file", "folder/x", "folder/new/x"):
        with pytest.raises(ValueError, match=r"write-protected|nothing can be written"):
            check_output(name)


@pytest.mark.parametrize(
    "line",
    [
        "generate --camera walk.npz --out walk.mp4",
        "generate --actions walk.npz --out walk.mp4",
        "generate --camera ./folder/../walk.npz --out walk.mp4",
        "generate --image walk.mp4 --fov-deg 60 --out walk.mp4",
        "evaluate poses walk.npz a.json --json a.json",
        "evaluate poses walk.npz estimated.txt --tum .",
        "checkpoint inspect a.json --json a.json",
    ],
)
def test_no_command_writes_over_its_input(line, place, capsys):
    for name in ("walk.mp4", "a.json", "estimated.txt"):
        Path(name).write_text("precious")
    before = contents(place)
    code, error = run(line, capsys)
    assert (code, "which is the input" in error) == (2, True) and contents(place) == before


# ---- what is given


@pytest.fixture
def wrong_arrays(place) -> list[str]:
    """Files that hold no array of numbers."""
    whole = Path("walk.npz").read_bytes()
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 4, 4), }".ljust(117) + b"\n"
    made = {
        "film.mp4": b"\0\0\0\x20ftypisom",
        "film.npy": b"\0\0\0\x20ftypisom",
        "empty.npz": b"",
        "cut.npz": whole[:200],
        "cut2.npz": whole[: len(whole) // 2],
        "flipped.npz": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
        "vast.npy": b"\x93NUMPY\x01\x00\x76\x00" + header,
        "odd.npy": b"\x93NUMPY\x09\x00" + header,
        "text.txt": b"1, 0, 0",
        "picture.png": b"\x89PNG\r\n\x1a\n",
        "zip.npz": b"PK\x05\x06" + b"\0" * 18,
    }
    for name, data in made.items():
        Path(name).write_bytes(data)
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    np.save("texts.npy", np.array(["a"]))
    np.save("bools.npy", np.ones((25, 4, 4), bool))
    np.save("complex.npy", PATH.astype(complex))
    np.savez("other.npz", poses=PATH)
    names = ["objects.npy", "texts.npy", "bools.npy", "complex.npy", "other.npz", "folder", "none.npy"]
    return [*made, *names]


def test_a_file_that_is_no_array_is_named(wrong_arrays, place, capsys):
    before = contents(place)
    for name in wrong_arrays:
        with pytest.raises((ValueError, OSError), match="got the poses") as caught:
            read_array(name, "c2w", "the poses")
        assert "pickle" not in str(caught.value) and str(caught.value).count("\n") == 0
        for line in (
            f"generate --camera {name} --out o.mp4",
            f"evaluate poses {name} walk.npz",
            f"evaluate poses walk.npz {name}",
        ):
            code, error = run(line, capsys)
            assert code == 2 and name in error and error.count("\n") == 1, error
    assert contents(place) == before


@pytest.mark.parametrize("name", ["film.mp4", "film.npy", "cut.npz", "text.txt", "folder/", "none.npy"])
def test_actions_in_a_file_that_has_none(name, wrong_arrays, place, capsys):
    code, error = run(f"generate --actions {name} --out o.mp4", capsys)
    assert (
        code == 2 and "got --actions" in error and "wanted" in error + "wanted" and not Path("o.mp4").exists()
    )


@pytest.mark.parametrize("seed", [2**70, 2**64, 2**63, 2**62 + 1, -1, -(2**70), "9" * 5000])
@pytest.mark.parametrize(
    "command", ["generate --out o.mp4", "evaluate fidelity", "agents run", "train causal", "agents train"]
)
def test_seeds_that_no_generator_takes(seed, command, place, capsys):
    code, error = run(f"{command} --seed {seed}", capsys)
    assert code == 2 and "wanted 0 or more" in error and len(error) < 200


@pytest.mark.parametrize(
    "keys",
    ["w-9999999999", "w-100001", "w-60000,d-60000", "w-" + "9" * 6000, ",".join(["w-999"] * 200)],
)
def test_keys_that_are_held_for_ever(keys, place, capsys):
    began = time.monotonic()
    for line in (f"actions|explain|{keys}", f"generate|--actions|{keys}|--out|o.mp4"):
        code, error = run(line, capsys)
        assert code == 2 and "at most" in error and len(error) < 300
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "flags",
    [
        "--steps 0",
        "--steps -1",
        f"--steps {10**12}",
        f"--frames {10**12}",
        "--frames 0",
        "--frames -23",
        "--shift nan",
        "--shift -1",
        "--guidance inf --variant bidirectional",
        "--offload text foo",
        "--offload eyes cpu",
        "--device abacus",
        "--device meta",
        "--world folder",
        "--world file",
        "--world nowhere",
        "--precision fp4",
        "--variant sideways",
        "--sede 1",
        "--seed 1e3",
        "--seed",
        "surplus",
        "--image file --fov-deg 60",
        "--image folder --fov-deg 60",
        "--image walk.npz --fov-deg 60",
        "--intrinsics moge",
        "--fov-deg 60",
    ],
)
def test_flags_that_make_no_sense_are_said_in_one_line(flags, place, capsys):
    before = contents(place)
    code, error = run(f"generate --actions w-24 --out o.mp4 {flags}", capsys)
    assert (
        code == 2 and error.startswith("sana-wm: ") and error.count("\n") == 1 and "shows where" not in error
    )
    assert contents(place) == before


@pytest.mark.parametrize(
    "line",
    [
        "roofline --grid 0 0",
        "roofline --grid -1 4",
        "roofline --preset none",
        "roofline --cards abacus",
        "checkpoint inspect file",
        "checkpoint inspect folder",
        "checkpoint inspect walk.npz",
        "checkpoint keys --preset none",
        "checkpoint convert none out --to native",
        "download none",
        "download a/b/c",
        "train plan --gpus 0",
        "train plan --frames 0",
        "train causal --world none",
        "train export --runs none",
        "train ladder --hours 0",
        "train ladder --recipe file",
        "train ladder --until 25:99",
        "train bidirectional --runs none",
        "agents run --env none",
        "agents run --chunks 0",
        "agents run --agent ppo --policy file",
        "agents run --agent cem --axes 9",
        "agents evaluate --episodes 0",
        "data validate none",
        "data validate file",
        "data pack folder --out p --crf 99",
        "data pack folder --out p --crf -5",
        "data pack folder --out p --per-shard 0",
        "data pack folder --out .",
        f"evaluate fidelity --episodes {10**18}",
        f"evaluate follow --chunks {10**18}",
        "evaluate follow --chunks -1",
        "evaluate revisit --away 3",
        "evaluate poses walk.npz still.npy --delta 0",
        "evaluate posse walk.npz still.npy",
        "genrate",
        "train --steps 1",
        "parity file",
        "parity folder",
        "parity",
    ],
)
def test_every_command_refuses_in_one_line_what_it_cannot_use(line, place, capsys):
    before = contents(place)
    code, error = run(line, capsys)
    assert code == 2 and error.count("\n") == 1 and "shows where" not in error, error
    assert contents(place) == before


def test_an_error_nobody_foresaw_is_one_line_too(monkeypatch, capsys):
    def fails(*_):
        raise TypeError("first\nsecond")

    monkeypatch.setattr(cli, "_dispatch", fails)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "sana-wm: TypeError: first (SANA_WM_TRACEBACK=1 shows where)\n"


# ---- libraries that are not there


@pytest.mark.parametrize(
    ("library", "line", "install"),
    [
        ("webdataset", "data pack folder --out p", "sana-wm-env[train]"),
        ("webdataset", "data latents folder", "sana-wm-env[train]"),
        ("matplotlib", "actions explain w-24 --plot a.png", "pip install matplotlib"),
        ("matplotlib", "agents transfer --runs folder", "pip install matplotlib"),
        ("matplotlib", "train ablations", "pip install matplotlib"),
        ("moge", "generate --image file --intrinsics moge --out o.mp4", "microsoft/MoGe"),
        ("stable_baselines3", "agents run --agent ppo --policy file", "sana-wm-env[rl]"),
        ("stable_baselines3", "agents train", "sana-wm-env[rl]"),
        ("huggingface_hub", "download Efficient-Large-Model/SANA-WM_streaming", "sana-wm-env[hub]"),
    ],
)
def test_what_is_not_installed_is_named_before_any_work(library, line, install, place, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    if library == "stable_baselines3":
        for name in ("ppo", "train_ppo"):
            monkeypatch.delitem(sys.modules, f"sana_wm_env.agents.policy.{name}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    before = contents(place)
    code, error = run(line, capsys)
    assert code == 2 and install in error and library in error and error.count("\n") == 1, error
    assert contents(place) == before and not list(place.rglob("*.part"))


# ---- files appear whole, together, or not at all


@pytest.fixture
def walk(place) -> list[str]:
    """A short walk, with an older pair under its name."""
    Path("o.mp4").write_bytes(b"old video")
    Path("o.npz").write_bytes(b"old sidecar")
    return ["generate", "--actions", "w-24", "--steps", "1", "--out", "o.mp4"]


def end_by_hand():
    raise KeyboardInterrupt


def end_by_signal(number):
    os.kill(os.getpid(), number)
    time.sleep(5)  # the handler comes first


def fail():
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (end_by_hand, 130),
        (lambda: end_by_signal(signal.SIGTERM), 143),
        (lambda: end_by_signal(signal.SIGHUP), 129),
        (fail, 2),
    ],
)
@pytest.mark.parametrize("chunks", [0, 1])
def test_what_ends_generate_early_leaves_the_old_pair(end, code, chunks, walk, place, monkeypatch, capsys):
    def broken(world, state, path, schedule):
        for _ in range(chunks):
            yield np_frames(world)
        end()

    monkeypatch.setattr(generate, "imagined", broken)
    before = contents(place)
    assert cli.main(walk) == code
    assert contents(place) == before  # no .part either


def np_frames(world):
    import torch

    return torch.zeros(1, 24, *world.config.image_size, 3, dtype=torch.uint8)


def test_a_new_folder_goes_with_a_run_that_ends_early(walk, place, monkeypatch):
    monkeypatch.setattr(generate, "imagined", lambda *_: chain(iter(()), (end_by_hand() for _ in "x")))
    assert cli.main([*walk[:-1], "new/folder/o.mp4"]) == 130
    assert not Path("new").exists()


@pytest.mark.parametrize("name", ODD)
def test_generate_writes_odd_names_as_they_are(name, walk, place, capsys):
    assert cli.main([*walk[:-2], f"--out=folder/{name}.MP4"]) == 0
    assert sorted(os.listdir("folder")) == sorted([f"{name}.MP4", f"{name}.npz"])
    with np.load(f"folder/{name}.npz") as sidecar:
        assert sidecar["c2w"].shape == (25, 4, 4)


@pytest.mark.parametrize("kind", ["gif", "png"])
def test_generate_begins_with_the_first_of_many_pictures(kind, walk, place):
    red, green = (Image.new("RGB", (64, 64), colour) for colour in ("red", "green"))
    red.save(f"many.{kind}", save_all=True, append_images=[green])
    assert cli.main([*walk, "--image", f"many.{kind}", "--fov-deg", "60"]) == 0
    with open_video(Path("o.mp4")) as video:
        frame = next(video.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(frame.mean((0, 1)) - [255, 0, 0]).max() < 10


def test_signals_are_as_before_after_a_command(capsys):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    assert cli.main(["--version"]) == 0
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]


# ---- terminals, pipes, homes


def shell(line: str, **environment: str | None) -> subprocess.CompletedProcess:
    kept = os.environ | {"PYTHON": sys.executable} | environment
    line = line.replace("sana-wm", '"$PYTHON" -m sana_wm_env.cli')
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env={key: value for key, value in kept.items() if value is not None},
        capture_output=True,
        text=True,
        errors="surrogateescape",
    )


def test_the_version_is_said(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"sana-wm \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("sana-wm actions explain w-24,d-24,w-24 | head -1 > /dev/null", 0),
        ("sana-wm actions explain w-24,d-24,w-24 | true", 0),
        ("sana-wm generate --help | true", 0),
        ("sana-wm --help | head -1 > /dev/null", 0),
        ("sana-wm actions explain x-24 2>&1 | true", 2),
        ("sana-wm actions explain w-24 >&-", 0),
        ("sana-wm actions explain w-24 2>&- >/dev/null", 0),
        ("sana-wm actions explain x-24 2>&-", 2),
    ],
)
def test_a_reader_that_goes_changes_nothing(line, code):
    done = shell(line)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LANG": "C", "LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"HOME": "/nowhere/at/all", "XDG_CACHE_HOME": None},
        {"HOME": "/proc", "XDG_CACHE_HOME": None},
        {"HOME": None, "XDG_CACHE_HOME": None},
        {"HOME": "", "COLUMNS": "1", "TERM": "dumb"},
    ],
)
def test_poor_terminals_and_homes(environment):
    done = shell(
        "sana-wm --help && sana-wm generate --help && sana-wm actions explain w-24 "
        "&& sana-wm actions explain é-24",
        **environment,
    )
    assert (
        done.returncode == 2 and done.stderr.startswith("sana-wm: got the ") and done.stderr.count("\n") == 1
    )
    assert "wanted" in done.stderr or "has" in done.stderr


@pytest.mark.heavy
@pytest.mark.parametrize(
    "environment", [{"HOME": "/nowhere"}, {"HOME": "/proc"}, {"HOME": None}, {"PYTHONIOENCODING": "ascii"}]
)
def test_commands_that_compile_and_draw_work_in_poor_homes(environment, place):
    environment = {"XDG_CACHE_HOME": None, **environment}
    done = shell(
        "sana-wm generate --actions w-24 --steps 1 && sana-wm evaluate poses walk.npz walk.npz "
        "&& sana-wm doctor && sana-wm actions explain w-24 --plot a.png",
        **environment,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and Path("clip.mp4").exists()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_are_drawn_on_terminals_alone():
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        assert list(progress(range(5), file=stream, desc="imagining", unit="chunk")) == [0, 1, 2, 3, 4]
    assert "imagining: 100%" in terminal.getvalue() and log.getvalue() == ""


def test_a_log_gets_a_line_every_ten_seconds(monkeypatch):
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr("sana_wm_env.progress.time.monotonic", lambda: now[0])
    with progress(total=100, file=log, desc="imagining", unit="chunk", mininterval=0) as bar:
        for _ in range(35):
            now[0] += 1
            bar.set_postfix(loss="0.5")
            bar.update()
    lines = log.getvalue().splitlines()
    assert len(lines) == 3 and all(
        re.match(r"imagining: \d+ of 100 chunks, \d+ s, loss=0.5", line) for line in lines
    )
    assert "\r" not in log.getvalue()


def test_a_bar_without_a_stream_is_silent(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert list(Progress(range(3))) == [0, 1, 2]


def test_no_bar_is_made_in_another_way():
    package = Path(cli.__file__).parent
    for name in ("commands", "evaluation", "agents", "train"):
        for path in (package / name).resolve().rglob("*.py"):
            assert "tqdm" not in path.read_text(encoding="utf-8"), path


# ---- help


def test_help_lies_ready_as_it_is(capsys):
    texts = {path.name for path in help_texts.FOLDER.glob("*.txt")}
    assert texts == {f"{'-'.join(words)}.txt" for words in help_texts.each_command()}
    for words in help_texts.each_command():
        assert help_texts.read_help(words) == help_texts.render_help(words).rstrip("\n"), (
            "run `python -m sana_wm_env.commands.help`, which writes the texts anew"
        )


def test_help_is_plain():
    for path in help_texts.FOLDER.glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("usage: sana-wm ") and max(map(len, text.splitlines())) <= 100, path
        assert not re.search(r"Returns|default: None|{None}|[│─╭]", text), path
        flags = re.split(r"\n  (?=-)", text)
        assert all(flag.count("(default: ") <= 1 for flag in flags[1:]), path


def test_help_loads_nothing_that_is_heavy():
    lines = [[*words, "--help"] for words in help_texts.each_command()] + [
        ["--help"],
        ["train"],
        ["--version"],
    ]
    program = f"""
import sys, time
from sana_wm_env.cli import main
for words in {lines!r}:
    assert main(words) == 0
heavy = {{"torch", "scipy", "av", "tyro", "PIL", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
assert time.process_time() < 2, time.process_time()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# ---- figures that say nothing


def test_a_reference_that_never_moves_is_said(place, capsys):
    assert cli.main(["evaluate", "poses", "walk.npz", "still.npy", "--json", "r.json"]) == 0
    out = capsys.readouterr().out
    assert "never moves" in out and not re.search(r"^(scale|sim3|rotation_product) ", out, re.MULTILINE)
    assert "left_out" in Path("r.json").read_text()
    for alignment in poses.SCALED:
        assert cli.main(["evaluate", "poses", "walk.npz", "still.npy", "--align", alignment]) == 2
        assert "never moves" in capsys.readouterr().err
    assert cli.main(["evaluate", "poses", "walk.npz", "walk.npz"]) == 0
    assert "never moves" not in capsys.readouterr().out


def test_a_camera_that_only_turns_or_trembles_stands_still(place, capsys):
    turning = keys_to_path("a-24", "sana-v2")
    trembling = np.tile(np.eye(4), (25, 1, 1))
    trembling[:, :3, 3] = 1e-9 * np.random.default_rng(0).standard_normal((25, 3))
    for name, path in {"turning": turning, "trembling": trembling, "one": PATH[:1]}.items():
        np.save(f"{name}.npy", path)
        np.save("estimate.npy", PATH[: len(path)])
        assert cli.main(["evaluate", "poses", "estimate.npy", f"{name}.npy"]) == 0
        assert "never moves" in capsys.readouterr().out
