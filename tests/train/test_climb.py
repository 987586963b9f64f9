"""The ladder as one command: what it reads, refuses, keeps; and that it goes on wherever it was killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from sana_wm_env import cli
from sana_wm_env.model.storage.worlds import load_config, resolve_world
from sana_wm_env.train import ladder, recipe
from sana_wm_env.train.milestones import Measurement, write_progress

RECIPE = """
data = "--shards 1"
[[stages]]
stage = "autoencoder"
share = 0.5
[[stages]]
stage = "causal"
share = 1
arguments = "--frames 4 --batch 2"
[[stages]]
stage = "distill"
share = 2
arguments = "--frames 7 --batch 2 --openings flow --sessions 0"
"""


def test_a_recipe_gives_each_stage_its_share_and_its_arguments(tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE)
    whole = recipe.read_recipe(tmp_path / "r.toml")
    assert [rung.share for rung in whole] == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert whole[0].arguments == [] and whole[1].arguments == [
        "--shards",
        "1",
        "--frames",
        "4",
        "--batch",
        "2",
    ]
    rest = recipe.read_recipe(tmp_path / "r.toml", without_autoencoder=True)
    assert [(rung.name, rung.share) for rung in rest] == [
        ("causal", pytest.approx(1 / 3)),
        ("distill", pytest.approx(2 / 3)),
    ]


@pytest.mark.parametrize("path", sorted(recipe.FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_package_name_flags_that_the_stages_have(path, capsys):
    for rung in recipe.read_recipe(path):
        assert cli.main(["train", rung.stage, "--help"]) == 0
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert {argument for argument in rung.arguments if argument.startswith("--")} <= known


@pytest.mark.parametrize(
    ("change", "says"),
    {
        "a stage": (
            ('"causal"', '"casual"'),
            "'casual' in stage 2.*wanted one of autoencoder, bidirectional",
        ),
        "a share": (("share = 2", "share = -1"), "share = -1 in stage 3.*above 0"),
        "a field": (("share = 1", "part = 1"), "got part in stage 2.*wanted stage, name, share"),
        "a name": (('stage = "distill"', 'stage = "distill"\nname = "causal"'), "two stages named causal"),
        "TOML": (("share = 1", "share ="), "no TOML"),
        "arguments": (('"--frames 4 --batch 2"', "2"), "arguments = 2 in stage 2.*one text"),
        "top": (("data =", "date ="), "got date.*wanted .*stages"),
        "nothing": ((RECIPE, ""), "no stage of the transformer"),
    }.values(),
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path, change, says):
    (tmp_path / "r.toml").write_text(RECIPE.replace(*change))
    with pytest.raises(ValueError, match=f"(?s){says}"):
        recipe.read_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--hours 0", "--hours 0"),
        ("--until 25:00", "--until 25:00; wanted a time of day"),
        ("--scored-on x", "without --data"),
        ("--recipe none.toml", "none.toml"),
    ],
)
def test_a_ladder_refuses_before_it_trains(tmp_path, capsys, flags, says):
    assert cli.main(["train", "ladder", "--runs", str(tmp_path), *flags.split()]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_stage_that_fails_is_not_tried_for_ever(tmp_path, capfd):
    (tmp_path / "r.toml").write_text(RECIPE.replace("--batch 2", "--batch -2"))
    config = ladder.LadderConfig(
        recipe=tmp_path / "r.toml",
        init_from="rooms",
        runs=tmp_path / "runs",
        hours=0.01,
        processes=1,
        episodes=2,
        chunks=1,
    )
    with pytest.raises(ChildProcessError, match="causal ended with code 2 and no progress"):
        ladder.run(config)
    assert "batch -2" in capfd.readouterr().err


def test_the_page_shows_every_milestone_and_which_is_kept(tmp_path):
    row = {
        "stage": "causal",
        "step": 10,
        "samples": 1000,
        "hours": 0.5,
        "contrast": {"clips": 0.9},
        "rot_err_deg": {},
    }
    rows = [row | {"closed": {"clips": [0.5, 0.25]}, "mean": 0.375, "kept": True}]
    rows.append(row | {"samples": 2000, "closed": {"clips": [0.4, 0.2]}, "mean": 0.3, "kept": False})
    tile = np.zeros((8, 8, 3), np.uint8)
    measured = Measurement(
        {"clips": [0.4, 0.2]}, {"clips": 0.9}, {}, [[tile, tile]], ["a"], ["truth", "world"]
    )
    write_progress(tmp_path / "ladder.md", "Ladder of mine", rows, measured)
    page = (tmp_path / "ladder.md").read_text()
    assert page.count("(best)") == 1 and "50 / 25 %" in page and "2,000" in page
    assert (tmp_path / "ladder-curves.png").stat().st_size > 5000 and (
        tmp_path / "ladder-frames.png"
    ).exists()


@pytest.mark.heavy
def test_a_killed_ladder_goes_on_to_a_world_and_keeps_the_best(tmp_path):
    """Kill -9 in the middle of the second stage: its processes end, the same command takes up what they
    had.
    """
    (tmp_path / "r.toml").write_text(RECIPE)
    runs = tmp_path / "runs"
    flags = (
        f"--recipe {tmp_path}/r.toml --init-from rooms --runs {runs} --hours 0.05 --processes 2 "
        "--episodes 2 --chunks 1 --nice 1"
    )
    command = [sys.executable, "-m", "sana_wm_env.cli", "train", "ladder", *flags.split()]
    first = subprocess.Popen(command, start_new_session=True)
    checkpoint = runs / "rooms" / "distill" / "checkpoint.pt"
    _wait(lambda: checkpoint.exists() or first.poll() is not None)
    assert first.poll() is None
    workers = _children(first.pid)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert len(workers) == 2
    _wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 20)
    known = json.loads((runs / "rooms" / "ladder.json").read_text())
    assert known["finished"] == ["causal"]

    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr[-2000:]
    assert "wrote" in second.stdout and "causal:" not in second.stderr
    ended = json.loads((runs / "rooms" / "ladder.json").read_text())
    assert [row["mean"] for row in ended["scores"]][: len(known["scores"])] == [
        row["mean"] for row in known["scores"]
    ]
    assert ended["finished"] == ["causal", "distill"] and sum(row["kept"] for row in ended["scores"]) == 1
    assert ended["scores"][-1]["hours"] == pytest.approx(0.05, rel=0.5)
    assert set(ended["scores"][-1]["closed"]) == {"home", "held-out"}
    start = ended["scores"][0]
    assert (start["stage"], start["step"], start["samples"], start["kept"]) == ("start", 0, 0, False)
    best = next(row["mean"] for row in ended["scores"] if row["kept"])
    assert ("no better than rooms, from which it began" in second.stdout) == (start["mean"] >= best)
    made, first_world = (
        load_config(resolve_world(world)) for world in (str(runs / "rooms" / "world"), "rooms")
    )
    assert made.sigmas == first_world.sigmas, "it samples as the world that it comes from"
    assert made.transformer == first_world.transformer
    env = gym.make("SanaWM-v0", world=str(runs / "rooms" / "world"))
    env.reset(seed=0)
    assert env.step(np.zeros(6, np.float32))[0].shape == (24, 64, 64, 3)

    third = subprocess.run(command, capture_output=True, text=True)
    assert third.returncode == 0 and "is the best world" in third.stdout
    assert (
        cli.main(["train", "ladder", *flags.replace("--hours 0.05", "--hours 0.06").split()]) == 2
    )  # another schedule, another ladder


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait(done, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.2)
