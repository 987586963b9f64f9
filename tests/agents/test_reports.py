"""The reports on planning and on transfer, and the statistics in them."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from sana_wm_env import cli
from sana_wm_env.agents.choose import EnvConfig
from sana_wm_env.agents.planning.report import PlanningConfig, rows
from sana_wm_env.agents.policy.train_ppo import TrainConfig, train
from sana_wm_env.agents.policy.transfer import TransferConfig, policies, rank_correlation

PLANNING = [
    "agents",
    "planning",
    "--agents",
    "go-to-goal",
    "cem",
    "--objectives",
    "reward",
    "--episodes",
    "2",
    "--chunks",
    "3",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A policy of two updates."""
    out = tmp_path_factory.mktemp("runs") / "short"
    where = EnvConfig(env="SanaWM-Rooms-v0", task="redness", chunks=2, image_size=16)
    train(TrainConfig(where=where, out=out, steps=16, envs=2, rollout=4, batch=8, epochs=1, snapshot_every=8))
    return out


def test_every_setting_has_the_rows_that_make_sense():
    names = [
        row.name
        for row in rows(
            PlanningConfig(agents=("random", "cem"), objectives=("reward", "latents"), anchor_every=(1, 3))
        )
    ]
    assert names == [
        "model: random",
        "model: cem by reward",
        "model: cem by latents",
        "mixed: cem by reward, anchor 1",
        "mixed: cem by reward, anchor 3",
        "mixed: cem by latents, anchor 1",
        "mixed: cem by latents, anchor 3",
        "truth: random",
        "truth: cem by reward",
    ]
    frames = rows(
        PlanningConfig(
            agents=("mppi",),
            objectives=("frames",),
            settings=("mixed", "truth"),
            imagined_candidates=5,
            imagined_iterations=1,
        )
    )
    assert [row.who.plan_in for row in frames] == ["model", "truth"] and {
        row.where.env for row in frames
    } == {"SanaWM-RoomsGoal-v0"}
    assert {(row.who.planner.candidates, row.who.planner.iterations) for row in frames} == {(5, 1)}
    with pytest.raises(ValueError, match="agents transfer is for policies"):
        rows(PlanningConfig(agents=("ppo",)))


def test_planning_report(tmp_path, capsys):
    out = tmp_path / "planning.json"
    small = ["--candidates", "24", "--iterations", "3", "--speed-candidates", "2"]
    argv = [*PLANNING, *small, "--settings", "mixed", "truth", "--json", str(out)]
    assert cli.main(argv) == 0
    shown, report = capsys.readouterr().out, json.loads(out.read_text())
    assert [*report["rows"]] == [
        "mixed: cem by reward, anchor 1",
        "truth: go-to-goal",
        "truth: cem by reward",
    ]
    assert all(name in shown for name in report["rows"]) and "2 candidates together" in shown
    assert report["rows"]["truth: go-to-goal"]["success"]["mean"] == 1
    assert all(row["return"]["mean"] > 0.5 for row in report["rows"].values())
    assert report["rows"]["truth: cem by reward"]["planning"]["plans_per_second"] > 0
    assert report["imagine"]["speed_up"] > 0


def test_rank_correlation_on_known_answers():
    rng = np.random.default_rng(0)
    quality = np.arange(12.0)[:, None]
    imagined, true = (quality + rng.normal(0, 0.1, (12, 20)) for _ in range(2))
    assert rank_correlation(imagined, true)["mean"] == 1 and rank_correlation(imagined, true)["low"] > 0.95
    assert rank_correlation(imagined, -true)["mean"] == -1
    mixed = rng.permutation(imagined)
    mixed[3] = mixed[4]  # a tie
    assert rank_correlation(mixed, true)["mean"] == pytest.approx(
        spearmanr(mixed.mean(1), true.mean(1)).statistic
    )
    noise = rank_correlation(rng.normal(size=(12, 20)), rng.normal(size=(12, 20)))
    assert noise["low"] < 0.3 < noise["high"] + 0.6
    assert rank_correlation(np.ones((3, 4)), np.ones((3, 4)))["mean"] is None


def test_policies_are_spread_over_a_run(trained):
    assert [*policies(TransferConfig(runs=(trained,), per_run=1))] == ["short 16"]
    assert [*policies(TransferConfig(runs=(trained,), per_run=2))] == ["short 0", "short 16"]
    assert len(policies(TransferConfig(runs=(trained,), per_run=9))) == 3
    with pytest.raises(ValueError, match=r"holds no policy-\*\.zip"):
        policies(TransferConfig(runs=(trained.parent,)))


def test_transfer_report(trained, tmp_path, capsys):
    out = tmp_path / "transfer.json"
    argv = [
        "agents",
        "transfer",
        "--runs",
        str(trained),
        "--per-run",
        "1",
        "--scripts",
        "random",
        "still",
        "--episodes",
        "2",
    ]
    assert cli.main([*argv, "--chunks", "1", "--image-size", "16", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert [*report["rows"]] == sorted(
        f"{name}, {world}" for name in ("random", "still", "short 16") for world in ("imagined", "true")
    )
    assert (
        report["rows"]["still, true"]["return"]["mean"]
        == 0
        != report["rows"]["random, true"]["return"]["mean"]
    )
    assert report["rank_correlation"]["policies"] == 3
    assert "rank correlation of imagined and true return over 3 policies" in capsys.readouterr().out
    assert out.with_suffix(".png").stat().st_size > 5000 and not out.with_name("transfer.json.part").exists()
