"""`sana-wm plan rollouts`: counts by hand, and a simulation against what can be computed."""

import pytest

from sana_wm_env import cli
from sana_wm_env.commands.rollouts import RolloutsConfig, Sizes, find_saturation, simulate

SIZES = Sizes(kept=1e6, condition=0, weights=1e9, seconds=1.0)
FAST = {"hours": 1, "failure_hours": 1e9}


def test_alone_and_undisturbed_it_does_what_its_seconds_allow():
    done = simulate(RolloutsConfig(network_gbps=1e6, **FAST), SIZES, 10)
    assert abs(done.chunks - 36_000) <= 20 and done.failures == 0 and done.waited_s < 1


def test_failures_cost_their_restart_and_the_chunks_since_the_checkpoint():
    config = RolloutsConfig(network_gbps=1e6, hours=10, failure_hours=1, restart_s=60, checkpoint_every=4)
    done = simulate(config, SIZES, 100)
    assert abs(done.failures - 1000) < 120  # a Poisson number
    each = done.lost_s / done.failures
    assert 60 + 1.5 < each < 60 + 3 + 1  # 1.5 chunks since the last checkpoint on average, and a part of one
    assert abs(done.chunks / (100 * 36_000) - (1 - done.lost_s / (100 * 36_000))) < 0.01


@pytest.mark.parametrize("learner_s, gbps", [(0.01, 1e6), (0, 0.8)])
def test_it_saturates_where_the_shared_part_is_busy_all_the_time(learner_s, gbps):
    """A hundredth of a second for each chunk: a hundred workers, and more do not help."""
    config = RolloutsConfig(network_gbps=gbps, learner_s=learner_s, **FAST)
    limit, part = find_saturation(config, SIZES)
    assert 95 < limit < 105 and ("learner" in part)
    few, many, more = (simulate(config, SIZES, n).chunks for n in (50, 400, 800))
    assert few > 0.9 * 50 * 3600
    assert abs(many - 360_000) < 4_000 and abs(more - many) < 2_000


def test_the_page(capsys):
    flags = ["--device", "h100", "--chunks", "1e6", "--workers", "20", "--hours", "0.2"]
    assert cli.main(["plan", "rollouts", *flags]) == 0
    said = capsys.readouterr().out
    assert "roofline" in said and "saturates at about" in said and "GPU hours" in said
    assert cli.main(["plan", "rollouts", *flags, "--chunk-s", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "measured" in said and " 139 " in said  # 1e6 x 0.5 s
    assert cli.main(["plan", "rollouts", "--precision", "nvfp4"]) == 2
    assert cli.main(["plan", "rollouts", "--workers", "0"]) == 2
    assert "got --workers 0" in capsys.readouterr().err
