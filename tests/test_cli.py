import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from sana_wm_env import cli
from sana_wm_env.commands.table import COMMANDS, Group


def run(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "sana_wm_env.cli", *argv], capture_output=True, text=True)


def test_help_lists_every_command_and_loads_no_torch():
    program = """
import sys
from sana_wm_env.cli import main
try:
    main(["--help"])
finally:
    assert "torch" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    for command in COMMANDS:
        assert command in result.stdout


def commands() -> list[tuple[str, ...]]:
    """Every command as the words that call it."""
    return [
        (name, member) if isinstance(entry, Group) else (name,)
        for name, entry in COMMANDS.items()
        for member in (entry.members if isinstance(entry, Group) else [""])
    ]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_explains_itself(words, capsys):
    assert cli.main([*words, "--help"]) == 0
    assert "usage: sana-wm " + " ".join(words) in capsys.readouterr().out


def test_no_command_shows_help(capsys):
    assert cli.main([]) == 0 and "generate" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv", [["genrate"], ["evaluate", "beauty"], ["generate", "--sede", "1"], ["train", "--steps", "1"]]
)
def test_unknown_words_exit_2(argv, capsys):
    assert cli.main(argv) == 2


def test_a_user_error_is_one_line_unless_the_traceback_is_wanted(monkeypatch, capsys):
    argv = ["evaluate", "fidelity", "--episodes", "1"]
    assert cli.main(argv) == 2
    assert capsys.readouterr().err.startswith("sana-wm: got --episodes 1")
    monkeypatch.setenv("SANA_WM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="episodes 1"):
        cli.main(argv)


@pytest.mark.parametrize("words", [["--device", "abacus"], ["--device=abacus"]])
def test_a_device_that_is_not_there_is_said_first(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "autoencoder", *words]) == 2
    assert "got --device abacus" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_interrupt_exits_130(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    assert cli.main(["generate"]) == 130


def test_parity_exit_codes(tmp_path, capsys):
    assert cli.main(["parity"]) == 2
    assert "at least one" in capsys.readouterr().err
    assert cli.main(["parity", str(tmp_path / "none.safetensors")]) == 2


def test_fidelity_report_repeats_byte_for_byte(tmp_path, capsys):
    world = gym.registry["SanaWM-v0"].kwargs.get("world", "tiny-rooms")
    argv = [
        "evaluate",
        "fidelity",
        "--world",
        world,
        "--episodes",
        "2",
        "--chunks",
        "2",
        "--batch",
        "2",
        "--seed",
        "40",
    ]
    for name in ("a", "b"):
        assert (
            cli.main([*argv, "--json", str(tmp_path / f"{name}.json"), "--out", str(tmp_path / "sheets")])
            == 0
        )
    first, second = ((tmp_path / f"{name}.json").read_bytes() for name in ("a", "b"))
    assert first == second
    report = json.loads(first)
    assert report["config"]["episodes"] == 2 and len(report["weights_sha256"]) == 64
    for rooms in ("home", "held-out"):
        assert set(report[rooms]["figures"]) == {
            "psnr_db",
            "ssim",
            "psnr_visible_db",
            "ssim_visible",
            "histogram_overlap",
        }
        for conditions in report[rooms]["figures"].values():
            assert set(conditions) == {"autoencoder", "world", "still", "shuffled", "reversed"}
            assert all(len(cells) == 2 for cells in conditions.values())
        sheets = [(tmp_path / "sheets" / f"{name}-{rooms}.png") for name in ("a", "b")]
        assert sheets[0].read_bytes() == sheets[1].read_bytes()
        sheet = np.asarray(Image.open(sheets[0]))
        assert sheet.shape[1] > 6 * 64 and sheet.std() > 10
    assert "| held-out" in capsys.readouterr().out


def test_the_module_runs_as_a_program():
    result = run("evaluate", "fidelity", "--episodes", "1")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
