"""`sana-wm evaluate precision` on two short episodes."""

import json

import numpy as np
import pytest
import torch

from sana_wm_env import cli
from sana_wm_env.evaluation.episodes import draw_episodes
from sana_wm_env.evaluation.metrics import PSNR_CEILING_DB
from sana_wm_env.evaluation.precision import PrecisionConfig, go_and_return, list_variants, measure_videos
from sana_wm_env.model.quantize import LAYERS
from sana_wm_env.model.storage.worlds import load_config, resolve_world

WORLD = load_config(resolve_world("rooms"))


def test_paths_return_to_where_they_began():
    episodes = go_and_return(draw_episodes(2, 2, 1000))
    assert episodes.path.shape == (2, 1 + 4 * 24, 4, 4) and episodes.drives["world"].shape == (2, 4, 24, 4, 4)
    assert torch.equal(episodes.path[:, -1], episodes.path[:, 0]) and not torch.equal(
        episodes.path[:, 48], episodes.path[:, 0]
    )
    ends = episodes.drives["world"][:, -1, -1]
    assert torch.allclose(ends, torch.eye(4, dtype=torch.float64).expand(2, 4, 4), atol=1e-9)
    assert torch.allclose(
        episodes.path[:, :1] @ episodes.drives["world"][:, 1], episodes.path[:, 25:49], atol=1e-9
    )


def test_one_precision_is_taken_apart_by_steps_and_by_groups():
    variants = {v.name: v for v in list_variants(PrecisionConfig(), WORLD, torch.bfloat16)}
    assert list(variants)[:6] == ["wide", "float32", "fp8", "nvfp4", "mxfp8", "int8"]
    levels = tuple(round(1000 * sigma) for sigma in WORLD.sigmas)
    assert variants["nvfp4, ends wide"].wide_at == (levels[0], levels[-2])
    assert variants["nvfp4, weights only"].wide_at == levels
    groups = [
        v.layers
        for name, v in variants.items()
        if name.removeprefix("nvfp4, ") in {layer.group for layer in LAYERS.values()}
    ]
    assert sorted(name for group in groups for name in group) == sorted(LAYERS)
    assert set(variants["nvfp4, all layers"].layers) == set(LAYERS)
    assert [
        v.name for v in list_variants(PrecisionConfig(precisions=("fp8",), apart=None), WORLD, torch.float32)
    ] == ["wide", "fp8"]


def test_a_revisit_is_where_the_path_returns():
    """Standing still in a video of one picture: nothing differs from itself."""
    episodes = go_and_return(draw_episodes(2, 2, 1000))
    picture = torch.randint(0, 256, (2, 1, 64, 64, 3), dtype=torch.uint8).expand(-1, 97, -1, -1, -1)
    figures = measure_videos(picture, picture, picture, episodes)
    assert np.allclose(figures["psnr_to_wide_db"], PSNR_CEILING_DB) and np.allclose(
        figures["sharpness_of_wide"], 1
    )
    found = figures["revisit_psnr_db"]
    assert np.isfinite(found).any() and np.allclose(found[np.isfinite(found)], PSNR_CEILING_DB)


def test_a_report_compares_with_the_wide_world(tmp_path, capsys):
    argv = [
        "evaluate",
        "precision",
        "--episodes",
        "2",
        "--chunks",
        "2",
        "--precisions",
        "nvfp4",
        "int8",
        "--apart",
        "None",
    ]
    assert cli.main([*argv, "--json", str(tmp_path / "p.json")]) == 0
    rows = json.loads((tmp_path / "p.json").read_text())["variants"]
    assert set(rows) >= {"truth", "wide", "nvfp4", "int8"}
    figures = {name: {f: v["value"]["mean"] for f, v in row["figures"].items()} for name, row in rows.items()}
    assert figures["wide"]["psnr_to_wide_db"] == pytest.approx(PSNR_CEILING_DB) and figures["truth"][
        "ssim"
    ] == pytest.approx(1)
    assert figures["nvfp4"]["psnr_to_wide_db"] < figures["int8"]["psnr_to_wide_db"] < PSNR_CEILING_DB
    assert rows["nvfp4"]["bytes"] < rows["int8"]["bytes"] < rows["wide"]["bytes"]
    difference = rows["nvfp4"]["figures"]["psnr_db"]["minus_wide"]["mean"]
    assert difference == pytest.approx(figures["nvfp4"]["psnr_db"] - figures["wide"]["psnr_db"])
    assert "| nvfp4" in (tmp_path / "p.md").read_text() and "PSNR to wide, dB" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--chunks 3", "--batch 0"])
def test_what_cannot_be_measured_is_refused(flag, capsys):
    assert cli.main(["evaluate", "precision", *flag.split()]) == 2
    assert f"got {flag}" in capsys.readouterr().err
