"""Noise levels with known answers."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from sana_wm_env.train.levels import LEVELS, chunk_levels, logit_normal, monotone, sigma_of


def test_flow_shift():
    assert sigma_of(torch.tensor(500), 9.95).item() == pytest.approx(0.9087, abs=5e-5)
    assert sigma_of(torch.tensor(0), 9.95).item() == 0.0
    assert (1000 * sigma_of(torch.tensor([750.0, 500.0, 250.0]), 8.0)).tolist() == pytest.approx(
        [960.0, 888.9, 727.3], abs=0.05
    )


def test_monotone_sequences_are_uniform():
    """Two chunks over four levels: ten sequences, each as likely as any other."""
    generator = torch.Generator().manual_seed(0)
    counts = Counter(tuple(monotone(2, 0, 3, generator).tolist()) for _ in range(5000))
    assert len(counts) == 10 and all(a <= b for a, b in counts)
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_monotone_edges():
    generator = torch.Generator().manual_seed(0)
    assert monotone(0, 0, 5, generator).numel() == 0
    assert monotone(3, 7, 7, generator).tolist() == [7, 7, 7]


def test_chunk_levels_never_fall_along_time():
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        levels = chunk_levels(5, generator)
        assert (
            levels.shape == (5,)
            and (levels.diff() >= 0).all()
            and levels.min() >= 0
            and levels.max() < LEVELS
        )


def test_logit_normal_indices():
    index = logit_normal((20000,), torch.Generator().manual_seed(2))
    assert index.min() >= 0 and index.max() <= 999
    assert index.float().median().item() == pytest.approx(500, abs=15)
