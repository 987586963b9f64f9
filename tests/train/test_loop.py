"""The loop: what is interrupted goes on as if it had not been; Muon orthogonalises."""

import signal
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import nn

from sana_wm_env.train.loop import RETREATS, LoopConfig, load_average, train
from sana_wm_env.train.optim import OptimConfig, optimisers, orthogonalise, schedule
from sana_wm_env.train.stage import Stage


class Regression(Stage):
    """A small network that learns a fixed matrix from noise drawn with the loop's generator; the calls in
    `broken` give NaN.
    """

    def __init__(self, broken: Collection[int] = ()):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 32))
        self.target = 0.1 * torch.randn(32, 32)
        self.seen, self.broken, self.let_go_at = [], broken, []

    def loss(self, batch, generator):
        x = torch.randn(batch, 32, generator=generator)
        loss = (self.model(x) - x @ self.target).square().mean()
        self.seen.append(loss.item())
        return loss * (float("nan") if len(self.seen) - 1 in self.broken else 1.0), {}

    def let_go(self):
        self.let_go_at.append(len(self.seen) - 1)


def run(out: Path, steps: int, total: int = 40) -> list[float]:
    """Trains `steps` of `total` and stops the way SIGTERM does."""
    stage = Regression()
    original = stage.loss

    def loss(batch, generator):
        if len(stage.seen) == steps - 1:
            signal.raise_signal(signal.SIGTERM)
        return original(batch, generator)

    stage.loss = loss
    config = LoopConfig(steps=total, batch=8, preview=0, optim=OptimConfig(lr=0.02, warmup=2))
    if steps < total:
        with pytest.raises(SystemExit, match="the same command resumes"):
            train(stage, config, out)
    else:
        train(stage, config, out)
    return stage.seen


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    whole = run(tmp_path / "whole", 1000)
    first = run(tmp_path / "parts", 15)
    rest = run(tmp_path / "parts", 1000)
    assert len(first) == 15 and first + rest == whole
    assert whole[-1] < 0.7 * whole[0]
    averages = load_average(tmp_path / "whole"), load_average(tmp_path / "parts")
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


def test_parts_of_a_batch_add_up(tmp_path):
    """Eight samples at once, and two by two: the same ones, as the generator goes on from part to part."""
    ends = []
    for accumulate in (1, 4):
        model = train(
            Regression(),
            LoopConfig(steps=5, batch=8, accumulate=accumulate, preview=0),
            tmp_path / str(accumulate),
        )
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (ends[0] - ends[1]).abs().max() < 1e-5


def test_a_run_of_the_first_version_is_resumed(tmp_path):
    """Its checkpoint holds what a stage carries as it is, not as a file in the file."""
    run(tmp_path, 5)
    path = tmp_path / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    saved["carried"] = [torch.arange(3)]
    torch.save(saved, path)
    stage = Regression()
    train(stage, LoopConfig(steps=6, batch=8, preview=0, optim=OptimConfig(lr=0.02, warmup=2)), tmp_path)
    assert len(stage.seen) == 1 and torch.equal(stage.carried, torch.arange(3))


def test_a_step_that_is_not_finite_is_skipped(tmp_path, capsys):
    stage = Regression(broken=[3])
    train(stage, LoopConfig(steps=10, batch=8, preview=0), tmp_path)
    assert len(stage.seen) == 10 and stage.let_go_at == [3]
    assert all(p.isfinite().all() for p in stage.model.parameters())
    assert "step 3 was skipped" in capsys.readouterr().err
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (saved["step"], saved["skipped"], saved["retreats"]) == (10, 1, 0)


def test_two_in_a_row_go_back_to_the_checkpoint_with_other_data_at_half_the_rates(tmp_path, capsys):
    run(tmp_path, 5)
    stage = Regression(broken=[2, 3])  # steps 7 and 8
    train(stage, LoopConfig(steps=12, batch=8, preview=0, optim=OptimConfig(lr=0.02, warmup=2)), tmp_path)
    assert "back to step 5" in capsys.readouterr().err
    assert len(stage.seen) == 4 + 7 and not set(stage.seen[:2]) & set(stage.seen[4:6])
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (saved["step"], saved["skipped"], saved["retreats"]) == (12, 2, 1)


def test_a_run_that_went_back_and_is_stopped_goes_on_bit_for_bit(tmp_path):
    config = LoopConfig(steps=12, batch=8, preview=0, save_minutes=0, optim=OptimConfig(lr=0.02, warmup=2))
    whole = Regression(broken=[2, 3])
    train(whole, config, tmp_path / "whole")
    first, rest = Regression(broken=[2, 3]), Regression()
    original = first.loss

    def loss(batch, generator):
        if len(first.seen) == 6:
            signal.raise_signal(signal.SIGTERM)
        return original(batch, generator)

    first.loss = loss
    with pytest.raises(SystemExit):
        train(first, config, tmp_path / "parts")
    train(rest, config, tmp_path / "parts")
    assert first.seen + rest.seen == whole.seen


def test_signals_are_as_before_after_training_however_it_ended(tmp_path):
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    run(tmp_path / "stopped", 3)
    run(tmp_path / "done", 40)
    with pytest.raises(FloatingPointError):
        train(Regression(broken=range(100)), LoopConfig(steps=9, batch=8, preview=0), tmp_path / "nan")
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_run_that_cannot_go_on_stops_before_it_spoils_the_weights(tmp_path):
    stage = Regression(broken=range(3, 100))
    with pytest.raises(FloatingPointError, match=f"going back {RETREATS} times.*--lr"):
        train(stage, LoopConfig(steps=10, batch=8, preview=0), tmp_path / "nan")
    assert all(p.isfinite().all() for p in stage.model.parameters())


def test_hours_end_a_run_with_fallen_rates_and_minutes_only_this_process(tmp_path):
    stage = Regression()
    train(stage, LoopConfig(steps=10**9, hours=1 / 3600, batch=8, preview=0), tmp_path / "hours")
    saved = torch.load(tmp_path / "hours" / "checkpoint.pt", weights_only=True)
    assert saved["seconds"] >= 1 and saved["step"] == len(stage.seen) < 10**6
    assert (
        saved["optimiser"][0]["param_groups"][0]["lr"]
        < 0.2 * saved["optimiser"][0]["param_groups"][0]["peak"]
    )
    with pytest.raises(SystemExit, match="the same command resumes"):
        train(Regression(), LoopConfig(steps=10**9, minutes=1e-9, batch=8, preview=0), tmp_path / "minutes")


def test_a_missing_run_says_what_to_run_first(tmp_path):
    with pytest.raises(FileNotFoundError, match="sana-wm train bidirectional"):
        load_average(tmp_path / "bidirectional")


@pytest.mark.parametrize("shape", [(48, 48), (96, 32), (32, 96)])
def test_muon_updates_are_nearly_orthogonal(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.5 and values.max() < 1.3


def test_every_parameter_has_one_optimiser():
    model = nn.Sequential(
        nn.Linear(32, 32), nn.LayerNorm(32), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3, groups=32)
    )
    muon, adam = optimisers(model, OptimConfig())
    muon_ids, adam_ids = ({id(p) for group in o.param_groups for p in group["params"]} for o in (muon, adam))
    assert muon_ids == {id(model[0].weight), id(model[2].weight)}
    assert muon_ids.isdisjoint(adam_ids) and len(muon_ids | adam_ids) == len(list(model.parameters()))


def test_schedule_rises_stays_and_falls():
    config = OptimConfig(warmup=10, decay=0.5)
    shares = [schedule(step, step / 100, config) for step in range(101)]
    assert (
        shares[0] == pytest.approx(0.1)
        and shares[30] == 1.0
        and shares[75] == pytest.approx(0.5)
        and shares[100] == 0.0
    )
