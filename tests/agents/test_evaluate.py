"""Episodes, their statistics, and reports that survive an interruption."""

import json

import gymnasium as gym
import numpy as np
import pytest

import sana_wm_env  # noqa: F401  # registers the ids
from sana_wm_env import cli
from sana_wm_env.agents.evaluate import Notebook, play, success_rate, summarise, table
from sana_wm_env.agents.random_agent import StillAgent
from sana_wm_env.agents.scripted import GoToGoalAgent, LookAroundAgent, OrbitAgent

EVALUATE = [
    "agents",
    "evaluate",
    "--env",
    "SanaWM-RoomsGoal-v0",
    "--chunks",
    "2",
    "--image-size",
    "16",
    "--agent",
    "random",
]


def rooms(**options):
    options = {"task": "goal", "max_episode_steps": 2} | options
    return gym.make(
        "SanaWM-Rooms-v0", image_size=(16, 16), obs_mode="dict", disable_env_checker=True, **options
    )


def test_what_is_known_of_an_episode():
    env = rooms()
    still, turning, circling, arriving = (
        play(agent, env, 3) for agent in (StillAgent(), LookAroundAgent(), OrbitAgent(2), GoToGoalAgent())
    )
    assert still == {
        "seed": 3,
        "return": 0.0,
        "chunks": 2,
        "path_m": 0.0,
        "turned_rad": 0.0,
        "success": False,
    }
    assert turning["path_m"] == 0 and turning["turned_rad"] == pytest.approx(0.6, abs=1e-4)
    assert circling["path_m"] == pytest.approx(1.2, abs=1e-4) and circling["turned_rad"] == pytest.approx(
        0.6, abs=1e-4
    )
    assert arriving["return"] > still["return"]
    assert "success" not in play(StillAgent(), rooms(task="follow"), 3)


def test_every_observation_is_shown():
    seen = []
    play(
        LookAroundAgent(),
        rooms(task="free"),
        0,
        lambda observation, info: seen.append((observation["image"], info["chunk_index"])),
    )
    assert [index for _, index in seen] == [0, 1, 2] and (seen[0][0] != seen[1][0]).any()


def test_wilson_interval_on_known_counts():
    """Brown, Cai, DasGupta 2001: the interval for 0 of 10 is [0, 0.2775]; it is symmetric."""
    none, all_ = success_rate([False] * 10), success_rate([True] * 10)
    assert (none["low"], none["high"]) == (0, pytest.approx(0.27753, abs=1e-4))
    assert all_["low"] == pytest.approx(1 - none["high"]) and all_["mean"] == 1


def test_summary_and_table():
    records = [
        {"return": value, "chunks": 2, "path_m": 1.0, "turned_rad": 0.0, "success": value > 0}
        for value in (0.0, 2.0, 4.0)
    ]
    planned = [
        r | {"imagined_return": 1.0, "plans": 2, "imagined_chunks": 20, "plan_seconds": 0.5} for r in records
    ]
    summary = summarise(planned)
    assert summary["return"]["mean"] == 2 and summary["return"]["low"] == pytest.approx(
        2 - 4.303 * 2 / 3**0.5, abs=1e-3
    )
    assert summary["planning"] == {
        "plans": 6,
        "seconds": 1.5,
        "plans_per_second": 4.0,
        "imagined_chunks_per_plan": 10.0,
    }
    assert "planning" not in summarise(records)
    text = table({"planner": summary, "other": summarise(records)})
    assert "0.67 [0.21, 0.94]" in text and "4.00" in text and len(text.split("\n")) == 3


def test_a_notebook_survives_a_cut(tmp_path):
    path, header = tmp_path / "a.json", {"episodes": 3}
    for key in ("0", "1"):
        Notebook(path, header).add(key, {"return": float(key)})
    part = tmp_path / "a.json.part"
    part.write_text(part.read_text() + '{"key": "2", "rec')  # cut off while it was written
    again = Notebook(path, header)
    assert again.records == {"0": {"return": 0.0}, "1": {"return": 1.0}}
    again.add("2", {"return": 2.0})
    assert len(Notebook(path, header).records) == 3
    with pytest.raises(ValueError, match="left by another measurement"):
        Notebook(path, {"episodes": 4})
    Notebook(path, header).close()
    assert not part.exists() and Notebook(None, header).records == {}


def test_reports_repeat_and_go_on(tmp_path, capsys):
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    assert cli.main([*EVALUATE, "--episodes", "3", "--seed", "5", "--json", str(whole)]) == 0
    shown = capsys.readouterr().out
    assert "random in SanaWM-RoomsGoal-v0" in shown and "success" in shown
    report = json.loads(whole.read_text())
    assert [record["seed"] for record in report["episodes"]] == [5, 6, 7] and report["config"]["where"][
        "chunks"
    ] == 2
    notebook = Notebook(cut, report["config"])
    marked = report["episodes"][0] | {"return": 100.0}  # would not come out if it were played again
    notebook.add("random 5", marked)
    assert cli.main([*EVALUATE, "--episodes", "3", "--seed", "5", "--json", str(cut)]) == 0
    assert json.loads(cut.read_text())["episodes"] == [marked, *report["episodes"][1:]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.json", "whole.json"]


def test_an_episode_as_a_video(tmp_path, capsys):
    out = tmp_path / "videos" / "a.mp4"
    argv = [
        "agents",
        "run",
        "--agent",
        "orbit",
        "--env",
        "SanaWM-RoomsGoal-v0",
        "--chunks",
        "2",
        "--image-size",
        "16",
        "--out",
        str(out),
    ]
    assert cli.main(argv) == 0
    assert "chunk  2: is_success" in capsys.readouterr().out and out.stat().st_size > 1000
    assert np.load(out.with_suffix(".npz"))["actions"].shape == (2, 6)


@pytest.mark.parametrize(
    "words, cause",
    [
        (["--episodes", "0"], "--episodes 0"),
        (["--env", "Pong-v0"], "'Pong-v0'"),
        (["--agent", "ppo", "--policy", "none.zip"], "none.zip"),
    ],
)
def test_bad_wishes_are_one_line(words, cause, capsys):
    assert cli.main([*EVALUATE, *words]) == 2
    error = capsys.readouterr().err
    assert cause in error and error.count("\n") == 1
