"""The plan on paper: operations as torch counts them, bytes as the network keeps them, days as they were
published.
"""

from dataclasses import replace

import pytest
import torch
from tiny_networks import GRID, clip, tiny_config
from torch.utils.flop_counter import FlopCounterMode

from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.train.scale import TABLE_7, PlanConfig, forward_flops, kept_bytes, memory, row_flops, run


@pytest.mark.parametrize("rule", ["bidirectional", "chunk_causal"])
def test_operations_are_those_that_torch_counts(rule):
    """All blocks by the delta rule: torch does not count attention on a CPU. The text's scores are attention
    as well.
    """
    config, given = replace(tiny_config(width=64), softmax_every=0), clip(13, 1, torch.float32)
    network = Transformer(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        text = network.text_context(given["text"], given["mask"])
        cameras = network.camera_context(given["camera"], given["plucker"])
        network(given["x"], torch.full((1, 13), 500.0), text, cameras, rule)
    counted = counter.get_total_flops()
    tokens = GRID[0] * GRID[1]
    scores = config.depth * 4 * 13 * tokens * 5 * config.width
    assert forward_flops(config, 13, tokens, rule) - scores == pytest.approx(counted, rel=0.03)


def test_attention_grows_with_the_square_of_the_clip_and_half_of_it_is_causal():
    config = tiny_config()
    every, fourth = (replace(config, softmax_every=n) for n in (1, 4))
    attention = [forward_flops(every, t, 1000) - forward_flops(fourth, t, 1000) for t in (100, 200)]
    assert attention[1] / attention[0] == pytest.approx(4, rel=0.05)
    causal, full = (forward_flops(every, 301, 1000, rule) for rule in ("chunk_causal", "bidirectional"))
    assert causal / full == pytest.approx(0.5, rel=0.05)


def test_what_is_kept_grows_with_the_frames():
    few, many = (kept_bytes(tiny_config(), frames, GRID) for frames in (4, 8))
    assert 1.8 < many / few < 2.2


def test_the_published_run_is_within_reach(capsys):
    config = PlanConfig()
    held = memory(config)
    assert held["parameters, float32 shard"] == pytest.approx(4 * 2.66e9 / 64, rel=0.01)
    assert [row_flops(row, config)[0] for row in TABLE_7] == [9680, 9680, 106480, 106480]
    assert sum(row.days for row in TABLE_7) == 15.25
    run(config)
    printed = capsys.readouterr().out
    assert "106,480 tokens" in printed and "15.25" in printed and "fits" in printed


@pytest.mark.parametrize("wrong", [{"gpus": 3}, {"frames": 960}, {"size": (700, 1280)}, {"utilisation": 1.5}])
def test_wrong_plans_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if "gpus" not in wrong else "3 GPUs"):
        PlanConfig(**wrong)
