"""Many ranks give what one gives: clips divided in time, sharded weights; and a rank that is lost takes
nothing along but the step.
"""

from itertools import pairwise

import pytest
import torch
from ranks import (
    FRAMES,
    divided_clips,
    loop_config,
    on_ranks,
    parameters_after,
    run_until_lost,
    sharded_runs,
    stage_on_noise,
)

from sana_wm_env.model.network.execution import chunk_sizes, whole_clip
from sana_wm_env.model.network.gated_delta import scan, transitions
from sana_wm_env.train.checkpoints import latest
from sana_wm_env.train.loop import LoopConfig, load_average, train
from sana_wm_env.train.parallel import ContextGroup, ParallelConfig, RankSegment, segment_borders

CASES = [
    (size, rule, dtype)
    for size in (2, 4)
    for rule in ("bidirectional", "chunk_causal")
    for dtype in (torch.float32, torch.float64)
]


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    return on_ranks(4, tmp_path_factory.mktemp("divided"), divided_clips)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_divided_clip_equals_a_whole_one(divided, case):
    limit = 1e-5 if case[2] == torch.float32 else 1e-12
    for found in (of_rank[case] for of_rank in divided):
        assert found.borders == segment_borders(FRAMES, 3, case[0])
        assert found.velocity < limit and found.gradient < limit


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    return folder, on_ranks(2, folder, sharded_runs, folder)


@pytest.mark.parametrize(
    "case", [(2, "bidirectional", torch.float32), (2, "chunk_causal", torch.float64)], ids=str
)
def test_sharded_ranks_that_share_clips_train_as_one_does(sharded, tmp_path, case):
    _, rule, dtype = case
    alone = parameters_after(loop_config(), tmp_path, rule, dtype)
    for result in sharded[1]:
        assert max((alone[name] - value).abs().max() for name, value in result["ends"][case].items()) < 1e-5


def test_sharded_ranks_with_clips_of_their_own_train_as_one_on_all(sharded, tmp_path):
    config = loop_config()
    stage = stage_on_noise(config)
    original = stage.loss

    def loss(batch, generator):  # both ranks' batches; their generators differ by one in the seed
        other = torch.Generator().manual_seed(generator.initial_seed() + 1)
        return (original(1, generator)[0] + original(1, other)[0]) / 2, {}

    stage.loss = loss
    alone = dict(train(stage, config, tmp_path).named_parameters())
    for result in sharded[1]:
        ends = result["ends"][1, "bidirectional", torch.float32]
        assert max((alone[name] - value).abs().max() for name, value in ends.items()) < 1e-5


def test_a_sharded_run_goes_on_bit_for_bit_and_one_process_can_read_it(sharded):
    folder, results = sharded
    for result in results:
        assert result["losses"]["whole"] == result["losses"]["parts"] and len(result["losses"]["whole"]) == 4
        assert all(loss > 0 for loss in result["bf16"])
    averages = load_average(folder / "whole"), load_average(folder / "parts")
    assert averages[0].keys() == stage_on_noise(loop_config()).model.state_dict().keys()
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])
    assert (
        latest(folder / "parts").name == "checkpoint-000000004"
        and len(list((folder / "parts").glob("checkpoint-*"))) == 1
    )


@pytest.mark.parametrize(("how", "shard"), [("killed", True), ("asleep", False)])
def test_the_others_stop_when_a_rank_is_lost(tmp_path, how, shard):
    waited, said = run_until_lost(tmp_path, how, shard)
    assert "process 0 of 2 stopped at step 3" in said and "the same command resumes" in said.lower()
    assert str(latest(tmp_path / "run")) in said
    assert float(waited) < 30
    assert all(value.isfinite().all() for value in load_average(tmp_path / "run").values())


def test_known_segments():
    assert len(chunk_sizes(121)) == 40
    assert segment_borders(121, 3, 2) == (0, 61, 121)  # the published border, without its padding frame
    assert segment_borders(121, 3, 4) == (0, 31, 61, 91, 121)
    assert all(border in (0, 4, 7, 10, 13) or border == 17 for border in segment_borders(17, 3, 4))
    for ranks in range(1, 41):
        assert (
            min(b - a for a, b in pairwise(segment_borders(121, 3, ranks))) >= 3
        )  # as far as the key convolution reaches
    with pytest.raises(ValueError, match="too few for 5 ranks; give at least 16 frames"):
        segment_borders(13, 3, 5)


def test_a_border_inside_a_chunk_is_refused():
    group = ContextGroup.__new__(ContextGroup)
    group.rank, group.size = 0, 2
    with pytest.raises(ValueError, match="not whole chunks"):
        whole_clip("chunk_causal", 5, 3, RankSegment(group, (0, 5, 10)))


@pytest.mark.parametrize(("tokens", "head"), [(880, 112), (64, 48)])
def test_only_the_published_key_scale_contracts(tokens, head):
    """All keys equal, of unit RMS, written with full strength: the worst frame there is."""
    keys = torch.ones(1, 12, 1, tokens, head, dtype=torch.float64)
    strength = torch.ones(1, 12, 1, tokens, dtype=torch.float64)
    decay = torch.ones(1, 12, 1, dtype=torch.float64)
    for scale, grows in (((head * tokens) ** -0.5, False), (head**-0.5, True)):
        transition, weighted = transitions(keys * scale, strength, decay)
        norm = torch.linalg.matrix_norm(transition[0, 0, 0], 2)
        states, _ = scan(transition, weighted.sum(3, keepdim=True), ((0, 12),), None)
        assert (norm > 1.5) == grows and (states.abs().max() > 1e12) == grows
        assert norm == pytest.approx(tokens - 1 if grows else 1, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"parallel": ParallelConfig(shard=True)}, "add --method adamw"),
        ({"parallel": ParallelConfig(context=2)}, "groups of 2"),
        ({"batch": 6, "accumulate": 4}, "4 times per step; give a multiple of 4"),
        ({"batch": 0}, "got --batch 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, wanted):
    with pytest.raises(ValueError, match=wanted):
        train(stage_on_noise(loop_config()), LoopConfig(**{"preview": 0, **settings}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_ranks_without_a_common_clip_are_refused(tmp_path):
    with pytest.raises(ValueError, match="several processes; start it with torchrun"):
        train(stage_on_noise(loop_config()), loop_config(shard=True), tmp_path)
    with pytest.raises(ValueError, match="needs --shard"):
        ParallelConfig(bf16=True)
