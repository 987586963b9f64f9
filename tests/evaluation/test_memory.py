"""Revisits by worlds whose memory is known: one that knows the truth, one that forgets everything, one that
never moves.
"""

import json

import pytest
import torch
from known_worlds import Oracle, Still
from tqdm import tqdm

from sana_wm_env import cli
from sana_wm_env.evaluation.episodes import draw_episodes
from sana_wm_env.evaluation.memory import CONDITIONS, remember, turn_away
from sana_wm_env.evaluation.metrics import PSNR_CEILING_DB


@pytest.fixture(scope="module")
def episodes():
    return draw_episodes(count=3, chunks=1, seed=5)


def test_all_paths_end_in_the_first_view_and_turn_out_of_it(episodes):
    paths = turn_away(episodes, 10)
    for path in paths.values():
        assert torch.allclose(path[:, -1], episodes.path[:, 0], atol=1e-9)
        assert torch.allclose(path[:, -25:], path[:, -1:].expand(-1, 25, -1, -1), atol=1e-9)
    away = torch.linalg.inv(paths["returned"][:, 0]) @ paths["returned"][:, 5 * 24]
    degrees = torch.rad2deg(torch.acos((away.diagonal(dim1=1, dim2=2)[:, :3].sum(-1) - 1) / 2))
    assert (degrees > 80).all()  # the view is 75 degrees wide
    with pytest.raises(ValueError, match="even number"):
        turn_away(episodes, 5)


def test_who_knows_the_truth_remembers_and_who_never_moves_shows_the_first_view(episodes):
    paths = turn_away(episodes, 2)
    for condition, path in paths.items():
        psnr, shown = remember(Still(), episodes, path, 2, tqdm(disable=True))
        assert shown.shape == (3, 1 + path.shape[1] // 24, 32, 32, 3)
        assert (psnr > 40).all() if condition != "new" else (psnr < 40).all()
    psnr, _ = remember(Oracle(), episodes, paths["returned"], 2, tqdm(disable=True))
    assert psnr.tolist() == pytest.approx([PSNR_CEILING_DB] * 3)


def test_the_command_writes_an_equal_report_twice(tmp_path, capsys):
    for name in ("a", "b"):
        assert (
            cli.main(f"evaluate revisit --episodes 2 --away 2 --json {tmp_path}/{name}/revisit.json".split())
            == 0
        )
    first, second = ((tmp_path / name / "revisit.json").read_bytes() for name in ("a", "b"))
    assert first == second
    for rooms in ("home", "held-out"):
        cells = json.loads(first)[rooms]
        assert set(cells) == {*CONDITIONS, "lost_db"}
        assert cells["lost_db"]["mean"] == pytest.approx(cells["stayed"]["mean"] - cells["returned"]["mean"])
        assert (tmp_path / "a" / f"revisit-{rooms}.png").stat().st_size > 1000
    assert "lost by leaving" in capsys.readouterr().out
