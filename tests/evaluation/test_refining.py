"""`sana-wm evaluate refining`: figures with known answers, and a report of the bundled world."""

import json

import numpy as np
import pytest
import torch
from tiny_refiners import write_refiner

from sana_wm_env import cli
from sana_wm_env.evaluation import refining
from sana_wm_env.evaluation.episodes import draw_episodes
from sana_wm_env.evaluation.precision import go_and_return
from sana_wm_env.rooms import default_intrinsics
from sana_wm_env.rooms.render import render


@pytest.fixture(scope="module")
def episodes():
    return go_and_return(draw_episodes(2, 1, 1000, "held-out", "cpu"))


@pytest.fixture(scope="module")
def truth(episodes):
    lens = torch.tensor(default_intrinsics((64, 64))).expand(2, 4)
    return render(episodes.scenes, episodes.path, lens, (64, 64)).rgb


def test_the_truth_is_as_sharp_as_itself_and_follows(episodes, truth):
    figures = refining.measure(truth, truth, episodes)
    assert figures["contrast"] == pytest.approx(np.full((2, 2), 100))
    assert figures["edge_energy"] == pytest.approx(np.full((2, 2), 100))
    assert (figures["ssim"] > 0.999).all() and (figures["rot_err_deg"] < 1.5).all()


def test_fog_is_seen_as_fog(episodes, truth):
    grey = truth.float().mean((2, 3), keepdim=True)
    fog = torch.cat([truth[:, :1], (0.5 * truth[:, 1:] + 0.5 * grey[:, 1:]).round().to(torch.uint8)], 1)
    figures = refining.measure(fog, truth, episodes)
    assert np.abs(figures["contrast"] - 50).max() < 3
    assert figures["edge_energy"].max() < 60
    summary = refining.compare(figures, refining.measure(truth, truth, episodes), 2)
    assert list(summary) == ["1", "2"]
    assert summary["2"]["contrast"]["difference"]["mean"] == pytest.approx(50, abs=3)
    assert "revisit_psnr_db" in summary["2"] and "revisit_psnr_db" not in summary["1"]


def test_a_report_has_both_kinds_of_rooms(tmp_path, capsys):
    refiner = write_refiner(tmp_path / "refiner")
    flags = ["--refiner", str(refiner), "--episodes", "2", "--chunks", "2", "--batch", "2"]
    path = tmp_path / "report.json"
    assert cli.main(["evaluate", "refining", *flags, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["refiner"] and set(found["home"]) == {"1", "2"}
    # random weights make another picture of the same latents
    assert abs(found["held-out"]["1"]["psnr_db"]["difference"]["mean"]) > 0.1
    page = path.with_suffix(".md").read_text()
    assert "edge energy" in page and "report-home.png" in page
    assert "Rooms: home" in capsys.readouterr().out


@pytest.mark.slow
def test_the_bundled_refiner_sharpens(tmp_path):
    path = tmp_path / "report.json"
    flags = ["--episodes", "8", "--chunks", "10", "--rooms", "held-out", "--json", str(path)]
    assert cli.main(["evaluate", "refining", *flags]) == 0
    last = json.loads(path.read_text())["held-out"]["10"]
    assert last["edge_energy"]["difference"]["mean"] > 0
    assert last["psnr_db"]["difference"]["mean"] > -2, "the same room"


def test_wrong_settings_are_refused(tmp_path, capsys):
    for flags, says in (
        (["--chunks", "3"], "even number"),
        (["--refiner", "nowhere"], "folder of a refiner"),
    ):
        given = ["--json", str(tmp_path / "a.json"), "--episodes", "2", *flags]
        assert cli.main(["evaluate", "refining", *given]) == 2
        assert says in capsys.readouterr().err
